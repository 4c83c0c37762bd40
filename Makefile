# Everything a user or CI does. `make demo` and `make test` set up what they need.
PYTHON ?= python3
# `make wheelhouse PYTHON=3.12` names the version of another machine's Python, not a program of this one.
VERSION := $(filter 3.%,$(PYTHON))
INTERPRETER := $(if $(VERSION),python3,$(PYTHON))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Debian's fonts-noto-color-emoji
FONT ?= /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
# One thread for each process: two ranks on two cores run 2 to 4 times faster than when they spin against each other.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo clean-demo play emoji lint format test test-slow chaos fuzz bench wheelhouse

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(INTERPRETER) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[s3,play,dev]'
	touch $@

demo: install  ## the whole system on real digits: at most 8 minutes on two cores
	$(BIN)/python pipelines/demo.py

play: install  ## a page to play with the shipped model, at 127.0.0.1
	$(BIN)/python pipelines/play.py

emoji: install  ## the shipped models again: minutes on a GPU, hours on two CPU cores; goes on where it was stopped
	test -f runs/emoji/data/index.json || \
		$(BIN)/python pipelines/prepare_data.py font $(FONT) --size 32 --split train --out runs/emoji/data
	for run in edm cd; do \
		begin=$$(date +%s); \
		OMP_NUM_THREADS=$$(nproc) $(BIN)/python pipelines/train.py configs/emoji/$$run.yaml || exit; \
		echo "$$run: $$(($$(date +%s) - begin)) s"; \
	done

clean-demo:
	rm -rf runs/digits

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Where it is set, each of hundreds of processes would compile the sources anew.
test: export PYTHONDONTWRITEBYTECODE =
test: install
	$(BIN)/python -m pytest -m "not slow" -n 4 --dist loadfile --no-loadscope-reorder

# They measure, so nothing else may run beside them.
ALONE := tests/pipelines/test_step_overhead.py tests/pipelines/test_benchmark_train.py

test-slow: install  ## 40 minutes on two cores; not the chaos tests
	$(BIN)/python -m pytest -m slow --ignore tests/chaos $(ALONE:%=--ignore %) -n 2 --dist loadfile
	$(BIN)/python -m pytest -m slow $(ALONE)

chaos: install  ## 200 random kills and a store that is down: 8 minutes
	$(BIN)/python -m pytest -m slow tests/chaos

fuzz: install  ## damaged files and command lines for ten minutes: each must keep the contract
	$(BIN)/python tests/fuzz/run.py --minutes 10

bench: install
	$(BIN)/python pipelines/benchmark.py data
	$(BIN)/python pipelines/benchmark.py prepare
	$(BIN)/python pipelines/benchmark.py checkpoint
	$(BIN)/python pipelines/benchmark.py evaluate

wheelhouse: install  ## wheels for a node without a network; PYTHON=3.12 for another version of Python
	$(BIN)/python cluster/wheelhouse.py $(if $(VERSION),--python $(VERSION))
