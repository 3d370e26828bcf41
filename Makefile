# make run   the main job: a real language model through the passes, exact, its gain counted
# make test  all tests (the real-model ones fetch 93 MB once)
# make docs  the documentation as pages, docs/_build/html (NOTEBOOKS=off leaves the tutorials unexecuted)
# make bench figures; make lint: style and types; make clean: remove what was built
#
# Needs Python 3.11, 3.12 or 3.13, pip and make. The virtual environment is set up once per extra (stamp files).

VENV ?= .venv
NOTEBOOKS ?= cache
BIN := $(VENV)/bin

ifeq ($(origin PYTHON), undefined)
is_known = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c '$(is_known)' 2>/dev/null && echo $$p && break; done)
endif

.PHONY: run test docs bench lint clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed
	$(BIN)/sparqle run --tokens 512 --json out.json

# A process per core, so one thread for each.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

docs: $(VENV)/.installed-docs
	NOTEBOOKS=$(NOTEBOOKS) $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.installed-test
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	PYTHON=$(abspath $(BIN))/python .ci/mypy

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 to 3.13 is needed (found: $(or $(PYTHON),none)):" \
	    "install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) docs/_build docs/generated build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis out.json
