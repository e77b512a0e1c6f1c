"""Score-based speech enhancement: a diffusion that starts at noisy speech and runs back to clean speech.

Papers: Richter, Welker, Lemercier, Lay, Gerkmann, "Speech Enhancement and Dereverberation with Diffusion-based
Generative Models" (SGMSE+, TASLP 2023, arXiv 2208.05830); Lay et al., "Reducing the Prior Mismatch of Stochastic
Differential Equations for Diffusion-based Speech Enhancement" (BBED, Interspeech 2023, arXiv 2302.14748); Richter,
de Oliveira, Gerkmann, "Investigating Training Objectives for Generative Speech Enhancement" (ICASSP 2025, arXiv
2409.10753), with the Schroedinger bridge of Jukic et al. (Interspeech 2024); Lay, Lemercier, Richter, Gerkmann,
"Single and Few-step Diffusion for Generative Speech Enhancement" (CRP, ICASSP 2024, arXiv 2309.09677).

The idea: a forward process pulls the clean spectrogram x0 towards the noisy y while it adds Gaussian noise. A
network learns the score, the gradient of log p_t(x_t | y), from pairs (x0, y). Running the process backwards with that
score draws clean speech that fits y. Time runs from t = 0, clean, to t = T, noisy.

    forward process   dx = f(x, y, t) dt + g(t) dw              OUVE, BBED, SBVE: .drift, .diffusion
    its marginal      x_t = mean(x0, y, t) + std(t) z           .mean, .std; diffuse
    score matching    E |std s(x_t, y, t) + z|^2 / 2            dsm_loss
    denoising         E w |D(x_t, y, t) - mean|^2 / 2           denoising_loss
    data prediction   E |x_hat - x0|^2 / 2 + a |waves| + b PESQ data_prediction_loss
    reverse SDE       dx = (f - g^2 s) dt + g dw                euler_maruyama, predictor_corrector
    its ODE           dx = (f - g^2 s / 2) dt                   probability_flow
    bridge            exponential integrators                   bridge_ode, bridge_sde
    correction (CRP)  E |last step of N - x0|^2 / 2             crp_loss

Where we differ. The default is the released code's behaviour, with which the published numbers were computed: the
predictor takes the true spacing of its grid and a last step to 0 (SGMSE+ wrote 1/N); the corrector comes before the
predictor. The EDM weight is applied per example (the released code mixes it across the batch).

    python sgmse.py train --data DIR --out runs/sgmse        python sgmse.py enhance noisy.wav
"""

import math
from dataclasses import dataclass

import scipy.integrate
import torch
import torch.nn as nn

import metrics
import nets
import train
from data import Spectrogram, SpectrogramConfig, enhance_levelled, in_spectrogram, per_bin


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is SGMSE+ for VoiceBank-DEMAND."""
    sde: str = "ouve"                # ouve, bbed or sbve
    theta: float = 1.5               # OUVE: stiffness, how fast x_t is pulled towards y
    sigma_min: float = 0.05          # OUVE: noise scale at t = 0, per complex bin
    sigma_max: float = 0.5           # OUVE: at t = 1
    k: float = 2.6                   # BBED, SBVE: base of the diffusion coefficient sqrt(c) k^t
    c: float = 0.51                  # BBED, SBVE (there 0.4): its scale
    t_eps: float = 0.03              # smallest process time in training; samplers step from it to 0
    objective: str = "score_matching"  # score_matching, denoiser, precond_denoiser or data_prediction
    weighting: str = "1"             # of the denoisers: 1, sigma^2 or edm
    network_scaling: str = "none"    # version 2: network output times 1/sigma or 1/t
    c_in: str = "1"                  # version 2: input scale, 1 or edm
    c_out: str = "1"                 # version 2: output scale, 1, sigma, 1/sigma or edm
    c_skip: str = "0"                # version 2: weight of x_t in the output, 0 or edm; y: adds y (ours)
    sigma_data: float = 0.1          # rms of a clean bin, for the edm coefficients
    l1_weight: float = 0.001         # data_prediction: weight of the waveform term
    pesq_weight: float = 0.0         # data_prediction: weight of the PESQ disturbance; published for the bridge: 5e-4
    crp: str = "none"                # second stage: correct the last or a random one of the N steps of sampler em
    sampler: str = "pc"              # pc, em, ode, bridge_ode or bridge_sde
    N: int = 30                      # reverse steps
    snr: float = 0.5                 # r, step length of the corrector
    corrector_steps: int = 1         # Langevin steps at each time; 0: predictor alone
    start: float = 1.0               # reverse starting point; for BBED at most 0.999
    version: int = 1                 # of NCSN++: 1 gives -score, divided by t; 2 leaves scaling to the constants above
    fourier_scale: float = 16.0      # std of the random frequencies of log t
    stft_window: str = "hann"        # hann or sqrthann
    transform: str = "exponent"      # exponent, log or none


# For short training: the network predicts x0 as a correction of y, with losses on the waveform; half the frames halve
# the cost.
LIGHT = dict(sde="bbed", objective="data_prediction", c_skip="y", l1_weight=0.1, pesq_weight=5e-4, sampler="em",
             start=0.5, version=2, hop_length=256, num_frames=128, normalize="robust")
PRESETS = {
    "paper": {},
    "bbed": dict(sde="bbed", start=0.999),
    "edm": dict(version=2, objective="precond_denoiser", weighting="edm", c_in="edm", c_out="edm", c_skip="edm",
                pad_mode="reflect"),                     # the teacher of ROSE-CD
    "bridge": dict(sde="sbve", c=0.4, objective="data_prediction", pesq_weight=5e-4, sampler="bridge_ode", N=50,
                   version=2, pad_mode="reflect"),
    "small": dict(N=15, **LIGHT, **nets.SMALL),
    "tiny": dict(N=5, **LIGHT, **nets.TINY),
}


# ------------------------------------------------------------------------------------------------ processes

def at(t, x):
    """The time t for every example of x: (B,). A tensor (B,) stays as it is."""
    return t if isinstance(t, torch.Tensor) else torch.full((len(x),), t, device=x.device, dtype=x.real.dtype)


@dataclass(frozen=True)
class OUVE:
    """Ornstein-Uhlenbeck process with exploding variance, the process of SGMSE+."""
    theta: float = 1.5               # stiffness
    sigma_min: float = 0.05          # per complex bin
    sigma_max: float = 0.5
    T: float = 1.0                   # latest time
    t_eps: float = 0.03              # earliest time that is trained

    def drift(self, x, y, t):
        """f(x, y, t): x, y complex (B, 1, F, T), t (B,)."""
        return self.theta * (y - x)

    def diffusion(self, t):
        """g(t), (B,) -> (B,)."""
        ratio = self.sigma_max / self.sigma_min
        return self.sigma_min * ratio ** t * math.sqrt(2 * math.log(ratio))

    def mean(self, x0, y, t):
        """Mean of x_t, sliding from x0 at t = 0 towards y."""
        w = per_bin(torch.exp(-self.theta * t))
        return w * x0 + (1 - w) * y

    def std(self, t):
        """Standard deviation of x_t per complex bin, (B,) -> (B,)."""
        k = math.log(self.sigma_max / self.sigma_min)
        growth = torch.exp(2 * k * t) - torch.exp(-2 * self.theta * t)
        return self.sigma_min * (k / (self.theta + k) * growth).sqrt()

    def prior(self, y, t=None):
        """A start for the reverse process at time t (default T): y plus the noise of that time."""
        return y + per_bin(self.std(at(self.T if t is None else t, y))) * torch.randn_like(y)


@dataclass(frozen=True)
class BBED:
    """Brownian bridge with exponential diffusion coefficient, of the BBED paper. Its mean reaches y at t = 1."""
    k: float = 2.6
    c: float = 0.51                  # the published run; the released class has 0.52
    T: float = 0.999                 # at 1 the drift divides by zero
    t_eps: float = 0.03

    def drift(self, x, y, t):
        return (y - x) / per_bin(1 - t)

    def diffusion(self, t):
        return math.sqrt(self.c) * self.k ** t

    def mean(self, x0, y, t):
        return per_bin(1 - t) * x0 + per_bin(t) * y

    def std(self, t):
        dtype, t, log_k = t.dtype, t.double(), math.log(self.k)
        # The integral of k^(2s) / (1 - s)^2 cancels to its last digits near t = 0: float64.
        ei = expi(2 * (t - 1) * log_k) - expi(torch.full_like(t, -2 * log_k))
        variance = (1 - t) * self.c * (self.k ** (2 * t) - 1 + t + 2 * self.k ** 2 * log_k * (1 - t) * ei)
        return variance.sqrt().to(dtype)

    prior = OUVE.prior


def expi(u):
    """Exponential integral Ei(u) of u < 0 by its power series; 1e-13 for -8 < u. (B,) float64 -> (B,)."""
    total, term = torch.zeros_like(u), torch.ones_like(u)
    for n in range(1, 60):
        term = term * u / n
        total = total + term / n
    return 0.5772156649015329 + u.abs().log() + total    # Euler's constant


@dataclass(frozen=True)
class SBVE:
    """Schroedinger bridge with exploding variance: from y to x0, both ends without noise. Jukic et al."""
    k: float = 2.6
    c: float = 0.4
    T: float = 1.0
    t_eps: float = 0.03
    eps: float = 1e-8                # keeps the released code's divisions finite

    def drift(self, x, y, t):
        return torch.zeros_like(x)

    def diffusion(self, t):
        return math.sqrt(self.c) * self.k ** t

    def sigma(self, t):
        """(std of the noise collected from 0 to t, std of that from t to T): sigma_t and sigma-bar_t, (B,)."""
        variance = lambda s: self.c * (self.k ** (2 * s) - 1) / (2 * math.log(self.k))
        return variance(t).sqrt(), (variance(self.T) - variance(t) + self.eps).sqrt()

    def mean(self, x0, y, t):
        (s, s_bar), total = self.sigma(t), self.sigma(torch.full_like(t, self.T))[0] ** 2 + self.eps
        return per_bin(s_bar ** 2 / total) * x0 + per_bin(s ** 2 / total) * y

    def std(self, t):
        (s, s_bar), s_T = self.sigma(t), self.sigma(torch.full_like(t, self.T))[0]
        return s * s_bar / (s_T + self.eps)

    def prior(self, y, t=None):
        return y


# ------------------------------------------------------------------------------------------------ losses

pesq_loss = metrics.PESQLoss()


def diffuse(x0, y, t, z, sde):
    """x_t of the forward process: mean(x0, y, t) + std(t) z. z complex with E|z|^2 = 1."""
    return sde.mean(x0, y, t) + per_bin(sde.std(t)) * z


def sum_of_squares(error):
    """Half the squared modulus, summed over an example's bins, averaged over the batch."""
    return 0.5 * error.abs().square().sum((1, 2, 3)).mean()


def dsm_loss(score, x0, y, t, z, sde):
    """Denoising score matching, the loss of SGMSE+ and BBED: E |std s(x_t, y, t) + z|^2 / 2.

    score: function (x_t, y, t) -> complex (B, 1, F, T); x0, y, z likewise; t (B,).
    """
    return sum_of_squares(per_bin(sde.std(t)) * score(diffuse(x0, y, t, z, sde), y, t) + z)


def denoising_loss(denoiser, x0, y, t, z, sde, weight=lambda std: torch.ones_like(std)):
    """E w(std) |D(x_t, y, t) - mean(x0, y, t)|^2 / 2. The target is the mean of x_t, not x0."""
    error = denoiser(diffuse(x0, y, t, z, sde), y, t) - sde.mean(x0, y, t)
    return sum_of_squares(per_bin(weight(sde.std(t)).sqrt()) * error)


def data_prediction_loss(predict, x0, y, t, z, sde, spectrogram, l1_weight=0.001, pesq_weight=0.0):
    """E |x_hat - x0|^2 / 2 per bin, l1_weight |difference of the waveforms| / 2 per sample, pesq_weight PESQLoss."""
    x_hat = predict(diffuse(x0, y, t, z, sde), y, t)
    length = spectrogram.samples(x0.shape[-1])
    enhanced, clean = (spectrogram.inverse(x[:, 0], length) for x in (x_hat, x0))
    loss = sum_of_squares(x_hat - x0) / x0[0].numel() + l1_weight * 0.5 * (enhanced - clean).abs().mean()
    return loss + pesq_weight * pesq_loss(clean, enhanced).mean() if pesq_weight else loss


def crp_loss(score, x0, y, sde, N=5, start=0.5, trained="last"):
    """Correcting the reverse process: run the sampler that will be used, teach its last call to end at x0.

    score: function (x_t, y, t) -> complex (B, 1, F, T), a network that stage 1 has trained; x0, y likewise. Gradients
    reach it through one call, the `last` (published) or a `random` one of the N; the steps before it are plain
    sampling. Half the squared error, summed over an example's bins, without weights.
    """
    times, steps = reverse_grid(sde, N, start)           # N even points from start to t_eps, the last step to 0
    last = N - 1 if trained == "last" else int(torch.randint(N, ()))
    with torch.no_grad():
        x = sde.prior(y, times[0])                       # y + std(start) z, what the sampler starts from
        for t, dt in zip(times[:last], steps[:last]):
            x_mean, std = reverse_step(score, x, y, t, dt, sde)
            x = x_mean + std * torch.randn_like(x)
    x_hat, _ = reverse_step(score, x, y, times[last], steps[last], sde)
    return sum_of_squares(x_hat - sde.mean(x0, y, at(times[last] - steps[last], y)))    # mean at 0: x0


def edm_weight(std, sigma_data=0.1):
    """The weight under which every noise level has the same loss at the start, Karras et al. 2022, Table 1."""
    return (std ** 2 + sigma_data ** 2) / (std * sigma_data) ** 2


# ------------------------------------------------------------------------------------------------ samplers

def reverse_grid(sde, N, start=None):
    """Times of N calls and the steps after them: N even points from `start` to t_eps, the last step going to 0.

    Two float64 lists. One call: the single time `start`, the single step to 0.
    """
    start = min(sde.T, sde.T if start is None else start)
    t = torch.linspace(start, sde.t_eps, N, dtype=torch.float64).tolist()
    return t, [a - b for a, b in zip(t, t[1:] + [0.0])]


def reverse_step(score, x, y, t, dt, sde):
    """One Euler step of the reverse SDE over dt: (mean of the new state, std of the noise to add).

    t, dt: numbers, or (B,) and (B, 1, 1, 1) where the examples of a batch are at different times.
    """
    t = at(t, x)
    g = per_bin(sde.diffusion(t))
    return x - (sde.drift(x, y, t) - g ** 2 * score(x, y, t)) * dt, g * dt ** 0.5


def euler_maruyama(score, y, sde, N=30, start=None):
    """Reverse SDE by N Euler-Maruyama steps, the last without noise: the sampler of CRP."""
    times, steps = reverse_grid(sde, N, start)
    x = sde.prior(y, times[0])
    for t, dt in zip(times[:-1], steps[:-1]):
        x_mean, std = reverse_step(score, x, y, t, dt, sde)
        x = x_mean + std * torch.randn_like(x)
    return reverse_step(score, x, y, times[-1], steps[-1], sde)[0]


def predictor_corrector(score, y, sde, N=30, snr=0.5, corrector_steps=1, corrector="ald", start=None, denoise=True):
    """N times: Langevin steps at t_i, then a step of the reverse SDE to t_(i+1): the sampler of SGMSE+.

    corrector: "ald", annealed Langevin dynamics with the step (snr std)^2, or "langevin", whose step comes from the
    norms of noise and score. Returns the mean of the last step, or its noisy state unless `denoise`.
    """
    times, steps = reverse_grid(sde, N, start)
    x = sde.prior(y, times[0])
    for t, dt in zip(times, steps):
        for _ in range(corrector_steps):
            s, z = score(x, y, at(t, x)), torch.randn_like(x)
            if corrector == "ald":
                step = per_bin(2 * (snr * sde.std(at(t, x))) ** 2)
            else:
                norm = lambda a: a.flatten(1).norm(dim=1).mean()
                step = 2 * (snr * norm(z) / norm(s)) ** 2
            x = x + step * s + (2 * step).sqrt() * z
        x_mean, std = reverse_step(score, x, y, t, dt, sde)
        x = x_mean + std * torch.randn_like(x)
    return x_mean if denoise else x


def flow_velocity(score, x, y, t, sde):
    """dx/dt = f - g^2 s / 2 of the probability-flow ODE, Song et al."""
    t = at(t, x)
    return sde.drift(x, y, t) - 0.5 * per_bin(sde.diffusion(t)) ** 2 * score(x, y, t)


def probability_flow(score, y, sde, N=30, method="heun", start=None, tolerance=1e-5, denoise=True):
    """The ODE with the marginals of the SDE, from the prior at `start` to t_eps, then one step to 0 without noise.

    method: "euler" or "heun" with N - 1 equal steps; "rk45", adaptive to the `tolerance`, ignores N.
    `denoise=False` stops at t_eps.
    """
    times, steps = reverse_grid(sde, N, start)
    x = sde.prior(y, times[0])
    if method == "rk45":
        def velocity(t, flat):
            state = torch.from_numpy(flat).reshape(y.shape).to(y)
            return flow_velocity(score, state, y, t, sde).cpu().numpy().ravel()
        solution = scipy.integrate.solve_ivp(velocity, (times[0], sde.t_eps), x.cpu().numpy().ravel(),
                                             rtol=tolerance, atol=tolerance)
        x = torch.from_numpy(solution.y[:, -1]).reshape(y.shape).to(y)
    else:
        for t, dt in zip(times[:-1], steps[:-1]):
            v = flow_velocity(score, x, y, t, sde)
            if method == "heun":
                v = (v + flow_velocity(score, x - v * dt, y, t - dt, sde)) / 2
            x = x - v * dt
    return reverse_step(score, x, y, sde.t_eps, sde.t_eps, sde)[0] if denoise else x


def bridge_times(N, start=1.0, end=1e-4):
    return torch.linspace(start, end, N + 1, dtype=torch.float64)


def bridge_ode(predict, y, sde, N=50):
    """Schroedinger bridge by a first-order exponential integrator of its ODE, Jukic et al.

    predict: function (x_p, y, t_q) -> x_hat. As released, it is told the time q that the step goes to.
    """
    times = bridge_times(N)
    s, s_bar = sde.sigma(times)                                            # (N + 1,), float64: they cancel
    s_T = sde.sigma(torch.tensor([sde.T], dtype=torch.float64))[0].item()
    x, total = y, s_T ** 2 + sde.eps
    for p, q in zip(range(N), range(1, N + 1)):
        x_hat = predict(x, y, at(times[q].item(), x))
        w_x = s[q] * s_bar[q] / (s[p] * s_bar[p] + sde.eps)
        w_hat = (s_bar[q] ** 2 - s_bar[p] * s[q] * s_bar[q] / (s[p] + sde.eps)) / total
        w_y = (s[q] ** 2 - s[p] * s[q] * s_bar[q] / (s_bar[p] + sde.eps)) / total
        x = (w_x.item() * x.to(torch.complex128) + w_hat.item() * x_hat + w_y.item() * y).to(y.dtype)
    return x


def bridge_sde(predict, y, sde, N=50):
    """Schroedinger bridge by a first-order exponential integrator of its SDE, Jukic et al."""
    times = bridge_times(N)
    s, x = sde.sigma(times)[0], y
    for p, q in zip(range(N), range(1, N + 1)):
        x_hat = predict(x, y, at(times[q].item(), x))
        rho = (s[q] ** 2 / (s[p] ** 2 + sde.eps)).item()
        x = rho * x + (1 - rho) * x_hat
        if q < N:
            x = x + s[q].item() * math.sqrt(1 - rho) * torch.randn_like(x)
    return x


# ------------------------------------------------------------------------------------------------ the model

class ScoreSDE(nn.Module):
    """A score network with its process and sampler. `calls` counts network evaluations."""

    Config, presets = Config, PRESETS
    inference = ("sampler", "N", "snr", "corrector_steps", "start")        # fields that may change after training

    def __init__(self, config=Config()):
        super().__init__()
        self.config = config
        constants = {"ouve": (OUVE, ("theta", "sigma_min", "sigma_max")), "bbed": (BBED, ("k", "c")),
                     "sbve": (SBVE, ("k", "c"))}
        process, names = constants[config.sde]
        self.sde = process(**{name: getattr(config, name) for name in names}, t_eps=config.t_eps)
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length, config.exponent, config.factor,
                                       config.stft_window, config.transform)
        self.net = nets.NCSNpp(2, 1, config.width, config.channel_mults, config.num_res_blocks,
                               config.attention_resolutions, version=config.version, fourier_scale=config.fourier_scale,
                               image_size=config.n_fft // 2 + 1)
        self.num_samples = self.spectrogram.samples(config.num_frames)     # of a training crop
        self.calls = 0

    def prepare(self, fresh):
        """Before training. Raises ValueError for what cannot be trained."""
        if self.config.crp not in ("none", "last", "random"):
            raise ValueError(f"--crp is none, last or random; got {self.config.crp}")
        if self.config.crp != "none" and (self.config.sampler != "em" or self.config.sde == "sbve"):
            raise ValueError("--crp trains the --N steps of --sampler em from --start, for --sde ouve or bbed")
        if self.config.crp != "none" and fresh:
            raise ValueError("--crp is a second stage: give the weights of the first with --init")

    def forward(self, xt, y, t):
        """What the network stands for: the score, the denoised mean or x0, as `objective` says. (B, 1, F, T)."""
        config, std, sigma_data = self.config, per_bin(self.sde.std(t)), self.config.sigma_data
        self.calls += 1
        if config.version == 1:
            return -self.net(torch.cat([xt, y], dim=1), t)
        edm = (std ** 2 + sigma_data ** 2).sqrt()                          # rms of x_t
        c_in = {"1": 1, "edm": 1 / edm}[config.c_in]
        c_out = {"1": 1, "sigma": std, "1/sigma": 1 / std, "edm": std * sigma_data / edm}[config.c_out]
        skip = {"0": 0, "edm": sigma_data ** 2 / edm ** 2 * xt, "y": y}[config.c_skip]
        scaling = {"none": 1, "1/sigma": 1 / std, "1/t": 1 / per_bin(t)}[config.network_scaling]
        out = scaling * self.net(torch.cat([c_in * xt, c_in * y], dim=1), t)
        return out if config.objective == "denoiser" else skip + c_out * out

    def score(self, xt, y, t):
        """Gradient of log p_t(x_t | y), whatever the network was trained to predict."""
        out = self(xt, y, t)
        if self.config.objective == "score_matching":
            return out
        mean = self.sde.mean(out, y, t) if self.config.objective == "data_prediction" else out
        return (mean - xt) / per_bin(self.sde.std(t)) ** 2

    def loss(self, batch):
        """batch: clean and noisy waves (B, L), divided by the noisy peak. Returns (loss, what to log)."""
        with torch.autocast(batch[0].device.type, enabled=False):
            x0, y = (self.spectrogram(wave)[:, None] for wave in batch)
        t = self.sde.t_eps + (self.sde.T - self.sde.t_eps) * torch.rand(len(x0), device=x0.device)
        z = torch.randn_like(x0)
        if self.config.crp != "none":
            loss = crp_loss(self.score, x0, y, self.sde, self.config.N, self.config.start, self.config.crp)
        elif self.config.objective == "score_matching":
            loss = dsm_loss(self, x0, y, t, z, self.sde)
        elif self.config.objective == "data_prediction":
            loss = data_prediction_loss(self, x0, y, t, z, self.sde, self.spectrogram, self.config.l1_weight,
                                        self.config.pesq_weight)
        else:
            sigma_data = self.config.sigma_data
            weight = {"1": torch.ones_like, "sigma^2": torch.square, "edm": lambda std: edm_weight(std, sigma_data)}
            loss = denoising_loss(self, x0, y, t, z, self.sde, weight[self.config.weighting])
        return loss, {}

    @torch.no_grad()
    def sample(self, y):
        """Noisy spectrogram -> clean one, complex (B, 1, F, T)."""
        config = self.config
        if config.sampler == "pc":
            return predictor_corrector(self.score, y, self.sde, config.N, config.snr, config.corrector_steps,
                                       start=config.start)
        if config.sampler == "em":
            return euler_maruyama(self.score, y, self.sde, config.N, config.start)
        if config.sampler == "ode":
            return probability_flow(self.score, y, self.sde, config.N, start=config.start)
        return {"bridge_ode": bridge_ode, "bridge_sde": bridge_sde}[config.sampler](self, y, self.sde, config.N)

    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see data.enhance_levelled."""
        def enhance(wave):
            return in_spectrogram(self.sample, wave, self.spectrogram, self.net.multiple, self.config.pad_mode)
        return enhance_levelled(enhance, wave, self.config.normalize, peak)

    @classmethod
    def from_official(cls, checkpoint, **changes):
        """The model of a released checkpoint of sgmse, sgmse-bbed or sgmse_crp, with its averaged weights.

        checkpoint: the file's content as train.read_pickle gives it. changes: config fields to override. Raises
        train.CheckpointError for a model that this file does not cover.
        """
        missing = [key for key in ("hyper_parameters", "ema") if key not in checkpoint]
        if missing:
            raise train.CheckpointError(f"the checkpoint has no '{missing[0]}': not one of sgmse's training runs")
        model = cls(official_config(checkpoint["hyper_parameters"], **changes))
        names = [official for official, _ in model.net.official_names()]
        average = checkpoint["ema"]["shadow_params"]                       # a list, in the order of the names
        if len(average) != len(names):
            raise train.CheckpointError(f"the checkpoint averages {len(average)} tensors; its hyper-parameters "
                                        f"describe a network of {len(names)}")
        model.net = nets.NCSNpp.from_official(dict(zip(names, average)), **model.net.config)
        return model


def official_config(theirs, **changes):
    """Config of a released checkpoint's hyper-parameters: a flat dictionary whose keys changed over the years."""
    take = lambda names: {ours: theirs[name] for ours, name in names.items() if theirs.get(name) is not None}
    version = {"ncsnpp": 1, "ncsnpp_v2": 2}.get(theirs.get("backbone"))
    if version is None or theirs.get("sde") not in ("ouve", "bbed", "bbve", "sbve"):
        raise train.CheckpointError(f"backbone {theirs.get('backbone')} with sde {theirs.get('sde')} is not covered; "
                                    "ncsnpp and ncsnpp_v2 with ouve, bbed, bbve and sbve are")
    if theirs.get("centered") is False or theirs.get("normalize", "noisy") != "noisy":
        raise train.CheckpointError("checkpoints trained with shifted inputs or without division by the noisy peak "
                                    "are not covered")
    config = take(dict(t_eps="t_eps", n_fft="n_fft", hop_length="hop_length", num_frames="num_frames",
                       stft_window="window", exponent="spec_abs_exponent", factor="spec_factor",
                       transform="transform_type", width="nf", channel_mults="ch_mult",
                       num_res_blocks="num_res_blocks", weighting="loss_weighting",
                       attention_resolutions="attn_resolutions", fourier_scale="fourier_scale", l1_weight="l1_weight",
                       pesq_weight="pesq_weight"))
    config |= dict(version=version, sde=theirs["sde"], pad_mode="reflect" if version == 2 else "constant")
    if theirs["sde"] == "ouve":
        config |= take(dict(theta="theta", sigma_min="sigma_min", sigma_max="sigma_max", N="sde_n")) | take(dict(N="N"))
    elif theirs["sde"] == "sbve":
        config |= take(dict(k="k", c="c", N="N")) | dict(sampler=f"bridge_{theirs.get('sampler_type', 'ode')}")
    elif theirs["sde"] == "bbed":
        config |= take(dict(k="k", c="theta", N="sde_n"))
    else:                                                                  # an older name of BBED
        low, high = theirs["sigma_min"], theirs["sigma_max"]
        config |= take(dict(N="sde_n")) | dict(sde="bbed", k=high / low, c=theirs["theta"] * low ** 2)
    if version == 2:
        config |= take(dict(objective="loss_type", network_scaling="network_scaling", c_in="c_in", c_out="c_out",
                            c_skip="c_skip", sigma_data="sigma_data"))
    config = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in config.items()}
    return Config(**config | changes)


if __name__ == "__main__":
    train.main(ScoreSDE)
