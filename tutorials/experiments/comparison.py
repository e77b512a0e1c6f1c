"""All shipped checkpoints on one test set, with the controls that omit the step which a method adds.

    python tutorials/experiments/comparison.py --data CORPUS [--every 3]

Writes a table that notebook 8 reads; a row names the checkpoint by its SHA-256. Enhanced waves and scores are kept in
--scores, so that a command that was interrupted continues. The cost is CPU seconds per second of audio, measured on the
first three recordings.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import commands
import data
from scoring import (COLUMNS, TABLES, cell, cost, enhanced_and_scored, noisy_scored, observations, sha256, write_table)

CHECKPOINTS = ("sgmse_stage1", "sgmse", "sgmse_crp1", "consistency", "meanflow", "drift", "drift_dagger")
# Controls without the step that a method adds: (checkpoint, changes of its config).
CONTROLS = {"sgmse_stage1, one-step prediction": ("sgmse_stage1", dict(sampler="one_step", start=1.0)),
            "meanflow, separator alone": ("meanflow", dict(separator="train"))}
ONE_STEP, SEPARATOR = CONTROLS
# Paired differences: row, and the row that is subtracted from it.
PAIRS = [("consistency", ONE_STEP), ("consistency", "sgmse_stage1"), ("sgmse", ONE_STEP), ("sgmse_crp1", ONE_STEP),
         ("drift_dagger", "consistency"), ("meanflow", SEPARATOR)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a test set, as for evaluate")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/comparison"), help="folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("--out", type=Path, default=TABLES / "shipped.csv",
                        help="(default: tutorials/experiments/tables/shipped.csv)")
    args = parser.parse_args()
    commands.keep_memory()                                  # as all commands do

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    recordings = [(path.stem, *pair) for path, pair in zip(noisy, zip(clean, noisy))]
    before = noisy_scored(args.scores, recordings, args.workers)
    rows, scored, evaluations = observations("shipped", "noisy", before, test="test"), {"noisy": before}, {"noisy": ""}
    systems = {checkpoint: (checkpoint, {}) for checkpoint in CHECKPOINTS} | CONTROLS
    for label, (checkpoint, changes) in systems.items():
        scored[label] = enhanced_and_scored(checkpoint, args.scores / checkpoint, recordings, args.workers, **changes)
        evaluations[label], _, seconds = cost(checkpoint, noisy[:3], **changes)
        rows += observations("shipped", label, scored[label], costs={"core_seconds": f"{seconds:.4f}"}, test="test",
                             sha256=sha256(checkpoint), nfe=evaluations[label])
    differences = {f"{a} − {b}": scored[a].compare(scored[b]) for a, b in PAIRS}
    for label, difference in differences.items():
        rows += observations("shipped_differences", label, difference, test="test")
    write_table(args.out, [row for row in rows if row["table"] == "shipped"])
    write_table(args.out.with_stem(f"{args.out.stem}_differences"), [row for row in rows if row["table"] != "shipped"])
    print(f"\nn = {len(recordings)}; mean [95 % interval], and below it the paired difference to noisy\n\n"
          f"| | NFE | {' | '.join(COLUMNS.values())} |\n|---|---|{'---|' * len(COLUMNS)}")
    for label, results in scored.items():
        print(f"| {label} | {evaluations[label]} | {' | '.join(cell(results, column) for column in COLUMNS)} |")
        if label != "noisy":
            difference = results.compare(before)
            print(f"| … − noisy, paired | | {' | '.join(cell(difference, column) for column in COLUMNS)} |")
    print(f"\nthe same recordings, difference\n\n| | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}")
    for label, difference in differences.items():
        print(f"| {label} | {' | '.join(cell(difference, column) for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
