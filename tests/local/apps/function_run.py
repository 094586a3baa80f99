"""An existing function with the six lines of `modalkit.run`."""

import time

import modal

import modalkit
from modalkit import CheckpointPolicy, Deployment, images

volume = modal.Volume.from_name("function-outputs", create_if_missing=True)
recipe = images.slim(python="3.12").uv_pip_install("torch==2.13.0", "numpy==2.4.6")
app = modal.App("function-run", image=recipe.to_modal())
training = Deployment.training(
    outputs=("/outputs", volume), checkpoints=CheckpointPolicy(every_steps=5)
)


@app.function(**training.options(timeout=300))
def train(run_id: str, steps: int, step_s: float = 0.02) -> dict:
    import torch

    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    with modalkit.run(
        run_id, volume=volume, mount="/outputs", model=model, optimizer=optimizer
    ) as run:
        for step in run.steps(steps):
            print(f"STEP {step}", flush=True)
            time.sleep(step_s)
            loss = model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
    return run.summary()


@app.function(**training.options(timeout=300))
def swallow(run_id: str, steps: int) -> dict:
    """Catch what must not be caught, as careless training code does."""
    import torch

    model = torch.nn.Linear(4, 1)
    with modalkit.run(run_id, volume=volume, mount="/outputs", model=model) as run:
        try:
            for step in run.steps(steps):
                print(f"STEP {step}", flush=True)
                time.sleep(0.05)
        except KeyboardInterrupt:
            print("SWALLOWED", flush=True)
    return run.summary()


@app.function(**training.options(timeout=300, retries=2))
def fail_twice(run_id: str) -> dict:
    import torch

    model = torch.nn.Linear(4, 1)
    with modalkit.run(run_id, volume=volume, mount="/outputs", model=model) as run:
        for step in run.steps(12):
            if run.attempt < 3 and step == 4 + 3 * run.attempt:
                raise RuntimeError(f"attempt {run.attempt} fails at {step}")
    return run.summary()
