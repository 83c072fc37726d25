"""The savings of one search as one MLflow run, written by a thread of its own.

What it must satisfy: training never waits for MLflow and never sees its errors; no run is ended
that was not created here; and no global state of MLflow (active run, tracking URI) is changed.
"""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from transfer_pruner.embedding import TransferPrunerWarning
from transfer_pruner.savings import Savings, TrialRecord, estimate_savings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

_FLUSH_SECONDS = 2.0
_CLOSE_SECONDS = 60.0


class SavingsTracker:
    """Show a search's savings as one MLflow run.

    The run gets step metrics ``savings/...`` after the n-th trial, the table ``savings/pairs.json``
    and ``savings/pairs.csv``, and a description whose first line is the headline. Trials are not
    runs: an eliminated trial costs a row, not a red cross in the list.

    Parameters
    ----------
    experiment : str
        Name of the experiment; made if it does not exist.
    run_name : str
    tracking_uri : str, optional
        MLflow's own default if left out: the tracking URI that is set, else
        ``sqlite:///mlflow.db`` in the working directory.
    run_id : str, optional
        A run to write into. It is not ended here. Left out, a run is created and ended.
    single_task_seconds, attribution_seconds : float
        Seconds spent before the search, as for `estimate_savings`.

    Attributes
    ----------
    run_id, experiment_id : str
        After entering the context.

    Raises
    ------
    ImportError
        If mlflow is not installed.

    Notes
    -----
    Connecting happens on entering the context, in the caller's thread, and raises what MLflow
    raises: a wrong address is better learnt before the search than after it. Later errors become
    warnings.
    """

    def __init__(
        self,
        experiment: str = "transfer_pruner",
        *,
        run_name: str = "savings",
        tracking_uri: str | None = None,
        run_id: str | None = None,
        single_task_seconds: float = 0.0,
        attribution_seconds: float = 0.0,
    ) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            # A bare `import mlflow` would find a folder of that name in the working directory.
            raise ImportError(
                "SavingsTracker needs mlflow: pip install 'transfer-pruner[mlflow]'."
            ) from error
        self.experiment = experiment
        self.run_name = run_name
        self.tracking_uri = tracking_uri
        self.run_id = run_id
        self.experiment_id: str | None = None
        self.single_task_seconds = single_task_seconds
        self.attribution_seconds = attribution_seconds
        self._client: MlflowClient = MlflowClient(tracking_uri=tracking_uri)
        self._owns_run = run_id is None
        self._records: dict[int, TrialRecord] = {}
        self._unwritten, self._closing = threading.Event(), threading.Event()
        # A daemon, so that a server that hangs cannot keep the user's process from ending.
        self._writer = threading.Thread(target=self._write, name="savings-tracker", daemon=True)

    def __enter__(self) -> Self:
        if self.run_id is None:
            experiment = self._client.get_experiment_by_name(self.experiment)
            self.experiment_id = (
                experiment.experiment_id
                if experiment is not None
                else self._client.create_experiment(self.experiment)
            )
            run = self._client.create_run(self.experiment_id, run_name=self.run_name)
            self.run_id = run.info.run_id
        else:
            self.experiment_id = self._client.get_run(self.run_id).info.experiment_id
        self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._writer.join(_CLOSE_SECONDS)
        if self._writer.is_alive():
            self._warn(f"MLflow did not answer for {_CLOSE_SECONDS:.0f} s; its run is incomplete.")
            return
        self._guarded(self._write_summary)
        if self._owns_run:
            status = "FINISHED" if kind is None else "KILLED" if _interrupted(kind) else "FAILED"
            self._guarded(lambda: self._client.set_terminated(str(self.run_id), status))

    def record(self, record: TrialRecord) -> None:
        """Take the record of one trial; returns at once, from any thread, and never raises.

        A record with the number of an earlier one replaces it, so a study can be replayed.
        """
        self._records[record.number] = record
        self._unwritten.set()

    def savings(self) -> Savings:
        """Estimate the savings of the trials recorded so far."""
        return estimate_savings(
            list(self._records.values()),
            single_task_seconds=self.single_task_seconds,
            attribution_seconds=self.attribution_seconds,
        )

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Write further figures into the run; MLflow's errors become warnings."""
        self._guarded(lambda: self._log_metrics(metrics, len(self._records)))

    def log_figure(self, figure: Figure, artifact: str) -> None:
        """Write a matplotlib figure into the run, e.g. as ``"savings/pairs.png"``."""
        self._guarded(lambda: self._client.log_figure(str(self.run_id), figure, artifact))

    def _write(self) -> None:
        """Write the metrics every moment in which trials were recorded, until closed."""
        closing = False
        while not closing:
            closing = self._closing.wait(_FLUSH_SECONDS)
            if self._unwritten.is_set():
                self._unwritten.clear()
                self._guarded(self._write_metrics)

    def _write_metrics(self) -> None:
        savings = self.savings()
        step = savings.trials_trained + savings.trials_eliminated + savings.trials_failed
        self._log_metrics(savings.metrics(), step)

    def _log_metrics(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(str(self.run_id), metrics=entities)

    def _write_summary(self) -> None:
        run_id = str(self.run_id)
        savings = self.savings()
        self._client.set_tag(run_id, "mlflow.note.content", _note(savings))
        if self._records:
            table = _pairs_table(list(self._records.values()))
            self._client.log_table(run_id, table, "savings/pairs.json")
            self._client.log_text(run_id, table.to_csv(index=False), "savings/pairs.csv")

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except Exception as error:
            self._warn(f"MLflow could not be written to: {type(error).__name__}: {error}")

    def _warn(self, message: str) -> None:
        warnings.warn(message, TransferPrunerWarning, stacklevel=3)


def _interrupted(kind: type[BaseException]) -> bool:
    return issubclass(kind, KeyboardInterrupt)


def _pairs_table(records: list[TrialRecord]) -> pd.DataFrame:
    """One row a pair: decision, score, probability, reason, trials, best value, seconds."""
    trials = pd.DataFrame([asdict(record) for record in records])
    trials["source"] = trials["source"].fillna("")
    pairs = trials.groupby(["source", "target"], as_index=False).agg(
        decision=("outcome", lambda outcomes: "/".join(sorted(set(outcomes)))),
        score=("score", "first"),
        probability=("probability", "first"),
        reason=("reason", "first"),
        trials=("number", "size"),
        best_value=("value", "max"),
        seconds=("seconds", "sum"),
    )
    pairs = pairs.sort_values(["target", "score"], ascending=[True, False], ignore_index=True)
    # JSON has no NaN: the UI shows an empty cell for a missing number.
    return pairs.astype(object).where(pairs.notna(), None)


def _note(savings: Savings) -> str:
    return (
        f"**{savings.headline()}**\n\n"
        "| | seconds | |\n|---|---:|---|\n"
        f"| single-task training | {savings.single_task_seconds:.1f} | measured |\n"
        f"| attribution | {savings.attribution_seconds:.1f} | measured |\n"
        f"| {savings.trials_trained} trials that trained | {savings.training_seconds:.1f} "
        "| measured |\n"
        f"| {savings.trials_eliminated} eliminated trials, deciding "
        f"| {savings.deciding_seconds:.1f} | measured |\n"
        f"| exhaustive search | {savings.estimated_exhaustive_seconds:.1f} | estimated |\n\n"
        "Charts: metrics under `savings/`. Every pair with its reason: `savings/pairs.csv`. "
        "What is named `estimated_` rests on a cost model over the trials that trained, since an "
        "eliminated trial never ran."
    )
