"""One measured figure and what it has to keep to."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Metric:
    """
    A figure of which less is better.

    Args:
        id: Stable name, with the unit at its end.
        value: What was measured.
        floor: The worst value that passes.
        stretch: A value to be proud of.
    """

    id: str
    value: float
    floor: float
    stretch: float

    @property
    def ok(self) -> bool:
        return self.value <= self.floor

    def to_json(self) -> dict[str, float | str | bool]:
        return {**attrs.asdict(self), "ok": self.ok}

    def line(self) -> str:
        verdict = "ok" if self.ok else "MISSED"
        return f"{self.id:28} {self.value:10.3f}   at most {self.floor:g}   {verdict}"
