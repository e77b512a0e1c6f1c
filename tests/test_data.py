"""Sound files as people have them, the spectrogram's official numbers, and which crop a batch holds.

tests/fixtures/spectrogram.npz holds the official system's (sgmse) transforms of a short recording, and its padding.
"""

import itertools
import json
import os
import resource
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


# ---- files ----

FORMATS = [("wav", None, "PCM_U8", 9e-3), ("wav", None, "PCM_16", 1e-4), ("wav", None, "PCM_24", 1e-6),
           ("wav", None, "PCM_32", 1e-6), ("wav", None, "FLOAT", 0), ("wav", None, "DOUBLE", 1e-7),
           ("WAV", "WAVEX", "PCM_24", 1e-6), ("wav", "RF64", "PCM_16", 1e-4), ("flac", None, "PCM_16", 1e-4),
           ("flac", None, "PCM_24", 1e-6), ("aiff", None, "PCM_16", 1e-4), ("ogg", None, "VORBIS", 0.08),
           ("opus", "OGG", "OPUS", 0.05), ("ogg", "OGG", "OPUS", 0.05), ("mp3", None, None, 0.05)]


@pytest.mark.parametrize("suffix, format, subtype, tolerance", FORMATS)
def test_every_format_is_read_sample_by_sample(tmp_path, suffix, format, subtype, tolerance):
    for channels in (1, 2) if subtype in (None, "OPUS") else (1, 2, 8):    # the fourth of 8 in Opus is a subwoofer's
        expected = np.stack([tone(300 + 100 * c, 16000) for c in range(channels)]).astype(np.float32)
        path = write(tmp_path / f"{channels}.{suffix}", expected.T, subtype=subtype, format=format)
        wave, rate = data.load_audio(path)
        assert wave.dtype == torch.float32 and wave.shape == (channels, 16000) and rate == 16000
        assert np.abs(wave.numpy() - expected)[:, 800:-800].max() <= tolerance


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path, size):
    path = write(tmp_path / "streamed.wav", sound(5000))
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", size)
    path.write_bytes(content)
    assert data.load_audio(path)[0].shape == (1, 5000)


@pytest.mark.parametrize("rate", RATES)
def test_length_and_blocked_resampling_equal_one_shot(tmp_path, rate):
    for n in (1, 2, 77, 1001, 12345, 30001):
        x = sound(n, 2)
        path = write(tmp_path / "x.wav", x, rate, "FLOAT")
        blocked = np.concatenate(list(data.read_blocks(path, block=4096)))
        expected = x if rate == 16000 else soxr.resample(x, rate, 16000, "HQ")
        assert len(blocked) == len(expected) == data.measure(path)
        assert abs(len(blocked) - n * 16000 / rate) <= 0.5
        assert np.abs(blocked - expected).max(initial=0) < 1e-6


@pytest.mark.parametrize("rate", [22050, 32000, 44100, 48000, 96000])
def test_resampling_is_flat_at_7_khz(tmp_path, rate):
    wave, _ = data.load_audio(write(tmp_path / "x.wav", tone(7000, rate), rate, "FLOAT"))
    assert abs(decibel(2 * wave[0, 2000:-2000].square().mean() / 0.5 ** 2)) < 0.1


@pytest.mark.parametrize("rate", [22050, 44100, 48000, 96000])
def test_resampling_suppresses_the_alias_of_9_khz_by_100_db(tmp_path, rate):
    wave, _ = data.load_audio(write(tmp_path / "x.wav", tone(9000, rate), rate, "FLOAT"))
    assert decibel(2 * wave[0, 2000:-2000].square().mean() / 0.5 ** 2) < -100


def test_a_long_file_is_read_in_constant_memory(tmp_path):
    minute = np.tile(sound(44100 * 6, 2), (10, 1))
    with soundfile.SoundFile(str(tmp_path / "long.wav"), "w", 44100, 2, "PCM_16") as file:
        for _ in range(5):
            file.write(minute)                           # five minutes: 106 MB as float32
    script = ("import sys, data\n"
              "sys.path.insert(0, 'tests')\n"
              "from helpers import peak\n"
              "for i, block in enumerate(data.read_blocks(sys.argv[1])):\n"
              "    start = peak() if i == 1 else locals().get('start')\n"
              "print(i, peak() - start)")
    command = [sys.executable, "-c", script, str(tmp_path / "long.wav")]
    blocks, megabytes = subprocess.check_output(command, text=True, cwd=FIXTURES.parents[1]).split()
    assert int(blocks) > 40 and float(megabytes) < 10


def test_list_audio_looks_below_and_past_other_files(tmp_path):
    for name in ("b.FLAC", "a.wav", "deep/er/c.ogg", "._a.wav", "notes.txt", "fake.wav/d.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in data.list_audio(tmp_path)]
    assert found == ["a.wav", "b.FLAC", "deep/er/c.ogg", "fake.wav/d.mp3"]
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no audio file .*none"):
        data.list_audio(tmp_path / "none")


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    return path


def with_nan(samples):
    wave = sound(samples)
    wave[samples // 2] = np.nan
    return wave


# What is wrong -> (a file of that kind, a word of the message)
BAD = {
    "empty": (lambda d: (d / "bad.wav", (d / "bad.wav").touch())[0], "empty"),
    "text": (lambda d: (d / "bad.wav", (d / "bad.wav").write_text("not sound at all" * 50))[0], "not a readable"),
    "no samples": (lambda d: write(d / "bad.wav", sound(0)), "no samples"),
    "truncated wav": (lambda d: cut(write(d / "bad.wav", sound(N))), "truncated"),
    "truncated wav of a stereo pair": (lambda d: cut(write(d / "bad.wav", sound(N, 2), 48000, "PCM_24")), "truncated"),
    "truncated flac": (lambda d: cut(write(d / "bad.flac", sound(N))), "damaged|truncated"),
    "truncated ogg": (lambda d: cut(write(d / "bad.ogg", sound(20 * N)), 0.9), "truncated"),
    "truncated opus": (lambda d: cut(write(d / "bad.opus", sound(20 * N), 16000, "OPUS", "OGG"), 0.9), "truncated"),
    "truncated mp3": (lambda d: cut(write(d / "bad.mp3", sound(N))), "truncated"),
    "nan": (lambda d: write(d / "bad.wav", with_nan(N), subtype="FLOAT"), "NaN"),
    "infinite": (lambda d: write(d / "bad.wav", with_nan(N) * 0 + np.inf, 44100, "FLOAT"), "infinite"),
}
every_bad_file = pytest.mark.parametrize("kind", BAD)


@every_bad_file
def test_a_bad_file_is_refused_by_name(tmp_path, kind):
    make, word = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(AudioError, match=word) as error:
        data.load_audio(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(AudioError, match="gone.wav"):
        data.load_audio(tmp_path / "gone.wav")


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_cut_anywhere_is_refused_or_ends_with_a_page(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", sound(40000), 16000, "OPUS" if suffix == "opus" else "VORBIS", "OGG")
    content = path.read_bytes()
    pages = [at for at in range(len(content)) if content[at:at + 4] == b"OggS"]
    path.write_bytes(content[:pages[-1]])
    assert data.promised_bytes(path) == pages[-1]
    for end in {*range(pages[-1] + 4, pages[-1] + 60), *np.linspace(pages[-1] + 60, len(content) - 1, 20).astype(int)}:
        path.write_bytes(content[:end])
        with pytest.raises(AudioError, match="truncated"):
            data.audio_info(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20000), st.integers(1, 8), st.one_of(st.sampled_from(RATES), st.integers(8000, 96000)),
       st.sampled_from(FORMATS), st.sampled_from(["noise", "silence", "dc", "full scale"]), st.floats(1e-7, 1.0))
def test_whatever_is_written_loads_finite_and_as_long_or_is_refused(tmp_path_factory, samples, channels, rate, kind,
                                                                    content, level):
    suffix, format, subtype, _ = kind
    wave = {"noise": sound(samples, channels, level=level), "silence": np.zeros((samples, channels)),
            "dc": np.full((samples, channels), level), "full scale": np.sign(sound(samples, channels))}[content]
    path = tmp_path_factory.mktemp("fuzz") / f"x.{suffix}"
    try:
        soundfile.write(str(path), wave, rate, subtype, format=format)
    except soundfile.LibsndfileError:
        return                                           # Opus at 44.1 kHz, MP3 with 8 channels: no such file
    try:
        loaded, own_rate = data.load_audio(path)
    except AudioError:
        assert samples < 2000 and (samples == 0 or subtype not in ("PCM_16", "PCM_24", "FLOAT"))
        return
    assert own_rate == rate and torch.isfinite(loaded).all() and loaded.dtype == torch.float32
    assert loaded.shape[0] == channels and abs(loaded.shape[1] - samples * 16000 / rate) <= 1


# ---- writing ----

@pytest.mark.parametrize("suffix, expected", [
    ("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III"),
    ("aif", "PCM_16"), ("AIFF", "PCM_16")])
def test_the_suffix_chooses_a_format_that_is_read_back(tmp_path, suffix, expected):
    path = tmp_path / "new" / f"x.{suffix}"
    wave = torch.from_numpy(tone(440, 16000, 0.5)).float()
    data.save_audio(path, torch.stack([wave, -wave]), 16000)
    assert soundfile.info(str(path)).subtype == expected
    back, _ = data.load_audio(path)
    assert back.shape == (2, 8000) and (back[0] - wave)[800:-800].abs().max() < 0.05
    data.save_audio(path, wave, 16000)
    assert data.load_audio(path)[0].shape == (1, 8000)


@pytest.mark.parametrize("name, rate", [("x.m4a", 16000), ("x", 16000), ("x.opus", 44100), ("x.mp3", 96000)])
def test_what_libsndfile_cannot_write_is_named_and_leaves_nothing(tmp_path, name, rate):
    with pytest.raises(AudioError, match=f"{name}: libsndfile cannot write .* {rate} Hz.*WAV can"):
        data.save_audio(tmp_path / name, torch.zeros(1000), rate)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix, subtype", [
    ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "PCM_32"), ("flac", "PCM_16")])
def test_integer_formats_clip_and_do_not_wrap_around(tmp_path, suffix, subtype):
    path = tmp_path / f"x.{suffix}"
    data.save_audio(path, torch.tensor([0.0, 1.0, 1.5, -1.0, -1.5, 40.0]), 16000, subtype)
    assert data.load_audio(path)[0][0].tolist() == pytest.approx([0, 1, 1, -1, -1, 1], abs=1e-4)


def test_a_float_file_keeps_every_bit(tmp_path):
    wave = torch.from_numpy(sound(1000, 3, level=3.0)).T
    data.save_audio(tmp_path / "x.wav", wave, 16000, "FLOAT")
    assert torch.equal(data.load_audio(tmp_path / "x.wav")[0], wave)


def test_an_exception_while_writing_keeps_the_old_file_and_no_other(tmp_path):
    path = write(tmp_path / "x.wav", sound(100))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with data.audio_writer(path, 16000, 1) as writer:
            writer.write(sound(50000))
            assert path.read_bytes() == before           # and while it is being written
            raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_full_disk_keeps_the_old_file_and_no_other(tmp_path, suffix):
    path = write(tmp_path / f"x.{suffix}", sound(100))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError, AssertionError)):
            data.save_audio(path, sound(200000).T, 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_are_what_the_umask_says(tmp_path, mask):
    old = os.umask(mask)
    try:
        data.save_audio(tmp_path / "x.wav", torch.zeros(100), 16000)
        assert data.current_umask() == mask
    finally:
        os.umask(old)
    assert (tmp_path / "x.wav").stat().st_mode & 0o777 == 0o666 & ~mask


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


def test_padding_leaves_a_multiple_alone_and_has_zeros_where_reflection_ends():
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


def test_voicebank_demand_without_the_held_out_speakers_has_no_valid_split(tmp_path):
    root = voicebank(tmp_path)
    for path in list(root.glob("*trainset*/p226_*")) + list(root.glob("*trainset*/p287_*")):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="valid"):
        PairedAudio(root, "valid", N)


def test_the_pairs_of_the_dns_challenge_belong_together_by_their_number(tmp_path):
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
def test_voicebank_mixed_on_the_fly_keeps_its_speakers_for_validation(tmp_path, layout):
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


def test_speech_and_noise_without_the_held_out_speakers_have_no_valid_split(tmp_path):
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


resident_and_streamed = pytest.mark.parametrize("resident", [True, False])


@resident_and_streamed
def test_pairs_are_cut_at_the_same_place_and_divided_by_the_noisy_peak_of_the_crop(tmp_path, resident):
    clean = sound(10 * N, level=0.05)
    noisy = 3 * clean
    noisy[:N] = 0.9                                      # the peak of the file, in few of its crops
    write(tmp_path / "clean/a.wav", clean)
    write(tmp_path / "noisy/a.wav", noisy)
    dataset = PairedAudio(tmp_path, "train", N, resident=resident)
    x, y = first_batch(dataset, 16)
    assert x.shape == y.shape == (16, N) and x.dtype == torch.float32
    assert y.abs().amax(1).tolist() == pytest.approx([1] * 16)
    away = [dataset[p][1][0] > N for p in range(16)]
    assert sum(away) > 8 and len({dataset[p][1][0] for p in range(16)}) > 8
    torch.testing.assert_close(y[away], 3 * x[away], atol=2e-3, rtol=0)


@resident_and_streamed
@pytest.mark.parametrize("missing", [1, 2, 7, 2000])
def test_a_short_pair_is_centred_in_zeros(tmp_path, resident, missing):
    x = sound(N - missing)
    write(tmp_path / "clean/a.wav", x)
    write(tmp_path / "noisy/a.wav", np.concatenate([x, sound(30)]))        # cut to the shorter
    _, y = first_batch(PairedAudio(tmp_path, "train", N, resident=resident), 1)
    expected = np.pad(x[:, 0], (missing // 2, missing - missing // 2))
    torch.testing.assert_close(y[0], torch.from_numpy(expected / np.abs(x).max()), atol=1e-3, rtol=0)


def test_an_utterance_of_a_pair_is_whole_and_as_long_as_the_shorter(tmp_path):
    write(tmp_path / "clean/a.wav", sound(3 * N))
    write(tmp_path / "noisy/a.wav", sound(3 * N + 5))
    for resident in (True, False):
        name, clean, noisy = PairedAudio(tmp_path, "test", N, resident=resident).utterance(0)
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


@resident_and_streamed
def test_mixtures_come_out_at_the_ratios_asked_for(corpus, resident):
    dataset = mixtures(corpus, snrs=(-3, 4, 11), resident=resident)
    clean, noisy = first_batch(dataset, 30)
    measured = decibel(clean.square().mean(1) / (noisy - clean).square().mean(1))
    drawn = [dataset[p][2][0] for p in range(30)]
    assert measured == pytest.approx(drawn, abs=0.01) and set(drawn) == {-3, 4, 11}
    assert noisy.abs().amax(1).tolist() == pytest.approx([1] * 30)


@resident_and_streamed
def test_a_short_noise_repeats(corpus, resident):
    dataset = mixtures(corpus, resident=resident)
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
    assert_same(batches, take(mixtures(corpus, augmentation=data.Augmentation(babble=0.25), resident=False), 4, workers=2))


def test_every_talker_of_the_babble_is_equally_loud(tmp_path):
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


@resident_and_streamed
def test_starting_at_a_step_equals_skipping_batches(corpus, resident):
    assert_same(take(mixtures(corpus), 6)[4:], take(mixtures(corpus, resident=resident), 2, step=4))
    assert_same(take(mixtures(corpus), 6, rank=1, world=2)[4:], take(mixtures(corpus), 2, step=4, rank=1, world=2))


@resident_and_streamed
def test_so_many_crops_come_again_and_again(corpus, resident):
    """Ten, in batches of four, on two ranks as on one."""
    def rows(batches):
        return [row for pair in batches for row in torch.stack(pair, dim=1)]

    expected = rows(take(mixtures(corpus), 3))[:10]
    whole = rows(take(mixtures(corpus, resident=resident), 6, num_crops=10))
    assert all(torch.equal(row, expected[p % 10]) for p, row in enumerate(whole))
    second = rows(take(mixtures(corpus), 5, 2, rank=1, world=2, num_crops=10, step=1))
    assert all(torch.equal(row, expected[p % 10]) for p, row in zip((6, 7, 10, 11, 14, 15, 18, 19, 22, 23), second))


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_resident(corpus, workers):
    assert_same(take(mixtures(corpus, resident=True), 8), take(mixtures(corpus, resident=False), 8, workers=workers))


def test_a_corpus_too_large_for_memory_is_streamed(corpus, monkeypatch):
    assert mixtures(corpus).resident
    monkeypatch.setattr(data, "RESIDENT_LIMIT", 100000)
    assert not any(source.resident for source in mixtures(corpus).sources)


@resident_and_streamed
def test_a_recording_beyond_full_scale_keeps_its_peaks(tmp_path, resident):
    wave = 3 * tone(100, 16000, level=1)
    quiet, loud = (write(tmp_path / f"{name}.wav", x, subtype="FLOAT") for name, x in (("a", wave / 30), ("b", wave)))
    recordings = Recordings([quiet, loud], resident=resident)
    assert np.abs(recordings.crop(1, 0, 16000) - wave).max() < 2e-4
    assert np.abs(recordings.crop(0, 0, 16000) - wave / 30).max() < 2e-5


@pytest.mark.parametrize("loop", [False, True])
def test_a_crop_is_cut_out_of_the_recording_or_its_repetition(corpus, loop):
    paths = data.list_audio(corpus)
    streamed, resident = Recordings(paths, resident=False), Recordings(paths)
    lengths = resident.lengths
    rng = np.random.default_rng(0)
    indices = rng.integers(len(paths), size=60)
    spare = lengths[indices] - N
    starts = np.where(spare >= 0, rng.integers(np.maximum(spare, 0) + 1), 0 if loop else -(-spare // 2))
    if loop:
        starts[::3] = rng.integers(lengths[indices[::3]])                  # beyond the last whole crop
    for index, start in zip(indices, starts):
        crop = resident.crop(index, start, N, loop)
        assert crop.dtype == np.float32
        assert np.array_equal(crop, streamed.crop(index, start, N, loop))
        where = start + np.arange(N)
        wave = resident.wave(index).numpy()
        inside = (where >= 0) & (where < len(wave))
        assert np.array_equal(crop, wave[where % len(wave)] * (inside | loop))


def test_beside_another_device_workers_cut_and_vary_what_lies_in_memory(corpus):
    varied = dict(augmentation=data.Augmentation(babble=0.3, synthetic_noise=0.5, speech_dropout=0.5, random_eq=0.5))
    dataset = mixtures(corpus, device="meta", **varied)
    assert all(wave.is_meta and wave.shape == (4, N) for batch in take(dataset, 2, workers=2) for wave in batch)
    assert dataset.order[0] is None                      # nothing was drawn in this process
    expected, made = take(mixtures(corpus, **varied), 2), take(mixtures(corpus, resident=False, **varied), 2, workers=2)
    for ours, theirs in zip(itertools.chain(*expected), itertools.chain(*made)):
        torch.testing.assert_close(ours, theirs)         # a worker has one thread, which adds in another order


def test_workers_take_no_random_number_of_the_training(corpus):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(mixtures(corpus, resident=False), 2, workers=2)
    assert torch.equal(before, torch.get_rng_state())


def test_an_utterance_is_the_same_at_every_call_and_cannot_clip(corpus):
    for resident in (True, False):
        dataset = mixtures(corpus, snrs=(-20,), resident=resident)
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


@pytest.mark.parametrize("kind", ["mixed", "babble", "pairs", "streamed"])
def test_a_clean_crop_is_of_no_recording_that_any_noisy_one_holds(kind, voices):
    """One folder serves both sides: half of its recordings each, of babble too; and all of them are used."""
    root = voices / "paired" if kind == "pairs" else voices
    options = dict(snrs=(-20,), augmentation=data.Augmentation(babble=1.0)) if kind == "babble" else {} if kind == "pairs" else dict(snrs=(60,))
    dataset = UnpairedAudio(root, root / ("clean" if kind == "pairs" else "speech"), num_samples=N,
                            resident=kind != "streamed", **options)
    sides = [heard(torch.cat(part)) for part in zip(*take(dataset, 30))]
    assert len(sides[0]) == len(sides[1]) == 4 and not sides[0] & sides[1]


def test_clean_speech_of_another_folder_is_used_whole_and_what_both_share_by_one_side_alone(voices, tmp_path):
    clean, noisy = (heard(torch.cat(part)) for part in zip(*take(
        UnpairedAudio(voices, voices / "other", num_samples=N, snrs=(60,)), 40)))
    assert clean == set(range(8, 16)) and noisy == set(range(8))
    for i in (2, 3, 9):
        (tmp_path / f"{i}.wav").symlink_to(voices / ("speech" if i < 8 else "other") / f"{i}.wav")
    clean, noisy = (heard(torch.cat(part)) for part in zip(*take(
        UnpairedAudio(voices, tmp_path, num_samples=N, snrs=(60,)), 40)))
    assert clean | noisy == {*range(8), 9} and not clean & noisy and {9} < clean <= {2, 3, 9}


@resident_and_streamed
def test_unpaired_batches_are_a_function_of_seed_and_position(voices, resident):
    make = lambda seed=0: UnpairedAudio(voices, voices / "speech", num_samples=N, seed=seed, resident=resident)
    batches = take(make(), 6)
    assert_same(batches[4:], take(make(), 2, step=4))
    assert not any(torch.equal(a[k], b[k]) for a, b in zip(batches, take(make(1), 6)) for k in (0, 1))
    assert all(part.shape == (4, N) and torch.equal(part.abs().amax(1), torch.ones(4)) for b in batches for part in b)
    dataset = make()
    starts = [[side[1][0] for side in dataset[p]] for p in range(50)]
    assert abs(np.corrcoef(starts, rowvar=False)[0, 1]) < 0.5


@pytest.mark.parametrize("large", [0, 1])
def test_worker_processes_read_the_side_that_does_not_fit_in_memory(large, voices, monkeypatch):
    """The clean one or the noisy one: read is what is not in memory, and not by the training process."""
    fits = iter([large == 0, large == 1])                # the noisy side is asked about first
    monkeypatch.setattr(data, "fits_in_memory", lambda paths: next(fits))
    dataset = UnpairedAudio(voices, voices / "other", num_samples=N)
    assert [dataset.sources[0].resident, dataset.noisy.sources[0].resident] == [large == 1, large == 0]
    take(dataset, 1, workers=1)
    assert dataset.order[0] is None and dataset.noisy.order[0] is None     # nothing was drawn in this process


def test_noisy_files_in_the_clean_folder_are_refused_and_so_is_a_single_recording(voices, tmp_path):
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
    with pytest.warns(UserWarning, match="half.wav: nothing sounds"):
        take(dataset, 4)
    with pytest.warns(UserWarning):
        dataset.noisy.note(["noisy side"])
    assert [Path(key.split(":")[0]).name for key in dataset.problems] == ["bad.wav", "half.wav", "noisy side"]


# ---- recordings that cannot be used ----

def short_file(folder):
    return write(folder / "bad.wav", sound(509))


def silent_file(folder):
    return write(folder / "bad.wav", np.zeros(N))


def run_with_one_bad(make, root, resident, count=12):
    """A corpus with one bad recording among three: (dataset after `count` batches, the bad path, batches, warnings)."""
    for seed in range(2):
        write(root / "speech" / f"good{seed}.wav", sound(2 * N, seed=seed))
    bad = make(root / "speech")
    write(root / "noise" / "n.wav", sound(2 * N, seed=9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = MixedAudio(root / "speech", root / "noise", num_samples=N, resident=resident)
        batches = take(dataset, count)
    return dataset, bad, batches, [str(warning.message) for warning in caught]


@resident_and_streamed
@pytest.mark.parametrize("kind", [*BAD, "short", "silent"])
def test_a_bad_recording_is_left_out_with_one_warning_and_a_count(tmp_path, kind, resident):
    make = {"short": short_file, "silent": silent_file}.get(kind) or BAD[kind][0]
    dataset, bad, batches, caught = run_with_one_bad(make, tmp_path, resident)
    assert all(torch.isfinite(part).all() for batch in batches for part in batch)
    assert len(caught) == 1 and caught[0].startswith(f"left out: {bad}")
    (problem, count), = dataset.problems.items()
    assert problem.startswith(str(bad)) and f"left out: {problem}" == caught[0]
    used = {dataset[p][0][0] for p in range(30)}
    assert used == {i for i, path in enumerate(dataset.sources[0].paths) if path != bad}
    seen_in_header = len(dataset) == 2
    assert count == 1 if seen_in_header else count >= 10


@pytest.mark.parametrize("workers", [0, 2])
def test_silence_in_some_crops_leaves_the_others(tmp_path, workers):
    wave = sound(20 * N)
    wave[2 * N:15 * N] = 0
    write(tmp_path / "speech/half.wav", wave)
    write(tmp_path / "noise/n.wav", np.concatenate([np.zeros(3 * N), sound(3 * N, seed=1)[:, 0]]))
    dataset = mixtures(tmp_path, resident=workers == 0)
    with pytest.warns(UserWarning, match="nothing sounds in a crop"):
        batches = take(dataset, 8, workers=workers)
    assert all(part.abs().amax(1).gt(0).all() and torch.isfinite(part).all() for batch in batches for part in batch)
    named = {key.split(": ")[0] for key in dataset.problems}
    assert named == {str(tmp_path / name) for name in ("speech/half.wav", "noise/n.wav")}
    assert min(dataset.problems.values()) > 3


def test_clean_silence_under_noise_is_a_lesson_and_noisy_silence_is_not(tmp_path):
    write(tmp_path / "clean/a.wav", np.zeros(N))
    write(tmp_path / "noisy/a.wav", sound(N))
    clean, noisy = first_batch(PairedAudio(tmp_path, "train", N))
    assert not clean.any() and noisy.abs().amax(1).tolist() == [1] * 4
    write(tmp_path / "noisy/a.wav", np.zeros(N))
    with pytest.raises(AudioError, match="100 crops in a row .*noisy/a.wav: nothing sounds"):
        first_batch(PairedAudio(tmp_path, "train", N))


@resident_and_streamed
def test_a_pair_with_a_bad_partner_is_left_out(tmp_path, resident):
    for name in "abc":
        for side in ("clean", "noisy"):
            write(tmp_path / side / f"{name}.wav", sound(N))
    cut(tmp_path / "noisy/b.wav")
    with pytest.warns(UserWarning, match="left out: .*noisy/b.wav: truncated"):
        dataset = PairedAudio(tmp_path, "train", N, resident=resident)
    assert stems(dataset) == ["a", "c"]
    take(dataset, 3)
    cut(tmp_path / "clean/a.wav")
    (tmp_path / "noisy/c.wav").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(AudioError, match="no pair of .* can be used; the first: .*a.wav"):
        PairedAudio(tmp_path, "train", N, resident=resident)


@resident_and_streamed
def test_no_good_recording_at_all_is_one_clear_error(tmp_path, resident):
    for name in "abc":
        write(tmp_path / "noise" / f"{name}.wav", sound(N))
        (write(tmp_path / "speech" / f"{name}.wav", sound(N))).write_text("no sound")
    with pytest.raises(AudioError, match="none of 3 recordings can be used; the first: .*a.wav: not a readable"):
        mixtures(tmp_path, resident=resident)
