"""The spectrogram's official numbers, and which crop a batch holds; recordings are in test_recordings.py.

tests/fixtures/spectrogram.npz holds the official system's (sgmse) transforms of a short recording, and its padding.
"""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import data
from data import AudioError, MixedAudio, PairedAudio, Recordings, Spectrogram, UnpairedAudio

FIXTURES = Path(__file__).parent / "fixtures"
N = 4000                                                 # samples of a crop in these tests
RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000)


def sound(samples, channels=1, seed=0, level=0.1):
    """Noise, float32 (samples, channels)."""
    noise = np.random.default_rng(seed).standard_normal((samples, channels))
    return (level * noise).clip(-0.99, 0.99).astype(np.float32)


def tone(hertz, rate, seconds=1.0, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def write(path, wave, rate=16000, subtype=None, format=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), wave, rate, subtype, format=format)
    return path


def decibel(power_ratio):
    return 10 * np.log10(np.asarray(power_ratio))


# ---- spectrogram ----

OFFICIAL = np.load(FIXTURES / "spectrogram.npz")
OFFICIAL_SETTINGS = json.loads(str(OFFICIAL["settings_json"]))
OUR_NAMES = {"spec_abs_exponent": "exponent", "spec_factor": "factor", "transform_type": "transform"}
every_transform = pytest.mark.parametrize("options", [
    dict(), dict(exponent=1.0), dict(exponent=0.667), dict(transform="log"), dict(transform="none"),
    dict(window="sqrthann"), dict(n_fft=1534, hop_length=384)], ids=str)


@pytest.mark.parametrize("tag", OFFICIAL_SETTINGS)
def test_spectrogram_equals_the_official_one(tag):
    spectrogram = Spectrogram(**{OUR_NAMES.get(key, key): value for key, value in OFFICIAL_SETTINGS[tag].items()})
    wave = torch.from_numpy(OFFICIAL["wav48k" if tag == "48k" else "wav16k"])
    stft, spec = spectrogram.stft(wave), spectrogram(wave)
    shape = tuple(OFFICIAL[f"{tag}/stft_shape"])
    assert stft.shape == (*shape[:-1], shape[-1] + (wave.shape[-1] % spectrogram.hop_length > 0))  # ours has its end
    whole = wave.shape[-1]
    stft, spec = stft[..., :shape[-1]], spec[..., :shape[-1]]
    assert [stft.abs().sum(), spec.abs().sum()] == pytest.approx(OFFICIAL[f"{tag}/stft_sum"][:2], rel=1e-5)
    for ours, key in ((stft, "stft"), (spec, "fwd")):
        official = OFFICIAL.get(f"{tag}/{key}", np.zeros(0))
        if official.size:
            torch.testing.assert_close(ours, torch.from_numpy(official), atol=2e-6, rtol=1e-4)
    back = spectrogram.inverse(spec, whole)
    torch.testing.assert_close(back, torch.from_numpy(OFFICIAL[f"{tag}/istft_of_back"]), atol=2e-6, rtol=0)


def test_numbers_of_frames():
    spectrogram = Spectrogram()
    for samples, frames in ((32640, 256), (16000, 126), (48000, 376)):
        assert spectrogram(torch.ones(samples)).shape == (256, frames)
    assert spectrogram.samples(256) == 32640
    for frames, padded in ((126, 128), (256, 256), (257, 320), (313, 320)):
        assert data.pad_frames(torch.ones(1, 1, 2, frames), 64).shape[-1] == padded


def test_a_constant_has_the_sum_of_the_window():
    spectrogram = Spectrogram()
    assert spectrogram.window.sum().item() == pytest.approx(255, abs=1e-4)
    wave = torch.ones(4000, dtype=torch.float64)
    assert spectrogram.stft(wave)[0, 10].abs().item() == pytest.approx(255, abs=1e-4)
    assert spectrogram(wave)[0, 10].abs().item() == pytest.approx(2.395308, abs=1e-6)


def test_a_sine_of_1_khz_peaks_in_bin_32():
    spectrogram, wave = Spectrogram(), torch.from_numpy(tone(1000, 16000, 2.04, 1.0))
    assert spectrogram.stft(wave)[:, 100].abs().max().item() == pytest.approx(126.220292, abs=1e-4)
    peak = spectrogram(wave)[:, 100].abs().max(0)
    assert peak.indices == 32 and peak.values.item() == pytest.approx(1.685217, abs=1e-6)


def test_compression_of_four():
    spectrogram, c = Spectrogram(), torch.tensor(4j, dtype=torch.complex128)
    assert spectrogram.compress(c).item() == pytest.approx(0.3j)
    assert spectrogram.decompress(torch.tensor(0.3j, dtype=torch.complex128)).item() == pytest.approx(4j)
    log = Spectrogram(transform="log")
    assert log.compress(c).item() == pytest.approx(0.15j * np.log(5))
    none = Spectrogram(transform="none")
    assert none.compress(c).item() == none.decompress(c).item() == 4j


def test_complex_noise_has_unit_variance_half_of_it_real():
    z = torch.randn(200000, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    assert z.abs().square().mean().item() == pytest.approx(1, abs=0.01)
    assert z.real.var().item() == pytest.approx(0.5, abs=0.01)


@every_transform
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_there_and_back(options, dtype, tolerance):
    spectrogram = Spectrogram(**options)
    for samples in (1000, 16001, 32640):
        wave = torch.from_numpy(sound(samples)[:, 0]).to(dtype)
        back = spectrogram.inverse(spectrogram(wave), samples)
        assert back.dtype == dtype and (back - wave).abs().max() < tolerance


@every_transform
def test_gradients_are_finite_at_digital_silence(options):
    spectrogram = Spectrogram(**options)
    wave = torch.from_numpy(sound(8000)[:, 0])
    wave[:6000] = 0
    wave.requires_grad_()
    torch.view_as_real(spectrogram(wave)).sum().backward()
    assert torch.isfinite(wave.grad).all() and wave.grad[7000:].abs().max() > 0
    spec = spectrogram(wave.detach()).requires_grad_()
    spectrogram.inverse(spec, 8000).sum().backward()
    assert torch.isfinite(torch.view_as_real(spec.grad)).all()


@every_transform
def test_silence_stays_silence(options):
    spectrogram = Spectrogram(**options)
    spec = spectrogram(torch.zeros(4000))
    assert not spec.abs().any() and not spectrogram.inverse(spec, 4000).any()


def test_leading_dimensions_are_kept():
    spectrogram, wave = Spectrogram(), torch.from_numpy(sound(6, 4000)).reshape(2, 3, 4000)
    spec = spectrogram(wave)
    assert spec.shape == (2, 3, 256, 33) and spectrogram(wave[0]).shape == (3, 256, 33)
    assert torch.equal(spec[1, 2], spectrogram(wave[1, 2]))
    assert spectrogram.inverse(spec, 4000).shape == (2, 3, 4000)
    torch.testing.assert_close(spectrogram.inverse(spec, 4000)[1, 2], spectrogram.inverse(spec[1, 2], 4000))


def test_too_short_a_wave_or_an_unknown_option_raises():
    assert Spectrogram()(torch.ones(256)).shape == (256, 3)
    with pytest.raises(ValueError, match="more than 255 samples.*got 255"):
        Spectrogram()(torch.ones(255))
    for options in (dict(transform="sqrt"), dict(window="hamming")):
        with pytest.raises(ValueError, match="transform is"):
            Spectrogram(**options)


@pytest.mark.parametrize("mode, tag", [("constant", "zero_pad"), ("reflect", "reflection")])
def test_padding_equals_the_official_one(mode, tag):
    rows = torch.from_numpy(OFFICIAL["pad2/in_rows8"])                     # (8, 76)
    for spec in (rows, rows[None], rows[None, None].repeat(2, 1, 1, 1)):
        padded, tail = data.pad_frames(spec, 64, mode), torch.from_numpy(OFFICIAL[f"pad2/{tag}_tail"])
        assert padded.shape == (*spec.shape[:-1], OFFICIAL[f"pad2/{tag}_shape"][-1])
        assert torch.equal(padded[..., :76], spec)
        assert torch.equal(padded[..., 76:], tail.expand(*spec.shape[:-1], 52))


def test_padding_adds_nothing_to_a_multiple_and_may_reflect():
    assert data.pad_frames(torch.ones(1, 2, 64), 64, "reflect").shape == (1, 2, 64)
    spec = torch.arange(1.0, 41).expand(1, 1, 2, 40)
    assert data.pad_frames(spec, 64, "reflect")[0, 0, 0, 40:].tolist() == list(range(39, 15, -1))
    assert not data.pad_frames(spec[..., :32], 64, "reflect")[..., 32:].any()


# ---- mixing and pairing ----

def test_mixture_has_the_ratio_asked_for_per_item():
    speech, noise = torch.from_numpy(sound(3, 4000)), torch.from_numpy(sound(3, 4000, seed=1, level=0.01))
    snr = torch.tensor([-5.0, 0.0, 17.5])
    rest = data.mix_at_snr(speech, noise, snr) - speech
    measured = decibel(speech.square().mean(-1) / rest.square().mean(-1))
    assert measured == pytest.approx(snr.numpy(), abs=1e-3)
    torch.testing.assert_close(data.mix_at_snr(speech[2], noise[2], 17.5), (speech + rest)[2])


def voicebank(root):
    speakers = {"trainset_28spk": ["p225_001", "p226_001", "p2260_001", "p287_002"], "testset": ["p232_001"]}
    for split, names in speakers.items():
        for seed, name in enumerate(names):
            clean = sound(N + 100, seed=seed)
            write(root / f"clean_{split}_wav" / f"{name}.wav", clean)
            write(root / f"noisy_{split}_wav" / f"{name}.wav", clean + sound(N + 100, seed=seed + 9))
    return root


def stems(dataset):
    return [dataset.utterance(i)[0] for i in range(len(dataset))]


def test_voicebank_demand_is_split_by_speaker(tmp_path):
    root = voicebank(tmp_path)
    assert stems(PairedAudio(root, "train", N)) == ["p225_001", "p2260_001"]
    assert stems(PairedAudio(root, "valid", N)) == ["p226_001", "p287_002"]
    assert stems(PairedAudio(root, "test", N)) == ["p232_001"]


def test_voicebank_without_held_out_speakers_has_no_valid(tmp_path):
    root = voicebank(tmp_path)
    for path in list(root.glob("*trainset*/p226_*")) + list(root.glob("*trainset*/p287_*")):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="valid"):
        PairedAudio(root, "valid", N)


def test_pairs_of_the_dns_challenge_match_by_number(tmp_path):
    """datasets/test_set/synthetic/no_reverb as distributed: clean_fileid_7.wav, and noisy a name that ends so."""
    for number in (3, 10, 7):
        write(tmp_path / f"clean/clean_fileid_{number}.wav", sound(N, seed=number))
        write(tmp_path / f"noisy/clnsp{30 - number}_train_69005_{number}_snr15_tl-21_fileid_{number}.wav", sound(N, seed=number))
    clean, noisy = data.paired_paths(tmp_path, "test")
    numbers = [[path.stem.split("_")[-1] for path in side] for side in (clean, noisy)]
    assert numbers[0] == numbers[1] and set(numbers[0]) == {"3", "7", "10"}
    (tmp_path / "noisy/clnsp9_fileid_8.wav").write_bytes(next(iter((tmp_path / "noisy").iterdir())).read_bytes())
    with pytest.raises(ValueError, match="no partner .*: fileid_8"):
        data.paired_paths(tmp_path, "test")
    (tmp_path / "noisy/other.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="no partner"):                    # not all of them are numbered
        data.paired_paths(tmp_path, "test")


@pytest.mark.parametrize("layout", ["speech/clean_{split}_wav/{name}.wav", "speech/{split}/{name}.wav"])
def test_mixed_voicebank_keeps_its_validation_speakers(tmp_path, layout):
    """Speech in VoiceBank's folders, or in any with its names, beside noise in DEMAND's: each split has its speakers."""
    names = ["p225_001", "p226_001", "p2260_001", "p287_002"]
    own = "clean_" in layout
    for seed, name in enumerate([*names, *["p232_001"] * own]):
        write(tmp_path / layout.format(split="testset" if name == "p232_001" else "trainset_28spk", name=name),
              sound(4 * N, seed=seed))
    for room in ("DKITCHEN", "STRAFFIC"):
        write(tmp_path / "noise" / room / "ch01.wav", sound(4 * N, seed=9))
    held_out = ["p226_001", "p287_002"]
    named = lambda split, **k: stems(data.open_data(tmp_path, split, num_samples=N, **k))
    assert named("train") == ["p225_001", "p2260_001"] and named("valid") == held_out
    assert named("train", without={(tmp_path / layout.format(split="trainset_28spk", name="p225_001")).resolve()}) == [
        "p2260_001"]
    assert named("test") == (["p232_001"] if own else ["p225_001", "p2260_001"])
    assert sorted(path.stem for path in data.speech_of(tmp_path, "valid")) == held_out
    clean = data.UnpairedAudio(tmp_path, tmp_path / "speech", num_samples=N)
    heard = {Path(path).stem for path in (*clean.sources[0].paths, *clean.noisy.sources[0].paths)}
    assert not heard & set(held_out)
    babble = data.open_data(tmp_path, "train", num_samples=N, augmentation=data.Augmentation(babble=1.0))
    assert [Path(path).stem for path in babble.sources[0].paths] == ["p225_001", "p2260_001"]


def test_mixtures_without_held_out_speakers_have_no_valid(tmp_path):
    write(tmp_path / "speech/clean_trainset_28spk_wav/p225_001.wav", sound(4 * N))
    write(tmp_path / "noise/a.wav", sound(4 * N))
    with pytest.raises(FileNotFoundError, match="valid"):
        data.open_data(tmp_path, "valid", num_samples=N)
    assert data.speech_of(tmp_path, "valid") == set()


@pytest.mark.parametrize("layout", ["{split}/{side}", "{side}", "{split}/pairs/{side}"])
def test_layouts_with_folders_below_and_other_suffixes(tmp_path, layout):
    clean, noisy = (tmp_path / layout.format(split="test", side=side) for side in ("clean", "noisy"))
    for seed, name in enumerate(["a", "b/c", "b/d.e"]):
        x = sound(N, seed=seed)
        write(clean / f"{name}.wav", x)
        write(noisy / f"{name}.flac", x / 2)
    dataset = data.open_data(tmp_path, "test", num_samples=N)
    assert isinstance(dataset, PairedAudio) and stems(dataset) == ["a", "c", "d.e"]
    for number in range(3):
        _, x, y = dataset.utterance(number)
        assert torch.allclose(x, 2 * y, atol=1e-4)


def test_files_without_a_partner_are_listed(tmp_path):
    for name in ["a"] + [f"clean{i:02}" for i in range(13)]:
        write(tmp_path / "clean" / f"{name}.wav", sound(N))
    for name in ("a", "alone"):
        write(tmp_path / "noisy" / f"{name}.wav", sound(N))
    with pytest.raises(ValueError, match="14 files .* no partner .*: alone, clean00, .*clean08 and 4 more"):
        PairedAudio(tmp_path, "train", N)


def test_a_folder_of_neither_kind_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="clean_trainset_28spk_wav.*train/clean.*train/speech"):
        data.open_data(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        data.open_data(tmp_path / "nowhere", "train")


def first_batch(dataset, size=4, **options):
    return next(data.batches(dataset, size, workers=0, **options))


def test_pairs_are_cut_alike_and_divided_by_the_noisy_peak(tmp_path):
    clean = sound(10 * N, level=0.05)
    noisy = 3 * clean
    noisy[:N] = 0.9                                      # the peak of the file, in few of its crops
    write(tmp_path / "clean/a.wav", clean)
    write(tmp_path / "noisy/a.wav", noisy)
    dataset = PairedAudio(tmp_path, "train", N)
    x, y = first_batch(dataset, 16)
    assert x.shape == y.shape == (16, N) and x.dtype == torch.float32
    assert y.abs().amax(1).tolist() == pytest.approx([1] * 16)
    away = [dataset[p][1][0] > N for p in range(16)]
    assert sum(away) > 8 and len({dataset[p][1][0] for p in range(16)}) > 8
    torch.testing.assert_close(y[away], 3 * x[away], atol=2e-3, rtol=0)


@pytest.mark.parametrize("missing", [1, 2, 7, 2000])
def test_a_short_pair_is_centred_in_zeros(tmp_path, missing):
    x = sound(N - missing)
    write(tmp_path / "clean/a.wav", x)
    write(tmp_path / "noisy/a.wav", np.concatenate([x, sound(30)]))        # cut to the shorter
    _, y = first_batch(PairedAudio(tmp_path, "train", N), 1)
    expected = np.pad(x[:, 0], (missing // 2, missing - missing // 2))
    torch.testing.assert_close(y[0], torch.from_numpy(expected / np.abs(x).max()), atol=1e-3, rtol=0)


def test_utterance_of_a_pair_is_as_long_as_the_shorter(tmp_path):
    write(tmp_path / "clean/a.wav", sound(3 * N))
    write(tmp_path / "noisy/a.wav", sound(3 * N + 5))
    name, clean, noisy = PairedAudio(tmp_path, "test", N).utterance(0)
    assert name == "a" and clean.shape == noisy.shape == (3 * N,)
    torch.testing.assert_close(clean, torch.from_numpy(sound(3 * N)[:, 0]), atol=4e-5, rtol=0)


# ---- mixtures, and the order of crops ----

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Seven recordings of speech, four of noise; stereo, resampled and short ones among them."""
    root = tmp_path_factory.mktemp("corpus")
    for seed in range(7):
        rate = 44100 if seed == 3 else 16000
        wave = sound(N // 2 if seed == 5 else 3 * rate // 4, 2 if seed == 2 else 1, seed)
        write(root / "speech" / f"{seed % 2}/s{seed}.wav", wave, rate)
    for seed, samples in enumerate((20000, 700, 1500, 9000)):
        wave = sound(samples, seed=seed + 50, level=0.02)
        write(root / "noise" / f"n{seed}.wav", wave, 22050 if seed == 3 else 16000)
    return root


def mixtures(corpus, **options):
    return data.open_data(corpus, "train", **dict(num_samples=N) | options)


def take(dataset, count, batch_size=4, **options):
    return list(itertools.islice(data.batches(dataset, batch_size, **dict(workers=0) | options), count))


def assert_same(first, second):
    for pair, other in zip(first, second, strict=True):
        for a, b in zip(pair, other, strict=True):
            assert torch.equal(a, b)


def test_mixtures_come_out_at_the_ratios_asked_for(corpus):
    dataset = mixtures(corpus, snrs=(-3, 4, 11))
    clean, noisy = first_batch(dataset, 30)
    measured = decibel(clean.square().mean(1) / (noisy - clean).square().mean(1))
    drawn = [dataset[p][2][0] for p in range(30)]
    assert measured == pytest.approx(drawn, abs=0.01) and set(drawn) == {-3, 4, 11}
    assert noisy.abs().amax(1).tolist() == pytest.approx([1] * 30)


def test_a_short_noise_repeats(corpus):
    dataset = mixtures(corpus)
    for position in range(60):
        (_, noise), _, _, crops, _ = dataset[position]
        length = dataset.sources[1].lengths[noise]
        if length < N:
            assert np.array_equal(crops[1][length:], crops[1][:-length])


def test_every_second_of_noise_is_equally_likely(corpus):
    dataset = mixtures(corpus)
    rng = np.random.default_rng(0)
    drawn = np.bincount([dataset.draw_noise(rng, N)[0] for _ in range(4000)], minlength=4) / 4000
    assert drawn == pytest.approx(dataset.sources[1].lengths / dataset.sources[1].lengths.sum(), abs=0.03)


def test_babble_is_heard_in_its_share_and_reproducible(corpus):
    dataset = mixtures(corpus, augmentation=data.Augmentation(babble=0.25))
    babble = len(dataset.noise_ends)
    rng = np.random.default_rng(0)
    drawn = np.bincount([dataset.draw_noise(rng, N)[0] for _ in range(4000)], minlength=5) / 4000
    lengths = dataset.sources[1].lengths[:4]
    assert drawn == pytest.approx([*0.75 * lengths / lengths.sum(), 0.25], abs=0.03)
    wave = dataset.sources[1].wave(babble)
    assert len(wave) == 600 * 16000 and wave.abs().max() == pytest.approx(1, abs=1e-4)
    batches = take(dataset, 4)
    assert_same(batches, take(mixtures(corpus, augmentation=data.Augmentation(babble=0.25)), 4))


def test_every_speaker_of_the_babble_is_equally_loud(tmp_path):
    """A faint recording of +1s and a loud one of -1s: at any time six of them give one of seven levels."""
    for name, level in (("faint", 0.01), ("loud", -0.5)):
        data.save_audio(tmp_path / f"{name}.wav", np.full(800, level, np.float32), 16000, "PCM_16")
    babble = data.make_babble(Recordings(data.list_audio(tmp_path)), np.random.default_rng(0), minutes=1)
    levels = np.unique(babble.round(4))
    assert levels == pytest.approx(np.linspace(-1, 1, 7), abs=1e-4) and len(babble) == 960000


def test_batches_are_a_function_of_seed_and_position(corpus):
    batches = take(mixtures(corpus), 3)
    assert_same(batches, take(mixtures(corpus), 3))
    for other in (take(mixtures(corpus, seed=1), 3), take(mixtures(corpus), 3, step=7)):        # 7 batches: 4 epochs
        assert not any(torch.equal(a[1], b[1]) for a, b in zip(batches, other))


def test_another_seed_cuts_the_same_recording_elsewhere(corpus):
    starts = []
    for seed in (0, 1):
        dataset = mixtures(corpus, seed=seed)
        dataset.files = dataset.files[:1]
        starts.append([dataset[position][1] for position in range(8)])
    assert starts[0] != starts[1] and len(set(starts[0])) > 4


def test_every_recording_comes_once_per_epoch_in_a_new_order(corpus):
    dataset = mixtures(corpus)
    epochs = [[dataset[7 * epoch + place][0][0] for place in range(7)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_two_ranks_make_the_batch_of_one(corpus):
    whole = take(mixtures(corpus), 3, 8)
    parts = [take(mixtures(corpus), 3, 4, rank=rank, world=2) for rank in (0, 1)]
    assert_same(whole, [[torch.cat([a, b]) for a, b in zip(*pair)] for pair in zip(*parts)])


def test_starting_at_a_step_equals_skipping_batches(corpus):
    assert_same(take(mixtures(corpus), 6)[4:], take(mixtures(corpus), 2, step=4))
    assert_same(take(mixtures(corpus), 6, rank=1, world=2)[4:], take(mixtures(corpus), 2, step=4, rank=1, world=2))


def test_a_number_of_crops_comes_again_and_again(corpus):
    """Ten, in batches of four, on two ranks as on one."""
    def rows(batches):
        return [row for pair in batches for row in torch.stack(pair, dim=1)]

    expected = rows(take(mixtures(corpus), 3))[:10]
    whole = rows(take(mixtures(corpus), 6, num_crops=10))
    assert all(torch.equal(row, expected[p % 10]) for p, row in enumerate(whole))
    second = rows(take(mixtures(corpus), 5, 2, rank=1, world=2, num_crops=10, step=1))
    assert all(torch.equal(row, expected[p % 10]) for p, row in zip((6, 7, 10, 11, 14, 15, 18, 19, 22, 23), second))


@pytest.mark.parametrize("loop", [False, True])
def test_a_crop_is_cut_out_of_the_recording_or_its_repetition(corpus, loop):
    paths = data.list_audio(corpus)
    recordings = Recordings(paths)
    lengths = recordings.lengths
    rng = np.random.default_rng(0)
    indices = rng.integers(len(paths), size=60)
    spare = lengths[indices] - N
    starts = np.where(spare >= 0, rng.integers(np.maximum(spare, 0) + 1), 0 if loop else -(-spare // 2))
    if loop:
        starts[::3] = rng.integers(lengths[indices[::3]])                  # beyond the last whole crop
    for index, start in zip(indices, starts):
        crop = recordings.crop(index, start, N, loop)
        assert crop.dtype == np.float32
        where = start + np.arange(N)
        wave = recordings.wave(index).numpy()
        inside = (where >= 0) & (where < len(wave))
        assert np.array_equal(crop, wave[where % len(wave)] * (inside | loop))


def test_workers_beside_a_gpu_cut_and_vary_as_no_workers_do(corpus):
    varied = dict(augmentation=data.Augmentation(babble=0.3, synthetic_noise=0.5, speech_dropout=0.5, random_eq=0.5))
    dataset = mixtures(corpus, device="meta", **varied)
    assert all(wave.is_meta and wave.shape == (4, N) for batch in take(dataset, 2, workers=2) for wave in batch)
    assert dataset.order[0] is None                      # nothing was drawn in this process
    expected, dataset = take(mixtures(corpus, **varied), 2), in_workers(mixtures(corpus, **varied))
    for ours, theirs in zip(itertools.chain(*expected), itertools.chain(*take(dataset, 2, workers=2))):
        torch.testing.assert_close(ours, theirs)         # a worker has one thread, which adds in another order


def in_workers(dataset):
    """The same, which takes worker processes for its crops as beside a GPU, and mixes them here."""
    dataset.device = torch.device("meta")
    mix = dataset.mix

    def mix_here(*collated):
        dataset.device = torch.device("cpu")
        return mix(*collated)
    dataset.mix = mix_here
    return dataset


def test_beside_a_cpu_no_process_is_started(corpus, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a worker process"))
    take(mixtures(corpus), 2, workers=2)


def test_workers_take_no_random_number_of_the_training(corpus):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(in_workers(mixtures(corpus)), 2, workers=2)
    assert torch.equal(before, torch.get_rng_state())


def test_an_utterance_is_the_same_at_every_call_and_cannot_clip(corpus):
    dataset = mixtures(corpus, snrs=(-20,))
    for number in range(len(dataset)):
        name, clean, noisy = dataset.utterance(number)
        assert name == data.list_audio(corpus / "speech")[number].stem
        assert clean.shape == noisy.shape == (dataset.sources[0].lengths[number],)
        assert noisy.abs().max() <= 1
        assert decibel(clean.square().mean() / (noisy - clean).square().mean()) == pytest.approx(-20, abs=0.01)
        assert torch.equal(noisy, dataset.utterance(number)[2])


# ---- unpaired ----

@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Recording i of two folders, speech and other, is a tone of its own; nearly silent noise; the same as pairs."""
    root = tmp_path_factory.mktemp("voices")
    for i in range(16):
        wave = tone(400 + 200 * i, 16000)
        write(root / ("speech" if i < 8 else "other") / f"{i}.wav", wave)
        if i < 8:
            write(root / "paired/clean" / f"{i}.wav", wave)
            write(root / "paired/noisy" / f"{i}.wav", wave + 1e-3 * sound(16000, seed=i)[:, 0])
    write(root / "noise/n.wav", sound(16000))
    return root


def heard(wave):
    """The numbers of the recordings that are loud in any row of (B, N)."""
    spectrum = torch.fft.rfft(wave * torch.hann_window(N)).abs()           # 4 Hz a bin
    tones = spectrum[:, 100:900:50]                                        # 400, 600 .. 3400 Hz
    return set(torch.nonzero(tones > 0.1 * tones.amax(1, keepdim=True))[:, 1].tolist())


@pytest.mark.parametrize("kind", ["mixed", "babble", "pairs"])
def test_unpaired_sides_share_no_recording(kind, voices):
    """One folder serves both sides: half of its recordings each, of babble too; and all of them are used."""
    root = voices / "paired" if kind == "pairs" else voices
    options = dict(snrs=(-20,), augmentation=data.Augmentation(babble=1.0)) if kind == "babble" else {} if kind == "pairs" else dict(snrs=(60,))
    dataset = UnpairedAudio(root, root / ("clean" if kind == "pairs" else "speech"), num_samples=N, **options)
    sides = [heard(torch.cat(part)) for part in zip(*take(dataset, 30))]
    assert len(sides[0]) == len(sides[1]) == 4 and not sides[0] & sides[1]


def test_unpaired_sides_use_all_recordings_once(voices, tmp_path):
    clean, noisy = (heard(torch.cat(part)) for part in zip(*take(
        UnpairedAudio(voices, voices / "other", num_samples=N, snrs=(60,)), 40)))
    assert clean == set(range(8, 16)) and noisy == set(range(8))
    for i in (2, 3, 9):
        (tmp_path / f"{i}.wav").symlink_to(voices / ("speech" if i < 8 else "other") / f"{i}.wav")
    clean, noisy = (heard(torch.cat(part)) for part in zip(*take(
        UnpairedAudio(voices, tmp_path, num_samples=N, snrs=(60,)), 40)))
    assert clean | noisy == {*range(8), 9} and not clean & noisy and {9} < clean <= {2, 3, 9}


def test_unpaired_batches_are_a_function_of_seed_and_position(voices):
    make = lambda seed=0: UnpairedAudio(voices, voices / "speech", num_samples=N, seed=seed)
    batches = take(make(), 6)
    assert_same(batches[4:], take(make(), 2, step=4))
    assert not any(torch.equal(a[k], b[k]) for a, b in zip(batches, take(make(1), 6)) for k in (0, 1))
    assert all(part.shape == (4, N) and torch.equal(part.abs().amax(1), torch.ones(4)) for b in batches for part in b)
    dataset = make()
    starts = [[side[1][0] for side in dataset[p]] for p in range(50)]
    assert abs(np.corrcoef(starts, rowvar=False)[0, 1]) < 0.5


def test_unpaired_counts_the_problems_of_both_sides(voices, tmp_path):
    for name, folder in (("noisy", "speech"), ("clean", "other")):
        shutil.copytree(voices / folder, tmp_path / name / "speech")
        write(tmp_path / name / "speech/bad.wav", sound(100))
    shutil.copytree(voices / "noise", tmp_path / "noisy/noise")
    with pytest.warns(UserWarning, match="left out"):
        dataset = UnpairedAudio(tmp_path / "noisy", tmp_path / "clean/speech", num_samples=N)
    assert {Path(problem.split(": ")[0]).parent.parent.name for problem in dataset.problems} == {"noisy", "clean"}
    assert dataset.noisy.problems is dataset.problems


def test_unpaired_refuses_noisy_files_and_single_recordings(voices, tmp_path):
    for root, clean_dir, found in ((voices, voices, "n.wav"), (voices / "paired", voices / "paired", "noisy")):
        with pytest.raises(ValueError, match=f"holds .*{found}.*give a folder of clean speech alone"):
            UnpairedAudio(root, clean_dir, num_samples=N)
    write(tmp_path / "speech/a.wav", sound(N))
    write(tmp_path / "noise/n.wav", sound(N))
    with pytest.raises(AudioError, match="none of 0 recordings"):
        UnpairedAudio(tmp_path, tmp_path / "speech", num_samples=N)


def test_bad_recordings_of_both_sides_are_counted_in_one_place(voices, tmp_path):
    write(tmp_path / "good.wav", sound(2 * N))
    write(tmp_path / "bad.wav", sound(N)).write_text("no sound")
    half = sound(20 * N)
    half[2 * N:] = 0
    write(tmp_path / "half.wav", half)
    with pytest.warns(UserWarning, match="left out: .*bad.wav"):
        dataset = UnpairedAudio(voices, tmp_path, num_samples=N)
    with pytest.warns(UserWarning, match="half.wav: a crop of it is silent"):
        take(dataset, 4)
    with pytest.warns(UserWarning):
        dataset.noisy.note(["noisy side"])
    assert [Path(key.split(":")[0]).name for key in dataset.problems] == ["bad.wav", "half.wav", "noisy side"]


# ---- silence ----

@pytest.mark.parametrize("workers", [0, 2])
def test_silence_in_some_crops_leaves_the_others(tmp_path, workers):
    wave = sound(20 * N)
    wave[2 * N:15 * N] = 0
    write(tmp_path / "speech/half.wav", wave)
    write(tmp_path / "noise/n.wav", np.concatenate([np.zeros(3 * N), sound(3 * N, seed=1)[:, 0]]))
    dataset = mixtures(tmp_path) if workers == 0 else in_workers(mixtures(tmp_path))
    with pytest.warns(UserWarning, match="a crop of it is silent"):
        batches = take(dataset, 8, workers=workers)
    assert all(part.abs().amax(1).gt(0).all() and torch.isfinite(part).all() for batch in batches for part in batch)
    named = {key.split(": ")[0] for key in dataset.problems}
    assert named == {str(tmp_path / name) for name in ("speech/half.wav", "noise/n.wav")}
    assert min(dataset.problems.values()) > 3


def test_silent_targets_are_kept_and_silent_mixtures_are_not(tmp_path):
    write(tmp_path / "clean/a.wav", np.zeros(N))
    write(tmp_path / "noisy/a.wav", sound(N))
    clean, noisy = first_batch(PairedAudio(tmp_path, "train", N))
    assert not clean.any() and noisy.abs().amax(1).tolist() == [1] * 4
    write(tmp_path / "noisy/a.wav", np.zeros(N))
    with pytest.raises(AudioError, match="100 crops in a row .*noisy/a.wav: a crop of it is silent"):
        first_batch(PairedAudio(tmp_path, "train", N))
