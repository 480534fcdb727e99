# The targets set up everything that a checkout needs. "make help" lists them.

PYTHON ?= python3
export PYTHON

BIN := .venv/bin
CHECKED := $(wildcard jobmetrics demo tests benchmarks examples)
# The dashboards' generator needs Python 3.11.
CHECKED += $(shell $(PYTHON) -c 'import sys; print("dashboards" if sys.version_info >= (3, 11) else "")' 2>/dev/null)

# More tests run at a time than there are processors, because many wait for processes, those of make test-all longest.
PROCESSORS := $(shell getconf _NPROCESSORS_ONLN)
WORKERS ?= $(shell echo $$((2 * $(PROCESSORS))))
FULL_WORKERS ?= $(shell echo $$((3 * $(PROCESSORS))))
PYTEST = $(BIN)/python -m pytest $(if $(REPORTS),--junitxml=$(REPORTS)/$@.xml)
PARALLEL := -n $(WORKERS)
# Seconds for the heavy repetitions.
LONG_SECONDS ?= 180
# Parallel targets print their output when they end, if make supports that.
TOGETHER = $(MAKE) --no-print-directory $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# nox sessions of make test-all. The newest releases are in .venv.
LANES := celery-suite celery-oldest rq-oldest wheel

.DEFAULT_GOAL := help
.PHONY: help setup demo servers checks test test-all test-full test-serial test-fast test-long coverage $(LANES:%=lane-%) bench lint types layers docs reference dist dashboards clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-18s %s\n", $$1, $$2 }'

setup: ## make .venv and install the package with all extras (PYTHON=python3.12 chooses another Python)
	@tools/venv.sh

demo: setup ## show everything at once on real workers (DEMO_SECONDS=20, REDIS_URL=redis://...)
	@test -n "$$REDIS_URL" || tools/servers.sh ensure redis || true
	@$(BIN)/python -m demo

servers: # a missing server skips its tests, and fails them when CI=true
	@tools/servers.sh ensure redis rabbitmq prometheus alertmanager systemd wget || true

checks: setup # side by side
	@$(TOGETHER) -j3 lint types layers

test: checks servers ## lint, types, layers and the default tests; run it before you send a change
	$(PYTEST) $(PARALLEL)

test-all: setup servers ## everything that make test leaves out: other versions and pools, mutations, repetitions
	@status=0; $(TOGETHER) --keep-going -j3 test-full $(LANES:%=lane-%) || status=1; \
	$(TOGETHER) test-serial || status=1; exit $$status

test-full: setup servers # except tests that measure the machine
	LONG_SECONDS=$(LONG_SECONDS) NAMED_TESTS_RUN=1 $(PYTEST) -n $(FULL_WORKERS) -m "(full or long) and not serial"

test-serial: setup servers # tests that measure the machine, one after another
	$(PYTEST) -m "serial and not long"

$(LANES:%=lane-%): setup servers
	$(BIN)/nox -t $(@:lane-%=%)

# It takes twice the processor time of make test. COVERED="not (long or serial)" also measures the tests of make test-all.
# COVERED_TESTS=tests/unit, as in CI, takes two minutes.
COVERED ?= not (full or long or serial)
COVERED_TESTS ?= tests
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage/data
coverage: setup servers ## measure which lines and branches make test runs
	rm -rf .coverage
	$(PYTEST) $(PARALLEL) -m "$(COVERED)" --cov --cov-report= $(COVERED_TESTS) || echo "measured, though some tests failed"
	$(BIN)/coverage combine --append --quiet || true # data of processes that ended after pytest
	@$(BIN)/coverage report | sed -n '1p;$$p'

test-fast: setup ## the unit tests only
	$(PYTEST) $(PARALLEL) tests/unit

test-long: setup servers ## the heavy repetitions in full
	$(PYTEST) -m long

bench: setup ## measure the budgets on this machine (BENCH_JSON=docs/benchmarks.json keeps them for the README)
	$(BIN)/python -m benchmarks $(if $(BENCH_JSON),--json $(BENCH_JSON))

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

dist: setup ## build the wheel and the source distribution into dist
	rm -rf dist
	@$(BIN)/python -m hatchling build

reference: setup ## update the generated tables of docs and README
	@$(BIN)/python -m tools.docs_reference

dashboards: setup ## update dashboards/grafana/*.json
	$(BIN)/python -m dashboards

clean: ## remove everything the targets made
	rm -rf .venv .nox build dist docs/_build .coverage .reports .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find jobmetrics demo tests -name __pycache__ -type d -prune -exec rm -rf {} +
