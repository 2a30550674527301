"""`inspect_model`: from a model's name to a report about it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from megatron.bridge.discovery import facts, weights
from megatron.bridge.discovery.config_levels import TOP_LEVEL, LeveledConfig, at_level, load_levels
from megatron.bridge.discovery.expected import expected_weights
from megatron.bridge.discovery.families import FamilyMatch, match_family
from megatron.bridge.discovery.layouts import parallel_layouts
from megatron.bridge.discovery.model_files import ModelFiles
from megatron.bridge.discovery.next_step import decide
from megatron.bridge.discovery.quantized import find_quantization
from megatron.bridge.discovery.reading import read_model
from megatron.bridge.discovery.report import Classes, ModelReport, Parameters, Support, Tying
from megatron.bridge.discovery.weights import Weight
from megatron.bridge.models.conversion.hooks import BridgeHooks

_SECOND_COPY = "tied to "


def inspect_model(path_or_repo_id: str | Path, *, revision: str | None = None) -> ModelReport:
    """Says what a model is without loading it: only its config and the headers of its weight files are read.

    Args:
        path_or_repo_id: a model's folder, a lone `config.json`, or a hub id, whose weights are not downloaded.
        revision: the branch, tag or commit of a hub id.

    Raises:
        CheckpointError: there is no config, a file is malformed, or the weights are of a model that wraps another.
        HubError: there is neither such a path nor such a model on the hub, or the hub cannot be reached.
    """
    model = read_model(str(path_or_repo_id), revision)
    config = load_levels(model)
    detection, quantization = find_quantization(model)
    tensors = weights.read_weights(model, detection, facts.num_layers(config))
    family = match_family(config, [*(weight.name for weight in tensors), *model.unread])
    tensors = [_as_copy(weight, family) for weight in tensors]
    tying = _tying(config, tensors)
    support = _support(family, {**{weight.name: weight.copies for weight in tensors}, **model.copies})
    if not model.stored:
        tensors = expected_weights(config, family)
    report = ModelReport(
        name=model.name,
        source=model.kind,
        kind=config.kind,
        kind_reason=config.kind_reason,
        text_level=".".join(config.text_level or ()) or (TOP_LEVEL if config.text_level is not None else "none"),
        classes=_classes(model, config),
        tying=tying,
        facts=facts.facts_by_subject(config),
        summaries=_summaries(config, family, tensors),
        parameters=_parameters(model, family, tensors),
        layers=weights.layer_map(tensors, _layer_kinds(config)),
        quantization=quantization,
        support=support,
        layouts=parallel_layouts(config, family, tensors, is_tied=tying.is_tied),
        problems=model.problems,
    )
    report.decisions, report.next_step = decide(report)
    return report


def _as_copy(weight: Weight, family: FamilyMatch) -> Weight:
    """The weight, in the category of copies if the family's rules leave it out as a copy."""
    is_copy = family.dropped.get(weight.name, "").startswith(_SECOND_COPY)
    return replace(weight, category="copies") if is_copy else weight


def _summaries(config: LeveledConfig, family: FamilyMatch, tensors: list[Weight]) -> dict[str, str]:
    """A sentence per subject from the config, with a remark if the checkpoint has nothing of it."""
    sentences = facts.summaries(config, family.fields)
    present = {weight.category for weight in tensors}
    for subject, category in (("MoE", "experts"), ("MTP", "prediction layers")):
        if tensors and subject in sentences and category not in present:
            sentences[subject] += "; the checkpoint has none"
    return sentences


def _layer_kinds(config: LeveledConfig) -> list[str] | None:
    kinds = facts.listed(config, "layer_types") or facts.listed(config, "layers_block_type")
    return None if kinds is None else [str(kind) for kind in kinds]


def _tying(config: LeveledConfig, tensors: list[Weight]) -> Tying:
    text_level = at_level(config.values, config.text_level or ()).get("tie_word_embeddings")
    has_output = any(weight.name.endswith(("lm_head.weight", "output_layer.weight")) for weight in tensors)
    return Tying(
        config.top("tie_word_embeddings"), text_level if config.text_level else None, has_output if tensors else None
    )


def _classes(model: ModelFiles, config: LeveledConfig) -> Classes:
    stated = config.values.get("architectures")
    auto_map = config.values.get("auto_map")
    model_type = config.values.get("model_type")
    return Classes(
        architectures=[str(name) for name in stated] if isinstance(stated, list) else [],
        model_type=None if model_type is None else str(model_type),
        auto_map=dict(auto_map) if isinstance(auto_map, dict) else {},
        config_class=type(config.loaded).__name__ if config.loaded is not None else None,
        refusal=config.refusal,
        modeling_file=_modeling_file(model, config),
    )


def _modeling_file(model: ModelFiles, config: LeveledConfig) -> str | None:
    """The file with the model's HF computation, in transformers or among the model's own code."""
    if config.loaded is not None:
        name = type(config.loaded).__module__.replace(".configuration_", ".modeling_")
        return f"{name.replace('.', '/')}.py"
    auto_map = config.values.get("auto_map")
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        module = str(value).rpartition("--")[2].partition(".")[0]
        if module.startswith("modeling"):
            return f"{model.name}/{module}.py"
    return None


def _parameters(model: ModelFiles, family: FamilyMatch, tensors: list[Weight]) -> Parameters:
    by_category = weights.parameters_by_category(tensors)
    is_expected = not model.stored
    num_experts, num_chosen = (
        facts.as_size(family.fields.get(name)) for name in ("num_moe_experts", "moe_router_topk")
    )
    return Parameters(
        is_expected=is_expected,
        total=sum(n for name, n in by_category.items() if name not in ("prediction layers", "copies")),
        active=weights.num_active(tensors, num_experts, num_chosen),
        by_category=by_category,
        bytes_by_dtype={} if is_expected else weights.bytes_by_dtype(tensors),
        stored_bytes=sum(
            (stored.end - stored.start) * model.copies.get(name, 1) for name, stored in model.stored.items()
        ),
        num_tensors=model.num_tensors,
        num_files=model.num_files,
    )


def _support(family: FamilyMatch, copies: dict[str, int]) -> Support:
    from megatron.bridge.models import proven

    dropped: Counter[str] = Counter()
    for name, reason in family.dropped.items():
        dropped[reason] += copies.get(name, 1)
    support = Support(
        is_supported=family.is_supported,
        reason=family.reason,
        unknown_fields=family.unknown_fields,
        foreign_fields=family.foreign_fields,
        encoder_fields=family.encoder_fields,
        not_read=family.not_read,
        refused=family.refused,
        unmatched={name: copies.get(name, 1) for name in family.unmatched},
        num_matched=sum(copies.get(name, 1) for name in family.megatron_names),
        num_of_encoders=len(family.of_encoders),
        dropped=dict(dropped),
        absent=family.absent,
    )
    if family.entry is not None:
        bridge = family.entry.bridge_class
        record = proven.support().get(family.entry.architecture)
        support.architecture, support.bridge = family.entry.architecture, bridge.__name__
        support.bridge_file = f"src/{bridge.__module__.replace('.', '/')}.py"
        support.provider = _provider_name(bridge)
        support.proven_layouts = list(record.layouts) if record else []
    return support


def _provider_name(bridge: type[BridgeHooks]) -> str:
    provider = bridge.PROVIDER_CLASS or "GPTModelProvider"
    return provider.rpartition(".")[2] if isinstance(provider, str) else provider.__name__
