# %% [markdown]
# # 6 MeanFlow: one jump along the average velocity
#
# A straight path connects clean speech ($t=0$) with an estimate of it plus noise ($t=1$). Following the *instantaneous* velocity of the resulting flow takes many small steps. A network that knows the *average* velocity over an interval crosses it in one evaluation.
#
# **You will** see the identity that relates the two velocities, the effect of its factor $c$, and how the jump becomes a corrector behind a separator, for one microphone and for an array. The page runs in about two minutes on one CPU core. Papers: MeCo (Kim, Choi, [arXiv 2606.09677](https://arxiv.org/abs/2606.09677)), MeanFlowSE ([2509.14858](https://arxiv.org/abs/2509.14858)), *Mean Flows* (Geng et al., [2505.13447](https://arxiv.org/abs/2505.13447)), *Improved Mean Flows* ([2512.02012](https://arxiv.org/abs/2512.02012)).
#
# | symbol | meaning | value |
# |---|---|---|
# | $x_0,\ \hat s,\ x_t$ | clean spectrogram, estimate of the separator, state between them | complex |
# | $y$ | on the toy: the noisy point, in the role of $\hat s$ | $0.2-0.2i$ |
# | $\sigma$ | noise at $t=1$ | 0.487 |
# | $r\le t$ | start and end of an interval, $\Delta=t-r$; the jump ends at $r=t_\varepsilon$ | $t_\varepsilon=0.03$ |
# | $v_c,\ v,\ u$ | velocity of one path, of the flow, and average velocity | |
# | $c$ | factor of the identity | 1, or 0.5 as released |
# | $m_k,\ w_k,\ d_k,\ r_k,\ V$ | toy: places, probabilities, distances, posterior probabilities, variance; as in [notebook 2](2_score.ipynb) | |
#
# **Scores:** PESQ, ESTOI, SI-SDR as in [notebook 1](1_sound.ipynb); DistillMOS (1 to 5) is a network that predicts a listener's grade without a reference.

# %%
from tools import (answer, below, check, enhance, experiment, fast, fifths, play, pretrained, read_rows, recording, show,
                   spectrogram, tiny, train_small)

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import data
import losses
import meanflow
import metrics
import rooms
import toy

per_bin = data.per_bin

# %% [markdown]
# ## Listen
#
# `meanflow` contains two networks: a separator that estimates the speech, and a corrector that starts from the estimate. The windmill, 5 dB.

# %%
clean, noisy = recording("windmill")
method = pretrained("meanflow")
wave, level = data.normalise(noisy[None, None])
with torch.no_grad():
    separated = (method.separate(wave) * level)[0, 0]
corrected = enhance(method, noisy)
play(noisy=noisy, separator=separated, corrected=corrected, clean=clean)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), sharey=True)
for axis, title, wave in zip(axes, ("noisy", "separator", "corrected", "clean"),
                             (noisy, separated, corrected, clean)):
    image = spectrogram(axis, wave, title)
    axis.set(xlabel="s", ylabel="kHz" if title == "noisy" else "")
    if wave is not clean:
        print(f"{title}: PESQ {metrics.pesq(clean, wave):.2f}, SI-SDR {metrics.si_sdr(clean, wave):.1f} dB")
figure.colorbar(image, ax=axes, label="dB");
added = next(row for row in read_rows("shipped_differences") if row["row"].startswith("meanflow"))
print(f"corrected - separator over {added['n']} recordings: PESQ {float(added['pesq']):+.3f}, SI-SDR "
      f"{float(added['si_sdr']):+.2f} dB [{float(added['si_sdr_low']):.2f}, {float(added['si_sdr_high']):.2f}]")

# %% [markdown]
# The spectrograms of separator and corrector can hardly be told apart: almost all of the gain is due to the separator. What the corrector adds over a test set is printed last; behind an array a corrector adds as little, most where the separator is worst ([experiments](experiments/README.md)).
#
# ## Key equations
#
# | symbol | meaning | function |
# |---|---|---|
# | $x_t=(1-t)x_0+t\hat s+t\sigma z$ | path from clean $x_0$ to the estimate $\hat s$ with noise | `path` |
# | $v_c=\hat s-x_0+\sigma z$ | velocity of one path; $v=E[v_c\mid x_t]$ that of the flow | `conditional_velocity` |
# | $x_r=x_t-(t-r)\,u(x_t,r,t)$ | jump along the average velocity $u$ | `sample` |
# | $u=v-c\,(t-r)\,\frac{du}{dt}$ | the identity, $c=1$ | `average_velocity_target`, `exact_derivative` |
# | $\frac12E\,(t-r)^2\left\lvert u-u_{tgt}\right\rvert^2$ | the $x_r$-loss | `displacement_loss`, `sample_times` |
# | $-\mathrm{SI\text{-}SDR}(x_1-0.97\,u)$ | the Endpoint loss | `endpoint_si_sdr_loss` |
#
# ## The toy
#
# One noisy point (the cross), three places where the clean point may be (blue). Grey lines: the flow itself; here it is known in closed form. Orange triangles: its ends.
#
# $$v=\sum_kr_k\Big(y-m_k+\frac{t\sigma^2-(1-t)\,0.1^2}{V}\,d_k\Big),\quad\sigma=0.487$$

# %%
torch.manual_seed(0)
n = 1000
z, reference = torch.randn(n, 1, 1, 1, dtype=torch.complex64), toy.clean(2000)
start = toy.noisy(n) + toy.SIGMA * z
times = np.linspace(1, 0.03, 98)
curves = toy.flow(toy.velocity, start, times)
axes = toy.panels(2, 3)
toy.draw(axes[0], curves[-1], start, curves, "the flow: many small steps")
toy.draw(axes[1], curves[-1], start, curves[[0, -1]], "the same in one jump, if u were known")
toy.animate(curves, "the flow from t = 1 to 0.03")

# %% [markdown]
# The animation shows 60 points that follow the flow. Both panels have the same ends. On the left the flow is followed in small steps and the paths are curved, on the right each path is one straight jump.
#
# ## Straight paths
#
# $$x_t=(1-t)\,x_0+t\,\hat s+t\,\sigma z,\qquad v_c=\hat s-x_0+\sigma z$$
#
# Each single path is straight, so $x_t-(t-r)v_c$ is the path at $r$. The flow, which has the mean velocity of all paths through a point, is curved.

# %%
show(meanflow.path, meanflow.conditional_velocity, toy.velocity)

# %%
x0, y = toy.clean(200_000), toy.noisy(200_000)
noise, t, r = torch.randn_like(x0), torch.rand(200_000), torch.rand(200_000)
xt, v_c = meanflow.path(x0, y, t, noise), meanflow.conditional_velocity(x0, y, noise)
check("x_t - (t - r) v_c against the path at r",
      (xt - per_bin(t - r) * v_c - meanflow.path(x0, y, r, noise)).abs().max(),
      0, 1e-6)
miss = v_c - toy.velocity(xt, t)
check("v is the mean of v_c: |E (v_c - v) conj(x_t)|", (miss * xt.conj()).mean().abs(), 0, 5e-3)
print(f"the loss of v itself is not 0 but {0.5 * miss.abs().square().mean():.3f}: a single path differs from the mean")
one = toy.clean(20), torch.randn(20, 1, 1, 1, dtype=torch.complex64)
ends = torch.stack([meanflow.path(one[0], toy.noisy(20), torch.full((20,), time), one[1]) for time in (1.0, 0.0)])
axes = toy.panels(2)
toy.draw(axes[0], ends[1], ends[0], ends, "20 conditional paths")
toy.draw(axes[1], curves[-1, :20], start[:20], curves[:, :20], "20 paths of the flow");

# %% [markdown]
# Conditional paths (left) are straight and meet at the same time with different velocities. Paths of the flow (right) are curved: at a given time and point there is only one velocity, the mean.
#
# ## The average velocity
#
# $$u(x_t,r,t)=\frac1{t-r}\int_r^tv(x_\tau,\tau)\,d\tau,\qquad x_r=x_t-(t-r)\,u$$
#
# For one Gaussian place it has a closed form, with $M_t$ and $V_t$ the mean and variance of $x_t$:
#
# $$u=\hat s-m+\frac{1-\sqrt{V_r/V_t}}{t-r}\,(x-M_t)$$

# %%
show(meanflow.sample)

# %%
s_hat, m, s_x = 0.8, 0.5, 0.3
M = lambda t: (1 - t) * m + t * s_hat
V = lambda t: (1 - t) ** 2 * s_x ** 2 + t ** 2 * toy.SIGMA ** 2


def u_gauss(x, r, t):
    r, t = per_bin(r), per_bin(t)
    return s_hat - m + (1 - (V(r) / V(t)).sqrt()) / (t - r) * (x - M(t))


def v_gauss(x, t):
    t = per_bin(t)
    return s_hat - m + (t * toy.SIGMA ** 2 - (1 - t) * s_x ** 2) / V(t) * (x - M(t))


when = lambda t: torch.tensor([t], dtype=torch.float64)
point = lambda x: torch.full((1, 1, 1, 1), x, dtype=torch.complex128)
for x, r, t, known in ((1.287, 0.0, 1.0, 0.487), (0.313, 0.03, 1.0, 0.098316), (0.9, 0.2, 0.7, 0.400846),
                       (0.4, 0.5, 0.9, -0.022841)):
    check(f"u({x}, {r}, {t})", u_gauss(point(x), when(r), when(t)).real.item(), known, 1e-6)
    solved = (x - toy.flow(v_gauss, point(x), [t, r])[-1].real.item()) / (t - r)
    check("   and by solving the flow", solved, known, 1e-5)
landed = meanflow.sample(lambda x, r, t: u_gauss(x, r, t), point(s_hat), point(1.0), 1, 0.03)
check("sample: one jump from 1 to 0.03", landed.real.item(), 0.800367, 1e-6)

# %% [markdown]
# ### Tangent and chord
#
# The same on one curved path of the toy: $v$ at $t=1$ is the tangent of the path, $u$ is the chord from its start to its end.

# %%
part = torch.linspace(0, 1, len(curves))[:, None, None, None, None]
bend = (curves - curves[0] - part * (curves[-1] - curves[0])).abs().amax(0).flatten()             # from the straight line
track = curves[:, bend[:200].argmax()].flatten().numpy()
v_start = toy.velocity(torch.from_numpy(track[:1]).reshape(1, 1, 1, 1), torch.ones(1, dtype=torch.float64)).item()
chord = (track[0] - track[-1]) / 0.97
axis = toy.panels(1, 3.4)[0]
toy.draw(axis, title="v: tangent, u: chord")
axis.plot(track.real, track.imag, color="0.35")
for speed, color, name in ((v_start, "tab:blue", "along v"), (chord, "tab:orange", "along u")):
    end_of = track[0] - 0.97 * speed
    axis.annotate("", (end_of.real, end_of.imag), (track[0].real, track[0].imag),
                  arrowprops=dict(arrowstyle="->", color=color, linewidth=1.8))
    axis.plot([], [], color=color, label=name)
axis.plot(track[0].real, track[0].imag, "o", color="black", label="start, t = 1")
axis.legend(loc="lower left", fontsize=7);

# %% [markdown]
# One step along the tangent (blue) ends near the mean of the places; one step along the chord (orange) ends where the path (grey) ends.
#
# ## The identity
#
# $$u=v-(t-r)\,\frac{du}{dt},\qquad\frac{du}{dt}=\partial_xu\cdot v+\partial_tu$$
#
# In training $v_c$ replaces $v$, and the right-hand side is the target, without a gradient. The derivative takes one forward-mode pass.
#
# <details><summary>Derivation: the identity, and the fixed point for other factors</summary>
#
# Write the definition as $(t-r)\,u(x_t,r,t)=\int_r^tv(x_\tau,\tau)\,d\tau$ and differentiate along the flow with $r$ fixed. On the left the product rule gives $u+(t-r)\frac{du}{dt}$, on the right $v(x_t,t)$: the identity. The total derivative is $\frac{du}{dt}=\partial_xu\cdot\dot x+\partial_tu$ with $\dot x=v$.
#
# If $u=v-c\,\Delta\,\frac{du}{d\Delta}$ with $\Delta=t-r$ and another factor $c$, multiply by $\frac1c\Delta^{1/c-1}$:
#
# $$\frac{d}{d\Delta}\big(\Delta^{1/c}u\big)=\frac1c\,\Delta^{1/c-1}\,v\quad\Rightarrow\quad u^{(c)}=\frac{1}{c\,\Delta^{1/c}}\int_r^t(\tau-r)^{\frac1c-1}\,v(x_\tau,\tau)\,d\tau.$$
#
# The weight $\frac{1}{c\Delta^{1/c}}(\tau-r)^{1/c-1}$ integrates to 1. It is constant for $c=1$, rises towards $\tau=t$ for $c<1$, and concentrates there for $c\to0$.
#
# </details>

# %%
show(meanflow.exact_derivative, meanflow.average_velocity_target)

# %%
x, r, t = torch.randn(50, 1, 1, 1, dtype=torch.complex128), torch.rand(50).double() * 0.4, 0.5 + torch.rand(50).double() / 2
target = meanflow.average_velocity_target(u_gauss, x, r, t, v_gauss(x, t))
check("v - (t - r) du/dt against u", (target - u_gauss(x, r, t)).abs().max(), 0, 1e-9)

# %% [markdown]
# The published code replaces the derivative $\frac{du}{dt}$ by a difference quotient and clips its norm over all bins of an example at 5. With 256 x 256 bins this leaves an rms of at most $5/256=0.02$ per bin.

# %%
show(meanflow.difference_derivative, meanflow.clip_norm)

# %%
quotient = meanflow.difference_derivative(u_gauss, x, r, t, v_gauss(x, t))
exact = meanflow.exact_derivative(u_gauss, x, r, t, v_gauss(x, t))
check("difference quotient against the derivative", (quotient - exact).abs().max(), 0, 1e-4)
clipped = meanflow.clip_norm(torch.full((1, 1, 256, 256), 0.1), 5.0)
check("du/dt of 0.1 in each of 256 x 256 bins, after the clip", clipped[0, 0, 0, 0].item(), 0.0195, 1e-4)

# %% [markdown]
# ## What $c$ does
#
# $$u^{(c)}=\frac1{c\,\Delta^{1/c}}\int_r^t(\tau-r)^{\frac1c-1}\,v(x_\tau,\tau)\,d\tau,\qquad\Delta=t-r$$
#
# The published code has $c=\frac12$. This is not an approximation of the identity but has another fixed point: a weighted mean of velocities with more weight near the time $t$, where $v$ still averages over all explanations. For $c\to0$ it is $v(x_t,t)$, and the jump ends at the posterior mean. Here computed from the exact flow, without any network:

# %%
def jump(c, end=0.03, count=300):
    """x_1 - Delta u^(c), by the trapezoid rule in s = ((tau - r) / Delta)^(1/c), where the weight is constant."""
    s = torch.linspace(1, 0, count, dtype=torch.float64)
    grid = (end + (1 - end) * s ** c).numpy()
    states = toy.flow(toy.velocity, start, grid)
    speeds = torch.stack([toy.velocity(x, torch.full((n,), time, dtype=torch.float64))
                          for x, time in zip(states, grid)])
    return states[0] - (1 - end) * torch.trapezoid(speeds, -s, dim=0)


jumps = {c: jump(c) for c in (1.0, 0.75, 0.5, 0.25)}
for c, known in zip(jumps, (0.656, 0.579, 0.464, 0.276)):
    check(f"c = {c}: spread, of {toy.spread(reference):.2f}", toy.spread(jumps[c]), known, 0.03)
check("c = 1 is the flow", (jumps[1.0] - curves[-1]).abs().max(), 0, 5e-3)
mean = torch.trapezoid(curves, torch.from_numpy(-times), dim=0) / 0.97
check("c = 1/2 is twice the mean of the path less its start", (jumps[0.5] - (2 * mean - curves[0])).abs().max(),
      0, 5e-3)
axes = toy.panels(3)
for axis, c in zip(axes, (1.0, 0.5, 0.25)):
    toy.draw(axis, jumps[c], start, torch.stack([curves[0], jumps[c]]),
             f"c = {c}, exact: spread {toy.spread(jumps[c]):.2f}")

# %% [markdown]
# With $c=1$ the jump ends in the places; with smaller $c$ the three clouds shrink towards the mean.
#
# ## Times and losses
#
# $$\mathcal L_{x_r}=\tfrac12\,E\,(t-r)^2\left\lvert u_\theta-u_{tgt}\right\rvert^2$$
#
# With this factor the loss is the error of the *point* that the jump reaches.

# %%
show(meanflow.sample_times, meanflow.displacement_loss)

# %%
u, goal = torch.ones(1, 1, 1, 1, dtype=torch.complex64), torch.full((1, 1, 1, 1), 0.5 - 0.5j)
check("u = 1, target 0.5 - 0.5i, over 0.97",
      meanflow.displacement_loss(u, goal, torch.tensor([0.03]), torch.ones(1)).item(),
      0.235225, 1e-6)
check("no interval, no loss", meanflow.displacement_loss(u, goal, torch.ones(1), torch.ones(1)).item(), 0, 0)
r, t = meanflow.sample_times(100_000)
check("fraction with r = t", (r == t).float().mean().item(), 0.1, 0.005)
below("never r > t, nor t below 0.03", (r - t).max().item() + (0.03 - t.min()).clamp(min=0).item(), 1e-9)

# %% [markdown]
# ## Train it on the toy
#
# Three networks, with $c=1$, $\frac12$ and 0. The derivative is taken along the network's own velocity, as in *Improved Mean Flows*.

# %%
show(toy.learn_meanflow)

# %%
ends = {}
for c in (1.0, 0.5, 0.0):
    torch.manual_seed(0)
    u, values = toy.learn_meanflow(c, fast(1200, 20))
    with torch.no_grad():
        ends[c] = meanflow.sample(u, toy.noisy(n), z)
    toy.report(f"c = {c}", ends[c], reference)
    print(f"   loss {values[:50].mean():.2f} -> {values[-200:].mean():.2f}")
    if c == 1:
        below("c = 1: median distance from the exact flow", (ends[1.0] - curves[-1]).abs().median().item(),
              0.15, trained=True)
        below("c = 1: energy distance", toy.energy_distance(ends[1.0], reference), 0.02, trained=True)
check("c = 1/2: spread, as the exact u^(c)", toy.spread(ends[0.5]), toy.spread(jumps[0.5]), 0.08, trained=True)
below("c = 0: spread", toy.spread(ends[0.0]), 0.1, trained=True)
axes = toy.panels(3)
for axis, (c, end) in zip(axes, ends.items()):
    toy.draw(axis, end, start, torch.stack([start, end]), f"c = {c:g}, trained, NFE 1")

# %% [markdown]
# The trained networks come close to the exact pictures above: a sampler for $c=1$, here with some points between the places, which a smooth network cannot avoid; the mean for $c=0$; and a result between the two for $c=\frac12$.
#
# ## The Endpoint loss
#
# $$\mathcal L_{end}=-\mathrm{SI\text{-}SDR}\big(\text{wave of }x_1-0.97\,u(x_1,0.03,1),\ \text{wave of }x_0\big)$$
#
# The jump is carried out in training and differentiated. Even the perfect $u=v_c$ does not end at $x_0$, because it stops at $t=0.03$:

# %%
show(meanflow.endpoint_si_sdr_loss)

# %%
spec = data.Spectrogram(hop_length=256)
wave = clean[:spec.samples(64)][None]
x0, s_hat = spec(wave)[:, None], spec(noisy[:wave.shape[1]][None])[:, None]
z_s = torch.randn_like(x0)
perfect = lambda x, r, t: meanflow.conditional_velocity(x0, s_hat, z_s)
expected = 0.97 * x0 + 0.03 * s_hat + 0.03 * 0.487 * z_s
check("perfect u: the output", (meanflow.sample(perfect, s_hat, z_s) - expected).abs().max(), 0, 1e-6)
loss = meanflow.endpoint_si_sdr_loss(perfect, x0, s_hat, z_s, spec).item()
by_hand = losses.si_sdr_loss(spec.inverse(x0[:, 0], wave.shape[1]),
                              spec.inverse(expected[:, 0], wave.shape[1])).item()
check("its loss, dB", loss, by_hand, 0.02)

# %% [markdown]
# ## The separator's loss
#
# $$\text{SA-SDR}=10\log_{10}\frac{\sum_k\left\lVert s_k\right\rVert^2}{\sum_k\left\lVert s_k-\hat s_k\right\rVert^2}\quad\text{in the best order of the speakers}$$

# %%
show(losses.sa_sdr_loss)

# %%
speakers = torch.tensor([[[1.0, 0, -1, 0], [0, 2, 0, -2]]])
estimates = torch.tensor([[[0.0, 1.8, 0.1, -2], [0.9, 0.1, -1, 0]]])
loss, ordered = losses.sa_sdr_loss(speakers, estimates)
check("two speakers, exchanged: dB", -loss.item(), 21.549, 1e-3)
assert torch.equal(ordered, estimates.flip(1))

# %% [markdown]
# ## An array of four microphones
#
# `rooms.draw_room` draws a room, `rooms.simulate_room` simulates it by the image method: impulse responses from a speaker and a noise source to each microphone on a circle of 5 cm radius, and the direct path to the reference microphone, the target of a separator.

# %%
config = rooms.RoomConfig(num_mics=4, num_speakers=1)
responses = torch.from_numpy(rooms.simulate_room(3, config)).float()        # (sources, mics + 1, n)
peaks = responses[0, :4].abs().argmax(1)
below("samples between the direct paths, at most 2 x 5 cm / 343 m/s = 4.66", (peaks.max() - peaks.min()).item(), 4.67)
size, t60, array, sources = rooms.draw_room(3, config)
samples = np.linalg.norm(sources[0][:, None] - array, axis=0) / 343 * data.SAMPLE_RATE     # of the way to each
error = np.abs((peaks - peaks[0]).numpy() - (samples - samples[0])).max()
below("samples between the arrival of a direct path and its geometry", error, 1)
energy = responses[0, 0].square().flip(0).cumsum(0).flip(0)                # remaining energy
level = 10 * (energy / energy[0]).clamp(min=1e-9).log10()
first, last = ((level <= db).nonzero()[0].item() for db in (-5, -25))
decay = 3 * (last - first) / data.SAMPLE_RATE
check("reverberation time from the decay between -5 and -25 dB, s", decay, t60, 0.2 * t60)
figure, (plan, *axes) = plt.subplots(1, 3, figsize=(9, 2.6))
for place, name, marker in zip(sources, ("speaker", "noise"), "o^"):
    plan.plot(*place[:2], marker)
    plan.annotate(name, place[:2], (0, 7), textcoords="offset points", ha="center")
plan.plot(*array[:2], "k.", markersize=2)
plan.annotate("microphones", array[:2, 0], (0, -14), textcoords="offset points", ha="center")
plan.set(xlim=(0, size[0]), ylim=(0, size[1]), xlabel="m", ylabel="m", aspect="equal", title="floor plan")
for mic in range(4):
    near = slice(int(peaks.min()) - 10, int(peaks.min()) + 60)
    axes[0].plot(np.arange(near.start, near.stop) / 16, responses[0, mic, near].numpy(), linewidth=1,
                 label=f"microphone {mic}")
axes[0].set(xlabel="ms", title="direct path, room 3")
axes[0].legend()
axes[1].plot(np.arange(len(level)) / 16000, level.numpy())
axes[1].set(xlabel="s", ylabel="dB", ylim=(-65, 3),
            title=f"T60 {decay:.2f} s, drawn: {t60:.2f} s");

# %% [markdown]
# Left: the positions in the room. Middle: the direct path arrives at the four microphones within a few samples of each other. Right: the remaining energy falls linearly in dB; its slope is the reverberation time.

# %%
with tempfile.TemporaryDirectory() as folder:
    for name in ("windmill", "waterfall", "cheer"):
        voice, mixture = recording(name)
        data.save_audio(Path(folder) / "speech" / f"{name}.wav", voice, data.SAMPLE_RATE)
        data.save_audio(Path(folder) / "noise" / f"{name}.wav", mixture - voice, data.SAMPLE_RATE)
    torch.manual_seed(0)
    separator = tiny(meanflow.MeanFlowCorrector, separator="train", num_mics=4, separator_seconds=1.0)
    mixtures = rooms.open_rooms(folder, "train", config, 1, folder, num_samples=separator.num_samples)
    direct, array = (waves[0] for waves in mixtures.batch([mixtures[0]]))
    logged = train_small(separator, fast(25, 3), batch_size=2, dataset=mixtures, crops=2, lr=3e-3, clip=5)
    with torch.no_grad():
        out = separator.enhance(array[None])[0]
    unheard = rooms.open_rooms(folder, "test", rooms.RoomConfig(num_mics=4, num_speakers=2), 4, folder, snrs=(10,),
                               num_samples=fast(80000, 24000))
    speakers, heard = (waves[0] for waves in unheard.batch([unheard[0]]))       # (speakers, L), (microphones, L)
play(reference_microphone=array[0], separated=out[0], direct_path=direct[0])
first, last = logged["sa_sdr"][0], fifths(logged["sa_sdr"])[1]
print(f"two mixtures of one room, memorised: SA-SDR {first:.1f} -> {last:.1f} dB in {len(logged['sa_sdr'])} steps")
below("SA-SDR at the start less that at the end, dB", first - last, -6, trained=True)

# %% [markdown]
# This does not generalise: a compact separator memorises two excerpts. `speakers` contains a separator that was trained on a corpus, and its corrector. Here are two simultaneous excerpts of one and the same voice, with noise 10 dB below them, in a room that was not in its training data; the example was chosen because it works.

# %%
method = pretrained("speakers")
wave, level = data.normalise(heard[None])
with torch.no_grad():
    estimates = {"separator": method.separate(wave) * level, "corrected": method.enhance(heard[None])}
estimates = {name: losses.sa_sdr_loss(speakers[None], wave)[1][0] for name, wave in estimates.items()}     # in order
play(reference_microphone=heard[0], **{f"speaker_{k}": wave for k, wave in enumerate(estimates["corrected"])})
scores = {name: [metrics.si_sdr(speaker, wave) for speaker, wave in zip(speakers, waves)]
          for name, waves in ({"reference microphone": heard[[0, 0]]} | estimates).items()}
for name, row in scores.items():
    print(f"{name}: SI-SDR of the speakers {', '.join(f'{score:.1f}' for score in row)} dB")
for k, (before, after) in enumerate(zip(scores["reference microphone"], scores["corrected"])):
    below(f"speaker {k}: SI-SDR at the microphone less that of the estimate, dB", before - after, -3, trained=True)

# %% [markdown]
# Each speaker is still audible in the other's estimate, and other rooms are worse: over 60 rooms the separator gains 5.3 dB, and its corrector 0.05 dB more ([experiments](experiments/README.md)).
#
# ## Train small
#
# The training loop of the corrector on the three recordings, starting from the noisy speech itself, with all three losses. To train a useful model: `python meanflow.py train --data DIR --preset small --separator train`, then `--separator frozen`.

# %%
torch.manual_seed(0)
corrector = tiny(meanflow.MeanFlowCorrector)
logged = train_small(corrector, fast(22, 4), batch_size=2, clip=0.05)
first, last = fifths(logged["si_sdr"])
print(f"{sum(p.numel() for p in corrector.parameters()):,} parameters, SI-SDR of the one-step output "
      f"{first:.1f} -> {last:.1f} dB")
below("SI-SDR at first less that at last, dB", first - last, -1, trained=True)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4))
axes[0].plot(logged["velocity"])
axes[0].set(xlabel="step", title="velocity loss, sum over bins")
axes[1].plot(np.arange(len(logged["velocity"]) - len(logged["si_sdr"]), len(logged["velocity"])), logged["si_sdr"])
axes[1].set(xlabel="step", title="SI-SDR of the one-step output, dB");

# %% [markdown]
# Left: the velocity loss, which varies with the times drawn in each step. Right: the SI-SDR of the jump, which has its own loss, rises.
#
# ## Trained on a corpus
#
# Rows of the [experiments](experiments/README.md), which list the commands; the test speakers were not in the training data: mean [95 % interval over recordings]. First one microphone under one budget, then two speakers in simulated rooms with every loss, then the corrector with both losses under conditions that were not in its training data.

# %%
experiment("budget", "noisy", "separator", "MeCo", "MeanFlowSE", "flow", test="test")
for test in ("rooms2", "rooms", "rooms2-large", "rooms3"):
    print(f"\n{test}")
    experiment("correctors", test=test, columns=("pesq", "estoi", "si_sdr", "distillmos"))

# %% [markdown]
# With one microphone MeCo improves the SI-SDR of its separator by 0.6 dB, and no other score by more than 0.003. Without a separator, after 3,000 crops, MeanFlowSE is 0.08 PESQ [0.05, 0.11] behind one Euler step of plain flow matching. That step returns a mean, which the scores reward; five and thirty steps are worse than one. All rows without a separator have a lower ESTOI than the noisy recordings. A target that composes the average velocities over two parts of the interval (`--derivative compose`) reaches the scores of this step, 0.08 PESQ [0.05, 0.11] above the derivative; the setting of the released code is 0.14 PESQ [0.06, 0.23] below it.
#
# For two speakers plain MeanFlow makes the estimates of the separator worse, and the $x_r$-loss does not change this after 300 steps. The Endpoint loss gains 0.04 dB [-0.00, 0.09] (paired by recording), both together 0.05 [0.00, 0.10] and 0.08 DistillMOS, at the cost of 0.03 PESQ. Behind a separator that was 1.5 dB worse the gain was 0.23 dB: a better separator leaves less to correct. Under conditions outside its training the corrector gains 0.16 dB [0.06, 0.27] behind a separator for three speakers (`rooms3`), 0.15 [-0.00, 0.29] in large rooms, and nothing behind the separator for one speaker (`rooms`).
#
# ## Details that matter
#
# p: paper, c: released code, m: measured or computed here.
#
# 1. The network receives $\log t$ and $\log(1+t-r)$, not $r$ (c).
# 2. In a tenth of the examples $r=t$ (c).
# 3. Where the std of the clean bin is 0.3, the clip leaves 7 % of the correction (m).
# 4. Squares are summed over bins, not averaged: this sets their weight relative to the Endpoint loss (c).
#
# ## Where paper and code differ
#
# - With $c=\frac12$ the jump ends between the flow and the mean. Here `--preset principled` has $c=1$, the exact derivative and no clip.
# - One jump ends at $t=0.03$ and is compared with fully clean speech.
# - Plain MeanFlow has a lower PESQ than the separator alone, in the paper and here.
#
# ## Exercises
#
# The cell at the end contains a solution; replace it by your own value, and it says whether it is right.
#
# **1.** In the Gaussian example (*The average velocity*: $\hat s=0.8$, $m=0.5$, spread 0.3) a jump with $c=1$ to $r=0.03$ keeps a standard deviation of 0.2914. What does a jump with $c=0.75$ keep?
#
# <details><summary>Hint</summary>
#
# All is affine: the output is slope times $x_1$ plus a constant. Integrate the slope of $v$ along the flow with the weight of $u^{(c)}$; in $s=((\tau-r)/\Delta)^{1/c}$ the weight is constant. The std of $x_1$ is $\sigma=0.487$.
#
# </details>
# <details><summary>Solution</summary>
#
# 0.2324: the slope of $x_1\mapsto x_1-0.97\,u^{(c)}$, times $\sigma$. The cell integrates it numerically.
#
# </details>
#
# **2.** Take four jumps instead of one on the toy, with the exact average velocity. By how much does the energy distance change?
#
# <details><summary>Hint</summary>
#
# Where does a jump along the exact average velocity end?
#
# </details>
# <details><summary>Solution</summary>
#
# Not at all (0): each jump ends on the path of the flow, so there is no error that more jumps could reduce.
#
# </details>
#
# **3.** What is the norm of $\frac{du}{dt}$ if it is 0.1 in each of 256 x 256 bins?
#
# <details><summary>Hint</summary>
#
# The root of the sum of $256^2$ equal squares.
#
# </details>
# <details><summary>Solution</summary>
#
# $0.1\cdot256=25.6$; the clip at 5 removes four fifths of it.
#
# </details>

# %%
s = torch.linspace(1, 0, 2001, dtype=torch.float64)
grid = 0.03 + 0.97 * s ** 0.75
slope = lambda t: (t * toy.SIGMA ** 2 - (1 - t) * s_x ** 2) / V(t) * (V(t) / V(when(1.0))).sqrt()      # of v in x_1
answer("6.1", (1 - 0.97 * torch.trapezoid(slope(grid), -s)) * toy.SIGMA)
average = lambda x, r, t: (x - toy.flow(toy.velocity, x, [t[0].item(), r[0].item()])[-1]) / per_bin(t - r)
four = meanflow.sample(average, toy.noisy(n, torch.complex128), z.to(torch.complex128), 4)
answer("6.2", toy.energy_distance(four, reference) - toy.energy_distance(curves[-1], reference))
answer("6.3", torch.full((256, 256), 0.1, dtype=torch.float64).norm())
