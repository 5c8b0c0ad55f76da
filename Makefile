# Everything runs in .venv, which the first target to need it makes. Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# Two workers suit two cores; PYTEST_ARGS="" runs in one process.
PYTEST_ARGS ?= -n 2 --dist worksteal
# TensorFlow greets with notes about the processor otherwise.
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-torch test-jax reproduce lint types docs benchmark mutation findings clean

demo: .venv/demo  ## train, attack and compare the paper's network with and without a quantizer
	$(BIN)/keras-qusec demo

# One thread for each worker: PyTorch with two beside another busy process is many times slower.
test test-torch test-jax: export OMP_NUM_THREADS = 1

test: .venv/test  ## the tests on TensorFlow
	KERAS_BACKEND=tensorflow $(BIN)/pytest $(PYTEST_ARGS)

test-torch: .venv/torch  ## the tests on PyTorch
	KERAS_BACKEND=torch $(BIN)/pytest $(PYTEST_ARGS) -m "not slow and not once"

# Small models compile to the same code again and again, so what is compiled is kept.
test-jax: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/.venv/compiled
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test-jax: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1
# Most of the time goes into compiling. At level 0 what is compiled runs for minutes.
test-jax: export XLA_FLAGS = --xla_backend_optimization_level=1
test-jax: .venv/jax  ## the tests on JAX
	KERAS_BACKEND=jax $(BIN)/pytest $(PYTEST_ARGS) -m "not slow and not once"

reproduce: export OMP_NUM_THREADS = 1
reproduce: .venv/torch  ## every figure of the paper on few images, to see that all of it runs
	KERAS_BACKEND=torch $(BIN)/keras-qusec reproduce all --quick --folder reproduction

lint: .venv/test  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test  ## static types
	$(BIN)/mypy

docs: .venv/docs  ## HTML pages in docs/_build
	$(BIN)/sphinx-build -W -q -j 2 docs docs/_build

benchmark: .venv/torch .venv/jax  ## time and memory beside the floor and the peers
	$(BIN)/python benchmarks/quantizer.py
	$(BIN)/python benchmarks/adversarial_training.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/defenses.py
	$(BIN)/pip install --quiet --no-compile multiprocess  # ART's AutoAttack imports it
	$(BIN)/python benchmarks/attacks.py
	KERAS_BACKEND=torch $(BIN)/python benchmarks/audit.py --json benchmark-audit.json

mutation: .venv/torch  ## faults planted one at a time: which of them the tests notice
	$(BIN)/python benchmarks/mutation.py

findings:  ## facts about other software, still as they were
	for finding in findings/*.sh; do echo $$finding; bash $$finding || exit 1; done

clean:
	rm -rf .venv docs/_build docs/jupyter_execute reproduction build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/demo: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --no-compile -e ".[tensorflow,evaluate,demo]"
	touch $@

.venv/test: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet --no-compile -e ".[tensorflow,evaluate,dask,demo,dev]"
	touch $@

# This version has a build for the CPU alone; a plain "torch" may bring gigabytes.
.venv/torch: .venv/test
	$(BIN)/pip install --quiet --no-compile torch==2.13.0
	touch $@

.venv/jax: .venv/test
	$(BIN)/pip install --quiet --no-compile -e ".[jax]"
	touch $@

.venv/docs: .venv/test
	$(BIN)/pip install --quiet --no-compile -e ".[docs]"
	touch $@
