"""Every bridge has its tests in its family's folders, and they run over all of its tiny models."""

import importlib
from types import ModuleType

import pytest

from megatron.bridge.models.conversion.registered import registered_bridges
from tests.bridge_suite import BridgeSuite
from tests.parity import ConversionSuite, bridge_of
from tests.tiny_models import ALL_MODELS, TINY_MODELS

BRIDGES = sorted({tuple(entry.bridge_class.__module__.split(".")[-2:]) for entry in registered_bridges().values()})


def _variants(module: ModuleType, suite: type) -> list[str]:
    """The names of the variants over which the classes of a test module run."""
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, suite)]
    return sorted(tiny.name for cls in classes if cls is not suite for tiny in cls.models)


@pytest.mark.parametrize(("family", "bridge"), BRIDGES, ids=[bridge for _, bridge in BRIDGES])
def test_tests_of_a_bridge(family: str, bridge: str) -> None:
    expected = sorted(tiny.name for tiny in ALL_MODELS.values() if bridge_of(tiny) == (family, bridge))
    assert expected
    for name, suite in (
        (f"functional_tests.models.{family}.test_{bridge.removesuffix('_bridge')}_conversion", ConversionSuite),
        (f"unit_tests.models.{family}.test_{bridge}", BridgeSuite),
    ):
        assert _variants(importlib.import_module(f"tests.{name}"), suite) == expected, name


def test_tiny_models_stand_in_the_folder_of_their_family() -> None:
    for family, _ in BRIDGES:
        module = importlib.import_module(f"tests.functional_tests.models.{family}.tiny_models")
        assert {bridge_of(tiny)[0] for tiny in module.TINY_MODELS} == {family}
    assert set(ALL_MODELS) - set(TINY_MODELS) == {"ling", "ling-groups"}
