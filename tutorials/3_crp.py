# %% [markdown]
# # 3 CRP: train the sampler that you will use
#
# A score model learns each noise level by itself. Nobody tells it that in the end somebody walks five big steps, or one, and that the errors add up. *Correcting the reverse process* runs just that sampler in training and teaches its last evaluation to end at clean speech.
#
# **You will** train through a sampler, see what the last evaluation can repair and what it cannot, and find that its optimum is a mean: with one evaluation, CRP turns a sampler into a predictor. Paper: Lay, Lemercier, Richter, Gerkmann (ICASSP 2024, arXiv 2309.09677).

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, recording, show,
                   spectrogram, train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import data
import metrics
import sgmse
import toy
import train

BBED = sgmse.BBED()

# %% [markdown]
# ## Hear it
#
# The windmill, 5 dB: the model of stage 1 with 1, 2 and 5 steps from $t=0.5$, then what CRP made of it: for five evaluations from $t=0.5$, and for one from $t=0.03$. Last the control of all of them: the *same weights of stage 1*, asked once at $t=T$ for their estimate of the clean speech, $E[x_0\mid x_T,y]$ by Tweedie's formula (`one_step`), without any sampler.

# %%
clean, noisy = recording("windmill")
outputs = {f"stage 1, {N} call{'s' * (N > 1)}": enhance(pretrained("sgmse_stage1", N=N), noisy) for N in (1, 2, 5)}
outputs |= {"CRP, 5 calls": enhance(pretrained("sgmse"), noisy),
            "CRP, 1 call": enhance(pretrained("sgmse_crp1"), noisy),
            "stage 1, one-step": enhance(pretrained("sgmse_stage1", sampler="one_step", start=1.0), noisy)}
play(noisy=noisy, **outputs)
figure, axes = plt.subplots(2, 4, figsize=(11, 4.2), sharex=True, sharey=True)
for axis, (title, wave) in zip(axes.flat, {"noisy": noisy, **outputs}.items()):
    print(f"{title}: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s" if axis in axes[1] else "", ylabel="kHz" if axis in axes[:, 0] else "")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# The sampler of stage 1 needs CRP where it has few steps; its one-step prediction does not, and is as good as the best of them.
#
# Over the number of network evaluations, on 37 test recordings (mean and 95 % interval; how it was made: [experiments](experiments/README.md)):
#
# ![PESQ, ESTOI and SI-SDR over the number of network evaluations, before and after CRP](experiments/nfe.png)
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $t_{rs}=t_1>\dots>t_N=t_\varepsilon,\ \Delta_N=t_\varepsilon$ | the sampler's times; the last step goes to 0 | `reverse_grid` |
# | $\hat x=x-(f-g^2s)\,\Delta_N$ | its last step, without noise | `reverse_step` |
# | $\frac12E\lvert\hat x-x_0\rvert^2$ | the loss; gradient through the last evaluation only | `crp_loss` |
# | $x_{t_{rs}}=y+\sigma z$ | the start, which knows nothing of $x_0$ | `BBED.prior` |
#
# ## The toy
#
# One noisy point (the cross), three places where the clean one may be (blue). A score model with a known fault: the exact score plus $(0.3+0.2i)/\sigma_t$. What does its sampler make of it, with one and with five evaluations?

# %%
exact, fault = toy.Exact(BBED), 0.3 + 0.2j
off = lambda shift: lambda x, y, t: exact(x, y, t) + (fault + shift) / toy.per_bin(BBED.std(t))


def ends(score, N, n=2000):
    torch.manual_seed(0)
    with torch.no_grad():
        start = BBED.prior(toy.noisy(n), 0.5)
        torch.manual_seed(0)
        return start, sgmse.euler_maruyama(score, toy.noisy(n), BBED, N, 0.5)


reference, before = toy.clean(2000), {}
for N in (1, 5):
    start, before[N] = ends(off(0), N)
    print(f"N = {N}: the mean is off by {(before[N].mean() - toy.MEAN).abs():.2f}, "
          f"energy distance {toy.energy_distance(before[N], reference):.3f}")
check("N = 1: off by", (before[1].mean() - toy.MEAN).abs().item(), 0.53, 0.02)
check("N = 5: off by", (before[5].mean() - toy.MEAN).abs().item(), 0.36, 0.02)

# %% [markdown]
# ## The grid
#
# $$t_i\text{ even from }t_{rs}\text{ to }t_\varepsilon,\qquad\Delta_i=t_i-t_{i+1},\quad\Delta_N=t_N$$

# %%
show(sgmse.reverse_grid)

# %%
times, steps = sgmse.reverse_grid(BBED, 5, 0.5)
check("N = 5: times", np.abs(np.array(times) - [0.5, 0.3825, 0.265, 0.1475, 0.03]).max(), 0, 1e-12)
check("N = 5: steps", np.abs(np.array(steps) - [0.1175, 0.1175, 0.1175, 0.1175, 0.03]).max(), 0, 1e-12)
check("their sum", sum(steps), 0.5, 1e-12)
figure, axis = plt.subplots(figsize=(6, 1.5))
for row, N in enumerate((1, 2, 5)):
    times, steps = sgmse.reverse_grid(BBED, N, 0.5)
    for t, dt in zip(times, steps):
        last = t == times[-1]
        axis.annotate("", (t - dt, row), (t, row),
                      arrowprops=dict(arrowstyle="->", color="tab:red" if last else "tab:blue"))
        axis.plot(t, row, "o", color="tab:red" if last else "tab:blue", markersize=5)
axis.set(xlim=(0.53, -0.02), ylim=(-0.6, 2.6), yticks=(0, 1, 2), yticklabels=("N = 1", "N = 2", "N = 5"),
         xlabel="process time; red: the call that is trained");

# %% [markdown]
# ## The last step
#
# $$\hat x=x-\big[f(x,y,t)-g(t)^2s_\theta(x,y,t)\big]\,\Delta$$
#
# The network enters with the factor $g^2\Delta$. The denoiser's own correction of a state is $\sigma^2s_\theta$, from the state to the mean of the process. In units of that correction a step has the size $g^2\Delta/\sigma^2$: 1.06 at $t=0.03$, a whole correction, and 2.80 for $N=1$ from $t=0.5$, where it overshoots by almost three times. That is why one step of the uncorrected score model from $t=0.5$ is poor, and what CRP repairs there.

# %%
show(sgmse.reverse_step)

# %%
x, y = torch.zeros(2, 1, 1, 1, 1)
for N, known in ((1, 0.6630), (5, 0.016203)):
    times, steps = sgmse.reverse_grid(BBED, N, 0.5)
    one, none = (sgmse.reverse_step(lambda *_: s, x, y, times[-1], steps[-1], BBED)[0].item() for s in (1.0, 0.0))
    check(f"N = {N}: factor of the trained evaluation", one - none, known, 1e-5)
figure, axis = plt.subplots(figsize=(6, 2.4))
for N, mark in ((1, "s"), (2, "^"), (5, "o")):
    times, steps = (torch.tensor(values) for values in sgmse.reverse_grid(BBED, N, 0.5))
    size = BBED.diffusion(times) ** 2 * steps / BBED.std(times) ** 2
    axis.plot(times, size, f"{mark}-", label=f"N = {N}")
axis.axhline(1, color="black", linestyle=":", linewidth=1)
axis.set(xlim=(0.52, 0), ylim=(0, 3), xlabel="process time of the step", ylabel="$g^2\\Delta\\,/\\,\\sigma^2$")
axis.legend();
check("N = 1: size of its step", (BBED.diffusion(torch.tensor(0.5)) ** 2 * 0.5 / BBED.std(torch.tensor([0.5])) ** 2).item(), 2.80, 0.01)
check("last step from 0.03", size[-1].item(), 1.06, 0.01)

# %% [markdown]
# Steps in units of the denoiser's own correction: at the dotted line a step is the whole correction. One step from 0.5 overshoots, the last of several is just right.
#
# ## The loss
#
# $$\mathcal L=\tfrac12\,E\,\lvert\hat x_N-x_0\rvert^2$$
#
# The steps before the last are plain sampling, without gradient.

# %%
show(sgmse.crp_loss)

# %%
modes = []
def watched(x, y, t):
    modes.append(torch.is_grad_enabled())
    return exact(x, y, t)


sgmse.crp_loss(watched, toy.clean(4), toy.noisy(4), BBED, 5)
print("gradient in the five calls:", modes)
assert modes == [False] * 4 + [True]

# %% [markdown]
# ## Repair one number
#
# The simplest network that could repair the fault: one complex number $w$ added to the numerator, trained by `crp_loss`. For $N=1$ the answer has a closed form, $w=(E[x_0]-E[\hat x])\,\sigma/(g^2\Delta)$.

# %%
after, found = {}, {}
for N in (1, 5):
    torch.manual_seed(0)
    number = torch.nn.ParameterList([torch.zeros(2)])
    repaired = lambda x, y, t: off(torch.view_as_complex(number[0]))(x, y, t)
    toy.fit(number, lambda x0, y: sgmse.crp_loss(repaired, x0, y, BBED, N), fast(400, 100), lr=0.02)
    found[N] = torch.view_as_complex(number[0].detach()).item()
    after[N] = ends(off(found[N]), N)[1]
    print(f"N = {N}: w = {found[N]:.3f}, energy distance {toy.energy_distance(before[N], reference):.3f} -> "
          f"{toy.energy_distance(after[N], reference):.4f}")
    below("   the mean is off by", (after[N].mean() - toy.MEAN).abs().item(), 0.05, trained=True)
half = torch.tensor([0.5])
closed = (toy.MEAN - before[1].mean().item()) / (BBED.diffusion(0.5) ** 2 * 0.5 / BBED.std(half).item())
check("N = 1: w against its closed form", abs(found[1] - closed), 0, 0.04, trained=True)
below("N = 5: energy distance", toy.energy_distance(after[5], reference), 0.02, trained=True)
axes = toy.panels(4, 2.2)
for axis, N, end, title in zip(axes, (1, 1, 5, 5), (before[1], after[1], before[5], after[5]),
                               ("1 call", "1 call, repaired", "5 calls", "5 calls, repaired")):
    toy.draw(axis, end, title=title)

# %% [markdown]
# With five evaluations the repaired sampler is right. With one, $w$ can move the cloud as a whole and no more; its mean is right and its shape is not.
#
# ## Repair everything
#
# Now a whole network, one evaluation. The loss falls to $\frac12\mathrm{Var}(x_0\mid y)$ and stops: the start $y+\sigma z$ knows nothing of $x_0$, so the best answer to a squared error is the same for every $z$, the mean $E[x_0\mid y]$.

# %%
show(toy.learn_correction)

# %%
torch.manual_seed(0)
score, losses = toy.learn_correction(BBED, fast(1500, 30))
start, one_point = ends(score, 1)
check("loss of the last fifth against half the variance of x0", fifths(losses)[1], toy.VARIANCE / 2,
      0.03 * toy.VARIANCE / 2,
      trained=True)
below("spread of 2000 outputs", toy.spread(one_point), 0.06, trained=True)
check("their distance from the mean of all places", (one_point.mean() - toy.MEAN).abs().item(), 0, 0.05, trained=True)
start, five = ends(exact, 30)
axes = toy.panels(3)
toy.draw(axes[0], five, start, title="exact score, 30 calls")
toy.draw(axes[1], one_point, start, torch.stack([start, one_point]), "CRP, 1 call")
axes[2].plot(losses, linewidth=0.6)
axes[2].axhline(toy.VARIANCE / 2, color="black", linestyle=":", label="half the variance of $x_0$")
axes[2].set(xlabel="step", ylim=(0.2, 0.4), title="crp_loss, 1 call")
axes[2].legend();

# %% [markdown]
# Three clouds have become one point that lies in none of them. On speech one explanation is often far more likely than the others, so the mean is no bad answer, and scores like it. Two draws of the one-step model agree, also because it starts at $t=0.03$, where there is little noise:

# %%
first, second = (enhance(pretrained("sgmse_crp1"), noisy, seed) for seed in (0, 1))
agreement = 10 * (first.square().sum() / (first - second).square().sum()).log10().item()
a, b = (enhance(pretrained("sgmse_stage1"), noisy, seed) for seed in (0, 1))
print(f"two draws of sgmse_crp1 agree to {agreement:.1f} dB, of sgmse_stage1 to "
      f"{10 * (a.square().sum() / (a - b).square().sum()).log10():.1f} dB")
below("difference of two draws of sgmse_crp1, dB", -agreement, -12)

# %% [markdown]
# ## Train small
#
# From `sgmse_stage1`, on the three recordings, half a minute in all. It shows the loop and a falling loss; the full command is `python sgmse.py train --data DIR --init sgmse_stage1 --crp last --sampler em --N 5 --start 0.5 --lr 1e-5`.

# %%
plt.figure(figsize=(5, 2.4))
for N, steps in ((5, fast(19, 2)), (1, fast(40, 2))):
    method = pretrained("sgmse_stage1", crp="last", N=N, start=0.5)
    method.prepare(fresh=False)
    logged = train_small(method, steps, batch_size=2, lr=3e-4)
    early, late = fifths(logged["loss"])
    print(f"N = {N}: loss {early:.0f} -> {late:.0f}")
    below("   last fifth over first fifth", late / early, 1, trained=True)
    plt.semilogy(logged["loss"], label=f"N = {N}")
plt.xlabel("step")
plt.ylabel("crp_loss, sum over bins")
plt.legend();

# %% [markdown]
# ## Trained on a corpus
#
# Rows of the [experiments](experiments/README.md), where the commands stand, with voices that training never heard: mean [95 % interval over recordings]. Under "budget" every row had the same network size, crops a stage, batch and schedule.

# %%
experiment("budget", "noisy", "predictive", "score", "CRP", test="test")

# %% [markdown]
# With few crops the one-step prediction at $t=T$ beats the sampler, and CRP, which needs as many again, comes to that one evaluation: with 12,000 crops a stage 0.02 PESQ below it [-0.08, 0.04] and 0.3 dB above [-0.3, 0.9]. The predictive rows are the control. By the error of the spectrogram, as in the paper, the predictive one lies 0.21 PESQ [0.12, 0.30] below CRP for one evaluation with 12,000 crops a stage and 0.11 above with 3,000. By SI-SDR it lies above both CRP models in SI-SDR with either: what CRP is worth depends on what it is compared with. Score matching, the paper's stage 1, is slower to learn, and CRP mends most where most is wrong.
#
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. $N$ and the start are not in the released files: write them down. Ours hold them (c).
# 2. The same $N$ in training and use (c).
# 3. Learning rate $10^{-5}$, where stage 1 had $10^{-4}$ (c).
# 4. With $N\ge2$ the trained evaluation sits at $t=0.03$, whatever $N$ is (m).
#
# ## Where paper and code differ
#
# - The released code starts from raw weights and goes on with the average of stage 1; here from averaged weights, with a fresh average.
# - Its script's default learning rate is ten times that of its README.
#
# ## Exercises
#
# Put your own value into the cell below; it says how close it is.
#
# **1.** What is the factor $g^2\Delta$ of the trained evaluation with $N=1$ from $t_{rs}=0.3$?
#
# <details><summary>Hint</summary>
#
# BBED has $g^2=c\,k^{2t}$ with $c=0.51$ and $k=2.6$; the single step goes from 0.3 to 0.
#
# </details>
#
# <details><summary>Solution</summary>
#
# $c\,k^{2t}t=0.51\cdot2.6^{0.6}\cdot0.3=0.2714$.
#
# </details>
#
# **2.** With `trained="random"` another of the $N$ evaluations is trained, and its step does not end at $t=0$. What weight has $x_0$ in the target of the first of five?
#
# <details><summary>Hint</summary>
#
# The target is the mean of the forward process at the next time of the grid.
#
# </details>
#
# <details><summary>Solution</summary>
#
# The mean at 0.3825 is $0.6175\,x_0+0.3825\,y$.
#
# </details>
#
# **3.** `sgmse` was trained for five evaluations from 0.5. How many dB of SI-SDR does a single one from $t=0.03$, its trained evaluation alone, reach on the windmill?
#
# <details><summary>Hint</summary>
#
# Its start $y+\sigma(0.03)z$ is almost $y$: it is a predictor. Compare with the five of the first cell.
#
# </details>
#
# <details><summary>Solution</summary>
#
# Most of what five reach: see the last cell.
#
# </details>

# %%
times, steps = sgmse.reverse_grid(BBED, 1, 0.3)
answer("1", 0.2714, BBED.diffusion(times[0]) ** 2 * steps[0], 1e-3, "0.51 * 2.6 ** 0.6 is g squared; then the length of the step")
mean = BBED.mean(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0.3825])).item()
answer("2", 0.6175, mean, 1e-3, "the mean is (1 - t) x_0 + t y")
clean, noisy = (data.load_audio(train.HERE / "tutorials/audio" / side / "windmill.flac")[0][0]  # whole, in the tests too
                for side in ("clean", "noisy"))
single, five_calls = enhance(pretrained("sgmse", N=1, start=0.03), noisy), enhance(pretrained("sgmse"), noisy)
print(f"one evaluation {metrics.pesq(clean, single):.2f} PESQ, {metrics.si_sdr(clean, single):.1f} dB; five "
      f"{metrics.pesq(clean, five_calls):.2f}, {metrics.si_sdr(clean, five_calls):.1f} dB")
answer("3", 12, metrics.si_sdr(clean, single), 2.5, "it is a little below that of five")
