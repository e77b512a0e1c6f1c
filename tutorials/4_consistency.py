# %% [markdown]
# # 4 Consistency: one evaluation instead of sixty
#
# A trained score model, the teacher, takes one small solver step from the state $x_t$ towards $t=0$. A second network $f$, the distilled model, learns to give the same output before and after that step, at every time; at the smallest time it is tied to its input. One evaluation of $f$ then ends where all the steps of the teacher would end.
#
# **You will** see the boundary condition, the solver steps, and that the *kind of solver step* decides whether the distilled model samples or averages, while the noise that is drawn in the step does not. The page runs in about a minute and a half on one CPU core. Papers: ROSE-CD (Xu, Yan, Kleijn, [arXiv 2507.05688](https://arxiv.org/abs/2507.05688)), *Consistency Models* (Song et al., [arXiv 2303.01469](https://arxiv.org/abs/2303.01469)).
#
# | symbol | meaning | value |
# |---|---|---|
# | $x_0,\ y,\ x_t$ | clean, noisy and intermediate spectrogram; $t=0$: clean | complex |
# | $T,\ t_\varepsilon$ | latest and earliest time of OUVE | 1, 0.03 |
# | $\theta,\ \sigma_{\min},\ \sigma_{\max}$ | OUVE: rate towards $y$, parameters of $g$ | 1.5, 0.05, 0.5 |
# | $f_t,\ g_t,\ s$ | drift, diffusion, score; $f(x,y,t)$ with three arguments is the distilled model | |
# | $\sigma_d$ | rms of a clean bin (`sigma_data`) | 0.1 |
# | $\sigma_\varepsilon$ | noise at which $f$ is the identity | 0, or $\sigma(t_\varepsilon)$ |
# | $F$ | the network inside $f$; $f_{ema}$: $f$ with averaged weights | |
# | $N$ | times of the grid | 30 |
# | NFE | network evaluations for one recording | |

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, read_rows, recording, show,
                   spectrogram, tiny, train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import consistency
import losses
import metrics
import sgmse
import toy

OUVE = sgmse.OUVE()

# %% [markdown]
# ## Listen
#
# A speaker at a waterfall, 2.5 dB: the teacher's sampler with NFE 15 from $t=0.5$, the *one-step prediction* of the same teacher (one evaluation at $t=T$, and $E[x_0\mid x_T,y]$ from its score, `sgmse.posterior_mean`), and `consistency`, distilled from the teacher, with NFE 1.

# %%
clean, noisy = recording("waterfall")
student = pretrained("consistency")
teacher_wave, student_wave = enhance(pretrained("sgmse_stage1"), noisy), enhance(student, noisy)
one_step = enhance(pretrained("sgmse_stage1", sampler="one_step", start=1.0), noisy)
play(noisy=noisy, teacher_NFE_15=teacher_wave, teacher_one_step=one_step, distilled_NFE_1=student_wave, clean=clean)
figure, axes = plt.subplots(1, 5, figsize=(9, 2.5), sharey=True)
for axis, title, wave in zip(axes, ("noisy", "teacher, NFE 15", "teacher, one-step", "distilled, NFE 1", "clean"),
                             (noisy, teacher_wave, one_step, student_wave, clean)):
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s", ylabel="kHz" if title == "noisy" else "")
    if wave is not clean:
        print(f"{title}: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")
figure.colorbar(image, ax=axes, label="dB")
for row in read_rows("shipped_differences")[:2]:
    values = ", ".join(f"{column} {float(row[column]):+.3f} [{float(row[column + '_low']):.3f}, {float(row[column + '_high']):.3f}]"
                       for column in ("pesq", "estoi", "si_sdr"))
    print(f"{row['row']}, n = {row['n']}: {values}")

# %% [markdown]
# The sampler of the teacher leaves more noise between the harmonics than the other two. Over a test set (last two lines) the distilled model is far better than the sampler of its teacher, but hardly better than the one-step prediction of the teacher's own weights: most of the gain was there before the distillation. Two outputs with different noise are almost the same wave:

# %%
again = enhance(student, noisy, seed=1)
agreement = 10 * ((student_wave ** 2).sum() / ((student_wave - again) ** 2).sum()).log10().item()
print(f"two outputs with different seeds agree to {agreement:.0f} dB: it is a predictor, not a sampler")
below("difference of two draws, dB", -agreement, -30)

# %% [markdown]
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $f=c_{skip}x_t+c_{out}F$ | consistency function around a network $F$ | `sgmse.edm_scaling`, `ConsistencyModel.forward` |
# | $t_0=T>\dots>t_{N-1}=t_\varepsilon$ | times | `time_grid` |
# | $x_{t_i}\to\hat x_{t_{i+1}}$ | a solver step with or without the teacher | `pc_step`, `euler_step`, `heun_step`, `mix_step`; `renoised` |
# | $E\,w\left\lvert f(x_{t_i})-f_{ema}(\hat x_{t_{i+1}})\right\rvert^2$ | consistency loss | `consistency_loss` |
# | $f(y+\sigma_Tz)$ | one evaluation; refinement with several | `multistep` |
#
# ## The boundary
#
# $$f(x_t,y,t)=c_{skip}\,x_t+c_{out}\,F(x_t,y,t),\qquad c_{skip}=\frac{\sigma_d^2}{(\sigma-\sigma_\varepsilon)^2+\sigma_d^2},\quad c_{out}=\frac{(\sigma-\sigma_\varepsilon)\,\sigma_d}{\sqrt{\sigma^2+\sigma_d^2}}$$
#
# (The toy and the numbers of this notebook are for OUVE, the process of the paper; the shipped models use BBED.) Published: $\sigma_\varepsilon=0$, so that $f$ is the identity at $\sigma=0$, which no time of the grid reaches. Strict: $\sigma_\varepsilon=\sigma(t_\varepsilon)$.

# %%
show(sgmse.edm_scaling)

# %%
std = OUVE.std(torch.tensor([1.0, 0.03], dtype=torch.float64))
_, c_skip, c_out = sgmse.edm_scaling(std)
for value, known in zip((*c_skip, *c_out), (0.061993, 0.965757, 0.096851, 0.018505)):
    check("published, t = 1 and 0.03", value.item(), known, 1e-6)
strict = sgmse.edm_scaling(std[1], std_eps=std[1])[1:]
check("strict, t = 0.03: c_skip", strict[0].item(), 1, 0)
check("strict, t = 0.03: c_out", strict[1].item(), 0, 0)
x, y = torch.randn(2, 1, 1, 256, 16, dtype=torch.complex64)
with torch.no_grad():
    change = (student(x, y, torch.tensor([student.sde.t_eps])) - x).abs().max()
check("the shipped model at t_eps: |f(x) - x|", change.item(), 0, 1e-6)
t = torch.linspace(0.03, 1, 100)
plt.figure(figsize=(4.5, 2.6))
for label, eps, style in (("published", 0.0, "-"), ("strict", OUVE.std(t[:1]), ":")):
    for curve, name, color in zip(sgmse.edm_scaling(OUVE.std(t), std_eps=eps)[1:], ("c_skip", "c_out"),
                                  ("tab:blue", "tab:orange")):
        plt.plot(t.numpy(), curve.numpy(), style, color=color, label=f"{name}, {label}")
plt.xlabel("t")
plt.legend();

# %% [markdown]
# At $t_\varepsilon$ (left) the strict curves (dotted) reach exactly 1 and 0, the published ones (solid) miss them by a few percent.
#
# ## Solver steps
#
# | step | formula | meaning |
# |---|---|---|
# | `heun_step`, `euler_step` | $x-(f_t-\frac12g^2s)\,\Delta$ | the ODE |
# | `pc_step` | Langevin step, then $x-(f_t-g^2s)\,\Delta+g\sqrt\Delta\,z$ | the paper: a stochastic step of its sampler |
# | `mix_step` | the mean of a step of the SDE and one of the ODE | half of each |
# | `renoised`, shared | $\mu(x_0,y,t_{i+1})+\sigma z$ with the $z$ of $x_{t_i}$ | no teacher: Song et al. |
# | `renoised`, fresh | the same with a new $z$ | no teacher: the released weights |

# %%
show(consistency.pc_step, consistency.heun_step, consistency.renoised)

# %% [markdown]
# ### What a squared error makes of a stochastic step
#
# The minimiser of a squared error with a random target is the mean of the target: $f(x,t_i)=E[f(\hat x_{t_{i+1}})\mid x]$. For one Gaussian place of std 0.1 every solver step is affine on average, and its slope is a number. The squared product of the slopes over the grid, times the ratio of the variances at $T$ and $t_\varepsilon$, is the fraction of the variance of $x_{t_\varepsilon}$ that the output of the distilled model keeps. The slope of a step follows from two evaluations with the same seed, that of `renoised` from its covariance with $x_t$.
#
# <details><summary>Derivation: the distilled model of a chain of steps</summary>
#
# Tie $f(x,t_\varepsilon)=x$. If the loss is minimised at each time, $f(x_{t_i},t_i)=E[f(\hat x_{t_{i+1}},t_{i+1})\mid x_{t_i}]$. Insert the same equation for $t_{i+1}$, then for $t_{i+2}$, and so on:
#
# $$f(x_T,T)=E\big[\hat x_{t_\varepsilon}\mid x_T\big],$$
#
# the mean over all chains of steps from $x_T$. If the steps are deterministic, there is one chain, and $f$ is the *flow map*. If they are stochastic and forget their start, the mean is that of the whole distribution, a constant. With affine steps of slope $a_i$ the chain gives $f(x_T)=\prod_ia_i\,x_T+\dots$, and the variance of the output is $\prod_ia_i^2\cdot V_T$. The noise inside a step has mean zero and does not enter; its *slope* does. A step of the ODE contains half as much of the score as a step of the SDE and contracts less; a step of the SDE restores the variance by its noise, which the mean removes.
#
# </details>

# %%
one = torch.ones(1, 1, 1, 1, dtype=torch.complex128)
when = lambda t: torch.tensor([t], dtype=torch.float64)
weight = lambda t: OUVE.mean(one, 0 * one, when(t)).real.item()
variance = lambda t: weight(t) ** 2 * 0.01 + OUVE.std(when(t)).item() ** 2
gaussian = lambda x, y, t: -x / variance(t.item())


def kept(slope, N=30):
    """Fraction of the variance at t_eps that the model distilled with this step keeps, on a grid of N times."""
    times = np.linspace(OUVE.T, OUVE.t_eps, N)
    product = np.prod([slope(t, t_next) for t, t_next in zip(times, times[1:])])
    return product ** 2 * variance(OUVE.T) / variance(OUVE.t_eps)


def of(step, **options):
    def slope(t, t_next):
        ends = []
        for x in (one, 0 * one):
            torch.manual_seed(0)
            ends.append(step(gaussian, x, 0 * one, when(t), when(t_next), OUVE, **options))
        return (ends[0] - ends[1]).real.item()
    return slope


def of_renoised(shared):
    def slope(t, t_next):
        by_x0 = consistency.renoised(one, 0 * one, when(t_next), OUVE, 0 * one).real.item()
        by_z = consistency.renoised(0 * one, 0 * one, when(t_next), OUVE, one).real.item() if shared else 0
        return (weight(t) * by_x0 * 0.01 + OUVE.std(when(t)).item() * by_z) / variance(t)
    return slope


measured = {}
for name, slope, known in (("Heun", of(consistency.heun_step), 1.003), ("shared noise", of_renoised(True), 0.920),
                           ("Euler", of(consistency.euler_step), 0.812), ("mix", of(consistency.mix_step), 0.034),
                           ("pc", of(consistency.pc_step), 5.0e-16), ("fresh noise", of_renoised(False), 1.5e-60)):
    measured[name] = kept(slope)
    check(f"{name}: variance kept", measured[name], known, 0.04 * known)
plt.figure(figsize=(5.5, 2.4))
bars = plt.barh(list(measured), list(measured.values()), color=["tab:blue"] * 3 + ["tab:orange"] * 3)
plt.bar_label(bars, [f"{value:.2g}" for value in measured.values()], padding=4)
plt.gca().invert_yaxis()
plt.xlim(0, 1.15)
plt.xlabel("fraction of the variance that the distilled model keeps");

# %% [markdown]
# Steps of the ODE and shared noise (blue) keep at least four fifths of the variance, Heun all of it: the distilled model is the *flow map*, a sampler. The stochastic steps (orange and below), that of the paper and that of the released weights among them, keep less than 4 %: the distilled model is the *conditional mean*, a predictor. Both are reasonable aims, but they differ.
#
# ## The loss
#
# $$\mathcal L=E\;w(t_i)\left\lvert f(x_{t_i},y,t_i)-f_{ema}(\hat x_{t_{i+1}},y,t_{i+1})\right\rvert^2$$
#
# $w$ is a weight that depends on the time. The gradient goes through the first term only; $f_{ema}$ follows $f$ as a moving average.

# %%
show(consistency.time_grid, consistency.consistency_loss)

# %%
seen = {}
def watched(name, function):
    def call(*args):
        seen[name] = torch.is_grad_enabled()
        return function(*args)
    return call


x0, y, times = toy.clean(8), toy.noisy(8), consistency.time_grid(OUVE)
net = toy.Plane()
f = lambda x, y, t: net(x, t)
consistency.consistency_loss(watched("student", f), watched("target", f), watched("step", lambda x, *_: x), x0, y,
                             times[:8], times[1:9], torch.randn_like(x0), OUVE)
print("gradient on:", seen)
assert seen == {"student": True, "target": False, "step": False}

# %% [markdown]
# ## On the toy
#
# Two models distilled from the exact score: one with Heun steps of the ODE, one with the stochastic predictor-corrector steps of the paper.

# %%
show(toy.learn_consistency)

# %%
exact = toy.Exact(OUVE)
torch.manual_seed(0)
heun = lambda x, y, t, t_next: consistency.heun_step(exact, x, y, t, t_next, OUVE, noise=False)
pc = lambda x, y, t, t_next: consistency.pc_step(exact, x, y, t, t_next, OUVE)
start = OUVE.prior(toy.noisy(1000))
speed = lambda x, t: sgmse.flow_velocity(exact, x, toy.noisy(len(x), torch.complex128), t, OUVE)
truth = toy.flow(speed, start, [1.0, OUVE.t_eps])[-1]
T = torch.ones(1000)


def missed(f):
    """Distance from where the exact flow ends: (median, 90 % quantile)."""
    with torch.no_grad():
        away = (f(start, toy.noisy(1000), T) - truth).abs().flatten()
    return away.median().item(), away.quantile(0.9).item()


budgets, rows = fast((250, 500, 1000, 2000), (10, 20)), []
for steps in budgets:
    torch.manual_seed(0)
    f_heun, values = toy.learn_consistency(OUVE, heun, steps)
    rows.append((*missed(f_heun), fifths(values)[1]))
    print(f"{steps} steps: loss {rows[-1][2]:.1e}, median distance {rows[-1][0]:.3f}")
below("Heun: median distance from the exact flow", rows[-1][0], 0.08, trained=True)
below("Heun: 90 % of the points are nearer than", rows[-1][1], 0.2, trained=True)
torch.manual_seed(0)
f_pc, _ = toy.learn_consistency(OUVE, pc, fast(2000, 20))
with torch.no_grad():
    ends = {name: f(start, toy.noisy(1000), T) for name, f in (("Heun", f_heun), ("pc", f_pc))}
check("Heun: spread of its outputs, as the exact flow's", toy.spread(ends["Heun"]), toy.spread(truth), 0.05,
      trained=True)
below("pc: spread of its outputs", toy.spread(ends["pc"]), 0.05, trained=True)

axes = toy.panels(3)
for axis, title, end in zip(axes, ("exact flow, NFE above 60", "Heun steps, NFE 1", "stochastic steps, NFE 1"),
                            (truth, ends["Heun"], ends["pc"])):
    toy.draw(axis, end, start, torch.stack([start.to(end.dtype), end]), title)
toy.animate(torch.stack([start, ends["Heun"]]), "distilled from Heun steps, NFE 1")

# %% [markdown]
# The model of the Heun steps (middle, and the animation) reproduces the exact flow (left), except for some points between the places, which the exact flow does not have and a smooth network cannot avoid. The model of the stochastic steps (right) maps all starts to one point.
#
# **Consistency along a trajectory.** On one path of the flow, $f(x_t,t)$ should be constant, and equal to the end of the path.

# %%
line = np.linspace(1, OUVE.t_eps, 30)
tracks = toy.flow(speed, start[:4], line)
plt.figure(figsize=(5, 2.6))
for k, color in enumerate(("tab:blue", "tab:orange", "0.3", "tab:cyan")):
    with torch.no_grad():
        said = torch.cat([f_heun(x[k:k + 1].to(torch.complex64), toy.noisy(1), torch.tensor([t], dtype=torch.float32))
                          for x, t in zip(tracks, line)]).real.flatten()
    plt.plot(line, tracks[:, k].real.flatten().numpy(), "-", color=color, linewidth=1)
    plt.plot(line, said.numpy(), "--", color=color, linewidth=2)
plt.xlim(1, 0)
plt.xlabel("t, from noisy to clean")
plt.ylabel("real part");

# %% [markdown]
# Solid: the real part of four paths of the flow. Dashed: the output of the distilled model at the same states. The dashed lines meet the ends of the paths and are almost horizontal; near $t=1$ the orange one still predicts another end: there the training has not finished.

# %%
plt.figure(figsize=(4.5, 2.4))
plt.loglog(budgets, [row[0] for row in rows], "o-", color="tab:blue", label="median distance")
plt.loglog(budgets, [row[2] for row in rows], "^-", color="tab:orange", label="loss")
plt.xticks(budgets, budgets)
plt.minorticks_off()
plt.xlabel("steps of training")
plt.legend();

# %% [markdown]
# The loss is a poor measure of progress: it compares the model with itself, so it is small long before the output is right.
#
# The single point of the second model is the mean over the teacher's random walks, for every start:

# %%
torch.manual_seed(0)
starts = torch.tensor([-0.5, 0.5, 0.5j, -0.5j], dtype=torch.complex64) + toy.Y
n = fast(4000, 500)
with torch.no_grad():
    for s in starts:
        x, y = s.expand(n, 1, 1, 1), toy.noisy(n)
        for t, t_next in zip(times[:-1], times[1:]):
            x = pc(x, y, t.expand(n), t_next.expand(n))
        value, mean = f_pc(s.reshape(1, 1, 1, 1), toy.noisy(1), T[:1]).item(), x.mean().item()
        print(f"start {s.item():.2f}: distilled {value:.2f}, mean of {n} walks {mean:.2f}")
        below("   distance", abs(value - mean), 0.05, trained=True)

# %% [markdown]
# ## The mismatch of the prior remains
#
# Both models start from $y+\sigma_Tz$, as their teacher does. The flow map preserves the mismatch of this start ([notebook 2](2_score.ipynb)): the energy distance of the exact flow is no better. Started from the true marginal, both are right.

# %%
torch.manual_seed(0)
reference = toy.clean(2000)
n = 1000
right = sgmse.diffuse(toy.clean(n), toy.noisy(n), T, torch.randn(n, 1, 1, 1, dtype=torch.complex64), OUVE)
with torch.no_grad():
    for name, x in (("prior", start), ("true marginal", right)):
        student_end = f_heun(x, toy.noisy(n), T)
        flow_end = toy.flow(speed, x, [1.0, OUVE.t_eps])[-1]
        student_off, flow_off = (toy.energy_distance(end, reference) for end in (student_end, flow_end))
        print(f"from the {name}: energy distance of the exact flow {flow_off:.4f}, distilled {student_off:.4f}, "
              f"floor {toy.floor(n, reference):.4f}")
below("from the true marginal", student_off, 0.02, trained=True)

# %% [markdown]
# ## Refinement with several evaluations
#
# $$x_\tau=\mu(\hat x,y,\tau)+\sigma_\tau z,\qquad\hat x\leftarrow f(x_\tau,y,\tau)$$
#
# Even a predictor becomes a sampler if noise is added to its output and the result is evaluated again. The mean of the process moves towards $y$; the released code omits this, so that $f$ receives states that do not occur in training. Eight evaluations of the best predictor, $E[x_0\mid x_t]$:

# %%
show(consistency.refinement_times, consistency.multistep)

# %%
torch.manual_seed(0)
y = toy.noisy(2000)
ours = consistency.multistep(exact.clean, y, OUVE, 8)
first, *later = consistency.refinement_times(OUVE, 8)
released = exact.clean(OUVE.prior(y), y, sgmse.expand_time(first, y))
for t in (sgmse.expand_time(time, y) for time in later):
    released = exact.clean(released + sgmse.per_bin(OUVE.std(t)) * torch.randn_like(y), y, t)
distances = [toy.energy_distance(x, reference) for x in (ours, released)]
below("energy distance", toy.report("8 evaluations", ours, reference), 0.03)
below("... over that of the released form", distances[0] / distances[1], 0.05)
axes = toy.panels(2)
toy.draw(axes[0], ours, title=f"NFE 8: {distances[0]:.3f}")
toy.draw(axes[1], released, title=f"without the mean's shift: {distances[1]:.3f}")

# %% [markdown]
# With the mean (left) the points lie in the three places; without its shift (right) the clouds lie beside them.
#
# ## Losses on the waveform
#
# $$-10\log_{10}\frac{\left\lVert as\right\rVert^2}{\left\lVert\hat s-as\right\rVert^2},\qquad a=\frac{\hat s^\top s}{\left\lVert s\right\rVert^2}\ \text{(means removed)}$$
#
# and the PESQ loss, with weights of $5\cdot10^{-5}$ and $5\cdot10^{-4}$.

# %%
show(losses.si_sdr_loss)

# %%
estimate, target = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 2, 3, 5]])
check("(1, 2, 3, 4) for (1, 2, 3, 5), dB", losses.si_sdr_loss(target, estimate).item(), -14.4974, 1e-3)

# %% [markdown]
# ## Train small
#
# Without a teacher (`solver="renoise"`), on the three recordings. This shows the training loop only. To train a useful model: `python consistency.py train --data DIR --preset small --teacher sgmse_stage1`.

# %%
torch.manual_seed(0)
method = tiny(consistency.ConsistencyModel, solver="renoise")
logged = train_small(method, fast(35, 4))
first, last = fifths(logged["consistency"])
print(f"{sum(p.numel() for p in method.parameters()):,} parameters, consistency {first:.4f} -> {last:.4f}")
below("last fifth over first fifth", last / first, 0.7, trained=True)
plt.figure(figsize=(5, 2.4))
plt.plot(logged["consistency"])
plt.xlabel("step")
plt.ylabel("consistency loss");

# %% [markdown]
# The loss of a step depends on the times that it draws, so the curve jumps; its mean, printed above, falls to about one half.
#
# ## Trained on a corpus
#
# Rows of the [experiments](experiments/README.md), which list the commands; the test speakers were not in the training data: mean [95 % interval over recordings]. "With" and "without": two models distilled with or without the noise of the teacher's step, tested over the signal-to-noise ratio.

# %%
experiment("budget", "score model, one-step", "consistency", test="test")
print()
experiment("robustness", test="test", columns=("pesq", "si_sdr"))

# %% [markdown]
# Without the noise of the step the distilled model is better at every signal-to-noise ratio: the randomised trajectory does not make it more robust here. ("Without PESQ": neither teacher nor distilled model had a PESQ loss; "alone" and "neither" refer to the distilled model.) Each loss on the waveform improves its own score, and without both the distilled model scores below the noisy speech.
#
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. The published boundary holds at $\sigma=0$, not at $t_\varepsilon$ (c).
# 2. $c_{in}=1$ for the distilled model only; its teacher has that of EDM (c).
# 3. The moving average warms up: its factor is $\min(0.999,\frac{1+n}{10+n})$ after $n$ updates (c). On the toy a slow average prevents learning: every time of the grid waits for the one below.
# 4. The std of BBED decreases again towards $y$. The boundary therefore uses the noise added so far, `noise_level` (m).
#
# ## Where paper and code differ
#
# - The repository contains two algorithms: distillation as in the paper, and training without a teacher, which gave the released weights.
# - Its ODE steps have the length 1/30, the spacing of the grid is 0.97/29.
# - It uses the raw weights of the teacher; here the averaged ones.
# - Refinement: see above.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** Which fraction of the variance does a model distilled with `pc_step` keep on 15 times instead of 30?
#
# <details><summary>Hint</summary>
#
# `kept` and `of` are defined above; the number of times is the second argument of `kept`.
#
# </details>
# <details><summary>Solution</summary>
#
# `kept(of(consistency.pc_step), 15)`: $1.8\cdot10^{-10}$. Fewer steps average less often.
#
# </details>
#
# **2.** With the strict boundary $f$ returns $x_{t_\varepsilon}$, not $x_0$. What is the level of the part of $y$ that remains in its mean, in dB relative to $y$ (a negative number)?
#
# <details><summary>Hint</summary>
#
# The weight of $y$ in the mean of OUVE is $1-e^{-\theta t}$.
#
# </details>
# <details><summary>Solution</summary>
#
# $20\log_{10}(1-e^{-1.5\cdot0.03})=-27.1$ dB.
#
# </details>
#
# **3.** Distil with `euler_step`, once with and once without noise in the step. What is the ratio of the variances that are kept?
#
# <details><summary>Hint</summary>
#
# A squared error sees only the mean of the target. What is the mean of the noise?
#
# </details>
# <details><summary>Solution</summary>
#
# 1: both keep 0.812. The mean of the step matters, and that of `pc_step` is pulled twice as strongly, with $g^2s$ instead of $\frac12g^2s$.
#
# </details>

# %%
answer("4.1", kept(of(consistency.pc_step), 15))
answer("4.2", 20 * np.log10(1 - weight(0.03)))
answer("4.3", kept(of(consistency.euler_step, noise=True)) / kept(of(consistency.euler_step, noise=False)))
