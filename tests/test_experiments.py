"""What the experiments' tables and their cache of scores rest on; test_tutorials.py runs the scripts."""

import argparse
import dataclasses
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import commands
import consistency
import data
import dispatch
import drift
import meanflow
import metrics
import sgmse
import train

EXPERIMENTS = Path(__file__).parents[1] / "tutorials" / "experiments"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def results(*scores, column="pesq"):
    rows = [{"name": str(i), column: score, "note": "", "error": ""} for i, score in enumerate(scores)]
    return metrics.Results(rows, [column])


# ---- the cache of scores ----

def write_code(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "method.py").write_text(text)
    import scoring
    scoring.code.cache_clear()
    return scoring.code(folder)


def test_code_is_known_by_its_syntax_without_words(tmp_path):
    first = write_code(tmp_path, '"""One."""\ndef f(x):\n    """Twice."""\n    return 2 * x  # twice\n')
    assert write_code(tmp_path, '"""Two."""\n\n\ndef f(x):\n    return (2 * x)\n') == first
    assert write_code(tmp_path, 'def f(x):\n    return 3 * x\n') != first
    assert write_code(tmp_path, 'def f(x):\n    "Twice."\n    return 2 * x\n\n\ndef g():\n    pass\n') != first
    import scoring
    assert scoring.code() == scoring.code(Path(data.__file__).parent)
    scoring.code.cache_clear()


class Gain(torch.nn.Module):
    """A method that multiplies."""
    calls, num_mics, num_speakers = 0, 1, 1
    spectrogram = data.Spectrogram()

    def __init__(self, gain):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def evaluations(self):
        return 1

    def enhance(self, wave, peak=None):
        Gain.calls += 1
        return self.gain * wave


@pytest.fixture
def recordings(tmp_path):
    torch.manual_seed(0)
    found = []
    for name in "ab":
        wave = 0.1 * torch.randn(1, 8000)
        paths = [tmp_path / side / f"{name}.wav" for side in ("clean", "noisy")]
        for path, x in zip(paths, (wave, wave + 0.01 * torch.randn_like(wave))):
            data.save_audio(path, x, 16000, "FLOAT")
        found.append((name, *paths))
    return found


def test_kept_waves_belong_to_the_code_that_made_them(tmp_path, recordings, monkeypatch):
    import scoring
    (tmp_path / "any.safetensors").write_bytes(b"weights")

    def enhanced(gain, code, **changes):
        monkeypatch.setattr(train, "load_checkpoint", lambda *_, **__: Gain(gain))
        monkeypatch.setattr(scoring, "code", lambda: code)
        return scoring.enhanced_and_scored(tmp_path / "any.safetensors", tmp_path / "kept", recordings, 1,
                                           ("attenuation_of_clean",), **changes)

    attenuation = lambda clean, enhanced: metrics.attenuation(clean, enhanced)
    monkeypatch.setitem(metrics.METRICS, "attenuation_of_clean", (attenuation, ["attenuation_of_clean"], [], ""))
    mean = lambda *what, **changes: enhanced(*what, **changes).mean("attenuation_of_clean")
    assert mean(0.1, "before") == pytest.approx(20, abs=0.1)
    assert mean(0.5, "before") == pytest.approx(20, abs=0.1)               # from the cache
    assert mean(0.5, "after") == pytest.approx(6, abs=0.1)
    assert mean(0.1, "after", spacing=2.0) == pytest.approx(20, abs=0.1)   # and to the changes of the config


def test_every_recording_has_its_own_noise(tmp_path, recordings):
    """Two recordings of one length, twice in the list, in white noise: four residuals that have nothing in common."""
    import scoring
    clean = [shutil.copy(path, tmp_path / f"{number}.wav")
             for number, path in enumerate([path for _, path, _ in recordings] * 2)]
    white = lambda number, length, rng: rng.standard_normal(length)
    mixed = scoring.mixtures(clean, tmp_path / "mixed", white, lambda number: 5.0, seed=6)
    residuals = []
    for _, first, second in mixed:
        x, y = (data.load_audio(path)[0][0].numpy() for path in (first, second))
        residuals.append(y - (y @ x) / (x @ x) * x)
    assert np.abs(np.corrcoef(residuals) - np.eye(4)).max() < 0.1
    again = scoring.mixtures(clean, tmp_path / "again", white, lambda number: 5.0, seed=6)
    assert all(a.read_bytes() == b.read_bytes() for (*_, a), (*_, b) in zip(mixed, again))


def test_noise_of_a_long_recording_starts_elsewhere_for_each(tmp_path, recordings):
    import robustness
    torch.manual_seed(1)
    data.save_audio(tmp_path / "noise.wav", 0.1 * torch.randn(1, 64000), 16000)
    mixed = robustness.at_level([path for _, path, _ in recordings], [tmp_path / "noise.wav"], 0.0, tmp_path)
    residuals = []
    for _, first, second in mixed:
        x, y = (data.load_audio(path)[0][0].numpy() for path in (first, second))
        residuals.append(y - (y @ x) / (x @ x) * x)
    assert abs(np.corrcoef(residuals)[0, 1]) < 0.1


def test_cost_is_in_cpu_seconds_not_on_the_clock(recordings, monkeypatch):
    import scoring

    class Sleeper(Gain):
        def enhance(self, wave, peak=None):
            time.sleep(0.2)
            self.calls += 3
            return wave

    monkeypatch.setattr(train, "load_checkpoint", lambda *_, **__: Sleeper(1.0))
    calls, parameters, seconds = scoring.cost("any", [path for *_, path in recordings])
    assert (calls, parameters) == (3, 1) and seconds < 0.1                 # 0.4 s on the clock for a second of audio


# ---- the CSV of all tables ----

def test_a_line_replaces_only_that_of_as_many_recordings_and_its_preset(tmp_path):
    import scoring
    path = tmp_path / "all.csv"
    full, some = results(1.0, 2.0, 3.0), results(7.0)
    for scored, preset in ((full, "small"), (full, "tiny"), (some, "small"), (results(4.0, 5.0, 6.0), "tiny")):
        scoring.add_rows(path, scoring.observations("t", "a", scored, ["pesq"], preset=preset))
    rows = {(row["n"], row["preset"]): float(row["mean"]) for row in scoring.read_table(path)}
    assert rows == {("3", "small"): 2, ("3", "tiny"): 5, ("1", "small"): 7}


def test_equal_numbers_are_one_key(tmp_path):
    import scoring
    path = tmp_path / "all.csv"
    for spacing, score in ((1, 3.0), (1.0, 4.0), ("1.0", 5.0), (2.0, 6.0)):
        scoring.add_rows(path, scoring.observations("t", "a", results(score), ["pesq"], spacing=spacing, start=0.03))
    assert [(row["spacing"], row["start"], float(row["mean"])) for row in scoring.read_table(path)] == [
        ("1", "0.03", 5), ("2", "0.03", 6)]


@pytest.mark.parametrize("path", sorted((EXPERIMENTS / "tables").glob("*.csv")), ids=lambda path: path.stem)
def test_a_shipped_table_has_each_observation_once(path, tmp_path):
    import scoring
    rows = scoring.read_table(path)
    scoring.write_table(tmp_path / path.name, rows)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert {row["table"] for row in rows} == {path.stem}
    for row in rows:
        mean, low, high = (float(row[name] or row["mean"]) for name in ("mean", "low", "high"))
        assert low <= mean <= high and row["metric"]


def test_crops_of_the_encoder_are_in_the_shipped_table():
    import scoring
    rows = scoring.wide(scoring.read_table(EXPERIMENTS / "tables" / "budget.csv"))
    own = {row["crops_in_all"] for row in rows if row["row"].startswith("DriftSE, own encoder")}
    assert own == {str(3000 + 4000 * 6)}                                   # --steps 4000 --batch-size 6


def test_every_spacing_is_asked_of_the_model(tmp_path, monkeypatch):
    """Even times too: a checkpoint may have been saved with others. With two steps or one it makes no difference."""
    import sensitivity
    asked = []
    monkeypatch.setattr(sensitivity, "enhanced_and_scored",
                        lambda *_, **changes: asked.append(changes) or results(1.0, 2.0, column="pesq"))
    monkeypatch.setattr(sensitivity, "noisy_scored", lambda *_: results(1.0, 2.0))
    monkeypatch.setattr(sensitivity, "COLUMNS", {"pesq": "PESQ"})
    monkeypatch.setattr(sensitivity.data, "paired_paths", lambda *_: ([Path("a")], [Path("a")]))
    monkeypatch.setattr(sensitivity, "draw", lambda *_: None)
    monkeypatch.setattr(sensitivity, "observations", lambda *_, **__: [])
    monkeypatch.setattr(sys, "argv", ["sensitivity.py", "--data", "x", "a=b", "--starts", "0.5", "--nfe", "2", "5"])
    sensitivity.main()
    assert [(one["N"], one["spacing"]) for one in asked] == [(2, 1), (5, 1), (2, 1), (5, 2)]


# ---- the fair table ----

METHODS = {"sgmse.py": sgmse.ScoreSDE, "consistency.py": consistency.ConsistencyModel, "dispatch.py": dispatch.Student,
           "meanflow.py": meanflow.MeanFlowCorrector, "drift.py": drift.DriftSE}


def test_every_stage_is_a_command_that_exists():
    import compare
    for name, (command, flags) in compare.STAGES.items():
        script, subcommand = command.split()
        parser = argparse.ArgumentParser(allow_abbrev=False)
        commands.add_flags(parser, train.TrainConfig)
        commands.add_flags(parser, METHODS[script].Config)
        given, unknown = parser.parse_known_args(re.sub(r"{.+?}", "PLACE", flags).split())
        assert subcommand == "train" and not unknown, name
        assert set(compare.starts(flags)) <= compare.STAGES.keys()
    for label, (stage, changes) in compare.ROWS.items():
        script = compare.STAGES[stage][0].split()[0]
        assert changes.keys() <= {field.name for field in dataclasses.fields(METHODS[script].Config)}, label
    assert {label for pair in compare.PAIRS for label in pair} <= compare.ROWS.keys()


def stage_config(stage, given=None):
    """The Config of meanflow.py that the flags of a stage make of the preset small."""
    import compare
    parser = argparse.ArgumentParser()
    commands.add_flags(parser, meanflow.Config)
    known, _ = parser.parse_known_args(shlex.split(compare.STAGES[stage][1]))
    return meanflow.Config(**meanflow.PRESETS["small"] | commands.explicit_flags(known, meanflow.Config) | (given or {}))


@pytest.mark.parametrize("row", ["MeanFlowSE", "MeanFlowSE, published setting"])
def test_meanflowse_is_sampled_to_the_end(row):
    import compare
    stage, changes = compare.ROWS[row]
    config = stage_config(stage, changes)
    assert (config.t_end, config.displacement, config.endpoint_weight) == (0, False, 0)


def test_the_published_meanflowse_has_the_published_target():
    """All but sizes, spectrogram and level, which the fair table shares among its rows."""
    import compare
    config = stage_config(*compare.ROWS["MeanFlowSE, published setting"])
    assert (config.c, config.derivative, config.derivative_clip, config.reduction) == (0.5, "difference", 5, "sum")
    assert (config.along, config.sigma_data, config.sigma_max, config.t_end) == ("conditional", 0, 0.487, 0)
    published = meanflow.Config(**meanflow.PRESETS["meanflowse"])
    shared = {"width", "channel_mults", "num_res_blocks", "attention_resolutions", "fourier_scale", "hop_length",
              "num_frames", "normalize", "pad_mode"}
    names = {field.name for field in dataclasses.fields(config)} - shared
    assert all(getattr(config, name) == getattr(published, name) for name in names)
    assert stage_config("MeanFlowSE").c == 1                               # beside it, ours


def test_crops_in_all_count_teachers_starts_and_encoders(tmp_path):
    import compare
    assert compare.crops_in_all("score", 100) == 100
    assert compare.crops_in_all("CRP 5, score matching", 100) == 200
    assert compare.crops_in_all("drift, own encoder", 100, of_encoder=7) == 107
    assert compare.crops_in_all("drift, random encoder", 100, of_encoder=7) == 100
    assert compare.crops_in_all("distilled", 100, of_encoder=7) == 200
    with pytest.raises(ValueError, match="no last.pt"):
        compare.encoder_crops(tmp_path)
    torch.save({"step": 40, "run": dict(batch_size=12)}, tmp_path / "last.pt")
    assert compare.encoder_crops(tmp_path) == 480


def test_an_encoder_trained_here_says_its_crops(tmp_path, corpus):
    import compare
    import encoder
    encoder.train_encoder(train.TrainConfig(data=str(corpus), out=str(tmp_path), steps=2, batch_size=3, workers=0, seed=0),
                        encoder.EncoderConfig(hidden=16, depth=1))
    assert compare.encoder_crops(tmp_path) == 6


# ---- behind a separator ----

def test_fifths_show_where_a_difference_comes_from():
    """A gain of 1 where the other scores worst, falling to -1 where it scores best; unscored files are left out."""
    from behind import by_fifths
    before = np.array([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    a, b = results(*before), results(*(before + 1 - 2 * (before - 1) / 9))
    assert by_fifths(b, a)["pesq"] == pytest.approx([8 / 9, 4 / 9, 0, -4 / 9, -8 / 9], abs=1e-3)
    del b.rows[9]["pesq"], a.rows[2]["pesq"]
    assert by_fifths(b, a)["pesq"][-1] == pytest.approx(1 - 14 / 9, abs=1e-3)
    assert by_fifths(results(1.0), results(2.0))["pesq"] == pytest.approx([-1, *[np.nan] * 4], nan_ok=True)
