"""What lets megatron-core run without CUDA, and the one place that asks what the machine can do.

`enter()` is called explicitly, by `AutoBridge`'s entry points, the command line and test fixtures; importing this
package changes nothing and imports no torch.
"""


def enter() -> None:
    """Redirects megatron-core's CUDA requests to the CPU, for the rest of this process.

    Imports megatron-core, whose functions for `torch.compile` are compiled when they are first called. Redirects
    nothing where CUDA is available, nor on a second call.
    """
    from megatron.bridge.runtime import capabilities, startup

    if capabilities.has_cuda():
        startup.import_megatron_core()
        return

    from megatron.bridge.runtime import cpu

    with startup.lean_imports():
        cpu.redirect()
