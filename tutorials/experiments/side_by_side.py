"""Scores of several runs of `evaluate` in one table, and their paired differences to the first.

    python drift.py evaluate --data CORPUS --every 3 --checkpoint drift --out evaluated/drift
    python drift.py evaluate --data CORPUS --every 3 --checkpoint runs/unpaired/last.safetensors --out evaluated/unpaired
    python tutorials/experiments/side_by_side.py --table unpaired "paired=evaluated/drift" "unpaired=evaluated/unpaired"

A run is a folder that `evaluate` wrote to, or a CSV of metrics.py, for example for the noisy recordings. The table uses
the recordings and the scores that all runs have.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scoring import COLUMNS, add_csv_flag, add_rows, cell, observations, read

TITLES = COLUMNS | {"ovrl": "OVRL", "distillmos": "DistillMOS"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--table", required=True, help="name of the table")
    add_csv_flag(parser)
    args = parser.parse_args()
    results = {}
    for label, run in (run.rsplit("=", 1) for run in args.runs):
        results[label] = read(run if Path(run).is_file() else Path(run) / "scores.csv")
    columns = [column for column in TITLES if all(column in found.columns for found in results.values())]
    names = set.intersection(*({row["name"] for row in found.rows if row.keys() >= set(columns)}
                               for found in results.values()))
    if not names:
        parser.error("the runs have no recording in common that has all scores")
    for found in results.values():
        found.rows = [row for row in found.rows if row["name"] in names]

    head = f"| | {' | '.join(TITLES[column] for column in columns)} |\n|---|{'---|' * len(columns)}"
    print(f"n = {len(names)}, mean [95 % interval]\n\n{head}")
    for label, found in results.items():
        print(f"| {label} | {' | '.join(cell(found, column) for column in columns)} |")
    first, *others = results
    print(f"\nthe same recordings, difference\n\n{head}")
    rows = [row for label, found in results.items() for row in observations(args.table, label, found, columns, test="test")]
    for label in others:
        difference = results[label].compare(results[first])
        rows += observations(f"{args.table}_differences", f"{label} − {first}", difference, columns, test="test")
        print(f"| {label} − {first} | {' | '.join(cell(difference, column) for column in columns)} |")
    add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
