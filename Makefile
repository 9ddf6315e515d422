# Each target makes .venv and installs what is missing first. ARGS="..." goes to the command behind the target.
.PHONY: demo test check bench chaos format lock clean
.DEFAULT_GOAL := help
PYTHON ?= python3
export PYTHON

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## orders through kill -9, in under a minute
	@scripts/environment runtime
	@.venv/bin/python scripts/demo.py $(ARGS)

test: ## the tests; with a real Apache Kafka where there is a JDK and Maven, or KAFKA_BOOTSTRAP_SERVERS
	@scripts/environment dev
	@.venv/bin/python -m pytest $(ARGS)

check: ## form, lint, types, layers, tests
	@scripts/check $(ARGS)

bench: ## the benchmarks (ARGS="--help" for the parts)
	@scripts/environment dev
	@.venv/bin/python -m benchmarks $(ARGS)

chaos: ## ten minutes of faults on real processes and a real broker
	@scripts/environment dev
	@.venv/bin/python -m tests.faults.chaos $(ARGS)

format: ## put the code in form
	@scripts/environment dev
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock: ## pin the dependencies again
	@scripts/lock $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
