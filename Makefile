# The targets that everybody uses. PYTHON names the interpreter that .venv is made with.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help up test test-more test-older check docs schema bench torture log-torture lock clean

help:
	@echo "make .venv   the environment, with .venv/bin/headrace"
	@echo "make up      run everything on this machine: http://127.0.0.1:8000; ARGS=\"--port 8001\""
	@echo "make example-django  an application beside it, also -flask, -fastapi, -sql: http://127.0.0.1:5000"
	@echo "make test    format, lint, types and tests"
	@echo "make test-more  the tests that take longer: attacks under load, clients of other makers, an older PostgreSQL"
	@echo "make check   the same without the tests"
	@echo "make docs    the documentation: docs/_build/html"
	@echo "make schema  headrace/sql/schema.sql, the whole schema for readers, after a change of a migration"
	@echo "make lock    the exact versions of everything, anew; ARGS=--upgrade renews them"
	@echo "make torture a minute of faults, with a judge; ARGS=\"--seed 7 --seconds 300\"; SCENARIO=operations: operators at work"
	@echo "make log-torture the same for the SQL log alone, with every kind of transaction; ARGS=\"--failover --seed 7\""
	@echo "make bench   how fast it is, beside the least that a server can do; ARGS=\"fanout hot_stream\""

.venv: .venv/stamp

# Installs the versions of requirements.lock. Where one of them has no wheel, as on other machines than x86_64 and
# aarch64, it installs the newest versions that are allowed, without the wheels that carry servers: headrace then uses
# the servers of the system. In CI it installs nothing but the locked versions.
.venv/stamp: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "headrace needs Python 3.11 or newer; set PYTHON, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "installing everything into .venv, once: a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock \
	    && $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . \
	    || { test -z "$$CI" && $(BIN)/python -m pip install --quiet --editable '.[docs,loadtests,tests]'; }
	touch $@

# After a change of dependencies, which leaves other versions as they are; ARGS=--upgrade renews all versions.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
    --custom-compile-command "make lock" $(ARGS)
lock:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) --extra dev --output-file requirements.lock pyproject.toml
	echo 'setuptools>=77' | $(LOCK) --extra server --output-file deploy/requirements.lock --constraint requirements.lock pyproject.toml -

# Pages of the examples, at another port, may have the streams too.
up: export HEADRACE_ALLOWED_ORIGINS ?= http://127.0.0.1:5000,http://localhost:5000
up: .venv
	$(BIN)/headrace up $(ARGS)

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Warnings are errors, as is a link that leads nowhere.
docs: .venv
	$(BIN)/sphinx-build -q -W --keep-going -n -b html docs docs/_build/html $(ARGS)

# headrace/sql/schema.sql, for readers, after a change of a migration.
schema: .venv
	$(BIN)/python -m tests.fixtures.schema_file

test: check
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not slow' $(ARGS)

test-more: .venv
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m slow $(ARGS)
	$(MAKE) test-older

# The tests of the SQL with Debian's PostgreSQL, which is older than the wheel's. They connect as an owner who is no
# superuser.
OLDER := /usr/lib/postgresql/15/bin
SQL_TESTS := $(addprefix tests/integration/test_,$(addsuffix .py,changes changes_rows connections disconnect django \
    django_migrations dumps failover incarnation limits log migrations numbering office ownership presence publish publish_async \
    read_after restored_turns retention schema schema_file schema_upgrade sequence sessions snapshot \
    postgres_errors testing turns)) \
    tests/system/test_hostile_sql.py
test-older: .venv
	@test -x $(OLDER)/postgres || { echo "PostgreSQL 15 is not in $(OLDER): not tried" >&2; test -z "$$CI"; }
	test ! -x $(OLDER)/postgres || TEST_POSTGRES=$(OLDER) \
	    $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not slow' $(SQL_TESTS)

example-%: .venv
	$(BIN)/python -m examples $* $(ARGS)

torture: .venv
	$(BIN)/python -m loadtests.$(or $(SCENARIO),torture) $(ARGS)

log-torture: .venv
	$(BIN)/python -m loadtests.log_torture $(ARGS)

bench: .venv
	$(BIN)/python -m loadtests.bench $(ARGS)

clean:
	rm -rf .venv build docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
