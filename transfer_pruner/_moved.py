"""Where the modules of 0.1 went: an import by the old name works, and warns."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "checkpoints": "text.checkpoints",
    "calibration": "rule.calibration",
    "decisions": "rule.decision",
    "explanation": "explain.explanation",
    "layers": "attribution.layers",
    "learning": "rule.learning",
    "many": "text.store",
    "plotting_explanation": "plotting.explanation",
    "plotting_pairs": "plotting.pairs",
    "plotting_search": "plotting.search",
    "plotting_style": "plotting.style",
    "plotting_tasks": "plotting.tasks",
    "plotting_tradeoff": "plotting.tradeoff",
    "ranking": "rule.ranking",
    "report_html": "report.html",
    "sweep": "attribution.methods",
    "targets": "attribution.outputs",
}


class _Moved(MetaPathFinder, Loader):
    """Finds the modules of 0.1 that nothing else finds, and fills them with what moved."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        is_ours = package == __package__ and name in MOVED
        return ModuleSpec(fullname, self) if is_ours else None

    def exec_module(self, module: ModuleType) -> None:
        package, _, name = module.__name__.partition(".")
        new = f"{package}.{MOVED[name]}"
        warnings.warn(
            f"{module.__name__} is {new} since 0.2; the old name goes in 0.4.",
            DeprecationWarning,
            stacklevel=2,
        )
        names = vars(import_module(new)).items()
        vars(module).update({key: value for key, value in names if not key.startswith("__")})


sys.meta_path.append(_Moved())
