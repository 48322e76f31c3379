# The daily commands. `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint equivalence chaos bench bench-peers bench-network papers clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install fedlearn with everything that it needs
	@echo "Ready: $(BIN)/fedlearn --help"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "fedlearn needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)."; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing fedlearn and its dependencies into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Installed: $$($(BIN)/python -c 'from importlib.metadata import version as v; \
		print("fedlearn", v("fedlearn"), "with torch", v("torch"))')."

demo: $(STAMP) ## train federatedly on real worker processes, under a minute
	@$(BIN)/python -m benchmarks.demo

test: test-fast ## every test, the quick ones first, on two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or torchrun or ray or docker"

test-fast: $(STAMP) ## the tests that start no cluster and train briefly, two to three minutes
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not torchrun and not ray and not docker"

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

equivalence: $(STAMP) ## print the table of final hashes over all backends
	@$(BIN)/python -m benchmarks.equivalence

chaos: $(STAMP) ## inject a hundred faults on every backend, about ten minutes; CHAOS=... adds options
	@$(BIN)/python -m benchmarks.chaos $(CHAOS)

bench: $(STAMP) ## time fedlearn and bare PyTorch, under five minutes; BENCH=... adds options
	@$(BIN)/python -m benchmarks.speed $(BENCH)

bench-peers: $(STAMP) ## time pfl, Flower and FedLab too, each in an environment of its own, half an hour
	@for peer in pfl flwr fedlab; do benchmarks/peers/setup.sh $$peer || echo "$$peer could not be installed"; done
	@$(BIN)/python -m benchmarks.speed --peers --all --patience 60 \
		W1L W1M W2 W3 population cohort sync profile $(BENCH)

bench-network: $(STAMP) ## time training over slow networks, under half an hour, needs root; NETWORK=... adds options
	@$(BIN)/python -m benchmarks.network $(NETWORK)

papers: $(STAMP) ## reproduce the results of papers, about ten minutes; PAPERS="R1a R4b" runs some
	@$(BIN)/python -m benchmarks.papers $(PAPERS)

clean: ## remove caches and builds (keeps .venv and runs)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
