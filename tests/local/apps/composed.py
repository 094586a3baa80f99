"""An app put together in the less common ways: subclass, include, serialized, a list of GPUs."""

import modal


class Lab(modal.App):
    """An app class of one's own."""

    def trainer(self, **options):
        return self.function(max_containers=1, **options)


app = Lab("composed", tags={"team": "vision"})
other = modal.App("included")


@other.function()
def included(x: int) -> int:
    return x + 100


app.include(other)


@app.trainer(gpu=["H100", "A100-80GB:2"])
def on_any_gpu(x: int) -> int:
    return x + 1


@app.function()
def leaf(x: int) -> int:
    return x


@app.function()
def branch(n: int) -> int:
    return sum(leaf.map(range(n)))


@app.function()
def root() -> int:
    return branch.remote(3)


@app.local_entrypoint()
def main():
    print("MAIN", on_any_gpu.remote(1), included.remote(1))


@app.local_entrypoint()
def ahead():
    print("APP", app.app_id, flush=True)
    leaf.spawn(1)
