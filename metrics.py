"""Scores for enhanced speech, and tables with confidence intervals.

    pesq         1.04 .. 4.64   wide-band PESQ, ITU-T P.862.2 (package `pesq`)
    estoi        -1 .. 1        extended short-time objective intelligibility, Jensen & Taal 2016
                                (package `pystoi`)
    si_sdr       dB             scale-invariant signal-to-distortion ratio, without mean removal
    si_sir_sar   dB, dB         the same distortion split into remaining noise and artifacts
    dnsmos       1 .. 5         no reference: DNSMOS P.808, SIG, BAK, OVRL (packages `onnxruntime`,
                                `speechmos`)
    distillmos   1 .. 5         no reference: DistillMOS (packages `distillmos`, `xls-r-sqa`)
    attenuation  dB             no reference: energy of noisy over energy of enhanced, for
                                recordings without speech; only computed when asked for by name
    MODULE:NAME                 any function of an importable module, see `score_function`
    evaluate     Results        scores many files in parallel: .table(), .save_csv(path),
                                .compare(other)

Each of these functions takes signals (L,) or (B, L), arrays or tensors, and returns a float for
(L,) and an array (B,) for (B, L). A signal that cannot be scored raises a ValueError that names it,
so that neither NaN nor the placeholder of a metric library enters a mean. Changes before scoring
(a crop, a gain) are warnings; `evaluate` keeps them as notes.

    python metrics.py CLEAN_DIR ENHANCED_DIR                              PESQ, ESTOI, SI-SDR
    python metrics.py CLEAN_DIR ENHANCED_DIR --noisy NOISY_DIR            ... and SI-SIR, SI-SAR
    python metrics.py CLEAN_DIR SYSTEM_A SYSTEM_B --csv scores.csv        ... and B - A, paired
    python metrics.py CLEAN_DIR CLEAN_DIR --metrics dnsmos,distillmos     upper bound of both scores
    python metrics.py CLEAN_DIR ENHANCED_DIR --metrics pesq,mine:loudness     loudness() of mine.py
"""

import argparse
import concurrent.futures
import contextlib
import csv
import functools
import importlib.util
import inspect
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

SAMPLE_RATE = 16000        # Hz, of everything that `evaluate` scores
SHORTEST = 0.25            # s; the least that PESQ takes
SILENT_PEAK = 8 / 32768    # 8 steps of 16 bits: dither and converter noise are not speech


# ---- input checks ----

def checked(silent_ok=False, sample_rate=SAMPLE_RATE, **signals):
    """The named signals as float64 (B, L), cropped to the shortest.

    silent_ok: True, or the names of signals that may be silent. Raises ValueError for signals that
    no metric can score.
    """
    arrays = {}
    for name, x in signals.items():
        x = np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
        if x.ndim not in (1, 2) or x.size == 0 or x.dtype.kind not in "fiu":
            raise ValueError(f"{name}: expected real samples (L,) or (B, L), not empty; got "
                             f"{x.dtype} {x.shape}.")
        x = arrays[name] = np.atleast_2d(x).astype(np.float64)
        if not np.isfinite(x).all():
            raise ValueError(f"{name} is NaN or infinite, first at (row, sample) "
                             f"{np.argwhere(~np.isfinite(x))[0]}.")
        if x.shape[1] < SHORTEST * sample_rate:
            raise ValueError(f"{name} lasts {x.shape[1] / sample_rate:.3f} s; expected {SHORTEST} "
                             "s or more.")
        peaks = np.abs(x).max(axis=1)
        if silent_ok is not True and name not in (silent_ok or ()) and peaks.min() <= SILENT_PEAK:
            raise ValueError(f"{name} is silent in row {peaks.argmin()}, peak {peaks.min():.2g}: "
                             "nothing to score.")
    if len({len(x) for x in arrays.values()}) > 1:
        raise ValueError("expected the same number of channels or signals: "
                         + ", ".join(f"{name} has {len(x)}" for name, x in arrays.items()))
    length = min(x.shape[1] for x in arrays.values())
    for name, x in arrays.items():
        if x.shape[1] > length:
            warnings.warn(f"{name} cropped from {x.shape[1]} to {length} samples")
    return [x[:, :length] for x in arrays.values()]


def unbatch(signal, values):
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
    """Scale-invariant SDR in dB: |a s|^2 / |a s - s_hat|^2 with a = <s_hat, s> / |s|^2.

    Infinite for s_hat = a s. The mean is not removed, as in SGMSE+.
    """
    s, s_hat = checked(clean=clean, enhanced=enhanced)
    target = project(s_hat, s)
    return unbatch(clean, ratio_db(target, s_hat - target))


def si_sir_sar(clean, enhanced, noise):
    """(SI-SIR, SI-SAR) in dB. As in SGMSE+ (arXiv 2208.05830).

    s_hat = target + interference + artifacts, where target and interference are the projections of
    s_hat on the clean speech and on the noise (noisy - clean), each on its own.
    """
    s, s_hat, n = checked(clean=clean, enhanced=enhanced, noise=noise)
    target, interference = project(s_hat, s), project(s_hat, n)
    return (unbatch(clean, ratio_db(target, interference)),
            unbatch(clean, ratio_db(target, s_hat - target - interference)))


# ---- with a reference, by the packages everyone uses ----

def pesq(clean, enhanced, sample_rate=SAMPLE_RATE):
    """Wide-band PESQ (MOS-LQO, 4.644 for identical signals) at 16 kHz; ignores both gains."""
    require("pesq", sample_rate)
    from pesq import PesqError, pesq as itu_pesq
    s, s_hat = checked(clean=clean, enhanced=enhanced)
    scores = []
    for reference, degraded in zip(s, s_hat):
        if len(reference) > 20 * sample_rate and count_utterances(reference, sample_rate) > 50:
            raise ValueError("clean has over 50 utterances, which crashes the ITU's C code: cut it "
                             "into shorter recordings.")
        try:
            scores.append(itu_pesq(sample_rate, reference, degraded, "wb"))
        except (PesqError, ValueError) as error:
            raise ValueError(f"PESQ refuses this pair: {error}. Is there speech in clean and in "
                             "enhanced?") from None
    return unbatch(clean, scores)


def count_utterances(x, sample_rate):
    """Number of active segments of at least 0.2 s between pauses of over 0.2 s, as in PESQ.

    The largest over many thresholds, since PESQ's own is not known here.
    """
    power = (x[:len(x) // 64 * 64].reshape(-1, 64) ** 2).mean(axis=1)     # frames of 4 ms
    most = 0
    for threshold in power.mean() * 10 ** -np.arange(0, 5, 0.25):
        active = np.flatnonzero(power > threshold)
        pauses = np.flatnonzero(np.diff(active) > 50)
        lengths = active[np.r_[pauses, -1]] - active[np.r_[0, pauses + 1]]
        most = max(most, int(np.sum(lengths >= 49)))
    return most


def estoi(clean, enhanced, sample_rate=SAMPLE_RATE):
    """Extended STOI; needs 0.4 s of clean speech at most 40 dB below its loudest frame."""
    require("estoi")
    from pystoi import stoi
    s, s_hat = checked(clean=clean, enhanced=enhanced, sample_rate=sample_rate)
    scores = []
    state = np.random.get_state()
    for reference, processed in zip(s, s_hat):
        np.random.seed(0)      # pystoi adds noise at 1e-16, which decides where the output is zero
        with warnings.catch_warnings():
            # With too few frames pystoi warns and returns 1e-5 as a score.
            warnings.simplefilter("error", RuntimeWarning)
            try:
                scores.append(stoi(reference, processed, sample_rate, extended=True))
            except RuntimeWarning:
                raise ValueError("ESTOI needs 0.4 s of speech in clean, pauses excluded.") from None
            finally:
                np.random.set_state(state)
    return unbatch(clean, scores)


# ---- without a reference ----

def attenuation(noisy, enhanced):
    """Energy of noisy over energy of enhanced in dB, for recordings without speech.

    Finite for digital silence: powers below one step of 16 bits, squared, count as that.
    """
    powers = [np.maximum((x ** 2).mean(axis=1), 2.0 ** -30)
              for x in checked(silent_ok=("enhanced",), noisy=noisy, enhanced=enhanced)]
    return unbatch(noisy, 10 * np.log10(powers[0] / powers[1]))


def dnsmos(enhanced, sample_rate=SAMPLE_RATE):
    """DNSMOS (Reddy et al. 2021, 2022), the non-personalised model: dict of p808, sig, bak, ovrl.

    The score depends on the gain: a clean recording attenuated by 20 dB lost 0.4 of OVRL. Therefore
    nothing is normalised, except that a peak over 1 is scaled to 1, with a warning. Windows of
    9.01 s every second; a shorter signal is repeated.
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
        seconds = range(int(len(wave) // sample_rate - 9.01) + 1)
        cuts = (wave[i * sample_rate:int((i + 9.01) * sample_rate)] for i in seconds)
        windows = []
        # Rounding makes windows 7 to 23 a sample too short; the authors' script skips them, too.
        for window in (cut.astype(np.float32) for cut in cuts if len(cut) == size):
            [[p808]] = p808_net.run(None, {"input_1": p808_features(window[:-160])[None]})[0]
            [[sig, bak, ovrl]] = sig_bak_ovr_net.run(None, {"input_1": window[None]})[0]
            windows.append((p808,
                            np.polyval([-0.08397278, 1.22083953, 0.0052439], sig),
                            np.polyval([-0.13166888, 1.60915514, -0.39604546], bak),
                            np.polyval([-0.06766283, 1.11546468, 0.04602535], ovrl)))
        scores.append(np.mean(windows, axis=0))
    return {name: unbatch(enhanced, column)
            for name, column in zip(("p808", "sig", "bak", "ovrl"), zip(*scores))}


@functools.lru_cache
def dnsmos_networks():
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1    # the processes use all cores
    package = Path(importlib.util.find_spec("speechmos").origin).parent      # found, not imported
    return [onnxruntime.InferenceSession(package / "dnsmos_models" / name, options)
            for name in ("model_v8.onnx", "sig_bak_ovr.onnx")]


def p808_features(x):
    """Log-mel spectrogram of the P.808 network, (144000,) -> float32 (900, 120).

    In units of 40 dB, 1 at its maximum.
    """
    x = frames(np.pad(x, 160)[None], 321, 160)[0]
    level = 10 * np.log10(np.maximum(np.abs(np.fft.rfft(x)) ** 2 @ mel_filters().T, 1e-10))
    return (np.maximum(level - level.max(), -80) / 40 + 1).astype(np.float32)


@functools.lru_cache
def mel_filters(bands=120, size=321, sample_rate=16000):
    """Triangles of equal area, (bands, size // 2 + 1): linear in Hz up to 1 kHz, logarithmic above.

    Slaney 1998.
    """
    top = 15 + 27 * np.log(sample_rate / 2 / 1000) / np.log(6.4)
    mel = np.linspace(0, top, bands + 2)
    edge = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))[:, None]       # Hz
    hz = np.fft.rfftfreq(size, 1 / sample_rate)
    rise = (hz - edge[:-2]) / (edge[1:-1] - edge[:-2])
    fall = (edge[2:] - hz) / (edge[2:] - edge[1:-1])
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (edge[2:] - edge[:-2])


def distillmos(enhanced, sample_rate=SAMPLE_RATE):
    """DistillMOS (Stahl & Gamper 2025), distilled from XLS-R to 4 M parameters.

    Windows of 7.68 s, each scaled to a peak of 1.
    """
    require("distillmos", sample_rate)
    import torch
    [x] = checked(enhanced=enhanced)
    extra = max(0, x.shape[1] - 122880)
    starts = np.linspace(0, extra, int(np.ceil(extra / 16000)) + 1).astype(int)    # each second
    with torch.inference_mode():      # the network pads a shorter window itself
        windows = (torch.from_numpy(x[:, i:i + 122880]).float() for i in starts)
        scores = torch.stack([distillmos_network()(window).reshape(-1) for window in windows])
    return unbatch(enhanced, scores.mean(dim=0).numpy())


@functools.lru_cache
def distillmos_network():
    # The package imports torchaudio only to read files, which we never ask of it: an empty module
    # in its place is enough.
    before = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        from distillmos import ConvTransformerSQAModel
    finally:      # other packages must not take it for the real one
        sys.modules.pop("torchaudio") if before is None else sys.modules.update(torchaudio=before)
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")      # torch's advice on nested tensors
        return ConvTransformerSQAModel().eval()


# ---- the names of --metrics ----

# name: function, columns of the table, packages, how to install them
METRICS = {
    "pesq": (pesq, ["pesq"], ["pesq"], "pip install pesq (needs a C compiler)"),
    "estoi": (estoi, ["estoi"], ["pystoi"], "pip install pystoi"),
    "si_sdr": (si_sdr, ["si_sdr"], [], ""),
    "si_sir_sar": (lambda clean, enhanced, noisy: dict(zip(
        ("si_sir", "si_sar"), si_sir_sar(clean, enhanced, noisy - clean))),
        ["si_sir", "si_sar"], [], ""),
    "attenuation": (attenuation, ["attenuation"], [], ""),
    "dnsmos": (dnsmos, ["p808", "sig", "bak", "ovrl"], ["onnxruntime", "speechmos"],
               "pip install onnxruntime; pip install --no-deps speechmos"),
    "distillmos": (distillmos, ["distillmos"], ["distillmos", "xls_r_sqa"],
                   "pip install --no-deps distillmos xls-r-sqa"),
}
WITHOUT_REFERENCE = "dnsmos", "distillmos"      # the default where there is no clean reference
ARGUMENTS = "clean", "enhanced", "noisy", "sample_rate"


def score_function(metric):
    """(function, the names of its arguments) of a name in METRICS, or of MODULE:NAME.

    MODULE:NAME is the function NAME of any importable module, the current directory included. It is
    called with those of ARGUMENTS that its signature names, float32 arrays (L,) at 16 kHz, and
    returns a number or a dict of numbers; the columns of the table are then NAME or the keys.
    Raises ValueError.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module, _, name = metric.partition(":")
    try:
        score = (METRICS[metric][0] if metric in METRICS
                 else getattr(importlib.import_module(module * bool(name)), name))
        parameters = inspect.signature(score).parameters.values()
    except Exception as error:      # the module is someone else's: it may fail in any way
        raise ValueError(f"unknown metric {metric}; there are {', '.join(METRICS)}, and "
                         "MODULE:NAME for the function NAME of an importable module "
                         f"({type(error).__name__}: {error})".replace("\n", " ")) from None
    names = [p.name for p in parameters if p.name in ARGUMENTS]
    others = [p.name for p in parameters if p.default is p.empty and p.name not in ARGUMENTS
              and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if others or not set(names) - {"sample_rate"}:
        raise ValueError(f"metric {metric}: expected a function of some of {', '.join(ARGUMENTS)}; "
                         f"got {name}{inspect.signature(score)}")
    return score, names


def missing(metric):
    """One line that says what to install before this metric can be computed; empty if nothing."""
    _, _, packages, install = METRICS.get(metric, (None, [], [], ""))
    return f"{metric} needs: {install}" * (None in map(importlib.util.find_spec, packages))


def require(metric, sample_rate=SAMPLE_RATE):
    if missing(metric):
        raise ImportError(missing(metric))
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"{metric} is defined at {SAMPLE_RATE} Hz; got {sample_rate} Hz. Resample "
                         "first.")


def without_reference(metrics):
    """The metrics among these that need no clean reference; by default WITHOUT_REFERENCE.

    Raises ValueError if none of them is installed.
    """
    chosen = [m for m in metrics if "clean" not in score_function(m)[1]] or WITHOUT_REFERENCE
    if all(map(missing, chosen)):
        raise ValueError("recordings without a clean reference can only be scored by these: "
                         + "; ".join(map(missing, chosen)))
    return list(chosen)


def known(metrics):
    """The names of metrics, each once. Raises ValueError for one that does not exist."""
    return list({metric: score_function(metric) for metric in metrics})


# ---- many files ----

def read_signal(which, x):
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


def score_channels(metric, signals):
    """{column: mean over the channels} of one metric. signals: (channels, L) by name."""
    (score, names), name = score_function(metric), metric.partition(":")[2] or metric
    used = {key: signals[key].astype(np.float32) for key in names if key in signals}
    checked(silent_ok=("enhanced",) if metric == "attenuation" else (), **used)
    channels = []
    for i in range(len(next(iter(used.values())))):
        value = score(**{key: used[key][i] if key in used else SAMPLE_RATE for key in names})
        channels.append(value if isinstance(value, dict) else {name: value})
    means = {column: float(np.mean([row[column] for row in channels])) for column in channels[0]}
    if bad := [f"{column} is {mean}" for column, mean in means.items() if not np.isfinite(mean)]:
        raise ValueError(f"{', '.join(bad)}, which cannot enter a mean")
    return means


def score_pair(metrics, pair):
    """One row of a table: name, seconds, a key per score, note, error (what has no score)."""
    row, errors = {"name": pair[0], "note": "", "error": ""}, {}
    named = {name for metric in metrics for name in score_function(metric)[1]}
    signals = dict(zip(("clean", "enhanced", "noisy"), [*pair[1:], None]))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            signals = {name: read_signal(name, x) for name, x in signals.items() if name in named}
            signals = dict(zip(signals, checked(silent_ok=True, **signals)))      # (channels, L)
            row["seconds"] = next(iter(signals.values())).shape[1] / SAMPLE_RATE
        except Exception as error:      # a bad file is named and counted; it must not end the run
            errors[str(error) or repr(error)], metrics = [], []
        for metric in metrics:
            try:
                scores = score_channels(metric, signals)
                if twice := scores.keys() & row.keys():
                    raise ValueError(f"there is a column {', '.join(twice)} already")
                row |= scores
            except Exception as error:
                errors.setdefault(str(error) or repr(error), []).append(metric)
    row["note"] = "; ".join(dict.fromkeys(str(note.message) for note in notes))
    row["error"] = "; ".join(", ".join(metrics) + ": " * bool(metrics) + error
                             for error, metrics in errors.items())
    return row


def evaluate(pairs, metrics=("pesq", "estoi", "si_sdr"), workers=1, progress=True):
    """Score many files: pairs of (name, clean, enhanced[, noisy]), each a path or 16 kHz samples.

    Samples: (L,) or (channels, L); a signal that no metric takes may be None. Channels are scored
    one by one and averaged. Returns Results, a row per pair in the order given; a metric whose
    package is absent is n/a. With workers > 1, processes: call under `if __name__ == "__main__":`.
    Raises ValueError for names that are not unique (systems are compared by name) and for unknown
    metrics.
    """
    pairs = [[name, *(x.detach().cpu().numpy() if hasattr(x, "detach") else x for x in signals)]
             for name, *signals in pairs]
    metrics = known(metrics)
    if len({pair[0] for pair in pairs}) < len(pairs):
        raise ValueError("expected a different name for every pair")
    score = functools.partial(score_pair, [metric for metric in metrics if not missing(metric)])
    bar = tqdm(total=len(pairs), desc="scoring", unit="file", disable=None if progress else True)
    if workers <= 1 or len(pairs) < 2:
        rows = [score(pair) for pair in pairs if not bar.update()]
    else:
        rows = score_in_processes(score, pairs, min(workers, len(pairs)), bar)
    bar.close()
    columns = dict.fromkeys([*(column for m in metrics for column in METRICS.get(m, ("", []))[1]),
                             *(key for row in rows for key in row)])
    return Results(rows, [x for x in columns if x not in {"name", "seconds", "note", "error"}],
                   [missing(metric) for metric in metrics if missing(metric)])


def score_in_processes(score, pairs, workers, bar):
    """[score(pair), ...] by several processes.

    If one is killed (by the system, out of memory), finished rows are kept and unfinished pairs are
    scored again, one by one: the pair whose process is killed again gets no score.
    """
    rows = [None] * len(pairs)
    while left := [i for i, row in enumerate(rows) if row is None]:
        # Spawned, since a fork would inherit torch's locks; numpy reads the variables on import.
        threads = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
        with (mock.patch.dict(os.environ, dict.fromkeys(threads, "1")),
              concurrent.futures.ProcessPoolExecutor(
                  workers, multiprocessing.get_context("spawn")) as pool):
            jobs = {pool.submit(score, pairs[i]): i for i in left}
            for job in concurrent.futures.as_completed(jobs):
                with contextlib.suppress(concurrent.futures.process.BrokenProcessPool):
                    rows[jobs[job]] = job.result()
                    bar.update()
        if workers == 1 and None in rows:      # one by one, so it is the first without a row
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
    rows: list                                  # dicts: name, seconds, a key per score, note, error
    columns: list                               # names of the scores
    absent: list = field(default_factory=list)  # what to install for the n/a columns

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
        """n, mean, standard deviation (n - 1), 95 % bootstrap interval per score; then failures."""
        lines = [f"{'':12}{'n':>6}{'mean':>10}{'std':>10}    95 % interval of the mean"]
        for column in self.columns:
            x = self.values(column)
            std, (low, high) = x.std(ddof=1) if len(x) > 1 else np.nan, bootstrap_interval(x)
            lines.append(f"{column:12}{len(x):6d}" + (f"{x.mean():10.3f}{std:10.3f}    "
                         f"[{low:.3f}, {high:.3f}]" if len(x) else f"{'n/a':>10}"))
        lines += self.absent
        for key, what in (("note", "have notes"), ("error", "have no score in some row above")):
            named = [f"    {row['name']}: {row[key]}" for row in self.rows if row[key]]
            lines += [f"{len(named)} of {len(self.rows)} files {what}:"] * bool(named) + named
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
        """Results of self - other, paired over the files both have.

        A difference is significant if its interval excludes 0.
        """
        theirs = {row["name"]: row for row in other.rows}
        rows = []
        for a, b in ((row, theirs[row["name"]]) for row in self.rows if row["name"] in theirs):
            rows.append({"name": a["name"], "note": "", "error": ""} | {
                key: a[key] - b[key] for key in self.columns if key in a and key in b})
        return Results(rows, self.columns, self.absent)


# ---- the command ----

def main(arguments=None):
    """Returns the exit code: 0; 1 if a file could not be scored. Unusable arguments exit with 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code 1: some file could not be scored; 2: unusable arguments.")
    parser.add_argument("clean", type=Path, metavar="CLEAN_DIR", help="reference recordings")
    parser.add_argument("enhanced", type=Path, metavar="ENHANCED_DIR", help="files are paired by "
                        "their paths relative to the folders, without the suffix")
    parser.add_argument("second", type=Path, metavar="SECOND_ENHANCED_DIR", nargs="?",
                        help="another system to compare")
    parser.add_argument("--noisy", type=Path, metavar="NOISY_DIR",
                        help="the unprocessed recordings; adds si_sir_sar")
    parser.add_argument("--metrics", help=f"comma-separated, of {', '.join(METRICS)}, or "
                        "MODULE:NAME for a function of an importable module that takes some of "
                        f"{', '.join(ARGUMENTS)} (default: pesq,estoi,si_sdr)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="scores per file; a second system "
                        "adds FILE-second and FILE-difference")
    parser.add_argument("--workers", type=int, default=os.cpu_count(),
                        help="processes (default: %(default)s)")
    args = parser.parse_args(arguments)
    metrics = (args.metrics or "pesq,estoi,si_sdr" + ",si_sir_sar" * bool(args.noisy)).split(",")
    sys.stdout.reconfigure(errors="backslashreplace")      # a file's name may hold any bytes
    from data import by_name, by_number, plain_warnings
    plain_warnings()
    results = []
    try:
        if not args.noisy and (needy := [m for m in metrics if "noisy" in score_function(m)[1]]):
            raise ValueError(f"{', '.join(needy)}: give --noisy NOISY_DIR")
        clean, noisy = (by_number(by_name(folder)) if folder else {}
                        for folder in (args.clean, args.noisy))
        for folder in [args.enhanced, args.second] if args.second else [args.enhanced]:
            enhanced = by_number(by_name(folder))
            if not clean.keys() & enhanced.keys():
                raise ValueError(f"no file below {folder} has the name of one below {args.clean}")
            pairs = [(name, clean.get(name), enhanced.get(name), noisy.get(name))
                     for name in sorted({**clean, **enhanced})]
            results.append(evaluate(pairs, metrics, args.workers))
            print(f"\n{folder}\n{results[-1].table()}")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.second:
        results.append(results[1].compare(results[0]))
        print(f"\n{args.second} minus {args.enhanced}, paired\n{results[-1].table()}")
    if args.csv:
        for result, suffix in zip(results, ("", "-second", "-difference")):
            result.save_csv(args.csv.with_stem(args.csv.stem + suffix))
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
