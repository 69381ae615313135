# What the README tells people to call. Everything runs in .venv, which scripts/run/setup makes.
# Where bytecode is forbidden, each of hundreds of processes would compile the program anew, and
# pytest the tests: collecting them took 25 s in place of 16.
WRITING := env -u PYTHONDONTWRITEBYTECODE
# Of long tables most rows are left to the slow tests; each commit takes others.
PYTEST ?= $(WRITING) .venv/bin/pytest -q -n $(WORKERS) --dist worksteal -p scripts.prove.rotation
WORKERS ?= 2
# One more than the cores of CI: slow tests wait for servers, kills and leases a quarter of their time.
SLOW_WORKERS ?= 3
GPU_TESTS := tests/processes/test_on_gpu.py tests/processes/test_gpu_modes.py tests/processes/test_serving_on_gpu.py tests/project/test_gpu_check_whole.py
GPU_SAMPLE := a_run_on_a_gpu or first_rows or (old_driver and said)
GPU_CHECK ?= $(if $(MODEL),--model '$(MODEL)') $(if $(SOURCE),--source '$(SOURCE)') $(if $(OUT),--out '$(OUT)')

.PHONY: help setup setup-dev demo server worker lint test test-slow test-slow-sample test-gpu test-gpu-sample check test-install readers gguf docs docs-check docs-check-sample models pictures gpu-check bench wheel image lock clean distclean

help:
	@echo "Start"
	@echo "  make demo       installs, then captions clips through the whole program"
	@echo "                  (FILE=photo.jpg: that file, too, by the default model)"
	@echo "  make setup      installs into .venv alone"
	@echo "  make server     runs a Prefect server on 127.0.0.1"
	@echo "  make worker     deploys to it and runs a worker"
	@echo "  make wheel      builds dist/penstock-*.whl"
	@echo "Before a change is merged (these add the tools of tests and pages to .venv)"
	@echo "  make setup-dev  installs those alone"
	@echo "  make check      make lint (format, style, types, layers), then make test"
	@echo "  make test       runs the tests, in two processes"
	@echo "  make docs       builds site/index.html; a broken link or anchor fails"
	@echo "  make docs-check runs every command of README and docs/ on the demo's models"
	@echo "  make docs-check-sample  those of README, of changed pages and of a quarter"
	@echo "More tests"
	@echo "  make test-slow         runs the tests that take minutes"
	@echo "  make test-slow-sample  runs a fifteenth of those; the commits take turns"
	@echo "  make test-gpu          runs every command on simulated GPUs and drivers"
	@echo "  make test-gpu-sample   runs a few of those"
	@echo "  make test-install      runs the wheel without the lock on each Python (9 GB)"
	@echo "  make readers           has others read data sets, and ask the server (1.2 GB)"
	@echo "                         (SOURCES= TOKENIZERS=: compares docs/limits.md)"
	@echo "  make gguf              compiles llama.cpp into .venv, and runs its tests"
	@echo "  make image             builds docs/deploy/Dockerfile and tries it (30 GB)"
	@echo "Figures and pictures"
	@echo "  make gpu-check  checks what only a GPU can show, into docs/gpu.md"
	@echo "                  (MODEL= and SOURCE= of yours; OUT= writes elsewhere)"
	@echo "  make bench      runs the benchmarks"
	@echo "  make models     judges every family in halves (FAMILIES="a b": these) and writes docs/models.md"
	@echo "  make pictures   draws every picture of README and docs/ (needs Chromium),"
	@echo "                  and every page in build/pictures, to be looked at"
	@echo "Upkeep"
	@echo "  make lock       pins the dependencies (needs uv; UPGRADE=1: newer ones)"
	@echo "  make clean      removes builds and caches"
	@echo "  make distclean  removes .venv, too"

setup:
	@scripts/run/setup

# What tests, pages and figures need beside it, into the same .venv.
setup-dev:
	@LOCK=requirements/dev.txt scripts/run/setup

demo: setup
	@.venv/bin/penstock demo $${FILE:+"$$FILE"}

server: setup
	@exec scripts/run/server

# Ray is among what is added.
worker: $(if $(RAY),setup-dev,setup)
	@exec scripts/run/worker

test: setup-dev
	@$(PYTEST)

test-slow: setup-dev
	@$(PYTEST) -n $(SLOW_WORKERS) -m slow

test-slow-sample: setup-dev
	@$(PYTEST) -m slow -p scripts.prove.slow_sample

test-gpu: setup-dev
	@$(PYTEST) -m slow $(GPU_TESTS)

test-gpu-sample: setup-dev
	@$(PYTEST) -m slow $(GPU_TESTS) -k '$(GPU_SAMPLE)'

test-install: setup-dev
	@scripts/prove/test_install

readers: setup-dev
	@.venv/bin/python -m scripts.prove.readers $(if $(SOURCES),--sources '$(SOURCES)') \
		$(if $(TOKENIZERS),--tokenizers '$(TOKENIZERS)')

gguf: setup-dev
	@scripts/run/gguf

lint: setup-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-logo & layers=$$!; .venv/bin/mypy && wait $$layers

check: lint test

docs: setup-dev
	@.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going --builder html --conf-dir docs . site
	@echo "site/index.html"

docs-check: setup-dev
	@$(WRITING) .venv/bin/python -m scripts.prove.follow_docs

docs-check-sample: setup-dev
	@$(WRITING) .venv/bin/python -m scripts.prove.follow_docs --in-turn

pictures: setup-dev
	@.venv/bin/python -m scripts.pages.pictures

models: setup-dev
	@.venv/bin/python -m scripts.pages.tables models $(FAMILIES)

gpu-check: setup-dev
	@.venv/bin/python -m scripts.prove.gpu_check $(GPU_CHECK)

bench: setup-dev
	@scripts/run/bench

# With the build tool of .venv, or else with one that uv or pip fetches for this build.
wheel:
	@mkdir -p dist
	@if [ -x .venv/bin/uv-build ]; then \
		PATH="$(CURDIR)/.venv/bin:$$PATH" python -c "import uv_build; uv_build.build_wheel('dist')"; \
	elif uv --version >/dev/null 2>&1; then uv build --quiet --wheel --out-dir dist; \
	else $(or $(PYTHON),python3) -m pip wheel --quiet --no-deps --wheel-dir dist .; fi
	@ls dist/penstock-*.whl

image:
	@scripts/run/image

lock:
	@scripts/run/lock $(if $(UPGRADE),--upgrade)

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-readers
