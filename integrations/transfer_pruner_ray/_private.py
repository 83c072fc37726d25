"""All of Ray's private API that the adapters use.

What it must satisfy: importing it loads no Ray, since reading an experiment needs none; the tests
run all of it on both ends of the range of versions that pyproject.toml claims.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transfer_pruner_ray.marks import with_value


def metric_and_mode(results: object) -> tuple[str | None, str | None]:
    """Tell what the Tuner of a ResultGrid optimised, which it says in no public way."""
    analysis = getattr(results, "_experiment_analysis", None)
    metric, mode = (getattr(analysis, f"default_{name}", None) for name in ("metric", "mode"))
    return metric if isinstance(metric, str) else None, mode if isinstance(mode, str) else None


def mode_of(scheduler: Any) -> str | None:
    """Find the mode of a scheduler, or of the one that it wraps."""
    mode: str | None = None
    while mode is None and scheduler is not None:
        mode = getattr(scheduler, "_mode", None)
        scheduler = getattr(scheduler, "_base_scheduler", None)
    return mode


def has_started(tune_controller: Any, trial: Any) -> bool:
    """Whether a trial that is still called pending has its actor already."""
    controller = _unwrapped(tune_controller)
    return controller._trial_to_actor.get(trial) in controller._actor_manager.live_actors


def order_unstarted(tune_controller: Any, place: Callable[[Any], Any]) -> None:
    """Have Tune start trials that wait in an order: it asks for their actors all at once."""
    controller = _unwrapped(tune_controller)
    controller._pending_trials_list.sort(key=place)
    trial_of = controller._actor_to_trial
    # Which of them an actor is made for is settled when there are resources for it.
    for actors in controller._actor_manager._resource_request_to_pending_actors.values():
        actors.sort(key=lambda actor: place(trial_of.get(actor)))


def write_result(trial: Any, result: Mapping[str, Any]) -> None:
    """Write a result where Tune's own logger does: Tune warns at the end of trials without one."""
    from ray.air._internal.json import SafeFallbackEncoder
    from ray.air.constants import EXPR_RESULT_FILE

    trial.init_local_path()
    line = json.dumps(result, cls=SafeFallbackEncoder) + "\n"
    # In place: Tune copies this folder all the while, and fails if a file is renamed then.
    Path(trial.local_path, EXPR_RESULT_FILE).write_text(line)


def end_unstarted(tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
    """End a trial that has not started as one that has finished.

    No public call does so without telling loggers, which know nothing of it.
    """
    controller = _unwrapped(tune_controller)
    trial.update_last_result(result)
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
    if trial in controller._pending_trials:
        controller._schedule_trial_stop(trial)
    else:
        # It is being added: the controller files it by its status afterwards.
        trial.set_status(trial.TERMINATED)
    controller.get_live_trials().discard(trial)
    controller._mark_trial_to_checkpoint(trial)
    # Frees the searcher's slot, where trials at a time are limited.
    controller.search_alg.on_trial_complete(trial.trial_id)


def own_space(searcher: Any) -> dict[str, Any]:
    """Find the search space that an OptunaSearch was made with, as Tune writes one."""
    from ray import tune

    space = getattr(_innermost(searcher), "_space", None)
    if not _is_a(searcher, "OptunaSearch") or not isinstance(space, dict):
        return {}
    # What is no choice cannot be counted here.
    return {
        name: tune.choice(of.choices) if hasattr(of, "choices") else tune.uniform(0, 1)
        for name, of in space.items()
    }


def is_given(searcher: Any, trial_id: str) -> bool:
    """Whether somebody has said that a search algorithm is to suggest just this."""
    base = _innermost(searcher)
    if not _is_a(searcher, "OptunaSearch"):
        return False
    trials = base._ot_study.get_trials(deepcopy=False)
    return "fixed_params" in trials[base._ot_trials[trial_id].number].system_attrs


def told_of(
    searcher: Any, trial_id: str, suggested: Mapping[str, Any], pair: Mapping[str, Any]
) -> dict[str, Any]:
    """Have a search algorithm take another pair for the one that it suggested.

    OptunaSearch and HyperOptSearch know the trial by its new pair from here on. Other algorithms
    cannot be told, and go on with what they suggested.

    Parameters
    ----------
    searcher : ray.tune.search.Searcher
    trial_id : str
        Under which it suggested.
    suggested : mapping
        Nested.
    pair : mapping of str to value
        Parameters of the new pair, nested ones as ``a/b``.

    Returns
    -------
    dict
        The suggestion with the new pair.
    """
    changed = dict(suggested)
    for name, value in pair.items():
        changed = with_value(changed, name, value)
    base = _innermost(searcher)
    if _is_a(searcher, "OptunaSearch"):
        from optuna.trial import TrialState

        before = base._ot_trials.pop(trial_id)
        known = {name: value for name, value in pair.items() if name in before.params}
        # It takes what is enqueued for its next trial, under the name of this one.
        base._ot_study.enqueue_trial(before.params | known)
        changed = base.suggest(trial_id)
        base._ot_study.tell(before, state=TrialState.FAIL)
    elif _is_a(searcher, "HyperOptSearch"):
        _, document = base._live_trial_mapping[trial_id]
        values = document["misc"]["vals"]
        for name in (name for name in pair if name in values):
            options = [option.obj for option in _at(base._space, name).pos_args[1:]]
            values[name] = [options.index(pair[name])]
    return changed


def _at(space: Any, name: str) -> Any:
    for key in name.split("/"):
        space = space[key]
    return space


def written_trial(trial: Any) -> list[Any]:
    """Write what makes a trial of a generator's that Tune has not been given: plain, and small."""
    return [trial.trial_id, trial.config, trial.evaluated_params, trial.experiment_tag]


def read_trial(generator: Any, written: list[Any]) -> Any:
    """Make a trial that `written_trial` wrote, of the generator's experiment."""
    from ray.tune.experiment.config_parser import _create_trial_from_spec

    iterator = generator._iterators[0]
    trial_id, config, evaluated_params, experiment_tag = written
    return _create_trial_from_spec(
        iterator.unresolved_spec | {"config": config},
        iterator.parser,
        trial_id=trial_id,
        evaluated_params=evaluated_params,
        experiment_tag=experiment_tag,
    )


def chain(searcher: Any) -> list[Any]:
    """List a search algorithm and those inside it."""
    found = [searcher]
    while hasattr(found[-1], "searcher"):
        found.append(found[-1].searcher)
    return found


def _innermost(searcher: Any) -> Any:
    return chain(searcher)[-1]


def _is_a(searcher: Any, name: str) -> bool:
    """Whether a search algorithm is of a class that not everybody has installed."""
    return any(cls.__name__ == name for cls in type(_innermost(searcher)).__mro__)


def _unwrapped(tune_controller: Any) -> Any:
    """Take the controller itself: its wrapper complains of what schedulers are not to use."""
    return getattr(tune_controller, "_tune_controller", tune_controller)
