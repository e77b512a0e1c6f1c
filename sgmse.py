"""Score-based speech enhancement: a diffusion from noisy speech back to clean speech.

Papers: Richter, Welker, Lemercier, Lay, Gerkmann, "Speech Enhancement and Dereverberation
with Diffusion-based Generative Models" (SGMSE+, TASLP 2023, arXiv 2208.05830); Lay et al.,
"Reducing the Prior Mismatch of Stochastic Differential Equations for Diffusion-based Speech
Enhancement" (BBED, Interspeech 2023, arXiv 2302.14748); Richter, de Oliveira, Gerkmann,
"Investigating Training Objectives for Generative Speech Enhancement" (ICASSP 2025, arXiv
2409.10753), with the Schroedinger bridge of Jukic et al. (Interspeech 2024) and the scaling
of Karras et al. (EDM, NeurIPS 2022, arXiv 2206.00364); Lay, Lemercier, Richter, Gerkmann,
"Single and Few-step Diffusion for Generative Speech Enhancement" (CRP, ICASSP 2024, arXiv
2309.09677).

The idea: a forward process pulls the clean spectrogram x0 towards the noisy y while it adds
Gaussian noise. A network learns the score, the gradient of log p_t(x_t | y), from pairs
(x0, y). Running the process backwards with that score draws clean speech that fits y. Time
runs from t = 0, clean, to t = T, noisy. (In shapes, T counts frames.)

    forward process   dx = f(x, y, t) dt + g(t) dw        OUVE, BBED, SBVE
    its marginal      x_t = mean(x0, y, t) + std(t) z     .mean, .std; diffuse
    score matching    E |std s(x_t, y, t) + z|^2 / 2      dsm_loss
    denoising         E w |D(x_t, y, t) - mean|^2 / 2     denoising_loss
    ... scaled        D = c_skip x_t + c_out F(c_in x_t)  edm_scaling; w: edm_weight
    data prediction   E |x_hat - x0|^2 / 2, waves, PESQ   data_prediction_loss
    correction (CRP)  E |last step of N - x0|^2 / 2       crp_loss
    reverse SDE       dx = (f - g^2 s) dt + g dw          reverse_step
    ... sampled       N steps between even times          reverse_grid, euler_maruyama
    ... corrected     Langevin steps in between           langevin_step, predictor_corrector
    its ODE           dx = (f - g^2 s / 2) dt             flow_velocity, probability_flow
    one-step          E[x0 | x_t, y]                      posterior_mean
    bridge            exponential integrators             bridge_ode, bridge_sde

Where we differ. The default is the released code's behaviour, with which the published
numbers were computed: the predictor takes the true spacing of its grid and a last step to 0
(SGMSE+ wrote 1/N); the corrector comes before the predictor. The EDM weight is applied per
example (the released code mixes it across the batch).

Tutorials: tutorials/2_score.ipynb, tutorials/3_crp.ipynb

    python sgmse.py train --data DIR --out runs/sgmse
    python sgmse.py enhance noisy.wav
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

import commands
import nets
import train
from data import SpectrogramConfig, per_bin
from losses import PESQ, half_square
from nets import Count, Positive, Weight


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is SGMSE+ for VoiceBank-DEMAND."""
    sde: Literal["ouve", "bbed", "sbve"] = "ouve"  # the process; sbve: Schroedinger bridge
    theta: Positive = 1.5            # OUVE: stiffness, how fast x_t is pulled towards y
    sigma_min: Positive = 0.05       # OUVE: noise scale at t = 0, per complex bin
    sigma_max: Positive = 0.5        # OUVE: at t = 1
    k: Positive = 2.6                # BBED, SBVE: base of the diffusion, sqrt(c) k^t
    c: Positive = 0.51               # BBED, SBVE (there 0.4): its scale
    t_eps: Annotated[float, "(0, 1)"] = 0.03  # smallest process time that is trained
    objective: Literal["score_matching", "denoiser", "precond_denoiser",
                       "data_prediction"] = "score_matching"  # what the network gives
    weighting: Literal["1", "sigma^2", "edm"] = "1"  # of the denoisers' squared error
    network_scaling: Literal["none", "1/sigma", "1/t"] = "none"  # version 2: of its output
    c_in: Literal["1", "edm"] = "1"  # version 2: input scale
    c_out: Literal["1", "sigma", "1/sigma", "edm"] = "1"  # version 2: output scale
    c_skip: Literal["0", "edm", "y"] = "0"  # version 2: of x_t; y adds y: ours
    sigma_data: Positive = 0.1       # rms of a clean bin, for the edm coefficients
    l1_weight: Weight = 0.001        # data_prediction: weight of the waveform term
    pesq_weight: Weight = 0.0        # data_prediction: of PESQLoss; the bridge: 5e-4
    crp: Literal["none", "last", "random"] = "none"  # second stage: which step it trains
    sampler: Literal["pc", "em", "ode", "one_step", "bridge_ode",
                     # em: pc without corrector; one_step: E[x0 | x_T, y]
                     "bridge_sde"] = "pc"
    N: Count = 30                    # reverse steps
    snr: Weight = 0.5                # r, step length of the corrector
    start: Annotated[float, "(0, 1]"] = 1.0  # reverse starting point; BBED: at most 0.999
    spacing: Positive = 1.0          # of the reverse times: 1 even, above 1 denser at t_eps
    version: Literal[1, 2] = 1       # of NCSN++: 1 gives -score over t; 2 is scaled
    fourier_scale: Positive = 16.0   # std of the random frequencies of log t

    def __post_init__(self):
        super().__post_init__()
        if self.t_eps > self.start:
            raise ValueError("--start: expected a time from --t-eps to 1; got start "
                             f"{self.start}, t_eps {self.t_eps}")
        if self.k == 1:
            raise ValueError("--k: expected a number other than 1, which makes the "
                             "diffusion constant")
        bridge = self.sde == "sbve"
        if bridge != self.sampler.startswith("bridge"):
            raise ValueError("--sampler bridge_ode or bridge_sde is for --sde sbve, pc, "
                             "em, ode or one_step for ouve and bbed; got "
                             f"{self.sampler} for {self.sde}")
        if bridge and self.objective != "data_prediction":
            raise ValueError("--sde sbve needs --objective data_prediction: its samplers "
                             f"ask for x0; got {self.objective}")
        scaling = self.c_in, self.c_out, self.c_skip, self.network_scaling
        plain = self.objective == "score_matching" and scaling == ("1", "1", "0", "none")
        if self.version == 1 and not plain:
            raise ValueError("--version 1 gives the score and takes no scaling: another "
                             "--objective, --c-in, --c-out, --c-skip or --network-scaling "
                             "needs --version 2")


# For short training: the network predicts x0 as a correction of y, with losses on the
# waveform; half the frames halve the cost.
LIGHT = dict(sde="bbed", objective="data_prediction", c_skip="y", l1_weight=0.1,
             pesq_weight=5e-4, sampler="em", start=0.5, version=2, hop_length=256,
             num_frames=128, normalize="robust")
PRESETS = {
    "paper": {},
    "bbed": dict(sde="bbed", start=0.999),
    "edm": dict(version=2, objective="precond_denoiser", weighting="edm", c_in="edm",
                c_out="edm", c_skip="edm", pad_mode="reflect"),          # ROSE-CD's teacher
    "bridge": dict(sde="sbve", c=0.4, objective="data_prediction", pesq_weight=5e-4,
                   sampler="bridge_ode", N=50, version=2, pad_mode="reflect"),
    "small": dict(N=15, **LIGHT, **nets.SMALL),
    "tiny": dict(N=5, **LIGHT, **nets.TINY),
}


# -------------------------------------------------------------------------------- processes
# x, x0, y: complex (B, 1, F, T); t: (B,).

@dataclass(frozen=True)
class OUVE:
    """Ornstein-Uhlenbeck process with exploding variance, the process of SGMSE+."""
    theta: float = 1.5               # stiffness
    sigma_min: float = 0.05          # per complex bin
    sigma_max: float = 0.5
    T: float = 1.0                   # latest time
    t_eps: float = 0.03              # earliest time that is trained

    def drift(self, x, y, t):
        """f = theta (y - x)."""
        return self.theta * (y - x)

    def diffusion(self, t):
        """g = sigma_min r^t sqrt(2 log r), (B,) -> (B,); r = sigma_max / sigma_min."""
        ratio = self.sigma_max / self.sigma_min
        return self.sigma_min * ratio ** t * math.sqrt(2 * math.log(ratio))

    def mean(self, x0, y, t):
        """Mean of x_t, sliding from x0 at t = 0 towards y, which it never reaches."""
        w = per_bin(torch.exp(-self.theta * t))          # (B, 1, 1, 1)
        return w * x0 + (1 - w) * y

    def std(self, t):
        """Standard deviation of x_t per complex bin, (B,) -> (B,)."""
        log_ratio = math.log(self.sigma_max / self.sigma_min)
        growth = torch.exp(2 * log_ratio * t) - torch.exp(-2 * self.theta * t)
        return self.sigma_min * (log_ratio / (self.theta + log_ratio) * growth).sqrt()

    def prior(self, y, t=None):
        """Start of the reverse process at t (default T): y plus the noise of that time."""
        t = expand_time(self.T if t is None else t, y)
        return y + per_bin(self.std(t)) * torch.randn_like(y)


@dataclass(frozen=True)
class BBED:
    """Brownian bridge with exponential diffusion coefficient; its mean is y at t = 1."""
    k: float = 2.6                   # base of the diffusion coefficient
    c: float = 0.51              # its scale: the published run; the released class has 0.52
    T: float = 0.999                 # latest time: at 1 the drift divides by zero
    t_eps: float = 0.03              # earliest time that is trained

    def drift(self, x, y, t):
        """f = (y - x) / (1 - t)."""
        return (y - x) / per_bin(1 - t)

    def diffusion(self, t):
        """g = sqrt(c) k^t, (B,) -> (B,)."""
        return math.sqrt(self.c) * self.k ** t

    def mean(self, x0, y, t):
        """Mean of x_t, straight from x0 at t = 0 to y at t = 1."""
        return per_bin(1 - t) * x0 + per_bin(t) * y

    def std(self, t):
        """Standard deviation of x_t per complex bin, 0 at both ends: (B,) -> (B,).

        Its square is (1 - t)^2 times the integral of c k^(2s) / (1 - s)^2 from 0 to t.
        """
        dtype, t, log_k = t.dtype, t.double(), math.log(self.k)
        # That integral cancels to its last digits near t = 0: float64.
        ei = expi(2 * (t - 1) * log_k) - expi(torch.full_like(t, -2 * log_k))
        growth = self.k ** (2 * t) - 1 + t + 2 * self.k ** 2 * log_k * (1 - t) * ei
        variance = (1 - t) * self.c * growth
        return variance.sqrt().to(dtype)

    def prior(self, y, t=None):
        """Start of the reverse process at t (default T): y plus the noise of that time."""
        t = expand_time(self.T if t is None else t, y)
        return y + per_bin(self.std(t)) * torch.randn_like(y)


def expi(u):
    """Exponential integral Ei(u), -8 < u < 0, by its power series: (B,) float64."""
    n = torch.arange(1, 60, dtype=u.dtype, device=u.device)
    terms = (u[:, None] / n).cumprod(1) / n              # u^n / (n! n), (B, 59)
    return 0.5772156649015329 + u.abs().log() + terms.sum(1)       # Euler's constant


@dataclass(frozen=True)
class SBVE:
    """Schroedinger bridge with exploding variance: from y to x0, neither end has noise."""
    k: float = 2.6                   # base of the diffusion coefficient
    c: float = 0.4                   # its scale
    T: float = 1.0                   # latest time
    t_eps: float = 0.03              # earliest time that is trained
    eps: float = 1e-8                # keeps the released code's divisions finite

    def drift(self, x, y, t):
        """f = 0."""
        return torch.zeros_like(x)

    def diffusion(self, t):
        """g = sqrt(c) k^t, (B,) -> (B,)."""
        return math.sqrt(self.c) * self.k ** t

    def variance_added(self, t):
        """Variance of the noise that the process adds from 0 to t: the integral of g^2."""
        return self.c * (self.k ** (2 * t) - 1) / (2 * math.log(self.k))

    def sigma(self, t):
        """(sigma_t, sigma-bar_t), (B,): std of the noise added from 0 to t, from t to T."""
        added = self.variance_added(t)
        return added.sqrt(), (self.variance_added(self.T) - added + self.eps).sqrt()

    def mean(self, x0, y, t):
        """Mean of x_t: x0 and y, each weighted by the noise between t and the other."""
        s, s_bar = self.sigma(t)
        total = self.sigma(torch.full_like(t, self.T))[0] ** 2 + self.eps
        return per_bin(s_bar ** 2 / total) * x0 + per_bin(s ** 2 / total) * y

    def std(self, t):
        """Standard deviation of x_t per complex bin, 0 at both ends: (B,) -> (B,)."""
        s, s_bar = self.sigma(t)
        s_T = self.sigma(torch.full_like(t, self.T))[0]
        return s * s_bar / (s_T + self.eps)

    def prior(self, y, t=None):
        """Start of the reverse process: y itself."""
        return y


def expand_time(t, x):
    """The time t for every example of x: a number -> (B,). A tensor (B,) stays as it is."""
    if isinstance(t, torch.Tensor):
        return t
    return torch.full((len(x),), t, device=x.device, dtype=x.real.dtype)


# ----------------------------------------------------------------------------------- losses
# x0, y, z: complex (B, 1, F, T), E|z|^2 = 1; t: (B,). score, denoiser, predict: functions
# (x_t, y, t) -> complex (B, 1, F, T).

def diffuse(x0, y, t, z, sde):
    """x_t of the forward process: mean(x0, y, t) + std(t) z."""
    return sde.mean(x0, y, t) + per_bin(sde.std(t)) * z


def dsm_loss(score, x0, y, sde, t=None, z=None):
    """Denoising score matching, SGMSE+ and BBED: E |std s(x_t, y, t) + z|^2 / 2.

    t, z: drawn, time uniform from t_eps to T and unit noise, unless they are given; below
    too.
    """
    if t is None:
        t = sde.t_eps + (sde.T - sde.t_eps) * torch.rand(len(x0), device=x0.device)
    z = torch.randn_like(x0) if z is None else z
    std = per_bin(sde.std(t))                            # (B, 1, 1, 1)
    xt = sde.mean(x0, y, t) + std * z
    return half_square(std * score(xt, y, t) + z)


def denoising_loss(denoiser, x0, y, sde, weight=torch.ones_like, t=None, z=None):
    """E w(std) |D(x_t, y, t) - mean(x0, y, t)|^2 / 2: the target is the mean of x_t."""
    if t is None:
        t = sde.t_eps + (sde.T - sde.t_eps) * torch.rand(len(x0), device=x0.device)
    z = torch.randn_like(x0) if z is None else z
    mean, std = sde.mean(x0, y, t), sde.std(t)
    xt = mean + per_bin(std) * z
    return half_square(per_bin(weight(std).sqrt()) * (denoiser(xt, y, t) - mean))


def edm_scaling(std, sigma_data=0.1, std_eps=0.0):
    """(c_in, c_skip, c_out) of D = c_skip x_t + c_out F(c_in x_t, c_in y, t), as in EDM.

    std, of the noise in x_t, and the three: of any shape. With v = std^2 + sigma_data^2
    they are 1 / sqrt(v), sigma_data^2 / v and std sigma_data / sqrt(v): input and target of
    F have variance 1, and its errors count as little as possible. D is the identity where
    std = 0; with std_eps, consistency models' own choice, where std = std_eps.
    """
    rms = (std ** 2 + sigma_data ** 2).sqrt()
    c_skip = sigma_data ** 2 / ((std - std_eps) ** 2 + sigma_data ** 2)
    return 1 / rms, c_skip, (std - std_eps) * sigma_data / rms


def edm_weight(std, sigma_data=0.1):
    """1 / c_out^2, under which every noise level has the same loss at the start, ibid."""
    return (std ** 2 + sigma_data ** 2) / (std * sigma_data) ** 2


def data_prediction_loss(predict, x0, y, sde, wave, l1_weight=0.001, pesq_weight=0.0,
                         t=None, z=None):
    """E |x_hat - x0|^2 / 2 per bin + a E |difference of the waves| / 2 per sample + b PESQ.

    wave: function, spectrogram -> wave (B, L). a: l1_weight; b: pesq_weight, of PESQLoss.
    """
    if t is None:
        t = sde.t_eps + (sde.T - sde.t_eps) * torch.rand(len(x0), device=x0.device)
    z = torch.randn_like(x0) if z is None else z
    x_hat = predict(diffuse(x0, y, t, z, sde), y, t)
    enhanced, clean = wave(x_hat), wave(x0)
    loss = half_square(x_hat - x0) / x0[0].numel()
    loss = loss + l1_weight * 0.5 * (enhanced - clean).abs().mean()
    return loss + pesq_weight * PESQ(clean, enhanced).mean() if pesq_weight else loss


def crp_loss(score, x0, y, sde, N=5, start=0.5, trained="last", spacing=1.0):
    """Correcting the reverse process: E |x_hat - x0|^2 / 2, x_hat the output of the
    sampler.

    score: a network that stage 1 has trained. Gradients reach it through one evaluation,
    the `last` (published) or a `random` one of the N; the steps before it are plain
    sampling.
    """
    times, steps = reverse_grid(sde, N, start, spacing)  # N times, the last step to 0
    j = N - 1 if trained == "last" else int(torch.randint(N, ()))
    with torch.no_grad():
        x = sde.prior(y, times[0])                   # y + std(start) z, the sampler's start
        for t, dt in zip(times[:j], steps[:j]):
            x_mean, noise = reverse_step(score, x, y, t, dt, sde)
            x = x_mean + noise * torch.randn_like(x)
    x_hat, _ = reverse_step(score, x, y, times[j], steps[j], sde)
    target = sde.mean(x0, y, expand_time(times[j] - steps[j], y))  # after the last: x0
    return half_square(x_hat - target)


# --------------------------------------------------------------------------------- samplers
# y: complex (B, 1, F, T), as what they return. score, predict: as above.

def reverse_grid(sde, N, start=None, spacing=1.0):
    """(times, steps): N times from `start` (default: T) to t_eps, and the step after each,
    the last going to 0. Two float64 lists. N = 1: the single time `start`, one step to
    0. spacing: 1, as published, even times; above 1 the steps get smaller towards t_eps.
    """
    start = min(sde.T, sde.T if start is None else start)
    u = torch.linspace(1, 0, N, dtype=torch.float64) ** spacing
    t = (sde.t_eps + (start - sde.t_eps) * u).tolist()
    return t, [a - b for a, b in zip(t, t[1:] + [0.0])]


def reverse_step(score, x, y, t, dt, sde):
    """An Euler step of the reverse SDE over dt: (mean, noise scale) of the new state.

    x - (f - g^2 s) dt and g sqrt(dt). t, dt: numbers, or (B,) and (B, 1, 1, 1) where the
    examples of a batch are at different times.
    """
    t = expand_time(t, x)
    g = per_bin(sde.diffusion(t))                        # (B, 1, 1, 1)
    return x - (sde.drift(x, y, t) - g ** 2 * score(x, y, t)) * dt, g * dt ** 0.5


def euler_maruyama(score, y, sde, N=30, start=None, spacing=1.0):
    """Reverse SDE by N Euler-Maruyama steps, the last without noise: the sampler of CRP."""
    times, steps = reverse_grid(sde, N, start, spacing)
    x = sde.prior(y, times[0])
    for t, dt in zip(times[:-1], steps[:-1]):
        x_mean, noise = reverse_step(score, x, y, t, dt, sde)
        x = x_mean + noise * torch.randn_like(x)
    return reverse_step(score, x, y, times[-1], steps[-1], sde)[0]


def langevin_step(score, x, y, t, sde, snr=0.5):
    """Annealed Langevin dynamics, the corrector: x + e s + sqrt(2 e) z, e = 2 (snr std)^2.

    t: a number or (B,).
    """
    t = expand_time(t, x)
    e = per_bin(2 * (snr * sde.std(t)) ** 2)             # (B, 1, 1, 1)
    return x + e * score(x, y, t) + (2 * e).sqrt() * torch.randn_like(x)


def predictor_corrector(score, y, sde, N=30, snr=0.5, corrector_steps=1, start=None,
                        spacing=1.0):
    """N times: Langevin steps at t_i, then a step of the reverse SDE to t_(i+1), the last
    without noise: the sampler of SGMSE+. N (1 + corrector_steps) evaluations.
    """
    times, steps = reverse_grid(sde, N, start, spacing)
    x = sde.prior(y, times[0])
    for t, dt in zip(times, steps):
        for _ in range(corrector_steps):
            x = langevin_step(score, x, y, t, sde, snr)
        x_mean, noise = reverse_step(score, x, y, t, dt, sde)
        x = x_mean + noise * torch.randn_like(x)
    return x_mean


def flow_velocity(score, x, y, t, sde):
    """dx/dt = f - g^2 s / 2 of the probability-flow ODE. t: (B,) or a number."""
    t = expand_time(t, x)
    return sde.drift(x, y, t) - 0.5 * per_bin(sde.diffusion(t)) ** 2 * score(x, y, t)


def probability_flow(score, y, sde, N=30, method="heun", start=None, spacing=1.0):
    """The ODE with the marginals of the SDE, from the prior at `start` to t_eps in N - 1
    steps, then one step of the reverse SDE to 0 without noise.

    method: "euler", N evaluations, or "heun", of second order, 2 N - 1.
    """
    times, steps = reverse_grid(sde, N, start, spacing)
    x = sde.prior(y, times[0])
    for t, dt in zip(times[:-1], steps[:-1]):
        v = flow_velocity(score, x, y, t, sde)
        if method == "heun":
            v = (v + flow_velocity(score, x - v * dt, y, t - dt, sde)) / 2
        x = x - v * dt
    return reverse_step(score, x, y, times[-1], steps[-1], sde)[0]


def posterior_mean(score, x, y, t, sde):
    """One-step prediction E[x0 | x_t, y] by Tweedie's formula: the process mean
    x + std^2 s, solved for x0.

    At t = T it is the network's prediction from noisy speech, no sampler: the control
    of every method with one evaluation.
    """
    t = expand_time(t, x)
    mean = x + per_bin(sde.std(t)) ** 2 * score(x, y, t)
    of_y = sde.mean(torch.zeros_like(x), y, t)
    of_one = sde.mean(torch.ones_like(x), torch.zeros_like(y), t)
    return (mean - of_y) / of_one


def bridge_times(N, end=1e-4):
    """The N + 1 even times from 1 to `end` of N bridge steps: (N + 1,), float64."""
    return torch.linspace(1, end, N + 1, dtype=torch.float64)


def bridge_ode(predict, y, sde, N=50):
    """Schroedinger bridge by a first-order exponential integrator of its ODE, Jukic et al.

    From p to q:  x_q = w_x x_p + w_hat x_hat + w_y y,  with s, s' for sigma, sigma-bar, and
        w_x = s_q s'_q / (s_p s'_p)
        w_hat = (s'_q^2 - s'_p s_q s'_q / s_p) / s_T^2
        w_y = (s_q^2 - s_p s_q s'_q / s'_p) / s_T^2
    x_hat = predict(x_p, y, q): as released, the network receives the time after the step.
    """
    times = bridge_times(N)
    s, s_bar = sde.sigma(times)                      # (N + 1,), float64: differences cancel
    s_T = sde.sigma(torch.tensor([sde.T], dtype=torch.float64))[0].item()
    x, total = y, s_T ** 2 + sde.eps
    for p, q in zip(range(N), range(1, N + 1)):
        x_hat = predict(x, y, expand_time(times[q].item(), x))
        w_x = s[q] * s_bar[q] / (s[p] * s_bar[p] + sde.eps)
        w_hat = (s_bar[q] ** 2 - s_bar[p] * s[q] * s_bar[q] / (s[p] + sde.eps)) / total
        w_y = (s[q] ** 2 - s[p] * s[q] * s_bar[q] / (s_bar[p] + sde.eps)) / total
        x = w_x.item() * x.to(torch.complex128) + w_hat.item() * x_hat + w_y.item() * y
        x = x.to(y.dtype)
    return x


def bridge_sde(predict, y, sde, N=50):
    """Schroedinger bridge by a first-order exponential integrator of its SDE, Jukic et al.

    From p to q:  x_q = rho x_p + (1 - rho) x_hat + s_q sqrt(1 - rho) z,  rho = s_q^2 /
    s_p^2, with s for sigma, x_hat as in bridge_ode, and no noise in the last step.
    """
    times = bridge_times(N)
    s, x = sde.sigma(times)[0], y
    for p, q in zip(range(N), range(1, N + 1)):
        x_hat = predict(x, y, expand_time(times[q].item(), x))
        rho = (s[q] ** 2 / (s[p] ** 2 + sde.eps)).item()
        x = rho * x + (1 - rho) * x_hat
        if q < N:
            x = x + s[q].item() * math.sqrt(1 - rho) * torch.randn_like(x)
    return x


# -------------------------------------------------------------------------------- the model

class ScoreSDE(train.Method):
    """A score network with its process and sampler."""

    Config, presets = Config, PRESETS
    inference = ("sampler", "N", "snr", "start", "spacing")

    def __init__(self, config=Config()):
        super().__init__(config)
        if config.sde == "ouve":
            self.sde = OUVE(config.theta, config.sigma_min, config.sigma_max,
                            t_eps=config.t_eps)
        else:
            process = {"bbed": BBED, "sbve": SBVE}[config.sde]
            self.sde = process(config.k, config.c, t_eps=config.t_eps)
        self.net = self.network(version=config.version)
        self.objective_loss = self.choose_loss()

    def choose_loss(self):
        """The loss that `objective` and `crp` mean: a function of x0 and y."""
        config, sde, partial = self.config, self.sde, functools.partial
        if config.crp != "none":
            return partial(crp_loss, self.score, sde=sde, N=config.N, start=config.start,
                           trained=config.crp, spacing=config.spacing)
        if config.objective == "score_matching":
            return partial(dsm_loss, self, sde=sde)
        if config.objective == "data_prediction":
            return partial(data_prediction_loss, self, sde=sde, wave=self.wave,
                           l1_weight=config.l1_weight, pesq_weight=config.pesq_weight)
        return partial(denoising_loss, self, sde=sde, weight=self.weight)

    def prepare(self, fresh):
        """Before training. Raises ValueError for what cannot be trained."""
        config = self.config
        if config.crp != "none" and (config.sampler != "em" or config.sde == "sbve"):
            raise ValueError("--crp trains the --N steps of --sampler em from --start, for "
                             "--sde ouve or bbed")
        if config.crp != "none" and fresh:
            raise ValueError("--crp is a second stage: give the weights of the first with "
                             "--init")

    def score(self, xt, y, t):
        """Gradient of log p_t(x_t | y), whatever the network was trained to predict."""
        out = self(xt, y, t)
        if self.config.objective == "score_matching":
            return out
        if self.config.objective == "data_prediction":
            out = self.sde.mean(out, y, t)               # of x_t, whatever its noise
        return (out - xt) / per_bin(self.sde.std(t)) ** 2

    def forward(self, xt, y, t):
        """The network's prediction: the score, the denoised mean or x0, as `objective`
        says. xt, y complex (B, 1, F, T), t (B,) -> complex (B, 1, F, T).
        """
        self.calls += 1
        if self.config.version == 1:
            return -self.net(torch.cat([xt, y], dim=1), t)
        return self.scaled_network(xt, y, t)

    def scaled_network(self, xt, y, t):
        """c_skip x_t + c_out F(c_in x_t, c_in y, t), or F alone for a `denoiser`, as
        released.
        """
        config, std = self.config, per_bin(self.sde.std(t))                # (B, 1, 1, 1)
        edm_in, edm_skip, edm_out = edm_scaling(std, config.sigma_data)
        c_in = edm_in if config.c_in == "edm" else 1
        out = self.net(torch.cat([c_in * xt, c_in * y], dim=1), t)       # F of the equation
        scaling = {"none": 1, "1/sigma": 1 / std, "1/t": 1 / per_bin(t)}
        out = scaling[config.network_scaling] * out
        if config.objective == "denoiser":
            return out
        skip = {"0": 0, "edm": edm_skip * xt, "y": y}[config.c_skip]
        c_out = {"1": 1, "sigma": std, "1/sigma": 1 / std, "edm": edm_out}[config.c_out]
        return skip + c_out * out

    def loss(self, batch):
        """batch: clean and noisy waves (B, L) at level 1. Returns (loss, what to log)."""
        x0, y = self.spectra(batch)                      # (B, 1, F, T)
        return self.objective_loss(x0, y), {}

    def evaluations(self):
        """Network evaluations of a window."""
        N = self.config.N
        return {"pc": 2 * N, "ode": 2 * N - 1, "one_step": 1}.get(self.config.sampler, N)

    def weight(self, std):
        """Weight of the denoisers' squared error by the noise in x_t, (B,) -> (B,)."""
        if self.config.weighting == "edm":
            return edm_weight(std, self.config.sigma_data)
        return std ** 2 if self.config.weighting == "sigma^2" else torch.ones_like(std)

    def sample(self, y):
        """Noisy spectrogram -> clean one, complex (B, 1, F, T)."""
        config, sde = self.config, self.sde
        grid = dict(start=config.start, spacing=config.spacing)
        if config.sampler == "pc":
            return predictor_corrector(self.score, y, sde, config.N, config.snr, **grid)
        if config.sampler == "em":
            return euler_maruyama(self.score, y, sde, config.N, **grid)
        if config.sampler == "ode":
            return probability_flow(self.score, y, sde, config.N, **grid)
        if config.sampler == "one_step":
            start = min(config.start, sde.T)
            return posterior_mean(self.score, sde.prior(y, start), y, start, sde)
        bridge = {"bridge_ode": bridge_ode, "bridge_sde": bridge_sde}[config.sampler]
        return bridge(self, y, sde, config.N)


if __name__ == "__main__":
    commands.main(ScoreSDE)
