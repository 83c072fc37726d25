"""Domains of Tune's that draw a kept pair as a whole, each parameter of it in its own place.

What it must satisfy: Tune finds them again in a space that it has pickled, copies none of them for
a trial, and gives them to nothing but its own grid and random search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ray import tune
from ray.tune.search.sample import Categorical, Domain
from ray.tune.search.variant_generator import RecursiveDependencyError

Path = tuple[str, ...]
Kind = Literal["constant", "grid", "choice"]

MISSING = object()
INSTEAD = (
    "Pass the space as it is to TransferScheduler, or where its values are plain to "
    "TransferVariantGenerator or TransferSearcher, which decide on finished configurations."
)


def options(node: Any) -> tuple[Kind, list[Any]]:
    """Take apart a grid or a choice; anything else is a constant."""
    if isinstance(node, dict) and set(node) == {"grid_search"}:
        return "grid", list(node["grid_search"])
    if isinstance(node, Categorical):
        is_grid = node.is_grid()  # type: ignore[no-untyped-call]
        return "grid" if is_grid else "choice", list(node.categories)
    return "constant", [node]


def flat_space(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join the names of a nested space with ``/``, and write its grids as choices."""
    found: dict[str, Any] = {}
    for key, node in space.items():
        kind, values = options(node)
        if kind == "constant" and isinstance(node, dict) and node:
            found |= flat_space(node, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = tune.choice(values) if kind == "grid" else node
    return found


def as_domain(kind: Kind, values: list[Any]) -> Any:
    return tune.grid_search(values) if kind == "grid" else tune.choice(values)


def at(node: Any, path: Path) -> Any:
    for key in path:
        if options(node)[0] != "constant":
            raise ValueError(
                f"{path[-1]!r} is in a grid or choice of its own, apart from the rest of the "
                f"pair, which cannot be filtered. {INSTEAD}"
            )
        if not isinstance(node, dict) or key not in node:
            return MISSING
        node = node[key]
    return node


class _Ours(Domain):
    """What all domains here share: Tune copies the space for every trial, and need not copy us."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Ours:
        return self

    def get_sampler(self) -> Any:
        """Refuse to be translated for a search algorithm, the only ones that ask."""
        raise ValueError(
            "a space from filter_param_space, in which source and target depend on each other, is "
            "for Tune's own grid and random search. For another search algorithm pass the whole "
            "space, and the algorithm in a TransferSearcher."
        )

    def is_valid(self, value: Any) -> bool:
        """Whether a user may fix the parameter to a value; the pair is checked as a whole."""
        return True


class KeptPairs(_Ours):
    """The first parameter of a pair: a grid of kept pairs, or a choice between them."""

    def __init__(self, categories: Sequence[Domain], *, is_grid: bool) -> None:
        self.categories = categories
        self._is_grid = is_grid

    def is_grid(self) -> bool:
        return self._is_grid

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Domain:
        return self.categories[index]

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Domain:
        choice: Any = tune.choice(self.categories)
        drawn: Domain = choice.sample(random_state=random_state)
        return drawn


class KeptPair(_Ours):
    """One kept pair, in the place of its first parameter until the others have taken theirs."""

    def __init__(self, places: list[Path], values: tuple[Any, ...]) -> None:
        self._places = places
        self.values = values

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
        for place, value in zip(self._places[1:], self.values[1:], strict=True):
            there = at(config["config"], place)
            if isinstance(there, _Ours):
                raise RecursiveDependencyError(f"{place} takes its value from the kept pair first.")
            _check_untouched(repr(there) == repr(value))
        return self.values[0]


class PartOfPair(_Ours):
    """A further parameter of a pair: takes its value from the kept pair at the first's place."""

    def __init__(self, first: Path, index: int) -> None:
        self._first = first
        self._index = index

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
        first = at(config["config"], self._first)
        if isinstance(first, KeptPair):
            return first.values[self._index]
        _check_untouched(isinstance(first, _Ours))
        # Not drawn yet. Tune asks again for what is still a domain after everything was drawn.
        return self


def _check_untouched(untouched: bool) -> None:
    if not untouched:
        raise ValueError(
            "points_to_evaluate must name source and target both, or neither, in a space from "
            "filter_param_space."
        )


class AuditMark(PartOfPair):
    """The mark of an audit; none where the user has set the pair, who knows nothing of marks."""

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
        first = at(config["config"], self._first)
        return super().sample(config) if isinstance(first, Domain) else ""
