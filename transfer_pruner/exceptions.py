"""What the library tells its users when something is not as they think."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TransferPrunerWarning(UserWarning):
    """Something was kept, skipped or left out that the user may not expect.

    Examples
    --------
    >>> import warnings
    >>> from transfer_pruner import TransferPrunerWarning
    >>> warnings.simplefilter("error", TransferPrunerWarning)
    """


def some_of(names: Iterable[str], longest: int = 5) -> str:
    """Name some of very many, sorted and quoted, so that blanks are seen."""
    listed = sorted(names)
    more = f" and {len(listed) - longest} more" if len(listed) > longest else ""
    return ", ".join(map(repr, listed[:longest])) + more


def not_found(what: str, name: str, where: str, known: Iterable[str], longest: int = 12) -> str:
    """Say that a name is not there, which one may be meant, and which there are."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(name, names, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    more = f" and {len(names) - longest} more" if len(names) > longest else ""
    there = ", ".join(names[:longest]) or "none"
    return f"{what} {name!r} is not in {where}; it has: {there}{more}.{meant}"
