"""How closely losses.PESQLoss follows the package pesq, and what each costs.

    python tests/benchmark_pesq_loss.py --data CORPUS

On every noisy recording of the test split: rank correlation, difference of the MOS values, seconds.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import scipy.stats
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data
import losses
import metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with a test set, as for evaluate")
    args = parser.parse_args()

    loss, rows = losses.PESQLoss(), []
    for paths in tqdm(list(zip(*data.paired_paths(args.data, "test"))), unit="file", leave=False):
        clean, noisy = (data.load_audio(path)[0][0] for path in paths)
        started = time.perf_counter()
        ours = loss.mos(loss(clean, noisy)).item()
        between = time.perf_counter()
        theirs = metrics.pesq(clean.numpy(), noisy.numpy())
        rows.append((ours, theirs, between - started, time.perf_counter() - between))
    ours, theirs, seconds, their_seconds = np.array(rows).T
    difference = ours - theirs
    print(f"n = {len(rows)}, pesq from {theirs.min():.2f} to {theirs.max():.2f}: Spearman "
          f"{scipy.stats.spearmanr(ours, theirs).statistic:.4f}, RMSE {np.sqrt(np.mean(difference ** 2)):.4f}, largest "
          f"difference {np.abs(difference).max():.4f}; {1e3 * seconds.mean():.0f} ms a file, pesq "
          f"{1e3 * their_seconds.mean():.0f} ms")


if __name__ == "__main__":
    main()
