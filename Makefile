# Everything a person or a CI runner does with paystream, one word each. Needs only make,
# Python 3.11+ and, for the first run, a network: tools and libraries go into .venv.

PYTHON ?= python3
ORDERS ?=
FAULTS ?=
ARGS ?=
SEEDS ?= 200
MINUTES ?= 5
SEED ?= 1
RATE ?= 100

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long unit check simulate mutate-guarantees chaos acceptance bench lock clean

help: ## Show this list
	@echo "paystream: orders in, each charged once, settlements and balanced books out."
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS='|' read -r name text; do printf '  %-24s%s\n' "$$name" "$$text"; done
	@echo
	@echo "  PYTHON=python3.12   which Python builds .venv (3.11 or newer)"

install: ## Make .venv match the lock (each target below does it first)
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
		echo "There is no '$(PYTHON)' on this machine. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) .ci/make_venv.py

demo: install ## Run the whole flow on this machine: ORDERS=FILE and FAULTS=none|default are optional
	@.venv/bin/paystream demo $(if $(ORDERS),--orders "$(ORDERS)") $(if $(FAULTS),--faults "$(FAULTS)")

# Whatever the shell says, what is compiled is kept: otherwise every process that a run starts would
# compile the program, and pytest rewrite each of its modules, once more.
test test-long unit check: export PYTHONDONTWRITEBYTECODE =

test: install ## The tests, those with a real broker included
	.venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder \
		--hypothesis-profile thorough $(ARGS)

test-long: install ## The tests that take over ten seconds each, which CI runs as well
	.venv/bin/python -m pytest -q -n 2 --dist loadfile -m long $(ARGS)

unit: install ## The fast tests only (seconds)
	.venv/bin/python -m tests.fast $(ARGS)

check: install ## Format, lint, types, layers, schemas and the fast tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/paystream schemas check
	.venv/bin/python -m tests.fast $(ARGS)

simulate: install ## Run SEEDS=200 seeds of the simulation; ARGS='--seed 7' replays one
	@.venv/bin/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

mutate-guarantees: install ## Take each defence out in turn and see that a test or seed notices
	@.venv/bin/python -m tests.simulation.mutate $(ARGS)

chaos: install ## Kill and freeze everything under load, then judge: MINUTES=5 SEED=1 RATE=100
	@.venv/bin/paystream chaos run --minutes $(MINUTES) --seed $(SEED) --rate $(RATE) $(ARGS)

# Some hours, the shorter first: the ledger's worker killed 100 times, every defence taken out in
# turn, 2,000 seeds of the simulation, Kafka's own test of copies under bounces, 1,000 late ends at
# brokers of each transaction version, the books of 200,000 orders proved and damaged, too much of
# everything, and 300,000 orders in 20 minutes under more than 60 faults.
acceptance: install ## The long tests that no change waits for (hours)
	.venv/bin/python -m pytest -q -n 0 -m acceptance
	@.venv/bin/python -m benchmarks kills
	@.venv/bin/python -m tests.simulation.mutate
	@.venv/bin/python -m tests.simulation --seeds 2000
	@.venv/bin/paystream chaos copy
	@.venv/bin/paystream chaos kip890
	@.venv/bin/python -m benchmarks books
	@.venv/bin/paystream chaos overload
	@.venv/bin/paystream chaos run --minutes 20 --seed $(SEED) --rate 250 --every 16

bench: install ## Measure throughput and latency on this machine
	@.venv/bin/python -m benchmarks $(ARGS)

# Only this target needs uv. With the old locks in place uv keeps their versions; UPGRADE=1 takes
# the newest. The image's lock is the part of the full one that a running paystream needs.
UV ?= uv
LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --quiet --no-annotate \
	--no-emit-index-url --no-emit-find-links --no-header $(if $(UPGRADE),--upgrade)
lock: ## Resolve the dependencies again (needs uv; UPGRADE=1 for the newest)
	@command -v $(UV) >/dev/null 2>&1 || { \
		echo "There is no '$(UV)' on this machine. Only 'make lock' needs it: pip install uv, or name it with UV=..." >&2; exit 1; }
	$(UV) pip compile $(LOCK_FLAGS) pyproject.toml --extra dev -o requirements.lock
	$(UV) pip compile $(LOCK_FLAGS) pyproject.toml --extra image -c requirements.lock -o requirements-image.lock

clean: ## Remove .venv, caches and build products
	rm -rf .venv .venv.lock build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
