"""meanflow.py against the reference system's numbers, its closed forms in a Gaussian world, and door to door."""

import functools
import itertools
import json
import math

import pytest
import torch

import data
import losses
import meanflow
import metrics
import nets
import train
from helpers import lively, load, replay, run_command

M, S, S_HAT, SIGMA = 0.5, 0.3, 0.8, 0.487                # of the Gaussian world: x0 ~ N(M, S^2)
INF = float("inf")


def bins(*values):
    """One bin an example."""
    return torch.tensor(values, dtype=torch.complex128)[:, None, None, None]


def times(*t):
    return torch.tensor(t, dtype=torch.float64)


# ---- the Gaussian world ----

def marginal(t):
    """Mean and variance of x_t."""
    return (1 - t) * M + t * S_HAT, (1 - t) ** 2 * S ** 2 + t ** 2 * SIGMA ** 2


def instantaneous(x, r, t):
    """E[v | x_t]."""
    t = meanflow.per_bin(t)
    mean, variance = marginal(t)
    return S_HAT - M + (t * SIGMA ** 2 - (1 - t) * S ** 2) / variance * (x - mean)


def average(x, r, t):
    """What c = 1 stands for: the mean of the velocity over [r, t] along the flow."""
    r, t = meanflow.per_bin(r), meanflow.per_bin(t)
    mean, variance = marginal(t)
    return S_HAT - M + (1 - (marginal(r)[1] / variance).sqrt()) / (t - r) * (x - mean)


def half(x, r, t, n=2000):
    """What c = 1/2 converges to; its integral by the trapezoid rule."""
    r, t = meanflow.per_bin(r), meanflow.per_bin(t)
    mean, variance = marginal(t)
    steps = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    integral = torch.trapezoid(marginal(r + (t - r) * steps)[1].sqrt(), steps, dim=-1)[..., None]
    return S_HAT - M + 2 / (t - r) * (1 - integral / variance.sqrt()) * (x - mean)


# x, r, t, v, u of c = 1, du/dt of it, u of c = 1/2
TABLE = [(1.287, 0.00, 1.0, 0.787000, 0.487000, 0.300000, 0.628134),
         (1.287, 0.03, 1.0, 0.787000, 0.501684, 0.294140, 0.636540),
         (0.313, 0.03, 1.0, -0.187000, 0.098316, -0.294140, -0.036540),
         (0.900, 0.20, 0.7, 0.512476, 0.400846, 0.223260, 0.445826),
         (0.400, 0.50, 0.9, -0.091941, -0.022841, -0.172750, -0.051324)]


@pytest.mark.parametrize("x, r, t, v, u, dudt, u_half", TABLE)
def test_fixed_points_are_those_worked_out(x, r, t, v, u, dudt, u_half):
    """Put the velocity's mean for v, as the regression does: the target of u is u itself, for c = 1 and for c = 1/2."""
    x, r, t = bins(x), times(r), times(t)
    velocity = instantaneous(x, r, t)
    assert velocity.item() == pytest.approx(v, abs=1e-6)
    assert average(x, r, t).item() == pytest.approx(u, abs=1e-6)
    assert half(x, r, t).item() == pytest.approx(u_half, abs=1e-6)
    assert meanflow.exact_derivative(average, x, r, t, velocity).item() == pytest.approx(dudt, abs=1e-6)
    for function, c, tolerance in ((average, 1.0, 1e-9), (half, 0.5, 1e-6)):
        target = meanflow.average_velocity_target(function, x, r, t, velocity, c)
        assert abs(target - function(x, r, t)).item() < tolerance
        other = meanflow.average_velocity_target(function, x, r, t, velocity, 1.5 - c)
        assert abs(other - function(x, r, t)).item() > 0.02


def test_one_jump_by_the_average_velocity_is_the_whole_flow():
    """The same point by one jump, by three, and by a thousand small Euler steps."""
    s_hat, z = bins(S_HAT), bins(1)                      # x_1 = 1.287
    for N in (1, 3):
        assert meanflow.sample(average, s_hat, z, N).item() == pytest.approx(0.800367, abs=1e-6)
    euler = meanflow.sample(instantaneous, s_hat, z, 1000, average=False).item()
    assert euler == pytest.approx(0.800367, abs=1e-3)
    assert meanflow.sample(half, s_hat, z).item() == pytest.approx(0.669556, abs=1e-6)
    assert meanflow.sample(instantaneous, s_hat, z).item() == pytest.approx(0.523610, abs=1e-6)


def test_instantaneous_euler_steps_converge_at_first_order():
    end = lambda N: meanflow.sample(instantaneous, bins(S_HAT), bins(1), N, average=False).item()
    errors = [abs(end(N) - 0.800367) for N in (25, 50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.2)


def test_composed_jumps_have_the_average_velocity():
    """Worked out: x_s, both parts and the whole; the exact average velocity is a fixed point wherever s lies."""
    x, r, t, fraction = bins(1.287), times(0.03), times(1.0), times((0.4 - 0.03) / 0.97)
    first = average(x, times(0.4), t)
    assert first.item() == pytest.approx(0.6696163930, abs=1e-8)
    x_s = x - 0.6 * first
    assert x_s.item() == pytest.approx(0.8852301642, abs=1e-8)
    assert average(x_s, r, times(0.4)).item() == pytest.approx(0.2293611860, abs=1e-8)
    assert meanflow.composed_target(average, x, r, t, fraction).item() == pytest.approx(0.5016839945, abs=1e-8)
    for share in (0.2, 0.7):
        assert meanflow.composed_target(average, x, r, t, times(share)).item() == pytest.approx(0.5016839945, abs=1e-8)
    assert abs(meanflow.composed_target(half, x, r, t, fraction) - half(x, r, t)).item() > 0.01
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert not meanflow.composed_target(lambda x, r, t: slope * x, x, r, t).requires_grad


def test_flow_matching_takes_euler_steps():
    for N, end in ((1, 0.523610), (5, 0.732761), (30, 0.788030)):
        out = meanflow.sample(instantaneous, bins(S_HAT), bins(1), N, average=False)
        assert out.item() == pytest.approx(end, abs=1e-6)


def test_jumps_take_the_interval_and_euler_steps_none():
    seen = []

    def u(x, r, t):
        seen.append((r.item(), t.item()))
        return 0 * x

    for steps_by_average in (True, False):
        out = meanflow.sample(u, bins(S_HAT), bins(1), 2, 0.2, average=steps_by_average)
        assert out.item() == pytest.approx(S_HAT + SIGMA)
    assert sum(seen, ()) == pytest.approx((0.6, 1, 0.2, 0.6, 1, 1, 0.6, 0.6))              # r, t of each call


def test_floor_of_the_velocity_loss():
    """The variance of v that x_t leaves open, halved by the loss."""
    torch.manual_seed(0)
    x0, z = torch.randn(2, 50000, 1, 1, 1, dtype=torch.complex128) * torch.tensor([S, 1])[:, None, None, None, None]
    x0, s_hat = M + x0, torch.full_like(x0, S_HAT)
    for time, floor in ((0.03, 0.251432), (0.3, 0.326154), (0.7, 0.171706), (1.0, 0.090000)):
        t = torch.full((len(x0),), time, dtype=torch.float64)
        error = instantaneous(meanflow.path(x0, s_hat, t, z), t, t) - meanflow.conditional_velocity(x0, s_hat, z)
        assert 2 * losses.half_square(error).item() == pytest.approx(floor, rel=0.03)


class LearnedSlope(torch.nn.Module):
    """u = E[v] + g(r, t) (x - E x_t) with a learned g, which holds every fixed point of this world."""

    def __init__(self):
        super().__init__()
        layer, tanh = torch.nn.Linear, torch.nn.Tanh()
        self.g = torch.nn.Sequential(layer(2, 24), tanh, layer(24, 24), tanh, layer(24, 1))

    def forward(self, x, r, t):
        g = self.g(torch.stack([2 * t - 1, 2 * (t - r) - 1], dim=1))
        return S_HAT - M + meanflow.per_bin(g[:, 0]) * (x - meanflow.per_bin(marginal(t)[0]))


EXACT = dict(c=0.5, derivative=meanflow.difference_derivative, clip=5.0)


@pytest.mark.parametrize("setting, column, std", [("exact", 6, 0.160556), ("principled", 4, 0.291367)])
def test_training_converges_to_the_fixed_point_of_its_c(setting, column, std):
    """The published constants end between the flow and the posterior mean, c = 1 on the flow, with the data's std."""
    torch.manual_seed(0)
    u, n, updates = LearnedSlope(), 2048, 250
    opt = torch.optim.Adam(u.parameters())
    for update in range(updates):
        opt.param_groups[0]["lr"] = 0.03 * min(1, 2 * (1 - update / updates))
        s_hat = torch.full((n, 1, 1, 1), S_HAT + 0j)
        x0, z = M + S * torch.randn_like(s_hat), torch.randn_like(s_hat)
        r, t = meanflow.sample_times(n)
        xt, v = meanflow.path(x0, s_hat, t, z), meanflow.conditional_velocity(x0, s_hat, z)
        options = EXACT if setting == "exact" else {}
        target = meanflow.average_velocity_target(u, xt, r, t, v, **options)
        loss = losses.half_square(u(xt, t, t) - v) + meanflow.displacement_loss(u(xt, r, t), target, r, t)
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        for row in TABLE[1:]:                            # the first has r < t_eps, which is not trained
            x, r, t = (torch.tensor([value]) for value in row[:3])
            assert u(x[:, None, None, None] + 0j, r, t).item().real == pytest.approx(row[column], abs=0.03)
        z = torch.randn(20000, 1, 1, 1, dtype=torch.complex64)
        ends = meanflow.sample(u, torch.full_like(z, S_HAT), z)
    assert ends.mean().item().real == pytest.approx(0.509, abs=0.01)
    assert ends.std().item() == pytest.approx(std, abs=0.015)


@pytest.mark.parametrize("spread, norm, kept",
                         [(0.02, 2.6, 1), (0.05, 9.8, 0.51), (0.1, 22.7, 0.22), (0.3, 75.3, 0.066)])
def test_published_clip_leaves_a_known_share_of_the_correction(spread, norm, kept, monkeypatch):
    """On 256 x 256 bins of posterior std `spread` the clip of 5 takes most of du/dt: the target leans towards v."""
    monkeypatch.setitem(globals(), "S", spread)
    torch.manual_seed(0)
    x, r, t = S_HAT + SIGMA * torch.randn(1, 1, 256, 256, dtype=torch.complex128), times(0.03), times(1)
    v = instantaneous(x, r, t)
    dudt = meanflow.exact_derivative(average, x, r, t, v)
    assert dudt.norm().item() == pytest.approx(norm, rel=0.02)
    target = meanflow.average_velocity_target(average, x, r, t, v, clip=5.0)
    torch.testing.assert_close(v - target, (5 / dudt.norm()).clamp(max=1) * 0.97 * dudt)
    assert ((v - target).norm() / (0.97 * dudt.norm())).item() == pytest.approx(kept, rel=0.02)


def test_improved_form_has_the_same_optimum_and_a_calmer_target():
    """Along its own velocity the target of u varies as v does; along v, 1 - (t - r) du/dx times as much."""
    torch.manual_seed(0)
    z = torch.randn(20000, 1, 1, 1, dtype=torch.complex128)
    x, r, t = bins(1.287).repeat(len(z), 1, 1, 1), times(0.03).repeat(len(z)), times(1).repeat(len(z))
    v = instantaneous(x, r, t) + 0.3 * z                 # at t = 1 the std of v that x_t leaves open is 0.3
    targets = [meanflow.average_velocity_target(average, x, r, t, v, along=along)
               for along in (None, instantaneous(x, t, t))]
    assert all(abs(target.mean().item() - 0.501684) < 0.01 for target in targets)
    assert targets[1].std().item() == pytest.approx(0.3, rel=0.02)
    slope = (average(x[:1] + 1, r[:1], t[:1]) - average(x[:1], r[:1], t[:1])).item().real     # du/dx
    assert targets[0].std().item() == pytest.approx(0.3 * abs(1 - 0.97 * slope), rel=0.02)


# ---- other closed forms ----

def test_paths_are_straight():
    """Walking back along v gives the point of the same path at r, not another."""
    x0, s_hat, z = bins(0.5), bins(0.8), bins(1)
    xt, v = meanflow.path(x0, s_hat, times(0.8), z), meanflow.conditional_velocity(x0, s_hat, z)
    assert (xt.item(), v.item()) == pytest.approx((1.1296, 0.787))
    assert (xt - 0.5 * v).item() == pytest.approx(0.7361)
    at_r = meanflow.path(x0, s_hat, times(0.3), z)
    torch.testing.assert_close(at_r, xt - 0.5 * v)


@pytest.mark.parametrize("time", [0.03, 0.4, 1.0])
def test_preconditioning_is_the_best_linear_estimate(time):
    """Regression of v on x_t - s_hat over many paths: its slope is c_skip, the std of its error c_out; 1 / c_in that of
    x_t - s_hat."""
    torch.manual_seed(0)
    d, z = torch.randn(2, 100000, 1, 1, 1, dtype=torch.complex128)
    s_hat, t = torch.full_like(d, S_HAT), torch.full((len(d),), time, dtype=torch.float64)
    x0 = s_hat + S * d
    x = meanflow.path(x0, s_hat, t, z, SIGMA) - s_hat
    v = meanflow.conditional_velocity(x0, s_hat, z, SIGMA)
    slope = ((v * x.conj()).mean() / (x * x.conj()).mean()).real
    c_in, c_skip, c_out = meanflow.preconditioning(t[:1], S, SIGMA)
    assert 1 / c_in.item() == pytest.approx(x.std().item(), rel=0.01)
    assert c_skip.item() == pytest.approx(slope.item(), abs=0.01)
    assert c_out.item() == pytest.approx((v - slope * x).std().item(), rel=0.01)


def test_preconditioning_is_the_mean_velocity_of_a_gaussian(monkeypatch):
    monkeypatch.setitem(globals(), "M", S_HAT)           # x0 - s_hat has mean 0
    x, t = bins(1.287, 0.313, 0.9), times(1, 0.5, 0.03)
    _, c_skip, _ = meanflow.preconditioning(t, S)
    torch.testing.assert_close(c_skip * (x - S_HAT), instantaneous(x, t, t))


def test_one_step_with_the_perfect_velocity_has_a_known_end():
    x0, s_hat, z = bins(0.5), bins(0.8), bins(1 - 2j)
    end = meanflow.sample(lambda x, r, t: meanflow.conditional_velocity(x0, s_hat, z), s_hat, z)
    torch.testing.assert_close(end, 0.97 * x0 + 0.03 * s_hat + 0.03 * 0.487 * z)


@pytest.mark.parametrize("derivative", [meanflow.exact_derivative, meanflow.difference_derivative])
@pytest.mark.parametrize("c, target, square, weighted",
                         [(1.0, 1.55, 0.5408, 0.1352), (0.5, 1.775, 0.8001125, 0.200028)])
def test_linear_network_has_known_target_and_losses(derivative, c, target, square, weighted):
    weights = times(0.5, 0.2, -0.3).requires_grad_()
    u = lambda x, r, t: weights[0] * x + meanflow.per_bin(weights[1] * t + weights[2] * (t - r))
    x, r, t, v = bins(1), times(0.3), times(0.8), bins(2)
    assert derivative(u, x, r, t, v).item() == pytest.approx(0.9)
    u_target = meanflow.average_velocity_target(u, x, r, t, v, c, derivative)
    assert u_target.item() == pytest.approx(target) and not u_target.requires_grad
    assert losses.half_square(u(x, r, t) - u_target).item() == pytest.approx(square)
    assert meanflow.displacement_loss(u(x, r, t), u_target, r, t).item() == pytest.approx(weighted, abs=1e-6)


def test_difference_takes_each_example_s_own_step():
    """Published: 1e-3 of the mean magnitudes of x and v together, 1e-9 at least; along v, and as far in time."""
    seen = []
    u = lambda x, r, t: seen.append((x, r, t)) or x
    x, v = bins(3, 0.5, 0) * torch.tensor([1, 3j]), bins(2j, 0.5, 0).expand(3, 1, 1, 2)       # (3, 1, 1, 2)
    r, t = times(0.1, 0.2, 0.3), times(0.5, 0.6, 0.7)
    meanflow.difference_derivative(u, x, r, t, v)
    step = times(8e-3, 1.5e-3, 1e-9)
    for sign, (at_x, at_r, at_t) in zip((1, -1), seen):
        torch.testing.assert_close(at_x, x + sign * meanflow.per_bin(step) * v)
        torch.testing.assert_close(at_t, t + sign * step, rtol=0, atol=1e-12)
        assert torch.equal(at_r, r)


def test_displacement_loss_sums_bins_and_averages_the_batch():
    """On three examples of different intervals."""
    u, target = torch.ones(3, 1, 2, 5) + 0j, torch.full((3, 1, 2, 5), 0.5 - 0.5j)
    t = torch.tensor([1.0, 1.0, 0.7])
    loss = meanflow.displacement_loss(u, target, torch.tensor([0.03, 0.5, 0.7]), t)
    assert loss.item() == pytest.approx((0.235225 + 0.25 * 0.25 + 0) * 10 / 3)


def test_clip_bounds_the_norm_of_each_example():
    x = torch.stack([torch.full((1, 256, 256), c, dtype=torch.complex128) for c in (0.1, 0.01j, 0)])
    clipped = meanflow.clip_norm(x, 5.0)
    assert clipped[0, 0, 0, 0].item() == pytest.approx(0.019531, abs=1e-6)
    torch.testing.assert_close(clipped[1:], x[1:])
    torch.testing.assert_close(meanflow.clip_norm(x, INF), x)


def test_schedules_have_known_values():
    """At epochs of 100."""
    w = [meanflow.average_weight(epoch / 100) for epoch in (0, 9, 10, 25, 50, 100)]
    assert w == pytest.approx([0, 0.045, 0.05, 0.125, 0.25, 0.25]) and w[1] < 0.05 <= w[2]
    gamma = [meanflow.interval_exponent(epoch / 100) for epoch in (0, 5, 10, 25, 35, 70, 100)]
    assert gamma == pytest.approx([8, 7.5, 7, 5.5, 4.5, 1, 1])


def test_sampled_times_have_known_moments():
    torch.manual_seed(0)
    for gamma, first, second in ((7, 0.109125, 0.056454), (1, 0.4365, 0.282270)):
        r, t = meanflow.sample_times(40000, gamma)
        assert (r <= t).all() and r.min() >= 0.03 - 1e-6 and t.max() <= 1
        share = (t - r) / (t - 0.03).clamp(min=1e-6) * 0.97                # E[1 - r | t = 1], at every t
        assert share.mean().item() == pytest.approx(first, rel=0.04)
        assert share.square().mean().item() == pytest.approx(second, rel=0.04)
        assert t.mean().item() == pytest.approx(0.515, abs=0.01)
    assert (r == t).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_si_sdr_loss_has_a_known_value_and_is_the_metric():
    """The metric keeps the mean."""
    clean, estimate = torch.tensor([[1.0, 2, 3, 5]]), torch.tensor([[1.0, 2, 3, 4]])
    assert losses.si_sdr_loss(clean, estimate).item() == pytest.approx(-14.497354, abs=1e-4)
    torch.manual_seed(0)
    clean = torch.randn(3, 8000, dtype=torch.float64)
    estimate = 0.7 * clean + 0.3 * torch.randn_like(clean) + 0.5
    expected = [metrics.si_sdr(c - c.mean(), e - e.mean()) for c, e in zip(clean, estimate)]
    assert (-losses.si_sdr_loss(clean, estimate)).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("level", [0.0, 0.5])            # a constant is silence too
def test_silent_reference_has_no_si_sdr_loss(level):
    clean = torch.randn(2, 8000)
    clean[0] = level
    estimate = torch.randn(2, 8000).requires_grad_()
    loss = losses.si_sdr_loss(clean, estimate)
    loss.sum().backward()
    assert loss[0] == 0 and not estimate.grad[0].any() and estimate.grad[1].abs().sum() > 0
    quiet = losses.si_sdr_loss(1e-4 * clean[1:], estimate[1:])
    torch.testing.assert_close(quiet, loss[1:], atol=0.1, rtol=0)          # quiet is not silent


def test_sa_sdr_takes_and_returns_the_best_permutation():
    clean = torch.tensor([[[1.0, 0, -1, 0], [0, 2, 0, -2]]])
    estimate = torch.tensor([[[0.9, 0.1, -1, 0], [0, 1.8, 0.1, -2]]])
    for given in (estimate, estimate.flip(1)):
        loss, aligned = losses.sa_sdr_loss(clean, given)
        assert loss.item() == pytest.approx(-21.549020, abs=1e-4)
        torch.testing.assert_close(aligned, estimate)
    torch.manual_seed(0)
    clean = torch.randn(4, 3, 50)                        # each example its own order; one speaker is silent
    clean[:, 1] = 0
    orders = torch.stack([torch.randperm(3) for _ in clean])
    shuffled = torch.stack([(c + 0.01 * torch.randn_like(c))[order] for c, order in zip(clean, orders)])
    loss, aligned = losses.sa_sdr_loss(clean, shuffled)
    assert loss.shape == (4,) and (loss < -35).all()
    assert (aligned - clean).abs().max() < 0.1


# ---- the reference system ----

@functools.cache
def reference():
    return load("meanflowse"), json.loads(str(load("meanflowse")["meta_json"]))["results"]


def get(key):
    return torch.from_numpy(reference()[0][key])


@pytest.fixture
def model():
    """MeanFlowSE with the reference's random weights."""
    config = meanflow.Config(**meanflow.PRESETS["meanflowse"] | dict(
        n_fft=62, hop_length=16, width=8, channel_mults=(1, 1, 2), num_res_blocks=2, attention_resolutions=(8,)))
    model = meanflow.MeanFlowCorrector(config)
    fixture = load("net_meanflowse_ncsnpp")
    weights = {name[2:]: torch.from_numpy(fixture[name]) for name in fixture.files if name.startswith("p/")}
    model.net = nets.NCSNpp.from_official(weights, **model.net.config)
    return model


def velocity_of(model, y):
    return lambda x, r, t: model(x, y, r, t)


def replay_uniform(monkeypatch):
    """The reference's draws of t, of the interval and of its absence, in that order."""
    draws = iter([get("u_t"), get("u_r"), get("u_mask")])
    monkeypatch.setattr(torch, "rand", lambda n, device=None: next(draws))


def test_times_path_and_velocity_equal_reference(monkeypatch):
    replay_uniform(monkeypatch)
    r, t = meanflow.sample_times(2)
    torch.testing.assert_close(t, get("t"))
    torch.testing.assert_close(r, get("r"))
    torch.testing.assert_close(meanflow.path(get("x1"), get("y"), t, get("z")), get("xt"))
    torch.testing.assert_close(meanflow.conditional_velocity(get("x1"), get("y"), get("z")), get("condVF"))


@pytest.mark.parametrize("kind, derivative, tolerance", [("autograd", meanflow.exact_derivative, 1e-5),
                                                         ("fd", meanflow.difference_derivative, 2e-3)])
def test_derivative_and_target_equal_reference(kind, derivative, tolerance, model):
    """The tolerance of the difference is float32's: the reference's own is 4.6e-3 from the exact derivative."""
    u, (xt, r, t, v) = velocity_of(model, get("y")), map(get, ("xt", "r", "t", "condVF"))
    far = lambda a, b: ((a - b).norm() / b.norm()).item()
    with torch.no_grad():
        dudt = derivative(u, xt, r, t, v)
    assert far(dudt, get(f"jvp/{kind}_clip1e+09")) < tolerance
    assert far(meanflow.clip_norm(dudt, 5.0), get(f"jvp/{kind}_clip5")) < tolerance
    for clip, name in ((INF, "1e+09"), (5.0, "5")):
        target = meanflow.average_velocity_target(u, xt, r, t, v, 0.5, derivative, clip)
        assert far(target, get(f"u_tgt/{kind}_clip{name}")) < tolerance


@pytest.mark.parametrize("case, changes", [
    ("mfse_autograd_clip5", dict(derivative="exact")), ("mfse_fd_clip5", {}),
    ("mfse_autograd_clip1e+09", dict(derivative="exact", derivative_clip=0.0)),
    ("mfse_autograd_coef1", dict(derivative="exact", c=1.0))])
def test_loss_equals_reference(case, changes, model, monkeypatch):
    expected = reference()[1][case]
    expected = expected if isinstance(expected, dict) else dict(loss=expected)
    model.config = meanflow.Config(**vars(model.config) | changes)
    replay_uniform(monkeypatch)
    replay(monkeypatch, [get("z")])
    loss, parts = model.flow_loss(get("x1"), get("y"))
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert parts["velocity"].item() == pytest.approx(reference()[1]["cfm_only"], rel=1e-5)
    if "grad_norm" in expected and case != "mfse_fd_clip5":                # one backward pass for each kind of target
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("name, N, t_end, average", [
    ("euler_mf_N1_eps0.0", 1, 0.0, True), ("euler_mf_N1_eps0.03", 1, 0.03, True),
    ("euler_mf_N5_eps0.03", 5, 0.03, True), ("euler_N1_eps0.0", 1, 0.0, False), ("euler_N5_eps0.03", 5, 0.03, False)])
def test_inference_equals_reference(name, N, t_end, average, model):
    y = get("y")[:1]
    with torch.no_grad():
        out = meanflow.sample(velocity_of(model, y), y, get("solver/prior_z"), N, t_end, average=average)
    torch.testing.assert_close(out, get(f"solver/{name}/out"), atol=2e-5, rtol=1e-4)


# ---- the model ----

run = functools.partial(run_command, meanflow.MeanFlowCorrector)


def tiny(**changes):
    torch.manual_seed(0)
    preset = meanflow.PRESETS["tiny"] | dict(num_frames=24, separator_seconds=0.5)
    return lively(meanflow.MeanFlowCorrector(meanflow.Config(**preset | changes)))


def some_batch(model, n=2):
    torch.manual_seed(2)
    shape = lambda channels: (n, model.num_samples) if model.separator is None else (n, channels, model.num_samples)
    clean, mixture = (torch.rand(shape(channels)) - 0.5 for channels in (model.config.num_speakers,
                                                                         model.config.num_mics))
    return clean, mixture


@pytest.mark.parametrize("changes, expected", [(dict(), 1), (dict(N=3), 3), (dict(separator="train"), 1),
                                               (dict(separator="frozen"), 2)])
def test_evaluations_are_those_of_the_networks(changes, expected):
    model = tiny(**changes).eval()
    with torch.inference_mode():
        model.enhance(0.1 * torch.randn(1, 8000))
    assert model.evaluations() == model.calls == expected


def test_networks_have_known_sizes():
    """4 real channels for the noisy speech alone, 12 for s_hat beside four microphones."""
    for changes, channels, size in ((dict(), 4, 65985190), (dict(separator="frozen", num_mics=4, num_speakers=2), 12,
                                                            66115310)):
        with torch.device("meta"):
            model = meanflow.MeanFlowCorrector(meanflow.Config(**changes))
        assert model.net.stem.weight.shape[1] == channels
        assert sum(p.numel() for p in model.net.parameters()) == size
    with pytest.raises(ValueError, match="need a separator"):
        tiny(num_mics=4)


SETTINGS = {
    "principled": {}, "improved": dict(along="own"), "exact": dict(c=0.5, derivative="difference", derivative_clip=5.0),
    "meanflowse": dict(displacement=False, endpoint_weight=0.0),
    "frozen": dict(separator="frozen"), "four microphones": dict(separator="frozen", num_mics=4, num_speakers=2)}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_trains_the_network_and_enhances(name):
    model = tiny(**SETTINGS[name])
    loss, parts = model.loss(some_batch(model))
    loss.backward()
    assert loss.isfinite() and set(parts) == {"velocity", "average"} | ({"si_sdr"} if name != "meanflowse" else set())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.net.parameters() if p.requires_grad)
    assert model.separator is None or all(p.grad is None for p in model.separator.parameters())
    calls, (clean, mixture) = model.calls, some_batch(model, 1)
    assert model.enhance(mixture).shape == clean.shape
    assert model.calls - calls == 1 + (model.separator is not None)


def test_loss_is_made_of_the_functions(monkeypatch):
    """The total of MeCo, with a weight on its Endpoint loss, term by term from the draws that it used."""
    constants = dict(c=0.5, derivative="difference", derivative_clip=5.0, endpoint_weight=2.0)
    model, draws = tiny(reduction="sum", **constants), []
    monkeypatch.setattr(meanflow, "sample_times", lambda *a, **k: (torch.tensor([0.1, 0.5]), torch.tensor([0.9, 0.5])))
    kept = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda x: draws.append(kept(x)) or draws[-1])
    clean, noisy = some_batch(model)
    loss, _ = model.loss((clean, noisy))
    r, t = meanflow.sample_times()
    x0, y = (model.spectrogram(wave)[:, None] for wave in (clean, noisy))
    u, (z, z_end) = velocity_of(model, y), draws
    xt, v = meanflow.path(x0, y, t, z), meanflow.conditional_velocity(x0, y, z)
    velocity = 0.5 * (u(xt, t, t) - v).abs().square().sum() / 2
    target = meanflow.average_velocity_target(u, xt, r, t, v, 0.5, meanflow.difference_derivative, 5.0)
    x_r = 0.5 * (0.8 * (u(xt, r, t) - target)[0]).abs().square().sum() / 2
    end = y + 0.487 * z_end - 0.97 * u(y + 0.487 * z_end, torch.full((2,), 0.03), torch.ones(2))
    enhanced = model.spectrogram.inverse(end[:, 0], clean.shape[1])
    si_sdr = -losses.si_sdr_loss(clean, enhanced).mean()
    assert loss.item() == pytest.approx((0.75 * velocity + 0.25 * x_r - 2 * si_sdr).item(), rel=1e-4)
    draws.clear()
    mean = tiny(reduction="mean", **constants)
    monkeypatch.setattr(torch, "randn_like", lambda x: {0: z, 1: z_end}[draws.append(0) or len(draws) - 1])
    assert mean.loss((clean, noisy))[0].item() * x0[0].numel() == pytest.approx(loss.item(), rel=1e-4)


def test_improved_form_differentiates_along_its_own_velocity(monkeypatch):
    model, seen = tiny(along="own"), []
    exact = meanflow.exact_derivative
    monkeypatch.setattr(meanflow, "exact_derivative", lambda *args: seen.append(args) or exact(*args))
    model.loss(some_batch(model))
    (u, xt, r, t, along), = seen
    torch.testing.assert_close(along, u(xt, t, t))
    assert not along.requires_grad


def test_first_tenth_trains_the_instantaneous_velocity():
    model = tiny(schedule=100)
    model.ema = train.EMA(model)
    for updates, parts in ((9, {"velocity"}), (10, {"velocity", "average", "si_sdr"})):
        model.ema.num_updates = updates
        assert set(model.loss(some_batch(model))[1]) == parts


def test_derivative_is_float32_under_mixed_precision():
    """Weights cast without gradient must not be reused with it."""
    model, seen = tiny(), []
    model.net.stem.register_forward_hook(lambda layer, x, out: seen.append(out.dtype))
    with nets.in_precision(model, torch.bfloat16):
        loss, _ = model.loss(some_batch(model))
    loss.backward()
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.net.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["exact", "difference", "compose"])
def test_derivative_of_the_config_is_the_one_taken(name, monkeypatch):
    """The two agree to more digits than a loss has."""
    taken = []
    for each, function in (("exact", "exact_derivative"), ("difference", "difference_derivative"),
                           ("compose", "composed_target")):
        kept = getattr(meanflow, function)
        monkeypatch.setattr(meanflow, function, lambda *a, each=each, kept=kept: taken.append(each) or kept(*a))
    model = tiny(derivative=name)
    model.loss(some_batch(model))
    assert taken == [name]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_derivative_is_taken_without_tf32(precision, monkeypatch):
    """Seen from within the network; afterwards everything is as it was."""
    state = lambda: (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    before, seen = torch.get_float32_matmul_precision(), []
    torch.set_float32_matmul_precision(precision)
    try:
        outside = state()
        x, t = bins(1.0, 2.0), times(0.9, 0.9)
        u = lambda x, r, t: seen.append(state()) or x
        for derivative in (meanflow.difference_derivative, meanflow.exact_derivative):
            meanflow.average_velocity_target(u, x, times(0.1, 0.1), t, x, 1.0, derivative)
        assert len(seen) == 3 and set(seen) == {(False, "highest")} and state() == outside
        with pytest.raises(ZeroDivisionError):
            meanflow.average_velocity_target(lambda *_: 1 / 0, x, t, t, x)
        assert state() == outside
    finally:
        torch.set_float32_matmul_precision(before)


def test_schedules_span_the_run_unless_they_are_given(tmp_path, monkeypatch):
    """Half way through four updates the average velocity has its full weight; over a thousand it has not begun."""
    for schedule, trained in ((0, [False, True, True, True]), (1000, [False] * 4), (2, [False, True, True, True])):
        model, seen = tiny(schedule=schedule, endpoint_weight=0.0, width=8, channel_mults=(1, 1), num_frames=8), []
        batch = some_batch(model)
        config = train.TrainConfig(out=str(tmp_path / str(schedule)), steps=4, lr=1e-9, save_every=1e9)
        for _, parts in train.fit(model, itertools.repeat(batch), config):
            seen.append("average" in parts)
        assert seen == trained
    # And the clock of --minutes: what is half over by time has its average velocity, whatever --steps says.
    model, clock = tiny(endpoint_weight=0.0, width=8, channel_mults=(1, 1), num_frames=8), itertools.count(0, 3)       # seconds; read twice a step
    batch = some_batch(model)
    monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))
    config = train.TrainConfig(out=str(tmp_path / "clock"), steps=10 ** 6, minutes=1.0, lr=1e-9, save_every=1e9)
    seen = ["average" in parts for _, parts in train.fit(model, itertools.repeat(batch), config)]
    assert not seen[0] and all(seen[3:]) and 8 <= len(seen) <= 11
    assert all("schedule" not in preset for preset in meanflow.PRESETS.values())


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_separator_trains_on_four_seconds(preset):
    with torch.device("meta"):
        for separator in ("train", "frozen"):
            config = meanflow.Config(**meanflow.PRESETS[preset] | dict(separator=separator))
            assert meanflow.MeanFlowCorrector(config).num_samples == 4 * 16000


@pytest.mark.parametrize("changes", [dict(N=0), dict(num_mics=0), dict(num_speakers=0), dict(t_end=1.0), dict(t_eps=0.0)])
def test_constants_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=f"--{next(iter(changes)).replace('_', '-')}: "):
        meanflow.Config(**changes)


def test_separator_is_trained_alone_and_its_output_is_the_result():
    model = tiny(separator="train", num_mics=2, num_speakers=2)
    clean, mixture = some_batch(model)
    loss, parts = model.loss((clean, mixture))
    loss.backward()
    assert all(p.grad is not None for p in model.separator.parameters())
    assert not any(p.requires_grad for p in model.net.parameters())
    with torch.no_grad():
        leveled, level = data.normalise(data.reflect(mixture, data.EDGE))
        expected = model.separate(leveled)
        expected = expected * data.matching_gain(expected.sum(1, keepdim=True), leveled[:, :1]) * level
        torch.testing.assert_close(model.enhance(mixture), expected[..., data.EDGE:-data.EDGE])
        estimate = model.separate(mixture)
        assert -losses.sa_sdr_loss(clean, estimate)[0].mean() == pytest.approx(parts["sa_sdr"].item(), abs=1e-4)


def test_order_of_the_speakers_changes_no_loss(monkeypatch):
    """Each estimate is put beside its own speaker."""
    model = tiny(separator="frozen", num_mics=2, num_speakers=2)
    clean, mixture = some_batch(model)
    waves, swapped = model.contexts(mixture, clean), model.contexts(mixture, clean.flip(1))
    pairs = lambda x: x.unflatten(0, (2, 2))             # (B, S, ...)
    torch.testing.assert_close(pairs(waves), pairs(swapped).flip(1))
    estimate = model.separate(mixture)
    best = losses.sa_sdr_loss(clean, estimate)[1]
    torch.testing.assert_close(pairs(waves)[:, :, 0], best)
    torch.testing.assert_close(pairs(waves)[:, 1, 1:], mixture)
    level = model.level_of_estimate(waves)
    assert level.shape == (4, 1, 1)
    torch.testing.assert_close(pairs(level)[..., 0], data.click_robust_peak(best))


def test_corrector_learns_from_a_part_of_the_excerpt(monkeypatch):
    """The same part of all signals, levelled by its own level; other parts at other steps."""
    model, seen = tiny(separator="frozen", num_mics=2), []
    assert model.num_samples == 8000 > (length := 23 * 256)
    assert tiny(separator="frozen", num_frames=64).num_samples == 63 * 256 and tiny().num_samples == length
    clean, mixture = some_batch(model)
    monkeypatch.setattr(model, "flow_loss", lambda *spectra: seen.append(torch.cat(spectra, dim=1)))
    whole = torch.cat([clean, model.contexts(mixture)], dim=1)                # (B, 1 + C, L)
    for seed in range(2):
        torch.manual_seed(seed)
        model.loss((clean, mixture))
        torch.manual_seed(seed)
        start = torch.randint(8000 - length + 1, ()).item()
        part = whole[..., start:start + length]
        torch.testing.assert_close(seen[seed], model.spectrogram(part / data.click_robust_peak(part[:, 1:2])))
    assert not torch.equal(*seen)


def test_separator_hears_each_crop_that_comes_again_once(tmp_path):
    """What is kept is what it says; what is damaged is estimated again; another separator has another estimate."""
    model = tiny(separator="frozen", num_mics=2, num_speakers=2)
    clean, mixture = some_batch(model)
    expected, other = model.contexts(mixture, clean), model.contexts(0.5 * mixture, clean)
    model.store, model.calls = tmp_path, 0
    torch.testing.assert_close(model.contexts(mixture, clean), expected)
    assert model.calls == 2 == len(paths := sorted(tmp_path.iterdir()))    # one by one
    kept = model.contexts(mixture.flip(0), clean.flip(0))
    torch.testing.assert_close(kept.unflatten(0, (2, 2)).flip(0).flatten(0, 1), expected)
    assert model.calls == 2
    swapped = model.contexts(mixture, clean.flip(1))        # the order is that of the clean speakers, whenever
    torch.testing.assert_close(swapped.unflatten(0, (2, 2)).flip(1).flatten(0, 1), expected)
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    torch.testing.assert_close(model.contexts(mixture, clean), expected)
    assert model.calls == 3
    torch.testing.assert_close(model.contexts(0.5 * mixture, clean), other)
    assert model.calls == 5
    with torch.no_grad():
        model.separator.decoder.weight *= 1.1
    changed = model.contexts(mixture, clean)
    assert model.calls == 7 and not torch.allclose(changed, expected)
    assert len(list(tmp_path.iterdir())) == 6
    assert model.contexts(mixture).shape == expected.shape and model.calls == 8        # at inference nothing is kept


def test_nearly_silent_estimate_is_levelled_by_the_mixture():
    model = tiny(separator="frozen")
    with torch.no_grad():
        for p in model.separator.decoder.parameters():
            p.zero_()
    wave = some_batch(model)[1]
    torch.testing.assert_close(model.level_of_estimate(model.contexts(wave)), 0.05 * data.click_robust_peak(wave))
    peak = tiny(separator="frozen", normalize="peak")
    waves = torch.cat([0.01 * wave, wave], 1)
    torch.testing.assert_close(peak.level_of_estimate(waves), 0.05 * wave.abs().amax(-1, keepdim=True))
    silence = torch.zeros_like(wave)                     # around a recording that is shorter than the excerpt
    assert all(value.isfinite().all() for value in model.loss((silence, silence))[1].values())


@pytest.mark.parametrize("separator", ["none", "frozen"])
def test_enhances_any_length_and_level_with_the_promised_calls(separator):
    """Louder by a factor of two in, out as well; silence stays silence; a window is levelled by its recording."""
    model, wave = tiny(separator=separator, N=2, normalize="peak"), torch.randn(2, 2003) * 0.1
    torch.manual_seed(1)
    out = model.enhance(wave)
    assert out.shape == wave.shape and out.isfinite().all() and model.calls == 2 + (separator == "frozen")
    torch.manual_seed(1)
    torch.testing.assert_close(model.enhance(2 * wave), 2 * out, atol=1e-4, rtol=1e-3)
    assert model.enhance(torch.zeros(1, 2000)).abs().max() < 1e-4
    torch.manual_seed(1)
    given = model.enhance(wave, 3 * wave.abs().amax(-1, keepdim=True))
    assert torch.allclose(given, out, atol=1e-4) == (separator == "frozen")


def test_preconditioned_network_starts_by_keeping_the_estimate():
    """A new one does, up to the noise that is left at t_end: one step ends at s_hat + 0.03 sigma_max z."""
    torch.manual_seed(0)
    model = meanflow.MeanFlowCorrector(meanflow.Config(**meanflow.PRESETS["tiny"] | dict(separator="frozen"))).eval()
    with torch.no_grad():
        condition = torch.randn(2, 2, 256, 16, dtype=torch.complex64)
        torch.manual_seed(3)
        out = model.sample(condition)
        torch.manual_seed(3)
        z = torch.randn_like(condition[:, :1])
    torch.testing.assert_close(out, condition[:, :1] + 0.03 * SIGMA * z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mics", [0, 1, 3])              # 0: no separator, s_hat is the mixture
def test_network_is_scaled_relative_to_the_reference_microphone(mics):
    model, bare = (tiny(sigma_data=s, separator="frozen" if mics else "none", num_mics=mics or 1) for s in (0.3, 0.0))
    for p in bare.net.parameters():                      # a fresh network hardly hears its input
        p.data += 0.1 * torch.randn_like(p)
    model.net.load_state_dict(bare.net.state_dict())
    x, turn = torch.randn(2, 1, 1, 256, 16, dtype=torch.complex64)
    turn, condition = turn / turn.abs(), torch.randn(1, 1 + mics, 256, 16, dtype=torch.complex64)
    at_0 = condition[:, [1 if mics else 0]]
    condition = condition * at_0.conj() / at_0.abs()     # the phase of microphone 0 is 0
    r, t, difference = torch.tensor([0.2]), torch.tensor([0.9]), x - condition[:, :1]
    c_in, c_skip, c_out = meanflow.preconditioning(t, 0.3 * at_0.abs() + 0.01)
    assert c_in.shape == c_out.shape == x.shape
    u = model(x, condition, r, t)
    torch.testing.assert_close(u, c_skip * difference + c_out * bare(c_in * difference, condition / 0.15, r, t))
    torch.testing.assert_close(model(turn * x, turn * condition, r, t), turn * u)


def test_network_s_sign_and_interval():
    """u is minus the network's output, and the network is told t and t - r."""
    model, seen = tiny(sigma_data=0.0), []
    model.net.register_forward_hook(lambda net, args, out: seen.append((args, out)))
    x, y = torch.randn(2, 1, 1, 256, 16, dtype=torch.complex64)
    u = model(x, y, torch.tensor([0.2]), torch.tensor([0.9]))
    (joined, t, delta), out = seen[0]
    torch.testing.assert_close(u, -out)
    torch.testing.assert_close(joined, torch.cat([x, y], dim=1))
    assert (t.item(), delta.item()) == pytest.approx((0.9, 0.7))


def test_interval_that_a_difference_makes_negative_counts_as_0():
    """r = t: the step behind it would ask for t - r < 0."""
    model, x, y = tiny(), *torch.randn(2, 1, 1, 256, 16, dtype=torch.complex64)
    t = torch.tensor([0.5])
    torch.testing.assert_close(model(x, y, t + 0.2, t), model(x, y, t, t))
    assert not torch.allclose(model(x, y, t - 0.2, t), model(x, y, t, t))


@pytest.fixture(scope="module")
def separator(corpus, tmp_path_factory):
    """An untrained one."""
    out = tmp_path_factory.mktemp("separator")
    assert run(*tiny_run(corpus), "--separator", "train", "--steps", "1", "--lr", "0", "--out", out) == 0
    return out / "last.safetensors"


VARIANTS = [
    "--no-displacement --endpoint-weight 0",
    "--endpoint-weight 0",
    "--no-displacement --endpoint-weight 100",
    "--endpoint-weight 100",
    "--endpoint-weight 100 --along own",
    "--c 0.5 --derivative difference --derivative-clip 5 --reduction sum --endpoint-weight 1 --clip 1",
]


@pytest.mark.parametrize("flags", VARIANTS)
def test_variant_trains(flags, separator, corpus, tmp_path):
    assert run(*tiny_run(corpus), "--separator", "frozen", "--init", separator, "--schedule", "1", "--steps", "2",
               "--out", tmp_path, *flags.split()) == 0
    parts = json.loads((tmp_path / "log.jsonl").read_text())
    assert all(map(math.isfinite, parts.values()))
    assert "average" in parts and ("si_sdr" in parts) == ("--endpoint-weight 0" not in flags)



def test_shipped_weights_raise_the_mean_si_sdr():
    model = train.load_checkpoint("meanflow", meanflow.MeanFlowCorrector)
    assert (train.HERE / "pretrained/meanflow.safetensors").stat().st_size <= 6 * 2 ** 20
    dataset = data.PairedAudio(train.HERE / "tutorials/audio", "test", num_samples=16128)
    gains = []
    for number in range(len(dataset)):
        _, clean, noisy = dataset.utterance(number)
        gains.append(metrics.si_sdr(clean, model.enhance(noisy[None])[0]) - metrics.si_sdr(clean, noisy))
    assert model.calls == 2 * len(gains) == 6 and sum(gains) / 3 > 2, gains


def tiny_run(corpus, *extra):
    return ("train", "--data", corpus, "--preset", "tiny", "--num-frames", "24", "--separator-seconds", "1",
            "--width", "8", "--channel-mults", "1", "1", "--batch-size", "2", "--device", "cpu", "--valid-every", "0", "--valid-files", "1", *extra)


@pytest.mark.slow
def test_train_resume_enhance_evaluate(corpus, tmp_path, capsys):
    """From the noisy speech by command, killed half way, in the middle of its schedules; one call a recording."""
    flags = tiny_run(corpus, "--schedule", "10")
    assert run(*flags, "--steps", "4", "--out", tmp_path / "a") == 0
    for steps in (2, 4):
        assert run(*flags, "--steps", steps, "--out", tmp_path / "b") == 0
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    capsys.readouterr()
    for command in (("enhance", corpus / "test/noisy"), ("evaluate", "--data", corpus, "--metrics", "si_sdr", "--workers", "1")):
        assert run(*command, "--checkpoint", tmp_path / "a/last.safetensors",
                   "--out", tmp_path / command[0]) == 0
        assert "2 network evaluations" in capsys.readouterr().out               # two files


@pytest.mark.slow
def test_corrector_on_cached_estimates_equals_fresh_ones(separator, corpus, tmp_path, monkeypatch):
    """Three crops, three steps of two: each is separated once, for all runs beside each other."""
    separated, separate = [], meanflow.MeanFlowCorrector.separate
    monkeypatch.setattr(meanflow.MeanFlowCorrector, "separate",
                        lambda self, mixture: separated.append(len(mixture)) or separate(self, mixture))
    flags = tiny_run(corpus, "--separator", "frozen", "--init", separator, "--schedule", "4", "--num-crops", "3")
    with monkeypatch.context() as patch:
        patch.setattr(meanflow.MeanFlowCorrector, "separate_once", meanflow.MeanFlowCorrector.separate)
        assert run(*flags, "--steps", "3", "--out", tmp_path / "fresh") == 0
    assert sum(separated) == 8                           # three steps, and the gradient that says the last can be kept
    separated.clear()
    for name, steps in (("a", 3), ("b", 1), ("b", 3)):
        assert run(*flags, "--steps", steps, "--out", tmp_path / name) == 0
    assert separated == [1, 1, 1] and len(list((tmp_path / "store").iterdir())) == 3
    fresh, a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("fresh", "a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in a:
        torch.testing.assert_close(a[name], fresh[name], atol=1e-4, rtol=1e-3)


def test_separator_then_corrector_by_command(corpus, tmp_path, capsys):
    flags = tiny_run(corpus, "--steps", "2")
    assert run(*flags, "--separator", "frozen", "--out", tmp_path / "none") == 2
    assert "needs --init" in capsys.readouterr().err
    assert run(*flags, "--separator", "train", "--out", tmp_path / "separator") == 0
    first = tmp_path / "separator/last.safetensors"
    assert run(*flags, "--separator", "frozen", "--init", first, "--out", tmp_path / "corrector") == 0
    second = tmp_path / "corrector/last.safetensors"
    a, b = (train.load_checkpoint(path).state_dict() for path in (first, second))
    same = {name for name in a if torch.equal(a[name], b[name])}
    assert {name for name in a if name.startswith("separator.")} <= same
    assert "net.head.weight" not in same
    assert run("enhance", corpus / "test/noisy", "--checkpoint", second, "--out", tmp_path / "enhanced") == 0
    assert "4 network evaluations" in capsys.readouterr().out                   # a separator and a jump for each of two files
