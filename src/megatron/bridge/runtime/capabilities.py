"""What this machine can do. Every choice between CUDA and CPU, or Transformer Engine and torch, is made from this."""

import importlib.util
import os

import torch


def has_cuda() -> bool:
    """Whether this process can use a CUDA device."""
    return torch.cuda.is_available()


def has_transformer_engine() -> bool:
    """Whether Transformer Engine can be used: it is installed, and its kernels have a CUDA device."""
    return has_cuda() and importlib.util.find_spec("transformer_engine") is not None


def device() -> torch.device:
    """This rank's device: `cuda:<LOCAL_RANK>` (0 without torchrun), or `cpu`."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_cuda() else torch.device("cpu")


def distributed_backend() -> str:
    """The `torch.distributed` backend for `device()`: `nccl` or `gloo`."""
    return "nccl" if has_cuda() else "gloo"
