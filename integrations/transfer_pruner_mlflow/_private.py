"""What of MLflow is not public: a client with limits of its own, and MLflow's check of names.

What it must satisfy: a server that hangs or refuses costs seconds, not MLflow's four minutes, and
the limits that MLflow takes from the process's environment stay as the user has them.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import http_request, verify_rest_response
from mlflow.utils.validation import _validate_metric

# To connect, and between two bytes of an answer. A busy server takes a second for a full batch.
_TIMEOUT = (3.0, 10.0)


def limited_client(tracking_uri: str) -> MlflowClient:
    """Make a client that gives up soon and does not retry; over HTTP, that is.

    Databases and other stores are reached as MLflow reaches them.
    """
    client = MlflowClient(tracking_uri=tracking_uri)
    if urlsplit(tracking_uri).scheme in ("http", "https"):
        client._tracking_client = _LimitedTracking(tracking_uri)
    return client


def refused_name(name: str) -> str | None:
    """Say why MLflow refuses the name of a metric or a parameter; None if it takes it."""
    try:
        _validate_metric(name, 0.0, 0, 0)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        return str(error)
    return None


def accepted_name(prefix: str, task: str) -> str:
    """Name something of a task: by the task if MLflow takes that, else by what it takes of it.

    A digest at the end keeps two tasks apart that are alike in what MLflow takes.
    """
    if refused_name(prefix + task) is None:
        return prefix + task
    digest = hashlib.sha256(task.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{prefix}{re.sub(r'[^0-9A-Za-z_. -]', '_', task)[:150]} {digest}"


class _LimitedTracking(TrackingServiceClient):
    def __init__(self, tracking_uri: str) -> None:
        credentials = partial(get_default_host_creds, tracking_uri)
        self._store = _LimitedStore(credentials)  # type: ignore[no-untyped-call]
        super().__init__(tracking_uri)  # type: ignore[no-untyped-call]

    @property
    def store(self) -> RestStore:
        return self._store


class _LimitedStore(RestStore):
    def _call_endpoint(
        self,
        api: Any,
        json_body: str | None = None,
        endpoint: str | None = None,
        retry_timeout_seconds: float | None = None,
        response_proto: Any = None,
    ) -> Any:
        path, method = self._METHOD_TO_INFO[api]
        endpoint = endpoint or path
        body = json.loads(json_body) if json_body else None
        response = http_request(  # type: ignore[no-untyped-call]
            self.get_host_creds(),
            endpoint,
            method,
            max_retries=0,
            timeout=_TIMEOUT,
            **{"params" if method == "GET" else "json": body},
        )
        verify_rest_response(response, endpoint)
        answer = response_proto or api.Response()
        parse_dict(json.loads(response.text), answer)  # type: ignore[no-untyped-call]
        return answer
