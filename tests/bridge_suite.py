"""What a family's bridge must hold without a rank: configs that it reads, gives back and refuses, names and counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from megatron.bridge import AutoBridge
from megatron.bridge.errors import PlanError, UnsupportedConfigError
from megatron.bridge.models.conversion.plan import Plan, build_plan
from megatron.bridge.models.placement import read_placement
from megatron.bridge.transport.boxes import Shape
from tests.tiny_model import TinyModel

# Fields that say nothing about what the model computes.
NOT_MODEL_FIELDS = {
    "_name_or_path", "bos_token_id", "chunk_size_feed_forward", "eos_token_id", "id2label", "is_encoder_decoder",
    "label2id", "max_window_layers", "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp",
    "problem_type", "return_dict", "transformers_version", "use_cache",
}  # fmt: skip
# Sizes of configs that are not a tiny model's.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 128, "head_dim": 16}

Refused = tuple[str, dict[str, Any], str]


class BridgeSuite:
    """The test module of a bridge derives its class from this one, and names the variants.

    Attributes:
        models: the variants.
        refused: name of a variant, changes of its config, and what the error must say. That a field which other models
            have is refused needs no row.
        stated_twice: HF fields that an export states although other fields, which the source has, say the same.
    """

    models: ClassVar[Sequence[TinyModel]] = ()
    refused: ClassVar[Sequence[Refused]] = ()
    stated_twice: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "tiny" in metafunc.fixturenames:
            metafunc.parametrize("tiny", self.models, ids=[tiny.name for tiny in self.models])
        if "refused" in metafunc.fixturenames:
            unknown = (self.models[0].name, {"adapter_rank": 8}, "adapter_rank = 8: unknown to this family")
            rows = [unknown, *self.refused]
            metafunc.parametrize("refused", rows, ids=[f"{name}-{next(iter(changes))}" for name, changes, _ in rows])

    def test_config_round_trip(self, tiny: TinyModel) -> None:
        """HF config -> provider -> HF config: every field that describes the model comes back."""
        hf_config = tiny.hf_config()
        hf_config.dtype = torch.bfloat16
        bridge = AutoBridge.from_hf_config(hf_config)
        provider = bridge.to_megatron_provider(load_weights=False)
        provider.finalize()
        values = bridge._model_bridge.megatron_to_hf_config(provider)
        again = {**bridge._model_bridge.CONFIG_FIXED, **type(hf_config)(**values).to_dict()}
        for name, value in hf_config.to_dict().items():
            if name in NOT_MODEL_FIELDS or name in bridge._model_bridge.CONFIG_IRRELEVANT:
                continue
            assert again[name] == value or (value is None and name in self.stated_twice), name

    def test_refused(self, refused: Refused) -> None:
        name, changes, message = refused
        hf_config = next(tiny for tiny in self.models if tiny.name == name).hf_config()
        changed = type(hf_config)(**{**hf_config.to_dict(), **changes})
        with pytest.raises(UnsupportedConfigError, match=message):
            AutoBridge.from_hf_config(changed).to_megatron_provider(load_weights=False)

    def test_what_transformers_does_not_read_is_no_reason_to_refuse(self) -> None:
        """If it has the model's class: of any other model, nobody knows what it reads."""
        tiny = self.models[0]
        hf_config = tiny.hf_config()
        hf_config.some_new_switch = True
        bridge = AutoBridge.from_hf_config(hf_config)
        if hasattr(transformers, tiny.published_architecture):
            assert bridge.to_megatron_provider(load_weights=False) is not None
            assert bridge._model_bridge.unread_fields(hf_config) == {"some_new_switch": True}
        else:
            with pytest.raises(UnsupportedConfigError, match=r"some_new_switch = True: .*does not have this model"):
                bridge.to_megatron_provider(load_weights=False)

    def test_every_element_has_one_place(self, tiny: TinyModel) -> None:
        """Nothing is left over: the HF model, the plan's two sides and the built model have the same elements."""
        hf_model = tiny.empty_model()
        built = Built(tiny)
        plan = built.plan()
        padding = sum(piece.num_elements for task in plan for piece in task.layout.pieces if piece.role is None)
        in_hf = sum(prod(shape) for shape in plan.hf_shapes().values())
        assert in_hf == _num_stored(hf_model)
        assert plan.num_elements - padding == in_hf
        assert _num_stored(built.model) == plan.num_elements
        num_tables = 1 if tiny.hf_config().tie_word_embeddings else 2
        assert padding >= num_tables * (-hf_model.config.vocab_size % 128) * hf_model.config.hidden_size

    def test_a_tensor_too_few_or_too_many_is_found(self, tiny: TinyModel) -> None:
        """On either side: left out, misshapen, or not known."""
        built = Built(tiny)
        infos = {name: Info(shape) for name, shape in built.plan().hf_shapes().items()}
        assert built.plan(infos).hf_shapes().keys() == infos.keys()
        names = list(infos)
        lost, bent = names[len(names) // 2], names[-1]
        wrong = {**infos, bent: Info((*infos[bent].shape, 3)), "model.layers.0.no_such.weight": Info((1,))}
        del wrong[lost]
        with pytest.raises(PlanError) as caught:
            built.plan(wrong)
        message = str(caught.value)
        assert f"HF tensor {lost} " in message and "missing" in message
        assert f"HF tensor {bent}: expected" in message
        assert "model.layers.0.no_such.weight [1]: no mapping reads it" in message


@dataclass(frozen=True)
class Info:
    """An HF tensor of a checkpoint that is only thought of."""

    shape: Shape


class Built:
    """A Megatron model without memory, its vocabulary padded to a multiple of 128."""

    def __init__(self, tiny: TinyModel) -> None:
        bridge = AutoBridge.from_hf_config(tiny.hf_config())
        self.provider: Any = bridge.to_megatron_provider(load_weights=False)
        self.provider.mtp_num_layers = None  # transformers has no such layers
        self.provider.make_vocab_size_divisible_by = 128
        (self.model,) = self.provider.provide_distributed_model(wrap_with_ddp=False, init_model_with_meta_device=True)
        self.registry = bridge._model_bridge.registry()

    def plan(self, hf_tensors: dict[str, Info] | None = None) -> Plan:
        return build_plan(read_placement([self.model]), self.registry, self.provider, hf_tensors, model_name="tiny")


def _num_stored(model: torch.nn.Module) -> int:
    """Elements that a checkpoint of the model has, tied ones once: parameters and persistent buffers."""
    tensors = {id(value): value for value in model.state_dict(keep_vars=True).values() if torch.is_tensor(value)}
    return sum(tensor.numel() for tensor in tensors.values())


def check_older_file(content: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raises unless a config in the form in which older software wrote it gives a provider these fields.

    Args:
        content: what the file says besides `SIZES`.
    """
    hf_config = CONFIG_MAPPING[content["model_type"]].from_dict({**SIZES, **content})
    provider = AutoBridge.from_hf_config(hf_config).to_megatron_provider(load_weights=False)
    provider.finalize()
    for name, value in expected.items():
        assert getattr(provider, name) == value, name
