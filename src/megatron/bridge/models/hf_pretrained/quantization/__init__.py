"""Quantised checkpoints: found by the dtypes, shapes and companions of tensors, and read as the numbers they stand for.

Finding them needs no torch, and begins with `detection.detect`. They are read by slices (`source.DequantizedSource`).
"""
