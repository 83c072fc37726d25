"""When two records, decisions or figures are the same.

What it must satisfy: what is saved and read again is equal to what it was, whatever is not known of
it, on every Python. From 3.13 on dataclasses compare their fields one by one, and NaN equals
nothing, not even itself; before, it depended on which NaN it was.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

_UNKNOWN = object()


class SameValues:
    """Makes dataclasses, declared with ``eq=False``, equal where all values are, NaN to NaN too."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SameValues) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(_UNKNOWN if isinstance(x, float) and x != x else x for x in values)
