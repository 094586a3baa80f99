# Needs Python >= 3.11, make and git; everything else is installed into .venv.
# `make demo` and `make test` do all of their own set-up and are quick the second time.

PYTHON ?= python3
# Options for installing torch, for example an index that offers CPU builds.  Without any, pip takes
# what it is offered: on Linux that may be the CUDA build, which works here too and is only larger.
TORCH_PIP_ARGS ?=

PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

.PHONY: help demo test test-all check format bench kills soak-plane profiles reference clean

help:
	@echo "make demo    train the example on the local plane, through a preemption and a kill"
	@echo "make test    the checks, then the tests"
	@echo "make test-all   the slow tests as well, each container with an interpreter of its own (20 min)"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make format  ruff's fixes and format"
	@echo "make bench   the measurements of docs/performance.md"
	@echo "make kills   30 kills at random moments, each run bit-identical (minutes)"
	@echo "make profiles   suite and kills under every reading of Modal's unknowns (an hour)"
	@echo "make reference  write docs/reference/local-plane.md from the code"
	@echo "make soak-plane   200 kills of clients and containers; nothing lost or left (minutes)"

demo: .venv/.examples
	@.venv/bin/python -m examples.tiny_cats.demo $(DEMO_ARGS)

test: check
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-all: check
	MODALKIT_LOCAL_QUICK_STARTS=0 .venv/bin/python -m pytest -n 2 --dist loadfile \
	  --no-loadscope-reorder -m "not gpu" $(PYTEST_ARGS)

check: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: .venv/.dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/.dev
	.venv/bin/python -m benchmarks imports $(BENCH_ARGS)
	.venv/bin/python -m benchmarks plane $(BENCH_ARGS)

kills: .venv/.dev
	.venv/bin/python -m tests.campaigns.kills $(KILLS_ARGS)

profiles: .venv/.dev
	.venv/bin/python -m tests.campaigns.profiles $(PROFILES_ARGS)

reference: .venv/.dev
	.venv/bin/python -m modalkit.local.reference > docs/reference/local-plane.md.new
	mv docs/reference/local-plane.md.new docs/reference/local-plane.md

soak-plane: .venv/.dev
	.venv/bin/python -m tests.campaigns.soak $(SOAK_ARGS)

clean:
	rm -rf .venv dist build demo-output

# One stamp per extra.  torch comes first and alone, so that its build is chosen once.
.venv/.torch:
	@echo "making .venv; the first time takes minutes" >&2
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "modalkit needs Python >= 3.11")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH_PIP_ARGS) torch >&2
	@touch $@

.venv/.examples: .venv/.torch pyproject.toml constraints.txt
	$(PIP) --editable ".[examples]" >&2
	@touch $@

.venv/.dev: .venv/.torch pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]" >&2
	@touch $@
