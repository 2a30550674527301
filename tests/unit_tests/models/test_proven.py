"""The record of proofs: it is whole, it is what the parity suite found, and pages and commands show no more than it."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from megatron.bridge.models import proven
from megatron.bridge.models.conversion.registered import registered_bridges
from megatron.bridge.models.proven import Proof
from tests.parity import all_cases
from tests.programs import TIMEOUT
from tests.rounding import LIMIT
from tools import make_docs

HOW = "run `make record-proof FAMILY=<family>`, or `make record-proof` for all"


def test_every_architecture_is_proven_and_every_proof_has_an_architecture() -> None:
    found = proven.support()
    assert found.keys() == registered_bridges().keys(), HOW
    for architecture, support in found.items():
        assert {"tp1", "tp2", "pp2", "tp2-sp"} <= set(support.layouts), f"{architecture}: {HOW}"


def test_the_record_is_that_of_the_table() -> None:
    recorded = [
        (proof.case, path.parent.name)
        for path in proven.FAMILIES.glob(f"*/{proven.RECORD}")
        for proof in proven.read_record(path)
    ]
    assert len(recorded) == len(set(recorded))
    missing, stale = all_cases().items() - recorded, set(recorded) - all_cases().items()
    assert (sorted(missing), sorted(stale)) == ([], []), HOW


def test_what_is_recorded_passed() -> None:
    for proof in proven.read_proofs():
        assert proof.export_is_bitwise, proof
        assert 0 <= proof.max_diff <= LIMIT, proof
        assert proof.layout in proven.LAYOUTS, proof


def test_another_reference_is_said_where_transformers_lacks_the_architecture() -> None:
    for name, found in proven.support().items():
        assert (found.reference is None) == hasattr(transformers, name), name
    page = make_docs.models_page()
    assert "(against `Qwen2ForCausalLM`)" in next(line for line in page.splitlines() if "`MiMoForCausalLM`" in line)


def _proofs() -> list[Proof]:
    return [
        Proof("AForCausalLM", "a", "tp1", 1e-7, True),
        Proof("AForCausalLM", "a", "tp2", 2e-7, True),
        Proof("AForCausalLM", "a-tied", "tp1", 4e-7, True),
        Proof("BForCausalLM", "b", "pp2", 3e-7, True),
    ]


def test_the_file_does_not_depend_on_the_order(tmp_path: Path) -> None:
    proofs = _proofs()
    proven.write_record(proofs, tmp_path / "first")
    random.Random(0).shuffle(proofs)
    proven.write_record(proofs, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert proven.read_record(tmp_path / "second") == _proofs()
    assert len((tmp_path / "first").read_text().splitlines()) == 2 + len(proofs), "one line for each proof"


def test_a_layout_is_proven_if_every_variant_passed_on_it() -> None:
    found = proven.support(_proofs())
    assert found["AForCausalLM"] == proven.Support(num_variants=2, layouts=("tp1",), max_diff=4e-7)
    assert found["BForCausalLM"].layouts == ("pp2",)
    assert proven.support([Proof("CForCausalLM", "c", "tp1", 1e-7, export_is_bitwise=False)]) == {}


def test_a_layout_that_cuts_experts_is_proven_by_the_variants_with_experts() -> None:
    dense, experts, more = (
        [Proof("MForCausalLM", name, layout, 1e-7, True) for layout in layouts]
        for name, layouts in (("dense", ["tp1"]), ("experts", ["tp1", "ep2", "tp2-ep2-sp"]), ("more", ["tp1", "ep2"]))
    )
    assert proven.support([*dense, *experts])["MForCausalLM"].layouts == ("tp1", "ep2", "tp2-ep2-sp")
    assert proven.support([*dense, *experts, *more])["MForCausalLM"].layouts == ("tp1", "ep2")
    assert proven.support(dense)["MForCausalLM"].layouts == ("tp1",)


def test_pages_list_only_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = [Proof("LlamaForCausalLM", "llama", "tp2", 2e-7, True)]
    monkeypatch.setattr(make_docs, "support", lambda: proven.support(proofs))
    supported, unproven = make_docs.models_page().split("## Not proven")
    assert "| 1 | tp2 | 2.0e-07 |" in supported
    assert "`LlamaForCausalLM`" in supported and "`Qwen3ForCausalLM`" not in supported
    assert "`LlamaForCausalLM`" not in unproven and "`Qwen3ForCausalLM`" in unproven


# Recording, in a pytest session of its own with two workers. Family x has variants a, b and c, family y has d.
_SESSION = """
import json, pathlib, sys, pytest
from tests.proof_record import ProofRecorder
folder, cases, argv = json.loads(sys.argv[1])
recorder = ProofRecorder(pathlib.Path(folder), {tuple(case): family for case, family in cases})
sys.exit(pytest.main(["-c", "/dev/null", "-p", "no:cacheprovider", *argv], plugins=[recorder]))
"""
_TESTS = """
import pytest
from megatron.bridge.models.proven import Proof
from tests.proof_record import CASE, as_property

@pytest.mark.parametrize("layout", ["tp1", "tp2", "pp2"])
@pytest.mark.parametrize("variant", ["a", "b", "d"])
def test_case(variant, layout, record_property):
    record_property(CASE, ("X", variant, layout))
    assert (variant, layout) != ("a", "tp2")
    record_property(*as_property(Proof("X", variant, layout, 1.2345e-7, True)))
"""


def _record(folder: Path, *argv: str) -> list[tuple[str, float]]:
    (folder / "test_cases.py").write_text(_TESTS)
    for family in "xy":
        (folder / family).mkdir(exist_ok=True)
    variants = {"a": "x", "b": "x", "c": "x", "d": "y"}
    cases = [(("X", name, layout), family) for name, family in variants.items() for layout in ("tp1", "tp2", "pp2")]
    arguments = json.dumps([str(folder), cases, [str(folder / "test_cases.py"), *argv]])
    session = subprocess.run(
        [sys.executable, "-c", _SESSION, arguments], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert session.returncode in (0, 1, 5), session.stdout + session.stderr
    return [(f"{p.variant}-{p.layout}", p.max_diff) for p in proven.read_proofs(folder)]


def test_recording_merges_what_ran(tmp_path: Path) -> None:
    old = [("a", "tp2"), ("a", "pp2"), ("b", "tp1"), ("c", "tp1"), ("gone", "tp1")]
    (tmp_path / "x").mkdir()
    record = tmp_path / "x" / proven.RECORD
    proven.write_record([Proof("X", variant, layout, 5e-7, True) for variant, layout in old], record)
    # Only variant a runs: a-tp2 failed, so its old proof is gone, like that of a variant that the table lacks.
    found = _record(tmp_path, "-n", "2", "-k", "a-")
    assert found == [("a-pp2", 1.2e-7), ("a-tp1", 1.2e-7), ("b-tp1", 5e-7), ("c-tp1", 5e-7)]
    assert not (tmp_path / "y" / proven.RECORD).exists(), "nothing of that family ran"
    before = record.read_bytes()
    assert len(_record(tmp_path, "-n", "0", "-k", "d-")) == len(found) + 3
    assert record.read_bytes() == before


def test_a_session_without_comparisons_writes_nothing(tmp_path: Path) -> None:
    assert _record(tmp_path, "-n", "0", "-k", "nothing") == []
    assert list(tmp_path.glob(f"*/{proven.RECORD}")) == []
