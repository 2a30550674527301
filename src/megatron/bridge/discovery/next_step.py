"""The decision tree of model support, and the next step to which it leads."""

import shlex
from collections.abc import Iterator

from megatron.bridge.discovery import formatting
from megatron.bridge.discovery.report import Decision, ModelReport

# A vision encoder with more parameters than this is worth splitting across ranks, which takes Megatron's modules.
_LARGE_ENCODER = 2_000_000_000
_MODELS = "src/megatron/bridge/models"


def decide(report: ModelReport) -> tuple[list[Decision], str]:
    """The questions and their answers, in order, and what to do next."""
    decisions = list(_decisions(report))
    return decisions, _next_step(report)


def _decisions(report: ModelReport) -> Iterator[Decision]:
    yield Decision("LLM, VLM or other?", f"{report.kind}: {report.kind_reason}")
    support = report.support
    if report.kind == "VLM":
        yield Decision("HF or Megatron vision encoder?", _encoder(report))
    if report.kind == "other":
        return
    if support.is_supported:
        yield Decision("Is there a bridge?", f"yes: {support.bridge}, for {support.architecture}")
    else:
        nearest = f"; nearest: {support.bridge}, for {support.architecture}" if support.bridge else ""
        yield Decision("Is there a bridge?", f"{support.reason}{nearest}")
    if support.unknown_fields:
        names = ", ".join(unknown.name for unknown in support.unknown_fields)
        yield Decision("Is every config field known?", f"no: {names}")
    elif support.foreign_fields or support.refused:
        names = ", ".join(_foreign_names(report))
        yield Decision("Is every config field known?", f"not to this family, or not with this value: {names}")
    else:
        unread = ", ".join(field.name for field in support.not_read)
        answer = f"yes, except for what transformers does not read: {unread}" if unread else "yes"
        yield Decision("Is every config field known?", answer)
    if report.parameters.num_tensors:
        answer = _mappings(report)
        yield Decision("Stock or local mappings?", answer)
    if report.quantization.formats or report.quantization.problems or report.quantization.stated:
        yield Decision("Is it quantised?", _quantized(report))


def _encoder(report: ModelReport) -> str:
    if report.classes.config_class is None:
        return (
            "transformers does not have the encoder: add its code as modeling_<model>.py, or build it from Megatron's "
            "modules"
        )
    size = report.parameters.by_category.get("vision", 0)
    if size > _LARGE_ENCODER:
        return f"Megatron: {formatting.count(size)} parameters are worth splitting across ranks"
    count = f" ({formatting.count(size)} parameters)" if size else ""
    return f"HF: transformers has it, and every rank can hold it whole{count}"


def _mappings(report: ModelReport) -> str:
    support = report.support
    if not support.bridge:
        return "unknown: no family is near"
    if not support.unmatched:
        tensors = "every tensor of the text model" if report.kind == "VLM" else "every tensor"
        return f"stock: {support.bridge} has a rule for {tensors}"
    return f"local: {support.bridge} has no rule for {_count(report)}"


def _quantized(report: ModelReport) -> str:
    quantization = report.quantization
    if problems := quantization.problems:
        return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: {problems[0]}"
    if quantization.agree is False:
        return f"config and tensors disagree: {quantization.disagreements[0]}"
    formats = ", ".join(quantization.formats) or quantization.stated
    return f"{formats}; config and tensors agree" if quantization.agree else str(formats)


def _foreign_names(report: ModelReport) -> list[str]:
    """The fields that the family does not know, or not with this value."""
    fields = [field.name for field in report.support.foreign_fields]
    return fields + [item.name for item in report.support.refused]


def _count(report: ModelReport) -> str:
    number = sum(report.support.unmatched.values())
    return f"{number} tensor{'s' if number > 1 else ''}"


def _next_step(report: ModelReport) -> str:
    support, name = report.support, shlex.quote(report.name)
    modeling = report.classes.modeling_file or "the model's own modeling file"
    if report.problems and report.source == "folder":
        return f"Complete the folder first: {report.problems[0]}"
    if report.quantization.problems:
        return f"These numbers cannot be read as weights: {report.quantization.problems[0]} Fetch the checkpoint again."
    if report.kind == "other":
        return f"This is neither an LLM nor a VLM ({report.kind_reason}): read {modeling}, and write a bridge for it."
    if support.is_supported:
        if support.unknown_fields:
            names = ", ".join(unknown.name for unknown in support.unknown_fields)
            return (
                f"No family knows {names}: probably a new block. Look it up in {modeling}. Then add it to CONFIG in "
                f"{support.bridge_file}: as a part that reads it if it changes the computation, or else as irrelevant, "
                "with the reason."
            )
        if support.foreign_fields or support.refused:
            return (
                f"{support.bridge} does not know {', '.join(_foreign_names(report))}, or not with this value: read "
                f"{modeling}, then extend {support.bridge_file}."
            )
        if support.unmatched:
            first = next(iter(support.unmatched))
            return f"Add a mapping for {_count(report)} without a rule ({first}, ...) to {support.bridge_file}."
        if report.source == "config.json":
            return "The config is supported. Inspect the folder or the hub id to check its weights too, then import it."
        return f"megatron-bridge import {name} OUT"
    if report.kind == "VLM":
        return _new_vlm(report, modeling)
    return _new_family(report, modeling)


def _new_vlm(report: ModelReport, modeling: str) -> str:
    support = report.support
    local = "plus local mappings for the tensors without a rule" if support.unmatched else "as they are"
    text = (
        f" Its text model is nearest to {support.architecture}: use the rules of {support.bridge}, {local}."
        if support.bridge
        else ""
    )
    return (
        f"Add {_MODELS}/<family>/<model>_bridge.py, <model>_provider.py and modeling_<model>.py for "
        f"{', '.join(report.classes.architectures) or 'this architecture'}.{text}{_new_blocks(report)} Read {modeling}."
    )


def _new_blocks(report: ModelReport) -> str:
    names = ", ".join(field.name for field in report.support.unknown_fields)
    return f" No family knows {names}: probably a new block." if names else ""


def _new_family(report: ModelReport, modeling: str) -> str:
    support = report.support
    if support.reason and "cannot be converted" in support.reason:
        return f"{support.reason}. It needs layers of its own in megatron-core first."
    architecture = ", ".join(report.classes.architectures) or "this architecture"
    if support.bridge is None:
        return f"Add {_MODELS}/<family>/<model>_bridge.py for {architecture}: read {modeling}."
    rules = f" It has no rule for {_count(report)}." if support.unmatched else ""
    return (
        f"Add a bridge for {architecture}, starting as a subclass of {support.bridge} ({support.bridge_file}).{rules}"
        f"{_new_blocks(report)} Read {modeling}."
    )
