"""`pytest --record-proof`: what the parity suite finds goes into the package's record of proofs.

A test hands its finding to pytest as a property of its report, which travels from the workers of pytest-xdist to the
one process that writes the file, at the end of the session.
"""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.models import proven
from megatron.bridge.models.proven import Proof

CASE, PROOF = "proof case", "proof"


class ProofRecorder:
    """The plugin of the process that writes: it merges what ran into the file.

    A case that passed replaces its old proof, one that failed loses it, one that did not run keeps it; a case that the
    table no longer has is dropped. So families can be recorded one at a time, and a run of everything leaves nothing
    old.

    Args:
        path: of the record.
        cases: all that the table has.
    """

    def __init__(self, path: Path, cases: Collection[tuple[str, str, str]]) -> None:
        self._path, self._cases = path, set(cases)
        self._ran: set[tuple[str, str, str]] = set()
        self._found: dict[tuple[str, str, str], Proof] = {}

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
        """Writes the record."""
        kept = {proof.case: proof for proof in proven.read_proofs(self._path) if proof.case in self._cases - self._ran}
        if self._ran:
            proven.write_proofs({**kept, **self._found}.values(), self._path)


def as_property(proof: Proof) -> tuple[str, dict[str, Any]]:
    """A proof in the form in which it travels with a test's report."""
    rounded = float(f"{proof.max_diff:.1e}")
    return PROOF, {**asdict(proof), "max_diff": rounded}
