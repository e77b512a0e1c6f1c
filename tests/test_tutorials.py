"""The scripts in tutorials/ do what the README shows."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import consistency
import drift
import sgmse
import train

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def test_quality_over_calls_is_tabled_drawn_and_kept(tmp_path, corpus):
    for name in ("first", "second"):
        config = sgmse.Config(**sgmse.PRESETS["tiny"] | dict(num_frames=24))
        train.save_checkpoint(tmp_path / f"{name}.safetensors", sgmse.ScoreSDE(config))
    command = [sys.executable, TUTORIALS / "nfe.py", "--data", corpus, "--calls", "1", "2", "--workers", "1",
               "--scores", tmp_path / "scores", "--out", tmp_path / "nfe.png",
               "one=first.safetensors", "two=second.safetensors@3"]
    outputs = []
    for _ in range(2):
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    tables = [out[out.index("\nn = 2"):] for out in outputs]
    assert tables[0] == tables[1]
    assert [line.split("|")[1:3] for line in tables[0].splitlines()[5:]] == [
        [" noisy ", " "], [" one ", " 1 "], [" one ", " 2 "], [" two ", " 3 "]]
    assert "network calls" in outputs[0] and "network calls" not in outputs[1]
    assert (tmp_path / "nfe.png").stat().st_size > 5000


@pytest.mark.slow
def test_rows_of_patch_distillation_are_trained_scored_and_kept(tmp_path, corpus):
    teacher = consistency.Student(consistency.StudentConfig(distil="none", hidden=16))
    train.save_checkpoint(tmp_path / "teacher.safetensors", teacher)
    command = [sys.executable, TUTORIALS / "patches.py", "--data", corpus, "--teacher", "teacher.safetensors",
               "--seeds", "3", "--workers", "1", "--", "--steps", "1", "--batch-size", "1", "--num-frames", "60",
               "--hidden", "4", "--valid-every", "0"]
    outputs = []
    for _ in range(2):
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    tables = [out[out.index("\nn = 2, 1 seeds"):] for out in outputs]
    assert tables[0] == tables[1] and "student alone, seed 3" in outputs[0] and "seed 3\n" not in outputs[1]
    rows = {line.split("|")[1].strip() for line in tables[0].splitlines() if line.startswith("|")}
    assert {"noisy", "teacher", "student alone", "random patches", "DISPatch", "DISPatch + MSSP",
            "DISPatch - random patches"} <= rows
    config = train.load_checkpoint(tmp_path / "runs/patches/DISPatch-+-MSSP,-seed-3/last.safetensors").config
    assert (config.distil, config.low, config.high) == ("selective", 10, 40)


def test_latents_are_tabled(corpus, monkeypatch):
    """A frame finds itself; among frames of noise alone it finds its own time by chance."""
    command = [sys.executable, TUTORIALS / "latents.py", "mel", "--data", corpus, "--crops", "16", "--snrs", "5"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    rows = [line.split("|")[1:4] for line in done.stdout.splitlines() if line.startswith("| mel")]
    assert [row[1].strip() for row in rows] == list("01234") and all(0 < float(row[2].split()[0]) <= 1 for row in rows)

    monkeypatch.syspath_prepend(str(TUTORIALS))
    import latents
    torch.manual_seed(0)
    mel, clean = drift.SpeechLatents("mel", (0, 3)), torch.randn(4, 16000)
    assert latents.hits(mel, clean, clean).tolist() == [[1.0] * 4] * 2
    assert latents.hits(mel, clean, torch.randn(4, 16000)).max() < 0.2
