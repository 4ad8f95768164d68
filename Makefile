# The README's two commands are `make demo` and `make test`; each sets up what it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs_ready

# The oldest transformers that pyproject.toml allows, and the newest that was tried.
OLDEST := 5.17.0
NEWEST := $(shell sed -n 's/^transformers==//p' constraints.txt)

.PHONY: demo quick test test-all test-versions traces check format docs

demo: $(READY)
	$(BIN)/python experiments/compare.py experiment=demo

# What needs no process, no training and no second: under a minute.
quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow and not whole'

# One thread each: two processes that fight over the cores' threads are slower than one. A file's
# tests stay together, since they share what is slow to make.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# And what takes half a minute each: what CI runs.
test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

# Toy traces, summaries, replayed numbers and trainings, compared with tests/traces.txt: refactors
# change none of them. UPDATE=1 writes the file anew.
traces: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_DISABLE_PROGRESS_BARS=1 $(BIN)/python -m tests.traces $(if $(UPDATE),--update)

# In throwaway environments that hold their own transformers, and torchao, of which transformers tells
# every process that has it. They find all else in $(VENV). The
# warning that does not count is peft's.
test-versions: $(READY)
	for version in $(OLDEST) $(NEWEST); do \
		there=$$(mktemp -d) && $(PYTHON) -m venv $$there && \
		packages() { $$1 -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; } && \
		echo "import site; site.addsitedir('$$(packages $(BIN)/python)')" \
			> $$(packages $$there/bin/python)/shared.pth && \
		$$there/bin/python -m pip install --quiet --disable-pip-version-check transformers==$$version torchao && \
		OMP_NUM_THREADS=1 $$there/bin/python -m pytest -n 2 tests/lm tests/runtime tests/proposer tests/heads \
			-W error::FutureWarning -W error::DeprecationWarning:specdec \
			-W 'ignore:`is_gradient_checkpointing` is deprecated:FutureWarning' && \
		rm -r $$there || exit 1; \
	done

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Into site/; a link that leads nowhere is an error. (With --quiet it would not be: warnings are not counted.)
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@
