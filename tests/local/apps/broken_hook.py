import modal

app = modal.App("broken-hook")


@app.cls()
class Broken:
    @modal.enter()
    def load(self):
        raise LookupError("the hook fails")

    @modal.method()
    def f(self):
        return 1
