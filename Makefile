# Two commands do everything on a fresh machine with Python 3.11+: `make reproduce` and `make test`.
SHELL := /bin/bash
PROFILE ?= demo
VENV ?= .venv
PY := $(VENV)/bin/python
EXTRAS := test,cluster,tensorboard
RUN := $(PY) -m fsr
SCRATCH ?= $(shell mktemp -d)

.PHONY: setup setup-test reproduce retrain test lint pytest coverage slow nbval lab api

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test

# the first interpreter that really runs and is new enough
$(PY):
	@for p in $(PYTHON) python3.12 python3.13 python3.11 python3 python; do \
	  if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    echo "using $$($$p --version)"; exec $$p -m venv $(VENV); fi; done; \
	echo "Python 3.11, 3.12 or 3.13 is needed; type: make setup PYTHON=/path/to/python3.12" >&2; exit 2

$(VENV)/.installed: pyproject.toml | $(PY)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q --no-compile -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(PY)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q --no-compile -e '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(PY)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q --no-compile -e '.[docs]'
	@touch $@ $(VENV)/.installed

reproduce: setup
	$(RUN) run-all --profile $(PROFILE)

# train everything again beside the committed records, then compare the two
retrain: setup
	$(RUN) run-all --profile $(PROFILE) --root reproduced
	$(RUN) compare reproduced --profile $(PROFILE)

# every public docstring as a page, build/api/index.html; a warning is an error, but for what pandas annotates
api: $(VENV)/.installed-docs
	$(PY) -c "import warnings; from pdoc.__main__ import cli; warnings.simplefilter('error', UserWarning); \
	  warnings.filterwarnings('ignore', '.* for pandas[.]'); cli(['--no-show-source', '-o', 'build/api', 'fsr'])"

lab: setup
	cd notebooks && $(abspath $(VENV))/bin/jupyter lab

test: setup-test lint pytest nbval

lint: setup-test
	$(VENV)/bin/ruff check fsr tests benchmarks
	$(VENV)/bin/ruff format --check fsr tests benchmarks
	$(VENV)/bin/mypy fsr

pytest: setup-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

# the same tests, counted line by line, which doubled the time of some (Python 3.11)
coverage: setup-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --cov=fsr --cov-report=term:skip-covered --cov-fail-under=90

# what takes minutes each: several processes, the full audit, kills by the hundred, full disks (these as root)
slow: setup-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto -m slow

# the smoke profile from nothing, its notebooks again compared with that first execution, and demo's against its records;
# loadscope: the cells of a notebook need one kernel
NBVAL = PYDEVD_DISABLE_FILE_VALIDATION=1 OMP_NUM_THREADS=1 FSR_COMPUTE=0 $(PY) -m pytest --nbval-lax -o addopts= -q \
  -p no:cacheprovider -n auto --dist loadscope
nbval: setup-test
	@scratch=$(SCRATCH); set -e; \
	$(RUN) run-all --profile ci --root $$scratch; \
	cp -r $$scratch/results/notebooks/ci $$scratch/executed; \
	FSR_ROOT=$$scratch $(NBVAL) $$scratch/executed; \
	$(NBVAL) results/notebooks/demo
