# %% [markdown]
# # 3 CRP: train the sampler that will be used
#
# A score model is trained at each noise level separately. Its training does not know that the sampler takes five large steps, or one, and that their errors accumulate. *Correcting the reverse process* (CRP) runs this very sampler in training and fine-tunes its last step so that it ends at clean speech.
#
# **You will** train through a sampler, see what the last step can correct and what it cannot, and find that its optimum is a mean: with one step, CRP turns a sampler into a predictor. The page runs in about a minute and a half on one CPU core. Paper: Lay, Lemercier, Richter, Gerkmann (ICASSP 2024, [arXiv 2309.09677](https://arxiv.org/abs/2309.09677)).
#
# | symbol | meaning | value |
# |---|---|---|
# | $x_0,\ y,\ x_t$ | clean, noisy and intermediate spectrogram; $t=0$: clean | complex |
# | $f=\frac{y-x}{1-t},\ g=\sqrt c\,k^t$ | drift and diffusion of BBED | $c=0.51$, $k=2.6$ |
# | $\sigma_t$ | std of $x_t$ per complex bin | $\sigma_{0.5}=0.487$ |
# | $s,\ D=x_t+\sigma_t^2s$ | score, and its denoiser, an estimate of the mean of $x_t$ | |
# | $t_{rs}$ | start of the reverse process | 0.5 |
# | $t_\varepsilon$ | earliest time of the grid | 0.03 |
# | $N,\ \Delta_i$ | steps, their lengths; NFE $=N$ | 1, 2 or 5 |
# | NFE | network evaluations for one recording | |

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, recording, show, spectrogram,
                   train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import metrics
import sgmse
import toy

BBED = sgmse.BBED()

# %% [markdown]
# ## Listen
#
# The windmill, 5 dB: the model of stage 1 with 1, 2 and 5 steps from $t=0.5$, then after CRP with five steps from $t=0.5$, and with one step from $t=0.03$. As a control the same weights of stage 1 also give a **one-step prediction at $t=T$**, the option `one_step`: no sampler, one network evaluation at the latest time, and from its score the estimate $E[x_0\mid x_T,y]$ by `sgmse.posterior_mean`.

# %%
clean, noisy = recording("windmill")
outputs = {f"stage 1, NFE {N}": enhance(pretrained("sgmse_stage1", N=N), noisy) for N in (1, 2, 5)}
outputs |= {"stage 1, one_step": enhance(pretrained("sgmse_stage1", sampler="one_step", start=1.0), noisy),
            "CRP, NFE 5": enhance(pretrained("sgmse"), noisy), "CRP, NFE 1": enhance(pretrained("sgmse_crp1"), noisy)}
play(noisy=noisy, **outputs)
figure, axes = plt.subplots(2, 4, figsize=(9, 4.2), sharex=True, sharey=True)
axes[1, 3].axis("off")
for axis, (title, wave) in zip(axes.flat, {"noisy": noisy, **outputs}.items()):
    print(f"{title}: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s" if axis in axes[1] else "", ylabel="kHz" if axis in axes[:, 0] else "")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# One step from $t=0.5$ (NFE 1) makes the recording worse than it was; five steps remove some noise, but their result is worse than that of CRP. The one-step prediction of the *same* weights is as good as CRP: what CRP corrects here is the sampler, not a lack of knowledge in the weights. Why one step fails is shown under *The last step*.
#
# Over the number of network evaluations, on 37 test recordings (mean and 95 % interval; see [experiments](experiments/README.md)):
#
# ![PESQ, ESTOI and SI-SDR over the number of network evaluations: stage 1 rises with it; the models after CRP lie above it, except the one for NFE 5 at NFE 1; the one-step prediction of stage 1 is at the top](experiments/nfe.png)
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $t_{rs}=t_1>\dots>t_N=t_\varepsilon,\ \Delta_N=t_\varepsilon$ | the sampler's times; the last step goes to 0 | `reverse_grid` |
# | $\hat x=x-(f-g^2s)\,\Delta_N$ | its last step, without noise | `reverse_step` |
# | $\frac12E\left\lvert\hat x-x_0\right\rvert^2$ | the loss; gradient through the last evaluation only | `crp_loss` |
# | $x_{t_{rs}}=y+\sigma z$ | the start, independent of $x_0$ | `BBED.prior` |
# | $E[x_0\mid x_T,y]$ | one-step prediction, without a sampler | `posterior_mean` |
#
# ## The toy
#
# One noisy point (the cross), three places where the clean point may be (blue). The score model has a known error: the exact score plus $(0.3+0.2i)/\sigma_t$. Where does its sampler end, with one and with five steps?

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
                      arrowprops=dict(arrowstyle="->", color="tab:orange" if last else "tab:blue"))
        axis.plot(t, row, "^" if last else "o", color="tab:orange" if last else "tab:blue", markersize=6)
axis.set(xlim=(0.53, -0.02), ylim=(-0.6, 2.6), yticks=(0, 1, 2), yticklabels=("N = 1", "N = 2", "N = 5"),
         xlabel="process time t; triangle: the evaluation that is trained");

# %% [markdown]
# For every $N\ge2$ the trained evaluation (triangle) is at $t=0.03$; only for $N=1$ is it at the start, 0.5.
#
# ## The last step
#
# $$\hat x=x-\big[f(x,y,t)-g(t)^2s_\theta(x,y,t)\big]\,\Delta$$
#
# The score enters with the factor $g^2\Delta$: 0.663 for $N=1$, 0.0162 for $N\ge2$. Whether that is much depends on the noise of the state. With the denoiser $D=x+\sigma^2s$ the step adds $\frac{g^2\Delta}{\sigma^2}(D-x)$: in units of the correction that the denoiser itself proposes, the factor is $g^2\Delta/\sigma^2$.
#
# - At $t=0.03$ it is 1.06: the last step carries out one whole correction and lands at the denoiser's estimate.
# - From $t=0.5$ in one step it is 2.80: the step **overshoots**. With a perfect denoiser, $D=\mu_t$, the fraction $1+\frac{\Delta}{1-t}-\frac{g^2\Delta}{\sigma^2}=-0.80$ of the noise $\sigma z$ in the state is left, with its sign reversed (the second term comes from the drift). For this reason stage 1 with one step from 0.5 has a negative SI-SDR, and CRP has to teach the network a smaller correction.

# %%
show(sgmse.reverse_step)

# %%
x, y = torch.zeros(2, 1, 1, 1, 1)
for N, known in ((1, 0.6630), (5, 0.016203)):
    times, steps = sgmse.reverse_grid(BBED, N, 0.5)
    one, none = (sgmse.reverse_step(lambda *_: s, x, y, times[-1], steps[-1], BBED)[0].item() for s in (1.0, 0.0))
    check(f"N = {N}: factor of the trained score", one - none, known, 1e-5)
t = torch.linspace(0.03, 0.7, 68, dtype=torch.float64)
corrections = BBED.diffusion(t) ** 2 * t / BBED.std(t) ** 2                     # one step from t to 0
left = 1 + t / (1 - t) - corrections
for start, known in ((0.03, 1.06), (0.5, 2.80)):
    check(f"one step from t = {start}: corrections", corrections[(t - start).abs().argmin()].item(), known, 0.005)
check("one step from t = 0.5: fraction of the noise that is left", left[47].item(), -0.80, 0.005)
figure, axis = plt.subplots(figsize=(5.5, 2.6))
axis.plot(t.numpy(), corrections.numpy(), color="tab:blue", label="corrections $g^2\\Delta/\\sigma^2$")
axis.plot(t.numpy(), left.numpy(), "--", color="tab:orange", label="fraction of the noise left")
axis.plot([0.03, 0.5], corrections[[0, 47]].numpy(), "o", color="tab:blue")
axis.plot([0.03, 0.5], left[[0, 47]].numpy(), "^", color="tab:orange")
axis.axhline(0, color="0.6", linewidth=0.8)
axis.set(xlabel="start t of a single step to 0", title="the overshoot of one large step")
axis.legend();

# %% [markdown]
# A step from $t=0.03$ (left marks) is one correction and removes the noise; the same formula from $t=0.5$ (right marks) applies 2.8 corrections and turns the noise over.

# %% [markdown]
# ## The loss
#
# $$\mathcal L=\tfrac12\,E\left\lvert\hat x_N-x_0\right\rvert^2$$
#
# The steps before the last are plain sampling without a gradient. They change only because they use the same weights.

# %%
show(sgmse.crp_loss)

# %%
modes = []
def watched(x, y, t):
    modes.append(torch.is_grad_enabled())
    return exact(x, y, t)


sgmse.crp_loss(watched, toy.clean(4), toy.noisy(4), BBED, 5)
print("gradient in the five evaluations:", modes)
assert modes == [False] * 4 + [True]

# %% [markdown]
# ## Train one number
#
# The simplest network that can correct the error is one complex number $w$ added to the numerator, trained by `crp_loss`. For $N=1$ the optimum has a closed form, $w=(E[x_0]-E[\hat x])\,\sigma/(g^2\Delta)$ with the output $\hat x$ for $w=0$; the score becomes the exact one plus $(0.3+0.2i+w)/\sigma_t$.

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
                               ("N = 1", "N = 1, trained", "N = 5", "N = 5, trained")):
    toy.draw(axis, end, title=title)

# %% [markdown]
# With five steps the trained sampler finds the three places. With one, $w$ can only shift the whole cloud: its mean is right, its shape is not.
#
# ## Train a whole network
#
# Now a whole network, with one step. The loss falls to $\frac12\mathrm{Var}(x_0\mid y)$ and stops: the start $y+\sigma z$ is independent of $x_0$, so the minimiser of the squared error is the same for every $z$, the mean $E[x_0\mid y]$.

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
toy.draw(axes[0], five, start, title="exact score, NFE 30")
toy.draw(axes[1], one_point, start, torch.stack([start, one_point]), "CRP, NFE 1")
axes[2].plot(losses, linewidth=0.6)
axes[2].axhline(toy.VARIANCE / 2, color="black", linestyle=":", label="half the variance of $x_0$")
axes[2].set(xlabel="step", ylim=(0.2, 0.4), title="crp_loss, N = 1")
axes[2].legend()
toy.animate(torch.stack([start, one_point]), "CRP, NFE 1: all points to the mean")

# %% [markdown]
# Three clouds (left) have become one point that lies in none of them (middle, and the animation); the loss stops at half the variance (right). On speech one explanation is often far more likely than the others; then the mean is a good estimate, and scores that compare with the reference favour it. Two draws of the model with one step agree closely, also because it starts at $t=0.03$, where there is little noise:

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
# From `sgmse_stage1`, on the three recordings. This shows the training loop only. The full command is `python sgmse.py train --data DIR --init sgmse_stage1 --crp last --sampler em --N 5 --start 0.5 --lr 1e-5`.

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
# On the three memorised recordings the loss of $N=1$ falls from a high start, because the single step overshoots; that of $N=5$ starts low, falls by less than a third and fluctuates.
#
# ## Trained on a corpus
#
# Rows of the [experiments](experiments/README.md), which list the commands; the test speakers were not in the training data: mean [95 % interval over recordings]. Every row had the same network size, number of crops per stage, batch size and schedule. "Score model": its network predicts $x_0$, trained with PESQ in its loss; "score matching": trained with the loss of the paper ([notebook 2](2_score.ipynb)).

# %%
experiment("budget", "noisy", "predictive", "score", "CRP", test="test")

# %% [markdown]
# With few crops the one-step prediction at $t=T$ beats the sampler. CRP, which needs the same number of crops again, reaches that one-step prediction: with 12,000 crops per stage CRP with NFE 5 differs from it by -0.02 PESQ [-0.08, 0.04] and 0.3 dB above [-0.3, 0.9]. The predictive rows are the control. Trained with the error of the spectrogram, as in the paper, the predictive network is 0.21 PESQ [0.12, 0.30] below CRP with one step for 12,000 crops per stage, and 0.11 above it for 3,000. Trained with SI-SDR, it has a higher SI-SDR than both CRP models in either case: the benefit of CRP depends on the baseline. Score matching, the paper's stage 1, learns more slowly, and CRP improves this weakest model most (by 0.26 PESQ); of the other two it improves the stronger one more.
#
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. The released files do not contain $N$ and the start; ours do (c).
# 2. $N$ must be the same in training and use (c).
# 3. The learning rate is $10^{-5}$, in stage 1 $10^{-4}$ (c).
# 4. With $N\ge2$ the trained evaluation is at $t=0.03$ for every $N$ (m).
#
# ## Where paper and code differ
#
# - The released code starts from the raw weights and continues the moving average of stage 1; here it starts from the averaged weights with a new average.
# - Its script's default learning rate is ten times that of its README.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** What is the factor $g^2\Delta$ of the trained score with $N=1$ from $t_{rs}=0.3$?
#
# <details><summary>Hint</summary>
#
# $g$ is in the table at the top; a single step goes from $t_{rs}$ to 0.
#
# </details>
# <details><summary>Solution</summary>
#
# $g^2\Delta=c\,k^{2t}t=0.51\cdot2.6^{0.6}\cdot0.3=0.2714$.
#
# </details>
#
# **2.** With `trained="random"` any of the $N$ evaluations may be trained, and its step does not end at $t=0$. Its target is the mean of the forward process at the end of the step. If the first of five is trained, what is the weight of $x_0$ in its target?
#
# <details><summary>Hint</summary>
#
# The first step goes from 0.5 to the second of the five times. The mean of BBED is $(1-t)x_0+ty$.
#
# </details>
# <details><summary>Solution</summary>
#
# 0.6175: the target is $\mu(x_0,y,0.3825)=0.6175\,x_0+0.3825\,y$.
#
# </details>
#
# **3.** A perfect denoiser, $D=\mu_t$, and one step from $t=0.5$ to 0. Which fraction of the noise $\sigma z$ of the state is left, with its sign?
#
# <details><summary>Hint</summary>
#
# Put $x=\mu+\sigma z$ and $s=(\mu-x)/\sigma^2$ into the last step and collect the terms with $z$. The drift contains $x$, too.
#
# </details>
# <details><summary>Solution</summary>
#
# $1+\frac{\Delta}{1-t}-\frac{g^2\Delta}{\sigma^2}=1+1-2.80=-0.80$: the step overshoots.
#
# </details>

# %%
answer("3.1", BBED.diffusion(0.3) ** 2 * 0.3)
answer("3.2", BBED.mean(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0.3825])))
half = torch.tensor([0.5])
answer("3.3", 1 + 0.5 / (1 - 0.5) - BBED.diffusion(0.5) ** 2 * 0.5 / BBED.std(half) ** 2)
