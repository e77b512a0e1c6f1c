"""MeanFlow correction: one network evaluation along the average velocity, from an estimate
to clean speech.

Papers: Kim, Choi, "MeCo", a one-step MeanFlow corrector for multi-channel speech separation
(Interspeech 2026, arXiv 2606.09677); its single-channel ancestor MeanFlowSE (arXiv
2509.14858); Geng et al., "Mean Flows for One-step Generative Modeling" (arXiv 2505.13447);
"Improved Mean Flows" (arXiv 2512.02012). Controls: flow matching, as in FlowSE (ICASSP
2025); composed jumps (COSE, arXiv 2509.15952).

The idea: straight paths join an estimate s_hat with noise (t = 1) to clean speech x0
(t = 0). A network learns the average velocity u over an interval [r, t], so that one
evaluation jumps across it. The derivative along the flow ties u to the instantaneous
velocity. MeCo starts from a separator's estimate of each speaker, conditioned on the
microphones; MeanFlowSE starts from the noisy speech itself.

    path           x_t = (1 - t) x0 + t (s_hat + s z)      path; s is sigma_max
    its velocity   v = s_hat - x0 + s z                    conditional_velocity
    network        u = c_skip d + c_out net(c_in d)        preconditioning (ours)
    derivative     du/dt = u_x v + u_t along the flow      exact_derivative, clip_norm
                                                           difference_derivative
    identity       u = v - c (t - r) du/dt                 average_velocity_target
    composition    two jumps for one, no derivative        composed_target
    times          t, then r = t - U^gamma (t - t_eps)     sample_times, interval_exponent
    velocity loss  E |u(x_t, t, t) - v|^2 / 2              losses.half_square
    x_r-loss       E (t - r)^2 |u(x_t, r, t) - u_tgt|^2 / 2    displacement_loss
    both           their weights over the training         average_weight
    Endpoint loss  -SI-SDR of the one-step output          endpoint_si_sdr_loss
    inference      x_r = x_t - (t - r) u(x_t, r, t)        sample
    flow matching  average weight 0, N Euler steps         --preset flow
    front end      SA-SDR of the best permutation          sa_sdr_loss, nets.SpatialNet

Two settings. The preset `paper` is the published program's: c = 1/2, which is not the
identity, a difference quotient with its norm clipped, sums over bins. `principled` has
c = 1, the exact derivative, no clip, means; `--along own` makes it the improved form. In a
Gaussian world the first ends between the flow and the posterior mean, the second on the
flow.

Where we differ. The schedules follow the fraction of the training that is done, or a number
of updates (`--schedule`), not whole epochs. Where the estimate is nearly silent the level
is that of the mixture, 26 dB down; the published program draws another excerpt. The
derivative is taken in float32 whatever the precision of training. Inference of
MeanFlowSE ends at `--t-end 0`, as its authors advise. In the small presets the network
receives bins relative to the mixture's gain and phase and is preconditioned as in EDM
(`--sigma-data`): it starts as one that keeps the estimate. Their Endpoint loss weighs
30 times more, as its gradient is a tenth of that of the velocities. Means over bins
have small gradients: `--clip 0.05`, where sums have 1. Several microphones or speakers
train in simulated rooms, rooms.RoomMixtures, where by default no mixture comes twice.
The separator receives longer excerpts than the corrector: in short ones it makes errors
of its own. With a fixed training set (`--num-crops`) its estimates are kept in a folder
beside the run.

Tutorial: tutorials/6_meanflow.ipynb

    python meanflow.py train --data DIR --preset meanflowse --clip 1
    python meanflow.py train --data DIR --separator train --num-mics 4 --num-speakers 2 \\
        --lr 1e-3 --clip 5 --out sep
    python meanflow.py train --data DIR --separator frozen --init sep/best.safetensors \\
        --clip 1 --num-crops 20000
    python rooms.py DIR --num-mics 4 --num-speakers 2 --out runs/test
    python meanflow.py evaluate --data runs/test --checkpoint runs/meanflow/best.safetensors
"""

import contextlib
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import commands
import losses
import nets
import train
from data import (SAMPLE_RATE, Spectrogram, SpectrogramConfig, click_robust_peak,
                  cached_rows,
                  enhance_normalised, fingerprint, in_spectrogram, per_bin)
from nets import Count, Fraction, Positive, Weight


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is MeCo, by default without a separator."""
    separator: Literal["none", "train", "frozen"] = "none"  # none: start at y
    separator_size: Literal["small", "compact"] = "small"  # of SpatialNet
    separator_seconds: Positive = 4.0  # of its excerpt; the corrector learns from a part
    num_mics: Count = 1              # microphones of the mixture
    num_speakers: Count = 1          # speakers in it
    sigma_max: Weight = 0.487        # std of the noise at t = 1, per complex bin
    t_eps: Annotated[float, "(0, 1)"] = 0.03  # smallest process time in training
    c: Weight = 0.5                  # of u = v - c (t - r) du/dt; 1: u is the average
    derivative: Literal["difference", "exact",
                        "compose"] = "difference"  # computes du/dt; compose: needs none
    derivative_clip: Weight = 5.0    # largest norm of du/dt of an example; 0: no limit
    along: Literal["conditional", "own"] = "conditional"  # du/dt along v, or u(x_t, t, t)
    average_weight: Fraction = 0.25  # largest, of the average velocity; 0: flow matching
    displacement: bool = True        # weight (t - r)^2: the x_r-loss; MeanFlowSE: none
    endpoint_weight: Weight = 1.0    # of the Endpoint loss, per dB; MeanFlowSE: 0
    reduction: Literal["sum", "mean"] = "sum"  # of the loss over an example's bins
    schedule: Annotated[int, "[0, inf)"] = 0  # updates of the schedules; 0: all
    N: Count = 1                     # network evaluations
    average: bool = True             # jumps along the average velocity; no: Euler steps
    t_end: Annotated[float, "[0, 1)"] = 0.03  # process time at which inference stops
    sigma_data: Weight = 0.0         # rms of x0 - s_hat over |mixture|; > 0: as in EDM
    fourier_scale: Positive = 16.0   # std of the random frequencies of the times
    hop_length: Count = 64           # samples; MeanFlowSE: 128


PRINCIPLED = dict(c=1.0, derivative="exact", derivative_clip=0.0, reduction="mean")
# sigma_data is measured behind our separators, in rooms too; of noisy speech it is about
# 0.8, in rooms 1.
LIGHT = dict(hop_length=256, num_frames=64, sigma_data=0.6, endpoint_weight=30.0,
             normalize="robust", **PRINCIPLED)
PRESETS = {
    "paper": {},
    "principled": PRINCIPLED,
    "meanflowse": dict(hop_length=128, displacement=False, endpoint_weight=0.0, t_end=0.0),
    "flow": dict(hop_length=128, endpoint_weight=0.0, t_end=0.0, average_weight=0.0,
                 average=False, N=5),
    "small": dict(**LIGHT, **nets.SMALL),
    "tiny": dict(separator_size="compact", **LIGHT, **nets.TINY),
}


# --------------------------------------------------------------------------- path and times
# x0, s_hat, z, xt, v complex (B, 1, F, T); r, t (B,) with r <= t.

def path(x0, s_hat, t, z, sigma_max=0.487):
    """x_t: from x0 at t = 0 straight to s_hat + sigma_max z at t = 1. z with E|z|^2 = 1."""
    t = per_bin(t)                                       # (B, 1, 1, 1)
    return (1 - t) * x0 + t * s_hat + t * sigma_max * z


def conditional_velocity(x0, s_hat, z, sigma_max=0.487):
    """v = dx_t/dt of one path, the same at every time."""
    return s_hat - x0 + sigma_max * z


def preconditioning(t, sigma_data, sigma_max=0.487):
    """(c_in, c_skip, c_out) of v = c_skip d + c_out net(c_in d) with d = x_t - s_hat.

    Ours, after EDM (arXiv 2206.00364). sigma_data: std of x0 - s_hat around 0, a number or
    one for each bin. Then c_skip d is the best linear guess of v, and c_out the std of what
    it misses.
    """
    t = per_bin(t)                                       # (B, 1, 1, 1)
    std = t * sigma_max                                  # of the noise in x_t
    variance = (1 - t) ** 2 * sigma_data ** 2 + std ** 2                   # of d
    c_skip = (sigma_max * std - (1 - t) * sigma_data ** 2) / variance
    return variance.rsqrt(), c_skip, sigma_data * sigma_max / variance.sqrt()


def sample_times(n, gamma=1.0, t_eps=0.03, equal=0.1, device=None):
    """(r, t), each (n,): t uniform in (t_eps, 1], r = t - U^gamma (t - t_eps); a fraction
    has r = t.
    """
    t = 1 - (1 - t_eps) * torch.rand(n, device=device)
    r = t - torch.rand(n, device=device) ** gamma * (t - t_eps)
    return torch.where(torch.rand(n, device=device) < equal, t, r), t


def interval_exponent(progress):
    """gamma falls from 8 to 1 over the first 70 % of training: short intervals first."""
    return 8 - 7 * min(1, progress / 0.7)


def average_weight(progress, largest=0.25):
    """Weight of the average velocity in the loss: rises over half the training."""
    return largest * min(1, progress / 0.5)


# ------------------------------------------------------------------------- average velocity
# u: function (x, r, t) -> complex (B, 1, F, T), the network with its condition.

def exact_derivative(u, x, r, t, v):
    """du/dt along the flow with r held fixed: tangents (v, 0, 1), one forward-mode pass."""
    with sdpa_kernel(SDPBackend.MATH):                 # fused attention has no forward mode
        return torch.func.jvp(lambda x, t: u(x, r, t), (x, t), (v, torch.ones_like(t)))[1]


def difference_derivative(u, x, r, t, v, eps=1e-3):
    """The same by a central difference, as published; its step follows the mean magnitudes.
    """
    magnitude = x.abs().mean((1, 2, 3)) + v.abs().mean((1, 2, 3))          # (B,)
    step = eps * magnitude.clamp(min=1e-6)
    ahead, behind = (u(x + per_bin(s) * v, r, t + s) for s in (step, -step))
    return (ahead - behind) / per_bin(2 * step)


def average_velocity_target(u, xt, r, t, v, c=1.0, derivative=exact_derivative,
                            clip=float("inf"), along=None):
    """u_tgt = v - c (t - r) du/dt, without gradient.

    v: conditional velocity. c: 1 for the average velocity; with c < 1 the regression
    converges to a mean of velocities that leans towards the time t, and with c -> 0 to the
    instantaneous one. along: velocity of the derivative, by default v. With u(x_t, t, t)
    instead the squared error is the improved MeanFlow's, |u + (t - r) du/dt - v|^2, whose
    regression target v depends on no network.
    """
    with torch.no_grad(), full_float32():
        dudt = derivative(u, xt, r, t, v if along is None else along.detach())
        return v - c * per_bin(t - r) * clip_norm(dudt, clip)


def composed_target(u, xt, r, t, fraction=None):
    """u over [r, t] put together from u over [s, t] and over [r, s], without gradient:
    (t - r) u_tgt = (t - s) u(x_t, s, t) + (s - r) u(x_s, r, s).

    s = r + fraction (t - r); fraction (B,) in [0, 1], by default uniform (the choice of the
    COSE paper is not known). Two evaluations and no derivative.
    """
    fraction = torch.rand_like(t) if fraction is None else fraction
    s = r + fraction * (t - r)
    with torch.no_grad():
        first = u(xt, s, t)
        second = u(xt - per_bin(t - s) * first, r, s)
        return per_bin(1 - fraction) * first + per_bin(fraction) * second


@contextlib.contextmanager
def full_float32():
    """Full float32 precision: TF32 would lose a tenth of a difference."""
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark,
                         deterministic=cudnn.deterministic, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def clip_norm(x, largest):
    """Scale down the examples whose norm over all bins exceeds `largest`."""
    norm = x.flatten(1).norm(dim=1)                      # (B,)
    return x * per_bin((largest / norm.clamp(min=1e-12)).clamp(max=1))


# ----------------------------------------------------------------------------------- losses

def displacement_loss(u, u_target, r, t):
    """The x_r-loss: squared error of the point x_t - (t - r) u that the jump reaches."""
    return losses.half_square(per_bin(t - r) * (u - u_target))


def endpoint_si_sdr_loss(u, x0, s_hat, z, spectrogram, t_end=0.03, sigma_max=0.487):
    """Negative SI-SDR of the one-step output's wave, in dB: (B,), with gradient.

    The output is that of time t_end, the reference clean, as published.
    """
    x_hat = sample(u, s_hat, z, 1, t_end, sigma_max)
    length = spectrogram.samples(x0.shape[-1])       # waves: (B, length)
    clean, enhanced = (spectrogram.inverse(x[:, 0], length) for x in (x0, x_hat))
    return losses.si_sdr_loss(clean, enhanced)


# -------------------------------------------------------------------------------- inference

def sample(u, s_hat, z, N=1, t_end=0.03, sigma_max=0.487, average=True):
    """From s_hat + sigma_max z at t = 1 to t_end by N equal jumps; MeCo's N is 1.

    average: each jump takes u(x, r, t); otherwise u(x, t, t), an Euler step of the
    instantaneous velocity.
    """
    x = s_hat + sigma_max * z
    times = torch.linspace(1, t_end, N + 1, dtype=torch.float64).tolist()
    for t, r in zip(times, times[1:]):
        at_t, at_r = (x.real.new_full((len(x),), time) for time in (t, r))
        x = x - (t - r) * u(x, at_r if average else at_t, at_t)
    return x


# -------------------------------------------------------------------------------- the model

class Separator(nets.SpatialNet):
    """MeCo's front end, trained first: SpatialNet between waves, (B, num_mics, L) ->
    (B, num_speakers, L), the speakers at the reference microphone in an order of its own.
    """

    def __init__(self, num_mics, num_speakers, **sizes):
        super().__init__(num_mics, num_speakers, **sizes)
        self.spectrogram = Spectrogram(512, 256, transform="none")

    def forward(self, mixture):
        S = super().forward(self.spectrogram(mixture))
        return self.spectrogram.inverse(S, mixture.shape[-1])


class MeanFlowCorrector(train.Method):
    """An average-velocity network and, where asked for, its separator.

    Waves are (B, L), or (B, num_mics, L) in and (B, num_speakers, L) out, the speakers at
    the reference microphone, number 0.
    """

    Config, presets = Config, PRESETS
    inference, options = ("N", "average", "t_end"), ("rooms", "room_cache")

    def __init__(self, config=Config()):
        super().__init__(config)
        if config.separator == "none" and (config.num_mics, config.num_speakers) != (1, 1):
            raise ValueError("several microphones or speakers need a separator: --separator"
                             " train, then frozen")
        self.num_mics, self.num_speakers = config.num_mics, config.num_speakers
        self.separator, self.mic0 = None, 0
        # The context: s_hat alone, which then is the mixture, or s_hat and the
        # microphones, the reference microphone at index mic0.
        if config.separator != "none":
            self.mic0 = 1
        self.net = self.network(1 + self.mic0 + config.num_mics, num_times=2, version=2)
        if config.sigma_data:                            # no correction is the start
            nn.init.zeros_(self.net.head.bias)
        if config.separator != "none":
            sizes = {"small": {}, "compact": nets.COMPACT}[config.separator_size]
            self.separator = Separator(config.num_mics, config.num_speakers, **sizes)
            frozen = self.net if config.separator == "train" else self.separator
            frozen.requires_grad_(False)
            excerpt = round(config.separator_seconds * SAMPLE_RATE)
            self.num_samples = max(self.num_samples, excerpt)

    def evaluations(self):
        """Evaluations of separator and corrector for a window."""
        steps = 0 if self.config.separator == "train" else self.config.N
        return steps + (self.separator is not None)

    def prepare(self, fresh):
        """Before training. Raises ValueError where there is nothing to start from."""
        if self.config.separator == "frozen" and fresh:
            raise ValueError("--separator frozen needs --init, a checkpoint of --separator "
                             "train")

    def loss(self, batch):
        """batch: clean waves and their mixture at level 1. Returns (loss, its parts)."""
        clean, mixture = (wave if wave.ndim == 3 else wave[:, None] for wave in batch)
        if self.config.separator == "train":
            loss = losses.sa_sdr_loss(clean, self.separate(mixture))[0].mean()
            return loss, {"sa_sdr": -loss.detach()}
        # The separator receives more than the corrector learns from, see above.
        contexts = self.contexts(mixture, clean)
        waves = torch.cat([clean.flatten(0, 1)[:, None], contexts], dim=1)  # (B S, C', L)
        length = self.spectrogram.samples(self.config.num_frames)
        start = torch.randint(waves.shape[-1] - length + 1, ()).item()
        waves = waves[..., start:start + length]
        spectra = self.spectrogram(waves / self.level_of_estimate(waves[:, 1:]))
        return self.flow_loss(spectra[:, :1], spectra[:, 1:])

    def flow_loss(self, x0, context):
        """(loss, its parts) of clean spectrograms (B, 1, F, T) and their context, s_hat
        first, (B, C, F, T): half squares over bins, the Endpoint loss in dB; `reduction`
        divides all.
        """
        config, s_hat = self.config, context[:, :1]

        def u(x, r, t):
            return self(x, context, r, t)

        progress = self.progress
        if self.ema is not None and config.schedule:
            progress = self.ema.num_updates / config.schedule
        weight = average_weight(progress, config.average_weight)
        gamma = interval_exponent(progress)
        r, t = sample_times(len(x0), gamma, config.t_eps, device=x0.device)
        z = torch.randn_like(x0)
        xt = path(x0, s_hat, t, z, config.sigma_max)
        v = conditional_velocity(x0, s_hat, z, config.sigma_max)

        u_now = u(xt, t, t)
        loss = velocity = losses.half_square(u_now - v)
        parts = {"velocity": velocity.detach()}
        # In the first tenth of the schedule the instantaneous velocity alone.
        if weight and weight >= 0.2 * config.average_weight:
            u_target = self.target(u, xt, r, t, v, u_now)
            u_average = u(xt, r, t)
            if config.displacement:
                average = displacement_loss(u_average, u_target, r, t)
            else:
                average = losses.half_square(u_average - u_target)
            loss = (1 - weight) * velocity + weight * average
            parts["average"] = average.detach()
            if config.endpoint_weight:
                endpoint = endpoint_si_sdr_loss(u, x0, s_hat, torch.randn_like(x0),
                                                self.spectrogram, config.t_end,
                                                config.sigma_max).mean()
                loss = loss + config.endpoint_weight * endpoint
                parts["si_sdr"] = -endpoint.detach()
        # The mean of the squares; the Endpoint loss shrinks with them and keeps its weight.
        return loss / x0[0].numel() if config.reduction == "mean" else loss, parts

    def target(self, u, xt, r, t, v, u_now):
        """The average velocity that u(x_t, r, t) is trained to have."""
        config = self.config
        if config.derivative == "compose":
            return composed_target(u, xt, r, t)
        derivative = {"exact": exact_derivative,
                      "difference": difference_derivative}[config.derivative]
        with nets.in_precision(self, None):        # in bf16 a difference is mostly noise
            return average_velocity_target(
                u, xt, r, t, v, config.c, derivative,
                config.derivative_clip or float("inf"),
                u_now if config.along == "own" else None)

    @torch.no_grad()
    def contexts(self, mixture, clean=None):
        """Estimate and condition of each speaker's flow: waves (B S, C, L), s_hat first.

        mixture: (B, num_mics, L). With clean waves (B, S, L) the speakers come in their
        order.
        """
        if self.separator is None:
            return mixture
        if clean is None:
            estimate = self.separate(mixture)
        else:
            estimate = losses.sa_sdr_loss(clean, self.separate_once(mixture))[1]
        mixture = mixture.repeat_interleave(estimate.shape[1], dim=0)      # (B S, M, L)
        return torch.cat([estimate.flatten(0, 1)[:, None], mixture], dim=1)

    def separate_once(self, mixture):
        """`separate`; where training repeats its crops, each is separated once."""
        if self.store is None:
            return self.separate(mixture)
        weights = nn.utils.parameters_to_vector(self.separator.parameters())
        return cached_rows(self.separate, mixture, self.store, fingerprint(weights))

    def separate(self, mixture):
        """(B, num_mics, L) -> (B, num_speakers, L), in an order of the separator's own."""
        self.calls += 1
        return self.separator(mixture)

    def level_of_estimate(self, waves):
        """Level of s_hat, but at least 0.05 times that of the reference microphone:
        (B S, C, L) -> (B S, 1, 1). Without a separator both are one, at level 1 already.
        """
        if self.separator is None:
            return waves.new_ones(1, 1, 1)
        s_hat, mixture = waves[:, :1], waves[:, self.mic0, None]
        loudest = torch.maximum(s_hat.abs(), 0.05 * mixture.abs())
        if self.config.normalize == "robust":
            return click_robust_peak(loudest).clamp(min=1e-8)
        return loudest.amax(-1, keepdim=True).clamp(min=1e-8)

    def forward(self, xt, context, r, t):
        """u(x_t, r, t), complex (B, 1, F, T); context: s_hat [and microphones] (B, C, F,
        T).
        """
        self.calls += 1
        config = self.config

        def network(*signals):                          # as released, u is minus its output
            return -self.net(torch.cat(signals, dim=1), t, (t - r).clamp(min=0))

        if not config.sigma_data:
            return network(xt, context)
        # Each bin relative to level and phase of the mixture at the reference microphone.
        d = xt - context[:, :1]
        mixture = context[:, self.mic0, None]            # (B, 1, F, T)
        phase = mixture / mixture.abs().clamp(min=1e-8)
        sigma_data = config.sigma_data * mixture.abs() + 0.01             # not 0 in silence
        c_in, c_skip, c_out = preconditioning(t, sigma_data, config.sigma_max)
        out = network(phase.conj() * c_in * d, phase.conj() * context / config.factor)
        return c_skip * d + c_out * phase * out

    def sample(self, context):
        """Context spectrograms (B, C, F, T), s_hat first -> clean (B, 1, F, T)."""
        config, s_hat = self.config, context[:, :1]

        def u(x, r, t):
            return self(x, context, r, t)
        return sample(u, s_hat, torch.randn_like(s_hat), config.N, config.t_end,
                      config.sigma_max, config.average)

    @torch.no_grad()
    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L), see
        data.enhance_normalised; (B, M, L) -> (B, S, L).
        """
        mixture = wave if wave.ndim == 3 else wave[:, None]                # (B, M, L)
        out = enhance_normalised(self.enhance_at_level_1, mixture, self.config.normalize,
                               peak)
        return out if wave.ndim == 3 else out[:, 0]

    def enhance_at_level_1(self, mixture):
        """(B, M, L) -> (B, S, L)."""
        if self.config.separator == "train":
            return self.separate(mixture)
        waves = self.contexts(mixture)                                     # (B S, C, L)
        level = self.level_of_estimate(waves)
        out = in_spectrogram(self.sample, waves / level, self.spectrogram,
                             self.net.multiple, self.config.pad_mode)
        return (out * level[:, 0]).unflatten(0, (len(mixture), -1))        # (B, S, L)


if __name__ == "__main__":
    commands.main(MeanFlowCorrector)
