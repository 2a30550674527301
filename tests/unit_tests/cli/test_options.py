"""Sizes and parts, as a user writes them."""

import pytest
import typer

from megatron.bridge.cli import main
from megatron.bridge.cli.options import num_bytes, part


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1GB", 10**9), ("512MiB", 512 * 2**20), ("1.5 gb", 1_500_000_000), ("4096", 4096), ("2K", 2000), ("1g", 10**9)],
)
def test_sizes(text, expected):
    assert num_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "1TBB", "1 GB of memory", "nan", "1iB"])
def test_wrong_sizes(text):
    with pytest.raises(typer.BadParameter, match="is not a size"):
        num_bytes(text)


def test_parts():
    assert part("0/8") == (0, 8)
    assert part("7/8") == (7, 8)


@pytest.mark.parametrize("text", ["8/8", "1", "0/0", "-1/2", "a/b", "1/2/3"])
def test_wrong_parts(text):
    with pytest.raises(typer.BadParameter, match="is not a part"):
        part(text)


@pytest.mark.parametrize("options", [["--memory", "much"], ["--part", "2/2"], ["--threads", "0"]])
def test_wrong_options_are_usage_errors(options, tmp_path, capsys):
    assert main(["import", "nowhere", str(tmp_path / "out"), *options]) == 2
    assert options[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
