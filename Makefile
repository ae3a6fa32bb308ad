# make demo   sets up, then runs the study search_spaces/quickstart.yaml
# make test   sets up, then runs all tests
# make coverage  the same, and prints what they reach; it takes more than half as long again
# make test-containers  builds the image and runs a study on the stack of docker/ (needs Docker, or root on Debian)
# make test-lowest  runs the tests of trainers/ and search_spaces/ on the oldest releases that pyproject.toml allows (6 GB in LOWEST)
# make test-cluster  runs studies on several nodes, in network namespaces, while links and nodes fail (root, iproute2; Slurm)
# make nightly  runs the study co_small on CIFAR-10 in ORCHESTRATOR_DATA and looks for the effect that it is about
# make chaos  injects FAULTS (default 30) faults at random times into running studies
# make bench  measures and writes benchmarks/RESULTS.md, or only BENCH=NAME
# make lint   ruff and mypy
# make docs   writes docs/methods.md from the catalog
# make lock   renews requirements.lock from pyproject.toml
# make lock-cpu  renews docker/torch-cpu.lock at the same versions, with PyTorch's wheel for CPUs from WHEELS

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test coverage test-lowest test-containers test-cluster nightly chaos bench lint docs lock lock-cpu setup clean

setup: $(READY)

$(READY): requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.lock
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: setup
	$(BIN)/orchestrator sweep quickstart

TEST_PROCESSES ?= 2

# Files in their own order begin with the studies on Ray, which wait a lot: by number of tests they would all come last.
ALL_TESTS := -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: setup lint
	$(BIN)/python $(ALL_TESTS)

coverage: setup
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run $(ALL_TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

LOWEST ?= .venv-lowest

test-lowest: setup
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --extra generation --extra server --resolution lowest-direct \
	    --no-emit-index-url --output-file $(LOWEST).txt
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip sync --quiet --python $(LOWEST)/bin/python $(LOWEST).txt
	PYTHONPATH="$(CURDIR)" $(LOWEST)/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile tests/trainers tests/search_spaces

test-containers: setup
	PYTHON=$(BIN)/python tests/containers/run.sh

test-cluster: setup
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile tests/cluster

nightly: setup
	$(BIN)/python -m pytest tests/nightly

FAULTS ?= 30

chaos: setup
	$(BIN)/python -m tests.faults.chaos $(FAULTS)

bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy trainers search_spaces orchestrator

docs: setup
	$(BIN)/python -m trainers.catalog.page > docs/methods.md

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra generation --extra server --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header --output-file requirements.lock
	echo uv | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header --output-file requirements-uv.lock

WHEELS ?= docker/wheels

lock-cpu: setup
	cp requirements.lock docker/torch-cpu.lock
	$(BIN)/uv pip compile docker/torch-cpu.in --find-links $(WHEELS) --python-platform x86_64-manylinux_2_28 \
	    --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	    --output-file docker/torch-cpu.lock

clean:
	rm -rf $(VENV) $(LOWEST) $(LOWEST).txt .coverage* .mypy_cache .ruff_cache .pytest_cache *.egg-info
