"""Multi-token prediction (MTP): the number of layers that predict further tokens."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import HFConfig, Part, Values

# Prediction layers that share nothing. Some config classes lack the field.
PREDICTION_LAYERS = Part(
    reads=("num_nextn_predict_layers",),
    to_provider=lambda hf_config: {"mtp_num_layers": getattr(hf_config, "num_nextn_predict_layers", None) or None},
    to_hf=lambda provider: {"num_nextn_predict_layers": provider.mtp_num_layers or 0},
)


def _in_one_module(hf_config: HFConfig) -> Values:
    num_layers = getattr(hf_config, "mtp_num_hidden_layers", None) or 0
    if num_layers > 1:
        raise UnsupportedConfigError(
            f"mtp_num_hidden_layers {num_layers} cannot be represented: the layers "
            "share their norms and projection, and in megatron-core each has its own; expected 0 or 1"
        )
    return {"mtp_num_layers": num_layers or None}


# Prediction layers in one module, which share its norms and projection (see `blocks.prediction_module`).
PREDICTION_MODULE = Part(
    reads=("mtp_num_hidden_layers",),
    to_provider=_in_one_module,
    to_hf=lambda provider: {"mtp_num_hidden_layers": provider.mtp_num_layers or 0},
)
