"""All shipped checkpoints on one test set: a table that notebook 8 reads, and one to print, with what questions them.

    python tutorials/experiments/comparison.py --data CORPUS [--every 3]

A row names the checkpoint by its SHA-256. Enhanced waves and scores are kept in --scores, so that a command which was
interrupted goes on. The cost is CPU seconds for a second of audio, measured on the first recordings.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import commands
import data
from scoring import (COLUMNS, add_csv_flag, add_lines, cell, cost, enhanced_and_scored, line, noisy_scored, sha256,
                     with_interval)

CHECKPOINTS = ("sgmse_stage1", "sgmse", "sgmse_crp1", "consistency", "meanflow", "drift", "drift_dagger")
# What a checkpoint does without the step that its method adds: (checkpoint, changes of its config).
CONTROLS = {"`sgmse_stage1`, one call at T": ("sgmse_stage1", dict(sampler="one_step", start=1.0)),
            "`meanflow`, its separator alone": ("meanflow", dict(separator="train"))}
AT_T, SEPARATOR = CONTROLS
# What to read side by side, recording by recording.
PAIRS = [("`consistency`, 1 call", AT_T), ("`consistency`, 1 call", "`sgmse_stage1`, 15 calls"),
         ("`sgmse`, 5 calls", AT_T), ("`sgmse_crp1`, 1 call", AT_T),
         ("`drift_dagger`, 1 call", "`consistency`, 1 call"), ("`meanflow`, 2 calls", SEPARATOR)]


def row(name, results, **rest):
    values = {"checkpoint": name, "n": len(results.rows), **rest}
    for column in COLUMNS:
        values |= with_interval(column, results.values(column))
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a test set, as for evaluate")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/comparison"), help="folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("--out", default="tutorials/experiments/comparison.csv", help="(default: %(default)s)")
    add_csv_flag(parser)
    args = parser.parse_args()
    commands.keep_memory()                                  # as all commands do

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    recordings = [(path.stem, *pair) for path, pair in zip(noisy, zip(clean, noisy))]
    before = noisy_scored(args.scores, recordings, args.workers)
    rows, printed = [row("noisy", before, sha256="", calls=0, core_seconds="0")], {"noisy": before}
    for checkpoint in CHECKPOINTS:
        results = enhanced_and_scored(checkpoint, args.scores / checkpoint, recordings, args.workers)
        calls, _, seconds = cost(checkpoint, noisy[:3])
        rows.append(row(checkpoint, results, sha256=sha256(checkpoint), calls=calls, core_seconds=f"{seconds:.4f}"))
        printed[f"`{checkpoint}`, {calls} call" + "s" * (calls > 1)] = results
    for label, (checkpoint, changes) in CONTROLS.items():
        printed[label] = enhanced_and_scored(checkpoint, args.scores / checkpoint, recordings, args.workers, **changes)
    with open(args.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    add_lines(args.csv, [line("shipped", label.replace("`", ""), results, test="test")
                         for label, results in printed.items()])
    print(f"\nn = {len(recordings)}; mean [95 % interval], and below it the paired difference to noisy\n\n"
          f"| | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}")
    for label, results in printed.items():
        print(f"| {label} | {' | '.join(cell(results, column) for column in COLUMNS)} |")
        if label != "noisy":
            difference = results.compare(before)
            print(f"| … − noisy, paired | {' | '.join(cell(difference, column) for column in COLUMNS)} |")
    print(f"\nthe same recordings, difference\n\n| | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}")
    for a, b in PAIRS:
        difference = printed[a].compare(printed[b])
        print(f"| {a} − {b} | {' | '.join(cell(difference, column) for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
