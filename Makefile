# make figures [SCALE=quick|laptop|paper] [ONLY="03 04"] [SEED=0] [FORCE=1] [KEEP_GOING=1] [JOBS=2]
# make test    ruff, pytest, nbval          make publish     [SCALE=laptop] [ONLY="03 04"] what runs computed, as published
# make lab     JupyterLab                   make bench       update times as ratios
# make lock    pin every requirement again

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SCALE  ?= quick
SEED   ?= 0
JOBS   ?= $(if $(wildcard /dev/nvidia0 /dev/accel0 /dev/vfio/0),1,2)

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/data/cache/jax

.DEFAULT_GOAL := help
.PHONY: help env figures test lab publish bench lock clean

help:
	@sed -n 's/^# //p' Makefile

env: $(BIN)/.installed

$(BIN)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

figures: env
	$(BIN)/python -m mnemosyne reproduce --scale $(SCALE) --seed $(SEED) --jobs $(JOBS) $(if $(ONLY),--only $(ONLY)) $(if $(FORCE),--force) $(if $(KEEP_GOING),--keep-going) $(ARGS)

test: export MPLBACKEND ?= agg
test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=mnemosyne --cov-report=term --cov-fail-under=90
	MNEMOSYNE_OUTPUT=$(CURDIR)/data/cache/nbval $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env -x notebooks
	MNEMOSYNE_OUTPUT=$(CURDIR)/data/cache/nbval $(BIN)/python -m pytest tests/after_notebooks.py

publish: SCALE = laptop
publish: env
	$(BIN)/python -m mnemosyne publish --scale $(SCALE) $(if $(ONLY),--only $(ONLY))

lab: env
	$(BIN)/jupyter lab notebooks

bench: env
	$(BIN)/python -m mnemosyne.bench

lock: env
	$(BIN)/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra notebooks --extra lab --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) data/cache runs
