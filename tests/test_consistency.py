"""consistency.py against the reference system's numbers, its closed forms in a Gaussian world, and door to door."""

import functools
import hashlib
import json
import math

import pytest
import torch

import consistency
import losses
import nets
import sgmse
import train
from helpers import check_commands, gaussian_score, lively, load, replay, run_command

SDE = sgmse.OUVE()
M, S, Y = 1.2 + 0.3j, 0.1, 2 - 1j                        # of the Gaussian world: x0 | y ~ N(M, S^2)


def bins(c, n=1):
    return torch.full((n, 1, 1, 1), c, dtype=torch.complex128)


def times(*t):
    return torch.tensor(t, dtype=torch.float64)


# ---- closed forms ----

def test_boundary_at_its_two_ends():
    std = SDE.std(times(1, 0.03))
    c_skip, c_out = sgmse.edm_scaling(std)[1:]
    assert c_skip.tolist() == pytest.approx([0.0619934, 0.965757], abs=1e-6)
    assert c_out.tolist() == pytest.approx([0.0968507, 0.0185049], abs=1e-6)
    c_skip, c_out = sgmse.edm_scaling(std, std_eps=std[1])[1:]
    assert c_skip.tolist() == [pytest.approx(0.0680212, abs=1e-6), 1] and c_out[1] == 0
    assert c_out[0].item() == pytest.approx(0.0921623, abs=1e-6)


@pytest.mark.parametrize("form", ["edm", "data"])
@pytest.mark.parametrize("sde", ["ouve", "bbed"])
def test_strict_function_is_the_identity_at_the_smallest_time(form, sde):
    gaps = {}
    for strict in (True, False):
        model = tiny(strict=strict, form=form, sde=sde)
        y, x = torch.randn(2, 2, 1, 256, 16, dtype=torch.complex64) * 0.1
        gaps[strict] = ((model(x, y, torch.full((2,), 0.03)) - x).norm() / x.norm()).item()
    assert gaps[True] == 0 < gaps[False]
    if sde == "ouve" and form == "edm":
        assert 1 - 0.965757 - 0.02 < gaps[False] < 0.1   # c_skip leaves 3.4 % of x; what F adds depends on its weights


def test_noise_level_of_both_processes_grows():
    t = torch.linspace(0.03, 0.999, 50)
    torch.testing.assert_close(consistency.noise_level(SDE, t), SDE.std(t))
    bbed = sgmse.BBED()
    assert (consistency.noise_level(bbed, t).diff() > 0).all() and (bbed.std(t).diff() < 0).any()
    # Near 0 the bridge does not feel its end yet: its std is that of the noise added.
    assert consistency.noise_level(bbed, t[:1]).item() == pytest.approx(bbed.std(t[:1]).item(), rel=0.03)


def test_grid_is_even_and_ends_at_the_smallest_time():
    t = consistency.time_grid(SDE)
    assert t[[0, 1, 28, 29]].tolist() == pytest.approx([1, 0.9665517, 0.0634483, 0.03], abs=1e-6)
    assert SDE.std(t[28]).item() == pytest.approx(0.0278588, abs=1e-6)


MOVES = {"pc": consistency.pc_step, "euler": consistency.euler_step, "heun": consistency.heun_step}


@pytest.mark.parametrize("t, dt, expected", [
    (1.0, 1 / 30, dict(euler=0.9231840, heun=0.9261260)), (1.0, 0.97 / 29, dict(pc=0.3978329)),
    (1 - 15 * 0.97 / 29, 1 / 30, dict(euler=0.9203153, heun=0.9230892)),
    (1 - 15 * 0.97 / 29, 0.97 / 29, dict(pc=0.3949543))])
def test_moves_of_one_bin(t, dt, expected, monkeypatch):
    """Denoiser 0, y = 0, x = 1, no noise."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    score = lambda x, y, t: -x / sgmse.per_bin(SDE.std(t)) ** 2
    for name, value in expected.items():
        for noise in (True, False):
            x = MOVES[name](score, bins(1), bins(0), times(t), times(t - dt), SDE, noise)
            assert x.item().real == pytest.approx(value, abs=1e-6)


def test_noise_of_the_moves_has_the_size_of_the_sde_s(monkeypatch):
    """`noise=False` leaves the corrector's alone; mix has half of the SDE's."""
    def response(move, *draws, **options):
        """x_next for these draws minus x_next without; the score is 0, so that each draw passes straight through."""
        ends = []
        for values in (draws, [0] * len(draws)):
            left = replay(monkeypatch, [bins(v) for v in values])
            ends.append(move(lambda x, y, t: 0 * x, bins(1), bins(0), times(1.0), times(1 - dt), SDE, **options))
            assert next(left, None) is None
        return (ends[0] - ends[1]).item().real

    dt = 0.97 / 29
    shrink = 1 + 1.5 * dt                                # the drift, y = 0, in the predictor after the corrector
    assert response(consistency.pc_step, 1, 0) == pytest.approx(0.388983 * shrink, abs=1e-6)
    assert response(consistency.pc_step, 0, 1) == pytest.approx(0.1962365, abs=1e-6)
    assert response(consistency.pc_step, 1, noise=False) == pytest.approx(0.388983 * shrink, abs=1e-6)
    assert response(consistency.mix_step, 1) == pytest.approx(0.1962365 / 2, abs=1e-6)
    dt = 1 / 30
    assert response(consistency.euler_step, 1) == pytest.approx(0.1958990, abs=1e-6)
    assert response(consistency.heun_step, 1) == pytest.approx(0.1958990, abs=1e-6)
    assert response(consistency.euler_step, noise=False) == 0


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_solver_steps_are_those_of_the_samplers(name, monkeypatch):
    """The whole grid by moves, then the sampler's last step: the sampler of sgmse.py, to rounding."""
    score, y, z = gaussian_score(SDE), bins(Y, 3), torch.randn(3, 1, 1, 1, dtype=torch.complex128)
    replay(monkeypatch, [z])
    expected = sgmse.probability_flow(score, y, SDE, 30, name)
    grid = torch.linspace(1, 0.03, 30, dtype=torch.float64)
    x = y + SDE.std(times(1.0)) * z
    for t, t_next in zip(grid, grid[1:]):
        x = MOVES[name](score, x, y, t.repeat(3), t_next.repeat(3), SDE, noise=False)
    torch.testing.assert_close(sgmse.reverse_step(score, x, y, 0.03, 0.03, SDE)[0], expected)


def test_moves_take_a_time_for_each_example(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    score, x = gaussian_score(SDE), torch.randn(2, 1, 1, 1, dtype=torch.complex128)
    t, t_next = times(0.9, 0.2), times(0.8, 0.1)
    for move in (*MOVES.values(), consistency.mix_step):
        together = move(score, x, bins(Y, 2), t, t_next, SDE)
        alone = [move(score, x[i:i + 1], bins(Y), t[i:i + 1], t_next[i:i + 1], SDE) for i in (0, 1)]
        torch.testing.assert_close(together, torch.cat(alone))


# ---- a Gaussian world: what each kind of training converges to ----

def slope(move, t, t_next):
    """Of the mean of x_next over x_t: a move is affine here."""
    score = gaussian_score_of_width(S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.zeros_like)
        ends = [move(score, bins(c), bins(Y), times(t), times(t_next), SDE).item() for c in (1, 0)]
    return (ends[0] - ends[1]).real


def marginal(t, width=S):
    """Mean and variance of x_t in this world."""
    a = math.exp(-SDE.theta * t)
    return a * M + (1 - a) * Y, (a * width) ** 2 + SDE.std(times(t)).item() ** 2


def gaussian_score_of_width(width):
    def score(x, y, t):
        a = sgmse.per_bin(torch.exp(-SDE.theta * t))
        return -(x - a * M - (1 - a) * y) / ((a * width) ** 2 + sgmse.per_bin(SDE.std(t)) ** 2)
    return score


def retained(slopes, grid):
    """Variance of f(x_T) over that of x at the smallest time, for f = the product of the slopes."""
    return math.prod(slopes) ** 2 * marginal(grid[0])[1] / marginal(grid[-1])[1]


def test_fixed_points_keep_a_known_part_of_the_variance():
    """The flow keeps it all; random targets average it away."""
    grid = consistency.time_grid(SDE).double().tolist()
    steps = list(zip(grid, grid[1:]))
    keep = lambda move: retained([slope(move, *step) for step in steps], grid)
    assert keep(consistency.heun_step) == pytest.approx(1, abs=0.01)
    for noise in (True, False):                          # the mean map is the same
        pc = lambda *args: consistency.pc_step(*args, noise)
        assert math.log10(keep(pc)) == pytest.approx(math.log10(5.0e-16), abs=0.05)
    # Without a teacher the pair (x_t, x_next) is jointly Gaussian: its covariance over the variance of x_t.
    a = lambda t: math.exp(-SDE.theta * t)
    std = lambda t: SDE.std(times(t)).item()
    shared = [(a(t) * a(s) * S ** 2 + std(t) * std(s)) / marginal(t)[1] for t, s in steps]
    fresh = [a(t) * a(s) * S ** 2 / marginal(t)[1] for t, s in steps]
    assert retained(shared, grid) == pytest.approx(0.920, abs=0.001)
    assert math.log10(retained(fresh, grid)) == pytest.approx(math.log10(1.5e-60), abs=0.05)


class Affine(torch.nn.Module):
    """f(x, y, t_i) = A_i (x - E x_t) + B_i, learned for every time of a grid but the last, where f is the identity."""

    def __init__(self, grid):
        super().__init__()
        self.grid = grid
        self.A = torch.nn.Parameter(torch.ones(len(grid) - 1))
        self.B = torch.nn.Parameter(torch.zeros(len(grid) - 1, 2))

    def forward(self, x, y, t):
        i = (t[:, None] - self.grid).abs().argmin(1)
        means = torch.tensor([marginal(t)[0] for t in self.grid.tolist()])
        A = torch.cat([self.A, torch.ones(1)])[i]
        B = torch.cat([torch.view_as_complex(self.B), means[-1:]])[i]
        return sgmse.per_bin(A) * (x - sgmse.per_bin(means[i])) + sgmse.per_bin(B)


@pytest.mark.parametrize("kind", ["heun, mean", "pc, noise", "renoise", "renoise_shared"])
def test_trained_function_is_the_flow_or_the_conditional_mean(kind):
    """Training with consistency_loss, step by step, reaches what the closed form says.

    A deterministic move: the flow map, which keeps the width S of the posterior. A random one: E[x_eps | y], whatever
    the noise that f is given. This is what the randomised trajectory is about: the student becomes a predictor.
    """
    torch.manual_seed(0)
    sde = sgmse.OUVE()
    grid = consistency.time_grid(sde, 8)
    f, score = Affine(grid), gaussian_score_of_width(S)
    opt = torch.optim.Adam(f.parameters(), lr=0.05)
    y = torch.full((1024, 1, 1, 1), Y)
    for step in range(900):
        opt.param_groups[0]["lr"] = 0.05 * (1 - step / 900)
        x0, z = M + S * torch.randn_like(y), torch.randn_like(y)
        move = {"heun, mean": lambda *args: consistency.heun_step(score, *args, sde, noise=False),
                "pc, noise": lambda *args: consistency.pc_step(score, *args, sde),
                "renoise": lambda x, y, t, t_next: consistency.renoised(x0, y, t_next, sde),
                "renoise_shared": lambda x, y, t, t_next: consistency.renoised(x0, y, t_next, sde, z)}[kind]
        i = torch.randint(7, (1024,))
        loss, _ = consistency.consistency_loss(f, f, move, x0, y, grid[i], grid[i + 1], z, sde)
        opt.zero_grad()
        loss.backward()
        opt.step()
    mean, variance = marginal(1.0)
    with torch.no_grad():                                # f at T, for the states of the process there
        xT = mean + math.sqrt(variance) * torch.randn(4096, 1, 1, 1, dtype=torch.complex64)
        ends = f(xT, y, torch.ones(4096))
    goal, goal_variance = marginal(0.03)
    share = ends.var().item() / goal_variance
    assert abs(ends.mean().item() - goal) < (0.06 if kind == "pc, noise" else 0.02)    # its steps are of first order
    if kind == "heun, mean":
        assert share == pytest.approx(1, abs=0.15)
    elif kind == "renoise_shared":                       # coarse times: between the two, tends to 1 with their number
        assert 0.5 < share < 0.95
    else:
        assert share < 0.01


# ---- the reference system ----

def reference_networks():
    fixture = load("net_ncsnpp_v2_b")
    weights = {name[2:]: torch.from_numpy(fixture[name]) for name in fixture.files if name.startswith("p/")}
    common = json.loads(str(load("rosecd")["meta_json"]))["common"]
    config = consistency.Config(n_fft=62, hop_length=16, num_frames=72, width=8, channel_mults=tuple(common["ch_mult"]),
                                num_res_blocks=1, attention_resolutions=(32, 8), solver="renoise", pesq_weight=0,
                                si_sdr_weight=0)
    models = []
    for scale in (1, 0.97):                              # student and target
        model = consistency.ConsistencyModel(config)
        scaled = {name: scale * p for name, p in weights.items()}
        model.net = nets.NCSNpp.from_official(scaled, **model.net.config)
        models.append(model)
    return models


@pytest.mark.parametrize("case", ["consistency", "consistency_sisdr", "karras", "snr", "truncated-snr", "snr+1"])
def test_consistency_loss_equals_reference(case, monkeypatch):
    fixture = load("rosecd")
    get = lambda key: torch.from_numpy(fixture[key])
    student, target = reference_networks()
    x0, y = get("x"), get("y")
    replay(monkeypatch, [get("z2")])
    move = lambda x, y, t, t_next: consistency.renoised(x0, y, t_next, SDE)
    i = get("indices")
    grid = consistency.time_grid(SDE)
    torch.testing.assert_close(grid[i], get("t"), atol=1e-6, rtol=0)
    torch.testing.assert_close(grid[i + 1], get("t2"), atol=1e-6, rtol=0)
    t, t2, z1 = get("t"), get("t2"), get("z1")
    weight = consistency.time_weight(t, "1" if case.startswith("consistency") else case)
    loss, estimate = consistency.consistency_loss(student, target, move, x0, y, t, t2, z1, SDE, weight)
    torch.testing.assert_close(estimate, get("D_student"), atol=1e-5, rtol=1e-4)
    if case == "consistency_sisdr":
        length = student.num_samples
        clean, enhanced = (student.spectrogram.inverse(s[:, 0], length) for s in (x0, estimate))
        loss = loss + 5e-5 * losses.si_sdr_loss(clean, enhanced).mean()
    expected = json.loads(str(fixture["meta_json"]))["results"][case]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert all(p.grad is None for p in target.parameters())


class StillMean(sgmse.OUVE):
    """The released refinement forgets that the mean of the process moves towards y."""

    def mean(self, x0, y, t):
        return x0


@pytest.mark.parametrize("N", [1, 2, 5])
def test_refinement_at_the_released_times_equals_reference(N, monkeypatch):
    """But for the mean and for the times, of which the released last one is t_eps."""
    fixture = load("rosecd")
    replay(monkeypatch, torch.from_numpy(fixture[f"stochastic_N{N}/draws"]))
    monkeypatch.setattr(consistency, "refinement_times", lambda sde, N: torch.linspace(1, 0.03, N).tolist())
    with torch.no_grad():
        out = consistency.multistep(reference_networks()[0], torch.from_numpy(fixture["y"][:1]), StillMean(), N)
    torch.testing.assert_close(out, torch.from_numpy(fixture[f"stochastic_N{N}/out"]), atol=1e-5, rtol=1e-4)


def test_refinement_gives_f_the_states_that_it_was_trained_on():
    """With a perfect f the state at t has the mean and std of the process."""
    x0, y, seen = bins(M, 20000), bins(Y, 20000), []

    def f(x, y, t):
        seen.append((t[0], x))
        return x0

    consistency.multistep(f, y, SDE, 3)
    for t, x in seen[1:]:
        assert abs(x.mean() - SDE.mean(bins(M), bins(Y), t[None]).item()) < 0.01
        assert x.std().item() == pytest.approx(SDE.std(t[None]).item(), rel=0.03)


@pytest.mark.parametrize("N", [1, 2, 5])
def test_refinement_never_ends_in_its_own_noise(N):
    """At t_eps the strict f gives back its input: it is asked at no such time."""
    x0, sde = bins(M), sgmse.BBED()

    def f(x, y, t):
        return x if t.item() <= sde.t_eps * (1 + 1e-6) else x0

    torch.testing.assert_close(consistency.multistep(f, bins(Y), sde, N), x0)
    times = consistency.refinement_times(sde, N)
    assert len(times) == N and times[0] == pytest.approx(0.999) and min(times) > sde.t_eps


# ---- the model ----

run = functools.partial(run_command, consistency.ConsistencyModel)


def tiny(**changes):
    torch.manual_seed(0)
    preset = consistency.PRESETS["tiny"] | dict(num_frames=24)
    return lively(consistency.ConsistencyModel(consistency.Config(**preset | changes)))


EDM = dict(sde="ouve", form="edm", strict=False, c_in="edm", normalize="peak")


@pytest.fixture
def teacher(tmp_path):
    """A score model of the preset tiny, as the student of that preset needs it."""
    torch.manual_seed(1)
    path = tmp_path / "teacher.safetensors"
    config = sgmse.Config(**sgmse.PRESETS["tiny"] | dict(num_frames=24, N=2))
    train.save_checkpoint(path, lively(sgmse.ScoreSDE(config)))
    return path


@pytest.fixture
def edm_teacher(tmp_path):
    """One as in the paper, but small."""
    torch.manual_seed(1)
    path = tmp_path / "edm_teacher.safetensors"
    config = sgmse.Config(**sgmse.PRESETS["edm"] | dict(hop_length=256, num_frames=24, N=2, **nets.TINY))
    train.save_checkpoint(path, lively(sgmse.ScoreSDE(config)))
    return path


def some_batch(model, n=2):
    torch.manual_seed(2)
    return torch.rand(n, model.num_samples) - 0.5, torch.rand(n, model.num_samples) - 0.5


@pytest.mark.parametrize("solver", ["pc", "euler", "heun", "mix", "renoise", "renoise_shared"])
@pytest.mark.parametrize("noise", [True, False])
def test_gradient_reaches_the_distilled_model_alone(solver, noise, teacher):
    options = {} if solver.startswith("renoise") else dict(teacher=str(teacher))
    model = tiny(solver=solver, stochastic=noise, **options)
    model.prepare(fresh=True)
    model.ema = train.EMA(model)
    loss, parts = model.loss(some_batch(model))
    loss.backward()
    assert loss.isfinite() and set(parts) == {"consistency", "pesq", "si_sdr"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    if model.teacher:
        assert all(p.grad is None and not p.requires_grad for p in model.teacher.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in model.ema.shadow.values())


def test_target_has_the_averaged_weights_and_the_student_its_own():
    model = tiny(solver="renoise")
    model.ema = train.EMA(model)
    x, y = torch.randn(2, 1, 1, 256, 16, dtype=torch.complex64)
    before = model(x, y, torch.ones(1))
    with torch.no_grad():
        for p in model.net.parameters():
            p.mul_(1.1)
    torch.testing.assert_close(model.target(x, y, torch.ones(1)), before)
    assert not torch.allclose(model(x, y, torch.ones(1)), before)


@pytest.mark.parametrize("solver", ["renoise_shared", "renoise"])
def test_loss_is_made_of_the_functions(solver, monkeypatch):
    """The total, term by term from the draws that it used: target of the averaged weights, at the next time, with the
    noise of x_t or another; each weight on its own term; disturbance and SI-SDR of the estimate against clean.
    """
    model, asked = tiny(solver=solver, weight="snr", consistency_weight=2.0, pesq_weight=0.3, si_sdr_weight=0.7), []
    averaged = tiny(solver=solver)
    model.ema = train.EMA(averaged)
    with torch.no_grad():
        for p in model.net.parameters():
            p.mul_(1.1)
    i = torch.tensor([0, 28])
    monkeypatch.setattr(torch, "randint", lambda *args, **_: asked.append(args) or i)
    clean, noisy = some_batch(model)
    x0, y = (model.spectrogram(wave)[:, None] for wave in (clean, noisy))
    z, other = torch.randn_like(x0), torch.randn_like(x0)
    replay(monkeypatch, [z] if solver == "renoise_shared" else [z, other])
    loss, parts = model.loss((clean, noisy))
    assert asked == [(29, (2,))]                         # every interval of the thirty times
    grid, sde = consistency.time_grid(model.sde), model.sde
    t, r = grid[i], grid[i + 1]
    estimate = model(sde.mean(x0, y, t) + sgmse.per_bin(sde.std(t)) * z, y, t)
    later = z if solver == "renoise_shared" else other
    target = averaged(sde.mean(x0, y, r) + sgmse.per_bin(sde.std(r)) * later, y, r)
    error = (t ** -2 * (estimate - target).abs().square().mean((1, 2, 3))).mean()
    reference, enhanced = (model.spectrogram.inverse(s[:, 0], model.num_samples) for s in (x0, estimate))
    pesq, si_sdr = losses.PESQLoss()(reference, enhanced).mean(), losses.si_sdr_loss(reference, enhanced).mean()
    torch.testing.assert_close(loss, 2 * error + 0.3 * pesq + 0.7 * si_sdr, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["si_sdr"], -si_sdr.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["pesq"], pesq.detach(), rtol=1e-4, atol=1e-5)


def test_student_that_goes_on_keeps_its_own_weights(teacher):
    model = tiny(teacher=str(teacher))
    before = {name: p.clone() for name, p in model.net.state_dict().items()}
    model.prepare(fresh=False)
    assert all(torch.equal(before[name], p) for name, p in model.net.state_dict().items())
    model = tiny(teacher=str(teacher))
    model.prepare(fresh=True)
    assert not all(torch.equal(before[name], p) for name, p in model.net.state_dict().items())


def test_grid_of_the_bridge_starts_at_its_latest_time():
    grid = consistency.time_grid(sgmse.BBED())
    assert grid[0] == pytest.approx(0.999) and len(grid) == 30


def test_student_starts_as_its_teacher_and_does_not_carry_it(teacher, edm_teacher):
    x, y = torch.randn(2, 1, 1, 256, 16, dtype=torch.complex64)
    t = torch.tensor([0.6])
    model = tiny(teacher=str(edm_teacher), **EDM)
    model.prepare(fresh=True)
    torch.testing.assert_close(model(x, y, t), train.load_checkpoint(edm_teacher)(x, y, t))
    model = tiny(teacher=str(teacher))
    model.prepare(fresh=True)
    score_model = train.load_checkpoint(teacher)
    level = consistency.noise_level(model.sde, torch.tensor([0.6, 0.03]))
    c_skip, _ = sgmse.edm_scaling(level[0], std_eps=level[1])[1:]
    torch.testing.assert_close(model(x, y, t), c_skip * x + (1 - c_skip) * score_model(x, y, t))
    assert model.state_dict().keys() == {f"net.{name}" for name in model.net.state_dict()} | {
        name for name in model.state_dict() if name.startswith("spectrogram")}
    assert model.teacher.model.config == score_model.config


def test_teacher_that_is_missing_or_not_needed_is_refused(teacher):
    with pytest.raises(ValueError, match="needs a --teacher"):
        tiny().prepare(True)
    with pytest.raises(ValueError, match="needs no --teacher"):
        tiny(teacher=str(teacher), solver="renoise").prepare(True)
    with pytest.raises(ValueError, match="--teacher nowhere: nowhere: no such file"):
        tiny(teacher="nowhere").prepare(True)


@pytest.mark.parametrize("kind", ["tiny", "edm"])
def test_process_spectrogram_and_network_are_the_teachers(kind, teacher, edm_teacher):
    path = teacher if kind == "tiny" else edm_teacher
    wrong = dict(k=2.0, c=0.3, t_eps=0.01, theta=2.0, sigma_max=0.4, sigma_min=0.01, sigma_data=0.2, exponent=0.7,
                 factor=0.3, n_fft=512, hop_length=128, width=16, channel_mults=(1, 2), num_res_blocks=2,
                 attention_resolutions=(16,), fourier_scale=4.0, form="edm" if kind == "tiny" else "data")
    model, theirs = consistency.ConsistencyModel(consistency.Config(teacher=str(path), **wrong)), sgmse_config(path)
    model.prepare(fresh=True)
    for name in wrong.keys() - {"form"}:
        assert getattr(model.config, name) == getattr(theirs, name), name
    assert model.config.form == {"tiny": "data", "edm": "edm"}[kind]
    assert model.config.num_frames != theirs.num_frames  # of a crop: its own
    assert all(torch.equal(p, q) for p, q in zip(model.net.parameters(), model.teacher.model.net.parameters()))


def sgmse_config(path):
    return train.load_checkpoint(path).config


def test_input_of_an_edm_teachers_model_is_unscaled_as_published(edm_teacher):
    for c_in in ("1", "edm"):
        assert consistency.ConsistencyModel(consistency.Config(teacher=str(edm_teacher), c_in=c_in)).config.c_in == c_in


@pytest.mark.parametrize("changes", [
    dict(objective="denoiser"), dict(c_skip="0"), dict(c_out="sigma"), dict(network_scaling="1/t"),
    dict(sde="sbve", sampler="bridge_ode")])
def test_unsuitable_teacher_is_refused_with_the_reason(changes, tmp_path):
    train.save_checkpoint(path := tmp_path / "t.safetensors", sgmse.ScoreSDE(sgmse.Config(
        **sgmse.PRESETS["tiny"] | dict(num_frames=24) | changes)))
    with pytest.raises(ValueError, match="expected a teacher of the preset edm, small or tiny"):
        tiny(teacher=str(path)).prepare(True)


def test_checkpoint_keeps_the_name_and_hash_of_its_teacher(teacher, tmp_path, monkeypatch):
    model = tiny(teacher=str(teacher))
    model.prepare(fresh=True)
    digest = hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert model.config.teacher == f"teacher.safetensors@{digest[:16]}"
    train.save_checkpoint(tmp_path / "student.safetensors", model)
    again = train.load_checkpoint(tmp_path / "student.safetensors")
    # Trained on without a teacher: the one of before is nobody's request.
    free = train.load_checkpoint(tmp_path / "student.safetensors", solver="renoise")
    free.prepare(fresh=False)
    assert free.config.teacher == "" and free.teacher is None
    # Trained on with it: found under its name; where it is not, or is another, the message asks for it.
    monkeypatch.chdir(tmp_path)
    again.prepare(fresh=False)
    assert again.teacher.record == model.config.teacher
    train.save_checkpoint(teacher, train.load_checkpoint(teacher), note="another file")
    with pytest.raises(ValueError, match="give its file with --teacher"):
        train.load_checkpoint("student.safetensors").prepare(fresh=False)
    teacher.unlink()
    with pytest.raises(ValueError, match="--teacher teacher.safetensors@.*no such file"):
        train.load_checkpoint("student.safetensors").prepare(fresh=False)


@pytest.mark.parametrize("changes", [dict(N=0), dict(t_eps=0.0), dict(t_eps=1.0)])
def test_constants_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=f"--{next(iter(changes)).replace('_', '-')}: "):
        consistency.Config(**changes)


@pytest.mark.parametrize("N", [1, 3])
def test_enhances_any_length_with_the_promised_calls(N):
    model, wave = tiny(N=N), torch.randn(2, 5003) * 0.1
    out = model.enhance(wave)
    assert out.shape == wave.shape and out.isfinite().all() and model.calls == N
    assert model.enhance(torch.zeros(1, 4000)).abs().max() < 1e-4


def test_train_resume_enhance_evaluate(teacher, corpus, tmp_path, capsys):
    """Distillation by command, killed half way; one call a recording afterwards."""
    flags = ("train", "--data", corpus, "--preset", "tiny", "--num-frames", "24", "--teacher", teacher,
             "--batch-size", "2", "--device", "cpu", "--valid-every", "0", "--valid-files", "1")
    check_commands(run, flags, corpus, tmp_path, capsys)


VARIANTS = [
    "--teacher TEACHER",
    "--teacher TEACHER --no-stochastic",
    "--teacher TEACHER --solver euler --no-stochastic",
    "--teacher TEACHER --solver euler",
    "--teacher TEACHER --solver heun --no-stochastic",
    "--teacher TEACHER --solver heun",
    "--teacher TEACHER --solver mix",
    "--teacher TEACHER --pesq-weight 1e-3",
    "--teacher TEACHER --pesq-weight 0",
    "--teacher TEACHER --si-sdr-weight 0",
    "--teacher TEACHER --pesq-weight 0 --si-sdr-weight 0",
    "--teacher TEACHER --consistency-weight 0",
    "--teacher TEACHER --weight snr",
    "--teacher TEACHER --strict",
    "--solver renoise",
    "--solver renoise_shared",
]


@pytest.mark.parametrize("flags", VARIANTS)
def test_variant_trains(flags, teacher, corpus, tmp_path):
    flags = flags.replace("TEACHER", str(teacher)).split()
    assert run("train", "--data", corpus, *flags, "--preset", "tiny", "--num-frames", "24", "--batch-size", "1",
               "--device", "cpu", "--valid-every", "0", "--steps", "1", "--out", tmp_path / "run") == 0
    assert math.isfinite(json.loads((tmp_path / "run/log.jsonl").read_text())["loss"])
