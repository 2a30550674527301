"""The exception tree: every error that a user's input can cause derives from `BridgeError`."""


class BridgeError(ValueError):
    """The root of all errors raised for bad input. Messages name the object, what is wrong, and the next step."""


class UnsupportedModelError(BridgeError):
    """The architecture has no bridge."""


class UnsupportedConfigError(BridgeError):
    """The architecture is known, but a value of its Hugging Face config cannot be represented exactly."""


class ParallelLayoutError(BridgeError):
    """The parallel sizes do not fit the model or the number of ranks."""


class PlanError(BridgeError):
    """The weights on the two sides do not match: the message lists every problem by tensor name."""


class CheckpointError(BridgeError):
    """A checkpoint (Hugging Face folder or torch_dist) is missing, incomplete or malformed."""


class QuantizationError(CheckpointError):
    """Stored numbers cannot be read as weights, such as quantised ones without a scale, or a scale without numbers."""


class HubError(BridgeError):
    """A model id could not be resolved or downloaded."""
