"""What each of the ranks does that quickstart starts: compares with the reference in each layout."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from megatron.bridge import runtime
from megatron.bridge.cli import output
from megatron.bridge.cli.quickstart import EXPORT_FOLDER, MEGATRON_FOLDER, RANKS_FILE, REFERENCE_FILE, SHARDED_LAYOUTS


def main(folder: Path) -> None:
    """Reads the reference from the quickstart's folder, and writes the comparisons into it."""
    output.quiet()
    runtime.enter()
    import torch

    from megatron.bridge import verification
    from megatron.bridge.inference.open_model import open_model
    from megatron.bridge.transport import process_groups

    reference = verification.Reference(**torch.load(folder / REFERENCE_FILE, weights_only=True))
    entries = []
    for layout in SHARDED_LAYOUTS:
        start = time.monotonic()
        # Tensor parallelism does not divide the model's 3 query groups, and a checkpoint has them as they are.
        source = MEGATRON_FOLDER if layout.tp == 1 else EXPORT_FOLDER
        opened = open_model(folder / source, layout, torch.float32)
        result = verification.compare_with(reference, opened.model)
        entries.append({"layout": asdict(layout), "result": asdict(result), "seconds": time.monotonic() - start})
    if process_groups.rank() == 0:
        (folder / RANKS_FILE).write_text(json.dumps(entries))
    process_groups.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
