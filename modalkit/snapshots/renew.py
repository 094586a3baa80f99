"""
New randomness after a start: containers restored from one snapshot must not share a stream.

A snapshot holds the state of every random generator, so all containers restored from it would draw
the same numbers, the same temporary names and the same TLS randoms. The trainer renews them after
*every* start, cold or restored, and `modalkit.run` does in a function, which has no hooks: code
that only worked with a snapshot would be hard to test.

Only what is loaded is renewed; nothing is imported for it. What asks the kernel each time
(`os.urandom`, `secrets`, `uuid4`) needs no help.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

_renewed_in: str | None = None
"""The container that this process was renewed in last; a snapshot holds that of its maker."""


def renew_once_per_container() -> None:
    """
    Renew everything, unless that was done in this container; outside of one, leave all as it is.

    For the entry of a run: a plain function may be restored from a snapshot too, and no hook runs
    in between.
    """
    if os.environ.get("MODAL_TASK_ID") != _renewed_in:
        renew_os()
        renew_generators()
        record_renewal()


def record_renewal() -> None:
    """Remember that all was renewed in this container, so that no run does it again."""
    global _renewed_in  # noqa: PLW0603 - it is about the process, and is in its snapshot
    _renewed_in = os.environ.get("MODAL_TASK_ID")


def renew_os() -> None:
    """
    Renew what must differ between containers under any seed: OpenSSL's generator, temporary names.

    Source: under a restored gVisor snapshot two clones drew the same `ssl.RAND_bytes`, and
    `RAND_add` with fresh bytes cured it.
    """
    openssl = _loaded("_ssl")
    if openssl is not None:
        entropy = os.urandom(64)
        openssl.RAND_add(entropy, float(len(entropy)))
    tempfile = _loaded("tempfile")
    if tempfile is not None:
        # The generator of names is made at the first use; without one the next use makes a new one.
        tempfile._name_sequence = None  # type: ignore[attr-defined] # noqa: SLF001 - no public way


def renew_generators() -> None:
    """Seed the global generators of random, numpy and torch from the kernel."""
    random = _loaded("random")
    if random is not None:
        random.seed(os.urandom(64))
    numpy_random = _loaded("numpy.random")
    if numpy_random is not None:
        numpy_random.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])
    torch = _loaded("torch")
    if torch is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little"))


def _loaded(name: str) -> ModuleType | None:
    return sys.modules.get(name)
