"""All shipped checkpoints on one test set, with the controls that omit the step which a method adds.

    python tutorials/experiments/comparison.py --data CORPUS [--every 3]
    python tutorials/experiments/comparison.py --data CORPUS --split valid --metrics pesq,estoi,si_sdr,dnsmos,distillmos

Writes the table "shipped", which notebook 8 reads, or "shipped_valid" of the validation split, or --out; a row names the
checkpoint by its SHA-256. Enhanced waves and scores are kept in --scores, so that a command that was interrupted continues.
The cost is CPU seconds per second of audio, measured on the first three recordings.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import commands
import data
from scoring import COLUMNS, TABLES, cell, cost, enhanced_and_scored, noisy_scored, observations, sha256, write_table

CHECKPOINTS = ("sgmse_stage1", "sgmse", "sgmse_crp1", "consistency", "meanflow", "drift", "drift_dagger", "dispatch")
# Controls without the step that a method adds: (checkpoint, changes of its config).
CONTROLS = {"sgmse_stage1, one-step prediction": ("sgmse_stage1", dict(sampler="one_step", start=1.0)),
            "meanflow, separator alone": ("meanflow", dict(separator="train"))}
ONE_STEP, SEPARATOR = CONTROLS
# Paired differences: row, and the row that is subtracted from it.
PAIRS = [("consistency", ONE_STEP), ("consistency", "sgmse_stage1"), ("sgmse", ONE_STEP), ("sgmse_crp1", ONE_STEP),
         ("drift_dagger", "consistency"), ("meanflow", SEPARATOR)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the split, as for evaluate")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="(default: %(default)s)")
    parser.add_argument("--metrics", default=",".join(COLUMNS), help="as for evaluate (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/comparison"), help="folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("--out", type=Path, help="(default: the table in tutorials/experiments/tables/)")
    args = parser.parse_args()
    out = args.out or TABLES / ("shipped.csv" if args.split == "test" else "shipped_valid.csv")
    table, which = out.stem, tuple(args.metrics.split(","))
    commands.keep_memory()                                  # as all commands do

    try:
        paths = data.paired_paths(args.data, args.split)
    except FileNotFoundError:                               # speech and noise, mixed as for validation in training
        paths = data.write_mixtures(data.open_data(args.data, args.split), args.scores / "mixtures")
    clean, noisy = (side[::args.every] for side in paths)
    recordings = [(path.stem, *pair) for path, pair in zip(noisy, zip(clean, noisy))]
    before = noisy_scored(args.scores, recordings, args.workers, which)
    columns = {name: COLUMNS.get(name, name) for name in before.columns}
    rows = observations(table, "noisy", before, columns, test=args.split)
    scored, evaluations = {"noisy": before}, {"noisy": ""}
    systems = {checkpoint: (checkpoint, {}) for checkpoint in CHECKPOINTS} | CONTROLS
    for label, (checkpoint, changes) in systems.items():
        scored[label] = enhanced_and_scored(checkpoint, args.scores / checkpoint, recordings, args.workers, which,
                                            **changes)
        evaluations[label], _, seconds = cost(checkpoint, noisy[:3], **changes)
        rows += observations(table, label, scored[label], columns, {"core_seconds": f"{seconds:.4f}"}, test=args.split,
                             sha256=sha256(checkpoint), nfe=evaluations[label])
    differences = {f"{a} − {b}": scored[a].compare(scored[b]) for a, b in PAIRS}
    write_table(out, rows)
    write_table(out.with_stem(f"{out.stem}_differences"), [
        row for label, difference in differences.items()
        for row in observations(f"{table}_differences", label, difference, columns, test=args.split)])
    print(f"\nn = {len(recordings)}; mean [95 % interval], and below it the paired difference to noisy\n\n"
          f"| | NFE | {' | '.join(columns.values())} |\n|---|---|{'---|' * len(columns)}")
    for label, results in scored.items():
        print(f"| {label} | {evaluations[label]} | {' | '.join(cell(results, column) for column in columns)} |")
        if label != "noisy":
            difference = results.compare(before)
            print(f"| … − noisy, paired | | {' | '.join(cell(difference, column) for column in columns)} |")
    print(f"\nthe same recordings, difference\n\n| | {' | '.join(columns.values())} |\n|---|{'---|' * len(columns)}")
    for label, difference in differences.items():
        print(f"| {label} | {' | '.join(cell(difference, column) for column in columns)} |")


if __name__ == "__main__":
    main()
