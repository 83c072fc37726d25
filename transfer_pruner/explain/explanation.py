"""What can be said of one pair, as data and in words for a terminal.

What it must satisfy: every number is there as a number too, and what is not known is NaN.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from transfer_pruner.equality import SameValues
from transfer_pruner.rule.decision import Decision
from transfer_pruner.trust import RankingTrust

_ALIKE = ("cka", "cosine")


@dataclass(frozen=True, eq=False)
class Standing(SameValues):
    """Where a pair stands in one feature among all sources of its target.

    Attributes
    ----------
    value : float
    rank : int
        1 for the highest value; of `n`.
    n : int
        Sources of the target that have the feature, this one included.
    low, median, high : float
        Of the other sources; NaN if there is none.
    """

    value: float
    rank: int
    n: int
    low: float
    median: float
    high: float


@dataclass(frozen=True, eq=False)
class LayerComparison(SameValues):
    """How alike source and target are in one layer.

    Attributes
    ----------
    layer : str
    standings : mapping of str to Standing
        By feature of `pairs.pair_features`; those that cannot be computed are left out.
    """

    layer: str
    standings: Mapping[str, Standing]

    @property
    def agreement(self) -> str | None:
        """The feature that tells how alike the layer is: linear CKA, else the cosine."""
        return next((feature for feature in _ALIKE if feature in self.standings), None)


@dataclass(frozen=True)
class TokenAttribution:
    """A token with its mean attribution in the source's and the target's model; NaN for none."""

    token: str
    source: float
    target: float


@dataclass(frozen=True, eq=False)
class Contribution(SameValues):
    """What one feature adds to the score.

    Attributes
    ----------
    feature : str
    value : float
    contribution : float
        In units of the score; all of them and `Explanation.base` add up to it.
    others : float
        Mean contribution of the feature for the target's other sources; NaN if there is none.
    """

    feature: str
    value: float
    contribution: float
    others: float


@dataclass(frozen=True, eq=False)
class MeasuredPair(SameValues):
    """A measured pair that the predictor takes for a similar one.

    Attributes
    ----------
    source, target : str
    gain : float
        Mean measured gain.
    distance : float
        Of what their features add to the two scores (Euclidean), in units of the score.
    """

    source: str
    target: str
    gain: float
    distance: float


@dataclass(frozen=True, eq=False)
class Explanation(SameValues):
    """Why a pair was eliminated or kept.

    Attributes
    ----------
    source, target : str
    decision : Decision or None
        None without a rule.
    rank, candidates : int or None
        The pair's rank among this many sources of the target.
    settings : mapping
        How the rule was made.
    layers : tuple of LayerComparison
    tokens_shared, tokens_opposed : tuple of TokenAttribution
        Tokens that both attribute, in the same and in opposite directions; the largest first.
    tokens_source_only, tokens_target_only : tuple of TokenAttribution
        Tokens among the largest of one of the two alone.
    contributions : tuple of Contribution
        Those that set the pair most apart from the target's other sources come first.
    base : float
        What the score is before any contribution.
    score : float
        What the predictor says: base and contributions. NaN if it knows nothing of the pair.
    measured_gain : float
        Mean over the pair's own measured transfers; NaN if there is none.
    nearest : tuple of MeasuredPair
    trust : RankingTrust or None
        How attributions alone rank the pairs that were measured; None without any.
    notes : tuple of str
        What could not be said, and what it takes.

    Examples
    --------
    >>> import pandas as pd
    >>> from transfer_pruner import EliminationRule, TransferPredictor
    >>> from transfer_pruner.explain import explain_pair
    >>> pairs = pd.DataFrame({"source": ["advice", "weather", "rescue"], "target": "news"})
    >>> predictor = TransferPredictor().fit(pairs, [0.05, -0.02, 0.01])
    >>> rule = EliminationRule.top_k(predictor, k=1, pairs=pairs)
    >>> explanation = explain_pair("advice", "news", rule=rule, predictor=predictor)
    >>> explanation.rank, explanation.candidates
    (1, 3)
    >>> print(explanation.lines()[0])
    advice -> news: kept
    """

    source: str
    target: str
    decision: Decision | None = None
    rank: int | None = None
    candidates: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[LayerComparison, ...] = ()
    tokens_shared: tuple[TokenAttribution, ...] = ()
    tokens_opposed: tuple[TokenAttribution, ...] = ()
    tokens_source_only: tuple[TokenAttribution, ...] = ()
    tokens_target_only: tuple[TokenAttribution, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    base: float = math.nan
    score: float = math.nan
    measured_gain: float = math.nan
    nearest: tuple[MeasuredPair, ...] = ()
    trust: RankingTrust | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Turn it into dicts, lists and numbers; NaN stands for what is not known."""
        return asdict(self)

    def lines(self, top: int = 8) -> list[str]:
        """Write it for a person, at most `top` rows of each kind."""
        parts = (
            self._on_decision(),
            self._on_layers(),
            self._on_tokens(top),
            self._on_contributions(top),
            self._on_nearest(top),
            self._on_trust(),
            [line for note in self.notes for line in _wrapped(f"note: {note}")],
        )
        return [line for part in parts if part for line in ("", *part)][1:]

    def _on_decision(self) -> list[str]:
        pair = f"{self.source} -> {self.target}"
        measured = (
            []
            if math.isnan(self.measured_gain)
            else [f"  measured: mean gain {self.measured_gain:+.4f}"]
        )
        if self.decision is None:
            return [f"{pair}: no rule was given, so nothing was decided", *measured]
        decision = self.decision
        numbers = []
        if not math.isnan(decision.score):
            numbers.append(f"score {decision.score:.4f}")
        if not math.isnan(decision.probability):
            numbers.append(f"probability of a positive gain {decision.probability:.2f}")
        lines = [f"{pair}: {'eliminated' if decision.eliminated else 'kept'}"]
        lines += _wrapped(decision.reason, "  ")
        if numbers:
            lines.append(f"  {', '.join(numbers)}")
        if "risk" in self.settings:
            lines += _wrapped(self._on_risk(), "  ")
        return lines + measured

    def _on_trust(self) -> list[str]:
        if self.trust is None or not self.trust.n_pairs:
            return []
        return _wrapped(f"attributions alone: {self.trust}")

    def _on_risk(self) -> str:
        about = "about " if self.settings.get("leave_target_out") else ""
        tolerance = self.settings.get("tolerance", 0.0)
        return (
            f"risk: a target like the {self.settings.get('n_targets', '?')} that the rule was "
            f"calibrated on loses its best source{f' by more than {tolerance:g}' * bool(tolerance)}"
            f" with probability {about}{self.settings['risk']:g} at most"
        )

    def _on_layers(self) -> list[str]:
        alike = [(layer, layer.agreement) for layer in self.layers]
        known = [(layer, layer.standings[name], name) for layer, name in alike if name]
        if not known:
            return []
        names = {"cka": "CKA", "cosine": "cosine", "source_rank": "directions"}
        rows = [["layer", *[text for name in names for text in (names[name], "rank")]]]
        for layer in self.layers:
            row = [layer.layer]
            for name in names:
                at = layer.standings.get(name)
                row += ["", ""] if at is None else [f"{at.value:.3f}", f"{at.rank}/{at.n}"]
            rows.append(row)
        lines = [
            *_wrapped(
                f"layers: {self.source} among the sources of {self.target}; rank 1 is the most "
                "alike; directions: in how many the source's attributions vary"
            ),
            *_columns(rows),
        ]
        agreeing = sorted(known, key=lambda x: (x[1].rank / x[1].n, -x[1].value))
        for what, chosen in (
            ("agree", [x for x in agreeing if 2 * x[1].rank <= x[1].n]),
            ("differ", [x for x in reversed(agreeing) if 2 * x[1].rank > x[1].n]),
        ):
            named = ", ".join(f"{x[0].layer} ({names[x[2]]} {x[1].value:.3f})" for x in chosen[:3])
            more = f" and {len(chosen) - 3} more" if len(chosen) > 3 else ""
            lines.append(f"  {what}: {named or 'none'}{more}")
        return lines

    def _on_tokens(self, top: int) -> list[str]:
        both = [
            (what, ", ".join(f"{x.token}\xa0{x.source:+.2g}/{x.target:+.2g}" for x in tokens[:top]))
            for what, tokens in (
                ("both", self.tokens_shared),
                ("both, in opposite directions", self.tokens_opposed),
            )
        ]
        one = [
            (f"only {self.source}", _listed(self.tokens_source_only[:top], "source")),
            (f"only {self.target}", _listed(self.tokens_target_only[:top], "target")),
        ]
        if not any(text for _, text in both + one):
            return []
        return [
            f"tokens with the largest attributions ({self.source}/{self.target}):",
            *[
                line
                for what, text in both + one
                for line in _wrapped(f"{what}: {text or 'none'}", "  ")
            ],
        ]

    def _on_contributions(self, top: int) -> list[str]:
        if not self.contributions:
            return []
        rows = [["feature", "value", "adds", "others"]]
        for part in self.contributions[:top]:
            others = "" if math.isnan(part.others) else f"{part.others:+.4f}"
            value = "" if math.isnan(part.value) else f"{part.value:.4f}"
            rows.append([part.feature, value, f"{part.contribution:+.4f}", others])
        more = len(self.contributions) - top
        return [
            *_wrapped(
                f"score {self.score:.4f} = {self.base:.4f} + what each feature adds; others: the "
                f"mean of {self.target}'s other sources; what sets the pair apart comes first"
            ),
            *_columns(rows),
            *([f"  and {more} more"] if more > 0 else []),
        ]

    def _on_nearest(self, top: int) -> list[str]:
        if not self.nearest:
            return []
        rows = [["pair", "gain", "distance"]]
        for pair in self.nearest[:top]:
            name = f"{pair.source} -> {pair.target}"
            rows.append([name, f"{pair.gain:+.4f}", f"{pair.distance:.4f}"])
        return [
            "measured pairs whose features add most nearly the same to their scores:",
            *_columns(rows),
        ]


def _listed(tokens: Sequence[TokenAttribution], side: str) -> str:
    return ", ".join(f"{x.token}\xa0{getattr(x, side):+.2g}" for x in tokens)


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Break a line for a terminal of 100 columns, but no word, and none from its number."""
    lines = textwrap.wrap(
        text,
        98,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align a table: its first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
