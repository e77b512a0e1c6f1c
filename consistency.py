"""Consistency distillation: one network call that ends where a score model's reverse process would.

Papers: Xu, Yan, Kleijn, "Robust One-step Speech Enhancement via Consistency Distillation" (ROSE-CD, WASPAA 2025, arXiv
2507.05688); Song, Dhariwal, Chen, Sutskever, "Consistency Models" (ICML 2023, arXiv 2303.01469).

The idea: a trained score model, the teacher, moves a state x_t one step down its process. The student f is trained to
give the same clean estimate before and after that move, at every time; at the smallest time f is nearly the identity,
so the estimates are tied to the clean end. ROSE-CD keeps the noise of the teacher's move ("randomised learning
trajectory") and adds two losses on the waveform. Then f(x_T, y, T) enhances in one call.

    consistency function   f = c_skip(t) x_t + c_out(t) F(x_t, y, t)          boundary, ConsistencyModel.forward
    times                  t_i, N even points from T to t_eps                 time_grid
    teacher's moves        x_(t_i) -> x_(t_(i+1))                             pc_move, euler_move, heun_move, mix_move
    training, no teacher   x_(t_(i+1)) from x0, shared or fresh noise         renoised
    consistency loss       E w(t) |f(x_(t_i)) - f_ema(x_(t_(i+1)))|^2         consistency_loss; time_weight
    waveform losses        0.1 d_s + 0.0309 d_a and -SI-SDR                   metrics.PESQLoss, metrics.si_sdr_loss
    sampling               f(y + std z, y, T), then optional refinement       multistep

Its second half is another way to learn from a teacher: Kim, Choi, "DISPatch" (ICASSP 2026, arXiv 2509.15922) distils
only the patches of the spectrogram where the teacher is closer to clean than the student.

    knowledge gap score    E_student - E_teacher per patch, against clean     knowledge_gap_score, select
    response distillation  mean (|S| - |T|)^2 over the selected patches       selective_patch_loss
    frequency-dependent    cosine below the teacher's split, both above       selective_frequency_loss; band_split
    training               -SI-SDR + weight x distillation                    Student

Where we differ. The released code holds two methods: distillation as in the paper, and training without a teacher
(`--moves renoise`), which gave its released weights. The PF-ODE moves take the step of the grid, not 1/N. The teacher
and the start of the student are averaged weights. Refinement re-noises with the process' own mean (`multistep`).

    python consistency.py train --data DIR --preset small --teacher sgmse_stage1
    python consistency.py train --data DIR --preset tiny --distil selective --teacher sgmse
"""

import sys
from dataclasses import dataclass

import torch
import torch.nn as nn

import metrics
import nets
import sgmse
import train
from data import Spectrogram, SpectrogramConfig, enhance_levelled, in_spectrogram, per_bin


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is ROSE-CD for VoiceBank-DEMAND."""
    teacher: str = ""                # checkpoint of a score model with the same process and network; gives the start
    moves: str = "pc"                # to the next time: pc, euler, heun, mix by the teacher; renoise, renoise_shared
    move_noise: bool = True          # keep the noise of the teacher's move: the randomised learning trajectory
    times: int = 30                  # of the training grid, from T to t_eps
    snr: float = 0.5                 # r, step length of the corrector in the move pc
    weight: str = "1"                # of the consistency loss over time: 1, snr, snr+1, truncated-snr or karras
    consistency_weight: float = 1.0  # of the consistency loss
    pesq_weight: float = 5e-4        # of the PESQ disturbance; the authors' second model: 1e-3
    si_sdr_weight: float = 5e-5      # of the negative SI-SDR, per dB
    form: str = "edm"                # f: edm, c_skip x_t + c_out F; data, c_skip x_t + (1 - c_skip) (y + F) (ours)
    strict: bool = False             # boundary f(x, y, t_eps) = x exactly; published: nearly
    c_in: str = "1"                  # input scale: 1 (published) or edm
    sigma_data: float = 0.1          # rms of a clean bin
    N: int = 1                       # network calls at inference
    sde: str = "ouve"                # ouve or bbed
    theta: float = 1.5               # OUVE: stiffness
    sigma_min: float = 0.05          # OUVE: noise scale at t = 0
    sigma_max: float = 0.5           # OUVE: at t = 1
    k: float = 2.6                   # BBED: base of the diffusion coefficient
    c: float = 0.51                  # BBED: its scale
    t_eps: float = 0.03              # smallest process time
    fourier_scale: float = 16.0      # std of the random frequencies of log t
    pad_mode: str = "reflect"        # frames added up to what the network can halve: constant (zeros) or reflect


# For teachers that predict x0 as y + F, as the presets small and tiny of sgmse.py do.
LIGHT = dict(form="data", strict=True, sde="bbed", hop_length=256, num_frames=128, pad_mode="constant",
             normalize="robust")
PRESETS = {
    "paper": {},
    "small": dict(**LIGHT, **nets.SMALL),
    "tiny": dict(**LIGHT, **nets.TINY),
}


# ------------------------------------------------------------------------------------------- the consistency function

def boundary(std, sigma_data=0.1, std_eps=0.0):
    """(c_skip, c_out) of f = c_skip x_t + c_out F. std: of the noise in x_t, any shape.

    std_eps = 0, as published, takes EDM's coefficients: f is the identity where std = 0, which no time reaches. With
    the std of the smallest time it is the identity there (the consistency models' own choice, in std instead of t).
    """
    c_skip = sigma_data ** 2 / ((std - std_eps) ** 2 + sigma_data ** 2)
    return c_skip, (std - std_eps) * sigma_data / (std ** 2 + sigma_data ** 2).sqrt()


def noise_level(sde, t):
    """What the boundary takes for the std: that of x_t for OUVE; for BBED, whose std falls again towards y, that of
    the noise which the process has added by t. (B,) -> (B,), growing."""
    return sgmse.SBVE(sde.k, sde.c).sigma(t)[0] if isinstance(sde, sgmse.BBED) else sde.std(t)


def time_grid(sde, N=30):
    """t_0 = T down to t_(N-1) = t_eps, evenly: (N,)."""
    return torch.linspace(sde.T, sde.t_eps, N)


# ------------------------------------------------------------------------------------------- moves to the next time
# x, y complex (B, 1, F, T); t, t_next (B,), t_next < t. score: function (x, y, t) -> complex (B, 1, F, T).

def pc_move(score, x, y, t, t_next, sde, noise=True, snr=0.5):
    """A Langevin step at t, then a step of the reverse SDE: the teacher of the paper. Two calls.

    `noise` is that of the second step; the Langevin step has its noise in any case, as released.
    """
    step = per_bin(2 * (snr * sde.std(t)) ** 2)
    x = x + step * score(x, y, t) + (2 * step).sqrt() * torch.randn_like(x)
    mean, std = sgmse.reverse_step(score, x, y, t, per_bin(t - t_next), sde)
    return mean + std * torch.randn_like(x) if noise else mean


def euler_move(score, x, y, t, t_next, sde, noise=True):
    """An Euler step of the probability-flow ODE; `noise` adds what a step of the SDE would. One call."""
    dt = per_bin(t - t_next)
    x_next = x - sgmse.flow_velocity(score, x, y, t, sde) * dt
    return x_next + per_bin(sde.diffusion(t)) * dt.sqrt() * torch.randn_like(x) if noise else x_next


def heun_move(score, x, y, t, t_next, sde, noise=True):
    """A Heun step of the ODE; `noise` as in euler_move. Two calls."""
    dt = per_bin(t - t_next)
    v = sgmse.flow_velocity(score, x, y, t, sde)
    v = (v + sgmse.flow_velocity(score, x - v * dt, y, t_next, sde)) / 2
    x_next = x - v * dt
    return x_next + per_bin(sde.diffusion(t)) * dt.sqrt() * torch.randn_like(x) if noise else x_next


def mix_move(score, x, y, t, t_next, sde, noise=True):
    """Half way between a noisy step of the reverse SDE and an Euler step of the ODE. One call; always with noise."""
    s, dt = score(x, y, t), per_bin(t - t_next)
    mean, std = sgmse.reverse_step(lambda *_: s, x, y, t, dt, sde)
    ode = x - sgmse.flow_velocity(lambda *_: s, x, y, t, sde) * dt
    return (mean + std * torch.randn_like(x) + ode) / 2


def renoised(x0, y, t_next, sde, z=None):
    """Consistency training, no teacher: the state at t_next from x0 itself. z: that of x_t (Song et al.); None: a
    fresh one (the released ROSE-CD)."""
    return sgmse.diffuse(x0, y, t_next, torch.randn_like(x0) if z is None else z, sde)


# ------------------------------------------------------------------------------------------------ losses

def consistency_loss(f, f_target, move, x0, y, t, t_next, z, sde, weight=torch.ones_like):
    """E w(t) |f(x_t, y, t) - f_target(x_next, y, t_next)|^2, mean over bins: (loss, f(x_t, y, t)).

    f, f_target: functions (x, y, t) -> complex (B, 1, F, T). move: function (x_t, y, t, t_next) -> x_next. x0, y, z
    complex (B, 1, F, T); t, t_next (B,). No gradient reaches f_target or the move.
    """
    xt = sgmse.diffuse(x0, y, t, z, sde)
    with torch.no_grad():
        target = f_target(move(xt, y, t, t_next), y, t_next)
    estimate = f(xt, y, t)
    return (weight(t) * (estimate - target).abs().square().mean((1, 2, 3))).mean(), estimate


def time_weight(name, sigma_data=0.1):
    """The weights of Song et al. as functions of the process time, as released."""
    return {"1": torch.ones_like, "snr": lambda t: t ** -2, "snr+1": lambda t: t ** -2 + 1,
            "truncated-snr": lambda t: (t ** -2).clamp(min=1), "karras": lambda t: t ** -2 + sigma_data ** -2}[name]


# ------------------------------------------------------------------------------------------------ sampling

def multistep(f, y, sde, N=1, released=False):
    """N calls: f at T, then N - 1 times noise of an earlier time and f again.

    The state for f at t is the process' own, mean(x_hat, y, t) + std z; `released` leaves out that the mean moves
    towards y.
    """
    t, *later = torch.linspace(sde.T, sde.t_eps, N).tolist()
    x_hat = f(sde.prior(y, t), y, sgmse.at(t, y))
    for t in (sgmse.at(t, y) for t in later):
        z = torch.randn_like(y)
        x_hat = f(x_hat + per_bin(sde.std(t)) * z if released else sgmse.diffuse(x_hat, y, t, z, sde), y, t)
    return x_hat


# ------------------------------------------------------------------------------------------------ selective patches
# Spectra of waves: student S, teacher T and clean Y, complex (B, F, frames). A patch is `size` bins of one frame.

def patches(x, size):
    """(B, F, frames) -> (B, bands, size, frames), bands = ceil(F / size); zeros above the top bin fill the last."""
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size))


def patch_mean(error, size, inside=None):
    """Mean of an error per bin (B, F, frames) over each patch: (B, bands, frames).

    inside: the bins that count, bool (B, F, frames); None: all, the zeros that fill the last band too, as released.
    """
    if inside is None:
        return patches(error, size).mean(2)
    return patches(error * inside, size).sum(2) / patches(inside, size).sum(2).clamp(min=1)


def magnitude_error(a, b):
    """(|a| - |b|)^2 of each bin."""
    return (a.abs() - b.abs()).square()


def cosine_distance(a, b, size, eps=1e-8):
    """1 - Re <a, b> / (|a| |b|) of each patch of complex spectra: (B, bands, frames) in [0, 2]. Sensitive to phase."""
    a, b = (torch.view_as_real(patches(x, size)) for x in (a, b))          # (B, bands, size, frames, 2)
    norm = lambda x: (x.square().sum((2, 4)) + eps).sqrt()
    return 1 - (a * b).sum((2, 4)) / (norm(a) * norm(b) + eps)


def knowledge_gap_score(student_error, teacher_error):
    """Errors against clean, per patch: positive where the teacher is closer."""
    return student_error - teacher_error


def select(score, keep=0.8, rule="top_k", candidates=None):
    """The patches to distil, bool like `score` (B, bands, frames); chosen within each utterance, without gradient.

    top_k, as released: the share `keep` with the highest score and all that tie with the last, whatever their sign.
    positive: where the teacher is better. both: the first of the second. random: as many as top_k, drawn blindly,
    the control. candidates: bool, those that take part.
    """
    score = score.detach()
    candidates = torch.ones_like(score, dtype=torch.bool) if candidates is None else candidates
    if rule == "positive":
        return candidates & (score > 0)
    ranked = torch.rand_like(score) if rule == "random" else score
    mask = torch.zeros_like(candidates)
    for i in range(len(score)):
        among = ranked[i][candidates[i]]
        if len(among):
            threshold = among.topk(max(int(keep * len(among)), 1)).values[-1]
            mask[i] = candidates[i] & (ranked[i] >= threshold)
    return mask & (score > 0) if rule == "both" else mask


def selected_mean(error, mask, denominator=None):
    """Mean of a patch error over the selected patches of each utterance, averaged over the batch; 0 where none is."""
    if denominator is not None:
        return (error * mask).sum() / denominator
    return ((error * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).mean()


def selective_patch_loss(S, T, Y, size=20, keep=0.8, rule="top_k", exact=True):
    """Response distillation, (|S| - |T|)^2, on the patches that `select` picks.

    exact: as released, the sum is divided by the nominal number of patches, keep * all of them, and the zeros beyond
    the top bin count; otherwise by the number kept in each utterance, over real bins.
    """
    T = T.detach()
    inside = None if exact else torch.ones_like(S, dtype=torch.bool)
    error = lambda a, b: patch_mean(magnitude_error(a, b), size, inside)
    gap = knowledge_gap_score(error(S, Y), error(T, Y))
    return selected_mean(error(S, T), select(gap, keep, rule), keep * gap.numel() if exact else None)


def band_split(T):
    """The bin where the teacher's running maximum over frequency rises most, relatively, per frame: (B, frames)."""
    highest = T.abs().cummax(1).values
    return ((highest[:, 1:] - highest[:, :-1]) / (highest[:, :-1] + 1e-8)).argmax(1)


def selective_frequency_loss(S, T, Y, low=10, high=40, keep=0.8, beta=0.5, rule="top_k", exact=True):
    """Frequency-dependent distillation (DFKD) on selected patches, of `low` bins below the split and `high` above.

    Low band: the complex cosine distance. High band: beta of it and (1 - beta) of the magnitude error. low = high is
    DISPatch without its multi-scale patches. exact: as released, the split bin is in both bands, counts are pooled
    over the batch, and the zeros of the other band count in the means.
    """
    T = T.detach()
    bins, split = torch.arange(S.shape[1], device=S.device)[None, :, None], band_split(T)[:, None]
    total = 0
    for size, weight, inside in ((low, 1.0, bins <= split), (high, beta, bins >= split if exact else bins > split)):
        s, t, y = (x * inside for x in (S, T, Y))

        def error(a, b):
            d = cosine_distance(a, b, size)
            return d if weight == 1 else weight * d + (1 - weight) * patch_mean(magnitude_error(a, b), size,
                                                                                None if exact else inside)
        gap = knowledge_gap_score(error(s, y), error(t, y))
        mask = select(gap, keep, rule, candidates=patches(inside, size).any(2))
        total = total + selected_mean(error(s, t), mask, mask.sum().clamp(min=1) if exact else None)
    return total


# ------------------------------------------------------------------------------------------------ the model

class ConsistencyModel(nn.Module):
    """A one-step network, its teacher while it is trained, and its process. `calls` counts network evaluations."""

    Config, presets = Config, PRESETS
    inference = ("N",)                                   # fields that may change after training

    def __init__(self, config=Config()):
        super().__init__()
        self.config = config
        self.sde = {"ouve": lambda: sgmse.OUVE(config.theta, config.sigma_min, config.sigma_max, t_eps=config.t_eps),
                    "bbed": lambda: sgmse.BBED(config.k, config.c, t_eps=config.t_eps)}[config.sde]()
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length, config.exponent, config.factor)
        self.net = nets.NCSNpp(2, 1, config.width, config.channel_mults, config.num_res_blocks,
                               config.attention_resolutions, version=2, fourier_scale=config.fourier_scale,
                               image_size=config.n_fft // 2 + 1)
        self.pesq_loss = metrics.PESQLoss()
        self.num_samples = self.spectrogram.samples(config.num_frames)     # of a training crop
        self.calls, self.teacher, self.ema = 0, [], None # fit sets ema; a list keeps the teacher out of the weights

    def forward(self, xt, y, t):
        """f(x_t, y, t), the clean estimate: complex (B, 1, F, T)."""
        self.calls += 1
        std, sigma_data = per_bin(noise_level(self.sde, t)), self.config.sigma_data
        std_eps = noise_level(self.sde, t.new_tensor([self.sde.t_eps])) if self.config.strict else 0
        c_skip, c_out = boundary(std, sigma_data, std_eps)
        c_in = {"1": 1, "edm": 1 / (std ** 2 + sigma_data ** 2).sqrt()}[self.config.c_in]
        out = self.net(torch.cat([c_in * xt, c_in * y], dim=1), t)
        return c_skip * xt + (c_out * out if self.config.form == "edm" else (1 - c_skip) * (y + out))

    def target(self, xt, y, t):
        """f with the averaged weights."""
        if self.ema is None:
            return self(xt, y, t)
        return torch.func.functional_call(self, self.ema.shadow, (xt, y, t))

    def prepare(self, fresh):
        """Before training: load the teacher. A `fresh` student starts from its weights. Raises ValueError."""
        if self.config.moves.startswith("renoise"):
            if self.config.teacher:
                raise ValueError(f"--moves {self.config.moves} needs no --teacher; pc, euler, heun and mix do")
            return
        if not self.config.teacher:
            raise ValueError(f"--moves {self.config.moves} needs a --teacher, a checkpoint of sgmse.py; "
                             "--moves renoise trains without one")
        teacher = train.load_checkpoint(self.config.teacher, sgmse.ScoreSDE).requires_grad_(False)
        ours, theirs = vars(self.config), vars(teacher.config)
        constants = ("theta", "sigma_min", "sigma_max") if self.config.sde == "ouve" else ("k", "c")
        names = ("sde", *constants, "t_eps", "n_fft", "hop_length", "exponent", "factor", "width", "channel_mults",
                 "num_res_blocks", "attention_resolutions", "fourier_scale")
        other = [f"--{name.replace('_', '-')} {theirs[name]}" for name in names if ours[name] != theirs[name]]
        if other or teacher.config.version != 2:
            raise ValueError(f"{self.config.teacher}: the student needs its teacher's process and network: "
                             f"{' '.join(other) or 'a teacher with --version 2'}")
        if fresh:
            self.net.load_state_dict(teacher.net.state_dict())
        self.teacher = [teacher]

    def move(self, x0, z):
        """Function (x_t, y, t, t_next) -> x_next of a training example."""
        name, noise = self.config.moves, self.config.move_noise
        if name.startswith("renoise"):
            return lambda x, y, t, t_next: renoised(x0, y, t_next, self.sde, z if name == "renoise_shared" else None)
        score = self.teacher[0].to(x0.device).score
        if name == "pc":
            return lambda *args: pc_move(score, *args, self.sde, noise, self.config.snr)
        move = {"euler": euler_move, "heun": heun_move, "mix": mix_move}[name]
        return lambda *args: move(score, *args, self.sde, noise)

    def loss(self, batch):
        """batch: clean and noisy waves (B, L), divided by the noisy peak. Returns (loss, its parts)."""
        config = self.config
        with torch.autocast(batch[0].device.type, enabled=False):
            x0, y = (self.spectrogram(wave)[:, None] for wave in batch)
        times = time_grid(self.sde, config.times).to(x0.device)
        i = torch.randint(config.times - 1, (len(x0),), device=x0.device)
        z = torch.randn_like(x0)
        consistency, estimate = consistency_loss(self, self.target, self.move(x0, z), x0, y, times[i], times[i + 1], z,
                                                 self.sde, time_weight(config.weight, config.sigma_data))
        loss, parts = config.consistency_weight * consistency, {"consistency": consistency.detach()}
        if config.pesq_weight or config.si_sdr_weight:
            with torch.autocast(batch[0].device.type, enabled=False):
                clean, enhanced = (self.spectrogram.inverse(spec[:, 0], self.num_samples) for spec in (x0, estimate))
                pesq, si_sdr = self.pesq_loss(clean, enhanced).mean(), metrics.si_sdr_loss(clean, enhanced).mean()
            loss = loss + config.pesq_weight * pesq + config.si_sdr_weight * si_sdr
            parts |= {"pesq": pesq.detach(), "si_sdr": -si_sdr.detach()}
        return loss, parts

    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see data.enhance_levelled."""
        def sample(y):
            return multistep(self, y, self.sde, self.config.N)

        def enhance(wave):
            return in_spectrogram(sample, wave, self.spectrogram, self.net.multiple, self.config.pad_mode)
        with torch.no_grad():
            return enhance_levelled(enhance, wave, self.config.normalize, peak)


# ------------------------------------------------------------------------------------------------ a student of patches

@dataclass(frozen=True)
class StudentConfig(nets.NetworkConfig, SpectrogramConfig):
    """Constants of selective-patch distillation; `paper` is the published loss, here with a compact student."""
    distil: str = "selective"        # from the teacher's patches: selective, random (the control), all, or none
    teacher: str = ""                # checkpoint of any method
    distance: str = "frequency"      # to the teacher: frequency, DFKD; response, of magnitudes
    distil_weight: float = 5.0       # of the distillation loss; the task is the negative SI-SDR in dB
    warmup: int = 0                  # steps of the task alone, before the first patches are ranked
    keep: float = 0.8                # share of the patches that is distilled
    rule: str = "top_k"              # top_k, as released; positive: where the teacher is better; both
    low: int = 20                    # bins of a patch
    high: int = 20                   # those above the teacher's split; multi-scale patches (MSSP): low 10, high 40
    beta: float = 0.5                # share of the cosine distance above the split
    exact: bool = True               # means and bands as released
    network: str = "mask"            # mask, a compact recurrent network; ncsnpp, the U-Net in one call
    hidden: int = 48                 # of mask: channels
    layers: int = 1                  # of mask
    n_fft: int = 512                 # STFT window, samples
    num_frames: int = 501            # frames of a training crop
    exponent: float = 1.0            # amplitude compression of the spectrogram
    factor: float = 1.0              # its scale


class Student(nn.Module):
    """A small network and, while it is trained, its teacher. `calls` counts network evaluations."""

    Config = StudentConfig
    U_NET = dict(network="ncsnpp", n_fft=510, hop_length=256, num_frames=128, exponent=0.5, factor=0.15,
                 normalize="robust")
    presets = {
        "paper": {},
        "teacher": dict(distil="none", hidden=256, layers=2),              # of the compact pair
        "small": U_NET | nets.without_time(nets.SMALL),
        "tiny": U_NET | nets.without_time(nets.TINY),
    }
    inference = ()

    def __init__(self, config=StudentConfig()):
        super().__init__()
        for name, choices in (("distil", ("selective", "random", "all", "none")),
                              ("distance", ("frequency", "response")), ("network", ("mask", "ncsnpp"))):
            if getattr(config, name) not in choices:
                raise ValueError(f"--{name} is one of {', '.join(choices)}; got {getattr(config, name)}")
        self.config = config
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length, config.exponent, config.factor)
        self.patch_spectrogram = Spectrogram(512, 128, transform="none")   # where teacher and student are compared
        bins = config.n_fft // 2 + 1
        if config.network == "mask":
            self.net = nets.MaskGRU(bins, config.hidden, config.layers)
        else:
            self.net = nets.NCSNpp(1, 1, config.width, config.channel_mults, config.num_res_blocks,
                                   config.attention_resolutions, version=2, num_times=0, image_size=bins)
        self.num_samples = self.spectrogram.samples(config.num_frames)     # of a training crop
        self.calls, self.teacher, self.ema = 0, [], None # fit sets ema; a list keeps the teacher out of the weights

    def prepare(self, fresh):
        """Before training: load the teacher. Raises ValueError."""
        if (self.config.distil == "none") == bool(self.config.teacher):
            raise ValueError("--distil none learns from no --teacher; selective, random and all need one, a checkpoint")
        if self.config.teacher:
            self.teacher = [train.load_checkpoint(self.config.teacher).requires_grad_(False)]

    def forward(self, y):
        """Noisy spectrogram, complex (B, 1, F, T) -> enhanced, likewise."""
        self.calls += 1
        return self.net(y) if self.config.network == "mask" else y + self.net(y)

    def in_spectrogram(self, wave):
        """Waves of level 1 (B, L) -> enhanced, likewise."""
        return in_spectrogram(self, wave, self.spectrogram, self.net.multiple, self.config.pad_mode)

    def distillation(self, S, T, Y):
        """Distillation loss between spectra of student, teacher and clean, complex (B, F, frames)."""
        config, whole = self.config, self.config.distil == "all"           # whole: one patch a band, all of them
        options = dict(keep=1.0 if whole else config.keep, exact=config.exact,
                       rule="random" if config.distil == "random" else config.rule)
        if config.distance == "response":
            return selective_patch_loss(S, T, Y, S.shape[1] if whole else config.low, **options)
        low, high = (S.shape[1],) * 2 if whole else (config.low, config.high)
        return selective_frequency_loss(S, T, Y, low, high, beta=config.beta, **options)

    def loss(self, batch):
        """batch: clean and noisy waves (B, L), divided by the noisy peak. Returns (loss, its parts)."""
        clean, noisy = batch
        enhanced = self.in_spectrogram(noisy)
        with torch.autocast(noisy.device.type, enabled=False):
            task = metrics.si_sdr_loss(clean, enhanced).mean()
        parts = {"si_sdr": -task.detach()}
        if not self.teacher or self.ema and self.ema.num_updates < self.config.warmup:
            return task, parts
        taught = self.teacher[0].to(noisy.device).enhance(noisy)
        with torch.autocast(noisy.device.type, enabled=False):
            distilled = self.distillation(*(self.patch_spectrogram(wave) for wave in (enhanced, taught, clean)))
        return task + self.config.distil_weight * distilled, parts | {"distilled": distilled.detach()}

    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see data.enhance_levelled."""
        with torch.no_grad():
            return enhance_levelled(self.in_spectrogram, wave, self.config.normalize, peak)


if __name__ == "__main__":
    train.main(Student if any(argument.startswith("--distil") for argument in sys.argv) else ConsistencyModel)
