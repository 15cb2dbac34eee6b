# Everything runs in the virtual environment .venv, installed from the pinned versions in constraints.txt.

PYTHON ?= python3
DEMO_HOME ?= .clipfarm-demo
# what a person has set for a corpus of their own must not lead the demo there
DEMO_ENV := env $(patsubst %,-u %,$(filter CLIPFARM_% DAGSTER_HOME,$(.VARIABLES))) CLIPFARM_HOME=$(DEMO_HOME)
PORT ?= 3000
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo dev test test-slow chaos property cluster migration erasure fuzz browser lint lock clean \
	bench bench-text bench-delta bench-ticks bench-frames bench-fusion bench-migration bench-erasure bench-ray \
	bench-recording bench-precision bench-writers bench-ui

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "ClipFarm needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing ClipFarm into .venv (some minutes the first time) …"
	$(PIP_INSTALL) -e '.[demo]'
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "Installing what tests and checks need into .venv …"
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

demo: .venv/installed ## Make a small corpus and embed it: no network, no account, no server
	$(DEMO_ENV) .venv/bin/clipfarm demo --home $(DEMO_HOME)

dev: .venv/installed ## Dagster's UI on 127.0.0.1:3000 over the demo's data (yours: `clipfarm dev`)
	$(DEMO_ENV) .venv/bin/clipfarm dev --port $(PORT)

test: .venv/installed-dev ## All tests but the slow ones
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 -m 'not slow'

test-slow: .venv/installed-dev ## The slow tests: chaos, random histories and the browser at length
	.venv/bin/python -m pytest -m slow

chaos: .venv/installed-dev ## Two thousand items under kills, a store that goes away and poisonous objects
	.venv/bin/python -m pytest -m slow clipfarm_dagster_tests/test_chaos.py

property: .venv/installed-dev ## More than ten thousand random changes to a corpus, and as many steps of three machines
	.venv/bin/python -m pytest -m slow clipfarm_dagster_tests/test_corpus_property.py \
		clipfarm_dagster_tests/test_machines_property.py \
		clipfarm_dagster_tests/instance/test_partition_status.py

cluster: .venv/installed-dev ## The engine's tests on a cluster, and 1,200 items on several hosts, of which some are lost (root)
	.venv/bin/python -m pytest -m slow clipfarm_dagster_tests/test_cluster.py clipfarm_dagster_tests/engine \
		clipfarm_dagster_tests/cli/test_fleet.py

migration: .venv/installed-dev ## A thousand videos get new models while they change, readers poll and workers are killed
	.venv/bin/python -m pytest -m slow clipfarm_dagster_tests/test_migration_under_fire.py -s

erasure: .venv/installed-dev ## Two thousand videos, three of them erased: nothing is left of them, nothing else is touched
	.venv/bin/python -m pytest -m 'slow or not slow' clipfarm_dagster_tests/test_erasure_proved.py

fuzz: .venv/installed-dev ## Two thousand damaged clips, sampled sparsely and in full
	.venv/bin/python -m pytest -m slow clipfarm_dagster_tests/modalities/video/test_damage.py

browser: .venv/installed-dev ## Dagster's UI and the atlas as people use them, in a real browser (Debian's chromium)
	$(PIP_INSTALL) -e '.[atlas]'
	.venv/bin/python -m pytest -m 'slow or not slow' clipfarm_dagster_tests/browser

lint: .venv/installed-dev ## Formatting, lint, types, and what may import what
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

lock: .venv/installed-dev ## Pin the versions that are installed now
	$(PIP_INSTALL) -e '.[atlas]'
	.venv/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed 's/^\(torch==[0-9.]*\)+.*/\1/' > constraints.txt

bench: .venv/installed-dev ## The engine beside a straightforward script
	.venv/bin/python benchmarks/engine.py

bench-text: .venv/installed-dev ## Ten thousand text items in one run through Dagster
	.venv/bin/python benchmarks/engine.py --text 10000

bench-delta: .venv/installed-dev ## Planning a million videos
	.venv/bin/python benchmarks/delta.py

bench-ticks: .venv/installed-dev ## Sensor ticks over a hundred thousand partitions
	.venv/bin/python benchmarks/ticks.py

bench-ui: .venv/installed-dev ## Dagster's pages over a hundred thousand partitions (Debian's chromium)
	.venv/bin/python benchmarks/ui.py

bench-fusion: .venv/installed-dev ## Fusing a hundred thousand videos
	.venv/bin/python benchmarks/fusion.py

bench-writers: .venv/installed-dev ## Up to 32 processes that record in one PostgreSQL ledger
	.venv/bin/python benchmarks/writers.py

bench-ray: .venv/installed-dev ## A Ray cluster of this host beside the local engine, and one driver beside many nodes
	.venv/bin/python benchmarks/cluster.py
	.venv/bin/python benchmarks/cluster.py --simulate 1 4 16

bench-migration: .venv/installed-dev ## Copying a hundred thousand vectors within a store
	.venv/bin/python benchmarks/migration.py

bench-erasure: .venv/installed-dev ## Erasing one of a hundred thousand videos
	.venv/bin/python benchmarks/erasure.py

bench-precision: .venv/installed-dev ## What lower precision costs and saves
	.venv/bin/python benchmarks/precision.py

bench-frames: .venv/installed-dev ## Sparse decoding beside a full decode
	.venv/bin/python benchmarks/frames.py

bench-recording: .venv/installed-dev ## Recording events, milliseconds a partition
	.venv/bin/python benchmarks/recording.py

clean: ## Remove the virtual environment and the demo's data
	rm -rf .venv .clipfarm-demo
