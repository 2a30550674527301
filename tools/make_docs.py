"""Makes the pages of docs/ that are lists of what is in the code."""

from pathlib import Path

from megatron.bridge.models.conversion.model_bridge import registered_bridges

ROOT = Path(__file__).resolve().parent.parent


def models_page() -> str:
    """The table of supported architectures."""
    lines = [
        "# Supported architectures",
        "",
        "Made by `make docs` from the registered bridges.",
        "",
        "| Hugging Face architecture | model type | bridge |",
        "|---|---|---|",
    ]
    for name, entry in sorted(registered_bridges().items()):
        path = f"../src/{entry.bridge_class.__module__.replace('.', '/')}.py"
        lines.append(f"| `{name}` | `{entry.model_type}` | [{entry.bridge_class.__name__}]({path}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "models.md").write_text(models_page())
