"""The file of results: written after every step, so that a run that was stopped goes on where it was."""

import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from megatron.bridge.runtime import capabilities

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "megatron-core", "transformers", "transformer-engine")


class Record:
    """The results of all steps, in one JSON file.

    Results that were found on another GPU, with other packages or by other code are not continued.

    Attributes:
        steps: what each step found, by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = environment()
        found = json.loads(path.read_text()) if path.is_file() else {}
        self.is_continued = found.get("environment") == self.environment
        self.steps: dict[str, dict[str, Any]] = found["steps"] if self.is_continued else {}

    def is_done(self, name: str) -> bool:
        """Whether a step has a result. One that raised has none, and is tried again."""
        return name in self.steps and "error" not in self.steps[name]

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Adds the result of a step to the file."""
        self.steps[name] = result
        part = self.path.with_suffix(".part")
        content = {"environment": self.environment, "steps": self.steps}
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, self.path)


def environment() -> dict[str, Any]:
    """The device, the packages, and a digest of the project's code."""
    device = capabilities.device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        shown = {"device": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    else:
        shown = {"device": f"CPU ({platform.machine()})"}
    versions = {name: _version(name) for name in PACKAGES}
    return {**shown, "transformer_engine_used": capabilities.has_transformer_engine(), **versions, "code": _digest()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _digest() -> str:
    digest = hashlib.sha256()
    for folder in ("src", "tests", "tools/gpu_proof"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
