# Everything runs through uv, which makes the environment on first use.

# What mypy reads; how strictly is in pyproject.toml.
SOURCE := src/megatron/bridge
TYPED := $(addprefix $(SOURCE)/,transport runtime models/hf_pretrained models/transformer models/conversion) \
	$(wildcard $(SOURCE)/models/*.py $(SOURCE)/models/*/modeling_*.py)

.PHONY: check test proof record-proof docs format

check:  ## lint, types, sizes, public names
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy $(TYPED)
	uv run python tools/check_project.py

test:  ## the whole suite, on CPU, offline
	uv run pytest

proof:  ## every family on every layout
	uv run pytest -m proof

record-proof:  ## the same, into the record that `megatron-bridge models` shows; FAMILY=llama for a part
	uv run pytest tests/functional_tests/models -m "proof or not proof" --record-proof $(if $(FAMILY),-k "$(FAMILY)")

docs:  ## the pages that are made from the code
	uv run python tools/make_docs.py

format:
	uv run ruff check --fix .
	uv run ruff format .
