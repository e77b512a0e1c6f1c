"""Recordings as people have them: read to their end or refused by name, written whole, decoded once for a corpus."""

import json
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import commands
import data
import train
from data import AudioError, MixedAudio, PairedAudio, Recordings
from test_data import N, RATES, decibel, sound, tone, write

ROOT = Path(__file__).parents[1]


# ---- formats ----

# suffix, format and subtype for libsndfile, largest error, rate at which it is decoded
FORMATS = [("wav", None, "PCM_U8", 9e-3), ("wav", None, "PCM_16", 1e-4), ("wav", None, "PCM_24", 1e-6),
           ("wav", None, "PCM_32", 1e-6), ("wav", None, "FLOAT", 0), ("wav", None, "DOUBLE", 1e-7),
           ("WAV", "WAVEX", "PCM_24", 1e-6), ("wav", "RF64", "PCM_16", 1e-4), ("w64", "W64", "PCM_16", 1e-4),
           ("au", "AU", "FLOAT", 0), ("caf", "CAF", "PCM_24", 1e-6), ("aiff", None, "PCM_16", 1e-4),
           ("flac", None, "PCM_16", 1e-4), ("flac", None, "PCM_24", 1e-6), ("ogg", None, "VORBIS", 0.08),
           ("opus", "OGG", "OPUS", 0.05), ("ogg", "OGG", "OPUS", 0.05), ("mp3", None, None, 0.05)]


def encode(path, codec, wave, rate):
    """A file by PyAV, in a container and codec that libsndfile does not write; wave float32 (channels, n)."""
    layout = ("mono", "stereo")[len(wave) - 1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=layout)
        frame.rate = rate
        stream.codec_context.open()
        parts = av.AudioResampler(stream.codec_context.format, layout, rate, stream.codec_context.frame_size)
        for part in [*parts.resample(frame), *parts.resample(None), None]:
            container.mux(stream.encode(part))
    return path


@pytest.mark.parametrize("suffix, format, subtype, tolerance", FORMATS)
def test_every_format_is_read_sample_by_sample(tmp_path, suffix, format, subtype, tolerance):
    for channels in (1, 2) if subtype in (None, "VORBIS", "OPUS") else (1, 2, 8):
        expected = np.stack([tone(300 + 100 * c, 16000) for c in range(channels)]).astype(np.float32)
        path = write(tmp_path / f"{channels}.{suffix}", expected.T, subtype=subtype, format=format)
        wave, rate = data.load_audio(path)
        assert wave.dtype == torch.float32 and rate == (48000 if subtype == "OPUS" else 16000)
        assert wave.shape[0] == channels and abs(wave.shape[1] - 16000) <= 512 * (subtype == "VORBIS")
        assert np.abs(wave[:, :15500].numpy() - expected[:, :15500])[:, 800:-800].max() <= tolerance
        info, ours = soundfile.info(path), data.audio_info(path)
        assert (ours.format, ours.subtype, ours.channels) == (info.format, info.subtype, channels)
        assert abs(ours.frames * info.samplerate / ours.samplerate - info.frames) <= 200 * (subtype == "OPUS")


@pytest.mark.parametrize("name, codec, rate", [
    ("x.m4a", "aac", 44100), ("x.mp4", "aac", 16000), ("x.m4a", "alac", 44100), ("x.webm", "libopus", 48000),
    ("x.mka", "aac", 16000)])
def test_recordings_of_phones_and_browsers_are_read(tmp_path, name, codec, rate):
    t = np.arange(rate) / rate
    expected = 0.5 * np.stack([np.sin(2 * np.pi * (f * t + 300 * t ** 2)) for f in (200, 400)]).astype(np.float32)
    path = encode(tmp_path / name, codec, expected, rate)
    assert data.list_audio(tmp_path) == [path]
    wave, own_rate = data.load_audio(path, rate)
    assert own_rate == rate and wave.shape[0] == 2 and abs(wave.shape[1] - rate) <= 2048
    late = np.argmax(np.correlate(wave[0, :9000].numpy(), expected[0, 2000:5000])) - 2000
    assert abs(late) <= 2048
    for ours, theirs in zip(wave.numpy(), expected):
        assert np.corrcoef(ours[4000 + late:rate - 4000 + late], theirs[4000:rate - 4000])[0, 1] > 0.95
    assert abs(data.audio_info(path).frames - wave.shape[1]) <= 2304


def mp3_without_length(path, wave, rate, mode):
    """An MP3 as a stream is recorded: its first frame, which says how long it is, is missing."""
    soundfile.write(path, wave, rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    content = path.read_bytes()
    kbps = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[content[2] >> 4]
    first = 144000 * kbps // (44100, 48000, 32000)[content[2] >> 2 & 3] + (content[2] >> 1 & 1)
    path.write_bytes(content[first:])
    return path


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
def test_an_mp3_without_its_length_is_read_to_the_end(tmp_path, mode):
    wave = sound(48000 * 3)[:, 0]
    wave[48000:96000] = 0                                                  # few bits: the rate varies
    path = mp3_without_length(tmp_path / "x.mp3", wave, 48000, mode)
    loaded = data.load_audio(path, 48000)[0][0].numpy()
    assert len(wave) <= len(loaded) <= len(wave) + 2400
    late = np.argmax(np.correlate(loaded[:6000], wave[1000:3000]))         # an encoder's delay
    assert np.corrcoef(loaded[late - 1000:][:140000], wave[:140000])[0, 1] > 0.7
    assert data.audio_info(path).frames == 0                               # a guess would be wrong


def test_a_whole_mp3_is_never_called_truncated(tmp_path):
    for i, (rate, channels) in enumerate(((44100, 2), (22050, 1), (16000, 1), (48000, 2))):
        path = tmp_path / f"{i}.mp3"
        soundfile.write(path, sound(rate + 777 * i, channels), rate)
        content = path.read_bytes()
        whole = data.load_audio(path, rate)[0]
        assert whole.shape == (channels, rate + 777 * i)
        ape = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0)
        for before, after in ((b"ID3\x03\0\0\0\0\x01\0" + bytes(128), b""), (b"", b"TAG" + bytes(125)), (b"", ape)):
            path.write_bytes(before + content + after)                     # tags at both ends
            loaded = data.load_audio(path, rate)[0]
            assert torch.equal(loaded[:, :-2304], whole[:, :-2304]) and loaded.shape == whole.shape


@pytest.mark.parametrize("subtype, spare", [("VORBIS", 1024), ("OPUS", 0)])
def test_streams_chained_in_one_ogg_are_all_read(tmp_path, subtype, spare):
    for i, n in enumerate((16000, 24000, 8000)):
        write(tmp_path / f"{i}.ogg", tone(300, 16000, n / 16000), 16000, subtype, "OGG")
    chain = tmp_path / "chain.ogg"
    chain.write_bytes(b"".join((tmp_path / f"{i}.ogg").read_bytes() for i in range(3)))
    loaded = data.load_audio(chain)[0]
    assert 48000 <= loaded.shape[1] <= 48000 + spare and loaded[0, 41000:47000].std() > 0.3
    commands.enhance_file(train.load_checkpoint("consistency"), chain, tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").duration == pytest.approx(3, abs=0.07)
    write(tmp_path / "2.ogg", sound(9000, 2), 16000, subtype, "OGG")
    chain.write_bytes(b"".join((tmp_path / f"{i}.ogg").read_bytes() for i in (0, 2)))
    with pytest.raises(AudioError, match="chain.ogg: not a readable audio file .*convert it"):
        data.load_audio(chain)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0])
def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path, size):
    path = write(tmp_path / "streamed.wav", sound(5000))
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", size)
    path.write_bytes(content)
    assert data.load_audio(path)[0].shape == (1, 5000)


@pytest.mark.parametrize("extra", [2, 36, 44])
def test_a_header_that_counts_itself_is_forgiven(tmp_path, extra):
    path = write(tmp_path / "x.wav", sound(8000))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at:at + 4] = struct.pack("<I", struct.unpack("<I", content[at:at + 4])[0] + extra)
    path.write_bytes(content)
    assert data.load_audio(path)[0].shape == (1, 8000)


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "x.flac", sound(20000))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0                                                    # 36 bits of STREAMINFO: total samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert data.load_audio(path)[0].shape == (1, 20000) and data.audio_info(path).frames == 0
    commands.enhance_file(train.load_checkpoint("consistency"), path, tmp_path / "out.flac")
    assert soundfile.info(tmp_path / "out.flac").frames == 20000


def odd_name(folder):
    """A recording whose name is Latin-1, which no UTF-8 can say."""
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.wav"))
    os.rename(write(folder / "tmp.wav", sound(4000)), odd)
    return odd


def test_a_name_in_latin_1_is_read_enhanced_and_trained_on(tmp_path):
    odd = odd_name(tmp_path)
    assert data.load_audio(odd)[0].shape == (1, 4000) and data.audio_info(odd).frames == 4000
    commands.enhance_file(train.load_checkpoint("consistency"), odd, tmp_path / "out" / odd.name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [odd.name]
    assert Recordings([odd], tmp_path / "corpora").lengths == [4000]


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    write(tmp_path / "take:1.wav", sound(4000))
    monkeypatch.chdir(tmp_path)
    assert data.load_audio("take:1.wav")[0].shape == (1, 4000)


# ---- resampling and memory ----

@pytest.mark.parametrize("rate", RATES)
def test_blocks_resample_as_the_whole_at_once(tmp_path, rate):
    for n in (1, 2, 77, 1001, 12345, 30001):
        x = sound(n, 2)
        path = write(tmp_path / "x.wav", x, rate, "FLOAT")
        blocked = np.concatenate(list(data.read_blocks(path, block=4096)))
        expected = x if rate == 16000 else soxr.resample(x, rate, 16000, "HQ")
        assert len(blocked) == len(expected) and abs(len(blocked) - n * 16000 / rate) <= 0.5
        assert np.abs(blocked - expected).max(initial=0) < 1e-6


@pytest.mark.parametrize("rate", [22050, 32000, 44100, 48000, 96000])
def test_resampling_is_flat_at_7_khz_and_has_no_alias(tmp_path, rate):
    power = lambda wave: decibel(2 * wave[0, 2000:-2000].square().mean() / 0.5 ** 2)
    assert abs(power(data.load_audio(write(tmp_path / "x.wav", tone(7000, rate), rate, "FLOAT"))[0])) < 0.1
    if rate != 32000:
        assert power(data.load_audio(write(tmp_path / "x.wav", tone(9000, rate), rate, "FLOAT"))[0]) < -100


def test_a_wav_of_ten_minutes_is_read_in_flat_memory(tmp_path):
    minute = np.tile(sound(44100 * 6, 2), (10, 1))
    with soundfile.SoundFile(str(tmp_path / "long.wav"), "w", 44100, 2, "PCM_16") as file:
        for _ in range(10):
            file.write(minute)                           # 212 MB as float32
    script = ("import sys, data\n"
              "sys.path.insert(0, 'tests')\n"
              "from helpers import peak\n"
              "for i, block in enumerate(data.read_blocks(sys.argv[1])):\n"
              "    start = peak() if i == 1 else locals().get('start')\n"
              "print(i, peak() - start)")
    command = [sys.executable, "-c", script, str(tmp_path / "long.wav")]
    blocks, megabytes = subprocess.check_output(command, text=True, cwd=ROOT).split()
    assert int(blocks) > 80 and float(megabytes) < 10


# ---- damage ----

def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    return path


def with_nan(samples):
    wave = sound(samples)
    wave[samples // 2] = np.nan
    return wave


def broken(path, count=200):
    """A file with so many bytes in its middle replaced."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at:at + count] = np.random.default_rng(0).integers(0, 256, count, np.uint8).tobytes()
    path.write_bytes(content)
    return path


def playlist(folder):
    """A file that FFmpeg would take for a list of others to open."""
    os.rename(write(folder / "part.flac", sound(N)), folder / "part.bin")
    (folder / "bad.wav").write_text("ffconcat version 1.0\nfile 'part.bin'\n")
    return folder / "bad.wav"


# What is wrong -> (a file of that kind, a word of the message)
BAD = {
    "empty": (lambda d: (d / "bad.wav", (d / "bad.wav").touch())[0], "empty"),
    "text": (lambda d: (d / "bad.wav", (d / "bad.wav").write_text("not sound at all" * 50))[0], "not a readable"),
    "empty flac": (lambda d: (d / "bad.flac", (d / "bad.flac").touch())[0], "empty"),
    "playlist": (playlist, "not a readable"),
    "no samples": (lambda d: write(d / "bad.wav", sound(0)), "no samples"),
    "broken flac": (lambda d: broken(write(d / "bad.flac", sound(48123))), "damaged"),
    "cut mp3": (lambda d: cut(write(d / "bad.mp3", sound(4 * N))), "truncated"),
    "cut m4a": (lambda d: cut(encode(d / "bad.m4a", "aac", sound(20 * N).T, 16000)), "not a readable"),
    "cut webm": (lambda d: cut(encode(d / "bad.webm", "libopus", sound(20 * N).T, 48000)), "truncated"),
    "nan": (lambda d: write(d / "bad.wav", with_nan(N), subtype="FLOAT"), "NaN"),
    "infinite": (lambda d: write(d / "bad.wav", with_nan(N) * 0 + np.inf, 44100, "FLOAT"), "infinite"),
}
for suffix, format, subtype in (
        ("wav", "WAV", "PCM_16"), ("wav", "WAV", "PCM_24"), ("wav", "WAV", "FLOAT"), ("wav", "RF64", "PCM_16"),
        ("w64", "W64", "PCM_16"), ("aiff", "AIFF", "PCM_16"), ("au", "AU", "PCM_16"), ("caf", "CAF", "PCM_16"),
        ("flac", "FLAC", "PCM_16")):
    BAD[f"cut {format} {subtype}"] = (lambda d, suffix=suffix, format=format, subtype=subtype: cut(
        write(d / f"bad.{suffix}", sound(16001, 2), 16000, subtype, format), 0.97), "truncated")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_by_name(tmp_path, kind):
    make, word = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(AudioError, match=word) as error:
        data.load_audio(path)
    assert str(path) in str(error.value)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    for path in (tmp_path / "gone.wav", tmp_path):
        for function in (data.load_audio, data.audio_info):
            with pytest.raises(AudioError, match=path.name):
                function(path)


@pytest.mark.parametrize("kind", ["broken flac", "cut WAV PCM_16", "cut AIFF PCM_16", "cut mp3"])
def test_enhance_warns_of_what_is_missing_and_goes_on(tmp_path, kind):
    path = BAD[kind][0](tmp_path)
    with pytest.warns(UserWarning, match="bad.*truncated or damaged"):
        commands.enhance_file(train.load_checkpoint("consistency"), path, tmp_path / "out.wav")
    out, _ = soundfile.read(tmp_path / "out.wav", always_2d=True)
    assert 0.5 * 4 * N < len(out) and np.isfinite(out).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20000), st.integers(1, 8), st.one_of(st.sampled_from(RATES), st.integers(8000, 96000)),
       st.sampled_from(FORMATS), st.sampled_from(["noise", "silence", "dc", "full scale"]), st.floats(1e-7, 1.0))
def test_whatever_is_written_loads_as_long_or_is_refused(tmp_path_factory, samples, channels, rate, kind, content, level):
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
    spare = 2304 * 16000 / rate if subtype in ("VORBIS", "OPUS", None) else 1
    assert own_rate == (48000 if subtype == "OPUS" else rate) and torch.isfinite(loaded).all()
    assert loaded.shape[0] == channels and abs(loaded.shape[1] - samples * 16000 / rate) <= spare


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 10 ** 6), st.integers(1, 400), st.integers(0, 99))
def test_no_broken_bytes_end_in_a_traceback(tmp_path_factory, kind, at, count, seed):
    suffix, format, subtype, _ = kind
    path = write(tmp_path_factory.mktemp("fuzz") / f"x.{suffix}", sound(8000), 16000, subtype, format)
    content = bytearray(path.read_bytes())
    at %= len(content) // (1 if seed % 2 else 50)        # anywhere, or in the header
    content[at:at + count] = np.random.default_rng(seed).integers(0, 256, count, np.uint8).tobytes()
    path.write_bytes(content)
    for function in (data.audio_info, data.load_audio):
        try:
            function(path)
        except AudioError as error:
            assert str(path) in str(error)


# ---- folders ----

def test_list_audio_looks_below_and_past_other_files(tmp_path):
    for name in ("b.FLAC", "a.wav", "deep/er/c.ogg", "._a.wav", "notes.txt", "fake.wav/d.mp3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match="not read: 1 .1 .txt"):
        found = [str(path.relative_to(tmp_path)) for path in data.list_audio(tmp_path)]
    assert found == ["a.wav", "b.FLAC", "deep/er/c.ogg", "fake.wav/d.mp3"]
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no audio file .*none"):
        data.list_audio(tmp_path / "none")


def test_links_are_followed_once_and_dot_folders_are_not(tmp_path):
    write(tmp_path / "elsewhere/voice/a.wav", sound(1000))
    corpus = tmp_path / "corpus"
    for name in ("b.wav", ".git/c.wav", ".ipynb_checkpoints/d.wav", "e.amr", "f.amr", "README"):
        path = corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (corpus / "speaker").symlink_to(tmp_path / "elsewhere/voice")
    (corpus / "again").symlink_to(corpus)
    (corpus / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.warns(UserWarning, match=r"corpus: not read: 4 \(2 .amr, 1 broken link, 1 no suffix\)"):
        paths = data.list_audio(corpus)
    assert [str(path.relative_to(corpus)) for path in paths] == ["b.wav", "speaker/a.wav"]


def test_two_files_of_one_name_are_not_paired_by_chance(tmp_path):
    for name in ("clean/a.wav", "clean/a.flac", "noisy/a.wav"):
        write(tmp_path / name, sound(1000))
    with pytest.raises(ValueError, match="same name but for the suffix; which one"):
        data.paired_paths(tmp_path, "train")


def test_what_cannot_be_enhanced_is_named_and_the_rest_done(tmp_path, capsys):
    import sgmse
    from helpers import run_command
    train.save_checkpoint(tmp_path / "w.safetensors", sgmse.ScoreSDE(sgmse.Config(**sgmse.PRESETS["tiny"] | {"N": 1})))
    good = write(tmp_path / "gut \u00e4\u00f6\u00fc.wav", sound(4000))
    raw = tmp_path / "x.raw"
    raw.write_bytes(bytes(9000))
    odd = odd_name(tmp_path)
    assert run_command(sgmse.ScoreSDE, "enhance", raw, odd, good, "--out", tmp_path / "out", "--checkpoint",
                       tmp_path / "w.safetensors") == 1
    assert f"not enhanced: {raw}: not a readable" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {good.name, odd.name}


def test_every_format_that_is_read_is_enhanced_by_command(tmp_path, capsys):
    """M4A and WebM, which nobody writes here, come out as FLAC, as other lossy formats do."""
    import sgmse
    from helpers import run_command
    train.save_checkpoint(tmp_path / "w.safetensors", sgmse.ScoreSDE(sgmse.Config(**sgmse.PRESETS["tiny"] | {"N": 1})))
    folder = tmp_path / "in"
    folder.mkdir()
    encode(folder / "a.m4a", "aac", sound(16000).T, 16000)
    encode(folder / "b.webm", "libopus", sound(48000).T, 48000)
    for name in ("c.mp3", "d.ogg", "e.caf", "f.aiff"):
        write(folder / name, sound(16000))
    assert run_command(sgmse.ScoreSDE, "enhance", folder, "--out", tmp_path / "out", "--checkpoint",
                       tmp_path / "w.safetensors") == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.flac", "b.flac", "c.flac", "d.flac", "e.caf", "f.aiff"]


# ---- writing ----

@pytest.mark.parametrize("suffix, expected", [
    ("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III"),
    ("aif", "PCM_16"), ("AIFF", "PCM_16")])
def test_the_suffix_chooses_a_format_that_is_read_back(tmp_path, suffix, expected):
    path = tmp_path / "new" / f"x.{suffix}"
    wave = torch.from_numpy(tone(440, 16000, 0.5)).float()
    data.save_audio(path, torch.stack([wave, -wave]), 16000)
    assert soundfile.info(str(path)).subtype == expected
    back = data.load_audio(path)[0][:, :7500]
    assert back.shape == (2, 7500) and (back[0] - wave[:7500])[800:-800].abs().max() < 0.05
    data.save_audio(path, wave, 16000)
    assert data.load_audio(path)[0].shape[0] == 1


@pytest.mark.parametrize("name, rate", [("x.m4a", 16000), ("x", 16000), ("x.opus", 44100), ("x.mp3", 96000)])
def test_a_format_nobody_can_write_is_named_and_leaves_nothing(tmp_path, name, rate):
    with pytest.raises(AudioError, match=f"{name}: libsndfile cannot write .* {rate} Hz.*WAV supports"):
        data.save_audio(tmp_path / name, torch.zeros(1000), rate)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format, subtype, kept", [
    ("RF64", "PCM_24", "PCM_24"), ("RF64", "FLOAT", "FLOAT"), ("WAV", "IMA_ADPCM", "PCM_16"), ("WAV", "ULAW", "ULAW"),
    ("WAV", "PCM_U8", "PCM_U8"), ("W64", "PCM_24", "PCM_24"), ("AU", "FLOAT", "FLOAT"), ("CAF", "PCM_24", "PCM_24")])
def test_output_has_the_sample_format_and_length_of_the_input(tmp_path, format, subtype, kept):
    suffix = "wav" if format in ("WAV", "RF64") else format.lower()
    path, out = tmp_path / f"x.{suffix}", tmp_path / "out" / f"x.{suffix}"
    soundfile.write(path, sound(8001), 16000, subtype, format=format)
    commands.enhance_file(train.load_checkpoint("consistency"), path, out)
    info, frames = soundfile.info(out), soundfile.info(path).frames
    assert info.subtype == kept and abs(info.frames - frames) <= 400 * (subtype == "IMA_ADPCM")


def test_a_wav_beyond_4_gib_is_written_as_rf64(tmp_path):
    with data.audio_writer(tmp_path / "x.wav", 48000, 2, "FLOAT", frames=1 << 30) as file:
        file.write(sound(100, 2))
    assert soundfile.info(tmp_path / "x.wav").format == "RF64"


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


def test_an_exception_while_writing_keeps_the_old_file(tmp_path):
    path = write(tmp_path / "x.wav", sound(100))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with data.audio_writer(path, 16000, 1) as writer:
            writer.write(sound(50000))
            assert path.read_bytes() == before           # and while it is being written
            raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("samples", [200000, 12000])     # of the second only what the codec writes last is too much
def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, suffix, samples):
    path = write(tmp_path / f"x.{suffix}", sound(100))
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"x.{suffix} could not be written, .* free some space"):
            data.save_audio(path, sound(samples).T, 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_output_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/x.wav could not be written.*choose a folder"):
        data.save_audio(tmp_path / "file/x.wav", torch.zeros(100), 16000)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_are_what_the_umask_says(tmp_path, mask):
    old = os.umask(mask)
    try:
        data.save_audio(tmp_path / "x.wav", torch.zeros(100), 16000)
    finally:
        os.umask(old)
    assert (tmp_path / "x.wav").stat().st_mode & 0o777 == 0o666 & ~mask


# ---- a corpus is decoded once ----

@pytest.fixture
def folder(tmp_path):
    """Three recordings, one of them stereo, one resampled."""
    for i, (rate, channels) in enumerate(((16000, 1), (16000, 2), (44100, 1))):
        write(tmp_path / f"voices/{i}.wav", sound(rate, channels, seed=i), rate)
    return tmp_path


def count_decoding(monkeypatch):
    """List of the names that are decoded from now on."""
    names, decode = [], data.decode
    monkeypatch.setattr(data, "decode", lambda path: names.append(Path(path).name) or decode(path))
    return names


def test_the_second_opening_decodes_nothing(folder, monkeypatch):
    names = count_decoding(monkeypatch)
    first = Recordings(data.list_audio(folder / "voices"), folder / "corpora")
    assert sorted(names) == ["0.wav", "1.wav", "2.wav"]
    second = Recordings(data.list_audio(folder / "voices"), folder / "corpora")
    assert len(names) == 3 and second.identity == first.identity
    for i in range(3):
        expected = data.load_audio(folder / f"voices/{i}.wav")[0].mean(0)
        assert torch.equal(first.wave(i), second.wave(i)) and (first.wave(i) - expected).abs().max() < 2e-5
    files = {path.suffix for path in (folder / "corpora").iterdir()}
    assert files == {".npy", ".json", ".lock"}
    [file] = (folder / "corpora").glob("*.npy")
    mapped = np.load(file, mmap_mode="r")                                  # as numpy knows it
    assert mapped.dtype == np.int16 and len(mapped) == 48000


@pytest.mark.parametrize("change", ["added", "longer", "touched"])
def test_a_changed_or_added_file_makes_a_new_map(folder, change, monkeypatch):
    before = Recordings(data.list_audio(folder / "voices"), folder / "corpora")
    names = count_decoding(monkeypatch)
    if change == "touched":
        os.utime(folder / "voices/1.wav", (1, 1))
    else:
        write(folder / f"voices/{9 if change == 'added' else 1}.wav", sound(20000))
    after = Recordings(data.list_audio(folder / "voices"), folder / "corpora")
    assert names and (after.identity == before.identity) == (change == "touched")
    assert after.lengths[-1 if change == "added" else 1] == (16000 if change == "touched" else 20000)


def test_identity_is_that_of_the_recordings_not_of_their_place(folder):
    for name, samples in (("speech/s/1", 16000), ("speech/t/2", 12000), ("noise/3", 12000)):
        write(folder / f"a/{name}.wav", sound(samples))
    before = data.open_data(folder / "a", "train", num_samples=N).identity
    assert set(before) == {"speech", "noise"} and before["speech"]["recordings"] == 2
    assert before["speech"]["samples"] == 28000 and json.loads(json.dumps(before)) == before
    (folder / "a").rename(folder / "elsewhere")
    assert data.open_data(folder / "elsewhere", "train", num_samples=N, seed=3).identity == before
    unpaired = data.UnpairedAudio(folder / "elsewhere", folder / "voices", num_samples=N).identity
    assert unpaired["unpaired"]["recordings"] == 3 and unpaired["speech"] == before["speech"]
    write(folder / "elsewhere/speech/t/3.wav", sound(12000))
    other = data.open_data(folder / "elsewhere", "train", num_samples=N).identity
    assert other["speech"] != before["speech"] and other["noise"] == before["noise"]
    write(folder / "elsewhere/speech/t/3.wav", sound(100))                 # too short: the same as none is in samples,
    short = data.open_data(folder / "elsewhere", "train", num_samples=N).identity          # but not in names
    assert short["speech"]["samples"] == 28000 and short["speech"]["hash"] != before["speech"]["hash"]


OPENS = """
import os, sys, time
sys.path.insert(0, {root!r})
import data
decode = data.decode
def slow(path):
    os.write(1, b"decoding\\n")                         # whole, whichever thread writes
    time.sleep({seconds})
    return decode(path)
data.decode = slow
recordings = data.Recordings(data.list_audio(sys.argv[1]), sys.argv[2])
print(recordings.identity["hash"])
"""


def opening(folder, seconds):
    """A process that opens the corpus, so slowly."""
    script = OPENS.format(root=str(ROOT), seconds=seconds)
    return subprocess.Popen([sys.executable, "-c", script, folder / "voices", folder / "corpora"], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_a_kill_while_decoding_leaves_a_usable_state(folder):
    process = opening(folder, 60)
    assert process.stdout.readline() == "decoding\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((folder / "corpora").glob("*.npy"))
    started = time.monotonic()
    recordings = Recordings(data.list_audio(folder / "voices"), folder / "corpora")
    assert recordings.lengths.tolist() == [16000] * 3 and time.monotonic() - started < 30
    assert not list((folder / "corpora").glob("*.part"))


def test_two_processes_decode_one_corpus_once(folder):
    outputs = [process.communicate()[0].split() for process in (opening(folder, 0.5), opening(folder, 0.5))]
    assert sum(line == "decoding" for lines in outputs for line in lines) == 3
    assert outputs[0][-1] == outputs[1][-1] != "decoding"


def test_without_a_folder_no_file_is_left_behind(folder, monkeypatch):
    (folder / "temporary").mkdir()
    monkeypatch.setattr(data.tempfile, "tempdir", str(folder / "temporary"))
    recordings = Recordings(data.list_audio(folder / "voices"))
    assert not list((folder / "temporary").iterdir()) and recordings.wave(0).abs().max() > 0.1


def test_a_disk_too_small_for_the_corpus_is_named(folder):
    limits, old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match="npy could not be written.*free some space"):
            Recordings(data.list_audio(folder / "voices"), folder / "corpora")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert [path.suffix for path in (folder / "corpora").iterdir()] == [".lock"]


def test_a_float_recording_beyond_full_scale_keeps_its_peaks(tmp_path):
    wave = 3 * tone(100, 16000, level=1)
    quiet, loud = (write(tmp_path / f"{name}.wav", x, subtype="FLOAT") for name, x in (("a", wave / 30), ("b", wave)))
    recordings = Recordings([quiet, loud])
    assert np.abs(recordings.crop(1, 0, 16000) - wave).max() < 2e-4
    assert np.abs(recordings.crop(0, 0, 16000) - wave / 30).max() < 2e-5


def own_memory(recordings):
    """MB that this process does not share with the file, after every sample was read."""
    for index in range(len(recordings.paths)):
        recordings.crop(index, 0, 160000)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1000


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what is shared")
def test_a_corpus_costs_no_process_memory_of_its_own(tmp_path):
    paths = [write(tmp_path / f"{i}.wav", sound(160000, seed=i)) for i in range(200)]      # 64 MB of int16
    Recordings(paths, tmp_path / "corpora")
    before = own_memory(Recordings(paths[:1], tmp_path / "corpora"))
    recordings = Recordings(paths, tmp_path / "corpora")
    assert own_memory(recordings) - before < 20
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(own_memory(recordings)))
    process.start()
    assert queue.get(timeout=60) - before < 20           # what a worker inherits
    process.join()


# ---- recordings that cannot be used ----

def run_with_one_bad(make, root, count=12):
    """A corpus with one bad recording among three: (dataset after `count` batches, the bad path, batches, warnings)."""
    for seed in range(2):
        write(root / "speech" / f"good{seed}.wav", sound(2 * N, seed=seed))
    bad = make(root / "speech")
    write(root / "noise" / "n.wav", sound(2 * N, seed=9))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = MixedAudio(root / "speech", root / "noise", num_samples=N, corpora=root / "corpora")
        loader = data.batches(dataset, 4)
        batches = [next(loader) for _ in range(count)]
    return dataset, bad, batches, [str(warning.message) for warning in caught]


SHORT_OR_SILENT = {"short": lambda d: write(d / "bad.wav", sound(509)),
                   "silent": lambda d: write(d / "bad.wav", np.zeros(N))}


@pytest.mark.parametrize("kind", [*(kind for kind in BAD if kind != "playlist"), *SHORT_OR_SILENT])
def test_a_bad_recording_is_left_out_with_one_warning(tmp_path, kind):
    make = SHORT_OR_SILENT.get(kind) or BAD[kind][0]
    for _ in range(2):                                   # decoded, and mapped
        dataset, bad, batches, caught = run_with_one_bad(make, tmp_path)
        assert all(torch.isfinite(part).all() for batch in batches for part in batch)
        assert len(caught) == 1 and caught[0].startswith(f"left out: {bad}")
        (problem, count), = dataset.problems.items()
        assert problem.startswith(str(bad)) and f"left out: {problem}" == caught[0]
        used = {dataset[p][0][0] for p in range(30)}
        assert used == {i for i, path in enumerate(dataset.sources[0].paths) if path != bad}
        assert len(dataset) == 2 + (kind == "silent") and (count >= 10) == (kind == "silent")


def test_a_pair_with_a_bad_partner_is_left_out(tmp_path):
    for name in "abc":
        for side in ("clean", "noisy"):
            write(tmp_path / side / f"{name}.wav", sound(N))
    cut(tmp_path / "noisy/b.wav")
    with pytest.warns(UserWarning, match="left out: .*noisy/b.wav: truncated"):
        dataset = PairedAudio(tmp_path, "train", N)
    assert [dataset.utterance(i)[0] for i in range(len(dataset))] == ["a", "c"]
    cut(tmp_path / "clean/a.wav")
    (tmp_path / "noisy/c.wav").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(AudioError, match="no pair of .* can be used; the first: .*a.wav"):
        PairedAudio(tmp_path, "train", N)


def test_no_good_recording_at_all_is_one_clear_error(tmp_path):
    for name in "abc":
        write(tmp_path / "noise" / f"{name}.wav", sound(N))
        (write(tmp_path / "speech" / f"{name}.wav", sound(N))).write_text("no sound")
    with pytest.raises(AudioError, match="none of 3 recordings can be used; the first: .*a.wav: not a readable"):
        MixedAudio(tmp_path / "speech", tmp_path / "noise", num_samples=N, corpora=tmp_path / "corpora")
