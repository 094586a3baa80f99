"""The example's own package is found from its app's directory, as `modal run` finds it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "tiny_cats"))
