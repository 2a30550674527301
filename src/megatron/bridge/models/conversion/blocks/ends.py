"""The ends of a model: word embedding, final norm and output layer."""

from megatron.bridge.models.conversion.blocks.names import Mappings, kinds
from megatron.bridge.models.conversion.param_mapping import AutoMapping, Tied


def embeddings(
    *,
    tied: bool,
    hf: str = "model",
    lm_head: str = "lm_head",
    embedding: str = "embed_tokens",
    norm: str = "norm",
    norm_bias: bool = False,
    lm_head_bias: bool = False,
    megatron_norm: str = "final_layernorm",
) -> Mappings:
    """Word embedding, final norm and output layer.

    Args:
        tied: whether the output layer uses the weight of the word embedding.
        embedding, norm: HF names of the word embedding and the final norm, below `hf`.
        norm_bias, lm_head_bias: whether these layers have biases.
        megatron_norm: Megatron's name for the final norm; "final_norm" in a HybridModel.

    Example: `embeddings(tied=True)[-1]` is `Dropped('lm_head.weight', 'tied to model.embed_tokens.weight')`.
    """
    mappings: Mappings = [AutoMapping("embedding.word_embeddings.weight", f"{hf}.{embedding}.weight")]
    for kind in kinds(norm_bias):
        mappings.append(AutoMapping(f"decoder.{megatron_norm}.{kind}", f"{hf}.{norm}.{kind}"))
    if lm_head_bias:
        mappings.append(AutoMapping("output_layer.bias", f"{lm_head}.bias"))
    if tied:
        mappings.append(Tied(f"{lm_head}.weight", same_as=f"{hf}.{embedding}.weight"))
    else:
        mappings.append(AutoMapping("output_layer.weight", f"{lm_head}.weight"))
    return mappings


def backbone_embeddings(*, tied: bool) -> Mappings:
    """`embeddings` of a HybridModel with the names of Mamba-2 and Nemotron-H, where each layer is one mixer."""
    return embeddings(tied=tied, hf="backbone", embedding="embeddings", norm="norm_f", megatron_norm="final_norm")
