"""What several test files share."""

import re
import sys
from pathlib import Path

import pytest
import torch

import train


def variants(title):
    """The flags of each row of the table of variants in the section `title` of the experiments' page."""
    text = (Path(__file__).parents[1] / "tutorials/experiments/README.md").read_text()
    section = text[text.index(f"## {title}"):].split("\n##")[0]
    return re.findall(r"^\|[^|]*\| `(--[^`]*)`", section, re.M)


def run_command(Method, *arguments):
    """A command line of a method in this process, so that files and devices stay warm: its exit code."""
    before = sys.argv
    sys.argv = [f"{Method.__name__}.py", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            train.main(Method)
    finally:
        sys.argv = before
    return stop.value.code


def check_commands(run, flags, corpus, folder, capsys):
    """Train for 4 steps, and for 2 and then 2 more: the same weights. Enhance and score the two test files: 2 calls."""
    assert run(*flags, "--steps", "4", "--out", folder / "a") == 0
    for steps in (2, 4):
        assert run(*flags, "--steps", steps, "--out", folder / "b") == 0
    a, b = (torch.load(folder / name / "last.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert not torch.equal(a["model"]["net.head.weight"], a["ema"]["shadow"]["net.head.weight"])
    capsys.readouterr()
    for command in (("enhance", corpus / "test/noisy"), ("evaluate", "--data", corpus, "--workers", "1")):
        assert run(*command, "--checkpoint", folder / "a/last.safetensors", "--out", folder / command[0]) == 0
        assert "2 network calls" in capsys.readouterr().out
