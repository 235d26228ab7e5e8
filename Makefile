# make demo: the main job for real.  make test: all tests.  Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE_PARTS := $(wildcard src/nray/core/*) src/nray/_core.pyx
# What a session of tests may be told, for example: make test PYTEST="-k rooms -x"
PYTEST ?=
# Processes of the tests: most wait for most of their time, so one more than there are cores.
TEST_JOBS ?= $(shell echo $$(($$(nproc) + 1)))
# make simulate SEEDS=10000 FROM=0 JOBS=2: histories in the simulator.
SEEDS ?= 1000
FROM ?= 0
JOBS ?= 2
# make torture BLOWS=200: kill -9 and worse, with real processes; needs root.
BLOWS ?= 200

# make fuzz FRAMES=1000000 JOBS=2: mutated frames against decoder, states and both ends.
FRAMES ?= 100000

.PHONY: demo test lint format bench simulate torture fuzz clean

demo: $(VENV)/.core
	@$(BIN)/python demo/run.py

test: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal $(PYTEST)

lint: $(VENV)/.core $(VENV)/.dev
	$(BIN)/ruff format --check src tests bench demo setup.py
	$(BIN)/ruff check src tests bench demo setup.py
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format src tests bench demo setup.py
	$(BIN)/ruff check --fix src tests bench demo setup.py

bench: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python bench/compare.py

simulate: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) --from $(FROM) --jobs $(JOBS)

torture: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python -m tests.torture --count $(BLOWS) --jobs $(JOBS)

fuzz: $(VENV)/.core $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --frames $(FRAMES) --jobs $(JOBS)

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/nray/_core.c src/nray/*.so demo/run-*

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip "setuptools>=77" wheel "cython>=3.0"
	@touch $@

# The core is built in place, so that changed Python files need no new installation.
$(VENV)/.core: $(VENV)/.made pyproject.toml setup.py $(CORE_PARTS)
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	$(BIN)/python -m compileall -q src/nray
	@touch $@

$(VENV)/.dev: $(VENV)/.core pyproject.toml
	$(BIN)/pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@
