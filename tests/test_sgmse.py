"""sgmse.py against its closed forms, against the reference systems' numbers, and door to door."""

import dataclasses
import json
import itertools
import math
import os

import numpy as np
import pytest
import scipy.integrate
import torch

import data
import losses
import nets
import sgmse
import train
from helpers import (ExactStart, ExactStartBBED, M, S, Y, gaussian_marginal, gaussian_score, lively, load,
                     official_checkpoint, replay, run_command)

PROCESSES = {"ouve_default": sgmse.OUVE(), "ouve_48k": sgmse.OUVE(2.0, 0.1, 1.0), "sbve_default": sgmse.SBVE(),
             "bbed_default": sgmse.BBED(c=0.52), "bbed_theta051": sgmse.BBED()}


# ---- processes ----

@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_process_equals_reference(name, precision, monkeypatch):
    fixture = load("sde_bbed" if name.startswith("bbed") else "sde_ouve_sbve")
    get = lambda key: torch.from_numpy(fixture[f"{name}/{key}"])
    dtype, tolerance = (torch.float32, 2e-5) if precision == "f32" else (torch.float64, 1e-6)
    complex_dtype = torch.complex64 if precision == "f32" else torch.complex128
    sde, t = PROCESSES[name], get("t").to(dtype)
    x0, y, xt = (get(key).to(complex_dtype) for key in ("x0", "y", "xt"))
    drift, g = sde.drift(xt, y, t), sde.diffusion(t)
    score = (0.3 * y - xt) / sgmse.per_bin(0.2 + t)
    g_bin = sgmse.per_bin(g)
    dt = float(fixture[f"{name}/stepsize"])
    mean, noise = sgmse.reverse_step(lambda *_: score, xt[:1], y[:1], t[0].item(), dt, sde)
    if not isinstance(sde, sgmse.SBVE):                  # the bridge starts at y itself
        replay(monkeypatch, [get(f"{precision}/prior_z")])
    for key, value in {"mean": sde.mean(x0, y, t), "std": sde.std(t), "drift": drift, "diffusion": g,
                       "rev_drift": drift - g_bin ** 2 * score, "pf_drift": drift - 0.5 * g_bin ** 2 * score,
                       "prior": sde.prior(y)}.items():
        assert value.dtype in (dtype, complex_dtype)
        torch.testing.assert_close(value, get(f"{precision}/{key}").to(value.dtype).expand_as(value), atol=tolerance,
                                   rtol=tolerance, msg=key)
    torch.testing.assert_close(mean[0], xt[0] - get(f"{precision}/rev_disc_f")[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(noise.flatten()[0], get(f"{precision}/rev_disc_G")[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("sde", [sgmse.OUVE(), sgmse.BBED(), sgmse.SBVE()], ids=lambda sde: type(sde).__name__)
def test_mean_and_std_solve_the_moment_equations(sde):
    """dm/dt = f(m), dv/dt = 2 f'(x) v + g^2, from m = x0, v = 0; the bridge is its process conditioned on the end."""
    if isinstance(sde, sgmse.SBVE):
        t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        s, s_bar = sde.sigma(t)
        # Two independent Gaussian views of x_t, from 0 and from T, weighted by their precisions.
        torch.testing.assert_close(sde.std(t), (1 / s ** 2 + 1 / s_bar ** 2) ** -0.5, rtol=1e-6, atol=0)
        return
    x0, y = 3 + 1j, 2 - 1j
    one = lambda t: torch.tensor([t], dtype=torch.float64)
    bin_ = lambda c: torch.full((1, 1, 1, 1), c, dtype=torch.complex128)

    def moments(t, state):
        drift = lambda c: sde.drift(bin_(c), bin_(y), one(t)).item()
        slope = (drift(1.0) - drift(0.0)).real
        m = complex(state[0], state[1])
        return [drift(m).real, drift(m).imag, 2 * slope * state[2] + sde.diffusion(one(t)).item() ** 2]

    for end in (0.1, 0.5, 0.95):
        solved = scipy.integrate.solve_ivp(moments, (0, end), [x0.real, x0.imag, 0], rtol=1e-10, atol=1e-12).y[:, -1]
        mean = sde.mean(bin_(x0), bin_(y), one(end)).item()
        assert mean == pytest.approx(complex(solved[0], solved[1]), abs=1e-8)
        assert sde.std(one(end)).item() == pytest.approx(math.sqrt(solved[2]), rel=1e-8)


def test_bbed_std_agrees_with_the_card():
    t = torch.tensor([0.03, 0.1, 0.5, 0.8, 0.9, 0.999])
    expected = torch.tensor([0.123609, 0.225275, 0.486935, 0.521025, 0.447566, 0.058339])
    std = sgmse.BBED().std(t)
    torch.testing.assert_close(std, expected, atol=2e-6, rtol=0)
    assert std.dtype == torch.float32


def test_expi_agrees_with_scipy():
    u = -torch.logspace(-6, 0.9, 50, dtype=torch.float64)
    np.testing.assert_allclose(sgmse.expi(u).numpy(), scipy.special.expi(u.numpy()), rtol=1e-10, atol=1e-13)


def test_monte_carlo_of_the_forward_process_has_its_mean_and_std():
    sde, n, steps = sgmse.OUVE(), 20000, 400
    generator = torch.Generator().manual_seed(0)
    x = torch.full((1, 1, n, 1), 3 + 1j, dtype=torch.complex64)
    x0, y = x.clone(), torch.full_like(x, 2 - 1j)
    for i in range(steps):
        t = torch.tensor([(i + 0.5) / steps])
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + sde.drift(x, y, t) / steps + sde.diffusion(t) * math.sqrt(1 / steps) * z
    t = torch.tensor([1.0])
    assert abs(x.mean() - sde.mean(x0, y, t).mean()) < 0.01
    assert x.std().item() == pytest.approx(sde.std(t).item(), rel=0.01)


# ---- a Gaussian world: every score and every sampler is affine and can be solved ----

@pytest.mark.parametrize("process", [sgmse.OUVE, sgmse.BBED])
@pytest.mark.parametrize("t", [0.03, 0.5, 0.9])
def test_posterior_mean_is_the_regression_of_x0_on_the_state(process, t):
    """x0 ~ N(M, S^2), x_t = a x0 + b y + std z: E[x0 | x_t] = M + a S^2 (x_t - a M - b y) / (a^2 S^2 + std^2)."""
    sde, x = process(), torch.randn(3, 1, 2, 2, dtype=torch.complex128)
    y = torch.full_like(x, Y)
    times = torch.full((3,), t, dtype=torch.float64)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    a, b = sde.mean(one, zero, times), sde.mean(zero, y, times)
    std = sgmse.per_bin(sde.std(times))
    expected = M + a * S ** 2 * (x - a * M - b) / (a ** 2 * S ** 2 + std ** 2)
    torch.testing.assert_close(sgmse.posterior_mean(gaussian_score(sde), x, y, t, sde), expected, atol=1e-9, rtol=0)


def after_last_step(sde, y, mean, variance):
    """Mean and variance after the one noiseless step of the reverse SDE from t_eps to 0: an affine map of this world."""
    score = gaussian_score(sde)
    step = lambda x: sgmse.reverse_step(score, torch.full_like(y, x), y, sde.t_eps, sde.t_eps, sde)[0].item()
    slope = step(1) - step(0)
    return step(0) + slope * mean, abs(slope) ** 2 * variance


def law(monkeypatch, sampler, draws):
    """Exact mean and variance of an affine sampler: the response to no noise, and to each draw alone."""
    y = torch.full((draws + 1, 1, 1, 1), Y, dtype=torch.complex128)
    units = torch.eye(draws + 1, dtype=torch.complex128)[1:, :, None, None, None]
    left = replay(monkeypatch, units)
    out = sampler(y).flatten()
    assert next(left, None) is None, "the sampler used fewer draws than it was given"
    return out[0].item(), (out[1:] - out[0]).abs().square().sum().item()


def orders(errors):
    """Observed orders when the number of steps doubles."""
    errors = np.array(errors)
    return np.log2(errors[:-1] / errors[1:])


@pytest.mark.parametrize("process, T", [(ExactStart, 1.0), (ExactStartBBED, 0.9)])
def test_euler_maruyama_reaches_the_posterior_at_first_order(monkeypatch, process, T):
    errors = []
    for N in (64, 128, 256):
        sde = process(T=T, t_eps=T / N)                  # a uniform grid down to 0
        mean, variance = law(monkeypatch, lambda y: sgmse.euler_maruyama(gaussian_score(sde), y, sde, N), N)
        errors.append([abs(mean - M), abs(variance - S ** 2)])
    means, variances = np.transpose(errors)
    assert orders(variances) == pytest.approx(1, abs=0.25)
    # The bridge's mean is linear in t, which an Euler step follows exactly.
    assert means.max() < 1e-9 if process is ExactStartBBED else orders(means) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("process, T", [(ExactStart, 1.0), (ExactStartBBED, 0.9)])
def test_predictor_corrector_reaches_the_posterior(monkeypatch, process, T):
    """Mean at first order. Each Langevin step adds variance as each predictor step loses some; both vanish with 1/N."""
    errors = []
    for N in (64, 128, 256):
        sde = process(T=T, t_eps=T / N)
        sampler = lambda y: sgmse.predictor_corrector(gaussian_score(sde), y, sde, N)
        mean, variance = law(monkeypatch, sampler, 1 + 2 * N)
        errors.append([abs(mean - M), abs(variance - S ** 2)])
    means, variances = np.transpose(errors)
    assert variances.max() < 0.003
    assert means.max() < 1e-9 if process is ExactStartBBED else (orders(means) > 0.9).all() and means[-1] < 0.002


def test_langevin_corrector_settles_at_its_known_variance(monkeypatch):
    """x + e s + sqrt(2 e) z leaves v / (1 - e / 2v) invariant where the target has variance v."""
    sde = ExactStart(t_eps=0.3)
    y = torch.full((1, 1, 1, 1), Y, dtype=torch.complex128)
    t = torch.tensor([0.3], dtype=torch.float64)
    mean, v = (a.item() for a in gaussian_marginal(sde, y, t))
    step = 2 * (0.5 * sde.std(t).item()) ** 2
    still = lambda x, y, t: gaussian_score(sde)(x, y, t)
    monkeypatch.setattr(sgmse, "reverse_step", lambda score, x, *_: (x, torch.zeros(1)))     # the corrector alone
    got = law(monkeypatch, lambda y: sgmse.predictor_corrector(still, y, sde, 1, corrector_steps=150, start=0.3), 152)
    assert got[0] == pytest.approx(mean, abs=1e-6)
    assert got[1] == pytest.approx(v / (1 - step / (2 * v)), rel=1e-6)


def test_the_predictor_alone_is_euler_maruyama(monkeypatch):
    sde = sgmse.OUVE()
    run = lambda sampler, draws: law(monkeypatch, sampler, draws)
    alone = run(lambda y: sgmse.predictor_corrector(gaussian_score(sde), y, sde, 6, corrector_steps=0), 7)
    assert alone == pytest.approx(run(lambda y: sgmse.euler_maruyama(gaussian_score(sde), y, sde, 6), 6))


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
def test_probability_flow_reaches_the_marginal_at_its_order(monkeypatch, method, order):
    sde, errors, y = ExactStart(), [], torch.full((1, 1, 1, 1), Y, dtype=torch.complex128)
    marginal = gaussian_marginal(sde, y, torch.tensor([sde.t_eps], dtype=torch.float64))
    mean, variance = after_last_step(sde, y, *(value.item() for value in marginal))
    for N in (129, 257, 513):
        flow = lambda y: sgmse.probability_flow(gaussian_score(sde), y, sde, N, method)
        got = law(monkeypatch, flow, 1)
        errors.append([abs(got[0] - mean), abs(got[1] - variance)])
    assert np.array([orders(e) for e in np.transpose(errors)]) == pytest.approx(order, abs=0.25)


def gaussian_predictor(sde):
    """E[x0 | x_t, y]."""
    def predict(x, y, t):
        mean, var = gaussian_marginal(sde, y, t)
        a = sde.mean(torch.ones_like(y), torch.zeros_like(y), t).real
        return M + a * S ** 2 / var * (x - mean)
    return predict


def test_bridge_sde_reaches_the_posterior_at_first_order(monkeypatch):
    sde, errors = sgmse.SBVE(eps=1e-12), []
    for N in (64, 128, 256):
        mean, variance = law(monkeypatch, lambda y: sgmse.bridge_sde(gaussian_predictor(sde), y, sde, N), N - 1)
        errors.append([abs(mean - M), abs(variance - S ** 2)])
    assert np.max(errors[-1]) < 0.02
    assert orders(np.transpose(errors)[1]) == pytest.approx(1, abs=0.3)


def test_bridge_ode_converges_at_first_order():
    """To where 8192 steps end, from y itself; it draws nothing."""
    sde, y = sgmse.SBVE(), torch.full((1, 1, 1, 1), Y, dtype=torch.complex128)
    end = lambda N: sgmse.bridge_ode(gaussian_predictor(sde), y, sde, N).item()
    limit = end(8192)
    assert orders([abs(end(N) - limit) for N in (64, 128, 256)]) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("N", [1, 5, 50])
def test_bridge_ode_with_a_perfect_prediction_ends_at_it(N):
    """A x0 + B y with A = 0.999966, B = 0.000598 whatever N."""
    x0, y = (torch.full((1, 1, 1, 1), c, dtype=torch.complex128) for c in (M, Y))
    out = sgmse.bridge_ode(lambda *_: x0, y, sgmse.SBVE(), N)
    torch.testing.assert_close(out, 0.999966 * x0 + 0.000598 * y, atol=3e-6, rtol=0)


def test_the_exact_score_has_the_smallest_score_matching_loss():
    torch.manual_seed(0)
    sde, shape = sgmse.OUVE(), (512, 1, 16, 4)
    y = torch.full(shape, Y, dtype=torch.complex64)
    x0 = M + S * torch.randn_like(y)
    t, z = sgmse.OUVE().t_eps + 0.97 * torch.rand(512), torch.randn_like(y)
    exact = gaussian_score(sde)
    below, least, above = (sgmse.dsm_loss(lambda x, y, t: k * exact(x, y, t), x0, y, sde, t, z) for k in (0.8, 1, 1.2))
    assert least < below and least < above


def test_zero_score_costs_half_a_unit_per_bin():
    torch.manual_seed(0)
    z = torch.randn(4, 1, 256, 256, dtype=torch.complex64)
    t = torch.rand(4) * 0.97 + 0.03
    loss = sgmse.dsm_loss(lambda x, y, t: torch.zeros_like(x), z, z, sgmse.OUVE(), t, z)
    assert loss.item() == pytest.approx(32768, rel=0.01)


# ---- the reference systems' numbers ----

TOY = lambda x, y, t: (0.3 * y - x) / sgmse.per_bin(0.2 + t)
TOY_DATA = lambda x, y, t: 0.6 * y + 0.1 * x * sgmse.per_bin(1 - t)
PC = {"pc_rd_ald": {}, "pc_rd_ald_2c": dict(N=3, snr=0.33, corrector_steps=2), "pc_rd_none": dict(corrector_steps=0)}


class Counted:
    def __init__(self, function):
        self.function, self.states, self.times = function, [], []

    def __call__(self, x, y, t):
        self.states.append(x)
        self.times.append(t)
        return self.function(x, y, t)


@pytest.mark.parametrize("tag", [*PC, "sb_ode_N1", "sb_ode_N5", "sb_sde_N1", "sb_sde_N5"])
def test_sampler_equals_reference(tag, monkeypatch):
    fixture = load("samplers_sgmse")
    y = torch.from_numpy(fixture["y"])
    replay(monkeypatch, fixture[f"{tag}/draws"] if f"{tag}/draws" in fixture else [])
    network = Counted(TOY_DATA if tag.startswith("sb") else TOY)
    tolerance = 2e-6
    if tag in PC:
        out = sgmse.predictor_corrector(network, y, sgmse.OUVE(), **dict(N=5) | PC[tag])
    else:
        sampler, N = sgmse.bridge_ode if "ode" in tag else sgmse.bridge_sde, int(tag[-1])
        out = sampler(network, y, sgmse.SBVE(), N)
        # The reference computes the coefficients in float32, where they cancel; here float64.
        tolerance = 5e-5 if "ode" in tag else 2e-6
    torch.testing.assert_close(out, torch.from_numpy(fixture[f"{tag}/out"]), atol=tolerance, rtol=tolerance)
    states, times = ("model_x", "model_t") if tag.startswith("sb") else ("score_x", "score_t")
    if f"{tag}/{times}" in fixture:
        torch.testing.assert_close(torch.stack(network.times), torch.from_numpy(fixture[f"{tag}/{times}"]),
                                   check_dtype=False)
        torch.testing.assert_close(torch.stack(network.states), torch.from_numpy(fixture[f"{tag}/{states}"]),
                                   atol=10 * tolerance, rtol=10 * tolerance)
    if f"{tag}/nfe_actual" in fixture:
        assert len(network.times) == fixture[f"{tag}/nfe_actual"]


def test_flow_velocity_in_the_reference_s_solver_equals_it():
    """RK45 of scipy, as there, from the prior down to t_eps."""
    fixture, sde = load("samplers_sgmse"), sgmse.OUVE()
    y, z = torch.from_numpy(fixture["y"]), torch.from_numpy(fixture["ode_rk45/draws"][0])

    def velocity(t, flat):
        return sgmse.flow_velocity(TOY, torch.from_numpy(flat).reshape(y.shape).to(y), y, t, sde).numpy().ravel()

    start = y + sde.std(torch.tensor([1.0])) * z
    solution = scipy.integrate.solve_ivp(velocity, (1, sde.t_eps), start.numpy().ravel(), rtol=1e-5, atol=1e-5)
    end = torch.from_numpy(solution.y[:, -1]).reshape(y.shape).to(y)
    torch.testing.assert_close(end, torch.from_numpy(fixture["ode_rk45/out"]), atol=2e-6, rtol=2e-6)
    assert solution.nfev == fixture["ode_rk45/nfe"]


def test_bbed_sampler_equals_reference(monkeypatch):
    fixture = load("sde_bbed")
    prefix = "bbed_default/pc_rd_ald" if "bbed_default/pc_rd_ald/out" in fixture else "pc_rd_ald"
    replay(monkeypatch, fixture[f"{prefix}/draws"])
    out = sgmse.predictor_corrector(TOY, torch.from_numpy(fixture[f"{prefix}/y"]), sgmse.BBED(c=0.52), N=5)
    # 1 / (1 - t) = 1000 at the first step magnifies rounding.
    torch.testing.assert_close(out, torch.from_numpy(fixture[f"{prefix}/out"]), atol=1e-4, rtol=1e-4, check_dtype=False)


def small_spectrogram_model(variant):
    """ScoreSDE with the reference network of the fixture and one of its wrappers."""
    fixture = load("net_ncsnpp_v2_b")
    kwargs = json.loads(str(fixture["kwargs_json"]))["kwargs"]
    names = dict(loss_type="objective", network_scaling="network_scaling", c_in="c_in", c_out="c_out", c_skip="c_skip",
                 sde="sde", c="c")
    config = sgmse.Config(version=2, width=8, weighting="sigma^2", n_fft=62, hop_length=16, num_frames=32,
                          channel_mults=tuple(kwargs["ch_mult"]), num_res_blocks=1, attention_resolutions=(32, 8),
                          sampler="bridge_ode" if variant.get("sde") == "sbve" else "pc",
                          **{ours: variant[theirs] for theirs, ours in names.items() if theirs in variant})
    model = sgmse.ScoreSDE(config)
    weights = {name[2:]: torch.from_numpy(fixture[name]) for name in fixture.files if name.startswith("p/")}
    model.net = nets.NCSNpp.from_official(weights, **model.net.config)
    return model


VARIANTS = ["M1_score", "score_1_over_t", "denoiser", "edm_precond_data", "c_out_sigma", "c_out_1_over_sigma",
            "sbve_data"]


@pytest.mark.parametrize("name", VARIANTS)
def test_wrapper_and_its_loss_equal_reference(name, monkeypatch):
    fixture = load("wrapper_sgmse")
    variant = json.loads(str(fixture["settings_json"]))["variants"][name]
    model = small_spectrogram_model(variant)
    get = lambda key: torch.from_numpy(fixture[key])
    call = model.score if variant["loss_type"] == "denoiser" else model
    with torch.no_grad():
        out = call(get("x_t"), get("y"), get("t").float())
    expected = get(f"{name}/forward")
    assert (out - expected).abs().max() < 1e-5 * expected.abs().max()
    monkeypatch.setattr(model, "spectrogram", Ready(model.spectrogram, get("x"), get("y")))
    monkeypatch.setattr(torch, "rand", lambda *a, **k: get("u"))
    replay(monkeypatch, [get("z")])
    loss, _ = model.loss((torch.zeros(2, 1), torch.zeros(2, 1)))
    assert loss.item() == pytest.approx(float(fixture[f"{name}/step_loss"]), rel=1e-5)


class Ready(torch.nn.Module):
    """A spectrogram transform that hands out given spectrograms, one a call."""

    def __init__(self, real, *specs):
        super().__init__()
        self.real, self.specs = real, list(specs)
        self.samples, self.inverse = real.samples, real.inverse

    def forward(self, wave):
        return self.specs.pop(0)[:, 0]


def crop_wave(spec):
    """The wave of a training crop's spectrogram, as ScoreSDE.wave gives it."""
    return data.Spectrogram().inverse(spec[:, 0], data.Spectrogram().samples(spec.shape[-1]))


@pytest.mark.parametrize("case", ["score_matching", "denoiser_1", "denoiser_sigma2", "denoiser_edm",
                                  "data_prediction_ouve", "data_prediction_sbve", "data_prediction_sbve_l1_0"])
@pytest.mark.parametrize("batch", ["B1", "B2"])
def test_loss_equals_reference(case, batch):
    fixture = load("losses_sgmse")
    out, xt, z, mean, x, t = (torch.from_numpy(fixture[f"{batch}/{key}"])
                              for key in ("forward_out", "x_t", "z", "mean", "x", "t"))
    sde = sgmse.OUVE()
    std = sgmse.per_bin(sde.std(t))

    class Given(sgmse.OUVE):
        """The fixture's mean, which belongs to no y."""
        def mean(self, x0, y, t):
            return mean

    if case == "score_matching":
        loss = sgmse.dsm_loss(lambda *_: out, x, x, sde, t, z)
    elif case.startswith("denoiser"):
        weight = {"1": torch.ones_like, "sigma2": torch.square, "edm": sgmse.edm_weight}[case.split("_")[1]]
        loss = sgmse.denoising_loss(lambda *_: std ** 2 * out + xt, x, x, Given(), weight, t, z)
    else:
        l1_weight = 0.0 if case.endswith("l1_0") else 0.001
        if batch == "B1":
            l1_weight /= 7 * 128                         # the reference squeezes a batch of one and averages twice
        loss = sgmse.data_prediction_loss(lambda *_: out, x, x, sde, crop_wave, l1_weight, t=t, z=z)
    if case == "denoiser_edm" and batch == "B2":
        # The reference mixes the weights across the batch; here each example has its own.
        error = (std ** 2 * out + xt - mean).abs().square().sum((1, 2, 3))
        expected = (0.5 * sgmse.edm_weight(std.flatten()) * error).mean().item()
        assert abs(expected - float(fixture[f"{case}/{batch}"])) > 1e-3 * expected
    else:
        expected = float(fixture[f"{case}/{batch}"])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_data_prediction_adds_the_pesq_of_its_waves():
    torch.manual_seed(0)
    spectrogram = data.Spectrogram()
    x0 = spectrogram(torch.randn(2, 8000).cumsum(1) * 0.01)[:, None]
    x_hat = x0 + 0.05 * torch.randn_like(x0)
    t = torch.tensor([0.5, 0.9])
    loss = lambda weight: sgmse.data_prediction_loss(lambda *_: x_hat, x0, x0, sgmse.OUVE(), crop_wave, pesq_weight=weight,
                                                     t=t, z=x0)
    length = spectrogram.samples(x0.shape[-1])
    expected = losses.PESQLoss()(*(spectrogram.inverse(x[:, 0], length) for x in (x0, x_hat))).mean()
    torch.testing.assert_close(loss(0.1) - loss(0), 0.1 * expected)
    assert expected > 0.1


def test_equivalent_predictions_give_the_same_score():
    """If D is the mean of x_t and x_hat the x0 behind it, denoiser and data prediction imply one score."""
    torch.manual_seed(0)
    y, xt, x_hat = (torch.randn(2, 1, 32, 8, dtype=torch.complex64) for _ in range(3))
    t = torch.tensor([0.2, 0.9])
    make = lambda objective: sgmse.ScoreSDE(sgmse.Config(objective=objective, version=2, n_fft=62, hop_length=16, **nets.TINY))
    data, denoiser = make("data_prediction"), make("denoiser")
    data.net.forward = lambda x, t: x_hat
    denoiser.net.forward = lambda x, t: denoiser.sde.mean(x_hat, y, t)
    torch.testing.assert_close(data.score(xt, y, t), denoiser.score(xt, y, t))


# ---- grids ----

def test_grid_ends_at_zero_and_has_the_published_spacing():
    for N, T in ((30, 1.0), (5, 0.5), (1, 0.5)):
        times, steps = sgmse.reverse_grid(sgmse.OUVE(), N, T)
        assert len(times) == len(steps) == N and sum(steps) == pytest.approx(T)
    assert sgmse.reverse_grid(sgmse.OUVE(), 30)[1][0] == pytest.approx(0.97 / 29)
    assert sgmse.reverse_grid(sgmse.BBED(), 5, 0.5) == (pytest.approx([0.5, 0.3825, 0.265, 0.1475, 0.03]),
                                                        pytest.approx([0.1175] * 4 + [0.03]))
    assert sgmse.reverse_grid(sgmse.BBED(), 1, 0.5) == ([0.5], [0.5])
    assert sgmse.reverse_grid(sgmse.BBED(), 3, 0.5, spacing=2)[0] == pytest.approx([0.5, 0.03 + 0.47 / 4, 0.03])
    for start in (None, 1.0):                            # of BBED nothing is later than 0.999
        assert sgmse.reverse_grid(sgmse.BBED(), 3, start)[0] == pytest.approx([0.999, 0.5145, 0.03])


@pytest.mark.parametrize("sde", [sgmse.OUVE(), sgmse.BBED()], ids=["ouve", "bbed"])
def test_prior_has_the_noise_of_its_time(sde, monkeypatch):
    y, z = torch.randn(2, 2, 1, 4, 3, dtype=torch.complex128)
    for t in (0.3, 0.7, None):
        replay(monkeypatch, [z])
        std = sde.std(torch.full((2,), t or sde.T, dtype=torch.float64))
        torch.testing.assert_close(sde.prior(y, t), y + sgmse.per_bin(std) * z)
    assert torch.equal(sgmse.SBVE().prior(y, 0.3), y)


def test_what_a_bridge_has_left_to_collect_is_never_nothing():
    """At T sigma-bar is the root of eps, by which the released steps divide."""
    s, s_bar = sgmse.SBVE().sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert s_bar[1] == pytest.approx(1e-4, rel=1e-6) and s[0] == 0 and s[1] == pytest.approx(1.098015, abs=1e-6)


def test_random_correction_may_train_any_of_its_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "randint", lambda *args: asked.append(args) or torch.tensor(0))
    x, calls = torch.randn(2, 1, 4, 3, dtype=torch.complex64), []
    sgmse.crp_loss(lambda x, y, t: calls.append(t) or x, x, x, sgmse.OUVE(), 4, 0.5, "random")
    assert asked == [(4, ())] and len(calls) == 1


# ---- correcting the reverse process ----

def reference_network():
    fixture = load("net_crp_ncsnpp")
    kwargs = json.loads(str(fixture["kwargs_json"]))["kwargs"]
    weights = {name[2:]: torch.from_numpy(fixture[name]) for name in fixture.files if name.startswith("p/")}
    return nets.NCSNpp.from_official(weights, in_channels=2, out_channels=1, width=8, num_res_blocks=2, image_size=32,
                                     channel_mults=tuple(kwargs["ch_mult"]), attention_resolutions=(8,), version=1)


def crp_case(case):
    """(loss, network after its backward pass) of a case of crp.npz, e.g. bbed_N3_B2."""
    fixture, net = load("crp"), reference_network()
    process, N, B = case.split("_")
    sde = {"bbed": sgmse.BBED(c=0.52), "ouve": sgmse.OUVE()}[process]
    score = lambda x, y, t: -net(torch.cat([x, y], dim=1), t)
    loss = sgmse.crp_loss(score, *(torch.from_numpy(fixture[f"{key}_{B}"]) for key in "xy"), sde, int(N[1:]), 0.5)
    loss.backward()
    return loss.item(), net


@pytest.mark.parametrize("batch", ["B1", "B2"])
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("process", ["bbed", "ouve"])
def test_crp_loss_and_gradient_equal_reference(process, N, batch, monkeypatch):
    case, fixture = f"{process}_N{N}_{batch}", load("crp")
    left = replay(monkeypatch, fixture[f"{case}/draws"])
    loss, net = crp_case(case)
    assert next(left, None) is None                      # the prior and one draw a step, none after the last
    expected = json.loads(str(fixture["meta_json"]))["results"][case]
    assert loss == pytest.approx(expected["loss"], rel=1e-5)
    norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("trained", ["last", "random"])
def test_crp_gradient_reaches_one_call_alone(trained, monkeypatch):
    """The gradient is that of one Euler step from a fixed state: the calls before it carry none."""
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1))      # the second of three
    net, grads, seen = reference_network(), [], []

    def score(x, y, t):
        grads.append(torch.is_grad_enabled())
        assert not x.requires_grad
        seen.append((x, y, t))
        return -net(torch.cat([x, y], dim=1), t)

    x0, y = (torch.from_numpy(load("crp")[f"{key}_B2"]) for key in "xy")
    sde, gradients = sgmse.BBED(), []
    sgmse.crp_loss(score, x0, y, sde, 3, 0.5, trained).backward()
    gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert grads == ([False, False, True] if trained == "last" else [False, True])
    net.zero_grad()
    (x, _, t), step = seen[-1], {"last": 0.03, "random": 0.235}[trained]
    x_hat, _ = sgmse.reverse_step(lambda x, y, t: -net(torch.cat([x, y], dim=1), t), x, y, t[0].item(), step, sde)
    target = x0 if trained == "last" else sde.mean(x0, y, torch.tensor([0.03, 0.03]))
    (0.5 * (x_hat - target).abs() ** 2).sum((1, 2, 3)).mean().backward()
    for a, b in zip(gradients[0], (p.grad for p in net.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * b.abs().max().item())


def test_one_euler_step_is_the_closed_form():
    """x / (1 - t) - t y / (1 - t) + c k^2t t s, and its loss."""
    bin_ = lambda c: torch.full((1, 1, 1, 1), c, dtype=torch.complex128)
    sde, y, s = sgmse.BBED(c=0.52), bin_(2 - 1j), bin_(-1 + 0.5j)
    for t, *expected in ((0.3, 1.428571, -0.428571, 0.276763), (0.5, 2, -1, 0.676),
                         (0.7, 3.333333, -2.333333, 1.38696)):
        step = lambda x, y, s: sgmse.reverse_step(lambda *_: bin_(s), bin_(x), bin_(y), t, t, sde)[0].item()
        assert [step(1, 0, 0), step(0, 1, 0), step(0, 0, 1)] == pytest.approx(expected, abs=1e-5)
    sde_from_3 = type("From3", (sgmse.BBED,), {"prior": lambda self, y, t: bin_(3)})(c=0.52)
    loss = sgmse.crp_loss(lambda *_: s, bin_(1 + 1j), y, sde_from_3, N=1)
    assert loss.item() == pytest.approx(2.757610, abs=1e-6)
    assert sde.diffusion(0.03) ** 2 * 0.03 == pytest.approx(0.016520, abs=1e-6)


@pytest.mark.parametrize("process", [sgmse.OUVE, sgmse.BBED])
@pytest.mark.parametrize("N", [1, 3])
def test_correction_removes_the_known_bias_of_few_steps(process, N, monkeypatch):
    """With the exact score, one Euler step from y + std z ends at Y + (M - Y) a g^2 t / v, v = a^2 S^2 + std^2.

    A small network beside that score, trained with crp_loss, moves the mean to M: a bias of 0.71 (OUVE, N = 1) becomes
    0.01. Since the last call is a regression, the spread of the posterior goes too.
    """
    sde = process()
    exact, start = gaussian_score(sde), 0.5
    sampler = lambda score: lambda y: sgmse.euler_maruyama(score, y, sde, N, start)
    with monkeypatch.context() as patch:
        mean, variance = law(patch, sampler(exact), N)
    if N == 1:
        t = torch.tensor([start], dtype=torch.float64)
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        a, g = sde.mean(one, 0 * one, t).item(), sde.diffusion(start)
        v = a ** 2 * S ** 2 + sde.std(t).item() ** 2
        assert mean == pytest.approx(Y + (M - Y) * a * g ** 2 * start / v)
    bias = abs(mean - M)
    assert bias > 0.05                                   # something to correct

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))
    torch.nn.init.zeros_(net[2].weight)
    torch.nn.init.zeros_(net[2].bias)

    def corrected(x, y, t):
        inputs = torch.stack([x.real, x.imag, t[:, None, None, None].expand_as(x.real)], dim=-1)
        out = torch.view_as_complex(net(inputs.float()).contiguous())
        return exact(x, y, t) + out / sgmse.per_bin(sde.std(t)) ** 2

    y, opt = torch.full((1024, 1, 1, 1), Y), torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(400):
        x0 = M + S * torch.randn_like(y)
        loss = sgmse.crp_loss(corrected, x0, y, sde, N, start)
        opt.zero_grad()
        loss.backward()
        opt.param_groups[0]["lr"] = 0.01 * (1 - step / 400)
        opt.step()
    with torch.no_grad():
        ends = sampler(corrected)(torch.full((20000, 1, 1, 1), Y))
    assert abs(ends.mean().item() - M) < 0.05 * bias
    assert ends.std().item() ** 2 < 0.1 * variance


@pytest.mark.parametrize("N, start, trained", [(1, 0.5, "last"), (1, 0.1, "last"), (2, 0.9, "last"), (3, 0.3, "random"),
                                               (4, 0.5, "last"), (5, 0.9, "random")])
@pytest.mark.parametrize("process", ["bbed", "ouve"])
def test_crp_evaluates_n_times_and_reaches_every_weight(process, N, start, trained, monkeypatch):
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(N - 1))
    model = tiny(sde=process, crp=trained, N=N, start=start, num_frames=16).train()
    first, call = [], model.score
    monkeypatch.setattr(model, "score", lambda x, y, t: first.append((x - y, t)) or call(x, y, t))
    model.objective_loss = model.choose_loss()
    loss, _ = model.loss((torch.randn(2, model.num_samples) * 0.1, torch.randn(2, model.num_samples) * 0.1))
    loss.backward()
    assert loss.isfinite() and model.calls == N
    assert first[0][0].std().item() == pytest.approx(model.sde.std(torch.tensor([start])).item(), rel=0.05)
    assert [t[0].item() for _, t in first] == pytest.approx(sgmse.reverse_grid(model.sde, N, start)[0])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_crp_without_its_sampler_or_a_first_stage_is_refused():
    with pytest.raises(ValueError, match="--sampler em"):
        tiny(sampler="pc", crp="last").prepare(fresh=False)
    with pytest.raises(ValueError, match="--init"):
        tiny(crp="last").prepare(fresh=True)
    tiny(crp="last").prepare(fresh=False)
    assert tiny(sampler="pc", crp="last").enhance(torch.randn(1, 4000) * 0.1).isfinite().all()    # other uses are free


def test_crp_in_half_precision_keeps_no_cached_weights(tmp_path, monkeypatch):
    """Copies that autocast keeps from the sampling calls have no gradient: on some torch most weights would get none."""
    model, kept = tiny(sde="bbed", crp="last", N=2, num_frames=16, pesq_weight=0), []
    score = model.score
    monkeypatch.setattr(model, "score", lambda *args: score(*args))
    unet = model.net.unet
    monkeypatch.setattr(model.net, "unet", lambda *args: kept.append(torch.is_autocast_cache_enabled()) or unet(*args))
    waves = torch.randn(2, 2, model.num_samples) * 0.1
    config = train.TrainConfig(out=str(tmp_path), steps=1, precision="bf16")
    for _, parts in train.fit(model, itertools.repeat(tuple(waves)), config):
        assert parts["gradient"].isfinite()
    assert kept and not any(kept)


# ---- the model ----

@pytest.mark.parametrize("changes, message", [
    (dict(N=0), "--N"), (dict(start=0.0), "--start"), (dict(start=0.02), "t_eps 0.03"), (dict(start=1.1), "--start"),
    (dict(spacing=0.0), "--spacing"), (dict(t_eps=0.0), "--t-eps"),
    (dict(sampler="bridge_ode"), "--sampler"), (dict(sampler="bridge_sde"), "ouve"),
    (dict(sde="sbve"), "--sampler"), (dict(sde="sbve", sampler="bridge_ode"), "data_prediction"),
    (dict(objective="denoiser"), "--version 2"), (dict(c_skip="edm"), "--version 2"), (dict(c_in="edm"), "--version 2"),
    (dict(c_out="sigma"), "--version 2"), (dict(network_scaling="1/t"), "--version 2")])
def test_constants_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sgmse.Config(**changes)


def test_contradictory_options_give_one_line(capsys):
    for flags in ("--N 0", "--start 0", "--start 0.01", "--sampler bridge_ode"):
        assert run_command(sgmse.ScoreSDE, "enhance", *flags.split()) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and flags.split()[0] in message


def test_one_step_of_the_flow_goes_from_its_start_to_0():
    """As euler_maruyama with one step, not as if the start were at t_eps."""
    y, sde = torch.randn(2, 1, 4, 3, dtype=torch.complex128), sgmse.OUVE()
    outs = []
    for sampler in (sgmse.probability_flow, sgmse.euler_maruyama):
        torch.manual_seed(1)
        outs.append(sampler(gaussian_score(sde), y, sde, 1, start=0.5))
    torch.testing.assert_close(*outs)


def tiny(**changes):
    torch.manual_seed(0)
    return lively(sgmse.ScoreSDE(sgmse.Config(**sgmse.PRESETS["tiny"] | changes))).eval()


SAMPLERS = {"pc": 10, "em": 5, "ode": 9, "one_step": 1, "bridge_ode": 5, "bridge_sde": 5}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("sde", ["ouve", "bbed", "sbve"])
def test_every_sampler_enhances_with_the_promised_nfe(sampler, sde):
    if sampler.startswith("bridge") != (sde == "sbve"):
        pytest.skip("the bridge has samplers of its own")
    model = tiny(sampler=sampler, sde=sde, objective="data_prediction" if sde == "sbve" else "precond_denoiser")
    wave = torch.randn(2, 5003) * 0.1
    out = model.enhance(wave)
    assert out.shape == wave.shape and out.isfinite().all()
    assert model.calls == SAMPLERS[sampler]


@pytest.mark.parametrize("objective, weighting", [("score_matching", "1"), ("denoiser", "1"), ("denoiser", "sigma^2"),
                                                  ("precond_denoiser", "edm"), ("data_prediction", "1")])
def test_every_objective_reaches_every_weight(objective, weighting):
    model = tiny(objective=objective, weighting=weighting).train()
    loss, _ = model.loss((torch.randn(3, model.num_samples) * 0.1, torch.randn(3, model.num_samples) * 0.1))
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("sde, T", [("ouve", 1.0), ("bbed", 0.999)])
def test_each_example_has_a_time_from_t_eps_to_T(sde, T, monkeypatch):
    model, seen = tiny(sde=sde, objective="precond_denoiser", num_frames=16, t_eps=0.1), []
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.tensor([0.0, 0.5, 1.0]).reshape(shape))
    model.net.register_forward_hook(lambda net, args, out: seen.append(args[1]))
    model.loss(tuple(torch.randn(2, 3, model.num_samples) * 0.1))
    assert seen[0].tolist() == pytest.approx([0.1, (0.1 + T) / 2, T])


BRIDGE = dict(sde="sbve", c=0.4, t_eps=1e-4, sampler="bridge_ode")


def test_batch_equals_one_by_one():
    model = tiny(**BRIDGE)                               # draws no noise
    wave = torch.randn(3, 4000) * 0.1
    together = model.enhance(wave)
    torch.testing.assert_close(together, torch.cat([model.enhance(w[None]) for w in wave]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("gain", [0.01, 0.1, 10])
def test_gain_passes_through(gain):
    model, wave = tiny(), torch.randn(1, 4000) * 0.05
    torch.manual_seed(1)
    reference = model.enhance(wave)
    torch.manual_seed(1)
    assert (model.enhance(gain * wave) / gain - reference).norm() < 1e-3 * reference.norm()


def test_silence_stays_silence():
    assert tiny().enhance(torch.zeros(1, 4000)).abs().max() < 1e-4


def test_same_seed_same_wave_other_seed_other_wave():
    model, wave = tiny(), torch.randn(1, 4000) * 0.1
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(model.enhance(wave))
    assert torch.equal(outs[0], outs[1]) and not torch.allclose(outs[0], outs[2])


# ---- released checkpoints ----

OFFICIAL = dict(backbone="ncsnpp", sde="ouve", theta=1.5, sigma_min=0.05, sigma_max=0.5, N=30, t_eps=0.03, lr=1e-4,
                loss_type="mse", ch_mult=[1, 1, 2], num_res_blocks=2, attn_resolutions=[8], nf=8, n_fft=62,
                hop_length=16, num_frames=32, spec_factor=0.15, spec_abs_exponent=0.5, window="hann",
                transform_type="exponent", normalize="noisy", batch_size=8, base_dir="/somewhere")


def official_weights():
    fixture = load("net_crp_ncsnpp")
    return {name: torch.from_numpy(fixture[f"p/{name}"]) for name in json.loads(str(fixture["state_names_json"]))}


@pytest.mark.parametrize("sde, theirs, process", [
    ("ouve", dict(theta=2.0), sgmse.OUVE(theta=2.0)),
    ("bbed", dict(k=2.6, theta=0.52, sde_n=30), sgmse.BBED(c=0.52)),
    ("bbve", dict(sigma_min=1.0, sigma_max=2.6, theta=0.51), sgmse.BBED(c=0.51)),
    ("bbve", dict(sigma_min=0.5, sigma_max=1.5, theta=0.4), sgmse.BBED(k=3.0, c=0.1))])
def test_released_checkpoint_gives_the_averaged_network(tmp_path, sde, theirs, process):
    path, weights = tmp_path / "epoch=115.ckpt", official_weights()
    official_checkpoint(path, OFFICIAL | dict(sde=sde) | theirs, weights)
    model = train.load_checkpoint(path, sgmse.ScoreSDE)
    assert dataclasses.astuple(model.sde) == pytest.approx(dataclasses.astuple(process)) and type(model.sde) is type(process)
    assert model.config.N == 30
    fixture = load("net_crp_ncsnpp")
    x, y, t = (torch.from_numpy(fixture[key]) for key in ("x0", "y0", "t0"))
    with torch.no_grad():
        score = model(x, y, t)
    expected = -torch.from_numpy(fixture["out0"])
    assert (score - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("theirs", [
    dict(backbone="edm2"), dict(backbone="ncsnpp_48k"), dict(sde="vp"), dict(sr=48000), dict(T_sampling=0.5),
    dict(output_scale="sigma"), dict(window="sqrthann"), dict(transform_type="log"), dict(normalize="clean"),
    dict(centered=False)])
def test_uncovered_released_checkpoint_names_key_and_file(theirs, tmp_path):
    path, (key, value) = tmp_path / "m4.ckpt", *theirs.items()
    official_checkpoint(path, OFFICIAL | theirs, official_weights())
    with pytest.raises(train.CheckpointError, match=f"m4.ckpt: {key} {value} is not covered"):
        train.load_checkpoint(path, sgmse.ScoreSDE)


def test_released_checkpoint_of_unknown_scaling_is_refused(tmp_path):
    path = tmp_path / "m.ckpt"
    official_checkpoint(path, OFFICIAL | dict(backbone="ncsnpp_v2", loss_type="score_matching", c_skip="1"),
                        official_weights())
    with pytest.raises(train.CheckpointError, match="m.ckpt: --c-skip: expected one of .*; got 1"):
        train.load_checkpoint(path, sgmse.ScoreSDE)


@pytest.mark.parametrize("theirs, ours", [
    (dict(N=None, sde_n=1000), dict(N=30, sampler="pc", start=1.0)),       # before October 2024
    (dict(N=50, sde_n=1000), dict(N=50)),
    (dict(sde="bbed", k=2.6, theta=0.52, sde_n=1000, N=None), dict(N=30, c=0.52)),
    (dict(sde="bbed", k=2.6, theta=0.52, sde_n=30, N=None, output_scale="time", inference_N=2, inference_start=0.5),
     dict(sampler="em", N=2, start=0.5))])                                 # CRP
def test_released_checkpoint_says_how_it_is_sampled(theirs, ours, tmp_path):
    path = tmp_path / "epoch=1.ckpt"
    official_checkpoint(path, OFFICIAL | theirs, official_weights())
    config = train.load_checkpoint(path, sgmse.ScoreSDE).config
    assert {name: getattr(config, name) for name in ours} == ours


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_malicious_checkpoint_runs_nothing(tmp_path):
    path, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    official_checkpoint(path, OFFICIAL, official_weights(), Payload(marker))
    with pytest.raises(train.CheckpointError):
        train.load_checkpoint(path, sgmse.ScoreSDE)
    assert not marker.exists()
