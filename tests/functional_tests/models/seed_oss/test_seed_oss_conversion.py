"""Seed-OSS: the logits of transformers, and the checkpoint back bit for bit."""

from tests.functional_tests.models.seed_oss.tiny_models import SEED_OSS_MODELS
from tests.parity import ConversionSuite


class TestSeedOssConversion(ConversionSuite):
    models = SEED_OSS_MODELS
