"""The pictures of the HTML page, as SVG: the layers, where the parameters are, and how they are stored.

Colours are CSS variables of the page (`--c0`, `--c1`, ...), so that the pictures follow its light or dark scheme. Every
shape has a `<title>`, which browsers show and screen readers read out.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from megatron.bridge.discovery import formatting
from megatron.bridge.discovery.weights import Layer

NUM_COLOURS = 10
_WIDTH = 960
_ROW = 26
_LABEL = 150
_MIN_SHARE = 0.004  # of the bar's width: less is invisible

# The same part of a model has the same colour in every picture.
_FIXED = {
    "attention": 0, "full attention": 0, "MLP": 1, "experts": 2, "linear attention": 3, "mamba": 3, "hybrid": 3,
    "router": 4, "conv": 4, "embedding": 5, "sliding attention": 5, "output layer": 6, "prediction layers": 7,
    "chunked attention": 7, "norms": 8, "shared experts": 9, "vision": 3, "projector": 4, "audio": 9, "copies": 8,
}  # fmt: skip


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour of the page for each name: its fixed one, or the next one that is free."""
    names = list(dict.fromkeys(names))
    taken = {_FIXED[name] for name in names if name in _FIXED}
    free = [index for index in range(NUM_COLOURS) if index not in taken] or list(range(NUM_COLOURS))
    others = [name for name in names if name not in _FIXED]
    chosen = {name: free[index % len(free)] for index, name in enumerate(others)}
    return {name: f"var(--c{_FIXED.get(name, chosen.get(name))})" for name in names}


def layer_map(layers: Sequence[Layer]) -> str:
    """A column per decoder layer: at the top its mixer (attention or the like), below it its feed-forward part."""
    if not layers:
        return ""
    mixers = [layer.mixer for layer in layers]
    parts = [layer.feed_forward for layer in layers]
    fills = colours(kind for kind in (*mixers, *parts) if kind != "none")
    step = min(40.0, (_WIDTH - 2) / len(layers))
    gap = 2 if step > 6 else 0.5
    shapes = []
    for position, layer in enumerate(layers):
        x = position * step
        title = f"layer {layer.index}: {layer.mixer} + {layer.feed_forward}, {formatting.count(layer.num_parameters)}"
        for y, kind in ((2, layer.mixer), (42, layer.feed_forward)):
            fill = fills.get(kind)
            paint = f'fill="{fill}"' if fill else 'fill="none" stroke="var(--line)" stroke-dasharray="2 2"'
            shapes.append(
                f'<rect x="{x:.2f}" y="{y}" width="{step - gap:.2f}" height="36" rx="2" {paint}>'
                f"<title>{escape(title)}</title></rect>"
            )
    shapes += _ticks(len(layers), step)
    return _svg(_WIDTH, 104, "Layer map", shapes) + _legend(fills)


def _ticks(num_layers: int, step: float) -> list[str]:
    every = max(1, -(-num_layers // 16))
    return [
        f'<text x="{(position + 0.5) * step:.2f}" y="98" class="tick" text-anchor="middle">{position}</text>'
        for position in range(0, num_layers, every)
    ]


def share_bars(counts: Mapping[str, int]) -> str:
    """A bar for the whole model, and below it one for each category."""
    whole = sum(counts.values())
    if not whole:
        return ""
    fills = colours(counts)
    shapes, x = [], 0.0
    for name, number in counts.items():
        width = number / whole * _WIDTH
        if number / whole >= _MIN_SHARE:
            title = f"{name}: {formatting.count(number)}, {number / whole:.1%}"
            shapes.append(_bar(x, 2, width, 34, fills[name], title))
        x += width
    height = 50
    longest = max(counts.values())
    for name, number in counts.items():
        width = number / longest * (_WIDTH - _LABEL - 190)
        label = f"{formatting.count(number)}  {number / whole:.1%}"
        shapes += [
            _text(_LABEL - 10, height + 15, name, "end"),
            _bar(_LABEL, height, max(width, 1.5), 20, fills[name], f"{name}: {label}"),
            _text(_LABEL + max(width, 1.5) + 8, height + 15, label),
        ]
        height += _ROW
    return _svg(_WIDTH, height + 4, "Where the parameters are", shapes)


def dtype_map(stored: Mapping[str, Mapping[str, int]]) -> str:
    """A bar for each category, all of the same length, divided by the dtypes of its stored numbers."""
    if not stored:
        return ""
    totals: dict[str, int] = {}
    for dtypes in stored.values():
        for dtype, nbytes in dtypes.items():
            totals[dtype] = totals.get(dtype, 0) + nbytes
    fills = colours(sorted(totals, key=lambda dtype: -totals[dtype]))
    shapes, height, width = [], 4, _WIDTH - _LABEL - 110
    for name, dtypes in stored.items():
        whole, x = sum(dtypes.values()) or 1, float(_LABEL)
        shapes.append(_text(_LABEL - 10, height + 15, name, "end"))
        for dtype, nbytes in sorted(dtypes.items(), key=lambda item: -item[1]):
            part = nbytes / whole * width
            shapes.append(
                _bar(x, height, max(part, 1.5), 20, fills[dtype], f"{name} in {dtype}: {formatting.size(nbytes)}")
            )
            x += part
        shapes.append(_text(_LABEL + width + 12, height + 15, formatting.size(whole)))
        height += _ROW
    labels = {f"{dtype} {formatting.size(totals[dtype])}": fill for dtype, fill in fills.items()}
    return _svg(_WIDTH, height + 4, "Dtype map", shapes) + _legend(labels)


def _bar(x: float, y: float, width: float, height: float, fill: str, title: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height}" rx="2" fill="{fill}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.2f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, shapes: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'
    )


def _legend(fills: Mapping[str, str]) -> str:
    entries = "".join(
        f'<li><span class="swatch" style="background:{fill}"></span>{escape(name)}</li>' for name, fill in fills.items()
    )
    return f'<ul class="legend">{entries}</ul>'
