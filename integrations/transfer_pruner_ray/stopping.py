"""When a search of Tune's ends by itself: no pair is expected to improve a target any more.

What it must satisfy: it says so from what the search's own adapter has in Tune's checkpoints, so
that a restored search says the same; and where it cannot tell, the search goes on.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from ray.tune import Callback, Stopper

from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.settled import check_stopping
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_ray.history import History, searches
from transfer_pruner_ray.marks import SETTLED_FILE

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

# Results after which the search that they are of is not looked for any more.
_PATIENCE = 20

logger = logging.getLogger(__name__)


class StopWhenSettled(Stopper, Callback):
    r"""End a search when no pair is worth another trial.

    ``RunConfig(stop=stopper, callbacks=[stopper])``: as a stopper it ends the search, as a callback
    it writes down why, which Tune gives stoppers no place for.

    The search is settled if every target that is searched has a baseline with a result, the rule
    has learnt from twenty transfers, or from five of five pairs beyond the first of every target or
    of all that survive, and

    .. math:: \max_{s, t} E[\max(g(s, t) - b(t), 0)] \le \tau

    over the pairs that survive in the search space (`Decision.priority`). Pairs that were tried at
    every setting that there is have no next trial and do not count, nor do pairs whose trials
    failed three times without a result. A target whose baseline did so is left out once its pairs
    have been tried. A pair without a priority keeps the search going.

    It asks the `TransferSearcher` or `TransferVariantGenerator` that makes the trials and has the
    same rule, within a ConcurrencyLimiter or without. Tune stops trials that are running then. The
    reason is logged, and written into the experiment's folder (``transfer_pruner.json``), from
    which `ending_from_results` reads it.

    Parameters
    ----------
    rule : LearningRule
        The one that the searcher or generator has.
    tolerance : float
        :math:`\tau`, 0 or more, in units of the score. The default is a tenth of a percentage point
        of accuracy or F1, less than what another seed changes; give your own for scores that are
        not from 0 to 1.
    share : float
        The search also ends when the most that is expected per second is at most this share of what
        it has gained per second so far: of the best scores over the baselines, summed over targets.
        A pair's trial counts with the mean seconds of those that it had; before its first one, with
        what its target's baseline took, times what transfers of the target and source take more.
    source_param, target_param, target
        As for `TransferSearcher`.

    Raises
    ------
    ValueError
        If `rule` is no LearningRule, `tolerance` or `share` is negative or no number, or
        `source_param` is not one parameter's name.

    Examples
    --------
    >>> from ray import tune
    >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
    >>> from transfer_pruner_ray import StopWhenSettled, TransferVariantGenerator
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> rule = LearningRule(TransferPredictor(embeddings))
    >>> generator = TransferVariantGenerator(rule, target="news", max_concurrent=2)
    >>> stopper = StopWhenSettled(rule, target="news")
    >>> config = tune.TuneConfig(search_alg=generator, metric="f1", mode="max")
    >>> run = tune.RunConfig(stop=stopper, callbacks=[stopper])
    """

    def __init__(
        self,
        rule: LearningRule,
        *,
        tolerance: float = 0.001,
        share: float = 0.0,
        source_param: SourceParam = "source",
        target_param: str = "target",
        target: str | None = None,
    ) -> None:
        self._pair_of = PairParams(source_param, target_param, target)
        self._tolerance, self._share = check_stopping(rule, tolerance, share, self._pair_of)
        self._fingerprint = rule.refitted().fingerprint
        self._forget()

    def _forget(self) -> None:
        self._search: ReferenceType[History] | None = None
        self._seen = -1
        self._strangers = 0
        self._is_written = False

    def __getstate__(self) -> dict[str, Any]:
        # A search that is restored has another process, and says again whether it is settled.
        own = ("_pair_of", "_tolerance", "_share", "_fingerprint")
        return {name: vars(self)[name] for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Hear of a result; no single trial is stopped."""
        if self._find(trial_id) is None and self._strangers <= _PATIENCE:
            self._strangers += 1
            if self._strangers > _PATIENCE:
                logger.warning(
                    "StopWhenSettled never stops this search: no TransferSearcher or "
                    "TransferVariantGenerator with the same rule and parameters makes its trials."
                )
        return False

    def stop_all(self) -> bool:
        """Say whether the search is settled."""
        search = None if self._search is None else self._search()
        if search is None or search.stopped is not None:
            return search is not None
        if search.ended != self._seen:
            self._seen = search.ended
            try:
                search.stopped = search.settled(self._tolerance, self._share)
            except Exception as error:
                search.decider.warn("settled", f"it is not known when to stop: {error!r}")
        if search.stopped is None:
            return False
        logger.info("The search is settled and stops: %s", search.stopped["reason"])
        return True

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write down why the search was stopped."""
        search = self._find(trials[-1].trial_id) if trials else None
        if search is None or search.stopped is None or self._is_written:
            return
        self._is_written = True
        storage: Any = trials[-1].storage
        path = f"{storage.experiment_fs_path}/{SETTLED_FILE}"
        try:
            with storage.storage_filesystem.open_output_stream(path) as stream:
                stream.write(json.dumps(search.stopped).encode())
        except Exception as error:
            logger.warning("why the search was stopped could not be written: %r", error)

    def _find(self, trial_id: str) -> History | None:
        """Find the search of a trial: Tune restores the callback apart from the stopper."""
        found = None if self._search is None else self._search()
        if found is None:
            fitting = [s for s in list(searches) if s.knows(trial_id) and self._fits(s)]
            found = max(fitting, key=lambda search: search.told_at, default=None)
            self._search = None if found is None else ref(found)
        return found

    def _fits(self, search: History) -> bool:
        return search.fingerprint == self._fingerprint and search.pair_of == self._pair_of
