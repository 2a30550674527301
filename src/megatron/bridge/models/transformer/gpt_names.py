"""The names that a GPTModel gives to the weights of a decoder, whichever class it was built or saved as."""

import re

_NUMBER = re.compile(r"((?:^|\.)decoder\.layers\.)(\d+)(?=\.)")
_PREDICTION = re.compile(r"(?<=\.)mtp_model_layer\.layers\.\d+(?=\.)")


def gpt_name(name: str, letters_per_layer: int = 1) -> str:
    """The name in a GPTModel of a weight, or of its entry in a checkpoint.

    `gpt_name("decoder.layers.7.mlp.linear_fc2.weight", 2)` is `decoder.layers.3.mlp.linear_fc2.weight`.

    Args:
        letters_per_layer: how many layers of a HybridStack each of the decoder's layers is, 1 or 2.
    """
    name = name.replace("decoder.final_norm.", "decoder.final_layernorm.")
    name = _PREDICTION.sub("transformer_layer", name)
    return _NUMBER.sub(lambda found: f"{found[1]}{int(found[2]) // letters_per_layer}", name)
