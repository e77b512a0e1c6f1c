"""A corrector behind a separator that it was not trained on: every corrector behind every separator.

    python tutorials/experiments/behind.py --data CORPUS "long=meanflow" "short=runs/compare/MECO/last.safetensors"

Each checkpoint of meanflow.py holds a separator and the corrector that was trained behind it. The table has each
separator alone, then with each corrector, and what that adds, recording by recording and over fifths of the recordings
by the score of the separator alone. Waves and scores are kept in --scores under what they were computed from, so that a
command which was interrupted goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import meanflow
import train
from scoring import COLUMNS, cell, enhanced_and_scored, identity, noisy_scored, sha256


def put_together(separator, corrector, folder):
    """A checkpoint with the separator of one and the corrector of the other, in `folder`."""
    path = folder / f"{identity(sha256(separator), sha256(corrector))}.safetensors"
    if not path.exists():
        method, theirs = (train.load_checkpoint(name, meanflow.MeanFlowCorrector) for name in (corrector, separator))
        method.separator = theirs.separator
        path.parent.mkdir(parents=True, exist_ok=True)
        train.save_checkpoint(path, method)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="LABEL=CHECKPOINT")
    parser.add_argument("--data", required=True, help="corpus with a test set, as for evaluate")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/behind"), help="folder (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    args = parser.parse_args()

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    recordings = [(path.stem, a, path) for a, path in zip(clean, noisy)]
    models = dict(model.split("=", 1) for model in args.models)

    def results(checkpoint, **changes):
        return enhanced_and_scored(checkpoint, args.scores, recordings, args.workers, **changes)

    alone = {label: results(checkpoint, separator="train") for label, checkpoint in models.items()}
    behind = {(a, b): results(put_together(models[a], models[b], args.scores)) for a in models for b in models}
    print(f"\nn = {len(recordings)}, mean [95 % interval]\n")
    print(f"| separator | corrector | {' | '.join(COLUMNS.values())} |\n|---|---|{'---|' * len(COLUMNS)}")
    table = {("noisy", ""): noisy_scored(args.scores, recordings, args.workers)}
    table |= {(label, ""): result for label, result in alone.items()} | behind
    for (a, b), result in table.items():
        print(f"| {a} | {b} | {' | '.join(cell(result, column) for column in COLUMNS)} |")
    print("\nadded to the separator, the same recordings\n")
    print(f"| separator | corrector | {' | '.join(COLUMNS.values())} |\n|---|---|{'---|' * len(COLUMNS)}")
    for (a, b), result in behind.items():
        difference = result.compare(alone[a])
        print(f"| {a} | {b} | {' | '.join(cell(difference, column) for column in COLUMNS)} |")
    for (a, b), result in behind.items():
        print(f"\nseparator {a}, corrector {b}: added, over fifths of the recordings by the separator's score")
        print(result.by_fifths(alone[a]))


if __name__ == "__main__":
    main()
