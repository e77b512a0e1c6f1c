# %% [markdown]
# # 4 Consistency: learn in one evaluation where sixty would end
#
# A trained score model, the teacher, moves a state $x_t$ one small step down its process. The student $f$ learns to say the same before and after that step, at every time; at the smallest time it is tied to its input. Then one evaluation of $f$ ends where the whole walk would.
#
# **You will** see the boundary, the teacher's moves, and a fact that the paper's title hides: which *move* the teacher makes decides if the student samples or averages, and whether the move's noise is kept does not. Papers: ROSE-CD (Xu, Yan, Kleijn, arXiv 2507.05688), *Consistency Models* (Song et al., arXiv 2303.01469).

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, recording, show,
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
# ## Hear it
#
# A voice at a waterfall, 2.5 dB: the teacher with its 15 evaluations, and `consistency`, distilled from it, with one.

# %%
clean, noisy = recording("waterfall")
student = pretrained("consistency")
teacher_wave, student_wave = enhance(pretrained("sgmse_stage1"), noisy), enhance(student, noisy)
play(noisy=noisy, teacher_15_calls=teacher_wave, student_1_call=student_wave, clean=clean)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), sharey=True)
for axis, title, wave in zip(axes, ("noisy", "teacher, 15 calls", "student, 1 call", "clean"),
                             (noisy, teacher_wave, student_wave, clean)):
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s", ylabel="kHz" if title == "noisy" else "")
    if wave is not clean:
        print(f"{title}: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")
figure.colorbar(image, ax=axes, label="dB");

# %% [markdown]
# The student beats its teacher's sampler. Over 110 recordings it hardly beats the teacher's weights when these are asked once at $T$: -0.004 PESQ [-0.029, 0.021], 0.18 dB [-0.00, 0.35] and 0.005 ESTOI [0.003, 0.007] (`pretrained/README.md`). Most of the lead was there before distillation. Two draws of its noise give almost the same wave:

# %%
again = enhance(student, noisy, seed=1)
agreement = 10 * ((student_wave ** 2).sum() / ((student_wave - again) ** 2).sum()).log10().item()
print(f"two draws agree to {agreement:.0f} dB: it is a predictor, not a sampler")
below("difference of two draws, dB", -agreement, -30)

# %% [markdown]
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $f=c_{skip}x_t+c_{out}F$ | consistency function around a network $F$ | `sgmse.edm_scaling`, `ConsistencyModel.forward` |
# | $t_0=T>\dots>t_{N-1}=t_\varepsilon$ | times | `time_grid` |
# | $x_{t_i}\to\hat x_{t_{i+1}}$ | a move of the teacher, or of nobody | `pc_step`, `euler_step`, `heun_step`, `mix_step`; `renoised` |
# | $E\,w\,\lvert f(x_{t_i})-f_{ema}(\hat x_{t_{i+1}})\rvert^2$ | consistency loss | `consistency_loss` |
# | $f(y+\sigma_Tz)$ | one evaluation; then perhaps more | `multistep` |
#
# ## The boundary
#
# $$f(x_t,y,t)=c_{skip}\,x_t+c_{out}\,F(x_t,y,t),\qquad c_{skip}=\frac{\sigma_d^2}{(\sigma-\sigma_\varepsilon)^2+\sigma_d^2},\quad c_{out}=\frac{(\sigma-\sigma_\varepsilon)\,\sigma_d}{\sqrt{\sigma^2+\sigma_d^2}}$$
#
# Published: $\sigma_\varepsilon=0$, so that $f$ is the identity at $\sigma=0$, which no time reaches. Strict: $\sigma_\varepsilon=\sigma(t_\varepsilon)$.

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
    moved = (student(x, y, torch.tensor([student.sde.t_eps])) - x).abs().max()
check("the shipped model at t_eps: |f(x) - x|", moved.item(), 0, 1e-6)
t = torch.linspace(0.03, 1, 100)
plt.figure(figsize=(4.5, 2.6))
for label, eps, style in (("published", 0.0, "-"), ("strict", OUVE.std(t[:1]), ":")):
    for curve, name, color in zip(sgmse.edm_scaling(OUVE.std(t), std_eps=eps)[1:], ("c_skip", "c_out"),
                                  ("tab:blue", "tab:orange")):
        plt.plot(t.numpy(), curve.numpy(), style, color=color, label=f"{name}, {label}")
plt.xlabel("t")
plt.legend();

# %% [markdown]
# ## The moves
#
# | move | formula | what it is |
# |---|---|---|
# | `heun_step`, `euler_step` | $x-(f-\frac12g^2s)\,\Delta$ | the ODE |
# | `pc_step` | Langevin step, then $x-(f-g^2s)\,\Delta+g\sqrt\Delta\,z$ | the paper's: a step of its sampler, noise kept |
# | `renoised`, shared | $\mu(x_0,y,t_{i+1})+\sigma z$ with the $z$ of $x_{t_i}$ | no teacher: Song et al. |
# | `renoised`, fresh | the same with a new $z$ | no teacher: the released weights |

# %%
show(consistency.pc_step, consistency.heun_step, consistency.renoised)

# %% [markdown]
# ### What a squared error makes of a random move
#
# The best answer to a random target is its mean: $f(x,t_i)=E[f(\hat x_{t_{i+1}})\mid x]$. For one Gaussian place of std 0.1 every move is affine on average, its slope is a number, and the product of the slopes over the grid says how much of the variance of $x_{t_\varepsilon}$ the student's output keeps. The slope of a move comes from two evaluations with one seed; that of `renoised` from its covariance with $x_t$.

# %%
one = torch.ones(1, 1, 1, 1, dtype=torch.complex128)
when = lambda t: torch.tensor([t], dtype=torch.float64)
share = lambda t: OUVE.mean(one, 0 * one, when(t)).real.item()
variance = lambda t: share(t) ** 2 * 0.01 + OUVE.std(when(t)).item() ** 2
gaussian = lambda x, y, t: -x / variance(t.item())


def kept(slope, N=30):
    """Share of the variance at t_eps that a student of this move keeps, on a grid of N times."""
    times = np.linspace(OUVE.T, OUVE.t_eps, N)
    product = np.prod([slope(t, t_next) for t, t_next in zip(times, times[1:])])
    return product ** 2 * variance(OUVE.T) / variance(OUVE.t_eps)


def of(move, **options):
    def slope(t, t_next):
        ends = []
        for x in (one, 0 * one):
            torch.manual_seed(0)
            ends.append(move(gaussian, x, 0 * one, when(t), when(t_next), OUVE, **options))
        return (ends[0] - ends[1]).real.item()
    return slope


def of_renoised(shared):
    def slope(t, t_next):
        by_x0 = consistency.renoised(one, 0 * one, when(t_next), OUVE, 0 * one).real.item()
        by_z = consistency.renoised(0 * one, 0 * one, when(t_next), OUVE, one).real.item() if shared else 0
        return (share(t) * by_x0 * 0.01 + OUVE.std(when(t)).item() * by_z) / variance(t)
    return slope


measured = {}
for name, slope, known in (("Heun", of(consistency.heun_step), 1.003), ("shared noise", of_renoised(True), 0.920),
                           ("Euler", of(consistency.euler_step), 0.812), ("mix", of(consistency.mix_step), 0.034),
                           ("pc", of(consistency.pc_step), 5.0e-16), ("fresh noise", of_renoised(False), 1.5e-60)):
    measured[name] = kept(slope)
    check(f"{name}: variance kept", measured[name], known, 0.04 * known)
plt.figure(figsize=(5.5, 2.4))
plt.barh(list(measured), list(measured.values()), log=True, left=1e-61,
         color=["tab:green"] * 3 + ["tab:orange"] + ["tab:red"] * 2)
plt.gca().invert_yaxis()
plt.xlim(1e-61, 10)
plt.xlabel("share of the variance that the student keeps");

# %% [markdown]
# The ODE's moves give the *flow map*: a sampler. The paper's move and the released weights' give the *conditional mean*: a predictor, bootstrapped through thirty levels. Both are fair aims; they are not the same.
#
# ## The loss
#
# $$\mathcal L=E\;w(t_i)\,\lvert f(x_{t_i},y,t_i)-f_{ema}(\hat x_{t_{i+1}},y,t_{i+1})\rvert^2$$

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
consistency.consistency_loss(watched("student", f), watched("target", f), watched("move", lambda x, *_: x), x0, y,
                             times[:8], times[1:9], torch.randn_like(x0), OUVE)
print("gradient on:", seen)
assert seen == {"student": True, "target": False, "move": False}

# %% [markdown]
# ## On the toy
#
# Two students of the exact teacher: one of Heun moves of the ODE, one of the paper's noisy predictor-corrector moves.

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
for axis, title, end in zip(axes, ("the exact flow, 60 calls and more", "student of Heun moves, 1 call",
                                   "student of noisy moves, 1 call"), (truth, ends["Heun"], ends["pc"])):
    toy.draw(axis, end, start, torch.stack([start.to(end.dtype), end]), title)
plt.figure(figsize=(4.5, 2.4))
plt.loglog(budgets, [row[0] for row in rows], "o-", color="tab:red", label="median distance")
plt.loglog(budgets, [row[2] for row in rows], "o-", color="tab:gray", label="loss")
plt.xticks(budgets, budgets)
plt.minorticks_off()
plt.xlabel("steps of training")
plt.legend();

# %% [markdown]
# The loss says little: it compares the student with itself, so it is small long before the answer is right.
#
# The point of the second student is no accident. It is the mean over the teacher's random walks, whatever the start:

# %%
torch.manual_seed(0)
starts = torch.tensor([-0.5, 0.5, 0.5j, -0.5j], dtype=torch.complex64) + toy.Y
n = fast(4000, 500)
with torch.no_grad():
    for s in starts:
        x, y = s.expand(n, 1, 1, 1), toy.noisy(n)
        for t, t_next in zip(times[:-1], times[1:]):
            x = pc(x, y, t.expand(n), t_next.expand(n))
        output, mean = f_pc(s.reshape(1, 1, 1, 1), toy.noisy(1), T[:1]).item(), x.mean().item()
        print(f"start {s.item():.2f}: distilled model {output:.2f}, mean of {n} walks {mean:.2f}")
        below("   apart", abs(output - mean), 0.05, trained=True)

# %% [markdown]
# ## Where the prior's mismatch goes
#
# Both students start from $y+\sigma_Tz$, as their teacher does. The flow map is faithful to it, mismatch included ([notebook 2](2_score.ipynb)): the energy distance of the exact flow is no better. Started from the true marginal, both are right.

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
        print(f"from the {name}: energy distance of the exact flow {flow_off:.3f}, of the student {student_off:.3f}")
below("from the true marginal", student_off, 0.02, trained=True)

# %% [markdown]
# ## More than one evaluation
#
# $$x_\tau=\mu(\hat x,y,\tau)+\sigma_\tau z,\qquad\hat x\leftarrow f(x_\tau,y,\tau)$$
#
# Even a predictor becomes a sampler when its answer is made noisy and asked again. But the process has a mean that slides towards $y$: the released code leaves that out, and the state is then one that $f$ has never seen. Eight evaluations of the best predictor, $E[x_0\mid x_t]$:

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
below("energy distance", distances[0], 0.03)
below("... over that of the released form", distances[0] / distances[1], 0.05)
axes = toy.panels(2)
toy.draw(axes[0], ours, title=f"8 calls: {distances[0]:.3f}")
toy.draw(axes[1], released, title=f"without the mean's shift: {distances[1]:.3f}")

# %% [markdown]
# ## Losses on the waveform
#
# $$-10\log_{10}\frac{\lVert as\rVert^2}{\lVert\hat s-as\rVert^2},\qquad a=\frac{\hat s^\top s}{\lVert s\rVert^2}\ \text{(freed of their means)}$$
#
# and the disturbance of PESQ, with weights of $5\cdot10^{-5}$ and $5\cdot10^{-4}$.

# %%
show(losses.si_sdr_loss)

# %%
estimate, target = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[1.0, 2, 3, 5]])
check("(1, 2, 3, 4) for (1, 2, 3, 5), dB", losses.si_sdr_loss(target, estimate).item(), -14.4974, 1e-3)

# %% [markdown]
# ## Train small
#
# Without a teacher (`solver="renoise"`), on the three recordings, a quarter of a minute. It shows the loop and a falling loss; a model is `python consistency.py train --data DIR --preset small --teacher sgmse_stage1`.

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
# ## Trained on a corpus
#
# Rows of the [experiments](experiments/README.md), where the commands stand, with voices that training never heard: mean [95 % interval over recordings]. "with" and "without": two students that heard the noise of the teacher's move in training, or not, tested over the level of the noise.

# %%
experiment("budget", "score model, one-step", "consistency", test="test")
print()
experiment("robustness", test="test", columns=("pesq", "si_sdr"))

# %% [markdown]
# Without the noise of the move the student is better at every level of noise: the randomised trajectory makes it no more robust here. Each loss on the waveform buys its own score, and without both the student ends below the noisy speech.
#
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. The published boundary holds at $\sigma=0$, not at $t_\varepsilon$ (c).
# 2. $c_{in}=1$ for the student only; its teacher has EDM's (c).
# 3. The average warms up: $\min(0.999,\frac{1+n}{10+n})$ after $n$ updates (c). On the toy a slow average is fatal: every level waits for the one below.
# 4. BBED's std falls again towards $y$. The boundary goes by the noise collected so far, `noise_level` (m).
#
# ## Where paper and code differ
#
# - The repository holds two algorithms: distillation as in the paper, and training without a teacher, which gave the released weights.
# - Its ODE moves take a step of 1/30, the grid's is 0.97/29.
# - It takes the teacher's raw weights; here the averaged ones.
# - Refinement: see above.
#
# ## Exercises
#
# Put your own value into the cell below; it says how close it is.
#
# **1.** Which fraction of the variance does a model distilled with `pc_step` keep on 15 times instead of 30?
#
# <details><summary>Hint</summary>
#
# `kept` and `of` above compute it for 30.
#
# </details>
#
# <details><summary>Solution</summary>
#
# `kept(of(consistency.pc_step), 15)`: $1.8\cdot10^{-10}$. Fewer steps average less often.
#
# </details>
#
# **2.** With the strict boundary $f$ returns $x_{t_\varepsilon}$, not $x_0$. At what level in dB does $y$ remain in its mean?
#
# <details><summary>Hint</summary>
#
# OUVE's mean has the weight $1-e^{-\theta t}$ for $y$, with $\theta=1.5$ and $t_\varepsilon=0.03$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# $20\log_{10}(1-e^{-1.5\cdot0.03})=-27.1$ dB.
#
# </details>
#
# **3.** `euler_step` with noise and without: by which factor do the kept variances differ?
#
# <details><summary>Hint</summary>
#
# Which part of a step does a squared error see?
#
# </details>
#
# <details><summary>Solution</summary>
#
# By 1: the noise has mean 0 and a squared error does not see it. What matters is the mean of the step; that of pc pulls twice as hard, with $g^2s$ instead of $\frac12g^2s$.
#
# </details>

# %%
answer("1", 1.8e-10, kept(of(consistency.pc_step), 15), 1e-11, "kept takes the number of times as its second argument")
answer("2", -27.1, 20 * np.log10(1 - share(0.03)), 0.1, "1 - exp(-0.045) is an amplitude")
answer("3", 1, kept(of(consistency.euler_step, noise=False)) / kept(of(consistency.euler_step)), 0.01, "the mean of both steps is the same")
