"""In the manner of Modal's documentation: a queue of work, batches, a function with a timeout."""

import time

import modal

app = modal.App("documented-pipeline")


@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=1000)
async def embed(texts: list[str]) -> list[dict]:
    return [{"text": text, "size": len(text), "batch": len(texts)} for text in texts]


@app.function(timeout=60)
def produce(queue: modal.Queue, documents: list[str]) -> int:
    for document in documents:
        for word in document.split():
            queue.put(word, partition="words")
    queue.put(None, partition="words")
    return len(documents)


@app.function(timeout=60)
def consume(queue: modal.Queue) -> list[dict]:
    words = []
    while (word := queue.get(partition="words", timeout=30)) is not None:
        words.append(word)
    return list(embed.map(words))


@app.function(timeout=2)
def stubborn() -> str:
    time.sleep(60)
    return "never"


@app.local_entrypoint()
def main():
    with modal.Queue.ephemeral() as queue:
        consumer = consume.spawn(queue)
        produce.remote(queue, ["the quick brown fox", "jumps over the lazy dog"])
        found = consumer.get()
    print("words", [row["text"] for row in found])
    print("largest batch", max(row["batch"] for row in found))
    try:
        stubborn.remote()
    except modal.exception.FunctionTimeoutError as error:
        print("timed out:", error)
