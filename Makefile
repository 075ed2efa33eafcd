# Each target installs what it needs, once: stamps in .venv say what is there. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
BIN := .venv/bin
PROJECTS := pyproject.toml integrations/django/pyproject.toml hatch_build.py constraints.txt
STAMP := .venv/.installed

.PHONY: help up demo test test-unit test-django test-shop test-system lint format types migrations bench learn faults test-faults screenshots clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

up: $(STAMP)-shop ## Start everything here, sample shop included; Ctrl-C stops it (ARGS="--shop-port 0" for options)
	@exec $(BIN)/upright up $(ARGS)

demo: $(STAMP)-shop ## Break the shop for real, see it repaired, and check that it was (ARGS for options)
	@exec $(PYTHON) examples/demo $(ARGS)

# Three runs: the Django tests and the shop's each have settings of their own, which a process can have once.
test: ## Run every test that needs only Python packages
	@status=0; for part in test-unit test-django test-shop test-faults; do $(MAKE) $$part || status=1; done; exit $$status

test-unit: $(STAMP)-shop $(STAMP)-test
	$(PYTHON) -m pytest tests/unit tests/integration $(ARGS)

test-django: $(STAMP)-shop $(STAMP)-test
	$(PYTHON) -m pytest integrations/django/tests $(ARGS)

test-shop: $(STAMP)-shop $(STAMP)-test
	$(PYTHON) -m pytest examples/shop/tests $(ARGS)

test-faults: $(STAMP)-shop $(STAMP)-test
	$(PYTHON) -m pytest tests/faults $(ARGS)

test-system: $(STAMP)-shop $(STAMP)-test $(STAMP)-browser ## Run the tests that need Chromium too
	@.ci/debian-packages chromium
	$(PYTHON) -m pytest tests/system $(ARGS)

screenshots: $(STAMP)-shop $(STAMP)-browser ## Take the pictures of the docs anew
	@.ci/debian-packages chromium
	$(PYTHON) examples/screenshots.py docs/images

lint: $(STAMP)-shop $(STAMP)-lint ## Style, formatting and import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

format: $(STAMP)-lint ## Put the code into form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(STAMP)-shop $(STAMP)-test $(STAMP)-lint ## Check the types
	$(BIN)/pyright

migrations: $(STAMP)-shop ## Check that no Django migration is missing
	cd examples/shop && ../../$(PYTHON) manage.py makemigrations --check --dry-run

bench: $(STAMP)-shop $(STAMP)-test $(STAMP)-bench ## Measure each speed beside its peer
	$(PYTHON) -m bench $(ARGS)

learn: $(STAMP)-shop $(STAMP)-learn ## Show on simulated worlds how well scoring learns; writes models/results
	$(PYTHON) -m bench.learning $(ARGS)

faults: $(STAMP)-shop $(STAMP)-test $(STAMP)-learn ## Break a real stack in over sixty ways; writes tests/faults/results
	$(PYTHON) -m tests.faults $(ARGS)

clean: ## Remove what was installed and made, embedded engines' data included
	rm -rf .venv .upright .pytest_cache .ruff_cache .import_linter_cache build dist

$(PYTHON):
	@.ci/environment

# What everything needs: both distributions, editable, with the embedded engines and the sample shop's packages.
$(STAMP)-shop: $(PYTHON) $(PROJECTS)
	@.ci/install shop --editable '.[embedded]' --editable integrations/django
	@touch $@

$(STAMP)-test $(STAMP)-lint $(STAMP)-browser $(STAMP)-bench $(STAMP)-learn: $(STAMP)-%: $(PYTHON) $(PROJECTS)
	@.ci/install $*
	@touch $@
