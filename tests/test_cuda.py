"""What a GPU computes is what a CPU computes. Skipped where there is no CUDA device."""

import functools

import numpy as np
import pytest
import torch

import consistency
import data
import dispatch
import drift
import meanflow
import nets
import sgmse
import train
from helpers import lively, run_command

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

VOICE = 0.3 * torch.sin(torch.cumsum(torch.full((2, 24000), 0.08), 1)) * torch.linspace(0, 1, 24000)
METHODS = {
    "score": (sgmse.ScoreSDE, dict()),
    "score matching": (sgmse.ScoreSDE, dict(objective="score_matching", version=1, c_skip="0")),
    "CRP": (sgmse.ScoreSDE, dict(crp="last", N=3, start=0.5)),
    "bridge": (sgmse.ScoreSDE, dict(sde="sbve", c=0.4, t_eps=1e-4, sampler="bridge_ode", N=3, pesq_weight=0.0)),
    "consistency": (consistency.ConsistencyModel, dict(solver="renoise")),
    "student": (dispatch.Student, dict(distil="none")),
    "recurrent student": (dispatch.Student, None),
    "MeanFlow": (meanflow.MeanFlowCorrector, dict()),
    "separator": (meanflow.MeanFlowCorrector, dict(separator="train")),
    "DriftSE": (drift.DriftSE, dict()),
    "dagger": (drift.DriftSE, drift.DAGGER | dict(magnitude_weight=5.0)),
}


@pytest.fixture(autouse=True)
def exact():
    """All digits of float32, and afterwards what was."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def drawn_on_the_host(monkeypatch):
    """Both devices hear the same random numbers."""
    def on_host(draw):
        return lambda *args, device=None, **options: draw(*args, **options).to(device or "cpu")

    for name in ("rand", "randn", "randint", "randperm"):
        monkeypatch.setattr(torch, name, on_host(getattr(torch, name)))
    randn, rand = torch.randn, torch.rand
    monkeypatch.setattr(torch, "randn_like", lambda x: randn(x.shape, dtype=x.dtype, device=x.device))
    monkeypatch.setattr(torch, "rand_like", lambda x: rand(x.shape, dtype=x.dtype, device=x.device))


def build(name, device):
    """A small one with random weights, ready to train."""
    Method, changes = METHODS[name]
    torch.manual_seed(0)
    preset = Method.presets["tiny"] if changes is not None else dict(distil="none", num_frames=32)
    method = lively(Method(Method.Config(**preset | (changes or {}))), 0.02)
    if hasattr(method, "prepare"):
        method.prepare(fresh=name != "CRP")
    method = method.to(device)
    method.ema, method.progress, method.store = train.EMA(method), 0.5, None
    method.ema.num_updates = 10 ** 6                     # beyond every schedule
    return method


def batch(method, device):
    waves = VOICE[:, :method.num_samples]
    waves = waves if waves.shape[1] == method.num_samples else VOICE.repeat(1, 8)[:, :method.num_samples]
    noise = 0.1 * torch.randn(waves.shape, generator=torch.Generator().manual_seed(1))
    return waves.to(device), (waves + noise).to(device)


def loss_and_gradient(name, device, autocast=False):
    method = build(name, device)
    torch.manual_seed(1)
    with torch.autocast(device, torch.bfloat16, enabled=autocast, cache_enabled=False):
        loss, _ = method.loss(batch(method, device))
    loss.backward()
    gradients = [p.grad for p in method.parameters() if p.requires_grad and p.grad is not None]
    return loss.item(), torch.cat([g.flatten() for g in gradients]).double().cpu()


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_those_of_the_host(name, drawn_on_the_host):
    (ours, g), (theirs, h) = loss_and_gradient(name, "cuda"), loss_and_gradient(name, "cpu")
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert (g - h).norm() < 1e-2 * h.norm()


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_keeps_loss_and_gradient_direction(name, drawn_on_the_host):
    (ours, g), (theirs, h) = loss_and_gradient(name, "cuda", autocast=True), loss_and_gradient(name, "cuda")
    assert ours == pytest.approx(theirs, rel=0.1)
    assert torch.cosine_similarity(g, h, dim=0) > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_enhanced_is_that_of_the_host(name, drawn_on_the_host):
    waves = []
    for device in ("cuda", "cpu"):
        method = build(name, device).eval()
        torch.manual_seed(2)
        with torch.inference_mode():
            waves.append(method.enhance(batch(method, device)[1]).cpu())
    assert (waves[0] - waves[1]).norm() < 1e-3 * waves[1].norm()


@pytest.mark.parametrize("name", ["drift_dagger", "speakers"])
def test_shipped_weights_give_the_waves_of_the_host(name, drawn_on_the_host):
    noisy, waves = VOICE + 0.05 * torch.randn(VOICE.shape), []
    noisy = noisy if name == "drift_dagger" else noisy.repeat(2, 1)[None]  # four microphones
    for device in ("cuda", "cpu"):
        torch.manual_seed(2)
        waves.append(train.load_checkpoint(name).to(device).enhance(noisy.to(device)).cpu())
    ours, theirs = waves
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_attention_and_channels_last_change_nothing():
    torch.manual_seed(0)
    net = nets.NCSNpp(2, 1, **nets.SMALL).cuda()
    x = torch.randn(2, 2, 256, 64, dtype=torch.complex64, device="cuda")
    t = torch.rand(2, device="cuda")
    with torch.no_grad():
        expected = net(x, t)
        ours = net.to(memory_format=torch.channels_last)(x, t)
    assert (ours - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("Method, flags", [(sgmse.ScoreSDE, ()), (drift.DriftSE, ("--pesq-weight", "0.1"))])
def test_commands_train_resume_and_enhance(Method, flags, precision, corpus, tmp_path, capsys):
    """Killed and resumed, the weights are those of the unbroken run, but for the order in which a GPU adds."""
    run = functools.partial(run_command, Method)
    common = ("train", "--data", corpus, "--preset", "tiny", "--num-frames", "64", "--batch-size", "2",
              "--workers", "2", "--device", "cuda", "--valid-every", "0", "--precision", precision, *flags)
    assert run(*common, "--steps", "4", "--out", tmp_path / "a") == 0
    for steps in ("2", "4"):
        assert run(*common, "--steps", steps, "--out", tmp_path / "b") == 0
    a, b = (torch.load(tmp_path / name / "last.pt", map_location="cpu", weights_only=True)["model"] for name in "ab")
    moved = sum((a[name] - p).float().square().sum() for name, p in b.items()) ** 0.5
    assert moved < 1e-3 * sum(p.float().square().sum() for p in a.values()) ** 0.5
    assert run("enhance", corpus / "test/noisy", "--checkpoint", tmp_path / "a/last.safetensors", "--device", "cuda",
               "--out", tmp_path / "enhanced") == 0
    waves = [data.load_audio(path)[0].numpy() for path in data.list_audio(tmp_path / "enhanced")]
    assert len(waves) == 2 and all(np.isfinite(wave).all() and wave.std() > 1e-4 for wave in waves)
