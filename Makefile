# fewstep: every target sets up what it needs and can be run again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# glibc returns every large tensor to the system and faults it in again; these two make CPU training many times faster.
export MALLOC_TRIM_THRESHOLD_ ?= 4000000000
export MALLOC_MMAP_THRESHOLD_ ?= 1000000000

.PHONY: help demo test test-slow test-gpu check format bench bench-calibrated card cifar10 cifar10-fewstep clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# constraints.txt pins the CPU-friendly versions that continuous integration tests.
$(VENV)/.user: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e '.[cli,train,metrics]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q --no-deps -c constraints.txt k-diffusion  # one file is read, and none of what it needs is wanted
	touch $(VENV)/.user $@

demo: $(VENV)/.user  ## the main job on the bundled model and on real digits; writes demo/report.html
	$(BIN)/fewstep demo --out demo

test: $(VENV)/.dev  ## all tests but the slow ones
	$(BIN)/python -m pytest -q -m 'not slow and not gpu and not network'

test-slow: $(VENV)/.dev  ## all tests that this machine can run
	$(BIN)/python -m pytest -q -m 'not network'

test-gpu: $(VENV)/.dev  ## on a machine with a CUDA device: no step of any solver waits for it
	$(BIN)/python -m pytest -q -m gpu tests/contracts/test_gpu.py

check: $(VENV)/.dev  ## format, lint, types, floors, docstrings, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint -q src/fewstep
	$(BIN)/python -m pytest -q -m 'not slow and not gpu and not network' tests/contracts tests/test_imports.py

format: $(VENV)/.dev  ## rewrite the code in the house format
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## the solver tables; writes benchmarks/results
	$(BIN)/python -m benchmarks.exact_targets --out benchmarks/results
	$(BIN)/python -m benchmarks.solver_quality --out benchmarks/results
	$(BIN)/python -m benchmarks.paper_claim --out benchmarks/results

bench-calibrated: $(VENV)/.dev  ## the calibrated solver against every fixed one; hours on a CPU, goes on where it was stopped
	$(BIN)/python -m benchmarks.calibrated all --out benchmarks/results/calibrated

card: $(VENV)/.dev  ## the numbers of the bundled model's card
	$(BIN)/python -m benchmarks.model_card --model mnist --out benchmarks/results

# One command for a machine with a GPU: about 25 minutes of one H200-class card.
cifar10: $(VENV)/.user  ## train the CIFAR-10 model on a GPU: make cifar10 DATA=parquet:FOLDER
	$(BIN)/fewstep train --preset cifar10 --data $(or $(DATA),hf:uoft-cs/cifar10) --out runs/cifar10
	$(BIN)/python -m fewstep.experiments.bundle --run runs/cifar10 --machine "one GPU" --out runs/cifar10-bundled

# Half of the time single steps, half of it whole chains; about 25 minutes of the same card, not yet measured.
cifar10-fewstep: $(VENV)/.user  ## the same to few steps: make cifar10-fewstep DATA=parquet:FOLDER
	$(BIN)/fewstep train --preset cifar10 --data $(or $(DATA),hf:uoft-cs/cifar10) --out runs/cifar10-half train.steps=5500
	$(BIN)/fewstep train --preset cifar10-e2e --init runs/cifar10-half --data $(or $(DATA),hf:uoft-cs/cifar10) --out runs/cifar10-fewstep
	$(BIN)/python -m fewstep.experiments.bundle --run runs/cifar10-fewstep --name cifar10-fewstep --machine "one GPU" --out runs/cifar10-fewstep-bundled

clean:  ## remove what the targets made
	rm -rf $(VENV) demo runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
