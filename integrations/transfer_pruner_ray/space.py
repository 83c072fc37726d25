"""A Tune search space without the pairs that a rule eliminates.

What it must satisfy: the trainable gets the same keys with the same values; every other parameter
varies as it did; the driver pays for what is left and not for what was there; and a restored
experiment goes on without the space being passed again. So no function and no hidden key stands in
the space: Tune takes functions out of it, and finds them again only in a space that it is given.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

from ray import tune
from ray.tune.search.sample import Categorical, Domain
from ray.tune.search.variant_generator import RecursiveDependencyError
from ray.tune.utils import flatten_dict

from transfer_pruner.exceptions import TransferPrunerWarning
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.verdict import check_fraction, is_audited
from transfer_pruner.tasks import PairParams, Source, plain_source

Pair = tuple[Source, str]
_Path = tuple[str, ...]

_NOTHING = object()
_MISSING = object()
_INSTEAD = (
    "Pass the space as it is to TransferVariantGenerator, TransferSearcher or TransferScheduler, "
    "which decide on finished configurations."
)


def filter_param_space(
    space: Mapping[str, Any],
    rule: EliminationRule,
    *,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    audit_fraction: float = 0.0,
) -> dict[str, Any]:
    """Leave the pairs that the rule eliminates out of a search space.

    For Tune's own grid and random search: ``Tuner(train_pair, param_space=filter_param_space(space,
    rule))``, with or without a BasicVariantGenerator as search_alg. Every kept pair of a grid runs
    once with each value of the other grids; a choice draws uniformly from the kept pairs; of a
    choice within a grid, or between nested spaces, each draws from what is kept of it. Search
    algorithms such as OptunaSearch refuse a space with a grid, or with two choices that now depend
    on each other: give them the whole space, in a `TransferSearcher`.

    Parameters
    ----------
    space : mapping
        Tune's param_space. The source and the target are constants, ``tune.grid_search`` or
        ``tune.choice``, side by side or in dicts that a grid or a choice holds. It is not changed.
    rule : EliminationRule
    source_param : str or sequence of str
        Name of the source's parameter, ``a/b`` where it is nested; several for joint transfer. A
        value may be a list of sources; None, or the target, is the single-task baseline.
    target_param : str
        Name of the target's parameter.
    target : str, optional
        The target task of a space of sources only.
    audit_fraction : float in [0, 1]
        Share of the eliminated pairs that stay in, at random, to measure what elimination misses.
        Drawn from the pair, so every process draws alike.

    Returns
    -------
    dict
        For ``Tuner(param_space=...)``. Other parameters are the same objects as in `space`.

    Raises
    ------
    ValueError
        If `space` lacks the pair, no pair of it is kept, or it makes the pair in a way that cannot
        be filtered, such as ``tune.sample_from``.
    """
    sieve = PairSieve(rule, PairParams(source_param, target_param, target), audit_fraction)
    filtered = _filtered(space, sieve)
    if filtered is _NOTHING:
        raise ValueError(
            f"param_space has no pair left: the rule eliminates all {sieve.eliminated.total()}, "
            "and there is no single-task baseline among them. Add None to the sources, or keep "
            "more pairs."
        )
    return dict(filtered)


def eliminated_pairs(
    space: Mapping[str, Any],
    rule: EliminationRule,
    *,
    source_param: str | Sequence[str] = "source",
    target_param: str = "target",
    target: str | None = None,
    audit_fraction: float = 0.0,
) -> dict[Pair, int]:
    """Tell which pairs `filter_param_space` leaves out of a space.

    Parameters
    ----------
    space, rule, source_param, target_param, target, audit_fraction
        As for `filter_param_space`.

    Returns
    -------
    dict of (source, target) to int
        How often each stood in the space; other parameters are not counted.

    Raises
    ------
    ValueError
        As `filter_param_space`, except where no pair is left.
    """
    sieve = PairSieve(rule, PairParams(source_param, target_param, target), audit_fraction)
    _filtered(space, sieve)
    return dict(sieve.eliminated)


class PairSieve:
    """Decide on configurations, and count the pairs that are eliminated.

    Parameters
    ----------
    rule : EliminationRule
    pair_of : PairParams
    audit_fraction : float in [0, 1]

    Attributes
    ----------
    eliminated : Counter of (source, target)

    Raises
    ------
    ValueError
        If `rule` is a LearningRule, or `audit_fraction` is no share.
    """

    def __init__(
        self, rule: EliminationRule, pair_of: PairParams, audit_fraction: float = 0.0
    ) -> None:
        if isinstance(rule, LearningRule):
            raise ValueError(
                f"rule must be an EliminationRule here but got {rule!r}, whose decisions change "
                "during the search. Use TransferSearcher or TransferScheduler, or pass "
                "rule.refitted()."
            )
        self.rule = rule
        self.pair_of = pair_of
        self.audit_fraction = check_fraction(audit_fraction)
        self.eliminated: Counter[Pair] = Counter()
        self._warned = False

    def rejected(self, config: Mapping[str, Any]) -> Pair | None:
        """Find the pair that keeps a configuration from training; None if it trains.

        Its nested names are joined by ``/``. One without the pair trains, and is warned about once.
        """
        if not self.pair_of.is_in(config):
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"a configuration without {' and '.join(map(repr, self.pair_of.params))} is "
                    f"kept; it has: {', '.join(config) or 'nothing'}. Name them with "
                    "source_param= and target_param=.",
                    TransferPrunerWarning,
                    stacklevel=3,
                )
            return None
        source, target = self.pair_of(config)
        if not self.rule.decide(source, target).eliminated:
            return None
        if is_audited(self.audit_fraction, "", "", source, target):
            return None
        pair = plain_source(source, target), target
        self.eliminated[pair] += 1
        return pair

    def get_state(self) -> list[Any]:
        """Write the counts as plain lists."""
        return [[source, target, n] for (source, target), n in self.eliminated.items()]

    def set_state(self, state: list[Any]) -> None:
        """Read the counts that `get_state` wrote, or that came back from JSON."""
        self.eliminated = Counter(
            {(tuple(s) if isinstance(s, list) else s, target): n for s, target, n in state}
        )


def _filtered(space: Mapping[str, Any], sieve: PairSieve) -> Any:
    if not isinstance(space, Mapping):
        raise ValueError(f"space must be a dict, as Tuner's param_space, but got {space!r}.")
    walk = _Walk(sieve)
    filtered = walk.rewrite(dict(space), walk.paths, ())
    if not walk.found:
        raise ValueError(
            f"space lacks {' and '.join(map(repr, sieve.pair_of.params))}; it has: "
            f"{', '.join(flatten_dict(dict(space))) or 'nothing'}. Name them with source_param= "
            "and target_param=, nested ones as 'a/b', or pass target=."
        )
    return filtered


class _Walk:
    """Rewrites the part of a space that holds the pair, wherever it is."""

    def __init__(self, sieve: PairSieve) -> None:
        self.paths: list[_Path] = [tuple(name.split("/")) for name in sieve.pair_of.params]
        self.found = False
        self._sieve = sieve

    def rewrite(self, node: Any, paths: list[_Path], at: _Path) -> Any:
        """Filter what stands at a place of the space; `paths` lead from there to the pair."""
        kind, values = _options(node)
        if kind != "constant":
            return self._rewrite_options(kind, values, paths, at)
        if not isinstance(node, dict):
            return node
        head = paths[0][0]
        if all(len(path) > 1 and path[0] == head for path in paths):
            if head not in node:
                return node
            child = self.rewrite(node[head], [path[1:] for path in paths], (*at, head))
            return child if child is _NOTHING else {**node, head: child}
        leaves = [_at(node, path) for path in paths]
        if any(leaf is _MISSING for leaf in leaves):
            return node
        self.found = True
        return self._rewrite_pair(node, leaves, paths, at)

    def _rewrite_options(
        self, kind: _Kind, values: list[Any], paths: list[_Path], at: _Path
    ) -> Any:
        kept = [self.rewrite(value, paths, at) for value in values]
        kept = [value for value in kept if value is not _NOTHING]
        return _as_domain(kind, kept) if kept else _NOTHING

    def _rewrite_pair(
        self, node: dict[str, Any], leaves: list[Any], paths: list[_Path], at: _Path
    ) -> Any:
        names = self._sieve.pair_of.params
        options = [_checked(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
        constants = {
            name: values[0]
            for name, (kind, values) in zip(names, options, strict=True)
            if kind == "constant"
        }
        grids = [i for i, (kind, _) in enumerate(options) if kind == "grid"]
        choices = [i for i, (kind, _) in enumerate(options) if kind == "choice"]
        free = [*grids, *choices]
        # What is kept of the choices, for each point of the grid.
        kept: list[list[tuple[Any, ...]]] = []
        for point in product(*(options[i][1] for i in grids)):
            drawn = [(*point, *draw) for draw in product(*(options[i][1] for i in choices))]
            drawn = [
                values
                for values in drawn
                if not self._sieve.rejected(
                    constants | {names[i]: value for i, value in zip(free, values, strict=True)}
                )
            ]
            if drawn:
                kept.append(drawn)
        if not kept:
            return _NOTHING
        if not free:
            return node
        if len(free) == 1:
            values = [value for drawn in kept for (value,) in drawn]
            return _with(node, paths[free[0]], _as_domain("grid" if grids else "choice", values))
        places = [(*at, *paths[i]) for i in free]
        pairs = [[_KeptPair(places, values) for values in drawn] for drawn in kept]
        if not grids:
            first = _KeptPairs(pairs[0], is_grid=False)
        elif not choices:
            first = _KeptPairs([pair for drawn in pairs for pair in drawn], is_grid=True)
        else:
            first = _KeptPairs([_KeptPairs(drawn, is_grid=False) for drawn in pairs], is_grid=True)
        node = _with(node, paths[free[0]], first)
        for index, i in enumerate(free[1:], start=1):
            node = _with(node, paths[i], _PartOfPair(places[0], index))
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


class _KeptPairs(_Ours):
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


class _KeptPair(_Ours):
    """One kept pair, in the place of its first parameter until the others have taken theirs."""

    def __init__(self, places: list[_Path], values: tuple[Any, ...]) -> None:
        self._places = places
        self.values = values

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
        for place, value in zip(self._places[1:], self.values[1:], strict=True):
            there = _at(config["config"], place)
            if isinstance(there, _Ours):
                raise RecursiveDependencyError(f"{place} takes its value from the kept pair first.")
            _check_untouched(repr(there) == repr(value))
        return self.values[0]


class _PartOfPair(_Ours):
    """A further parameter of a pair: takes its value from the kept pair at the first's place."""

    def __init__(self, first: _Path, index: int) -> None:
        self._first = first
        self._index = index

    def sample(self, config: Any = None, size: int = 1, random_state: Any = None) -> Any:
        first = _at(config["config"], self._first)
        if isinstance(first, _KeptPair):
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


_Kind = Literal["constant", "grid", "choice"]


def _options(node: Any) -> tuple[_Kind, list[Any]]:
    """Take apart a grid or a choice; anything else is a constant."""
    if isinstance(node, dict) and set(node) == {"grid_search"}:
        return "grid", list(node["grid_search"])
    if isinstance(node, Categorical):
        is_grid = node.is_grid()  # type: ignore[no-untyped-call]
        return "grid" if is_grid else "choice", list(node.categories)
    return "constant", [node]


def _as_domain(kind: _Kind, values: list[Any]) -> Any:
    return tune.grid_search(values) if kind == "grid" else tune.choice(values)


def _checked(leaf: Any, name: str) -> tuple[_Kind, list[Any]]:
    """Take a source's or target's values; a grid within a grid is one grid."""
    kind, values = _options(leaf)
    if kind == "grid":
        values = [
            inner
            for value in values
            for inner in (_checked(value, name)[1] if _options(value)[0] == "grid" else [value])
        ]
    for value in values:
        if any(isinstance(part, Domain) or _options(part)[0] == "grid" for part in _parts(value)):
            raise ValueError(
                f"{name} must be a constant, a grid_search or a choice of plain values to be "
                f"filtered but got {leaf!r}. {_INSTEAD}"
            )
    return kind, values


def _parts(value: Any) -> Iterator[Any]:
    """List a value, and what is in it."""
    yield value
    if isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def _at(node: Any, path: _Path) -> Any:
    for key in path:
        if _options(node)[0] != "constant":
            raise ValueError(
                f"{path[-1]!r} stands in a grid or choice of its own, apart from the rest of the "
                f"pair, which cannot be filtered. {_INSTEAD}"
            )
        if not isinstance(node, dict) or key not in node:
            return _MISSING
        node = node[key]
    return node


def _with(node: dict[str, Any], path: _Path, value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**node, head: _with(node[head], tuple(rest), value) if rest else value}
