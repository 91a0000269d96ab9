# The two commands a stranger needs: `make demo` and `make test`. Both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help:
	@echo "make demo   set up and run examples/stdlib_census.py"
	@echo "make test   set up and run the tests"
	@echo "make check  ruff, mypy, import-linter"
	@echo "make bench  the benchmarks, beside Ray, Dask and ProcessPoolExecutor"
	@echo "make clean  remove .venv and caches"

# Three ways to an environment: the standard module, uv where it is there, pip's virtualenv.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "$(PYTHON) is missing or older than 3.10: install it, or say make PYTHON=python3.12" >&2; exit 1; }
	@rm -rf $(VENV)
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif command -v uv >/dev/null 2>&1; then uv venv --quiet --seed --python $(PYTHON) $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1 && $(PYTHON) -m venv --without-pip $(VENV); then \
	  $(PYTHON) -m pip --python $(BIN)/python install --quiet pip || { rm -rf $(VENV); exit 1; }; \
	else echo "python3-venv is missing: apt-get install python3-venv" >&2; exit 1; fi

# uv lands in the environment with the package's own dependencies; it installs the rest, quickly.
$(STAMP): pyproject.toml plugin/pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) ..."
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable . --editable plugin --group dev
	@touch $@

demo: $(STAMP)
	@$(BIN)/modal-nomad run examples/stdlib_census.py

test: $(STAMP)
	@$(BIN)/python -m pytest -n auto

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(STAMP)
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
