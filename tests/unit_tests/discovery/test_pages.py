"""The page for terminals and the page with pictures: complete, escaped, readable, and loading nothing."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from megatron.bridge.discovery import formatting, inspect_model
from megatron.bridge.discovery.pages import pictures
from megatron.bridge.discovery.pages.html_page import html_page
from megatron.bridge.discovery.pages.text_page import text_page
from tests.tiny_models import TINY_MODELS
from tests.unit_tests.discovery.conftest import edit_config

HOSTILE = '<img src=x onerror="alert(1)"> & [bold]x[/bold]'
VOID = {"meta", "link", "br", "img", "rect"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: dict[str, int] = {}
        self.loaded: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attributes:
            if name.startswith("on"):
                self.loaded.append(name)
            if name in ("src", "href", "srcset", "action", "data") and value != "data:,":
                self.loaded.append(str(value))
        if tag not in VOID - {"rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts with unknown fields and tensors that look like tags and markup."""
    folder = tmp_path_factory.mktemp("page") / "hf"
    TINY_MODELS["qwen3-next-dense-layers"].save(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {HOSTILE: torch.zeros(2)}, folder / "model.safetensors")
    strange = {HOSTILE: HOSTILE, "[red]strange[/red]": "</style><script>alert(1)</script>"}
    edit_config(folder, **strange, quantization_config={"quant_method": f"[/bold]{HOSTILE}"})
    return folder


def test_the_html_page_is_complete_and_escaped(hostile_folder: Path) -> None:
    text = html_page(inspect_model(hostile_folder))
    page = Page(text)
    assert page.open == [] and page.loaded == []
    assert "script" not in page.tags and "img" not in page.tags and page.tags["svg"] == 3
    assert HOSTILE in page.text and "</style><script>" in page.text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text) and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)  # well-formed


def test_colours_of_the_pictures_are_in_both_schemes() -> None:
    style = (Path(pictures.__file__).parent / "page.css").read_text()
    for index in range(pictures.NUM_COLOURS):
        assert style.count(f"--c{index}:") == 2


def test_the_layer_map_has_two_parts_for_each_layer(hostile_folder: Path) -> None:
    report = inspect_model(hostile_folder)
    root = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", pictures.layer_map(report.layers), re.DOTALL)[0])
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 2 * len(report.layers)
    assert titles[0] == titles[1] and titles[0].startswith("layer 0: linear attention + MLP")


def test_bars_are_as_long_as_the_shares() -> None:
    svg = ElementTree.fromstring(pictures.share_bars({"attention": 300, "MLP": 100}))
    widths = [float(rect.get("width", 0)) for rect in svg.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] / widths[1] == pytest.approx(3) and widths[2] / widths[3] == pytest.approx(3, rel=1e-2)


def test_a_model_without_weights_has_a_page_too(hostile_folder: Path) -> None:
    page = Page(html_page(inspect_model(hostile_folder / "config.json")))
    assert (
        page.open == []
        and page.tags.get("svg", 0) == 0
        and "Dtype map" not in page.text
        and "Parallel layouts" in page.text
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_text_page_fits_the_terminal(width: int, hostile_folder: Path) -> None:
    console = Console(width=width, record=True, highlight=False, file=io.StringIO())
    console.print(text_page(inspect_model(hostile_folder)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    words = re.sub(r"\s+", "", text)
    for wanted in (HOSTILE, "[red]strange[/red]", "Qwen3NextBridge", "parameter bytes per rank", "Next step:"):
        assert re.sub(r"\s+", "", wanted) in words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (999, "999"), (1_500, "1.5 k"), (671_026_419_200, "671 B"), (10**12, "1.0 T")]
)
def test_counts(number: int, words: str) -> None:
    assert formatting.count(number) == words


def test_long_lists_are_told_by_their_runs() -> None:
    assert formatting.value(["a", "a", "a", "b"]) == "3x a 1x b"
    assert formatting.value(["a", "b"] * 8) == "8x a, 8x b"
    assert formatting.value({"x": 1}) == '{"x": 1}' and len(formatting.value("y" * 500)) <= 90
