"""One measured figure and what it has to keep to."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Metric:
    """
    A figure of which less is better, unless it says that more is.

    Args:
        id: Stable name, with the unit at its end.
        value: What was measured.
        floor: The worst value that passes.
        stretch: A value to be proud of.
        more_is_better: The floor is a least value, not a largest.
    """

    id: str
    value: float
    floor: float
    stretch: float
    more_is_better: bool = False

    @property
    def ok(self) -> bool:
        return self.value >= self.floor if self.more_is_better else self.value <= self.floor

    def to_json(self) -> dict[str, float | str | bool]:
        fields = {name: getattr(self, name) for name in ("id", "value", "floor", "stretch")}
        return {**fields, "ok": self.ok}

    def line(self) -> str:
        limit = f"at {'least' if self.more_is_better else 'most'} {self.floor:g}"
        verdict = "ok" if self.ok else "MISSED"
        return f"{self.id:28} {self.value:10.3f}   {limit:14} {verdict}"
