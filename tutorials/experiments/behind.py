"""Every corrector behind every separator, including separators that it was not trained with.

    python tutorials/experiments/behind.py --data CORPUS "long=meanflow" "short=runs/compare/MECO/last.safetensors"
    python tutorials/experiments/behind.py --data ROOMS "three speakers=SEPARATOR" --correctors "both losses=CHECKPOINT"

Each checkpoint of meanflow.py holds a separator and, if it was trained, the corrector behind it. The table has each
separator alone, then with each corrector, and the paired difference between the two, also over fifths of the recordings
by the score of the separator alone. A corrector receives one speaker at a time, so it can be used with another number of
speakers than in its training. Waves and scores are kept in --scores, so that a command that was interrupted continues.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import meanflow
import metrics
import train
from scoring import (COLUMNS, add_csv_flag, add_rows, cell, enhanced_and_scored, identity, noisy_scored, observations,
                     sha256)


def put_together(separator, corrector, folder):
    """A checkpoint with the separator of one and the corrector of the other, in `folder`."""
    path = folder / f"{identity(sha256(separator), sha256(corrector))}.safetensors"
    if not path.exists():
        front, back = (train.load_checkpoint(name, meanflow.MeanFlowCorrector) for name in (separator, corrector))
        config = dataclasses.replace(back.config, separator="frozen", num_speakers=front.config.num_speakers,
                                     separator_size=front.config.separator_size)
        method = meanflow.MeanFlowCorrector(config)
        method.net.load_state_dict(back.net.state_dict())
        method.separator.load_state_dict(front.separator.state_dict())
        path.parent.mkdir(parents=True, exist_ok=True)
        train.save_checkpoint(path, method)
    return path


def by_fifths(results, other):
    """Means of results - other over fifths of the recordings: {score: five numbers, NaN for a fifth without recordings}.

    From the fifth in which `other` has its lowest scores to the fifth in which it has its highest.
    """
    theirs, means = {row["name"]: row for row in other.rows}, {}
    for column in results.columns:
        pairs = sorted((theirs[row["name"]][column], row[column]) for row in results.rows
                       if column in row and column in theirs.get(row["name"], {}))
        fifths = np.array_split([after - before for before, after in pairs], 5)
        means[column] = [part.mean() if len(part) else np.nan for part in fifths]
    return means


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("separators", nargs="+", metavar="LABEL=CHECKPOINT")
    parser.add_argument("--correctors", nargs="+", metavar="LABEL=CHECKPOINT", help="(default: the same checkpoints)")
    parser.add_argument("--data", required=True, help="corpus with a test set, as for evaluate")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/behind"), help="folder (default: %(default)s)")
    add_csv_flag(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    args = parser.parse_args()

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    recordings = [(path.stem, a, path) for a, path in zip(clean, noisy)]
    separators, correctors = (dict(model.split("=", 1) for model in models)
                              for models in (args.separators, args.correctors or args.separators))

    which, columns = tuple(COLUMNS), dict(COLUMNS)
    for metric, column, title in ("dnsmos", "ovrl", "OVRL"), ("distillmos", "distillmos", "DistillMOS"):
        if not metrics.missing(metric):
            which, columns = (*which, metric), columns | {column: title}

    def results(checkpoint, **changes):
        return enhanced_and_scored(checkpoint, args.scores, recordings, args.workers, which, **changes)

    alone = {label: results(checkpoint, separator="train") for label, checkpoint in separators.items()}
    behind = {(a, b): results(put_together(separators[a], correctors[b], args.scores))
              for a in separators for b in correctors}
    print(f"\nn = {len(recordings)}, mean [95 % interval]\n")
    print(f"| separator | corrector | {' | '.join(columns.values())} |\n|---|---|{'---|' * len(columns)}")
    first = train.load_checkpoint(next(iter(separators.values())))
    array = (first.num_mics, first.num_speakers) != (1, 1)
    table = {("noisy", ""): noisy_scored(args.scores, recordings, args.workers, which, array)}
    table |= {(label, ""): result for label, result in alone.items()} | behind
    test, rows = Path(args.data).name, []
    for (a, b), result in table.items():
        rows += observations("correctors", f"{a}, {b}".rstrip(", "), result, columns, test=test)
    for (a, b), result in behind.items():
        label = f"{a}, {b} − {a}"
        rows += observations("correctors_differences", label, result.compare(alone[a]), columns, test=test)
        rows += [{"table": "correctors_differences", "row": label, "test": test, "fifth": fifth, "metric": column,
                  "mean": f"{mean:.6f}", "n": len(result.rows)}
                 for column, means in by_fifths(result, alone[a]).items() for fifth, mean in enumerate(means, 1)]
    add_rows(args.csv, rows)
    for (a, b), result in table.items():
        print(f"| {a} | {b} | {' | '.join(cell(result, column) for column in columns)} |")
    print("\nadded to the separator, the same recordings\n")
    print(f"| separator | corrector | {' | '.join(columns.values())} |\n|---|---|{'---|' * len(columns)}")
    for (a, b), result in behind.items():
        difference = result.compare(alone[a])
        print(f"| {a} | {b} | {' | '.join(cell(difference, column) for column in columns)} |")
    for (a, b), result in behind.items():
        print(f"\nseparator {a}, corrector {b}: added, over fifths of the recordings by the separator's score")
        print(f"{'':12}{'worst':>10}{'':30}{'best':>10}")
        for column, means in by_fifths(result, alone[a]).items():
            print(f"{column:12}" + "".join(f"{mean:10.3f}" for mean in means))


if __name__ == "__main__":
    main()
