# %% [markdown]
# # 8 All methods on the same recordings
#
# Seven shipped models, three recordings, the same scores for all. They had different losses and trainings, from a quarter of an hour of a CPU to hours of it and minutes of a GPU, so this page compares *these models*; it does not say which paper is best.
#
# **You will** choose by cost and quality, hear what fails and how, see who samples and who averages, and read an interval before you believe a difference.

# %%
from tools import below, check, enhance, fast, play, pretrained, read_rows, recording, show, spectrogram

import hashlib

import matplotlib.pyplot as plt
import numpy as np
import torch

import consistency
import meanflow
import metrics
import sgmse
import toy
import train

NAMES = ("sgmse_stage1", "sgmse", "sgmse_crp1", "consistency", "meanflow", "drift", "drift_dagger")
COLORS = dict(zip(NAMES, ("tab:purple", "tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:red", "tab:pink")))

# %% [markdown]
# ## Hear it
#
# The waterfall, 2.5 dB, by all seven.

# %%
recordings = {name: recording(name) for name in ("windmill", "waterfall", "cheer")}
outputs, calls, models = {}, {}, {name: pretrained(name) for name in NAMES}
for name, method in models.items():
    for key, (_, noisy) in recordings.items():
        method.calls = 0
        outputs[name, key] = enhance(method, noisy)
    calls[name] = method.calls
for name, known in zip(NAMES, (15, 5, 1, 1, 2, 1, 1)):
    check(f"{name}: network calls for a recording", calls[name], known, 0)
clean, noisy = recordings["waterfall"]
play(noisy=noisy, **{name: outputs[name, "waterfall"] for name in NAMES}, clean=clean)

# %%
figure, axes = plt.subplots(3, 3, figsize=(8, 4.1), sharex=True, sharey=True)
waves = {"noisy": noisy, **{name: outputs[name, "waterfall"] for name in NAMES}, "clean": clean}
for axis, (title, wave) in zip(axes.flat, waves.items()):
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s" if axis in axes[2] else "", ylabel="kHz" if axis in axes[:, 0] else "")
figure.colorbar(image, ax=axes, label="dB below the loudest bin");

# %% [markdown]
# ## Key equations
#
# | method | what is learnt | how it enhances | notebook |
# |---|---|---|---|
# | score SDE | $\frac12E\lvert\sigma s+z\rvert^2$ | $dx=(f-g^2s)dt+g\,d\bar w$, many calls | [2](2_score.ipynb) |
# | CRP | $\frac12E\lvert\hat x_N-x_0\rvert^2$ through the last call | the same, few calls | [3](3_crp.ipynb) |
# | consistency | $E\lvert f(x_{t_i})-f_{ema}(\hat x_{t_{i+1}})\rvert^2$ | $f(y+\sigma_Tz)$ | [4](4_consistency.ipynb) |
# | MeanFlow | $u=v-(t-r)\,\dot u$ | $x_1-u$ | [6](6_meanflow.ipynb) |
# | drifting | $E\lVert\phi-\mathrm{sg}(\phi+V)\rVert^2$ | one call | [7](7_drift.ipynb) |
#
# ## The toy under all methods
#
# One noisy point (the cross), three places where the clean one may be (green), starts grey, ends red, the ways between them blue. Every network below is trained here, in seconds.

# %% tags=["export-toy"]
torch.manual_seed(0)
n, BBED, OUVE = 1000, sgmse.BBED(), sgmse.OUVE()
y, z, reference = toy.noisy(n), torch.randn(n, 1, 1, 1, dtype=torch.complex64), toy.clean(2000)
score, _ = toy.learn_score(BBED, fast(1500, 20))
corrected, _ = toy.learn_correction(BBED, fast(1500, 20))
heun = lambda x, y, t, t_next: consistency.heun_step(toy.Exact(OUVE), x, y, t, t_next, OUVE, noise=False)
f, _ = toy.learn_consistency(OUVE, heun, fast(2000, 10))
u, _ = toy.learn_meanflow(1.0, fast(2000, 10))
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
toy.draw(axes[0], walk[-1], walk[0], torch.stack(walk)[:, :6], "score SDE, 60 calls")
for axis, name in zip(axes[1:], end):
    toy.draw(axis, end[name], start[name], torch.stack([start[name], end[name]]), f"{name}, 1 call")

# %%
print(f"truth: spread {toy.VARIANCE ** 0.5:.2f}, shares {list(toy.WEIGHTS)}")
distance = {}
for name, x in {"score SDE": walk[-1], **end}.items():
    distance[name] = toy.energy_distance(x, reference)
    print(f"{name}: spread {toy.spread(x):.2f}, shares {[round(share, 2) for share in toy.fractions(x)]}, "
          f"energy distance {distance[name]:.3f}")
for name, limit in (("score SDE", 0.02), ("consistency", 0.08), ("MeanFlow", 0.03), ("drifting", 0.03)):
    below(f"{name} samples: energy distance", distance[name], limit, trained=True)
below("CRP averages: spread", toy.spread(end["CRP"]), 0.06, trained=True)

# %% [markdown]
# Four sample, one averages. The consistency student owes its sampling to Heun moves; with the noisy moves of the paper it would be the second panel again ([notebook 4](4_consistency.ipynb)), and its shares are a little off because its teacher starts from $y+\sigma z$ ([notebook 2](2_score.ipynb)).
#
# ## Scores of the three recordings

# %%
show(metrics.Results.compare)

# %%
def scored(name):
    """Results of a model on the three recordings; "noisy": of the recordings themselves."""
    wave = lambda key: recordings[key][1] if name == "noisy" else outputs[name, key]
    return metrics.evaluate([(key, recordings[key][0], wave(key)) for key in recordings], progress=False)


results = {name: scored(name) for name in ("noisy", *NAMES)}
print(f"{'n = 3, seed 0':14}{'calls':>6}{'WB-PESQ':>9}{'ESTOI':>7}{'SI-SDR':>8}")
for name, result in results.items():
    print(f"{name:14}{calls.get(name, 0):6}{result.mean('pesq'):9.2f}{result.mean('estoi'):7.2f}{result.mean('si_sdr'):8.1f}")
for name in NAMES:
    below(f"{name}: mean SI-SDR of noisy less its own, dB",
          results["noisy"].mean("si_sdr") - results[name].mean("si_sdr"), 0,
          trained=True)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.9))
for axis, (column, title) in zip(axes, (("pesq", "WB-PESQ"), ("estoi", "ESTOI"), ("si_sdr", "SI-SDR, dB"))):
    axis.axhline(results["noisy"].mean(column), color="0.6", linestyle=":")
    for name in NAMES:
        axis.plot(calls[name], results[name].mean(column), "o", color=COLORS[name], label=name)
    axis.set(xscale="log", xlabel="network calls", title=title)
    axis.set_xticks((1, 2, 5, 15), (1, 2, 5, 15))
    axis.minorticks_off()
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7);

# %% [markdown]
# Dotted: the noisy recordings. How the scores of one model move with the number of calls is measured on a corpus:
#
# ![PESQ, ESTOI and SI-SDR over the number of network calls, before and after CRP](experiments/nfe.png)
#
# ## A failure is data, too
#
# On waterfall, at 2.5 dB, `drift` gains four fifths of the SI-SDR that `drift_dagger` gains, and a third of the PESQ.

# %%
s, y = recordings["waterfall"]
si_sdr, pesq = {}, {}
for name, wave in (("noisy", y), ("drift", outputs["drift", "waterfall"]),
                   ("drift_dagger", outputs["drift_dagger", "waterfall"])):
    si_sdr[name], pesq[name] = metrics.si_sdr(s, wave), metrics.pesq(s, wave)
    print(f"waterfall, {name}: SI-SDR {si_sdr[name]:.1f} dB, PESQ {pesq[name]:.2f}")
share = [(score["drift"] - score["noisy"]) / (score["drift_dagger"] - score["noisy"]) for score in (pesq, si_sdr)]
below("share of the PESQ gained over the share of the SI-SDR", share[0] / share[1], 0.5, trained=True)
s, y = recordings["cheer"]
part = slice(16000, 37000)
order = sorted(NAMES, key=lambda name: metrics.si_sdr(s, outputs[name, "cheer"]))
play(cheer_noisy=y[part], **{f"cheer_worst_{order[0]}": outputs[order[0], "cheer"][part],
                             f"cheer_best_{order[-1]}": outputs[order[-1], "cheer"][part]}, cheer_clean=s[part])
s, y = recordings["windmill"]
order = sorted(NAMES, key=lambda name: metrics.si_sdr(s, outputs[name, "windmill"]))
play(windmill_noisy=y[part], **{f"windmill_worst_{order[0]}": outputs[order[0], "windmill"][part],
                                f"windmill_best_{order[-1]}": outputs[order[-1], "windmill"][part]},
     windmill_clean=s[part])

# %% [markdown]
# ## Two draws of the same model
#
# Does a model sample, or does it predict? Enhance windmill twice with different noise and compare the two outputs. High: both are the same.

# %%
agreement = {}
for name in ("sgmse_stage1", "sgmse", "sgmse_crp1", "consistency", "meanflow"):
    a, b = outputs[name, "windmill"], enhance(models[name], y, seed=1)
    agreement[name] = 10 * (a.square().sum() / (a - b).square().sum()).log10().item()
assert torch.equal(enhance(models["drift"], y, seed=1), outputs["drift", "windmill"])       # draws nothing
plt.figure(figsize=(5.5, 2.2))
plt.barh(list(agreement), list(agreement.values()), color=[COLORS[name] for name in agreement])
plt.gca().invert_yaxis()
plt.xlabel("agreement of two draws, dB; both drift models: equal")
print({name: round(value) for name, value in agreement.items()})
below("stage 1 agrees less than consistency, dB", agreement["sgmse_stage1"] - agreement["consistency"], 0)

# %% [markdown]
# ## Before you believe a difference
#
# Three recordings are an anecdote. A paired interval says so: the mean of the differences, and where it may lie.

# %%
difference = results["consistency"].compare(results["sgmse"])
low, high = metrics.bootstrap_interval(difference.values("pesq"))
print(f"consistency - sgmse, n = 3: {difference.mean('pesq'):+.2f} PESQ, 95 % interval [{low:.2f}, {high:.2f}]")
print("the three differences:", np.round(difference.values("pesq"), 2))

# %% [markdown]
# So here are more: recordings of ten voices and eleven sources of noise that training never saw. The table was written by `python tutorials/experiments/comparison.py --data CORPUS`; it names each checkpoint by its hash, and this cell fails if one has changed since.

# %%
shipped = [row for row in read_rows("shipped") if row["row"] in ("noisy", *NAMES)]
for row in shipped[1:]:
    assert row["sha256"] == hashlib.sha256(train.checkpoint_path(row["row"]).read_bytes()).hexdigest(), row["row"]
figure, axes = plt.subplots(1, 4, figsize=(9, 2.7), sharey=True)
labels = [row["row"] for row in shipped]
for axis, (column, title) in zip(axes, (("pesq", "WB-PESQ"), ("estoi", "ESTOI"), ("si_sdr", "SI-SDR, dB"))):
    mean, low, high = (np.array([float(row[column + end]) for row in shipped]) for end in ("", "_low", "_high"))
    axis.errorbar(mean, labels, xerr=(mean - low, high - mean), fmt="none", ecolor="0.5", capsize=2)
    axis.scatter(mean, labels, color=["0.3", *COLORS.values()], zorder=3)
    axis.axvline(mean[0], color="0.6", linestyle=":")
    axis.set_title(title)
seconds = [float(row["core_seconds"]) for row in shipped[1:]]
axes[3].barh(labels[1:], seconds, color=COLORS.values())
axes[3].set(title="cost", xlabel="seconds of one core\nfor a second of sound")
axes[0].invert_yaxis()
print(f"n = {shipped[0]['n']}, mean and 95 % interval")

# %% [markdown]
# ## Every paradigm under one budget
#
# The shipped weights had different losses, data and hours. Here every paradigm had the same: network (but for the separator, a small SpatialNet), crops a stage, batch, learning rate. The table was written by `python tutorials/experiments/compare.py`, whose `STAGES` and `ROWS` say what each row is. Filled: the test recordings after the most crops that a row was trained with, with 95 % intervals; grey: after fewer. Hollow: the same speech in noise of another kind, made by code; the lines are the noisy recordings of both.

# %%
fair = [row for row in read_rows("budget") if row["seed"] in ("", "0")]
fair.sort(key=lambda row: int(row["crops"] or 0))
test, other = ({row["row"]: row for row in fair if row["test"] == name} for name in ("test", "other"))   # most crops
labels = [label for label in test if label != "noisy"]
figure, axes = plt.subplots(1, 3, figsize=(9, 0.26 * len(labels) + 0.8), sharey=True)
for axis, (column, title) in zip(axes, (("pesq", "WB-PESQ"), ("estoi", "ESTOI"), ("si_sdr", "SI-SDR, dB"))):
    for rows, style in ((test, "-"), (other, ":")):
        axis.axvline(float(rows["noisy"][column]), color="0.7", linestyle=style)
    for row in fair:
        if row["test"] == "test" and row is not test[row["row"]]:
            axis.plot(float(row[column]), labels.index(row["row"]), "o", color="0.6", markersize=4)
    for y, label in enumerate(labels):
        mean, low, high = (float(test[label][column + end]) for end in ("", "_low", "_high"))
        axis.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", color="tab:blue", markersize=4)
        axis.plot(float(other[label][column]), y, "o", color="tab:orange", markerfacecolor="none", markersize=5)
    axis.set_title(title)
    axis.grid(axis="y", alpha=0.3)
axes[0].set_yticks(range(len(labels)), labels)
axes[0].invert_yaxis()
axes[2].set_xlim(-5, 17)
print(f"n = {test['noisy']['n']}; crops a stage: " + ", ".join(
    f"{crops} in {sum(test[label]['crops'] == crops for label in labels)} rows"
    for crops in dict.fromkeys(row["crops"] for row in fair if row["crops"])))
print("off the last axis, not intelligible:", ", ".join(label for label in labels if float(test[label]["si_sdr"]) < -5))

# %% [markdown]
# ## Details that matter
#
# 1. The same seed, the same files, the same scores for all, and every score beside that of the noisy input.
# 2. Intervals of differences are paired: recordings differ more than methods do.
# 3. PESQ is in the losses of `sgmse_stage1`, from which both CRP models went on, `consistency` and `drift_dagger`, SI-SDR in those of the last two and of `meanflow`: they were taught to these tests. What a method adds to its losses shows in the row without it: dagger without drifts scores as dagger does, and a predictive network that hears nothing but SI-SDR has, with 12,000 crops a stage, a higher SI-SDR than any row but those two.
# 4. `meanflow`'s two calls are of two networks, a separator and its corrector.
#
# ## Where paper and code differ
#
# These are networks of 1.9 million parameters after a short training, with other losses than published. Scores of papers, with 65 million parameters on other data, do not compare. What differs method by method stands in notebooks 2 to 7.
#
# ## Exercises
#
# **1.** Which is the cheapest model above 12 dB on the three recordings?
#
# <details><summary>Solution</summary>
#
# See the last cell: the one with the fewest calls, and among those the highest score.
#
# </details>
#
# **2.** How wide is the interval of consistency − sgmse at $n=3$, and how often can a bootstrap of three draw the same recording three times?
#
# <details><summary>Solution</summary>
#
# The width is printed below. Three equal draws: $3/3^3=1/9$ of all resamples, which is why it reaches from the smallest to the largest difference.
#
# </details>
#
# **3.** Record yourself beside a fan, `python consistency.py enhance my.wav`, and give a number to what you hear: how would you score without a clean reference?
#
# <details><summary>Solution</summary>
#
# Reference-free scores: `python consistency.py evaluate --data FOLDER --metrics dnsmos` of the folder of recordings, with the optional packages; or ask ten people for a grade from 1 to 5, and give the mean with its interval.
#
# </details>

# %%
good = [name for name in NAMES if results[name].mean("si_sdr") > 12]
if good:
    cheapest = min(good, key=lambda name: (calls[name], -results[name].mean("si_sdr")))
    print(f"exercise 1: {cheapest}, {results[cheapest].mean('si_sdr'):.1f} dB with {calls[cheapest]} call")
low, high = metrics.bootstrap_interval(difference.values("pesq"))
print(f"exercise 2: {high - low:.2f} PESQ wide")
check("   smallest and largest difference are its ends", abs(low - difference.values("pesq").min())
      + abs(high - difference.values("pesq").max()), 0, 1e-6)
