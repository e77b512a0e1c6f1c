"""The fair table: every paradigm with the same network size, data, crops, batch and learning-rate schedule.

    python tutorials/experiments/compare.py --data CORPUS --num-crops 12000 [--seeds 0 1] [--rows CRP ...] [--csv] [-- FLAGS]

Each stage of a row is trained on --num-crops crops, by the commands of STAGES; the flags after -- are given to all of
them. The column "crops in all" sums the crops over the stages of a row and over the training of its own encoder. Scores
are those of the test split, and of the same speech in synthetic noise of another kind, which is in no training set: the
CRP paper asks how much a method loses there. Checkpoints, waves and scores are kept in --out, so that a command that was
interrupted continues. --csv adds each row, test and seed to the table "budget", paired differences of the first seed on
the test split to "budget_differences".
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import commands
import data
import metrics
import train
from scoring import (COLUMNS, add_csv_flag, add_rows, cell, code, cost, enhanced_and_scored, files, identity, mixtures,
                     noisy_scored, observations)

# A stage: name, script and command, flags; {...} stands for the checkpoint of the stage named by it, or a folder.
STAGES = {
    "predictive": ("dispatch.py train", "--distil none"),
    "predictive, MSE": ("dispatch.py train", "--distil none --task mse"),
    "score": ("sgmse.py train", ""),
    "score, no PESQ": ("sgmse.py train", "--pesq-weight 0"),
    "score matching": ("sgmse.py train", "--objective score_matching --version 1 --c-skip 0"),
    "CRP 5": ("sgmse.py train", "--init {score} --crp last --N 5 --start 0.5"),
    "CRP 1": ("sgmse.py train", "--init {score} --crp last --N 1 --start 0.5"),
    "CRP 5, score matching": ("sgmse.py train", "--init {score matching} --crp last --N 5 --start 0.5"),
    "distilled": ("consistency.py train", "--teacher {score}"),
    "distilled, no PESQ": ("consistency.py train", "--teacher {score, no PESQ} --pesq-weight 0"),
    "distilled, SI-SDR alone": ("consistency.py train", "--teacher {score} --pesq-weight 0"),
    "distilled, PESQ alone": ("consistency.py train", "--teacher {score} --si-sdr-weight 0"),
    "distilled, neither": ("consistency.py train", "--teacher {score} --pesq-weight 0 --si-sdr-weight 0"),
    "distilled, no noise": ("consistency.py train", "--teacher {score} --no-stochastic"),
    "renoised": ("consistency.py train", "--solver renoise"),
    "MeanFlowSE": ("meanflow.py train", "--no-displacement --endpoint-weight 0 --clip 0.05"),
    "MeanFlowSE, published": ("meanflow.py train", "--no-displacement --endpoint-weight 0 --c 0.5 --derivative difference "
                                                   "--derivative-clip 5 --reduction sum --sigma-data 0 --clip 1"),
    "MeanFlowSE, composed": ("meanflow.py train", "--no-displacement --endpoint-weight 0 --derivative compose --clip 0.05"),
    "flow": ("meanflow.py train", "--endpoint-weight 0 --average-weight 0 --clip 0.05"),
    "separator": ("meanflow.py train", "--separator train --separator-size compact --separator-seconds 1 --clip 5"),
    "MeCo": ("meanflow.py train", "--init {separator} --separator frozen --clip 0.05"),
    "drift": ("drift.py train", "--clip 2"),
    "drift, noise": ("drift.py train", "--clip 2 --no-mask --sigma-max 0.3"),
    "drift, conditional": ("drift.py train", "--clip 2 --no-mask --conditional"),
    "drift, self-exclusion": ("drift.py train", "--clip 2 --exclude-self"),
    "drift, Eq. (7)": ("drift.py train", "--clip 2 --field separate"),
    "drift, one layer": ("drift.py train", "--clip 2 --layers 0"),
    "drift, unpaired": ("drift.py train", "--clip 2 --unpaired {speech}"),
    "drift, unpaired later": ("drift.py train", "--init {drift} --clip 2 --unpaired {speech}"),
    "drift, own encoder": ("drift.py train", "--clip 2 --exclude-self --temperatures 0 --encoder {own}"),
    "drift, own encoder, deepest": ("drift.py train", "--clip 2 --exclude-self --temperatures 0 --encoder {own} "
                                                      "--layers 2"),
    "drift, random encoder": ("drift.py train", "--clip 2 --exclude-self --temperatures 0 --encoder {random}"),
    "dagger": ("drift.py train", "--clip 2 --field separate --temperatures 0.1 0.5 1 --pesq-weight 0.1 --si-sdr-weight "
                                 "0.1 --ccmse-weight 1"),
    "dagger, joint": ("drift.py train", "--clip 2 --temperatures 0.1 0.5 1 --pesq-weight 0.1 --si-sdr-weight 0.1 "
                                        "--ccmse-weight 1"),
    "dagger, no drifts": ("drift.py train", "--clip 2 --drift-weight 0 --pesq-weight 0.1 --si-sdr-weight 0.1 "
                                            "--ccmse-weight 1"),
}
# Rows of the table: a stage, and the fields of its config that change for sampling.
ROWS = {
    "predictive, SI-SDR": ("predictive", {}), "predictive, error of the spectrogram": ("predictive, MSE", {}),
    "score model, NFE 30": ("score", dict(N=30)), "score model, NFE 5": ("score", dict(N=5)),
    "score model, one-step prediction": ("score", dict(sampler="one_step", start=1.0)),
    "score model without PESQ, one-step prediction": ("score, no PESQ", dict(sampler="one_step", start=1.0)),
    "CRP, NFE 5": ("CRP 5", {}), "CRP, NFE 1": ("CRP 1", {}),
    "score matching, NFE 30": ("score matching", dict(N=30)),
    "CRP from score matching, NFE 5": ("CRP 5, score matching", {}),
    "consistency distillation": ("distilled", {}), "consistency distillation without PESQ": ("distilled, no PESQ", {}),
    "consistency distillation, SI-SDR alone": ("distilled, SI-SDR alone", {}),
    "consistency distillation, PESQ alone": ("distilled, PESQ alone", {}),
    "consistency distillation, neither": ("distilled, neither", {}),
    "consistency distillation, deterministic steps": ("distilled, no noise", {}),
    "consistency training": ("renoised", {}),
    # Without an endpoint loss, only sampling depends on t_end.
    "MeanFlowSE": ("MeanFlowSE", dict(t_end=0.0)),
    "MeanFlowSE, published setting": ("MeanFlowSE, published", dict(t_end=0.0)),
    "MeanFlowSE, composed": ("MeanFlowSE, composed", dict(t_end=0.0)),
    "flow matching, NFE 1": ("flow", dict(t_end=0.0, average=False)),
    "flow matching, NFE 5": ("flow", dict(t_end=0.0, average=False, N=5)),
    "flow matching, NFE 30": ("flow", dict(t_end=0.0, average=False, N=30)),
    "separator alone": ("separator", {}), "MeCo": ("MeCo", {}),
    "DriftSE": ("drift", {}), "DriftSE, noise added": ("drift, noise", {}),
    "DriftSE, conditional": ("drift, conditional", {}), "DriftSE, self-exclusion": ("drift, self-exclusion", {}),
    "DriftSE, field of Eq. (7)": ("drift, Eq. (7)", {}), "DriftSE, one layer": ("drift, one layer", {}),
    "DriftSE, unpaired": ("drift, unpaired", {}), "DriftSE, unpaired after pairs": ("drift, unpaired later", {}),
    "DriftSE, own encoder": ("drift, own encoder", {}),
    "DriftSE, own encoder, deepest layer": ("drift, own encoder, deepest", {}),
    "DriftSE, random encoder": ("drift, random encoder", {}),
    "DriftSE dagger": ("dagger", {}), "DriftSE dagger, joint field": ("dagger, joint", {}),
    "DriftSE dagger without drifts": ("dagger, no drifts", {}),
}
# Paired differences: row, and the row that is subtracted from it.
PAIRS = [("CRP, NFE 5", "score model, NFE 5"), ("CRP, NFE 5", "score model, one-step prediction"),
         ("CRP, NFE 1", "predictive, error of the spectrogram"),
         ("consistency distillation", "score model, one-step prediction"),
         ("consistency distillation", "consistency distillation, deterministic steps"),
         ("consistency distillation", "consistency distillation, neither"),
         ("MeanFlowSE", "flow matching, NFE 1"), ("MeanFlowSE", "flow matching, NFE 5"),
         ("MeanFlowSE, composed", "MeanFlowSE"), ("MeanFlowSE, published setting", "MeanFlowSE"),
         ("MeCo", "separator alone"), ("DriftSE, own encoder", "DriftSE, random encoder"),
         ("DriftSE, unpaired after pairs", "DriftSE"), ("DriftSE dagger", "DriftSE dagger, joint field"),
         ("DriftSE dagger", "DriftSE dagger without drifts"), ("DriftSE dagger", "predictive, SI-SDR"),
         ("DriftSE", "predictive, SI-SDR"), ("consistency distillation", "predictive, SI-SDR"),
         ("CRP, NFE 5", "predictive, SI-SDR")]


def starts(flags):
    """Names of the stages whose checkpoints are in the flags."""
    return [name for name in STAGES if f"{{{name}}}" in flags]


def trained(name, seed, args):
    """The checkpoint of a stage, trained where it is not there yet."""
    command, flags = STAGES[name]
    places = {"speech": Path(args.data) / "train" / "speech", "own": args.encoder, "random": args.out / "random-encoder"}
    places |= {start: trained(start, seed, args) for start in starts(flags)}
    words, weights = [], []
    for i, part in enumerate(re.split(r"{(.+?)}", flags)):                 # every second part names a place
        if i % 2:
            words.append(places[part])
            weights += [places[part]] if places[part].is_file() else places[part].glob("*.safetensors")
        else:
            words += part.split()
    options = ["--preset", args.preset] * ("--init" not in words)
    options += ["--seed", str(seed), "--steps", str(args.num_crops // 4), "--batch-size", "4"]
    options += [*"--lr 1e-3 --lr-decay 0.33 --ema 0.995 --valid-every 0 --num-frames 128".split(), *args.flags]
    # A run is known by the content of its files: after a corpus or a folder of runs was moved, nothing is trained again.
    label = f"{name} {seed} {identity(flags, options, files(weights), files(data.list_audio(args.data)))}"
    run = args.out / "".join(c for c in label.replace(" ", "-") if c.isalnum() or c in "-.")
    if not (run / "last.safetensors").exists():
        print(f"training {name}, seed {seed}", flush=True)
        script, subcommand = command.split()
        subprocess.run([sys.executable, train.HERE / script, subcommand, *words, "--data", args.data, *options, "--out",
                        run], check=True)
    return run / "last.safetensors"


def rows_named(names):
    """The ROWS of these names; a name of no row selects all rows that contain it. Raises ValueError if there are none."""
    parts = [name for name in names if name not in ROWS]
    if unknown := [part for part in parts if not any(part in label for label in ROWS)]:
        raise ValueError(f"--rows {' '.join(map(repr, unknown))}: there are {', '.join(map(repr, ROWS))}")
    return {label: use for label, use in ROWS.items() if label in names or any(part in label for part in parts)}


def encoder_crops(folder):
    """Number of crops on which encoder.py trained, from its last.pt. Raises ValueError if there is no such file."""
    path = folder / "last.pt"
    if not path.is_file():
        raise ValueError(f"--encoder {folder}: expected the folder of encoder.py; there is no last.pt")
    state = train.read_pickle(path)
    return state["step"] * state["run"]["batch_size"]


def crops_in_all(name, crops, of_encoder=0):
    """Crops of a stage, of the stages that it starts from or is distilled from, and of its own encoder."""
    flags = STAGES[name][1]
    return (crops + of_encoder * ("{own}" in flags)
            + sum(crops_in_all(start, crops, of_encoder) for start in starts(flags)))


def other_noises(clean, folder):
    """(name, clean, noisy) of the speech in white and pink noise, hum, clicks and babble, at 2.5 to 17.5 dB."""
    def noise(number, length, rng):
        seconds = np.arange(length) / data.SAMPLE_RATE
        if number % 5 == 0:
            return rng.standard_normal(length)
        if number % 5 == 1:
            spectrum = np.fft.rfft(rng.standard_normal(length))
            return np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)).clip(1)), length)
        if number % 5 == 2:                              # of the mains, with its harmonics
            return sum(np.sin(2 * np.pi * 50 * k * seconds + rng.uniform(0, 6)) / k for k in range(1, 40))
        if number % 5 == 3:
            return (rng.random(length) < 1e-3) * rng.standard_normal(length)
        speakers = (data.load_audio(clean[(number + 7 * k) % len(clean)])[0][0].numpy() for k in range(1, 7))
        return sum(np.resize(wave, length) / wave.std() for wave in speakers)

    return mixtures(clean, folder, noise, lambda number: 2.5 + 5 * (number // 5 % 4), seed=6)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="corpus with a train and a test split, as for train")
    parser.add_argument("--num-crops", type=int, required=True, help="crops of a stage's training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: %(default)s)")
    parser.add_argument("--rows", nargs="+", default=[""], metavar="ROW",
                        help="rows of these names, or whose names contain one (default: all)")
    parser.add_argument("--preset", default="small", help="(default: small)")
    parser.add_argument("--encoder", type=Path, help="folder of encoder.py, for the three rows that need one")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder (default: %(default)s)")
    add_csv_flag(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    parser.add_argument("flags", nargs="*", help="after --: flags of every training")
    args = parser.parse_args()
    try:
        chosen = rows_named(args.rows)
        of_encoder = encoder_crops(args.encoder) if args.encoder else 0
    except ValueError as error:
        parser.error(str(error))
    commands.keep_memory()                                  # as all commands do
    if args.encoder is not None:
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(args.encoder)).save_pretrained(args.out / "random-encoder")

    clean, noisy = (paths[::args.every] for paths in data.paired_paths(args.data, "test"))
    tests = {"test": [(path.stem, *pair) for path, pair in zip(noisy, zip(clean, noisy))],
             "other": other_noises(clean, args.out / f"other-{identity(code(), files(clean))}")}
    which, columns = tuple(COLUMNS), dict(COLUMNS)
    if not metrics.missing("dnsmos"):
        which, columns = (*which, "dnsmos"), columns | {"ovrl": "OVRL"}
    before = {test: noisy_scored(args.out, recordings, args.workers, which) for test, recordings in tests.items()}
    rows = [row for test, results in before.items() for row in observations("budget", "noisy", results, columns, test=test)]
    results_of, costs = {}, {}
    for seed in args.seeds:                              # outermost: a table of fewer seeds is there early
        for label, (stage, changes) in chosen.items():
            if "encoder" in label and args.encoder is None:
                continue
            checkpoint = trained(stage, seed, args)
            costs[label] = calls, parameters, seconds = cost(checkpoint, noisy[:1], **changes)
            for test, recordings in tests.items():
                results = enhanced_and_scored(checkpoint, args.out / "waves", recordings, args.workers, which,
                                              **changes)
                results_of.setdefault((label, test), []).append(results)
                costs_of = {"parameters": parameters, "core_seconds": f"{seconds:.4f}",
                            "crops_in_all": crops_in_all(stage, args.num_crops, of_encoder)}
                rows += observations("budget", label, results, columns, costs_of, test=test, preset=args.preset, seed=seed,
                                     crops=args.num_crops, nfe=calls)
    differences = {f"{a} − {b}": results_of[a, "test"][0].compare(results_of[b, "test"][0])
                   for a, b in PAIRS if costs.keys() >= {a, b}}
    for label, difference in differences.items():
        rows += observations("budget_differences", label, difference, columns, test="test", preset=args.preset,
                             seed=args.seeds[0], crops=args.num_crops)
    add_rows(args.csv, rows)

    print(f"\n{args.num_crops} crops a stage, n = {len(noisy)}; mean [95 % interval] of the first seed (spread, if "
          f"there are more), then the gains over the noisy recordings, test -> other noises\n\n"
          f"| | NFE | crops in all | {' | '.join(columns.values())} | PESQ gain | SI-SDR gain |\n"
          f"|---|---|---|{'---|' * len(columns)}---|---|")
    print(f"| noisy | | | {' | '.join(cell(before['test'], column) for column in columns)} | | |")
    for label, (calls, *_) in costs.items():
        runs = results_of[label, "test"]
        spread = [f" ({np.ptp([run.mean(column) for run in runs]):.3f})" * (len(runs) > 1) for column in columns]
        cells = [cell(runs[0], column) + part for column, part in zip(columns, spread)]
        gains = [" -> ".join(f"{results_of[label, test][0].mean(column) - before[test].mean(column):+.2f}"
                             for test in tests) for column in ("pesq", "si_sdr")]
        crops = crops_in_all(ROWS[label][0], args.num_crops, of_encoder)
        print(f"| {label} | {calls} | {crops} | {' | '.join(cells + gains)} |")
    print(f"\nthe same test recordings, difference\n\n| | {' | '.join(columns.values())} |\n|---|{'---|' * len(columns)}")
    for label, difference in differences.items():
        print(f"| {label} | {' | '.join(cell(difference, column) for column in columns)} |")


if __name__ == "__main__":
    main()
