# Everything runs through uv, which makes the environment on first use.

.PHONY: check test proof docs format

check:  ## lint, types, sizes, public names
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy src/megatron/bridge/models/conversion
	uv run python tools/check_project.py

test:  ## the whole suite, on CPU, offline
	uv run pytest

proof:  ## every family on every layout
	uv run pytest -m proof

docs:  ## the pages that are made from the code
	uv run python tools/make_docs.py

format:
	uv run ruff check --fix .
	uv run ruff format .
