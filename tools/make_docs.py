"""Makes the pages of docs/ that are lists of what is in the code, and the table of names in transformers' code."""

from pathlib import Path

from megatron.bridge.models.conversion.fields import transformers_names
from megatron.bridge.models.conversion.registered import registered_bridges
from megatron.bridge.models.proven import support
from tools.gpu_proof.page import gpu_page

ROOT = Path(__file__).resolve().parent.parent


_INTRODUCTION = """# Supported architectures

Made by `make docs` from the registered bridges and the record of the parity suite (`make record-proof`).

Each architecture is compared with transformers on tiny models with random weights, in float32: the logits on every
rank, and the exported checkpoint, which must have the bits of the imported one. A variant is another setting of the
config (biases, tied embeddings, windows, kinds of rope). A layout is listed where all variants of the architecture
passed (of layouts with `ep` or `etp`, all variants with experts): `tp`, `pp`, `ep` and `etp` are the sizes of tensor,
pipeline, expert and expert-tensor parallelism, `sp` is sequence parallelism. The difference is the largest of any
logit, over all variants and layouts.

Where transformers does not have an architecture, it is compared with one of transformers that computes the same under
other names, which the table says.
"""


def models_page() -> str:
    """The table of supported architectures, and what is proven of each."""
    proven = support()
    rows, unproven = [], []
    for name, entry in sorted(registered_bridges().items()):
        path = f"../src/{entry.bridge_class.__module__.replace('.', '/')}.py"
        bridge = f"[{entry.bridge_class.__name__}]({path})"
        found = proven.get(name)
        if found is None or not found.layouts:
            unproven.append(f"| `{name}` | `{entry.model_type}` | {bridge} |")
        else:
            against = f" (against `{found.reference}`)" if found.reference else ""
            proof = f"{found.num_variants} | {', '.join(found.layouts)}{against} | {found.max_diff:.1e}"
            rows.append(f"| `{name}` | `{entry.model_type}` | {bridge} | {proof} |")
    header = "| Hugging Face architecture | model type | bridge | variants | proven on | largest difference |"
    lines = [_INTRODUCTION, header, "|---|---|---|---|---|---|", *rows]
    if unproven:
        lines += [
            "",
            "## Not proven",
            "",
            "| Hugging Face architecture | model type | bridge |",
            "|---|---|---|",
            *unproven,
        ]
    return "\n".join(lines) + "\n"


def names_table() -> str:
    """The names in the code of transformers that say which config fields a family may ignore."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_types = {entry.model_type for entry in registered_bridges().values() if entry.model_type in CONFIG_MAPPING}
    folders = {transformers_names.folder_of(CONFIG_MAPPING[model_type]) for model_type in model_types}
    return transformers_names.to_json(transformers_names.find_names(folders))


if __name__ == "__main__":
    (ROOT / "docs" / "models.md").write_text(models_page())
    transformers_names.TABLE.write_text(names_table())
    (ROOT / "docs" / "gpu.md").write_text(gpu_page(ROOT / "docs" / "gpu.json"))
