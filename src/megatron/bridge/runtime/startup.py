"""Imports of megatron-core and transformers without torch's compiler, which takes as long to import as both together.

They decorate functions with `torch.compile` and `torch.compiler.disable`, which import the compiler (`torch._dynamo`
and `torch._inductor`) at once, for functions that are mostly never called.
"""

import functools
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

type _Decorator = Callable[..., Any]


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within it, `torch.compile` and `torch.compiler.disable` decorate a function at its first call, not before.

    A function decorated so has its name, its `__wrapped__` and torch's marks, and compiles as it would have. Modules of
    torch, and functions that are to be compiled around some calls only (`recursive=False`), are decorated at once.
    Nor does Python look for reference cycles here: importing makes a million objects that have none.

    Can be nested, and used as a decorator. Imports torch.
    """
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        if importlib.util.find_spec("torch") is None:  # `megatron-bridge inspect` hides it
            yield
            return
        import torch

        compile_now, disable_now = torch.compile, torch.compiler.disable
        if hasattr(compile_now, "defers"):  # within another use, which will restore them
            yield
            return
        torch.compile, torch.compiler.disable = _deferred_compile(compile_now), _deferred_disable(disable_now)
        try:
            yield
        finally:
            torch.compile, torch.compiler.disable = compile_now, disable_now
    finally:
        if is_collecting:
            gc.enable()


def import_megatron_core() -> None:
    """Imports megatron-core as `lean_imports` does, and what a GPT model is built of; also where there is CUDA.

    Does nothing if megatron-core was imported before. Functions of modules that are imported later compile at their
    first call as well, because `megatron.core.jit` keeps the decorator.
    """
    if "megatron.core" not in sys.modules:
        with lean_imports():
            import megatron.core.models.gpt.gpt_model  # noqa: F401


def _deferred_compile(compile_now: _Decorator) -> _Decorator:
    @functools.wraps(compile_now)
    def compile_later(model: object = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(compile_later, **options)
        if not isinstance(model, FunctionType):
            return compile_now(model, **options)
        # torch inlines the function where it compiles a caller.
        return _decorated_later(model, functools.partial(compile_now, **options), _torchdynamo_inline=model)

    vars(compile_later)["defers"] = True
    return compile_later


def _deferred_disable(disable_now: _Decorator) -> _Decorator:
    @functools.wraps(disable_now)
    def disable_later(fn: object = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        disable = functools.partial(disable_now, recursive=recursive, reason=reason)
        if not recursive or not isinstance(fn, FunctionType | None):
            return disable(fn)
        if fn is None:
            return functools.partial(disable_later, reason=reason)
        # torch ends a graph where it compiles a caller.
        marks = {"": True, "_msg": reason, "_recursive": True}
        return _decorated_later(fn, disable, **{f"_torchdynamo_disable{name}": mark for name, mark in marks.items()})

    return disable_later


def _decorated_later(function: FunctionType, decorate: _Decorator, **marks: object) -> _Decorator:
    """`decorate(function)`, which is made at the first call. `marks` are the attributes by which torch knows it."""
    decorated: list[_Decorator] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not decorated:
            decorated.append(decorate(function))
        return decorated[0](*args, **kwargs)

    vars(call).update(marks, _torchdynamo_orig_callable=function, _torchdynamo_wrapper_id=id(call))
    return call
