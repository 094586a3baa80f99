"""In the manner of Modal's documentation: a map whose inputs fail at times, and a summary."""

import random

import modal

image = modal.Image.debian_slim(python_version="3.12")
app = modal.App("documented-map", image=image)
results = modal.Volume.from_name("documented-results", create_if_missing=True)


@app.function(retries=modal.Retries(max_retries=10, initial_delay=0.0, backoff_coefficient=1.0))
def estimate(seed: int, throws: int) -> int:
    if random.SystemRandom().random() < 0.4:
        raise ConnectionError(f"the service did not answer for {seed}")
    rng = random.Random(seed)
    return sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(throws))


@app.function(volumes={"/results": results})
def record(hits: int, throws: int) -> float:
    pi = 4 * hits / throws
    with open("/results/pi.txt", "w") as file:
        file.write(f"{pi:.4f}\n")
    results.commit()
    return pi


@app.local_entrypoint()
def main(inputs: int = 12, throws: int = 20_000):
    hits = sum(estimate.map(range(inputs), kwargs={"throws": throws}))
    pi = record.remote(hits, inputs * throws)
    print(f"pi is about {pi:.2f}")
