"""Flags and Configs: what is mistyped is refused, and --help says what is there."""

import re
import subprocess
import sys
import typing

import pytest

import consistency
import sgmse
import train
from helpers import METHODS, ROOT, run_command

FIELDS = [(Config, name, hint) for Config in (train.TrainConfig, *(Method.Config for Method in METHODS.values()))
          for name, hint in typing.get_type_hints(Config, include_extras=True).items()]


@pytest.mark.parametrize("file", ["test_defaults", "test_fields", "test_train", "test_cuda", "benchmark_methods"])
def test_every_method_has_a_row_in_each_table(file):
    assert len(METHODS) >= 5
    text = (ROOT / "tests" / f"{file}.py").read_text()
    assert [name for name, Method in METHODS.items() if f"{name}.{Method.__name__}" not in text] == []


@pytest.mark.parametrize("name", METHODS)
def test_an_option_of_another_method_is_unknown(name, capsys):
    for option, owner in (("--unpaired", "drift"), ("--rooms", "meanflow"), ("--room-cache", "meanflow")):
        run_command(METHODS[name], "train", "--help-all")
        assert (f"{option} " in capsys.readouterr().out) == (name == owner)
        assert run_command(METHODS[name], "train", "--preset", "tiny", option, "2", "--data", "nowhere") == 2
        assert ("unrecognized arguments" in capsys.readouterr().err) == (name != owner)


def mistakes(hint):
    """Values that the annotation of a field excludes."""
    if typing.get_origin(hint) is typing.Literal:
        return ["sharp"]
    interval = getattr(hint, "__metadata__", [""])[0]
    if not interval:
        return []
    low, high = map(float, interval[1:-1].split(","))
    wrong = [float("nan"), low - 1 if interval[0] == "[" else low, high + 1 if interval[-1] == "]" else high]
    wrong = [x for x in wrong if x not in (float("-inf"), float("inf"))] + [float("inf")]
    if hint.__origin__ is tuple:
        return [(x,) for x in wrong] + ([()] if "may be empty" not in hint.__metadata__ else [])
    return wrong


@pytest.mark.parametrize("Config", [train.TrainConfig, *(Method.Config for Method in METHODS.values())])
def test_every_value_out_of_range_is_refused_by_name(Config):
    for name, hint in typing.get_type_hints(Config, include_extras=True).items():
        for value in mistakes(hint):
            with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')}: expected .*"):
                Config(**{name: value})


def test_every_number_has_a_range_and_every_word_a_choice():
    """Plain text is left for names of files, encoders and devices."""
    text = {name for _, name, hint in FIELDS if hint is str}
    assert text == {"data", "out", "init", "device", "room_cache", "unpaired", "teacher", "encoder"}
    assert not [(Config, name) for Config, name, hint in FIELDS if hint in (int, float, tuple)]


@pytest.mark.parametrize("flags, message", [
    (("--clip", "-1"), "--clip: expected a number in [0, inf); got -1.0"), (("--num-crops", "-1"), "--num-crops"),
    (("--ema", "2"), "--ema"), (("--minutes", "-1"), "--minutes"), (("--workers", "-1"), "--workers"),
    (("--valid-every", "-5"), "--valid-every"), (("--snrs", "nan", "inf"), "--snrs"), (("--snrs",), "--snrs"),
    (("--seed", "-1"), "--seed"), (("--hop-length", "600"), "--hop-length"), (("--channel-mults",), "--channel-mults"),
    (("--pesq-weight", "-1"), "--pesq-weight"), (("--sampler", "sharp"), "--sampler"),
    (("--device", "meta"), "--device meta")])
def test_options_that_cannot_train_exit_2_with_one_line(flags, message, corpus, capsys, tmp_path):
    assert run_command(METHODS["sgmse"], "train", "--data", corpus, "--out", tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize("Config", [sgmse.Config, consistency.Config])
def test_a_diffusion_that_does_not_change_is_refused(Config):
    with pytest.raises(ValueError, match="--k: expected a number other than 1"):
        Config(k=1.0)                                    # its closed forms divide by log k


HELPS = [*((name, "train") for name in METHODS), ("sgmse", "enhance"), ("meanflow", "evaluate")]


def print_helps():
    for name, command in HELPS:
        assert run_command(METHODS[name], command, "--help-all" if command == "train" else "--help") == 0


@pytest.mark.slow
def test_help_is_deterministic_and_shows_each_default_once():
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


def test_help_of_train_is_one_screen(capsys):
    for Method in METHODS.values():
        assert run_command(Method, "train", "--help") == 0
        text = capsys.readouterr().out
        assert len(re.findall(r"^  -", text, re.M)) <= 24 and "--help-all" in text and "--data DIR [options]" in text


def test_a_mistyped_flag_is_refused_though_its_help_is_hidden(capsys):
    assert run_command(METHODS["sgmse"], "train", "--thetta", "1") == 2
    assert "--thetta" in capsys.readouterr().err
