"""Regressions of ours are no experiments of the user's: `mlflow.autolog()` passes them over.

What it must satisfy: nothing is imported and nothing is configured; the user's own fits are logged
as before, in other threads at the same time too; and where MLflow is not loaded it costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

_MODULE = "mlflow.utils.autologging_utils"
_SWITCH = "_AUTOLOGGING_GLOBALLY_DISABLED"

# Each thread has its own.
_ours: ContextVar[bool] = ContextVar("fits_of_ours", default=False)


@contextmanager
def unlogged() -> Iterator[None]:
    """Fit what is fitted in this context, in this thread, without autologging.

    Every fit of an estimator in this package belongs into it: MLflow patches the estimators of
    scikit-learn, XGBoost and others, and each fit would become a run, or parameters and metrics of
    the run that is active.
    """
    _watch()
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def _watch() -> None:
    """Have MLflow's switch for the whole process answer for each thread.

    MLflow offers `disable_autologging`, which turns the user's fits in other threads off as well
    and, when it ends in one thread, ends in all of them.
    """
    module = sys.modules.get(_MODULE)
    if module is not None and _SWITCH in vars(module) and type(module) is ModuleType:
        module.__class__ = _SwitchOfEachThread


class _SwitchOfEachThread(ModuleType):
    """MLflow's module; what it writes into its own switch holds as before."""

    def _get(self) -> bool:
        return _ours.get() or bool(vars(self)[_SWITCH])

    def _set(self, disabled: bool) -> None:
        vars(self)[_SWITCH] = disabled


setattr(_SwitchOfEachThread, _SWITCH, property(_SwitchOfEachThread._get, _SwitchOfEachThread._set))
