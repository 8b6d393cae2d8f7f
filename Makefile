# make figures [SCALE=quick|laptop|paper] [ONLY="03 04"] [SEED=0] [FORCE=1] [KEEP_GOING=1] [JOBS=2]
# make test    ruff, pytest, nbval          make publish     [SCALE=laptop] [ONLY="03 04"] what runs computed, as published
# make lab     JupyterLab                   make bench       update times as ratios
# make env     only install                 make lock        pin every requirement again
# make docs    the documentation as a site, in data/cache/site
# make lowest  a part of the tests with the lowest stated versions, make newest with the newest

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SCALE  ?= quick
SEED   ?= 0
JOBS   ?= $(if $(wildcard /dev/nvidia0 /dev/accel0 /dev/vfio/0),1,2)
INSTALL = "$(PYTHON)" tools/environment.py "$(VENV)" requirements.lock

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/data/cache/jax

.DEFAULT_GOAL := help
.PHONY: help env dev figures test docs lab publish bench lock lowest newest clean

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

env:
	@$(INSTALL)

dev:
	@$(INSTALL) requirements-dev.lock

figures: env
	"$(BIN)/python" -m mnemosyne reproduce --scale "$(SCALE)" --seed "$(SEED)" --jobs "$(JOBS)" $(if $(ONLY),--only $(ONLY)) $(if $(FORCE),--force) $(if $(KEEP_GOING),--keep-going) $(ARGS)

test: export MPLBACKEND ?= agg
# Small programs, of which the tests have thousands, compile in half the time like this.
test: export XLA_FLAGS ?= --xla_cpu_use_fusion_emitters=false
test: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test: dev
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/python" -m pytest -n 2 --dist loadfile --cov=mnemosyne --cov-report=term --cov-fail-under=90
	MNEMOSYNE_OUTPUT="$(CURDIR)/data/cache/nbval" "$(BIN)/python" -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env -x notebooks
	MNEMOSYNE_OUTPUT="$(CURDIR)/data/cache/nbval" "$(BIN)/python" -m pytest tests/after_notebooks.py

docs: dev
	"$(BIN)/python" -m sphinx -W --keep-going -q -E -b html -c docs . data/cache/site -d data/cache/site-doctrees

publish: SCALE = laptop
publish: env
	"$(BIN)/python" -m mnemosyne publish --scale "$(SCALE)" $(if $(ONLY),--only $(ONLY))
	"$(BIN)/python" -m mnemosyne.book.pages

lab:
	@$(INSTALL) requirements-lab.lock
	"$(BIN)/jupyter" lab notebooks

bench: env
	"$(BIN)/python" -m mnemosyne.book.bench

# All extras agree on versions; each of the two other locks holds only what it adds to requirements.lock.
COMPILE = "$(BIN)/uv" pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-strip-extras --no-emit-index-url --no-header --no-annotate --extra book --group build
ADDED   = awk 'NR == FNR {held[$$0]; next} /^[^ ]/ {new = !($$0 in held)} new' requirements.lock data/cache/some.lock

lock: dev
	mkdir -p data/cache
	$(COMPILE) --upgrade --extra dev --extra lab pyproject.toml -o data/cache/all.lock
	$(COMPILE) --constraints data/cache/all.lock pyproject.toml -o requirements.lock
	for extra in dev lab; do \
	  $(COMPILE) --constraints data/cache/all.lock --extra $$extra pyproject.toml -o data/cache/some.lock || exit 1; \
	  $(ADDED) > requirements-$$extra.lock; \
	done

# Files that between them use every needed package, float64, sharding, and the optax contract in its four tests that touch
# flax, optax and orbax. Left out for their length: training, meta-training, studies.
CHOSEN = $(patsubst %,tests/%.py,memory/test_compact memory/test_recurrent optimizer/test_zoo optimizer/test_odd \
  optimizer/test_tensorwise optimizer/test_training_code tasks/test_tokens tasks/test_checkpoints tasks/test_classification \
  test_cli book/test_chapter) $(addprefix tests/optimizer/test_transform.py::test_,state_survives_orbax \
  tree_map_params_reaches_what_belongs_to_every_parameter train_state_under_jit_with_donation_compiles_once \
  inject_hyperparams_and_schedules)

lowest: RESOLUTION = lowest-direct
newest: RESOLUTION = highest
lowest newest: dev
	"$(BIN)/uv" venv --quiet --clear --python "$(PYTHON)" "$(VENV)-$@"
	"$(BIN)/uv" pip install --python "$(VENV)-$@" --upgrade --resolution $(RESOLUTION) -e '.[dev]'
	"$(VENV)-$@/bin/python" -m pytest -n 2 --dist loadfile $(CHOSEN)

clean:
	rm -rf "$(VENV)" "$(VENV)-lowest" "$(VENV)-newest" data/cache runs
