import modal

app = modal.App("broken-import")

if not modal.is_local():
    raise RuntimeError("the module fails in the container")


@app.function()
def f():
    return 1
