"""What lets megatron-core run without CUDA, and the one place that asks what the machine can do.

`enter()` is called explicitly, by `AutoBridge`'s entry points, the command line and test fixtures; importing this
package changes nothing and imports no torch.
"""


def enter() -> None:
    """Redirects megatron-core's CUDA requests to the CPU, for the rest of this process.

    Does nothing where CUDA is available, nor on a second call. Imports megatron-core, which takes a few seconds.
    """
    from megatron.bridge.runtime import capabilities

    if capabilities.has_cuda():
        return

    from megatron.bridge.runtime import cpu

    cpu.redirect()
