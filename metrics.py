"""Scores for enhanced speech, and tables that say how sure they are.

    pesq         1.04 .. 4.64   wide-band PESQ, ITU-T P.862.2 (package `pesq`)
    estoi        -1 .. 1        extended short-time objective intelligibility, Jensen & Taal 2016 (package `pystoi`)
    si_sdr       dB             scale-invariant signal-to-distortion ratio, no mean removal (as SGMSE+ reports it)
    attenuation  dB            how much of a recording without speech was taken away
    si_sir_sar   dB, dB         the same distortion split into remaining noise and artifacts: SI-SIR, SI-SAR
    snr          dB             plain signal-to-noise ratio, not scale-invariant
    seg_snr      dB             mean of the SNRs of 30 ms frames, each limited to -10 .. 35 dB (Hu & Loizou 2008)
    lsd          dB             log-spectral distance
    dnsmos       1 .. 5         no reference: DNSMOS P.808, SIG, BAK, OVRL (packages `onnxruntime`, `speechmos`)
    distillmos   1 .. 5         no reference: DistillMOS (packages `distillmos`, `xls-r-sqa`)
    MODULE:NAME                any function of clean, enhanced, noisy, sample_rate (SCOREQ, NISQA, UTMOS have packages)
    evaluate     Results        scores many files in parallel: .table(), .save_csv(path), .compare(other)
    si_sdr_loss  dB             negative SI-SDR, to train with (tensors)
    PESQLoss     0 .. 5.89      wide-band PESQ as a loss to train with (packages `torch`, `scipy`)

Every score takes signals (L,) or (B, L), arrays or tensors, and returns a float for (L,) and an array (B,) for
(B, L). What cannot be scored raises a ValueError that names the signal: no NaN and no metric library's placeholder
gets into a mean. What was changed before scoring (a crop, a gain) is a warning; `evaluate` keeps it as a note.

    python metrics.py CLEAN_DIR ENHANCED_DIR                              PESQ, ESTOI, SI-SDR
    python metrics.py CLEAN_DIR ENHANCED_DIR --noisy NOISY_DIR            ... and SI-SIR, SI-SAR
    python metrics.py CLEAN_DIR SYSTEM_A SYSTEM_B --csv scores.csv        ... two systems, and B - A, paired
    python metrics.py CLEAN_DIR CLEAN_DIR --metrics dnsmos,distillmos     ... the ceiling of the reference-free scores
"""

import argparse
import concurrent.futures
import contextlib
import csv
import functools
import importlib
import importlib.util
import inspect
import itertools
import multiprocessing
import os
import sys
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
from tqdm import tqdm

SAMPLE_RATE = 16000    # Hz, of everything that `evaluate` scores
SHORTEST = 0.25        # s; PESQ needs as much
SILENCE = 8 / 32768    # peak: 8 LSB of 16 bits, as data.SILENT_PEAK


# ---- what can be scored ----

def checked(silent_ok=False, sample_rate=SAMPLE_RATE, **signals):
    """The named signals as float64 (B, L), cropped to the shortest. Raises ValueError for what no metric can score."""
    arrays = {}
    for name, x in signals.items():
        x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        if x.ndim not in (1, 2) or x.size == 0 or x.dtype.kind not in "fiu":
            raise ValueError(f"{name}: expected real samples (L,) or (B, L), not empty; got {x.dtype} {x.shape}.")
        x = arrays[name] = np.atleast_2d(x).astype(np.float64)
        if not np.isfinite(x).all():
            raise ValueError(f"{name} is NaN or infinite, first at (row, sample) {np.argwhere(~np.isfinite(x))[0]}.")
        if x.shape[1] < SHORTEST * sample_rate:
            raise ValueError(f"{name} lasts {x.shape[1] / sample_rate:.3f} s; expected {SHORTEST} s or more.")
        if not silent_ok and np.abs(x).max(axis=1).min() <= SILENCE:
            raise ValueError(f"{name} is silent in row {np.abs(x).max(axis=1).argmin()}: nothing to score.")
    if len({len(x) for x in arrays.values()}) > 1:
        counts = ", ".join(f"{name} has {len(x)}" for name, x in arrays.items())
        raise ValueError(f"different numbers of channels or signals: {counts}. Score like with like.")
    length = min(x.shape[1] for x in arrays.values())
    for name, x in arrays.items():
        if x.shape[1] > length:
            warnings.warn(f"{name} cropped from {x.shape[1]} to {length} samples")
    return [x[:, :length] for x in arrays.values()]


def like(signal, values):
    """values (B,) as a float where the signal was (L,)."""
    return float(values[0]) if np.ndim(signal) == 1 else np.asarray(values, dtype=np.float64)


def ratio_db(a, b, axis=-1):
    """Ratio of the energies along the axis in dB; 0 and infinity are -inf and inf."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10((a ** 2).sum(axis)) - 10 * np.log10((b ** 2).sum(axis))


def project(x, onto):
    """Orthogonal projection of each row, (B, L)."""
    return (x * onto).sum(axis=1, keepdims=True) / (onto ** 2).sum(axis=1, keepdims=True) * onto


def frames(x, size, hop):
    """(B, L) -> (B, frames, size) under a periodic Hann window."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return np.lib.stride_tricks.sliding_window_view(x, size, axis=1)[:, ::hop] * window


# ---- with a reference, in numpy ----

def si_sdr(clean, enhanced):
    """Scale-invariant SDR in dB: |a s|^2 / |a s - s_hat|^2 with a = <s_hat, s> / |s|^2. Infinite for s_hat = a s."""
    s, s_hat = checked(clean=clean, enhanced=enhanced)
    target = project(s_hat, s)
    return like(clean, ratio_db(target, s_hat - target))


def si_sir_sar(clean, enhanced, noise):
    """(SI-SIR, SI-SAR) in dB: s_hat = target + interference + artifacts, with the first two its projections on the
    clean speech and on the noise (noisy - clean), each alone. As in SGMSE+ (arXiv 2208.05830)."""
    s, s_hat, n = checked(clean=clean, enhanced=enhanced, noise=noise)
    target, interference = project(s_hat, s), project(s_hat, n)
    return (like(clean, ratio_db(target, interference)),
            like(clean, ratio_db(target, s_hat - target - interference)))


def snr(clean, enhanced):
    """Signal-to-noise ratio in dB; the noise is whatever differs from clean, a gain included."""
    s, s_hat = checked(clean=clean, enhanced=enhanced)
    return like(clean, ratio_db(s, s_hat - s))


def seg_snr(clean, enhanced, sample_rate=SAMPLE_RATE):
    """Segmental SNR in dB: frames of 30 ms, 75 % overlap, each limited to -10 .. 35 dB. Hu & Loizou, TASLP 2008."""
    s, s_hat = checked(clean=clean, enhanced=enhanced, sample_rate=sample_rate)
    size = round(0.03 * sample_rate)
    energy, error = ((frames(x, size, size // 4) ** 2).sum(-1) + 1e-20 for x in (s, s_hat - s))    # (B, frames)
    return like(clean, np.clip(10 * np.log10(energy / error), -10, 35).mean(-1))


def lsd(clean, enhanced, sample_rate=SAMPLE_RATE):
    """Log-spectral distance in dB: rms over frequency, mean over frames of 32 ms. Both power spectra are floored
    80 dB below the strongest clean bin, or digital silence would decide."""
    s, s_hat = checked(clean=clean, enhanced=enhanced, sample_rate=sample_rate)
    size = round(0.032 * sample_rate)
    S, S_hat = (np.abs(np.fft.rfft(frames(x, size, size // 2))) ** 2 for x in (s, s_hat))    # (B, frames, F)
    floor = 1e-8 * S.max((1, 2), keepdims=True)
    difference = 10 * np.log10(np.maximum(S, floor) / np.maximum(S_hat, floor))
    return like(clean, np.sqrt((difference ** 2).mean(2)).mean(1))


# ---- with a reference, by the packages everyone uses ----

def pesq(clean, enhanced, sample_rate=SAMPLE_RATE):
    """Wide-band PESQ (MOS-LQO, 4.644 for identical signals) at 16 kHz. Independent of both levels."""
    require("pesq", sample_rate)
    from pesq import PesqError, pesq as itu_pesq
    s, s_hat = checked(clean=clean, enhanced=enhanced)
    scores = []
    for reference, degraded in zip(s, s_hat):
        if len(reference) > 20 * sample_rate and count_utterances(reference, sample_rate) > 50:
            raise ValueError("clean has over 50 utterances, more than the ITU's C code holds: it crashes. Cut it up.")
        try:
            scores.append(itu_pesq(sample_rate, reference, degraded, "wb"))
        except (PesqError, ValueError) as error:
            raise ValueError(f"PESQ refuses this pair: {error}. Is there speech in clean and in enhanced?") from None
    return like(clean, scores)


def count_utterances(x, sample_rate):
    """Stretches of 0.2 s and more between pauses of over 0.2 s: PESQ's own rule, at the threshold that finds most."""
    power = (x[:len(x) // 64 * 64].reshape(-1, 64) ** 2).mean(axis=1)     # frames of 4 ms
    most = 0
    for threshold in power.mean() * 10 ** -np.arange(0, 5, 0.25):
        active = np.flatnonzero(power > threshold)
        pauses = np.flatnonzero(np.diff(active) > 50)
        start, end = active[np.r_[0, pauses + 1]], active[np.r_[pauses, -1]]
        most = max(most, int(np.sum(end - start >= 49)))
    return most


def estoi(clean, enhanced, sample_rate=SAMPLE_RATE):
    """Extended STOI; needs 0.4 s of clean speech that is not more than 40 dB below its loudest frame."""
    require("estoi")
    from pystoi import stoi
    s, s_hat = checked(clean=clean, enhanced=enhanced, sample_rate=sample_rate)
    scores = []
    state = np.random.get_state()
    for reference, processed in zip(s, s_hat):
        np.random.seed(0)      # pystoi adds noise at 1e-16, which decides wherever the output is digitally silent
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)      # too few frames: it warns, and returns 1e-5 as a score
            try:
                scores.append(stoi(reference, processed, sample_rate, extended=True))
            except RuntimeWarning:
                raise ValueError("ESTOI needs 0.4 s of speech in clean, pauses not counted.") from None
            finally:
                np.random.set_state(state)
    return like(clean, scores)


# ---- without a reference ----

def dnsmos(enhanced, sample_rate=SAMPLE_RATE):
    """DNSMOS (Reddy et al. 2021, 2022), the non-personalised model: dict of P808, SIG, BAK, OVRL.

    It hears the level: 20 dB less took 0.4 of OVRL from a clean recording. So nothing is normalised, except that a
    peak over 1 is scaled to 1, with a warning. Windows of 9.01 s every second; a shorter signal is repeated.
    """
    require("dnsmos", sample_rate)
    [x] = checked(silent_ok=True, enhanced=enhanced)
    size, scores = 144160, []      # 9.01 s
    p808_net, sig_bak_ovr_net = dnsmos_networks()
    for wave in x:
        if np.abs(wave).max() > 1:
            warnings.warn(f"peak {np.abs(wave).max():.3f} scaled to 1 for DNSMOS")
            wave = wave / np.abs(wave).max()
        wave = np.tile(wave, 2 ** max(0, int(np.ceil(np.log2(size / len(wave))))))
        windows = []
        for i in range(int(len(wave) // sample_rate - 9.01) + 1):
            window = wave[i * sample_rate:int((i + 9.01) * sample_rate)].astype(np.float32)
            if len(window) < size:
                continue      # by rounding windows 7 to 23 miss a sample; the published script skips them, so must we
            [[p808]] = p808_net.run(None, {"input_1": p808_features(window[:-160])[None]})[0]
            [[sig, bak, ovrl]] = sig_bak_ovr_net.run(None, {"input_1": window[None]})[0]
            windows.append((p808,
                            np.polyval([-0.08397278, 1.22083953, 0.0052439], sig),
                            np.polyval([-0.13166888, 1.60915514, -0.39604546], bak),
                            np.polyval([-0.06766283, 1.11546468, 0.04602535], ovrl)))
        scores.append(np.mean(windows, axis=0))
    return {name: like(enhanced, column) for name, column in zip(("P808", "SIG", "BAK", "OVRL"), zip(*scores))}


@functools.lru_cache
def dnsmos_networks():
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1      # the processes of `evaluate` use the cores
    folder = Path(importlib.util.find_spec("speechmos").origin).parent / "dnsmos_models"      # found, not imported
    return [onnxruntime.InferenceSession(folder / name, options) for name in ("model_v8.onnx", "sig_bak_ovr.onnx")]


def p808_features(x):
    """Log-mel spectrogram of the P.808 network: (144000,) -> float32 (900, 120), 0 dB at its maximum, / 40 + 1."""
    spectrum = np.abs(np.fft.rfft(frames(np.pad(x, 160)[None], 321, 160)[0])) ** 2      # (900, 161)
    level = 10 * np.log10(np.maximum(spectrum @ mel_filters().T, 1e-10))
    return (np.maximum(level - level.max(), -80) / 40 + 1).astype(np.float32)


@functools.lru_cache
def mel_filters(bands=120, size=321, sample_rate=16000):
    """Triangles of equal area, linear in Hz up to 1 kHz and logarithmic above (Slaney 1998): (bands, size // 2 + 1)."""
    top = 15 + 27 * np.log(sample_rate / 2 / 1000) / np.log(6.4)
    mel = np.linspace(0, top, bands + 2)
    edge = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))[:, None]       # Hz
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    rise, fall = (hz - edge[:-2]) / (edge[1:-1] - edge[:-2]), (edge[2:] - hz) / (edge[2:] - edge[1:-1])
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (edge[2:] - edge[:-2])


def distillmos(enhanced, sample_rate=SAMPLE_RATE):
    """DistillMOS (Stahl & Gamper 2025), a 4 M student of XLS-R; each window of 7.68 s is scaled to a peak of 1."""
    require("distillmos", sample_rate)
    import torch
    [x] = checked(enhanced=enhanced)
    x = torch.from_numpy(x).float()
    extra = max(0, x.shape[1] - 122880)
    x = torch.nn.functional.pad(x, (0, max(0, 122880 - x.shape[1])))
    starts = np.linspace(0, extra, int(np.ceil(extra / 16000)) + 1).astype(int)      # a second apart at most
    with torch.inference_mode():
        scores = torch.stack([distillmos_network()(x[:, i:i + 122880]).reshape(-1) for i in starts]).mean(dim=0)
    return like(enhanced, scores.numpy())


@functools.lru_cache
def distillmos_network():
    import torch
    # The package imports torchaudio to read files, which we never ask of it: an empty module in its place will do.
    before = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        from distillmos import ConvTransformerSQAModel
    finally:      # or others would take it for the real one
        sys.modules.pop("torchaudio") if before is None else sys.modules.update(torchaudio=before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # torch's advice on nested tensors
        network = ConvTransformerSQAModel(load_weights=False, segmenting_in_forward=False).eval()
    path = Path(importlib.util.find_spec("distillmos").origin).parent / "weights" / "distill_mos_v7.pt"
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    return network


def attenuation(noisy, enhanced):
    """Energy of the noisy over that of the enhanced recording in dB, for recordings without speech; at most 120."""
    y, s_hat = checked(silent_ok=True, noisy=noisy, enhanced=enhanced)
    floor = 1e-12 * (y ** 2).sum(1)
    return like(noisy, 10 * np.log10((y ** 2).sum(1) / np.maximum((s_hat ** 2).sum(1), floor)))


# ---- many files ----

# name: columns of the table, (clean, enhanced, noise) -> one value or array (B,) per column, packages, how to get them
METRICS = {
    "pesq": (["pesq"], lambda s, s_hat, n: [pesq(s, s_hat)], ["pesq"], "pip install pesq (needs a C compiler)"),
    "estoi": (["estoi"], lambda s, s_hat, n: [estoi(s, s_hat)], ["pystoi"], "pip install pystoi"),
    "si_sdr": (["si_sdr"], lambda s, s_hat, n: [si_sdr(s, s_hat)], [], ""),
    "si_sir_sar": (["si_sir", "si_sar"], lambda s, s_hat, n: si_sir_sar(s, s_hat, n), [], ""),
    "snr": (["snr"], lambda s, s_hat, n: [snr(s, s_hat)], [], ""),
    "seg_snr": (["seg_snr"], lambda s, s_hat, n: [seg_snr(s, s_hat)], [], ""),
    "lsd": (["lsd"], lambda s, s_hat, n: [lsd(s, s_hat)], [], ""),
    "attenuation": (["attenuation"], lambda s, s_hat, n: [attenuation(n + s, s_hat)], [], ""),
    "dnsmos": (["p808", "sig", "bak", "ovrl"], lambda s, s_hat, n: dnsmos(s_hat).values(),
               ["onnxruntime", "speechmos"], "pip install onnxruntime; pip install --no-deps speechmos"),
    "distillmos": (["distillmos"], lambda s, s_hat, n: [distillmos(s_hat)],
                   ["distillmos", "xls_r_sqa"], "pip install --no-deps distillmos xls-r-sqa"),
}


WITHOUT_REFERENCE = "dnsmos", "distillmos", "attenuation"
NEED_NOISY = {"si_sir_sar", "attenuation"}


def missing(metric):
    """One line that says what to install before this metric can be computed; empty if nothing."""
    if ":" in metric:
        return ""
    _, _, packages, install = METRICS[metric]
    return f"{metric} needs: {install}" if None in map(importlib.util.find_spec, packages) else ""


def foreign(metric):
    """The function of MODULE:NAME. Raises ValueError for a module or a name that is not there."""
    module, _, name = metric.partition(":")
    try:
        with mock.patch.object(sys, "path", [os.getcwd(), *sys.path]):
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--metrics {metric}: expected MODULE:NAME of a function that can be imported ({error})") from None


def foreign_scores(metric, signals):
    """{column: value} of a function that is not ours, given those of clean, enhanced, noisy, sample_rate that it names.

    Arrays are (channels, L) at 16 kHz. It returns a number, or a dictionary of numbers.
    """
    function = foreign(metric)
    offered = signals | {"sample_rate": SAMPLE_RATE}
    value = function(**{name: offered[name] for name in inspect.signature(function).parameters if name in offered})
    return value if isinstance(value, dict) else {metric.partition(":")[2]: value}


def require(metric, sample_rate=SAMPLE_RATE):
    if missing(metric):
        raise ImportError(missing(metric))
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"{metric} is defined at {SAMPLE_RATE} Hz; got {sample_rate} Hz. Resample first.")


def load(which, x):
    """A path as float32 (channels, samples) at 16 kHz; samples as they are."""
    if x is None:
        raise ValueError(f"no {which} file of this name")
    if not isinstance(x, (str, os.PathLike)):
        return x
    from data import load_audio
    wave, sample_rate = load_audio(x, SAMPLE_RATE)
    if sample_rate != SAMPLE_RATE:
        warnings.warn(f"{which} resampled from {sample_rate} to {SAMPLE_RATE} Hz")
    return wave.numpy()


def in_step(s, s_hat, align):
    """Both (channels, L), cropped to what they share where `align`. A warning where s_hat is late or early, by 0.5 s at
    most, and that explains most of its distortion."""
    reach, length = SAMPLE_RATE // 2, s.shape[1]
    size = 2 * length
    products = np.fft.irfft(np.fft.rfft(s_hat[0], size) * np.fft.rfft(s[0], size).conj(), size)
    lags = np.r_[0:min(reach, length - 1), -min(reach, length - 1):0]
    lag = int(lags[np.abs(products[lags]).argmax()])
    late, early = max(lag, 0), max(-lag, 0)
    moved = s[:, early:length - late], s_hat[:, late:length - early]
    audible = all(np.abs(x).max(1).min() > SILENCE for x in moved)
    if not lag or not audible or moved[0].shape[1] < SHORTEST * SAMPLE_RATE:
        return s, s_hat
    as_it_is, shifted = np.mean(si_sdr(s, s_hat)), np.mean(si_sdr(*moved))
    if shifted < as_it_is + 3:
        return s, s_hat
    warnings.warn(f"enhanced is {abs(lag)} samples ({abs(lag) / 16:.1f} ms) {'late' if lag > 0 else 'early'}: SI-SDR "
                  f"{as_it_is:.1f} dB, in step {shifted:.1f} dB" + ("; shifted" if align else "; see --align"))
    return moved if align else (s, s_hat)


def score_pair(metrics, align, pair):
    """One row of a table: name, seconds, a key per score, note, error. What fails is in `error`, never a score."""
    row, errors = {"name": pair[0]}, []
    signals = dict(zip(("clean", "enhanced", "noisy"), [*pair[1:], None]))
    needed = NEED_NOISY & set(metrics)
    if not needed and (signals["noisy"] is None or not any(":" in metric for metric in metrics)):
        del signals["noisy"]
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            s, s_hat, *y = checked(**{which: load(which, x) for which, x in signals.items()})    # (channels, L)
            if not needed:
                s, s_hat = in_step(s, s_hat, align)
            row["seconds"] = s.shape[1] / SAMPLE_RATE
        except Exception as error:      # one bad file must not end the run: it is named and counted
            errors, metrics = [str(error) or repr(error)], []
        for metric in metrics:
            try:
                if ":" in metric:
                    found = foreign_scores(metric, {"clean": s, "enhanced": s_hat, "noisy": y[0] if y else None})
                else:
                    columns, score, *_ = METRICS[metric]
                    found = dict(zip(columns, score(s, s_hat, y[0] - s if y else None)))
                for column, value in found.items():
                    if not np.isfinite(value).all():
                        raise ValueError(f"{column} is {np.mean(value)}, which has no place in a mean")
                    row[column] = float(np.mean(value))      # over channels
            except Exception as error:
                errors.append(f"{metric}: {error}")
    return {**row, "note": "; ".join(dict.fromkeys(str(note.message) for note in notes)), "error": "; ".join(errors)}


def without_reference(metrics):
    """Those of the metrics that need no clean recording and are installed; by default, all such. Raises ValueError
    where there is none."""
    chosen = [metric for metric in metrics if metric in WITHOUT_REFERENCE or ":" in metric] or ["dnsmos", "distillmos"]
    installed = [metric for metric in chosen if not missing(metric)]
    if not installed:
        raise ValueError("recordings without a clean reference can be scored by these alone: "
                         + "; ".join(missing(metric) for metric in chosen))
    return installed


def known(metrics):
    """The names of metrics, unchanged. Raises ValueError for one that does not exist."""
    for metric in metrics:
        if ":" in metric:
            foreign(metric)
        elif metric not in METRICS:
            raise ValueError(f"unknown metric {metric}; there are {', '.join(METRICS)} and MODULE:NAME")
    return metrics


def evaluate(pairs, metrics=("pesq", "estoi", "si_sdr"), workers=1, progress=True, align=False):
    """Score many files: pairs of (name, clean, enhanced[, noisy]), each a path or 16 kHz samples (L,) or (channels, L).

    Channels are scored one by one and averaged. Returns Results, a row per pair in the order given; a metric whose
    package is absent is n/a. workers > 1 are processes: call under `if __name__ == "__main__":`. align: what is late or
    early is shifted first. Raises ValueError for
    names of pairs that are not unique (systems are compared by name) and for unknown metrics.
    """
    pairs = [[name, *(x.detach().cpu().numpy() if hasattr(x, "detach") else x for x in signals)]
             for name, *signals in pairs]
    known(metrics)
    if len({pair[0] for pair in pairs}) < len(pairs):
        raise ValueError("expected a different name for every pair")
    score = functools.partial(score_pair, [metric for metric in metrics if not missing(metric)], align)
    bar = tqdm(total=len(pairs), desc="scoring", unit="file", disable=None if progress else True)
    if workers <= 1 or len(pairs) < 2:
        rows = [score(pair) for pair in pairs if not bar.update()]
    else:
        rows = score_in_processes(score, pairs, min(workers, len(pairs)), bar)
    bar.close()
    columns = [column for metric in metrics if ":" not in metric for column in METRICS[metric][0]]
    columns += [column for column in dict.fromkeys(itertools.chain(*rows))
                if column not in ("name", "seconds", "note", "error", *columns)]             # of functions not ours
    return Results(rows, columns, [missing(metric) for metric in metrics if missing(metric)])


def score_in_processes(score, pairs, workers, bar):
    """[score(pair), ...] by that many processes. Where one is killed, by the system for its memory perhaps, what the
    others have done is kept and what was under way is scored again, one by one: the pair that kills gets no score."""
    rows = [None] * len(pairs)
    while left := [i for i, row in enumerate(rows) if row is None]:
        # Spawned, as a fork would inherit torch's locks; the children read the variables when they load numpy.
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with (mock.patch.dict(os.environ, one_thread),
              concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool):
            jobs = {pool.submit(score, pairs[i]): i for i in left}
            for job in concurrent.futures.as_completed(jobs):
                with contextlib.suppress(concurrent.futures.process.BrokenProcessPool):
                    rows[jobs[job]] = job.result()
                    bar.update()
        if workers == 1 and None in rows:                # one by one, so it is the first that is missing
            i = rows.index(None)
            rows[i] = {"name": pairs[i][0], "note": "",
                       "error": "the process that scored it was killed; out of memory?"}
        workers = 1
    return rows


def bootstrap_interval(values, resamples=1000, seed=0):
    """95 % percentile interval (low, high) of the mean of values (n,); NaN for fewer than two."""
    n = len(values)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, n, n)].mean() for _ in range(resamples)] if n > 1 else np.nan
    return tuple(np.quantile(means, [0.025, 0.975]))


@dataclass
class Results:
    rows: list                                       # dicts: name, seconds, a key per score that exists, note, error
    columns: list                                    # names of the scores
    absent: list = field(default_factory=list)       # what to install for the n/a columns

    def values(self, column):
        """The scores that exist, (n,), in the order of the files."""
        return np.array([row[column] for row in self.rows if column in row])

    def mean(self, column):
        """Mean over the files that could be scored; NaN if none could."""
        return float(self.values(column).mean()) if len(self.values(column)) else np.nan

    @property
    def failed(self):
        """Rows of the files that lack a score for a reason of their own."""
        return [row for row in self.rows if row["error"]]

    def table(self):
        """n, mean, standard deviation (n - 1) and 95 % bootstrap interval per score; then what was not scored."""
        lines = [f"{'':12}{'n':>6}{'mean':>10}{'std':>10}    95 % interval of the mean"]
        for column in self.columns:
            x = self.values(column)
            std, (low, high) = x.std(ddof=1) if len(x) > 1 else np.nan, bootstrap_interval(x)
            scores = f"{x.mean():10.3f}{std:10.3f}    [{low:.3f}, {high:.3f}]" if len(x) else f"{'n/a':>10}"
            lines.append(f"{column:12}{len(x):6d}{scores}")
        lines += self.absent
        noted = [f"    {row['name']}: {row['note']}" for row in self.rows if row["note"]]
        failed = [f"    {row['name']}: {row['error']}" for row in self.failed]
        if noted:
            lines += [f"{len(noted)} of {len(self.rows)} files were changed before scoring:", *noted]
        if failed:
            lines += [f"{len(failed)} of {len(self.rows)} files have no score in some row above:", *failed]
        return "\n".join(lines)

    def save_csv(self, path):
        """One line per file, empty where there is no score. Appears complete or not at all."""
        from data import atomic_write
        with (atomic_write(path) as part,
              open(part, "w", newline="", encoding="utf-8", errors="surrogateescape") as file):
            writer = csv.DictWriter(file, ["name", "seconds", *self.columns, "note", "error"])
            writer.writeheader()
            writer.writerows(self.rows)

    def compare(self, other):
        """Results of self - other, paired over the files both have: an interval without 0 is a difference."""
        theirs = {row["name"]: row for row in other.rows}
        rows = []
        for a, b in ((row, theirs[row["name"]]) for row in self.rows if row["name"] in theirs):
            differences = {column: a[column] - b[column] for column in self.columns if column in a and column in b}
            rows.append({"name": a["name"], **differences, "note": "", "error": ""})
        return Results(rows, self.columns, self.absent)

    def by_fifths(self, other):
        """Where self - other comes from: a line per score, its mean over each fifth of the files both have, from the
        fifth where `other` itself scores worst to that where it scores best."""
        theirs = {row["name"]: row for row in other.rows}
        lines = [f"{'':12}" + "".join(f"{title:>10}" for title in ("worst", "", "", "", "best"))]
        for column in self.columns:
            pairs = sorted((theirs[row["name"]][column], row[column]) for row in self.rows
                           if column in row and column in theirs.get(row["name"], {}))
            fifths = np.array_split([after - before for before, after in pairs], 5)
            lines.append(f"{column:12}" + "".join(f"{part.mean():10.3f}" if len(part) else f"{'n/a':>10}"
                                                  for part in fifths))
        return "\n".join(lines)


# ---- the command ----

def main(arguments=None):
    """Returns the exit code: 0; 1 if a file could not be scored. Unusable arguments exit with 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=
                                     "Exit code 1: some file could not be scored; 2: unusable arguments.")
    parser.add_argument("clean", type=Path, metavar="CLEAN_DIR", help="reference recordings")
    parser.add_argument("enhanced", type=Path, metavar="ENHANCED_DIR",
                        help="files belong together when their paths below the folders agree, but for the suffix")
    parser.add_argument("second", type=Path, metavar="SECOND_ENHANCED_DIR", nargs="?", help="another system to compare")
    parser.add_argument("--noisy", type=Path, metavar="NOISY_DIR", help="what was enhanced; adds si_sir_sar")
    parser.add_argument("--metrics", help=f"comma-separated, of {','.join(METRICS)}, or MODULE:NAME of a "
                        "function of clean, enhanced, noisy, sample_rate (default: pesq,estoi,si_sdr)")
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="scores per file; a second system adds FILE-second and FILE-difference")
    parser.add_argument("--align", action="store_true", help="shift what comes late or early, up to 0.5 s, into step")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    args = parser.parse_args(arguments)
    metrics = (args.metrics or "pesq,estoi,si_sdr" + ",si_sir_sar" * bool(args.noisy)).split(",")
    if NEED_NOISY & set(metrics) and not args.noisy:
        parser.error(f"{', '.join(NEED_NOISY & set(metrics))}: expected --noisy NOISY_DIR")
    if args.csv and not args.csv.absolute().parent.is_dir():
        parser.error(f"--csv: there is no folder {args.csv.absolute().parent}")
    sys.stdout.reconfigure(errors="backslashreplace")      # a file's name may be anything
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    results = []
    try:
        from data import by_name, by_number
        clean, noisy = by_number(by_name(args.clean)), by_number(by_name(args.noisy)) if args.noisy else {}
        for folder in [args.enhanced, args.second] if args.second else [args.enhanced]:
            enhanced = by_number(by_name(folder))
            if not clean.keys() & enhanced.keys():
                raise ValueError(f"no file below {folder} has the name of one below {args.clean}")
            names = sorted({**clean, **enhanced})
            results.append(evaluate([(name, clean.get(name), enhanced.get(name), noisy.get(name)) for name in names],
                                    metrics, args.workers, align=args.align))
            print(f"\n{folder}\n{results[-1].table()}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.second:
        results.append(results[1].compare(results[0]))
        print(f"\n{args.second} minus {args.enhanced}, paired\n{results[-1].table()}")
        print(f"\nthe same, over fifths of the files by the score of {args.enhanced}")
        print(results[1].by_fifths(results[0]))
    if args.csv:
        for result, suffix in zip(results, ("", "-second", "-difference")):
            result.save_csv(args.csv.with_stem(args.csv.stem + suffix))
    return int(any(result.failed for result in results))


# ---- losses to train with ----

if __name__ == "__main__":
    sys.exit(main())
