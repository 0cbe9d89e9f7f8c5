# http-capture: `make` prints what there is.

PYTHON ?= python3
PIP := pip --disable-pip-version-check --quiet
SOURCES := $(shell find capture guard config -name '*.py' -o -name '*.pxd' -o -name '*.toml' -o -name py.typed)
PACKAGES := capture guard config
TESTED := capture guard config tests setup.py
KAFKA_LIB := tests/kafka/target/lib

# The tests see the installed package only, and each run is told which one that is. The program would take the name for
# a setting: tests that start it leave HTTP_CAPTURE_* out of its environment.
MAKEFLAGS += --no-print-directory
unexport PYTHONPATH
unexport HTTP_CAPTURE_EXTENSIONS
unexport HTTP_CAPTURE_PROFILE
PYTEST_COMPILED = mkdir -p build/compiled && cd build/compiled && \
	HTTP_CAPTURE_TESTED=compiled ../../.venv-wheel/bin/pytest -c ../../pyproject.toml --rootdir ../.. \
	-o cache_dir=build/compiled/.pytest_cache

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help venv demo test lint plain compiled alone test-uncompiled mutations test-compiled wheel bench bench-live bench-kafka bench-memory bench-uncompiled profile fuzz fuzz-checked differential kafka-jars test-broker clean python

help:
	@echo 'make demo          a demonstration that needs no network card, no Kafka and no root'
	@echo 'make venv          .venv: this tree, uncompiled, with what the tests need'
	@echo 'make test          everything: lint; tests on the plain package and mutations, beside them the wheel and the tests'
	@echo '                   on it; then those that must have the machine for themselves'
	@echo 'make lint          ruff and mypy'
	@echo 'make test-uncompiled, make test-compiled'
	@echo '                   one of the two runs; ARGS="-k name" goes to pytest'
	@echo 'make mutations     takes each step of the guard out and expects a test to fail (needs root); ARGS="--list" shows them'
	@echo 'make wheel         dist/: source archive, and from it the compiled wheel, with a profile (gcc); .venv-wheel has it'
	@echo 'make bench         speed against tcpdump and httpry on generated captures; ARGS="--peers" adds the slow ones'
	@echo 'make bench-live, make bench-kafka, make bench-memory, make bench-uncompiled'
	@echo '                   a NIC at full speed; a real Kafka; memory, growth, starts; without a compiler, against scapy'
	@echo 'make profile       instructions and time by stage (valgrind, perf)'
	@echo 'make fuzz          1,000,000 damaged inputs for each stage, compiled; ARGS="--stage parser --count 5000 --seed 7"'
	@echo 'make fuzz-checked  the same on a build with bounds checks and sanitizers (gcc), which has proved that it finds faults'
	@echo 'make differential  more generated traffic against tshark; ARGS="--seeds 0 100"'
	@echo 'make test-broker   tests against a real Apache Kafka (needs java and mvn)'
	@echo 'make clean         removes what was made'

# Environments. Made again only when the project file or the build script has changed.

python:
	@command -v $(PYTHON) >/dev/null || { echo 'make: no $(PYTHON) here: install Python 3.11 or newer, or set PYTHON=' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); http-capture needs 3.11 or newer: set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) has no venv module: install python3-venv, or set PYTHON=' >&2; exit 1; }

.venv/installed: pyproject.toml setup.py | python
	@echo '== .venv'
	@$(PYTHON) -m venv .venv
	@HTTP_CAPTURE_EXTENSIONS=skip .venv/bin/$(PIP) install -e .
	@touch $@

.venv/installed-test: pyproject.toml setup.py | python
	@echo '== .venv, with what the tests need'
	@$(PYTHON) -m venv .venv
	@HTTP_CAPTURE_EXTENSIONS=skip .venv/bin/$(PIP) install -e '.[test]'
	@touch .venv/installed $@

# The wheel is built from the source archive and not from the tree, so the archive is complete.
build/wheel-built: $(SOURCES) pyproject.toml setup.py MANIFEST.in README.md tests/bench/training.py | .venv/installed-test
	@echo '== source archive and compiled wheel'
	@mkdir -p build && rm -rf dist *.egg-info
	@HTTP_CAPTURE_EXTENSIONS=skip .venv/bin/python -m build --sdist --outdir dist . >build/sdist.log 2>&1 || { cat build/sdist.log >&2; exit 1; }
	@rm -rf *.egg-info
	@HTTP_CAPTURE_EXTENSIONS=require HTTP_CAPTURE_PROFILE=$(CURDIR)/.venv/bin/python \
		DIST_EXTRA_CONFIG=$(CURDIR)/.ci/build.cfg .venv/bin/$(PIP) wheel --no-deps --wheel-dir dist dist/*.tar.gz
	@touch $@

.venv-wheel/installed: build/wheel-built
	@echo '== .venv-wheel'
	@$(PYTHON) -m venv .venv-wheel
	@wheel=$$(echo dist/*.whl) && .venv-wheel/bin/$(PIP) install "$$wheel[test]" && \
		.venv-wheel/bin/$(PIP) install --force-reinstall --no-deps "$$wheel"
	@touch $@

# What an operator has: the wheel and what it needs. The test tools bring libraries that make the start longer.
.venv-bench/installed: build/wheel-built
	@echo '== .venv-bench'
	@$(PYTHON) -m venv --clear .venv-bench
	@.venv-bench/bin/$(PIP) install dist/*.whl
	@touch $@

# mypy looks for packages by folder, and the root is not named http_capture.
build/named/http_capture:
	@mkdir -p build/named
	@ln -sfn ../.. $@

venv: .venv/installed-test
wheel: .venv-wheel/installed

# What is run.

demo: .venv/installed
	@.venv/bin/http-capture demo

# For two cores. Neither of the two writes what the other reads.
test: lint
	@.venv/bin/python tests/beside.py '$(MAKE) plain' '$(MAKE) compiled'
	@$(MAKE) alone

plain: test-uncompiled mutations
compiled: test-compiled
alone: test-uncompiled test-compiled
plain compiled: PART = and not alone
alone: PART = and alone

lint: .venv/installed-test build/named/http_capture
	@echo '== ruff'
	@.venv/bin/ruff check --quiet $(TESTED)
	@.venv/bin/ruff format --quiet --check $(TESTED)
	@echo '== mypy'
	@.venv/bin/mypy --no-error-summary $(PACKAGES:%=-p http_capture.%)

test-uncompiled: .venv/installed-test
	@echo '== tests, uncompiled $(PART)'
	@find $(PACKAGES) -name '*.so' -delete
	@HTTP_CAPTURE_TESTED=uncompiled .venv/bin/pytest -m 'not broker and not once $(PART)' $(ARGS)

# 77: it cannot run here, and has said why. That is no error for a user who is not root, and one in CI.
mutations: .venv/installed-test
	@echo '== mutations of the guard'
	@.venv/bin/python tests/guard/mutations.py $(if $(filter mutations,$(MAKECMDGOALS)),$(ARGS)) || \
		{ code=$$?; [ $$code = 77 ] && [ -z "$$CI" ] || exit $$code; }

test-compiled: .venv-wheel/installed
	@echo '== tests, compiled wheel $(PART)'
	@$(PYTEST_COMPILED) -m 'not broker and not plain $(PART)' $(ARGS) $(CURDIR)/tests

kafka-jars: $(KAFKA_LIB)/fetched

$(KAFKA_LIB)/fetched: tests/kafka/pom.xml
	@echo '== jars of Apache Kafka'
	@rm -rf $(KAFKA_LIB)
	@mvn -q -B -f tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory=target/lib
	@touch $@

test-broker: .venv-wheel/installed $(KAFKA_LIB)/fetched
	@echo '== tests against a real broker'
	@$(PYTEST_COMPILED) -m broker $(ARGS) $(CURDIR)/tests/kafka $(CURDIR)/tests/incident

bench: .venv-bench/installed
	@.venv-bench/bin/python tests/bench/bench.py $(ARGS)

bench-live: .venv-bench/installed .venv/installed
	@.venv-bench/bin/python tests/bench/live.py $(ARGS)

bench-kafka: .venv-bench/installed $(KAFKA_LIB)/fetched
	@.venv-bench/bin/python tests/bench/kafka.py $(ARGS)

bench-memory: .venv-bench/installed
	@.venv-bench/bin/python tests/bench/memory.py $(ARGS)

bench-uncompiled: .venv-bench/installed .venv/installed
	@.venv-bench/bin/python tests/bench/uncompiled.py $(ARGS)

profile: .venv-bench/installed
	@.venv-bench/bin/python tests/bench/stages.py $(ARGS)

# Failing inputs are in build/fuzz.
fuzz: .venv-wheel/installed
	@.venv-wheel/bin/python tests/fuzz/run.py $(ARGS)

fuzz-checked: .venv/installed-test
	@PYTHON=$(CURDIR)/.venv/bin/python tests/fuzz/checked.sh prove
	@PYTHON=$(CURDIR)/.venv/bin/python tests/fuzz/checked.sh build
	@PYTHON=$(CURDIR)/.venv/bin/python tests/fuzz/checked.sh run tests/fuzz/run.py $(ARGS)

differential: .venv-wheel/installed
	@.venv-wheel/bin/python tests/differential/compare.py $(ARGS)

clean:
	@rm -rf .venv .venv-wheel .venv-bench build dist *.egg-info tests/kafka/target .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(PACKAGES) tests -name __pycache__ -prune -exec rm -rf {} +
	@find $(PACKAGES) -name '*.so' -delete
