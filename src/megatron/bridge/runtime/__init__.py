"""What lets megatron-core run without CUDA, and the one place that asks what this machine can do.

`enter()` is called explicitly, by `AutoBridge`'s entry points, the command line and test fixtures; importing this
package changes nothing and imports no torch.
"""


def enter() -> None:
    """Redirect megatron-core's CUDA requests to the CPU for the rest of this process.

    Does nothing where CUDA is available, and nothing on a second call. Imports megatron-core (a few seconds).
    """
    from megatron.bridge.runtime import capabilities

    if capabilities.has_cuda():
        return

    from megatron.bridge.runtime import cpu

    cpu.redirect()
