"""Simulated rooms: against physics, against scipy's convolution, and door to door with the corrector."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch

import commands
import data
import meanflow
import rooms
import train
from helpers import run_command

DRY = rooms.RoomConfig(num_mics=2, num_speakers=2, size=((3.0, 3.0, 3.0), (4.0, 5.0, 3.0)), rt60=(0.2, 0.2))     # fast
N = 3200                                                 # samples of its responses


@pytest.fixture(scope="module", autouse=True)
def small_rooms():
    """The commands simulate what is quick to simulate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms, "RoomConfig", functools.partial(rooms.RoomConfig, size=DRY.size, rt60=DRY.rt60))
        yield


def voice(rng, seconds):
    t = np.arange(int(16000 * seconds)) / 16000
    tone = sum(np.sin(2 * np.pi * rng.uniform(100, 200) * k * t + rng.uniform(0, 6)) / k for k in range(1, 20))
    return (0.05 * tone * (0.2 + np.clip(np.sin(2 * np.pi * 3 * t), 0, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three speakers of three recordings each, and a noise, for every split."""
    root, rng = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for speaker in "abc":
            for i in range(3):
                data.save_audio(root / split / "speech" / speaker / f"{i}.wav", voice(rng, 1.5 + 0.1 * i), 16000)
        noise = np.float32(0.1 * rng.standard_normal(24000))
        data.save_audio(root / split / "noise" / "hiss.wav", noise, 16000)
    return root


@pytest.fixture
def mixtures(root):
    """Function (changes) -> RoomMixtures of the training split; rooms are kept from test to test."""
    def make(config=DRY, **changes):
        options = dict(rooms=3, cache=root / "cache", num_samples=8000) | changes
        return rooms.RoomMixtures(root / "train/speech", root / "train/noise", config, **options)
    return make


def first(dataset, count=4, **options):
    return next(data.batches(dataset, count, **options))


# ---- physics ----

def test_direct_path_has_the_delay_and_the_level_of_its_distance():
    """And no source is nearer to the array than asked for."""
    config = rooms.RoomConfig(2, 2, from_array=(0.9, 1.2))
    for number in range(5):
        for nearest, direct in zip((0.9, 0.9, 1.2), rooms.simulate_room(number, config)[:, -1].astype(float)):
            metres = (np.abs(direct).argmax() - 40) / 16000 * 343          # its filters are 40 samples late
            assert nearest - 0.07 < metres < 4           # microphone 0 is 5 cm off the array's centre
            assert np.sqrt((direct ** 2).sum()) == pytest.approx(1 / metres, rel=0.05)


def test_target_is_aligned_and_reflections_come_later():
    for number in range(3):
        for responses in rooms.simulate_room(number, DRY).astype(float):
            whole, direct = responses[0], responses[-1]
            arrival = np.abs(direct).argmax() + 1
            assert ((whole - direct)[:arrival] ** 2).sum() < 0.01 * (direct ** 2).sum()
            assert ((whole - direct)[arrival:] ** 2).sum() > 0.1 * (direct ** 2).sum()


def test_reverberation_time_is_about_what_was_asked_for():
    from pyroomacoustics.experimental import measure_rt60
    for seconds in (0.2, 0.4):
        config = rooms.RoomConfig(num_mics=1, num_speakers=1, size=((5.0, 4.0, 3.0), (6.0, 5.0, 3.5)), rt60=(seconds, seconds))
        measured = [measure_rt60(rooms.simulate_room(number, config)[0, 0].astype(float), 16000, decay_db=20)
                    for number in range(3)]
        assert np.mean(measured) == pytest.approx(seconds, rel=0.25)


def test_a_room_is_the_same_at_every_call():
    four = rooms.simulate_room(7, rooms.RoomConfig(4, 2))
    assert four.shape == (3, 5, N) and four.dtype == np.float16
    two = rooms.simulate_room(7, DRY)
    np.testing.assert_array_equal(two, rooms.simulate_room(7, DRY))
    np.testing.assert_array_equal(two[:, 0], four[:, 0])
    np.testing.assert_array_equal(two[:, 1], four[:, 2])                   # half way round the circle
    assert not np.array_equal(two, rooms.simulate_room(8, DRY))


def test_microphones_stand_on_the_circle():
    """The direct path reaches two of them at most 2 radius / 343 s apart, and one place at once."""
    for radius in (0.0, 0.05, 0.5):
        config = rooms.RoomConfig(4, 1, radius, off_centre=0.0)
        lags = []
        for number in range(3):
            peaks = np.abs(rooms.simulate_room(number, config)[:, :4, :800].astype(float)).argmax(-1)
            lags.append(np.ptp(peaks, axis=1))
        apart = np.max(lags)
        assert apart <= 2 * radius / 343 * 16000 + 1
        assert apart >= 1.2 * radius / 343 * 16000


def test_no_rumble():
    """The image method's responses add up to a gain at 0 Hz that no room has."""
    gain = np.abs(np.fft.rfft(rooms.simulate_room(0, DRY)[:, 0].astype(float), 16000))     # a bin is 1 Hz
    assert gain[:, :3].max() < 0.05 * gain[:, 100:4000].mean()


def test_walls_that_would_have_to_swallow_too_much_are_an_error():
    with pytest.raises(ValueError):
        rooms.simulate_room(0, rooms.RoomConfig(rt60=(0.05, 0.05)))


# ---- the cache ----

def test_rooms_are_simulated_once_and_damaged_ones_again(tmp_path, monkeypatch):
    calls, simulate = [], rooms.simulate_room
    monkeypatch.setattr(rooms, "simulate_room", lambda *args: calls.append(args[0]) or simulate(*args))
    first = rooms.simulated_rooms(range(4), DRY, tmp_path)
    assert sorted(calls) == [0, 1, 2, 3] and first.shape == (4, 3, 3, N)
    paths = {int(path.stem.split("-")[1]): path for path in tmp_path.iterdir()}
    assert len(paths) == 4 and max(path.stat().st_size for path in paths.values()) < 60000
    content = bytearray(paths[1].read_bytes())
    content[30000] ^= 1                                  # a single bit
    paths[1].write_bytes(content)
    paths[2].write_bytes(paths[2].read_bytes()[:20000])
    paths[3].write_bytes(b"")
    again = rooms.simulated_rooms(range(4), DRY, tmp_path)
    assert sorted(calls[4:]) == [1, 2, 3] and torch.equal(first, again)
    rooms.simulated_rooms(range(4), DRY, tmp_path)
    assert len(calls) == 7
    rooms.simulated_rooms(range(1), rooms.RoomConfig(2, 2, 0.06), tmp_path)
    assert len(calls) == 8                               # other rooms are not taken for these


def test_unwritable_cache_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"PK")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        rooms.simulated_rooms(range(1), DRY, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- mixtures ----

def test_mixture_equals_scipy_s_convolution_at_its_ratios(mixtures):
    dataset = mixtures()
    *_, choices, crops, _ = dataset[5]
    room, snr, *levels = choices
    responses = dataset.responses[int(room)].double().numpy()              # (3, 3, N)
    waves = list(crops)
    heard = np.stack([[scipy.signal.fftconvolve(wave, h)[N - 1:N - 1 + 8000] for h in rows]
                      for wave, rows in zip(waves, responses)])            # (3, 3, L)
    scale = np.sqrt(10 ** (np.array(levels) / 10) / (heard[:2, 0] ** 2).mean(-1))
    speakers = scale[:, None, None] * heard[:2]
    clean, mixture = dataset.combine(*(torch.from_numpy(wave[None]).float() for wave in waves), torch.tensor([choices]))
    noise = mixture[0].double().numpy() - speakers[:, :2].sum(0)
    np.testing.assert_allclose(clean[0], speakers[:, 2], atol=2e-4)
    ratio = lambda a, b: 10 * np.log10((a ** 2).mean() / (b ** 2).mean())
    assert ratio(speakers[:, :2].sum(0)[0], noise[0]) == pytest.approx(snr, abs=0.05)
    assert ratio(speakers[0, 0], speakers[1, 0]) == pytest.approx(-levels[1], abs=0.05)
    assert abs(np.corrcoef(noise[1], heard[2, 1])[0, 1]) > 0.999           # the noise, at the other microphone


def test_ratios_span_their_ranges(mixtures):
    dataset = mixtures(snrs=(3, 9), sir=(-5, 5))
    choices = np.array([dataset[position][2] for position in range(60)])
    assert set(choices[:, 0]) == {0, 1, 2} and set(choices[:, 1]) == {3, 9} and not choices[:, 2].any()
    assert -5 <= choices[:, 3].min() < -3 and 3 < choices[:, 3].max() <= 5


def test_batches_are_divided_by_the_peak_of_all_microphones(mixtures):
    clean, mixture = first(mixtures())
    assert clean.shape == mixture.shape == (4, 2, 8000) and clean.dtype == mixture.dtype == torch.float32
    torch.testing.assert_close(mixture.abs().amax((1, 2)), torch.ones(4))
    assert len(set(mixture.abs().amax(2)[:, 0].tolist())) > 1              # not that of microphone 0


def test_one_speaker_and_one_microphone_are_a_batch_of_waves(mixtures):
    clean, mixture = first(mixtures(rooms.RoomConfig(1, 1)))
    assert clean.shape == mixture.shape == (4, 8000)
    clean, mixture = first(mixtures(rooms.RoomConfig(1, 2)))
    assert (clean.shape, mixture.shape) == ((4, 2, 8000), (4, 1, 8000))


def test_batches_are_a_function_of_seed_and_position(mixtures):
    batches = data.batches(mixtures(), 2)
    one, two = next(batches), next(batches)
    for other in (first(mixtures(), 2, step=1), first(mixtures(), 2, step=1, workers=2)):
        assert all(torch.equal(a, b) for a, b in zip(two, other))
    assert not torch.equal(one[1], two[1])
    assert not torch.equal(one[1], first(mixtures(seed=1), 2)[1])


def test_speakers_of_a_mixture_differ(mixtures, root):
    dataset = mixtures()
    for position in range(30):
        a, b, _ = dataset[position][0]
        assert dataset.folders[a] != dataset.folders[b]
    alone = rooms.RoomMixtures(root / "train/speech/a", root / "train/noise", DRY, rooms=1, cache=root / "cache",
                              num_samples=8000)
    assert first(alone)[0].abs().amax(2).min() > 0


def test_a_crop_brings_what_was_said_before_it(mixtures):
    """Its first samples hear the reverberation of the recording before the crop."""
    dataset = mixtures()
    assert dataset.lead == N - 1
    for position in range(30):
        (index, *_), (start, *_), _, (crop, *_), _ = dataset[position]
        assert 0 <= start + dataset.lead <= dataset.sources[0].lengths[index] - 8000
        wave = dataset.sources[0].crop(index, start + dataset.lead, 8000)
        np.testing.assert_array_equal(crop[dataset.lead:], wave)
        assert crop[:dataset.lead].any() == (start + dataset.lead > 0)


def test_an_utterance_is_whole_and_the_same_at_every_call(mixtures):
    dataset = mixtures()
    name, clean, mixture = dataset.utterance(4)
    length = dataset.sources[0].lengths[dataset.files[4]]
    assert clean.shape == mixture.shape == (2, length) and mixture.abs().max() == pytest.approx(0.9)
    assert torch.equal(mixture, dataset.utterance(4)[2]) and dataset.num_samples == 8000
    assert name == "1"


def test_splits_have_other_rooms_and_what_is_no_corpus_is_named(root, tmp_path):
    train_rooms, test_rooms = (rooms.open_rooms(root, split, DRY, 1, root / "cache").responses
                               for split in ("train", "test"))
    assert not torch.equal(train_rooms, test_rooms)
    with pytest.raises(FileNotFoundError, match="speech and of noise"):
        rooms.open_rooms(tmp_path, "train", DRY, 1)


# ---- door to door ----

run = functools.partial(run_command, meanflow.MeanFlowCorrector)


def write_mixtures(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["rooms.py", *map(str, arguments)])
    rooms.main()


def test_test_set_by_command_is_the_same_at_every_run(root, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        write_mixtures(monkeypatch, root, "--num-mics", 3, "--num-speakers", 2, "--count", 2, "--out", tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one/test").rglob("*.wav"))
    assert [str(path) for path in files] == [f"test/{side}/000{i}.wav" for side in ("clean", "noisy") for i in range(2)]
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)
    assert [data.load_audio(tmp_path / "one" / path)[0].shape[0] for path in files] == [2, 2, 3, 3]
    with pytest.raises(SystemExit) as stop:
        write_mixtures(monkeypatch, tmp_path / "nowhere")
    assert stop.value.code == 2 and "no folder" in capsys.readouterr().err


def test_rooms_of_other_sizes_and_reverberation_by_command(root, tmp_path, monkeypatch, capsys):
    seen, open_rooms = [], rooms.open_rooms
    monkeypatch.setattr(rooms, "open_rooms", lambda *a, **k: seen.append(a[2]) or open_rooms(*a, **k))
    write_mixtures(monkeypatch, root, "--num-mics", 2, "--count", 1, "--rt60", 0.15, 0.2, "--floor", 3, 3.5, "--out", tmp_path)
    assert (seen[0].rt60, seen[0].size) == ((0.15, 0.2), ((3, 3, 3), (3.5, 3.5, 4)))
    dataset = open_rooms(root, "test", seen[0], 1, tmp_path / "responses")
    expected = rooms.simulate_room(2 * 10 ** 6, seen[0])
    assert torch.equal(dataset.responses[0], torch.from_numpy(expected))
    for wrong in (("--rt60", 0.5, 0.2), ("--floor", 1, 3)):
        with pytest.raises(SystemExit):
            write_mixtures(monkeypatch, root, *wrong, "--out", tmp_path / "none")
        assert f"{wrong[0]} LOW HIGH" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A separator of two speakers with two microphones and the corrector on it, by command; the folder of the runs."""
    runs = tmp_path_factory.mktemp("runs")
    flags = ("train", "--data", root, "--preset", "tiny", "--num-frames", "24", "--batch-size", "2", "--device", "cpu",
             "--valid-every", "0", "--rooms", "2", "--room-cache", root / "cache", "--separator-seconds", "1")
    array = ("--num-mics", "2", "--num-speakers", "2")
    for out, steps in (("separator", (2,)), ("again", (1, 2))):
        for count in steps:
            assert run(*flags, *array, "--separator", "train", "--steps", count, "--out", runs / out) == 0
    assert run(*flags, "--separator", "frozen", "--init", runs / "separator/last.safetensors", "--steps", "1",
               "--out", runs / "corrector") == 0
    assert run(*flags, "--steps", "1", "--out", runs / "reverberant") == 0
    return runs


@pytest.mark.slow
def test_training_in_rooms_resumes_bit_for_bit(trained):
    a, b = (torch.load(trained / name / "last.pt", weights_only=True)["model"] for name in ("separator", "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_corrector_keeps_its_separator_and_its_array(trained):
    first, second = (train.load_checkpoint(trained / name / "last.safetensors") for name in ("separator", "corrector"))
    assert (second.num_mics, second.num_speakers) == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.separator.parameters(), second.separator.parameters()))
    assert train.load_checkpoint(trained / "reverberant/last.safetensors").num_mics == 1


@pytest.mark.slow
def test_another_number_of_speakers_starts_from_what_fits(trained, root, tmp_path, capsys):
    """All but the separator's last layer, the corrector's network too, which is not trained."""
    first = trained / "corrector/last.safetensors"
    flags = ("train", "--data", root, "--init", first, "--separator", "train", "--num-speakers", "1", "--lr", "0",
             "--steps", "1", "--valid-every", "0", "--rooms", "2", "--room-cache", root / "cache", "--out", tmp_path)
    assert run(*flags) == 2
    assert "do not fit" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="start afresh: separator.decoder.bias, separator.decoder.weight$"):
        assert run(*flags, "--init-partial") == 0
    a, b = (train.load_checkpoint(path).state_dict() for path in (first, tmp_path / "last.safetensors"))
    assert b["separator.decoder.weight"].shape[0] == a["separator.decoder.weight"].shape[0] / 2
    assert all(torch.equal(a[name], b[name]) for name in a if "decoder" not in name)


def test_array_is_enhanced_as_one_and_evaluated_speaker_by_speaker(trained, root, tmp_path, monkeypatch, capsys):
    write_mixtures(monkeypatch, root, "--num-mics", 2, "--count", 2, "--out", tmp_path / "set")
    checkpoint = ("--checkpoint", trained / "corrector/last.safetensors")
    assert run("enhance", tmp_path / "set/test/noisy", *checkpoint, "--out", tmp_path / "enhanced") == 0
    assert data.load_audio(tmp_path / "enhanced/0001.wav")[0].shape[0] == 2
    capsys.readouterr()
    assert run("evaluate", "--data", tmp_path / "set", *checkpoint, "--metrics", "si_sdr", "--workers", "1",
               "--out", tmp_path / "scores") == 0
    said = capsys.readouterr().out
    assert "real-time factor" in said and "parameters: net" in said and "separator" in said and "n/a" not in said
    clean, enhanced, heard = (data.load_audio(folder / "0000.wav")[0] for folder in (
        tmp_path / "set/test/clean", tmp_path / "scores/enhanced", tmp_path / "scores/microphone0"))
    likeness = torch.corrcoef(torch.cat([clean, enhanced]))[:2, 2:]
    assert likeness.trace() >= likeness.flip(1).trace()
    mixture = data.load_audio(tmp_path / "set/test/noisy/0000.wav")[0]
    assert torch.equal(heard, mixture[:1].expand(2, -1))


def test_another_number_of_channels_is_named(trained, root, tmp_path, capsys):
    mono = next(Path(root / "test/speech").rglob("*.wav"))
    assert run("enhance", mono, "--checkpoint", trained / "corrector/last.safetensors", "--out", tmp_path) == 1
    assert "has 1 channel(s); this checkpoint takes one for each of its 2 microphone(s)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Swapping(torch.nn.Module):
    """Finds both speakers in a mixture whose microphones are the speakers, in another order at every call."""

    num_mics, num_speakers, calls = 2, 2, 0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.spectrogram = data.Spectrogram()

    def enhance(self, wave, peak=None):
        self.calls += 1
        assert wave.ndim == 3 and peak.shape == (1, 1)
        return wave.flip(1) if self.calls % 2 else wave


def test_speakers_keep_their_place_from_window_to_window(tmp_path):
    rng = np.random.default_rng(0)
    waves = np.stack([voice(rng, 8), voice(rng, 8)])
    data.save_audio(tmp_path / "in.wav", waves, 16000, "FLOAT")
    method = Swapping()
    with torch.inference_mode():
        commands.enhance_file(method, tmp_path / "in.wav", tmp_path / "out.wav", window=2.0)
    assert method.calls > 4
    np.testing.assert_allclose(data.load_audio(tmp_path / "out.wav")[0], waves[::-1], atol=1e-6)


def test_order_is_found_for_three_speakers_and_signs_count():
    torch.manual_seed(0)
    clean = torch.randn(3, 4000)
    for order in ([2, 0, 1], [1, 0, 2]):
        noisy = 3 * clean[order] + torch.randn(3, 4000)
        torch.testing.assert_close(commands.in_order(clean, noisy), noisy[[order.index(k) for k in range(3)]])
    pair = torch.stack([-clean[0], 0.1 * clean[0] + clean[1]])
    torch.testing.assert_close(commands.in_order(clean[:2], pair), pair.flip(0))
