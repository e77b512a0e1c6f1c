"""Each score against an independent number or a closed form, each guard, and the command door to door."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import data
import metrics

FIXTURES = Path(__file__).parent / "fixtures"
rng = np.random.default_rng(0)


def talk(seconds=2.0, seed=0):
    """Something like speech, (L,): a buzz in syllables, with pauses."""
    t = np.arange(int(16000 * seconds)) / 16000
    noise = np.random.default_rng(seed).standard_normal(len(t))
    buzz = sum(np.sin(2 * np.pi * 140 * k * t + 3 * np.sin(5 * t) * k) / k for k in range(1, 25))
    return 0.1 * (buzz + 0.1 * noise) * np.clip(np.sin(2 * np.pi * 2.5 * t), 0, 1) ** 0.5 + 1e-4 * noise


CLEAN = talk()
NOISE = 0.03 * np.random.default_rng(99).standard_normal(len(CLEAN))


def installed(*packages):
    return all(importlib.util.find_spec(package) for package in packages)


with_dnsmos = pytest.mark.skipif(not installed("onnxruntime", "speechmos"), reason=metrics.missing("dnsmos"))
with_distillmos = pytest.mark.skipif(not installed("distillmos", "xls_r_sqa"), reason=metrics.missing("distillmos"))

SPEECHMOS = [2.600019, 2.2698499, 3.5279717, 1.9193397]      # P.808, SIG, BAK, OVRL
EVERY = [metrics.pesq, metrics.estoi, metrics.si_sdr,
         lambda s, s_hat: metrics.si_sir_sar(s, s_hat, np.resize(NOISE, np.shape(s_hat)))]


# ---- the scores ----

def test_energy_ratios_equal_the_reference_code():
    data = np.load(FIXTURES / "metrics_sgmse.npz")
    expected = json.loads(str(data["values_json"]))
    si_sir, si_sar = metrics.si_sir_sar(data["s"], data["s_hat"], data["n"])
    scores = [metrics.si_sdr(data["s"], data["s_hat"]), si_sir, si_sar]
    assert scores == pytest.approx(expected["energy_ratios"], abs=1e-6)


def test_pesq_equals_the_reference_numbers():
    data = np.load(FIXTURES / "metrics_pesq.npz")
    scores = metrics.pesq(data["ref_int16"] / 32768, data["deg_int16"] / 32768)
    assert scores == pytest.approx(data["pesq_wb"], abs=1e-5)


@pytest.mark.parametrize("a", [0.01, 0.5, 10.0])
def test_si_sdr_of_orthogonal_noise_is_minus_20_log_a(a):
    s = rng.standard_normal(8000)
    e = rng.standard_normal(8000)
    e -= (e @ s) / (s @ s) * s
    e *= np.linalg.norm(s) / np.linalg.norm(e)
    assert metrics.si_sdr(s, s + a * e) == pytest.approx(-20 * np.log10(a), abs=1e-9)


def test_si_sir_and_si_sar_separate_noise_from_artifacts():
    s, n, a = np.linalg.qr(rng.standard_normal((8000, 3)))[0].T      # orthonormal
    assert metrics.si_sir_sar(s, s + 0.1 * n + 0.01 * a, n) == pytest.approx((20, 40), abs=1e-9)


def test_si_sdr_does_not_remove_the_mean():
    s = np.full(8000, 1.0)
    e = np.resize([1.0, -1.0], 8000)
    assert metrics.si_sdr(s, s + 0.1 * e) == pytest.approx(20, abs=1e-9)


@pytest.mark.parametrize("gain", [1e-2, 0.1, 7.0])
def test_scale_invariant_scores_ignore_the_gain(gain):
    for score, tolerance in ((metrics.si_sdr, 1e-9), (metrics.pesq, 1e-4), (metrics.estoi, 1e-6)):
        assert score(CLEAN, gain * (CLEAN + NOISE)) == pytest.approx(score(CLEAN, CLEAN + NOISE), abs=tolerance)


def test_identical_signals_reach_the_ceiling():
    assert metrics.pesq(CLEAN, CLEAN) == pytest.approx(4.644, abs=1e-3)
    assert metrics.estoi(CLEAN, CLEAN) == pytest.approx(1.0, abs=1e-9)
    assert metrics.si_sdr(CLEAN, CLEAN) == np.inf


@pytest.mark.parametrize("score", EVERY)
def test_a_batch_scores_row_by_row_and_tensors_like_arrays(score):
    clean, enhanced = np.stack([CLEAN, talk(seed=3)]), np.stack([CLEAN + NOISE, talk(seed=3) + 2 * NOISE])
    rows = np.transpose([score(*pair) for pair in zip(clean, enhanced)])
    np.testing.assert_allclose(score(clean, enhanced), rows, atol=1e-9)
    tensors = score(torch.tensor(clean), torch.tensor(enhanced, requires_grad=True))
    np.testing.assert_allclose(tensors, rows, atol=1e-9)
    assert all(type(x) is float for x in np.atleast_1d(np.array(score(CLEAN, CLEAN + NOISE), dtype=object)))


def test_estoi_is_the_extended_one():
    stoi = pytest.importorskip("pystoi").stoi
    score, pair = metrics.estoi(CLEAN, CLEAN + NOISE), (CLEAN, CLEAN + NOISE, 16000)
    assert score == pytest.approx(stoi(*pair, extended=True), abs=1e-9)
    assert abs(score - stoi(*pair)) > 0.01


def test_estoi_of_digital_silence_is_deterministic():
    enhanced = np.where(np.arange(len(CLEAN)) < 12000, CLEAN, 0)      # pystoi alone: another value every time
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    score = metrics.estoi(CLEAN, enhanced)
    assert (np.random.get_state()[1] == before).all()      # and nobody else's random numbers change
    np.random.seed(6)
    assert metrics.estoi(CLEAN, enhanced) == score


# ---- what is refused ----

def broken(kind):
    x = CLEAN + NOISE
    if kind in ("nan", "inf"):
        x[10] = {"nan": np.nan, "inf": np.inf}[kind]
        return x
    return {"silent": np.zeros_like(x), "empty": x[:0], "short": x[:3999], "complex": x + 0j, "3d": x[None, None]}[kind]


@pytest.mark.parametrize("score", EVERY)
@pytest.mark.parametrize("kind, message", [
    ("nan", "NaN"), ("inf", "NaN or infinite"), ("silent", "silent"), ("empty", "empty"),
    ("short", "0.250 s; expected 0.25"), ("complex", "real samples"), ("3d", "real samples")])
def test_every_score_refuses_bad_signals_by_name(score, kind, message):
    with pytest.raises(ValueError, match=f"enhanced.*{message}"):
        score(CLEAN, broken(kind))
    with pytest.raises(ValueError, match=f"clean.*{message}"):
        score(broken(kind), CLEAN)


def test_a_quarter_of_a_second_is_enough():
    assert np.isfinite(metrics.si_sdr(CLEAN[4000:8000], (CLEAN + NOISE)[4000:8000]))


def test_a_silent_row_of_a_batch_is_named():
    with pytest.raises(ValueError, match="enhanced is silent in row 1"):
        metrics.si_sdr(np.stack([CLEAN, CLEAN]), np.stack([CLEAN, 0 * CLEAN]))


def test_noise_of_an_already_clean_file_has_no_si_sir():
    with pytest.raises(ValueError, match="noise is silent"):
        metrics.si_sir_sar(CLEAN, CLEAN + NOISE, CLEAN - CLEAN)


def test_different_channel_counts_are_refused():
    with pytest.raises(ValueError, match="clean has 1, enhanced has 2"):
        metrics.si_sdr(CLEAN[None], np.stack([CLEAN, CLEAN]))


def test_different_lengths_are_cropped_and_said():
    with pytest.warns(UserWarning, match="enhanced cropped from 32000 to 31900 samples"):
        score = metrics.si_sdr(CLEAN[:-100], CLEAN + NOISE)
    assert score == metrics.si_sdr(CLEAN[:-100], (CLEAN + NOISE)[:-100])


def test_placeholder_of_pystoi_never_gets_through():
    with pytest.raises(ValueError, match="0.4 s of speech"):
        metrics.estoi(CLEAN[:4800], CLEAN[:4800])
    with pytest.raises(ValueError, match="0.4 s of speech"):      # 2 s, but nearly all pause
        x = np.where(np.arange(len(CLEAN)) < 3000, CLEAN, 1e-6 * NOISE)
        metrics.estoi(x, x)


def test_refusals_of_the_pesq_package_become_a_value_error(monkeypatch):
    package = pytest.importorskip("pesq")

    def refuse(*arguments):
        raise package.NoUtterancesError("No utterances detected")
    monkeypatch.setattr(package, "pesq", refuse)
    with pytest.raises(ValueError, match="PESQ refuses this pair: No utterances"):
        metrics.pesq(CLEAN, CLEAN)


def test_pesq_refuses_the_recordings_that_crash_it():      # without the guard: a segmentation fault
    burst = np.r_[0.1 * rng.standard_normal(4800), np.zeros(4800)]
    with pytest.raises(ValueError, match="50 utterances"):
        metrics.pesq(np.tile(burst, 60), np.tile(burst, 60))
    assert metrics.count_utterances(np.tile(burst, 60), 16000) == 60


def test_pesq_and_dnsmos_refuse_other_sample_rates():
    for score in (lambda: metrics.pesq(CLEAN, CLEAN, 48000), lambda: metrics.dnsmos(CLEAN, 8000)):
        with pytest.raises((ValueError, ImportError), match="16000 Hz|pip install"):
            score()


@pytest.mark.parametrize("steps", [1, 8])
def test_dither_is_no_reference(steps):
    dither = np.random.default_rng(1).integers(-steps, steps + 1, len(CLEAN)) / 32768
    assert np.abs(dither).max() == steps / 32768
    with pytest.raises(ValueError, match="clean is silent"):
        metrics.si_sdr(dither, CLEAN)
    r = metrics.evaluate([("speech", CLEAN, CLEAN + NOISE), ("dither", dither, dither + NOISE)], ["si_sdr"],
                         progress=False)
    assert r.mean("si_sdr") == r.rows[0]["si_sdr"] and "si_sdr" not in r.rows[1]
    assert r.failed == [r.rows[1]] and "clean is silent" in r.rows[1]["error"]
    metrics.si_sdr(9 / 32768 * np.sign(dither), CLEAN)                     # one step above is scored
    assert getattr(data, "SILENT_PEAK", metrics.SILENT_PEAK) == metrics.SILENT_PEAK


# ---- attenuation, and functions of other modules ----

def test_attenuation_is_the_ratio_of_the_energies():
    assert metrics.attenuation(NOISE, 0.1 * NOISE) == pytest.approx(20, abs=1e-9)
    assert metrics.attenuation(NOISE, 2 * NOISE) == pytest.approx(-20 * np.log10(2), abs=1e-9)
    np.testing.assert_allclose(metrics.attenuation(np.stack([NOISE, NOISE]), np.stack([NOISE, 0.1 * NOISE])), [0, 20],
                               atol=1e-9)


def test_attenuation_of_digital_silence_is_finite():
    floor = 20 * np.log10(np.sqrt(np.mean(NOISE ** 2)) * 32768)            # one step of 16 bits
    assert metrics.attenuation(NOISE, 0 * NOISE) == pytest.approx(floor, abs=1e-9) and 50 < floor < 90
    assert metrics.attenuation(NOISE, 1e-7 * NOISE) == metrics.attenuation(NOISE, 0 * NOISE)
    with pytest.raises(ValueError, match="noisy is silent"):
        metrics.attenuation(0 * NOISE, NOISE)


def test_attenuation_needs_no_reference():
    pairs = [("a", None, 0 * NOISE, NOISE), ("b", None, 0.1 * NOISE, NOISE)]
    r = metrics.evaluate(pairs, ["attenuation"], progress=False)
    assert not r.failed and r.values("attenuation")[1] == pytest.approx(20, abs=1e-4)
    assert metrics.without_reference(["pesq", "attenuation"]) == ["attenuation"]
    assert "attenuation" not in metrics.WITHOUT_REFERENCE
    silent = metrics.evaluate([("a", 0 * NOISE, 0.1 * NOISE, NOISE)], ["attenuation", "si_sdr"], progress=False).rows[0]
    assert silent["attenuation"] == pytest.approx(20, abs=1e-4) and silent["error"].startswith("si_sdr: clean is silent")


MINE = """
import numpy as np

def gain(noisy, enhanced, sample_rate, floor=1e-9):
    assert sample_rate == 16000 and noisy.dtype == np.float32 and noisy.ndim == 1
    return np.abs(enhanced).max() / np.abs(noisy).max()

def several(clean, enhanced):
    return {"length": len(clean), "peak": abs(enhanced).max()}

def moody(enhanced):
    if enhanced[0] > 0.4:
        raise RuntimeError("too loud")
    return np.nan if enhanced[0] > 0.2 else 1

def si_sdr(clean, enhanced):
    return 7

def foreign(spectrum):
    return 1

nothing = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_function_of_any_module_is_a_score(mine):
    stereo = np.stack([CLEAN, CLEAN])
    pairs = [("a", stereo, np.stack([0.5 * CLEAN, 0.25 * CLEAN]), stereo), ("b", CLEAN, CLEAN + NOISE, CLEAN)]
    r = metrics.evaluate(pairs, ["mine:gain", "si_sdr", "mine:several"], progress=False)
    assert r.columns == ["si_sdr", "gain", "length", "peak"] and not r.failed[1:]
    assert r.rows[0]["gain"] == pytest.approx(0.375, abs=1e-6) and r.rows[0]["length"] == len(CLEAN)
    assert metrics.evaluate(pairs, ["mine:gain", "si_sdr", "mine:several"], workers=2, progress=False).rows == r.rows


def test_failures_of_a_foreign_score_cost_their_file_alone(mine):
    pairs = [(name, None, np.r_[first, CLEAN]) for name, first in (("good", 0.0), ("nan", 0.3), ("loud", 0.5))]
    r = metrics.evaluate(pairs, ["mine:moody"], progress=False)
    assert r.values("moody").tolist() == [1] and [row["name"] for row in r.failed] == ["nan", "loud"]
    assert r.failed[0]["error"] == "mine:moody: moody is nan, which cannot enter a mean"
    assert r.failed[1]["error"] == "mine:moody: too loud"
    [row] = metrics.evaluate([("a", CLEAN, CLEAN + NOISE)], ["si_sdr", "mine:si_sdr"], progress=False).rows
    assert row["si_sdr"] == pytest.approx(metrics.si_sdr(CLEAN, CLEAN + NOISE), abs=1e-3)
    assert row["error"] == "mine:si_sdr: there is a column si_sdr already"
    dither = np.sign(CLEAN) / 32768
    [row] = metrics.evaluate([("a", dither, CLEAN)], ["mine:several"], progress=False).rows
    assert "length" not in row and "clean is silent" in row["error"]


@pytest.mark.parametrize("metric, message", [
    ("nowhere:mos", "No module named 'nowhere'"), ("mine:absent", "no attribute 'absent'"), ("mine:", "MODULE:NAME"),
    ("mine:nothing", "is not a callable"), ("mine:foreign", r"function of some of clean, .*got foreign\(spectrum\)")])
def test_what_is_no_score_is_refused_in_one_line(mine, metric, message):
    with pytest.raises(ValueError, match=message) as error:
        metrics.known(["pesq", metric])
    assert metric in str(error.value) and "\n" not in str(error.value)


# ---- tables ----

def results(values):
    return metrics.Results([{"name": str(i), "x": x, "note": "", "error": ""} for i, x in enumerate(values)], ["x"])


def test_bootstrap_interval_covers_the_mean_of_gaussian_samples():
    draws = np.random.default_rng(0).normal(3, 2, (300, 40))
    low, high = np.transpose([metrics.bootstrap_interval(x, resamples=300, seed=i) for i, x in enumerate(draws)])
    assert 0.90 <= np.mean((low <= 3) & (3 <= high)) <= 0.98
    assert np.mean(high - low) == pytest.approx(2 * 1.96 * 2 / 40 ** 0.5, rel=0.08)
    assert metrics.bootstrap_interval(draws[0]) == metrics.bootstrap_interval(draws[0])
    assert np.isnan(metrics.bootstrap_interval(draws[0, :1])).all()


def test_paired_interval_finds_a_small_gain():
    difficulty = rng.normal(2, 1, 50)
    a, b = results(difficulty), results(difficulty + rng.normal(0.1, 0.05, 50))
    difference = b.compare(a)
    low, high = metrics.bootstrap_interval(difference.values("x"))
    assert difference.mean("x") == pytest.approx(b.mean("x") - a.mean("x"))
    assert 0 < low < difference.mean("x") < high < 0.15
    assert metrics.bootstrap_interval(a.values("x"))[1] > b.mean("x")      # unpaired, the two overlap


def test_comparison_is_over_the_common_files():
    a, b = results([1.0, 2.0, 3.0]), results([2.0, 4.0])
    del b.rows[1]["x"]
    assert b.compare(a).values("x").tolist() == [1.0]


def test_file_without_a_score_is_named_and_not_in_the_mean():
    bad = np.full_like(CLEAN, np.nan)
    pairs = [("good", CLEAN, CLEAN + NOISE), ("bad", CLEAN, bad), ("mute", CLEAN, 0 * CLEAN), ("same", CLEAN, CLEAN),
             ("cut", CLEAN, (CLEAN + NOISE)[:-9])]
    r = metrics.evaluate(pairs, ["si_sdr", "estoi"], progress=False)
    assert [row["name"] for row in r.rows] == ["good", "bad", "mute", "same", "cut"]
    assert [row["name"] for row in r.failed] == ["bad", "mute", "same"]      # same: an infinite SI-SDR
    assert len(r.values("si_sdr")) == 2 and np.isfinite(r.mean("si_sdr"))
    table = r.table()
    for line in ("3 of 5 files have no score", "bad: enhanced is NaN", "mute: si_sdr, estoi: enhanced is silent", "same: si_sdr: si_sdr is inf",
                 "cut: clean cropped from 32000 to 31991"):
        assert line in table


def test_an_error_without_words_still_counts():
    class Unreadable:
        def __array__(self, *arguments, **options):
            raise MemoryError
    r = metrics.evaluate([("big", CLEAN, Unreadable())], ["si_sdr"], progress=False)
    assert r.failed[0]["error"] == "MemoryError()"


def test_table_of_one_file_or_of_none_has_no_made_up_numbers():
    assert "nan" in results([2.0]).table() and "2.000" in results([2.0]).table()
    assert "n/a" in metrics.evaluate([("a", CLEAN, np.zeros(0))], ["si_sdr"], progress=False).table()
    assert "no noisy file" in metrics.evaluate([("a", CLEAN, CLEAN)], ["si_sir_sar"], progress=False).table()


def test_channels_are_scored_one_by_one_and_averaged():
    clean, enhanced = np.stack([CLEAN, CLEAN]), np.stack([CLEAN + NOISE, CLEAN + 3 * NOISE])
    r = metrics.evaluate([("stereo", clean, enhanced)], ["si_sdr"], progress=False)
    assert r.mean("si_sdr") == pytest.approx(np.mean(metrics.si_sdr(clean, enhanced)))


def test_processes_give_the_same_table():
    pairs = [(f"{i}", CLEAN, torch.tensor(CLEAN + i * NOISE), CLEAN + NOISE) for i in (1, 2, 3)] + [("x", CLEAN, None)]
    names = ["pesq", "estoi", "si_sdr", "si_sir_sar"]
    assert metrics.evaluate(pairs, names, workers=2).rows == metrics.evaluate(pairs, names, workers=1).rows


def test_csv_holds_every_file_and_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    r = metrics.evaluate([("a,b", CLEAN, CLEAN + NOISE), ("bad", CLEAN, 0 * CLEAN)], ["si_sdr"], progress=False)
    path = tmp_path / "scores.csv"
    r.save_csv(path)
    rows = list(csv.DictReader(open(path, newline="")))
    assert [row["name"] for row in rows] == ["a,b", "bad"]
    assert float(rows[0]["si_sdr"]) == r.mean("si_sdr") and float(rows[0]["seconds"]) == 2
    assert rows[1]["si_sdr"] == "" and "silent" in rows[1]["error"]

    def power_cut(*arguments):
        raise OSError("power cut")
    before = path.read_bytes()
    for step in ("replace", "fsync"):      # rename and write
        monkeypatch.setattr(metrics.os, step, power_cut)
        with pytest.raises(OSError, match="power cut"):
            results([1.0]).save_csv(path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unknown_metrics_and_repeated_names_are_refused():
    with pytest.raises(ValueError, match="unknown metric mos; there are pesq.*MODULE:NAME"):
        metrics.evaluate([], ["mos"])
    with pytest.raises(ValueError, match="different name"):
        metrics.evaluate([("a", CLEAN, CLEAN), ("a", CLEAN, CLEAN)])


def test_missing_package_says_what_to_install_and_fails_no_file(monkeypatch):
    for package in ("pesq", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install --no-deps speechmos"):
        metrics.dnsmos(CLEAN)
    r = metrics.evaluate([("a", CLEAN, CLEAN + NOISE)], ["pesq", "si_sdr", "dnsmos"], progress=False)
    assert not r.failed and r.absent == ["pesq needs: pip install pesq (needs a C compiler)",
                                         "dnsmos needs: pip install onnxruntime; pip install --no-deps speechmos"]
    assert r.table().count("n/a") == 5 and all(line in r.table() for line in r.absent)


# ---- the command ----

@pytest.fixture
def folders(tmp_path):
    for folder in ("clean", "noisy", "system"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("one", "sub/two", "sub/three.take1")):
        clean = talk(seed=i)
        for folder, x in (("clean", clean), ("noisy", clean + 2 * NOISE), ("system", clean + NOISE)):
            soundfile.write(tmp_path / folder / f"{name}.{'flac' if folder == 'clean' else 'wav'}", x, 16000)
    return tmp_path


def run(folder, *arguments):
    """The command, from another directory: (exit code, standard output, standard error)."""
    done = subprocess.run([sys.executable, metrics.__file__, *arguments], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_command_scores_two_systems_and_their_difference(folders):
    code, out, err = run(folders, "clean", "noisy", "system", "--noisy", "noisy", "--csv", "s.csv", "--workers", "1")
    assert code == 0, err
    assert "\nnoisy\n" in out and "\nsystem\n" in out and "system minus noisy, paired" in out
    for suffix in ("", "-second", "-difference"):
        rows = list(csv.DictReader(open(folders / f"s{suffix}.csv")))
        assert [row["name"] for row in rows] == ["one", "sub/three.take1", "sub/two"]
        assert list(rows[0]) == ["name", "seconds", "pesq", "estoi", "si_sdr", "si_sir", "si_sar", "note", "error"]
    assert all(float(row["si_sdr"]) == pytest.approx(6.02, abs=0.2) for row in rows)


def test_command_names_a_bad_file_and_exits_with_1(folders, capsys):
    (folders / "system/one.wav").write_text("not audio")
    (folders / "system/sub/two.wav").rename(folders / "system/sub/other.wav")
    code = metrics.main([*(str(folders / x) for x in ("clean", "system")), "--metrics", "si_sdr", "--workers", "1"])
    out = capsys.readouterr().out
    assert code == 1 and "si_sdr           1" in out and "3 of 4 files have no score" in out
    assert "    one: " in out and "sub/two: no enhanced file" in out and "sub/other: no clean file" in out


def test_command_refuses_unusable_arguments_with_2(folders, capsys):
    soundfile.write(folders / "noisy/one.flac", CLEAN, 16000)
    (folders / "empty").mkdir()
    for arguments, message in ((["clean"], "ENHANCED_DIR"), (["clean", "nowhere"], "nowhere"),
                               (["clean", "empty"], "empty"), (["clean", "noisy"], "same name"),
                               (["clean", "clean/sub"], "has the name of"),
                               (["clean", "system", "--metrics", "mos"], "unknown metric"),
                               (["clean", "system", "--metrics", "si_sir_sar,attenuation"],
                                "si_sir_sar, attenuation: give --noisy")):
        with pytest.raises(SystemExit) as exit:
            metrics.main([str(folders / x) if (folders / x).exists() else x for x in arguments])
        assert exit.value.code == 2 and message in capsys.readouterr().err


def test_command_calls_a_function_of_the_current_directory(folders):
    (folders / "mine.py").write_text(MINE)
    code, out, err = run(folders, "clean", "system", "--noisy", "noisy", "--metrics", "mine:gain,attenuation")
    assert code == 0 and "\ngain             3" in out and "\nattenuation      3" in out, err
    code, _, err = run(folders, "clean", "system", "--metrics", "mine:typo")
    assert code == 2 and "unknown metric mine:typo" in err.splitlines()[-1] and "Traceback" not in err


def test_import_is_cheap():
    code = "import sys, metrics; print({'torch', 'scipy', 'pesq', 'pystoi', 'onnxruntime'} & set(sys.modules))"
    root = Path(metrics.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# ---- reference-free predictors ----

def test_mel_filters_are_slaneys_triangles():
    """Mel 15 is 1 kHz, a mel below it 200 / 3 Hz, and 27 mels above it a factor of 6.4; every area is 1."""
    filters = metrics.mel_filters(41, 12800, 12800)                        # edges at 0, 1 ... 42 mel; bins of 1 Hz
    peaks = [*(200 / 3 * np.arange(1, 15)), *(1000 * 6.4 ** (np.arange(27) / 27))]
    assert filters.shape == (41, 6401) and np.abs(filters.argmax(1) - peaks).max() <= 0.5
    np.testing.assert_allclose(filters.sum(1), 1, atol=1e-3)
    assert not filters[2, :134].any() and filters[2, 134:266].all() and not filters[2, 267:].any()    # 133 .. 267 Hz


@pytest.mark.parametrize("seconds, windows", [(4.0, 7), (9.5, 1), (12.5, 3), (30.0, 7)])
def test_dnsmos_takes_windows_and_polynomials_as_published(seconds, windows, monkeypatch):
    """Networks that answer 3; 4 s are repeated to 16; of 21 windows of 30 s rounding leaves 14 a sample short."""
    heard = []

    class Network:
        def __init__(self, *answer):
            self.answer = answer

        def run(self, names, feed):
            heard.append(feed["input_1"].shape)
            return [[list(self.answer)]]

    monkeypatch.setattr(metrics, "require", lambda *_: None)
    monkeypatch.setattr(metrics, "dnsmos_networks", lambda: (Network(3.0), Network(3.0, 3.0, 3.0)))
    scores = metrics.dnsmos(talk(seconds))
    assert scores == pytest.approx(dict(p808=3, sig=2.9120075, bak=3.2464000, ovrl=2.7834539), abs=1e-6)
    assert heard == [(1, 900, 120), (1, 144160)] * windows


def test_p808_features_are_in_units_of_40_db():
    features = metrics.p808_features(talk(9.0))
    assert features.shape == (900, 120) and features.dtype == np.float32
    assert features.max() == 1 and features.min() >= -1
    louder = metrics.p808_features(10 * talk(9.0))
    np.testing.assert_allclose(louder, features, atol=1e-5)

@with_dnsmos
def test_dnsmos_equals_the_measured_edge_values():
    silence = metrics.dnsmos(np.zeros(160000))
    assert [silence[name] for name in ("sig", "bak", "ovrl")] == pytest.approx([2.51, 3.47, 1.84], abs=0.01)
    white = np.clip(0.1 * np.random.default_rng(0).standard_normal(160000), -1, 1)
    assert metrics.dnsmos(white)["ovrl"] == pytest.approx(1.10, abs=0.03)


@with_dnsmos
def test_dnsmos_equals_speechmos():      # values of speechmos 0.0.1.1 with librosa 0.11.0 on the same samples
    scores = metrics.dnsmos(np.concatenate([talk(8.0, seed=7), talk(3.3, seed=8)]))
    assert list(scores.values()) == pytest.approx(SPEECHMOS, abs=1e-4)


@with_dnsmos
def test_dnsmos_scales_peaks_over_one_and_says_so():
    x = talk(9.5) / np.abs(talk(9.5)).max()
    with pytest.warns(UserWarning, match="peak 4.000 scaled to 1"):
        loud = metrics.dnsmos(4 * x)
    assert loud == pytest.approx(metrics.dnsmos(x))


@with_distillmos
def test_distillmos_runs_without_torchaudio():
    real = sys.modules.get("torchaudio")
    assert 1 <= metrics.distillmos(CLEAN) <= 5
    assert sys.modules.get("torchaudio") is real
    assert metrics.distillmos(0.01 * CLEAN) == pytest.approx(metrics.distillmos(CLEAN), abs=1e-3)      # it normalises


@with_distillmos
def test_distillmos_cuts_long_signals_as_its_authors_do():
    x, network = np.stack([talk(8.0), talk(8.0, seed=4)]), metrics.distillmos_network()
    ours = metrics.distillmos(x)
    network.segmenting_in_forward = True
    with torch.inference_mode():
        theirs = network(torch.tensor(x, dtype=torch.float32))
    network.segmenting_in_forward = False
    assert ours == pytest.approx(theirs.flatten().numpy(), abs=1e-5)
