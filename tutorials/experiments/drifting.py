"""Figure 2 of the DriftSE paper: frames of enhanced speech during training, and their distance to clean speech.

    python tutorials/experiments/drifting.py --data CORPUS -- --preset small --batch-size 8 --lr 1e-3 --clip 2

Trains drift.py with the flags that follow --, up to each number of --steps, and keeps the averaged weights of each in
--out; a command that was interrupted continues. Frames of the latent space are projected onto the first two principal
components of the clean test recordings. The contours hold a tenth, a half and nine tenths of the frames of clean speech
and of one enhanced recording; a cross is the mean. The distance is the energy distance between the
frames of --recordings enhanced recordings and those of the same, clean: 0 only for equal distributions.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.stats import gaussian_kde

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import drift
import train
from scoring import add_csv_flag, add_rows, files, identity, save_figure


def weights_after(steps, args):
    """The checkpoint after each number of steps of one training: {steps: file}."""
    run = args.out / identity(args.flags, files(data.list_audio(args.data)))
    run.mkdir(parents=True, exist_ok=True)
    checkpoints = {}
    for count in sorted(steps):
        checkpoints[count] = run / f"after {count}.safetensors"
        if checkpoints[count].exists():
            continue
        flags = ["--data", args.data, "--valid-every", "0", "--out", run, *args.flags]
        # A training has at least one step; with --lr 0 it keeps the initial weights.
        flags += ["--steps", str(count)] if count else ["--steps", "1", "--lr", "0", "--out", run / "start"]
        subprocess.run([sys.executable, train.HERE / "drift.py", "train", *map(str, flags)], check=True)
        shutil.copyfile((run / "start" if count == 0 else run) / "last.safetensors", checkpoints[count])
    return checkpoints


def frames(latents, waves):
    """Frames of the first layer of all waves (L,): (N, D)."""
    return torch.cat([latents(wave[None])[0][0] for wave in waves])


def energy_distance(x, y, most=3000):
    """2 E|x - y| - E|x - x'| - E|y - y'| of frames (N, D), (M, D); at most `most` of each, evenly spaced."""
    x, y = (z[np.linspace(0, len(z) - 1, min(most, len(z))).astype(int)] for z in (x, y))
    mean = lambda a, b: drift.distances(a, b).mean().item()
    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="corpus with a train and a test split, as for train")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 100, 1000], help="(default: %(default)s)")
    parser.add_argument("--end", default="drift", help="checkpoint of the last panel (default: %(default)s)")
    parser.add_argument("--number", type=int, default=0, help="index of the test recording in the figure (default: 0)")
    parser.add_argument("--recordings", type=int, default=20,
                        help="number of recordings in the energy distance (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/drifting"), help="folder (default: %(default)s)")
    parser.add_argument("--figure", type=Path, default=train.HERE / "tutorials/experiments/drifting.png")
    add_csv_flag(parser)
    parser.add_argument("flags", nargs="*", help="after --: flags of drift.py train")
    args = parser.parse_args()

    clean, noisy = data.paired_paths(args.data, "test")
    wanted = np.linspace(0, len(clean) - 1, min(args.recordings, len(clean))).astype(int)
    clean_waves, noisy_waves = ([data.load_audio(paths[i])[0][0] for i in (args.number, *wanted)]
                                for paths in (clean, noisy))
    checkpoints = weights_after(args.steps, args) | {"end": args.end}
    latents = drift.SpeechLatents("mel", (0,))
    target = frames(latents, clean_waves[1:])
    mean = target.mean(0)
    plane = torch.linalg.svd((target - mean)[::4], full_matrices=False)[2][:2].T               # (D, 2)
    clouds, distances = {}, {}

    def look(name, waves):
        clouds[name] = ((frames(latents, waves[:1]) - mean) @ plane).numpy()
        distances[name] = energy_distance(frames(latents, waves[1:]), target)
        print(f"{name}: energy distance {distances[name]:.3f}", flush=True)

    print(f"n = {len(wanted)} recordings")
    look("noisy", noisy_waves)
    for name, checkpoint in checkpoints.items():
        method = train.load_checkpoint(checkpoint)
        with torch.inference_mode():
            look(f"after {name} steps" if name != "end" else f"end: {args.end}",
                 [method.enhance(wave[None])[0] for wave in noisy_waves])
    add_rows(args.csv, [{"table": "drifting", "row": state, "metric": "energy_distance", "mean": f"{distance:.6f}",
                         "n": len(wanted)} for state, distance in distances.items()])
    draw(((target - mean) @ plane).numpy(), clouds, distances, args.figure)


def contours(axis, points, colour, box):
    """Draw contours that hold a tenth, a half and nine tenths of the points (N, 2), by a Gaussian kernel, and their mean."""
    density = gaussian_kde(points.T)
    x, y = np.meshgrid(np.linspace(*box[0], 60), np.linspace(*box[1], 60))
    levels = np.quantile(density(points.T), (0.1, 0.5, 0.9))
    height = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    axis.contour(x, y, height, levels, colors=colour, linewidths=0.9)
    axis.plot(*points.mean(0), "+", color=colour, markersize=12, markeredgewidth=2)


def draw(target, clouds, distances, path):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    box = [(low - 0.15 * (high - low), high + 0.15 * (high - low)) for low, high in zip(
        *np.quantile(np.concatenate([target, *clouds.values()]), (0.005, 0.995), axis=0))]
    columns = (len(clouds) + 2) // 2
    figure, axes = plt.subplots(2, columns, figsize=(3 * columns, 5.6), layout="constrained")
    *panels, last = axes.flat[:len(clouds) + 1]
    for axis, (name, points) in zip(panels, clouds.items()):
        contours(axis, target[::5], "0.6", box)
        contours(axis, points, "tab:red", box)
        axis.set(title=name, xlim=box[0], ylim=box[1], xticks=[], yticks=[])
    bars = last.barh(range(len(distances)), list(distances.values()), color="tab:red")
    last.bar_label(bars, [f"{name}: {distance:.3f}" for name, distance in distances.items()], padding=3)
    last.set(title="energy distance to clean", yticks=[], xlim=(0, 2.3 * max(distances.values())))
    last.invert_yaxis()
    for axis in axes.flat[len(clouds) + 1:]:
        axis.set_axis_off()
    save_figure(figure, path, 80)


if __name__ == "__main__":
    main()
