#!/usr/bin/env bash
# Run the tests on the oldest versions that pyproject.toml claims (tests/floors.txt), in .venv-compat.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv .venv-compat
.venv-compat/bin/pip install --quiet --upgrade pip
.venv-compat/bin/pip install --quiet -c tests/floors.txt \
    --editable '.[attribution,text,optuna,ray,mlflow,plot,cli]' \
    cmaes grpcio hypothesis hyperopt "psycopg[binary]" pytest pytest-timeout
.venv-compat/bin/pip list | grep -iE '^(numpy|pandas|scikit-learn|torch|captum|transformers|optuna|ray|mlflow) '
.venv-compat/bin/python -m pytest -m "not slow" "$@"
