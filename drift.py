"""Drifting models: one network call, trained by moving its outputs towards clean speech in a feature space.

Papers: Xu, Caviedes-Nozal, Kleijn, Yan, Olsson, "Speech Enhancement Based on Drifting Models" (DriftSE, Interspeech
2026, arXiv 2604.24199v1); Deng, Li, Li, Du, He, "Generative Modeling via Drifting" (arXiv 2602.04770).

The idea: a frozen encoder turns the frames of clean and of generated speech into two clouds of points. A field V moves
each generated point: towards the clean points near it, away from its generated neighbours. Where the clouds agree the
two forces cancel. The network is trained to output what its own output would be after the move. No pairs enter: that
the clean frames belong to the same utterances helps, but nothing tells a frame which clean frame is its own.

    kernel             k(x, y) = exp(-|x - y| / temperature), Eq. (8)            distances
    field, as written  weighted mean of real - weighted mean of generated, (7)   mean_shift_field
    field, as computed the two compete in one soft-max over both axes            drifting_field
    over temperatures  mean of fields; originally: sum of fields of unit size    multi_temperature_field, in blocks
    feature scale      mean norm of clean frames; originally: mean distance      feature_scale
    loss               E |x - sg(x + V)|^2, Eq. (9)                              drifting_loss
    latent space       layers of a speech encoder, or mel spectrograms           SpeechLatents, mel_frames
    ... without one    a small HuBERT, trained here on clean speech              train_encoder, MaskedPrediction
    noise level        log sigma ~ N(-3, 1.2), truncated                         noise_level
    dagger variant     PESQ, SI-SDR, spectra against the clean wave              PESQLoss, si_sdr_loss; ccmse_loss
    level              the loss does not see the gain; peak as the input's       DriftSE.enhance

Where we differ. The default is the released code's field, feature scale and temperatures, with the paper's noise
levels. Its waveform losses see crops divided by the noisy peak (released: at their own level). Distances are computed
in float64: by matrix products in single precision two equal frames lie up to 1e-3 apart, and temperatures go down to
0.005. The optimiser is that of train.py, with --lr 5e-4 --clip 2 as published. The presets small and tiny are ours: mel
frames hear no phase, so their network gives a mask for the noisy spectrogram.

    python drift.py train --data DIR [--preset dagger] [--sigma-max 0] [--conditional] [--unpaired DIR_OF_CLEAN_SPEECH]
    python drift.py train --data DIR --encoder microsoft/wavlm-large --layers 6 12 24 --temperatures 0.02 0.05 0.1
    python drift.py encoder --data DIR --out runs/encoder; python drift.py train --data DIR --encoder runs/encoder
"""

import argparse
import functools
import itertools
import math
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

import metrics
import nets
import train
from data import (Spectrogram, SpectrogramConfig, batches, enhance_levelled, in_spectrogram, open_data, per_bin,
                  robust_level)


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is DriftSE with DistilHuBERT for VoiceBank-DEMAND."""
    encoder: str = "ntu-spml/distilhubert"  # hub name or local folder of a transformers model; mel: needs none
    layers: tuple = (0, 1, 2)        # hidden states; HuBERT-Large, WavLM-Large: 6 12 24; mel: 0 ... 4, see MEL
    field: str = "joint"             # joint (published systems), or separate: the paper's Eq. (7)
    recipe: str = "driftse"          # scales of features and drift, sum over temperatures: driftse or original
    temperatures: tuple = (0.0,)     # kernel widths, in units of the feature scale; 0: the recipe's own
    exclude_self: bool = True        # a generated frame does not repel itself
    sigma_max: float = 0.3           # noise added to y in training: largest std per complex bin; 0: none
    sigma_min: float = 0.01          # smallest
    log_sigma_mean: float = -3.0     # mean of its natural logarithm, before truncation
    log_sigma_std: float = 1.2       # std of it
    sigma: float = 0.0               # std of the noise added to y at inference
    conditional: bool = False        # noise in, y as the condition at every resolution, instead of y in
    mask: bool = False               # the network gives a gain in (0, 2) for y, which keeps its phase (ours)
    drift_weight: float = 1.0        # of the drifting loss, a mean over the entries of all features
    pesq_weight: float = 0.0         # of the PESQ disturbance; dagger: 1e-4
    si_sdr_weight: float = 0.0       # of the negative SI-SDR, per dB; dagger: 1e-4
    ccmse_weight: float = 0.0        # of the relative error of the spectra; dagger: 1e-3


DAGGER = dict(pesq_weight=1e-4, si_sdr_weight=1e-4, ccmse_weight=1e-3)
# For short training, without a download. The weight lifts gradients of 1e-8 above Adam's eps.
# Mel frames lie on no sphere: there self-exclusion pushes a frame off its target; the published widths are too wide.
LIGHT = dict(encoder="mel", exclude_self=False, temperatures=(0.02, 0.05, 0.1), sigma_max=0.0, mask=True,
             drift_weight=1000.0, hop_length=256, num_frames=64, normalize="robust")
PRESETS = {
    "paper": {},
    "dagger": DAGGER,
    "small": LIGHT | nets.without_time(nets.SMALL),
    "tiny": LIGHT | nets.without_time(nets.TINY),
}
TEMPERATURES = {"driftse": (0.1, 0.5, 1.0), "original": (0.02, 0.05, 0.2)}


# ------------------------------------------------------------------------------------------------ fields
# Points are rows: x (N, D) are moved; positives (M, D) attract; negatives (K, D) repel. exclude_self: the negatives
# start with x itself, row by row, and no point repels itself. No gradient passes through a field.

FAR = 1e30    # the distance of a point to itself; not inf, with which the soft-max of a point that is alone is NaN


def distances(x, references):
    """Euclidean distances, (N, D), (M, D) -> (N, M)."""
    return torch.cdist(x.double(), references.double()).to(x.dtype)


@torch.no_grad()
def drifting_field(x, positives, negatives, temperature, exclude_self=True):
    """The field that the published systems compute: Algorithm 2 of Deng et al. Returns V (N, D).

    x (N, D), positives (M, D), negatives (K, D); exclude_self: negatives[:N] are x and none of them repels itself.
    Positives and negatives compete for a query (soft-max of a row), queries compete for a reference (soft-max of a
    column). The means of the two sets are those of `mean_shift_field` with each reference weighted by 1 / sqrt(its
    column's sum of kernels), and their difference is multiplied by S_pos S_neg, a gain that vanishes where one set
    is much closer than the other.
    """
    M = len(positives)
    d_pos = distances(x, positives)                                        # (N, M)
    d_neg = distances(x, negatives)                                        # (N, K)
    if exclude_self:
        d_neg.fill_diagonal_(FAR)
    logits = -torch.cat([d_pos, d_neg], dim=1) / temperature               # (N, M + K)
    R, C = logits.softmax(1), logits.softmax(0)                            # rows of R, columns of C sum to 1
    A = (R * C).sqrt()
    A_pos, A_neg = A[:, :M], A[:, M:]                                      # (N, M), (N, K)
    S_pos, S_neg = A_pos.sum(1, keepdim=True), A_neg.sum(1, keepdim=True)  # (N, 1)
    return S_neg * (A_pos @ positives) - S_pos * (A_neg @ negatives)       # (N, D)


@torch.no_grad()
def mean_shift_field(x, positives, negatives, temperature, exclude_self=True):
    """Eq. (7) of DriftSE: the kernel-weighted mean of positives minus that of negatives. As drifting_field."""
    d_pos = distances(x, positives)                                        # (N, M)
    d_neg = distances(x, negatives)                                        # (N, K)
    if exclude_self:
        d_neg.fill_diagonal_(FAR)
    w_pos, w_neg = ((-d / temperature).softmax(1) for d in (d_pos, d_neg))
    return w_pos @ positives - w_neg @ negatives                           # (N, D)


@torch.no_grad()
def multi_temperature_field(x, positives, negatives, temperatures=TEMPERATURES["driftse"], exclude_self=True,
                            field="joint", unit_rms=False, block=512):
    """The mean of the fields of several temperatures, or the sum of these fields, each scaled to `unit_rms`. (N, D).

    field: "joint", drifting_field, or "separate", mean_shift_field. Rows are taken `block` at a time, so that memory
    grows with block x (M + K) and not with N x (M + K). The soft-max over a column needs all of its rows: a first pass
    collects its normaliser, a second one measures the distances again.
    """
    M, references = len(positives), torch.cat([positives, negatives])      # (M + K, D)
    starts = range(0, len(x), block)

    @functools.lru_cache(1)                                                # where all fits in one block: once
    def block_distances(i):
        d = distances(x[i:i + block], references)                          # (n, M + K)
        if exclude_self:
            d[:, M + i:].fill_diagonal_(FAR)
        return d

    columns = x.new_full((len(temperatures), M + len(negatives)), -math.inf)  # log of the sum over queries
    if field == "joint":
        for i in starts:
            for column, temperature in zip(columns, temperatures):
                torch.logaddexp(column, (-block_distances(i) / temperature).logsumexp(0), out=column)

    V = x.new_empty(len(temperatures), *x.shape)
    for i in starts:
        for V_i, column, temperature in zip(V, columns, temperatures):
            logits = -block_distances(i) / temperature                     # (n, M + K)
            if field == "joint":
                A = ((logits - column / 2) - logits.logsumexp(1, keepdim=True) / 2).exp()    # sqrt(R C)
                S_pos, S_neg = A[:, :M].sum(1, keepdim=True), A[:, M:].sum(1, keepdim=True)
                A[:, :M] *= S_neg
                A[:, M:] *= -S_pos
            else:
                A = torch.cat([logits[:, :M].softmax(1), -logits[:, M:].softmax(1)], dim=1)
            V_i[i:i + block] = A @ references
    if unit_rms:
        return (V / V.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-8)).sum(0)
    return V.mean(0)


@torch.no_grad()
def feature_scale(x, positives, recipe="driftse", block=512):
    """(what features are divided by, the unit of temperatures after that): a scalar tensor, a number.

    x (N, D) generated, positives (M, D) clean. driftse: the mean norm of the clean frames; temperatures count in it.
    original, Deng et al.: such that the mean distance from a query to a reference, clean or generated, becomes
    sqrt(D); temperatures are fractions of it.
    """
    if recipe == "driftse":
        return positives.norm(dim=1).mean().clamp(min=1e-5), 1.0
    references, root = torch.cat([positives, x]), math.sqrt(x.shape[1])
    total = sum(distances(rows, references).sum(dtype=torch.float64) for rows in x.split(block))
    return (total / (len(x) * len(references)) / root).to(x.dtype).clamp(min=1e-5), root


def drifting_loss(x, positives, temperatures=None, recipe="driftse", field="joint", exclude_self=True):
    """mean |x - sg(x + V)|^2 over entries of scaled features, Eq. (9): value mean V^2, gradient -2 V / (N D).

    x (N, D): generated features, also the negatives; positives (M, D): clean ones. temperatures: default, the
    recipe's. "driftse": raw drifts, whose loss falls, if not to 0. "original": unit drifts, whose loss says nothing.
    """
    scale, unit = feature_scale(x, positives, recipe)
    x, positives = x / scale, positives / scale
    widths = [unit * temperature for temperature in temperatures or TEMPERATURES[recipe]]
    V = multi_temperature_field(x, positives, x, widths, exclude_self, field, unit_rms=recipe == "original")
    return (x - (x + V).detach()).square().mean()


# ------------------------------------------------------------------------------------------------ latent spaces

FLOORS = (1.0, 0.1, 0.01)    # of mel_frames, in units of the mean power: 0, 10 and 20 dB below it
# The layers of "mel": floor, window in samples, bands. The last two are finer and coarser in time.
MEL = *((floor, 640, 64) for floor in FLOORS), (0.1, 320, 32), (0.1, 1280, 96)


def mel_frames(wave, floor, window=640, bands=64, hop=320, context=6):
    """Log-mel frames every 20 ms with their neighbours: wave (B, L) -> (B, L // 320, bands (2 context + 1)).

    wave: of unit variance. White noise has power 1 in each band, and `floor` is the power from which on a band counts:
    high, noise hides little of the speech that is left, and a noisy frame finds the clean one of its time; low, the
    noise itself is felt. The context, 0.12 s to both sides, tells frames of one sound apart.
    """
    hann = torch.hann_window(window, device=wave.device, dtype=wave.dtype)
    spec = torch.stft(wave, window, hop, window=hann, return_complex=True)               # (B, bins, 1 + L // hop)
    filters = torch.from_numpy(metrics.mel_filters(bands, window)).to(wave)              # (bands, bins)
    filters = filters / (filters.sum(1, keepdim=True).clamp(min=1e-8) * hann.square().sum())
    mel = (filters @ spec.abs().square() / floor).log1p()[..., :wave.shape[1] // hop]    # (B, bands, T')
    return F.pad(mel, (context, context)).unfold(2, 2 * context + 1, 1).transpose(1, 2).flatten(2)


def standardised(wave):
    """Waves (B, L) of zero mean and unit variance each, as released: the features do not see the level."""
    return (wave - wave.mean(1, keepdim=True)) / (wave.std(1, keepdim=True) + 1e-5)


class SpeechLatents:
    """Frozen features of speech: waves (B, L) at 16 kHz -> one tensor (B, T', D) for each of `layers`.

    encoder: hub name or local folder of a model of the `transformers` package that takes raw waveforms (DistilHuBERT,
    HuBERT, WavLM), or one of its configs, which gives random weights; a frame is 20 ms, hidden state 0 the input of
    the first layer. "mel" needs no model; its layers are the numbers of MEL. Gradients reach the wave and nothing
    else. Not a module: its weights belong to no checkpoint, its dropout stays off, it follows the wave to its device.
    Raises ValueError where the model cannot be loaded or has no such layer.
    """

    def __init__(self, encoder, layers=(0, 1, 2)):
        self.layers, self.encoder = layers, None
        count = len(MEL)
        if encoder != "mel":
            from transformers import AutoModel, PretrainedConfig
            try:
                if isinstance(encoder, PretrainedConfig):
                    self.encoder = AutoModel.from_config(encoder)
                else:
                    self.encoder = AutoModel.from_pretrained(encoder)
            except (OSError, ValueError) as error:
                raise ValueError(f"the encoder {encoder} could not be loaded ({train.one_line(error)}). Give --encoder "
                                 "a local folder with its files, or --encoder mel, which needs none") from None
            self.encoder.float().eval().requires_grad_(False)
            count = self.encoder.config.num_hidden_layers + 1
        if not all(0 <= layer < count for layer in layers):
            raise ValueError(f"--layers {' '.join(map(str, layers))}: {encoder} has the layers 0 .. {count - 1}")

    def __call__(self, wave):
        wave = standardised(wave)
        if self.encoder is None:
            return [mel_frames(wave, *MEL[layer]) for layer in self.layers]
        states = self.encoder.to(wave.device)(wave, output_hidden_states=True).hidden_states
        return [states[layer] for layer in self.layers]


# ------------------------------------------------------------------------------------------------ one's own encoder

@dataclass(frozen=True)
class EncoderConfig:
    """A small HuBERT; the defaults train on a CPU in minutes."""
    hidden: int = 128                # width of the transformer; frames of all its layers have this size
    depth: int = 2                   # its layers
    channels: int = 64               # width of the convolutions before it
    clusters: int = 64               # of mel frames, by k-means: what the network tells apart
    mask_start: float = 0.08         # probability that a frame begins a masked span
    mask_length: int = 10            # frames of a span: 0.2 s


class MaskedPrediction(nn.Module):
    """Hidden-unit BERT (HuBERT, arXiv 2106.07447), first iteration: which cluster is a frame of that was hidden?

    Speech without labels; the clusters are those of its mel frames. Trained by train.fit; `encoder` is kept.
    """

    num_samples = 32640                                  # of a crop

    def __init__(self, config, centres):
        super().__init__()
        from transformers import HubertConfig, HubertModel
        self.config = config
        self.register_buffer("centres", centres)                           # (clusters, bands)
        self.encoder = HubertModel(HubertConfig(
            hidden_size=config.hidden, num_hidden_layers=config.depth, num_attention_heads=4,
            intermediate_size=4 * config.hidden, conv_dim=(config.channels,) * 7, num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=4, hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
            layerdrop=0.0))
        self.head = nn.Linear(config.hidden, config.clusters)

    def loss(self, batch):
        """batch: (clean waves (B, L), anything). Returns (cross-entropy at the masked frames, their share of hits)."""
        wave = standardised(batch[0])
        starts = torch.rand(len(wave), wave.shape[1] // 320 - 1, device=wave.device) < self.config.mask_start
        starts[:, 0] |= ~starts.any(1)
        masked = F.max_pool1d(F.pad(starts.float(), (self.config.mask_length - 1, 0)), self.config.mask_length, 1) > 0
        states = self.encoder(wave, mask_time_indices=masked).last_hidden_state      # (B, T', hidden)
        logits, target = self.head(states[masked]).float(), units(wave, self.centres)[:, :masked.shape[1]][masked]
        return F.cross_entropy(logits, target), {"hits": (logits.argmax(1) == target).float().mean()}


def units(wave, centres):
    """Nearest centre of each mel frame: standardised waves (B, L), (clusters, bands) -> (B, L // 320) of integers."""
    return torch.cdist(mel_frames(wave, FLOORS[1], context=0), centres).argmin(-1)


def train_encoder(config, encoder=EncoderConfig()):
    """Train MaskedPrediction on the clean speech of config.data; config.out is then a folder for SpeechLatents.

    config: a TrainConfig. Continues a run that was interrupted. Raises as open_data and train.fit do.
    """
    device = train.pick_device(config.device)
    train.seed_everything(config.seed)
    dataset = open_data(config.data, "train", num_samples=MaskedPrediction.num_samples, seed=config.seed, device=device)
    loader = lambda step, rank, world: batches(dataset, config.batch_size, step, rank, world, config.workers)
    frames = torch.cat([mel_frames(standardised(clean), FLOORS[1], context=0).flatten(0, 1)
                        for clean, _ in itertools.islice(loader(0, 0, 1), 1 + 200 // config.batch_size)])
    centres, _ = kmeans2(frames.cpu().double().numpy(), encoder.clusters, minit="++", seed=config.seed)
    method = MaskedPrediction(encoder, torch.from_numpy(centres).float()).to(device)
    bar = tqdm(total=config.steps, unit="step", mininterval=1)
    for step, parts in train.fit(method, loader, config):
        bar.update(step - bar.n)
        if step % 50 == 0 or step == config.steps:
            bar.set_postfix({name: f"{float(parts[name]):.3f}" for name in ("loss", "hits")})
    bar.close()
    with method.ema.applied(), tempfile.TemporaryDirectory(dir=config.out) as part:
        method.encoder.save_pretrained(part)
        for path in Path(part).iterdir():
            train.save_atomically(Path(config.out) / path.name, functools.partial(shutil.copyfile, path))


def encoder_command(arguments):
    """python drift.py encoder: train_encoder by flags. Exits 2 for a request that cannot be met."""
    parser = argparse.ArgumentParser(prog="drift.py encoder", description="train a speech encoder on clean speech")
    names = "data out steps batch_size lr clip ema seed device workers save_every".split()
    train.add_flags(parser, train.TrainConfig, names)
    train.add_flags(parser, EncoderConfig)
    args = parser.parse_args(arguments)
    defaults = dict(out="runs/encoder", steps=4000, lr=5e-4, clip=1.0, ema=0.99)
    config = train.TrainConfig(**defaults | train.given(args, train.TrainConfig))
    try:
        train_encoder(config, EncoderConfig(**train.given(args, EncoderConfig)))
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"written to {config.out}; to use it: python drift.py train --encoder {config.out} ...")


# ------------------------------------------------------------------------------------------------ noise, other losses

def noise_level(n, sigma_max=0.3, sigma_min=0.01, mean=-3.0, std=1.2, device=None):
    """n draws of sigma, log sigma normal and truncated to [log sigma_min, log sigma_max]: (n,)."""
    low, high = (torch.special.ndtr(torch.tensor((math.log(s) - mean) / std, dtype=torch.float64)).item()
                 for s in (sigma_min, sigma_max))
    u = torch.rand(n, device=device, dtype=torch.float64)
    return (mean + std * torch.special.ndtri(low + (high - low) * u)).exp().clamp(sigma_min, sigma_max).float()


def ccmse_loss(clean, enhanced, sizes=(512, 1024, 2048)):
    """Squared error of complex spectra over the power of the clean ones, mean over STFT sizes; waves (B, L) -> ().

    Called "complex compressed MSE" by the released code, which compresses nothing.
    """
    total = 0
    for size in sizes:
        window = torch.hann_window(size, device=clean.device, dtype=clean.dtype)
        S, S_hat = (torch.stft(x, size, size // 4, window=window, return_complex=True) for x in (clean, enhanced))
        total = total + (S_hat - S).abs().square().sum((1, 2)).mean() / (S.abs().square().sum((1, 2)).mean() + 1e-8)
    return total / len(sizes)


# ------------------------------------------------------------------------------------------------ the model

class DriftSE(nn.Module):
    """A network that maps noisy to clean in one call; in training, its latent space. `calls` counts evaluations."""

    Config, presets = Config, PRESETS
    inference = ("sigma",)                               # fields that may change after training

    def __init__(self, config=Config()):
        super().__init__()
        if config.field not in ("joint", "separate") or config.recipe not in TEMPERATURES:
            raise ValueError("field is joint or separate, recipe driftse or original; "
                             f"got {config.field}, {config.recipe}")
        self.config = config
        self.temperatures = config.temperatures if any(config.temperatures) else TEMPERATURES[config.recipe]
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length, config.exponent, config.factor)
        self.net = nets.NCSNpp(2 if config.conditional else 1, 1, config.width, config.channel_mults,
                               config.num_res_blocks, config.attention_resolutions, version=2, num_times=0,
                               image_size=config.n_fft // 2 + 1)
        self.needs_pairs = bool(config.pesq_weight or config.si_sdr_weight or config.ccmse_weight)
        self.pesq_loss = metrics.PESQLoss()
        self.num_samples = self.spectrogram.samples(config.num_frames)     # of a training crop
        self.calls, self.latents = 0, None

    def prepare(self, fresh=True):
        """Before training: load the encoder. Raises ValueError."""
        self.latents = SpeechLatents(self.config.encoder, self.config.layers)

    def forward(self, y, sigma):
        """The enhanced spectrogram: y complex (B, 1, F, T), sigma (B,) -> complex (B, 1, F, T).

        Direct: f(y + sigma noise). Conditional: f(noise, y) with unit noise; sigma has no part in it.
        """
        self.calls += 1
        if self.config.conditional:
            out = self.net(torch.cat([torch.randn_like(y), y], dim=1))
        elif sigma.any():
            out = self.net(y + per_bin(sigma) * torch.randn_like(y))
        else:
            out = self.net(y)
        return 2 * out.real.sigmoid() * y if self.config.mask else out

    def loss(self, batch):
        """batch: clean and noisy waves (B, L), divided by the noisy peak. Returns (loss, its parts)."""
        config, (clean, noisy) = self.config, batch
        device = noisy.device
        with torch.autocast(device.type, enabled=False):
            y = self.spectrogram(noisy)[:, None]
        sigma = torch.zeros(len(y), device=device)
        if config.sigma_max and not config.conditional:
            sigma = noise_level(len(y), config.sigma_max, config.sigma_min, config.log_sigma_mean,
                                config.log_sigma_std, device)
        x_hat = self(y, sigma)
        with torch.autocast(device.type, enabled=False):
            enhanced = self.spectrogram.inverse(x_hat[:, 0], noisy.shape[-1])
            with torch.no_grad():
                positives = self.latents(clean)                            # of each layer: (B, T', D)
            drift = sum(drifting_loss(x.flatten(0, 1), p.flatten(0, 1), self.temperatures, config.recipe, config.field,
                                      config.exclude_self) for x, p in zip(self.latents(enhanced), positives))
            loss, parts = config.drift_weight * drift, {"drift": drift.detach()}
            if self.needs_pairs:
                pesq, si_sdr = self.pesq_loss(clean, enhanced).mean(), metrics.si_sdr_loss(clean, enhanced).mean()
                ccmse = ccmse_loss(clean, enhanced)
                loss = loss + config.pesq_weight * pesq + config.si_sdr_weight * si_sdr + config.ccmse_weight * ccmse
                parts |= {"pesq": pesq.detach(), "si_sdr": -si_sdr.detach(), "ccmse": ccmse.detach()}
        return loss, parts

    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see data.enhance_levelled.

        Only the ccmse loss sees the gain of the network. Without it the output gets the level of the input: its peak,
        as released, or its robust level, as `normalize` says. Each window of a long recording gets its own.
        """
        def sample(y):
            return self(y, y.real.new_full((len(y),), self.config.sigma))

        def enhance(wave):
            out = in_spectrogram(sample, wave, self.spectrogram, self.net.multiple, self.config.pad_mode)
            if self.config.ccmse_weight:
                return out
            if self.config.normalize == "robust":        # wave has level 1
                return out / robust_level(out).clamp(min=1e-8)
            own, target = (w.abs().amax(-1, keepdim=True) for w in (out, wave))
            return out * (target / own.clamp(min=1e-8))
        with torch.no_grad():
            return enhance_levelled(enhance, wave, self.config.normalize, peak)


if __name__ == "__main__":
    if sys.argv[1:2] == ["encoder"]:
        encoder_command(sys.argv[2:])
    else:
        train.main(DriftSE)
