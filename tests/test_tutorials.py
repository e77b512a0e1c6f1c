"""The scripts in tutorials/experiments/ do what the README shows."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

import commands
import consistency
import data
import dispatch
import drift
import meanflow
import metrics
import scoring
import sgmse
import train
from helpers import METHODS, run_command

EXPERIMENTS = Path(__file__).parents[1] / "tutorials" / "experiments"


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """script(NAME, *arguments): a script and the trainings it starts, in this process; its exit code, output and errors."""
    def start(command, check=True):
        assert run_command(METHODS[Path(command[1]).stem], *command[2:]) == 0

    def run(name, *arguments):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        try:
            code = module.main() or 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(subprocess, "run", start)
    return run


def read(path):
    """Rows of the tables in a file, without their paired differences."""
    return scoring.wide(row for row in scoring.read_table(path) if not row["table"].endswith("_differences"))


def test_quality_over_calls_is_tabled_drawn_and_kept(tmp_path, corpus, script):
    for name in ("first", "second"):
        config = sgmse.Config(**sgmse.PRESETS["tiny"] | dict(num_frames=24))
        train.save_checkpoint(tmp_path / f"{name}.safetensors", sgmse.ScoreSDE(config))
    outputs = [script("nfe", "--data", corpus, "--nfe", "1", "2", "--workers", "1", "--scores", "scores", "--out", "nfe.png",
                      "one=first.safetensors", "two=second.safetensors@3", "three=first.safetensors@one_step")[1]
               for _ in range(2)]
    tables = [out[out.index("\nn = 2"):] for out in outputs]
    assert tables[0] == tables[1]
    assert [line.split("|")[1:3] for line in tables[0].splitlines()[5:]] == [
        [" noisy ", " "], [" one ", " 1 "], [" one ", " 2 "], [" two ", " 3 "], [" three ", " 1 "]]
    assert "network evaluations" in outputs[0] and "network evaluations" not in outputs[1]
    assert (tmp_path / "nfe.png").stat().st_size > 5000


@pytest.mark.slow
def test_other_weights_under_an_old_label_are_scored_again(tmp_path, corpus, script):
    """Kept scores belong to the checkpoint, the recordings and the flags, not to what somebody called them."""
    root = tmp_path / "corpus"
    shutil.copytree(corpus / "test", root / "test")
    config = sgmse.Config(**sgmse.PRESETS["tiny"] | dict(num_frames=24))
    train.save_checkpoint(tmp_path / "model.safetensors", sgmse.ScoreSDE(config))

    def rows(*flags):
        code, out, _ = script("nfe", "--data", root, "--nfe", "1", "--workers", "1", "--scores", "scores", "--out", "nfe.png",
                              "one=model.safetensors", *flags)
        assert code == 0
        return [line for line in out.splitlines() if line.startswith(("| noisy", "| one"))]

    first = rows()
    torch.manual_seed(1)
    train.save_checkpoint(tmp_path / "model.safetensors", sgmse.ScoreSDE(config))
    second = rows()
    assert second[0] == first[0] and second[1] != first[1]                 # other weights
    assert rows("--every", "2") != second                                  # fewer files
    for path in (root / "test" / "noisy").iterdir():
        clean, _ = data.load_audio(root / "test" / "clean" / path.name)
        data.save_audio(path, clean + 0.1 * torch.randn_like(clean), 16000, "PCM_16")
    third = rows()
    assert third[0] != second[0] and third[1] != second[1]                 # other recordings of the same names


@pytest.mark.slow
def test_rows_of_patch_distillation_are_trained_scored_and_kept(tmp_path, corpus, script):
    teacher = dispatch.Student(dispatch.Config(distil="none", hidden=16))
    train.save_checkpoint(tmp_path / "teacher.safetensors", teacher)
    command = ["--data", corpus, "--teacher", "teacher.safetensors", "--seeds", "3", "--workers", "1", "--csv", "all.csv"]
    flags = ["--", "--steps", "1", "--batch-size", "1", "--num-frames", "60", "--hidden", "4", "--valid-every", "0"]
    (code, first, _), (_, second, _) = (script("patches", *command, *flags) for _ in range(2))
    tables = [out[out.index("\nn = 2, 1 seeds"):] for out in (first, second)]
    assert code == 0 and tables[0] == tables[1] and "student alone, seed 3" in first and "seed 3\n" not in second
    train.save_checkpoint(tmp_path / "teacher.safetensors", dispatch.Student(teacher.config))
    _, out, _ = script("patches", *command, "--rows", "student alone", "DISPatch", *flags)
    assert "student alone, seed 3\n" in out                               # another teacher: all anew
    assert "\n| DISPatch − student alone" in out and "random" not in out
    rows = {line.split("|")[1].strip() for line in tables[0].splitlines() if line.startswith("|")}
    assert {"noisy", "teacher", "student alone", "random patches", "DISPatch", "DISPatch + MSSP",
            "DISPatch − random patches", "features, DISPatch − features, all"} <= rows
    kept = {row["row"]: row for row in read(tmp_path / "all.csv")}
    assert kept.keys() == {label for label in rows if label and " − " not in label} - {"---"}
    assert kept["DISPatch"]["steps"] == "1" and kept["DISPatch"]["seed"] == "3"
    student = next((tmp_path / "runs/patches").glob("DISPatch-+-MSSP,-seed-3,-*/last.safetensors"))
    config = train.load_checkpoint(student).config
    assert (config.distil, config.low, config.high) == ("selective", 10, 40)
    code, _, error = script("patches", *command, "--rows", "features", *flags)
    assert code == 2 and "--rows 'features'" in error and "'features, all'" in error


@pytest.mark.slow
def test_fair_table_trains_stages_once_and_scores_both_tests(tmp_path, corpus, script):
    encoder = HubertModel(HubertConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2))
    encoder.save_pretrained(tmp_path / "encoder")
    torch.save({"step": 5, "run": dict(batch_size=6, accumulate=1, processes=1)}, tmp_path / "encoder" / "last.pt")
    copy = shutil.copytree(corpus, tmp_path / "copy", copy_function=shutil.copy)      # other times, another place
    outputs = [script("compare", "--num-crops", "4", "--preset", "tiny", "--workers", "1", "--csv", "all.csv", "--rows",
                      "CRP, NFE 1", "deepest layer", "random encoder", "--encoder", "encoder", "--data", place, "--",
                      "--num-frames", "24")[1] for place in (corpus, copy)]
    tables = [out[out.index("\n4 crops a stage, n = 2"):] for out in outputs]
    assert tables[0] == tables[1] and "training" not in outputs[1]
    assert [line[9:] for line in outputs[0].splitlines() if line.startswith("training")] == [
        "score, seed 0", "CRP 1, seed 0", "drift, own encoder, deepest, seed 0", "drift, random encoder, seed 0"]
    rows = read(tmp_path / "all.csv")
    assert {row["table"] for row in rows} == {"budget"} and len(rows) == 2 + 3 * 2
    assert {row["test"] for row in rows} == {"test", "other"}
    known = {row["row"]: row for row in rows}
    assert known["CRP, NFE 1"]["crops_in_all"] == "8" and known["DriftSE, random encoder"]["crops_in_all"] == "4"
    assert known["DriftSE, own encoder, deepest layer"]["crops_in_all"] == "34"
    assert all(row["preset"] == "tiny" and float(row["core_seconds"]) > 0 for row in rows[2:])
    assert all(row["nfe"] == "1" for row in rows[2:])


def test_every_stage_of_the_fair_table_is_understood(monkeypatch):
    """Its flags make a configuration of its method."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import compare
    seen = []

    def configured(Method, args):
        train.TrainConfig(**commands.explicit_flags(args, train.TrainConfig))
        seen.append(Method.Config(**Method.presets[args.preset] | commands.explicit_flags(args, Method.Config)))

    monkeypatch.setattr(commands, "train_command", configured)
    for name, (command, flags) in compare.STAGES.items():
        words = re.sub(r"\{[^}]+\}", "weights", flags).split()
        assert run_command(METHODS[Path(command.split()[0]).stem], "train", "--data", "x", "--preset", "small", *words) == 0, name
    assert len(seen) == len(compare.STAGES)


def test_rows_of_the_fair_table_are_chosen_by_name_or_by_part_of_it(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import compare
    assert list(compare.rows_named(["DriftSE", "CRP, "])) == ["CRP, NFE 5", "CRP, NFE 1", "DriftSE"]
    assert compare.rows_named([""]) == compare.ROWS and len(compare.rows_named(["DriftSE,"])) > 5
    with pytest.raises(ValueError, match="'MeCa': there are .*'MeCo'"):
        compare.rows_named(["MeCo", "MeCa"])


@pytest.mark.slow
def test_sensitivity_is_tabled_and_drawn(tmp_path, corpus, script):
    config = sgmse.Config(**sgmse.PRESETS["tiny"] | dict(num_frames=24))
    train.save_checkpoint(tmp_path / "first.safetensors", sgmse.ScoreSDE(config))
    _, out, _ = script("sensitivity", "--data", corpus, "--nfe", "1", "3", "--starts", "0.1", "0.5", "--workers", "1", "--scores",
                       "scores", "--out", "map.png", "one=first.safetensors")
    rows = [line.split("|")[1:4] for line in out.splitlines() if line.startswith(("| 0.1", "| 0.5"))]
    even, uneven = rows[8:10], rows[10:]                 # SI-SDR, of even times and of others
    assert len(rows) == 2 * 2 * 3 and [row[1] for row in even] == [row[1] for row in uneven]
    assert [row[2] for row in even] != [row[2] for row in uneven]
    assert (tmp_path / "map.png").stat().st_size > 5000


@pytest.mark.slow
def test_frames_are_drawn_where_training_takes_them(tmp_path, corpus, script):
    outputs = [script("drifting", "--data", corpus, "--steps", "0", "2", "--recordings", "2", "--out", "runs", "--figure",
                      "figure.png", "--csv", "figure.csv", "--", "--preset", "tiny", "--batch-size", "1", "--lr", "1e-2")[1]
               for _ in range(2)]
    assert "trainable parameters" in outputs[0] and "trainable parameters" not in outputs[1]
    rows = [(row["row"], float(row["energy_distance"])) for row in read(tmp_path / "figure.csv")]
    assert [state for state, _ in rows] == ["noisy", "after 0 steps", "after 2 steps", "end: drift"]
    distances = [distance for _, distance in rows]
    assert len(set(distances)) == 4 and distances[3] < distances[0]
    assert (tmp_path / "figure.png").stat().st_size > 5000

    start, own = (train.load_checkpoint(next((tmp_path / "runs").glob(f"*/after {steps}.safetensors"))) for steps in (0, 2))
    train.seed_everything(0)
    fresh = drift.DriftSE(drift.Config(**drift.PRESETS["tiny"])).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in start.state_dict().items() if name != "gain")
    assert not torch.equal(own.net.head.weight, start.net.head.weight)


def test_bands_tell_the_level_of_the_speech_from_noise(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import bands
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 64000))
    spectrum, f = np.fft.rfft(clean), np.fft.rfftfreq(64000, 1 / 16000)
    enhanced = np.fft.irfft(np.where(f < 1000, 0.5, 1) * spectrum) + noise                   # 6 dB less below 1 kHz
    gains = [score(clean, enhanced, 16000) for score in (bands.pitch, bands.middle, bands.presence, bands.high)]
    assert gains == pytest.approx([-6.02, -6.02, 0, 0], abs=0.5)


def results(*scores, column="pesq"):
    rows = [{"name": f"{number}", column: score, "note": "", "error": ""} for number, score in enumerate(scores)]
    return metrics.Results(rows, [column])


def test_a_table_keeps_rows_that_were_not_scored_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    path = tmp_path / "all.csv"
    scoring.add_rows(None, [])                           # without --csv
    for seed in (0, 1):
        scoring.add_rows(path, scoring.observations("two", "a", results(1.0, 2.0), ["pesq"], seed=seed))
    scoring.add_rows(path, scoring.observations("one", "a", results(7.0, column="own_time"), ["own_time"], snr=5))
    for values in ((9.0, 9.0, 9.0), (3.0, 4.0, 5.0)):    # of as many recordings: in its place; of others: beside it
        scoring.add_rows(path, scoring.observations("two", "a", results(*values), ["pesq"], seed=1))
    *rest, last, third = scoring.read_table(path)
    assert (last["table"], last["metric"], last["mean"], last["snr"]) == ("one", "own_time", "7.000000", "5")
    assert [(row["table"], row["seed"], row["n"], row["mean"]) for row in (*rest, third)] == [
        ("two", "0", "2", "1.500000"), ("two", "1", "2", "1.500000"), ("two", "1", "3", "4.000000")]
    assert [float(rest[0][name]) for name in ("low", "high")] == [1, 2]


def test_tables_are_kept_in_a_file_each_and_read_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "TABLES", tmp_path)
    rows = scoring.observations("one", "a", results(1.0, 2.0), ["pesq"], {"parameters": 7}, seed=0)
    scoring.add_rows("", [*rows, *scoring.observations("two", "b", results(3.0), ["pesq"])])
    assert {path.name for path in tmp_path.iterdir()} == {"one.csv", "two.csv"}
    once = scoring.read_table(tmp_path / "one.csv")
    scoring.write_table(tmp_path / "again.csv", once)
    assert scoring.read_table(tmp_path / "again.csv") == once
    assert list(once[0]) == ["table", "row", "seed", "metric", "mean", "low", "high", "n"]
    [row] = scoring.wide(once)
    assert {name: row[name] for name in ("row", "seed", "n")} == {"row": "a", "seed": "0", "n": "2"}
    assert [row[f"pesq{end}"] for end in ("", "_low", "_high")] == ["1.500000", "1.000000", "2.000000"]
    assert row["parameters"] == "7" and row["parameters_low"] == ""


def test_runs_of_evaluate_are_compared_on_what_they_share(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import side_by_side
    results(1.0, 2.0, 9.0).save_csv(tmp_path / "noisy.csv")
    new = results(1.5, 3.0, 8.0)
    new.rows[2] |= {"error": "pesq: no utterance"}
    del new.rows[2]["pesq"]
    new.save_csv(tmp_path / "run" / "scores.csv")
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--table", "mine", "--csv", str(tmp_path / "all.csv"),
                                      f"noisy={tmp_path / 'noisy.csv'}", f"new={tmp_path / 'run'}"])
    side_by_side.main()
    shown = capsys.readouterr().out
    assert shown.startswith("n = 2,") and "| noisy | 1.500 [1.000, 2.000] |" in shown
    assert "| new − noisy | 0.750 [0.500, 1.000] |" in shown
    assert [(row["table"], row["row"], row["mean"]) for row in scoring.read_table(tmp_path / "all.csv")] == [
        ("mine", "noisy", "1.500000"), ("mine", "new", "2.250000"), ("mine_differences", "new − noisy", "0.750000")]
    results(5.0).save_csv(tmp_path / "other" / "scores.csv")
    (tmp_path / "other" / "scores.csv").write_text((tmp_path / "other" / "scores.csv").read_text().replace("\n0,", "\nx,"))
    monkeypatch.setattr(sys, "argv", [*sys.argv, f"other={tmp_path / 'other'}"])
    with pytest.raises(SystemExit):
        side_by_side.main()
    assert "no recording in common" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1 recordings could not be scored; the first, 2: pesq: no utterance"):
        scoring.scores(tmp_path / "run" / "scores.csv", [], 1)


def test_energy_distance_is_zero_for_equal_sets_and_twice_the_shift_far_apart(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import drifting
    torch.manual_seed(0)
    x, offset = torch.randn(400, 3), torch.tensor([100.0, 0, 0])
    assert drifting.energy_distance(x, x) == 0
    within = drift.distances(x, x).mean().item()
    assert drifting.energy_distance(x, x + offset) == pytest.approx(2 * 100 - 2 * within, rel=1e-3)


@pytest.mark.parametrize("hertz", [80, 120, 164, 166, 220, 400])
def test_pitch_of_a_voice_in_some_noise(hertz, monkeypatch):
    """A buzz that fades in and out; each multiple of its period would do, too, but for being longer."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import voices
    t = np.arange(32000) / 16000
    buzz = sum(np.sin(2 * np.pi * hertz * k * t + k) / k for k in range(1, 20)) * np.sin(np.pi * t / 2) ** 2
    found = voices.pitch(buzz + 0.05 * np.random.default_rng(0).standard_normal(len(t)))
    assert len(found) > 100 and np.median(found) == pytest.approx(hertz, rel=0.02)
    assert np.mean(np.abs(found / hertz - 1) < 0.05) > 0.9


def test_recordings_of_high_voices_are_counted_and_linked(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import voices
    t = np.arange(16000) / 16000
    for name, hertz in (("men/a", 110), ("men/b", 140), ("women/a", 210)):
        path = tmp_path / "speech" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save_audio(path, 0.1 * sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 9)), 16000)
    monkeypatch.setattr(sys, "argv", ["voices.py", str(tmp_path / "speech"), "--links", str(tmp_path / "high")])
    voices.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[:2]] == ["0.000", "1.000"] and "1 recordings linked" in lines[-1]
    assert [path.relative_to(tmp_path / "high").as_posix() for path in data.list_audio(tmp_path / "high")] == [
        "speech/women/a.wav"]


def test_latents_are_tabled(corpus, monkeypatch):
    """A frame finds itself; among frames of noise alone it finds its own time by chance."""
    command = [sys.executable, EXPERIMENTS / "latents.py", "mel", "--data", corpus, "--num-crops", "16", "--snrs", "5"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:4] for line in done.stdout.splitlines() if line.startswith("| mel")]
    assert [row[1].strip() for row in rows] == list("01234") and all(0 < float(row[2].split()[0]) <= 1 for row in rows)

    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import latents
    torch.manual_seed(0)
    mel, clean = drift.SpeechLatents("mel", (0, 3)), torch.randn(4, 16000)
    assert latents.hits(mel, clean, clean).tolist() == [[1.0] * 4] * 2
    assert latents.hits(mel, clean, torch.randn(4, 16000)).max() < 0.2


@pytest.mark.slow
def test_robustness_is_tabled_over_levels_of_both_noises(tmp_path, corpus, script):
    root = tmp_path / "corpus"
    shutil.copytree(corpus / "test", root / "test")
    data.save_audio(root / "test/noise/a.wav", 0.1 * torch.randn(8000), 16000)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        method = consistency.ConsistencyModel(consistency.Config(**consistency.PRESETS["tiny"] | dict(num_frames=24)))
        torch.nn.init.normal_(method.net.head.weight, std=0.1)
        train.save_checkpoint(tmp_path / f"{name}.safetensors", method)
    outputs = [script("robustness", "--data", root, "--snrs", "0", "15", "--workers", "1", "--scores", "scores",
                      "one=one.safetensors", "two=two.safetensors")[1] for _ in range(2)]
    tables = [[line for line in out.splitlines() if line.startswith("|")] for out in outputs]
    assert tables[0] == tables[1] and "network evaluations" in outputs[0] and "network evaluations" not in outputs[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[0]]
    assert [row[:2] for row in rows[2:6]] == [["test", "0"], ["test", "15"], ["white", "0"], ["white", "15"]]
    for noisy in (rows[2:4], rows[4:6]):                 # the noisy recordings have the level asked for
        assert float(noisy[1][3].split()[0]) - float(noisy[0][3].split()[0]) == pytest.approx(15, abs=1)
    pesq = float(rows[2][4].split()[0]) - float(rows[2][6].split()[0])
    assert rows[8][:3] == ["one − two", "test", "0"] and float(rows[8][3].split()[0]) == pytest.approx(pesq, abs=2e-3)


@pytest.mark.slow
def test_correctors_are_tabled_behind_each_separator(tmp_path, corpus, script):
    for seed, name in ((0, "one"), (2, "two")):          # in whose outputs PESQ finds utterances
        torch.manual_seed(seed)
        config = meanflow.Config(**meanflow.PRESETS["tiny"] | dict(num_frames=24, separator="frozen"))
        method = meanflow.MeanFlowCorrector(config)
        for p in method.net.head.parameters():           # a new corrector keeps the estimate
            torch.nn.init.normal_(p, std=0.1)
        train.save_checkpoint(tmp_path / f"{name}.safetensors", method)
    _, out, _ = script("behind", "--data", corpus, "--workers", "1", "--scores", "scores", "one=one.safetensors",
                       "two=two.safetensors")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    scores = {tuple(row[:2]): float(row[4].split()[0]) for row in rows[2:9]}
    added = {tuple(row[:2]): float(row[4].split()[0]) for row in rows[11:]}
    assert list(scores) == [("noisy", ""), ("one", ""), ("two", ""), ("one", "one"), ("one", "two"), ("two", "one"),
                            ("two", "two")]
    assert len({*scores.values()}) == 7                  # each a system of its own
    assert added == {(a, b): pytest.approx(scores[a, b] - scores[a, ""], abs=2e-3) for a, b in added} and len(added) == 4
    made = [train.load_checkpoint(path).state_dict() for path in (tmp_path / "scores").glob("*.safetensors")]
    one, two = (train.load_checkpoint(tmp_path / f"{name}.safetensors").state_dict() for name in ("one", "two"))
    mixed = {name: (two if name.startswith("separator.") else one)[name] for name in one}
    assert len(made) == 4 and any(all(torch.equal(mixed[name], weights[name]) for name in mixed) for weights in made)
    assert out.count("over fifths") == 4


def test_speakers_are_matched_and_an_array_scored_by_its_reference(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    torch.manual_seed(0)
    talkers, other = 0.1 * torch.randn(2, 8000), 0.1 * torch.randn(3, 8000)
    array = torch.cat([talkers.sum(0, keepdim=True) + other[:1], other])
    paths = [tmp_path / name / "a.wav" for name in ("clean", "noisy")]
    for path, wave in zip(paths, (talkers, array)):
        data.save_audio(path, wave, data.SAMPLE_RATE, "FLOAT")
    recordings, checkpoint = [("a", *paths)], tmp_path / "any.safetensors"
    checkpoint.write_bytes(b"weights")
    kept = tmp_path / scoring.identity(scoring.code(), scoring.sha256(checkpoint), {}, scoring.files(paths)) / "a.wav"
    data.save_audio(kept, talkers.flip(0) + 0.01 * other[:2], data.SAMPLE_RATE, "FLOAT")
    for _ in range(2):                                   # the second time from the file of scores
        enhanced = scoring.enhanced_and_scored(checkpoint, tmp_path, recordings, 1, ("si_sdr",))
        assert enhanced.mean("si_sdr") == pytest.approx(40, abs=1)
        noisy = scoring.noisy_scored(tmp_path, recordings, 1, ("si_sdr",), array=True)
        expected = np.mean([metrics.si_sdr(talker, array[0]) for talker in talkers])
        assert noisy.mean("si_sdr") == pytest.approx(expected, abs=1e-3)
