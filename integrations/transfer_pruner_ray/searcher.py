"""A search algorithm of Tune's whose trials have the pair that is worth most, or one that is kept.

What it must satisfy: the algorithm hears of every trial under the name it gave it, of a rejected
one that it failed, and of a pair that was changed wherever it can be told; any number of Tune's
wrappers may stand outside and inside; and what is counted and learnt is in Tune's checkpoints.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Repeater, Searcher
from ray.tune.search.sample import Domain

from transfer_pruner.files import write_atomically
from transfer_pruner.records import Recorder
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.tried import NextPair
from transfer_pruner.rule.verdict import Verdict
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_ray import _private
from transfer_pruner_ray.deciding import PassedOver, refuse_hidden
from transfer_pruner_ray.history import History, PairSpace, value_of
from transfer_pruner_ray.marks import Pair, flat, with_audit

_STATE_SUFFIX = ".transfer.json"
_TIMES = 5
# As often as Optuna's samplers are asked for hyperparameters that a pair has not had.
_TIMES_ASKED = 10


class TransferSearcher(Searcher):
    """Give the trials of a search algorithm the pair that is worth most, or one that is kept.

    For OptunaSearch, HyperOptSearch, TuneBOHB and kin, inside or outside a ConcurrencyLimiter, and
    inside a Repeater. All of ``num_samples`` trials are trials that run.

    With a `LearningRule` the pair is the surviving one of the highest `Decision.priority`, over all
    targets or the one that is given, and of the algorithm's suggestion the other parameters are
    taken: it is asked up to ten times for such as the pair has not had. Every target's single-task
    baseline comes first, since gains need one. Pairs of running trials come after all others of
    positive priority; so do those of a target without a baseline that have had a result, and,
    last, those that were tried at every setting that there is, or that three trials have left
    without a result. No random number chooses the pair. With a rule
    that does not learn, suggestions that it keeps stand; an eliminated pair gives way to its
    target's baseline, and once that is there to the surviving pair of the target that has had the
    fewest trials, the best-scored of these.

    OptunaSearch and HyperOptSearch know the trial by its new pair (in Optuna's study a failed trial
    is left of each suggestion that was changed, and a model that is slow to ask is asked twice).
    Other algorithms cannot be told, and hear the result as of the pair that they suggested. Where
    the pair stands apart in no ``tune.choice`` of the space (a define-by-run space, several
    sources, a pattern), where the rule tells no order of it, and around a Repeater, the algorithm
    is asked again until its pair is kept. It is told that a rejected trial failed, so its model
    rests on measured trials only; from the fifth time on that one pair comes in a row of rejected
    ones, that it was as bad as the worst trial so far.

    What the user has enqueued in an OptunaSearch (``points_to_evaluate``) stands if it is kept.

    Parameters
    ----------
    searcher : ray.tune.search.Searcher
    rule : EliminationRule or LearningRule
        A LearningRule learns from the metric and mode of the search, whenever ``refit_every`` more
        trials have finished. Trials that a scheduler stopped early count with their last value:
        where there is such a scheduler, give the LearningRule to `TransferScheduler`.
    source_param, target_param, target
        As for `TransferScheduler`: ``a/b`` where a parameter is nested.
    audit_fraction : float in [0, 1]
        Share of the eliminated suggestions that are kept all the same, at random, to measure what
        elimination misses: an audit is what the algorithm suggested and the rule eliminates, and a
        kept pair that is tried because little is known of it is none. Drawn from the suggestion's
        id. The configuration of an audit trial has
        one more key beside the pair, ``transfer_pruner_audit``, the rule's fingerprint: Tune keeps
        nothing else of a searcher's where reading it runs no code.
    tracker : Recorder, optional
        Such as a `transfer_pruner_mlflow.SavingsTracker`: told of every trial that has another pair
        than the one suggested first, in the process that started the search. Its ``ray_callback``
        tells it of the trials.
    max_resamples : int
        The search ends, with a warning, when so many suggestions in a row were rejected.

    Attributes
    ----------
    searcher : ray.tune.search.Searcher

    Raises
    ------
    ValueError
        If `searcher` is no Searcher, `rule` no rule, `audit_fraction` no share, or `max_resamples`
        below 1; when the search starts, if Tune hides the source or target from search algorithms:
        values other than text, numbers and truth values.

    Examples
    --------
    >>> from ray import tune
    >>> from ray.tune.search.optuna import OptunaSearch
    >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
    >>> from transfer_pruner_ray import TransferSearcher
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> rule = LearningRule(TransferPredictor(embeddings))
    >>> searcher = TransferSearcher(OptunaSearch(), rule, target="news")
    >>> config = tune.TuneConfig(search_alg=searcher, num_samples=20, metric="f1", mode="max")
    """

    def __init__(
        self,
        searcher: Searcher,
        rule: EliminationRule | LearningRule,
        *,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
        audit_fraction: float = 0.0,
        tracker: Recorder | None = None,
        max_resamples: int = 1000,
    ) -> None:
        if not isinstance(searcher, Searcher):
            raise ValueError(
                f"searcher must be one of Tune's search algorithms but got {searcher!r}. For grid "
                "and random search use TransferVariantGenerator or filter_param_space."
            )
        if max_resamples < 1:
            raise ValueError(f"max_resamples must be at least 1 but got {max_resamples}.")
        # Tune finds the inner searcher by this name, to save it.
        self.searcher: Any = searcher
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        pair_of = PairParams(source_param, target_param, target)
        self._history = History(rule, pair_of, audit_fraction)
        self._decider = self._history.decider
        self._next = NextPair()
        self._max_resamples = max_resamples
        # What does not vary, which search algorithms leave out: of it, what may be of the pair.
        self._constants: dict[str, Any] = {}
        self._rejected = PassedOver(pair_of)
        self._redirected = PassedOver(pair_of, tracker)
        self._inner_ids: dict[str, str] = {}
        self._worst: float | None = None

    @property
    def metric(self) -> Any:
        """The metric of the inner searcher, else of the Tuner."""
        return self.searcher.metric or self._metric

    @property
    def mode(self) -> Any:
        """The mode of the inner searcher, else of the Tuner."""
        return self.searcher.mode or self._mode

    @property
    def eliminated_pairs(self) -> dict[Pair, int]:
        """How many suggestions of each eliminated pair were rejected so far."""
        return dict(self._rejected.counts)

    @property
    def redirected_pairs(self) -> dict[Pair, int]:
        """How many trials have another pair than the eliminated one that was suggested first."""
        return dict(self._redirected.counts)

    @property
    def rejected(self) -> int:
        """How many suggestions were rejected so far."""
        return self._rejected.counts.total()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Pass the Tuner's metric, mode and space on, and remember constants of the pair."""
        refuse_hidden(config, self._decider.pair_of)
        pair_of, given = self._decider.pair_of, flat(config)
        self._constants = {
            name: value
            for name, value in given.items()
            if (name in pair_of.params or not pair_of.is_named) and not isinstance(value, Domain)
        }
        self._metric, self._mode = metric or self._metric, mode or self._mode
        accepted: bool = self.searcher.set_search_properties(metric, mode, config, **spec)
        space = given | _private.own_space(self.searcher)
        repeats = any(isinstance(s, Repeater) for s in _private.chain(self.searcher))
        self._history.space = None if repeats else PairSpace.of(space, pair_of)
        return accepted

    def suggest(self, trial_id: str) -> Any:
        """Suggest a configuration whose pair is kept."""
        rule = self._rule_of_now()
        times: Counter[Pair] = Counter()
        first: tuple[Verdict, Mapping[str, Any]] | None = None
        wanted: Pair | None = None
        for n in range(self._max_resamples):
            # Some searchers answer the same trial's id with the same suggestion.
            inner_id = f"{trial_id}-{n}" if n else trial_id
            suggested = self.searcher.suggest(inner_id)
            if not isinstance(suggested, dict):
                # Finished, or no slot.
                return suggested
            config = self._constants | flat(suggested)
            verdict = self._decider.of(rule, config, inner_id)
            eliminated = verdict is not None and verdict.eliminated
            if not n:
                wanted = self._wanted(rule, inner_id, config, verdict)
            if verdict is not None and eliminated and (wanted is None or not n):
                first = first or (verdict, config)
                self._rejected.add(verdict, config)
            if wanted is not None:
                repeated = self._history.repeats(wanted, config)
                if repeated and n + 1 < min(_TIMES_ASKED, self._max_resamples):
                    self.searcher.on_trial_complete(inner_id, error=True)
                    continue
                if repeated:
                    wanted = self._wanted(rule, inner_id, config, verdict, stands=True) or wanted
                suggested, verdict = self._changed(inner_id, suggested, wanted), None
            elif verdict is not None and eliminated:
                pair = verdict.source, verdict.target
                times[pair] += 1
                self._reject(inner_id, times[pair])
                continue
            if first is not None:
                self._redirected.add(*first)
            self._inner_ids[trial_id] = inner_id
            self._history.start(trial_id, self._constants | flat(suggested))
            if verdict is not None and verdict.audit:
                beside = self._decider.pair_of.names_in(config)[-1]
                return with_audit(suggested, beside, verdict.rule)
            return suggested
        self._decider.warn(
            "exhausted",
            f"the search ends: the last {self._max_resamples} pairs that "
            f"{type(self.searcher).__name__} suggested are all eliminated. Keep more pairs, or "
            "raise max_resamples=.",
        )
        # None would make Tune wait for minutes.
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tell the inner searcher."""
        self.searcher.on_trial_result(self._inner_id(trial_id), result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the inner searcher, and learn."""
        self.searcher.on_trial_complete(self._inner_id(trial_id), result=result, error=error)
        value = value_of(None if error else result, self.metric)
        if math.isfinite(value):
            worse = min if self.mode == "max" else max
            self._worst = value if self._worst is None else worse(self._worst, value)
        self._history.end(
            trial_id, result, error=error, metric=self.metric, maximize=self.mode == "max"
        )

    def on_pause(self, trial_id: str) -> None:
        """Tell the inner searcher; for HyperBandForBOHB."""
        self.searcher.on_pause(self._inner_id(trial_id))

    def on_unpause(self, trial_id: str) -> None:
        """Tell the inner searcher; for HyperBandForBOHB."""
        self.searcher.on_unpause(self._inner_id(trial_id))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tell the inner searcher; say whether it limits the trials at a time itself."""
        limits: bool = self.searcher.set_max_concurrency(max_concurrent)
        return limits

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: list[float] | None = None,
    ) -> None:
        """Pass a measured configuration on, whether or not its pair is kept."""
        self.searcher.add_evaluated_point(parameters, value, error, pruned, intermediate_values)

    def get_state(self) -> dict[str, Any]:
        """Take what Tune saves beside the inner searcher: plain data, without the rule."""
        return {
            "constants": self._constants,
            "inner_ids": dict(self._inner_ids),
            "metric": self._metric,
            "mode": self._mode,
            "worst": self._worst,
            "eliminated": self._rejected.get_state(),
            "redirected": self._redirected.get_state(),
            **self._history.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `get_state` gave."""
        self._constants = dict(state["constants"])
        self._inner_ids = dict(state["inner_ids"])
        self._metric, self._mode = state["metric"], state["mode"]
        self._worst = state["worst"]
        self._rejected.set_state(state["eliminated"])
        self._redirected.set_state(state["redirected"])
        self._history.set_state(state)

    def save(self, checkpoint_path: str) -> None:
        """Save the inner searcher, as its own ``save`` would, and our state as JSON beside it."""
        self.searcher.save(checkpoint_path)
        state = json.dumps(self.get_state(), default=str).encode()
        write_atomically(Path(f"{checkpoint_path}{_STATE_SUFFIX}"), state)

    def restore(self, checkpoint_path: str) -> None:
        """Restore what `save` wrote, or an inner searcher that was saved on its own."""
        self.searcher.restore(checkpoint_path)
        ours = Path(f"{checkpoint_path}{_STATE_SUFFIX}")
        if ours.exists():
            self.set_state(json.loads(ours.read_bytes()))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save into a folder from which ``restore_from_dir`` reads."""
        self.save(os.path.join(checkpoint_dir, self.CKPT_FILE_TMPL.format(session_str)))

    def _reject(self, inner_id: str, times: int) -> None:
        """Close a suggestion; `times` is how often its pair came in a row.

        As a failed trial, which leaves no trace in the searcher's model. A pruned or bad one would
        tell a model like TPE's that the other parameters were at fault too. But a model that learns
        from values alone may ask for the same pair for ever, as Optuna's GPSampler does: after some
        times it is told the worst value measured so far.
        """
        if times < _TIMES or self._worst is None:
            self.searcher.on_trial_complete(inner_id, error=True)
        else:
            self.searcher.on_trial_complete(inner_id, result={self.metric: self._worst})

    def _inner_id(self, trial_id: str) -> str:
        return self._inner_ids.get(trial_id, trial_id)

    def _rule_of_now(self) -> EliminationRule:
        if self._history.learns and (
            not isinstance(self.metric, str) or self.mode not in ("max", "min")
        ):
            raise ValueError(
                f"a LearningRule needs one score to learn from, but metric is {self.metric!r} and "
                f"mode is {self.mode!r}: pass both to TuneConfig or to the search algorithm."
            )
        return self._history.rule()

    def _wanted(
        self,
        rule: EliminationRule,
        inner_id: str,
        config: Mapping[str, Any],
        verdict: Verdict | None,
        *,
        stands: bool = False,
    ) -> Pair | None:
        """Choose the pair of a trial; None if what was suggested, or nothing, is to be said of it.

        `stands` says that these hyperparameters are what it will have.
        """
        history, space = self._history, self._history.space
        proposed = history.pair(config)
        if space is None or verdict is None or verdict.audit or proposed is None:
            return None
        if not (verdict.eliminated or history.learns):
            return None
        setting = history.setting(config if stands else {})
        choose = self._next if history.learns else self._next.instead
        among: dict[str, Any] = {"sources": space.sources, "targets": space.targets}
        among["instead_of" if history.learns else "proposed"] = proposed
        try:
            if not verdict.eliminated and _private.is_given(self.searcher, inner_id):
                return None
            return choose(rule, history, setting, history.pairs_running(setting), **among)
        except Exception as error:
            self._decider.warn("order", f"no pair could be chosen, suggestions stand: {error!r}")
            return None

    def _changed(self, inner_id: str, suggested: dict[str, Any], wanted: Pair) -> dict[str, Any]:
        """Give a suggestion another pair, and tell the searcher of it if it can be told."""
        space, pair_of = self._history.space, self._decider.pair_of
        given = self._constants | flat(suggested)
        if space is None or self._history.pair(given) == wanted:
            return suggested
        params = space.params(wanted, pair_of)
        differ = {name: value for name, value in params.items() if given.get(name) != value}
        return _private.told_of(self.searcher, inner_id, suggested, differ)
