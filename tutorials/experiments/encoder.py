"""Trains a small HuBERT on unlabelled speech, as the latent space of drift.py.

    python tutorials/experiments/encoder.py --data DIR --noisy --out runs/encoder
    python drift.py train --data DIR --encoder runs/encoder
"""

import argparse
import dataclasses
import functools
import itertools
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import commands
import drift
import train
from data import batches, open_data


@dataclass(frozen=True)
class EncoderConfig:
    """A small HuBERT; the defaults train on a CPU in minutes."""
    hidden: int = 128                # width of the transformer, size of its frames
    depth: int = 2                   # its layers
    channels: int = 64               # width of the convolutions before it
    clusters: int = 64               # classes of mel frames, by k-means
    mask_start: float = 0.08         # probability that a frame begins a masked span
    mask_length: int = 10            # frames of a span: 0.2 s
    noisy: bool = False              # input noisy speech; the classes are those of the clean reference


class MaskedPrediction(nn.Module):
    """First iteration of HuBERT (arXiv 2106.07447): predicts the clusters of masked frames.

    The clusters are those of mel frames, by k-means. With noisy input the encoder also learns to
    denoise (WavLM, arXiv 2110.13900). Trained by train.fit; `encoder` is kept.
    """

    num_samples = 32640                                  # of a crop

    def __init__(self, config, centres):
        super().__init__()
        from transformers import HubertConfig, HubertModel
        self.config = config
        self.register_buffer("centres", centres)         # (clusters, bands)
        self.encoder = HubertModel(HubertConfig(
            hidden_size=config.hidden, intermediate_size=4 * config.hidden,
            num_hidden_layers=config.depth, num_attention_heads=4,
            conv_dim=(config.channels,) * 7, num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=4, hidden_dropout=0.0, activation_dropout=0.0,
            attention_dropout=0.0, layerdrop=0.0))
        self.head = nn.Linear(config.hidden, config.clusters)

    def loss(self, batch):
        """batch: clean and noisy waves (B, L). Returns (cross-entropy at the masked frames,
        fraction of hits).
        """
        config, clean = self.config, drift.standardised(batch[0])
        wave = drift.standardised(batch[1]) if config.noisy else clean
        frames = wave.shape[1] // 320 - 1                # T' of the encoder
        starts = torch.rand(len(wave), frames, device=wave.device) < config.mask_start
        starts[:, 0] |= ~starts.any(1)                   # at least one span in each crop
        spans = F.pad(starts.float(), (config.mask_length - 1, 0))
        masked = F.max_pool1d(spans, config.mask_length, 1) > 0            # (B, T')
        states = self.encoder(wave, mask_time_indices=masked).last_hidden_state
        logits = self.head(states[masked]).float()   # (B, T', hidden) -> (masked, clusters)
        target = units(clean, self.centres)[:, :frames][masked]
        loss = F.cross_entropy(logits, target)
        return loss, {"hits": (logits.argmax(1) == target).float().mean()}


def units(wave, centres):
    """Nearest centre of each mel frame: standardised waves (B, L), (clusters, bands) -> (B,
    L // 320) of integers.
    """
    return torch.cdist(drift.mel_frames(wave, drift.FLOORS[1], context=0), centres).argmin(-1)


def train_encoder(config, encoder=EncoderConfig()):
    """Train MaskedPrediction on the clean speech of config.data; config.out is then a folder for SpeechLatents.

    config: a TrainConfig. Continues an interrupted run. Raises as open_data and train.fit do.
    """
    device = train.pick_device(config.device)
    train.seed_everything(config.seed)
    dataset = open_data(config.data, "train", num_samples=MaskedPrediction.num_samples, seed=config.seed, device=device)
    some = itertools.islice(batches(dataset, config.batch_size, workers=config.workers), 1 + 200 // config.batch_size)
    frames = torch.cat([drift.mel_frames(drift.standardised(clean), drift.FLOORS[1], context=0).flatten(0, 1)
                        for clean, _ in some])                            # (frames, bands)
    centres, _ = kmeans2(frames.cpu().double().numpy(), encoder.clusters, minit="++", seed=config.seed)
    method = MaskedPrediction(encoder, torch.from_numpy(centres).float()).to(device)
    last = Path(config.out) / "last.pt"
    state = train.read_pickle(last) if last.exists() else None
    done = state["step"] if state else 0
    bar = tqdm(total=config.steps, initial=done, unit="step", mininterval=1)
    crops = batches(dataset, config.batch_size, done, workers=config.workers)
    for step, parts in train.fit(method, crops, config, state, {"batch_size": config.batch_size}):
        bar.update(step - bar.n)
        if step % 50 == 0 or step == config.steps:
            bar.set_postfix({name: f"{float(parts[name]):.3f}" for name in ("loss", "hits")})
    bar.close()
    with method.ema.applied(), tempfile.TemporaryDirectory(dir=config.out) as part:
        method.encoder.save_pretrained(part)
        for path in Path(part).iterdir():
            train.write_checkpoint(Path(config.out) / path.name, functools.partial(shutil.copyfile, path))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = train.TrainConfig(out="runs/encoder", steps=4000, lr=5e-4, clip=1.0, ema=0.99)
    names = ("data", "out", "steps", "batch_size", "lr", "clip", "ema", "seed", "device", "workers", "save_every")
    commands.add_flags(parser, train.TrainConfig, names, defaults)
    commands.add_flags(parser, EncoderConfig, defaults=EncoderConfig())
    args = parser.parse_args()
    config = dataclasses.replace(defaults, **commands.explicit_flags(args, train.TrainConfig))
    if not config.data:
        parser.error("give the clean speech with --data DIR")
    try:
        train_encoder(config, EncoderConfig(**commands.explicit_flags(args, EncoderConfig)))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"written to {config.out}; to use it: drift.py train --encoder {config.out} ...")


if __name__ == "__main__":
    main()
