# %% [markdown]
# # 5 DISPatch: distil only where the teacher is better
#
# A small network, the compact student, learns from a large one. Copying the teacher everywhere also copies its errors. *DISPatch* divides the spectrogram into patches, finds those in which the teacher is closer to clean speech than the student, and distils only there.
#
# **You will** compute the knowledge gap score on real recordings, see which patches the released rule keeps, and read a table in which the choice of patches did not matter. The page runs in about half a minute on one CPU core. Paper: Kim, Choi, *DISPatch* (ICASSP 2026, [arXiv 2509.15922](https://arxiv.org/abs/2509.15922)); the two losses are the authors', the training defaults and the loss weights are ours.
#
# | symbol | meaning | value |
# |---|---|---|
# | $S,\ T,\ Y$ | spectra of student, teacher and clean speech | 257 bins |
# | $b$ | bins of a patch, one frame wide | 20 (13 bands) |
# | $n_b,\ N_t,\ B$ | bands, frames, recordings of a batch; $n=n_bN_t$ patches of a recording | |
# | $k$ | fraction of the patches that is kept | 0.8 |
# | $\theta_i$ | threshold of the score for recording $i$ | |
#
# **Scores in the table at the end:** PESQ and SI-SDR as in [notebook 1](1_sound.ipynb); ESTOI (0 to 1) predicts intelligibility.

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, recording, show, spectrogram,
                   train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import SymLogNorm

import data
import dispatch

# %% [markdown]
# ## Listen
#
# The waterfall. `consistency` is the teacher; `drift` plays the role of a student that is not yet as good.

# %%
names = ("windmill", "waterfall", "cheer")
clean, noisy, taught, own = {}, {}, {}, {}
for name in names:
    clean[name], noisy[name] = recording(name)
    taught[name], own[name] = (enhance(pretrained(model), noisy[name]) for model in ("consistency", "drift"))
play(noisy=noisy["waterfall"], student=own["waterfall"], teacher=taught["waterfall"], clean=clean["waterfall"])

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
for axis, title, waves in zip(axes, ("student", "teacher", "clean"), (own, taught, clean)):
    image = spectrogram(axis, waves["waterfall"], title)
    axis.set(xlabel="s", ylabel="kHz" if title == "student" else "")
figure.colorbar(image, ax=axes, label="dB");

# %% [markdown]
# The student leaves noise between the words and at high frequencies that the teacher removes.
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $S,T,Y$ | spectra of student, teacher, clean, $F$ bins and $N_t$ frames | `data.Spectrogram(512, 128, transform="none")` |
# | $p$ | a patch: $b$ neighbouring bins of one frame | `patches` |
# | $E_p=\frac1b\sum(\left\lvert S\right\rvert-\left\lvert Y\right\rvert)^2$ | error against clean | `magnitude_error`, `patch_mean` |
# | $\mathrm{KGS}_p=E_p^S-E_p^T$ | positive: the teacher is closer | `knowledge_gap_score` |
# | $\mathcal M$ | the patches that are distilled | `select` |
#
# ## A toy of four bins and two frames
#
# The toy of this notebook is a table of few numbers, all of which can be checked by hand. Patches have two bins.

# %%
as_spectrum = lambda rows: torch.tensor(rows, dtype=torch.complex64)[None]
Y = as_spectrum([[1, 0], [2, 1], [0, 3], [1, 1]])
S = as_spectrum([[0, 0], [2, 0], [1, 1], [1, 2]])
T = as_spectrum([[1, 0], [1, 1], [0, 2], [2, 1]])
error = lambda a, b: dispatch.patch_mean(dispatch.magnitude_error(a, b), 2)
gap = dispatch.knowledge_gap_score(error(S, Y), error(T, Y))[0]
figure, axes = plt.subplots(1, 6, figsize=(9, 2.2))
for axis, title, table in zip(axes, ("|Y| clean", "|S| student", "|T| teacher", "$E^S$", "$E^T$", "KGS"),
                              (Y[0].abs(), S[0].abs(), T[0].abs(), error(S, Y)[0], error(T, Y)[0], gap)):
    axis.imshow(table.numpy(), cmap="PuOr" if title == "KGS" else "Blues", origin="upper",
                vmin=-2.5 if title == "KGS" else 0, vmax=3 if title[0] == "|" else 2.5)
    for (row, column), value in np.ndenumerate(table.numpy()):
        axis.text(column, row, f"{value:g}", ha="center", va="center", color="white" if value > 1.8 else "black")
    axis.set(title=title, xticks=(), yticks=(), xlabel="frames")
axes[0].set_ylabel("bins")
axes[3].set_ylabel("patches");

# %% [markdown]
# From left to right: three tables of magnitudes, the errors of student and teacher in four patches, and their difference. In the patch at the lower right the student is far off (2.5) and the teacher is not (0.5): the gap is 2.
#
# ## The error of a patch
#
# $$E_p=\frac1b\sum_{f\in p}\big(\left\lvert S_f\right\rvert-\left\lvert Y_f\right\rvert\big)^2$$

# %%
show(dispatch.patches, dispatch.patch_mean, dispatch.magnitude_error)

# %%
check("E of the student", (error(S, Y)[0] - torch.tensor([[0.5, 0.5], [0.5, 2.5]])).abs().max().item(), 0, 1e-6)
check("E of the teacher", (error(T, Y)[0] - torch.tensor([[0.5, 0.0], [0.5, 0.5]])).abs().max().item(), 0, 1e-6)
three = dispatch.patch_mean(dispatch.magnitude_error(S, Y), 3)[0]
check("patches of 3 bins: the zeros above the top count", three[1, 1].item(), 1 / 3, 1e-6)

# %% [markdown]
# ## The knowledge gap score
#
# $$\mathrm{KGS}_p=E_p^S-E_p^T$$

# %%
show(dispatch.knowledge_gap_score)

# %%
check("KGS of the table", (gap - torch.tensor([[0.0, 0.5], [0.0, 2.0]])).abs().max().item(), 0, 1e-6)
perfect = dispatch.knowledge_gap_score(error(S, Y), error(Y, Y))
check("teacher = clean: no negative score", perfect.min().clamp(max=0).item(), 0, 0)

# %% [markdown]
# The same on the waterfall, in 13 bands of 20 bins. Purple: the teacher is closer to clean speech; orange: the student is.

# %%
spec = data.Spectrogram(512, 128, transform="none")


def errors(waves, name, size=20):
    """Error of a wave against clean in each patch, (1, bands, frames)."""
    return dispatch.patch_mean(dispatch.magnitude_error(spec(waves[name][None]), spec(clean[name][None])), size)


def score(student, name):
    return dispatch.knowledge_gap_score(errors(student, name), errors(taught, name))


gap = score(own, "waterfall")[0]
print("bands x frames:", tuple(gap.shape))
figure, axes = plt.subplots(1, 2, figsize=(9, 2.9), width_ratios=(3, 1))
seconds = len(clean["waterfall"]) / data.SAMPLE_RATE
image = axes[0].imshow(gap.numpy(), cmap="PuOr", interpolation="nearest", norm=SymLogNorm(0.1, vmin=-300, vmax=300),
                       extent=(0, seconds, 0, 8.125))
axes[0].set(xlabel="s", ylabel="kHz", title="knowledge gap score", ylim=(0, 8))
figure.colorbar(image, ax=axes[0], label="KGS, power of a bin", ticks=(-100, -1, 0, 1, 100))
axes[1].plot((gap > 0).float().mean(1).numpy(), 0.3125 + 0.625 * np.arange(13), "o-", color="tab:purple")
axes[1].set(xlim=(0, 1), ylim=(0, 8), xlabel="fraction of frames", title="teacher closer");

# %% [markdown]
# Both colours occur in every band, in areas of several bands and frames. On the right: the fraction of frames in which the teacher is closer, by frequency.
#
# ## Which patches are kept
#
# $$\mathcal M_i=\{p:\mathrm{KGS}_p\ge\theta_i\},\qquad\theta_i\text{: the }\lfloor0.8\,n\rfloor\text{-th highest score of recording }i$$
#
# The paper says "where the teacher is better"; the released rule keeps the top 80 %, whatever the sign of their scores.

# %%
show(dispatch.select)

# %%
rows = []
for name in names:
    gaps = {"noisy": score(noisy, name), "drift": score(own, name)}
    kept = dispatch.select(gaps["drift"], 0.8)
    rows.append([(gaps["noisy"] > 0).float().mean().item(), (gaps["drift"] > 0).float().mean().item(),
                 kept.float().mean().item(), ((gaps["drift"] > 0) & kept).sum().item() / kept.sum().item()])
    print(f"{name}: teacher closer than the noisy input in {rows[-1][0]:.2f}, than drift in {rows[-1][1]:.2f}; kept "
          f"{rows[-1][2]:.2f}, of which {rows[-1][3]:.2f} have a closer teacher")
    check("   fraction kept", rows[-1][2], 0.8, 0.01)
below("fraction of the kept patches with a closer teacher, mean over recordings", np.mean([row[3] for row in rows]), 0.8)
mask = dispatch.select(score(own, "waterfall"), 0.8)[0]
kinds = torch.where(mask, torch.where(gap > 0, 1.0, -1.0), torch.zeros_like(gap))
figure, axis = plt.subplots(figsize=(8, 2.6))
image = axis.imshow(kinds.numpy(), cmap="PuOr", vmin=-1.3, vmax=1.3, interpolation="nearest",
                    extent=(0, seconds, 0, 8.125))
axis.set(xlabel="s", ylabel="kHz", ylim=(0, 8),
         title="kept by top-k. Purple: teacher closer. Orange: student closer. White: not kept");

# %% [markdown]
# A large part of the kept patches is orange: there the student was closer to clean speech and is pulled towards a worse teacher. All patches count equally here, also those with little energy: in the windmill even the noisy input is closer than the teacher in two thirds of them, although its error, summed over all patches, is 18 times that of the teacher.
#
# ## Response distillation
#
# $$\mathcal L=\frac{\sum_{p\in\mathcal M}E_p(S,T)}{B\,n_b\,N_t\,k}$$
#
# The released code divides by the nominal number of patches, $k$ times all of them. Ties with the threshold are also kept, so that more patches than the nominal number may contribute.

# %%
show(dispatch.selective_patch_loss, dispatch.selected_mean)

# %%
for keep, released, ours in ((0.1, 2.5, 1.0), (0.75, 1.166667, 0.875), (1.0, 0.875, 0.875)):
    check(f"k = {keep}: as released", dispatch.selective_patch_loss(S, T, Y, 2, keep).item(), released, 1e-5)
    check(f"k = {keep}: by the number kept",
          dispatch.selective_patch_loss(S, T, Y, 2, keep, exact=False).item(), ours, 1e-5)
check("roles exchanged, k = 0.5: still distilled", dispatch.selective_patch_loss(T, S, Y, 2, 0.5).item(),
      1.0, 1e-5)
check("... but not by the rule `positive`",
      dispatch.selective_patch_loss(T, S, Y, 2, 0.5, "positive", False).item(), 0, 0)

# %% [markdown]
# ## The cosine distance
#
# $$d(a,c)=1-\frac{\Re\langle a,c\rangle}{\left\lVert a\right\rVert\,\left\lVert c\right\rVert}$$
#
# It depends on the phase and not on the gain.

# %%
show(dispatch.cosine_distance)

# %%
column = lambda *values: torch.tensor(values, dtype=torch.complex64)[None, :, None]
distance = lambda a, b: dispatch.cosine_distance(a, b, 2).item()
a, b = column(1, 1j), column(1, 1)
check("[1, i] and [1, 1]", distance(a, b), 0.5, 1e-6)
check("opposite", distance(a, -a), 2, 1e-6)
check("against zeros", distance(a, 0 * a), 1, 1e-6)
check("ten times louder", distance(a, 10 * a), 0, 1e-6)

# %% [markdown]
# ## The frequency-dependent form
#
# $$q=\mathrm{argmax}_f\frac{A_{f+1}-A_f}{A_f},\qquad A_f=\max_{g\le f}\left\lvert T_g\right\rvert$$
#
# In each frame the steepest relative rise of the teacher's spectrum splits the frequency axis: cosine distance below the split, a mixture of it and the magnitude error above.

# %%
show(dispatch.band_split, dispatch.selective_frequency_loss)

# %%
check("rises 1, 4, 0, 0.5: the split", dispatch.band_split(column(0.1, 0.2, 1, 0.5, 1.5)).item(), 1, 0)
T6 = as_spectrum([[.1, .5], [.2, .6], [1, 2.4], [.5, 1], [1.5, .3], [.2, .1]])
Y6 = as_spectrum([[.1, .4], [.3, .6], [1.2, 2], [.5, 1.2], [1.5, .2], [.1, .1]])
size = torch.tensor([[.3, .4], [.1, .1], [.6, 2], [.9, .2], [1, .9], [.5, .6]])
phase = torch.tensor([[0, .2], [.3, 0], [0, .5], [.1, 0], [0, 0], [0, .4]])
S6 = torch.polar(size, phase)[None]
for keep, known in ((0.5, 0.613733), (0.8, 0.556704), (1.0, 0.450969)):
    check(f"six bins, k = {keep}", dispatch.selective_frequency_loss(S6, T6, Y6, 2, 3, keep).item(), known, 1e-5)
for name in names:
    split = dispatch.band_split(spec(taught[name][None]))[0]
    low = (split < 10).float().mean().item()
    print(f"{name}: median split bin {split.median()}, below bin 10 (312 Hz) in {low:.0%} of the frames")
    below("   fraction of frames with a split at 312 Hz or above", 1 - low, 0.25)
figure, axis = plt.subplots(figsize=(8, 2.6))
spectrogram(axis, taught["waterfall"], "the teacher's spectrum and its split", high=2)
split = dispatch.band_split(spec(taught["waterfall"][None]))[0]
axis.plot(np.arange(len(split)) * 128 / 16000, split.numpy() * 31.25e-3, ".", color="cyan", markersize=2)
axis.set(xlabel="s", xlim=(0, seconds));

# %% [markdown]
# The split (cyan dots) is below 312 Hz in most frames. The rise is relative, and the lowest bins have almost no energy: the "low band" consists of a few bins.
#
# ## Train small
#
# The compact student (39,089 parameters) on the three recordings, with `consistency` as its teacher. This shows the training loop only. To train a useful model: `python dispatch.py train --data DIR --teacher consistency`.

# %%
torch.manual_seed(0)
student = dispatch.Student(dispatch.Config(teacher="consistency", num_frames=126))
student.prepare(fresh=True)
logged = train_small(student, fast(60, 3), batch_size=2, lr=3e-3)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
for axis, name, label in zip(axes, ("si_sdr", "distilled"), ("SI-SDR, dB", "distillation")):
    first, last = fifths(logged[name])
    print(f"{label} {first:.2f} -> {last:.2f}")
    axis.plot(logged[name])
    axis.set(xlabel="step", title=label)
below("distillation: last fifth over first fifth", last / first, 0.9, trained=True)

# %% [markdown]
# The SI-SDR rises and the distance to the teacher falls: on three memorised recordings both losses agree.
#
# **Does the choice of patches matter?** Here it does not. On 110 test recordings, with three seeds, with a U-Net and with a recurrent teacher of 0.9 million parameters ([experiments](experiments/README.md)), the same number of random patches was as good as selected ones, and distilling all patches as good as both. Distillation improved PESQ by at most 0.02 over no distillation after 3,000 steps and by at most 0.03 after 20,000 (SI-SDR by at most 0.4 dB), with random patches as with selected ones. After 20,000 steps, over three seeds, the selection changed SI-SDR by -0.06 dB [-0.19, 0.09] with the recurrent teacher and by 0.17 dB [0.06, 0.29] with the U-Net, whose single seeds gave 0.26, 0.04 and 0.22 dB. The intervals are over recordings; training runs differ by more: one seed with the recurrent teacher gave -0.35 dB [-0.59, -0.08]. Without the control of random patches and without other seeds, the result of the first seed would have been reported. Means over three seeds [95 % interval over recordings]; `gru-teacher` is the recurrent teacher, `consistency` the U-Net. The first rows distil by the frequency-dependent form with one patch size, MSSP with patches of 10 and 40 bins; "magnitudes" is the response distillation above, "features" that of inner layers:

# %%
experiment("patches", seed="0 1 2")

# %% [markdown]
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. A patch is one frame wide (c).
# 2. The sign of the score is ignored (c), see above.
# 3. With the relative rise the low band has only a few bins (m).
# 4. Padded zeros count in the means: those above the top bin, and those of the other band (c).
#
# ## Where paper and code differ
#
# - The paper distils where the teacher is better, the code the top fraction.
# - Two normalisations: the nominal fraction in one loss, the number kept over the whole batch in the other.
# - Training details and models have not been published.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** What is `selective_patch_loss` of the table of four bins with $k=1$, and which well-known loss is it?
#
# <details><summary>Hint</summary>
#
# With $k=1$ all patches are kept. Average $(\left\lvert S\right\rvert-\left\lvert T\right\rvert)^2$ over the eight bins of the tables above.
#
# </details>
# <details><summary>Solution</summary>
#
# 0.875: the mean squared error between the magnitudes.
#
# </details>
#
# **2.** All waves become twice as loud. By which factor does the response loss change, and does the mask change?
#
# <details><summary>Hint</summary>
#
# How does $E_p$ depend on the gain?
#
# </details>
# <details><summary>Solution</summary>
#
# By 4. The mask stays: all scores are multiplied by the same factor.
#
# </details>
#
# **3.** In half of the patches the teacher is closer. The rule keeps the 80 % with the highest scores. In which fraction of the *kept* patches is the teacher closer?
#
# <details><summary>Hint</summary>
#
# All patches with a positive score are among the highest 80 %.
#
# </details>
# <details><summary>Solution</summary>
#
# $0.5/0.8=0.625$. Random patches have 0.5: a rule that keeps 80 % can hardly be better than chance. The cell checks it with random scores.
#
# </details>

# %%
answer("5.1", dispatch.selective_patch_loss(S, T, Y, 2, 1.0))
answer("5.2", dispatch.selective_patch_loss(2 * S, 2 * T, 2 * Y, 2, 0.5) / dispatch.selective_patch_loss(S, T, Y, 2, 0.5))
torch.manual_seed(0)
scores = torch.cat([torch.rand(1, 13, 500), -torch.rand(1, 13, 500)], dim=2)
answer("5.3", (scores > 0)[dispatch.select(scores, 0.8)].float().mean())
