# Two commands: `make run` and `make test`. Both set up .venv themselves; `make` alone lists the rest.
# Another Python beside it: `make VENV=.venv-3.13 PYTHON=python3.13 test-postgres`.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Nothing of what installs, or starts several processes itself, but what $(TOGETHER) names.
ifndef ABREAST
.NOTPARALLEL:
endif
TOGETHER = @$(MAKE) --no-print-directory --jobs 2 --output-sync ABREAST=yes

# Where the environment is, in the checkout. Only make's own argument moves it: it is wiped when it has no Python.
VENV := .venv
# The Python that it is made with: the first that runs, is new enough and can make a venv.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
# Test processes at a time: `make test WORKERS=0` is one process, for a debugger. With four on two cores
# a server that was stopped took longer than the two seconds it may take.
WORKERS ?= 2
# Passed through: `make test-sqlite ARGS='-k lease -x'`.
ARGS ?=
FLEET ?=
CHAOS ?=
HA ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
# Tools that read the settings do so as development does, whatever the caller's environment says.
DEVELOPMENT := env -u DATABASE_URL PULLWAKE_MODE=development

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.base ## Make the environment (VENV, .venv) with what the server needs, and the SDK

.PHONY: run
run: export PULLWAKE_MODE ?= development
run: $(VENV)/.base ## Serve on http://127.0.0.1:8000, setting up first (PULLWAKE_MODE=production to be strict)
	@exec $(BIN)/python manage.py serve $(ARGS)

.PHONY: test
# What was marked `once` and passed on SQLite, in this run of make: PostgreSQL need not see it again.
test: ONCE := $(VENV)/.once
test: $(VENV)/.base $(VENV)/.dev without-server test-sqlite test-postgres ## Everything: lint, types, import contracts, checks, tests on both databases

.PHONY: without-server
# Each keeps one core busy for most of its time; what takes longest is first.
without-server: $(VENV)/.base $(VENV)/.dev
	$(TOGETHER) types dist-sdk clients docs checks contracts lint

.PHONY: check
check: $(VENV)/.dev ## In a minute or two: all but the tests that start a process or need PostgreSQL
	$(TOGETHER) types checks contracts lint
	env -u DATABASE_URL $(PYTEST) -q -m 'not server and not slow' $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Lint, and check the formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(VENV)/.dev ## Format, and fix what the linter can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: types
types: $(VENV)/.dev ## Check the types
	$(DEVELOPMENT) $(BIN)/python -m mypy

.PHONY: contracts
contracts: $(VENV)/.dev ## Check which app may import which
	$(BIN)/lint-imports

.PHONY: checks
checks: $(VENV)/.dev ## Check that no migration is missing, and the production settings
	$(DEVELOPMENT) $(BIN)/python manage.py makemigrations --check --dry-run
	env -u DATABASE_URL PULLWAKE_MODE=production ALLOWED_HOSTS=pullwake.example \
		SECRET_KEY="$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(64))')" \
		$(BIN)/python manage.py check --deploy --fail-level WARNING

.PHONY: test-sdk
test-sdk: $(VENV)/.dev ## Run the SDK's own tests beside the server; dist-sdk runs them, too (ARGS=… too)
	cd sdk/python && ../../$(PYTEST) $(ARGS)

# Where the SDK's distribution is checked: an environment with nothing of the checkout.
DIST := $(VENV)-dist

.PHONY: dist-sdk
dist-sdk: $(VENV)/.base $(DIST)/.sdk ## Build the SDK's wheel and sdist, and check them where there is no server
	rm -rf sdk/python/dist && mkdir sdk/python/dist
	cd sdk/python && ../../$(BIN)/python -c 'from flit_core.buildapi import *; print(build_wheel("dist"), build_sdist("dist"))'
	$(DIST)/bin/python -m pip install --quiet --no-index --no-deps --force-reinstall sdk/python/dist/*.whl
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && sdk="$$scratch/sdk/python" && mkdir -p "$$sdk" \
		&& tar -xzf sdk/python/dist/*.tar.gz --strip-components 1 -C "$$sdk" && rm -r "$$sdk/src" \
		&& cp -R docs "$$scratch" && bin="$$PWD/$(DIST)/bin" && cd "$$sdk" && set -x \
		&& "$$bin/pullwake" --help >help.txt && "$$bin/mypy" --strict tests/typed.py examples \
		&& "$$bin/python" -m pytest -n $(WORKERS) -q $(ARGS)

$(DIST)/.sdk: requirements/sdk.txt $(BIN)/python
	@$(BIN)/python -m venv --clear $(DIST)
	@$(DIST)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@

.PHONY: clients
clients: $(VENV)-clients/.ready ## Get what makes clients of the OpenAPI schema: with it, their tests run on SQLite

.PHONY: docs
docs: $(VENV)-docs/.ready ## Build the site of docs/, into var/site
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet --strict

$(VENV)-clients/.ready $(VENV)-docs/.ready: $(VENV)-%/.ready: requirements/%.txt $(BIN)/python
	@$(BIN)/python -m venv --clear $(VENV)-$*
	@$(VENV)-$*/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@

.PHONY: test-sqlite
test-sqlite: $(VENV)/.dev ## Run the tests on SQLite (ARGS='-k name -x' goes to pytest)
	@rm -f $(VENV)/.once
	env -u DATABASE_URL $(PYTEST) $(if $(ONCE),--note-passed=$(ONCE)) $(ARGS)

.PHONY: test-postgres
test-postgres: $(VENV)/.dev ## Run the tests on a PostgreSQL of their own (ARGS=… too)
	$(BIN)/python -m tests.postgres $(PYTEST) $(if $(ONCE),--passed=$(ONCE)) $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.dev ## Measure what of the rooms the tests run that start no process, on PostgreSQL; fails below the floor
	$(BIN)/python -m tests.postgres $(BIN)/coverage run -m pytest -n 0 -q -m 'not server' $(ARGS)
	$(BIN)/coverage report

.PHONY: bench
bench: $(VENV)/.dev ## Measure (ARGS=… goes to the benchmark)
	$(BIN)/python -m bench $(ARGS)

.PHONY: fleet
fleet: $(VENV)/.dev ## Hold a fleet of runners for a while (FLEET='--runners 1000 --minutes 1')
	$(BIN)/python -m bench.fleet $(FLEET)

.PHONY: chaos
chaos: $(VENV)/.dev ## Let a storm rage over servers, runners and a database (CHAOS='--minutes 10 --seed 7')
	$(BIN)/python -m tests.postgres $(BIN)/python -m chaos $(CHAOS)

# Patroni, beside the environment that it is run from.
HA_ENV := $(VENV)-ha

.PHONY: ha
ha: $(VENV)/.dev $(HA_ENV)/.ha ## Fail a PostgreSQL over under load: Patroni, etcd, HAProxy (HA='--rounds 8')
	$(BIN)/python -m chaos.failover $(HA)

$(HA_ENV)/.ha: requirements/ha.txt $(BIN)/python
	@$(BIN)/python -m venv --clear $(HA_ENV)
	@$(HA_ENV)/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r $<
	@touch $@

.PHONY: lock
lock: $(VENV)/.dev ## Lock requirements/*.in again (ARGS=--upgrade for newer versions)
	for name in base observability sso dev sdk ha clients docs; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --system-certs \
			--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(ARGS) \
			--output-file requirements/$$name.txt requirements/$$name.in || exit; \
	done

.PHONY: clean
clean: ## Remove the environments and the caches; var/, the data, stays
	rm -rf .venv .venv-* sdk/python/dist .mypy_cache .pytest_cache sdk/python/.pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than its lock file exactly when the environment holds what the lock file says, and the SDK.
$(VENV)/.base $(VENV)/.dev: $(VENV)/.%: requirements/%.txt sdk/python/pyproject.toml $(BIN)/python
	@echo "Installing $< into $(VENV) ..."
	@$(PIP) install --quiet --require-hashes -r $<
	@$(PIP) install --quiet --no-index --no-deps --no-build-isolation --editable sdk/python
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Pullwake needs Python 3.11 or later with venv (on Debian: apt-get install python3-venv).' >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
