"""What was proven of each architecture: the record that the parity suite writes and the table of models shows.

Each family has its part of the record in its own folder, `models/<family>/proven.json`. It is data of the package: a
list of objects, one a line, in the order of their keys. It is written by `make record-proof` alone, and holds nothing
that did not pass.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron.bridge import models

FAMILIES = Path(next(iter(models.__path__)))
RECORD = "proven.json"

# Those that cut experts, which only variants with experts have.
EXPERT_LAYOUTS = ("ep2", "tp2-ep2-sp", "tp2-etp2-sp")
# In the order in which people read them.
LAYOUTS = ("tp1", "tp2", "pp2", "tp2-sp", *EXPERT_LAYOUTS)


@dataclass(frozen=True, order=True)
class Proof:
    """A variant of an architecture that agreed with transformers on a layout.

    Attributes:
        architecture: HF architecture, as in `config.architectures`.
        variant: of the tiny model that was compared (`tiny_models.py` among the family's tests).
        layout: sizes of tensor (`tp`), pipeline (`pp`), expert (`ep`) and expert-tensor (`etp`) parallelism, with `sp`
            for sequence parallelism.
        max_diff: largest absolute difference of float32 logits from transformers', with two digits.
        export_is_bitwise: whether the exported checkpoint has the bits of the imported one.
        reference: transformers' architecture that computes the same, under other names, where it lacks this one.
    """

    architecture: str
    variant: str
    layout: str
    max_diff: float
    export_is_bitwise: bool
    reference: str | None = None

    @property
    def case(self) -> tuple[str, str, str]:
        """What was compared."""
        return self.architecture, self.variant, self.layout


@dataclass(frozen=True)
class Support:
    """What is proven of one architecture.

    Attributes:
        num_variants: how many variants were compared.
        layouts: the layouts on which all of these agreed; of those that cut experts, all with experts.
        max_diff: the largest difference of logits over all of them.
        reference: as of `Proof`.
    """

    num_variants: int
    layouts: tuple[str, ...]
    max_diff: float
    reference: str | None = None


def read_proofs(families: Path = FAMILIES) -> list[Proof]:
    """The recorded proofs of all families, in order.

    Args:
        families: the folder that holds the families' folders.
    """
    return sorted(proof for path in families.glob(f"*/{RECORD}") for proof in read_record(path))


def read_record(path: Path) -> list[Proof]:
    """The proofs in the record of one family, in order; none if there is no record."""
    return [Proof(**row) for row in json.loads(path.read_text())] if path.is_file() else []


def write_record(proofs: Iterable[Proof], path: Path) -> None:
    """Writes the record of one family, the same bytes for the same proofs in any order."""
    fields = ({k: v for k, v in asdict(proof).items() if v is not None} for proof in sorted(proofs))
    rows = ",\n".join(map(json.dumps, fields))
    path.write_text(f"[\n{rows}\n]\n" if rows else "[]\n")


def support(proofs: Iterable[Proof] | None = None) -> dict[str, Support]:
    """What is proven, by architecture; an architecture without proof is absent.

    Args:
        proofs: default: the recorded ones.
    """
    proofs = read_proofs() if proofs is None else list(proofs)
    layouts: dict[str, dict[str, set[str]]] = {}
    diffs: dict[str, float] = {}
    references: dict[str, str | None] = {}
    for proof in proofs:
        if proof.export_is_bitwise:
            layouts.setdefault(proof.architecture, {}).setdefault(proof.variant, set()).add(proof.layout)
            references[proof.architecture] = proof.reference
            diffs[proof.architecture] = max(proof.max_diff, diffs.get(proof.architecture, 0.0))
    return {
        architecture: Support(
            num_variants=len(variants),
            layouts=tuple(layout for layout in LAYOUTS if _is_proven(layout, list(variants.values()))),
            max_diff=diffs[architecture],
            reference=references[architecture],
        )
        for architecture, variants in sorted(layouts.items())
    }


def _is_proven(layout: str, variants: list[set[str]]) -> bool:
    """Whether every variant that has a layout passed on it, and some has; given what each passed on."""
    if layout in EXPERT_LAYOUTS:
        variants = [found for found in variants if found.intersection(EXPERT_LAYOUTS)]
    return bool(variants) and all(layout in found for found in variants)
