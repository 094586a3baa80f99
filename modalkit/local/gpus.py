"""Which of this machine's GPUs a container sees: those it was given, else none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modalkit.local.state import Container, Function


def requested(function: Function) -> str:
    """Return what a function asks for: "H100:2", or "H100, A100:2" where the app gave a list."""
    asked = function.definition.resources.gpu_config
    choices = function.gpu_choices or ([asked] if asked.gpu_type else [])
    return ", ".join(_written(choice) for choice in choices)


def count(function: Function) -> int:
    """Return how many a function asks for, in its first choice."""
    asked = function.definition.resources.gpu_config
    return max(1, asked.count) if asked.gpu_type else 0


def hidden_at_first(container: Container) -> bool:
    """Whether it makes a snapshot of the CPU's memory only, and sees no GPU until that is there."""
    options = container.function.definition.experimental_options
    is_gpu_snapshot = options.get("enable_gpu_snapshot", "").lower() in {"true", "1"}
    return container.kind == "snapshotting" and not is_gpu_snapshot


def allot(wanted: int, devices: Sequence[str], live: Iterable[Container]) -> tuple[str, ...]:
    """
    Choose devices, those that the fewest containers have first.

    Containers share when there are more of them than devices: a test on this machine is to run.
    """
    used = Counter(device for container in live for device in container.gpus)
    return tuple(sorted(devices, key=lambda device: used[device])[:wanted])


def _written(config: Any) -> str:
    return f"{config.gpu_type}:{config.count}" if config.count > 1 else str(config.gpu_type)
