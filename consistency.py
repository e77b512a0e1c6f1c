"""Consistency distillation: one network evaluation to the end of a score model's process.

Papers: Xu, Yan, Kleijn, "Robust One-step Speech Enhancement via Consistency Distillation"
(ROSE-CD, WASPAA 2025, arXiv 2507.05688); Song, Dhariwal, Chen, Sutskever, "Consistency
Models" (ICML 2023, arXiv 2303.01469).

The idea: a trained score model, the teacher, takes a state x_t one solver step down its
process. The distilled model f is trained to give the same clean estimate before and after
that step, at every time; at the smallest time f is nearly the identity, so the estimates
are tied to the clean end. ROSE-CD keeps the noise of the teacher's step ("randomised
learning trajectory") and adds two losses on the waveform. Then f(x_T, y, T) enhances in one
evaluation.

    consistency function  f = c_skip x_t + c_out F      sgmse.edm_scaling
                                                        ConsistencyModel.forward
    its noise level       std of x_t, or all added      noise_level
    times                 t_i, even from T to t_eps     time_grid
    solver steps          x_(t_i) -> x_(t_(i+1))        pc_step, euler_step, heun_step,
                                                        mix_step
    ... without teacher   x_(t_(i+1)) from x0 itself    renoised
    consistency loss      E w |f(x_t) - f_ema(x_r)|^2   consistency_loss; w: time_weight
    waveform losses       PESQ disturbance, -SI-SDR     losses.waveform_terms
    sampling              f(y + std z, y, T), refined   multistep, refinement_times

Where we differ. The released code holds two methods: distillation as in the paper, and
training without a teacher (`--solver renoise`), which gave its released weights. The steps
along the PF-ODE have the length of the grid, not 1/N. The teacher and the start of the
distilled model are averaged weights. Refinement adds noise around the mean of the process,
not around the estimate, and never at t_eps (`multistep`).

Tutorial: tutorials/4_consistency.ipynb

    python consistency.py train --data DIR --preset small --teacher sgmse_stage1
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

import commands
import losses
import nets
import sgmse
import train
from data import SpectrogramConfig, per_bin
from nets import Count, Positive, Weight


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is ROSE-CD for VoiceBank-DEMAND."""
    teacher: str = ""            # checkpoint of a score model: teacher and initial weights
    solver: Literal["pc", "euler", "heun", "mix", "renoise",
                    "renoise_shared"] = "pc"  # step to the next time; renoise: no teacher
    stochastic: bool = True          # keep the noise of the solver step, as published
    snr: Weight = 0.5                # r, step length of the corrector in the step pc
    weight: Literal["1", "snr", "snr+1", "truncated-snr",
                    "karras"] = "1"  # of the consistency loss over time
    consistency_weight: Weight = 1.0  # of the consistency loss
    pesq_weight: Weight = 5e-4       # of PESQLoss; the authors' second model: 1e-3
    si_sdr_weight: Weight = 5e-5     # of the negative SI-SDR, per dB
    form: Literal["edm", "data"] = "edm"  # f: c_skip x_t + c_out F; data: see forward
    strict: bool = False             # boundary f(x, y, t_eps) = x; published: nearly
    c_in: Literal["1", "edm"] = "1"  # input scale; published: 1
    sigma_data: Positive = 0.1       # rms of a clean bin
    N: Count = 1                     # network evaluations
    sde: Literal["ouve", "bbed"] = "ouve"  # forward process
    theta: Positive = 1.5            # OUVE: stiffness
    sigma_min: Positive = 0.05       # OUVE: noise scale at t = 0
    sigma_max: Positive = 0.5        # OUVE: at t = 1
    k: Positive = 2.6                # BBED: base of the diffusion coefficient
    c: Positive = 0.51               # BBED: its scale
    t_eps: Annotated[float, "(0, 1)"] = 0.03  # smallest process time
    fourier_scale: Positive = 16.0   # std of the random frequencies of log t
    pad_mode: Literal["constant", "reflect"] = "reflect"  # added frames: zeros or reflected

    def __post_init__(self):
        super().__post_init__()
        if self.k == 1:
            raise ValueError("--k: expected a number other than 1, which makes the "
                             "diffusion constant")


# For teachers that predict x0 as y + F, as the presets small and tiny of sgmse.py do.
LIGHT = dict(form="data", strict=True, sde="bbed", hop_length=256, num_frames=128,
             pad_mode="constant", normalize="robust")
PRESETS = {
    "paper": {},
    "small": dict(**LIGHT, **nets.SMALL),
    "tiny": dict(**LIGHT, **nets.TINY),
}


# ----------------------------------------------------------------- the consistency function

def noise_level(sde, t):
    """The std by which f is scaled, which has to grow with t: (B,) -> (B,).

    OUVE: the std of x_t. BBED, whose std falls again towards y: that of all the noise which
    the process has added by then, the root of the integral of g^2 = c k^(2s) from 0 to t.
    """
    if isinstance(sde, sgmse.BBED):
        return (sde.c * (sde.k ** (2 * t) - 1) / (2 * math.log(sde.k))).sqrt()
    return sde.std(t)


def training_times(sde, n, device=None):
    """(t, t_next): n random neighbours of the grid, each (n,)."""
    times = time_grid(sde).to(device)
    i = torch.randint(len(times) - 1, (n,), device=device)
    return times[i], times[i + 1]


def time_grid(sde, N=30):
    """t_0 = T down to t_(N-1) = t_eps, evenly: (N,)."""
    return torch.linspace(sde.T, sde.t_eps, N)


# ------------------------------------------------------------ solver steps to the next time
# x, y complex (B, 1, F, T); t, t_next (B,), t_next < t; score: function (x, y, t) ->
# complex (B, 1, F, T). Each returns x_next, complex (B, 1, F, T).

def pc_step(score, x, y, t, t_next, sde, noise=True, snr=0.5):
    """A Langevin step at t, then a reverse step: the paper's teacher. Two evaluations.

    `noise` is that of the second step; the Langevin step has its noise in any case, as
    released.
    """
    x = sgmse.langevin_step(score, x, y, t, sde, snr)
    mean, scale = sgmse.reverse_step(score, x, y, t, per_bin(t - t_next), sde)
    return mean + scale * torch.randn_like(x) if noise else mean


def euler_step(score, x, y, t, t_next, sde, noise=True):
    """An Euler step of the PF-ODE; `noise` adds that of the SDE. One evaluation."""
    dt = per_bin(t - t_next)
    x_next = x - sgmse.flow_velocity(score, x, y, t, sde) * dt
    return with_noise_of_sde(x_next, t, dt, sde) if noise else x_next


def heun_step(score, x, y, t, t_next, sde, noise=True):
    """A Heun step of the PF-ODE; `noise` as in euler_step. Two evaluations."""
    dt = per_bin(t - t_next)
    v = sgmse.flow_velocity(score, x, y, t, sde)
    v = (v + sgmse.flow_velocity(score, x - v * dt, y, t_next, sde)) / 2
    x_next = x - v * dt
    return with_noise_of_sde(x_next, t, dt, sde) if noise else x_next


def with_noise_of_sde(x, t, dt, sde):
    """x + g(t) sqrt(dt) z."""
    return x + per_bin(sde.diffusion(t)) * dt.sqrt() * torch.randn_like(x)


def mix_step(score, x, y, t, t_next, sde, noise=True):
    """The mean of a reverse SDE step and an Euler step of the PF-ODE. One evaluation.

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

def consistency_loss(f, f_target, step, x0, y, t, t_next, z, sde, weight=1):
    """E w |f(x_t, y, t) - f_target(x_next, y, t_next)|^2, mean over bins: (loss, f(x_t)).

    f, f_target: functions (x, y, t) -> complex (B, 1, F, T). step: function (x_t, y, t,
    t_next) -> x_next. x0, y, z complex (B, 1, F, T); t, t_next, weight (B,). No gradient
    reaches f_target or the step.
    """
    xt = sgmse.diffuse(x0, y, t, z, sde)
    with torch.no_grad():
        target = f_target(step(xt, y, t, t_next), y, t_next)
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
    """The times of N evaluations of f: even, from T, without t_eps, where f is nearly the
    identity.
    """
    return torch.linspace(sde.T, sde.t_eps, N + 1)[:N].tolist()


def multistep(f, y, sde, N=1):
    """N evaluations: f at T, then N - 1 times the noise of an earlier time and f again.

    y complex (B, 1, F, T) -> the same. The state for f at t is mean(x_hat, y, t) + std z;
    the released code leaves out that the mean moves towards y.
    """
    first, *later = refinement_times(sde, N)
    x_hat = f(sde.prior(y, first), y, sgmse.expand_time(first, y))
    for time in later:
        t = sgmse.expand_time(time, y)
        x_hat = f(sgmse.diffuse(x_hat, y, t, torch.randn_like(y), sde), y, t)
    return x_hat


# -------------------------------------------------------------------------------- the model

class ConsistencyModel(train.Method):
    """A one-step network, its teacher while it is trained, and its process."""

    Config, presets = Config, PRESETS
    inference = ("N",)

    def __init__(self, config=Config()):
        teacher = None
        if config.teacher and not train.is_fingerprint(config.teacher):
            if config.solver.startswith("renoise"):
                raise ValueError(f"--solver {config.solver} needs no --teacher; pc, euler, "
                                 "heun and mix do")
            teacher = train.Teacher(config.teacher, sgmse.ScoreSDE)
            config = from_teacher(teacher.model.config, config)
            config = dataclasses.replace(config, teacher=teacher.record)
        super().__init__(config)
        self.teacher = teacher
        if config.sde == "ouve":
            self.sde = sgmse.OUVE(config.theta, config.sigma_min, config.sigma_max,
                                  t_eps=config.t_eps)
        else:
            self.sde = sgmse.BBED(config.k, config.c, t_eps=config.t_eps)
        self.net = self.network(version=2)

    def prepare(self, fresh):
        """Before training. A `fresh` model starts from its teacher's weights.

        Raises ValueError for a teacher that is missing or has changed.
        """
        if self.config.solver.startswith("renoise"):
            self.config = dataclasses.replace(self.config, teacher="")
            return
        if not self.config.teacher:
            raise ValueError(f"--solver {self.config.solver} needs a --teacher, weights of"
                             " sgmse.py; --solver renoise trains without one")
        if self.teacher is None:  # of an earlier training, by its name
            self.teacher = train.Teacher(self.config.teacher, sgmse.ScoreSDE)
        if fresh:
            self.net.load_state_dict(self.teacher.model.net.state_dict())

    def loss(self, batch):
        """batch: clean and noisy waves (B, L) at level 1. Returns (loss, its parts)."""
        config, (x0, y) = self.config, self.spectra(batch)                 # (B, 1, F, T)
        t, t_next = training_times(self.sde, len(x0), x0.device)
        z = torch.randn_like(x0)
        consistency, estimate = consistency_loss(
            self, self.target, self.solver_step(x0, z), x0, y, t, t_next, z, self.sde,
            time_weight(t, config.weight, config.sigma_data))
        waveform, parts = losses.waveform_terms(
            self.wave(x0), self.wave(estimate), pesq=config.pesq_weight,
            si_sdr=config.si_sdr_weight)
        loss = config.consistency_weight * consistency + waveform
        return loss, {"consistency": consistency.detach(), **parts}

    def solver_step(self, x0, z):
        """The function (x_t, y, t, t_next) -> x_next of `solver`, for x_t of x0 and z."""
        config, sde = self.config, self.sde
        if config.solver.startswith("renoise"):
            shared = z if config.solver == "renoise_shared" else None
            return lambda xt, y, t, t_next: renoised(x0, y, t_next, sde, shared)
        step = {"pc": functools.partial(pc_step, snr=config.snr), "euler": euler_step,
                "heun": heun_step, "mix": mix_step}[config.solver]
        score = self.teacher.to(x0.device).score
        return lambda xt, y, t, t_next: step(score, xt, y, t, t_next, sde,
                                             config.stochastic)

    def forward(self, xt, y, t):
        """f(x_t, y, t), the clean estimate: complex (B, 1, F, T)."""
        self.calls += 1
        std, std_eps = per_bin(noise_level(self.sde, t)), 0
        if self.config.strict:
            std_eps = noise_level(self.sde, t.new_tensor([self.sde.t_eps]))
        c_in, c_skip, c_out = sgmse.edm_scaling(std, self.config.sigma_data, std_eps)
        c_in = c_in if self.config.c_in == "edm" else 1
        out = self.net(torch.cat([c_in * xt, c_in * y], dim=1), t)       # F of the equation
        if self.config.form == "edm":
            return c_skip * xt + c_out * out
        return c_skip * xt + (1 - c_skip) * (y + out)

    def target(self, xt, y, t):
        """f with the averaged weights."""
        if self.ema is None:
            return self(xt, y, t)
        return torch.func.functional_call(self, self.ema.shadow, (xt, y, t))

    def sample(self, y):
        """Noisy spectrogram -> clean one, complex (B, 1, F, T)."""
        return multistep(self, y, self.sde, self.config.N)


def from_teacher(theirs, ours):
    """`ours`, a Config, with process, spectrogram and network of a teacher's sgmse.Config.

    Raises ValueError for a teacher whose network is not that of a consistency function.
    """
    scaling = theirs.objective, theirs.c_skip, theirs.c_out, theirs.network_scaling
    form = {("precond_denoiser", "edm", "edm", "none"): "edm",
            ("data_prediction", "y", "1", "none"): "data"}.get(scaling)
    if theirs.version != 2 or form is None or theirs.sde == "sbve":
        raise ValueError("expected a teacher of the preset edm, small or tiny of sgmse.py; "
                         f"it has --sde {theirs.sde} --objective {theirs.objective} "
                         f"--c-skip {theirs.c_skip} --c-out {theirs.c_out}")
    shared = {field.name for field in dataclasses.fields(ours)} & {
        field.name for field in dataclasses.fields(theirs)}
    own = {"num_frames", "pad_mode", "N", "snr", "pesq_weight"}
    # Published: the input of an edm teacher's distilled model is not scaled.
    own |= {"c_in"} if form == "edm" and ours.c_in == "1" else set()
    taken = {name: getattr(theirs, name) for name in shared - own}
    return dataclasses.replace(ours, form=form, **taken)


if __name__ == "__main__":
    commands.main(ConsistencyModel)
