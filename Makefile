# make install     the environment alone, in .venv
# make reproduce   everything: environment, all notebooks, records, figures and the report in results/full
# make verify      a reviewer's run: every number, table, claim and rule against the reference values
# make bench       ratios: the world's step, a step against TRL's, selection against N
# make test        the tests, and the committed notebooks against their outputs
PYTHON  ?= python3
PROFILE ?= full
BIN     := .venv/bin
READY   := .venv/.ready
# On Linux the CPU build of torch; where that index cannot be reached, pip goes on with what it has.
TORCH   := $(if $(filter Linux,$(shell uname -s)),--extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 10)
# The longest first, so that no core is left alone with one of them at the end. 07 is not among them:
# it computes in bfloat16, of which no two processors give the same digits, so tests run it instead.
BOOKS   := 02_safedpo 04_selective_dpo_token_scoring 03_cdpo_dual_gradient_descent
BOOKS   += 06_one_loss_four_levers 05_dog_selection 00_the_world 01_dpo_basics 08_your_own_pairs
TWO     := -q -n 2 --dist loadfile --no-loadscope-reorder
NBVAL   := $(BIN)/python -m pytest -p no:cacheprovider $(TWO) --nbval --nbval-current-env
NBVAL   += $(BOOKS:%=notebooks/%.ipynb)
EMPTY   = SAFEALIGN_CACHE=$$(mktemp -d)

.PHONY: install reproduce verify test bench notebooks clean
install: $(READY)

reproduce: $(READY)
	$(BIN)/safealign reproduce --profile $(PROFILE)

verify: $(READY)
	$(BIN)/safealign verify

# Every notebook twice, each time from an empty cache, the second time on another instruction set.
test: $(READY)
	$(BIN)/python -m pytest $(TWO) tests
	$(EMPTY) $(NBVAL)
	$(EMPTY) ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE $(NBVAL)

# SmolLM2 is measured where SAFEALIGN_SMOLLM2 names its file (see tests/benchmarks/cpu.py).
bench: $(READY)
	$(BIN)/python tests/benchmarks/step.py
	$(BIN)/python tests/benchmarks/cpu.py
	$(BIN)/python tests/benchmarks/selection.py

# Regenerate the committed outputs, and the reference values that the tests compare with.
notebooks: $(READY)
	$(BIN)/safealign notebooks
	$(BIN)/python tests/reference_values.py

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(READY)

clean:
	rm -rf .venv results build *.egg-info .pytest_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
