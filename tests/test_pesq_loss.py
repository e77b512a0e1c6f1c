"""PESQLoss against the numbers of torch-pesq, the package pesq and finite differences, and where gradients are hard."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import losses
import metrics
from losses import PESQLoss

AUDIO = Path(__file__).parents[1] / "tutorials" / "audio"
LOSS = PESQLoss()


def buzz():
    """Forty harmonics of 150 Hz that swell four times a second, (32640,), peak 0.5."""
    t = np.arange(32640) / 16000
    tones = sum(np.sin(2 * np.pi * 150 * k * t + 0.7 * k ** 2) / k for k in range(1, 41))
    x = tones * (1 - np.cos(2 * np.pi * 4 * t))
    return 0.5 * x / np.abs(x).max()


REF, W = buzz(), np.random.default_rng(0).standard_normal(32640)


def recordings():
    """[(clean, noise)] of the three tutorials, (62000,) each."""
    pairs = [[soundfile.read(AUDIO / which / f"{name}.flac", frames=62000)[0] for which in ("clean", "noisy")]
             for name in ("cheer", "waterfall", "windmill")]
    return [(clean, noisy - clean) for clean, noisy in pairs]


def mixed(clean, noise, snr_db):
    return clean + noise * np.sqrt((clean ** 2).sum() / (noise ** 2).sum()) * 10 ** (-snr_db / 20)


def speech(length=16000, snr_db=10, dtype=torch.float32):
    """Clean and noisy (3, length), one piece of each recording."""
    clean, noise = np.array(recordings()).swapaxes(0, 1)[:, :, 16000:16000 + length]
    noisy = np.array([mixed(s, n, snr_db) for s, n in zip(clean, noise)])
    return torch.tensor(clean, dtype=dtype), torch.tensor(noisy, dtype=dtype)


def gradients(clean, enhanced):
    """Losses, and their gradients in clean and in enhanced."""
    clean, enhanced = (x.clone().requires_grad_() for x in (clean, enhanced))
    loss = LOSS(clean, enhanced)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (clean, enhanced))


# ---- the right numbers ----

@pytest.mark.parametrize("degraded, d_s, d_a, loss, mos", [
    (REF + 0.001 * W, 6.2436, 27.4650, 1.4730, 3.3116),
    (REF + 0.003 * W, 10.9899, 38.3496, 2.2840, 2.2448),
    (REF + 0.01 * W, 19.0455, 45.0000, 3.2951, 1.4069),
    (REF + 0.03 * W, 28.9615, 45.0000, 4.2867, 1.1128),
    (REF.clip(-0.25, 0.25), 13.1011, 38.6114, 2.5032, 2.0032),
    (REF.clip(-0.1, 0.1), 18.9772, 41.2253, 3.1716, 1.4731),
])
def test_equals_torch_pesq(degraded, d_s, d_a, loss, mos):
    clean, enhanced = torch.tensor(REF).float(), torch.tensor(degraded).float()
    spectra = LOSS.compensated(*(LOSS.to(clean.device).bark_spectrum(x.double()) for x in (clean, enhanced)))
    assert [d.item() for d in LOSS.disturbances(*spectra)] == pytest.approx([d_s, d_a], rel=1e-5, abs=2e-4)
    assert LOSS(clean, enhanced).item() == pytest.approx(loss, abs=1e-4)
    assert PESQLoss.mos(LOSS(clean, enhanced)).item() == pytest.approx(mos, abs=1e-4)


def test_tables_have_the_sums_of_the_standard():
    widths, corrections, thresholds = (np.array(table.split(), dtype=float) for table in (
        losses.BAND_WIDTHS, losses.BAND_CORRECTIONS, losses.BAND_THRESHOLDS))
    assert [len(losses.BAND_BINS), sum(losses.BAND_BINS)] == [49, 256]
    assert [widths.sum(), widths[1:].sum()] == pytest.approx([21.335652, 21.178308], abs=1e-6)
    assert [corrections.sum(), thresholds.sum()] == pytest.approx([3739.972354, 219.0], abs=1e-6)
    assert LOSS.make_tables()["exponent"][[0, 10, 48]] == pytest.approx([0.2552, 0.2339, 0.2300], abs=1e-4)


def test_mos_of_numbers_arrays_and_tensors():
    losses, scores = [0.0, 1.0, 2.0, 3.0, 45 * 0.1309], [4.643889, 3.892888, 2.599303, 1.580150, 1.01204]
    assert [PESQLoss.mos(loss) for loss in losses] == pytest.approx(scores, abs=1e-5)
    assert PESQLoss.mos(np.array(losses)) == pytest.approx(scores, abs=1e-5)
    assert PESQLoss.mos(torch.tensor(losses)).tolist() == pytest.approx(scores, abs=1e-5)


def test_tracks_the_package_pesq():
    pytest.importorskip("pesq")
    audio, ours, theirs = recordings(), [], []
    for i, (clean, _) in enumerate(audio):
        for k, snr_db in enumerate((-5, 0, 5, 10, 15, 20, 25, 30, 40)):      # every noise with every voice
            piece = slice(26000 * (k % 2), 26000 * (k % 2) + 36000)      # 2.25 s
            s, n = clean[piece], audio[(i + k) % 3][1][piece]
            y = mixed(s, n, snr_db)
            ours.append(PESQLoss.mos(LOSS(torch.tensor(s), torch.tensor(y))).item())
            theirs.append(metrics.pesq(s, y))
    difference, ranks = np.array(ours) - theirs, np.argsort([ours, theirs]).argsort()
    assert len(ours) == 27 and max(theirs) - min(theirs) > 2
    assert np.corrcoef(ranks)[0, 1] > 0.97      # Spearman's
    assert np.abs(difference).mean() < 0.05 and np.abs(difference).max() < 0.25


def test_following_the_gradient_raises_pesq():
    pytest.importorskip("pesq")
    clean, noisy = speech(24000)
    x = noisy.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=1e-3)
    for _ in range(10):
        optimiser.zero_grad()
        LOSS(clean, x).sum().backward()
        optimiser.step()
    gain = metrics.pesq(clean, x) - metrics.pesq(clean, noisy)
    assert gain.min() > 0.03 and gain.mean() > 0.1


# ---- the gradient ----

@pytest.mark.parametrize("snr_db", [0, 15, 30])
def test_gradient_equals_finite_differences(snr_db):
    clean, noisy = speech(8000, snr_db, torch.float64)
    _, *slopes = gradients(clean, noisy)
    direction = torch.randn(clean.shape, dtype=torch.float64, generator=torch.manual_seed(0))
    direction *= clean.square().mean().sqrt()
    for slope, (in_clean, in_noisy) in zip(slopes, ((direction, 0), (0, direction))):
        higher, lower = (LOSS(clean + h * in_clean, noisy + h * in_noisy) for h in (1e-7, -1e-7))
        assert (slope * direction).sum(-1).tolist() == pytest.approx(((higher - lower) / 2e-7).tolist(), rel=1e-4)


def padded(x):
    return torch.nn.functional.pad(x[..., 9000:-9000], (9000, 9000))


SPEECH, NOISY = speech(24000)
DITHER = 1e-7 * torch.randn(NOISY.shape, generator=torch.manual_seed(1))


@pytest.mark.parametrize("clean, enhanced", [
    (SPEECH, SPEECH),
    (SPEECH, -SPEECH),
    (SPEECH, 10 * SPEECH),
    (SPEECH, (20 * SPEECH).clamp(-1, 1)),
    (padded(SPEECH), padded(NOISY)),
    (padded(SPEECH), padded(NOISY) + DITHER),
    (padded(SPEECH), padded(SPEECH)),
    (padded(SPEECH), NOISY),
    (SPEECH, torch.ones_like(SPEECH)),
    (SPEECH, torch.eye(3, SPEECH.shape[1])),
    (NOISY, SPEECH),
    (1e-5 * SPEECH, 1e5 * NOISY),
], ids=["identical", "negated", "louder", "clipped", "padded", "almost silent", "padded and identical",
        "clean padded", "constant", "impulse", "noisy reference", "far levels"])
def test_gradient_is_finite(clean, enhanced):
    loss, *slopes = gradients(clean, enhanced)
    assert loss.dtype == torch.float32 and ((0 <= loss) & (loss <= 5.8906)).all()
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("clean, enhanced, expected", [
    (0 * SPEECH, 0 * SPEECH, 0), (0 * SPEECH, NOISY, 0), (SPEECH, 0 * SPEECH, 5.8905), (SPEECH, DITHER, 5.8905),
], ids=["both", "clean", "estimate", "estimate below -120 dB"])
def test_silence_has_a_loss_and_no_gradient(clean, enhanced, expected):
    loss, *slopes = gradients(clean, enhanced)
    assert loss.tolist() == pytest.approx([expected] * 3, abs=1e-6)
    assert all((slope == 0).all() for slope in slopes)


def test_silent_item_leaves_the_others_alone():
    clean, noisy = SPEECH.clone(), NOISY.clone()
    clean[0] = noisy[1] = 0
    loss, *slopes = gradients(clean, noisy)
    alone, *their_slopes = gradients(SPEECH[2:], NOISY[2:])
    assert loss.tolist() == pytest.approx([0, 5.8905, alone.item()], rel=1e-6)
    assert all(torch.allclose(a[2], b[0], rtol=1e-6, atol=0) and b.any() for a, b in zip(slopes, their_slopes))


def test_identical_signals_have_loss_zero_and_no_gradient():
    loss, *slopes = gradients(SPEECH, SPEECH)
    assert loss.tolist() == [0, 0, 0] and not any(slope.any() for slope in slopes)


# ---- levels, batches, precision ----

def test_levels_do_not_matter():
    loss = LOSS(SPEECH, NOISY)
    for gain, gain_of_noisy in ((10, 10), (1e-3, 1e-3), (32768, 32768), (1, 3), (0.1, 1)):
        assert LOSS(gain * SPEECH, gain_of_noisy * NOISY).tolist() == pytest.approx(loss.tolist(), rel=1e-5)


def test_batch_is_its_items_one_by_one():
    batch = LOSS(SPEECH, NOISY)
    one_by_one = [LOSS(s, y) for s, y in zip(SPEECH, NOISY)]
    assert batch.shape == (3,) and all(loss.shape == () for loss in one_by_one)
    assert batch.tolist() == pytest.approx([loss.item() for loss in one_by_one], rel=1e-6)
    assert len(set(batch.tolist())) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    outside = gradients(SPEECH, NOISY)
    with torch.autocast("cpu", dtype):
        inside = gradients(SPEECH, NOISY)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside))


def test_precision_is_that_of_the_inputs_and_single_at_least():
    exact = LOSS(SPEECH.double(), NOISY.double())
    assert exact.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 0.01)):
        clean, noisy = SPEECH.to(dtype), NOISY.to(dtype, copy=True).requires_grad_()
        loss = LOSS(clean, noisy)
        loss.sum().backward()
        assert loss.dtype == torch.float32 and noisy.grad.dtype == dtype
        assert loss.tolist() == pytest.approx(exact.tolist(), rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_loss_and_gradient():
    for here, there in zip(gradients(SPEECH, NOISY), gradients(SPEECH.cuda(), NOISY.cuda())):
        assert there.is_cuda and torch.allclose(here, there.cpu(), rtol=1e-4, atol=1e-6 * here.abs().max())


# ---- its owner, its inputs ----

def test_its_owner_s_state_dict_is_empty():
    owner = torch.nn.Module()
    owner.pesq = PESQLoss()
    before = owner.pesq(SPEECH, NOISY)
    owner.bfloat16()
    assert owner.state_dict() == {} and torch.equal(owner.pesq(SPEECH, NOISY), before)


def test_trains_after_a_first_use_in_inference_mode():
    loss = PESQLoss()
    with torch.inference_mode():
        score = loss(SPEECH, NOISY)
    y = NOISY.clone().requires_grad_()
    loss(SPEECH, y).sum().backward()
    assert y.grad.any() and torch.equal(loss(SPEECH, NOISY), score)


def test_shortest_signal():
    assert LOSS(SPEECH[:, :5376], NOISY[:, :5376]).isfinite().all()
    with pytest.raises(ValueError, match="5376 samples.*got 5375"):
        LOSS(SPEECH[:, :5375], NOISY[:, :5375])


@pytest.mark.parametrize("clean, enhanced", [(SPEECH, NOISY[:, 1:]), (SPEECH, NOISY[:1]), (SPEECH[0], NOISY),
                                             ((32768 * SPEECH).short(), NOISY), (SPEECH, (32768 * NOISY).short())])
def test_signals_unlike_in_shape_or_whole_numbers_are_refused(clean, enhanced):
    with pytest.raises(ValueError, match=r"\(B, L\)"):
        LOSS(clean, enhanced)
