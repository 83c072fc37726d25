# Every target sets up what it needs: a fresh clone needs only Python 3.11+, git and make.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all coverage lint format examples docs gallery bench-attribution bench-trec-is bench-text wheel compat newest clean

help:           ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt --editable '.[all]' --group dev
	@touch $@

setup: .venv/.done ## Make the development environment in .venv.

demo: setup     ## Search digit tasks exhaustively and gated; print what was saved.
	$(BIN)/python examples/demo.py

test: setup     ## Run the tests.
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup ## Run the tests that take longer than a minute.
	$(BIN)/python -m pytest -m slow

test-all: setup ## Run the tests, the slow ones too.
	$(BIN)/python -m pytest

coverage: setup ## Run the tests, or TESTS=some of them, and show what they reach of the code.
	$(BIN)/coverage run -m pytest -m "not slow" $(TESTS)
	$(BIN)/coverage report

lint: setup     ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup   ## Put the code into the style that lint checks.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

examples: setup ## Run every example.
	@for example in examples/[0-9]*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done

docs: setup     ## Build the documentation into site/; a link that leads nowhere fails.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

gallery: setup  ## Draw the pictures of docs/gallery.md anew, by the code on that page.
	$(BIN)/python docs/draw_gallery.py

bench-attribution: setup ## Compare one sweep over all layers with Captum's walk.
	$(BIN)/python examples/bench_attribution.py

bench-trec-is: setup ## Analyse the transfers that were measured on TREC-IS.
	OMP_NUM_THREADS=1 $(BIN)/python examples/text_transfer/analyse.py --ways sequential joint --regimes target source both --splits test shifted

bench-text: setup ## One table of ways to rank pairs for each setting that was measured.
	for setting in trec-is trec-is-distilled mixed images-scratch images-copies images-close-copies; do \
		OMP_NUM_THREADS=1 $(BIN)/python examples/text_transfer/compare.py --setting $$setting || exit 1; \
	done

wheel: setup    ## Build the wheel and the sdist, and try the wheel in an empty environment.
	rm -rf dist build .venv-wheel
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python tests/check_distribution.py dist

compat:         ## Run the tests, or TESTS=some of them, against the oldest versions that pyproject.toml claims.
	PYTHON=$(PYTHON) tests/run_compat.sh oldest $(TESTS)

newest:         ## Run the tests, or TESTS=some of them, against the newest versions that pip finds.
	PYTHON=$(PYTHON) tests/run_compat.sh newest $(TESTS)

clean:          ## Remove everything that the other targets made.
	rm -rf .venv .venv-* build dist demo-output ray-output site .transfer_pruner mlflow.db mlruns *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
