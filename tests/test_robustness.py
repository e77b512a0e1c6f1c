"""Real recordings: clicks, offsets, silence, runs. Each test is named by what holds for a whole kind of them."""

import functools
import itertools
import json
import os
import platform
import struct
import subprocess
import shutil
import signal
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import commands
import data
import metrics
import rooms
import train
from data import AudioError, MixedAudio, PairedAudio, Spectrogram, UnpairedAudio
from rooms import RoomConfig, RoomMixtures
from test_data import sound, tone, write

ROOT = Path(__file__).parents[1]
NOISY, CLEAN = (soundfile.read(ROOT / f"tutorials/audio/{side}/cheer.flac", dtype="float32")[0]
                for side in ("noisy", "clean"))
SHIPPED = ["consistency", "sgmse", "meanflow", "drift", "drift_dagger"]


@functools.cache
def shipped(name):
    return train.load_checkpoint(name)


@functools.cache
def output(name, samples):
    torch.manual_seed(0)
    with torch.inference_mode():
        return shipped(name).enhance(torch.frombuffer(bytearray(samples), dtype=torch.float32)[None])[0].numpy()


def enhanced(name, wave):
    """The output of shipped weights, computed once for each wave."""
    return output(name, np.asarray(wave, np.float32).tobytes())


def decibel(x):
    return 10 * np.log10(np.mean(np.square(x)) + 1e-20)


# ---- the ends of the transform ----

@settings(max_examples=60, deadline=None)
@given(st.integers(600, 6000), st.sampled_from([(510, 128), (510, 256), (512, 256), (510, 64), (1534, 384)]),
       st.integers(0, 99))
def test_spectrogram_errors_are_no_larger_at_the_ends(length, sizes, seed):
    n_fft, hop = sizes
    length = max(length, n_fft)
    spectrogram, wave = Spectrogram(n_fft, hop, transform="none"), torch.from_numpy(sound(length, seed=seed)[:, 0])
    spec = spectrogram(wave)
    assert spec.shape[-1] == 1 + -(-length // hop)
    noise = torch.randn(spec.shape, dtype=spec.dtype, generator=torch.Generator().manual_seed(seed))
    error = (spectrogram.inverse(spec + noise, length) - wave).abs()
    assert error[-300:].max() < 2.5 * error.square().mean().sqrt() * 3
    assert (spectrogram.inverse(spec, length) - wave).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_recording_ends_without_a_click_whatever_its_length(name):
    for remainder in (0, 1, 128, 252, 255):
        wave = NOISY[:256 * 60 + remainder]
        out = enhanced(name, wave)
        assert decibel(out[-320:]) < decibel(wave[-320:]) + 3
        assert np.abs(out[-16:]).max() < 2 * np.abs(wave[-1600:]).max()


# ---- clicks, offsets, silence ----

def test_no_few_samples_move_the_level():
    wave = torch.from_numpy(sound(3 * 16000)[:, 0])
    level = data.click_robust_peak(wave)
    for start, length, tolerance in ((0, 1, 0.02), (20000, 10, 0.1), (47990, 10, 0.1), (30000, 30, 0.3)):
        clicked = wave.clone()
        clicked[start:start + length] = 100
        assert data.click_robust_peak(clicked).item() == pytest.approx(level.item(), rel=tolerance)
    padded = torch.cat([torch.zeros(90000), wave, torch.zeros(33333)])
    assert data.click_robust_peak(padded).item() == pytest.approx(level.item(), rel=0.05)
    assert data.click_robust_peak(10 * wave).item() == pytest.approx(10 * level.item(), rel=1e-5)
    tail = torch.cat([0.01 * wave[:20000], wave[:12000]])                  # the last, incomplete second counts
    assert data.click_robust_peak(tail).item() > 0.8 * level.item()


def test_level_of_crops_is_that_of_the_peak_on_average():
    """What networks were trained with by the peak of the crop stays in place."""
    speech = torch.from_numpy(CLEAN[:32000 * 3]).reshape(3, -1) + 0.1 * torch.from_numpy(sound(32000, 3)).T
    ratio = data.click_robust_peak(speech)[:, 0] / speech.abs().amax(1)
    assert 0.7 < ratio.log().mean().exp() < 1.3


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_clicks_and_offsets_cost_at_most_1_db(name):
    quiet = 0.03 * np.r_[NOISY[:48000], np.resize(NOISY - CLEAN, 48000)] / np.abs(NOISY).max()
    undisturbed = metrics.si_sdr(CLEAN[:48000], enhanced(name, quiet)[:48000])
    for place, decibels in ((-8000, 30), (24000, 0), (30000, 40)):
        wave = quiet.copy()
        wave[place] = 0.03 * 10 ** (decibels / 20)
        assert metrics.si_sdr(CLEAN[:48000], enhanced(name, wave)[:48000]) > undisturbed - 1
    for offset in (0.5, -0.4):
        assert metrics.si_sdr(CLEAN[:48000], enhanced(name, quiet + offset)[:48000]) > undisturbed - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_silence_in_the_window_costs_at_most_1_db(name):
    alone = metrics.si_sdr(CLEAN, enhanced(name, NOISY))
    dither = 3e-5 * np.random.default_rng(0).standard_normal(80000)
    for before, after in ((np.zeros(0), np.zeros(20 * 16000)), (np.zeros(5 * 16000), dither)):
        out = enhanced(name, np.r_[before, NOISY, after])
        assert metrics.si_sdr(CLEAN, out[len(before):][:len(CLEAN)]) > alone - 1


@pytest.mark.parametrize("name", SHIPPED)
def test_digital_silence_stays_digital_silence_beside_speech(name):
    wave = np.r_[NOISY[:16000], np.zeros(16000), NOISY[16000:24000]]
    out = enhanced(name, wave)
    assert np.abs(out[16000 + 1600:32000 - 1600]).max() < 1e-4 * np.abs(NOISY).max() and np.isfinite(out).all()
    assert np.abs(out[:16000]).max() > 0.01


def parts(wave):
    """What the network receives of a wave (1, L), and the output: one call for speech, one for pauses."""
    heard = []

    def network(x):
        heard.append(x)
        return x
    return heard, data.enhance_normalised(network, wave, "robust")


def test_pauses_are_enhanced_apart_and_put_back_in_place():
    noise = torch.from_numpy(sound(4 * 16000)[:, 0])
    hiss = 3e-3 * noise[:40000]                          # 50 dB below the speech
    wave = torch.cat([noise[:16000], hiss, noise[16000:30000], hiss])[None]
    heard, out = parts(wave)
    margins = 3 * data.MARGIN * data.FRAME + 2 * data.EDGE
    assert [x.shape[-1] for x in heard] == [pytest.approx(30000 + margins, abs=2000),
                                            pytest.approx(80000 - margins + 4 * data.EDGE, abs=4000)]
    assert 0.5 < heard[1].abs().max() <= data.LIMIT      # the pauses reach the network at level 1, too
    torch.testing.assert_close(out, wave - wave.mean(), atol=2e-3, rtol=0)


def test_gaps_between_syllables_are_no_pauses():
    noise = torch.from_numpy(sound(4 * 16000)[:, 0])
    gap = torch.zeros(7000)                              # less than half a second
    heard, _ = parts(torch.cat([noise[:16000], gap, noise[16000:30000]])[None])
    assert len(heard) == 1


def test_pauses_without_signal_and_very_short_recordings_pass():
    noise = torch.from_numpy(sound(2 * 16000)[:, 0])
    dither = torch.from_numpy(np.sign(sound(40000)[:, 0])) * 3 / 32768
    heard, out = parts(torch.cat([noise, dither])[None])
    assert len(heard) == 1
    torch.testing.assert_close(out[0, 36000:], dither[4000:], atol=2 / 32768, rtol=0)
    for wave in (noise[None, :520], noise[None, :data.EDGE - 1]):
        heard, out = parts(wave)
        assert not heard and torch.equal(out, wave)
    silence = torch.zeros(1, 9000)
    assert torch.equal(parts(silence)[1], silence)


def test_gain_follows_a_quiet_speaker_after_a_loud_one():
    noise = torch.from_numpy(sound(8 * 16000)[:, 0])
    wave = torch.cat([noise[:64000], 0.03 * noise[64000:]])[None, None]
    x, gain = data.normalise(wave)
    loud, quiet = gain[0, 0, :48000], gain[0, 0, -48000:]
    assert (loud.log().std() < 0.1) and (quiet.mean() / loud.mean()).item() == pytest.approx(0.03, rel=0.1)
    torch.testing.assert_close(x * gain, wave - wave.mean(), atol=1e-5, rtol=0)
    assert data.normalise(torch.cat([noise[:64000], 1e-6 * noise[64000:]])[None])[1].min() > 0.9e-3 * loud.mean()


@pytest.mark.parametrize("gain, matched", [(1.4, 1 / 1.4), (0.6, 1 / 0.6), (9.0, 0.5), (0.15, 1.0)])
def test_output_gain_matches_the_speech_in_the_mixture(gain, matched):
    """Within 6 dB; an estimate 15 dB below the mixture has no speech to compare with."""
    speech, noise = torch.from_numpy(sound(32000, 2)).T[:, None, None]
    noise = 0.3 * (noise - speech * (noise * speech).sum() / speech.square().sum())
    assert data.matching_gain(gain * speech, speech + noise).item() == pytest.approx(matched, rel=1e-3)
    out = data.enhance_normalised(lambda x: 1.4 * x, speech[:, 0], "robust")
    torch.testing.assert_close(out, speech[:, 0] - speech.mean(), atol=1e-3, rtol=0)


def test_both_ends_are_mirrored_for_the_network():
    wave = torch.arange(1.0, 7.0)[None]
    assert data.reflect(wave, 2)[0].tolist() == [2, 1, 1, 2, 3, 4, 5, 6, 6, 5]
    assert data.reflect(wave[:, :2], 3)[0].tolist() == [2, 2, 1, 1, 2, 2, 1, 1]


def test_published_normalisation_is_the_peak_of_the_recording():
    seen = []
    wave = torch.from_numpy(sound(2, 9000)).reshape(2, 9000)
    for peak in (None, torch.tensor([[0.5], [2.0]])):
        out = data.enhance_normalised(lambda x: seen.append(x) or x, wave, "peak", peak)
        torch.testing.assert_close(out, wave)
        torch.testing.assert_close(seen[-1], wave / (wave.abs().amax(1, keepdim=True) if peak is None else peak))


def test_training_and_use_have_the_same_level(tmp_path):
    wave = sound(32640)[:, 0]
    wave[5000] = 0.99
    for side in ("clean", "noisy"):
        write(tmp_path / side / "a.wav", wave + 0.2 * (side == "noisy"), subtype="FLOAT")
    dataset = PairedAudio(tmp_path, "train", 32640, normalize="robust")
    clean, noisy = dataset.batch([dataset[0]])
    expected, level = data.normalise(dataset.utterance(0)[2][None])
    torch.testing.assert_close(noisy, expected)
    torch.testing.assert_close(clean, dataset.utterance(0)[1][None] / level)
    assert noisy.abs().max() == data.LIMIT and abs(noisy.mean()) < 1e-3


def test_equal_channels_stay_equal(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.stack([NOISY[:40000]] * 2, 1), 16000)
    with torch.inference_mode():
        commands.enhance_file(train.load_checkpoint("sgmse", N=2), tmp_path / "in.wav", tmp_path / "out.wav", window=1.5)
    left, right = soundfile.read(tmp_path / "out.wav")[0].T
    assert np.array_equal(left, right)


# ---- lessons ----

def with_room_tone(samples, lsb, seed=0):
    """Mostly dither of so many LSB, and speech-like noise in the last fifth."""
    wave = lsb / 32768 * np.sign(sound(samples, seed=seed)[:, 0])
    wave[-samples // 5:] = sound(samples // 5 + 1, seed=seed)[:len(wave[-samples // 5:]), 0]
    return wave


@pytest.mark.parametrize("lsb", [1, 3, 30])
def test_dither_and_room_tone_are_no_lesson(tmp_path, lsb):
    write(tmp_path / "tone/a.wav", with_room_tone(160000, lsb))
    write(tmp_path / "sound/n.wav", sound(160000, seed=1))
    for speech, noise in (("tone", "sound"), ("sound", "tone")):
        dataset = MixedAudio(tmp_path / speech, tmp_path / noise, num_samples=8000)
        items = [dataset[p] for p in range(40)]
        assert all(np.abs(crop).max() > 0.05 for item in items for crop in item[3])
        problems = [problem for item in items for problem in item[4]]
        assert len(problems) > 40 and all("tone" in problem for problem in problems)


def test_quiet_recordings_are_lessons(tmp_path):
    for side in ("speech", "noise"):
        write(tmp_path / side / "a.wav", sound(40000, level=0.001))
    assert len(MixedAudio(tmp_path / "speech", tmp_path / "noise", num_samples=8000)[3][4]) == 0


def test_augmentations_are_refused_for_recorded_mixtures(tmp_path):
    for side in ("clean", "noisy"):
        write(tmp_path / "train" / side / "a.wav", sound(30000))
        write(tmp_path / "valid" / side / "a.wav", sound(30000))
    how = data.Augmentation(hiss=0.2)
    with pytest.raises(ValueError, match="--hiss.* that are mixed here; .* holds mixtures"):
        data.open_data(tmp_path, "train", augmentation=how, num_samples=8000)
    assert len(data.open_data(tmp_path, "valid", augmentation=how, num_samples=8000)) == 1     # as a training asks


def test_validation_is_never_mixed_with_silence(tmp_path):
    write(tmp_path / "speech/a.wav", sound(30000))
    write(tmp_path / "speech/b.wav", np.zeros(30000))
    write(tmp_path / "noise/n.wav", np.r_[np.zeros(300000), sound(40000)[:, 0]])
    dataset = MixedAudio(tmp_path / "speech", tmp_path / "noise", num_samples=8000)
    with pytest.warns(UserWarning, match="a crop of it is silent"):
        for number in range(2):
            name, clean, noisy = dataset.utterance(number)
            assert name == "a" and torch.isfinite(noisy).all() and (noisy - clean).abs().max() > 0.01


def test_the_log_is_valid_json_whatever_is_scored(tmp_path):
    commands.open_log(tmp_path)(7, {"loss": 0.5, "pesq": float("nan"), "x": float("inf")})
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (line["step"], line["loss"], line["pesq"], line["x"]) == (7, 0.5, None, None)


def test_half_a_line_of_the_log_stops_no_resumed_run(tmp_path):
    commands.open_log(tmp_path)(7, {"pesq": 1.5})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "pe')
    commands.open_log(tmp_path, 8)(8, {"pesq": 1.6})
    assert [json.loads(line)["pesq"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1.5, 1.6]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 3000), st.integers(1, 4), st.floats(-30, 40), st.floats(1e-4, 10), st.floats(1e-4, 10))
def test_mixtures_have_their_ratio_at_any_length_and_level(length, rows, snr_db, loud, noise_level):
    speech = loud * torch.from_numpy(sound(length, rows, seed=length)).T.double()
    noise = noise_level * torch.from_numpy(sound(length, rows, seed=length + 1)).T.double()
    mixed = data.mix_at_snr(speech, noise, snr_db)
    ratio = 10 * (speech.square().mean(1) / (mixed - speech).square().mean(1)).log10()
    torch.testing.assert_close(ratio, torch.full_like(ratio, snr_db), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(data.mix_at_snr(3 * speech, noise, snr_db), 3 * mixed)      # the noise follows


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 3), st.integers(1, 900), st.integers(300, 2000), st.integers(0, 99))
def test_windows_put_together_are_the_whole_at_any_length(length, channels, block, window, seed):
    wave = sound(length, channels, seed=seed).T
    context = fade = window // 8
    blocks = (wave[:, i:i + block] for i in range(0, length, block))
    heard = []

    def enhance(piece):
        heard.append(piece.shape[1])
        return 2 * piece
    whole = np.concatenate(list(commands.windowed(enhance, blocks, window, context, fade)), 1)
    assert whole.shape == wave.shape and np.abs(whole - 2 * wave).max() < 1e-5
    assert max(heard) <= window and (length > window) == (len(heard) > 1)


def test_noise_starts_anywhere_it_can(tmp_path):
    write(tmp_path / "speech/a.wav", sound(8000))
    write(tmp_path / "noise/n.wav", sound(24000, seed=1))
    dataset = MixedAudio(tmp_path / "speech", tmp_path / "noise", num_samples=8000)
    starts = np.array([dataset[p][1][1] for p in range(400)])
    assert starts.min() < 400 and 15600 < starts.max() <= 16000
    assert np.histogram(starts, 4, (0, 16000))[0] == pytest.approx(100, abs=35)
    noise = dataset.sources[1].wave(0).numpy()
    for p in range(20):
        assert np.array_equal(dataset[p][3][1], noise[dataset[p][1][1]:][:8000])


# ---- variety ----

def spectrum(wave):
    return np.abs(np.fft.rfft(wave)) ** 2, np.fft.rfftfreq(len(wave), 1 / 16000)


def test_synthetic_noise_has_unit_power_and_low_frequencies():
    below = []
    for seed in range(40):
        noise = data.synthetic_noise(32640, np.random.default_rng(seed))
        assert noise.dtype == np.float32 and np.isfinite(noise).all() and noise.std() == pytest.approx(1, abs=1e-3)
        assert np.array_equal(noise, data.synthetic_noise(32640, np.random.default_rng(seed)))
        power, hertz = spectrum(noise)
        below.append(power[hertz < 300].sum() / power.sum())
    assert np.median(below) > 0.5 and np.min(below) < 0.1                  # of white noise: 0.04


def varied(root, count=24, **how):
    dataset = MixedAudio(root / "speech", root / "noise", num_samples=8000, snrs=(0,), augmentation=data.Augmentation(**how))
    return dataset.batch([dataset[p] for p in range(count)])


@pytest.fixture
def voice_and_noise(tmp_path):
    write(tmp_path / "speech/a.wav", sound(40000))
    write(tmp_path / "noise/n.wav", sound(40000, seed=1))
    return tmp_path


def test_each_share_does_what_it_says_and_nothing_else(voice_and_noise):
    clean, noisy = varied(voice_and_noise)
    scale = lambda x, y: (x * y).sum(1, keepdim=True) / (y * y).sum(1, keepdim=True)
    relative = lambda x, y: (x - scale(x, y) * y).square().sum(1) / x.square().sum(1)

    synthetic_clean, synthetic_noisy = varied(voice_and_noise, synthetic_noise=0.5)
    assert relative(synthetic_clean, clean).max() < 1e-6                   # speech is left alone
    changed = relative(synthetic_noisy - synthetic_clean, noisy - clean) > 1e-6
    assert 6 <= changed.sum() <= 18

    paused, under = varied(voice_and_noise, speech_dropout=1.0)
    assert relative(under - paused, noisy - clean).max() < 1e-6            # the noise goes on
    lengths = (paused == 0).sum(1) / 8000
    assert 0.19 < lengths.min() and lengths.max() < 0.81 and lengths.std() > 0.05

    coloured, _ = varied(voice_and_noise, random_eq=1.0)
    assert relative(coloured, clean).median() > 0.05
    for wave in coloured:                                                  # smooth: neighbouring thirds change alike
        power, hertz = spectrum(wave.numpy())
        bands = [decibel(np.sqrt(power[(hertz > f) & (hertz < 1.26 * f)])) for f in (1000, 1260, 1588)]
        assert np.ptp(bands) < 12

    silent, alone = varied(voice_and_noise, no_speech=0.5)
    gone = silent.abs().amax(1) == 0
    assert 6 <= gone.sum() <= 18 and alone.abs().amax(1).min() == 1        # noise alone has level 1
    torch.testing.assert_close(silent[~gone], clean[~gone])

    same, hissing = varied(voice_and_noise, hiss=1.0)
    added = decibel((hissing - same).std(1).numpy()) - decibel((noisy - clean).std(1).numpy())
    assert np.abs(added).max() < 1 and relative(hissing - same, noisy - clean).min() > 1e-7

    quiet, both = varied(voice_and_noise, quiet_part=1.0)
    envelope = quiet.unflatten(1, (-1, 400)).square().mean(-1).sqrt()
    assert (envelope.amin(1) / envelope.amax(1)).median() < 0.4
    assert relative(both - quiet, noisy - clean).median() > 1e-3         # the noise is quieter, too

    for name in ("speed", "second_noise"):
        other_clean, other = varied(voice_and_noise, **{name: 1.0})
        assert relative(other - other_clean, noisy - clean).median() > 1e-3
        assert (relative(other_clean, clean).median() > 1e-3) == (name == "speed")

    how = dict(synthetic_noise=0.5, speech_dropout=0.5, random_eq=0.5, hiss=0.5, speed=0.5, second_noise=0.5,
               quiet_part=0.5, no_speech=0.2)
    for a, b in zip(varied(voice_and_noise, **how), varied(voice_and_noise, **how)):
        assert torch.equal(a, b)


def test_rooms_take_no_augmentation_but_babble(voice_and_noise, tmp_path):
    with pytest.raises(ValueError, match="--babble alone"):
        rooms.open_rooms(tmp_path, "train", RoomConfig(1, 1), 1, tmp_path / "rooms",
                         augmentation=data.Augmentation(hiss=0.1))


# ---- rooms ----

def test_noise_of_a_room_is_placed_by_its_own_length(tmp_path):
    for i in range(2):
        write(tmp_path / f"speech/{i}/a.wav", sound(12000, seed=i))
    for i in range(5):
        write(tmp_path / f"noise/{i}.wav", sound(160000, seed=i))
    dataset = RoomMixtures(tmp_path / "speech", tmp_path / "noise", RoomConfig(2, 2), rooms=2, num_samples=4000,
                           cache=tmp_path / "rooms")
    drawn = [dataset[p] for p in range(60)]
    assert {item[0][2] for item in drawn} == set(range(5))
    starts = np.array([item[1][2] for item in drawn])
    assert starts.max() > 120000 and starts.min() < 40000


def test_sets_of_mixtures_differ_and_are_never_mixed(tmp_path, monkeypatch, capsys):
    for i in range(2):
        write(tmp_path / f"test/speech/{i}/a.wav", sound(12000, seed=i))
    write(tmp_path / "test/noise/n.wav", sound(160000, seed=9))

    def run(*flags):
        flags = "--num-mics", "2", "--out", str(tmp_path / "set"), *flags
        monkeypatch.setattr(sys, "argv", ["data.py", str(tmp_path), *flags])
        rooms.main()
    run("--count", "6", "--num-speakers", "1")
    files = sorted((tmp_path / "set/test/noisy").iterdir())
    assert len(files) == 6 and len({path.read_bytes() for path in files}) == 6
    for flags, message in ((("--count", "2"), "choose another --out"), (("--num-speakers", "0"), "1 or more")):
        with pytest.raises(SystemExit) as stop:
            run(*flags)
        assert stop.value.code == 2 and message in capsys.readouterr().err


# ---- names and pairs ----

def test_names_beyond_ascii_cost_an_ascii_terminal_nothing(tmp_path):
    import subprocess
    for side in ("clean", "enhanced"):
        write(tmp_path / side / "gr\u00fc\u00df.wav", sound(16000))
        write(tmp_path / side / "\u97f3.wav", np.zeros(16000))
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, ROOT / "metrics.py", tmp_path / "clean", tmp_path / "enhanced", "--metrics",
                           "si_sdr", "--workers", "1", "--csv", tmp_path / "s.csv"], env=environment, capture_output=True)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"\\u97f3: si_sdr: clean is silent" in done.stdout
    assert "gr\u00fc\u00df" in (tmp_path / "s.csv").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, ROOT / "sgmse.py", "enhance", tmp_path / "gr\u00fc\u00df.wav", "--out",
                           tmp_path / "out"], env=environment, capture_output=True)
    assert done.returncode == 2 and b"no file or folder" in done.stderr and b"Traceback" not in done.stderr


def test_pairs_of_different_lengths_are_cut_with_a_word(tmp_path):
    write(tmp_path / "clean/a.wav", sound(8000))
    write(tmp_path / "noisy/a.wav", sound(40000))
    with pytest.warns(UserWarning, match="a.wav lasts 0.5 s and its noisy partner 2.5 s: both are cut"):
        PairedAudio(tmp_path, "train", 4000)


# ---- runs ----

def test_what_has_no_splits_has_no_validation(tmp_path):
    for layout in (("clean", "noisy"), ("speech", "noise")):
        root = tmp_path / layout[0]
        for side in layout:
            write(root / side / "a.wav", sound(8000))
        for split in ("train", "test"):
            assert len(data.open_data(root, split, num_samples=4000)) == 1
        with pytest.raises(FileNotFoundError, match="'valid'"):
            data.open_data(root, "valid", num_samples=4000)


def test_unpaired_speech_is_none_that_validation_hears(tmp_path):
    for name in ("p001_1", "p001_2", "p001_3", "p226_1", "p287_1"):
        for side in data.VOICEBANK["train"]:
            write(tmp_path / side / f"{name}.wav", sound(8000))
    dataset = UnpairedAudio(tmp_path, tmp_path / "clean_trainset_28spk_wav", num_samples=4000)
    assert all(Path(path).stem.startswith("p001") for source in (*dataset.sources, *dataset.noisy.sources)
               for path in source.paths)


FLAGS = ("train", "--preset", "tiny", "--num-frames", "24", "--batch-size", "2", "--device", "cpu",
         "--valid-files", "1", "--N", "1")


def command(*arguments):
    import sgmse
    from helpers import run_command
    return run_command(sgmse.ScoreSDE, *arguments)


def test_a_finished_or_foreign_run_is_not_resumed_without_a_word(tmp_path, corpus, capsys):
    flags = (*FLAGS, "--data", corpus, "--out", tmp_path / "run", "--valid-every", "0")
    other_corpus, moved = tmp_path / "other", tmp_path / "moved"
    for copy in (other_corpus, moved):
        shutil.copytree(corpus, copy)
    shutil.copy(corpus / "train/clean/0.wav", other_corpus / "train/clean/more.wav")
    shutil.copy(corpus / "train/noisy/0.wav", other_corpus / "train/noisy/more.wav")
    assert command(*flags, "--steps", "2") == 0
    before = (tmp_path / "run/last.safetensors").read_bytes()
    capsys.readouterr()
    assert command(*flags, "--steps", "2") == 0
    assert "already finished, after step 2" in capsys.readouterr().out
    for changes, word in ((("--seed", "5"), "seed 0 -> 5"), (("--batch-size", "3"), "batch_size 2 -> 3"),
                          (("--snrs", "0"), "snrs"), (("--init", "sgmse"), "init  -> sgmse"),
                          (("--data", other_corpus), "corpus")):
        assert command(*flags, "--steps", "3", *changes) == 2
        assert word in capsys.readouterr().err
    assert (tmp_path / "run/last.safetensors").read_bytes() == before
    assert command(*flags, "--steps", "3", "--lr", "1e-5", "--data", moved) == 0
    assert "continues at step 2" in capsys.readouterr().out
    assert (tmp_path / "run/last.safetensors").read_bytes() != before


def test_an_interrupted_training_goes_on_where_it_was(tmp_path, corpus, monkeypatch, capsys):
    """Ctrl-C ends the step and writes last.pt; the run ends bit for bit as one without a break."""
    flags = (*FLAGS, "--data", corpus, "--steps", "4", "--valid-every", "0")
    assert command(*flags, "--out", tmp_path / "whole") == 0
    backward, calls = train.backward, itertools.count(1)
    monkeypatch.setattr(train, "backward", lambda *a: (next(calls) == 2 and os.kill(os.getpid(), signal.SIGINT))
                        or backward(*a))
    assert command(*flags, "--out", tmp_path / "run") == 130
    assert "interrupted; the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(train, "backward", backward)
    assert command(*flags, "--out", tmp_path / "run") == 0
    assert "continues at step 1" in capsys.readouterr().out
    a, b = (train.load_checkpoint(tmp_path / name / "last.safetensors").state_dict() for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_last_pt_holds_no_weights_that_diverged(tmp_path, corpus, capsys):
    """The first step throws the weights away: nothing is kept, and the message says to start again."""
    flags = (*FLAGS, "--data", corpus, "--steps", "30", "--valid-every", "0", "--lr", "1e30", "--save-every", "0")
    assert command(*flags, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "ten steps in a row" in error and "start again" in error and not (tmp_path / "run/last.pt").exists()
    assert command(*flags[:-4], "--lr", "1e-4", "--steps", "2", "--out", tmp_path / "run") == 0


def test_validation_does_not_depend_on_the_seed_of_training(tmp_path):
    seen = []
    for seed in (0, 1):
        config = train.TrainConfig(data=str(tmp_path), out=str(tmp_path / "run"), seed=seed)
        method = types.SimpleNamespace(num_mics=1, num_speakers=1, num_samples=8000, config=types.SimpleNamespace(normalize="peak"))
        for split in ("train", "valid"):
            write(tmp_path / split / "speech/a.wav", CLEAN[:40000])
            write(tmp_path / split / "noise/n.wav", NOISY - CLEAN)
        config.babble = 0.5
        _, valid = commands.open_datasets(method, config, torch.device("cpu"))
        seen.append([valid.utterance(number)[2] for number in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(*seen)) and not torch.equal(seen[0][0], seen[0][1])


def test_training_by_the_clock_ends_as_its_schedule_says(tmp_path, corpus, capsys, monkeypatch):
    ticks = itertools.count()                            # a clock of our own, which no busy machine stops
    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=lambda: 0.02 * next(ticks), time=time.time))
    flags = (*FLAGS, "--data", corpus, "--out", tmp_path / "run", "--valid-every", "0",
             "--minutes", "0.02", "--lr-decay", "1")
    assert command(*flags) == 0
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert 20 < state["step"] < 40 and state["seconds"] >= 1.2
    assert train.read_metadata(tmp_path / "run/last.safetensors")["extra"]["step"] == state["step"]
    assert state["optimizer"]["param_groups"][0]["lr"] < 0.3e-4            # 1e-4 falls to a tenth
    capsys.readouterr()
    assert command(*flags) == 0
    assert "already finished" in capsys.readouterr().out


def test_the_learning_rate_falls_to_a_tenth_over_the_last_share():
    class Method(torch.nn.Linear):
        config = train.TrainConfig()

        def loss(self, batch):
            return self(batch).sum(), {}
    rates = []
    import tempfile
    with tempfile.TemporaryDirectory() as out:
        method = Method(1, 1)
        kept, torch.optim.AdamW = torch.optim.AdamW, lambda *a, **k: rates.append(kept(*a, **k)) or rates[0]
        try:
            config = train.TrainConfig(steps=30, lr=1.0, lr_decay=1 / 3, precision="fp32", valid_every=0)
            steps = train.fit(method, iter(torch.ones(40, 1)), config)
            seen = [rates[0].param_groups[0]["lr"] for _ in steps]
        finally:
            torch.optim.AdamW = kept
    assert seen[:21] == [1.0] * 21 and seen[25] == pytest.approx(10 ** -0.5, rel=1e-6)
    assert seen[29] == pytest.approx(10 ** -0.9, rel=1e-6)


@pytest.mark.parametrize("arguments, word", [
    (("enhance", "--device", "cuda:7"), "--device cuda:7: not available"),
    (("enhance", "--device", "mps"), "not available"), (("enhance", "--device", "x"), "not available"),
    (("enhance", "--window", "0"), "--window"), (("enhance", "--window", "inf"), "--window"),
    (("enhance", "--window", "nan"), "--window"), (("evaluate", "--data", "CORPUS", "--every", "0"), "--every"),
    (("evaluate", "--data", "CORPUS", "--first", "99"), "99"),
    (("evaluate", "--data", "CORPUS", "--metrics", "pesk"), "unknown metric pesk"),
    (("train", "--data", "CORPUS", "--batch-size", "0"), "--batch-size"),
    (("train", "--data", "CORPUS", "--lr-decay", "2"), "--lr-decay")])
def test_what_cannot_be_is_one_line_and_exit_2(corpus, capsys, arguments, word):
    assert command(*(corpus if a == "CORPUS" else a for a in arguments)) == 2
    out, err = capsys.readouterr()
    assert word in err and "Traceback" not in err and "enhancing" not in err


def test_output_of_an_older_checkpoint_is_never_scored(tmp_path, corpus, capsys):
    import shutil
    shutil.copytree(corpus / "test", tmp_path / "data/test")
    flags = ("evaluate", "--data", tmp_path / "data", "--out", tmp_path / "out", "--workers", "1", "--metrics",
             "si_sdr", "--checkpoint", "consistency")
    assert command(*flags) == 2                                            # another method's weights
    from consistency import ConsistencyModel
    from helpers import run_command
    assert run_command(ConsistencyModel, *flags) == 0
    noisy = sorted((tmp_path / "data/test/noisy").iterdir())
    noisy[0].write_bytes(noisy[0].read_bytes()[:20000])
    assert run_command(ConsistencyModel, *flags) == 1
    rows = (tmp_path / "out/scores.csv").read_text().splitlines()
    assert "not a readable" in rows[1] and "not a readable" not in rows[2]


def test_eight_bit_recordings_are_enhanced_and_scored(tmp_path, corpus):
    from consistency import ConsistencyModel
    from helpers import run_command
    for side in ("clean", "noisy"):
        x = soundfile.read(corpus / f"test/{side}/0.wav")[0]
        write(tmp_path / f"test/{side}/0.flac", x, subtype="PCM_S8")
    assert run_command(ConsistencyModel, "evaluate", "--data", tmp_path, "--out", tmp_path / "out", "--workers", "1",
                       "--metrics", "si_sdr") == 0


def test_recordings_without_a_clean_reference_are_scored_without(tmp_path, corpus, monkeypatch, capsys):
    from consistency import ConsistencyModel
    from helpers import run_command
    write(tmp_path / "real/speech/a.wav", NOISY[:20000])                   # with no noise beside it to mix
    write(tmp_path / "real/b.wav", NOISY[20000:44000])
    flags = ("evaluate", "--data", tmp_path / "real", "--out", tmp_path / "out", "--workers", "1")
    loudness = (lambda enhanced: {"rms": np.sqrt(np.mean(enhanced ** 2))}, ["rms"], [], "")
    monkeypatch.setitem(metrics.METRICS, "dnsmos", loudness)
    missing = lambda enhanced: 0, ["mos"], ["no_such_package"]
    monkeypatch.setitem(metrics.METRICS, "distillmos", (*missing, "pip install x"))
    assert run_command(ConsistencyModel, *flags) == 0
    out = capsys.readouterr().out
    assert "So 2 recordings are enhanced and scored without clean ones" in out
    noisy, after, _ = (float(line.split()[2]) for line in out.splitlines() if line.startswith("rms"))
    assert noisy == pytest.approx(np.mean([np.sqrt(np.mean(NOISY[a:b] ** 2)) for a, b in ((0, 20000), (20000, 44000))]),
                                  abs=2e-3) and after < noisy
    (tmp_path / "real").rename(tmp_path / "real_recordings")               # beside others, as the DNS challenge has it
    write(tmp_path / "synthetic/no_reverb/clean/clean_fileid_1.wav", NOISY[:20000])
    write(tmp_path / "synthetic/no_reverb/noisy/a_fileid_1.wav", NOISY[:20000])
    flags = ("evaluate", "--data", tmp_path, "--out", tmp_path / "out", "--workers", "1")
    assert run_command(ConsistencyModel, *flags) == 0
    assert "So 2 recordings are enhanced" in capsys.readouterr().out
    monkeypatch.setitem(metrics.METRICS, "dnsmos", (*missing, "pip install y"))
    assert run_command(ConsistencyModel, *flags) == 2
    assert "dnsmos needs: pip install y" in capsys.readouterr().err
    assert run_command(ConsistencyModel, *flags, "--metrics", "pesq,attenuation") == 0
    before, after, _ = (float(line.split()[2]) for line in capsys.readouterr().out.splitlines()
                        if line.startswith("attenuation"))
    assert before == 0 and after > 0.1
    assert run_command(ConsistencyModel, *flags, "--metrics", "nowhere:mos") == 2
    assert "No module named 'nowhere'" in capsys.readouterr().err


def killer(pair):
    """A score whose process the system ends."""
    if pair[0] == "deadly":
        os.kill(os.getpid(), 9)
    return {"name": pair[0], "note": "", "error": ""}


def test_evaluation_mixes_as_validation_does(tmp_path, capsys):
    from consistency import ConsistencyModel
    from helpers import run_command
    for split, numbers in (("train", range(3)), ("valid", range(3, 5))):
        for i in numbers:
            write(tmp_path / f"data/{split}/speech/{i}.wav", CLEAN[4000 * i:4000 * i + 20000])
        write(tmp_path / f"data/{split}/noise/n.wav", NOISY - CLEAN)
    flags = ("evaluate", "--data", tmp_path / "data", "--split", "valid", "--out", tmp_path / "out", "--workers", "1")
    outputs = []
    for more in (("--every", "2"), (), ()):
        assert run_command(ConsistencyModel, *flags, *more) == 0
        assert len(list((tmp_path / "out/mixtures").rglob("*.wav"))) == (2 if more else 4)     # only what is scored
        outputs.append(capsys.readouterr().out)
    tables = [out[out.index("\nnoisy"):] for out in outputs]
    assert tables[0] != tables[1] == tables[2] and "1 recordings of" in outputs[0] and "2 recordings of" in outputs[2]
    dataset = data.open_data(tmp_path / "data", "valid")
    for i in range(2):
        _, clean, noisy = dataset.utterance(i)
        for side, wave in (("clean", clean), ("noisy", noisy)):
            written = data.load_audio(tmp_path / f"out/mixtures/{side}/{i:05}.wav")[0][0]
            assert (written - wave).abs().max() < 1e-6
    assert len(list((tmp_path / "out/enhanced").rglob("*.wav"))) == 2      # nothing of the other split


def test_a_killed_scorer_costs_its_own_file_alone():
    from tqdm import tqdm
    names = ["a", "b", "deadly", "c", "d", "e"]
    rows = metrics.score_in_processes(killer, [(name,) for name in names], 2, tqdm(disable=True))
    assert [row["name"] for row in rows] == names
    assert [bool(row["error"]) for row in rows] == [name == "deadly" for name in names]


PAGES = """
import resource, sys, torch
sys.path.insert(0, {root!r})
import commands, torch
if {keep}:
    commands.keep_memory()
for _ in range(20):
    torch.ones(1 << 24)                                  # 64 MiB: what is kept grows at first
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_used_again_without_new_pages():
    pages = [int(subprocess.run([sys.executable, "-c", PAGES.format(root=str(Path(data.__file__).parent), keep=keep)],
                                capture_output=True, text=True, check=True).stdout) for keep in (False, True)]
    assert 5 * pages[1] < pages[0]                       # kept memory may have to grow a few times more


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_hiss_in_a_pause_costs_little(name):
    """At most 1.2 dB at -60 dBFS and 2 dB at -50, wherever it is."""
    alone = metrics.si_sdr(CLEAN, enhanced(name, NOISY))
    for level, before, most in ((-60, 0, 1.2), (-60, 24000, 1.2), (-50, 0, 2.0)):
        hiss = (10 ** (level / 20) * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
        out = enhanced(name, np.r_[hiss[:before], NOISY, hiss[before:]])
        assert metrics.si_sdr(CLEAN, out[before:][:len(CLEAN)]) > alone - most


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_output_gain_is_that_of_the_speech_in_the_mixture(name):
    start = np.abs(CLEAN).argmax() - 300
    for wave, tolerance in ((CLEAN, 0.5), (CLEAN[8000:40000], 0.5), (CLEAN[start:start + 520], 0.5), (NOISY, 1.0)):
        clean = CLEAN if wave is NOISY else wave
        gain = float(enhanced(name, wave) @ clean / (clean @ clean))
        assert abs(20 * np.log10(gain)) < tolerance, len(wave)
