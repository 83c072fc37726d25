"""The savings of one search as one MLflow run: what a user types.

What it must satisfy: training never waits for MLflow and never sees its errors, whatever the server
does; what is decided is on disk before it is sent; no run is ended that was not created here; and
no global state of MLflow (active run, tracking URI, environment) is changed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from transfer_pruner.answer import find_answer
from transfer_pruner.records import TrialRecord
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner.savings import Savings
from transfer_pruner.tasks import by_task
from transfer_pruner.trust import trust_of_search
from transfer_pruner_mlflow.attach import attach
from transfer_pruner_mlflow.energy import EnergyMeter
from transfer_pruner_mlflow.ledger import TRUST, TRUST_METRICS, Ledger
from transfer_pruner_mlflow.outbox import Outbox
from transfer_pruner_mlflow.report import (
    REPORT,
    artifact_name,
    copy_file,
    save_figure,
    write_report_files,
)
from transfer_pruner_mlflow.spool import (
    DEFAULT_DIRECTORY,
    Kind,
    encode_record,
    guarded,
    password_of,
    tell,
)
from transfer_pruner_mlflow.writer import Writer

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import optuna
    from matplotlib.figure import Figure

    from transfer_pruner_ray.callback import RayCallback

_CONNECT_SECONDS = 2.0


class SavingsTracker:
    """Show a search's savings as one MLflow run.

    The run gets what the search found, ``best/<target>`` as metrics and as parameters, step metrics
    ``savings/...`` after the n-th trial, ``audit/...`` if there are audit trials, the tables
    ``savings/answer``, ``savings/pairs`` and ``savings/decisions``, ``savings/report.html``, and a
    description that begins with what was found and what was saved. Trials are not runs: an
    eliminated trial costs a row, not a red cross in the list.

    Parameters
    ----------
    experiment : str, optional
        Name of the experiment to create a run in; made if it does not exist. Left out, an active
        run is written into, then the run of ``MLFLOW_RUN_ID``; if there is neither, a run is
        created in ``transfer_pruner``.
    run_name : str, optional
        Of a run that is created; left out, "learning", "elimination" or "savings", by the rule.
    tracking_uri : str, optional
        MLflow's own default if left out: the tracking URI that is set, else
        ``sqlite:///mlflow.db`` in the working directory.
    run_id : str, optional
        A run to write into, before all others. It is ended here only if a tracker created it.
    study : optuna.Study, optional
        If its storage is ``mlflow.optuna.MlflowStorage``, the study's run is written into. It also
        tells `maximize`, and why it stopped, if `StopWhenSettled` stopped it.
    rule : EliminationRule or LearningRule, optional
        What decides: its fingerprint and settings become tags, and parameters of a created run, and
        the seconds of its proxy scores are counted. Trials tell of them too.
    maximize : bool, optional
        Whether a higher value is better. Left out and no `study` given, the trials of an Optuna
        study say; where nobody does, measured gains, audit figures and what was best are left out.
    dev_sizes : int or mapping of target to int, optional
        How many examples a target's values were measured on, as for `find_answer`: the run then
        tells how sure the answer is.
    single_task_seconds, attribution_seconds : float
        Seconds spent before the search, as for `estimate_savings`.
    spool : path
        Folder of the file that everything is written to before it is sent;
        `transfer_pruner_mlflow.sync` replays it.
    close_seconds : float
        Longest wait when the search is over; half of it at most for the report.
    report : bool
        Whether to write the report, which needs matplotlib.
    energy : str, optional
        Three-letter ISO code of the country whose electricity the search uses, such as "DEU":
        codecarbon then measures energy and CO2 between entering the context and leaving it.

    Raises
    ------
    ImportError
        If mlflow is not installed, or `energy` is given and codecarbon is not.
    ValueError
        If a parameter is out of range.

    Notes
    -----
    A server that is down, hangs or fails costs one warning; what is spooled is sent when it answers
    again, by this tracker or by `sync`. Entering the context waits two seconds for MLflow at most.

    Examples
    --------
    >>> from transfer_pruner import TrialRecord
    >>> from transfer_pruner_mlflow import SavingsTracker
    >>> with SavingsTracker("news", maximize=True, report=False) as tracker:
    ...     tracker.record(TrialRecord(0, None, "news", "trained", 60.0, value=0.61))
    ...     tracker.record(TrialRecord(1, "advice", "news", "trained", 64.0, value=0.66))
    ...     tracker.record(TrialRecord(2, "weather", "news", "eliminated", 0.0))
    >>> tracker.savings().trials_eliminated
    1
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        run_id: str | None = None,
        study: optuna.Study | None = None,
        rule: EliminationRule | LearningRule | None = None,
        maximize: bool | None = None,
        dev_sizes: int | Mapping[str, int] | None = None,
        single_task_seconds: float = 0.0,
        attribution_seconds: float = 0.0,
        spool: str | os.PathLike[str] = DEFAULT_DIRECTORY,
        close_seconds: float = 60.0,
        report: bool = True,
        energy: str | None = None,
    ) -> None:
        try:
            # Here and not in the writer: two threads that import at once can meet in a cycle.
            from mlflow import MlflowClient  # noqa: F401
        except ImportError as error:
            # A bare `import mlflow` would find a folder of that name in the working directory.
            raise ImportError(
                "SavingsTracker needs mlflow: pip install 'transfer-pruner[mlflow]'."
            ) from error
        # With mlflow, which our own import must not load.
        from transfer_pruner_mlflow.run import SEARCH, rule_params, rule_tags

        if not close_seconds >= 0:
            raise ValueError(f"close_seconds cannot be negative but got {close_seconds}.")
        self._meter = EnergyMeter(energy) if energy is not None else None
        self._attachment = attach(experiment, run_id, tracking_uri, study)
        self.experiment = self._attachment.experiment
        tags = rule_tags(rule)
        self.run_name = run_name = run_name or tags.get(SEARCH, "savings")
        self.tracking_uri = tracking_uri
        self.single_task_seconds = single_task_seconds
        self.attribution_seconds = attribution_seconds
        self.close_seconds = close_seconds
        self.rule = rule
        self.maximize = maximize
        if maximize is None and study is not None and len(study.directions) == 1:
            self.maximize = study.direction.name == "MAXIMIZE"
        if dev_sizes is not None:
            of = dev_sizes if isinstance(dev_sizes, Mapping) else {"every target": dev_sizes}
            find_answer([], dev_sizes=of)  # what is wrong is told here
        if isinstance(dev_sizes, Mapping):
            named = by_task(dev_sizes, "dev_sizes")
            dev_sizes = {target: int(size) for target, size in named.items()}
        self._dev_sizes = dev_sizes
        self._report, self._energy = report, energy
        self._study = study
        settings = {
            "experiment": self.experiment,
            "run_name": run_name,
            "maximize": self.maximize,
            "dev_sizes": self._dev_sizes,
            "single_task_seconds": single_task_seconds,
            "attribution_seconds": attribution_seconds,
            "scoring_seconds": rule.scoring_seconds if rule is not None else 0.0,
            "tags": tags,
            "params": rule_params(rule),
        }
        self._outbox = Outbox(Path(spool).absolute(), self._attachment, settings)
        self._writer: Writer | None = None
        self._artifacts: set[str] = set()
        self._ending: dict[str, Any] = {}

    @property
    def run_id(self) -> str | None:
        """The run; None until MLflow has answered, which may be after the context is left."""
        return self._writer.run_id if self._writer is not None else self._attachment.run_id

    @property
    def experiment_id(self) -> str | None:
        """The run's experiment; None until MLflow has answered."""
        return self._writer.experiment_id if self._writer is not None else None

    @property
    def spool(self) -> Path:
        """The file that all is written to first; its folder, until the context is entered."""
        file = self._outbox.file
        return file.path if file is not None else self._outbox.folder

    @property
    def entered(self) -> bool:
        """Whether the context was entered, and maybe left."""
        return self._outbox.file is not None

    @property
    def closed(self) -> bool:
        """Whether the context was left: what is recorded now is not shown."""
        return self._writer is not None and self._writer.closing.is_set()

    def arguments(self) -> dict[str, Any]:
        """Say how to make a tracker that goes on in this one's run; without a password."""
        uri = self._attachment.tracking_uri
        return {
            "experiment": self.experiment,
            "run_name": self.run_name,
            "tracking_uri": None if password_of(uri) else uri,
            "run_id": self.run_id,
            "rule": self.rule,
            "maximize": self.maximize,
            "dev_sizes": self._dev_sizes,
            "single_task_seconds": self.single_task_seconds,
            "attribution_seconds": self.attribution_seconds,
            "spool": self._outbox.folder,
            "close_seconds": self.close_seconds,
            "report": self._report,
            "energy": self._energy,
        }

    def __enter__(self) -> Self:
        file, run_id = self._outbox.open()
        uri = self._attachment.tracking_uri
        self._writer = Writer(file, uri, self._outbox.settings, run_id)
        self._writer.start()
        if self._meter is not None:
            guarded(self._meter.start, "energy cannot be measured")
        self._writer.connected.wait(_CONNECT_SECONDS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED"
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            status = "KILLED"
        assert self._writer is not None
        deadline = time.monotonic() + self.close_seconds
        if kind is None:
            self._read_ending()
        self._conclude(self.close_seconds / 2)
        self._append("closed", {"status": status})
        self._writer.close(max(0.0, deadline - time.monotonic()))
        missing = self._outbox.missing(self._writer.unstored)
        if missing:
            tell(missing)

    def record(self, record: TrialRecord) -> None:
        """Take the record of one trial; returns at once, from any thread, and never raises.

        A record with the number and the pair of an earlier one replaces it, so a study can be
        replayed. A trial may have a second one, of a pair that was proposed for it and eliminated.
        """
        guarded(lambda: self._append("trial", encode_record(record)))

    def savings(self) -> Savings:
        """Estimate the savings of the trials so far: all that the run shows, or is going to."""
        return self._ledger().savings()

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write further figures into the run; those that are no finite number are left out.

        Raises
        ------
        ValueError
            If a name is one that MLflow refuses; nothing is written then.
        """
        from transfer_pruner_mlflow._private import refused_name

        named = {str(name): value for name, value in metrics.items()}
        for name in named:
            why = refused_name(name)
            if why is not None:
                raise ValueError(
                    f"metrics names {name!r}, which MLflow refuses; for 'MAP@10' write 'MAP_10', "
                    f"say. {why}"
                )
        finite: dict[str, float] = {}
        for name, value in named.items():
            try:
                number = float(value)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                tell(f"left out of MLflow: {why}; it is the metric {name!r}.")
            else:
                if math.isfinite(number):
                    finite[name] = number
        guarded(lambda: self._append("metrics", finite))

    def log_figure(self, figure: Figure, artifact: str) -> None:
        """Write a figure of matplotlib or plotly into the run, e.g. as ``"savings/pairs.png"``.

        A figure of plotly becomes a page of its own, ``.html``, that needs no network.
        """
        name = artifact_name(artifact)
        guarded(lambda: self._put(name, save_figure, figure))

    def log_report(
        self, path: str | os.PathLike[str], artifact: str = "savings/report.html"
    ) -> None:
        """Put a file, such as a self-contained report, into the run.

        Parameters
        ----------
        path : path
            Copied now; the run gets it when the tracker is closed.
        artifact : str
            Its name in the run.

        Raises
        ------
        ValueError
            If there is no such file, or the name is no relative one.
        """
        if not Path(path).is_file():
            raise ValueError(f"path is {str(path)!r}, which is no file.")
        name = artifact_name(artifact)
        guarded(lambda: self._put(name, copy_file, path))

    def log_ending(
        self, *, exhaustive_trials: int | None = None, stopped: str | None = None
    ) -> None:
        """Say why the search ended and what it never started: `savings` and the run then tell it.

        Of an Optuna study ``tracker.log_ending(**ending_from_study(study))``. A tracker that was
        given the study does so itself where `StopWhenSettled` has stopped it.

        Parameters
        ----------
        exhaustive_trials, stopped
            As for `transfer_pruner.estimate_savings`.
        """
        self._ending = {"exhaustive_trials": exhaustive_trials, "stopped": stopped}
        guarded(lambda: self._append("ending", self._ending))

    def ray_callback(
        self,
        metric: str | None = None,
        *,
        source_param: str | Sequence[str] = "source",
        target_param: str = "target",
        target: str | None = None,
        min_iterations: int = 0,
    ) -> RayCallback:
        """Make a callback of Ray Tune's that records every trial as it ends.

        For ``tune.RunConfig(callbacks=[tracker.ray_callback("f1")])``. It goes with any scheduler,
        searcher or other callback. After ``Tuner.restore`` it goes on in the same run, with or
        without a tracker that is open.

        Parameters
        ----------
        metric : str, optional
            The reported metric that is the records' value; left out, they have none. Whether a
            higher one is better, the tracker's `maximize` says.
        source_param, target_param, target, min_iterations
            As for `transfer_pruner_ray.records_from_results`.

        Raises
        ------
        ImportError
            If ray is not installed.
        """
        from transfer_pruner_ray.callback import RayCallback

        return RayCallback(
            self,
            metric,
            source_param=source_param,
            target_param=target_param,
            target=target,
            min_iterations=min_iterations,
        )

    # What is written at the end.

    def _read_ending(self) -> None:
        """Take from the study why it stopped, unless that was told."""
        if self._study is None or self._ending:
            return
        try:
            from transfer_pruner_optuna import ending_from_study

            ending = ending_from_study(self._study)
        except Exception as error:
            tell(f"why the search ended is not known: {type(error).__name__}: {error}")
        else:
            # Where only its budget ended it, the search without elimination is no longer either.
            if ending["stopped"]:
                self.log_ending(**ending)

    def _conclude(self, seconds: float) -> None:
        """Write energy and the report, in a thread of their own to wait no longer than told to."""
        failures: list[str] = []
        thread = threading.Thread(
            target=self._write_last, args=(failures,), name="savings-report", daemon=True
        )
        thread.start()
        thread.join(seconds)
        # What it finds after that, nobody hears of.
        if thread.is_alive():
            failures = [f"the report is left out: it took longer than {seconds:.1f} s."]
        for failure in failures:
            tell(failure)

    def _write_last(self, failures: list[str]) -> None:
        meter, ledger = self._meter, self._ledger()
        if meter is not None:
            try:
                self.log_metrics(meter.stop(ledger.savings()))
            except Exception as error:
                failures.append(f"energy is left out: {type(error).__name__}: {error}")
        if self.rule is not None and ledger.maximize is not None:
            try:
                trust = trust_of_search(ledger.records(), self.rule, maximize=ledger.maximize)
                if trust is not None and trust.n_pairs:
                    self.log_metrics({TRUST + name: getattr(trust, name) for name in TRUST_METRICS})
            except Exception as error:
                failures.append(f"trust is left out: {type(error).__name__}: {error}")
        if self._report and REPORT not in self._artifacts:
            files = write_report_files(ledger, self._outbox.copies(), self.rule, failures)
            for artifact, file in files.items():
                self._announce(artifact, file)

    def _ledger(self) -> Ledger:
        """Read again what was recorded."""
        ledger = Ledger(self._outbox.events)
        ledger.settings, ledger.ending = self._outbox.settings, self._ending
        return ledger

    # In the caller's thread.

    def _append(self, kind: Kind, data: dict[str, Any]) -> None:
        if not self.closed:
            self._outbox.append(kind, data)

    def _put(self, artifact: str, write: Callable[[Any, Path], None], what: Any) -> None:
        file = self._outbox.copies() / artifact
        write(what, file)
        self._announce(artifact, file)

    def _announce(self, artifact: str, file: Path) -> None:
        self._artifacts.add(artifact)
        self._append("artifact", {"artifact": artifact, "file": str(file)})
