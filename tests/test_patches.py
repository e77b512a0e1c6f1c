"""Selective-patch distillation in consistency.py against small cases worked out by hand, and door to door."""

import math

import pytest
import torch

import consistency
import dispatch
import losses
import nets
import sgmse
import train
from dispatch import (Config as StudentConfig, Student, band_split, cosine_distance, knowledge_gap_score, magnitude_error,
                         patch_mean, patches, select, selective_frequency_loss, selective_patch_loss)
from helpers import run_command


def spectrum(rows):
    """Frequency (rows) by frame (columns), one utterance, complex (1, F, frames)."""
    return torch.tensor(rows, dtype=torch.complex128)[None]


Y = spectrum([[1, 0], [2, 1], [0, 3], [1, 1]])
S = spectrum([[0, 0], [2, 0], [1, 1], [1, 2]])
T = spectrum([[1, 0], [1, 1], [0, 2], [2, 1]])


def errors(a, b, size):
    return patch_mean(magnitude_error(a, b), size)[0]


def same(tensor, rows):
    torch.testing.assert_close(tensor, torch.tensor(rows, dtype=tensor.dtype), atol=1e-6, rtol=0)


def gaps(S, T, size=2):
    return knowledge_gap_score(errors(S, Y, size), errors(T, Y, size))[None]


def test_patch_errors_and_the_sign_of_the_gap():
    same(errors(S, Y, 2), [[0.5, 0.5], [0.5, 2.5]])
    same(errors(T, Y, 2), [[0.5, 0], [0.5, 0.5]])
    same(gaps(S, T)[0], [[0, 0.5], [0, 2]])              # positive: the teacher is closer to clean
    same(errors(S, T, 2), [[1, 0.5], [1, 1]])


def test_selection_is_by_rank():
    assert select(gaps(S, T), 0.5)[0].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("keep, published, by_count", [(0.1, 2.5, 1.0), (0.5, 0.75, 0.75), (0.75, 1.166667, 0.875),
                                                       (1, 0.875, 0.875)])
def test_loss_by_nominal_or_kept_number(keep, published, by_count):
    loss = lambda **options: selective_patch_loss(S, T, Y, 2, keep, **options).item()
    assert loss() == pytest.approx(published, abs=1e-6)
    assert loss(exact=False) == pytest.approx(by_count, abs=1e-6)
    for exact in (True, False):                          # there is no nominal number
        assert loss(rule="positive", exact=exact) == pytest.approx(0.75)


def test_sign_is_ignored_unless_asked_for():
    """Roles exchanged: the teacher is never better, and its patches are distilled all the same."""
    same(gaps(T, S)[0], [[0, -0.5], [0, -2]])
    assert select(gaps(T, S), 0.5)[0].tolist() == [[True, False], [True, False]]
    assert selective_patch_loss(T, S, Y, 2, 0.5).item() == pytest.approx(1.0)
    assert selective_patch_loss(T, S, Y, 2, 0.25).item() == pytest.approx(2.0)
    for rule in ("positive", "both"):
        for exact in (True, False):
            assert selective_patch_loss(T, S, Y, 2, 0.5, rule, exact).item() == 0


def test_padding_counts_as_released_and_not_as_recommended():
    same(errors(S, Y, 3), [[0.666667, 1.666667], [0, 0.333333]])
    same(errors(T, Y, 3), [[0.333333, 0.333333], [0.333333, 0]])
    same(errors(S, T, 3), [[1, 0.666667], [0.333333, 0.333333]])
    everywhere = torch.ones_like(S, dtype=torch.bool)
    same(patch_mean(magnitude_error(S, Y), 3, everywhere)[0], [[0.666667, 1.666667], [0, 1]])


@pytest.mark.parametrize("size, bands, padded", [(10, 26, 3), (20, 13, 3), (40, 7, 23)])
def test_band_counts(size, bands, padded):
    cut = patches(torch.ones(1, 257, 501), size)
    assert cut.shape == (1, bands, size, 501) and (cut == 0).sum() == padded * 501
    score = torch.randn(1, bands, 501)
    assert select(score).sum() == int(0.8 * bands * 501) == {10: 10420, 20: 5210, 40: 2805}[size]


def test_cosine_distance():
    column = lambda x: torch.tensor(x, dtype=torch.complex128)[None, :, None]
    distance = lambda a, b: cosine_distance(column(a), column(b), 2).item()
    assert distance([1, 1j], [1, 1]) == pytest.approx(0.5)
    assert distance([1, 2j], [1, 2j]) == pytest.approx(0, abs=1e-7)
    assert distance([1, 2j], [-1, -2j]) == pytest.approx(2, abs=1e-7)
    assert distance([1, 2j], [0, 0]) == pytest.approx(1)
    assert distance([1, 2j], [3, 1]) == pytest.approx(distance([5, 10j], [3, 1]), abs=1e-7)
    assert distance([1, 2], [1j, 2j]) == pytest.approx(1)


def test_band_split():
    assert band_split(torch.tensor([0.1, 0.2, 1, 0.5, 1.5])[None, :, None]).item() == 1


def test_band_split_takes_the_rise_relative_to_what_is_below():
    """From 0.1 to 0.5 the maximum is five times as large, from 0.5 to 1.5 three times, though that step is larger."""
    assert band_split(torch.tensor([0.1, 0.5, 1.5, 1.0])[None, :, None]).item() == 0


def full_example():
    T = spectrum([[.1, .5], [.2, .6], [1, 2.4], [.5, 1], [1.5, .3], [.2, .1]])
    Y = spectrum([[.1, .4], [.3, .6], [1.2, 2], [.5, 1.2], [1.5, .2], [.1, .1]])
    magnitude = torch.tensor([[.3, .4], [.1, .1], [.6, 2], [.9, .2], [1, .9], [.5, .6]], dtype=torch.float64)
    phase = torch.tensor([[0, .2], [.3, 0], [0, .5], [.1, 0], [0, 0], [0, .4]], dtype=torch.float64)
    return torch.polar(magnitude, phase)[None], T, Y


@pytest.mark.parametrize("high, keep, expected", [(3, .5, 0.613733), (3, .8, 0.556704), (3, 1, 0.450969),
                                                  (2, .5, 0.506088), (2, .8, 0.483987), (2, 1, 0.388787)])
def test_frequency_dependent_loss(high, keep, expected):
    S, T, Y = full_example()
    assert band_split(T).tolist() == [[1, 1]]
    assert selective_frequency_loss(S, T, Y, 2, high, keep).item() == pytest.approx(expected, abs=1e-6)


def test_split_bin_is_in_both_bands_as_released():
    """With patches of one bin and all of them kept, each part is a mean over the bins of its band."""
    S, T, Y = full_example()
    d, m = cosine_distance(S, T, 1)[0], magnitude_error(S, T)[0]           # (6, 2); the split is bin 1 in both frames
    for exact, first in ((True, 1), (False, 2)):
        expected = d[:2].mean() + (0.3 * d + 0.7 * m)[first:].mean()
        assert selective_frequency_loss(S, T, Y, 1, 1, 1, 0.3, exact=exact).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("high", [2, 3, 4])
def test_recommended_means_are_over_the_bins_of_the_band(high):
    """By loops: bins 2 to 5 of both frames are above the split; zeros of the other band and beyond the top do not count."""
    S, T, Y = full_example()
    bins = {frame: [[k for k in range(first, first + high) if 2 <= k < 6] for first in range(0, 6, high)] for frame in (0, 1)}
    total, count = 0, 0
    for frame, bands in bins.items():
        for inside in filter(None, bands):
            s, t = S[0, inside, frame], T[0, inside, frame]
            cosine = 1 - (s * t.conj()).sum().real / (s.norm() * t.norm())
            total += 0.3 * cosine + 0.7 * (s.abs() - t.abs()).square().mean()
            count += 1
    below = cosine_distance(S * (torch.arange(6) < 2)[None, :, None], T * (torch.arange(6) < 2)[None, :, None], 6).mean()
    loss = selective_frequency_loss(S, T, Y, 6, high, 1, 0.3, exact=False)
    assert loss.item() == pytest.approx((below + total / count).item(), abs=1e-6)


LOSSES = {"response": selective_patch_loss, "frequency": selective_frequency_loss}


def noise(B=3, F=65, frames=20):
    return tuple(torch.randn(B, F, frames, dtype=torch.complex128) for _ in range(3))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_invariants(name, exact):
    torch.manual_seed(0)
    loss, (S, T, Y) = LOSSES[name], noise()
    assert loss(S, S, Y, exact=exact).item() == pytest.approx(0, abs=1e-6)
    order = [2, 0, 1]
    assert loss(S[order], T[order], Y[order], exact=exact).item() == pytest.approx(loss(S, T, Y, exact=exact).item())
    leaves = [x.clone().requires_grad_() for x in (S, T, Y)]
    loss(*leaves, keep=0.3, exact=exact).backward()
    assert leaves[1].grad is None and leaves[2].grad is None
    assert leaves[0].grad.isfinite().all() and leaves[0].grad.abs().sum() > 0


def test_gradient_stays_in_the_selected_patches():
    torch.manual_seed(0)
    S, T, Y = noise()
    S.requires_grad_()
    error = lambda a, b: patch_mean(magnitude_error(a, b), 20)
    mask = select(knowledge_gap_score(error(S, Y), error(T, Y)), 0.3)
    selective_patch_loss(S, T, Y, 20, 0.3).backward()
    touched = patches(S.grad.abs(), 20).sum(2) > 0
    assert torch.equal(touched, mask) and 0 < mask.float().mean() < 0.35


def test_gap_of_a_perfect_student_and_of_a_perfect_teacher():
    torch.manual_seed(0)
    S, T, Y = noise()
    error = lambda a, b: patch_mean(magnitude_error(a, b), 20)
    assert (knowledge_gap_score(error(Y, Y), error(T, Y)) <= 0).all()
    assert (knowledge_gap_score(error(S, Y), error(Y, Y)) >= 0).all()
    torch.testing.assert_close(error(S, Y), error(S, T * 0 + Y))


def test_level_scales_the_response_loss_and_leaves_its_selection():
    torch.manual_seed(0)
    S, T, Y = noise()
    loss = [selective_patch_loss(a * S, a * T, a * Y).item() for a in (1, 3)]
    assert loss[1] == pytest.approx(9 * loss[0])


def test_rules_agree_on_the_size_and_differ_in_the_choice():
    torch.manual_seed(0)
    score = torch.randn(2, 13, 50)
    top, drawn, both = (select(score, 0.4, rule) for rule in ("top_k", "random", "both"))
    assert top.sum((1, 2)).tolist() == drawn.sum((1, 2)).tolist() == [math.floor(0.4 * 650)] * 2
    assert (top & drawn).float().mean() == pytest.approx(0.16, abs=0.04)   # chance
    assert torch.equal(both, top & (score > 0)) and torch.equal(select(score, 0.4, "positive"), score > 0)


def test_candidates_alone_take_part():
    score, candidates = torch.arange(12.).reshape(1, 3, 4), torch.zeros(1, 3, 4, dtype=torch.bool)
    candidates[0, 0] = True
    assert select(score, 0.5, candidates=candidates).nonzero()[:, 1:].tolist() == [[0, 2], [0, 3]]
    assert not select(score, 0.5, candidates=torch.zeros_like(candidates)).any()


# ---- networks and training ----

def run(command, *flags):
    """As python dispatch.py does it."""
    return run_command(Student, command, *flags)


def student(**changes):
    torch.manual_seed(0)
    return Student(StudentConfig(**dict(num_frames=60) | changes))


@pytest.fixture
def teacher(tmp_path):
    """A compact teacher with weights of its own."""
    torch.manual_seed(1)
    path = tmp_path / "teacher.safetensors"
    train.save_checkpoint(path, Student(StudentConfig(distil="none", hidden=64, layers=2, num_frames=60)))
    return path


def waves(model):
    torch.manual_seed(2)
    clean, noise = torch.randn(2, 2, model.num_samples) * 0.1
    return clean, clean + noise


def test_sizes_of_the_compact_pair():
    size = lambda preset: sum(p.numel() for p in Student(StudentConfig(**Student.presets[preset])).parameters())
    assert (size("teacher"), size("paper")) == (921_601, 39_089)


def test_mask_lies_between_0_and_1_and_looks_at_no_later_frame():
    torch.manual_seed(0)
    net, y = nets.MaskGRU(33, 8, 2), torch.randn(2, 1, 33, 20, dtype=torch.complex64)
    mask = net(y) / y
    assert mask.imag.abs().max() < 1e-5 and 0 < mask.real.min() and mask.real.max() < 1
    changed = y.clone()
    changed[..., 12:] *= 3
    torch.testing.assert_close(net(changed)[..., :12], net(y)[..., :12])
    assert not torch.allclose(net(changed)[..., 12:] / changed[..., 12:], mask[..., 12:])


@pytest.mark.parametrize("config, loss", [
    (dict(), lambda *x: selective_frequency_loss(*x, 20, 20)),
    (dict(low=10, high=40, beta=0.3), lambda *x: selective_frequency_loss(*x, 10, 40, beta=0.3)),
    (dict(exact=False, rule="both"), lambda *x: selective_frequency_loss(*x, 20, 20, exact=False, rule="both")),
    (dict(distance="response", keep=0.5), lambda *x: selective_patch_loss(*x, 20, 0.5)),
    # All of the teacher: no patches, that is one patch per band, and every one of them.
    (dict(distil="all"), lambda *x: selective_frequency_loss(*x, *2 * x[0].shape[1:2], keep=1.0)),
    (dict(distil="all", distance="response"), lambda S, T, Y: magnitude_error(S, T).mean()),
])
def test_settings_name_the_distillation(config, loss):
    model = student(**config)
    spectra = noise()
    torch.testing.assert_close(model.distillation(*spectra), loss(*spectra))


@pytest.mark.parametrize("rule", ["top_k", "positive", "both"])
def test_all_of_the_teacher_is_all_whatever_the_rule(rule):
    S, T, Y = noise()
    for distance in LOSSES:
        expected = student(distil="all", distance=distance).distillation(S, T, Y)
        torch.testing.assert_close(student(distil="all", distance=distance, rule=rule).distillation(S, T, Y), expected)


@pytest.mark.parametrize("changes", [dict(keep=0.0), dict(keep=1.5), dict(beta=-0.1), dict(beta=1.1), dict(low=0),
                                     dict(high=0), dict(hidden=0), dict(layers=0)])
def test_shares_and_sizes_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=f"--{next(iter(changes))}: "):
        StudentConfig(**changes)


def test_patches_are_those_of_a_plain_512_sample_stft():
    wave = torch.randn(1, 4096)
    expected = torch.stft(wave, 512, 128, window=torch.hann_window(512), return_complex=True)
    torch.testing.assert_close(student().patch_spectrogram(wave)[..., :expected.shape[-1]], expected)


def test_u_net_corrects_and_the_compact_network_masks():
    y = torch.randn(1, 1, 256, 16, dtype=torch.complex64)
    model = student(**Student.presets["tiny"])
    model.net.forward = lambda x: 0.5 * x
    torch.testing.assert_close(model.sample(y), 1.5 * y)
    model = student(n_fft=510)
    model.net.forward = lambda x: 0.5 * x
    torch.testing.assert_close(model.sample(y), 0.5 * y)


def test_mask_comes_from_the_logarithm_of_the_magnitudes():
    """Layer by layer; magnitudes below 1e-4 count as that."""
    torch.manual_seed(0)
    net, y = nets.MaskGRU(33, 8, 1), torch.randn(2, 1, 33, 20, dtype=torch.complex64)
    y[..., 5] = 1e-9
    x = y[:, 0].abs().clamp(min=1e-4).log().transpose(1, 2)
    mask = torch.sigmoid(net.decoder(net.gru(net.encoder(x))[0])).transpose(1, 2)[:, None]
    torch.testing.assert_close(net(y), mask * y)


def test_random_patches_are_drawn_anew_and_blindly():
    S, T, Y = noise()
    random, chosen = (student(distil=name, distance="response", keep=0.5) for name in ("random", "selective"))
    assert len({random.distillation(S, T, Y).item() for _ in range(3)}) == 3

    def losses(model):
        for clean in (Y, T):
            torch.manual_seed(3)
            yield model.distillation(S, T, clean).item()
    assert len(set(losses(random))) == 1 and len(set(losses(chosen))) == 2


def test_feature_loss_compares_similarity_where_selected():
    """Against two loops over frames; it sees neither the size of features nor their directions, only their angles."""
    S, T, Y = noise()
    h_S, h_T = torch.randn(len(S), S.shape[2], 5), torch.randn(len(S), S.shape[2], 7)
    loss = dispatch.selective_feature_loss(h_S, h_T, S, T, Y, 20, 0.3)
    error = lambda a, b: patch_mean(magnitude_error(a, b), 20)
    mask, expected = select(knowledge_gap_score(error(S, Y), error(T, Y)), 0.3), 0
    for a, b, m in zip(h_S, h_T, mask):
        share, total, weights = m.float().mean(0), 0, 0
        for i in range(len(a)):
            for j in range(len(a)):
                cosines = [torch.cosine_similarity(h[i], h[j], dim=0) for h in (a, b)]
                total += share[i] * share[j] * (cosines[1] - cosines[0]) ** 2
                weights += share[i] * share[j]
        expected += total / weights / len(h_S)
    torch.testing.assert_close(loss, expected)
    turned = torch.linalg.qr(torch.randn(7, 7))[0]
    torch.testing.assert_close(dispatch.selective_feature_loss(h_S, 3 * h_T @ turned, S, T, Y, 20, 0.3), loss)
    torch.testing.assert_close(dispatch.selective_feature_loss(h_T @ turned, h_T, S, T, Y), torch.tensor(0.0))
    chosen = {rule: dispatch.selective_feature_loss(h_S, h_T, S, T, Y, 20, 0.3, rule).item()
              for rule in ("top_k", "random", "positive")}
    assert len(set(chosen.values())) == 3
    h_S.requires_grad_()
    h_T.requires_grad_()
    dispatch.selective_feature_loss(h_S, h_T, S, T, Y).backward()
    assert h_S.grad.abs().sum() > 0 and h_T.grad is None


def test_a_teacher_of_several_speakers_is_refused(tmp_path):
    import meanflow
    config = meanflow.Config(**meanflow.PRESETS["tiny"] | dict(separator="train", separator_size="compact", num_speakers=2))
    train.save_checkpoint(tmp_path / "two.safetensors", meanflow.MeanFlowCorrector(config))
    with pytest.raises(ValueError, match="two.safetensors takes several microphones or separates speakers"):
        student(teacher=str(tmp_path / "two.safetensors")).prepare(fresh=True)


def test_features_are_distilled_between_recurrent_networks_alone(teacher, tmp_path):
    model = student(teacher=str(teacher), distance="feature", distil_weight=3.0)
    model.prepare(fresh=True)
    clean, noisy = waves(model)
    loss, parts = model.loss((clean, noisy))
    enhanced, other = model.enhance(noisy, torch.ones(2, 1)), train.load_checkpoint(teacher)
    spectra = [model.patch_spectrogram(wave) for wave in (enhanced, other.enhance(noisy), clean)]
    h = [m.net.gru(m.net.encoder(m.spectrogram(noisy).abs().clamp(min=1e-4).log().transpose(1, 2)))[0]
         for m in (model, other)]
    assert h[0].shape[:2] == h[1].shape[:2] and h[0].shape[2] != h[1].shape[2]
    distilled = dispatch.selective_feature_loss(*h, *spectra)
    torch.testing.assert_close(loss, losses.si_sdr_loss(clean, enhanced).mean() + 3 * distilled)
    model.store, before = tmp_path / "store", model.teacher.model.calls
    for _ in range(2):                                   # the second time, waves and features are read
        torch.testing.assert_close(model.loss((clean, noisy))[0], loss)
    assert len(list(model.store.iterdir())) == 4 and model.teacher.model.calls == before + 2
    with pytest.raises(ValueError, match="the student has none"):
        student(**Student.presets["tiny"] | dict(teacher=str(teacher), distance="feature")).prepare(True)
    with pytest.raises(ValueError, match="--hop-length 128; the student has none"):
        student(teacher=str(teacher), distance="feature", hop_length=256).prepare(True)
    u_net = Student(StudentConfig(**Student.presets["tiny"] | dict(distil="none")))
    train.save_checkpoint(tmp_path / "u.safetensors", u_net)
    with pytest.raises(ValueError, match="the teacher has none"):
        student(teacher=str(tmp_path / "u.safetensors"), distance="feature").prepare(True)


def test_gain_that_si_sdr_leaves_open_is_tracked():
    """A U-Net seven times too loud ends at the level of clean speech, in windows without speech, too."""
    model = student(**Student.presets["tiny"] | dict(distil="none"))
    noisy = waves(model)[1]
    model.net.forward = lambda y: (7 ** 0.5 - 1) * y     # of compressed spectra
    model.loss((noisy, noisy))
    assert model.gain == 1                               # until the weights are updated, too
    model.after_update()
    assert model.gain.item() == pytest.approx(1 + 0.01 * (1 / 7 - 1), rel=1e-3)
    model.gain.fill_(1 / 7)
    model.loss((noisy, noisy))
    model.after_update()
    assert model.gain.item() == pytest.approx(1 / 7, rel=1e-3)
    torch.testing.assert_close(model.enhance_wave(noisy), noisy, atol=0.01, rtol=0)
    for told in (dict(task="mse"), dict(network="mask")):
        other = student(**Student.presets["tiny"] | dict(distil="none") | told)
        other.loss((noisy, noisy))
        other.after_update()
        assert other.gain == 1


def test_loss_is_the_task_s_plus_the_weighted_distillation(teacher):
    model = student(teacher=str(teacher), distil_weight=3.0, warmup=2)
    model.prepare(fresh=True)
    assert model.config.teacher.startswith("teacher.safetensors@")
    clean, noisy = waves(model)
    loss, parts = model.loss((clean, noisy))
    loss.backward()
    enhanced, taught = model.enhance(noisy, torch.ones(2, 1)), train.load_checkpoint(teacher).enhance(noisy)
    spectra = (model.patch_spectrogram(wave) for wave in (enhanced, taught, clean))
    expected = losses.si_sdr_loss(clean, enhanced).mean() + 3 * selective_frequency_loss(*spectra, 20, 20)
    torch.testing.assert_close(loss, expected)
    assert parts.keys() == {"si_sdr", "distilled"} and all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.model.parameters())
    assert not any("teacher" in name for name in model.state_dict())

    model.ema = train.EMA(model)                         # of a training that has made no step: the task alone
    loss, parts = model.loss((clean, noisy))
    torch.testing.assert_close(loss, losses.si_sdr_loss(clean, enhanced).mean())
    model.ema.num_updates = 2
    assert "distilled" in model.loss((clean, noisy))[1]


def test_task_mse_is_the_error_of_the_compressed_spectrogram():
    model = student(distil="none", task="mse", exponent=0.5, factor=0.15)
    clean, noisy = waves(model)
    loss, parts = model.loss((clean, noisy))
    a, b = (model.spectrogram(wave) for wave in (model.enhance(noisy, torch.ones(2, 1)), clean))
    torch.testing.assert_close(loss, ((a - b).real ** 2 + (a - b).imag ** 2).mean())
    assert parts.keys() == {"mse"} and loss > 0


def test_teacher_must_be_there_exactly_where_it_teaches(teacher):
    with pytest.raises(ValueError, match="needs a --teacher"):
        student().prepare(True)
    with pytest.raises(ValueError, match="takes no --teacher"):
        student(distil="none", teacher=str(teacher)).prepare(True)


FLAGS = ("--num-frames", "60", "--batch-size", "2", "--device", "cpu", "--valid-every", "0")


def test_pair_trains_resumes_enhances_and_is_scored(corpus, tmp_path, capsys):
    """Teacher and student by command, the student killed half way."""
    assert run("train", "--data", corpus, "--distil", "none", "--preset", "teacher", *FLAGS, "--steps", "2",
               "--out", tmp_path / "teacher") == 0
    flags = ("train", "--data", corpus, "--distil", "selective", "--low", "10", "--high", "40", *FLAGS,
             "--teacher", tmp_path / "teacher/last.safetensors")
    assert run(*flags, "--steps", "4", "--out", tmp_path / "a") == 0
    for steps in (2, 4):
        assert run(*flags, "--steps", steps, "--out", tmp_path / "b") == 0
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    capsys.readouterr()
    # The commands need not be told what the checkpoint holds.
    for command in (("enhance", corpus / "test/noisy"), ("evaluate", "--data", corpus, "--workers", "1")):
        assert run(*command, "--checkpoint", tmp_path / "a/last.safetensors", "--out", tmp_path / command[0]) == 0
        assert "2 network evaluations" in capsys.readouterr().out
    assert run("enhance", corpus / "test/noisy", "--N", "2", "--checkpoint", tmp_path / "a/last.safetensors",
               "--out", tmp_path / "never") == 2
    assert "--N" in capsys.readouterr().err and not (tmp_path / "never").exists()


def test_repeated_crops_are_taught_once_and_resume_alike(corpus, tmp_path, monkeypatch):
    """With a teacher and a choice of patches that both draw: what the one draws must not move the other."""
    torch.manual_seed(1)
    teacher = consistency.ConsistencyModel(consistency.Config(**consistency.PRESETS["tiny"]))
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.05)
    train.save_checkpoint(tmp_path / "teacher.safetensors", teacher)
    taught, enhance = [], consistency.ConsistencyModel.enhance
    monkeypatch.setattr(consistency.ConsistencyModel, "enhance",
                        lambda self, wave, peak=None: taught.append(len(wave)) or enhance(self, wave, peak))
    flags = ("train", "--data", corpus, "--distil", "random", *FLAGS, "--teacher", tmp_path / "teacher.safetensors",
             "--num-crops", "3")
    for name, steps in (("a", 4), ("b", 1), ("b", 4)):
        assert run(*flags, "--steps", steps, "--out", tmp_path / name) == 0
    assert taught == [1, 1, 1] and len(list((tmp_path / "store").iterdir())) == 3
    assert run(*flags, "--steps", "4", "--out", tmp_path / "elsewhere" / "c") == 0
    a, b, c = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("a", "b", "elsewhere/c"))
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("Method", [sgmse.ScoreSDE, consistency.ConsistencyModel])
def test_big_model_teaches_a_small_u_net(Method, corpus, tmp_path):
    torch.manual_seed(1)
    train.save_checkpoint(tmp_path / "teacher.safetensors", Method(Method.Config(**Method.presets["tiny"] | {"N": 1})))
    assert run("train", "--distil", "selective", "--preset", "tiny", "--data", corpus, "--teacher",
               tmp_path / "teacher.safetensors", "--out", tmp_path / "student", *FLAGS, "--steps", "1") == 0
    assert isinstance(train.load_checkpoint(tmp_path / "student/last.safetensors"), dispatch.Student)
