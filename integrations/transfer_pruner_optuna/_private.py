"""All of Optuna's private API that the adapters use.

What it must satisfy: where a version of Optuna lacks one of these, the adapters do the same by
public calls, or do without.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState


def whole_study(study: optuna.Study) -> optuna.Study:
    """Find the study itself where HyperbandPruner shows samplers the trials of one bracket."""
    whole: optuna.Study = getattr(study, "_study", study)
    return whole


def read_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Read a study's trials from its storage, for the samplers of this thread's trial too."""
    if (here := getattr(study, "_thread_local", None)) is not None:
        here.cached_all_trials = None
    return study._get_trials(deepcopy=False, use_cache=True)


def trials_read(study: optuna.Study) -> list[FrozenTrial]:
    """Find the trials that were read last in this thread's trial; read them if none were.

    The same list until the trial ends or they are read anew: what has changed since is not in it.
    """
    return study._get_trials(deepcopy=False, use_cache=True)


class SeenStudy:
    """A study whose trials look otherwise to a sampler; all else is the study's own.

    Parameters
    ----------
    study : optuna.Study
        Or what HyperbandPruner shows in its place.
    seen : callable of a list of FrozenTrial to such a list
    """

    def __init__(
        self, study: optuna.Study, seen: Callable[[list[FrozenTrial]], list[FrozenTrial]]
    ) -> None:
        self._seen_of, self._seen = study, seen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_seen_of" not in self.__dict__:
            # A copy that is being made has nothing of its own yet.
            raise AttributeError(name)
        return getattr(self._seen_of, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All of the study's trials."""
        return self.get_trials()

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All of the study's trials, or those in some states."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return self._seen(self._seen_of._get_trials(deepcopy, states, use_cache))


def study_key(study: optuna.Study) -> Hashable:
    """Tell studies apart: by storage and id, since names are used again."""
    return id(study._storage), study._study_id, study.study_name


def keeps_order(study: optuna.Study) -> bool:
    """Whether the storage gives a trial's parameters back in the order of their suggestion."""
    # gRPC's messages hold them in a map, which has none.
    return type(study._storage).__name__ != "GrpcStorageProxy"


def first_number(trial: Trial | FrozenTrial) -> int:
    """Find a trial's number; of one that died and is run again, that of the first try."""
    live: Any = getattr(trial, "_cached_frozen_trial", trial)
    first: int = live.system_attrs.get("failed_trial", trial.number)
    return first


def write_attributes(
    study: optuna.Study, trial: Trial | FrozenTrial, attributes: Mapping[str, Any]
) -> None:
    """Write user attributes of a trial that runs, all in one transaction where the storage can.

    On a database each one costs more than deciding. Optuna hands samplers and pruners a frozen
    trial, on which no public call can write; the live trial shares its attributes while it runs.
    """
    if not attributes:
        return
    storage = study._storage
    try:
        _write_together(storage, trial._trial_id, attributes)
    except (AttributeError, TypeError, ImportError):
        for key, value in attributes.items():
            storage.set_trial_user_attr(trial._trial_id, key, value)
    live = getattr(trial, "_cached_frozen_trial", trial)
    for key, value in attributes.items():
        live.user_attrs[key] = value


def _write_together(storage: Any, trial_id: int, attributes: Mapping[str, Any]) -> None:
    if isinstance(storage, JournalStorage):
        from optuna.storages.journal._storage import JournalOperation

        with storage._thread_lock:
            worker = {"worker_id": storage._replay_result.worker_id}
            code = {"op_code": int(JournalOperation.SET_TRIAL_USER_ATTR)}
            logs = [
                {**code, **worker, "trial_id": trial_id, "user_attr": {key: value}}
                for key, value in attributes.items()
            ]
            storage._backend.append_logs(logs)
            storage._sync_with_backend()
        return
    backend: Any = getattr(storage, "_backend", storage)
    if not isinstance(backend, RDBStorage):
        raise TypeError(f"{type(storage).__name__} writes one attribute at a time.")
    from optuna.storages._rdb import models
    from optuna.storages._rdb.storage import _create_scoped_session

    with _create_scoped_session(backend.scoped_session, True) as session:
        for key, value in attributes.items():
            backend._set_trial_attr_without_commit(
                session, models.TrialUserAttributeModel, trial_id, key, value
            )


def write_system_attribute(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write what is for samplers of other processes, of a trial that runs."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def enqueued_params(trial: FrozenTrial) -> dict[str, Any]:
    """Find the parameters that a trial was enqueued with."""
    return dict(trial.system_attrs.get("fixed_params", {}))


def fixed_params(trial: Trial) -> dict[str, Any]:
    """Find the parameters that were enqueued for a live trial, or fixed by `fix_param`."""
    fixed: dict[str, Any] = getattr(trial, "_fixed_params", {})
    return fixed


def fix_param(trial: Trial, name: str, value: Any) -> None:
    """Let a live trial suggest a value, without asking the sampler."""
    trial.__dict__["_fixed_params"] = {**fixed_params(trial), name: value}


class _Tolerant:
    """A user's constraints_func that knows trials whose objective never ran."""

    def __init__(self, constraints_func: Any, is_eliminated: Any) -> None:
        self.constraints_func = constraints_func
        self._is_eliminated = is_eliminated
        self._count = 1

    def __call__(self, trial: FrozenTrial) -> Any:
        try:
            constraints = self.constraints_func(trial)
        except Exception:
            if not self._is_eliminated(trial):
                raise
            # As infeasible as can be said: a trial that did not run satisfies nothing.
            return (1.0,) * self._count
        self._count = len(constraints)
        return constraints


def tolerate_eliminated_trials(sampler: BaseSampler, is_eliminated: Any) -> None:
    """Let a sampler's constraints_func fail on eliminated trials, which count as infeasible.

    It reads what the objective stored, and an eliminated trial's objective stored nothing. Optuna
    calls it all the same, and its error would end the search.
    """
    holders = [sampler, getattr(sampler, "_after_trial_strategy", None)]
    holders += [getattr(holder, "_base_sampler", None) for holder in holders[:1]]
    holders += [getattr(holders[-1], "_after_trial_strategy", None)]
    for holder in holders:
        function = getattr(holder, "_constraints_func", None)
        if function is not None and not isinstance(function, _Tolerant):
            holder._constraints_func = _Tolerant(function, is_eliminated)  # type: ignore[union-attr]
