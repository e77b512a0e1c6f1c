# %% [markdown]
# # 8 All methods on the same recordings
#
# Eight shipped models, three recordings, the same scores for all. The models were trained with different losses and for different times, from a quarter of an hour on a CPU to hours on a CPU and minutes on a GPU; `dispatch` has 39,089 parameters, the others about two million. So this page compares *these models*; it does not say which paper is best.
#
# **You will** choose by cost and quality, listen to failures, see which models sample and which predict a mean, and read an interval before you believe a difference. The page runs in about two minutes on one CPU core. Papers: [2208.05830](https://arxiv.org/abs/2208.05830) and [2302.14748](https://arxiv.org/abs/2302.14748) (score SDE), [2309.09677](https://arxiv.org/abs/2309.09677) (CRP), [2507.05688](https://arxiv.org/abs/2507.05688) (consistency), [2509.15922](https://arxiv.org/abs/2509.15922) (DISPatch), [2606.09677](https://arxiv.org/abs/2606.09677) (MeanFlow), [2604.24199](https://arxiv.org/abs/2604.24199) (drifting).
#
# | symbol | meaning | value |
# |---|---|---|
# | $s,\ y,\ \hat s$ | clean speech, noisy recording, output of a model | waves |
# | NFE | number of network evaluations for a recording | 1 to 15 |
# | one-step prediction | $E[x_0\mid x_T,y]$ from the score at $t=T$, without a sampler ([notebook 3](3_crp.ipynb)) | NFE 1 |
# | $n$ | number of recordings | 3, then 110 |
# | $[\text{low},\text{high}]$ | 95 % bootstrap interval of a mean over recordings | |
#
# **Scores:** PESQ (1 to 4.6), ESTOI (0 to 1) and SI-SDR (dB), defined in [notebook 1](1_sound.ipynb); all compare with the clean recording, and higher is better.

# %%
from tools import ROOT, answer, below, check, enhance, fast, play, pretrained, read_rows, recording, show, spectrogram

import hashlib

import matplotlib.pyplot as plt
import numpy as np
import torch

import consistency
import data
import meanflow
import metrics
import sgmse
import toy
import train

ONE_STEP = "stage 1, one step"
CHECKPOINTS = {"stage 1": "sgmse_stage1", ONE_STEP: "sgmse_stage1", "CRP, NFE 5": "sgmse", "CRP, NFE 1": "sgmse_crp1",
               **{name: name for name in ("consistency", "dispatch", "meanflow", "drift", "drift_dagger")}}
STYLES = dict(zip(CHECKPOINTS, zip(("#332288", "#332288", "#0072b2", "#56b4e9", "#e69f00", "0.4", "#009e73", "#cc79a7",
                                    "#d55e00"), "osD^v<PX*")))

# %% [markdown]
# ## Listen
#
# Five seconds of the waterfall, 2.5 dB, by all models; stage 1 twice, by its sampler and by its one-step prediction. The two CRP models sound alike, so only one is played and drawn.

# %%
recordings = {name: recording(name) for name in ("windmill", "waterfall", "cheer")}
models = {name: pretrained(checkpoint, **(dict(sampler="one_step", start=1.0) if name == ONE_STEP else {}))
          for name, checkpoint in CHECKPOINTS.items()}
outputs, nfe = {}, {}
for name, method in models.items():
    for key, (_, noisy) in recordings.items():
        method.calls = 0
        outputs[name, key] = enhance(method, noisy)
    nfe[name] = method.calls
for name, known in zip(models, (15, 1, 5, 1, 1, 1, 2, 1, 1)):
    check(f"{name}: NFE", nfe[name], known, 0)
clean, noisy = recordings["waterfall"]
waves = {"noisy": noisy, **{name: outputs[name, "waterfall"] for name in models if name != "CRP, NFE 5"}, "clean": clean}
play(**{name: wave[:5 * data.SAMPLE_RATE] for name, wave in waves.items()})

# %%
figure, axes = plt.subplots(5, 2, figsize=(5, 5.4), sharex=True, sharey=True)
for axis, (title, wave) in zip(axes.flat, waves.items()):
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s" if axis in axes[-1] else "", ylabel="kHz" if axis in axes[:, 0] else "")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# Stage 1 with its sampler (NFE 15) leaves noise up to 8 kHz wherever there is speech; `drift` smears speech and noise in time. All models lose the harmonics above 3 kHz.
#
# ## Key equations
#
# | method | loss | sampler | notebook |
# |---|---|---|---|
# | score SDE | $\frac12E\left\lvert\sigma s_\theta+z\right\rvert^2$ | $dx=(f-g^2s_\theta)\,dt+g\,d\bar w$, many evaluations | [2](2_score.ipynb) |
# | CRP | $\frac12E\left\lvert\hat x_N-x_0\right\rvert^2$ through the last evaluation | the same, few evaluations | [3](3_crp.ipynb) |
# | consistency | $E\left\lvert f(x_{t_i})-f_{ema}(\hat x_{t_{i+1}})\right\rvert^2$ | $f(y+\sigma_Tz)$ | [4](4_consistency.ipynb) |
# | DISPatch | $\sum_{p\in\mathcal M}E_p(S,T)$: the error against the teacher, in some patches | one evaluation | [5](5_patches.ipynb) |
# | MeanFlow | $\frac12E\,(t-r)^2\left\lvert u-u_{tgt}\right\rvert^2$ | $x_1-0.97\,u$ | [6](6_meanflow.ipynb) |
# | drifting | $E\left\lVert\phi-\mathrm{sg}(\phi+V)\right\rVert^2$ | one evaluation | [7](7_drift.ipynb) |
#
# ## The toy under all methods
#
# One noisy point (the cross), three places where the clean point may be (blue), starts grey, ends orange triangles, paths grey lines. Every network below is trained here, in seconds.

# %% tags=["export-toy"]
torch.manual_seed(0)
n, BBED, OUVE = 1000, sgmse.BBED(), sgmse.OUVE()
y, z, reference = toy.noisy(n), torch.randn(n, 1, 1, 1, dtype=torch.complex64), toy.clean(2000)
score, _ = toy.learn_score(BBED, fast(1500, 20))
corrected, _ = toy.learn_correction(BBED, fast(1500, 20))
heun = lambda x, y, t, t_next: consistency.heun_step(toy.Exact(OUVE), x, y, t, t_next, OUVE, noise=False)
f, _ = toy.learn_consistency(OUVE, heun, fast(1200, 10))
u, _ = toy.learn_meanflow(1.0, fast(800, 10))
generator, _ = toy.learn_generator(fast(1000, 10))
with torch.no_grad():
    times, steps = sgmse.reverse_grid(BBED, 60)
    walk = [BBED.prior(y, times[0])]
    for t, dt in zip(times, steps):
        mean, std = sgmse.reverse_step(score, walk[-1], y, t, dt, BBED)
        walk.append(mean + std * torch.randn_like(mean) if t > times[-1] else mean)
    start = {"CRP": y + BBED.std(torch.tensor([0.5])) * z, "consistency": y + OUVE.std(torch.ones(1)) * z,
             "MeanFlow": y + toy.SIGMA * z, "drifting": y + toy.SIGMA * z}
    end = {"CRP": sgmse.reverse_step(corrected, start["CRP"], y, 0.5, 0.5, BBED)[0],
           "consistency": f(start["consistency"], y, torch.ones(n)), "MeanFlow": meanflow.sample(u, y, z),
           "drifting": generator(start["drifting"])}
axes = toy.panels(5, 2.25)
toy.draw(axes[0], walk[-1], walk[0], torch.stack(walk)[:, :6], "score SDE, NFE 60")
for axis, name in zip(axes[1:], end):
    toy.draw(axis, end[name], start[name], torch.stack([start[name], end[name]]), f"{name}, NFE 1")

# %% [markdown]
# The score SDE, consistency, MeanFlow and drifting end in the three places, with some points between them where one evaluation replaces many; CRP ends at one point.

# %%
distance = {name: toy.report(name, x, reference) for name, x in {"score SDE": walk[-1], **end}.items()}
for name, limit in (("score SDE", 0.02), ("consistency", 0.08), ("MeanFlow", 0.03), ("drifting", 0.03)):
    below(f"{name} samples: energy distance", distance[name], limit, trained=True)
below("CRP averages: spread", toy.spread(end["CRP"]), 0.06, trained=True)

# %% [markdown]
# So four of the five sample *on the toy*, and CRP gives the mean. The consistency student samples since it was distilled from Heun steps; distilled from the stochastic steps of the paper it would give the mean, too ([notebook 4](4_consistency.ipynb)). It puts too many points in the third place, because its teacher starts from $y+\sigma z$ and not from the true distribution at $T$ ([notebook 2](2_score.ipynb)). Whether the *shipped* models sample is another question, answered [below](#Sampler-or-predictor).
#
# ## Scores of the three recordings

# %%
show(metrics.Results.compare)

# %%
def scored(name):
    """Results of a model on the three recordings; "noisy": of the recordings themselves."""
    wave = lambda key: recordings[key][1] if name == "noisy" else outputs[name, key]
    return metrics.evaluate([(key, recordings[key][0], wave(key)) for key in recordings], progress=False)


results = {name: scored(name) for name in ("noisy", *models)}
print(f"{'n = 3, seed 0':18}{'NFE':>4}{'PESQ':>6}{'ESTOI':>7}{'SI-SDR':>8}")
for name, result in results.items():
    print(f"{name:18}{nfe.get(name, 0):4}{result.mean('pesq'):6.2f}{result.mean('estoi'):7.2f}{result.mean('si_sdr'):8.1f}")
for name in models:
    below(f"{name}: SI-SDR of noisy minus its own, dB",
          results["noisy"].mean("si_sdr") - results[name].mean("si_sdr"), 0,
          trained=True)

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 3.1))
for axis, (column, title) in zip(axes, (("pesq", "PESQ"), ("estoi", "ESTOI"), ("si_sdr", "SI-SDR, dB"))):
    axis.axhline(results["noisy"].mean(column), color="0.6", linestyle=":")
    for name, (color, marker) in STYLES.items():
        axis.plot(nfe[name], results[name].mean(column), marker, color=color, label=name)
    axis.set(xscale="log", xlabel="NFE", title=title)
    axis.set_xticks((1, 2, 5, 15), (1, 2, 5, 15))
    axis.minorticks_off()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4);

# %% [markdown]
# Dotted: the noisy recordings. More evaluations do not give higher scores here: stage 1 with its sampler (NFE 15) is below all other large models, and the one-step prediction of the same weights is near the top. How the scores of a model depend on NFE was measured on a corpus:
#
# ![PESQ, ESTOI and SI-SDR over NFE before and after CRP, with the one-step prediction of stage 1](experiments/nfe.png)
#
# CRP raises the SI-SDR to that of the one-step prediction and the PESQ nearly so; but the model trained for NFE 5 fails at NFE 1 as stage 1 does.
#
# ## A failure is data, too
#
# On the waterfall, at 2.5 dB, `drift` gains most of the SI-SDR that `drift_dagger` gains, but only two fifths of the PESQ.

# %%
s, y = recordings["waterfall"]
si_sdr, pesq = {}, {}
for name, wave in (("noisy", y), ("drift", outputs["drift", "waterfall"]),
                   ("drift_dagger", outputs["drift_dagger", "waterfall"])):
    si_sdr[name], pesq[name] = metrics.si_sdr(s, wave), metrics.pesq(s, wave)
    print(f"waterfall, {name}: SI-SDR {si_sdr[name]:.1f} dB, PESQ {pesq[name]:.2f}")
ratio = [(score["drift"] - score["noisy"]) / (score["drift_dagger"] - score["noisy"]) for score in (pesq, si_sdr)]
print(f"gain of drift over that of drift_dagger: PESQ {ratio[0]:.2f}, SI-SDR {ratio[1]:.2f}")
below("ratio of the PESQ over ratio of the SI-SDR", ratio[0] / ratio[1], 0.5, trained=True)
s, y = recordings["cheer"]
part = slice(16000, 37000)
order = sorted(models, key=lambda name: metrics.si_sdr(s, outputs[name, "cheer"]))
play(cheer_noisy=y[part], **{f"cheer_worst_{order[0]}": outputs[order[0], "cheer"][part],
                             f"cheer_best_{order[-1]}": outputs[order[-1], "cheer"][part]}, cheer_clean=s[part])

# %% [markdown]
# The players above: the model with the lowest and the one with the highest SI-SDR on cheer.
#
# ## Sampler or predictor
#
# A sampler draws from $p(s\mid y)$: with other noise it gives another output. A predictor gives the same output each time. For each model windmill is enhanced three times with different seeds. The *spread* is the standard deviation of these outputs, the *error* their mean distance from the clean speech, both relative to the clean speech.
#
# <details><summary>Derivation: the line of a perfect sampler</summary>
#
# Let $\hat s$ be a draw from $p(s\mid y)$, independent of the true $s$ given $y$, and let $m=E[s\mid y]$. Then
#
# $$E\left\lVert\hat s-s\right\rVert^2=E\left\lVert\hat s-m\right\rVert^2+E\left\lVert m-s\right\rVert^2=2\,E\left\lVert\hat s-m\right\rVert^2,$$
#
# since both have the same distribution given $y$. So the error of a perfect sampler is 3 dB above its spread, and 3 dB above the error of the mean $m$, which a perfect predictor gives.
#
# </details>

# %%
s, y = recordings["windmill"]
s = s[:len(y)]
spread, error = {}, {}
for name, model in models.items():
    drawn = torch.stack([outputs[name, "windmill"], *(enhance(model, y, seed) for seed in range(1, fast(3, 2)))])
    decibel = lambda x: 10 * (x.square().sum(-1).mean() / s.square().sum()).clamp(min=1e-6).log10().item()
    spread[name] = decibel((drawn - drawn.mean(0)) * (len(drawn) / (len(drawn) - 1)) ** 0.5)
    error[name] = decibel(drawn - s)
plt.figure(figsize=(5.5, 3.6))
for name, (color, marker) in STYLES.items():
    plt.plot(spread[name], error[name], marker, color=color, label=name, markersize=8)
line = np.array([-62, -3])
plt.plot(line, line + 3, "--", color="0.5", label="perfect sampler")
plt.gca().set(xlabel="spread over seeds, dB (-60: equal outputs)", ylabel="error, dB", ylim=(-20, 0))
plt.gcf().legend(loc="outside right upper")
print("spread, dB:", {name: round(value) for name, value in spread.items()})
below("drift draws nothing: spread", spread["drift"], -59.9)
below("spread of consistency minus that of stage 1, dB", spread["consistency"] - spread["stage 1"], 0)

# %% [markdown]
# On the dashed line the error is 3 dB above the spread, as for draws from the true $p(s\mid y)$. The sampler of stage 1 comes closest: its outputs differ by about a seventh of the amplitude of the speech, but its error is 7 dB larger than that of a perfect sampler with this spread. The outputs of all other models differ by less than -30 dB between seeds. What samples on the toy is in effect a predictor here.
#
# ## Before you believe a difference
#
# Three recordings are an anecdote. A paired interval shows it: the mean of the differences, and the range in which it may lie.
#
# <details><summary>Derivation: why paired, and what the bootstrap does</summary>
#
# For scores $a_i,b_i$ of two models on recording $i$, $\operatorname{var}(a-b)=\operatorname{var}a+\operatorname{var}b-2\operatorname{cov}(a,b)$. A difficult recording is difficult for both, so the covariance is large, and the interval of the mean of $a_i-b_i$ is much narrower than the intervals of both means suggest. The bootstrap draws $n$ of the $n$ differences with replacement, many times, and takes the 2.5 % and 97.5 % quantiles of the means.
#
# </details>

# %%
difference = results["consistency"].compare(results["CRP, NFE 5"])
low, high = metrics.bootstrap_interval(difference.values("pesq"))
print(f"consistency - CRP, n = 3: {difference.mean('pesq'):+.2f} PESQ, 95 % interval [{low:.2f}, {high:.2f}]")
print("the three differences:", np.round(difference.values("pesq"), 2))

# %% [markdown]
# The interval reaches from the smallest difference to the largest. So here are more recordings, 110 of ten speakers and eleven noise sources that were not in the training data. The table was written by `python tutorials/experiments/comparison.py --data CORPUS`. It names each checkpoint by its hash, and this cell fails if one has changed since.

# %%
rows = {row["row"]: row for row in read_rows("shipped")}
table = {"noisy": rows["noisy"]} | {name: rows[checkpoint + ", one-step prediction" * (name == ONE_STEP)]
                                    for name, checkpoint in CHECKPOINTS.items()}
for name, checkpoint in CHECKPOINTS.items():
    assert table[name]["sha256"] == hashlib.sha256(train.checkpoint_path(checkpoint).read_bytes()).hexdigest(), checkpoint


def intervals(axis, column, table, styles=STYLES):
    """Mean and interval of a score of each row; dotted: the noisy recordings."""
    for i, (name, row) in enumerate(table.items()):
        mean, low, high = (float(row[column + end]) for end in ("", "_low", "_high"))
        color, marker = styles.get(name, ("0.3", "o"))
        axis.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt=marker, color=color, capsize=2)
    axis.axvline(float(table["noisy"][column]), color="0.6", linestyle=":")
    axis.set_yticks(range(len(table)), table)


figure, axes = plt.subplots(2, 2, figsize=(7.5, 4.8), sharey=True)
for axis, (column, title) in zip(axes.flat, (("pesq", "PESQ"), ("estoi", "ESTOI"), ("si_sdr", "SI-SDR, dB"))):
    intervals(axis, column, table)
    axis.set_title(title)
for i, (name, (color, _)) in enumerate(STYLES.items(), 1):
    axes[1, 1].barh(i, float(table[name]["core_seconds"]), color=color)
axes[1, 1].set(title="seconds of one core for a second of sound")
axes[0, 0].invert_yaxis()
print(f"n = {table['noisy']['n']}, mean and 95 % interval")

# %% [markdown]
# `drift_dagger` has the highest PESQ; the one-step prediction of stage 1, which costs as much as `drift`, has a higher PESQ than CRP and its own sampler. Intervals of single models overlap where paired differences are clear: the paired ones are in `experiments/tables/shipped_differences.csv`.
#
# ## Every paradigm under one budget
#
# The shipped weights had different losses, data and hours. Here every paradigm had the same network (except the separator, a small SpatialNet), crops for each stage, batch and learning rate. The table was written by `python tutorials/experiments/compare.py`, whose `STAGES` and `ROWS` define each row. Filled: the test recordings with 95 % intervals. Hollow: the same speech in noise of another kind, which is synthesised. Lines: the noisy recordings of both.

# %%
fair = [row for row in read_rows("budget") if row["seed"] in ("", "0")]
noisy_of = {row["test"]: row for row in fair if row["row"] == "noisy"}


def budget(crops):
    """PESQ and SI-SDR of all rows that were trained with so many crops a stage."""
    test, other = ({row["row"]: row for row in fair if row["test"] == name and row["crops"] == crops}
                   for name in ("test", "other"))
    silent = [name for name, row in test.items() if float(row["si_sdr"]) < -5]
    shown = {"noisy": noisy_of["test"]} | {name: row for name, row in test.items() if name not in silent}
    figure, axes = plt.subplots(1, 2, figsize=(6.5, 0.24 * len(shown) + 0.8), sharey=True)
    for axis, (column, title) in zip(axes, (("pesq", "PESQ"), ("si_sdr", "SI-SDR, dB"))):
        intervals(axis, column, shown, {name: ("#0072b2", "o") for name in test})
        axis.axvline(float(noisy_of["other"][column]), color="#e69f00", linestyle=":")
        for i, name in enumerate(shown):
            if name in other:
                axis.plot(float(other[name][column]), i, "o", color="#e69f00", markerfacecolor="none")
        axis.set_title(title)
        axis.grid(axis="y", alpha=0.3)
    axes[0].invert_yaxis()
    print(f"{crops} crops a stage, n = {noisy_of['test']['n']}. Not shown, unintelligible: {', '.join(silent) or 'none'}")


budget("12000")

# %% [markdown]
# DriftSE dagger has the highest scores with and without its drifting loss: its waveform losses carry it. No sampler with many evaluations is above the one-step prediction of its own weights. In synthesised noise (hollow) the order is nearly the same.

# %%
budget("3000")

# %% [markdown]
# With a quarter of the crops most rows have lower scores, and dagger and the separator lead again. The additional rows each change one part of a method; the [guide](experiments/README.md) discusses them, one question at a time.
#
# ## Details that matter
#
# 1. The same seed, the same files, the same scores for all, and every score beside that of the noisy input.
# 2. Intervals of differences are paired: recordings differ more than methods do.
# 3. PESQ is in the losses of `sgmse_stage1`, from which both CRP models were trained, of `consistency` and of `drift_dagger`; SI-SDR is in those of the last two and of `meanflow`. These models were trained for the scores that judge them. What a method adds to such losses shows in the row without it: dagger without drifts scores as dagger does.
# 4. The two evaluations of `meanflow` are those of two networks, a separator and its corrector.
#
# ## Where paper and code differ
#
# These are networks of 1.9 million parameters after a short training, with other losses than published. The scores of the papers, with 65 million parameters and on other data, cannot be compared with these. What differs between each paper and its code is in notebooks 2 to 7.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** Which model gains most SI-SDR for its cost on the 110 recordings? Give its gain over the noisy input per second of one core (for a second of sound), in dB/s.
#
# <details><summary>Hint</summary>
#
# `table[name]["si_sdr"]` and `table[name]["core_seconds"]` are texts; `float` converts them.
#
# </details>
# <details><summary>Solution</summary>
#
# Divide the gain by the seconds and take the largest: see the last cell.
#
# </details>
#
# **2.** A bootstrap of $n=3$ draws three of three recordings with replacement. With what probability does it draw one given recording three times? Why does the interval above therefore reach from the smallest to the largest difference?
#
# <details><summary>Hint</summary>
#
# The interval leaves out 2.5 % at each end.
#
# </details>
# <details><summary>Solution</summary>
#
# $(1/3)^3=1/27=3.7\,\%$. This is more than 2.5 %, so the quantiles are the two extreme means: all three draws the recording with the smallest, or the largest, difference.
#
# </details>
#
# **3.** How many times narrower is an interval with 110 recordings than one with 3, if the recordings are independent?
#
# <details><summary>Hint</summary>
#
# The standard error of a mean of $n$ independent values.
#
# </details>
# <details><summary>Solution</summary>
#
# It is proportional to $1/\sqrt n$: $\sqrt{110/3}=6.06$ times.
#
# </details>

# %%
gain = {name: (float(row["si_sdr"]) - float(table["noisy"]["si_sdr"])) / float(row["core_seconds"])
        for name, row in table.items() if name != "noisy"}
answer("8.1", max(gain.values()))
answer("8.2", 1 / 3 ** 3)
answer("8.3", (110 / 3) ** 0.5)
print("most SI-SDR for its cost:", max(gain, key=gain.get))
