"""What the README promises about the files beside it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name, file, line", sorted(set(re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README))))
def test_link_leads_to_the_definition(name, file, line):
    assert re.match(rf"(def|class) {name}\b", (ROOT / file).read_text().splitlines()[int(line) - 1])


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_linked_file_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", README))))
def test_named_test_exists(name):
    assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


def test_continuous_integration_runs_the_second_command():
    commands = re.findall(r"^python3 -m venv .*$", README, re.M)
    assert len(commands) == 2
    assert commands[1].replace("install -r", "install -q -r") in (ROOT / ".ci/run").read_text()
