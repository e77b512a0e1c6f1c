"""Consistency distillation: one network call to where a score model's reverse process ends.

Papers: Xu, Yan, Kleijn, "Robust One-step Speech Enhancement via Consistency Distillation"
(ROSE-CD, WASPAA 2025, arXiv 2507.05688); Song, Dhariwal, Chen, Sutskever, "Consistency
Models" (ICML 2023, arXiv 2303.01469).

The idea: a trained score model, the teacher, moves a state x_t one step down its process.
The student f is trained to give the same clean estimate before and after that move, at
every time; at the smallest time f is nearly the identity, so the estimates are tied to the
clean end. ROSE-CD keeps the noise of the teacher's move ("randomised learning trajectory")
and adds two losses on the waveform. Then f(x_T, y, T) enhances in one call.

    consistency function  f = c_skip x_t + c_out F      boundary, ConsistencyModel.forward
    its noise level       std of x_t, or all added      noise_level
    times                 t_i, even from T to t_eps     time_grid
    teacher's moves       x_(t_i) -> x_(t_(i+1))        pc_move, euler_move, heun_move,
                                                        mix_move
    ... without teacher   x_(t_(i+1)) from x0 itself    renoised
    consistency loss      E w |f(x_t) - f_ema(x_r)|^2   consistency_loss; w: time_weight
    waveform losses       PESQ disturbance, -SI-SDR     metrics.PESQLoss, .si_sdr_loss
    sampling              f(y + std z, y, T), refined   multistep, refinement_times

Its second half is another way to learn from a teacher: Kim, Choi, "DISPatch" (ICASSP 2026,
arXiv 2509.15922) distils only the patches of the spectrogram where the teacher is closer to
clean than the student.

    errors of patches     means over bins of a frame    patches, patch_mean
    ... two kinds         magnitudes, complex cosine    magnitude_error, cosine_distance
    knowledge gap score   E_student - E_teacher         knowledge_gap_score
    selection             the share with the highest    select, selected_mean
    response              (|S| - |T|)^2 over those      selective_patch_loss
    frequency-dependent   one error up to the split of  selective_frequency_loss
                          the teacher, another above    band_split
    features              frames as alike as the        selective_feature_loss
                          teacher's
    training              the task + weight x one       Student.loss
    ... the task          -SI-SDR, or squared error     metrics.si_sdr_loss

Where we differ. The released code holds two methods: distillation as in the paper, and
training without a teacher (`--moves renoise`), which gave its released weights. The moves
along the PF-ODE take the step of the grid, not 1/N. The teacher and the start of the
student are averaged weights. Refinement re-noises with the mean of the process too, and
never at t_eps (`multistep`).

Tutorials: tutorials/4_consistency.ipynb, tutorials/5_patches.ipynb

    python consistency.py train --data DIR --preset small --teacher sgmse_stage1
    python consistency.py train-student --data DIR --preset tiny --teacher sgmse
"""

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn

import metrics
import nets
import sgmse
import train
from data import (Spectrogram, SpectrogramConfig, each_once, enhance_levelled,
                  in_spectrogram, per_bin)


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is ROSE-CD for VoiceBank-DEMAND."""
    teacher: str = ""            # checkpoint of a score model to learn from and to start as
    moves: Literal["pc", "euler", "heun", "mix", "renoise",
                   "renoise_shared"] = "pc"  # to the next time: by a teacher; two without
    move_noise: bool = True          # keep the noise of the teacher's move, as published
    snr: float = 0.5                 # r, step length of the corrector in the move pc
    weight: Literal["1", "snr", "snr+1", "truncated-snr",
                    "karras"] = "1"  # of the consistency loss over time
    consistency_weight: float = 1.0  # of the consistency loss
    pesq_weight: float = 5e-4        # of PESQLoss; the authors' second model: 1e-3
    si_sdr_weight: float = 5e-5      # of the negative SI-SDR, per dB
    form: Literal["edm", "data"] = "edm"  # f: c_skip x_t + c_out F; data: see forward
    strict: bool = False             # boundary f(x, y, t_eps) = x; published: nearly
    c_in: Literal["1", "edm"] = "1"  # input scale; published: 1
    sigma_data: float = 0.1          # rms of a clean bin
    N: int = 1                       # network calls at inference
    sde: Literal["ouve", "bbed"] = "ouve"  # forward process
    theta: float = 1.5               # OUVE: stiffness
    sigma_min: float = 0.05          # OUVE: noise scale at t = 0
    sigma_max: float = 0.5           # OUVE: at t = 1
    k: float = 2.6                   # BBED: base of the diffusion coefficient
    c: float = 0.51                  # BBED: its scale
    t_eps: float = 0.03              # smallest process time
    fourier_scale: float = 16.0      # std of the random frequencies of log t
    pad_mode: Literal["constant", "reflect"] = "reflect"  # added frames: zeros or reflected

    def __post_init__(self):
        super().__post_init__()
        if self.N < 1:
            raise ValueError(f"--N counts network calls, 1 or more; got {self.N}")
        if not 0 < self.t_eps < 1:
            raise ValueError(f"--t-eps is a time of the process, below 1; got {self.t_eps}")
        if not self.k > 0 or self.k == 1:
            raise ValueError("--k is the base of a diffusion that changes with time, above "
                             f"0 and not 1; got {self.k}")


# For teachers that predict x0 as y + F, as the presets small and tiny of sgmse.py do.
LIGHT = dict(form="data", strict=True, sde="bbed", hop_length=256, num_frames=128,
             pad_mode="constant", normalize="robust")
PRESETS = {
    "paper": {},
    "small": dict(**LIGHT, **nets.SMALL),
    "tiny": dict(**LIGHT, **nets.TINY),
}


# ----------------------------------------------------------------- the consistency function

def boundary(std, sigma_data=0.1, std_eps=0.0):
    """(c_skip, c_out) of f = c_skip x_t + c_out F. std: of the noise in x_t, any shape.

    std_eps = 0, as published, takes EDM's coefficients: f is the identity where std = 0,
    which no time reaches. With the std of the smallest time it is the identity there (the
    consistency models' own choice, in std instead of t).
    """
    c_skip = sigma_data ** 2 / ((std - std_eps) ** 2 + sigma_data ** 2)
    c_out = (std - std_eps) * sigma_data / (std ** 2 + sigma_data ** 2).sqrt()
    return c_skip, c_out


def noise_level(sde, t):
    """What `boundary` takes for the std, which has to grow with t: (B,) -> (B,).

    OUVE: the std of x_t. BBED, whose std falls again towards y: that of all the noise which
    the process has added by then, the root of the integral of g^2 = c k^(2s) from 0 to t.
    """
    if isinstance(sde, sgmse.BBED):
        return (sde.c * (sde.k ** (2 * t) - 1) / (2 * math.log(sde.k))).sqrt()
    return sde.std(t)


def time_grid(sde, N=30):
    """t_0 = T down to t_(N-1) = t_eps, evenly: (N,)."""
    return torch.linspace(sde.T, sde.t_eps, N)


# ------------------------------------------------------------------- moves to the next time
# x, y complex (B, 1, F, T); t, t_next (B,), t_next < t; score: function (x, y, t) ->
# complex (B, 1, F, T). Each returns x_next, complex (B, 1, F, T).

def pc_move(score, x, y, t, t_next, sde, noise=True, snr=0.5):
    """A Langevin step at t, then a step of the reverse SDE: the teacher of the paper. Two
    calls.

    `noise` is that of the second step; the Langevin step has its noise in any case, as
    released.
    """
    x = sgmse.langevin_step(score, x, y, t, sde, snr)
    mean, scale = sgmse.reverse_step(score, x, y, t, per_bin(t - t_next), sde)
    return mean + scale * torch.randn_like(x) if noise else mean


def euler_move(score, x, y, t, t_next, sde, noise=True):
    """An Euler step of the PF-ODE; `noise` adds what a step of the SDE would. One call."""
    dt = per_bin(t - t_next)
    x_next = x - sgmse.flow_velocity(score, x, y, t, sde) * dt
    return with_noise_of_sde(x_next, t, dt, sde) if noise else x_next


def heun_move(score, x, y, t, t_next, sde, noise=True):
    """A Heun step of the PF-ODE; `noise` as in euler_move. Two calls."""
    dt = per_bin(t - t_next)
    v = sgmse.flow_velocity(score, x, y, t, sde)
    v = (v + sgmse.flow_velocity(score, x - v * dt, y, t_next, sde)) / 2
    x_next = x - v * dt
    return with_noise_of_sde(x_next, t, dt, sde) if noise else x_next


def with_noise_of_sde(x, t, dt, sde):
    """x + g(t) sqrt(dt) z."""
    return x + per_bin(sde.diffusion(t)) * dt.sqrt() * torch.randn_like(x)


def mix_move(score, x, y, t, t_next, sde, noise=True):
    """Half way between a noisy step of the reverse SDE and an Euler step of the PF-ODE. One
    call.

    It always has its noise, as released.
    """
    s, dt = score(x, y, t), per_bin(t - t_next)
    mean, scale = sgmse.reverse_step(lambda *_: s, x, y, t, dt, sde)
    ode = x - sgmse.flow_velocity(lambda *_: s, x, y, t, sde) * dt
    return (mean + scale * torch.randn_like(x) + ode) / 2


def renoised(x0, y, t_next, sde, z=None):
    """Consistency training, no teacher: the state at t_next from x0 itself.

    z: that of x_t (Song et al.); None: a fresh one (the released ROSE-CD).
    """
    return sgmse.diffuse(x0, y, t_next, torch.randn_like(x0) if z is None else z, sde)


# ----------------------------------------------------------------------------------- losses

def consistency_loss(f, f_target, move, x0, y, t, t_next, z, sde, weight=1):
    """E w |f(x_t, y, t) - f_target(x_next, y, t_next)|^2, mean over bins: (loss, f(x_t, y,
    t)).

    f, f_target: functions (x, y, t) -> complex (B, 1, F, T). move: function (x_t, y, t,
    t_next) -> x_next. x0, y, z complex (B, 1, F, T); t, t_next, weight (B,). No gradient
    reaches f_target or the move.
    """
    xt = sgmse.diffuse(x0, y, t, z, sde)
    with torch.no_grad():
        target = f_target(move(xt, y, t, t_next), y, t_next)
    estimate = f(xt, y, t)
    error = (estimate - target).abs().square().mean((1, 2, 3))             # (B,)
    return (weight * error).mean(), estimate


def time_weight(t, kind="1", sigma_data=0.1):
    """w(t) of the consistency loss, (B,) -> (B,): Song et al.'s, in t, as released."""
    snr = t ** -2
    return {"1": torch.ones_like(t), "snr": snr, "snr+1": snr + 1,
            "truncated-snr": snr.clamp(min=1), "karras": snr + sigma_data ** -2}[kind]


# --------------------------------------------------------------------------------- sampling

def refinement_times(sde, N):
    """The times of N calls of f: even, from T, without t_eps, where f returns its input."""
    return torch.linspace(sde.T, sde.t_eps, N + 1)[:N].tolist()


def multistep(f, y, sde, N=1):
    """N calls: f at T, then N - 1 times the process' noise of an earlier time and f again.

    y complex (B, 1, F, T) -> the same. The state for f at t is mean(x_hat, y, t) + std z;
    the released code leaves out that the mean moves towards y.
    """
    first, *later = refinement_times(sde, N)
    x_hat = f(sde.prior(y, first), y, sgmse.each(first, y))
    for time in later:
        t = sgmse.each(time, y)
        x_hat = f(sgmse.diffuse(x_hat, y, t, torch.randn_like(y), sde), y, t)
    return x_hat


# ------------------------------------------------------------------------ selective patches
# Spectra of waves: student S, teacher T and clean Y, complex (B, F, frames). A patch is
# `size` bins of one frame.

def patches(x, size):
    """(B, F, frames) -> (B, bands, size, frames), bands = ceil(F / size); zeros above the
    top bin fill the last.
    """
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size))


def patch_mean(error, size, inside=None):
    """Mean of an error per bin (B, F, frames) over each patch: (B, bands, frames).

    inside: the bins that count, bool (B, F, frames); None: all, and the zeros that fill the
    last band, as released.
    """
    if inside is None:
        return patches(error, size).mean(2)
    return patches(error * inside, size).sum(2) / patches(inside, size).sum(2).clamp(min=1)


def magnitude_error(a, b):
    """(|a| - |b|)^2 of each bin."""
    return (a.abs() - b.abs()).square()


def cosine_distance(a, b, size, eps=1e-8):
    """1 - Re <a, b> / (|a| |b|) of each patch of complex spectra: (B, bands, frames) in [0,
    2].

    It sees the phase.
    """
    def inner(a, b):                                        # Re <a, b> of each patch
        return patches(a.real * b.real + a.imag * b.imag, size).sum(2)

    norm_a, norm_b = ((inner(x, x) + eps).sqrt() for x in (a, b))
    return 1 - inner(a, b) / (norm_a * norm_b + eps)


def knowledge_gap_score(student_error, teacher_error):
    """Errors against clean, per patch: positive where the teacher is closer."""
    return student_error - teacher_error


def select(score, keep=0.8, rule="top_k", candidates=None):
    """The patches to distil, bool like `score` (B, bands, frames); chosen within each
    utterance, without gradient.

    top_k, as released: the share `keep` with the highest score and all that tie with the
    last, whatever their sign. positive: where the teacher is better. both: the first of the
    second. random: as many as top_k, drawn blindly, the control. candidates: bool, those
    that take part.
    """
    score = score.detach()
    if candidates is None:
        candidates = torch.ones_like(score, dtype=torch.bool)
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
    """Mean of a patch error over the selected patches of each utterance, averaged over the
    batch, 0 where none is; or its sum over all of them divided by the `denominator`.
    """
    if denominator is not None:
        return (error * mask).sum() / denominator
    return ((error * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).mean()


def selective_patch_loss(S, T, Y, size=20, keep=0.8, rule="top_k", exact=True):
    """Response distillation, (|S| - |T|)^2, on the patches that `select` picks.

    exact: as released, the sum is divided by the nominal number of patches, keep * all of
    them, and the zeros beyond the top bin count; otherwise, and where the rule is positive
    and has no such number, by the number kept in each utterance, over real bins.
    """
    T = T.detach()
    inside = None if exact else torch.ones_like(S, dtype=torch.bool)

    def error(a, b):
        return patch_mean(magnitude_error(a, b), size, inside)

    gap = knowledge_gap_score(error(S, Y), error(T, Y))                 # (B, bands, frames)
    mask = select(gap, keep, rule)
    nominal = exact and rule != "positive"
    return selected_mean(error(S, T), mask, keep * gap.numel() if nominal else None)


def band_split(T):
    """The bin where the teacher's running maximum over frequency rises most, relatively,
    per frame: (B, frames).
    """
    highest = T.abs().cummax(1).values                                     # (B, F, frames)
    return ((highest[:, 1:] - highest[:, :-1]) / (highest[:, :-1] + 1e-8)).argmax(1)


def selective_frequency_loss(S, T, Y, low=10, high=40, keep=0.8, beta=0.5, rule="top_k",
                             exact=True):
    """Frequency-dependent distillation (DFKD) on selected patches, of `low` bins below the
    split and `high` above.

    Below: the complex cosine distance. Above: beta of it and (1 - beta) of the magnitude
    error. low = high is DISPatch without its multi-scale patches. exact: as released, the
    split bin is in both bands, counts are pooled over the batch, and the zeros of the other
    band count in the means.
    """
    T = T.detach()
    bins = torch.arange(S.shape[1], device=S.device)[None, :, None]        # (1, F, 1)
    split = band_split(T)[:, None]                                         # (B, 1, frames)
    below = bins <= split                                                  # (B, F, frames)
    above = bins >= split if exact else bins > split

    def error_below(a, b):
        return cosine_distance(a, b, low)

    def error_above(a, b):
        magnitude = patch_mean(magnitude_error(a, b), high, None if exact else above)
        return beta * cosine_distance(a, b, high) + (1 - beta) * magnitude

    loss = 0
    for size, inside, error in ((low, below, error_below), (high, above, error_above)):
        s, t, y = (x * inside for x in (S, T, Y))
        gap = knowledge_gap_score(error(s, y), error(t, y))             # (B, bands, frames)
        mask = select(gap, keep, rule, candidates=patches(inside, size).any(2))
        count = mask.sum().clamp(min=1) if exact else None
        loss = loss + selected_mean(error(s, t), mask, count)
    return loss


def selective_feature_loss(h_S, h_T, S, T, Y, size=20, keep=0.8, rule="top_k"):
    """Feature distillation: how alike two frames are, by the cosine of their features, is
    to be for the student as for the teacher, and counts by how many patches of both frames
    are selected.

    Cross-layer similarity distillation with a frame's share of patches as its weight: how
    the paper selects features is not known. h_S (B, frames, D), h_T (B, frames, D'), D' of
    any size; spectra and patches as in selective_patch_loss.
    """
    def error(a, b):
        return patch_mean(magnitude_error(a, b), size)

    def alikeness(h):
        h = nn.functional.normalize(h, dim=2)
        return h @ h.transpose(1, 2)                                # (B, frames, frames)

    mask = select(knowledge_gap_score(error(S, Y), error(T, Y)), keep, rule)
    w = mask.float().mean(1)                                               # (B, frames)
    w = w[:, :, None] * w[:, None]                                  # (B, frames, frames)
    difference = (alikeness(h_T.detach()) - alikeness(h_S)).square()
    return ((w * difference).sum((1, 2)) / w.sum((1, 2)).clamp(min=1e-8)).mean()


class Teacher:
    """A trained model, frozen, that a student learns from; it follows the data to their
    device.

    Not a module: its weights belong to no checkpoint of the student, whose config keeps the
    `record` of it: its file's name and the start of that file's SHA-256,
    NAME@0123456789abcdef. path: a file, the name of one in pretrained/, or such a record.
    Raises ValueError.
    """

    def __init__(self, path, Method=None):
        name = path[:-17] if is_record(path) else path
        try:
            self.model = train.load_checkpoint(name, Method).requires_grad_(False)
        except train.CheckpointError as error:
            raise ValueError(f"--teacher {path}: {error}") from None
        digest = hashlib.sha256(train.checkpoint_path(name).read_bytes()).hexdigest()[:16]
        self.record = f"{Path(name).name}@{digest}"
        if is_record(path) and path != self.record:
            raise ValueError(f"the teacher was {path}, and {name} here is {self.record}: "
                             "give its file with --teacher")

    def on(self, device):
        """The model, on this device."""
        return self.model.to(device)


def is_record(teacher):
    """Whether a config's `teacher` is the record of an earlier training, given by nobody
    now.
    """
    return re.fullmatch(r".+@[0-9a-f]{16}", teacher) is not None


# -------------------------------------------------------------------------------- the model

class ConsistencyModel(nn.Module):
    """A one-step network, its teacher while it is trained, and its process. `calls` counts
    network evaluations.
    """

    Config, presets = Config, PRESETS
    inference = ("N",)                               # fields that may change after training

    def __init__(self, config=Config()):
        super().__init__()
        self.config = config
        if config.sde == "ouve":
            self.sde = sgmse.OUVE(config.theta, config.sigma_min, config.sigma_max,
                                  t_eps=config.t_eps)
        else:
            self.sde = sgmse.BBED(config.k, config.c, t_eps=config.t_eps)
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length, config.exponent,
                                       config.factor)
        self.net = nets.NCSNpp(2, 1, config.width, config.channel_mults,
                               config.num_res_blocks, config.attention_resolutions,
                               image_size=config.n_fft // 2 + 1, version=2,
                               fourier_scale=config.fourier_scale)
        self.pesq_loss = metrics.PESQLoss()
        self.num_samples = self.spectrogram.samples(config.num_frames)  # of a training crop
        self.calls, self.teacher, self.ema = 0, None, None                 # fit sets ema

    @staticmethod
    def add_commands(commands):
        """train-student: the second half of this file."""
        train.add_train(commands, "train-student", Student, "runs/student",
                        "train a small network on patches of a teacher's output (DISPatch)")

    def forward(self, xt, y, t):
        """f(x_t, y, t), the clean estimate: complex (B, 1, F, T)."""
        self.calls += 1
        std, sigma_data = per_bin(noise_level(self.sde, t)), self.config.sigma_data
        std_eps = 0
        if self.config.strict:
            std_eps = noise_level(self.sde, t.new_tensor([self.sde.t_eps]))
        c_skip, c_out = boundary(std, sigma_data, std_eps)
        c_in = 1 / (std ** 2 + sigma_data ** 2).sqrt() if self.config.c_in == "edm" else 1
        out = self.net(torch.cat([c_in * xt, c_in * y], dim=1), t)       # F of the equation
        if self.config.form == "edm":
            return c_skip * xt + c_out * out
        return c_skip * xt + (1 - c_skip) * (y + out)

    def target(self, xt, y, t):
        """f with the averaged weights."""
        if self.ema is None:
            return self(xt, y, t)
        return torch.func.functional_call(self, self.ema.shadow, (xt, y, t))

    def prepare(self, fresh):
        """Before training: load the teacher. A `fresh` student starts from its weights.

        Raises ValueError for a teacher that is missing, not needed or of another kind.
        """
        config = self.config
        if config.moves.startswith("renoise"):
            if config.teacher and not is_record(config.teacher):
                raise ValueError(f"--moves {config.moves} needs no --teacher; pc, euler, "
                                 "heun and mix do")
            self.config = dataclasses.replace(config, teacher="")
            return
        if not config.teacher:
            raise ValueError(f"--moves {config.moves} needs a --teacher, a checkpoint of "
                             "sgmse.py; --moves renoise trains without one")
        self.teacher = Teacher(config.teacher, sgmse.ScoreSDE)
        if missing := teacher_needs(self.teacher.model.config, config):
            raise ValueError(f"{config.teacher}: the student needs its teacher's process, "
                             f"spectrogram and network; add {train.as_flags(missing)}")
        self.config = dataclasses.replace(config, teacher=self.teacher.record)
        if fresh:
            self.net.load_state_dict(self.teacher.model.net.state_dict())

    def next_state(self, xt, x0, y, t, t_next, z):
        """x_next of training examples x_t = mean(x0, y, t) + std(t) z, as `moves` says."""
        moves, noise = self.config.moves, self.config.move_noise
        if moves.startswith("renoise"):
            shared = z if moves == "renoise_shared" else None
            return renoised(x0, y, t_next, self.sde, shared)
        score = self.teacher.on(x0.device).score
        if moves == "pc":
            return pc_move(score, xt, y, t, t_next, self.sde, noise, self.config.snr)
        move = {"euler": euler_move, "heun": heun_move, "mix": mix_move}[moves]
        return move(score, xt, y, t, t_next, self.sde, noise)

    def loss(self, batch):
        """batch: clean and noisy waves (B, L), divided by the noisy peak. Returns (loss,
        its parts).
        """
        config = self.config
        with torch.autocast(batch[0].device.type, enabled=False):
            x0, y = (self.spectrogram(wave)[:, None] for wave in batch)    # (B, 1, F, T)
        times = time_grid(self.sde).to(x0.device)
        i = torch.randint(len(times) - 1, (len(x0),), device=x0.device)
        t, t_next, z = times[i], times[i + 1], torch.randn_like(x0)

        def move(xt, y, t, t_next):
            return self.next_state(xt, x0, y, t, t_next, z)

        consistency, estimate = consistency_loss(
            self, self.target, move, x0, y, t, t_next, z, self.sde,
            time_weight(t, config.weight, config.sigma_data))
        loss = config.consistency_weight * consistency
        parts = {"consistency": consistency.detach()}
        if config.pesq_weight or config.si_sdr_weight:
            with torch.autocast(batch[0].device.type, enabled=False):
                clean, enhanced = (self.spectrogram.inverse(spec[:, 0], self.num_samples)
                                   for spec in (x0, estimate))             # (B, L)
                pesq = self.pesq_loss(clean, enhanced).mean()
                si_sdr = metrics.si_sdr_loss(clean, enhanced).mean()
            loss = loss + config.pesq_weight * pesq + config.si_sdr_weight * si_sdr
            parts |= {"pesq": pesq.detach(), "si_sdr": -si_sdr.detach()}
        return loss, parts

    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see enhance_levelled."""
        def sample(y):
            return multistep(self, y, self.sde, self.config.N)

        def enhance(wave):
            return in_spectrogram(sample, wave, self.spectrogram, self.net.multiple,
                                  self.config.pad_mode)

        with torch.no_grad():
            return enhance_levelled(enhance, wave, self.config.normalize, peak)

    @classmethod
    def from_official(cls, checkpoint, **changes):
        """The student of ROSE-CD's released checkpoint, with its averaged weights.

        checkpoint: the file's content as train.read_pickle gives it. changes: config fields
        to override. Raises train.CheckpointError for a model that this file does not cover.
        """
        teacher = sgmse.official_config(checkpoint["hyper_parameters"])
        train.covered(checkpoint["hyper_parameters"], c_out=("edm",), c_skip=("edm",),
                      network_scaling=("none",), sde=("ouve",))
        shared = {field.name for field in dataclasses.fields(cls.Config)} - {"N", "snr"}
        config = {name: value for name, value in vars(teacher).items() if name in shared}
        model = cls(cls.Config(**config | dict(moves="renoise") | changes))
        model.net = train.averaged_network(model.net, checkpoint)
        return model


def teacher_needs(theirs, ours):
    """{field: value} by which a student's config must change to learn from a score model.

    theirs: the teacher's sgmse.Config; ours: the student's Config. Raises ValueError for a
    teacher from which no student can learn.
    """
    scaling = theirs.objective, theirs.c_skip, theirs.c_out, theirs.network_scaling
    forms = {("precond_denoiser", "edm", "edm", "none"): "edm",
             ("data_prediction", "y", "1", "none"): "data"}
    if theirs.version != 2 or scaling not in forms or theirs.sde not in ("ouve", "bbed"):
        raise ValueError(
            f"a score model with --sde {theirs.sde} --version {theirs.version} --objective "
            f"{theirs.objective} --c-skip {theirs.c_skip} --c-out {theirs.c_out} "
            f"--network-scaling {theirs.network_scaling} teaches no student; one of the "
            "presets edm, small or tiny does, with --sde ouve or bbed")
    form = forms[scaling]
    needed = dict(form=form, sde=theirs.sde, t_eps=theirs.t_eps,
                  fourier_scale=theirs.fourier_scale)
    for name in ("theta", "sigma_min", "sigma_max") if theirs.sde == "ouve" else ("k", "c"):
        needed[name] = getattr(theirs, name)
    for part in (nets.NetworkConfig, SpectrogramConfig):
        for field in dataclasses.fields(part):
            if field.name not in ("num_frames", "pad_mode"):
                needed[field.name] = getattr(theirs, field.name)
    if form == "edm" or theirs.c_in == "edm":
        needed["sigma_data"] = theirs.sigma_data
    if ours.c_in == "edm" or form == "data":      # published: the student of an edm hears 1
        needed["c_in"] = theirs.c_in
    return {name: value for name, value in needed.items() if getattr(ours, name) != value}


# --------------------------------------------------------------------- a student of patches

@dataclass(frozen=True)
class StudentConfig(nets.NetworkConfig, SpectrogramConfig):
    """Constants of selective-patch distillation; `paper` is the published loss, here with a
    compact student.
    """
    distil: Literal["selective", "random", "all", "none"] = "selective"  # patches
    teacher: str = ""                # checkpoint of any method
    distance: Literal["frequency", "response",
                      "feature"] = "frequency"  # DFKD's, of magnitudes, of GRU states
    distil_weight: float = 5.0       # of the distillation
    task: Literal["si_sdr", "mse"] = "si_sdr"  # -SI-SDR in dB, or error of the spectrogram
    warmup: int = 0                  # steps of the task alone, before patches are ranked
    keep: float = 0.8                # share of the patches that is distilled
    rule: Literal["top_k", "positive", "both"] = "top_k"  # see select
    low: int = 20                    # bins of a patch
    high: int = 20                   # those above the split; multi-scale (MSSP): 10, 40
    beta: float = 0.5                # share of the cosine distance above the split
    exact: bool = True               # means and bands as released
    network: Literal["mask", "ncsnpp"] = "mask"  # a compact recurrent network, or the U-Net
    hidden: int = 48                 # of mask: channels
    layers: int = 1                  # of mask
    n_fft: int = 512                 # STFT window, samples
    num_frames: int = 501            # frames of a training crop
    exponent: float = 1.0            # amplitude compression of the spectrogram
    factor: float = 1.0              # its scale

    def __post_init__(self):
        super().__post_init__()
        for name in ("keep", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share, 0 to 1; got {getattr(self, name)}")
        for name in ("low", "high", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is 1 or more; got {getattr(self, name)}")
        if not self.keep:
            raise ValueError("--keep 0 would distil nothing: --distil none does that")


class Student(nn.Module):
    """A small network and, while it is trained, its teacher. `calls` counts network
    evaluations.
    """

    Config = StudentConfig
    U_NET = dict(network="ncsnpp", n_fft=510, hop_length=256, num_frames=128, exponent=0.5,
                 factor=0.15, normalize="robust")
    presets = {
        "paper": {},
        "teacher": dict(distil="none", hidden=256, layers=2),          # of the compact pair
        "small": U_NET | nets.without_time(nets.SMALL),
        "tiny": U_NET | nets.without_time(nets.TINY),
    }
    inference = ()

    def __init__(self, config=StudentConfig()):
        super().__init__()
        self.config = config
        self.spectrogram = Spectrogram(config.n_fft, config.hop_length, config.exponent,
                                       config.factor)
        self.patch_spectrogram = Spectrogram(512, 128, transform="none")   # to compare in
        bins = config.n_fft // 2 + 1
        if config.network == "mask":
            self.net = nets.MaskGRU(bins, config.hidden, config.layers)
        else:
            self.net = nets.NCSNpp(1, 1, config.width, config.channel_mults,
                                   config.num_res_blocks, config.attention_resolutions,
                                   version=2, num_times=0, image_size=bins)
        self.num_samples = self.spectrogram.samples(config.num_frames)  # of a training crop
        self.calls, self.teacher = 0, None
        self.ema, self.store = None, None                # set by train.py

    def prepare(self, fresh):
        """Before training: load the teacher. Raises ValueError where it is missing or not
        needed.
        """
        config = self.config
        if config.distil == "none":
            if config.teacher and not is_record(config.teacher):
                raise ValueError("--distil none learns from no --teacher")
            self.config = dataclasses.replace(config, teacher="")
        elif not config.teacher:
            raise ValueError(f"--distil {config.distil} needs a --teacher, a checkpoint of "
                             "any method; --distil none trains without one")
        else:
            self.teacher = Teacher(config.teacher)
            if train.channels(self.teacher.model) != (1, 1):
                raise ValueError(f"--teacher {config.teacher} hears several microphones or "
                                 "separates talkers; a student learns from one that maps a "
                                 "recording to one voice")
            if config.distance == "feature":
                hop = self.patch_spectrogram.hop_length
                for name, model in (("student", self), ("teacher", self.teacher.model)):
                    theirs = model.config
                    if getattr(theirs, "network", "") != "mask" or theirs.hop_length != hop:
                        raise ValueError("--distance feature compares what two recurrent "
                                         "networks know, those of --network mask with "
                                         f"--hop-length {hop}; the {name} has none")
            self.config = dataclasses.replace(config, teacher=self.teacher.record)

    def forward(self, y):
        """Noisy spectrogram, complex (B, 1, F, T) -> enhanced, likewise."""
        self.calls += 1
        return self.net(y) if self.config.network == "mask" else y + self.net(y)

    def in_spectrogram(self, wave):
        """Waves of level 1 (B, L) -> enhanced, likewise."""
        return in_spectrogram(self, wave, self.spectrogram, self.net.multiple,
                              self.config.pad_mode)

    def features(self, wave):
        """What the recurrent network knows at each frame: (B, L) -> (B, frames, hidden)."""
        return self.net.features(self.spectrogram(wave)[:, None])

    def taught(self, what, noisy):
        """The teacher's method `what` of waves (B, L), kept where crops come again."""
        function = getattr(self.teacher.on(noisy.device), what)
        if self.store is None:
            return function(noisy)
        return each_once(function, noisy, self.store, f"{self.teacher.record}-{what}")

    def distillation(self, S, T, Y, noisy=None):
        """Distillation loss between spectra of student, teacher and clean, complex (B, F,
        frames). noisy: the waves (B, L) they were made of, for features.
        """
        config = self.config
        low, high, keep, rule = config.low, config.high, config.keep, config.rule
        if config.distil == "random":
            rule = "random"
        if config.distil == "all":                 # one patch a band, and every one of them
            low, high, keep, rule = S.shape[1], S.shape[1], 1.0, "top_k"
        if config.distance == "feature":
            theirs = self.taught("features", noisy)
            return selective_feature_loss(self.features(noisy), theirs, S, T, Y, low, keep,
                                          rule)
        if config.distance == "response":
            return selective_patch_loss(S, T, Y, low, keep, rule, config.exact)
        return selective_frequency_loss(S, T, Y, low, high, keep, config.beta, rule,
                                        config.exact)

    def loss(self, batch):
        """batch: clean and noisy waves (B, L), divided by the noisy peak. Returns (loss,
        its parts).
        """
        clean, noisy = batch
        enhanced = self.in_spectrogram(noisy)
        with torch.autocast(noisy.device.type, enabled=False):
            if self.config.task == "si_sdr":
                task = metrics.si_sdr_loss(clean, enhanced).mean()
                parts = {"si_sdr": -task.detach()}
            else:
                error = self.spectrogram(enhanced) - self.spectrogram(clean)
                task = error.abs().square().mean()
                parts = {"mse": task.detach()}
        warming_up = self.ema is not None and self.ema.num_updates < self.config.warmup
        if self.teacher is None or warming_up:
            return task, parts

        taught = self.taught("enhance", noisy)
        with torch.autocast(noisy.device.type, enabled=False):
            S, T, Y = (self.patch_spectrogram(wave) for wave in (enhanced, taught, clean))
            distilled = self.distillation(S, T, Y, noisy)
        loss = task + self.config.distil_weight * distilled
        return loss, parts | {"distilled": distilled.detach()}

    def at_its_level(self, wave):
        """in_spectrogram. A U-Net that learnt from SI-SDR, which hears no level, is scaled
        to fit the noisy wave best, in least squares; a mask keeps the mixture's level.
        """
        estimate = self.in_spectrogram(wave)
        if self.config.network == "mask" or self.config.task != "si_sdr":
            return estimate
        power = estimate.square().sum(-1, keepdim=True).clamp(min=1e-8)
        return estimate * (estimate * wave).sum(-1, keepdim=True) / power

    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see enhance_levelled."""
        with torch.no_grad():
            return enhance_levelled(self.at_its_level, wave, self.config.normalize, peak)


if __name__ == "__main__":
    train.main(ConsistencyModel)
