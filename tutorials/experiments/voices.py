"""How high are the voices of a folder? For DriftSE towards other speakers, whose success no clean twin can tell.

    python tutorials/experiments/voices.py CORPUS/train/speech                           each folder in it, and all
    python tutorials/experiments/voices.py CORPUS/train/speech --links runs/women       ... and links to what lies above
    python drift.py train --data CORPUS --unpaired runs/women ...
    python tutorials/experiments/voices.py clean=CORPUS/test/pairs/clean "towards women=evaluated/women/enhanced"

The share of voiced frames whose pitch lies above --above Hz, 165 by default, between men's voices and women's and
children's; mean and 95 % interval over recordings. Pitch is the first high peak of the autocorrelation of frames of
64 ms. A recording counts as high when half of its voiced frames do.

In the corpus of pretrained/README.md these are 711 of the 924 training recordings, by folder:
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
from scoring import add_csv_flag, add_lines, with_interval

SIZE, HOP, LOW, HIGH = 1024, 160, 60, 450                # samples of a frame and between two; Hz


def pitch(wave):
    """Pitch in Hz of the voiced frames of a wave (L,) at 16 kHz, (n,).

    Voiced: within 30 dB of the loudest frame, with a period that a frame repeats by 0.6 or more. Of the peaks that
    reach 0.9 of the highest the shortest is taken, since every multiple of a period is one, too.
    """
    if len(wave) < SIZE:
        return np.zeros(0)
    x = np.lib.stride_tricks.sliding_window_view(wave, SIZE)[::HOP]
    x = x - x.mean(1, keepdims=True)
    power = (x ** 2).mean(1)
    x = x[power > 1e-3 * power.max()]
    spectrum = np.abs(np.fft.rfft(x, 2 * SIZE)) ** 2
    lags = np.arange(data.SAMPLE_RATE // HIGH, data.SAMPLE_RATE // LOW + 2)
    shared = 1 - lags / SIZE                             # what two frames so far apart have in common
    r = np.fft.irfft(spectrum)
    r = r[:, lags] / (r[:, :1] * shared + 1e-12)         # (frames, lags)
    peaks = np.zeros_like(r, bool)
    peaks[:, 1:-1] = (r[:, 1:-1] >= r[:, :-2]) & (r[:, 1:-1] > r[:, 2:])
    best = np.where(peaks, r, 0).max(1, keepdims=True)
    first = (peaks & (r >= 0.9 * best)).argmax(1)
    return data.SAMPLE_RATE / lags[first][best[:, 0] >= 0.6]


def share_above(path, hertz):
    """Share of the voiced frames of a recording whose pitch is higher; NaN where none is voiced."""
    f = pitch(data.load_audio(path)[0].mean(0).numpy())
    return (f > hertz).mean() if len(f) else np.nan


def shown(name, shares):
    """Prints mean and interval of the shares, and returns them as a line of the CSV."""
    shares = np.array(shares)[~np.isnan(shares)]
    low, high = metrics.bootstrap_interval(shares)
    print(f"{name:30} n {len(shares):4}   {shares.mean():.3f} [{low:.3f}, {high:.3f}]", flush=True)
    return {"table": "voices", "row": name, "n": len(shares)} | with_interval("share_above", shares)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    parser.add_argument("--above", type=float, default=165, help="Hz (default: 165)")
    parser.add_argument("--links", type=Path, help="new folder for links to the high recordings of all folders")
    add_csv_flag(parser)
    args = parser.parse_args()
    high, lines = [], []
    for label, _, name in (folder.rpartition("=") for folder in args.folders):
        folder = Path(name)
        shares = {path: share_above(path, args.above) for path in data.list_audio(folder)}
        parts = sorted({path.relative_to(folder).parts[0] for path in shares if path.parent != folder})
        for part in parts:
            shown(part, [share for path, share in shares.items() if path.relative_to(folder).parts[0] == part])
        lines.append(shown(label or name, list(shares.values())))
        high += [(folder, path) for path, share in shares.items() if share > 0.5]
    add_lines(args.csv, lines)
    if args.links:
        args.links.mkdir(parents=True)
        for folder, path in high:
            link = args.links / folder.name / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        print(f"{len(high)} recordings linked in {args.links}")


if __name__ == "__main__":
    main()
