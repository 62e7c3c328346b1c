# make setup | demo | test | check | format | docs | clean
# `make demo` and `make test` need nothing first: they set everything up, once.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first of these that is Python 3.11 to 3.13 makes the environment; PYTHON=... puts another in front.
PYTHONS := $(PYTHON) python3 python3.11 python3.12 python3.13
# Said once, in constraints.txt. Installed first and alone, because a looser range may pull several
# gigabytes of another build.
TORCH = $(shell grep '^torch==' constraints.txt)

# pip compiles on one core, and that is half of its time.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.PHONY: setup tools ready demo test check format docs clean

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
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # templates among them are no Python
	@touch $(READY)

# What tests drive beside Python, where this machine is Debian and we may install; elsewhere those tests skip.
TOOLS := chromium promtool pg_ctlcluster
PACKAGES := chromium prometheus postgresql
# Of PostgreSQL the programs alone: Debian's package would leave a server running.
NO_CLUSTER := /etc/postgresql-common/createcluster.conf

tools:
	@for tool in $(TOOLS); do command -v $$tool >/dev/null || missing=1; done; test -z "$$missing" \
	  || { test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null \
	       && mkdir -p $(dir $(NO_CLUSTER)) \
	       && { test -e $(NO_CLUSTER) || echo "create_main_cluster = false" >$(NO_CLUSTER); } \
	       && apt-get update -qq \
	       && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(PACKAGES) >/dev/null; } \
	  || echo "not all of $(TOOLS) are here: tests of pages, dashboards and PostgreSQL will skip" >&2

# One waits for the network mostly, the other for a core.
ready:
	@$(MAKE) --no-print-directory -j 2 setup tools

demo: setup
	$(BIN)/raymrc run studies/demo.yaml

# Two at once. Those that start Ray come by themselves: they mostly wait. Last, one by one, those that hold
# clocks against processes.
define run_tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not ray" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not gpu and not timed" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not gpu and timed"
endef

test: ready
	$(run_tests)

check: ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(run_tests)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Made from what they describe: commands, study file, benchmark results and their plot, the list of decisions, the
# dashboard.
docs: setup
	$(BIN)/python docs/racing.py
	$(BIN)/python docs/build.py
	$(BIN)/python dashboards/build.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
