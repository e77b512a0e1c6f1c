"""Distillation of selected patches and its controls: trains and scores each row with several seeds.

    python dispatch.py train --preset teacher --data CORPUS --out runs/teacher
    python tutorials/experiments/patches.py --data CORPUS --teacher runs/teacher/last.safetensors -- --steps 400 --lr 3e-3

The flags after -- are given to every `dispatch.py train`. Compact students and scores are kept in --out, so that a command
that was interrupted continues. Intervals are over recordings, whose score is the mean over the seeds; --csv also adds
each seed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import metrics
import train
from scoring import (COLUMNS, add_csv_flag, add_rows, cell, enhanced_and_scored, files, identity, noisy_scored,
                     observations, sha256)

ROWS = {
    "student alone": ["none"],
    "all of the teacher": ["all"],
    "random patches": ["random"],
    "DISPatch": ["selective"],
    "DISPatch + MSSP": ["selective", "--low", "10", "--high", "40"],
    "magnitudes, all": ["all", "--distance", "response"],
    "magnitudes, DISPatch": ["selective", "--distance", "response"],
}
# Only if the teacher is a recurrent network.
FEATURE_ROWS = {
    "features, all": ["all", "--distance", "feature"],
    "features, DISPatch": ["selective", "--distance", "feature"],
}
PAIRS = [("all of the teacher", "student alone"), ("DISPatch", "student alone"), ("DISPatch", "all of the teacher"),
         ("DISPatch", "random patches"), ("DISPatch + MSSP", "DISPatch"), ("DISPatch + MSSP", "random patches"),
         ("magnitudes, DISPatch", "magnitudes, all"), ("features, DISPatch", "features, all"),
         ("features, DISPatch", "student alone")]


def mean_over(runs):
    """The results of several seeds as one, recording by recording."""
    rows = [{"name": same[0]["name"], "note": "", "error": ""} |
            {column: float(np.mean([row[column] for row in same])) for column in COLUMNS}
            for same in zip(*(results.rows for results in runs))]
    return metrics.Results(rows, list(COLUMNS))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="corpus with a train and a test split, as for train")
    parser.add_argument("--teacher", required=True, help="checkpoint, or the name of one in pretrained/")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="only these rows of the table (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/patches"), help="folder (default: %(default)s)")
    add_csv_flag(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("flags", nargs="*", help="after --: flags of the students' training")
    args = parser.parse_args()

    recurrent = getattr(train.load_checkpoint(args.teacher).config, "network", "") == "mask"
    rows = ROWS | (FEATURE_ROWS if recurrent else {})
    if unknown := [label for label in args.rows or () if label not in rows]:
        parser.error(f"--rows {' '.join(map(repr, unknown))}: with this teacher there are {', '.join(map(repr, rows))}")
    rows = {label: rows[label] for label in args.rows or rows}
    clean, noisy = data.paired_paths(args.data, "test")
    recordings = [(path.stem, a, path) for a, path in zip(clean, noisy)]
    noisy = noisy_scored(args.out, recordings, args.workers)
    teacher = enhanced_and_scored(args.teacher, args.out / "teacher", recordings, args.workers)
    learnt_from = identity(files(data.list_audio(args.data)), sha256(args.teacher), args.flags)
    preset = args.flags[args.flags.index("--preset") + 1] if "--preset" in args.flags else "paper"
    results = {label: [] for label in rows}
    table = [row for label, scored in (("noisy", noisy), ("teacher", teacher))
             for row in observations("patches", label, scored, teacher=args.teacher, test="test")]
    for seed in args.seeds:                              # outermost: a table of fewer seeds is there early
        for label, flags in rows.items():
            run = args.out / f"{label}, seed {seed}, {learnt_from}".replace(" ", "-")
            if not (run / "last.safetensors").exists():
                print(f"{label}, seed {seed}")
                subprocess.run([sys.executable, train.HERE / "dispatch.py", "train", "--distil", *flags,
                                "--data", args.data, *(["--teacher", args.teacher] if flags != ["none"] else []), "--seed",
                                str(seed), "--out", run, *args.flags], check=True)
            student = run / "last.safetensors"
            results[label].append(enhanced_and_scored(student, run / "test", recordings, args.workers))
            steps = train.read_metadata(student)["extra"]["step"]
            what = dict(teacher=args.teacher, test="test", steps=steps, preset=preset)
            table += observations("patches", label, results[label][-1], seed=seed, **what)

    means = {label: mean_over(runs) for label, runs in results.items()}
    seeds = " ".join(map(str, args.seeds))
    if len(args.seeds) > 1:
        table += [row for label, mean in means.items() for row in observations("patches", label, mean, seed=seeds, **what)]
    differences = {f"{a} − {b}": means[a].compare(means[b]) for a, b in PAIRS if means.keys() >= {a, b}}
    for label, difference in differences.items():
        table += observations("patches_differences", label, difference, seed=seeds, **what)
    add_rows(args.csv, table)
    print(f"\nn = {len(recordings)}, {len(args.seeds)} seeds; mean [95 % interval]; (lowest and highest seed)\n")
    print(f"| | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}")
    for label, other in ("noisy", noisy), ("teacher", teacher):
        print(f"| {label} | {' | '.join(cell(other, column) for column in COLUMNS)} |")
    for label, runs in results.items():
        spread = [sorted(results.mean(column) for results in runs) for column in COLUMNS]
        print(f"| {label} | " + " | ".join(f"{cell(means[label], column)} ({scores[0]:.3f}, {scores[-1]:.3f})"
                                           for column, scores in zip(COLUMNS, spread)) + " |")
    print("\nthe same recordings, difference\n")
    print(f"| | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}")
    for label, difference in differences.items():
        print(f"| {label} | {' | '.join(cell(difference, column) for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
