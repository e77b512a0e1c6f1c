"""Scores of score models over the number of network evaluations (NFE), as a table and a figure.

    python tutorials/experiments/nfe.py --data CORPUS "stage 1=sgmse_stage1" "CRP for NFE 1=sgmse_crp1@1"

Every model is sampled by Euler-Maruyama steps from its own starting point, with the NFEs after @ or else those of --nfe;
after @one_step it is evaluated once at t = T for its estimate of the clean speech.
Waves and scores are kept in --scores, so that a command that was interrupted continues and a new model adds its curve
without running the others again.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import metrics
from scoring import COLUMNS, add_csv_flag, add_rows, cell, enhanced_and_scored, noisy_scored, observations, save_figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="LABEL=CHECKPOINT[@NFE,...]")
    parser.add_argument("--data", required=True, help="folder with a test set, as for evaluate")
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2, 3, 5, 10, 30, 60], help="(default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/nfe"), help="folder (default: %(default)s)")
    add_csv_flag(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("--out", default="tutorials/experiments/nfe.png", help="(default: %(default)s)")
    args = parser.parse_args()

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    recordings = [(path.stem, *pair) for path, pair in zip(noisy, zip(clean, noisy))]
    before = noisy_scored(args.scores, recordings, args.workers)
    curves = {}
    for label, checkpoint in (model.split("=", 1) for model in args.models):
        checkpoint, _, own = checkpoint.partition("@")
        if own == "one_step":
            uses = {1: dict(sampler="one_step", start=1.0)}
        else:
            uses = {calls: dict(sampler="em", N=calls) for calls in (map(int, own.split(",")) if own else args.nfe)}
        curves[label] = {calls: enhanced_and_scored(checkpoint, args.scores, recordings, args.workers, **changes)
                         for calls, changes in uses.items()}

    rows = observations("nfe", "noisy", before, test="test")
    for label, curve in curves.items():
        for calls, results in curve.items():
            rows += observations("nfe", label, results, test="test", nfe=calls)
    add_rows(args.csv, rows)
    print(f"\nn = {len(recordings)}, mean [95 % interval]\n\n| | NFE | {' | '.join(COLUMNS.values())} |")
    print("|---|---|" + "---|" * len(COLUMNS))
    print(f"| noisy | | {' | '.join(cell(before, column) for column in COLUMNS)} |")
    for label, curve in curves.items():
        for calls, results in curve.items():
            print(f"| {label} | {calls} | {' | '.join(cell(results, column) for column in COLUMNS)} |")
    draw(curves, before, args.out)


def draw(curves, before, out):
    """One panel for each score: mean and 95 % interval over the NFE, on a logarithmic axis."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, len(COLUMNS), figsize=(11, 3.4), layout="constrained")
    for axis, (column, name) in zip(axes, COLUMNS.items()):
        axis.axhline(before.mean(column), color="0.6", linestyle=":", label="noisy")
        for k, (label, curve) in enumerate(curves.items()):
            means = [results.mean(column) for results in curve.values()]
            intervals = [metrics.bootstrap_interval(results.values(column)) for results in curve.values()]
            error = [[mean - low for mean, (low, _) in zip(means, intervals)],
                     [high - mean for mean, (_, high) in zip(means, intervals)]]
            shifted = [calls * 1.04 ** (k - (len(curves) - 1) / 2) for calls in curve]     # intervals side by side
            axis.errorbar(shifted, means, error, marker="os^D"[k % 4], markersize=4, capsize=2, linewidth=1.2, label=label)
        axis.set_xscale("log")
        ticks = sorted({calls for curve in curves.values() for calls in curve})
        axis.set_xticks(ticks, ticks)
        axis.minorticks_off()
        axis.set_xlabel("NFE")
        axis.set_title(name, loc="left", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    save_figure(figure, out, 90)


if __name__ == "__main__":
    main()
