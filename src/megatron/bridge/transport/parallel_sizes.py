"""How many ranks share a model, and how."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParallelLayout:
    """The sizes of tensor, pipeline and expert parallelism, in ranks."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def num_ranks(self) -> int:
        """The number of ranks that hold one copy of the model."""
        return self.tp * self.pp * self.ep

    @property
    def provider_fields(self) -> dict[str, int]:
        """The sizes under the names of a provider's fields."""
        return {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "expert_model_parallel_size": self.ep,
        }

    def __str__(self) -> str:
        return f"TP={self.tp} PP={self.pp}" + (f" EP={self.ep}" if self.ep > 1 else "")


ONE_RANK = ParallelLayout()
