# Every target sets up what it needs in .venv; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup lab demo test quick bench notebooks images lint clean

PYTHON ?= python3
PORT ?= 8888
BROWSER ?= 1
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings
# named after a checksum: set-up runs again when one of these files changes or the checkout moves
STAMP := $(VENV)/.ready-$(shell { pwd; cat pyproject.toml setup.py constraints.txt; } | cksum | tr ' ' '-')
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install -qq --no-input --constraint constraints.txt

export JUPYTER_PREFER_ENV_PATH := 1

help:
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 15

setup: $(STAMP) ## install everything into .venv

lab: $(STAMP) ## JupyterLab on the quickstart; PORT=8888, BROWSER=0 on a server, ARGS=
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" exec $(PY) -m jupyterlab --port=$(PORT) \
	    --LabApp.default_url=/lab/tree/notebooks/00_quickstart.ipynb \
	    $(if $(filter 0 no false,$(BROWSER)),--no-browser) \
	    $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(ARGS) </dev/null

demo: $(STAMP) ## the same job headless: a table and report.html; ARGS="--quick --json"
	@exec $(VENV)/bin/hspec demo $(ARGS) </dev/null

test: lint ## everything a contributor must see green; ARGS= for pytest
	@exec $(PY) -m pytest $(ARGS) </dev/null

quick: $(STAMP) ## the inner loop: tests that are not slow
	@exec $(PY) -m pytest -m "not slow" $(ARGS) </dev/null

bench: $(STAMP) ## benchmarks; ARGS=
	@exec $(PY) benchmarks/run.py $(ARGS) </dev/null

notebooks: $(STAMP) ## run notebooks and save them; ARGS="00 04"
	@exec $(PY) notebooks/execute.py $(ARGS) </dev/null

images: $(STAMP) ## pictures of the panels into docs/images; ARGS="00 04"
	@exec $(PY) tests/browser/screenshots.py $(ARGS) </dev/null

lint: $(STAMP) ## ruff (check and format) and the import contracts
	@$(PY) -m ruff check --quiet . </dev/null
	@$(PY) -m ruff format --check --quiet . </dev/null || \
	    { echo "not formatted; run: $(VENV)/bin/ruff format"; exit 1; }
	@out=$$($(VENV)/bin/lint-imports --no-logo 2>&1 </dev/null) || { echo "$$out"; exit 1; }

clean: ## remove caches and build output; keeps .venv and hspec_runs
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null || \
	    { echo "hspec_lab needs Python 3.11 or newer; '$(PYTHON)' answers:" \
	        "$$($(PYTHON) --version 2>&1 </dev/null | head -n 1). Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' </dev/null 2>/dev/null || \
	    { echo "'$(PYTHON)' lacks its venv module; install it first (Debian: python3-venv)"; exit 1; }
	@echo "setting up $(VENV) (some minutes the first time)"
	@$(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null || \
	    $(PYTHON) -m venv --clear $(VENV) </dev/null
	@$(PIP) setuptools </dev/null
	@$(PIP) --no-build-isolation --editable '.[lab,dev,kernels]' </dev/null
	@mkdir -p $(LAB_SETTINGS) && echo '{"@jupyterlab/apputils-extension:notification":' \
	    '{"fetchNews": "false", "checkForUpdates": false}}' >$(LAB_SETTINGS)/overrides.json
	@rm -f $(VENV)/.ready-* && touch $@
