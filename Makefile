# Needs GNU make and a Python >= 3.11; everything else is installed into $(VENV).
# More options for a command: make test ARGS="-k bptt -x"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# The first Python that really runs (a name on PATH may be a shim without a Python
# behind it), is new enough, and can make virtual environments.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	"$$python" -c '$(USABLE)' >/dev/null 2>&1 && echo "$$python" && break; done)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed-demo ## learn to read digits, one row of pixels at a time
	@$(BIN)/python notebooks/digits.py $(ARGS)

notebooks: $(VENV)/.installed-notebooks ## open the notebooks in Jupyter Lab
	@cd notebooks && $(abspath $(BIN))/jupyter lab $(ARGS)

test: $(VENV)/.installed-test ## run the tests, on two processes
	@echo "==> running the tests on two processes"
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-lint ## ruff check, ruff format --check, pyright
	@echo "==> ruff check"
	@$(BIN)/ruff check
	@echo "==> ruff format --check"
	@$(BIN)/ruff format --check
	@echo "==> pyright"
	@$(BIN)/pyright

bench: $(VENV)/.installed-bench ## measure speed and memory; QUICK=1 takes three minutes
	@$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick) $(ARGS)

rules-page: $(VENV)/.installed-demo ## compare all rules in full, half an hour; for docs/pages/rules
	@echo "==> running notebooks/comparing_rules.ipynb in full"
	@$(BIN)/python docs/rules_page.py

docs: $(VENV)/.installed-docs ## build the documentation into docs/site
	@echo "==> building the documentation"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml
	@echo "    docs/site/index.html"

format: $(VENV)/.installed-lint ## reformat the code, fix what ruff can fix
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

LOWER_BOUNDS := import tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(bound.replace(">=", "==") for bound in project["dependencies"]))
test-oldest: ## run the tests with the oldest supported JAX and Equinox
	@$(MAKE) --no-print-directory VENV=.venv-oldest \
		PINS="$$($(PYTHON) -c '$(LOWER_BOUNDS)')" test

PYTHONS ?= $(shell for python in python3.11 python3.12 python3.13; do \
	"$$python" -c '$(USABLE)' >/dev/null 2>&1 && echo "$$python"; done; :)
test-matrix: ## run the tests with every supported Python there is, and test-oldest
	@test -n "$(PYTHONS)" || { echo "no Python found: make PYTHONS='/path/to/python ...'"; \
		exit 1; }
	@set -e; for python in $(PYTHONS); do \
		echo "==> $$($$python --version)"; \
		venv=.venv-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		$(MAKE) --no-print-directory VENV=$$venv PYTHON=$$python test; done
	@$(MAKE) --no-print-directory test-oldest

clean: ## remove what was built
	@rm -rf build dist docs/site .pytest_cache .ruff_cache .hypothesis
	@find etrace tests notebooks -name __pycache__ -prune -exec rm -rf {} + \
		2>/dev/null || true

distclean: clean ## remove the virtual environments too
	@rm -rf .venv .venv-oldest .venv-3.*

.PHONY: help demo notebooks test test-oldest test-matrix lint bench rules-page docs format clean distclean

# One stamp a group, so that the demo does not wait for the linters.
PINS ?=
$(VENV)/.installed-demo: WANTED = --editable '.[demo]'
$(VENV)/.installed-notebooks: WANTED = --editable '.[notebooks]' jupyterlab
$(VENV)/.installed-test: WANTED = --editable '.[nir,notebooks,testing]' --group test
# Where these cannot be had, their tests are skipped.
$(VENV)/.installed-test: OPTIONAL = $(if $(PINS),,--group third-party)
$(VENV)/.installed-lint: WANTED = --editable '.[demo,nir,testing]' --group lint
$(VENV)/.installed-bench: WANTED = --editable '.[demo,testing]' $(if $(PEER),--group peer)
$(VENV)/.installed-docs: WANTED = --editable '.[nir,testing]' --group docs

$(VENV)/.installed-%: pyproject.toml | $(VENV)/.created
	@echo "==> installing what 'make $*' needs into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install -qq $(WANTED) $(PINS)
	@$(if $(OPTIONAL),$(BIN)/python -m pip install -qq $(OPTIONAL) || \
		echo "    without $(OPTIONAL)",:)
	@touch $@

# pip reads dependency groups from 25.1 on; a Python may bring an older one.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "etrace needs a Python >= 3.11 with venv on PATH," \
		"or make PYTHON=/path/to/python"; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade 'pip>=25.1'
	@touch $@
