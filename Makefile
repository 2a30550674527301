# Everything runs through uv, which makes the environment on first use.

.PHONY: check test proof record-proof gpu-proof docs format

PYTHON ?= uv run python  # `make gpu-proof PYTHON=python3` where there is no network

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

gpu-proof:  ## on a machine with a CUDA GPU: parity, gradients and generation of every family, speed, memory
	PYTHONPATH=src:.:$$PYTHONPATH HF_HUB_OFFLINE=1 $(PYTHON) -m tools.gpu_proof

docs:  ## the pages that are made from the code
	uv run python -m tools.make_docs

format:
	uv run ruff check --fix .
	uv run ruff format .
