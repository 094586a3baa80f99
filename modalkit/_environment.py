"""The environment variables of the local plane that the test plugin reads without loading it."""

from __future__ import annotations

from typing import Final

PROFILE: Final = "MODALKIT_LOCAL_PROFILE"
"""How planes behave where nothing else is said; see `modalkit.local.switches`."""
QUICK_STARTS: Final = "MODALKIT_LOCAL_QUICK_STARTS"
"""Whether planes start containers by fork where nothing else is said: 1 or 0."""
