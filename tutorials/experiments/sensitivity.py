"""Heat maps of the scores over starting point and number of network evaluations (NFE), before and after CRP.

    python tutorials/experiments/sensitivity.py --data CORPUS "stage 1=sgmse_stage1" "CRP for NFE 5=sgmse" --every 5

The CRP paper leaves this question open. Every model is sampled by Euler-Maruyama steps; their times are even (spacing 1)
or denser towards the end (spacing 2). With one or two steps the spacing has no effect. Scores are kept in --scores, so
that a command that was interrupted continues.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
from scoring import COLUMNS, add_csv_flag, add_rows, enhanced_and_scored, noisy_scored, observations, save_figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="LABEL=CHECKPOINT")
    parser.add_argument("--data", required=True, help="folder with a test set, as for evaluate")
    parser.add_argument("--starts", type=float, nargs="+", default=[0.03, 0.1, 0.3, 0.5, 0.999],
                        help="times of the process (default: %(default)s)")
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2, 3, 5, 10], help="(default: %(default)s)")
    parser.add_argument("--spacings", type=float, nargs="+", default=[1, 2], help="(default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/sensitivity"),
                        help="folder (default: %(default)s)")
    add_csv_flag(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("--out", default="tutorials/experiments/sensitivity.png", help="(default: %(default)s)")
    args = parser.parse_args()

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    recordings = [(path.stem, *pair) for path, pair in zip(noisy, zip(clean, noisy))]
    before = noisy_scored(args.scores, recordings, args.workers)
    rows = observations("start", "noisy", before, test="test")
    maps = {}                                            # title -> means (starts, calls, scores)
    for label, checkpoint in (model.split("=", 1) for model in args.models):
        for spacing in args.spacings:
            means = np.empty((len(args.starts), len(args.nfe), len(COLUMNS)))
            for i, start in enumerate(args.starts):
                for j, calls in enumerate(args.nfe):
                    used = spacing if calls > 2 else 1.0                   # one or two times have no spacing
                    results = enhanced_and_scored(checkpoint, args.scores, recordings, args.workers, sampler="em",
                                                  start=start, N=calls, spacing=used)
                    rows += observations("start", label, results, test="test", nfe=calls, start=start, spacing=spacing)
                    means[i, j] = [results.mean(column) for column in COLUMNS]
            maps[f"{label}, {'even' if spacing == 1 else f'spacing {spacing:g}'}"] = means

    add_rows(args.csv, rows)
    print(f"\nn = {len(recordings)}; noisy: " + ", ".join(
        f"{name} {before.mean(column):.3f}" for column, name in COLUMNS.items()))
    for k, name in enumerate(COLUMNS.values()):
        for title, means in maps.items():
            print(f"\n{name}, {title}\n\n| start | {' | '.join(f'NFE {calls}' for calls in args.nfe)} |\n|---|"
                  + "---|" * len(args.nfe))
            for start, scores in zip(args.starts, means):
                print(f"| {start:g} | {' | '.join(f'{value:.3f}' for value in scores[:, k])} |")
    draw(maps, before, args)


def draw(maps, before, args):
    """A row of panels for each score, with one colour scale; white is the mean of the noisy recordings."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(COLUMNS), len(maps), figsize=(2.7 * len(maps), 2.5 * len(COLUMNS)), squeeze=False,
                                layout="constrained")
    for k, (column, name) in enumerate(COLUMNS.items()):
        gains = {title: means[:, :, k] - before.mean(column) for title, means in maps.items()}
        largest = max(gain.max() for gain in gains.values())
        for axis, (title, gain) in zip(axes[k], gains.items()):
            axis.imshow(gain, cmap="RdBu_r", vmin=-abs(largest), vmax=abs(largest), aspect="auto")
            for i, j in np.ndindex(*gain.shape):
                axis.text(j, i, f"{gain[i, j] + before.mean(column):.2f}", ha="center", va="center", fontsize=7,
                          color="white" if abs(gain[i, j]) > 0.6 * largest else "black")
            axis.set_xticks(range(len(args.nfe)), args.nfe)
            axis.set_yticks(range(len(args.starts)), [f"{start:g}" for start in args.starts])
            axis.set_title(f"{name}\n{title}", fontsize=8)
        axes[k, 0].set_ylabel("start")
    for axis in axes[-1]:
        axis.set_xlabel("NFE")
    save_figure(figure, args.out, 80)


if __name__ == "__main__":
    main()
