"""One search as one MLflow run.

What it must satisfy: whatever is interrupted and repeated, there is one run, each point once, and
tables written whole; and a run that was not created here keeps its status, its description and its
parameters.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from transfer_pruner_mlflow.ledger import NOTE_ENDS, Ledger, Point

SPOOL = "transfer_pruner.spool"
_NOTE = "mlflow.note.content"
_TABLES = "mlflow.loggedArtifacts"
_BATCH = 1000


class SavingsRun:
    """Find or create the run of a spool and write into it; every method raises what MLflow raises.

    Parameters
    ----------
    client : MlflowClient
    settings : dict
        A spool's "run" event.
    spool_id : str
    run_id : str, optional
        The run that an earlier session created.
    uncertain : bool
        Whether points may have been sent before: then the store is asked which.

    Attributes
    ----------
    run_id, experiment_id : str
    sent, already_there : int
        Points.
    """

    def __init__(
        self,
        client: MlflowClient,
        settings: dict[str, Any],
        spool_id: str,
        *,
        run_id: str | None = None,
        uncertain: bool = False,
    ) -> None:
        self._client = client
        self._owned = settings["run_id"] is None
        self._uncertain = uncertain
        self.sent = self.already_there = 0
        run = self._find(settings, spool_id, run_id)
        if run is None:
            run = self._create(settings, spool_id)
        elif uncertain or not self._owned:
            self._describe(run, settings)
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id

    def send(self, points: Sequence[Point]) -> None:
        """Send points; after a failure the same ones may be sent again."""
        if not points:
            return
        if self._uncertain:
            new = self._new(points)
            self.already_there += len(points) - len(new)
            points = new
        # What a batch that fails has left behind, nobody knows.
        self._uncertain = True
        remaining = iter(points)
        while batch := list(islice(remaining, _BATCH)):
            metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in batch]
            self._client.log_batch(self.run_id, metrics=metrics)
            self.sent += len(batch)
        self._uncertain = False

    def summarise(self, ledger: Ledger) -> None:
        """Write the tables, the description and the artifacts."""
        for artifact, file in ledger.artifacts.items():
            # Not there on another machine, or after somebody tidied up.
            if Path(file).is_file():
                folder, _, _ = artifact.rpartition("/")
                self._client.log_artifact(self.run_id, file, folder or None)
        if not ledger.decided:
            return
        tags = self._client.get_run(self.run_id).data.tags
        if NOTE_ENDS in tags.get(_NOTE, NOTE_ENDS):
            self._client.set_tag(self.run_id, _NOTE, ledger.note())
        pairs = ledger.pairs_table()
        # Not log_table: it appends to a table that is there.
        self._client.log_text(
            self.run_id, pairs.to_json(orient="split", index=False), "savings/pairs.json"
        )
        known = json.loads(tags.get(_TABLES, "[]"))
        table = {"path": "savings/pairs.json", "type": "table"}
        if table not in known:
            self._client.set_tag(self.run_id, _TABLES, json.dumps([*known, table]))
        for name, contents in (("pairs", pairs), ("decisions", ledger.decisions_table())):
            csv = contents.to_csv(index=False)
            self._client.log_text(self.run_id, csv, f"savings/{name}.csv")

    def end(self, status: str) -> None:
        """End the run if it was created here."""
        if self._owned:
            self._client.set_terminated(self.run_id, status)

    def _find(self, settings: dict[str, Any], spool_id: str, run_id: str | None) -> Run | None:
        wanted = settings["run_id"] or run_id
        if wanted is not None:
            try:
                return self._client.get_run(wanted)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not self._owned:
                    raise
        # One may have been created and its answer lost.
        name = self._experiment_name(settings)
        names = (name, _beside(name))
        found = [self._client.get_experiment_by_name(name) for name in names]
        experiments = [experiment.experiment_id for experiment in found if experiment is not None]
        if not experiments:
            return None
        runs = self._client.search_runs(experiments, f"tags.`{SPOOL}` = '{spool_id}'")
        return runs[0] if runs else None

    def _create(self, settings: dict[str, Any], spool_id: str) -> Run:
        name = self._experiment_name(settings)
        experiment_id = self._experiment(name)
        if self._holds_a_study(experiment_id):
            # Any other run in the experiment breaks an Optuna study that MLflow stores there.
            experiment_id = self._experiment(_beside(name))
        tags = {SPOOL: spool_id, **settings["tags"]}
        parent = settings["parent_run_id"]
        # In another experiment the list would show neither beneath the other.
        if parent and self._client.get_run(parent).info.experiment_id == experiment_id:
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(experiment_id, tags=tags, run_name=settings["run_name"])
        self._describe(run, settings)
        return run

    def _describe(self, run: Run, settings: dict[str, Any]) -> None:
        # Parameters of somebody else's run are theirs: a name that is taken cannot be written. Nor
        # can one of ours, by a search that goes on with another rule.
        params = settings["params"] if self._owned else {}
        new = {key: value for key, value in params.items() if key not in run.data.params}
        self._client.log_batch(
            run.info.run_id,
            params=[Param(key, value) for key, value in new.items()],
            tags=[RunTag(key, value) for key, value in settings["tags"].items()],
        )

    def _experiment_name(self, settings: dict[str, Any]) -> str:
        """Name the experiment: the parent's, where a run could not be shared."""
        if not settings["beneath"]:
            return str(settings["experiment"])
        parent = self._client.get_run(settings["parent_run_id"])
        return str(self._client.get_experiment(parent.info.experiment_id).name)

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:
            # Another process was faster.
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _holds_a_study(self, experiment_id: str) -> bool:
        studies = "tags.`optuna.study_direction` LIKE '%'"
        return bool(self._client.search_runs([experiment_id], studies, max_results=1))

    def _new(self, points: Sequence[Point]) -> list[Point]:
        """Leave out the points that the store has."""
        there = defaultdict(set)
        for key in {point.key for point in points}:
            for metric in self._client.get_metric_history(self.run_id, key):
                there[key].add((metric.step, metric.timestamp))
        return [p for p in points if (p.step, p.timestamp) not in there[p.key]]


def _beside(experiment: str) -> str:
    return f"{experiment}-savings"
