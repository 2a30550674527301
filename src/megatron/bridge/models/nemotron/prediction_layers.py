"""The mappings of Nemotron-H's prediction layers."""

from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion.param_mapping import Dropped


def prediction_layers(layer: blocks.Mappings, config: fields.HFConfig) -> blocks.Mappings:
    """Prediction layers, each made of several layers of the usual kinds, which HF numbers consecutively.

    Args:
        layer: the mappings of a decoder layer of any kind.
    """
    size, mappings = len(config.mtp_layers_block_type), []
    for depth in range(config.num_nextn_predict_layers):
        megatron, first, last = f"mtp.layers.{depth}", depth * size, (depth + 1) * size - 1
        mappings += blocks.parts(megatron, f"mtp.layers.{first}", ("enorm.weight", "hnorm.weight", "eh_proj.weight"))
        mappings += blocks.parts(megatron, f"mtp.layers.{last}", ("final_layernorm.weight",))
        for number in range(first, last + 1):
            names = (f"decoder.layers.{number}", f"{megatron}.mtp_model_layer.layers.{number - first}")
            mappings += [
                mapping.resolve([str(number)]).renamed(megatron=names, hf=("backbone.", "mtp."))
                for mapping in layer
                if not isinstance(mapping, Dropped)
            ]
    return mappings
