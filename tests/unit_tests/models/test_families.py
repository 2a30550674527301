"""Every bridge has its tests in its family's folders, and they run over all of its tiny models."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from megatron.bridge.models.conversion.registered import registered_bridges
from tests import tiny_models
from tests.bridge_suite import BridgeSuite
from tests.parity import ConversionSuite, family_of
from tests.tiny_models import ALL_MODELS, TINY_MODELS, TinyModel

TESTS = Path(tiny_models.__file__).parent
BRIDGES = sorted({entry.bridge_class.__module__ for entry in registered_bridges().values()})


def _models_of(module: ModuleType, suite: type) -> list[TinyModel]:
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, suite)]
    return [tiny for cls in classes if cls is not suite for tiny in cls.models]


def _bridge_of(tiny: TinyModel) -> str:
    return registered_bridges()[tiny.published_architecture].bridge_class.__module__


@pytest.mark.parametrize("bridge", BRIDGES, ids=[name.split(".")[-1] for name in BRIDGES])
def test_tests_of_a_bridge(bridge: str) -> None:
    family, name = bridge.split(".")[-2:]
    expected = sorted(tiny.name for tiny in ALL_MODELS.values() if _bridge_of(tiny) == bridge)
    assert expected
    for module, suite in (
        (f"tests.functional_tests.models.{family}.test_{name.removesuffix('_bridge')}_conversion", ConversionSuite),
        (f"tests.unit_tests.models.{family}.test_{name}", BridgeSuite),
    ):
        assert sorted(tiny.name for tiny in _models_of(importlib.import_module(module), suite)) == expected, module


def test_tiny_models_stand_in_the_folder_of_their_family() -> None:
    for family in {family_of(tiny) for tiny in ALL_MODELS.values()}:
        module = importlib.import_module(f"tests.functional_tests.models.{family}.tiny_models")
        assert {family_of(tiny) for tiny in module.TINY_MODELS} == {family}
    assert set(ALL_MODELS) - set(TINY_MODELS) == {"ling", "ling-groups"}
