"""What several test files share."""

import dataclasses
import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import commands
import nets
import sgmse

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
# Of each module at the root that ends with commands.main(Class): its name and that class.
METHODS = {path.stem: getattr(importlib.import_module(path.stem), found[1]) for path in sorted(ROOT.glob("*.py"))
           if (found := re.search(r"^    commands\.main\((\w+)\)$", path.read_text(), re.M))}


def load(name):
    return np.load(FIXTURES / f"{name}.npz")


def replay(monkeypatch, draws):
    """Let torch.randn_like return these, in order."""
    draws = iter(draws)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.as_tensor(next(draws)).to(x.dtype))
    return draws


def lively(model, scale=0.1):
    """The model with random parameters in its network: at initialisation half of the branches of NCSN++ add nothing, and
    its output hardly depends on input or time.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.net.parameters():
            if p.requires_grad:
                p += scale * torch.randn(p.shape, generator=generator)
    return model


def run_command(Method, *arguments):
    """A command line of a method in this process, so that files and devices stay warm: its exit code."""
    before = sys.argv
    sys.argv = [f"{Method.__name__}.py", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            commands.main(Method)
    finally:
        sys.argv = before
    return stop.value.code


def check_commands(run, flags, corpus, folder, capsys):
    """Train for 4 steps, and for 2 and then 2 more: the same weights. Enhance and score the two test files: 2 calls."""
    assert run(*flags, "--steps", "4", "--out", folder / "a") == 0
    for steps in (2, 4):
        assert run(*flags, "--steps", steps, "--out", folder / "b") == 0
    a, b = (torch.load(folder / name / "last.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert not torch.equal(a["model"]["net.head.weight"], a["ema"]["shadow"]["net.head.weight"])
    capsys.readouterr()
    for command in (("enhance", corpus / "test/noisy"), ("evaluate", "--data", corpus, "--workers", "1")):
        assert run(*command, "--checkpoint", folder / "a/last.safetensors", "--out", folder / command[0]) == 0
        assert "2 network evaluations" in capsys.readouterr().out


# ---- memory ----

MEMORY = """
import sys, torch
torch.set_num_threads(1)
import nets
sys.path.insert(0, "tests")
from helpers import peak
{setup}
before = peak()
with torch.no_grad():
    {run}
print(peak() - before)
"""


def peak():
    """Most memory of this process so far in MiB; getrusage would give that of the process which started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells a process its own peak")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024


def growth(setup, run):
    """MiB by which the peak memory of a fresh process grows."""
    out = subprocess.run([sys.executable, "-c", MEMORY.format(setup=setup, run=run)], capture_output=True, text=True,
                         check=True, cwd=Path(nets.__file__).parent)
    return float(out.stdout)


# ---- a Gaussian world: x0 | y ~ N(m, s^2), so every score and every sampler is affine and can be solved ----

M, S, Y = 1.2 + 0.3j, 0.4, 2 - 1j


@dataclasses.dataclass(frozen=True)
class ExactStart(sgmse.OUVE):
    """The prior y + std z leaves out what x_T still knows of x0; here the reverse process starts from its true law."""

    def prior(self, y, t=None):
        t = torch.full((len(y),), self.T if t is None else t, dtype=y.real.dtype)
        mean, var = gaussian_marginal(self, y, t)
        return mean + var.sqrt() * torch.randn_like(y)


class ExactStartBBED(sgmse.BBED):
    prior = ExactStart.prior


def gaussian_marginal(sde, y, t):
    """Mean and variance of x_t given y."""
    m = torch.full_like(y, M)
    a = (sde.mean(torch.ones_like(y), torch.zeros_like(y), t)).real
    return sde.mean(m, y, t), a ** 2 * S ** 2 + sgmse.per_bin(sde.std(t)) ** 2


def gaussian_score(sde):
    def score(x, y, t):
        mean, var = gaussian_marginal(sde, y, t)
        return -(x - mean) / var
    return score


# ---- released checkpoints ----

def official_checkpoint(path, hyper_parameters, weights, payload=None):
    """A file in the layout of the reference's Lightning runs, class reference included."""
    module = types.ModuleType("sgmse.data_module")
    module.SpecsDataModule = type("SpecsDataModule", (), {"__module__": "sgmse.data_module"})
    sys.modules["sgmse.data_module"] = module
    try:
        torch.save({
            "state_dict": {f"dnn.{name}": torch.zeros_like(w) for name, w in weights.items()},
            "ema": {"decay": 0.999, "num_updates": 9000, "shadow_params": list(weights.values()),
                    "collected_params": None},
            "hyper_parameters": {**hyper_parameters, "data_module_cls": module.SpecsDataModule},
            "callbacks": {"best": np.float64(3.0)}, "epoch": 115, "payload": payload}, path)
    finally:
        del sys.modules["sgmse.data_module"]
