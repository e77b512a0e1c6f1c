"""What a latent space is worth to drifts: how often is the clean frame nearest to a noisy frame that of its own time?

    python tutorials/experiments/encoder.py --data CORPUS --out runs/encoder
    python tutorials/experiments/latents.py --data CORPUS mel runs/encoder

A drift pulls a frame towards the clean frames that are near it, so it can only help where these are the right ones.
Crops of 1 s of the validation split, mixed at each SNR, 16 crops at a time as in a training step; the frames of all of
them are candidates, and the neighbours of the own frame count, too. An encoder is also measured with random weights.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import drift
import metrics
from scoring import add_csv_flag, add_lines, with_interval


def hits(latents, clean, noisy):
    """Per crop and layer, the share of frames that find their own time: waves (B, L) -> (layers, B)."""
    shares = []
    for x, p in zip(latents(noisy), latents(clean)):                       # (B, T', D)
        nearest = drift.distances(x.flatten(0, 1), p.flatten(0, 1)).argmin(1)
        own = torch.arange(len(nearest), device=nearest.device)
        shares.append(((nearest - own).abs() <= 1).double().unflatten(0, x.shape[:2]).mean(1).cpu())
    return torch.stack(shares).numpy()


def spaces(name):
    """(label, SpeechLatents of all layers) of "mel" or a folder, the latter also with random weights."""
    if name == "mel":
        yield "mel", drift.SpeechLatents("mel", tuple(range(len(drift.MEL))))
        return
    from transformers import AutoConfig
    config = AutoConfig.from_pretrained(name)
    layers = tuple(range(config.num_hidden_layers + 1))
    yield name, drift.SpeechLatents(name, layers)
    torch.manual_seed(0)
    yield f"{name}, random weights", drift.SpeechLatents(config, layers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", metavar="ENCODER", help="as for drift.py --encoder")
    parser.add_argument("--data", required=True, help="corpus with a validation split, as for train")
    parser.add_argument("--snrs", type=float, nargs="+", default=[20, 10, 5, 0], help="dB (default: %(default)s)")
    parser.add_argument("--num-crops", type=int, default=96, help="per SNR (default: %(default)s)")
    add_csv_flag(parser)
    args = parser.parse_args()

    mixtures = {}
    for snr in args.snrs:
        dataset = data.open_data(args.data, "valid", snrs=(snr,), num_samples=16000, seed=0)
        mixtures[snr] = list(itertools.islice(data.batches(dataset, 16, workers=0), args.num_crops // 16))
    print(f"{args.num_crops // 16 * 16} crops per SNR; share of frames, mean [95 % interval over crops]\n")
    print(f"| latent | layer | {' | '.join(f'{snr:g} dB' for snr in args.snrs)} |")
    print("|---|---|" + "---|" * len(args.snrs))
    lines = []
    for label, latents in itertools.chain.from_iterable(map(spaces, args.encoders)):
        with torch.no_grad():
            shares = [np.concatenate([hits(latents, *batch) for batch in mixtures[snr]], 1) for snr in args.snrs]
        for layer in latents.layers:
            cells = [(share[layer].mean(), *metrics.bootstrap_interval(share[layer])) for share in shares]
            cells = " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*cell) for cell in cells)
            print(f"| {label} | {layer} | {cells} |")
            lines += [{"table": "latents", "row": label, "layer": layer, "test": "valid", "snr": f"{snr:g}",
                       "n": share.shape[1]} | with_interval("own_time", share[layer])
                      for snr, share in zip(args.snrs, shares)]
    add_lines(args.csv, lines)


if __name__ == "__main__":
    main()
