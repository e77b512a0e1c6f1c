"""Sound in and out: compressed spectrogram, audio files, endless batches of clean and noisy crops.

    Spectrogram                STFT with amplitude compression, and back, as in SGMSE+ (2208.05830)
    in_spectrogram             transform and padding around a function of spectrograms
    enhance_normalised         gain, offset, clicks and pauses around a function of waves
    mix_at_snr                 speech + noise at a given signal-to-noise ratio

    load_audio, save_audio     any common file, to its end; written by rename, never half
    read_blocks, audio_writer  the same piece by piece, for recordings of any length
    list_audio                 the recordings below a folder; a warning counts the other files
    cached, cached_rows        arrays kept in files: room responses, a separator's estimates

    Recordings                 decoded once into one file that all processes map
    PairedAudio                folders of clean and noisy files with the same names
    MixedAudio                 any folder of speech and of noise, new mixtures every epoch
    UnpairedAudio              noisy crops of either, clean crops of other recordings
    open_data                  finds out which of them a folder is
    batches                    (clean, noisy) float32 (B, L), divided by the level of the noisy crop

Which crop a batch holds is a pure function of seed and position, so that a run resumed at step n,
one with other workers and one on other hardware all see the same data. Recordings are read by PyAV.
A corpus of any size is decoded once into one int16 file; runs, processes and loaders map it. Beside
a GPU, worker processes cut and vary the crops; rooms, ratios and levels are batched tensor
operations on the training device.

Tutorial: tutorials/1_sound.ipynb
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import tempfile
import uuid
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import av
import numpy as np
import soundfile
import soxr
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

SAMPLE_RATE = 16000                                      # Hz, of everything inside
SILENT_PEAK = 8 / 32768  # 8 LSB of 16 bits: what stays below is silence


# -------------------------------------------------------------------------------- spectrogram


@dataclass(frozen=True)
class SpectrogramConfig:
    """Constants of the spectrogram, part of every method's Config; defaults of SGMSE+."""
    n_fft: Annotated[int, "[1, inf)"] = 510        # STFT window, samples
    hop_length: Annotated[int, "[1, inf)"] = 128   # samples
    num_frames: Annotated[int, "[1, inf)"] = 256   # frames of a training crop
    exponent: Annotated[float, "(0, inf)"] = 0.5   # amplitude compression of the spectrogram
    factor: Annotated[float, "(0, inf)"] = 0.15    # its scale
    pad_mode: Literal["constant", "reflect"] = "constant"  # of added frames
    normalize: Literal["peak", "robust"] = "peak"  # gain: by the peak (published), or robust (ours)


class Spectrogram(nn.Module):
    """STFT with amplitude compression c -> factor |c|^exponent e^(i angle c), as in SGMSE+.

    forward: waves (..., L) -> complex (..., F, T), F = n_fft // 2 + 1, T = 1 + ceil(L /
    hop_length); 510 makes F = 256, which the network can halve. inverse: the way back. stft and
    istft are the same without compression. transform: "log" is factor log(1 + |c|), "none" only the
    STFT. window: "hann" or "sqrthann", both periodic.

    The frames are those of torch.stft, and where L is no multiple of the hop one more: behind the
    centre of the last frame the windows fade to nothing, and the inverse would divide by that.
    """

    def __init__(self, n_fft=510, hop_length=128, exponent=0.5, factor=0.15, window="hann",
                 transform="exponent"):
        super().__init__()
        if transform not in ("exponent", "log", "none") or window not in ("hann", "sqrthann"):
            raise ValueError("transform is exponent, log or none, window hann or sqrthann; got "
                             f"{transform}, {window}")
        if not 1 <= hop_length <= n_fft // 2 + 1:        # or a sample falls between two windows
            raise ValueError(f"--hop-length: expected at most {n_fft // 2 + 1}, half of --n-fft; "
                             f"got {hop_length}")
        self.n_fft, self.hop_length = n_fft, hop_length
        self.exponent, self.factor = exponent, factor
        hann = torch.hann_window(n_fft, periodic=True)
        self.register_buffer("window", hann.sqrt() if window == "sqrthann" else hann,
                             persistent=False)
        if transform == "log":
            self.compress = lambda c: factor * c.abs().clamp(1e-8).log1p() / c.abs().clamp(1e-8) * c
            self.decompress = lambda c: (
                (c.abs().clamp(1e-8) / factor).expm1() / c.abs().clamp(1e-8) * c)
        if transform == "none":
            self.compress = self.decompress = lambda c: c

    def forward(self, wave):
        return self.compress(self.stft(wave))

    def inverse(self, spec, length):
        return self.istft(self.decompress(spec), length)

    def stft(self, wave):
        length, half = wave.shape[-1], self.n_fft // 2
        if length <= half:
            raise ValueError(f"expected more than {half} samples, half a window; got {length}")
        flat = F.pad(wave.reshape(-1, 1, length), (half, half), "reflect")[:, 0]         # (N, L')
        flat = F.pad(flat, (0, -length % self.hop_length))
        spec = torch.stft(flat, self.n_fft, self.hop_length, window=self.window.to(wave.dtype),
                          center=False, return_complex=True)               # (N, F, T)
        return spec.reshape(*wave.shape[:-1], *spec.shape[-2:])

    def istft(self, spec, length):
        flat, window = spec.reshape(-1, *spec.shape[-2:]), self.window.to(spec.real.dtype)
        wave = torch.istft(flat, self.n_fft, self.hop_length, window=window, length=length)
        return wave.reshape(*spec.shape[:-2], length)

    # The bound on |c| keeps value and gradient finite at digital silence.

    def compress(self, c):
        return self.factor * c.abs().clamp(min=1e-8) ** (self.exponent - 1) * c

    def decompress(self, c):
        c = c / self.factor
        return c.abs().clamp(min=1e-8) ** (1 / self.exponent - 1) * c

    def samples(self, frames):
        """Number of samples of a crop that fills exactly `frames` frames."""
        return (frames - 1) * self.hop_length


def pad_frames(spec, multiple, mode="constant"):
    """Pad (..., F, T) on the right to a multiple of frames, with zeros or by "reflect"."""
    missing = -spec.shape[-1] % multiple
    if mode == "reflect" and missing < spec.shape[-1]:   # else there is not enough to reflect
        return torch.cat([spec, spec[..., -1 - missing:-1].flip(-1)], dim=-1)
    return F.pad(spec, (0, missing))


def per_bin(a):
    """(B,) -> (B, 1, 1, 1), to scale a spectrogram."""
    return a[:, None, None, None]


def mix_at_snr(speech, noise, snr_db):
    """speech + g noise, both (..., L), with g such that their mean powers differ by snr_db."""
    snr_db = torch.as_tensor(snr_db, dtype=speech.dtype, device=speech.device)
    power_ratio = speech.square().mean(-1) / noise.square().mean(-1)
    gain = (power_ratio / 10 ** (snr_db / 10)).sqrt()
    return speech + gain[..., None] * noise


def in_spectrogram(enhance, wave, spectrogram, multiple=1, pad_mode="constant"):
    """Transform and padding around a function of spectrograms: (B, L) or (B, C, L) -> (B, L).

    enhance: function, complex (B, C, F, T) with T a multiple of `multiple` -> complex (B, 1, F, T);
    C is 1 for (B, L).
    """
    y = spectrogram(wave if wave.ndim == 3 else wave[:, None])             # (B, C, F, T)
    x = enhance(pad_frames(y, multiple, pad_mode))[..., :y.shape[-1]]      # (B, 1, F, T)
    return spectrogram.inverse(x[:, 0], wave.shape[-1])


# --------------------------------------------------------------------------------- gain and pauses

LOUDEST = 0.002  # fraction of the samples of a second that does not count towards its level: 2 ms
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
    curve = F.pad(curve, (half // 2 + 1, half // 2), "replicate").double().cumsum(-1)
    curve = (curve[..., half + 1:] - curve[..., :-half - 1]) / (half + 1)          # a moving mean
    return curve[..., :wave.shape[-1]].to(wave).exp()


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
            if still.shape[1] != y.shape[1]:
                still = still[:, :1].expand(-1, y.shape[1], -1)
            parts[1][..., pause] = still
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

    Losses such as SI-SDR ignore the gain of the output. The gain is 1 where the estimate is
    more than 15 dB below the mixture: there is no speech to compare with.
    """
    power = estimate.square().sum(-1, keepdim=True).clamp(min=1e-8)
    gain = ((estimate * mixture).sum(-1, keepdim=True) / power).clamp(0.5, 2)
    audible = power > 10 ** -1.5 * mixture.square().sum(-1, keepdim=True)
    return torch.where(audible, gain, torch.ones_like(gain))


# -------------------------------------------------------------------------------------- files

SUFFIXES = (".wav", ".wave", ".w64", ".rf64", ".au", ".snd", ".caf", ".aif", ".aiff", ".aifc",
            ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".webm", ".mka")
# What is written: the format of a suffix where it is not the suffix itself.
FORMATS = {".wave": "WAV", ".aif": "AIFF", ".aifc": "AIFF", ".snd": "AU", ".opus": "OGG",
           ".oga": "OGG"}
# What FFmpeg may take a file for: its other formats include playlists, which open further files.
DEMUXERS = "wav,w64,au,caf,aiff,flac,ogg,mp3,aac,mov,matroska"
LOSSLESS = ("WAV", "W64", "RF64", "AU", "CAF", "AIFF", "FLAC")
CODEC_FRAME = 2304       # samples that a lossy file may lack: two frames of MP3
SLACK = 64               # bytes that the header of a WAV may state too many: some count themselves


def plain_warnings():
    """Print each warning as one line, without its place in the code: for commands."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"


class AudioError(ValueError):
    """A recording that cannot be used. The message names the file and what is wrong with it."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header of a recording says."""
    samplerate: int                  # Hz; that of Opus is 48000
    channels: int
    frames: int                      # samples of a channel; 0 where the header does not say
    format: str                      # libsndfile's name where it knows the format, else FFmpeg's
    subtype: str                     # of the samples


def list_audio(folder):
    """Sorted paths of the audio files below `folder`; a warning counts the other files.

    Follows links, passes over names that begin with a dot. Raises FileNotFoundError where there is
    no audio file.
    """
    paths, others, seen = [], collections.Counter(), set()
    for here, folders, files in os.walk(folder, followlinks=True):
        new = os.path.realpath(here) not in seen         # else a link has led back
        seen.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if new and not name.startswith("."))
        for path in (Path(here) / name for name in files if new and not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                paths.append(path)
            else:
                others[path.suffix.lower() or "no suffix" if path.exists() else "broken link"] += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    left_out = f"not read: {others.total()} ({kinds})"
    if not paths:
        raise FileNotFoundError(f"no audio file ({', '.join(SUFFIXES)}) below {folder}"
                                + f"; {left_out}" * bool(others))
    if others:
        warnings.warn(f"{folder}: {left_out}", stacklevel=2)
    return sorted(paths)


def by_name(folder):
    """{path below the folder without suffix: path of the audio file}.

    Raises FileNotFoundError without audio, ValueError for a name that is used twice.
    """
    files = {}
    for path in list_audio(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{files[name]} and {path} have the same name but for the suffix; "
                             "which one is meant?")
        files[name] = path
    return files


@contextlib.contextmanager
def audio_stream(path):
    """The first audio stream of a file, for PyAV to decode within the block.

    Raises AudioError, also for whatever the decoder raises there.
    """
    try:
        # Without the prefix FFmpeg would take a name with a colon for a protocol.
        with av.open(f"file:{path}", metadata_errors="replace",
                     options={"format_whitelist": DEMUXERS}) as container:
            stream = container.streams.audio[0]
            if not stream.codec_context.sample_rate:
                raise ValueError("its header is incomplete")
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
            yield stream
    except AudioError:
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError, AttributeError) as error:
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        reason = "the file is empty" if empty else getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: not a readable audio file ({reason}); "
                         "convert it to WAV or FLAC, or take it out") from None


def stated_frames(stream):
    """Samples of a channel that the container says it has, 0 where it does not say."""
    container = stream.container
    if container.format.name in ("mp3", "aac") and not stream.start_time:
        return 0                         # without a header FFmpeg guesses from the bit rate
    if stream.duration is None:
        return round((container.duration or 0) * stream.rate / av.time_base)
    return max(round(stream.duration * stream.time_base * stream.rate), stream.frames)


def audio_info(path):
    """Header of a recording. Raises AudioError for a file without audio."""
    with audio_stream(path) as stream:
        codec = stream.codec_context
        kind = stream.container.format.name.split(",")[0].upper(), codec.name.upper()
        with contextlib.suppress(soundfile.LibsndfileError):
            known = soundfile.info(os.fsencode(path))
            kind = known.format, known.subtype
        return AudioInfo(codec.sample_rate, codec.channels, stated_frames(stream), *kind)


def cut_wav(path):
    """Whether a WAV or W64 says that it has more data than the file holds; FFmpeg would not tell.

    Writers that do not know the length say 0 or almost 2 or 4 GiB.
    """
    with open(path, "rb") as file:
        head, end = file.read(24), 12
        if head[:4] == b"riff":                          # W64: the size of the whole file
            end = int.from_bytes(head[16:24], "little")
        elif head[:4] == b"RIFF":
            name, size = head, 0
            while len(name) >= 4 and name[:4] != b"data":
                file.seek(end)
                name = file.read(8)
                size = int.from_bytes(name[4:], "little")
                end += 8 + size + size % 2
            end *= size < 0x7FFFF000
        return end > os.path.getsize(path) + SLACK


def read_blocks(path, sample_rate=SAMPLE_RATE, strict=True, block=1 << 16):
    """Yield float32 arrays (samples, channels) at `sample_rate`, in constant memory.

    Raises AudioError for what cannot be decoded, for samples that are not finite and for a file
    with fewer samples than it states; for the last, where not `strict`, warns.
    """
    with audio_stream(path) as stream:
        codec, read = stream.codec_context, 0
        rate, stated = codec.sample_rate, stated_frames(stream)
        to_float = av.AudioResampler("flt", frame_size=block)
        resampler = soxr.ResampleStream(rate, sample_rate, codec.channels, "float32", "HQ")
        for frame in itertools.chain(decoded_frames(stream), [None]):
            for part in to_float.resample(frame):
                x = part.to_ndarray().reshape(-1, codec.channels)
                read += len(x)
                if not np.isfinite(x).all():
                    raise AudioError(f"{path}: NaN or infinite samples before second "
                                     f"{read / rate:.1f}; write it again, or take it out")
                yield x if rate == sample_rate else resampler.resample_chunk(x)
        if rate != sample_rate:
            yield resampler.resample_chunk(np.zeros((0, codec.channels), np.float32), last=True)
        if not read:
            raise AudioError(f"{path}: holds no samples; take it out")
        if cut_wav(path) or read + CODEC_FRAME * (not codec.codec.lossless) < stated:
            problem = (f"{path}: truncated or damaged, it has {read} samples and states more; "
                       "copy it again, or take it out")
            if strict:
                raise AudioError(problem)
            warnings.warn(problem, stacklevel=2)


def decoded_frames(stream):
    """Yield what PyAV decodes; a damaged packet is passed over and missing in the end."""
    for packet in stream.container.demux(stream):
        with contextlib.suppress(av.error.InvalidDataError):
            yield from packet.decode()


def load_audio(path, sample_rate=SAMPLE_RATE):
    """(float32 (channels, samples) at `sample_rate`, the file's own rate). Raises AudioError."""
    x = np.concatenate(list(read_blocks(path, sample_rate)))
    with audio_stream(path) as stream:
        return torch.from_numpy(np.ascontiguousarray(x.T)), stream.codec_context.sample_rate


def written_subtype(info, format):
    """The sample format of `info` where a file of that `format` can hold it, else 16 bits."""
    other = {"PCM_S8": "PCM_U8", "PCM_U8": "PCM_S8"}.get(info.subtype)
    exact = info.subtype.startswith("PCM") or info.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
    fits = [subtype for subtype in (info.subtype, other, "PCM_16")
            if subtype and exact and soundfile.check_format(format, subtype)]
    return fits[0] if fits else "PCM_16"


@contextlib.contextmanager
def atomic_write(path, part=None):
    """Name of a temporary file beside `path`, which takes its place when the block ends.

    A kill or an exception leaves the file that was there. Flushed to the disk. Raises OSError that
    names `path` where it cannot be written. part: the name, where one process writes at a time.
    """
    path = Path(path)
    part = Path(part or path.with_name(f".{uuid.uuid4().hex}.part"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"{path} could not be written, the file before is kept ({error}); "
                      "free some space, or choose a folder that you may write to") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def audio_writer(path, sample_rate, channels, subtype=None, frames=0):
    """A SoundFile to write to, that appears under its name only when it is complete.

    The format is the suffix's; a WAV that `frames` samples make larger than 4 GiB is an RF64, which
    has no such limit. Raises AudioError for a format that cannot be, OSError as atomic_write does.
    """
    suffix = Path(path).suffix.lower()
    format = FORMATS.get(suffix, suffix[1:].upper())
    subtype = subtype or {".opus": "OPUS"}.get(suffix)
    if format == "WAV" and frames * channels * 8 >= 1 << 32:               # 8: of the widest sample
        format = "RF64"
    with atomic_write(path) as part:
        try:
            file = soundfile.SoundFile(os.fsencode(part), "w", sample_rate, channels, subtype,
                                       format=format)
        except (ValueError, TypeError, soundfile.LibsndfileError):
            raise AudioError(f"{path}: libsndfile cannot write '{suffix}', {subtype or 'default'} "
                             f"samples, {channels} channels, {sample_rate} Hz. "
                             "WAV supports most of them") from None
        try:
            with file:
                yield file
            # A full disk is an assertion of soundfile; when a codec closes its file, nothing.
            assert not file.frames or len(soundfile.read(os.fsencode(part), 1, file.frames - 1)[0])
        except (soundfile.LibsndfileError, AssertionError) as error:
            raise OSError(str(error) or "not all samples were written") from None


def cached(path, compute):
    """The array in the file `path` (.npz); where it is missing or damaged, compute() is put there.

    Raises OSError where it cannot be written.
    """
    try:
        with np.load(path) as file:                      # a zip file, which checks its sum
            return file["array"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        array = compute()
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez(file, array=array)
    return array


def cached_rows(function, waves, store, key):
    """function(waves), (B, ...) -> (B, ...), each example kept in a file of the folder `store`.

    key: a name for the function. New ones are computed without gradient and with noise of their
    own, so that nothing else depends on whether they were there.
    """
    def row(wave):
        name = fingerprint(wave)

        def compute():
            with torch.no_grad(), torch.random.fork_rng([wave.device] if wave.is_cuda else []):
                torch.manual_seed(int(name[:8], 16))
                return function(wave[None])[0].cpu().numpy()
        return torch.from_numpy(cached(store / f"{key}-{name}.npz", compute)).to(wave.device)
    return torch.stack([row(wave) for wave in waves])


def fingerprint(*tensors):
    """A name for what is computed from these tensors: 32 digits of the SHA-256 of their numbers."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:32]


def save_audio(path, wave, sample_rate, subtype=None):
    """Write (samples,) or (channels, samples) in [-1, 1]; the suffix chooses the format.

    subtype: libsndfile's name of the sample format. Values outside [-1, 1] are clipped by integer
    formats. The file appears by rename, or not at all.
    """
    x = torch.as_tensor(wave).detach().cpu().numpy()
    x = x.T if x.ndim == 2 else x[:, None]
    with audio_writer(path, sample_rate, x.shape[1], subtype, len(x)) as file:
        file.write(x)


# -------------------------------------------------------------------------------------- corpora

VOICEBANK = {"train": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
             "valid": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
             "test": ("clean_testset_wav", "noisy_testset_wav")}
VOICEBANK_VALID = ("p226_", "p287_")     # the two speakers that the field holds out for validation
SHORTEST = 510                           # samples of a recording: one window of the spectrogram
QUIET = 0.01                             # a crop must reach this fraction of its recording's level


class Recordings:
    """Mono 16 kHz recordings, index by index as in `paths`, in one int16 file that processes map.

    They are decoded into it once. folder: where that file is kept, for other runs too; by default
    it is temporary and gone with the process. A recording that cannot be used keeps its index with
    length 0; `problems` says what is wrong with each. One beyond full scale is kept with fewer
    bits: `scales`, 1 or a power of 2.
    identity: number of recordings, of samples, and a hash of relative names and lengths; the same
    wherever the folder of recordings lies. Raises AudioError where none can be used.
    """

    def __init__(self, paths, folder=None):
        self.paths, self.levels = paths, {}
        # A map outlives the name of its file.
        with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
            samples, notes = decode_once(paths, Path(place))
        self.lengths = np.array(notes["lengths"])
        self.scales = np.array(notes["scales"], np.float32)
        self.problems = [f"{paths[int(i)]}: {problem}" for i, problem in notes["problems"].items()]
        self.waves = np.split(np.asarray(samples), np.cumsum(self.lengths)[:-1])     # views
        self.identity = {"recordings": int(np.count_nonzero(self.lengths)), "samples": len(samples),
                         "hash": digest_of(list(zip(relative_names(paths), notes["lengths"])))}

    def append(self, name, wave):
        """A recording without a file, float32 (L,) in [-1, 1], as the last one."""
        self.paths, self.lengths = [*self.paths, name], np.append(self.lengths, len(wave))
        self.scales = np.append(self.scales, np.float32(1))
        self.waves = [*self.waves, to_int16(wave)]

    def wave(self, index):
        """A whole recording, float32 (L,)."""
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
        wave = self.waves[index][first:last] * (self.scales[index] / np.float32(32768))
        if loop:
            return np.resize(np.roll(wave, first - start), num_samples)
        crop = np.zeros(num_samples, np.float32)
        crop[first - start:last - start] = wave
        return crop


def decode_once(paths, folder):
    """(int16 samples of all recordings, mapped; their lengths, scales and problems, a dict).

    The file is known by the names, sizes and times of change of the recordings. The first process
    that asks writes it and the others wait. A kill leaves no file that is taken for complete.
    """
    sizes_and_times = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths)]
    key = digest_of([SAMPLE_RATE, SHORTEST, *zip(relative_names(paths), sizes_and_times)])
    file, notes = folder / f"{key}.npy", folder / f"{key}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{key}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)                 # freed by the system when the process ends
        if not (file.exists() and notes.exists()):
            decode_all(paths, file, notes)
    return np.load(file, mmap_mode="r"), json.loads(notes.read_text())


def decode_all(paths, file, notes):
    """Write the two files of decode_once; that of the samples appears last and complete."""
    lengths, scales, problems = [], [], {}
    header = {"descr": "<i2", "fortran_order": False, "shape": (0,)}
    with (atomic_write(file, file.with_suffix(".part")) as part, open(part, "wb") as out,
          concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
          tqdm(desc="decoding", total=len(paths), unit="file", mininterval=1) as bar):
        np.lib.format.write_array_header_1_0(out, header)          # of one size for all shapes
        for first in range(0, len(paths), 64):                     # bounds what waits in memory
            for samples, scale, problem in pool.map(decode, paths[first:first + 64]):
                if problem:
                    problems[len(lengths)] = problem
                lengths.append(len(samples))
                scales.append(scale)
                out.write(samples)
                bar.update()
                bar.set_postfix_str(f"{out.tell() / 1e6:.0f} MB in {file}", refresh=False)
        if not any(lengths):
            first = f"; the first: {paths[0]}: {problems[0]}" if paths else ""
            raise AudioError(f"none of {len(paths)} recordings can be used{first}")
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, header | {"shape": (sum(lengths),)})
        with atomic_write(notes) as other:
            about = {"lengths": lengths, "scales": scales, "problems": problems}
            other.write_text(json.dumps(about))


def decode(path):
    """(int16 samples, mono at 16 kHz; their scale; what is wrong with the recording, or "")."""
    try:
        wave = np.concatenate([block.mean(1) for block in read_blocks(path)])
        if len(wave) < SHORTEST:
            raise AudioError(f"{len(wave)} samples at 16 kHz, shorter than one frame of {SHORTEST}")
    except AudioError as error:
        return np.zeros(0, np.int16), 1.0, str(error).removeprefix(f"{path}: ")
    scale = 2.0 ** max(0, math.ceil(math.log2(max(np.abs(wave).max(), 1))))
    return to_int16(wave / scale), scale, ""


def to_int16(x):
    return (x * 32768).round().clip(-32768, 32767).astype(np.int16)


def relative_names(paths):
    """Names of files below the folder that they have in common."""
    paths = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [os.path.relpath(path, common) for path in paths]


def digest_of(items):
    """A name for what JSON can hold: 16 digits of its SHA-256."""
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]


class Crops:
    """An endless, seeded order of crops from sets of recordings: base of the classes below.

    Position p belongs to epoch p // len(self) and, within it, to one file of the epoch's
    permutation. Every other choice for it is drawn from a generator seeded with (seed, p). A crop
    that is silent where it must be active is drawn again from another file; `problems` names the
    files and counts the crops.

    Classes say what their sources are called (roles), which of them repeat (loops) and which must
    be active (must_be_active).
    """

    lead = 0                             # samples that a crop has before those of the batch

    def __init__(self, sources, files, num_samples, seed, normalize="peak", device="cpu"):
        self.sources, self.files, self.num_samples, self.seed = sources, files, num_samples, seed
        self.normalize, self.device = normalize, torch.device(device)
        self.order = (None, None)                        # (epoch, its permutation of the files)
        self.problems = collections.Counter()
        self.note(itertools.chain.from_iterable(source.problems for source in sources))
        if not len(files):
            first = next(iter(self.problems))
            raise AudioError(f"no pair of recordings can be used; the first: {first}")

    def __len__(self):
        return len(self.files)

    @property
    def identity(self):
        """What each source is: number of recordings and samples, a hash of names and lengths."""
        sources = dict.fromkeys(self.sources)            # each once
        return {role: source.identity for role, source in zip(self.roles, sources)}

    def __getitem__(self, position):
        """(indices, starts, choices of `draw`, a float32 crop of each source, problems met)."""
        epoch, place = divmod(position, len(self))
        if self.order[0] != epoch:
            self.order = epoch, np.random.default_rng([self.seed, epoch, 0]).permutation(self.files)
        rng = np.random.default_rng([self.seed, position, 1])
        return self.draw_active(self.order[1][place], rng)

    def draw_active(self, index, rng, whole=False):
        """An item of the file `index`, or of another where that is silent; `whole`: all of it."""
        problems = []
        for _ in range(100):
            length = int(self.sources[0].lengths[index]) if whole else self.num_samples
            indices, starts, choices = self.draw(index, rng, length)
            crops = [source.crop(i, start, length + self.lead, loop)
                     for source, i, start, loop in zip(self.sources, indices, starts, self.loops)]
            silent = [self.sources[k].paths[indices[k]] for k in self.must_be_active
                      if not is_active(crops[k][self.lead:], self.sources[k].level(indices[k]))]
            if not silent:
                return indices, starts, choices, crops, problems
            problems.append(f"{silent[0]}: a crop of it is silent")
            index = rng.choice(self.files)
        raise AudioError(f"100 crops in a row could not be used; the last: {problems[-1]}")

    def note(self, problems):
        for problem in problems:
            if problem not in self.problems:
                warnings.warn(f"left out: {problem}", stacklevel=3)
            self.problems[problem] += 1

    def collate(self, items):
        """Items -> (crops of each source (B, L), choices, problems): what a worker hands over."""
        _, _, choices, crops, problems = zip(*items)
        waves = [torch.from_numpy(np.stack(source)) for source in zip(*crops)]
        return waves, torch.tensor(choices), list(itertools.chain.from_iterable(problems))

    def batch(self, items):
        """Items -> (clean, noisy), float32 (B, L) on the device, at the level of the noisy crop.

        (B, S, L) and (B, M, L) from RoomMixtures; the level is that of all microphones. It is the
        peak, or what `normalise` takes for it.
        """
        return self.mix(*self.collate(items))

    def mix(self, waves, choices, problems):
        """What `collate` gives -> what `batch` gives: the part that the training device does."""
        self.note(problems)
        waves, choices = [wave.to(self.device) for wave in waves], choices.to(self.device)
        clean, noisy = self.combine(*waves, choices)
        if self.normalize == "robust":
            noisy, gain = normalise(noisy)
            return clean / gain, noisy
        peak = noisy.abs().amax(tuple(range(1, noisy.ndim)), keepdim=True)
        return clean / peak, noisy / peak


def random_start(length, num_samples, rng):
    """Uniform start of a crop; one that is longer than the recording is centred on it."""
    spare = int(length) - num_samples
    return int(rng.integers(spare + 1)) if spare >= 0 else -(-spare // 2)


def is_active(crop, level):
    """Whether a crop (L,) of a recording of that level has more than room tone or dither."""
    peak = click_robust_peak(torch.from_numpy(crop)).item()
    return peak > max(QUIET * level, SILENT_PEAK)


class PairedAudio(Crops):
    """Clean and noisy files with the same names, cut at the same place.

    root: VoiceBank-DEMAND as distributed (clean_trainset_28spk_wav, noisy_trainset_28spk_wav,
    clean_testset_wav, noisy_testset_wav; "valid" is its training speakers p226 and p287), or a
    folder with SPLIT/[pairs/]clean and noisy, or with clean and noisy, without a split "valid".
    Names agree, or end in the same fileid_7, as in the DNS challenge's test set. Raises
    FileNotFoundError where none of these is found, ValueError that lists the files without a
    partner, AudioError where no pair can be used.
    without: resolved paths of clean files that are left out, with their noisy ones. corpora: folder
    of decoded recordings, see Recordings.
    """

    roles, loops, must_be_active = ("clean", "noisy"), (False, False), (1,)

    def __init__(self, root, split="train", num_samples=32640, seed=0, device="cpu", corpora=None,
                 without=(), normalize="peak"):
        pairs = zip(*paired_paths(root, split))
        pairs = [pair for pair in pairs if pair[0].resolve() not in without]
        clean, noisy = (Recordings([pair[side] for pair in pairs], corpora) for side in (0, 1))
        for path, a, b in zip(clean.paths, clean.lengths, noisy.lengths):
            if a and b and abs(a - b) > SAMPLE_RATE // 10:
                warnings.warn(f"{path} lasts {a / SAMPLE_RATE:.1f} s and its noisy partner "
                              f"{b / SAMPLE_RATE:.1f} s: both are cut to the shorter", stacklevel=2)
        clean.lengths = noisy.lengths = np.minimum(clean.lengths, noisy.lengths)
        files = np.flatnonzero(clean.lengths)
        super().__init__((clean, noisy), files, num_samples, seed, normalize, device)

    def draw(self, index, rng, length):
        start = random_start(self.sources[0].lengths[index], length, rng)
        return (index, index), (start, start), math.nan

    def combine(self, clean, noisy, snr_db):
        return clean, noisy

    def utterance(self, number):
        """A whole pair: (name, clean (L,), noisy (L,))."""
        index = self.files[number]
        waves = [source.wave(index) for source in self.sources]
        return self.sources[0].paths[index].stem, *waves


Fraction = Annotated[float, "[0, 1]"]    # see nets.check_fields


@dataclass
class Augmentation:
    """How often MixedAudio varies a crop: probabilities, each drawn by itself. Ours."""
    babble: Fraction = 0.0              # the noise is six speakers of the speech folder at once
    second_noise: Fraction = 0.0        # another recorded noise joins, up to 10 dB below
    synthetic_noise: Fraction = 0.0     # rumble, hum, wind or a band joins or replaces the noise
    hiss: Fraction = 0.0                # hiss or hum 33 to 58 dB below the mixture is added
    speech_dropout: Fraction = 0.0      # the speech pauses for a while and the noise goes on
    no_speech: Fraction = 0.0           # noise alone: the target is silence
    quiet_part: Fraction = 0.0          # a part of the crop is up to 30 dB quieter
    speed: Fraction = 0.0               # speech and noise play 0.8 to 1.25 times as fast
    random_eq: Fraction = 0.0           # speech and noise pass a random equaliser each

    def any(self):
        return any(getattr(self, field.name) for field in dataclasses.fields(Augmentation))


class MixedAudio(Crops):
    """Speech and noise from any two folders, mixed at a ratio drawn from `snrs` (dB) every epoch.

    Every second of noise is equally likely; a noise shorter than a crop repeats. augmentation: see
    there. without: resolved paths of speech that is left out, of babble too. corpora: folder of
    decoded recordings, see Recordings. Raises FileNotFoundError for a folder without audio,
    AudioError where no file in it can be used.
    """

    roles, loops, must_be_active = ("speech", "noise"), (False, True), (0, 1)

    def __init__(self, speech_dir, noise_dir, snrs=(0, 5, 10, 15), num_samples=32640, seed=0,
                 device="cpu", corpora=None, without=(), normalize="peak",
                 augmentation=Augmentation()):
        paths = [path for path in list_audio(speech_dir) if path.resolve() not in without]
        speech = Recordings(paths, corpora)
        noise = Recordings(list_audio(noise_dir), corpora)
        self.augmentation, self.snrs, self.noise_ends = augmentation, snrs, np.cumsum(noise.lengths)
        if augmentation.babble:
            noise.append("babble", make_babble(speech, np.random.default_rng([seed, 3])))
        files = np.flatnonzero(speech.lengths)
        super().__init__((speech, noise), files, num_samples, seed, normalize, device)

    def draw(self, index, rng, length):
        start = random_start(self.sources[0].lengths[index], length, rng)
        noise, noise_start = self.draw_noise(rng, length)
        choices = float(rng.choice(self.snrs)), float(rng.integers(1 << 24))
        return (index, noise), (start, noise_start), choices

    def draw_noise(self, rng, length):
        """A file of noise, as likely as it is long, and where in it `length` samples begin."""
        if self.augmentation.babble and rng.random() < self.augmentation.babble:
            noise = len(self.noise_ends)
        else:
            place = rng.integers(self.noise_ends[-1])
            noise = np.searchsorted(self.noise_ends, place, side="right")
        spare = max(int(self.sources[-1].lengths[noise]) - length, 0)
        return noise, int(rng.integers(spare + 1))

    def draw_active(self, index, rng, whole=False):
        indices, starts, choices, crops, problems = super().draw_active(index, rng, whole)
        if self.augmentation.any():
            rng = np.random.default_rng([int(choices[1]), 5])
            other, start = self.draw_noise(rng, len(crops[1]))
            second = self.sources[1].crop(other, start, len(crops[1]), loop=True)
            waves = map(torch.from_numpy, (*crops, second))
            crops = [wave.numpy() for wave in augment(*waves, self.augmentation, rng)]
        return indices, starts, choices, crops, problems

    def combine(self, speech, noise, choices):
        """Crops (B, L) and choices (B, 2) of `draw`, SNR in dB and a seed -> (clean, noisy)."""
        noisy = mix_at_snr(speech, noise, choices[:, 0])
        if self.augmentation.no_speech:
            noisy = torch.where(speech.abs().amax(-1, keepdim=True) > 0, noisy, noise)
        if self.augmentation.hiss:
            noisy = noisy + torch.stack([hiss(wave, int(seed), self.augmentation.hiss)
                                         for wave, seed in zip(noisy, choices[:, 1].tolist())])
        return speech, noisy

    def utterance(self, number):
        """A whole recording and its mixture: (name, clean (L,), noisy (L,)).

        The same at every call. A number beyond the recordings repeats them in other noise.
        """
        rng, index = np.random.default_rng([self.seed, number, 2]), self.files[number % len(self)]
        indices, _, choices, crops, problems = self.draw_active(index, rng, whole=True)
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
        speech = at_speed(speech, rng.uniform(0.8, 1.25))
        noise = at_speed(noise, rng.uniform(0.8, 1.25), loop=True)
    if rng.random() < how.second_noise and noise.any() and second.any():
        noise = mix_at_snr(noise, second, rng.uniform(0, 10))
    if rng.random() < how.synthetic_noise:
        synthetic = torch.from_numpy(synthetic_noise(length, rng)).to(noise)
        if rng.random() < 0.5:
            noise = synthetic
        else:
            noise = mix_at_snr(noise, synthetic, rng.uniform(0, 10))
    if rng.random() < how.speech_dropout:
        gain = torch.ones(length)
        gain[slice(*random_span(length, rng))] = 0
        # some speech is left
        if click_robust_peak(gain * speech) > QUIET * click_robust_peak(speech):
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
    """A wave (L,) played `factor` times as fast, repeated or padded to its length."""
    x = soxr.resample(wave.numpy(), SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
    x = np.resize(x, len(wave)) if loop else np.pad(x, (0, max(0, len(wave) - len(x))))[:len(wave)]
    return torch.from_numpy(x.astype(np.float32))


def hiss(wave, seed, probability):
    """Hiss or hum (L,), 33 to 58 dB below the wave's level, or silence."""
    rng = np.random.default_rng([seed, 6])
    if rng.random() >= probability:
        return torch.zeros_like(wave)
    make = (lambda n, rng: rng.standard_normal(n)) if rng.random() < 0.5 else synthetic_noise
    noise = make(len(wave), rng)
    gain = click_robust_peak(wave).item() * 10 ** (rng.uniform(-58, -33) / 20)
    return gain * torch.from_numpy(noise).to(wave)


def equalised(wave, rng, decibels=5):
    """A wave (L,) through a random equaliser: normal gains in dB at 8 octaves."""
    hertz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    gain = np.interp(np.log2(hertz.clip(62.5)), np.arange(6, 14), rng.normal(0, decibels, 8))
    response = torch.from_numpy(10 ** (gain / 20)).to(wave)
    return torch.fft.irfft(torch.fft.rfft(wave) * response, len(wave))


def synthetic_noise(length, rng):
    """Synthetic noise of streets, cars and rooms: float32 (length,) of unit power.

    Broad-band noise whose level falls by 0 to 8 dB an octave; a band of it; hum or an engine with
    harmonics; wind in gusts. Levels wander slowly.
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
        pitch = base * (1 + rng.uniform(0, 0.03) * wandering(1))           # Hz
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
        order = np.arange(1, min(24, int(7000 / base)) + 1)[:, None]
        waves = np.sin(order * phase + rng.uniform(0, 2 * np.pi, order.shape))
        hum = (order ** -rng.uniform(0.5, 2) * waves).sum(0)
        hum = hum * np.exp(rng.uniform(0, 0.3) * wandering(1))
        noise = hum / hum.std() + 10 ** (rng.uniform(-30, -6) / 20) * noise / noise.std()
    return (noise / noise.std()).astype(np.float32)


def make_babble(speech, rng, speakers=6, minutes=10):
    """`speakers` voices at once, equally loud, each in its own random order: float32 (L,)."""
    total, usable = np.zeros(minutes * 60 * SAMPLE_RATE), np.flatnonzero(speech.lengths)
    for _ in range(speakers):
        end = 0
        while end < len(total):
            wave = speech.wave(rng.choice(usable)).numpy()[:len(total) - end]
            total[end:end + len(wave)] += wave / max(np.sqrt(np.mean(wave ** 2)), 1e-4)
            end += len(wave)
    return (total / np.abs(total).max()).astype(np.float32)


class UnpairedAudio(Crops):
    """Noisy crops as open_data(root, ...) gives them, clean crops of recordings in none of these.

    clean_dir: any folder of clean speech, also that of `root`: of the recordings that both sides
    could use, every second one is clean and the others are made noisy; validation uses none of
    them. A recording is known by its path; a copy of it is another one. Each crop is divided by its
    own level. Raises as open_data does, ValueError where clean_dir holds noisy files too.
    """

    roles, loops, must_be_active = ("unpaired",), (False,), (0,)

    def __init__(self, root, clean_dir, split="train", num_samples=32640, seed=0, device="cpu",
                 corpora=None, normalize="peak", **options):
        held_out = speech_of(root, "valid")
        paths = [path for path in list_audio(clean_dir) if path.resolve() not in held_out]
        options |= dict(num_samples=num_samples, device=device, corpora=corpora,
                        normalize=normalize)
        made_noisy = {path.resolve() for path in paths[::2]}
        self.noisy = open_data(root, split, seed=seed, without=made_noisy, **options)
        speech, sound = ({Path(path).resolve() for path in source.paths}
                         for source in self.noisy.sources)
        for path in paths:
            if path.resolve() in sound:
                raise ValueError(f"{clean_dir} holds {path}, one of the noisy files or noises of "
                                 f"{root}; give a folder of clean speech alone")
        clean = Recordings([path for path in paths if path.resolve() not in speech], corpora)
        # With one seed, the n-th crop of both sides would be cut at the same place of its file.
        own_seed = int(np.random.SeedSequence([seed, 4]).generate_state(1)[0])
        files = np.flatnonzero(clean.lengths)
        super().__init__((clean,), files, num_samples, own_seed, normalize, device)
        self.noisy.problems = self.problems = self.problems + self.noisy.problems

    @property
    def identity(self):
        return super().identity | self.noisy.identity

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
    folders = [(root / clean, root / noisy) for clean, noisy in (
        VOICEBANK[split], (f"{split}/clean", f"{split}/noisy"),
        (f"{split}/pairs/clean", f"{split}/pairs/noisy"), ("clean", "noisy"))]
    if split == "valid":                                 # what trains must not validate
        folders.pop()
    found = [pair for pair in folders if pair[0].is_dir() and pair[1].is_dir()]
    if not found:
        tried = "; ".join(f"{a.relative_to(root)} + {b.relative_to(root)}" for a, b in folders)
        raise FileNotFoundError(f"no clean and noisy files for '{split}' in {root}. "
                                f"Looked for the folders {tried}")
    clean, noisy = (by_number(by_name(folder)) for folder in found[0])
    alone = sorted(clean.keys() ^ noisy.keys())
    if alone:
        more = f" and {len(alone) - 10} more" if len(alone) > 10 else ""
        raise ValueError(f"{len(alone)} files in {found[0][0]} or {found[0][1]} have no partner of "
                         f"the same name in the other: {', '.join(alone[:10])}{more}")
    names = sorted(clean)
    if found[0] == folders[0] and split != "test":
        names = [name for name in names if name.startswith(VOICEBANK_VALID) == (split == "valid")]
    if not names:
        raise FileNotFoundError(f"no recording of the '{split}' speakers in {found[0][0]}")
    return [clean[name] for name in names], [noisy[name] for name in names]


def by_number(files):
    """{name: path} by fileid_7, which pairs of the DNS challenge have in common."""
    numbers = [re.search(r"fileid_\d+$", name) for name in files]
    named = {number[0]: path for number, path in zip(numbers, files.values()) if number}
    return named if len(named) == len(files) else files


def real_recordings(root):
    """The folder of recordings without clean references: the DNS challenge's, or `root`."""
    inside = Path(root) / "real_recordings"
    return inside if inside.is_dir() else root


def speech_of(root, split):
    """Resolved paths of the clean recordings of a split, a set; empty where it has none."""
    try:
        found = speech_and_noise(root, split, noise=False)
        paths = set(list_audio(found[0])) if found else paired_paths(root, split)[0]
    except FileNotFoundError:
        return set()
    return {path.resolve() for path in paths} - (found[2] if found else set())


def speech_and_noise(root, split, noise=True):
    """(speech folder, noise folder, resolved paths of speech that the split leaves out), or None.

    VoiceBank's training voices validate by its speakers p226 and p287, in clean_trainset_28spk_wav
    and beside clean_testset_wav as distributed, or in any folder by the names of its files,
    p226_001.wav. noise: whether there must be a folder of it. Raises FileNotFoundError.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    for folder in (root / split, root):
        if (folder / "speech").is_dir() and (not noise or (folder / "noise").is_dir()):
            break
    else:
        return None
    speech, left_out = folder / "speech", set()
    if folder == root:                                   # of all splits
        inside = speech / VOICEBANK[split][0]
        speech = inside if inside.is_dir() else speech
        paths = [] if speech == inside and split == "test" else list_audio(speech)
        left_out = {path.resolve() for path in paths
                    if path.name.startswith(VOICEBANK_VALID) == (split != "valid")}
        if split == "valid" and len(left_out) == len(paths):
            return None
    return speech, folder / "noise", left_out


def open_data(root, split, snrs=(0, 5, 10, 15), augmentation=Augmentation(), **options):
    """MixedAudio of SPLIT/speech and SPLIT/noise, or of speech and noise; else PairedAudio.

    A folder without splits serves training and test, and no validation; but where `speech` holds
    the clean files of VoiceBank, in its folders or by its names, these have its splits.
    """
    found, root = speech_and_noise(root, split), Path(root)
    if found and not (found[1].parent / "pairs").is_dir():
        speech_dir, noise_dir, left_out = found
        options["without"] = {*options.get("without", ()), *left_out}
        return MixedAudio(speech_dir, noise_dir, snrs, augmentation=augmentation, **options)
    if split == "train" and augmentation.any():
        names = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Augmentation)]
        raise ValueError(f"{', '.join(names)} are for speech and noise that are mixed here; "
                         f"{root} holds mixtures")
    try:
        return PairedAudio(root, split, **options)
    except FileNotFoundError as error:
        more = f"{split}/speech + {split}/noise; speech + noise"
        raise FileNotFoundError(f"{error}; {more}") from None


def write_mixtures(dataset, folder, first=0, every=1):
    """Paths of each recording of a MixedAudio and of its mixture, in folder/clean and folder/noisy.

    Every `every`-th from number `first` on is written.
    """
    clean, noisy = ([folder / side / f"{i:05}.wav" for i in range(len(dataset))]
                    for side in ("clean", "noisy"))
    for i in tqdm(range(first, len(dataset), every), "mixing", unit="file", leave=False):
        for path, wave in zip((clean[i], noisy[i]), dataset.utterance(i)[1:]):
            save_audio(path, wave[None], SAMPLE_RATE, "PCM_24")
    return clean, noisy


def batches(dataset, batch_size, step=0, rank=0, world=1, workers=4, num_crops=0):
    """Yield batches (clean, noisy) for ever, from number `step` on; the rank-th of `world` parts.

    Beside a GPU that many worker processes cut and vary the crops; a CPU trains no faster with any.
    num_crops: size of a fixed training set, in a fixed order; 0: every crop is new.
    """
    def positions():
        for number in itertools.count(step):
            first = (number * world + rank) * batch_size
            yield [p % num_crops if num_crops else p for p in range(first, first + batch_size)]

    workers = 0 if dataset.device.type == "cpu" else workers
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=positions(), num_workers=workers, collate_fn=dataset.collate,
        prefetch_factor=4 if workers else None,
        # A forked process inherits the map; any other would be sent a copy.
        multiprocessing_context="fork" if workers else None,
        # From the global one it would draw a number, in the first step of a resumed run, too.
        generator=torch.Generator())
    for collated in loader:
        yield dataset.mix(*collated)
