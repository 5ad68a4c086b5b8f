# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11, git and make; both can be repeated.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-slow test-tools bench bench-small lint format clean

install: $(INSTALLED)

# All that `pti` needs to work on this machine.
$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# Beside it: Dask and Ray, and what the tests need.
$(INSTALLED): $(RUNS)
	@echo "Installing what tests and clusters need."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(RUNS)
	@$(BIN)/pti run demo --output "$(OUT)" --preset demo

# In two processes; a file's tests share what they make, so they stay together.
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# First what only computes, in two processes; then what needs the machine for itself.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and computing" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "slow and not computing"

# Slow tests of the report's page and of the server on Postgres need these; without them they are skipped.
test-tools:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium postgresql

# The engine beside the plain method, 20 to 50 minutes on two quiet cores: a table and a plot in out/bench.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench

# The same with a few steps: fails where the engine has become slower or worse than the plain method.
bench-small: $(INSTALLED)
	$(BIN)/python -m benchmarks.small

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out/demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
