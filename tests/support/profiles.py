"""The profile that a suite runs under, for tests that are about one reading of a switch."""

import os

from modalkit.local.switches import profile


def under(*readings: str) -> str:
    """Return the profile of the environment with these readings of single switches."""
    return ",".join([os.environ.get("MODALKIT_LOCAL_PROFILE", "lenient"), *readings])


READINGS = profile(under())
"""The readings that planes have here where a test asks for no other."""
PROFILE = under("preempted_output=requeued", "snapshots=one", "restore=works")
"""For tests of preemptions and snapshots themselves, which have these readings."""
