"""LLM, VLM or other: judged by the parts of the config, whose fields keep their level."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers

from megatron.bridge.discovery import ModelReport, inspect_model

TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 16,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 4}


def save_vlm(
    folder: Path, name: str, text: Mapping[str, object], vision: Mapping[str, object], **top: object
) -> torch.nn.Module:
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(text_config={**TEXT, **text}, vision_config=vision, **top)
    model: transformers.PreTrainedModel = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.save_pretrained(folder)
    return model


def facts_of(report: ModelReport) -> dict[str, tuple[object, str]]:
    return {fact.name: (fact.value, fact.level) for facts in report.facts.values() for fact in facts}


def inspect_config(folder: Path, values: Mapping[str, object]) -> ModelReport:
    (folder / "config.json").write_text(json.dumps(values))
    return inspect_model(folder / "config.json")


def test_a_vlm_with_the_hf_encoder_and_stock_mappings(tmp_path: Path) -> None:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
    model = save_vlm(tmp_path, "Qwen3VL", rope, vision, tie_word_embeddings=True)
    report = inspect_model(tmp_path)
    assert report.kind == "VLM" and report.text_level == "text_config"
    facts = facts_of(report)
    assert facts["num_attention_heads"] == (4, "text_config") and facts["depth"] == (2, "vision_config")
    assert facts["image_token_id"][1] == "top level"
    of_parts = {"vision": 0, "projector": 0}
    for name, parameter in model.named_parameters():
        if name.startswith("model.visual."):
            of_parts["projector" if "merger" in name else "vision"] += parameter.numel()
    assert {part: report.parameters.by_category[part] for part in of_parts} == of_parts
    assert report.support.bridge == "Qwen3Bridge" and report.support.unmatched == {}
    assert report.support.num_of_encoders == sum(name.startswith("model.visual.") for name in model.state_dict())
    assert [field.name for field in report.support.unknown_fields] == ["rope_parameters.mrope_section"]
    answers = {decision.question: decision.answer for decision in report.decisions}
    assert answers["HF or Megatron vision encoder?"].startswith("HF: transformers has it")
    assert answers["Stock or local mappings?"].startswith(
        "stock: Qwen3Bridge has a rule for every tensor of the text model"
    )
    assert "modeling_<model>.py for Qwen3VLForConditionalGeneration" in report.next_step
    assert "No family knows rope_parameters.mrope_section: probably a new block" in report.next_step


def test_tied_embeddings_of_a_vlm_are_those_of_the_top_level(tmp_path: Path) -> None:
    for tied in (True, False):
        folder = tmp_path / str(tied)
        text = {"model_type": "mistral", "tie_word_embeddings": not tied}
        save_vlm(
            folder, "Mistral3", text, {**VISION, "model_type": "pixtral", "image_size": 16}, tie_word_embeddings=tied
        )
        tying = inspect_model(folder).tying
        assert tying.is_tied is tied and tying.fact is not None and tying.fact.level == "top level"
        assert tying.text_level is (not tied)
        assert tying.has_output_layer is not tied


def test_the_nearest_family_of_a_text_model_is_that_of_its_type(tmp_path: Path) -> None:
    save_vlm(tmp_path, "Mistral3", {"model_type": "mistral"}, {**VISION, "model_type": "pixtral", "image_size": 16})
    report = inspect_model(tmp_path)
    assert report.support.bridge == "MistralBridge"
    of_encoder = {field.name for field in report.support.encoder_fields}
    assert {"projector_hidden_act", "vision_feature_layer", "spatial_merge_size"} <= of_encoder


def test_an_unknown_field_at_each_level_of_a_vlm(tmp_path: Path) -> None:
    save_vlm(tmp_path, "Gemma3", {}, {**VISION, "image_size": 16}, mm_tokens_per_image=4)
    config = json.loads((tmp_path / "config.json").read_text())
    config["strange_top"] = config["adapter_rank"] = 1
    config["text_config"]["strange_text"] = config["text_config"]["adapter_kernel_size"] = 2
    config["vision_config"]["strange_vision"] = config["vision_config"]["mask_value"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    support = inspect_model(tmp_path).support
    levels = {field.name: field.level for field in support.not_read}
    assert levels == {"strange_top": "top level", "strange_text": "text_config", "strange_vision": "vision_config"}
    levels = {field.name: field.level for field in support.unknown_fields}
    assert levels == {"adapter_rank": "top level", "adapter_kernel_size": "text_config", "mask_value": "vision_config"}


def test_a_vlm_with_the_fields_of_its_text_model_at_the_top_level(tmp_path: Path) -> None:
    values = {**TEXT, "vision_config": {"depth": 2, "hidden_size": 32}, "model_type": "qwen2_5_vl"}
    values |= {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "rms_norm_eps": 1e-6, "rope_theta": 1e6}
    report = inspect_config(tmp_path, values)
    assert report.kind == "VLM" and report.text_level == "top level"
    assert facts_of(report)["num_key_value_heads"] == (2, "top level")


def test_an_encoder_that_transformers_does_not_have(tmp_path: Path) -> None:
    values = {
        "model_type": "new_vl",
        "architectures": ["NewVLModel"],
        "vision_config": {"depth": 2},
        "llm_config": TEXT,
    }
    report = inspect_config(tmp_path, values)
    assert report.kind == "VLM" and report.text_level == "llm_config"
    answers = {decision.question: decision.answer for decision in report.decisions}
    assert answers["HF or Megatron vision encoder?"].startswith("transformers does not have the encoder")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.Qwen2AudioConfig(), "audio_config"),
        (transformers.Qwen2_5OmniConfig(), "talker_config"),
        (transformers.T5Config(), "is_encoder_decoder"),
        (transformers.BertConfig(), "type_vocab_size"),
        (transformers.ViTConfig(), "no text model"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_other_models(config: transformers.PretrainedConfig, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    report = inspect_model(tmp_path)
    assert report.kind == "other" and reason in report.kind_reason
    assert "neither an LLM nor a VLM" in report.next_step


def test_a_name_says_nothing(tmp_path: Path) -> None:
    values = {**TEXT, "model_type": "llama", "architectures": ["LlamaVisionVLForConditionalGeneration"]}
    assert inspect_config(tmp_path, values).kind == "LLM"
