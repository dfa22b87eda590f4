# Widefield. `make` or `make help` lists what there is. Every target does the set-up it needs, without root.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV ?= .venv
MPI ?= pypi
GPU ?= none
BIN := $(abspath $(VENV))/bin
DATA ?= data/demo
# As root (containers, CI) Open MPI wants to be asked twice.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export PATH := $(BIN):$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 2

ifeq ($(MPI),pypi)
EXTRAS := train,predict,export,build,dev,mpi
else
EXTRAS := train,predict,export,build,dev
endif

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	@printf '\nVariables: PYTHON=%s VENV=%s MPI=pypi|system GPU=none|nccl\n' '$(PYTHON)' '$(VENV)'

.PHONY: setup
setup: $(VENV)/.ready ## make .venv with everything in it, Horovod built from source (cached)

$(VENV)/.ready: setup.cfg pyproject.toml tools/build_horovod.sh
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) not found; give yours: make setup PYTHON=python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24' 'setuptools<81' wheel
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	PYTHON=$(BIN)/python MPI=$(MPI) GPU=$(GPU) bash tools/build_horovod.sh
	touch $@

.PHONY: demo
demo: setup ## the main job: generated slides, three patch sizes, 2 ranks, a report with pictures
	test -e $(DATA) || { rm -rf $(DATA).part; $(BIN)/widefield make-slides $(DATA).part && mv $(DATA).part $(DATA); }
	$(BIN)/mpirun -np 2 $(BIN)/python -m trainer train configs/demo.yaml data.path=$(DATA) --overwrite
	$(BIN)/widefield inspect configs/demo.yaml data.path=$(DATA)
	@echo; echo "Look at runs/demo/report.md, and at runs/demo/inspect.html for the slides and patches it is about"

REAL_SLIDE := data/real/cmu_small_region.svs
$(REAL_SLIDE): tools/real_slide.py | $(VENV)/.ready
	$(BIN)/python tools/real_slide.py $@

.PHONY: test
test: setup $(REAL_SLIDE) ## all tests but those that need a Slurm or minutes
	$(BIN)/python -m pytest tests/unit tests/tensor -n 2 --dist worksteal
	$(BIN)/python -m pytest tests/ranks tests/e2e

.PHONY: test-long
test-long: setup $(REAL_SLIDE) ## what takes minutes: runs killed again and again, a full disk, fuzzed annotations
	$(BIN)/python -m pytest -m long tests/fuzz
	$(BIN)/python -m pytest -m long

SLURM_PACKAGES := slurm-wlm munge libpmix-dev iproute2 util-linux

.PHONY: test-slurm
test-slurm: setup ## the job scripts on a real Slurm of virtual hosts; as root it installs Debian's packages for that
	@if [ "$$(id -u)" = 0 ] && ! dpkg -s $(SLURM_PACKAGES) >/dev/null 2>&1; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SLURM_PACKAGES) >/dev/null; fi
	WIDEFIELD_NEED_SLURM=$$([ "$$(id -u)" != 0 ] || echo 1) $(BIN)/python -m pytest tests/slurm --timeout 600

.PHONY: lint
lint: setup ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: fmt
fmt: setup ## format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: setup ## measure step, weak scaling, loop and checkpoint here; writes a folder of results/bench/
	$(BIN)/python tools/bench.py

.PHONY: bench-data
bench-data: setup $(REAL_SLIDE) ## measure reading, stores, extraction and indexing; writes results/bench-data/
	$(BIN)/python tools/bench_data.py

.PHONY: bench-spatial
bench-spatial: setup ## memory and time of a patch that two ranks share; writes a folder of results/spatial/
	$(BIN)/python tools/bench_spatial.py

.PHONY: bench-export
bench-export: setup ## what exports are worth: Dice, latency, memory, size; writes a folder of results/export/
	$(BIN)/python tools/bench_export.py

.PHONY: bench-predict
bench-predict: setup ## throughput and memory of predicting whole slides; writes a folder of results/predict/
	$(BIN)/python tools/bench_predict.py

.PHONY: bench-network
bench-network: setup ## scaling studies on the virtual Slurm over networks of three speeds; as root; writes results/
	$(BIN)/python tools/bench_network.py

.PHONY: ci
ci: ## exactly what CI runs
	bash .ci/run

.PHONY: clean
clean: ## remove runs, caches and demo data; .venv stays
	rm -rf runs data/demo .pytest_cache .mypy_cache .ruff_cache
