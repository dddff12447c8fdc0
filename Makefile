# Nothing has to be run first: every target sets up what it needs.
#   make demo    see cowtree at work            make check   what to run while writing (under a minute)
#   make test    every check there is           make bench   measure speed and memory
#   make soak    the seeded tests, many more    make docs    write docs/cli.md anew
PYTHON ?= python3
SEEDS ?= 500
BIN := .venv/bin
SHELL := /bin/bash
RUN := PATH="$(CURDIR)/$(BIN):$$PATH:/usr/sbin:/sbin"

.PHONY: setup demo test check lint bench soak docs requirements clean
.DELETE_ON_ERROR:

setup: .venv/ready-to-test

.venv/ready-to-demo: requirements.txt pyproject.toml scripts/setup
	scripts/setup demo "$(PYTHON)"
	@touch $@

.venv/ready-to-test: requirements-dev.txt .venv/ready-to-demo
	scripts/setup test "$(PYTHON)"
	@touch $@

demo: .venv/ready-to-demo
	$(RUN) python demo/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	$(RUN) python -m pytest -n 2

check: lint
	$(RUN) python -m pytest -n 2 -m "not slow"

# A start-up that compiles the package first would measure the compiler.
bench: setup
	$(BIN)/python -m compileall -q src
	$(RUN) python -m bench.run

soak: setup
	$(RUN) python -m pytest -n 2 -m soak --seeds $(SEEDS) --hypothesis-profile soak

docs: .venv/ready-to-demo
	$(BIN)/python -m cowtree.cli.reference > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

# Pins both sets anew, for every platform, without an address of where they came from.
COMPILE = CUSTOM_COMPILE_COMMAND="make requirements" .venv/pin/bin/pip-compile --quiet --upgrade \
	--generate-hashes --strip-extras --no-emit-options
requirements: .venv/ready-to-demo
	$(BIN)/python -m venv .venv/pin
	.venv/pin/bin/pip install --quiet pip-tools
	$(COMPILE) --output-file requirements.txt requirements.in
	$(COMPILE) --output-file requirements-dev.txt requirements-dev.in

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
