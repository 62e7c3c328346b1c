# make setup | demo | check | test | benchmarks | format | docs | clean
# `make demo` and `make test` install everything that they need, once.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first of these that is Python 3.11 to 3.13 creates the environment; PYTHON=... adds one in front.
PYTHONS := $(PYTHON) python3 python3.11 python3.12 python3.13
# constraints.txt pins it. It is installed first and alone, because a looser range may pull several gigabytes
# of another build.
TORCH = $(shell grep '^torch==' constraints.txt)

# pip would compile all modules, which is half of its time; most of them are never imported. Python keeps what
# it compiles, whatever the caller has set: Ray starts many processes, and each would compile anew.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.PHONY: setup tools demo check style types compiled suite test benchmarks format docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt requirements-demo.txt
	@test -x $(BIN)/python || { \
	  chosen=; for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	    then chosen="$$python"; break; fi; \
	  done; \
	  test -n "$$chosen" || { \
	    echo "raymrc needs Python 3.11 to 3.13; none found as: $(PYTHONS). Try make setup PYTHON=/path/to/python" >&2; exit 2; }; \
	  "$$chosen" -m venv $(VENV); }
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --constraint constraints.txt --editable ".[dev,benchmarks]"
	$(INSTALL) --no-deps --require-hashes --requirement requirements-demo.txt
	@touch $(READY)

# Programs that tests drive beside Python. `tools` installs them on Debian as root; elsewhere those tests skip.
TOOLS := chromium promtool pg_ctlcluster
PACKAGES := chromium prometheus postgresql
# Tests need PostgreSQL's programs only: Debian's package would start a server and leave it running.
NO_CLUSTER := /etc/postgresql-common/createcluster.conf

tools:
	@for tool in $(TOOLS); do command -v $$tool >/dev/null || missing=1; done; test -z "$$missing" \
	  || { test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null \
	       && mkdir -p $(dir $(NO_CLUSTER)) \
	       && { test -e $(NO_CLUSTER) || echo "create_main_cluster = false" >$(NO_CLUSTER); } \
	       && apt-get update -qq \
	       && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(PACKAGES) >/dev/null; } \
	  || echo "some of $(TOOLS) are missing: tests of pages, dashboards and PostgreSQL will skip" >&2

demo: setup
	$(BIN)/raymrc run studies/demo.yaml

# Format, lint, imports between rooms, types: everything that needs no run.
check: style types

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# Imports what the tests import, so that it is compiled once and not by each of the suite's processes.
compiled: setup
	@$(BIN)/python -m pytest --collect-only -qq >/dev/null || true  # the suite itself reports what is wrong

# Three processes for two cores, because tests often wait for programs that they started. The tests that start
# Ray take longest, so tests/conftest.py puts them first.
suite: compiled
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not benchmark" -n 3 --dist loadfile --no-loadscope-reorder

# `tools` waits for the network while pip keeps a core busy, and mypy and `compiled` use one core each.
test:
	@$(MAKE) --no-print-directory -j 2 style tools
	@$(MAKE) --no-print-directory -j 2 types suite

# Starts the benchmarks for which `make test` has no time, on little data.
benchmarks: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m benchmark tests/house/test_benchmarks.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Generates the pages of commands, study file, benchmark results, studies and decisions, and the dashboard.
docs: setup
	$(BIN)/python docs/racing.py
	$(BIN)/python docs/build.py
	$(BIN)/python dashboards/build.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
