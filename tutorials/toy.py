"""The toy of all notebooks: one noisy point of the plane, and three places where the clean point may be.

A bin of a spectrogram is a point of the complex plane. The functions of the methods work on tensors (B, 1, 1, 1) without
change, and everything that a network has to learn has a closed form: Exact, velocity.
"""

import contextlib

import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
import torch
import torch.nn as nn
from IPython.display import display

import tools                                             # puts the methods on the path

import consistency
import drift
import losses
import meanflow
import sgmse
from data import per_bin

Y = 0.2 - 0.2j                                           # what is observed
WEIGHTS, PLACES, SPREAD = (0.5, 0.3, 0.2), (-0.6 + 0.3j, 0.5 + 0.6j, 0.4 - 0.6j), 0.1
MEAN = sum(w * m for w, m in zip(WEIGHTS, PLACES))       # lies in none of the three
VARIANCE = sum(w * abs(m - MEAN) ** 2 for w, m in zip(WEIGHTS, PLACES)) + SPREAD ** 2      # of x0 given y
SIGMA = 0.487                                            # noise at t = 1 of the MeanFlow path and of generators


# ------------------------------------------------------------------------------------------------ the truth

def clean(n, dtype=torch.complex64):
    """Samples of p(x0 | y), (n, 1, 1, 1): a place by its weight, plus noise."""
    which = torch.multinomial(torch.tensor(WEIGHTS), n, replacement=True)
    return per_bin(torch.tensor(PLACES, dtype=dtype)[which] + SPREAD * torch.randn(n, dtype=dtype))


def noisy(n, dtype=torch.complex64):
    """n times the observed point."""
    return torch.full((n, 1, 1, 1), Y, dtype=dtype)


def parts(x, a, b, std):
    """x = a x0 + b + std z: (probability r of each place, distance d from its mean, variance V of each part)."""
    V = a ** 2 * SPREAD ** 2 + std ** 2
    d = x - a * torch.tensor(PLACES, dtype=x.dtype) - b                    # (B, 1, 1, 3)
    return torch.softmax(torch.tensor(WEIGHTS).log() - d.abs().square() / V, -1), d, V


class Exact:
    """The exact score of any process on the toy: a function (x, y, t) like a network's."""

    def __init__(self, sde):
        self.sde = sde

    def parts(self, x, y, t):
        one, zero = torch.ones_like(x.real), torch.zeros_like(x.real)
        a, b = self.sde.mean(one, zero, t), self.sde.mean(torch.zeros_like(x), y, t)
        return *parts(x, a, b, per_bin(self.sde.std(t))), a

    def __call__(self, x, y, t):
        r, d, V, _ = self.parts(x, y, t)
        return -(r * d).sum(-1, keepdim=True) / V

    def clean(self, x, y, t):
        """E[x0 | x_t, y]."""
        r, d, V, a = self.parts(x, y, t)
        return (r * (torch.tensor(PLACES, dtype=x.dtype) + a * SPREAD ** 2 / V * d)).sum(-1, keepdim=True)


def velocity(x, t):
    """v = E[v_c | x_t] of the MeanFlow path, x (B, 1, 1, 1), t (B,)."""
    t = per_bin(t)
    r, d, V = parts(x, 1 - t, t * Y, t * SIGMA)
    places = torch.tensor(PLACES, dtype=x.dtype)
    return (r * (Y - places + (t * SIGMA ** 2 - (1 - t) * SPREAD ** 2) / V * d)).sum(-1, keepdim=True)


def flow(v, x, times, tolerance=1e-6):
    """Solve dx/dt = v(x, t) from times[0] on, adaptively: the states at all times, complex128 (times, B, 1, 1, 1)."""
    def real(t, flat):
        state = per_bin(torch.view_as_complex(torch.from_numpy(flat).reshape(-1, 2)))
        return torch.view_as_real(v(state, torch.full((len(state),), t, dtype=torch.float64)).flatten()).numpy().ravel()
    start = torch.view_as_real(x.to(torch.complex128).flatten()).numpy().ravel()
    y = scipy.integrate.solve_ivp(real, (times[0], times[-1]), start, t_eval=times, rtol=tolerance,
                                  atol=tolerance).y
    return torch.view_as_complex(torch.from_numpy(y.T.copy()).reshape(len(times), -1, 2))[..., None, None, None]


# ------------------------------------------------------------------------------------------------ measures and pictures

def rows(x):
    """Points (n, 1, 1, 1) as the rows (n, 2) of drift.py."""
    return torch.view_as_real(x.flatten())


def points(x):
    """Rows (n, 2) as points (n, 1, 1, 1)."""
    return per_bin(torch.view_as_complex(x.contiguous()))


def energy_distance(a, b):
    """2 E|a - b| - E|a - a'| - E|b - b'|: 0 for equal distributions."""
    a, b = (rows(x).double() for x in (a, b))
    apart = lambda p, q: torch.cdist(p, q).mean().item()
    return 2 * apart(a, b) - apart(a, a) - apart(b, b)


def fractions(x):
    """Fraction of the points nearest to each place; the truth is WEIGHTS."""
    nearest = (x.flatten()[:, None] - torch.tensor(PLACES, dtype=x.dtype)).abs().argmin(1)
    return (nearest.bincount(minlength=3) / len(nearest)).tolist()


def spread_within(x):
    """Standard deviation of the points about the place nearest to each, SPREAD = 0.1 for samples of the truth."""
    away = (x.flatten()[:, None] - torch.tensor(PLACES, dtype=x.dtype)).abs().amin(1)
    return away.square().mean().sqrt().item()


def floor(n, reference):
    """Energy distance to `reference` of n samples of the truth itself, without touching the random state."""
    with torch.random.fork_rng():
        torch.manual_seed(123)
        return energy_distance(clean(n), reference)


def report(name, x, reference):
    """Print the fractions, both spreads and the energy distance beside the values of the truth; return the distance."""
    distance, rounded = energy_distance(x, reference), lambda values: " ".join(f"{value:.2f}" for value in values)
    print(f"{name}: fractions {rounded(fractions(x))} (truth {rounded(WEIGHTS)}), spread {spread(x):.2f} "
          f"({VARIANCE ** 0.5:.2f}), within a place {spread_within(x):.3f} ({SPREAD:.3f}), energy distance "
          f"{distance:.4f} (floor {floor(x.numel(), reference):.4f})")
    return distance


def spread(x):
    """Standard deviation of the points, 0.69 for samples of the truth."""
    return x.flatten().std().item()


def draw(axis, end=None, start=None, paths=None, title=""):
    """The picture of every method: density of the places blue, y a black cross, starts grey dots, ends orange triangles,
    25 of the paths (times, B) grey lines.
    """
    grid = torch.linspace(-1.3, 1.3, 131)
    x = torch.complex(*torch.meshgrid(grid, grid, indexing="xy")).reshape(-1, 1, 1, 1)
    d = (x - torch.tensor(PLACES)).abs().square() / SPREAD ** 2
    density = (torch.tensor(WEIGHTS) * (-d / 4).exp()).sum(-1).sqrt().reshape(131, 131)
    axis.contourf(grid.numpy(), grid.numpy(), density.numpy(), np.linspace(0.1, 0.75, 8), cmap="Blues", extend="max",
                  alpha=0.75)
    dots = lambda x, **style: axis.scatter(x.flatten().real.numpy()[:400], x.flatten().imag.numpy()[:400],
                                           linewidth=0, **style)
    if start is not None:
        dots(start, s=7, color="0.55", alpha=0.6)
    if paths is not None:
        paths = paths.reshape(len(paths), -1)[:, :25].numpy()
        axis.plot(paths.real, paths.imag, color="0.35", linewidth=0.7, alpha=0.7)
    if end is not None:
        dots(end, s=13, marker="^", color="tab:orange", alpha=0.8, zorder=3)
    axis.plot(Y.real, Y.imag, "x", color="black", markersize=7, markeredgewidth=1.8, zorder=4)
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal", title=title,
             xlabel="real part")
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("imaginary part", labelpad=-2)
    else:
        axis.set_yticklabels([])


def animate(states, title):
    """Show the points on their way through states (times, B, 1, 1, 1): an animated SVG without a script, 60 points."""
    frames = states[np.linspace(0, len(states) - 1, min(len(states), 13)).round().astype(int)]
    ways = torch.view_as_real(frames.reshape(len(frames), -1)[:, :60]).permute(1, 0, 2).tolist()
    rest = max(1, len(frames) // 3)                      # at the end
    line = lambda way: "M" + "L".join(f"{x:.2f} {-y:.2f}" for x, y in (*way, *way[-1:] * rest))
    moving = lambda way: ('<circle r="0.03" fill="#e6550d"><animateMotion dur="5s" repeatCount="indefinite" '
                          f'calcMode="linear" path="{line(way)}"/></circle>')
    disc = lambda z, r, color: f'<circle cx="{z.real:.2f}" cy="{-z.imag:.2f}" r="{r}" fill="{color}"/>'
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1.3 -1.5 2.6 2.8" width="320" role="img">'
           f'<title>{title}</title><rect x="-1.3" y="-1.5" width="2.6" height="2.8" fill="#fff"/>'
           f'<text x="0" y="-1.36" font-size="0.12" text-anchor="middle" fill="#222">{title}</text>'
           + "".join(disc(place, 2 * SPREAD, "#9ecae1") for place in PLACES)
           + f'<path d="M{Y.real - 0.06} {-Y.imag - 0.06}l.12 .12m0 -.12l-.12 .12" stroke="#000" stroke-width="0.025"/>'
           + "".join(map(moving, ways)) + "</svg>")
    display({"image/svg+xml": svg, "text/plain": f"{title}: an animation, on the HTML page of this notebook"}, raw=True)


def panels(n, width=2.6):
    """A figure with n panels for `draw`, side by side."""
    figure, axes = plt.subplots(1, n, figsize=(width * n, width + 0.45), squeeze=False)
    return axes[0]


# ------------------------------------------------------------------------------------------------ small networks

class Plane(nn.Module):
    """A network for points: (x complex (B, 1, 1, 1), times (B,) each) -> complex (B, 1, 1, 1)."""

    def __init__(self, times=1, width=64, depth=3):
        super().__init__()
        sizes = [2 + 3 * times, *[width] * depth]
        layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x, *times):
        features = [x.real.flatten(), x.imag.flatten()]
        features += [f for t in times for f in (t, (4 * t).sin(), (4 * t).cos())]
        return per_bin(torch.view_as_complex(self.layers(torch.stack(features, 1))))


@contextlib.contextmanager
def one_thread():
    """Matrices this small are faster with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def fit(net, loss, steps, batch=512, lr=4e-3, average=None, decay=0.9):
    """Adam with a cosine schedule on fresh samples: the losses. loss: function (x0, y); average: a copy that follows."""
    opt = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    losses = []
    for _ in range(steps):
        value = loss(clean(batch), noisy(batch))
        opt.zero_grad()
        value.backward()
        opt.step()
        schedule.step()
        if average is not None:
            with torch.no_grad():
                for slow, new in zip(average.parameters(), net.parameters()):
                    slow.lerp_(new, 1 - decay)
        losses.append(value.item())
    return np.array(losses)


def learn_score(sde, steps=1500):
    """Denoising score matching: (score, losses)."""
    net = Plane()
    score = lambda x, y, t: net(x, t) / per_bin(sde.std(t))
    return score, fit(net, lambda x0, y: sgmse.dsm_loss(score, x0, y, sde), steps)


def learn_correction(sde, steps=1500, N=1, start=0.5):
    """CRP with a whole network from the beginning: (score, losses)."""
    net = Plane()
    score = lambda x, y, t: net(x, t) / per_bin(sde.std(t))
    return score, fit(net, lambda x0, y: sgmse.crp_loss(score, x0, y, sde, N, start), steps, batch=256)


def learn_consistency(sde, solver_step, steps=2000, decay=0.9):
    """Consistency distillation from a solver step (x, y, t, t_next) -> x_next: (f, losses)."""
    net, average = Plane(), Plane()
    average.load_state_dict(net.state_dict())
    std_eps = sde.std(torch.tensor([sde.t_eps]))

    def through(net):
        def f(x, y, t):
            _, c_skip, c_out = sgmse.edm_scaling(per_bin(sde.std(t)), std_eps=std_eps)
            return c_skip * x + c_out * net(x, t)
        return f

    def loss(x0, y):
        times, i = consistency.time_grid(sde), torch.randint(29, (len(x0),))
        return consistency.consistency_loss(through(net), through(average), solver_step, x0, y, times[i], times[i + 1],
                                            torch.randn_like(x0), sde)[0]
    return through(average), fit(net, loss, steps, average=average, decay=decay)


def learn_meanflow(c=1.0, steps=2000):
    """The average velocity, with c < 1 weighted towards the velocity at t: (u (x, r, t), losses)."""
    net = Plane(times=2)
    u = lambda x, r, t: net(x, t, t - r)

    def loss(x0, y):
        (r, t), z = meanflow.sample_times(len(x0)), torch.randn_like(x0)
        xt, v = meanflow.path(x0, y, t, z), meanflow.conditional_velocity(x0, y, z)
        now = u(xt, t, t)
        target = meanflow.average_velocity_target(u, xt, r, t, v, c, along=now)
        return losses.half_square(now - v) + losses.half_square(u(xt, r, t) - target)
    return u, fit(net, loss, steps)


def learn_generator(steps=1000, temperatures=(0.1, 0.5, 1.0), **options):
    """Drifting: a network maps noise to points, which follow the field: (generator (x), losses)."""
    net = Plane(times=0, width=128)

    def loss(x0, y):
        x = rows(net(y + SIGMA * torch.randn_like(y)))
        return drift.drifting_loss(x, rows(x0), temperatures, **options)
    return net, fit(net, loss, steps, batch=256, lr=5e-3)
