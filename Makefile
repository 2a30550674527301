# Everything runs through uv, which makes the environment on first use.

.PHONY: check test proof record-proof docs format

check:  ## lint, types, sizes, public names
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy src/megatron/bridge examples
	uv run python tools/check_project.py

test:  ## what every change must pass, on the CPU, offline
	uv run pytest

proof:  ## the rest: every variant on every layout, processes that are started, long lists of cases
	uv run pytest -m proof

record-proof:  ## what `megatron-bridge models` shows, into each family's record; FAMILY=llama for one family
	uv run pytest tests/functional_tests/models/$(FAMILY) -m "proof or not proof" --record-proof

docs:  ## the pages that are made from the code
	uv run python tools/make_docs.py

format:
	uv run ruff check --fix .
	uv run ruff format .
