# On a fresh Debian 12: `make demo`, or `make test`; each makes its virtual environment first.
# Two runs at once, in one checkout or in two, do not disturb each other.

PYTHON ?= python3
PHASES ?= unit native vm
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: help venv demo test lint deb
.DEFAULT_GOAL := help

help:
	@echo 'make demo   two gateways and a tunnel between them, shown and removed again (root)'
	@echo 'make test   all tests: unit, native (root), in a virtual machine (root);'
	@echo '            fewer with PHASES="unit native"'
	@echo 'make deb    a Debian package, in dist/'
	@echo 'make lint   format, lint and types, also of the Ansible collection'
	@echo 'make venv   only the virtual environment, in $(VENV)'

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@.ci/make-venv $(PYTHON) $(VENV) $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/xfrmpy demo

test: $(STAMP)
	@.ci/run-phases $(PHASES)

deb: $(STAMP)
	@$(VENV)/bin/python .ci/build_deb.py dist

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	.ci/lint-collection
