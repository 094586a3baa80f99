"""
What should happen when: retries, checkpoints and commits, as frozen values.

Each value is checked when it is made, against what Modal's service really accepts: a number that
Modal would refuse at deploy time, or clamp in silence, is a `PolicyError` that names the value,
the limit and the remedy. The policies travel to the container as JSON, so this module imports
neither modal nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from modalkit import modal_objects
from modalkit.errors import PolicyError

if TYPE_CHECKING:
    import modal

MAX_RETRIES: Final = 10
"""
The most retries of one input. Source: Modal's long-training example; the client itself sets no
limit.
"""

MAX_DELAY_S: Final = 60.0
"""The longest delay that Modal's service keeps between two attempts. Source: `modal.Retries`."""

DEFAULT_CHECKPOINT_EVERY_S: Final = 60.0
"""How often a run is saved when its policy names neither steps nor seconds."""

UNLIMITED: Final = 1e12
"""Stands for no upper limit in a check, and still keeps infinity out."""


def within(
    low: float, high: float, remedy: str, *, whole: bool = False, optional: bool = False
) -> Callable[[object, attrs.Attribute[Any], object], None]:
    """
    Return an attrs validator: a number between *low* and *high*; never a bool, NaN or infinity.

    *whole* asks for an integer, *optional* allows None; *remedy* ends the error's message.
    """
    kinds = int if whole else (int, float)
    kind = "a whole number" if whole else "a finite number"
    upper = f" from {low:g} to {high:g}" if high < UNLIMITED else f", at least {low:g}"

    def check(owner: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and optional:
            return
        # NaN compares false with everything, so it is refused too.
        if isinstance(value, bool) or not (isinstance(value, kinds) and low <= value <= high):
            raise PolicyError(
                f"{type(owner).__name__}({attribute.name}={value!r}): {attribute.name} must be "
                f"{'None or ' if optional else ''}{kind}{upper}. {remedy}"
            )

    return check


def as_seconds(value: Any) -> Any:
    """Return an integer as a float; leave anything else to the validator."""
    return float(value) if type(value) is int else value


def _flag(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise PolicyError(
            f"{type(owner).__name__}({attribute.name}={value!r}): {attribute.name} is a "
            f"switch. Pass True or False."
        )


class _Policy:
    """What all policies share: the way to JSON and back."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return attrs.asdict(self)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """
        Return the policy that `to_json` described.

        Raises:
            PolicyError: *data* has a key that this policy does not know, or a value outside its
                limits.
        """
        known = attrs.fields_dict(cls)  # type: ignore[arg-type]
        if unknown := sorted(set(data) - set(known)):
            raise PolicyError(
                f"{cls.__name__}: unknown keys {', '.join(unknown)} in {dict(data)!r}. "
                f"It knows {', '.join(known)}."
            )
        return cls(**data)


@attrs.frozen(kw_only=True)
class RetryPolicy(_Policy):
    """
    How often and after which delay Modal starts a failed input again.

    Exceptions and timeouts use up a retry; by Modal's documentation a preemption never does.
    Modal's client, though, gives up a blocking `.remote()` call after 8 internal failures on one of
    its paths: start long jobs by `.spawn()`, which the service alone looks after.
    Modal's service keeps delays of at most 60 s, so `modal.Retries(initial_delay=60,
    backoff_coefficient=2.0)` does *not* wait 60, 120, 240 s: only the client's own retry of a
    blocking `.remote()` call does. `schedule()` gives the delays that hold on every path; longer
    ones cannot be had and are refused here.

    Args:
        max_retries: Attempts after the first, 0 to 10. The default is the most that Modal
            documents: an attempt that resumes costs little, a training that is given up costs all
                of it.
        initial_delay_s: Seconds before the first retry, 0 to 60. The default is 0 because waiting
            heals nothing that the next container does not.
        backoff_coefficient: Factor from one delay to the next, 1 to 10; 1 keeps them equal.
        max_delay_s: Longest delay in seconds, 1 to 60.

    Raises:
        PolicyError: A value is outside these limits.

    Source: `modal.Retries`, Modal's guide "Preemption", its long-training example for the 10, and
    `MAX_INTERNAL_FAILURE_COUNT` in `modal/_functions.py` of modal 1.6.4 for the 8.
    """

    max_retries: int = attrs.field(
        default=10,
        validator=within(
            0,
            MAX_RETRIES,
            "Modal documents 10 as the most; call again with the same run id to go on after that.",
            whole=True,
        ),
    )
    initial_delay_s: float = attrs.field(
        default=0.0,
        converter=as_seconds,
        validator=within(
            0, MAX_DELAY_S, "Modal keeps no delay above 60 s between attempts; pass 60 at most."
        ),
    )
    backoff_coefficient: float = attrs.field(
        default=1.0,
        converter=as_seconds,
        validator=within(1, 10, "Pass 1.0 for equal delays, 2.0 to double them."),
    )
    max_delay_s: float = attrs.field(
        default=MAX_DELAY_S,
        converter=as_seconds,
        validator=within(
            1, MAX_DELAY_S, "Modal caps delays at 60 s; a longer one cannot be relied on, pass 60."
        ),
    )

    def schedule(self) -> tuple[float, ...]:
        """Return the seconds before each retry, none above the cap *max_delay_s* (at most 60)."""
        return tuple(
            min(self.initial_delay_s * self.backoff_coefficient**retry, self.max_delay_s)
            for retry in range(self.max_retries)
        )

    def to_modal(self) -> modal.Retries:
        """Return the `modal.Retries` for `@app.cls(retries=...)` without a `Deployment`."""
        return modal_objects.retries(**self.to_json())


@attrs.frozen(kw_only=True)
class CommitPolicy(_Policy):
    """
    When what was written to the Volume is made durable.

    Args:
        on_checkpoint: Commit after each checkpoint. On by default: what is not committed is lost
            with the container.
        min_interval_s: Least seconds between two such commits; 0 commits after every checkpoint.
        final: Commit once more when the run ends or is interrupted.

    Raises:
        PolicyError: A value is outside these limits.
    """

    on_checkpoint: bool = attrs.field(default=True, validator=_flag)
    min_interval_s: float = attrs.field(
        default=0.0,
        converter=as_seconds,
        validator=within(0, UNLIMITED, "Pass 0 to commit after every checkpoint."),
    )
    final: bool = attrs.field(default=True, validator=_flag)


@attrs.frozen(kw_only=True)
class CheckpointPolicy(_Policy):
    """
    When a run is saved, and how many checkpoints are kept.

    With neither *every_steps* nor *every_s* a run is saved every 60 s; with both, whenever the
    first of them is due.

    Args:
        every_steps: Save after this many steps, 1 or more.
        every_s: Save when this many seconds have passed since the last save, more than 0.
        keep_last: Checkpoints that stay on the Volume, 1 or more. The default of 3 leaves two to
            fall back to.

    Raises:
        PolicyError: A value is outside these limits.
    """

    every_steps: int | None = attrs.field(
        default=None,
        validator=within(
            1,
            UNLIMITED,
            "Pass 1 to save after every step, or every_s for seconds.",
            whole=True,
            optional=True,
        ),
    )
    every_s: float | None = attrs.field(
        default=None,
        converter=as_seconds,
        validator=within(1e-3, UNLIMITED, "Pass seconds, such as 60.", optional=True),
    )
    keep_last: int = attrs.field(
        default=3,
        validator=within(
            1,
            UNLIMITED,
            "The newest checkpoint is never removed; pass 1 to keep only that.",
            whole=True,
        ),
    )

    @property
    def period_s(self) -> float | None:
        """Seconds between saves: *every_s*, or 60 if the policy names neither steps nor seconds."""
        if self.every_s is None and self.every_steps is None:
            return DEFAULT_CHECKPOINT_EVERY_S
        return self.every_s
