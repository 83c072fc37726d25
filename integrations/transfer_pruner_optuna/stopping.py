"""When a search ends by itself: no pair is expected to improve a target any more.

What it must satisfy: it says so from the study's storage alone, so that processes that see the same
finished trials agree; and where it cannot tell, the search goes on.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.rule.settled import check_stopping, settled
from transfer_pruner.tasks import PairParams, SourceParam, task_name
from transfer_pruner_optuna._private import study_key, whole_study
from transfer_pruner_optuna.evidence import Evidence
from transfer_pruner_optuna.history import History
from transfer_pruner_optuna.ordering import searched
from transfer_pruner_optuna.records import SETTLED, records_from_trials
from transfer_pruner_optuna.sampler import TransferSampler

# Under Optuna's own, so that it is shown where Optuna's messages are.
_logger = optuna.logging.get_logger("optuna.transfer_pruner")


class StopWhenSettled:
    r"""End a search when no pair is worth another trial, for ``study.optimize(callbacks=[...])``.

    The search is settled if every target that is searched has a baseline with a result, the rule
    has learnt from twenty transfers, or from five of five pairs beyond the first of every target or
    of all that survive, and

    .. math:: \max_{s, t} E[\max(g(s, t) - b(t), 0)] \le \tau

    over the pairs that survive among the parameters' choices (`Decision.priority`). Pairs that were
    tried at every setting that there is have no next trial and do not count, nor do pairs whose
    trials failed three times without a result. A target whose baseline did so is left out once its
    pairs have been tried. A pair without a priority keeps the search going.

    What is eliminated does not count either, though a `LearningRule` may think better of it later.
    The reason is logged, and written into the study's user attributes as
    ``transfer_pruner.settled``: ``reason``, ``priority``, ``tolerance`` and ``trials``, the number
    of trials that had been started. Each process of a search stops itself after its own next trial.

    Parameters
    ----------
    rule : LearningRule
        The one that the study's `TransferSampler` or gate has.
    tolerance : float
        :math:`\tau`, 0 or more, in units of the score. The default is a tenth of a percentage point
        of accuracy or F1, less than what another seed changes; give your own for scores that are
        not from 0 to 1.
    share : float
        The search also ends when the most that is expected per second is at most this share of what
        it has gained per second so far: of the best scores over the baselines, summed over targets.
        A pair's trial counts with the mean seconds of those that it had; before its first one, with
        what its target's baseline took, times what transfers of the target and source take more.
    source_param, target_param, target, objective_index
        As for `TransferSampler`.

    Raises
    ------
    ValueError
        If `rule` is no LearningRule, `tolerance` or `share` is negative or no number, or
        `source_param` is not one parameter's name. When a trial has finished, if a study has
        several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner import LearningRule, TaskEmbedding, TransferPredictor
    >>> from transfer_pruner_optuna import StopWhenSettled, TransferSampler
    >>> vectors = {"news": [1.0, 0.0], "advice": [0.9, 0.3], "weather": [0.0, 1.0]}
    >>> embeddings = {task: TaskEmbedding(task, {"last": x}) for task, x in vectors.items()}
    >>> rule = LearningRule(TransferPredictor(embeddings))
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> def objective(trial):
    ...     return scores[trial.suggest_categorical("source", list(scores))]
    >>> sampler = TransferSampler(rule, target="news")
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(objective, n_trials=20, callbacks=[StopWhenSettled(rule, target="news")])
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
        objective_index: int | str | None = None,
    ) -> None:
        self._pair_of = PairParams(source_param, target_param, target)
        self._tolerance, self._share = check_stopping(rule, tolerance, share, self._pair_of)
        self._rule = rule
        self._objective_index = objective_index
        self._evidence = Evidence(rule, self._pair_of, objective_index)
        self._histories: dict[Hashable, History] = {}

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Stop the study if it is settled, and say why."""
        settled = self.settled(study)
        if settled is None:
            return
        if study.user_attrs.get(SETTLED) != settled:
            study.set_user_attr(SETTLED, settled)
        _logger.info(f"The search is settled and stops: {settled['reason']}")
        study.stop()

    def settled(self, study: optuna.Study) -> dict[str, Any] | None:
        """Say why the study is settled, as its user attribute does; None if it is not.

        For ask-and-tell loops, which end themselves.

        Parameters
        ----------
        study : optuna.Study

        Returns
        -------
        dict or None
            ``reason``, ``priority`` (the highest; left out where no pair has a next trial),
            ``tolerance`` and ``trials``.
        """
        history = self._histories.setdefault(study_key(study), History(self._pair_of))
        history.update(study)
        sources = searched(study, self._pair_of.source_params[0])
        targets = self._targets(study)
        if sources is None or targets is None:
            return None
        told = settled(
            self._current(study),
            history,
            sources,
            targets,
            self._tolerance,
            self._share,
            lambda: records_from_trials(
                study, study.get_trials(deepcopy=False), self._pair_of, None, self._objective_index
            ),
        )
        if told is not None:
            told["trials"] = len(whole_study(study).get_trials(deepcopy=False))
        return told

    def _current(self, study: optuna.Study) -> EliminationRule:
        """Find the rule of now; a sampler with the same rule has learnt it already."""
        sampler = study.sampler
        if isinstance(sampler, TransferSampler):
            evidence = sampler.evidence_of(self._rule, self._pair_of, self._objective_index)
            if evidence is not None:
                return evidence.rule(study)
        return self._evidence.rule(study)

    def _targets(self, study: optuna.Study) -> set[str] | None:
        if self._pair_of.target is not None:
            return {str(task_name(self._pair_of.target))}
        return searched(study, self._pair_of.target_param)
