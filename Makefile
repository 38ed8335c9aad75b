# make bench   set up what is missing, run the benchmarks, print the table        K="int4 and minilm" narrows
# make test    set up what is missing, run every test, lint, and a small benchmark whose records are validated
# make ci-bench  judge accuracy on every core, then time in one process, and save the run as SAVE (ci)
#              BASE=main LIMITS="accuracy:1pp speed:10%" compares it with the save called main, and fails beyond a limit
# make gate-check  test the gate itself, for half an hour on a quiet machine, and write its rates into the README
# make mutants  plant faults in copies of the numerics, each of which a test must notice: some minutes
# make readme  measure again what the README shows
# make exports  write models in every format, check each, and put the table into docs/export.md; IMAGENET=DIR, of
#               labelled photographs, adds the accuracy of image classifiers
# TORCH_INDEX=URL installs PyTorch from another index, such as its CPU wheels on a Linux machine without a GPU.

SHELL := /bin/bash
VENV := .venv
RUN := $(VENV)/bin/python -m
K ?= int4 and (rtn or gptq or native) and not quick and not reviews

# The main methods on every model of the zoo, for which of them win on which family.
INSIGHT := onnxruntime and (int8 or int4) and not (adaptive or adaround or palette or quick or reduced or outliers or \
	dynamic or qat or distill or static_fast or static_equalized or static_percentile or static_entropy or static_mse)

EXPORTS := minilm-rtn-int8 minilm-rtn-int4 mobilenet_v2-static-int8 mobilenet_v2-rtn-int4 \
	reviews_gpt-rtn-int8_sym reviews_gpt-rtn-int4

SAVE ?= ci
LIMITS ?= accuracy:1pp
GATE := $(if $(BASE),--benchmark-compare=$(BASE) $(LIMITS:%=--metric-compare-fail=%))

.PHONY: bench ci-bench gate-check test mutants lint readme exports clean
.DELETE_ON_ERROR:

# Tests run side by side: one that took every core would only wait for the others.
test: export OMP_NUM_THREADS ?= 1
# Tests and exports start hundreds of processes; without compiled files each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

# Two sessions of one model are equally fast only in huge pages, which malloc then asks for where the kernel gives them.
bench ci-bench gate-check readme: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

bench: $(VENV)/.bench
	@$(RUN) pytest benchmarks -k "$(K)" --benchmark-save=bench

# The second run finds the outputs of the first in the cache.
ci-bench: $(VENV)/.bench
	@$(RUN) pytest benchmarks -k "$(K)" -n auto --benchmark-disable
	@$(RUN) pytest benchmarks -k "$(K)" -n 0 --benchmark-save=$(SAVE) $(GATE)

gate-check: $(VENV)/.bench
	$(RUN) pytest benchmarks -m gate --benchmark-json=build/gate.json
	$(RUN) reports reliability build/gate.json --into README.md

test: $(VENV)/.test lint
	$(RUN) pytest tests -q -n 2
	$(RUN) pytest benchmarks -q -k 'digits and rtn and int4' --benchmark-json=build/run.json
	$(RUN) reports validate build/run.json

mutants: $(VENV)/.test
	$(RUN) tests.mutants

# Measures again what the README shows and writes it there. PEERS=1 adds other libraries, once '.[peers]' is installed.
readme: $(VENV)/.bench
	$(RUN) pytest benchmarks -k "minilm and int4 and (rtn or gptq or native) and not quick" --benchmark-json=build/readme.json
	$(RUN) reports table build/readme.json --format markdown --into README.md --section int4
	$(RUN) pytest benchmarks --benchmark-json=build/readme.json \
		-k "mobilenet_v2 and onnxruntime and (static_plain or static_equalized or static_fast or static-int8-onnx) and not (qat or mixed)"
	$(RUN) reports table build/readme.json --format markdown --into README.md --section ablation
	$(RUN) pytest benchmarks -m quantize --benchmark-json=build/readme.json \
		-k "minilm and int4 and not (adaround or palette) or minilm-smoothquant-int8"
	$(RUN) reports table build/readme.json --format markdown --into README.md --section quantizers
	$(RUN) pytest benchmarks -m full -n auto --benchmark-disable --benchmark-json=build/readme.json -k "$(INSIGHT)" \
		--eval-samples 300
	$(RUN) reports insight build/readme.json --into README.md --section insight
ifdef PEERS
	$(RUN) pytest benchmarks -m peer -k "not auto_round" --eval-samples 200 --benchmark-json=build/readme.json
	$(RUN) reports table build/readme.json --format markdown --into README.md --section peers
endif

# Formats whose runtime is not installed are left out; docs/export.md says how LiteRT is.
exports: $(VENV)/.bench
	$(RUN) benchmarks export $(EXPORTS) $(if $(IMAGENET),--imagenet $(IMAGENET)) -o build/exports
	$(RUN) reports exports build/exports --into docs/export.md

lint: $(VENV)/.test
	$(RUN) ruff check .
	$(RUN) ruff format --check .

$(VENV)/.bench $(VENV)/.test: $(VENV)/.%: pyproject.toml fixtures/zoo/packages.txt .ci/find-python
	@mkdir -p build
	@echo "Setting up $(VENV) for 'make $*'. To download: PyTorch (about 0.2 GB for the CPU, 3 GB with CUDA on Linux:"
	@echo "TORCH_INDEX=... chooses), ONNX Runtime, MLX, Core ML Tools and friends (0.4 GB), model weights (0.1 GB)."
	@test -x $(VENV)/bin/python || { python=$$(.ci/find-python) && "$$python" -m venv $(VENV); }
	$(RUN) pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch>=2.8,<2.14'
	$(RUN) pip install --disable-pip-version-check --editable '.[$*]'
	$(RUN) pip install --disable-pip-version-check --no-deps --requirement fixtures/zoo/packages.txt
	@touch $@

clean:
	rm -rf $(VENV) build .cache
