# %% [markdown]
# # 2 Score SDE: add noise, then run the film backwards
#
# A forward process slides the clean spectrogram $x_0$ towards the noisy $y$ while it adds Gaussian noise. Where it stands at any time is known in closed form. A network learns the *score*, the direction in which the state becomes more likely, and with the score the film runs backwards: from noisy speech to *a* clean speech that fits it.
#
# **You will** see the three processes, the score, the reverse SDE and its ODE and what each costs, and a mismatch at the start that every sampler inherits. Papers: SGMSE+ (arXiv 2208.05830), BBED (2302.14748), *Investigating Training Objectives* (2409.10753), bridge (Jukić et al., Interspeech 2024), Song et al. (ICLR 2021).

# %%
from tools import (below, check, enhance, fast, fifths, play, pretrained, recording, show, spectrogram, tiny,
                   train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import metrics
import sgmse
import toy

OUVE, BBED, SBVE = sgmse.OUVE(), sgmse.BBED(), sgmse.SBVE()
noise = lambda n: torch.randn(n, 1, 1, 1, dtype=torch.complex64)           # E|z|^2 = 1

# %% [markdown]
# ## Hear it
#
# `sgmse_stage1`, a small score model after two and a half hours on two CPU cores and nine and a half minutes on GPUs, on the cheering crowd: 3, 15 and 60 calls of the network.

# %%
clean, noisy = recording("cheer")
outputs = {calls: enhance(pretrained("sgmse_stage1", N=calls), noisy) for calls in fast((3, 15, 60), (3,))}
play(noisy=noisy, **{f"{calls}_calls": wave for calls, wave in outputs.items()}, clean=clean)
for calls, wave in {0: noisy, **outputs}.items():
    print(f"{calls} calls: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")

# %%
figure, axes = plt.subplots(1, len(outputs) + 1, figsize=(9, 2.6), sharey=True)
spectrogram(axes[0], noisy, "noisy")
for axis, (calls, wave) in zip(axes[1:], outputs.items()):
    image = spectrogram(axis, wave, f"{calls} calls")
    axis.set_ylabel("")
for axis in axes:
    axis.set_xlabel("s")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# More calls do not raise these scores, they lower them a little. Scores like SI-SDR compare with the one voice that was recorded and reward an average of the likely ones, and more steps are a better sample, not a better average. (That this is the reason has not been tested.)
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $dx=f\,dt+g\,dw$ | forward process, $t=0$ clean, $t=T$ noisy | `OUVE`, `BBED`, `SBVE`: `.drift`, `.diffusion` |
# | $x_t=\mu+\sigma z$ | where it stands at $t$; $E\lvert z\rvert^2=1$ per complex bin | `.mean`, `.std`, `diffuse` |
# | $s=\nabla\log p_t(x_t\mid y)$ | the score | `ScoreSDE.score`; on the toy `toy.Exact` |
# | $\frac12E\lvert\sigma s+z\rvert^2$ | denoising score matching | `dsm_loss` |
# | $dx=(f-g^2s)\,dt+g\,d\bar w$ | reverse SDE | `reverse_step`, `euler_maruyama`, `predictor_corrector` |
# | $\dot x=f-\frac12g^2s$ | its ODE | `flow_velocity`, `probability_flow` |
#
# ## The toy
#
# One noisy point $y$ (the cross), three places where the clean one may be (green). Red: what the reverse SDE makes of 2000 starts, blue: eight of its paths, 60 calls of the exact score each.

# %%
def paths(score, sde, N, n=2000):
    """States of n points on the way from the prior to 0 by N steps, (N + 1, n, 1, 1, 1)."""
    y = toy.noisy(n)
    times, steps = sgmse.reverse_grid(sde, N)
    states = [sde.prior(y, times[0])]
    for t, dt in zip(times, steps):
        mean, std = sgmse.reverse_step(score, states[-1], y, t, dt, sde)
        states.append(mean + std * torch.randn_like(mean) if t > times[-1] else mean)
    return torch.stack(states)


torch.manual_seed(0)
reference, states = toy.clean(2000), paths(toy.Exact(BBED), BBED, 60)
print("shares", [round(share, 2) for share in toy.fractions(states[-1])], "of", toy.WEIGHTS)
below("energy distance to samples of the truth", toy.energy_distance(states[-1], reference), 0.01)
axes = toy.panels(3)
for axis, k in zip(axes, (30, 50, 60)):
    toy.draw(axis, states[k], states[0], states[:k + 1, :8], f"after {k} of 60 steps")

# %% [markdown]
# It samples: three clouds, in the right proportions, where the mean of all explanations, $-0.07+0.21i$, would lie in none.
#
# ## The forward process
#
# $$\text{OUVE: } dx=\theta(y-x)\,dt+g\,dw\qquad \text{BBED: } dx=\frac{y-x}{1-t}\,dt+g\,dw,\quad g=\sqrt c\,k^t$$
#
# $$\text{OUVE: } \mu=e^{-\theta t}x_0+(1-e^{-\theta t})\,y,\qquad\sigma^2=\frac{\sigma_{\min}^2\Lambda\big[(\sigma_{\max}/\sigma_{\min})^{2t}-e^{-2\theta t}\big]}{\theta+\Lambda},\quad\Lambda=\ln\frac{\sigma_{\max}}{\sigma_{\min}}$$

# %%
show(sgmse.OUVE.drift, sgmse.OUVE.diffusion, sgmse.OUVE.mean, sgmse.OUVE.std)

# %% [markdown]
# A linear drift $f=-a(t)\,x+\dots$ makes the variance follow $\dot V=-2aV+g^2$. Solve that by 1000 Heun steps and compare with the closed form. The slope $-a$ is read off the drift itself.

# %%
def solved(sde, end=0.9, steps=1000):
    """std at `end` from V' = -2 a V + g^2, float64."""
    def slope(V, t):
        t, zero, one = torch.tensor([t], dtype=torch.float64), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        a = (sde.drift(zero, zero, t) - sde.drift(one, zero, t)).item()
        return -2 * a * V + sde.diffusion(t).item() ** 2
    V, h = 0.0, end / steps
    for k in range(steps):
        first = slope(V, k * h)
        V += h / 2 * (first + slope(V + h * first, (k + 1) * h))
    return V ** 0.5


when = lambda t: torch.tensor([t], dtype=torch.float64)
for name, sde in (("OUVE", OUVE), ("BBED", BBED)):
    check(f"{name}: std(0.9) by the closed form and by 1000 steps", sde.std(when(0.9)).item(), solved(sde), 1e-5)
check("OUVE: std(1)", OUVE.std(when(1.0)).item(), 0.388983, 1e-6)

# %%
t = torch.linspace(0, 1, 201, dtype=torch.float64)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.7))
for name, sde, color in (("OUVE", OUVE, "tab:purple"), ("BBED", BBED, "tab:orange"), ("bridge", SBVE, "tab:cyan")):
    weight = sde.mean(torch.ones(201, 1, 1, 1, dtype=torch.float64), torch.zeros(201, 1, 1, 1), t).flatten()
    axes[0].plot(t.numpy(), sde.std(t).numpy(), color=color, label=name)
    axes[1].plot(t.numpy(), weight.numpy(), color=color)
axes[0].set(xlabel="t", ylabel="std per complex bin", title="noise")
axes[0].legend()
axes[1].set(xlabel="t", title="share of $x_0$ in the mean", ylim=(0, 1))
torch.manual_seed(1)
dt, x = 1 / 200, toy.clean(5)
walk = [x]
for k in range(199):
    now = torch.full((5,), k * dt)
    x = x + BBED.drift(x, toy.noisy(5), now) * dt + BBED.diffusion(k * dt) * dt ** 0.5 * torch.randn_like(x)
    walk.append(x)
axes[2].plot(t[:200].numpy(), torch.stack(walk).reshape(200, 5).real.numpy(), linewidth=0.8)
axes[2].set(xlabel="t", title="five forward paths of the toy, BBED, real part");

# %% [markdown]
# OUVE never arrives: at $t=1$ its mean still holds 22 % of $x_0$. BBED and the bridge end at $y$.
#
# ## The score
#
# $$s(x,y,t)=\nabla\log p_t(x\mid y),\qquad\text{on the toy } s=-\sum_kr_k\frac{d_k}{V},\quad d_k=x-a_tm_k-b_t,\quad V=a_t^2\,0.1^2+\sigma_t^2,\quad r_k\propto w_ke^{-\lvert d_k\rvert^2/V}$$
#
# The convention matters: per *complex* bin $z$ has variance 1, so each part has variance ½ and the score is **half** the gradient that real and imaginary part would give.

# %%
show(toy.Exact)

# %%
x = torch.randn(50, 1, 1, 1, dtype=torch.complex128)
parts, t = torch.view_as_real(x).requires_grad_(), torch.full((50,), 0.4, dtype=torch.float64)
exact = toy.Exact(BBED)
y = toy.noisy(50, torch.complex128)
_, d, V, _ = exact.parts(torch.view_as_complex(parts), y, t)
log_p = (torch.tensor(toy.WEIGHTS).log() - d.abs().square() / V).logsumexp(-1)
gradient = torch.view_as_complex(torch.autograd.grad(log_p.sum(), parts)[0])
check("score against half the gradient by autograd", (exact(x, y, t) - gradient / 2).abs().max(), 0, 1e-10)

line = torch.linspace(-1.2, 1.2, 15)
grid = torch.complex(*torch.meshgrid(line, line, indexing="xy")).reshape(-1, 1, 1, 1)
axes = toy.panels(3)
for axis, time in zip(axes, (0.9, 0.3, 0.05)):
    s = exact(grid, toy.noisy(225), torch.full((225,), time)).flatten()
    toy.draw(axis, title=f"score at t = {time}")
    unit = (s / s.abs()).numpy()
    axis.quiver(grid.real.flatten().numpy(), grid.imag.flatten().numpy(), unit.real, unit.imag, s.abs().log().numpy(),
                cmap="Blues", clim=(-4, 5), scale=24, width=0.006)

# %% [markdown]
# (Arrows of equal length; the darker, the longer.) With much noise the score points to one middle; with little it decides.
#
# ## Denoising score matching
#
# $$\mathcal L=\tfrac12\,E\,\lvert\sigma\,s_\theta(x_t,y,t)+z\rvert^2$$

# %%
show(sgmse.diffuse, sgmse.dsm_loss)

# %% [markdown]
# Two facts that a test can hold on to. For one Gaussian place of std $\varsigma$ the best possible loss is $\frac12a^2\varsigma^2/V$. And a score that is wrong by $\delta$ costs exactly $\frac12\sigma^2\lvert\delta\rvert^2$ more.

# %%
torch.manual_seed(0)
n = fast(400_000, 100_000)
x0, y, z = 0.1 * noise(n), toy.noisy(n), noise(n)
for time in (0.1, 0.5, 1.0):
    t = torch.full((n,), time)
    a, std = OUVE.mean(torch.ones(1), torch.zeros(1), t[:1]).item(), OUVE.std(t[:1]).item()
    V = a ** 2 * 0.01 + std ** 2
    gaussian = lambda x, y, t: -(x - (1 - a) * y) / V
    least = 0.5 * a ** 2 * 0.01 / V
    loss = sgmse.dsm_loss(gaussian, x0, y, OUVE, t, z).item()
    check(f"t = {time}: loss of the exact score", loss, least, 0.01 * least)

offsets = np.linspace(-1.5, 1.5, 7)
t = torch.full((n,), 0.5)
a, std = OUVE.mean(torch.ones(1), torch.zeros(1), t[:1]).item(), OUVE.std(t[:1]).item()
loss = [sgmse.dsm_loss(lambda x, y, t: -(x - (1 - a) * y) / (a ** 2 * 0.01 + std ** 2) + d, x0, y, OUVE, t, z).item()
        for d in offsets]
predicted = loss[3] + 0.5 * std ** 2 * offsets ** 2
check("a wrong score costs half its square times the variance", np.abs(np.array(loss) - predicted).max(), 0, 3e-4)
denoised = sgmse.denoising_loss(lambda x, y, t: x + std ** 2 * -(x - (1 - a) * y), x0, y, OUVE, lambda s: s ** -2, t, z)
same = sgmse.dsm_loss(lambda x, y, t: -(x - (1 - a) * y), x0, y, OUVE, t, z)
check("the denoiser's loss with weight 1 / variance is the same", (denoised / same).item(), 1, 1e-5)
plt.figure(figsize=(4.5, 2.6))
plt.plot(offsets, predicted, label="minimum + parabola")
plt.plot(offsets, loss, "o", color="tab:red", label="dsm_loss")
plt.xlabel("error of the score")
plt.ylabel("loss at t = 0.5")
plt.legend();

# %% [markdown]
# **A small network on the toy**, output over $\sigma$. The floor is the loss of the exact score.

# %%
show(toy.learn_score)

# %%
torch.manual_seed(0)
score, losses = toy.learn_score(BBED, fast(1500, 30))
n = 50_000
t = BBED.t_eps + (BBED.T - BBED.t_eps) * torch.rand(n)
floor = sgmse.dsm_loss(exact, toy.clean(n), toy.noisy(n), BBED, t, noise(n)).item()
with torch.no_grad():
    learnt = sgmse.euler_maruyama(score, toy.noisy(2000), BBED, 60)
check("loss of the last fifth against the exact score's", fifths(losses)[1], floor, 0.1 * floor, trained=True)
below("energy distance of its samples", toy.energy_distance(learnt, reference), 0.01, trained=True)

# %% [markdown]
# ## The reverse SDE
#
# $$dx=\big[f-g^2s\big]dt+g\,d\bar w$$

# %%
show(sgmse.reverse_grid, sgmse.reverse_step, sgmse.euler_maruyama)

# %% [markdown]
# Euler-Maruyama has order 1: with twice the steps, half the error. For one Gaussian place each step is an affine map, so its mean and variance can be followed without any sampling: `reverse_step` at $x=0$ and $x=1$ gives the map. Only then are 200,000 samples asked whether they agree.

# %%
def affine(sde, N, place=0.5, spread=0.1, y=-0.3):
    """One Gaussian place, from its law at T to t_eps: mean, variance, error of the mean; the score, the law at T."""
    def score(x, y, t):
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        a, b = sde.mean(one, zero, t), sde.mean(zero, y, t)
        return -(x - a * place - b) / (a ** 2 * spread ** 2 + sgmse.per_bin(sde.std(t)) ** 2)

    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    law = lambda t: (sde.mean(place * one, y * one, when(t)).item(),
                     sde.mean(one, 0 * one, when(t)).item() ** 2 * spread ** 2 + sde.std(when(t)).item() ** 2)
    mean, variance = law(sde.T)
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    times, steps = sgmse.reverse_grid(sde, N)
    for t, dt in zip(times[:-1], steps[:-1]):
        (low, high), std = sgmse.reverse_step(score, probe, y * torch.ones_like(probe), t, dt, sde)
        gain = (high - low).item()
        mean, variance = low.item() + gain * mean, gain ** 2 * variance + std.flatten()[0].item() ** 2
    return mean, variance, abs(mean - law(sde.t_eps)[0]), score, law(sde.T)


numbers = 2 ** np.arange(6, 10)
error = np.array([affine(OUVE, N)[2] for N in numbers])
for N, slope in zip(numbers, np.log(error[:-1] / error[1:]) / np.log((numbers[1:] - 1) / (numbers[:-1] - 1))):
    check(f"order of the mean's error, N = {N} to {2 * N}", slope, 1, 0.1)

torch.manual_seed(0)
mean, variance, _, gaussian, start = affine(OUVE, 30)
n = fast(200_000, 20_000)
x = start[0] + start[1] ** 0.5 * noise(n)
times, steps = sgmse.reverse_grid(OUVE, 30)
for t, dt in zip(times[:-1], steps[:-1]):
    x_mean, std = sgmse.reverse_step(gaussian, x, -0.3 * torch.ones_like(x), t, dt, OUVE)
    x = x_mean + std * torch.randn_like(x)
below("samples: their mean, in standard errors", (x.mean() - mean).abs().item() / (variance / n) ** 0.5, 4)
check("samples: their variance over that of the map", x.flatten().var().item() / variance, 1, fast(0.01, 0.05))

# %% [markdown]
# ## Its ODE
#
# $$\dot x=f-\tfrac12g^2s$$
#
# The same marginals without any noise on the way: where a path ends is decided by where it starts. Euler is of order 1, Heun of order 2, against an adaptive solver of tolerance $10^{-9}$ from the same start.

# %%
show(sgmse.flow_velocity, sgmse.probability_flow)

# %%
exact_ouve = toy.Exact(OUVE)
speed = lambda x, t: sgmse.flow_velocity(exact_ouve, x, toy.noisy(len(x), torch.complex128), t, OUVE)
y = toy.noisy(40, torch.complex128)
torch.manual_seed(0)
solved_ends = toy.flow(speed, OUVE.prior(y), [OUVE.T, OUVE.t_eps], tolerance=1e-9)[-1]
truth = sgmse.reverse_step(exact_ouve, solved_ends, y, OUVE.t_eps, OUVE.t_eps, OUVE)[0]      # as the sampler ends


def missed(method, N):
    torch.manual_seed(0)
    return (sgmse.probability_flow(exact_ouve, y, OUVE, N, method) - truth).abs().mean().item()


numbers = (64, 128, 256)
errors = {method: np.array([missed(method, N) for N in numbers]) for method in ("euler", "heun")}
for method, order in (("euler", 1), ("heun", 2)):
    e = errors[method]
    check(f"{method}: order", np.log(e[0] / e[-1]) / np.log((numbers[-1] - 1) / (numbers[0] - 1)), order, 0.15)

times = np.linspace(1, OUVE.t_eps, 60)
start = OUVE.prior(toy.noisy(400))
curves = toy.flow(speed, start, times)
axes = toy.panels(3)
axes[0].loglog(2 ** np.arange(6, 10), error, "o-", color="tab:purple", label="reverse SDE, its mean")
for method, color in (("euler", "tab:blue"), ("heun", "tab:orange")):
    axes[0].loglog(numbers, errors[method], "o-", color=color, label=f"ODE, {method}")
axes[0].set(xlabel="steps N", title="error")
axes[0].set_xticks(2 ** np.arange(6, 10), 2 ** np.arange(6, 10))
axes[0].minorticks_off()
axes[0].legend()
toy.draw(axes[1], curves[-1], start, curves, "ODE: no noise on the way")
toy.draw(axes[2], states[-1], states[0], states[:, :8], "SDE: noise at each step")

# %% [markdown]
# ## The corrector
#
# $$x\leftarrow x+\epsilon\,s+\sqrt{2\epsilon}\,z,\qquad\epsilon=2(r\sigma)^2$$
#
# A Langevin step at the same time, before each step of the reverse SDE: two calls a step. Thirty of each on the toy:

# %%
show(sgmse.langevin_step, sgmse.predictor_corrector)

# %%
torch.manual_seed(0)
both = {"15 x corrector + step": sgmse.predictor_corrector(exact, toy.noisy(2000), BBED, 15),
        "30 plain steps": sgmse.euler_maruyama(exact, toy.noisy(2000), BBED, 30)}
for name, x in both.items():
    below(f"{name}: energy distance", toy.energy_distance(x, reference), 0.01)

# %% [markdown]
# ## The start does not know what the end knows
#
# $$x_T=y+\sigma_Tz$$
#
# For OUVE the true marginal at $T$ still contains 22 % of $x_0$, which the prior leaves out. Whatever the sampler does later, some points have started on the wrong side: the third place, nearest to $y$, gets too many. This *prior mismatch* is why BBED exists.

# %%
torch.manual_seed(0)
n = 4000
third = lambda x: toy.fractions(x)[2]


def from_marginal(sde, N=100):
    x = sgmse.diffuse(toy.clean(n), toy.noisy(n), torch.full((n,), sde.T), noise(n), sde)
    times, steps = sgmse.reverse_grid(sde, N)
    for t, dt in zip(times, steps):
        mean, std = sgmse.reverse_step(toy.Exact(sde), x, toy.noisy(n), t, dt, sde)
        x = mean + std * torch.randn_like(x)
    return mean


measured = {"OUVE": third(sgmse.euler_maruyama(exact_ouve, toy.noisy(n), OUVE, 100)),
            "BBED": third(sgmse.euler_maruyama(exact, toy.noisy(n), BBED, 100)),
            "OUVE from its\ntrue marginal": third(from_marginal(OUVE))}
check("OUVE, share of the third place", measured["OUVE"], 0.25, 0.03)
check("BBED", measured["BBED"], 0.2, 0.025)
check("OUVE, started where it should", measured["OUVE from its\ntrue marginal"], 0.2, 0.025)
plt.figure(figsize=(4.5, 2.6))
plt.bar(list(measured), list(measured.values()), color=["tab:purple", "tab:orange", "tab:gray"])
plt.axhline(0.2, color="black", linestyle=":", label="truth")
plt.ylabel("share of the third place")
plt.legend();

# %% [markdown]
# ## A bridge without noise at either end
#
# $$\mu=\frac{\bar\sigma_t^2x_0+\sigma_t^2y}{\sigma_T^2},\qquad\sigma_t^2=\frac{c\,(k^{2t}-1)}{2\ln k},\quad\bar\sigma_t^2=\sigma_T^2-\sigma_t^2$$
#
# The Schrödinger bridge starts at $y$ itself. With an oracle for $x_0$ its samplers arrive at $x_0$ whatever the number of steps. With the best possible predictor, $E[x_0\mid x_t]$, the toy shows something else.

# %%
show(sgmse.SBVE.mean, sgmse.bridge_ode, sgmse.bridge_sde)

# %%
x0, y = toy.clean(20, torch.complex128), toy.noisy(20, torch.complex128)
for N in (1, 5, 50):
    x = sgmse.bridge_ode(lambda *_: x0, y, SBVE, N)
    error = (x - .999966 * x0 - .000598 * y).abs().max()
    check(f"oracle, N = {N}: distance from .999966 x0 + .000598 y", error, 0, 2e-6)
torch.manual_seed(0)
best, y = toy.Exact(SBVE).clean, toy.noisy(2000)
by_ode, by_sde = sgmse.bridge_ode(best, y, SBVE, 50), sgmse.bridge_sde(best, y, SBVE, 50)
check("ODE: spread of 2000 runs", toy.spread(by_ode), 0, 1e-6)
below("SDE: energy distance", toy.energy_distance(by_sde, reference), 0.02)
axes = toy.panels(2)
toy.draw(axes[0], by_ode, torch.full((1,), toy.Y), title="bridge, ODE: one start, one end")
toy.draw(axes[1], by_sde, torch.full((1,), toy.Y), title="bridge, SDE: three places")

# %% [markdown]
# ## Train small
#
# Denoising score matching on the three recordings with a network of 8 channels, half a minute. It shows the loop and a falling loss; a model is `python sgmse.py train --data DIR --preset small`.

# %%
torch.manual_seed(0)
method = tiny(sgmse.ScoreSDE, objective="score_matching", version=1, c_skip="0")
logged = train_small(method, fast(92, 4))
first, last = fifths(logged["loss"])
print(f"{sum(p.numel() for p in method.parameters()):,} parameters, loss {first:.0f} -> {last:.0f}; "
      f"a score of 0 has {0.5 * 256 * 64:.0f}")
below("last fifth over first fifth", last / first, 0.5, trained=True)
plt.figure(figsize=(5, 2.4))
plt.semilogy(logged["loss"])
plt.xlabel("step")
plt.ylabel("loss, sum over bins");

# %% [markdown]
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. The score is per complex bin: half of what real and imaginary part would give (m).
# 2. The last step goes from $t_\varepsilon$ to 0 and adds no noise (c).
# 3. The corrector comes before the predictor (c).
# 4. BBED's std needs float64: near $t=0$ it is a difference of almost equal numbers (m).
# 5. BBED stops at $T=0.999$: at 1 its drift divides by zero (p).
#
# ## Where paper and code differ
#
# - The predictor takes the grid's own spacing, 0.033448 for $N=30$; SGMSE+ wrote $1/N=0.033333$.
# - BBED's $c$ is 0.51 in the published run and 0.52 in the released class.
# - The EDM weight is meant for each example; the released code mixes the weights across the batch.
# - The bridge's network is told the time that a step goes to, not the one it comes from.
#
# ## Exercises
#
# **1.** Derive $g^2=\frac{d\sigma^2}{dt}+2\theta\sigma^2$ for OUVE and evaluate $g$ at $t=0.5$.
#
# <details><summary>Solution</summary>
#
# The variance of $dx=\theta(y-x)dt+g\,dw$ follows $\dot V=-2\theta V+g^2$. $g(0.5)=0.339307$; the next cell takes the derivative by autograd.
#
# </details>
#
# **2.** How many calls does `predictor_corrector` with $N=30$ make?
#
# <details><summary>Solution</summary>
#
# 60: one of the corrector and one of the predictor a step.
#
# </details>
#
# **3.** Why can the bridge's ODE not sample? Give the spread of its output on the toy.
#
# <details><summary>Solution</summary>
#
# An ODE maps one start to one end, and the bridge has one start, $y$. The spread is 0, where the truth has 0.69.
#
# </details>

# %%
t = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
variance = OUVE.std(t) ** 2
derivative = torch.autograd.grad(variance, t)[0]
check("exercise 1: g(0.5)", (derivative + 2 * OUVE.theta * variance).sqrt().item(), 0.339307, 1e-6)
calls = []
sgmse.predictor_corrector(lambda x, y, t: calls.append(1) or exact(x, y, t), toy.noisy(2), BBED, 30)
check("exercise 2: calls", len(calls), 60, 0)
