"""Pitch of the voices in a folder, to measure DriftSE towards other speakers, for which there is no clean reference.

    python tutorials/experiments/voices.py CORPUS/train/speech                           each folder in it, and all
    python tutorials/experiments/voices.py CORPUS/train/speech --links runs/women       ... and links to high voices
    python drift.py train --data CORPUS --unpaired runs/women ...
    python tutorials/experiments/voices.py clean=CORPUS/test/pairs/clean "towards women=evaluated/women/enhanced"

Prints the fraction of voiced frames whose pitch is higher than --above: 165 Hz lies between most voices of men and most
of women and children. Mean and 95 % interval over recordings. Pitch is the first high peak of the autocorrelation of
frames of 64 ms. A recording has a high voice if that fraction is above one half.

In the corpus of pretrained/README.md 711 of the 924 training recordings have one, by folder:
    all of      ast_en ast_es ast_fr hw_* kl_en_GB kl_es kl_nl kl_pt_BR kl_ru kl_uk kt_uk tux_be tux_el tux_ro
    none of     festvox-ru kl_fr kl_lt kl_ml kl_nds tux_ru
    some of     ast_it 36/42, fillets-ng-data-cs 59/87, kt_ca 19/21, kt_fr 12/20, kt_lt 4/24, kt_nn 25/26
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import metrics
from scoring import add_csv_flag, add_rows, observation

SIZE, HOP, LOW, HIGH = 1024, 160, 60, 450                # samples of a frame and between two; Hz


def pitch(wave):
    """Pitch in Hz of the voiced frames of a wave (L,) at 16 kHz, (n,).

    A frame is voiced if it is within 30 dB of the loudest and its normalised autocorrelation has a peak of at least 0.6.
    Of the peaks that reach 0.9 of the highest the one with the shortest lag counts, since multiples of a period have
    peaks, too.
    """
    if len(wave) < SIZE:
        return np.zeros(0)
    x = np.lib.stride_tricks.sliding_window_view(wave, SIZE)[::HOP]
    x = x - x.mean(1, keepdims=True)
    power = (x ** 2).mean(1)
    x = x[power > 1e-3 * power.max()]
    spectrum = np.abs(np.fft.rfft(x, 2 * SIZE)) ** 2
    lags = np.arange(data.SAMPLE_RATE // HIGH, data.SAMPLE_RATE // LOW + 2)
    shared = 1 - lags / SIZE                             # fraction of a frame that overlaps at each lag
    r = np.fft.irfft(spectrum)
    r = r[:, lags] / (r[:, :1] * shared + 1e-12)         # (frames, lags)
    peaks = np.zeros_like(r, bool)
    peaks[:, 1:-1] = (r[:, 1:-1] >= r[:, :-2]) & (r[:, 1:-1] > r[:, 2:])
    best = np.where(peaks, r, 0).max(1, keepdims=True)
    first = (peaks & (r >= 0.9 * best)).argmax(1)
    return data.SAMPLE_RATE / lags[first][best[:, 0] >= 0.6]


def fraction_above(path, hertz):
    """Fraction of the voiced frames of a recording whose pitch is higher; NaN if no frame is voiced."""
    f = pitch(data.load_audio(path)[0].mean(0).numpy())
    return (f > hertz).mean() if len(f) else np.nan


def shown(name, fractions):
    """Print mean and interval of the fractions, and return them as a row of a table."""
    fractions = np.array(fractions)[~np.isnan(fractions)]
    low, high = metrics.bootstrap_interval(fractions)
    print(f"{name:30} n {len(fractions):4}   {fractions.mean():.3f} [{low:.3f}, {high:.3f}]", flush=True)
    return observation("voices", name, "fraction_above", fractions)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    parser.add_argument("--above", type=float, default=165, help="Hz (default: 165)")
    parser.add_argument("--links", type=Path, help="new folder for links to the recordings with high voices")
    add_csv_flag(parser)
    args = parser.parse_args()
    high, rows = [], []
    for label, _, name in (folder.rpartition("=") for folder in args.folders):
        folder = Path(name)
        fractions = {path: fraction_above(path, args.above) for path in data.list_audio(folder)}
        parts = sorted({path.relative_to(folder).parts[0] for path in fractions if path.parent != folder})
        for part in parts:
            shown(part, [value for path, value in fractions.items() if path.relative_to(folder).parts[0] == part])
        rows.append(shown(label or name, list(fractions.values())))
        high += [(folder, path) for path, value in fractions.items() if value > 0.5]
    add_rows(args.csv, rows)
    if args.links:
        args.links.mkdir(parents=True)
        for folder, path in high:
            link = args.links / folder.name / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        print(f"{len(high)} recordings linked in {args.links}")


if __name__ == "__main__":
    main()
