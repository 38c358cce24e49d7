# Two commands: `make run` and `make test`. Both set up .venv themselves; `make` alone lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

# The Python that .venv is made with: the first that runs, is new enough and can make a venv.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
# Test processes at a time: `make test WORKERS=0` is one process, for a debugger.
WORKERS ?= 2
# Passed through: `make test-sqlite ARGS='-k lease -x'`.
ARGS ?=
FLEET ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope
# Tools that read the settings do so as development does, whatever the caller's environment says.
DEVELOPMENT := env -u DATABASE_URL PULLWAKE_MODE=development

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.base ## Make .venv with what the server needs, and the SDK

.PHONY: run
run: export PULLWAKE_MODE ?= development
run: .venv/.base ## Serve on http://127.0.0.1:8000, setting up first (PULLWAKE_MODE=production to be strict)
	@exec $(BIN)/python manage.py serve $(ARGS)

.PHONY: test
test: lint types contracts checks test-sdk test-sqlite test-postgres ## Everything: lint, types, import contracts, checks, tests on both databases

.PHONY: check
check: lint types contracts checks .venv/.dev ## Under a minute: all but the tests that start a process or need PostgreSQL
	env -u DATABASE_URL $(PYTEST) -q -m 'not server and not slow' $(ARGS)

.PHONY: lint
lint: .venv/.dev ## Lint, and check the formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: .venv/.dev ## Format, and fix what the linter can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: types
types: .venv/.dev ## Check the types
	$(DEVELOPMENT) $(BIN)/python -m mypy

.PHONY: contracts
contracts: .venv/.dev ## Check which app may import which
	$(BIN)/lint-imports

.PHONY: checks
checks: .venv/.dev ## Check that no migration is missing, and the production settings
	$(DEVELOPMENT) $(BIN)/python manage.py makemigrations --check --dry-run
	env -u DATABASE_URL PULLWAKE_MODE=production ALLOWED_HOSTS=pullwake.example \
		SECRET_KEY="$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(64))')" \
		$(BIN)/python manage.py check --deploy --fail-level WARNING

.PHONY: test-sdk
test-sdk: .venv/.dev ## Run the SDK's own tests, which need no server (ARGS=… too)
	cd sdk/python && ../../$(PYTEST) $(ARGS)

.PHONY: test-sqlite
test-sqlite: .venv/.dev ## Run the tests on SQLite (ARGS='-k name -x' goes to pytest)
	env -u DATABASE_URL $(PYTEST) $(ARGS)

.PHONY: test-postgres
test-postgres: .venv/.dev ## Run the tests on a PostgreSQL of their own (ARGS=… too)
	$(BIN)/python -m tests.postgres $(PYTEST) $(ARGS)

.PHONY: coverage
coverage: .venv/.dev ## Measure what of the rooms the tests run that start no process, on PostgreSQL; fails below the floor
	$(BIN)/python -m tests.postgres $(BIN)/coverage run -m pytest -n 0 -q -m 'not server' $(ARGS)
	$(BIN)/coverage report

.PHONY: bench
bench: .venv/.dev ## Measure (ARGS=… goes to the benchmark)
	$(BIN)/python -m bench $(ARGS)

.PHONY: fleet
fleet: .venv/.dev ## Hold a fleet of runners for a while (FLEET='--runners 1000 --minutes 1')
	$(BIN)/python -m bench.fleet $(FLEET)

.PHONY: lock
lock: .venv/.dev ## Lock requirements/*.in again (ARGS=--upgrade for newer versions)
	for name in base dev; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --system-certs \
			--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(ARGS) \
			--output-file requirements/$$name.txt requirements/$$name.in || exit; \
	done

.PHONY: clean
clean: ## Remove .venv and the caches; var/, the data, stays
	rm -rf .venv .mypy_cache .pytest_cache sdk/python/.pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than its lock file exactly when .venv holds what the lock file says, and the SDK.
.venv/.base .venv/.dev: .venv/.%: requirements/%.txt sdk/python/pyproject.toml .venv/bin/python
	@echo "Installing $< into .venv ..."
	@$(PIP) install --quiet --require-hashes -r $<
	@$(PIP) install --quiet --no-index --no-deps --no-build-isolation --editable sdk/python
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo 'Pullwake needs Python 3.11 or later with venv (on Debian: apt-get install python3-venv).' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv
