"""Retrieval in a latent space: how often is the clean frame nearest to a noisy frame the one of the same time?

    python tutorials/experiments/encoder.py --data CORPUS --out runs/encoder
    python tutorials/experiments/latents.py --data CORPUS mel runs/encoder

A drift moves a frame towards nearby clean frames, so it can only help if these are the right ones. Crops of 1 s of the
validation split are mixed at each SNR. As in a training step, the frames of 16 crops are candidates together. A frame one
before or after the right one counts as a hit. An encoder is also measured with random weights.
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
from scoring import add_csv_flag, add_rows, observation


def hits(latents, clean, noisy):
    """Fraction of frames that retrieve their own time, for each layer and crop: waves (B, L) -> (layers, B)."""
    fractions = []
    for x, p in zip(latents(noisy), latents(clean)):                       # (B, T', D)
        nearest = drift.distances(x.flatten(0, 1), p.flatten(0, 1)).argmin(1)
        own = torch.arange(len(nearest), device=nearest.device)
        fractions.append(((nearest - own).abs() <= 1).double().unflatten(0, x.shape[:2]).mean(1).cpu())
    return torch.stack(fractions).numpy()


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
    print(f"{args.num_crops // 16 * 16} crops per SNR; fraction of frames, mean [95 % interval over crops]\n")
    print(f"| latent | layer | {' | '.join(f'{snr:g} dB' for snr in args.snrs)} |")
    print("|---|---|" + "---|" * len(args.snrs))
    rows = []
    for label, latents in itertools.chain.from_iterable(map(spaces, args.encoders)):
        with torch.no_grad():
            fractions = [np.concatenate([hits(latents, *batch) for batch in mixtures[snr]], 1) for snr in args.snrs]
        for layer in latents.layers:
            cells = [(found[layer].mean(), *metrics.bootstrap_interval(found[layer])) for found in fractions]
            cells = " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*cell) for cell in cells)
            print(f"| {label} | {layer} | {cells} |")
            rows += [observation("latents", label, "own_time", found[layer], layer=layer, test="valid", snr=snr)
                     for snr, found in zip(args.snrs, fractions)]
    add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
