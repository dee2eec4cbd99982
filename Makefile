# sfumato: `make demo` trains and samples a model from nothing; `make test` runs the tests.
PY   ?= python3
VENV ?= .venv
BIN  := $(VENV)/bin
GPU  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PIP  := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/$(GPU).txt

.PHONY: help demo test lint types claims chaos bench clean

help:            ## list what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: $(VENV)/.ok-demo   ## set up .venv, then train, sample and score text-to-image digits (about 4 minutes on two cores)
	$(BIN)/sfumato demo

test: $(VENV)/.ok-dev    ## set up .venv and run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.ok-dev    ## style and the layers of the package
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports

types: $(VENV)/.ok-dev   ## static types, strict
	$(BIN)/mypy

claims: $(VENV)/.ok-dev  ## rerun the figures of README and docs that a CPU can rerun (long)
	$(BIN)/python -m pytest -n 0 -m slow --timeout=3600 tests/claims

chaos: $(VENV)/.ok-dev   ## faults in full: kills, corruption, full disks, machines that come and go; a line a row (20 minutes)
	$(BIN)/python -m pytest -n 2 -m slow --timeout=1800 --ignore=tests/claims
	$(BIN)/python -m tests.chaos

bench: $(VENV)/.ok-dev   ## speed on this CPU against diffusers, in one run
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks.cpu

clean:           ## remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PY) -m venv $(VENV)

$(VENV)/.ok-demo: pyproject.toml constraints/$(GPU).txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.ok-dev: $(VENV)/.ok-demo
	$(PIP) -e '.[dev]'
	touch $@
