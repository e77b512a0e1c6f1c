# %% [markdown]
# # 1 Sound and its spectrogram
#
# Everything here happens in one picture of the sound: a complex spectrogram whose amplitudes are compressed, so that quiet sounds weigh as much as loud ones. This page walks there and back, and to the numbers that say how good a result is.
#
# **You will** mix at a given ratio, transform, compress, level, add noise by the convention that all methods share, score, and run shipped weights on a recording of your own. Where it comes from: SGMSE+ (arXiv 2208.05830) for the transform; Le Roux et al. (2019) for SI-SDR; ITU-T P.862.2 for PESQ.

# %%
from tools import (ROOT, answer, below, check, enhance, fast, fifths, play, pretrained, recording, show, spectrogram, tiny,
                   train_small)

import matplotlib.pyplot as plt
import numpy as np
import torch

import data
import dispatch
import losses
import metrics

# %% [markdown]
# ## Hear it
#
# Three voices that no model here was trained on, in the noise of a windmill (5 dB), at a waterfall (2.5 dB) and in front of a cheering crowd (7.5 dB).

# %%
pairs = {name: recording(name) for name in ("windmill", "waterfall", "cheer")}
play(**{f"{name}_{side}": wave for name, pair in pairs.items() for side, wave in zip(("clean", "noisy"), pair)})

# %% [markdown]
# One network evaluation of `drift_dagger` on the second. This picture is the whole task: what is speech, and what only looks like it?

# %% tags=["export-waterfall"]
clean, noisy = pairs["waterfall"]
enhanced = enhance(pretrained("drift_dagger"), noisy)
figure, axes = plt.subplots(3, 1, figsize=(8, 5), sharex=True)
for axis, title, wave in zip(axes, ("noisy, 2.5 dB", "enhanced by one call of the network", "clean"),
                             (noisy, enhanced, clean)):
    image = spectrogram(axis, wave, title)
axes[2].set_xlabel("s")
figure.colorbar(image, ax=axes, label="dB below the loudest bin", pad=0.02);

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
# | $y=s+g\,n$ | noise at a given ratio | `mix_at_snr` |
# | $c$ | STFT of a wave, $F\times T$ complex bins | `Spectrogram.stft`, `.istft` |
# | $\tilde c=\beta\lvert c\rvert^\alpha e^{i\angle c}$ | compressed: $\alpha=0.5$, $\beta=0.15$ | `.compress`, `.decompress` |
# | $z\sim\mathcal N_{\mathbb C}(0,1)$ | noise of all methods | `torch.randn_like` |
# | SI-SDR, PESQ | how good is it | `si_sdr`, `pesq`; to train with: `si_sdr_loss`, `PESQLoss` |
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
    check("   mixed anew with 10 dB less noise", again, snr + 10, 0.001)
figure, axes = plt.subplots(1, 3, figsize=(9, 2), sharey=True)
for axis, (name, (s, y)) in zip(axes, pairs.items()):
    seconds = np.arange(len(s)) / data.SAMPLE_RATE
    axis.plot(seconds, y.numpy(), color="tab:gray", linewidth=0.3, label="noisy")
    axis.plot(seconds, s.numpy(), color="tab:green", linewidth=0.3, label="clean")
    axis.set(title=name, xlabel="s")
axes[0].set_ylabel("amplitude")
for line in figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center").get_lines():
    line.set_linewidth(3)

# %% [markdown]
# ## The short-time Fourier transform
#
# $$F=\tfrac n2+1,\qquad T=1+\lceil L/h\rceil$$
#
# Windows of $n=510$ samples, so that $F=256$, which a U-Net can halve eight times; a hop of $h=128$. A frame more than usual stands at the end where $L$ is no multiple of $h$: there the windows fade to nothing, and the way back would divide by that.

# %%
show(data.Spectrogram.stft, data.Spectrogram.istft)

# %%
transform = data.Spectrogram(transform="none")
sine = torch.sin(2 * np.pi * 1000 * torch.arange(16000) / 16000)
spec = transform(sine).abs()
print("1 s is", tuple(spec.shape), "bins x frames")
assert spec.shape == (256, 1 + 125)
check("a tone of 1 kHz stands in bin 1000 n / 16000 = 31.9:", spec[:, 60].argmax().item(), 32, 0)
check("its magnitude there", spec[32, 60].item(), 126.2203, 1e-3)
odd = noisy[:24_001 - fast(0, 40)]
for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
    there = data.Spectrogram()(odd.to(dtype))
    back = data.Spectrogram().inverse(there, len(odd))
    check(f"there and back in {dtype}, {len(odd)} samples", (back - odd).abs().max(), 0, limit)

# %% [markdown]
# ## Compression
#
# $$\tilde c=\beta\,\lvert c\rvert^{\alpha}e^{i\angle c},\qquad\alpha=0.5,\ \beta=0.15$$
#
# Amplitudes of speech spread over decades. Under the square root the loudest percent of the bins is ten times the median, where it was a hundred times. A Gaussian can imitate that.

# %%
show(data.Spectrogram.compress, data.Spectrogram.decompress)

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
# ## Level
#
# Networks want a level that does not depend on the microphone. Published: divide by the peak of the noisy recording, multiply at the end. A click moves the peak; the small models here use the peak of the loudest second without its loudest 2 ms, which no click and no pause moves, and let the gain follow the signal, so that a quiet speaker after a loud one arrives at the level of training.

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
change = lambda level: (level(click) / level(batch)).item()
check("a click: the robust level, times", change(data.click_robust_peak), 1, 0.01)
print(f"            the peak, times {change(lambda x: x.abs().amax()):.0f}")

# %% [markdown]
# ## The noise of all methods
#
# $$z\sim\mathcal N_{\mathbb C}(0,1):\quad E\lvert z\rvert^2=1,\qquad E(\Re z)^2=E(\Im z)^2=\tfrac12$$
#
# `torch.randn_like` of a complex tensor is just that. It is added *after* compression, where a bin of speech has an rms of about 0.11: the 0.39 of SGMSE+'s last time drowns it.

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
# ## SI-SDR
#
# $$\text{SI-SDR}=10\log_{10}\frac{\lVert as\rVert^2}{\lVert as-\hat s\rVert^2},\qquad a=\frac{\hat s^\top s}{\lVert s\rVert^2}$$
#
# The best scale $a$ is free. The best delay is not: a perfect wave, a millisecond late, scores like a bad one.

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
print("1, 2, 4, 8, 16 samples late:", [round(x, 1) for x in late], "dB")
if fast(True, False):
    for d, score, known in zip(delays, late, (8.0, 5.0, 2.1, -4.5, -22.4)):
        check(f"{d} samples late", score, known, 0.5)
below("8 samples late, dB", late[3], 0)
plt.figure(figsize=(4.5, 2.4))
plt.plot(np.array(delays) / 16, late, "o-", color="tab:red")
plt.axhline(metrics.si_sdr(*pairs["windmill"]), color="tab:gray", linestyle=":", label="the noisy recording")
plt.xlabel("delay of the perfect wave, ms")
plt.ylabel("SI-SDR, dB")
plt.legend();

# %% [markdown]
# ## PESQ, and one to train with
#
# PESQ models loudness on a Bark scale and time alignment. `PESQLoss` leaves out the alignment and has a gradient.

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
# A recurrent mask of 39,089 parameters learns the three recordings by heart, with -SI-SDR as its loss. It shows the loop and a falling loss; a model is `python consistency.py train-student --distil none --data DIR`.

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
# ## Details that matter
#
# p: paper, c: released code, m: measured here.
#
# 1. 510 samples a window make $F=256$ (p).
# 2. Noise comes after the compression: at the last time of SGMSE+ 0.389, where a bin of speech has 0.11 (m).
# 3. The level is the whole file's in use and the crop's in training (c).
# 4. `torch.stft` reflects at the ends, which needs more than half a window of sound (c).
#
# ## Where paper and code differ
#
# - The first paper of the series had $\beta=0.33$ and windows of 512; everything later 0.15 and 510.
# - Released code divides by the peak without a guard: silence becomes NaN. Here it stays silence.
#
# ## Exercises
#
# Put your own value into the cell below; it says how close it is.
#
# **1.** Draw noise for real and imaginary part with `torch.randn` and forget the $1/\sqrt2$. What is its power?
#
# <details><summary>Hint</summary>
#
# The power of a sum of two independent parts is the sum of their powers.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 2 instead of 1: every std is off by 1.41.
#
# </details>
#
# **2.** A crop has 32,640 samples. How many frames does it have at a hop of 256?
#
# <details><summary>Hint</summary>
#
# One frame at the start of the crop, then one for each hop that is begun.
#
# </details>
#
# <details><summary>Solution</summary>
#
# $1+\lceil32640/256\rceil=129$; at a hop of 128 it has 256. A crop that fills exactly 128 frames at 256 has `Spectrogram.samples(128)` = 32,512 samples.
#
# </details>
#
# **3.** The clean windmill is delayed by half a millisecond, 8 samples. What SI-SDR does this perfect recording have, in dB?
#
# <details><summary>Hint</summary>
#
# With the correlation $\rho$ of a signal with its delayed self, SI-SDR is $10\log_{10}\frac{\rho^2}{1-\rho^2}$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# The correlation of this voice with itself is about 0.51 after 8 samples (and -0.08 after 16), so the score is about -4.5 dB. A shift by a quarter of a period is at a right angle to the original and counts as error; a shift by half a period is a change of sign, which SI-SDR forgives.
#
# </details>

# %%
real = torch.complex(torch.randn(1_000_000), torch.randn(1_000_000))
answer("1", 2, real.abs().square().mean().item(), 0.01, "the power of each part is 1")
answer("2", 129, data.Spectrogram(hop_length=256)(torch.randn(32640)).shape[1], 0, "the last hop is not full, and has a frame too")
whole = data.load_audio(ROOT / "tutorials/audio/clean/windmill.flac")[0][0]
answer("3", -4.5, metrics.si_sdr(whole[:-8], whole[8:]), 1.0, "both waves have the same energy")
