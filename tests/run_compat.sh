#!/usr/bin/env bash
# Run the tests on the oldest versions that pyproject.toml claims (tests/floors.txt), or on the newest that pip finds.
# Usage: tests/run_compat.sh oldest|newest [ARGUMENTS OF PYTEST]
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:?oldest or newest}" in
    oldest) environment=.venv-compat constraints=tests/floors.txt ;;
    newest) environment=.venv-newest constraints=/dev/null ;;
    *) echo "oldest or newest, not $1" >&2; exit 2 ;;
esac
shift
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install --quiet --upgrade pip
"$environment/bin/pip" install --quiet --upgrade --upgrade-strategy eager -c "$constraints" \
    --editable '.[attribution,text,optuna,ray,mlflow,plot,cli]' \
    cmaes grpcio hypothesis hyperopt "psycopg[binary]" pytest pytest-timeout
"$environment/bin/pip" list | grep -iE '^(numpy|pandas|scikit-learn|torch|captum|transformers|optuna|ray|mlflow) '
"$environment/bin/python" -m pytest -m "not slow" "$@"
