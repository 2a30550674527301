"""Nothing is left over: the elements of the HF model, of the plan's two sides and of the built model are the same."""

from dataclasses import dataclass
from math import prod
from typing import Any

import pytest
import torch
import transformers

from megatron.bridge import AutoBridge
from megatron.bridge.errors import PlanError
from megatron.bridge.models.conversion.plan import Plan, build_plan
from megatron.bridge.models.placement import read_placement
from megatron.bridge.transport.boxes import Shape
from tests.tiny_models import TINY_MODELS, TinyModel


@dataclass(frozen=True)
class Info:
    """An HF tensor of a checkpoint that is only thought of."""

    shape: Shape


def num_stored(model: torch.nn.Module) -> int:
    """Elements that a checkpoint of the model has, tied ones once: parameters and persistent buffers."""
    tensors = {id(value): value for value in model.state_dict(keep_vars=True).values() if torch.is_tensor(value)}
    return sum(tensor.numel() for tensor in tensors.values())


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
        return build_plan(read_placement([self.model]), self.registry, self.provider, hf_tensors, what="tiny")


@pytest.mark.parametrize("tiny", TINY_MODELS.values(), ids=TINY_MODELS)
def test_every_element_has_one_place(tiny: TinyModel) -> None:
    with torch.device("meta"):
        hf_model = getattr(transformers, tiny.architecture)(tiny.hf_config())
    built = Built(tiny)
    plan = built.plan()
    padding = sum(piece.num_elements for task in plan for piece in task.layout.pieces if piece.role is None)
    in_hf = sum(prod(shape) for shape in plan.hf_shapes().values())
    assert in_hf == num_stored(hf_model)
    assert plan.num_elements - padding == in_hf
    assert num_stored(built.model) == plan.num_elements
    num_tables = 1 if tiny.hf_config().tie_word_embeddings else 2
    assert padding >= num_tables * (-hf_model.config.vocab_size % 128) * hf_model.config.hidden_size


@pytest.mark.parametrize("tiny", TINY_MODELS.values(), ids=TINY_MODELS)
def test_a_tensor_too_few_or_too_many_is_found(tiny: TinyModel) -> None:
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
