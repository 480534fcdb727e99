# Everything a checkout needs is set up by the targets themselves. "make help" lists them.

PYTHON ?= python3
export PYTHON

BIN := .venv/bin
CHECKED := $(wildcard src tests benchmarks examples)
# The dashboards' generator needs Python 3.11.
CHECKED += $(shell $(PYTHON) -c 'import sys; print("dashboards" if sys.version_info >= (3, 11) else "")' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo servers test test-fast test-long bench lint types layers docs dashboards clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: ## make .venv and install the package with all extras (PYTHON=python3.12 chooses another Python)
	@tools/venv.sh

demo: setup ## show everything at once on real workers (DEMO_SECONDS=20, REDIS_URL=redis://...)
	@test -n "$$REDIS_URL" || tools/servers.sh ensure redis || true
	@$(BIN)/jobmetrics demo

servers: # a missing server skips its tests, and fails them when CI=true
	@tools/servers.sh ensure redis rabbitmq prometheus systemd wget || true

test: setup servers lint types layers ## lint, types, layers and all tests but the long ones
	$(BIN)/python -m pytest

test-fast: setup ## the unit tests only
	$(BIN)/python -m pytest tests/unit

test-long: setup servers ## the heavy repetitions
	$(BIN)/python -m pytest -m long

bench: setup ## measure the budgets on this machine
	$(BIN)/python -m benchmarks

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy --strict
	$(BIN)/mypy $(CHECKED)

layers: setup ## import-linter: the layers
	$(BIN)/lint-imports

docs: setup ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

dashboards: setup ## write dashboards/grafana/*.json anew
	$(BIN)/python -m dashboards

clean: ## remove everything the targets made
	rm -rf .venv .nox build dist docs/_build .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
