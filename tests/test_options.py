"""Flags and Configs: what is mistyped is refused, and --help says what is there."""

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
import typing

import pytest

import commands
import consistency
import dispatch
import drift
import meanflow
import sgmse
from helpers import run_command

METHODS = {"sgmse": sgmse.ScoreSDE, "consistency": consistency.ConsistencyModel, "meanflow": meanflow.MeanFlowCorrector,
           "drift": drift.DriftSE}
COMMANDS = [(Method, "train", Method.Config) for Method in METHODS.values()]
COMMANDS += [(consistency.ConsistencyModel, "train-student", dispatch.Config)]
CHOICES = [(Method, command, Config, field) for Method, command, Config in COMMANDS
           for field in dataclasses.fields(Config) if typing.get_args(field.type)]


@pytest.mark.parametrize("Method, command, Config, field", CHOICES,
                         ids=lambda value: getattr(value, "name", None) or getattr(value, "__name__", None))
def test_mistyped_choice_is_refused_by_the_command_and_by_the_config(Method, command, Config, field, capsys):
    flag, choices = f"--{field.name.replace('_', '-')}", typing.get_args(field.type)
    with pytest.raises(ValueError, match=f"{flag} is one of .*{re.escape(str(choices[-1]))}; got sharp"):
        Config(**{field.name: "sharp"})
    assert run_command(Method, command, flag, "sharp") == 2
    message = capsys.readouterr().err
    assert flag in message and "sharp" in message and all(str(choice) in message for choice in choices)


@pytest.mark.parametrize("Config", [sgmse.Config, consistency.Config])
def test_a_diffusion_that_does_not_change_is_refused(Config):
    for k in (1.0, 0.0, -2.0):                           # its closed forms divide by log k
        with pytest.raises(ValueError, match="--k is the base"):
            Config(k=k)


def test_every_field_with_a_few_words_as_its_values_is_a_choice():
    """What is left of plain text are names of files, encoders and devices."""
    text = {field.name for _, _, Config in COMMANDS for field in dataclasses.fields(Config) if field.type is str}
    assert text == {"teacher", "encoder"} and len(CHOICES) > 20


HELPS = [*((name, "train") for name in METHODS), ("consistency", "train-student"), ("drift", "train-encoder"),
         ("sgmse", "enhance"), ("meanflow", "evaluate")]


def print_helps():
    for name, command in HELPS:
        assert run_command(METHODS[name], command, "--help") == 0


@pytest.mark.slow
def test_help_is_the_same_at_every_run_and_shows_each_default_once():
    """Two processes, whose sets and dictionaries of strings have other orders."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_options; test_options.print_helps()"
    outputs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "COLUMNS": "1000"}).stdout for seed in ("1", "2")]
    assert outputs[0] == outputs[1]
    helps = outputs[0].split("usage: ")[1:]
    assert len(helps) == len(HELPS)
    for (_, command), text in zip(HELPS, helps):
        flags = [line for line in text.splitlines() if line.startswith("  --")]
        assert len(flags) > 5 and all(line.count("(default") <= 1 for line in flags)
        numbers = [line for line in flags if re.search(r" (INT|FLOAT)  ", line)]
        if command.startswith("train"):                  # else the checkpoint has them
            assert numbers and all("(default" in line for line in numbers), numbers


def test_values_written_as_flags_are_read_as_what_they_were():
    values = dict(move_noise=False, strict=True, channel_mults=(1, 2), attention_resolutions=(), k=2.5, sde="bbed",
                  teacher="a name with spaces")
    parser = argparse.ArgumentParser()
    commands.add_flags(parser, consistency.Config)
    assert commands.given(parser.parse_args(shlex.split(commands.as_flags(values))), consistency.Config) == values
