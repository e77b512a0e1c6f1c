"""Drifting models: one-step enhancement, trained by moving outputs towards clean speech in
a feature space.

Papers: Xu, Caviedes-Nozal, Kleijn, Yan, Olsson, "Speech Enhancement Based on Drifting
Models" (DriftSE, Interspeech 2026, arXiv 2604.24199v1); Deng, Li, Li, Du, He, "Generative
Modeling via Drifting" (arXiv 2602.04770). Equation numbers are DriftSE's unless another
name stands there.

The idea: a frozen encoder turns the frames of clean and of generated speech into two clouds
of points. A field V moves each generated point: towards the clean points near it, away from
its generated neighbours, (4) to (6). Where the clouds agree the two forces cancel, (1) to
(3). The network is trained to output what its own output would be after the move. No pairs
enter: that the clean frames belong to the same utterances helps, but nothing tells a frame
which clean frame is its own.

    (8)     exp(-|x - y| / temperature), Deng et al. (12)  distances
    (7)     mean of real - mean of generated               separate_weights
                                                           mean_shift_field
    Deng et al., Algorithm 2: the two compete in one
            soft-max; what published systems compute       joint_weights, drifting_field
    either  for several temperatures                       multi_temperature_field
            for many frames, in blocks                     blocked_fields
    scale   mean norm of clean frames, or mean distance    feature_scale
    (9)     E |x - sg(x + V)|^2                            drifting_loss
    latent  layers of a speech encoder, or mel frames      SpeechLatents, mel_frames
    noise   log sigma ~ N(-3, 1.2), truncated              noise_level
    dagger  PESQ, SI-SDR, spectra, with the clean wave     losses.waveform_terms
            magnitudes (ours)                              losses.magnitude_loss
    gain    ignored by the loss; the input's peak          DriftSE.enhance_wave

Where we differ. The default is the released code's field, feature scale and temperatures,
with the paper's noise levels. Its waveform losses see crops divided by the noisy peak
(released: at their own level). Distances are computed in float64: by matrix products in
single precision two equal frames lie up to 1e-3 apart, and temperatures go down to 0.02.
The presets small and tiny are ours: mel frames ignore phase, so their network gives a mask
for the noisy spectrogram.

Tutorial: tutorials/7_drift.ipynb

    python drift.py train --data DIR [--preset dagger] [--sigma-max 0] [--conditional] \\
        [--unpaired DIR_OF_CLEAN_SPEECH]
    python drift.py train --data DIR --encoder microsoft/wavlm-large --layers 6 12 24 \\
        --temperatures 0.02 0.05 0.1
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

import commands
import losses
import metrics
import nets
import train
from data import SILENT_PEAK, SpectrogramConfig, per_bin
from nets import Weight


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` has DistilHuBERT, for VoiceBank-DEMAND."""
    encoder: str = "ntu-spml/distilhubert"  # hub name, folder, or mel: no model
    layers: Annotated[tuple, "[0, inf)"] = (0, 1, 2)  # hidden states; mel: 0 ... 4
    field: Literal["joint", "separate"] = "joint"  # of published systems, or Eq. (7)
    scaling: Literal["driftse", "original"] = "driftse"  # scales of features and drift
    temperatures: Annotated[tuple, "[0, inf)"] = (0.0,)  # kernel widths; 0: scaling's
    exclude_self: bool = True        # a generated frame does not repel itself
    sigma_max: Weight = 0.3          # largest std of the noise added to y; 0: none
    sigma: Weight = 0.0              # std of the noise added to y at inference
    conditional: bool = False        # noise in, y beside it, instead of y in
    mask: bool = False               # a gain in (0, 2) for y, which keeps its phase (ours)
    drift_weight: Weight = 1.0       # of the drifting loss, a mean over feature entries
    pesq_weight: Weight = 0.0        # of the PESQ disturbance; dagger: 1e-4
    si_sdr_weight: Weight = 0.0      # of the negative SI-SDR, per dB; dagger: 1e-4
    ccmse_weight: Weight = 0.0       # of the relative error of the spectra; dagger: 1e-3
    magnitude_weight: Weight = 0.0   # of the error of compressed magnitudes (ours)

    def __post_init__(self):
        super().__post_init__()
        if self.temperatures != (0.0,) and not min(self.temperatures) > 0:
            raise ValueError("--temperatures: expected numbers above 0, or a single 0 for "
                             f"those of --scaling; got {self.temperatures}")


DAGGER = dict(pesq_weight=1e-4, si_sdr_weight=1e-4, ccmse_weight=1e-3)
# For short training, without a download. The weight lifts gradients of 1e-8 above Adam's
# eps. Mel frames lie on no sphere: there self-exclusion pushes a frame off its target; the
# published widths are too wide.
LIGHT = dict(encoder="mel", exclude_self=False, temperatures=(0.02, 0.05, 0.1),
             sigma_max=0.0, mask=True, drift_weight=1000.0, hop_length=256, num_frames=64,
             normalize="robust")
PRESETS = {
    "paper": {},
    "dagger": DAGGER,
    "small": LIGHT | nets.without_time(nets.SMALL),
    "tiny": LIGHT | nets.without_time(nets.TINY),
}
# How the presets of the paper are trained. The paper names AdamW, its rate and decay, and
# the batch; warm-up, betas and clip are the released program's.
PUBLISHED = dict(lr=5e-4, weight_decay=0.01, betas=(0.9, 0.95), lr_warmup=200,
                 batch_size=16, clip=2.0)
TRAINING = {"paper": PUBLISHED, "dagger": PUBLISHED}


# ----------------------------------------------------------------------------------- fields
# Points are rows: x (N, D) are moved; positives (M, D) attract; negatives (K, D) repel.
# exclude_self: the negatives start with x itself, row by row, and no point repels itself.
# No gradient passes through a field.

TEMPERATURES = {"driftse": (0.1, 0.5, 1.0), "original": (0.02, 0.05, 0.2)}
FAR = 1e30    # the distance of a point to itself; with inf a lonely one would be NaN


def distances(x, references):
    """Euclidean distances (N, D), (M, D) -> (N, M) in float64, 2048 references at once."""
    return torch.cat([torch.cdist(x.double(), part.double()).to(x.dtype)
                      for part in references.split(2048)], dim=1)


@torch.no_grad()
def drifting_field(x, positives, negatives, temperature, exclude_self=True):
    """V (N, D) as published systems compute it, Algorithm 2 of Deng et al."""
    M, references = len(positives), torch.cat([positives, negatives])      # (M + K, D)
    d = distances(x, references)                         # (N, M + K)
    if exclude_self:
        d[:, M:].fill_diagonal_(FAR)
    return joint_weights(-d / temperature, M) @ references


@torch.no_grad()
def mean_shift_field(x, positives, negatives, temperature, exclude_self=True):
    """V (N, D) by Eq. (7): the kernel mean of the positives minus that of the negatives."""
    M, references = len(positives), torch.cat([positives, negatives])      # (M + K, D)
    d = distances(x, references)                         # (N, M + K)
    if exclude_self:
        d[:, M:].fill_diagonal_(FAR)
    return separate_weights(-d / temperature, M) @ references


def joint_weights(logits, M, columns=None):
    """Weights by which V = weights @ references is the field of Algorithm 2: (N, M + K).

    Positives and negatives compete for a query (soft-max of a row), queries compete for a
    reference (soft-max of a column). logits (N, M + K): -distance / temperature to the
    positives, then to the negatives. columns (M + K,): the logarithm of the sum over all
    queries of exp(logits), where these rows are not all of them.

    Compared with Eq. (7), each reference counts 1 / sqrt(its column's sum of kernels), and
    the difference of the two means is multiplied by S_pos S_neg, a gain that vanishes where
    one set is much closer than the other.
    """
    columns = logits.logsumexp(0) if columns is None else columns
    # sqrt(row x column)
    A = (logits - (logits.logsumexp(1, keepdim=True) + columns) / 2).exp()
    S_pos, S_neg = A[:, :M].sum(1, keepdim=True), A[:, M:].sum(1, keepdim=True)
    return torch.cat([S_neg * A[:, :M], -S_pos * A[:, M:]], dim=1)


def separate_weights(logits, M, columns=None):
    """The same for the field of Eq. (7). `columns` has no part in it."""
    return torch.cat([logits[:, :M].softmax(1), -logits[:, M:].softmax(1)], dim=1)


def multi_temperature_field(x, positives, negatives, temperatures=TEMPERATURES["driftse"],
                            exclude_self=True, field="joint", unit_rms=False, block=256):
    """The mean of the fields of several temperatures, or the sum of these fields, each
    scaled to `unit_rms`: (N, D). field: "joint", drifting_field, or "separate",
    mean_shift_field; more than `block` rows are computed by blocked_fields.
    """
    if len(x) <= block:
        compute = {"joint": drifting_field, "separate": mean_shift_field}[field]
        fields = [compute(x, positives, negatives, temperature, exclude_self)
                  for temperature in temperatures]
    else:
        fields = blocked_fields(x, positives, negatives, temperatures, exclude_self, field,
                                block)
    if unit_rms:
        return sum(V / V.square().mean().sqrt().clamp(min=1e-4) for V in fields)
    return sum(fields) / len(fields)


@torch.no_grad()
def blocked_fields(x, positives, negatives, temperatures, exclude_self, field, block):
    """The fields of several temperatures, [(N, D), ...], by `block` rows at a time: memory
    grows with block x (M + K) and not with N x (M + K).

    The soft-max over a column needs all of its rows: a pass before collects its normaliser.
    """
    M, references = len(positives), torch.cat([positives, negatives])      # (M + K, D)
    weights = {"joint": joint_weights, "separate": separate_weights}[field]
    columns = x.new_full((len(temperatures), len(references)), -math.inf)
    fields = [torch.empty_like(x) for _ in temperatures]

    def block_distances(i):
        d = distances(x[i:i + block], references)        # (n, M + K)
        if exclude_self:
            d[:, M + i:].fill_diagonal_(FAR)
        return d

    for i in range(0, len(x) if field == "joint" else 0, block):
        d = block_distances(i)
        for column, temperature in zip(columns, temperatures):
            torch.logaddexp(column, (-d / temperature).logsumexp(0), out=column)
    for i in range(0, len(x), block):
        d = block_distances(i)
        for V, column, temperature in zip(fields, columns, temperatures):
            V[i:i + block] = weights(-d / temperature, M, column) @ references
    return fields


@torch.no_grad()
def feature_scale(x, positives, scaling="driftse", block=256):
    """(the divisor of features, a scalar tensor; the unit of temperatures after it, a
    number).

    x (N, D) generated, positives (M, D) clean. driftse: the mean norm of the clean frames;
    temperatures count in it.
    original, Deng et al.: such that the mean distance from a query to a reference, clean or
    generated, becomes sqrt(D); temperatures are fractions of it.
    """
    if scaling == "driftse":
        return positives.norm(dim=1).mean().clamp(min=1e-5), 1.0
    references, root = torch.cat([positives, x]), math.sqrt(x.shape[1])
    total = sum(distances(rows, references).sum(dtype=torch.float64)
                for rows in x.split(block))
    mean_distance = total / (len(x) * len(references))
    return (mean_distance / root).to(x.dtype).clamp(min=1e-5), root


def drifting_loss(x, positives, temperatures=None, scaling="driftse", field="joint",
                  exclude_self=True):
    """mean |x - sg(x + V)|^2 of scaled features, Eq. (9): gradient -2 V / (N D).

    x (N, D): generated features, also the negatives; positives (M, D): clean ones.
    temperatures: by default those of `scaling`. "driftse": raw drifts, whose loss falls, if
    not to 0. "original": unit drifts, whose loss says nothing.
    """
    scale, unit = feature_scale(x, positives, scaling)
    x, positives = x / scale, positives / scale
    widths = [unit * temperature for temperature in temperatures or TEMPERATURES[scaling]]
    V = multi_temperature_field(x, positives, x, widths, exclude_self, field,
                                unit_rms=scaling == "original")
    return (x - (x + V).detach()).square().mean()


# ---------------------------------------------------------------------------- latent spaces

FLOORS = (1.0, 0.1, 0.01)    # of mel_frames: 0, 10 and 20 dB below the mean power
# The layers of "mel": floor, window in samples, bands. The last two are finer and coarser
# in time.
MEL = *((floor, 640, 64) for floor in FLOORS), (0.1, 320, 32), (0.1, 1280, 96)


class SpeechLatents:
    """Frozen features of speech: waves (B, L) at 16 kHz -> a tensor (B, T', D) per layer.

    encoder: hub name or local folder of a model of the `transformers` package that takes
    raw waveforms (DistilHuBERT, HuBERT, WavLM), or one of its configs, which gives random
    weights; a frame is 20 ms, hidden state 0 the input of the first layer. "mel" needs no
    model; its layers are the numbers of MEL. Gradients reach the wave and nothing else. Not
    a module: its weights belong to no checkpoint, its dropout stays off, it follows the
    wave to its device. Raises ValueError where the model cannot be loaded or has no such
    layer.
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
                raise ValueError(
                    f"the encoder {encoder} could not be loaded ({train.one_line(error)}). "
                    "Give --encoder a local folder with its files, or --encoder mel, which "
                    "needs none") from None
            self.encoder.float().eval().requires_grad_(False)
            count = self.encoder.config.num_hidden_layers + 1
        if not all(0 <= layer < count for layer in layers):
            raise ValueError(f"--layers {' '.join(map(str, layers))}: {encoder} has the "
                             f"layers 0 .. {count - 1}")

    def __call__(self, wave):
        wave = standardised(wave)
        if self.encoder is None:
            return [mel_frames(wave, *MEL[layer]) for layer in self.layers]
        out = self.encoder.to(wave.device)(wave, output_hidden_states=True)
        # Of the large encoders, releases of transformers differ in whether
        # hidden_states[-1] comes before or after the last layer norm; as published, it is
        # after.
        states = *out.hidden_states[:-1], out.last_hidden_state
        return [states[layer] for layer in self.layers]


def mel_frames(wave, floor, window=640, bands=64, hop=320, context=6):
    """Log-mel frames with their neighbours: (B, L) -> (B, L // hop, bands (2 context + 1)).

    wave: of unit variance. White noise has power 1 in each band, and `floor` is the power
    above which a band counts. With a high floor the features are robust to noise, and a
    noisy frame is nearest its clean one; with a low one they follow the noise. The context,
    0.12 s to both sides, tells frames of one sound apart.
    """
    frames = wave.shape[1] // hop
    hann = torch.hann_window(window, device=wave.device, dtype=wave.dtype)
    spec = torch.stft(wave, window, hop, window=hann, return_complex=True)
    power = spec.abs().square()                          # (B, bins, 1 + frames)
    filters = torch.from_numpy(metrics.mel_filters(bands, window)).to(wave)  # (bands, bins)
    width = filters.sum(1, keepdim=True).clamp(min=1e-8)                       # (bands, 1)
    filters = filters / (width * hann.square().sum())
    mel = (filters @ power / floor).log1p()[..., :frames]               # (B, bands, frames)
    neighbours = F.pad(mel, (context, context)).unfold(2, 2 * context + 1, 1)
    return neighbours.transpose(1, 2).flatten(2)        # (B, frames, bands (2 context + 1))


def standardised(wave):
    """Waves (B, L) of zero mean and unit variance, as released: features ignore the gain.
    """
    return (wave - wave.mean(1, keepdim=True)) / (wave.std(1, keepdim=True) + 1e-5)


# ---------------------------------------------------------------------- noise, other losses

def noise_level(n, sigma_max=0.3, sigma_min=0.01, mean=-3.0, std=1.2, device=None):
    """n draws of sigma, (n,): log-normal, truncated to [sigma_min, sigma_max]."""
    low, high = ((math.log(sigma) - mean) / std for sigma in (sigma_min, sigma_max))
    low, high = torch.special.ndtr(torch.tensor([low, high], dtype=torch.float64)).tolist()
    u = torch.rand(n, device=device, dtype=torch.float64)
    sigma = (mean + std * torch.special.ndtri(low + (high - low) * u)).exp()
    return sigma.clamp(sigma_min, sigma_max).float()


# -------------------------------------------------------------------------------- the model

class DriftSE(train.Method):
    """A network that maps noisy to clean speech; in training, its latent space."""

    Config, presets, training = Config, PRESETS, TRAINING
    inference, options = ("sigma",), ("unpaired",)

    def __init__(self, config=Config()):
        super().__init__(config)
        self.temperatures = config.temperatures
        if config.temperatures == (0.0,):
            self.temperatures = TEMPERATURES[config.scaling]
        self.net = self.network(2 if config.conditional else 1, version=2, num_times=0)
        self.needs_pairs = any((config.pesq_weight, config.si_sdr_weight,
                                config.ccmse_weight,
                                config.magnitude_weight))
        self.latents = None
        # A loss in a latent space does not see the gain; this brings back that of the
        # input.
        self.sees_gain = bool(config.ccmse_weight or config.magnitude_weight)
        self.register_buffer("gain", torch.ones(()))

    def prepare(self, fresh=True):
        """Before training: load the encoder. Raises ValueError."""
        self.latents = SpeechLatents(self.config.encoder, self.config.layers)

    def forward(self, y, sigma):
        """The enhanced spectrogram: y complex (B, 1, F, T), sigma (B,) -> like y.

        Direct: f(y + sigma noise). Conditional: f(noise, y) with unit noise; sigma has no
        part in it.
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
        """batch: clean and noisy waves (B, L) at level 1. Returns (loss, its parts)."""
        config, (clean, noisy) = self.config, batch
        device = noisy.device
        y = self.spectrogram(noisy)[:, None]
        sigma = torch.zeros(len(y), device=device)
        if config.sigma_max and not config.conditional:
            sigma = noise_level(len(y), config.sigma_max, device=device)
        x_hat = self(y, sigma)
        enhanced = self.spectrogram.inverse(x_hat[:, 0], noisy.shape[-1])
        if not self.sees_gain:
            self.track_gain((noisy.std(1) / enhanced.std(1).clamp(min=1e-8)).mean())
        with torch.no_grad():
            # Silent crops are excluded: they are no clean speech.
            speech = clean.abs().amax(1) > SILENT_PEAK
            speech = speech if speech.any() else ~speech
            positives = self.latents(clean[speech])  # of each layer: (B, T', D)
        drift = sum(drifting_loss(x.flatten(0, 1), p.flatten(0, 1), self.temperatures,
                                  config.scaling, config.field, config.exclude_self)
                    for x, p in zip(self.latents(enhanced[speech]), positives))
        waveform, parts = losses.waveform_terms(clean, enhanced, config.pesq_weight,
                                                config.si_sdr_weight, config.ccmse_weight)
        loss = config.drift_weight * drift + waveform
        if config.magnitude_weight:
            S, S_hat = self.spectrogram(clean), self.spectrogram(enhanced)
            magnitude = losses.magnitude_loss(S, S_hat)
            loss = loss + config.magnitude_weight * magnitude
            parts["magnitude"] = magnitude.detach()
        return loss, {"drift": drift.detach(), **parts}

    def sample(self, y):
        """Noisy spectrogram -> clean one, complex (B, 1, F, T)."""
        return self(y, y.real.new_full((len(y),), self.config.sigma))

    def enhance_wave(self, wave):
        """Waves of level 1, (B, L) -> (B, L). Losses in a latent space do not see the gain:
        as released, the output gets the peak of the input.
        """
        out = self.gain * super().enhance_wave(wave)
        if self.config.normalize == "robust" or self.sees_gain:
            return out
        own, target = (w.abs().amax(-1, keepdim=True) for w in (out, wave))
        return out * (target / own.clamp(min=1e-8))


if __name__ == "__main__":
    commands.main(DriftSE)
