"""Multi-token prediction (MTP): layers that predict further tokens."""

from collections.abc import Mapping
from types import MappingProxyType

from megatron.bridge.models.conversion.blocks.names import Mappings
from megatron.bridge.models.conversion.fields.part import HFConfig
from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    Dropped,
    NotComputed,
    SwappedColumnsMapping,
    Tied,
)

# The usual HF names, by Megatron's, of what a prediction layer adds to a decoder layer.
_PREDICTION_NAMES = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "final_layernorm": "shared_head.norm"}
# The same where a module holds them for its one layer.
_MODULE_NAMES = {
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "eh_proj": "fc",
    "final_layernorm": "norm",
}
_NO_PREDICTION = "the Megatron model has no multi-token prediction layers (mtp_num_layers)"


def multi_token_prediction(
    layer: Mappings,
    config: HFConfig,
    *,
    hf: str = "model",
    lm_head: str = "lm_head",
    layers: str = "layers",
    first: int | None = None,
    names: Mapping[str, str] = MappingProxyType(_PREDICTION_NAMES),
    hidden_state_first: bool = False,
) -> Mappings:
    """Prediction layers, stored under the layer numbers that follow the last decoder layer.

    The HF tensors are dropped if the Megatron model has no such layers (`mtp_num_layers`).

    Args:
        layer: the mappings of a decoder layer, all of which a prediction layer has too.
        config: the HF config.
        layers: HF name of the list of prediction layers, below `hf`.
        first: the number of the first one; default: the number of decoder layers.
        names: HF names of the norms and the projection, by Megatron's.
        hidden_state_first: whether the projection's input is the hidden state followed by the embedding.
    """
    mappings: Mappings = []
    first = config.num_hidden_layers if first is None else first
    for index in range(getattr(config, "num_nextn_predict_layers", None) or 0):
        number = first + index
        hf_layer = f"{hf}.{layers}.{number}"
        added = {name: f"{hf_layer}.{hf_name}" for name, hf_name in names.items()}
        mappings += _prediction_layer(layer, index, number, added, hidden_state_first=hidden_state_first)
        mappings += [
            Tied(f"{hf_layer}.embed_tokens.weight", same_as=f"{hf}.embed_tokens.weight"),
            Tied(f"{hf_layer}.shared_head.head.weight", same_as=f"{lm_head}.weight"),
        ]
    return _or_dropped(mappings)


def prediction_module(layer: Mappings, *, hf: str = "mtp", decoder: str = "model") -> Mappings:
    """One prediction layer, stored in a separate module next to its norms and projection.

    The HF tensors are dropped if the Megatron model has no such layer (`mtp_num_layers`).

    Args:
        layer: the mappings of a decoder layer, all of which the prediction layer has too.
        hf, decoder: HF names of the module and of the decoder, each with a list of layers.
    """
    added = {name: f"{hf}.{hf_name}" for name, hf_name in _MODULE_NAMES.items()}
    return _or_dropped(_prediction_layer(layer, 0, 0, added, hf=(f"{decoder}.", f"{hf}.")))


def no_multi_token_prediction(*, hf: str = "mtp") -> Mappings:
    """Leaves out a prediction layer that is stored in a separate module, as transformers does.

    Args:
        hf: HF name of the module.
    """
    return [NotComputed(f"{hf}.**", _NO_PREDICTION)]


def _prediction_layer(
    layer: Mappings,
    index: int,
    number: int,
    added: Mapping[str, str],
    *,
    hf: tuple[str, str] = ("", ""),
    hidden_state_first: bool = False,
) -> Mappings:
    """Prediction layer `index` of a Megatron model.

    Args:
        number: the number of the HF layer.
        added: HF names of the norms and the projection, by Megatron's.
        hf: the beginning of a decoder layer's HF names, and what this layer has there.
    """
    megatron = f"mtp.layers.{index}"
    mappings: Mappings = []
    for name, hf_name in added.items():
        kind = SwappedColumnsMapping if hidden_state_first and name == "eh_proj" else AutoMapping
        mappings.append(kind(f"{megatron}.{name}.weight", f"{hf_name}.weight"))
    names = (f"decoder.layers.{number}.", f"{megatron}.transformer_layer.")
    mappings += [
        mapping.resolve([str(number)]).renamed(megatron=names, hf=hf)
        for mapping in layer
        if not isinstance(mapping, Dropped)
    ]
    return mappings


def _or_dropped(mappings: Mappings) -> Mappings:
    """The mappings, and marks that drop their HF tensors if no Megatron weight reads them."""
    readers = [mapping for mapping in mappings if not isinstance(mapping, Dropped)]
    return [
        *mappings,
        *(NotComputed(name, _NO_PREDICTION) for mapping in readers for name in mapping.hf_names.values()),
    ]
