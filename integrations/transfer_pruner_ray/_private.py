"""All of Ray's private API that the adapters use.

What it must satisfy: importing it loads no Ray, since reading an experiment needs none; the tests
run all of it on both ends of the range of versions that pyproject.toml claims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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


def _unwrapped(tune_controller: Any) -> Any:
    """Take the controller itself: its wrapper complains of what schedulers are not to use."""
    return getattr(tune_controller, "_tune_controller", tune_controller)
