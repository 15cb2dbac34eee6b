# Everything runs in the virtual environment .venv, installed from the pinned versions in constraints.txt.

PYTHON ?= python3
CLIPFARM_HOME ?= .clipfarm-demo
PORT ?= 3000
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo dev test lint lock clean bench bench-delta bench-frames bench-fusion bench-recording chaos browser

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
	.venv/bin/clipfarm demo --home $(CLIPFARM_HOME)

dev: .venv/installed ## Dagster's UI on 127.0.0.1:3000 over the demo's data (or CLIPFARM_HOME=…)
	CLIPFARM_HOME=$(CLIPFARM_HOME) .venv/bin/clipfarm dev --port $(PORT)

test: .venv/installed-dev ## All tests but the slow ones
	.venv/bin/python -m pytest -n 2 --dist loadgroup -m 'not slow'

lint: .venv/installed-dev ## Formatting, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

lock: .venv/installed-dev ## Pin the versions that are installed now
	.venv/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed 's/^\(torch==[0-9.]*\)+.*/\1/' > constraints.txt

bench-delta: .venv/installed-dev ## Planning a million videos
	.venv/bin/python benchmarks/delta.py

bench-frames: .venv/installed-dev ## Sparse decoding beside a full decode
	.venv/bin/python benchmarks/frames.py

bench-recording: .venv/installed-dev ## Recording events, milliseconds a partition
	.venv/bin/python benchmarks/recording.py

clean: ## Remove the virtual environment and the demo's data
	rm -rf .venv .clipfarm-demo
