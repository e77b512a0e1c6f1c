"""Robustness of one-step models: scores over the SNR, in the noises of the test set and in white noise.

    python tutorials/experiments/robustness.py --data CORPUS "with=A.safetensors" "without=B.safetensors"

ROSE-CD distils by stochastic solver steps and calls the distilled model robust. Each checkpoint enhances the clean test
recordings mixed with the noises of CORPUS/test/noise at each of --snrs, and with white noise, which is in no training set.
The last rows are the paired differences between the first checkpoint and each of the others. Waves and scores are kept in
--scores, so that a command that was interrupted continues.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
from scoring import (add_csv_flag, add_rows, cell, code, enhanced_and_scored, files, identity, mixtures, noisy_scored,
                     observations)


def at_level(clean, noises, snr, folder):
    """(name, clean, noisy) of each recording with one of the noises in turn at `snr` dB; white noise if there are none."""
    def noise(number, length, rng):
        if not noises:
            return rng.standard_normal(length)
        wave = data.load_audio(noises[number % len(noises)])[0][0].numpy()
        start = rng.integers(max(len(wave) - length, 0) + 1)
        return np.resize(wave[start:start + length], length)

    folder = folder / identity(code(), files(clean), files(noises), snr)
    return mixtures(clean, folder, noise, lambda number: snr, seed=7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="LABEL=CHECKPOINT")
    parser.add_argument("--data", required=True, help="corpus with test/noise and a test set, as for evaluate")
    parser.add_argument("--snrs", type=float, nargs="+", default=[-5, 0, 5, 10, 15, 20],
                        help="dB (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    parser.add_argument("--scores", type=Path, default=Path("evaluated/robustness"),
                        help="folder (default: %(default)s)")
    add_csv_flag(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that score (default: 2)")
    args = parser.parse_args()

    clean = data.paired_paths(args.data, "test")[0][::args.every]
    models = dict(model.split("=", 1) for model in args.models)
    first, *others = models
    print(f"n = {len(clean)} at each level, mean [95 % interval]\n")
    print(f"| noise | SNR (dB) | {' | '.join(f'{label}: WB-PESQ | SI-SDR (dB)' for label in ('noisy', *models))} |")
    print("|---|---|" + "---|---|" * (1 + len(models)))
    differences, rows = [], []
    for kind, noises in (("test", data.list_audio(Path(args.data) / "test" / "noise")), ("white", [])):
        for snr in args.snrs:
            recordings = at_level(clean, noises, snr, args.scores)
            results = {"noisy": noisy_scored(args.scores, recordings, args.workers)}
            for label, checkpoint in models.items():
                results[label] = enhanced_and_scored(checkpoint, args.scores, recordings, args.workers)
            for label, result in results.items():
                rows += observations("robustness", label, result, test=kind, snr=snr)
            cells = [cell(result, column) for result in results.values() for column in ("pesq", "si_sdr")]
            print(f"| {kind} | {snr:g} | {' | '.join(cells)} |", flush=True)
            for other in others:
                difference = results[first].compare(results[other])
                cells = [cell(difference, column) for column in ("pesq", "si_sdr")]
                rows += observations("robustness_differences", f"{first} − {other}", difference, test=kind, snr=snr)
                differences.append(f"| {first} − {other} | {kind} | {snr:g} | {' | '.join(cells)} |")
    add_rows(args.csv, rows)
    if differences:
        print("\npaired\n\n| | noise | SNR (dB) | WB-PESQ | SI-SDR (dB) |\n|---|---|---|---|---|")
        print("\n".join(differences))


if __name__ == "__main__":
    main()
