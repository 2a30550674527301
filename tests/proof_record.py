"""`pytest --record-proof`: what the parity suite finds goes into the records of proofs in the families' folders.

A test hands its finding to pytest as a property of its report, which travels from the workers of pytest-xdist to the
one process that writes the file, at the end of the session.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.models import proven
from megatron.bridge.models.proven import Proof

CASE, PROOF = "proof case", "proof"
# Architecture, variant, layout.
Case = tuple[str, str, str]


class ProofRecorder:
    """The plugin of the process that writes: it merges what ran into the records of the families that ran.

    A case that passed replaces its old proof, one that failed loses it, one that did not run keeps it; a case that the
    table no longer has is dropped. So families can be recorded one at a time, and a run of everything leaves nothing
    old.

    Args:
        families: the folder that holds the families' folders.
        cases: all that the table has, with the name of the family's folder.
    """

    def __init__(self, families: Path, cases: Mapping[Case, str]) -> None:
        self._families, self._cases = families, cases
        self._ran: set[Case] = set()
        self._found: dict[Case, Proof] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called in the writing process for each test, wherever it ran."""
        properties: dict[str, Any] = dict(report.user_properties)
        if CASE not in properties:
            return
        case = tuple(properties[CASE])
        self._ran.add(case)
        if report.failed:
            self._found.pop(case, None)
        elif report.when == "call" and report.passed and PROOF in properties:
            self._found[case] = Proof(**properties[PROOF])

    def pytest_sessionfinish(self) -> None:
        """Writes the records."""
        for family in sorted({self._cases[case] for case in self._ran}):
            path = self._families / family / proven.RECORD
            cases = {case for case in self._cases if self._cases[case] == family}
            kept = {proof.case: proof for proof in proven.read_record(path) if proof.case in cases - self._ran}
            found = {case: proof for case, proof in self._found.items() if case in cases}
            proven.write_record({**kept, **found}.values(), path)


def as_property(proof: Proof) -> tuple[str, dict[str, Any]]:
    """A proof in the form in which it travels with a test's report."""
    rounded = float(f"{proof.max_diff:.1e}")
    return PROOF, {**asdict(proof), "max_diff": rounded}
