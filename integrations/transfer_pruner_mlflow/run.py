"""One search as one MLflow run.

What it must satisfy: whatever is interrupted and repeated, there is one run, each point once, and
tables written whole; what MLflow refuses costs itself only; and a run that was not created here
keeps its status, its description and its parameters.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

import transfer_pruner
from transfer_pruner.rule.elimination import EliminationRule
from transfer_pruner.rule.learning import LearningRule
from transfer_pruner_mlflow._private import accepted_name, refused_name
from transfer_pruner_mlflow.ledger import Ledger, Point
from transfer_pruner_mlflow.note import NOTE_ENDS

SPOOL = "transfer_pruner.spool"
SEARCH = "transfer_pruner.search"
_BEST = "transfer_pruner.best/"
_TRUST = "transfer_pruner.trust"
_NOTE = "mlflow.note.content"
_TABLES = "mlflow.loggedArtifacts"
_BATCH = 1000
_MOST_PARAMS = 100
_INVALID = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
# What mends a refusal, which no later attempt does; what stands not here is taken for an outage.
_REMEDIES = dict.fromkeys(_INVALID, "mend what it names") | {
    "ENDPOINT_NOT_FOUND": "is this the address of an MLflow server?",
    "RESOURCE_DOES_NOT_EXIST": "what it names is gone, or is on another server",
    "NOT_FOUND": "what it names is gone, or is on another server",
    "PERMISSION_DENIED": "sign in as somebody who may write there",
    "UNAUTHENTICATED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "CUSTOMER_UNAUTHORIZED": "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}


class RefusedError(MlflowException):
    """What asking again does not mend; the message says what does."""


def refusal(error: Exception) -> RefusedError | None:
    """Tell a refusal, with what to do about it, from an outage, which passes."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ImportError):
        return RefusedError(f"{error}: install what is missing here")
    remedy = _REMEDIES.get(getattr(error, "error_code", ""))
    return None if remedy is None else RefusedError(f"{error} ({remedy})")


def rule_tags(rule: EliminationRule | LearningRule | None) -> dict[str, str]:
    """Take the rule's settings and fingerprint, and our version."""
    tags = {"transfer_pruner.version": transfer_pruner.__version__}
    if rule is None:
        return tags
    tags[SEARCH] = "learning" if isinstance(rule, LearningRule) else "elimination"
    tags["transfer_pruner.rule"] = json.dumps(rule.settings, default=str)[:4000]
    if isinstance(rule, EliminationRule):
        tags["transfer_pruner.rule_fingerprint"] = rule.fingerprint
    return tags


def rule_params(rule: EliminationRule | LearningRule | None) -> dict[str, str]:
    """Take the settings that tell runs apart in MLflow's comparison, if it takes their names."""
    params = {
        f"transfer_pruner.{name}": str(value)
        for name, value in (rule.settings if rule is not None else {}).items()
        if isinstance(value, (str, int, float)) and len(str(value)) <= 250
    }
    named = ((name, value) for name, value in params.items() if refused_name(name) is None)
    return dict(islice(named, _MOST_PARAMS))


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
    refused : dict of str to str
        Name of a metric to why MLflow takes no point of it, or not all.

    Raises
    ------
    RefusedError
        If the run or the experiment is gone.
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
        self.refused: dict[str, str] = {}
        run = self._find(settings, spool_id, run_id)
        if run is None:
            run = self._create(settings, spool_id)
        elif uncertain or not self._owned:
            self._describe(run, settings)
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id

    def send(self, points: Sequence[Point]) -> None:
        """Send points; after a failure the same ones may be sent again."""
        reasons = {point.key: refused_name(point.key) for point in points}
        self.refused |= {key: why for key, why in reasons.items() if why is not None}
        points = [point for point in points if reasons[point.key] is None]
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
            self._send(batch)
        self._uncertain = False

    def finish(self, ledger: Ledger) -> None:
        """Write answer and description, and end the run if it was created here."""
        if ledger.decided:
            run = self._client.get_run(self.run_id)
            self._tell_best(run, ledger)
            if NOTE_ENDS in run.data.tags.get(_NOTE, NOTE_ENDS):
                self._client.set_tag(self.run_id, _NOTE, ledger.note())
        if self._owned:
            self._client.set_terminated(self.run_id, ledger.status)

    def store(self, ledger: Ledger, stop: Callable[[], bool] = lambda: False) -> dict[str, str]:
        """Store tables and artifacts, as far as there is a place for them.

        Returns
        -------
        dict of str to str
            What was not stored, and why.
        """
        failed: dict[str, str] = {}
        passing = False
        for name, write in self._artifacts(ledger):
            if passing or stop():
                failed[name] = next(iter(failed.values()), "there was no time left")
                continue
            try:
                write()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                # Where nobody answers, each would be waited for.
                passing = isinstance(error, MlflowException) and refusal(error) is None
        return failed

    def _tell_best(self, run: Run, ledger: Ledger) -> None:
        """Write the best of each target as a parameter, or as a tag where that cannot be."""
        answer = ledger.answer()
        found = [one for one in answer.targets if one.best] if answer is not None else []
        params, tags = dict(run.data.params), {SEARCH: ledger.kind}
        if trust := ledger.trust():
            tags[_TRUST] = trust
        new: dict[str, str] = {}
        for one in found:
            key, tag = accepted_name("best/", one.target), accepted_name(_BEST, one.target)
            best = " ".join(str(one.best).split())[:500]
            # A parameter is written once: not into somebody else's run, nor before the end.
            if self._owned and ledger.status == "FINISHED" and key not in params:
                new[key] = params[key] = best
            # Where it cannot tell what is best now, a tag does, and goes on doing so.
            if params.get(key) != best or tag in run.data.tags:
                tags[tag] = best
        params_left, tags_left = iter(new.items()), iter(tags.items())
        while batch := [Param(*item) for item in islice(params_left, _MOST_PARAMS)]:
            self._client.log_batch(self.run_id, params=batch)
        while several := [RunTag(*item) for item in islice(tags_left, _MOST_PARAMS)]:
            self._client.log_batch(self.run_id, tags=several)

    def _artifacts(self, ledger: Ledger) -> Iterator[tuple[str, Callable[[], object]]]:
        """Name what belongs to the run, with what stores it."""
        client, run_id = self._client, self.run_id
        if ledger.decided:
            answer = ledger.answer()
            tables = {"pairs": ledger.pairs_table(), "decisions": ledger.decisions_table()}
            if answer is not None:
                tables = {"answer": answer.table(), **tables}
            for name, table in tables.items():
                csv, name = table.to_csv(index=False), f"savings/{name}.csv"
                yield name, partial(client.log_text, run_id, csv, name)
            for name in ("answer", "pairs") if answer is not None else ("pairs",):
                file = f"savings/{name}.json"
                yield file, partial(self._log_table, tables[name], file)
        for name, file in ledger.artifacts.items():
            # Not there on another machine, or after somebody tidied up.
            if Path(file).is_file():
                folder = name.rpartition("/")[0] or None
                yield name, partial(client.log_artifact, run_id, file, folder)

    def _log_table(self, table: pd.DataFrame, name: str) -> None:
        # Not log_table: it appends to a table that is there.
        self._client.log_text(self.run_id, table.to_json(orient="split", index=False), name)
        tags = self._client.get_run(self.run_id).data.tags
        known = json.loads(tags.get(_TABLES, "[]"))
        entry = {"path": name, "type": "table"}
        if entry not in known:
            self._client.set_tag(self.run_id, _TABLES, json.dumps([*known, entry]))

    def _send(self, points: Sequence[Point]) -> None:
        """Send a batch; of one that is refused, drop the points that are to blame."""
        try:
            metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in points]
            self._client.log_batch(self.run_id, metrics=metrics)
            self.sent += len(points)
        except MlflowException as error:
            if error.error_code not in _INVALID:
                raise
            self._still_there(self._client.get_run(self.run_id))
            if len(points) == 1:
                self.refused[points[0].key] = str(error)
                return
            half = len(points) // 2
            self._send(points[:half])
            self._send(points[half:])

    def _find(self, settings: dict[str, Any], spool_id: str, run_id: str | None) -> Run | None:
        wanted = settings["run_id"] or run_id
        if wanted is not None:
            try:
                return self._still_there(self._client.get_run(wanted))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                if not self._owned:
                    raise RefusedError(
                        f"the run {wanted} was not found: was another server meant? To write into "
                        f"another run, sync(spool, run_id=...)"
                    ) from error
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
            params=[Param(key, x) for key, x in new.items() if refused_name(key) is None],
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
        if experiment is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                # Another process was faster.
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise _deleted("experiment", name, experiment.experiment_id)
        return str(experiment.experiment_id)

    def _still_there(self, run: Run) -> Run:
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            experiment = self._client.get_experiment(run.info.experiment_id)
            if experiment.lifecycle_stage == LifecycleStage.DELETED:
                raise _deleted("experiment", experiment.name, experiment.experiment_id)
            raise _deleted("run", run.info.run_id, run.info.run_id)
        return run

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


def _deleted(kind: str, name: str, id_: str) -> RefusedError:
    return RefusedError(
        f"the {kind} {name!r} is deleted: restore it with mlflow {kind}s restore --{kind}-id {id_}"
    )
