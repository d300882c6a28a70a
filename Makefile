# Everything on a fresh machine: `make demo` and `make test`. VENV names the virtual environment, WORKERS the
# number of processes that test.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
DEMO ?= rrlsam_demo
WORKERS ?= 2

.PHONY: demo test parity install install-dev clean

demo: install
	$(BIN)/rrlsam_demo -o $(DEMO) --overwrite

test: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu" \
		--cov --cov-report=term:skip-covered
	$(BIN)/python -P tests/packaging/check_wheel.py

# nnunetv2 without its dependencies: they would replace the CPU build of PyTorch and bring 5 GB.
parity: install-dev
	$(BIN)/pip install --quiet batchgeneratorsv2 einops seaborn tqdm
	$(BIN)/pip install --quiet --no-deps nnunetv2==2.8.1 dynamic-network-architectures==0.4.4
	$(BIN)/python -P -m pytest tests/parity

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.cfg
	rm -rf build $(VENV)/.installed-dev
	$(BIN)/pip install --quiet .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch setup.cfg pyproject.toml
	rm -f $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
