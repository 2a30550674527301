"""Quantised checkpoints: found by the dtypes, shapes and companions of tensors, and read as the numbers they stand for.

Finding needs no torch; `detection.detect` is the entry. Reading (`source.DequantizedSource`) is by slice.
"""
