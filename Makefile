# Two commands are enough: `make run` and `make test`. Both set up whatever is missing.
PYTHON ?= python3
VENV := .venv
# Processes that test beside each other, of about 3 GB each.
WORKERS ?= 2
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: run demo test check soak fmt bench bench-chat bench-training screenshots clean base
.DEFAULT_GOAL := run

run: base  ## serve the studio on http://127.0.0.1:7860
	@echo "== starting the studio"
	$(BIN)/python app.py

demo: base  ## train the angry bird and ask it and the base the same questions
	$(BIN)/python -m studio demo

test: $(VENV)/.dev base  ## every test but those that need CUDA, and long ones in their short form
	@sh scripts/install_browser.sh $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not soak" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev  ## format, lint, types, import rules, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit

soak: $(VENV)/.dev base  ## long tests in full: kill trainings, workers and clusters, upload a million broken files; an hour or so
	STUDIO_SOAK=1 $(BIN)/python -m pytest -s tests/integration/test_killed.py tests/integration/test_resume.py \
		tests/integration/test_upload_fuzz.py tests/integration/test_import_fuzz.py tests/integration/test_chaos.py tests/integration/test_executor_contract.py \
		tests/integration/test_queue.py tests/integration/test_reboot.py tests/integration/test_chat_soak.py tests/integration/test_attacks.py tests/e2e

fmt: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-training bench-chat  ## JSON, one line a benchmark
	$(BIN)/python -m tests.bench.datasets
	$(BIN)/python -m tests.bench.report
	$(BIN)/python -m tests.bench.jobs

bench-chat: $(VENV)/.dev base  ## the chat's engine against PEFT on transformers
	$(BIN)/python -m tests.bench.chat

bench-training: $(VENV)/.dev base  ## training against TRL, which gets an environment of its own, once
	$(BIN)/python -m tests.bench.training

screenshots: $(VENV)/.dev base
	@sh scripts/install_browser.sh $(BIN)/python
	$(BIN)/python scripts/screenshots.py --readme

base: $(VENV)/.ready
	@echo "== base model"
	@$(BIN)/python -m studio base fetch

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with: make run PYTHON=python3.12")'
	@echo "== virtual environment and packages (a few minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.ready requirements-dev.txt requirements-postgres.txt requirements-ray.txt
	@echo "== development packages"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-trl .mypy_cache .ruff_cache .pytest_cache .hypothesis
