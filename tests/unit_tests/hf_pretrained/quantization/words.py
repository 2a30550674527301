"""GPTQ and AWQ checkpoints made by hand from their specifications, number by number, and read the same way.

Sources: AutoGPTQ 0.7 (`qlinear_cuda_old.py`, `pack`), GPTQModel 7.7 (`nn_modules/qlinear/__init__.py`,
`utils/model.py`), AutoAWQ 0.2.9 (`modules/linear/gemm.py`, `utils/packing_utils.py`).
"""

import torch

from tests.unit_tests.hf_pretrained.quantization.formats import SAMPLES, Sample

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(rows: list[list[int]], bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Each row of numbers as 32-bit words, the first number of a word in its lowest bits."""
    room = 32 // bits
    words = []
    for row in rows:
        row = row + [0] * (-len(row) % room)
        words.append([])
        for start in range(0, len(row), room):
            word = 0
            for place, number in enumerate(order or range(room)):
                word |= row[start + number] << bits * place
            words[-1].append(word - (1 << 32) if word >= 1 << 31 else word)
    return torch.tensor(words, dtype=torch.int32)


def less_one(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Format "gptq": one less in each field of a word, as a 32-bit number."""
    ones = sum(1 << shift for shift in range(0, 32, bits))
    less = [[(int(word) - ones) % (1 << 32) for word in row] for row in words]
    return torch.tensor([[word - (1 << 32) if word >= 1 << 31 else word for word in row] for row in less]).int()


def _numbers(bits: int, num_outputs: int, num_inputs: int, groups: list[int]) -> tuple[torch.Tensor, ...]:
    codes = torch.randint(0, 1 << bits, (num_outputs, num_inputs))
    zeros = torch.randint(0, 1 << bits, (max(groups) + 1, num_outputs))
    scales = ((torch.rand(max(groups) + 1, num_outputs) + 0.5) / 16).half()
    expected = torch.empty(num_outputs, num_inputs)
    for output in range(num_outputs):
        for number, group in enumerate(groups):
            whole = int(codes[output, number]) - int(zeros[group, output])
            expected[output, number] = whole * float(scales[group, output])
    return codes, zeros, scales, expected


def _gptq(bits: int, checkpoint_format: str, has_order: bool, has_groups: bool = True) -> Sample:
    num_inputs, size = 96, 32
    groups = [number // size for number in range(num_inputs)]
    if has_order:
        groups = [groups[number] for number in torch.randperm(num_inputs).tolist()]
    codes, zeros, scales, expected = _numbers(bits, 24, num_inputs, groups)
    qzeros = packed(zeros.tolist(), bits)
    stored = {
        "layer.qweight": packed(codes.tolist(), bits).T.contiguous(),
        "layer.qzeros": less_one(qzeros, bits) if checkpoint_format == "gptq" else qzeros,
        "layer.scales": scales,
    }
    if has_groups:
        stored["layer.g_idx"] = torch.tensor(groups, dtype=torch.int32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": has_order}
    return Sample(stored, expected, config=config | {"checkpoint_format": checkpoint_format})


def _awq() -> Sample:
    codes, zeros, scales, expected = _numbers(4, 24, 96, [number // 32 for number in range(96)])
    stored = {
        "layer.qweight": packed(codes.T.tolist(), 4, AWQ_ORDER),
        "layer.qzeros": packed(zeros.tolist(), 4, AWQ_ORDER),
        "layer.scales": scales,
    }
    return Sample(stored, expected, config={"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})


for _bits in (2, 4, 8):
    for _format in ("gptq", "gptq_v2"):
        for _has_order in (False, True):
            SAMPLES[f"{_format}-{_bits}{'-order' if _has_order else ''}"] = (
                lambda bits=_bits, form=_format, has_order=_has_order: _gptq(bits, form, has_order)
            )
SAMPLES["gptq-4-without-g-idx"] = lambda: _gptq(4, "gptq", False, has_groups=False)
SAMPLES["awq"] = _awq
