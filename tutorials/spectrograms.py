"""Draw recordings as spectrograms, one above the other: python tutorials/spectrograms.py A.wav B.wav --out C.png"""

import argparse
import sys
from pathlib import Path

import matplotlib
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import SAMPLE_RATE, load_audio

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("recordings", nargs="+")
parser.add_argument("--titles", nargs="*", help="a title each (default: the paths)")
parser.add_argument("--out", default="spectrograms.png", help="(default: spectrograms.png)")
args = parser.parse_args()

matplotlib.use("Agg")
import matplotlib.pyplot as plt

figure, axes = plt.subplots(len(args.recordings), figsize=(9, 2.1 * len(args.recordings)), sharex=True, squeeze=False)
for axis, path, title in zip(axes[:, 0], args.recordings, args.titles or args.recordings):
    wave = load_audio(path)[0][0]
    power = torch.stft(wave, 512, 128, window=torch.hann_window(512), return_complex=True).abs().square()    # (F, T)
    level = 10 * (power / power.max()).clamp(min=1e-8).log10()
    image = axis.imshow(level, origin="lower", aspect="auto", vmin=-70, vmax=0, cmap="magma",
                        extent=(0, len(wave) / SAMPLE_RATE, 0, SAMPLE_RATE / 2000))
    axis.set_ylabel("frequency (kHz)")
    axis.set_title(title, loc="left", fontsize=10)
axes[-1, 0].set_xlabel("time (s)")
figure.colorbar(image, ax=axes[:, 0], label="level (dB below the loudest bin)", pad=0.02)
figure.savefig(args.out, dpi=80, bbox_inches="tight")
