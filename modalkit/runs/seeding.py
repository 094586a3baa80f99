"""
Random generators of the process: seeded from a few numbers, captured, put back.

Three streams are kept apart. The *training* stream is what the bodies of steps draw from; it is
saved with each checkpoint. The *set-up* stream is what is drawn inside a run but outside its
steps; it starts at (seed, rank) on every attempt. The *data* stream of a step (augmentation)
comes from (seed, step) alone, see `modalkit.runs.batches`.
numpy and torch are seeded only if the program has loaded them.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from typing import Any

from modalkit.errors import RunError


def derive(*parts: int | str) -> int:
    """Return 64 bits that depend on all of *parts*, the same on every machine."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def rank() -> int:
    """
    Return the rank of this process, 0 if it is alone.

    Raises:
        RunError: The environment variable `RANK` is not a number.

    Source: torchrun sets `RANK`.
    """
    text = os.environ.get("RANK", "0")
    if not text.isdecimal():
        raise RunError(
            f"RANK={text!r} in the environment is not a rank. Unset it, or set 0, 1, ..."
        )
    return int(text)


def seed_everything(seed: int, rank: int = 0) -> None:
    """
    Seed python, numpy and torch (all devices) from (*seed*, *rank*) and nothing else.

    Each library gets numbers of its own, so that their streams are not the same numbers.

    Args:
        seed: The run's seed.
        rank: The process in its group; ranks draw different numbers.
    """
    _seed_python(seed, rank)
    if "numpy" in sys.modules:
        _seed_numpy(seed, rank)
    if "torch" in sys.modules:
        _seed_torch(seed, rank)
        _seed_cuda(seed, rank)


def seed_data(seed: int, step: int) -> None:
    """Seed what datasets draw from, for one step; generators of a GPU are left alone."""
    _seed_python(seed, f"step {step}")
    if "numpy" in sys.modules:
        _seed_numpy(seed, f"step {step}")
    if "torch" in sys.modules:
        _seed_torch(seed, f"step {step}")


def capture_host() -> dict[str, Any]:
    """Return the state of the generators in host memory, by library."""
    state: dict[str, Any] = {"python": random.getstate()}
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state(legacy=False)
    if "torch" in sys.modules:
        state["torch"] = sys.modules["torch"].get_rng_state()
    return state


def capture() -> dict[str, Any]:
    """Return the state of all generators; those of GPUs only if the program has used one."""
    state = capture_host()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        state["cuda"] = sys.modules["torch"].cuda.get_rng_state_all()
    return state


def restore_host(state: dict[str, Any]) -> None:
    """Put back what `capture_host` returned."""
    random.setstate(state["python"])
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])
    if "torch" in state:
        sys.modules["torch"].set_rng_state(state["torch"])


def restore(state: dict[str, Any], *, seed: int, rank: int) -> None:
    """
    Put back what `capture` returned.

    A library that was loaded only since then starts from (*seed*, *rank*), as it would have if it
    had been there when the run began.
    """
    loaded = {name: value for name, value in state.items() if name in (*sys.modules, "python")}
    restore_host(loaded)
    if "numpy" in sys.modules and "numpy" not in state:
        _seed_numpy(seed, rank)
    if "torch" not in sys.modules:
        return
    if "torch" not in state:
        _seed_torch(seed, rank)
    if "cuda" not in state:
        _seed_cuda(seed, rank)
    elif (cuda := sys.modules["torch"].cuda).is_available():
        # Fewer GPUs than last time: the others have no generator to put back.
        for device, device_state in enumerate(state["cuda"][: cuda.device_count()]):
            cuda.set_rng_state(device_state, device)


def put_back(before: dict[str, Any]) -> None:
    """
    Leave the process's generators as `capture` found them.

    A library that was loaded only since then gets entropy, which it would have started from.
    """
    entropy = int.from_bytes(os.urandom(8), "little")
    restore(before, seed=entropy, rank=0)


def _seed_python(seed: int, stream: int | str) -> None:
    random.seed(derive(seed, stream, "python"))


def _seed_numpy(seed: int, stream: int | str) -> None:
    bits = derive(seed, stream, "numpy")
    sys.modules["numpy"].random.seed([bits & 0xFFFFFFFF, bits >> 32])


def _seed_torch(seed: int, stream: int | str) -> None:
    # Not torch.manual_seed, which would also seed every GPU.
    sys.modules["torch"].default_generator.manual_seed(derive(seed, stream, "torch") >> 1)


def _seed_cuda(seed: int, stream: int | str) -> None:
    # Queued by torch until the program first uses a GPU.
    sys.modules["torch"].cuda.manual_seed_all(derive(seed, stream, "cuda") >> 1)
