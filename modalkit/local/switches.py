"""
What nobody knows about Modal's servers: a switch each, with all plausible readings.

The readings of a switch stand in order, the best for an app first. `lenient` takes the best of
each, `strict` the worst; a number is a seed that draws one of each. An app that works under all
of them does not depend on what is unknown.
"""

from __future__ import annotations

import random
from typing import Any, Final

import attrs

from modalkit.errors import UsageError


def _switch(question: str, **readings: str) -> Any:
    """Define a switch: its question, and each reading with what it means, the best first."""
    names = tuple(readings)
    return attrs.field(
        default=names[0],
        validator=attrs.validators.in_(names),
        metadata={"question": question, "readings": readings},
    )


@attrs.frozen(kw_only=True)
class Switches:
    """One reading of every switch; the defaults are those of `lenient`."""

    interrupt: str = _switch(
        "Whom does the SIGINT of a preemption reach?",
        main="the container's main process",
        group="every process of the container, data loader workers and launchers too",
    )
    stray_interrupt: str = _switch(
        "What of an attempt that ends by a KeyboardInterrupt which no preemption caused?",
        requeued="it counts as preempted: the input runs again, and nothing is counted",
        counted="it is an internal failure: the input runs again, eight times at most",
        fails="the call fails",
    )
    preempted_output: str = _switch(
        "What of an error or a 'cancelled' output that an attempt sends while it is preempted?",
        requeued="it is the preemption in other clothes: the input runs again",
        retried="an error like any other: a retry is used, and without one the call fails",
        final="it ends the call, whatever retries are left",
    )
    same_input_twice: str = _switch(
        "May the next attempt start while a preempted one still saves its last words?",
        never="no: an input runs again when its last container is gone",
        briefly="yes: both run at once until the grace period ends",
    )
    retry_delay: str = _switch(
        "Who waits between the retries of a call that somebody waits for?",
        capped="the server, by `Retries`: at most max_delay, which is 60 s at most",
        client="the client: initial_delay * backoff_coefficient ** n, at least 1 s, at most 24 h",
    )
    commit_reload: str = _switch(
        "Does the server let `commit()` go without the reload that follows it?",
        skipped="yes: commit works with files open",
        done="no: commit reloads, and raises over an open file after it has committed",
    )
    background_commit: str = _switch(
        "Which files does a background commit take?",
        closed="those that nobody has open for writing",
        all="all, half-written ones too",
    )
    snapshots: str = _switch(
        "How many memory snapshots does one version of a function have?",
        one="one, from which every container of the version is restored",
        several="two to six; each container is restored from any of them",
    )
    restore: str = _switch(
        "Does restoring a snapshot always work?",
        works="yes",
        fails_once="the first one fails, and that container starts cold",
    )


LENIENT: Final = Switches()
STRICT: Final = Switches(
    **{field.name: tuple(field.metadata["readings"])[-1] for field in attrs.fields(Switches)}
)


def profile(text: str) -> Switches:
    """
    Return the switches that a profile names.

    Args:
        text: "lenient", "strict" or a whole number that seeds a draw of every switch; readings
            of single switches may follow: "strict,same_input_twice=never".

    Raises:
        UsageError: There is no such profile, switch or reading.
    """
    name, *changes = [part.strip() for part in str(text).split(",")]
    if name == "lenient":
        chosen = LENIENT
    elif name == "strict":
        chosen = STRICT
    elif name.isdecimal():
        chosen = _drawn(int(name))
    else:
        raise UsageError(f"no profile {name!r}: take lenient, strict, or a whole number as a seed")
    return attrs.evolve(chosen, **dict(_change(change) for change in changes))


def _drawn(seed: int) -> Switches:
    rng = random.Random(seed)
    fields = attrs.fields(Switches)
    return Switches(**{f.name: rng.choice(tuple(f.metadata["readings"])) for f in fields})


def _change(text: str) -> tuple[str, str]:
    name, _, reading = text.partition("=")
    switches = {field.name: tuple(field.metadata["readings"]) for field in attrs.fields(Switches)}
    if name not in switches:
        raise UsageError(f"no switch {name!r}: there are {', '.join(switches)}")
    if reading not in switches[name]:
        raise UsageError(f"{name} has no reading {reading!r}: take {' or '.join(switches[name])}")
    return name, reading
