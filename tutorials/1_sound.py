# %% [markdown]
# # 1 Sound and its spectrogram
#
# All methods work on a complex spectrogram with compressed amplitudes. This notebook computes it, inverts it, and introduces the scores that say how good an enhanced recording is.
#
# **You will** mix speech and noise at a given ratio, transform, compress and normalise the mixture, add complex noise, compute scores, and run a trained model on a recording of your own. The page runs in about half a minute on one CPU core. Sources: SGMSE+ ([arXiv 2208.05830](https://arxiv.org/abs/2208.05830)) for the transform; SI-SDR ([arXiv 1811.02508](https://arxiv.org/abs/1811.02508)); ITU-T P.862.2 for PESQ.
#
# | symbol | meaning | value |
# |---|---|---|
# | $y,\ s,\ n$ | noisy speech, clean speech, noise: waves at 16 kHz | |
# | $n_{\mathrm{win}},\ h$ | window and hop of the STFT | 510 and 128 samples |
# | $F,\ T$ | frequency bins, frames | 256, $1+\lceil L/h\rceil$ for $L$ samples |
# | $\hat s$ | enhanced speech | |
# | $\alpha,\ \beta$ | exponent and scale of the compression | 0.5, 0.15 |
# | $z$ | complex noise, $E\left\lvert z\right\rvert^2=1$ per bin | variance 0.5 in each part |
#
# **Scores.** SI-SDR is an energy ratio in dB, defined below. WB-PESQ (1 to 4.64) models how loud a listener perceives the differences to the clean reference. ESTOI (0 to 1) predicts intelligibility from the correlation of short-time band envelopes. DistillMOS and the overall score of DNSMOS, OVRL (both 1 to 5), are networks that predict a listener's grade without a reference. For all of them, more is better.

# %%
from tools import (answer, below, check, enhance, fast, fifths, play, pretrained, recording, show, spectrogram, tiny,
                   train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import data
import dispatch
import losses
import metrics

# %% [markdown]
# ## Listen
#
# Three speakers on whom no model was trained, in the noise of a windmill (5 dB), at a waterfall (2.5 dB) and in front of a cheering crowd (7.5 dB).

# %%
pairs = {name: recording(name) for name in ("windmill", "waterfall", "cheer")}
play(**{f"{name}_{side}": wave for name, pair in pairs.items() for side, wave in zip(("clean", "noisy"), pair)})

# %% [markdown]
# The second recording, enhanced by one network evaluation of `drift_dagger`, a trained model of this repository ([notebook 7](7_drift.ipynb)):

# %% tags=["export-waterfall"]
clean, noisy = pairs["waterfall"]
enhanced = enhance(pretrained("drift_dagger"), noisy)
figure, axes = plt.subplots(3, 1, figsize=(8, 5), sharex=True)
for axis, title, wave in zip(axes, ("noisy, 2.5 dB", "enhanced, one network evaluation", "clean"),
                             (noisy, enhanced, clean)):
    image = spectrogram(axis, wave, title)
axes[2].set_xlabel("s")
figure.colorbar(image, ax=axes, label="dB below the loudest bin", pad=0.02);

# %% [markdown]
# The noise between the harmonics and above 4 kHz is gone; most of the speech above 3 kHz is gone with it.

# %%
play(enhanced=enhanced)
print(f"SI-SDR {metrics.si_sdr(clean, noisy):.1f} -> {metrics.si_sdr(clean, enhanced):.1f} dB, "
      f"PESQ {metrics.pesq(clean, noisy):.2f} -> {metrics.pesq(clean, enhanced):.2f}")

# %% [markdown]
# A recording of your own goes the same way: `noisy = data.load_audio("my.wav")[0][0]` gives its first channel at 16 kHz, whatever the file's rate.
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $y=s+g\,n$ | noise at a given ratio; $P_s,\ P_n$: mean powers of $s$ and $n$ | `mix_at_snr` |
# | $c$ | STFT of a wave, $F\times T$ complex bins | `Spectrogram.stft`, `.istft` |
# | $\tilde c=\beta\left\lvert c\right\rvert^\alpha e^{i\angle c}$ | compressed bin | `Spectrogram.compress`, `.decompress` |
# | $z\sim\mathcal N_{\mathbb C}(0,1)$ | noise of all methods | `torch.randn_like` |
# | SI-SDR, PESQ | scores | `si_sdr`, `pesq`; as losses: `si_sdr_loss`, `PESQLoss` |
#
# ## Mixing
#
# $$y=s+g\,n,\qquad g^2=\frac{P_s}{P_n\,10^{\mathrm{SNR}/10}}$$

# %%
show(data.mix_at_snr)

# %%
for (name, (s, y)), snr in zip(pairs.items(), (5.0, 2.5, 7.5)):
    ratio = 10 * (s.square().mean() / (y - s).square().mean()).log10().item()
    if fast(True, False):                                # the tests read a part of each file, which has another ratio
        check(f"{name}: SNR of the file, dB", ratio, snr, 0.01)
    mixed = data.mix_at_snr(s, y - s, snr + 10)
    again = 10 * (s.square().mean() / (mixed - s).square().mean()).log10().item()
    check("   mixed again with 10 dB less noise", again, snr + 10, 0.001)
figure, axes = plt.subplots(1, 3, figsize=(9, 2), sharey=True)
for axis, (name, (s, y)) in zip(axes, pairs.items()):
    seconds = np.arange(len(s)) / data.SAMPLE_RATE
    axis.plot(seconds, y.numpy(), color="tab:orange", linewidth=0.3, label="noisy")
    axis.plot(seconds, s.numpy(), color="tab:blue", linewidth=0.3, label="clean")
    axis.set(title=name, xlabel="s")
axes[0].set_ylabel("amplitude")
for line in figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center").get_lines():
    line.set_linewidth(3)

# %% [markdown]
# Clean speech (blue) over the noisy recording (orange): at the waterfall the noise never pauses; the windmill and the crowd change over time.
#
# ## The short-time Fourier transform
#
# $$F=\tfrac{n_{\mathrm{win}}}2+1,\qquad T=1+\lceil L/h\rceil$$
#
# A window of 510 samples gives $F=256$ bins, which a U-Net can halve eight times. If $L$ is no multiple of $h$, one more frame than usual is appended. Without it the last samples would be covered only by the fading end of a window, and the inverse, which divides by the sum of the windows, would divide by almost zero.

# %%
show(data.Spectrogram.stft, data.Spectrogram.istft)

# %%
transform = data.Spectrogram(transform="none")
sine = torch.sin(2 * np.pi * 1000 * torch.arange(16000) / 16000)
spec = transform(sine).abs()
print("1 s is", tuple(spec.shape), "bins x frames")
assert spec.shape == (256, 1 + 125)
check("a tone of 1 kHz has its maximum in bin 1000 * 510 / 16000 = 31.9:", spec[:, 60].argmax().item(), 32, 0)
check("its magnitude there", spec[32, 60].item(), 126.2203, 1e-3)
odd = noisy[:24_001 - fast(0, 40)]
for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
    there = data.Spectrogram()(odd.to(dtype))
    back = data.Spectrogram().inverse(there, len(odd))
    check(f"transform and inverse in {dtype}, {len(odd)} samples", (back - odd).abs().max(), 0, limit)

# %% [markdown]
# ## Compression
#
# $$\tilde c=\beta\left\lvert c\right\rvert^{\alpha}e^{i\angle c},\qquad\alpha=0.5,\ \beta=0.15$$
#
# The amplitudes of speech cover several decades. The square root brings the loudest percent of the bins from about a hundred times to about ten times the median, so that Gaussian noise with the same standard deviation in all bins is comparable with all of them.

# %%
show(data.Spectrogram.__init__)

# %%
compressed = data.Spectrogram()
four = torch.tensor([4.0 + 0j])
check("4 becomes 0.15 * 2", compressed.compress(four).real.item(), 0.3, 1e-6)
check("and 4 again", compressed.decompress(compressed.compress(four)).real.item(), 4, 1e-5)
check("the phase stays", compressed.compress(torch.tensor([3.0 + 4j])).angle().item(), np.arctan2(4, 3), 1e-6)
wave = pairs["windmill"][1] / pairs["windmill"][1].abs().max()
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
for axis, name, spec in zip(axes, ("|c|", "compressed"), (transform(wave), compressed(wave))):
    sizes = spec.abs().flatten().numpy()
    ratio = np.quantile(sizes, 0.99) / np.median(sizes)
    axis.hist(sizes / np.median(sizes), 100, range=(0, 12), color="tab:purple", log=True)
    axis.set(title=f"{name}: 99 % quantile {ratio:.0f} x the median", xlabel="magnitude over its median")
axes[0].set_ylabel("bins")
below("compressed: 99 % quantile over median", ratio, 15)

# %% [markdown]
# The histograms (logarithmic axis) show the magnitudes relative to their median. Without compression one bin in a hundred is more than 102 times the median (left, cut off at 12); with it, more than 10 times (right).
#
# ## Gain
#
# The input of a network should not depend on the gain of the microphone. The papers divide by the peak of the noisy recording and multiply by it at the end. But a single click changes the peak, and with it the level of everything else. The small models here use the peak of the loudest second without its loudest 2 ms, which neither a click nor a pause changes, and a gain that follows the signal, so that a quiet speaker after a loud one has the loudness of the training data.

# %%
show(data.in_spectrogram, data.click_robust_peak, data.riding_gain, data.normalise)

# %%
batch = noisy[None]
same = data.in_spectrogram(lambda spec: spec, batch, data.Spectrogram())
check("a function that does nothing", (same - batch).abs().max(), 0, 1e-6)
passed = data.enhance_normalised(lambda x: x, 3 * batch, "peak")
check("three times louder in, three times louder out", (passed - 3 * batch).abs().max(), 0, 1e-6)
check("silence stays silence", data.enhance_normalised(lambda x: x, 0 * batch, "peak").abs().max(), 0, 0)
click = batch.clone()
click[0, 1000] = 20.0
change = lambda peak: (peak(click) / peak(batch)).item()
check("a click multiplies the robust peak by", change(data.click_robust_peak), 1, 0.01)
print(f"and the plain peak by {change(lambda x: x.abs().amax()):.0f}")

# %% [markdown]
# ## The noise of all methods
#
# $$z\sim\mathcal N_{\mathbb C}(0,1):\quad E\left\lvert z\right\rvert^2=1,\qquad E(\Re z)^2=E(\Im z)^2=\tfrac12$$
#
# `torch.randn_like` of a complex tensor draws exactly this. The noise is added *after* the compression, where a clean bin has an rms of about 0.11. Where the method of [notebook 2](2_score.ipynb) starts, the standard deviation of the noise is 0.39: it masks the speech.

# %%
torch.manual_seed(0)
z = torch.randn(1_000_000, dtype=torch.complex64)
check("E|z|^2", z.abs().square().mean().item(), 1, 0.005)
check("E(Re z)^2", z.real.square().mean().item(), 0.5, 0.005)
for name, (s, y) in pairs.items():
    print(f"{name}: rms of a clean bin {compressed(s / y.abs().max()).abs().square().mean().sqrt():.3f}")
figure, axes = plt.subplots(1, 4, figsize=(9, 2.3), sharey=True)
spec = compressed(clean / noisy.abs().max())
for axis, std in zip(axes, (0, 0.05, 0.15, 0.389)):
    size = (spec + std * torch.randn_like(spec)).abs().clamp(min=1e-3).log10().numpy()
    axis.imshow(size, vmin=-2.5, vmax=0.3, cmap="magma", extent=(0, len(clean) / 16000, 0, 8))
    axis.set(title=f"std {std}", xlabel="s")
axes[0].set_ylabel("kHz");

# %% [markdown]
# With a standard deviation of 0.05 the harmonics are still visible, with 0.15 only the strongest, with 0.389 hardly any.
#
# ## SI-SDR
#
# $$\text{SI-SDR}=10\log_{10}\frac{\left\lVert as\right\rVert^2}{\left\lVert as-\hat s\right\rVert^2},\qquad a=\frac{\hat s^\top s}{\left\lVert s\right\rVert^2}$$
#
# The scale $a$ is fitted, the delay is not: a perfect wave that comes a millisecond late has a very low score. With the correlation $\rho$ of $\hat s$ and $s$ this is $10\log_{10}\frac{\rho^2}{1-\rho^2}$: the sign of $\rho$ does not count.

# %%
show(metrics.si_sdr)

# %%
s = pairs["windmill"][0]
noise = torch.randn_like(s)
noise = noise - (noise @ s) / (s @ s) * s                # at a right angle to speech
noise = noise * (s.square().sum() / noise.square().sum() / 10 ** 0.7).sqrt()
check("noise at a right angle, 7 dB", metrics.si_sdr(s, s + noise), 7, 1e-3)
check("three times louder", metrics.si_sdr(s, 3 * (s + noise)), 7, 1e-3)
delays = (1, 2, 4, 8, 16)
late = [metrics.si_sdr(s[d:], s[:-d]) for d in delays]
rho = [(s[d:] @ s[:-d] / (s[d:].norm() * s[:-d].norm())).item() for d in delays]
print("correlation:", [round(x, 2) for x in rho])
print("1, 2, 4, 8, 16 samples late:", [round(x, 1) for x in late], "dB")
if fast(True, False):
    for d, score, known in zip(delays, late, (8.0, 5.0, 2.1, -4.5, -22.4)):
        check(f"{d} samples late", score, known, 0.5)
below("8 samples late, dB", late[3], 0)
plt.figure(figsize=(4.5, 2.4))
plt.plot(np.array(delays) / 16, late, "o-", color="tab:blue")
plt.axhline(metrics.si_sdr(*pairs["windmill"]), color="tab:gray", linestyle=":", label="the noisy recording")
plt.xlabel("delay of the perfect wave, ms")
plt.ylabel("SI-SDR, dB")
plt.legend();

# %% [markdown]
# After half a millisecond the perfect wave scores below 0 dB, worse than the noisy recording (dotted). The correlation is then about one half, and after one millisecond (16 samples) almost zero: one millisecond is a quarter of a period of the strongest components, near 250 Hz, where the delayed wave is orthogonal to the original.
#
# ## PESQ, and a differentiable version of it
#
# PESQ compares loudness on a Bark scale after a time alignment. `PESQLoss` leaves out the alignment and can be differentiated.

# %%
show(losses.PESQLoss.mos)

# %%
loss = losses.PESQLoss()
for (name, (s, y)) in pairs.items():
    check(f"{name}: package pesq {metrics.pesq(s, y):.3f}; ours", loss.mos(loss(s, y)).item(), metrics.pesq(s, y),
          fast(0.05, 0.2))
check("a perfect wave", loss.mos(loss(s, s)).item(), 4.644, 1e-3)

# %% [markdown]
# ## Train small
#
# A recurrent network of 39,089 parameters estimates a mask and memorises the three recordings, with -SI-SDR as its loss. This shows the training loop only. To train a useful model: `python dispatch.py train --distil none --data DIR`.

# %%
torch.manual_seed(0)
method = dispatch.Student(dispatch.Config(distil="none", num_frames=126))
logged = train_small(method, fast(80, 5), lr=3e-3)
first, last = fifths(logged["si_sdr"])
print(f"{sum(p.numel() for p in method.parameters()):,} parameters, SI-SDR {first:.1f} -> {last:.1f} dB")
below("SI-SDR at first less that at last, dB", first - last, -1, trained=True)
plt.figure(figsize=(5, 2.4))
plt.plot(logged["si_sdr"])
plt.xlabel("step")
plt.ylabel("SI-SDR of crops, dB");

# %% [markdown]
# The SI-SDR of the training crops rises within a few dozen steps; it fluctuates because every step draws new crops.
#
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. A window of 510 samples gives $F=256$ (p).
# 2. Noise is added after the compression: std 0.389 at the latest time of SGMSE+, where a clean bin has an rms of 0.11 (m).
# 3. The gain is computed from the whole file in use and from the crop in training (c).
# 4. `torch.stft` reflects the signal at its ends and needs more than half a window of it (c).
#
# ## Where paper and code differ
#
# - The first paper of the series had $\beta=0.33$ and windows of 512; the later models at 16 kHz have 0.15 and 510.
# - The released code divides by the peak without a guard: silence becomes NaN. Here it stays silence.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** Draw the real and the imaginary part of $z$ with `torch.randn` and forget the factor $1/\sqrt2$. What is $E\left\lvert z\right\rvert^2$?
#
# <details><summary>Hint</summary>
#
# The power of a complex number is the sum of the powers of its parts.
#
# </details>
# <details><summary>Solution</summary>
#
# 2 instead of 1. Every standard deviation is then wrong by a factor of $\sqrt2$.
#
# </details>
#
# **2.** A crop has 32,640 samples, which are 256 frames at a hop of 128. How many frames are they at a hop of 256?
#
# <details><summary>Hint</summary>
#
# $32640/256$ is not an integer.
#
# </details>
# <details><summary>Solution</summary>
#
# $1+\lceil127.5\rceil=129$. A crop of exactly 128 frames at a hop of 256 has `Spectrogram.samples(128)` = 32,512 samples.
#
# </details>
#
# **3.** A perfect wave that comes half a millisecond late has the correlation $\rho=0.51$ with the original. What is its SI-SDR in dB?
#
# <details><summary>Hint</summary>
#
# Split the delayed wave into a part along $s$ and a part orthogonal to it. Which fraction of the energy has each?
#
# </details>
# <details><summary>Solution</summary>
#
# $10\log_{10}\frac{0.51^2}{1-0.51^2}=-4.54$ dB. The part along $s$ has the energy $\rho^2$, and all the rest counts as error. If the delay were half a period of every component, $\rho$ would be $-1$, only a change of sign, which SI-SDR ignores; the worst delay is a quarter of a period.
#
# </details>

# %%
real = torch.complex(torch.randn(1_000_000), torch.randn(1_000_000))
answer("1.1", real.abs().square().mean())
answer("1.2", data.Spectrogram(hop_length=256)(torch.randn(32640)).shape[1])
answer("1.3", 10 * np.log10(0.51 ** 2 / (1 - 0.51 ** 2)))
