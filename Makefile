# `make demo` and `make test` need Python 3.11 to 3.13 and nothing else; both make .venv by themselves.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
NEIGHBOURS := .neighbours

.PHONY: demo test commands neighbours lint site release-check clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12), (3, 13)) and "found Python %d.%d, expected 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install.py -c constraints.txt -e '.[baselines,int8,teachers,view,export,meshes,skeletons,tensorboard,docs,test]'
	touch $@

# A real sample segmented by the bundled model and scored; a small teacher and student trained on a phantom; figures.
demo: $(VENV)/ready
	BIN=$(BIN) DEMO=$(DEMO) sh examples/demo.sh

# Two processes of one thread each; a test that ends its process is named and the others continue.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# A test of every command as on a CPU without AVX-512 and bfloat16: both variables switch instruction sets off, the first
# for oneDNN (PyTorch's and OpenVINO's), the second for PyTorch's own kernels.
commands: $(VENV)/ready
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n 2 --dist worksteal -m commands

$(NEIGHBOURS)/ready: tests/neighbours/requirements.txt
	$(PYTHON) -m venv $(NEIGHBOURS)
	$(NEIGHBOURS)/bin/python -m pip install --quiet --no-deps -r $<
	touch $@

# What the packages of others read of volumes, objects and labels that distill writes; their versions exclude distill's, so
# they have an environment of their own.
neighbours: $(VENV)/ready $(NEIGHBOURS)/ready
	DISTILL_NEIGHBOURS=$(abspath $(NEIGHBOURS))/bin/python $(BIN)/python -m pytest tests/neighbours

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The documentation as pages in site/, which need no network.
site: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The files of a release: built, checked, and installed into an empty environment, in which a sample is segmented.
release-check:
	sh tools/check_release.sh $(PYTHON)

clean:
	rm -rf $(VENV) $(NEIGHBOURS) $(DEMO) site
