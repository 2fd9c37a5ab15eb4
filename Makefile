# The two commands that matter are `make demo` and `make test`; both make the environment first.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Three workers of one thread each on two cores: tests of arms wait for servos and cameras half of
# their time. A worker that has nothing left takes over from the others.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist worksteal $(ARGS)
# The robot side, which needs no training and no export.
QUICK := tests/robots tests/runtime tests/benchmarks tests/test_boundaries.py
PYTHON312 ?= $(shell for p in python3.12 "$$(pyenv prefix 3.12 2>/dev/null)/bin/python3.12"; do \
	command -v "$$p" >/dev/null 2>&1 && "$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && { echo "$$p"; break; }; done)

.PHONY: demo demo-bundle check test test-slow setup lint types contracts dist lock pin-images bare clean help
help:
	@echo "make demo   record, train, export and run a policy on the simulated arm (no GPU, no robot)"
	@echo "make demo-bundle  the same, and keep its bundle as tests/data/demo.mtdit"
	@echo "make check  lint, types, import contracts and the quick tests, two minutes on two cores"
	@echo "make test   lint, types, import contracts and every test, ten minutes on two cores"
	@echo "make test-slow  what repeats a test in full size"
	@echo "make setup  only the environment, in $(VENV)"
	@echo "make dist   a wheel and a source distribution in dist/, to install on a robot computer"
	@echo "make lock   the pinned packages of docker/locks, after a change of dependencies"
	@echo "make pin-images  the digests of the base images in docker/, from their registry"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setup: making $(VENV) (about 6 GB: torch comes with its CUDA libraries)"
	@if [ -x $(PY) ]; then :; \
	elif [ -n "$(PYTHON312)" ]; then "$(PYTHON312)" -m venv $(VENV) || { rm -f $(PY); \
		echo "setup: no environment with $(PYTHON312): on Debian and Ubuntu, apt install python3.12-venv" >&2; exit 2; }; \
	elif command -v uv >/dev/null; then uv venv --python 3.12 --seed $(VENV); \
	else echo "setup: python3.12 was not found; install it or uv, or run: make PYTHON312=/path/to/python3.12" >&2; exit 2; fi
	@if command -v uv >/dev/null; then uv pip install --python $(PY) -e '.[dev]' -c constraints.txt; \
	elif $(PY) -m pip install -q uv; then $(VENV)/bin/uv pip install --python $(PY) -e '.[dev]' -c constraints.txt; \
	else $(PY) -m pip install -e '.[dev]' -c constraints.txt; fi
	@touch $(STAMP)

demo: setup
	$(VENV)/bin/mtdit demo

# The bundle that tests and newcomers run without training.
demo-bundle: demo
	rm -rf tests/data/demo.mtdit
	cp -r outputs/demo/policy.mtdit tests/data/demo.mtdit
	rm -rf tests/data/demo.mtdit/engines

check: setup lint types contracts
	$(PYTEST) -m "not slow" $(QUICK)

test: setup lint types contracts
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup
	$(VENV)/bin/mypy

contracts: setup
	$(VENV)/bin/lint-imports

# A release is a commit with the tag vVERSION, VERSION as in mtdit/__init__.py.
dist: setup
	@version=v$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' mtdit/__init__.py); \
	tag=$$(git describe --tags --exact-match --match 'v*' 2>/dev/null || true); \
	if [ -n "$$tag" ] && [ "$$tag" != "$$version" ]; then \
		echo "dist: this commit has the tag $$tag, but mtdit/__init__.py says $$version: make them equal" >&2; exit 2; fi
	$(PY) -m build --no-isolation --outdir dist .

lock: setup
	UV=$$(command -v uv || echo $(VENV)/bin/uv) docker/lock.sh

pin-images:
	docker/pin-images.sh

bare: setup
	bash .ci/bare

clean:
	rm -rf $(VENV) outputs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
