"""What the pages promise about the files beside them."""

import argparse
import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import train
from data import Spectrogram, mix_at_snr
from losses import PESQLoss

ROOT = Path(__file__).parents[1]
NAMES = "README.md", "pretrained/README.md", "tests/README.md", "tutorials/experiments/README.md"
PAGES = {ROOT / name: (ROOT / name).read_text() for name in NAMES}
METHODS = "sgmse.py", "consistency.py", "meanflow.py", "drift.py"
README = PAGES[ROOT / "README.md"]


@pytest.mark.parametrize("name, file, line", sorted(set(re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README))))
def test_link_leads_to_the_definition(name, file, line):
    assert re.match(rf"(def|class) {name}\b", (ROOT / file).read_text().splitlines()[int(line) - 1])


@pytest.mark.parametrize("page, path", sorted({(str(page.relative_to(ROOT)), path) for page, text in PAGES.items()
                                               for path in re.findall(r"\]\((?!http)([^)#]+)", text)}))
def test_linked_file_exists(page, path):
    assert ((ROOT / page).parent / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", "".join(PAGES.values())))))
def test_named_test_exists(name):
    assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


def test_the_front_door_is_one_screen():
    assert len(README.encode()) <= 9000 and 100 <= README.count("\n") <= 150


def test_pieces_to_carry_off_are_as_long_as_the_page_says():
    def section(file, first, after):
        """Lines from one heading to another."""
        heads = {line.strip("# -"): number for number, line in enumerate((ROOT / file).read_text().splitlines())
                 if line.startswith("# ---")}
        return heads[after] - heads[first]

    lengths = [len((ROOT / "nets.py").read_text().splitlines()), section("sgmse.py", "processes", "the model"),
               section("drift.py", "fields", "latent spaces"), *(sum(len(inspect.getsource(piece).splitlines()) for piece in pieces)
                                                for pieces in ([PESQLoss], [Spectrogram, mix_at_snr]))]
    assert [int(number) for number in re.findall(r"^\|.*\| (\d+) \| torch", README, re.M)] == lengths


def test_continuous_integration_runs_the_second_command():
    commands = re.findall(r"^python3 -m venv .*$", README, re.M)
    assert len(commands) == 2
    assert commands[1].replace("install -r", "install -q -r") in (ROOT / ".ci/run").read_text()


def blocks(text):
    return re.findall(r"```sh\n(.*?)```", text, re.S)


def commands():
    """Each command of a method on the pages, variables of the block filled in: (page, arguments from the script on)."""
    for page, text in PAGES.items():
        for block in blocks(text):
            variables = {}
            for line in block.splitlines():
                line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)
                if assigned := re.match(r'(\w+)="(.*)"$', line):
                    variables[assigned[1]] = assigned[2]
                words = shlex.split(line, comments=True)
                starts = [i for i, word in enumerate(words) if word in METHODS]
                if starts and not assigned:
                    yield str(page.relative_to(ROOT)), words[starts[0]:]


COMMANDS = list(commands())


def test_the_pages_have_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page, words", COMMANDS, ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60])
def test_every_command_of_the_pages_is_understood(page, words, monkeypatch):
    seen = []
    for name in ("train_command", "enhance_command", "evaluate_command"):
        monkeypatch.setattr(train, name, lambda Method, args: seen.append(args))
    if words[1] == "train-encoder":
        return                                           # its command is not in train.py; test_drift.py runs it
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert stop.value.code == 0 and len(seen) == 1
    assert "$" not in " ".join(words)


def scripts():
    """Each command of a script of tests/ or tutorials/ on the pages, in blocks and within sentences."""
    for text in PAGES.values():
        sentences = re.sub(r"```.*?```", "", text, flags=re.S)
        spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", sentences)]
        for span in [*spans, *(line for block in blocks(text) for line in block.splitlines())]:
            if found := re.match(r"(?:\S*/)?python ((?:tests|tutorials)/\S+\.py.*)", span):
                yield tuple(shlex.split(found[1], comments=True))


SCRIPTS = sorted(set(scripts()))


def test_the_pages_have_commands_of_scripts():
    assert {Path(words[0]).name for words in SCRIPTS} >= {"nfe.py", "compare.py", "benchmark_speed.py", "latents.py"}


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_a_script_is_understood(words, monkeypatch):
    class Understood(Exception):
        pass

    parse_args = argparse.ArgumentParser.parse_args

    def understood(*args):
        parse_args(*args)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understood)
    monkeypatch.setattr(sys, "argv", list(words))
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str((ROOT / words[0]).parent))
    with pytest.raises(Understood):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
