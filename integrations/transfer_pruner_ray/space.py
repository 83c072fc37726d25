"""A Tune search space without the pairs that a rule eliminates, its grids best first.

What it must satisfy: the trainable gets the same keys with the same values; every other parameter
varies as it did; the driver pays for what is left and not for what was there; and a restored
experiment goes on without the space being passed again. So no function stands in the space, which
Tune takes out, and finds again only in a space that it is given; and no key but the audits' mark.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

from ray.tune.search.sample import Domain

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.order import PairOrder
from transfer_pruner.rule.verdict import Decider
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_ray._domains import (
    INSTEAD,
    MISSING,
    AuditMark,
    KeptPair,
    KeptPairs,
    Kind,
    PartOfPair,
    Path,
    as_domain,
    at,
    options,
)
from transfer_pruner_ray.deciding import fixed_rule, place_of
from transfer_pruner_ray.marks import AUDIT, Pair, flat

_NOTHING = object()

Place = tuple[int, float]
_NOWHERE: Place = (0, 0.0)
_LAST: Place = (9, 0.0)


def filter_param_space(
    space: Mapping[str, Any],
    rule: EliminationRule,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    audit_fraction: float = 0.0,
    search_name: str | None = None,
) -> dict[str, Any]:
    """Leave the pairs that the rule eliminates out of a search space, and put the best first.

    For Tune's own grid and random search: ``Tuner(train_pair, param_space=filter_param_space(space,
    rule))``, with or without a BasicVariantGenerator as search_alg. Every kept pair of a grid runs
    once with each value of the other grids; a choice draws uniformly from the kept pairs; of a
    choice within a grid, or between nested spaces, each draws from what is kept of it. What is left
    of a grid is in the order in which it is worth a trial: single-task baselines, then the best
    pairs of all targets (`Decision.priority`), then those of which the rule tells nothing, and
    audits, which it eliminates. A choice has no order. Where the pair is beside other grids,
    Tune goes through all pairs for each of their values, or through all their values for each pair:
    by the names of the parameters, the first one of the alphabet varies fastest. Search
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
        value may be a list or tuple of sources; None, or the target, is the single-task baseline.
    target_param : str
        Name of the target's parameter.
    target : str, optional
        The target task of a space of sources only.
    audit_fraction : float in [0, 1]
        Share of the eliminated pairs that stay in, at random, to measure what elimination misses.
        If there is one, configurations have one more key beside the pair: the value of
        ``transfer_pruner_audit`` is the rule's fingerprint for an audit, else empty text.
    search_name : str, optional
        What audits are drawn from, together with the pair: the same in every process, and anew in
        a search of another name. Left out, it is derived from the rule and the space.

    Returns
    -------
    dict
        For ``Tuner(param_space=...)``. Other parameters are the same objects as in `space`.

    Raises
    ------
    ValueError
        If `space` lacks the pair, no pair of it is kept, or it makes the pair in a way that cannot
        be filtered, such as ``tune.sample_from``; if `source_param` is a pattern or callable, or
        `rule` a LearningRule or no rule.

    Examples
    --------
    >>> import pandas as pd
    >>> from ray import tune
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_ray import filter_param_space
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> space = {"source": tune.grid_search(["news", "advice", "weather"])}
    >>> filtered = filter_param_space(space, rule, target="news")
    >>> filtered["source"]
    {'grid_search': ['news', 'advice']}
    """
    pair_of = PairParams(source_param, target_param, target)
    walk = _Walk(space, rule, pair_of, audit_fraction, search_name)
    filtered = walk.filtered(space)
    if filtered is _NOTHING:
        raise ValueError(
            f"param_space has no pair left: the rule eliminates all {walk.eliminated.total()}, "
            "and there is no single-task baseline among them. Add None to the sources, or keep "
            "more pairs."
        )
    return dict(filtered)


def eliminated_pairs(
    space: Mapping[str, Any],
    rule: EliminationRule,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    audit_fraction: float = 0.0,
    search_name: str | None = None,
) -> dict[Pair, int]:
    """Tell which pairs `filter_param_space` leaves out of a space.

    Parameters
    ----------
    space, rule, source_param, target_param, target, audit_fraction, search_name
        As for `filter_param_space`.

    Returns
    -------
    dict of (source, target) to int
        How often each stood in the space; other parameters are not counted.

    Raises
    ------
    ValueError
        As `filter_param_space`, except where no pair is left.

    Examples
    --------
    >>> import pandas as pd
    >>> from ray import tune
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner_ray import eliminated_pairs
    >>> pairs = pd.DataFrame({"source": ["advice", "weather"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.04, -0.02])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> space = {"source": tune.grid_search(["news", "advice", "weather"])}
    >>> eliminated_pairs(space, rule, target="news")
    {('weather', 'news'): 1}
    """
    pair_of = PairParams(source_param, target_param, target)
    walk = _Walk(space, rule, pair_of, audit_fraction, search_name)
    walk.filtered(space)
    return dict(walk.eliminated)


class _Walk:
    """Rewrites the part of a space that holds the pair, wherever it is."""

    def __init__(
        self,
        space: Mapping[str, Any],
        rule: EliminationRule,
        pair_of: PairParams,
        audit_fraction: float,
        search_name: str | None,
    ) -> None:
        self._rule = fixed_rule(rule)
        if not pair_of.is_named:
            raise ValueError(
                f"source_param must name parameters here but got {pair_of.source_param!r}: a space "
                f"is filtered before there are trials to look into. {INSTEAD}"
            )
        if not isinstance(space, Mapping):
            raise ValueError(f"space must be a dict, as Tuner's param_space, but got {space!r}.")
        self._pair_of = pair_of
        self._decider = Decider(pair_of, audit_fraction)
        self._fingerprint = self._rule.fingerprint
        self._search = search_name or _name_of(space, self._fingerprint)
        self._found = False
        self._tells = PairOrder(self._rule).tells
        # Of what was rewritten last, the place of its best pair.
        self._place = _LAST
        self.eliminated: Counter[Pair] = Counter()

    def filtered(self, space: Mapping[str, Any]) -> Any:
        """Filter the whole space; `_NOTHING` if no pair is left."""
        paths = [tuple(name.split("/")) for name in self._pair_of.params]
        filtered = self._rewrite(dict(space), paths, ())
        if not self._found:
            raise ValueError(
                f"space lacks {' and '.join(map(repr, self._pair_of.params))}; it has: "
                f"{', '.join(flat(space)) or 'nothing'}. Name them with source_param= and "
                "target_param=, nested ones as 'a/b', or pass target=."
            )
        return filtered

    def _mark_of(self, config: Mapping[str, Any]) -> str | None:
        """Decide on a pair: None if it is eliminated, else the mark of an audit or none."""
        verdict = self._decider(
            self._rule, config, search=self._search, trial="", fingerprint=self._fingerprint
        )
        if verdict is None or not verdict.eliminated:
            place = place_of(verdict) if verdict is not None and self._tells else _NOWHERE
            self._place = min(self._place, place)
            return self._fingerprint if verdict is not None and verdict.audit else ""
        self.eliminated[verdict.source, verdict.target] += 1
        return None

    def _rewrite(self, node: Any, paths: list[Path], where: Path) -> Any:
        """Filter what stands at a place of the space; `paths` lead from there to the pair."""
        kind, values = options(node)
        if kind != "constant":
            return self._rewrite_options(kind, values, paths, where)
        if not isinstance(node, dict):
            return node
        head = paths[0][0]
        if all(len(path) > 1 and path[0] == head for path in paths):
            if head not in node:
                return node
            child = self._rewrite(node[head], [path[1:] for path in paths], (*where, head))
            return child if child is _NOTHING else {**node, head: child}
        leaves = [at(node, path) for path in paths]
        if any(leaf is MISSING for leaf in leaves):
            return node
        self._found = True
        return self._rewrite_pair(node, leaves, paths, where)

    def _rewrite_options(
        self, kind: Kind, values: list[Any], paths: list[Path], where: Path
    ) -> Any:
        kept: list[tuple[Place, Any]] = []
        for value in values:
            rewritten, place = self._apart(partial(self._rewrite, value, paths, where))
            if rewritten is not _NOTHING:
                kept.append((place, rewritten))
        return as_domain(kind, _best_first(kind, kept)) if kept else _NOTHING

    def _apart(self, make: Callable[[], Any]) -> tuple[Any, Place]:
        """Make something, and find the place of the best pair in it."""
        before, self._place = self._place, _LAST
        made, place = make(), self._place
        self._place = min(before, place)
        return made, place

    def _rewrite_pair(
        self, node: dict[str, Any], leaves: list[Any], paths: list[Path], where: Path
    ) -> Any:
        names = self._pair_of.params
        given = [_checked(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
        constants = {
            name: values[0]
            for name, (kind, values) in zip(names, given, strict=True)
            if kind == "constant"
        }
        grids = [i for i, (kind, _) in enumerate(given) if kind == "grid"]
        choices = [i for i, (kind, _) in enumerate(given) if kind == "choice"]
        free = [*grids, *choices]
        # What is kept of the choices, each with its mark, for each point of the grid.
        found: list[tuple[Place, list[tuple[Any, ...]]]] = []
        for point in product(*(given[i][1] for i in grids)):

            def draws(point: tuple[Any, ...] = point) -> list[tuple[Any, ...]]:
                drawn = []
                for draw in product(*(given[i][1] for i in choices)):
                    values = (*point, *draw)
                    pair = {names[i]: value for i, value in zip(free, values, strict=True)}
                    mark = self._mark_of(constants | pair)
                    if mark is not None:
                        drawn.append((*values, mark))
                return drawn

            drawn, place = self._apart(draws)
            if drawn:
                found.append((place, drawn))
        if not found:
            return _NOTHING
        kept = _best_first("grid", found)
        marked = any(mark for drawn in kept for *_, mark in drawn)
        if not free:
            return {**node, AUDIT: kept[0][0][-1]} if marked else node
        if len(free) == 1 and not marked:
            left = [value for drawn in kept for (value, _) in drawn]
            return _with(node, paths[free[0]], as_domain("grid" if grids else "choice", left))
        places = [(*where, *paths[i]) for i in free]
        if marked:
            places.append((*where, AUDIT))
        pairs = [[KeptPair(places, values[: len(places)]) for values in drawn] for drawn in kept]
        if not grids:
            first = KeptPairs(pairs[0], is_grid=False)
        elif not choices:
            first = KeptPairs([pair for drawn in pairs for pair in drawn], is_grid=True)
        else:
            first = KeptPairs([KeptPairs(drawn, is_grid=False) for drawn in pairs], is_grid=True)
        node = _with(node, paths[free[0]], first)
        for index, i in enumerate(free[1:], start=1):
            node = _with(node, paths[i], PartOfPair(places[0], index))
        return {**node, AUDIT: AuditMark(places[0], len(free))} if marked else node


def _best_first(kind: Kind, kept: list[tuple[Place, Any]]) -> list[Any]:
    """Order what a grid goes through; a choice stays as it is."""
    if kind == "grid":
        kept = sorted(kept, key=lambda placed: placed[0])
    return [value for _, value in kept]


def _checked(leaf: Any, name: str) -> tuple[Kind, list[Any]]:
    """Take a source's or target's values; a grid within a grid is one grid."""
    kind, values = options(leaf)
    if kind == "grid":
        values = [
            inner
            for value in values
            for inner in (_checked(value, name)[1] if options(value)[0] == "grid" else [value])
        ]
    for value in values:
        if any(isinstance(part, Domain) or options(part)[0] == "grid" for part in _parts(value)):
            raise ValueError(
                f"{name} must be a constant, a grid_search or a choice of plain values to be "
                f"filtered but got {leaf!r}. {INSTEAD}"
            )
    return kind, values


def _name_of(space: Mapping[str, Any], fingerprint: str) -> str:
    """Name a search after its rule and its space, the same in every process."""
    described = json.dumps([fingerprint, _described(dict(space))])
    return hashlib.sha256(described.encode()).hexdigest()


def _described(node: Any) -> Any:
    """Write a space as JSON, without what differs between two processes, such as an address."""
    kind, values = options(node)
    if kind != "constant":
        return [kind, [_described(value) for value in values]]
    if isinstance(node, Mapping):
        return {str(name): _described(node[name]) for name in sorted(node, key=str)}
    if isinstance(node, (list, tuple)):
        return [_described(value) for value in node]
    if isinstance(node, (str, int, float)) or node is None:
        return node
    try:
        range_of = node.domain_str if isinstance(node, Domain) else ""
    except NotImplementedError:
        range_of = ""
    return [type(node).__qualname__, "" if "0x" in range_of else range_of]


def _parts(value: Any) -> Iterator[Any]:
    """List a value, and what is in it."""
    yield value
    if isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def _with(node: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**node, head: _with(node[head], tuple(rest), value) if rest else value}
