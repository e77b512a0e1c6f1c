# %% [markdown]
# # 2 Score SDE: add noise, then reverse time
#
# A forward process moves the clean spectrogram $x_0$ towards the noisy $y$ while it adds Gaussian noise. The distribution of its state at any time is known in closed form. A network learns the *score*, the direction in which the state becomes more likely, and with the score the process can be run backwards: from noisy speech to *one* clean speech signal that is compatible with it.
#
# **You will** see three processes, the score, the reverse SDE and its ODE and the cost of each, and a mismatch at the start that every sampler inherits. The page runs in about a minute and a half on one CPU core. Papers: SGMSE+ ([arXiv 2208.05830](https://arxiv.org/abs/2208.05830)), BBED ([2302.14748](https://arxiv.org/abs/2302.14748)), *Investigating Training Objectives* ([2409.10753](https://arxiv.org/abs/2409.10753)), Schrödinger bridge ([2407.16074](https://arxiv.org/abs/2407.16074)), score SDEs (Song et al., [2011.13456](https://arxiv.org/abs/2011.13456)).
#
# | symbol | meaning | value |
# |---|---|---|
# | $x_0,\ y,\ x_t$ | clean, noisy and intermediate spectrogram | complex |
# | $t,\ T,\ t_\varepsilon$ | process time, 0: clean; its latest and its earliest value | $T=1$, BBED 0.999; $t_\varepsilon=0.03$ |
# | $f,\ g,\ dw$ | drift and diffusion of the process: a short step is $x+f\Delta+g\sqrt\Delta\,z$, so $dw$ is complex Gaussian noise of variance $dt$; $d\bar w$: the same, backwards in time | |
# | $\theta$ | OUVE: rate at which the mean approaches $y$ | 1.5 |
# | $\sigma_{\min},\ \sigma_{\max}$ | OUVE: parameters of $g$ (the std itself is 0 at $t=0$ and 0.389 at $t=1$) | 0.05, 0.5 |
# | $c,\ k$ | BBED and bridge: $g=\sqrt c\,k^t$ | 0.51 (bridge 0.4), 2.6 |
# | $\mu_t=a_tx_0+b_t,\ \sigma_t$ | mean of $x_t$ (weight $a_t$ of $x_0$, part $b_t$ from $y$) and its std per complex bin | |
# | $m_k,\ w_k$ | toy: the three places and their probabilities | see `toy.py`; 0.5, 0.3, 0.2 |
# | NFE | network evaluations for one recording | |

# %%
from tools import (answer, below, check, enhance, fast, fifths, play, pretrained, recording, show, spectrogram, tiny,
                   train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import data
import metrics
import sgmse
import toy

OUVE, BBED, SBVE = sgmse.OUVE(), sgmse.BBED(), sgmse.SBVE()
noise = lambda n: torch.randn(n, 1, 1, 1, dtype=torch.complex64)           # E|z|^2 = 1

# %% [markdown]
# ## Listen
#
# `sgmse_stage1`, a small model whose network predicts $x_0$, from which the score follows (it was trained with an error of the spectrogram, of the wave and with a PESQ loss, not with the loss below; its sampler starts at $t=0.5$), on the recording in front of a cheering crowd, with 3, 15 and 60 network evaluations.

# %%
clean, noisy = recording("cheer")
outputs = {calls: enhance(pretrained("sgmse_stage1", N=calls), noisy) for calls in fast((3, 15, 60), (3,))}
play(noisy=noisy, **{f"NFE_{calls}": wave for calls, wave in outputs.items() if calls != 15}, clean=clean)
for calls, wave in {0: noisy, **outputs}.items():
    print(f"NFE {calls}: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")

# %%
figure, axes = plt.subplots(1, len(outputs) + 1, figsize=(8, 2.4), sharey=True)
spectrogram(axes[0], noisy, "noisy")
for axis, (calls, wave) in zip(axes[1:], outputs.items()):
    image = spectrogram(axis, wave, f"NFE {calls}")
    axis.set_ylabel("")
for axis in axes:
    axis.set_xlabel("s")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# The three outputs look alike: with three evaluations the noise above 4 kHz is weaker, the crowd below 3 kHz and the whistles remain in all three. The scores above do not improve with the number of evaluations: SI-SDR falls, PESQ hardly changes. SI-SDR compares with the one voice that was recorded and rewards an average of the plausible ones; more steps give a better sample, not a better average. (Whether this is the reason has not been tested.)
#
# The path of the sampler: the state $x_t$, made audible, from the start $t=T$ to $t=0$.

# %%
film = []
def watched(x, y, t):
    film.append((t[0].item(), x[0, 0]))
    return model.score(x, y, t)


model, y_wave = pretrained("sgmse_stage1"), noisy[:16000]
peak = y_wave.abs().max()
torch.manual_seed(0)
with torch.no_grad():
    y = model.spectrogram(y_wave[None] / peak)[:, None]
    frames, y = y.shape[-1], data.pad_frames(y, 64)
    end = sgmse.euler_maruyama(watched, y, model.sde, 15, 0.999)
film.append((0.0, end[0, 0]))
chosen = [film[i] for i in (0, 1, 7, 14, 15)]
states_heard = {f"t_=_{t:.2f}": model.spectrogram.inverse(x[:, :frames], len(y_wave)) * peak for t, x in chosen}
play(**states_heard)
figure, axes = plt.subplots(1, 5, figsize=(9, 2.3), sharey=True)
for axis, (t, x) in zip(axes, chosen):
    size = x[:, :frames].abs().clamp(min=1e-3).log10().numpy()
    image = axis.imshow(size, vmin=-2.5, vmax=0.3, cmap="magma", extent=(0, len(y_wave) / 16000, 0, 8))
    axis.set(title=f"t = {t:.2f}", xlabel="s")
axes[0].set_ylabel("kHz")
figure.colorbar(image, ax=axes, label="log10 of the magnitude");

# %% [markdown]
# The process of this model is BBED, whose noise is small at $t=T=0.999$ (std 0.058): started there, unlike above, the sampler begins almost at the noisy speech itself (left). Its first steps add so much noise that only the lowest harmonics remain visible; the speech emerges only when $t$ comes near 0 (the two panels on the right).
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $dx=f\,dt+g\,dw$ | forward process, $t=0$ clean, $t=T$ noisy | `OUVE`, `BBED`, `SBVE`: `.drift`, `.diffusion` |
# | $x_t=\mu_t+\sigma_tz$ | its state at $t$; $E\left\lvert z\right\rvert^2=1$ per complex bin | `.mean`, `.std`, `diffuse` |
# | $s=\nabla\log p_t(x_t\mid y)$ | the score | `ScoreSDE.score`; on the toy `toy.Exact` |
# | $\frac12E\left\lvert\sigma s+z\right\rvert^2$ | denoising score matching | `dsm_loss` |
# | $\frac12E\,w(\sigma)\left\lvert D-\mu_t\right\rvert^2$ | the same for a denoiser $D=x_t+\sigma^2s$ | `denoising_loss` |
# | $D=c_{skip}x_t+c_{out}F(c_{in}x_t,c_{in}y,t)$ | EDM's scaling around a network $F$ | `edm_scaling` |
# | $\frac{x_t+\sigma^2s-b_t}{a_t}$ | one-step prediction $E[x_0\mid x_t,y]$ | `posterior_mean`, `sampler="one_step"` |
# | $dx=(f-g^2s)\,dt+g\,d\bar w$ | reverse SDE | `reverse_step`, `euler_maruyama`, `predictor_corrector` |
# | $\dot x=f-\frac12g^2s$ | its ODE | `flow_velocity`, `probability_flow` |
#
# ## The toy
#
# One noisy point $y$ (the cross), three places where the clean point may be (blue). Orange triangles: where the reverse SDE has brought 2000 starts (grey); grey lines: eight of its paths. Each path takes 60 evaluations of the exact score.

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
below("energy distance to samples of the truth", toy.report("60 steps", states[-1], reference), 0.01)
toy.report("200 steps", paths(toy.Exact(BBED), BBED, fast(200, 100))[-1], reference)
axes = toy.panels(3)
for axis, k in zip(axes, (30, 50, 60)):
    toy.draw(axis, states[k], states[0], states[:k + 1, :8], f"after {k} of 60 steps")
toy.animate(states, "reverse SDE, 60 steps")

# %% [markdown]
# The animation shows 60 of the points. The reverse SDE samples: it ends in three clouds in the right proportions, whereas the mean of all explanations, $-0.07+0.21i$, lies in none of them. (*Spread*: the standard deviation of all points; *within a place*: that about the nearest place. The blue rings are drawn wider than the std of 0.10.) The *energy distance* between two sets of points is 0 for equal distributions; its floor is the value for two sets drawn from the truth. Each single cloud is too narrow, though: the spread within a place is about 0.065 where the truth has 0.10, and more steps do not help, because the last step, from $t_\varepsilon$ to 0, adds no noise and returns a mean.
#
# ## The forward process
#
# $$\text{OUVE: } dx=\theta(y-x)\,dt+g\,dw,\quad g=\sigma_{\min}\Big(\frac{\sigma_{\max}}{\sigma_{\min}}\Big)^t\sqrt{2\Lambda}\qquad \text{BBED: } dx=\frac{y-x}{1-t}\,dt+g\,dw,\quad g=\sqrt c\,k^t$$
#
# $$\text{OUVE: } \mu=e^{-\theta t}x_0+(1-e^{-\theta t})\,y,\qquad\sigma^2=\frac{\sigma_{\min}^2\Lambda\big[(\sigma_{\max}/\sigma_{\min})^{2t}-e^{-2\theta t}\big]}{\theta+\Lambda},\quad\Lambda=\ln\frac{\sigma_{\max}}{\sigma_{\min}}$$
#
# $$\text{BBED: } \mu=(1-t)\,x_0+t\,y,\qquad\sigma^2=(1-t)^2\int_0^t\frac{c\,k^{2\tau}}{(1-\tau)^2}\,d\tau$$
#
# The integral has a closed form in the exponential integral, which is what `BBED.std` computes.

# %%
show(sgmse.OUVE.drift, sgmse.OUVE.diffusion, sgmse.OUVE.mean, sgmse.OUVE.std)

# %% [markdown]
# A drift that is linear in $x$, $f=-\lambda_t\,x+\dots$, makes the variance follow $\dot V=-2\lambda_tV+g^2$. The next cell solves this with 1000 Heun steps and compares with the closed form; the rate $\lambda_t$ is taken from the drift function itself.

# %%
def solved(sde, end=0.9, steps=1000):
    """std at `end` from V' = -2 rate V + g^2, float64."""
    def slope(V, t):
        t, zero, one = torch.tensor([t], dtype=torch.float64), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        rate = (sde.drift(zero, zero, t) - sde.drift(one, zero, t)).item()
        return -2 * rate * V + sde.diffusion(t).item() ** 2
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
    axes[1].plot(t.numpy(), weight.numpy(), color=color, label=name)
axes[0].set(xlabel="t", ylabel="std per complex bin", title="noise")
axes[0].legend()
axes[1].set(xlabel="t", title="weight of $x_0$ in the mean", ylim=(0, 1))
torch.manual_seed(1)
dt, x = 1 / 200, toy.clean(5)
walk = [x]
for k in range(199):
    now = torch.full((5,), k * dt)
    x = x + BBED.drift(x, toy.noisy(5), now) * dt + BBED.diffusion(k * dt) * dt ** 0.5 * torch.randn_like(x)
    walk.append(x)
axes[2].plot(t[:200].numpy(), torch.stack(walk).reshape(200, 5).real.numpy(), linewidth=0.8)
axes[2].set(xlabel="t", title="five forward paths, BBED, real part");

# %% [markdown]
# Left: the noise of OUVE grows until $t=1$, that of BBED and of the bridge returns to zero. Middle: OUVE never arrives at $y$; at $t=1$ its mean still contains 22 % of $x_0$. Right: forward paths start at the places and end near the real part of $y$, 0.2.
#
# ## The score
#
# $$s(x,y,t)=\nabla_{\bar x}\log p_t(x\mid y),\qquad\text{on the toy } s=-\sum_kr_k\frac{d_k}{V},\quad d_k=x-a_tm_k-b_t,\quad V=a_t^2\,0.1^2+\sigma_t^2,\quad r_k\propto w_ke^{-\left\lvert d_k\right\rvert^2/V}$$
#
# Here $a_t$ is the weight of $x_0$ in the mean and $b_t$ the part that comes from $y$; $r_k$ is the probability of place $k$ given $x$. The derivative is the *Wirtinger* derivative with respect to the complex conjugate, $\nabla_{\bar x}=\frac12\big(\frac{\partial}{\partial\Re x}+i\frac{\partial}{\partial\Im x}\big)$: **half** of the gradient in real and imaginary part. For a complex Gaussian of variance $\sigma^2$ it is $-(x-\mu)/\sigma^2$, the familiar form.

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
# All arrows have the same length; dark ones stand for long vectors. At $t=0.9$, with much noise, all arrows point to one centre; at $t=0.05$ each points to the nearest place.
#
# ## Denoising score matching
#
# $$\mathcal L=\tfrac12\,E\left\lvert\sigma\,s_\theta(x_t,y,t)+z\right\rvert^2$$
#
# <details><summary>Derivation: why this loss learns the score</summary>
#
# Given $x_0$, the state is Gaussian, $p_t(x\mid x_0,y)=\frac1{\pi\sigma^2}e^{-\left\lvert x-\mu\right\rvert^2/\sigma^2}$, with the score $-\frac{x-\mu}{\sigma^2}=-\frac z\sigma$ at $x=\mu+\sigma z$. The marginal is the mean over $x_0$, $p_t(x\mid y)=E_{x_0}\,p_t(x\mid x_0,y)$. Differentiate and divide by $p_t$:
#
# $$\nabla_{\bar x}\log p_t(x\mid y)=\frac{E_{x_0}\big[p_t(x\mid x_0,y)\,\nabla_{\bar x}\log p_t(x\mid x_0,y)\big]}{p_t(x\mid y)}=E\Big[-\frac z\sigma\,\Big|\,x_t=x,y\Big].$$
#
# So the score is a conditional mean, and a conditional mean is the minimiser of a squared error: $E\left\lvert s_\theta+z/\sigma\right\rvert^2$ is smallest for $s_\theta=\nabla_{\bar x}\log p_t(x\mid y)$. The loss above is this error with weight $\frac12\sigma^2$.
#
# </details>

# %%
show(sgmse.diffuse, sgmse.dsm_loss)

# %% [markdown]
# Two facts can be checked. For one Gaussian place of std $\varsigma$ the smallest possible loss is $\frac12a_t^2\varsigma^2/V$. A score with the error $\delta$ costs exactly $\frac12\sigma^2\left\lvert\delta\right\rvert^2$ more.

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
plt.plot(offsets, loss, "^", color="tab:orange", label="dsm_loss")
plt.xlabel("error of the score")
plt.ylabel("loss at t = 0.5")
plt.legend();

# %% [markdown]
# The measured losses (triangles) lie on the predicted parabola.
#
# **EDM.** A network that predicts noise at every level does best with inputs and targets of unit variance. Instead of the score, the network gives a denoiser $D=c_{skip}\,x_t+c_{out}\,F(c_{in}x_t,c_{in}y,t)$ with $v=\sigma^2+\sigma_d^2$, $\sigma_d=0.1$ (rms of a clean bin) and
#
# $$c_{in}=\frac1{\sqrt v},\qquad c_{skip}=\frac{\sigma_d^2}{v},\qquad c_{out}=\frac{\sigma\,\sigma_d}{\sqrt v},\qquad w(\sigma)=\frac1{c_{out}^2}=\frac{v}{\sigma^2\sigma_d^2}.$$
#
# It is trained with $\frac12E\,w(\sigma)\left\lvert D-\mu_t\right\rvert^2$ (`denoising_loss`), so that $D=E[\mu_t\mid x_t,y]$. By the derivation above the score is $E[-z/\sigma\mid x_t,y]=(D-x_t)/\sigma^2$ (Tweedie's formula).
#
# **A small network on the toy.** Its output is divided by $\sigma$; the floor is the loss of the exact score.

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
#
# <details><summary>Derivation: the reverse SDE (Anderson, 1982)</summary>
#
# Take a small step $x_{t+\Delta}=x_t+f\Delta+g\sqrt\Delta\,z$. Seen backwards, Bayes' rule gives $\log p(x_t\mid x_{t+\Delta})=-\frac{1}{g^2\Delta}\left\lvert x_{t+\Delta}-x_t-f\Delta\right\rvert^2+\log p_t(x_t)-\log p_{t+\Delta}(x_{t+\Delta})$ up to a constant. Expand $\log p_t(x_t)$ around $x_{t+\Delta}$ to first order; with the Wirtinger derivative its change is $2\,\Re\{\bar s\,(x_t-x_{t+\Delta})\}$. Completing the square in $x_t$,
#
# $$p(x_t\mid x_{t+\Delta})\approx\mathcal N_{\mathbb C}\big(x_{t+\Delta}-f\Delta+g^2s\,\Delta,\;g^2\Delta\big).$$
#
# A step backwards is again Gaussian with the same noise, and its mean has the extra term $g^2s\,\Delta$: the line of `reverse_step`.
#
# </details>

# %%
show(sgmse.reverse_grid, sgmse.reverse_step, sgmse.euler_maruyama)

# %% [markdown]
# Euler-Maruyama has weak order 1: twice as many steps halve the error of a mean. For one Gaussian place each step is an affine map, so mean and variance can be followed without sampling: `reverse_step` at $x=0$ and $x=1$ gives the map. Then 200,000 samples are compared with it.

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
# It has the same marginals without noise on the way: the start of a path decides its end. Euler has order 1, Heun order 2; the errors below are the distances to an adaptive solver of tolerance $10^{-9}$ from the same start.
#
# <details><summary>Derivation: the ODE from the Fokker-Planck equation</summary>
#
# The density of the forward process obeys $\partial_tp=-\nabla\cdot(fp)+\frac{g^2}{4}\nabla^2p$ in real and imaginary part (each has half of the variance $g^2$). Write $\nabla^2p=\nabla\cdot(p\,\nabla\log p)$, where $\nabla\log p=2s$ is the real gradient:
#
# $$\partial_tp=-\nabla\cdot\Big[\big(f-\tfrac{g^2}{2}s\big)\,p\Big].$$
#
# This is the continuity equation of a flow without noise and with the velocity $f-\frac12g^2s$, so the flow has the same $p_t$ at all times.
#
# </details>

# %%
show(sgmse.flow_velocity, sgmse.probability_flow)

# %%
exact_ouve = toy.Exact(OUVE)
bbed_speed = lambda x, t: sgmse.flow_velocity(exact, x, toy.noisy(len(x), torch.complex128), t, BBED)
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

times = np.linspace(BBED.T, BBED.t_eps, 60)
start = BBED.prior(toy.noisy(400))
curves = toy.flow(bbed_speed, start, times)
axes = toy.panels(3)
axes[0].loglog(2 ** np.arange(6, 10), error, "o-", color="tab:purple", label="SDE, OUVE: mean, one place")
for method, color in (("euler", "tab:blue"), ("heun", "tab:orange")):
    axes[0].loglog(numbers, errors[method], "o-", color=color, label=f"ODE, OUVE, {method}: end points")
axes[0].set(xlabel="steps N", title="two errors over the steps")
axes[0].set_xticks(2 ** np.arange(6, 10), 2 ** np.arange(6, 10))
axes[0].minorticks_off()
axes[0].legend(fontsize=7)
toy.draw(axes[1], curves[-1], start, curves, "ODE, BBED: no noise on the way")
toy.draw(axes[2], states[-1], states[0], states[:, :8], "SDE, BBED: noise at each step")

# %% [markdown]
# The left panel shows two different errors, both for OUVE: of the SDE the error of the mean for one Gaussian place, of the ODE the mean distance between end points and the exact end points on the toy. Only the slopes can be compared: SDE and Euler have slope $-1$, Heun $-2$. The other two panels show BBED: the paths of the ODE are smooth, those of the SDE are rough.
#
# ## The corrector
#
# $$x\leftarrow x+\epsilon\,s+\sqrt{2\epsilon}\,z,\qquad\epsilon=2(r\sigma)^2$$
#
# This is a *Langevin* step: for small $\epsilon$ it leaves $p_t$ unchanged and moves points that are not yet distributed like it towards it. It is taken at constant time before each step of the reverse SDE, with $r=0.5$: two network evaluations per step. On the toy, both samplers below have NFE 30: 15 pairs of corrector and step, or 30 plain steps.

# %%
show(sgmse.langevin_step, sgmse.predictor_corrector)

# %%
torch.manual_seed(0)
both = {"15 x corrector + step": sgmse.predictor_corrector(exact, toy.noisy(2000), BBED, 15),
        "30 plain steps": sgmse.euler_maruyama(exact, toy.noisy(2000), BBED, 30)}
for name, x in both.items():
    below(f"{name}: energy distance", toy.report(name, x, reference), 0.01)

# %% [markdown]
# ## The start contains nothing of the clean speech
#
# $$x_T=y+\sigma_Tz$$
#
# For OUVE the true marginal at $T$ still contains 22 % of $x_0$, which this start, the *prior*, omits. Some points therefore start on the wrong side, and no later step corrects this: the third place, which is nearest to $y$, receives too many. This *prior mismatch* is the motivation of BBED.

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
check("OUVE, fraction of the third place", measured["OUVE"], 0.25, 0.03)
check("BBED", measured["BBED"], 0.2, 0.025)
check("OUVE, started where it should", measured["OUVE from its\ntrue marginal"], 0.2, 0.025)
plt.figure(figsize=(4.5, 2.6))
plt.bar(list(measured), list(measured.values()), color=["tab:orange", "tab:blue", "tab:gray"])
plt.axhline(0.2, color="black", linestyle=":", label="truth")
plt.ylabel("fraction in the third place")
plt.legend();

# %% [markdown]
# OUVE puts about a quarter of the points into the third place instead of a fifth (dotted); BBED, and OUVE started from its true marginal, agree with the truth.
#
# ## A bridge without noise at either end
#
# $$\mu=\frac{\bar\sigma_t^2x_0+\sigma_t^2y}{\sigma_T^2},\qquad\sigma_t^2=\frac{c\,(k^{2t}-1)}{2\ln k},\quad\bar\sigma_t^2=\sigma_T^2-\sigma_t^2$$
#
# Here $\sigma_t^2$ is the variance of the noise added from 0 to $t$; the std of $x_t$ is $\sigma_t\bar\sigma_t/\sigma_T$, 0 at both ends. The process that is bridged has no drift, $f=0$; the sampler starts at $y$ itself. With an oracle for $x_0$ its ODE arrives at $x_0$ for any number of steps, up to a small constant in the released formulas. A network can at best be the predictor $E[x_0\mid x_t]$; what the samplers do with it is shown below the check.

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
below("SDE: energy distance", toy.report("bridge, SDE", by_sde, reference), 0.02)
axes = toy.panels(2)
toy.draw(axes[0], by_ode, torch.full((1,), toy.Y), title="bridge, ODE: one start, one end")
toy.draw(axes[1], by_sde, torch.full((1,), toy.Y), title="bridge, SDE: three places")

# %% [markdown]
# Left: all 2000 runs of the ODE end in one point, since all start at $y$ and no noise is drawn. Right: the SDE reaches the three places. Within a place its spread is about 0.14, more than the true 0.10; the samplers of the two SDEs err on different sides.
#
# ## Train small
#
# Denoising score matching on the three recordings with a network of 8 channels. This shows the training loop only. To train a useful model: `python sgmse.py train --data DIR --preset small`.

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
# The loss (logarithmic axis) falls to less than half: the network learns that its output must cancel the noise.
#
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. The score is per complex bin: half of the gradient in real and imaginary part (m).
# 2. The last step goes from $t_\varepsilon$ to 0 and adds no noise (c).
# 3. The corrector comes before the predictor (c).
# 4. BBED's std needs float64: near $t=0$ it is a difference of almost equal numbers (m).
# 5. BBED stops at $T=0.999$: at 1 its drift divides by zero (p).
#
# ## Where paper and code differ
#
# - The predictor uses the spacing of the grid, 0.033448 for $N=30$; SGMSE+ wrote $1/N=0.033333$.
# - BBED's $c$ is 0.51 in the published run and 0.52 in the released class.
# - The EDM weight is meant for each example; the released code mixes the weights across the batch.
# - The network of the bridge receives the time at the end of a step, not at its beginning.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** Derive $g^2=\frac{d\sigma^2}{dt}+2\theta\sigma^2$ for OUVE and evaluate $g$ at $t=0.5$.
#
# <details><summary>Hint</summary>
#
# The variance of $dx=\theta(y-x)\,dt+g\,dw$ follows $\dot V=-2\theta V+g^2$. `OUVE.std` gives $\sigma$, autograd its derivative; `OUVE.diffusion` is a check.
#
# </details>
# <details><summary>Solution</summary>
#
# With $V=\sigma^2$ solve the equation of the hint for $g^2$. $g(0.5)=0.339307$.
#
# </details>
#
# **2.** How many network evaluations does `predictor_corrector` with $N=30$ need?
#
# <details><summary>Hint</summary>
#
# Count the uses of `score` in the body of its loop.
#
# </details>
# <details><summary>Solution</summary>
#
# 60: one in the corrector and one in the predictor of each step.
#
# </details>
#
# **3.** What is the spread of the output of the bridge's ODE on the toy, and why can it not sample?
#
# <details><summary>Hint</summary>
#
# How many different starts does it have, and where does it draw noise?
#
# </details>
# <details><summary>Solution</summary>
#
# 0, where the truth has 0.69: an ODE maps one start to one end, and the bridge has one start, $y$.
#
# </details>

# %%
t = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
variance = OUVE.std(t) ** 2
derivative = torch.autograd.grad(variance, t)[0]
answer("2.1", (derivative + 2 * OUVE.theta * variance).sqrt())
calls = []
sgmse.predictor_corrector(lambda x, y, t: calls.append(1) or exact(x, y, t), toy.noisy(2), BBED, 30)
answer("2.2", len(calls))
answer("2.3", toy.spread(by_ode))
