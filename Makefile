# The two commands of the README are `make serve` and `make test`; `make help` lists the others.
# Everything is installed into $(VENV), once, and again when a list of requirements changes; what only tests need, for them only.

STUDIES ?= sample-data
HOST ?= 127.0.0.1
PORT ?= 8000
VENV ?= .venv

BIN := $(VENV)/bin
STAMP := $(VENV)/.sliceprop-installed
TEST_STAMP := $(VENV)/.sliceprop-tests-installed

unexport PYTHONPATH PYTHONHOME PIP_USER
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads of torch sleep while they wait: spinning ones starve each other on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help install serve ohif test lint format types unit-tests sample-data demo benchmark benchmark-peers reliability audit sbom lock
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make the environment VENV=.venv and install everything into it

serve: $(STAMP) ## start the server: STUDIES=sample-data HOST=127.0.0.1 PORT=8000
	@exec $(BIN)/sliceprop serve --studies '$(STUDIES)' --host '$(HOST)' --port '$(PORT)' $(ARGS)

ohif: $(STAMP) ## annotate in a browser, with an archive of its own: DICOM=folder HOST=127.0.0.1 PORT=8000
	@packaging/install_orthanc.sh
	@exec $(BIN)/sliceprop ohif --host '$(HOST)' --port '$(PORT)' $(if $(DICOM),--dicom '$(DICOM)') $(ARGS)

test: lint types unit-tests ## lint, check types, run all tests

lint: $(TEST_STAMP) ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(TEST_STAMP) ## mend style and formatting where that is automatic
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(TEST_STAMP) ## check types
	$(BIN)/mypy

unit-tests: $(TEST_STAMP) ## run all tests; ARGS='tests/test_io.py -k nrrd' for some
	$(BIN)/pytest $(ARGS)

sample-data: $(STAMP) ## write the synthetic scan of sample-data/ anew
	$(BIN)/sliceprop sample-data sample-data

demo: $(STAMP) ## learn, propagate and evaluate on synthetic data, draw a picture
	$(BIN)/sliceprop demo

benchmark: $(STAMP) ## measure accuracy and time on the volumes in SLICEPROP_DATA; ARGS='--jobs 8' for accuracy.py
	$(BIN)/python benchmarks/accuracy.py $(ARGS)
	$(BIN)/python benchmarks/speed.py

PEERS := deep-labelprop biomedisa

benchmark-peers: $(STAMP) $(PEERS:%=.venv-%/.installed) ## measure slow methods and other people's programs on three volumes
	$(BIN)/python benchmarks/accuracy.py --subset slow --methods $(PEERS) unet \
	  --peer-python $(foreach peer,$(PEERS),$(peer)=.venv-$(peer)/bin/python) $(ARGS)

.venv-%/.installed: benchmarks/peers/%/requirements.txt benchmarks/peers/%/peer.txt
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --progress-bar off --requirement $<
	$(@D)/bin/python -m pip install --no-deps --requirement benchmarks/peers/$*/peer.txt
	@touch $@

reliability: $(TEST_STAMP) ## faults on purpose, 100,000 inputs, half an hour of ten clients: hours in all; the tests do it in small
	SLICEPROP_FUZZ=100000 $(BIN)/pytest tests/reliability/test_fuzz.py tests/reliability/test_work.py tests/reliability/test_openapi.py
	$(BIN)/python benchmarks/reliability.py
	$(BIN)/python benchmarks/load.py latency
	$(BIN)/python benchmarks/load.py soak
	$(BIN)/python benchmarks/load.py studies

TOOLS := .venv-release

audit: lock ## ask for known advisories of what is installed; fails where the registry does not tell of every package
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

sbom: lock ## write sbom.json, a bill of materials (CycloneDX) of what is installed, with hashes
	$(BIN)/python packaging/sbom.py $(TOOLS)/bin/cyclonedx-py $(BIN)/python requirements.lock sbom.json

lock: $(STAMP) $(TOOLS)/.installed ## write requirements.lock, everything that is installed with hashes, for releases
	packaging/lock.sh $(VENV) $(TOOLS) requirements.lock

$(TOOLS)/.installed:
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --progress-bar off pip-audit cyclonedx-bom uv
	@touch $@

# A stamp holds the checkout that was installed, so that a second checkout with the same VENV installs itself.
ifneq ($(shell cat '$(STAMP)' 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): requirements.txt pyproject.toml packaging/sam2/pyproject.toml
	@packaging/make_venv.sh '$(VENV)'
	@echo 'Installing into $(VENV): about 5 GB and 4 minutes the first time'
	$(BIN)/python -m pip install --progress-bar off --requirement requirements.txt
	@echo '$(CURDIR)' > '$@'

ifneq ($(shell cat '$(TEST_STAMP)' 2>/dev/null),$(CURDIR))
.PHONY: $(TEST_STAMP)
endif
$(TEST_STAMP): requirements-test.txt $(STAMP)
	$(BIN)/python -m pip install --progress-bar off --requirement requirements-test.txt
	@echo '$(CURDIR)' > '$@'
