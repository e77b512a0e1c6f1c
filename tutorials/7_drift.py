# %% [markdown]
# # 7 Drifting: a training target that moves with the outputs
#
# One network evaluation, no pairs in the loss, no noise schedule. Fixed features turn clean and generated speech into two clouds of points. A *drifting field* attracts every generated point to the clean points near it and repels it from other generated points. The network is trained to output the points after this shift.
#
# **You will** see attraction and repulsion cancel, two normalisations of the field, why one temperature is not enough, and why the loss does not measure quality. The page runs in about a minute and a half on one CPU core. Papers: *Speech Enhancement Based on Drifting Models* (DriftSE, [arXiv 2604.24199v1](https://arxiv.org/abs/2604.24199v1), Eqs. 1 to 9), *Generative Modeling via Drifting* (Deng et al., [arXiv 2602.04770](https://arxiv.org/abs/2602.04770), Algorithm 2).
#
# | symbol | meaning | value |
# |---|---|---|
# | $x,\ y^+,\ y^-$ | points that move, clean points, generated points | rows $(N,D)$ |
# | $d,\ \tau$ | Euclidean distance, temperature of the kernel $e^{-d/\tau}$ | 0.1, 0.5, 1 |
# | $V$ | drifting field | |
# | $R,\ C,\ A$ | soft-max over a row, over a column, and $\sqrt{RC}$ | |
# | $S^+,\ S^-$ | row sums of $A$ over clean and over generated points | |
# | $\phi$ | features of a wave | encoder or log-mel frames |
# | $\mathrm{sg}$ | no gradient through this term | |
#
# **Scores:** PESQ, ESTOI and SI-SDR as in [notebook 1](1_sound.ipynb). DistillMOS and OVRL (both 1 to 5) are networks that predict a listener's grade without a reference; OVRL is the overall grade of DNSMOS.

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, read_rows, recording,
                   show, spectrogram, tiny, train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import drift
import metrics
import toy

torch.manual_seed(0);

# %% [markdown]
# ## Listen
#
# A speaker in front of a cheering crowd, 7.5 dB. `drift` was trained with the drifting loss alone, which does not use which clean frame belongs to which noisy one. `drift_dagger` also had losses on the waveform. Listen to the noise and distortion that remain.

# %%
clean, noisy = recording("cheer")
plain, dagger = enhance(pretrained("drift"), noisy), enhance(pretrained("drift_dagger"), noisy)
play(noisy=noisy, drift=plain, drift_dagger=dagger, clean=clean)

# %%
figure, axes = plt.subplots(2, 2, figsize=(7, 3.8), sharex=True, sharey=True)
for axis, title, wave in zip(axes.flat, ("noisy", "drift", "drift_dagger", "clean"), (noisy, plain, dagger, clean)):
    image = spectrogram(axis, wave, f"{title}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB".replace("inf ", "∞ "))
for axis in axes[1]:
    axis.set_xlabel("s")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# `drift` removes most of the noise between the words but leaves the whistles of the crowd between 2 and 8 kHz; `drift_dagger` removes most of them. The mean gains of both over a test set are printed below, from the table of [notebook 8](8_comparison.ipynb).

# %%
scores = {row["row"]: row for row in read_rows("shipped")}
for column in ("si_sdr", "pesq", "estoi"):
    base, plain_score, dagger_score = (float(scores[name][column]) for name in ("noisy", "drift", "drift_dagger"))
    print(f"{column}: drift gains {(plain_score - base) / (dagger_score - base):.0%} of the gain of drift_dagger")

# %% [markdown]
# `drift` was trained on 12,000 crops of a second without pairs in the loss, `drift_dagger` on 171,400 crops of two seconds. Longer training with the drifting loss alone did not help: weights that had seen 6,000 crops were trained on another 55,000 with a batch of 64: their drifting loss fell to a twentieth, but their output was unintelligible.
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $x,\ y^+,\ y^-$ | points that move, clean points that attract, generated points that repel; here $y^-=x$ | rows `(N, D)` |
# | $k(x,y)=e^{-\left\lVert x-y\right\rVert/\tau}$ | kernel of temperature $\tau$, Eq. (8) | `distances` |
# | $V$ | drifting field, Eq. (7) and Deng et al., Alg. 2 | `mean_shift_field`, `drifting_field` |
# | $\phi$ | features of a wave | `SpeechLatents`, `mel_frames` |
# | $E\left\lVert\phi-\mathrm{sg}(\phi+V)\right\rVert^2$ | loss, Eq. (9); $\mathrm{sg}$: no gradient | `drifting_loss` |
#
# ## The toy
#
# One noisy point $y$ (the cross), three places where the clean point may be (blue). First without any network: 200 points (orange) start near $y$ and move, $x\leftarrow x+V$, with the mean of the fields for $\tau=0.1,\,0.5,\,1$ and 200 new clean points in each step.

# %%
def move(steps, temperatures):
    """States of 200 points under x <- x + V, (steps + 1, 200, 1, 1, 1)."""
    torch.manual_seed(0)
    x = toy.rows(toy.noisy(200) + 0.1 * torch.randn(200, 1, 1, 1, dtype=torch.complex64))
    states = [x]
    for _ in range(steps):
        x = x + drift.multi_temperature_field(x, toy.rows(toy.clean(200)), x, temperatures)
        states.append(x)
    return torch.stack([toy.points(x) for x in states])


states, reference = move(200, (0.1, 0.5, 1.0)), toy.clean(2000)
axes = toy.panels(4, 2)
for axis, step in zip(axes, (0, 10, 50, 200)):
    distance = toy.energy_distance(states[step], reference)
    toy.draw(axis, states[step], paths=states[:step + 1], title=f"{step} steps: {distance:.3f}")
toy.animate(states, "200 points follow the field")
below("energy distance after 200 steps", toy.report("200 steps", states[200], reference), 0.01)

# %% [markdown]
# The number above each panel is the energy distance to samples of the truth, 0 for equal distributions. The cloud splits into three clouds in the right proportions; the animation shows 60 of its points. Now with the smallest temperature alone.

# %%
cold = move(200, (0.1,))
check("energy distance, temperature 0.1 alone", toy.energy_distance(cold[-1], reference), 0.52, 0.1)
axes = toy.panels(2)
toy.draw(axes[0], cold[-1], paths=cold, title="τ = 0.1 alone, 200 steps")
toy.report("temperature 0.1 alone", cold[-1], reference)
apart = torch.linspace(0, 1.3, 100)
for tau, style in ((0.1, "-"), (0.5, "--"), (1.0, ":")):
    axes[1].plot(apart.numpy(), (-apart / tau).exp().numpy(), style, label=f"τ = {tau}")
axes[1].set(xlabel="distance", ylabel="kernel", title="kernel over distance")
axes[1].legend();

# %% [markdown]
# Most points go to the nearest place and stay there (left), although it should receive only a fifth. At a distance of 1 the kernel for $\tau=0.1$ is $e^{-10}$ (right), so points in a place that has too many are not attracted by a distant place that has too few. Deng et al. use several temperatures for this reason.
#
# ## Eq. (7): attraction minus repulsion
#
# $$V(x)=\frac{1}{Z_pZ_q}\,E_{y^+,y^-}\big[k(x,y^+)\,k(x,y^-)\,(y^+-y^-)\big]$$
#
# Here $p$ and $q$ are the distributions of the clean and the generated points, $Z_p=E\,k(x,y^+)$ and $Z_q=E\,k(x,y^-)$. The double expectation equals the kernel-weighted mean of the clean points minus that of the generated points; this form is computed.
#
# <details><summary>Derivation: the equilibrium, and a reading as a gradient flow</summary>
#
# *Factor the expectation.* Since $E[k(x,y^+)\,k(x,y^-)]=Z_pZ_q$, Eq. (7) is $V=m_p(x)-m_q(x)$ with $m_p(x)=E[k(x,y^+)\,y^+]/Z_p$.
#
# *Equilibrium.* Exchanging the sets changes the sign, $V_{p,q}=-V_{q,p}$; so $V_{p,p}=-V_{p,p}=0$: if the generated points have the distribution of the clean ones, nothing moves. The loss asks for $\phi=\mathrm{sg}(\phi+V)$, which holds exactly where $V=0$. The converse, that $V=0$ everywhere implies equal distributions, depends on the kernel.
#
# *Gradient flow.* For a Gaussian kernel of bandwidth $h$, $m_p(x)-x=h^2\,\nabla\log(p*k)(x)$: the mean shift is the score of the Parzen-smoothed density. Then $V=h^2\,\nabla\log\frac{p*k}{q*k}$, the direction in which the Wasserstein gradient flow of a Kullback-Leibler divergence moves the points, here between smoothed densities ([arXiv 2605.05118](https://arxiv.org/abs/2605.05118)). With the exponential kernel of the paper each of the two means is again such a gradient, of a density smoothed with the kernel $(d+\tau)e^{-d/\tau}$, but with a step size that depends on the point and differs for $p$ and $q$; so this is an analogy only. The same work compares Algorithm 2 below with a single Sinkhorn iteration of optimal transport: rows and columns are normalised once, so the balance between distant modes is only approximate. The picture of $\tau=0.1$ above is such a case: no mass is carried between the places.
#
# </details>

# %%
show(drift.distances, drift.separate_weights, drift.mean_shift_field)

# %%
x, p, q = torch.randn(3, 40, 2, dtype=torch.float64)
there = drift.mean_shift_field(x, p, q, 0.5, exclude_self=False)
back = drift.mean_shift_field(x, q, p, 0.5, exclude_self=False)
kernel = lambda y: (-torch.cdist(x, y) / 0.5).exp()
double = torch.einsum("ni,nj,nijd->nd", kernel(p), kernel(q), (p[:, None] - q[None]).expand(40, 40, 40, 2))
double = double / (kernel(p).sum(1) * kernel(q).sum(1))[:, None]
check("Eq. (7) as written, with both sums", (there - double).abs().max(), 0, 1e-12)
check("sets exchanged: the sign turns", (there + back).abs().max(), 0, 1e-12)
check("equal sets: no field", drift.mean_shift_field(x, p, p, 0.5, exclude_self=False).abs().max(), 0, 1e-12)

# %% [markdown]
# **Attraction and repulsion**, with $\tau=0.5$, for a cloud around $y$ (orange):

# %%
torch.manual_seed(0)
cloud, targets = toy.noisy(200) + 0.15 * torch.randn(200, 1, 1, 1, dtype=torch.complex64), toy.clean(400)
line = torch.linspace(-1.2, 1.2, 11)
grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
pull, push = ((torch.softmax(-torch.cdist(grid, toy.rows(points)) / 0.5, 1) @ toy.rows(points) - grid)
              for points in (targets, cloud))
axes = toy.panels(3)
for axis, field, title in zip(axes, (pull, -push, pull - push), ("attraction by clean points", "repulsion by the cloud", "sum: V of Eq. (7)")):
    toy.draw(axis, cloud, title=title)
    axis.quiver(*grid.T.numpy(), *field.T.numpy(), color="0.15", width=0.006, scale=12, zorder=5)
whole = drift.mean_shift_field(grid, toy.rows(targets), toy.rows(cloud), 0.5, exclude_self=False)
check("attraction + repulsion = Eq. (7)", (pull - push - whole).abs().max().item(), 0, 1e-5)

# %% [markdown]
# All arrows have the same scale. Attraction alone (left) would collect all points at a weighted mean of the places; repulsion alone (middle) drives them apart without limit; in the sum (right) they almost cancel at the lower right, where the cloud and the third place are in the same direction, and elsewhere point towards the two upper places, which have four fifths of the probability.
#
# ## Algorithm 2: the field that the systems compute
#
# $$R=\mathrm{softmax}_{\text{row}}(-d/\tau),\quad C=\mathrm{softmax}_{\text{column}}(-d/\tau),\quad A=\sqrt{RC},\qquad V=S^-\,A^+y^+-S^+\,A^-y^-$$
#
# $d$ holds the distances to clean *and* generated points, $A^+$ and $A^-$ are its two halves and $S^\pm$ their row sums. This is **not** Eq. (7): in a row, clean and generated points compete in one soft-max; in a column, the moving points compete for one clean or generated point; and the difference of the two means is multiplied by $S^+S^-$.

# %%
show(drift.joint_weights, drift.drifting_field)

# %%
x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
p = torch.tensor([[0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
V = drift.drifting_field(x, p, x, 0.5)
by_hand = torch.tensor([[-0.344156, 0.456341], [0.645839, 0.517403]], dtype=torch.float64)
check("two points, computed by hand", (V - by_hand).abs().max(), 0, 1e-5)

x, p = torch.randn(50, 2, dtype=torch.float64), torch.randn(80, 2, dtype=torch.float64) + 1
V = drift.drifting_field(x, p, x, 1e6)
others = (x.sum(0) - x) / 49
gain = 80 * 49 ** 0.5 / (129 * 50 ** 0.5)
check("high temperature: gain times the difference of the means", (V / (p.mean(0) - others) / gain).mean(), 1, 0.02)
x, p, q = torch.randn(3, 40, 2, dtype=torch.float64)
exchanged = drift.drifting_field(x, q, p, 0.5, exclude_self=False)
check("sets exchanged: the sign turns",
      (drift.drifting_field(x, p, q, 0.5, exclude_self=False) + exchanged).abs().max(), 0, 1e-12)

# %% [markdown]
# Both fields around the same cloud (orange), with $\tau=0.5$ and one scale for all arrows. The colour is the length relative to Eq. (7).

# %%
axes = toy.panels(2, 3.3)
for axis, field, title in zip(axes, (drift.mean_shift_field, drift.drifting_field), ("Eq. (7)", "Algorithm 2")):
    V = field(grid, toy.rows(targets), toy.rows(cloud), 0.5, exclude_self=False).numpy()
    toy.draw(axis, cloud, title=title)
    full = drift.mean_shift_field(grid, toy.rows(targets), toy.rows(cloud), 0.5,
                                  exclude_self=False).norm(dim=1).numpy()
    ratio = (V ** 2).sum(1) ** 0.5 / full
    image = axis.quiver(*grid.T.numpy(), *V.T, ratio, cmap="viridis", clim=(0, np.ceil(10 * ratio.max()) / 10), width=0.006,
                        scale=8, zorder=5)
axes[0].figure.colorbar(image, ax=axes, label="length, relative to Eq. (7)");

# %% [markdown]
# The directions are similar, the lengths are not. The field of Eq. (7) (left) stays strong far away from all points; that of Algorithm 2 (right) is longer than Eq. (7) between the cloud and the places, and short at the margin.
#
# ## Several temperatures, in blocks
#
# $$V=\frac1{n_\tau}\sum_{\tau}V_\tau$$
#
# A batch has thousands of frames. Rows are processed in blocks to limit the memory; the soft-max over a column then needs an additional first pass.

# %%
show(drift.multi_temperature_field)

# %%
x, p = torch.randn(50, 3, dtype=torch.float64), torch.randn(60, 3, dtype=torch.float64)
whole = sum(drift.drifting_field(x, p, x, tau) for tau in (0.1, 0.5, 1.0)) / 3
blocks = drift.multi_temperature_field(x, p, x, (0.1, 0.5, 1.0), block=7)
check("blocks of 7 rows against the mean of whole fields", (blocks - whole).abs().max(), 0, 1e-12)

# %% [markdown]
# ## Eq. (9): the loss
#
# $$\mathcal L=E\,\left\lVert\phi-\mathrm{sg}(\phi+V)\right\rVert^2$$
#
# Its value is the mean square of $V$, its gradient $-2V/(ND)$: a step of gradient descent on $\phi$ *is* a step along the field.

# %%
show(drift.feature_scale, drift.drifting_loss)

# %%
x = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
p = torch.randn(30, 4, dtype=torch.float64)
loss = drift.drifting_loss(x, p)
loss.backward()
scale = drift.feature_scale(x.detach(), p)[0]
V = drift.multi_temperature_field(x.detach() / scale, p / scale, x.detach() / scale)
check("loss: the mean square of V", loss.item(), V.square().mean().item(), 1e-12)
check("gradient: -2 V / (N D), over the scale", (x.grad + 2 * V / (30 * 4) / scale).abs().max(), 0, 1e-12)

# %% [markdown]
# **Train a generator on the toy.** A small network maps noise to points; each step uses 256 of them and 256 clean points.

# %%
show(toy.learn_generator)

# %%
torch.manual_seed(0)
start = toy.noisy(2000) + toy.SIGMA * torch.randn(2000, 1, 1, 1, dtype=torch.complex64)
with torch.no_grad():
    before = toy.energy_distance(toy.Plane(0, 128)(start), reference)
generator, losses = toy.learn_generator(fast(1000, 30))
with torch.no_grad():
    end = generator(start)
distance = toy.energy_distance(end, reference)
print(f"energy distance {before:.2f} -> {distance:.4f}, loss {losses[:20].mean():.4f} -> {losses[-200:].mean():.4f}")
toy.report("generator", end, reference)
below("energy distance of the generator", distance, 0.02, trained=True)
axes = toy.panels(2)
toy.draw(axes[0], end, start, torch.stack([start, end]), "drifting, NFE 1")
axes[1].semilogy(losses)
axes[1].set(xlabel="step", ylabel="loss", title="mean square of V");

# %% [markdown]
# The generator reaches the three places (left) with one evaluation, with some points between them; the loss, the mean square of $V$ (right), falls by about a factor of ten and stays noisy, since every step draws new points.
#
# ## Why the loss does not measure quality
#
# With the original scaling of Deng et al. every field is scaled to unit size before the sum. Then the loss hardly changes while the samples improve.

# %%
torch.manual_seed(0)
original, losses = toy.learn_generator(fast(1000, 30), temperatures=None, scaling="original")
with torch.no_grad():
    scaled_end = original(start)
print(f"loss {losses[:50].mean():.2f} -> {losses[-50:].mean():.2f}, energy distance at the start {before:.2f}")
toy.report("original scaling", scaled_end, reference)
axes = toy.panels(2)
toy.draw(axes[0], scaled_end, start, title="original scaling, NFE 1")
axes[1].plot(losses)
axes[1].set(xlabel="step", ylabel="loss", title="its loss", ylim=(0, None))
check("the loss at the end, relative to the beginning", losses[-50:].mean() / losses[:50].mean(), 1, 0.4,
      trained=True)

# %% [markdown]
# In this run the points leave the third place empty (left), and the printed energy distance is far above that of the generator before; the loss (right) shows nothing of it.
#
# Without this scaling the loss falls, but it compares sets, not recordings. On the windmill `drift` has a lower drifting loss than `consistency` and a lower PESQ:

# %%
target, mixture = recording("windmill")
method = pretrained("drift")
method.prepare()
loss, pesq = {}, {}
for name in ("drift", "consistency"):
    wave = enhance(pretrained(name), mixture)
    features = zip(method.latents(wave[None]), method.latents(target[None]))
    loss[name] = sum(drift.drifting_loss(x[0], p[0], method.temperatures, exclude_self=False) for x, p in features)
    pesq[name] = metrics.pesq(target, wave)
    print(f"{name}: loss {loss[name]:.3g}, PESQ {pesq[name]:.2f}")
below("loss of drift over that of consistency", loss["drift"] / loss["consistency"], 1, trained=True)
below("PESQ of drift minus that of consistency", pesq["drift"] - pesq["consistency"], 0, trained=True)

# %% [markdown]
# ## Does a frame repel itself?
#
# With `exclude_self` a perfect output is not an equilibrium: each generated frame is attracted by its own clean frame, but repelled only by the other generated frames. Test: 150 unit vectors in 64 dimensions, each with a particle at a distance of 0.3, 200 steps.

# %%
torch.manual_seed(0)
targets = torch.nn.functional.normalize(torch.randn(150, 64, dtype=torch.float64), dim=1)
away, figure = {}, plt.figure(figsize=(5, 2.6))
for exclude in (True, False):
    x = targets + 0.3 * torch.nn.functional.normalize(torch.randn(150, 64, dtype=torch.float64), dim=1)
    away[exclude] = [(x - targets).norm(dim=1).mean().item()]
    for _ in range(200):
        x = x + drift.multi_temperature_field(x, targets, x, exclude_self=exclude)
        away[exclude].append((x - targets).norm(dim=1).mean().item())
    plt.plot(away[exclude], linestyle="-" if exclude else "--",
             label="self excluded" if exclude else "self included")
plt.xlabel("step")
plt.ylabel("distance to its target")
plt.legend()
check("with self-exclusion: distance to the target", away[True][-1], 1.5, 0.5)
below("without", away[False][-1], 0.01)

# %% [markdown]
# With self-exclusion (solid) the particles leave their targets, without it (dashed) they reach them. The presets `small` and `tiny` therefore include the frame itself; the released code excludes it, with features that are normalised to a sphere.
#
# ## The latent space $\phi$
#
# The paper uses a speech encoder (DistilHuBERT). Without a download there are log-mel frames with 0.12 s of context on both sides.

# %%
show(drift.standardised, drift.mel_frames)

# %%
mel = drift.SpeechLatents("mel", (0, 1, 2))
layers = list(zip(mel(mixture[None]), mel(target[None])))
louder = mel(10 * mixture[None])
check("ten times louder, relative change",
      max((a - b[0]).abs().max() / b[0].abs().max() for a, b in zip(louder, layers)),
      0, 1e-3)
figure, axes = plt.subplots(1, 3, figsize=(8, 3), sharey=True)
for layer, (axis, (x, p)) in enumerate(zip(axes, layers)):
    d = drift.distances(x[0], p[0])
    hits = ((d.argmin(1) - torch.arange(len(d))).abs() <= 1).float().mean().item()
    print(f"layer {layer}: {hits:.2f} of the noisy frames are nearest to the clean frame of their own time (± 1)")
    axis.imshow(d.numpy(), extent=(0, len(d) / 50, 0, len(d) / 50), cmap="viridis", aspect="equal")
    axis.set(title=f"layer {layer}: {hits:.0%}", xlabel="clean frame, s")
axes[0].set_ylabel("noisy frame, s");

# %% [markdown]
# Layers 0, 1 and 2 are log-mel frames with the floors 1, 0.1 and 0.01: a band below the floor counts as silent. (Layers 3 and 4 in the table at the end have another window.) Dark: small distance. A drift can only help where the nearest clean frame is the right one, on the diagonal. The higher the floor of the logarithm (layer 0), the more often this is the case.
#
# **Frames during training.** Like Figure 2 of the paper, by `python tutorials/experiments/drifting.py`: frames of layer 0 in the two directions in which those of clean speech vary most. Grey: all clean test recordings; colour: one recording, enhanced after different numbers of training steps. The contours contain a tenth, a half and nine tenths of the frames, a cross is their mean. The bars are the energy distance between the frames of twenty enhanced recordings and of the same recordings, clean.
#
# ![Frames of one recording among those of clean speech, noisy and after 0, 100 and 1000 steps of training](experiments/drifting.png)

# %%
path = {row["row"]: float(row["energy_distance"]) for row in read_rows("drifting")}
print({state: round(distance, 2) for state, distance in path.items()})
below("energy distance after 100 steps over that of the noisy speech",
      path["after 100 steps"] / path["noisy"], 1, trained=True)
below("after 1000 steps over that after 100", path["after 1000 steps"] / path["after 100 steps"], 1, trained=True)

# %% [markdown]
# ## Train small
#
# The loop of `train.py` on the three recordings, with a network of 8 channels. This shows the training loop only. To train a useful model: `python drift.py train --data DIR --preset small --lr 1e-3 --clip 2`.

# %%
torch.manual_seed(0)
method = tiny(drift.DriftSE)
method.prepare()
logged = train_small(method, fast(41, 5), clip=2)
first, last = fifths(logged["drift"])
print(f"{sum(p.numel() for p in method.parameters()):,} parameters, drift {first:.2e} -> {last:.2e}")
below("last fifth over first fifth", last / first, 1, trained=True)
plt.figure(figsize=(5, 2.4))
plt.plot(logged["drift"])
plt.xlabel("step")
plt.ylabel("drifting loss");

# %% [markdown]
# The drifting loss falls only a little within a few dozen steps.
#
# ## Trained on a corpus
#
# Rows of the [experiments](experiments/README.md), which list the commands; the test speakers were not in the training data: mean [95 % interval over recordings]. First pairs under one budget; then unpaired training from weights trained on pairs; then training towards women's voices, with scores without a reference and the fraction of voiced frames above 165 Hz; and how often the nearest clean frame of a frame at 5 dB is its own clean reference, in different latent spaces.

# %%
experiment("budget", "noisy", "DriftSE", test="test")
for table, columns in (("unpaired", ("pesq", "estoi", "si_sdr")), ("women", ("ovrl", "distillmos", "estoi")),
                       ("voices", ("fraction_above",))):
    print(f"\n{table}")
    experiment(table, columns=columns)
print()
experiment("latents", snr=5, columns=("own_time",))

# %% [markdown]
# A network that estimates a mask can be trained with the drifting loss alone. In addition to the waveform losses of dagger, the drifting loss contributes nothing with 12,000 crops: without it the scores are the same. With noise on the input, or as a conditional generator, there is no mask, and after so few crops the output is not intelligible (ESTOI below 0.2; PESQ, up to 1.55, means nothing there); the same holds for the field of Eq. (7). In unpaired training the joint field keeps 0.06 PESQ of the 0.20 that the pairs had gained over the noisy speech, and nothing towards another corpus. Towards women's voices the fraction of high-pitched frames rises by 0.05 [0.03, 0.08] while quality falls: a mask can attenuate a low voice but not raise its pitch. An encoder trained on noisy speech finds the right frame more often than one with random weights, in its first layer, and mel frames more often still; but training in its latent space is no better than in the random one.
#
# ## Details that matter
#
# p: the paper, c: the authors' released code, m: measured here.
#
# 1. The loss contains no pairs: "paired" only means that the true frame is among the clean ones (p).
# 2. The loss does not depend on the gain of the output, which is therefore restored at the end from the peak of the input (c). Exercise 1.
# 3. The sets come from one micro-batch: gradient accumulation does not enlarge them (c).
# 4. Distances in float64: in single precision two equal frames can have a distance of 1e-3, and temperatures go down to 0.005 (m).
# 5. Self-exclusion is for features on a sphere (c, m).
#
# ## Where paper and code differ
#
# - **Field.** The paper states Eq. (7), the code computes Algorithm 2. `--field separate` is Eq. (7).
# - **Temperatures** 0.1, 0.5, 1 in the paper; 0.02, 0.05, 0.1 in the code for large encoders.
# - **Noise.** The network is trained with noise on the input and used with the same noise or with none, depending on the version.
# - `with_z` in the released code is the direct mapping with noise, not a conditional generator.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** The enhanced wave becomes ten times louder before the encoder. By which factor does the drifting loss change?
#
# <details><summary>Hint</summary>
#
# The features pass through `standardised`.
#
# </details>
# <details><summary>Solution</summary>
#
# 1: `standardised` divides by the standard deviation, and the features stay the same. So the gain must be restored afterwards, in `DriftSE.enhance`.
#
# </details>
#
# **2.** Use $\tau=1$ alone for the 200 points of the toy. What is the energy distance after 200 steps?
#
# <details><summary>Hint</summary>
#
# `move` and `reference` are defined above; compare with the case $\tau=0.1$.
#
# </details>
# <details><summary>Solution</summary>
#
# `toy.energy_distance(move(200, (1.0,))[-1], reference)` gives 0.006: the points reach the three places. A wide kernel includes all three, and its pull is not only towards the mean: the exponential kernel has a kink at 0, so at distances far below $\tau$ it still tells near points from less near ones, where a Gaussian kernel would be flat.
#
# </details>
#
# **3.** Let the two generated points *be* the two clean points $(0,0)$ and $(1,0)$, with self-exclusion and $\tau=0.5$. What is the first coordinate of $V$ at $(0,0)$?
#
# <details><summary>Hint</summary>
#
# `drift.drifting_field` excludes a point from its own repulsion by default. Expect a negative number: the other generated point repels.
#
# </details>
# <details><summary>Solution</summary>
#
# $-0.271713$, and $+0.271713$ at the other point: they are driven away from a perfect position.
#
# </details>

# %%
quiet, loud, ideal = (mel(wave[None])[0][0] for wave in (mixture, 10 * mixture, target))
answer("7.1", drift.drifting_loss(loud, ideal) / drift.drifting_loss(quiet, ideal))
answer("7.2", toy.energy_distance(move(200, (1.0,))[-1], reference))
perfect = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
answer("7.3", drift.drifting_field(perfect, perfect, perfect, 0.5)[0, 0])
