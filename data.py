"""Sound in and out: the compressed spectrogram, audio files, and endless batches of clean and noisy crops.

    Spectrogram                STFT with amplitude compression, and back, as in SGMSE+ (arXiv 2208.05830)
    in_spectrogram             transform and padding around a function of spectrograms
    enhance_normalised         gain, offset, clicks and pauses around a function of waves
    mix_at_snr                 speech + noise at a given signal-to-noise ratio

    load_audio, save_audio     any common file, to its end; written by rename, never half
    list_audio                 the recordings below a folder, and a line about what is none
    compute_once               an array that is kept in a file: room responses, a separator's estimates

    PairedAudio                folders of clean and noisy files with the same names
    MixedAudio                 any folder of speech, any folder of noise, mixed anew every epoch
    UnpairedAudio              noisy crops of either, clean crops of recordings that are in none of them
    open_data                  finds out which of them a folder is
    batches                    (clean, noisy) float32 (B, L), both divided by the level of the noisy crop

Which crop a batch holds is a pure function of seed and position, so that a run resumed at step n, one with other
workers and one on other hardware all see the same data. A corpus that fits in memory is decoded once into one int16
array; of a larger one only the crop is read. Beside a GPU, and where files are read, worker processes cut and vary the
crops; rooms, ratios and levels are batched tensor operations on the training device.

Tutorial: tutorials/1_sound.ipynb
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import math
import os
import re
import struct
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import miniaudio
import numpy as np
import soundfile
import soxr
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

SAMPLE_RATE = 16000                                      # Hz, of everything inside
SILENT_PEAK = 8 / 32768                                  # 8 LSB of 16 bits: what stays below is silence


# ------------------------------------------------------------------------------------------------ spectrogram

@dataclass(frozen=True)
class SpectrogramConfig:
    """Constants of the spectrogram, part of every method's Config; the defaults are those of SGMSE+."""
    n_fft: Annotated[int, "[1, inf)"] = 510                 # STFT window, samples
    hop_length: Annotated[int, "[1, inf)"] = 128            # samples
    num_frames: Annotated[int, "[1, inf)"] = 256            # frames of a training crop
    exponent: Annotated[float, "(0, inf)"] = 0.5            # amplitude compression of the spectrogram
    factor: Annotated[float, "(0, inf)"] = 0.15             # its scale
    pad_mode: Literal["constant", "reflect"] = "constant"  # frames added up to what the network can halve: zeros or not
    normalize: Literal["peak", "robust"] = "peak"  # level 1: the peak (published), or one that no click moves (ours)


class Spectrogram(nn.Module):
    """STFT and amplitude compression c -> factor |c|^exponent e^(i angle c), and back, as in SGMSE+.

    forward: (..., L) -> complex (..., F, T), F = n_fft // 2 + 1, T = 1 + ceil(L / hop_length). inverse: the way back.
    510 makes F = 256, which the network can halve. exponent 1 only scales; transform "log" is factor log(1 + |c|),
    "none" neither compresses nor scales. window: "hann" or "sqrthann", both periodic.

    The frames are those of torch.stft, and where L is no multiple of the hop one more: behind the centre of the last
    frame the windows fade to nothing, and the inverse would divide by that.
    """

    def __init__(self, n_fft=510, hop_length=128, exponent=0.5, factor=0.15, window="hann", transform="exponent"):
        super().__init__()
        if transform not in ("exponent", "log", "none") or window not in ("hann", "sqrthann"):
            raise ValueError(f"transform is exponent, log or none, window hann or sqrthann; got {transform}, {window}")
        if not 1 <= hop_length <= n_fft // 2 + 1:        # or a sample falls between two windows
            raise ValueError(f"--hop-length: expected at most {n_fft // 2 + 1}, half of --n-fft; got {hop_length}")
        self.n_fft, self.hop_length, self.exponent, self.factor = n_fft, hop_length, exponent, factor
        self.transform = transform
        hann = torch.hann_window(n_fft, periodic=True)
        self.register_buffer("window", hann.sqrt() if window == "sqrthann" else hann, persistent=False)

    def stft(self, wave):
        if wave.shape[-1] <= self.n_fft // 2:
            raise ValueError(f"expected more than {self.n_fft // 2} samples, half a window; got {wave.shape[-1]}")
        flat = wave.reshape(-1, wave.shape[-1])                            # (N, L)
        flat = F.pad(flat[:, None], (self.n_fft // 2,) * 2, "reflect")[:, 0]
        flat = F.pad(flat, (0, -wave.shape[-1] % self.hop_length))
        spec = torch.stft(flat, self.n_fft, self.hop_length, window=self.window.to(wave.dtype), center=False,
                          return_complex=True)                             # (N, F, T)
        return spec.reshape(*wave.shape[:-1], *spec.shape[-2:])

    def istft(self, spec, length):
        flat = spec.reshape(-1, *spec.shape[-2:])
        wave = torch.istft(flat, self.n_fft, self.hop_length, window=self.window.to(spec.real.dtype), center=True,
                           length=length)
        return wave.reshape(*spec.shape[:-2], length)

    def compress(self, c):
        if self.transform == "log":
            # The bound on |c| keeps value and gradient finite at digital silence, here and below.
            a = c.abs().clamp(min=1e-8)
            return self.factor * a.log1p() / a * c
        if self.transform == "none":
            return c
        return self.factor * c.abs().clamp(min=1e-8) ** (self.exponent - 1) * c

    def decompress(self, c):
        if self.transform == "log":
            a = c.abs().clamp(min=1e-8)
            return (a / self.factor).expm1() / a * c
        if self.transform == "none":
            return c
        c = c / self.factor
        return c if self.exponent == 1 else c.abs().clamp(min=1e-8) ** (1 / self.exponent - 1) * c

    def forward(self, wave):
        return self.compress(self.stft(wave))

    def inverse(self, spec, length):
        return self.istft(self.decompress(spec), length)

    def samples(self, frames):
        """Number of samples of a crop that fills exactly `frames` frames."""
        return (frames - 1) * self.hop_length


def pad_frames(spec, multiple, mode="constant"):
    """(..., F, T) -> (..., F, T'), T' the next multiple of `multiple`; added on the right, zeros or "reflect"."""
    missing = -spec.shape[-1] % multiple
    if mode == "reflect" and missing < spec.shape[-1]:   # else there is not enough to reflect
        return torch.cat([spec, spec[..., -1 - missing:-1].flip(-1)], dim=-1)
    return F.pad(spec, (0, missing))


def per_bin(a):
    """(B,) -> (B, 1, 1, 1), to scale a spectrogram."""
    return a[:, None, None, None]


def mix_at_snr(speech, noise, snr_db):
    """speech + g noise, with g such that their mean powers differ by snr_db. (..., L), (..., L), dB -> (..., L)."""
    snr_db = torch.as_tensor(snr_db, dtype=speech.dtype, device=speech.device)
    power_ratio = speech.square().mean(-1) / noise.square().mean(-1)
    gain = (power_ratio / 10 ** (snr_db / 10)).sqrt()
    return speech + gain[..., None] * noise


def in_spectrogram(enhance, wave, spectrogram, multiple=1, pad_mode="constant"):
    """Transform and padding around a function of spectrograms: waves (B, L) or (B, C, L) -> wave (B, L).

    enhance: function, complex (B, C, F, T) with T a multiple of `multiple` -> complex (B, 1, F, T); C is 1 for (B, L).
    """
    y = spectrogram(wave if wave.ndim == 3 else wave[:, None])             # (B, C, F, T)
    x = enhance(pad_frames(y, multiple, pad_mode))[..., :y.shape[-1]]      # (B, 1, F, T)
    return spectrogram.inverse(x[:, 0], wave.shape[-1])


# --------------------------------------------------------------------------------- gain and pauses

LOUDEST = 0.002      # fraction of the samples of a second that does not count towards its level: 2 ms
TO_PEAK = 1.33       # from there to the peak, on average over noisy crops of 1 and 2 s
LIMIT = 1.5          # samples beyond this multiple of the level are clipped to it: clicks
FLOOR = 1e-3         # the gain never exceeds that of the loudest second by more: 60 dB
PAUSE = 34           # dB below the loudest second, from which on a frame counts as a pause
FRAME = 320          # samples of such a frame: 20 ms
MARGIN = 4           # frames beside an active one that are active, too: 80 ms
GAP = 12             # gaps between them of less than twice as many frames are active: half a second
EDGE = 4000          # samples of reflected signal at both ends, so that no network starts cold


def click_robust_peaks(wave):
    """Peak of each second, every half second, without its loudest 2 ms: (..., L) -> (..., n)."""
    size = min(wave.shape[-1], SAMPLE_RATE)
    hop = max(size // 2, 1)
    seconds = F.pad(wave, (0, -(wave.shape[-1] - size) % hop)).unfold(-1, size, hop).abs()
    return TO_PEAK * seconds.kthvalue(math.ceil((1 - LOUDEST) * size), -1).values


def click_robust_peak(wave):
    """That of the loudest second, (..., L) -> (..., 1): neither clicks nor pauses move it."""
    return click_robust_peaks(wave).amax(-1, keepdim=True)


def riding_gain(wave):
    """Level of the signal around each sample, (B, M, L) -> (B, 1, L), the same for all M channels.

    The levels of whole seconds, at least FLOOR times the loudest, are interpolated in dB and
    smoothed over half a second, so that a quiet speaker after a loud one reaches the network
    at the level of training.
    """
    levels = click_robust_peaks(wave).amax(1, keepdim=True)                # (B, 1, n)
    levels = levels.clamp(min=1e-8).maximum(FLOOR * levels.amax(-1, keepdim=True))
    half = SAMPLE_RATE // 2
    curve = F.interpolate(levels.log(), levels.shape[-1] * half, mode="linear")
    # Interpolation centres second i at (i + 1/2) half seconds; it is at (i + 1) of them.
    curve = F.pad(curve, (half // 2, wave.shape[-1]), "replicate")
    curve = F.avg_pool1d(F.pad(curve, (half // 2, half // 2), "replicate"), half + 1, 1)
    return curve[..., :wave.shape[-1]].exp()


def normalise(wave):
    """(waves at level 1, gain): (B, [M,] L) -> (B, [M,] L), (B, [1,] L). wave = first x gain.

    The mean, an offset of the converter, is removed first; samples beyond LIMIT are clipped.
    """
    wave = wave - wave.mean(-1, keepdim=True)
    gain = riding_gain(wave if wave.ndim == 3 else wave[:, None])
    gain = gain if wave.ndim == 3 else gain[:, 0]
    return (wave / gain).clamp(-LIMIT, LIMIT), gain


def enhance_normalised(enhance, wave, normalize="peak", peak=None):
    """Gain around a function of waves: noisy (B, [M,] L) -> enhanced (B, [S,] L).

    enhance: function (n, [M,] L') -> (n, [S,] L') of waves whose level is 1, from M
    microphones to S speakers. normalize: "peak", as published, divides by `peak` (B, 1), by
    default each wave's own; a window of a longer recording is given that recording's peak.
    "robust" (ours): see enhance_active.
    """
    if normalize == "robust":
        if wave.ndim == 3:
            return enhance_active(enhance, wave)
        return enhance_active(lambda x: enhance(x[:, 0])[:, None], wave[:, None])[:, 0]
    if peak is None:
        peak = wave.abs().flatten(1).amax(1)
    peak = peak.reshape(-1, *[1] * (wave.ndim - 1))
    return enhance(wave / peak.clamp(min=1e-8)) * peak


def enhance_active(enhance, wave):
    """Enhance the active part of waves (B, M, L) and their pauses separately: (B, S, L).

    The norms of a network are statistics of the whole window. A pause with nothing but the
    hiss of a microphone would change them for the speech beside it. The gain follows the
    signal (riding_gain) and is matched to the mixture (matching_gain). Pauses without signal
    and recordings of less than a quarter of a second stay as they are.
    """
    active = active_frames(wave)                                           # (B, frames)
    whole, outputs = active.all(1), [None] * len(wave)
    for rows in filter(len, [whole.nonzero()[:, 0], *(~whole).nonzero()]):
        x, frames = wave[rows], active[rows[0]]
        speech = frames.repeat_interleave(FRAME)[:wave.shape[-1]]          # (L,)
        y, matched = enhance_part(enhance, x[..., speech])
        if not speech.all():
            # Pauses reach one frame into the active part: there the two outputs cross-fade.
            pause = F.max_pool1d((~frames).float()[None], 3, 1, 1)[0] > 0
            pause = pause.repeat_interleave(FRAME)[:wave.shape[-1]]
            still = x[..., pause] - x[..., pause].mean(-1, keepdim=True)
            if still.abs().max() > SILENT_PEAK:
                still, _ = enhance_part(enhance, x[..., pause], matched)
            inner = -F.max_pool1d(-speech[None].float(), FRAME + 1, 1, FRAME // 2)
            fade = F.avg_pool1d(inner, FRAME + 1, 1, FRAME // 2, count_include_pad=False)[0]
            parts = y.new_zeros(2, *y.shape[:-1], wave.shape[-1])
            parts[0][..., speech] = y
            parts[1][..., pause] = still[:, :1].expand(-1, y.shape[1], -1) if still.shape[1] != y.shape[1] else still
            y = fade * parts[0] + (1 - fade) * parts[1]
        for row, piece in zip(rows.tolist(), y):
            outputs[row] = piece
    return torch.stack(outputs)


def active_frames(wave):
    """Which frames of waves (B, M, L) are less than PAUSE dB below the loudest second, and their
    neighbours: bool (B, frames). All of them where either kind lasts less than EDGE."""
    wave = wave - wave.mean(-1, keepdim=True)
    level = click_robust_peak(wave).amax(1, keepdim=True).clamp(min=1e-8)
    power = (wave / level).clamp(-LIMIT, LIMIT).square().amax(1)           # (B, L)
    frames = F.pad(power, (0, -power.shape[-1] % FRAME)).unflatten(-1, (-1, FRAME)).mean(-1)
    second = min(SAMPLE_RATE // FRAME, frames.shape[-1])
    loudest = frames.unfold(-1, second, 1).mean(-1).amax(-1, keepdim=True)
    active = (frames > 10 ** (-PAUSE / 10) * loudest).float()
    # Gaps between syllables are no pauses: grow by more than the margin, then shrink again.
    active = F.max_pool1d(active, 2 * (GAP + MARGIN) + 1, 1, GAP + MARGIN)
    active = -F.max_pool1d(-active, 2 * GAP + 1, 1, GAP) > 0
    samples = FRAME * active.sum(1, keepdim=True)
    return active | (samples < EDGE) | (samples > wave.shape[-1] - EDGE)


def enhance_part(enhance, wave, matched=None):
    """(enhanced part (B, S, L), its gain matching the mixture (B, 1, 1), or the one given)."""
    if wave.shape[-1] < EDGE:
        return wave[:, :1], 1
    x, gain = normalise(reflect(wave, EDGE))
    y = enhance(x)
    if matched is None:
        matched = matching_gain(y.sum(1, keepdim=True), x[:, :1])
    return (matched * y * gain)[..., EDGE:-EDGE], matched


def reflect(wave, samples):
    """Mirror a wave (..., L) at both ends, `samples` long, however short the wave is."""
    length = wave.shape[-1]
    index = torch.arange(-samples, length + samples, device=wave.device) % (2 * length)
    return wave[..., torch.where(index < length, index, 2 * length - 1 - index)]


def matching_gain(estimate, mixture):
    """The gain by which the estimate fits the speech in the mixture: (B, 1, L) -> (B, 1, 1).

    Losses such as SI-SDR do not see the gain of their output. No gain where the estimate is
    more than 15 dB below the mixture: there is no speech to compare with.
    """
    power = estimate.square().sum(-1, keepdim=True).clamp(min=1e-8)
    gain = ((estimate * mixture).sum(-1, keepdim=True) / power).clamp(0.5, 2)
    heard = power > 10 ** -1.5 * mixture.square().sum(-1, keepdim=True)
    return torch.where(heard, gain, torch.ones_like(gain))


# ------------------------------------------------------------------------------------------------ files

SUFFIXES = (".wav", ".wave", ".w64", ".rf64", ".au", ".snd", ".caf", ".aif", ".aiff", ".aifc", ".flac", ".ogg", ".oga",
            ".opus", ".mp3")
# What is written: the format of a suffix where it is not the suffix itself.
FORMATS = {".wave": "WAV", ".aif": "AIFF", ".aifc": "AIFF", ".snd": "AU", ".opus": "OGG", ".oga": "OGG"}
LOSSLESS = ("WAV", "W64", "RF64", "AU", "CAF", "AIFF", "FLAC")
SLACK = 64                                               # bytes that a header may promise too many: it counts itself


class AudioError(ValueError):
    """A recording that cannot be used. The message names the file and what is wrong with it."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a recording says."""
    samplerate: int                  # Hz
    channels: int
    frames: int                      # samples of a channel
    format: str                      # libsndfile's name, or MP3
    subtype: str                     # of the samples, likewise
    miniaudio: bool = False          # decoded by it, as libsndfile would trust a length that is none


def list_audio(folder):
    """Sorted paths of the audio files below `folder`; a warning counts what is none.

    Follows links, passes over what begins with a dot. Raises FileNotFoundError where there is no audio file.
    """
    paths, others, seen = [], [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(here) in seen:               # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        for path in (Path(here) / name for name in files if not name.startswith(".")):
            known = path.suffix.lower() in SUFFIXES and path.is_file()
            (paths if known else others).append(path)
    kinds = collections.Counter(path.suffix.lower() or "no suffix" if path.exists() else "broken link"
                                for path in others)
    left_out = f"not read: {len(others)} ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})"
    if not paths:
        raise FileNotFoundError(f"no audio file ({', '.join(SUFFIXES)}) below {folder}"
                                + f"; {left_out}" * bool(others))
    if others:
        warnings.warn(f"{folder}: {left_out}", stacklevel=2)
    return sorted(paths)


def by_name(folder):
    """{path below the folder without suffix: path}. Raises FileNotFoundError without audio, ValueError for a name that
    is used twice."""
    files = {}
    for path in list_audio(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{files[name]} and {path} have the same name but for the suffix; which one is meant?")
        files[name] = path
    return files


def audio_info(path):
    """Header of a recording. Raises AudioError for what is no audio or is cut short."""
    try:
        if Path(path).suffix.lower() == ".mp3":
            mp3 = miniaudio.mp3_get_info(mp3_frames(path))
            info = AudioInfo(mp3.sample_rate, mp3.nchannels, mp3.num_frames, "MP3", "MPEG_LAYER_III", True)
        else:
            parts = [soundfile.info(source) for source in sources(path)]
            info = AudioInfo(parts[0].samplerate, parts[0].channels, sum(part.frames for part in parts),
                             parts[0].format, parts[0].subtype)
            if len({(part.samplerate, part.channels) for part in parts}) > 1:
                raise AudioError(f"{path}: {len(parts)} recordings of different rates or channels, one behind the "
                                 "other; split them")
    except (soundfile.LibsndfileError, miniaudio.MiniaudioError, UnicodeError, OSError, TypeError) as error:
        reason = "the file is empty" if os.path.isfile(path) and os.path.getsize(path) == 0 else str(error)
        raise AudioError(f"{path}: not a readable audio file ({reason}). WAV, FLAC, AIFF, OGG/Opus and MP3 are; "
                         "convert others with ffmpeg") from None
    if info.frames >= 1 << 48:                           # the writer did not know: count
        try:
            info = dataclasses.replace(info, miniaudio=True)
            info = dataclasses.replace(info, frames=sum(len(x) for x in decoded(path, info)))
        except miniaudio.MiniaudioError as error:
            raise AudioError(f"{path}: damaged ({error})") from None
    if info.frames < 1:
        raise AudioError(f"{path}: holds no samples")
    promised, size = promised_bytes(path), os.path.getsize(path)
    if promised > size + SLACK * (info.format != "OGG"):
        raise AudioError(f"{path}: truncated, its header promises {promised} bytes and the file has {size}")
    return info


def sources(path):
    """What libsndfile is to open, one by one: the path; of several OGG streams in one file, each for itself."""
    with open(path, "rb") as file:
        if file.read(4) != b"OggS":
            return [os.fsencode(path)]                   # a name may be no Unicode
        starts, position, first = [], 0, False           # of a page: where it begins, whether it begins a stream
        while True:
            file.seek(position)
            head = file.read(27)
            if len(head) < 27 or head[:4] != b"OggS":
                break
            if head[5] & 2 and not first:                # streams side by side begin together
                starts.append(position)
            first = bool(head[5] & 2)
            position += 27 + head[26] + sum(file.read(head[26]))
        if len(starts) < 2:
            return [os.fsencode(path)]
        file.seek(0)
        content = file.read()
    return [io.BytesIO(content[a:b]) for a, b in itertools.pairwise([*starts, len(content)])]


def promised_bytes(path):
    """The size in bytes that a header, or the last page of an OGG, implies, else 0: libsndfile reads cut files mutely.

    Knows the chunks of WAV (RIFF, RIFX, RF64, W64), AIFF, CAF and the header of AU.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        kind = head[:4]
        if kind == b"OggS":
            start = file.seek(max(0, os.path.getsize(path) - (1 << 16)))           # a page has at most 65307 bytes
            tail = file.read()
            table = tail.rfind(b"OggS") + 27                                       # of the sizes of its segments
            count = tail[table - 1] if len(tail) >= table else 1
            return start + table + count + sum(tail[table:table + count])
        if kind in (b".snd", b"dns."):
            offset, size = struct.unpack(">II" if kind == b".snd" else "<II", (head + file.read(12))[4:12])
            return 0 if size == 0xFFFFFFFF else offset + size
        # Where the first chunk stands, how its name and size are packed, what of its head the size counts, and to what
        # sizes are rounded.
        at, layout, counted, even = {
            b"RIFF": (12, "<4sI", 0, 2), b"RIFX": (12, ">4sI", 0, 2), b"RF64": (12, "<4sI", 0, 2),
            b"FORM": (12, ">4sI", 0, 2), b"caff": (8, ">4sQ", 0, 1), b"riff": (40, "<4s12xQ", 24, 8),
        }.get(kind, (0, "", 0, 0))
        size64 = None                                    # of RF64, in a chunk of its own
        while layout:
            file.seek(at)
            head = file.read(struct.calcsize(layout))
            if len(head) < struct.calcsize(layout):
                break
            name, size = struct.unpack(layout, head)
            if name == b"ds64":
                size64 = struct.unpack("<8xQ", file.read(16))[0]
            if name in (b"data", b"SSND"):
                if size == 0xFFFFFFFF and size64 is not None:
                    size = size64
                # From 0x7ffff000 on, unless sizes have 64 bits: a writer that streamed and never knew the length
                unknown = size >= (0x7FFFF000 if layout[-1] == "I" and size64 is None else 1 << 62)
                return 0 if unknown else at + len(head) * (not counted) + size
            size -= counted
            at += len(head) + size + -size % even
    return 0


def decoded(path, info, start=0, block=1 << 18):
    """Yield float32 arrays (n, channels) at the recording's own rate, from sample `start` to where it really ends."""
    if info.miniaudio:
        content = mp3_frames(path) if info.format == "MP3" else Path(path).read_bytes()
        for x in miniaudio.stream_memory(content, miniaudio.SampleFormat.FLOAT32, info.channels, info.samplerate,
                                         block):
            x = np.frombuffer(x, np.float32).reshape(-1, info.channels)
            skipped = min(start, len(x))
            start -= skipped
            if skipped < len(x):
                yield x[skipped:]
        return
    for source in sources(path):
        with soundfile.SoundFile(source) as file:
            if skipped := min(start, file.frames):
                file.seek(skipped)
                start -= skipped
            while len(x := file.read(block, dtype="float32", always_2d=True)):
                yield x


def mp3_frames(path):
    """The bytes of an MP3 without the tags at its end, ID3v1 and APE, before which the decoder would lose a frame."""
    content = Path(path).read_bytes()
    if content[-128:-125] == b"TAG":
        content = content[:-128]
    if content[-32:-24] == b"APETAGEX":
        size, _, flags = struct.unpack("<III", content[-20:-8])
        content = content[:-size - 32 * (flags >> 31)]
    return content


def read_blocks(path, sample_rate=SAMPLE_RATE, block=1 << 18):
    """Yield float32 arrays (samples, channels) at `sample_rate`, in constant memory.

    Raises AudioError as `audio_info` does, and for samples that are not finite or end before the header says.
    """
    info = audio_info(path)
    resampler = None
    if info.samplerate != sample_rate:
        resampler = soxr.ResampleStream(info.samplerate, sample_rate, info.channels, dtype="float32", quality="HQ")
    read = 0
    try:
        for x in decoded(path, info, block=block):
            read += len(x)
            if not np.isfinite(x).all():
                raise AudioError(f"{path}: NaN or infinite samples before second {read / info.samplerate:.1f}")
            yield x if resampler is None else resampler.resample_chunk(x)
    except (soundfile.LibsndfileError, miniaudio.MiniaudioError) as error:
        raise AudioError(f"{path}: damaged after {read} of {info.frames} samples ({error})") from None
    if ends_early(info, read):
        raise AudioError(f"{path}: truncated, {read} of {info.frames} samples")
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros((0, info.channels), np.float32), last=True)


def ends_early(info, read):
    """Whether so many samples are fewer than the header means: some count a frame of MP3 or two too many, or
    themselves."""
    return read + (2 * 1152 if info.format == "MP3" else SLACK) < info.frames


def load_audio(path, sample_rate=SAMPLE_RATE):
    """A recording as (float32 (channels, samples) at `sample_rate`, its own sample rate in Hz). Raises AudioError."""
    x = np.concatenate(list(read_blocks(path, sample_rate)))
    return torch.from_numpy(np.ascontiguousarray(x.T)), audio_info(path).samplerate


def written_subtype(info, format):
    """The sample format of `info` where a file of that `format` can hold it in as many samples, else 16 bits."""
    other = {"PCM_S8": "PCM_U8", "PCM_U8": "PCM_S8"}.get(info.subtype)
    exact = info.subtype.startswith("PCM") or info.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
    fits = [subtype for subtype in (info.subtype, other, "PCM_16")
            if subtype and exact and soundfile.check_format(format, subtype)]
    return fits[0] if fits else "PCM_16"


@contextlib.contextmanager
def appearing(path):
    """Name of a temporary file beside `path`, which takes its place when the block ends: a kill, or an exception,
    leaves what was there. Flushed to the disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~current_umask())         # mkstemp makes a file for the owner alone
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def audio_writer(path, sample_rate, channels, subtype=None, frames=0):
    """A SoundFile to write to, that appears under its name only when it is complete. Raises AudioError.

    The format is the suffix's; a WAV that `frames` samples make larger than 4 GiB is an RF64, which has no such limit.
    """
    suffix = Path(path).suffix.lower()
    format = FORMATS.get(suffix, suffix[1:].upper())
    subtype = subtype or {".opus": "OPUS"}.get(suffix)
    if format == "WAV" and frames * channels * 8 >= 1 << 32:               # 8: of the widest sample
        format = "RF64"
    with appearing(path) as part:
        try:
            file = soundfile.SoundFile(os.fsencode(part), "w", sample_rate, channels, subtype, format=format)
        except (ValueError, TypeError, soundfile.LibsndfileError):
            raise AudioError(f"{path}: libsndfile cannot write '{suffix}', {subtype or 'default'} samples, {channels} "
                             f"channels, {sample_rate} Hz. WAV can hold all but the strangest") from None
        with file:
            yield file


def compute_once(path, compute):
    """The array that the file `path` (.npz) holds; where there is none, or a damaged one, compute() is put there.

    The file appears by rename, or not at all. Raises OSError where it cannot be written.
    """
    try:
        with np.load(path) as file:                      # a zip file, which checks its sum
            return file["array"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        array = compute()
    with appearing(path) as part, open(part, "wb") as file:
        np.savez(file, array=array)
    return array


def each_once(function, waves, store, key):
    """function(waves), (B, ...) -> (B, ...), example by example, each taken from the folder `store` if it is there.

    key: a name for the function. What is new is computed in float32, since others will read it, without gradient and
    with noise of its own, so that it does not matter to anything else whether it was there.
    """
    def once(wave):
        name = fingerprint(wave)

        def compute():
            with (torch.no_grad(), torch.autocast(wave.device.type, enabled=False),
                  torch.random.fork_rng([wave.device] if wave.is_cuda else [])):
                torch.manual_seed(int(name[:8], 16))
                return function(wave[None])[0].cpu().numpy()
        return torch.from_numpy(compute_once(store / f"{key}-{name}.npz", compute)).to(wave.device)
    return torch.stack([once(wave) for wave in waves])


def fingerprint(*tensors):
    """A name for what is computed from these tensors: 32 digits of the SHA-256 of their numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:32]


def save_audio(path, wave, sample_rate, subtype=None):
    """Write (samples,) or (channels, samples) in [-1, 1]; the format is the suffix's, the subtype libsndfile's name.

    Values outside [-1, 1] are clipped by integer formats. The file appears by rename, or not at all.
    """
    x = torch.as_tensor(wave).detach().cpu().numpy()
    x = x.T if x.ndim == 2 else x[:, None]
    with audio_writer(path, sample_rate, x.shape[1], subtype, len(x)) as file:
        file.write(x)


# ------------------------------------------------------------------------------------------------ corpora

RESIDENT_LIMIT = 4 * 2 ** 30                             # bytes of int16 samples kept in memory: 37 hours
VOICEBANK = {"train": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
             "valid": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
             "test": ("clean_testset_wav", "noisy_testset_wav")}
VOICEBANK_VALID = ("p226_", "p287_")                     # the two speakers the field holds out for validation
QUIET, LSB = 0.01, 1 / 32768                             # a crop must reach this share of its recording's level, 8 LSB


class Recordings:
    """Mono 16 kHz recordings, index by index as in `paths`: all in memory as int16 (`resident`), or read crop by crop.

    A file that cannot be used keeps its index with length 0; `problems` says what is wrong with each. What goes beyond
    full scale is kept with fewer bits: `scales`, 1 or a power of 2.
    """

    def __init__(self, paths, resident=True, min_samples=510):
        self.paths, self.resident = paths, resident
        self.lengths, self.problems, waves = np.zeros(len(paths), np.int64), [], []
        self.scales, self.levels = np.ones(len(paths), np.float32), {}
        self.made = {}                                                     # index -> samples, where not resident
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = pool.map(attempt, itertools.repeat(decode if resident else measure), paths)
            for i, (result, problem) in enumerate(tqdm(jobs, "reading", len(paths), unit="file", leave=False)):
                length = result if isinstance(result, int) else len(result)
                if not problem and length < min_samples:
                    problem = f"{paths[i]}: {length} samples at 16 kHz, shorter than one frame of {min_samples}"
                if problem:
                    self.problems.append(problem)
                    continue
                self.lengths[i] = length
                if resident:
                    self.scales[i] = headroom(result)
                    waves.append(to_int16(result / self.scales[i]))
        if not self.lengths.any():
            raise AudioError(f"none of {len(paths)} recordings can be used" + "".join(
                f"; the first: {problem}" for problem in self.problems[:1]))
        if resident:
            self.offsets = np.cumsum(self.lengths) - self.lengths
            self.samples = np.concatenate(waves)                           # int16, all recordings end to end

    def append(self, name, wave):
        """A recording that no file holds, float32 (L,) in [-1, 1], as the last one."""
        self.paths, self.lengths = [*self.paths, name], np.append(self.lengths, len(wave))
        self.scales = np.append(self.scales, np.float32(1))
        if self.resident:
            self.samples = np.concatenate([self.samples, to_int16(wave)])
            self.offsets = np.cumsum(self.lengths) - self.lengths
        else:
            self.made[len(self.paths) - 1] = to_int16(wave) / np.float32(32768)

    def wave(self, index):
        """A whole recording, float32 (L,). Raises AudioError."""
        return torch.from_numpy(self.crop(index, 0, int(self.lengths[index])))

    def level(self, index):
        """`click_robust_peak` of a whole recording, remembered."""
        if index not in self.levels:
            self.levels[index] = click_robust_peak(self.wave(index)).item()
        return self.levels[index]

    def crop(self, index, start, num_samples, loop=False):
        """float32 (num_samples,). Beyond the recording: zeros, or its repetition when `loop`."""
        length = self.lengths[index]
        first, last = max(start, 0), min(start + num_samples, length)
        if loop and start + num_samples > length:
            first, last = 0, length
        if self.resident:
            wave = self.samples[self.offsets[index]:][first:last] * (self.scales[index] / np.float32(32768))
        elif index in self.made:
            wave = self.made[index][first:last]
        else:
            wave = read_crop(self.paths[index], first, last - first)
        if loop:
            return np.resize(np.roll(wave, first - start), num_samples)
        crop = np.zeros(num_samples, np.float32)
        crop[first - start:last - start] = wave
        return crop


def attempt(function, path):
    """(function(path), None), or (0, what is wrong with the file)."""
    try:
        return function(path), None
    except AudioError as error:
        return 0, str(error)


def decode(path):
    """A whole recording, float32 (L,), mono at 16 kHz. Raises AudioError."""
    return load_audio(path)[0].mean(0).numpy()


def measure(path):
    """Its length at 16 kHz, from the header alone. Raises AudioError."""
    info = audio_info(path)
    return (2 * info.frames * SAMPLE_RATE // info.samplerate + 1) // 2      # rounded, as soxr does


def read_crop(path, start, num_samples):
    """float32 (num_samples,) from sample `start` at 16 kHz, decoding no more than that where no resampling is needed.

    Rounded to steps of 16 bits, as resident recordings are.
    """
    info = audio_info(path)
    if info.samplerate != SAMPLE_RATE:
        wave = decode(path)[start:start + num_samples]
    else:
        try:
            blocks, count = [], 0
            for x in decoded(path, info, start, num_samples):
                blocks.append(x)
                count += len(x)
                if count >= num_samples:
                    break
            x = np.concatenate(blocks)[:num_samples] if blocks else np.zeros((0, 1))
        except (soundfile.LibsndfileError, miniaudio.MiniaudioError) as error:
            raise AudioError(f"{path}: damaged ({error})") from None
        if not np.isfinite(x).all():
            raise AudioError(f"{path}: has samples that are NaN or infinite")
        wave = x.mean(1)
    if len(wave) < num_samples:
        raise AudioError(f"{path}: truncated, it ends at sample {start + len(wave)} at 16 kHz")
    return (wave * 32768).round().astype(np.float32) / np.float32(32768)


def headroom(wave):
    """The power of 2, at least 1, by which a wave must be divided to stay within full scale."""
    return np.float32(2.0 ** max(0, math.ceil(math.log2(max(np.abs(wave).max(), 1)))))


def to_int16(x):
    return (x * 32768).round().clip(-32768, 32767).astype(np.int16)


def fits_in_memory(paths):
    """Whether the recordings take less than RESIDENT_LIMIT bytes as int16; judged from their headers."""
    size = 0
    for path in paths:
        size += 2 * attempt(measure, path)[0]
        if size > RESIDENT_LIMIT:
            return False
    return True


class Crops:
    """An endless, seeded order of crops from sets of recordings: what the classes below share.

    Position p belongs to epoch p // len(self) and, within it, to one file of the epoch's permutation. Every other
    choice for it is drawn from a generator seeded with (seed, p). A crop that is silent where it must not be, or
    that cannot be read, is drawn again from another file; `problems` names the files and counts the crops.
    """

    lead = 0                                             # samples that a crop has before those of the batch

    def __init__(self, sources, files, num_samples, seed, normalize="peak", device="cpu"):
        self.sources, self.files, self.num_samples, self.seed = sources, files, num_samples, seed
        self.normalize, self.device = normalize, torch.device(device)
        self.order = (None, None)                        # (epoch, its permutation of the files)
        self.problems = collections.Counter()
        self.note(itertools.chain.from_iterable(source.problems for source in sources))
        if not len(files):
            raise AudioError(f"no pair of recordings can be used; the first: {next(iter(self.problems))}")

    def __len__(self):
        return len(self.files)

    @property
    def identity(self):
        """What a resumed run must find again: of each source how many recordings, of which names and lengths."""
        return [{"recordings": len(source.paths), "samples": int(source.lengths.sum()),
                 "names": hashlib.sha256("".join(f"{Path(path).name}:{length};" for path, length
                                                 in zip(source.paths, source.lengths)).encode()).hexdigest()[:16]}
                for source in dict.fromkeys(self.sources)]

    @property
    def resident(self):
        """Whether all recordings are in memory."""
        return all(source.resident for source in self.sources)

    def __getitem__(self, position):
        """(indices, starts, choices of `draw`, crops: a float32 array of each source, problems met on the way)."""
        epoch, place = divmod(position, len(self))
        if self.order[0] != epoch:
            self.order = epoch, np.random.default_rng([self.seed, epoch, 0]).permutation(self.files)
        return self.draw_sounding(self.order[1][place], np.random.default_rng([self.seed, position, 1]))

    def draw_sounding(self, index, rng, whole=False):
        """An item of the file `index`, or where that is silent or damaged of another; `whole`: all of its length."""
        problems = []
        for _ in range(100):
            length = int(self.sources[0].lengths[index]) if whole else self.num_samples
            indices, starts, choices = self.draw(index, rng, length)
            try:
                crops = [source.crop(i, start, length + self.lead, loop)
                         for source, i, start, loop in zip(self.sources, indices, starts, self.loops)]
                silent = [k for k in self.must_sound
                          if not sounds(crops[k][self.lead:], self.sources[k].level(indices[k]))]
                if not silent:
                    return indices, starts, choices, crops, problems
                problems.append(f"{self.sources[silent[0]].paths[indices[silent[0]]]}: nothing sounds in a crop")
            except AudioError as error:
                problems.append(str(error))
            index = rng.choice(self.files)
        raise AudioError(f"100 crops in a row could not be used; the last: {problems[-1]}")

    def note(self, problems):
        for problem in problems:
            if problem not in self.problems:
                warnings.warn(f"left out: {problem}", stacklevel=3)
            self.problems[problem] += 1

    def collate(self, items):
        """Items -> (crops of each source, float32 (B, L); choices; problems): what a worker process hands over."""
        _, _, choices, crops, problems = zip(*items)
        waves = [torch.from_numpy(np.stack(source)) for source in zip(*crops)]
        return waves, torch.tensor(choices), list(itertools.chain.from_iterable(problems))

    def batch(self, items):
        """Items -> (clean, noisy), float32 (B, L) on the device, each divided by the level of its noisy crop.

        (B, S, L) and (B, M, L) from RoomMixtures; the level is that of all microphones. It is the peak, or what
        `normalise` takes for it.
        """
        return self.mix(*self.collate(items))

    def mix(self, waves, choices, problems):
        """What `collate` gives -> what `batch` gives: the part that the training device does."""
        self.note(problems)
        clean, noisy = self.combine(*(wave.to(self.device) for wave in waves), choices.to(self.device))
        if self.normalize == "robust":
            noisy, gain = normalise(noisy)
            return clean / gain, noisy
        peak = noisy.abs().amax(tuple(range(1, noisy.ndim)), keepdim=True)
        return clean / peak, noisy / peak


def random_start(length, num_samples, rng):
    """Uniform start of a crop; one that is longer than the recording is centred on it."""
    spare = int(length) - num_samples
    return int(rng.integers(spare + 1)) if spare >= 0 else -(-spare // 2)


def sounds(crop, level):
    """Whether there is something to hear in a crop (L,) of a recording of that level: not room tone, not dither."""
    return click_robust_peak(torch.from_numpy(crop)).item() > max(QUIET * level, 8 * LSB)


class PairedAudio(Crops):
    """Clean and noisy files with the same names, cut at the same place.

    root: VoiceBank-DEMAND as distributed (clean_trainset_28spk_wav, noisy_trainset_28spk_wav, clean_testset_wav,
    noisy_testset_wav; "valid" is the speakers p226 and p287 of its training set), or a folder with SPLIT/clean and
    SPLIT/noisy, or with clean and noisy, which have no split "valid". Names agree, or as in the DNS challenge's test
    set their ends, fileid_7. Raises FileNotFoundError where there is none of these, ValueError that lists the files
    without a partner, AudioError where no pair can be used.
    without: resolved paths of clean files that are left out, with their noisy ones.
    """

    loops, must_sound = (False, False), (1,)

    def __init__(self, root, split="train", num_samples=32640, seed=0, device="cpu", resident=None, without=(),
                 normalize="peak"):
        paths = paired_paths(root, split)
        kept = [path.resolve() not in without for path in paths[0]]
        paths = [list(itertools.compress(side, kept)) for side in paths]
        resident = fits_in_memory(paths[0] + paths[1]) if resident is None else resident
        clean, noisy = (Recordings(p, resident) for p in paths)
        for path, a, b in zip(clean.paths, clean.lengths, noisy.lengths):
            if a and b and abs(a - b) > SAMPLE_RATE // 10:
                warnings.warn(f"{path} lasts {a / SAMPLE_RATE:.1f} s and its noisy twin {b / SAMPLE_RATE:.1f} s: "
                              "both are cut to the shorter", stacklevel=2)
        clean.lengths = noisy.lengths = np.minimum(clean.lengths, noisy.lengths)
        super().__init__((clean, noisy), np.flatnonzero(clean.lengths), num_samples, seed, normalize, device)

    def draw(self, index, rng, length):
        start = random_start(self.sources[0].lengths[index], length, rng)
        return (index, index), (start, start), math.nan

    def combine(self, clean, noisy, snr_db):
        return clean, noisy

    def utterance(self, number):
        """A whole pair: (name, clean (L,), noisy (L,))."""
        index = self.files[number]
        return self.sources[0].paths[index].stem, *(source.wave(index) for source in self.sources)


Fraction = Annotated[float, "[0, 1]"]    # see nets.check_fields


@dataclass
class Augmentation:
    """How often MixedAudio varies a crop: probabilities, each drawn by itself. Ours."""
    babble: Fraction = 0.0              # the noise is six speakers of the speech folder at once
    second_noise: Fraction = 0.0        # another recorded noise joins, up to 10 dB below
    synthetic_noise: Fraction = 0.0     # rumble, hum, wind or a band of noise joins the recorded one or replaces it
    hiss: Fraction = 0.0                # hiss or hum of -70 to -45 dB joins the mixture
    speech_dropout: Fraction = 0.0      # the speech pauses for a while and the noise goes on
    no_speech: Fraction = 0.0           # noise alone: the target is silence
    quiet_part: Fraction = 0.0          # a part of the crop is up to 30 dB quieter, as another speaker would be
    speed: Fraction = 0.0               # speech and noise play 0.8 to 1.25 times as fast
    random_eq: Fraction = 0.0           # speech and noise pass a random equaliser each

    def any(self):
        return any(getattr(self, field.name) for field in dataclasses.fields(Augmentation))


class MixedAudio(Crops):
    """Speech and noise from any two folders, mixed at a ratio drawn from `snrs` (dB), differently every epoch.

    Every second of noise is equally likely; a noise shorter than a crop repeats. augmentation: see there. Raises
    FileNotFoundError for a folder without audio, AudioError where no file in it can be used. without: resolved paths
    of speech that is left out, of babble too.
    """

    loops, must_sound = (False, True), (0, 1)

    def __init__(self, speech_dir, noise_dir, snrs=(0, 5, 10, 15), num_samples=32640, seed=0, device="cpu",
                 resident=None, without=(), normalize="peak", augmentation=Augmentation()):
        self.augmentation = augmentation
        paths = [path for path in list_audio(speech_dir) if path.resolve() not in without], list_audio(noise_dir)
        resident = fits_in_memory(paths[0] + paths[1]) if resident is None else resident
        speech, noise = (Recordings(p, resident) for p in paths)
        self.snrs, self.noise_ends = snrs, np.cumsum(noise.lengths)
        if augmentation.babble:
            noise.append("babble", make_babble(speech, np.random.default_rng([seed, 3])))
        super().__init__((speech, noise), np.flatnonzero(speech.lengths), num_samples, seed, normalize, device)

    def draw(self, index, rng, length):
        start = random_start(self.sources[0].lengths[index], length, rng)
        noise, noise_start = self.draw_noise(rng, length)
        return (index, noise), (start, noise_start), (float(rng.choice(self.snrs)), float(rng.integers(1 << 24)))

    def draw_noise(self, rng, length):
        """A file of noise, with the probability of its length, and where in it `length` samples begin."""
        if self.augmentation.babble and rng.random() < self.augmentation.babble:
            noise = len(self.noise_ends)
        else:
            noise = np.searchsorted(self.noise_ends, rng.integers(self.noise_ends[-1]), side="right")
        spare = max(int(self.sources[-1].lengths[noise]) - length, 0)
        return noise, int(rng.integers(spare + 1))

    def draw_sounding(self, index, rng, whole=False):
        indices, starts, choices, crops, problems = super().draw_sounding(index, rng, whole)
        if self.augmentation.any():
            rng = np.random.default_rng([int(choices[1]), 5])
            other, start = self.draw_noise(rng, len(crops[1]))
            second = self.sources[1].crop(other, start, len(crops[1]), loop=True)
            crops = [wave.numpy() for wave in augment(*map(torch.from_numpy, (*crops, second)), self.augmentation, rng)]
        return indices, starts, choices, crops, problems

    def combine(self, speech, noise, choices):
        """Crops (B, L) of both, choices (B, 2) of `draw`: SNR in dB, seed of `augment` -> (clean, noisy)."""
        noisy = mix_at_snr(speech, noise, choices[:, 0])
        if self.augmentation.no_speech:
            noisy = torch.where(speech.abs().amax(-1, keepdim=True) > 0, noisy, noise)
        if self.augmentation.hiss:
            noisy = noisy + torch.stack([hiss(wave, int(seed), self.augmentation.hiss)
                                         for wave, seed in zip(noisy, choices[:, 1].tolist())])
        return speech, noisy

    def utterance(self, number):
        """A whole recording and its mixture, the same at every call: (name, clean (L,), noisy (L,)).

        A number beyond the recordings takes them again, in other noise.
        """
        rng = np.random.default_rng([self.seed, number, 2])
        indices, _, choices, crops, problems = self.draw_sounding(self.files[number % len(self)], rng, whole=True)
        self.note(problems)
        crops = [torch.from_numpy(crop)[None].to(self.device) for crop in crops]
        choices = torch.tensor([choices], device=self.device)
        clean, noisy = (wave[0].cpu() for wave in self.combine(*crops, choices))
        peak = max(1.0, noisy.abs().max().item())        # a file would clip
        return self.sources[0].paths[indices[0]].stem, clean / peak, noisy / peak


def augment(speech, noise, second, how, rng):
    """Speech and noise (L,), varied as the Augmentation `how` says; second: another noise."""
    length = len(speech)
    if rng.random() < how.speed:
        speech, noise = at_speed(speech, rng.uniform(0.8, 1.25)), at_speed(noise, rng.uniform(0.8, 1.25), loop=True)
    if rng.random() < how.second_noise and noise.any() and second.any():
        noise = mix_at_snr(noise, second, rng.uniform(0, 10))
    if rng.random() < how.synthetic_noise:
        synthetic = torch.from_numpy(synthetic_noise(length, rng)).to(noise)
        noise = synthetic if rng.random() < 0.5 else mix_at_snr(noise, synthetic, rng.uniform(0, 10))
    if rng.random() < how.speech_dropout:
        gain = torch.ones(length)
        gain[slice(*random_span(length, rng))] = 0
        if click_robust_peak(gain * speech) > QUIET * click_robust_peak(speech):      # some speech is left
            speech = gain * speech
    if rng.random() < how.random_eq:
        speech, noise = equalised(speech, rng), equalised(noise, rng)
    if rng.random() < how.quiet_part:
        gain = torch.ones(length)
        gain[slice(*random_span(length, rng))] = 10 ** (-rng.uniform(0, 30) / 20)
        speech, noise = gain * speech, gain * noise
    if rng.random() < how.no_speech:
        speech = torch.zeros(length)
    return speech, noise


def random_span(length, rng):
    """(first, last) of a fifth to four fifths of `length` samples."""
    span = int(rng.uniform(0.2, 0.8) * length)
    start = int(rng.integers(length - span + 1))
    return start, start + span


def at_speed(wave, factor, loop=False):
    """A wave (L,) played `factor` times as fast, as long as before: its repetition or silence follows."""
    x = soxr.resample(wave.numpy(), SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
    x = np.resize(x, len(wave)) if loop else np.pad(x, (0, max(0, len(wave) - len(x))))[:len(wave)]
    return torch.from_numpy(x.astype(np.float32))


def hiss(wave, seed, probability):
    """Hiss or hum, 45 to 70 dB below full scale where the wave's level is -12 dB: (L,) -> (L,), or silence."""
    rng = np.random.default_rng([seed, 6])
    if rng.random() >= probability:
        return torch.zeros_like(wave)
    noise = rng.standard_normal(len(wave)) if rng.random() < 0.5 else synthetic_noise(len(wave), rng)
    gain = click_robust_peak(wave).item() * 10 ** (rng.uniform(-58, -33) / 20)
    return gain * torch.from_numpy(noise).to(wave)


def equalised(wave, rng, decibels=5):
    """A wave (L,) through a random smooth equaliser: gains of that standard deviation at 8 frequencies, in octaves."""
    hertz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    gain = np.interp(np.log2(hertz.clip(62.5)), np.arange(6, 14), rng.normal(0, decibels, 8))
    response = torch.from_numpy(10 ** (gain / 20)).to(wave)
    return torch.fft.irfft(torch.fft.rfft(wave) * response, len(wave))


def synthetic_noise(length, rng):
    """Synthetic noise of streets, cars and rooms: float32 (length,) of unit power.

    Broad-band noise whose level falls by 0 to 8 dB an octave; a band of it; hum or an engine with harmonics; wind in
    gusts. Levels wander slowly.
    """
    def wandering(hertz):
        """Unit-variance noise that changes so often a second."""
        points = rng.standard_normal(int(length / SAMPLE_RATE * hertz) + 3)
        return np.interp(np.arange(length) * hertz / SAMPLE_RATE, np.arange(len(points)), points)

    frequency = np.fft.rfftfreq(length, 1 / SAMPLE_RATE).clip(20)          # Hz
    kind = rng.integers(4)                                                 # broad, band, hum, wind
    response = frequency ** -rng.uniform(0, 1.3)
    if kind == 1:
        low = 2 ** rng.uniform(np.log2(20), np.log2(2000))
        high = low * 2 ** rng.uniform(0.5, 3)
        response = response / np.sqrt((1 + (low / frequency) ** 6) * (1 + (frequency / high) ** 6))
    if kind == 3:
        response = frequency ** -1.3 / np.sqrt(1 + (frequency / rng.uniform(100, 600)) ** 4)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * response, length)
    noise = noise / noise.std() * np.exp((0.8 if kind == 3 else rng.uniform(0, 0.4)) * wandering(2))
    if kind == 2:
        base = 2 ** rng.uniform(np.log2(40), np.log2(250))                 # Hz
        phase = 2 * np.pi * np.cumsum(base * (1 + rng.uniform(0, 0.03) * wandering(1))) / SAMPLE_RATE
        order = np.arange(1, min(24, int(7000 / base)) + 1)[:, None]
        waves = np.sin(order * phase + rng.uniform(0, 2 * np.pi, order.shape))
        hum = (order ** -rng.uniform(0.5, 2) * waves).sum(0) * np.exp(rng.uniform(0, 0.3) * wandering(1))
        noise = hum / hum.std() + 10 ** (rng.uniform(-30, -6) / 20) * noise / noise.std()
    return (noise / noise.std()).astype(np.float32)


def make_babble(speech, rng, talkers=6, minutes=10):
    """`talkers` voices at once, equally loud: each reads recordings in its own random order. float32 (L,)."""
    total, usable = np.zeros(minutes * 60 * SAMPLE_RATE), np.flatnonzero(speech.lengths)
    for _ in range(talkers):
        end = 0
        while end < len(total):
            wave = speech.wave(rng.choice(usable)).numpy()[:len(total) - end]
            total[end:end + len(wave)] += wave / max(np.sqrt(np.mean(wave ** 2)), 1e-4)
            end += len(wave)
    return (total / np.abs(total).max()).astype(np.float32)


class UnpairedAudio(Crops):
    """Noisy crops as open_data(root, ...) gives them, clean crops of recordings that are in none of them.

    clean_dir: any folder of clean speech, also that of `root`: of the recordings that both sides could use, every
    second one is clean and the others are made noisy; none is one that validation hears. A recording is known by its
    path; a copy of it is another one. Each crop is divided by its own level. Raises as open_data does, ValueError where
    clean_dir holds noisy files too.
    """

    loops, must_sound = (False,), (0,)

    def __init__(self, root, clean_dir, split="train", num_samples=32640, seed=0, device="cpu", resident=None,
                 normalize="peak", **options):
        held_out = speech_of(root, "valid")
        paths = [path for path in list_audio(clean_dir) if path.resolve() not in held_out]
        self.noisy = open_data(root, split, num_samples=num_samples, seed=seed, device=device, resident=resident,
                               without={path.resolve() for path in paths[::2]}, normalize=normalize, **options)
        speech, sound = ({Path(path).resolve() for path in source.paths} for source in self.noisy.sources)
        for path in paths:
            if path.resolve() in sound:
                raise ValueError(f"{clean_dir} holds {path}, one of the noisy files or noises of {root}; give a folder "
                                 "of clean speech alone")
        paths = [path for path in paths if path.resolve() not in speech]
        resident = fits_in_memory(paths) if resident is None else resident
        clean = Recordings(paths, resident)
        # Another seed: with the same one, the n-th crop of both sides would be cut at the same share of its file.
        own_seed = int(np.random.SeedSequence([seed, 4]).generate_state(1)[0])
        super().__init__((clean,), np.flatnonzero(clean.lengths), num_samples, own_seed, normalize, device)
        self.noisy.problems = self.problems = self.problems + self.noisy.problems

    @property
    def identity(self):
        return super().identity + self.noisy.identity

    @property
    def resident(self):
        return super().resident and self.noisy.resident

    def __getitem__(self, position):
        return super().__getitem__(position), self.noisy[position]

    def draw(self, index, rng, length):
        return (index,), (random_start(self.sources[0].lengths[index], length, rng),), math.nan

    def combine(self, clean, snr_db):
        return clean, clean

    def collate(self, items):
        clean, noisy = zip(*items)
        return super().collate(clean), self.noisy.collate(noisy)

    def mix(self, clean, noisy):
        """(clean, noisy), float32 (B, L), of which no two rows belong together."""
        return super().mix(*clean)[0], self.noisy.mix(*noisy)[1]


def paired_paths(root, split):
    """Sorted (clean, noisy) paths of a split; see PairedAudio."""
    root = Path(root)
    folders = [tuple(root / name for name in VOICEBANK[split]), (root / split / "clean", root / split / "noisy"),
               (root / split / "pairs" / "clean", root / split / "pairs" / "noisy")]
    if split != "valid":                                 # what trains must not validate
        folders.append((root / "clean", root / "noisy"))
    found = [pair for pair in folders if pair[0].is_dir() and pair[1].is_dir()]
    if not found:
        tried = "; ".join(f"{a.relative_to(root)} + {b.relative_to(root)}" for a, b in folders)
        raise FileNotFoundError(f"no clean and noisy files for '{split}' in {root}. Looked for the folders {tried}")
    clean, noisy = map(by_number, map(by_name, found[0]))
    alone = sorted(clean.keys() ^ noisy.keys())
    if alone:
        more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
        raise ValueError(f"{len(alone)} files in {found[0][0]} or {found[0][1]} have no partner of the same name in "
                         f"the other: {', '.join(alone[:10])}{more}")
    names = sorted(clean)
    if found[0] == folders[0] and split != "test":
        names = [name for name in names if name.startswith(VOICEBANK_VALID) == (split == "valid")]
    if not names:
        raise FileNotFoundError(f"no recording of the '{split}' speakers in {found[0][0]}")
    return [clean[name] for name in names], [noisy[name] for name in names]


def by_number(files):
    """{name: path} by what the DNS challenge's pairs share, fileid_7, where each name ends in such a number."""
    numbers = [re.search(r"fileid_\d+$", name) for name in files]
    named = {number[0]: path for number, path in zip(numbers, files.values()) if number}
    return named if len(named) == len(files) else files


def real_recordings(root):
    """The folder of recordings without clean twins: that of this name in the DNS challenge's test set, or `root`."""
    inside = Path(root) / "real_recordings"
    return inside if inside.is_dir() else root


def speech_of(root, split):
    """Resolved paths of the clean recordings of a split, a set; empty where there is no such split."""
    root = Path(root)
    for folder in (root / split, root):
        if (folder / "speech").is_dir():
            speech_dir, left_out = voices(folder / "speech", split if folder == root else None)
            return set() if speech_dir is None else {path.resolve() for path in list_audio(speech_dir)} - left_out
    try:
        return {path.resolve() for path in paired_paths(root, split)[0]}
    except FileNotFoundError:
        return set()


def voices(folder, split):
    """Where in a folder of speech a split lies, and what of it the split leaves out, resolved paths; (None, ...) where
    the folder has no such split. split: None where the folder is that of one split.

    VoiceBank's training voices validate by its speakers p226 and p287, in clean_trainset_28spk_wav and beside
    clean_testset_wav as distributed, or in any folder by the names of its files, p226_001.wav.
    """
    if split is None:
        return folder, set()
    inside = folder / VOICEBANK[split][0]
    folder, own = (inside, True) if inside.is_dir() else (folder, False)
    paths = [] if own and split == "test" else list_audio(folder)
    held_out = {path.resolve() for path in paths if path.name.startswith(VOICEBANK_VALID)}
    if split == "valid":
        return (folder, {path.resolve() for path in paths} - held_out) if held_out else (None, set())
    return folder, held_out


def speech_and_noise(root, split):
    """(speech folder, noise folder, resolved paths of speech that the split leaves out), or None where `root` has no
    such folders for this split."""
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    for folder in (root / split, root):
        if (folder / "speech").is_dir() and (folder / "noise").is_dir():
            speech_dir, left_out = voices(folder / "speech", split if folder == root else None)
            return speech_dir and (speech_dir, folder / "noise", left_out)


def open_data(root, split, snrs=(0, 5, 10, 15), augmentation=Augmentation(), **options):
    """PairedAudio, or MixedAudio where SPLIT/speech and SPLIT/noise (or speech and noise) stand in `root`.

    What has no splits serves training and test, and no validation; but where `speech` holds the clean files of
    VoiceBank, in its folders or by its names, these have its splits.
    """
    found, root = speech_and_noise(root, split), Path(root)
    if found and not (found[1].parent / "pairs").is_dir():
        speech_dir, noise_dir, left_out = found
        options["without"] = {*options.get("without", ()), *left_out}
        return MixedAudio(speech_dir, noise_dir, snrs, augmentation=augmentation, **options)
    if split == "train" and augmentation.any():
        names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Augmentation)]
        raise ValueError(f"{', '.join(names)} are for speech and noise that are mixed here; {root} holds mixtures")
    try:
        return PairedAudio(root, split, **options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {split}/speech + {split}/noise; speech + noise") from None


def write_mixtures(dataset, folder, first=0, every=1):
    """Paths for each recording of a MixedAudio and its mixture: two lists, in folder/clean and folder/noisy.

    Every `every`-th from number `first` on is written.
    """
    clean, noisy = ([folder / side / f"{i:05}.wav" for i in range(len(dataset))] for side in ("clean", "noisy"))
    for i in tqdm(range(first, len(dataset), every), "mixing", unit="file", leave=False):
        for path, wave in zip((clean[i], noisy[i]), dataset.utterance(i)[1:]):
            save_audio(path, wave[None], SAMPLE_RATE, "PCM_24")
    return clean, noisy


def batches(dataset, batch_size, step=0, rank=0, world=1, workers=4, num_crops=0):
    """Yield batches (clean, noisy) for ever, from batch number `step` on; the rank-th of `world` equal parts of each.

    Recordings in memory need no workers beside a CPU, which has its hands full; others are cut, and beside a GPU all
    are, by that many processes. num_crops: size of a fixed training set, which repeats in the same order; 0: none.
    """
    def positions():
        for number in itertools.count(step):
            first = (number * world + rank) * batch_size
            yield [p % num_crops if num_crops else p for p in range(first, first + batch_size)]

    if dataset.device.type == "cpu" and dataset.resident:
        workers = 0
    # Its own generator: from the global one it would draw a number, in the first step of a run that is resumed, too.
    loader = torch.utils.data.DataLoader(dataset, batch_sampler=positions(), num_workers=workers,
                                         collate_fn=dataset.collate, prefetch_factor=4 if workers else None,
                                         generator=torch.Generator())
    for collated in loader:
        yield dataset.mix(*collated)


# ------------------------------------------------------------------------------------------------ the command
