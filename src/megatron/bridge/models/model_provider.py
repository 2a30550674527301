"""What every provider does: build the model over the ranks, run hooks on it, and wrap it for training."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError

if TYPE_CHECKING:
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.module import MegatronModule

    from megatron.bridge.models.model_building import Wrapper

    # The class that the mix-in is mixed into. Only type checkers need to know it.
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig as _Config
else:

    class _Config:
        """Stands for `DecoderConfig`, which a provider inherits beside the mix-in."""


type Hook = Callable[[list[MegatronModule]], list[MegatronModule] | None]
type Provider = ModelProviderMixin[MegatronModule]  # a `DecoderConfig` that builds a model, of whatever class


class ModelProviderMixin[ModelT: "MegatronModule"](_Config):
    """Building and wrapping, for a `DecoderConfig` that has `provide`."""

    _pg_collection: "ProcessGroupCollection | None" = None
    _pre_wrap_hooks: "list[Hook] | None" = None
    _post_wrap_hooks: "list[Hook] | None" = None

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> ModelT:
        """Builds this rank's part of the model (one chunk)."""
        raise NotImplementedError(f"{type(self).__name__} must define provide()")

    def register_pre_wrap_hook(self, hook: Hook, prepend: bool = False) -> None:
        """Adds a function that is given the list of model chunks before they are wrapped.

        Hooks run in the order of their registration; with `prepend`, it runs before those that are there. It returns
        the chunks to go on with, or `None` if it changed them in place: `lambda chunks: [add_lora(c) for c in chunks]`.
        """
        hooks = self._pre_wrap_hooks = list(self._pre_wrap_hooks or ())
        hooks.insert(0 if prepend else len(hooks), hook)

    def register_post_wrap_hook(self, hook: Hook, prepend: bool = False) -> None:
        """Like `register_pre_wrap_hook`, but the function is given the chunks after they are wrapped."""
        hooks = self._post_wrap_hooks = list(self._post_wrap_hooks or ())
        hooks.insert(0 if prepend else len(hooks), hook)

    def apply_overrides_and_finalize(
        self, dtype: "torch.dtype | None" = None, overrides: Mapping[str, object] | None = None
    ) -> None:
        """Sets the dtype, and fields by name, then finalises.

        Raises:
            AttributeError: a name that is not a field.
        """
        from megatron.bridge.models.transformer.decoder_config import set_dtype

        if dtype is not None:
            set_dtype(self, dtype)
        for name, value in (overrides or {}).items():
            if not hasattr(self, name):
                raise AttributeError(f"{type(self).__name__} has no field {name!r}")
            setattr(self, name, value)
        self.finalize()

    def initialize_model_parallel(
        self, seed: int | None = None, seed_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Initialises torch.distributed (if needed) and Megatron's process groups for this provider's sizes.

        Args:
            seed: the seed of the random number generators; default: the field `seed`.
            seed_kwargs: passed to megatron-core's `model_parallel_cuda_manual_seed`.
            kwargs: passed to megatron-core's `initialize_model_parallel`.
        """
        from megatron.bridge.transport import process_groups

        seed = self.seed if seed is None else seed
        process_groups.initialize(
            tp=self.tensor_model_parallel_size,
            pp=self.pipeline_model_parallel_size,
            vpp=self.virtual_pipeline_model_parallel_size,
            cp=self.context_parallel_size,
            ep=self.expert_model_parallel_size,
            etp=self.expert_tensor_parallel_size,
            seed=seed,
            **kwargs,
        )
        if seed_kwargs:
            from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

            model_parallel_cuda_manual_seed(seed, **seed_kwargs)

    def provide_distributed_model(
        self,
        ddp_config: "DistributedDataParallelConfig | None" = None,
        model_type: "ModelType | None" = None,
        overlap_param_gather_with_optimizer_step: bool = False,
        fp16: bool | None = None,
        bf16: bool | None = None,
        use_megatron_fsdp: bool = False,
        use_torch_fsdp2: bool = False,
        wrap_with_ddp: bool = True,
        data_parallel_random_init: bool = False,
        use_cpu_initialization: bool | None = None,
        init_model_with_meta_device: bool | None = None,
        pre_wrap_hook: "Hook | list[Hook] | None" = None,
        post_wrap_hook: "Hook | list[Hook] | None" = None,
        mixed_precision_wrapper: "Wrapper | None" = "Float16Module",
        pg_collection: "ProcessGroupCollection | None" = None,
    ) -> "list[MegatronModule]":
        """Builds this rank's model chunks, runs the hooks (which load weights or add adapters), and wraps the chunks.

        Initialises process groups for the provider's sizes, if nobody has done so before.

        Args:
            ddp_config: the config of megatron-core's DistributedDataParallel; default: its defaults.
            model_type: accepted for clients that pass it.
            fp16, bf16: override the provider's flags.
            wrap_with_ddp: wrap each chunk for data-parallel training.
            use_cpu_initialization: build on the CPU, then move to the device.
            init_model_with_meta_device: build without memory for the weights.
            pre_wrap_hook: one hook or several; replaces the registered ones.
            post_wrap_hook: likewise, after wrapping.
            mixed_precision_wrapper: the class that wraps a half-precision chunk; `None` for no wrapper.
            pg_collection: process groups to use instead of the global ones.

        Returns:
            One chunk per virtual pipeline stage.

        Raises:
            ParallelLayoutError: the process groups in use were made for other sizes.
            UnsupportedConfigError: megatron-core refuses the config, or FSDP is asked for.
        """
        from megatron.bridge import runtime

        runtime.enter()
        from megatron.core import parallel_state

        from megatron.bridge.models import model_building

        for flag, value in (("fp16", fp16), ("bf16", bf16), ("use_cpu_initialization", use_cpu_initialization)):
            if value is not None:
                setattr(self, flag, value)
        if init_model_with_meta_device is not None:
            self.init_model_with_meta_device = init_model_with_meta_device
        if pg_collection is not None:
            self._pg_collection = pg_collection
        self.finalize()  # a pipeline layout says how many chunks there are
        if self._pg_collection is None and not parallel_state.model_parallel_is_initialized():
            self.initialize_model_parallel()
        if self._pg_collection is None:
            model_building.check_parallel_sizes(self)
        if use_megatron_fsdp or use_torch_fsdp2:
            raise UnsupportedConfigError(
                "provide_distributed_model: FSDP wrapping is not offered; use wrap_with_ddp=True"
            )
        chunks = model_building.build_chunks(self, self.provide)
        chunks = _run_hooks(chunks, self._pre_wrap_hooks if pre_wrap_hook is None else pre_wrap_hook)
        chunks = model_building.to_device(self, chunks)
        chunks = model_building.wrap_mixed_precision(self, chunks, mixed_precision_wrapper)
        if wrap_with_ddp:
            chunks = model_building.wrap_ddp(
                self,
                chunks,
                ddp_config,
                data_parallel_random_init,
                overlap_param_gather_with_optimizer_step,
                self._pg_collection,
            )
        return _run_hooks(chunks, self._post_wrap_hooks if post_wrap_hook is None else post_wrap_hook)


def get_model(
    provider: "Provider", ddp_config: "DistributedDataParallelConfig | None" = None, **kwargs: Any
) -> "list[MegatronModule]":
    """`provider.provide_distributed_model` as a function.

    Args:
        kwargs: passed to `provide_distributed_model`.
    """
    return provider.provide_distributed_model(ddp_config=ddp_config, **kwargs)


def _run_hooks(chunks: "list[MegatronModule]", hooks: "Hook | list[Hook] | None") -> "list[MegatronModule]":
    for hook in hooks if isinstance(hooks, list) else [hooks] if hooks is not None else []:
        changed = hook(chunks)
        chunks = chunks if changed is None else changed
    return chunks
