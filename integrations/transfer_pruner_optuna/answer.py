"""What a study found, from its storage, and written back into it for whoever opens it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection

from transfer_pruner.answer import Answer, find_answer
from transfer_pruner.tasks import PairParams, SourceParam
from transfer_pruner_optuna.records import PREFIX, check_objective, records_from_trials

ANSWER = PREFIX + "answer"


def answer_from_study(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
    seed_param: str = "seed",
    dev_sizes: int | Mapping[str, int] | None = None,
) -> Answer:
    """Find the best source and hyperparameters of every target of a study.

    Trials that a pruner stopped do not count: their last value is one of fewer steps.

    Parameters
    ----------
    study : optuna.Study
        Whatever processes its trials ran in, and whether it goes on.
    source_param, target_param, target
        As for `gate`.
    objective_index : int or str, optional
        Which objective is the score, in a study with several.
    seed_param, dev_sizes
        As for `transfer_pruner.find_answer`.

    Raises
    ------
    ValueError
        If the study has several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import answer_from_study
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> print(answer_from_study(study, target="news").headline())
    news: advice scores 0.6600, +0.0500 over the single-task baseline; second is training alone,
    0.0500 behind (one trial: what another seed changes is not known).
    """
    objective = check_objective(study, objective_index)
    trials = study.get_trials(deepcopy=False)
    pair_of = PairParams(source_param, target_param, target)
    return find_answer(
        records_from_trials(study, trials, pair_of, None, objective),
        maximize=study.directions[objective] == StudyDirection.MAXIMIZE,
        seed_param=seed_param,
        dev_sizes=dev_sizes,
    )


def record_answer(
    study: optuna.Study,
    *,
    source_param: SourceParam = "source",
    target_param: str = "target",
    target: str | None = None,
    objective_index: int | str | None = None,
    seed_param: str = "seed",
    dev_sizes: int | Mapping[str, int] | None = None,
) -> Answer:
    """Find the answer and write it into the study's user attribute ``transfer_pruner.answer``.

    It holds ``targets``, what `Answer.as_dict` says of each, and ``trials``, how many finished with
    a score by then. Nothing is written where it is there already. `TrackingCallback` does this as
    the search goes on.

    Parameters
    ----------
    study, source_param, target_param, target, objective_index, seed_param, dev_sizes
        As for `answer_from_study`.

    Raises
    ------
    ValueError
        If the study has several objectives and none is chosen.

    Examples
    --------
    >>> import optuna
    >>> from transfer_pruner_optuna import record_answer
    >>> scores = {"news": 0.61, "advice": 0.66, "weather": 0.58}
    >>> sampler = optuna.samplers.BruteForceSampler()
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: scores[trial.suggest_categorical("source", list(scores))])
    >>> answer = record_answer(study, target="news")
    >>> study.user_attrs["transfer_pruner.answer"]["trials"]
    3
    """
    answer = answer_from_study(
        study,
        source_param=source_param,
        target_param=target_param,
        target=target,
        objective_index=objective_index,
        seed_param=seed_param,
        dev_sizes=dev_sizes,
    )
    told: dict[str, Any] = {
        "targets": answer.as_dict(),
        "trials": sum(one.trials_finished for one in answer.targets),
    }
    if study.user_attrs.get(ANSWER) != told:
        study.set_user_attr(ANSWER, told)
    return answer
