"""drift.py against the reference system's numbers, its closed forms, clouds of points, and door to door."""

import dataclasses
import functools
import json
import math
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import data
import drift
import encoder
import losses
import metrics
import nets
import train
from helpers import check_commands, lively, load, replay, run_command

FIELDS = {"joint": drift.drifting_field, "separate": drift.mean_shift_field}
MIXED = (0.1, 0.5, 1.0)


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def cloud(n, dims=5, seed=0):
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


# ---- the reference system ----

@pytest.mark.parametrize("case, negatives, exclude_self", [
    ("self_masked", "x", True), ("self_unmasked", "x", False), ("other", "y_neg_other", False),
    ("equal_sizes_other_masked", "compute_V/equal_sizes_other_masked/y_neg", True)])
def test_field_equals_reference(case, negatives, exclude_self):
    fixture = load("drift_driftse")
    x, positives, negatives = (torch.from_numpy(fixture[key]) for key in ("x", "y_pos", negatives))
    for temperature in MIXED if case != "equal_sizes_other_masked" else (0.5,):
        V = drift.drifting_field(x, positives, negatives, temperature, exclude_self)
        close(V, torch.from_numpy(fixture[f"compute_V/{case}/tau{temperature}/V"]))


def test_field_equals_reference_in_double_precision():
    fixture = load("drift_driftse")
    x, positives = (torch.from_numpy(fixture[key]).double() for key in ("x", "y_pos"))
    close(drift.drifting_field(x, positives, x, 0.5), torch.from_numpy(fixture["compute_V/self_masked/tau0.5/V_f64"]),
          1e-12)


def test_sum_over_temperatures_equals_reference():
    fixture = load("drift_driftse")
    get = lambda key: torch.from_numpy(fixture[key])
    x, positives = get("x"), get("y_pos")
    field = functools.partial(drift.multi_temperature_field, x, positives, x)
    close(3 * field(MIXED), get("multi/temps_0.1_0.5_1.0_raw"))            # of the loss: the mean; this helper: the sum
    close(field(MIXED, unit_rms=True), get("multi/temps_0.1_0.5_1.0_normalized"), 1e-5)
    close(field((0.02, 0.05, 0.2), unit_rms=True), get("multi/default_temps_normalized"), 1e-5)


def test_loss_on_unit_drifts_and_its_gradient_equal_reference():
    fixture = load("drift_driftse")
    x, positives = (torch.from_numpy(fixture[f"loss/{key}"]).flatten(1) for key in ("x_gen", "x_pos"))
    V = drift.multi_temperature_field(x, positives, x, MIXED, unit_rms=True)
    expected = fixture["loss/DriftingLoss_nofeatnorm_normdrift0"].item()
    assert V.square().mean().item() == pytest.approx(expected, rel=1e-6)
    close(-2 * V / V.numel(), torch.from_numpy(fixture["loss/grad_normdrift0"]).flatten(1))


def test_spectral_loss_equals_reference():
    fixture = load("drift_driftse")
    clean, enhanced = (torch.from_numpy(fixture[f"ccmse/{key}"]) for key in ("clean", "gen"))
    assert losses.ccmse_loss(clean, enhanced).item() == pytest.approx(fixture["ccmse/value"].item(), rel=1e-5)
    value = losses.ccmse_loss(clean, enhanced, (256, 512)).item()
    assert value == pytest.approx(fixture["ccmse/value_fft_256_512"].item(), rel=1e-5)


def test_spectral_loss_is_relative_at_any_level():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 2, 8000)
    loud, quiet = (losses.ccmse_loss(level * clean, level * (clean + 0.3 * noise)).item() for level in (1, 1e-2))
    assert loud == pytest.approx(0.09, rel=0.05) and quiet == pytest.approx(loud, rel=0.1)


def test_magnitude_loss_hears_levels_and_no_phase():
    torch.manual_seed(0)
    S = torch.randn(2, 5, 7, dtype=torch.complex64)
    turned = S * torch.polar(torch.ones(2, 5, 7), 6 * torch.rand(2, 5, 7))
    assert losses.magnitude_loss(S, turned).item() == pytest.approx(0, abs=1e-10)
    for level in (1, 100):                               # relative
        assert losses.magnitude_loss(level * S, 0.7 * level * turned).item() == pytest.approx(0.09, rel=1e-4)
    assert losses.magnitude_loss(0 * S, 0 * S).item() == 0


@pytest.mark.parametrize("case", ["frame", "frame_sisdr", "frame_gauss"])
def test_training_step_equals_reference(case, monkeypatch):
    """Network, inverse STFT, standardised waves, three layers, scale, temperatures, loss, norm of the gradient."""
    fixture, weights = load("drift_driftse"), load("net_ncsnpp_v2_drift_b")
    get = lambda key: torch.from_numpy(fixture[f"step/{key}"])
    meta = json.loads(str(fixture["meta_json"]))
    kwargs = json.loads(str(weights["kwargs_json"]))["kwargs"]
    config = drift.Config(n_fft=62, hop_length=16, num_frames=72, width=kwargs["nf"],
                          channel_mults=tuple(kwargs["ch_mult"]), num_res_blocks=kwargs["num_res_blocks"],
                          attention_resolutions=tuple(kwargs["attn_resolutions"]),
                          sigma_max=0.15 if case == "frame_gauss" else 0.0,
                          si_sdr_weight=0.01 if case == "frame_sisdr" else 0.0)
    model = drift.DriftSE(config)
    state = {name[2:]: torch.from_numpy(weights[name]) for name in weights.files if name.startswith("p/")}
    model.net = nets.NCSNpp.from_official(state, **model.net.config)

    def stand_in(wave):
        wave = (wave - wave.mean(1, keepdim=True)) / (wave.std(1, keepdim=True) + 1e-5)
        h0 = (wave.unfold(1, 64, 64) @ get("enc_w1")).tanh()
        h1 = (h0 @ get("enc_w2")).tanh()
        return h0, h1, h1 * h1 - h0

    model.latents = stand_in
    monkeypatch.setattr(drift, "noise_level", lambda *_, **__: get("sigma_frame_gauss"))
    replay(monkeypatch, [get("z")])
    loss, parts = model.loss((get("clean_wav") / get("normfac")[:, None], get("noisy_wav") / get("normfac")[:, None]))
    expected = meta["step_results"][case]["result"]
    assert parts["drift"].item() == pytest.approx(expected["latent_drift"], rel=1e-3)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-3)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"], rel=5e-3)


@pytest.mark.parametrize("conditional, size", [(False, 59_582_484), (True, 59_615_014)])
def test_networks_of_the_paper_have_the_published_size(conditional, size):
    with torch.device("meta"):
        model = drift.DriftSE(drift.Config(conditional=conditional))
    assert sum(p.numel() for p in model.parameters()) == size


# ---- closed forms ----

X, Y = points((0, 0), (1, 0)), points((0, 1), (2, 1))


@pytest.mark.parametrize("temperature, expected", [
    (0.5, ((-0.344156, 0.456341), (0.645839, 0.517403))), (0.1, ((-0.496056, 0.496090), (0.244305, 0.137431))),
    (1.0, ((-0.208727, 0.468803), (0.583649, 0.512693)))])
def test_field_has_known_values(temperature, expected):
    close(drift.drifting_field(X, Y, X, temperature), points(*expected))


def test_field_in_one_dimension_has_known_values():
    x, positives = points((0,), (1,)), points((2,), (3,))
    close(drift.drifting_field(x, positives, x, 0.5), points((0.191101,), (1.364090,)))
    close(drift.drifting_field(x, positives, x, 1.0), points((0.463078,), (1.379220,)))


def test_field_of_equation_7_is_its_double_sum():
    close(drift.mean_shift_field(X, Y, X, 0.5, exclude_self=False), points((0.036467, 1), (0.119203, 1)))
    close(drift.mean_shift_field(X, Y, X, 0.5), points((-0.844330, 1), (1, 1)))
    x, positives, negatives = cloud(4), cloud(3, seed=1), cloud(5, seed=2)
    k = lambda a: (-(x[:, None] - a).norm(dim=2) / 0.5).exp()
    pairs = k(positives)[:, :, None] * k(negatives)[:, None]               # (N, M, K)
    difference = positives[:, None] - negatives                            # (M, K, D)
    V = torch.einsum("nmk,mkd->nd", pairs, difference) / pairs.sum((1, 2))[:, None]
    close(drift.mean_shift_field(x, positives, negatives, 0.5, exclude_self=False), V, 1e-12)


def test_loss_and_scale_have_known_values():
    raw = drift.multi_temperature_field(X, Y, X)
    close(raw, points((-0.349646, 0.473745), (0.491264, 0.389176)))
    assert raw.square().mean().item() == pytest.approx(0.184871, abs=1e-6)
    scale, unit = drift.feature_scale(X, Y)
    assert scale.item() == pytest.approx(1.618034, abs=1e-6) and unit == 1
    assert drift.drifting_loss(X, Y).item() == pytest.approx(0.076085, abs=1e-6)
    scale, unit = drift.feature_scale(X, Y, "original")
    assert scale.item() == pytest.approx(0.712825, abs=3e-5)               # there a zero distance counts 1e-4
    assert scale.item() == pytest.approx((3 + math.sqrt(5) + math.sqrt(8)) / 8 / unit, abs=1e-7)
    assert unit == pytest.approx(math.sqrt(2))


def test_hot_limit_moves_towards_the_mean_with_half_of_the_step():
    """g = M sqrt(N - 1) / ((M + N - 1) sqrt(N))."""
    N, M = 50, 80
    x, positives = cloud(N), cloud(M, seed=1) + 1
    others = (x.sum(0) - x) / (N - 1)
    g = M * math.sqrt(N - 1) / ((M + N - 1) * math.sqrt(N))
    assert g == pytest.approx(0.6139, abs=1e-4)
    close(drift.drifting_field(x, positives, x, 1e6), g * (positives.mean(0) - others), 1e-4)
    close(drift.mean_shift_field(x, positives, x, 1e6), positives.mean(0) - others, 1e-4)


# ---- what a field is ----

@pytest.mark.parametrize("field", FIELDS)
def test_field_changes_sign_when_real_and_generated_swap(field):
    x, a, b = cloud(7), cloud(9, seed=1), cloud(6, seed=2)
    for temperature in MIXED:
        V = FIELDS[field](x, a, b, temperature, exclude_self=False)
        close(V, -FIELDS[field](x, b, a, temperature, exclude_self=False), 1e-12)
        assert V.abs().max() > 0.1


@pytest.mark.parametrize("field", FIELDS)
def test_field_vanishes_where_real_and_generated_coincide(field):
    x, a = cloud(7), cloud(9, seed=1)
    for queries in (x, a):
        assert FIELDS[field](queries, a, a, 0.5, exclude_self=False).abs().max() < 1e-12


def test_field_moves_with_its_points():
    x, a, shift = cloud(7), cloud(9, seed=1), cloud(1, seed=2)
    for field in FIELDS.values():
        close(field(x + shift, a + shift, x + shift, 0.5), field(x, a, x, 0.5), 1e-12)


def test_joint_field_is_equation_7_reweighted_times_a_gain():
    """Each reference counts 1 / sqrt(the sum of kernels in its column); the gain is S_pos S_neg."""
    x, positives, temperature = cloud(7), cloud(9, seed=1), 0.5
    kernel = [(-torch.cdist(x, a) / temperature).exp() for a in (positives, x)]
    kernel[1].fill_diagonal_(0)
    columns = [k.sum(0) for k in kernel]
    weights = [k / c.sqrt() for k, c in zip(kernel, columns)]              # those of (7) are the kernels
    mean_pos, mean_neg = (w @ a / w.sum(1, keepdim=True) for w, a in zip(weights, (positives, x)))
    rows = sum(k.sum(1, keepdim=True) for k in kernel)
    S_pos, S_neg = (w.sum(1, keepdim=True) / rows.sqrt() for w in weights)
    close(drift.drifting_field(x, positives, x, temperature), S_pos * S_neg * (mean_pos - mean_neg), 1e-12)


def test_joint_field_of_one_query_doubles_the_temperature():
    """One query leaves nothing to compete for a reference: A = sqrt(R). And here the gain is S_pos S_neg."""
    x, a, b = cloud(1), cloud(9, seed=1), cloud(6, seed=2)
    R = (-torch.cdist(x, torch.cat([a, b])) / 0.5).softmax(1).sqrt()
    gain = R[:, :9].sum() * R[:, 9:].sum()
    close(drift.drifting_field(x, a, b, 0.5, exclude_self=False),
          gain * drift.mean_shift_field(x, a, b, 1.0, exclude_self=False), 1e-12)


def test_gain_of_the_joint_field_vanishes_far_away():
    """Cold, with the generated points together and far from all real ones."""
    x, positives = 0.01 * cloud(20), 0.01 * cloud(20, seed=1) + 3
    assert drift.drifting_field(x, positives, x, 0.1).abs().max() < 1e-6
    close(drift.mean_shift_field(x, positives, x, 0.1).mean(0), torch.full((5,), 3.0).double(), 0.05)


# ---- in blocks ----

@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("exclude_self", [True, False])
def test_blocks_give_the_field_of_the_direct_form(field, exclude_self):
    x, positives = cloud(13), cloud(9, seed=1)
    for negatives in (x, torch.cat([x, cloud(4, seed=2)])):                # with a bank of older ones
        direct = sum(FIELDS[field](x, positives, negatives, t, exclude_self) for t in MIXED) / 3
        for block in (1, 4, 13, 512):
            V = drift.multi_temperature_field(x, positives, negatives, MIXED, exclude_self, field, block=block)
            close(V, direct, 1e-12 if exclude_self else 1e-7)              # float64 gives a zero distance as 1e-8
    x, positives = x.float(), positives.float()
    V = drift.multi_temperature_field(x, positives, x, (0.005, 0.01), exclude_self, field, block=4)
    close(V, sum(FIELDS[field](x, positives, x, t, exclude_self) for t in (0.005, 0.01)) / 2)


@pytest.mark.parametrize("field", FIELDS)
def test_a_single_point_is_attracted_or_rests_and_is_not_nan(field):
    x, positives = cloud(1), cloud(3, seed=1)
    direct, blocked = FIELDS[field](x, positives, x, 0.5), drift.multi_temperature_field(x, positives, x, (0.5,), True,
                                                                                         field)
    close(direct, blocked, 1e-12)
    assert direct.isfinite().all() and (direct.abs().max() > 0) == (field == "separate")


class LargestTensor(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that is made within it."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.size = max(self.size, out.numel() * out.element_size())
        return out


def test_memory_of_the_blocked_field_grows_linearly():
    sizes = []
    for N in (500, 1000, 2000):
        with LargestTensor() as largest:
            drift.multi_temperature_field(cloud(N), cloud(N, seed=1), cloud(N), MIXED, block=100)
        sizes.append(largest.size)
    assert sizes == [100 * 2 * N * 8 for N in (500, 1000, 2000)]


def test_distances_of_equal_frames_are_zero_to_single_precision():
    """By matrix products in float32 they would be up to 1e-3, a fifth of the smallest published temperature."""
    frames = torch.nn.functional.normalize(cloud(100, 768), dim=1).float()
    assert drift.distances(frames, frames).diagonal().max() < 1e-6


# ---- where points go ----

def mixture(n):
    """N((-2, 0), 0.3^2) and N((2, 0), 0.3^2) in equal parts."""
    x = 0.3 * torch.randn(n, 2)
    x[:, 0] += 4 * (torch.rand(n) < 0.5) - 2
    return x


def energy_distance(a, b):
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def particles_after(steps, temperatures, field="joint"):
    torch.manual_seed(0)
    x = torch.tensor([0.0, 3.0]) + 0.1 * torch.randn(200, 2)
    for _ in range(steps):
        x = x + drift.multi_temperature_field(x, mixture(200), x, temperatures, field=field)
    return x


def test_particles_converge_to_a_mixture_in_the_plane():
    torch.manual_seed(1)
    target = mixture(2000)
    assert energy_distance(particles_after(0, MIXED), target) == pytest.approx(4.78, abs=0.2)
    x = particles_after(100, MIXED)
    assert energy_distance(x, target) < 0.01                               # 200 true samples: about 0.007
    assert 0.45 <= (x[:, 0] < 0).float().mean() <= 0.55
    assert x.std(0).tolist() == pytest.approx([2.03, 0.35], rel=0.15)


def test_particles_of_one_low_temperature_never_start():
    torch.manual_seed(0)
    assert energy_distance(particles_after(100, (0.1,)), mixture(2000)) > 4.7


def test_perfect_output_is_at_rest_only_without_self_exclusion():
    x = points((0, 0), (1, 0))
    for temperature, value in ((0.5, 0.271713), (1.0, 0.298772), (0.1, 0.006737)):
        close(drift.drifting_field(x, x, x, temperature), points((-value, 0), (value, 0)))
        assert drift.drifting_field(x, x, x, temperature, exclude_self=False).abs().max() < 1e-15


@pytest.mark.parametrize("exclude_self, sphere, low, high", [
    (False, False, 0, 0.01), (True, False, 1.0, 2.0), (True, True, 0, 0.05)])
def test_self_exclusion_drives_sparse_points_apart(exclude_self, sphere, low, high):
    """150 unit vectors, one real point for each generated one that starts 0.3 away; distance to it after 200 steps.

    Self-exclusion takes a point's own place out of the mean that repels it, so near its target it is pushed away from
    its siblings. The layer norms of the encoders, whose features lie on a sphere, are what keeps the method stable.
    """
    torch.manual_seed(0)
    normalize = torch.nn.functional.normalize
    targets = normalize(torch.randn(150, 64), dim=1)
    x = targets + 0.3 * normalize(torch.randn(150, 64), dim=1)
    for _ in range(200):
        x = x + drift.multi_temperature_field(x, targets, x, MIXED, exclude_self)
        x = normalize(x, dim=1) if sphere else x
    assert low <= (x - targets).norm(dim=1).mean().item() <= high


# ---- the loss ----

@pytest.mark.parametrize("field", FIELDS)
def test_drift_smaller_than_1e_4_is_not_blown_up_to_unit_size(field):
    """As both released programs have it: at the target the original scaling's loss vanishes too."""
    x, far = 1e-6 * cloud(7), 1e-6 * cloud(9, seed=1)
    V = drift.multi_temperature_field(x, far, x, (0.5,), field=field, unit_rms=True)
    raw = drift.multi_temperature_field(x, far, x, (0.5,), field=field)
    close(V, raw / 1e-4, 1e-9)


@pytest.mark.parametrize("scaling", ["driftse", "original"])
@pytest.mark.parametrize("field", FIELDS)
def test_gradient_is_the_drift_and_the_loss_its_square(scaling, field):
    x, positives = cloud(7).requires_grad_(), cloud(9, seed=1).requires_grad_()
    loss = drift.drifting_loss(x, positives, (0.1, 0.5), scaling, field)
    loss.backward()
    scale, unit = drift.feature_scale(x.detach(), positives.detach(), scaling)
    V = drift.multi_temperature_field(x.detach() / scale, positives.detach() / scale, x.detach() / scale,
                                      (0.1 * unit, 0.5 * unit), field=field, unit_rms=scaling == "original")
    assert loss.item() == pytest.approx(V.square().mean().item())
    close(x.grad, -2 * V / V.numel() / scale, 1e-12)
    assert positives.grad is None


def test_scalings_differ_in_scale_drift_and_temperatures():
    x, positives = cloud(40), cloud(40, seed=1) + 0.3
    near = positives + 0.3 * (x - positives)
    close(drift.drifting_loss(x, positives), drift.drifting_loss(x, positives, MIXED), 0)
    close(drift.drifting_loss(x, positives, scaling="original"),
          drift.drifting_loss(x, positives, (0.02, 0.05, 0.2), scaling="original"), 0)
    for scaling in ("driftse", "original"):                                 # units of features do not matter to either
        close(drift.drifting_loss(10 * x, 10 * positives, scaling=scaling),
              drift.drifting_loss(x, positives, scaling=scaling), 1e-9)
    raw, unit = ([drift.drifting_loss(a, positives, scaling=scaling).item() for a in (x, near)]
                 for scaling in ("driftse", "original"))
    assert raw[1] < raw[0] / 2                                             # falls on the way to the target
    assert all(3 <= value <= 9 for value in unit)                          # three unit drifts, orthogonal .. parallel
    one = drift.drifting_loss(x, positives, (0.2,), "original")
    assert one.item() == pytest.approx(1)                                  # says nothing
    scale, _ = drift.feature_scale(x, positives, "original", block=7)
    both = torch.cat([positives, x])
    assert torch.cdist(x, both).mean().item() / scale.item() == pytest.approx(math.sqrt(5))


# ---- latent spaces ----

@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A DistilHuBERT of toy size with random weights, saved as a hub's download is."""
    from transformers import HubertModel
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    HubertModel(encoder_config()).save_pretrained(folder)
    return str(folder)


def encoder_config():
    from transformers import HubertConfig
    return HubertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
                        feat_proj_layer_norm=False)


def test_encoder_gives_hidden_states_every_20_ms(encoder_folder):
    wave = torch.rand(2, 16000) - 0.5
    latents = drift.SpeechLatents(encoder_folder, (2, 0))
    second, zeroth = latents(wave)
    assert second.shape == zeroth.shape == (2, 49, 32)
    standardised = (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True)
    states = latents.encoder(standardised, output_hidden_states=True).hidden_states
    close(second, states[2], 1e-3)
    close(zeroth, states[0], 1e-3)
    assert drift.SpeechLatents(encoder_folder, (0,))(torch.zeros(1, 32640))[0].shape[1] == 101
    torch.manual_seed(1)
    other, = drift.SpeechLatents(encoder_config(), (2,))(wave)
    assert other.shape == second.shape and not torch.allclose(other, second, atol=0.1)


def test_wavlm_is_read_too(tmp_path):
    from transformers import WavLMConfig, WavLMModel
    config = WavLMConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                         conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    WavLMModel(config).save_pretrained(tmp_path)
    features, = drift.SpeechLatents(str(tmp_path), (2,))(torch.rand(1, 4000))
    assert features.shape == (1, 12, 32) and features.isfinite().all()


def test_last_layer_of_a_large_encoder_is_normalised(tmp_path):
    """hidden_states[-1] is, in one release of transformers, and is not in another."""
    from transformers import HubertModel
    config = encoder_config()
    config.do_stable_layer_norm, config.feat_extract_norm = True, "layer"
    torch.manual_seed(0)
    model = HubertModel(config)
    with torch.no_grad():
        model.encoder.layer_norm.weight.mul_(3)
    model.save_pretrained(tmp_path)
    wave = torch.rand(2, 8000) - 0.5
    inner, last = drift.SpeechLatents(str(tmp_path), (1, 2))(wave)
    out = model.eval()(drift.standardised(wave), output_hidden_states=True)
    close(last, out.last_hidden_state, 1e-3)
    close(inner, out.hidden_states[1], 1e-3)
    close(last.square().mean(2), torch.full((2, 24), 9.0), 0.1)            # normed, times 3


def test_missing_encoders_and_layers_are_refused(encoder_folder, tmp_path):
    with pytest.raises(ValueError, match="could not be loaded.*--encoder mel"):
        drift.SpeechLatents(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="layers 0 .. 2"):
        drift.SpeechLatents(encoder_folder, (6, 12, 24))
    with pytest.raises(ValueError, match="layers 0 .. 4"):
        drift.SpeechLatents("mel", (5,))


def test_mel_frames_come_every_20_ms_and_white_noise_has_power_1():
    torch.manual_seed(0)
    wave = torch.randn(2, 32000)
    for layer, (floor, window, bands) in enumerate(drift.MEL):
        alone = drift.mel_frames(wave, floor, window, bands, context=0)
        assert alone.shape == (2, 100, bands)
        assert alone.expm1().mean().item() * floor == pytest.approx(1, abs=0.05)
        # A frame with context holds its neighbours, and a click is in the frame of its time.
        wide = drift.mel_frames(wave, floor, window, bands).unflatten(2, (bands, 13))
        close(drift.SpeechLatents("mel", (layer,))(wave)[0],
              drift.mel_frames(drift.standardised(wave), floor, window, bands))
        for neighbour in range(-6, 7):
            close(wide[:, 20:30, :, 6 + neighbour], alone[:, 20 + neighbour:30 + neighbour], 0)
        click = torch.zeros(1, 32000)
        click[0, 50 * 320 + 30] = 100
        assert drift.mel_frames(click, floor, window, bands, context=0)[0].sum(1).argmax() == 50


@pytest.mark.parametrize("kind", ["mel", "folder"])
def test_features_ignore_gain_and_silence_has_a_gradient(kind, encoder_folder):
    latents = drift.SpeechLatents("mel" if kind == "mel" else encoder_folder)
    torch.manual_seed(0)
    wave = torch.randn(2, 8000) * 0.1
    for quiet, loud in zip(latents(wave), latents(10 * wave)):
        torch.testing.assert_close(quiet, loud, atol=5e-3, rtol=1e-3)
    silence = torch.zeros(1, 8000, requires_grad=True)
    sum(f.sum() for f in latents(silence)).backward()
    assert silence.grad.isfinite().all()


# ---- noise ----

@pytest.mark.parametrize("sigma_max, quantiles", [
    (0.3, (0.0131, 0.0266, 0.0516, 0.1010, 0.2178)), (0.15, (0.0127, 0.0241, 0.0436, 0.0761, 0.1281))])
def test_noise_level_is_the_truncated_log_normal(sigma_max, quantiles):
    torch.manual_seed(0)
    sigma = drift.noise_level(100_000, sigma_max)
    assert 0.01 <= sigma.min() and sigma.max() <= sigma_max
    q = torch.quantile(sigma, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    assert q.tolist() == pytest.approx(quantiles, rel=0.03)
    if sigma_max == 0.15:
        mean, std, low, high, median = load("drift_driftse")["noise_schedule/log_stats_mean_std_min_max_median"]
        assert [sigma.mean().item(), sigma.std().item(), sigma.median().item()] == pytest.approx([mean, std, median],
                                                                                                rel=0.02)


# ---- the model ----

run = functools.partial(run_command, drift.DriftSE)


def tiny(**changes):
    torch.manual_seed(0)
    model = lively(drift.DriftSE(drift.Config(**drift.PRESETS["tiny"] | dict(num_frames=24) | changes)))
    model.prepare()
    return model


def some_batch(model, n=2):
    torch.manual_seed(2)
    return torch.rand(n, model.num_samples) - 0.5, torch.rand(n, model.num_samples) - 0.5


VARIANTS = {
    "sigma 0": {}, "sigma": dict(sigma_max=0.3), "conditional": dict(conditional=True), "dagger": drift.DAGGER,
    "dagger, sigma": dict(sigma_max=0.3, **drift.DAGGER), "no mask": dict(mask=False),
    "separate": dict(field="separate"), "original": dict(scaling="original"), "one layer": dict(layers=(0,)),
    "temperatures": dict(temperatures=(0.02, 0.05)), "with itself": dict(exclude_self=False)}


@pytest.mark.parametrize("variant, encoder", [
    *((variant, "mel") for variant in VARIANTS), ("sigma", "folder"), ("dagger", "folder")])
def test_gradient_reaches_the_generator_not_the_encoder(variant, encoder, encoder_folder):
    model = tiny(**VARIANTS[variant] | (dict(encoder=encoder_folder) if encoder == "folder" else {}))
    model.train()
    clean, noisy = some_batch(model)
    clean.requires_grad_()
    loss, parts = model.loss((clean, noisy))
    assert loss.isfinite() and loss > 0
    assert set(parts) == {"drift"} | ({"pesq", "si_sdr", "ccmse"} if "dagger" in variant else set())
    loss.backward()
    assert "dagger" in variant or clean.grad is None     # dagger's other losses have one
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.abs().max() > 1e-9 for p in model.parameters())
    if encoder == "folder":
        frozen = model.latents.encoder
        assert not frozen.training and all(p.grad is None and not p.requires_grad for p in frozen.parameters())
        assert all(name.startswith(("net.", "spectrogram", "gain")) for name in model.state_dict())


@pytest.mark.parametrize("changes, arguments", [
    ({}, dict(temperatures=MIXED)), (dict(field="separate"), dict(field="separate")),
    (dict(scaling="original"), dict(scaling="original", temperatures=(0.02, 0.05, 0.2))),
    (dict(temperatures=(0.02, 0.05)), dict(temperatures=(0.02, 0.05))),
    (dict(exclude_self=False), dict(exclude_self=False)), (dict(layers=(2,)), {})])
def test_settings_of_the_field_reach_the_loss(changes, arguments):
    """All layers, all frames of all crops in one set for each layer."""
    model = tiny(**dict(mask=False, exclude_self=True, temperatures=(0.0,)) | changes)
    model.net.forward = lambda y: 3 * y
    clean, noisy = some_batch(model)
    _, parts = model.loss((clean, noisy))
    sets = [[latents.flatten(0, 1) for latents in model.latents(wave)] for wave in (noisy, clean)]
    expected = [drift.drifting_loss(x, p, **arguments).item() for x, p in zip(*sets)]
    assert len(expected) == len(model.config.layers)
    assert parts["drift"].item() == pytest.approx(sum(expected), rel=1e-3)


def test_waveform_losses_compare_enhanced_with_clean():
    """At the level of the batch, and not the other way round."""
    model = tiny(**{f"{name}_weight": 1.0 for name in ("pesq", "si_sdr", "ccmse", "magnitude")})
    clean, noisy = some_batch(model)
    _, parts = model.loss((clean, noisy))
    with torch.no_grad():
        x_hat = model(model.spectrogram(noisy)[:, None], torch.zeros(2))
    enhanced = model.spectrogram.inverse(x_hat[:, 0], noisy.shape[1])
    assert parts["pesq"].item() == pytest.approx(losses.PESQLoss()(clean, enhanced).mean().item(), rel=1e-4)
    assert parts["si_sdr"].item() == pytest.approx(-losses.si_sdr_loss(clean, enhanced).mean().item(), rel=1e-4)
    assert parts["ccmse"].item() == pytest.approx(losses.ccmse_loss(clean, enhanced).item(), rel=1e-4)
    S, S_hat = map(model.spectrogram, (clean, enhanced))
    assert parts["magnitude"].item() == pytest.approx(losses.magnitude_loss(S, S_hat).item(), rel=1e-4)
    assert abs(losses.PESQLoss()(enhanced, clean).mean() - parts["pesq"]) > 1e-3


def test_waves_are_standardised_each_by_itself():
    waves = torch.tensor([0.3, 5.0])[:, None] * torch.randn(2, 8000) + torch.tensor([1.0, -2.0])[:, None]
    out = drift.standardised(waves)
    close(out.mean(1), torch.zeros(2), 1e-5)
    close(out.std(1), torch.ones(2), 1e-3)


def test_waveform_losses_are_weighted_as_asked():
    batch = None
    for weights in (dict(pesq_weight=2.0), dict(si_sdr_weight=2.0), dict(ccmse_weight=2.0),
                    dict(magnitude_weight=2.0)):
        model = tiny(**weights)
        batch = batch or some_batch(model)
        loss, parts = model.loss(batch)
        name = next(iter(weights)).removesuffix("_weight")
        value = -parts[name] if name == "si_sdr" else parts[name]
        assert (loss - 1000 * parts["drift"]).item() == pytest.approx(2 * value.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["pesq", "si_sdr", "ccmse", "magnitude"])
def test_only_losses_with_a_weight_are_computed(name):
    """So that crops too short for PESQ train with the others."""
    model = tiny(num_frames=16, **{f"{name}_weight": 1.0})
    assert model.num_samples < losses.PESQLoss.shortest
    if name == "pesq":
        with pytest.raises(ValueError, match="PESQ needs"):
            model.loss(some_batch(model))
    else:
        assert set(model.loss(some_batch(model))[1]) == {"drift", name}


@pytest.mark.parametrize("temperatures", [(0.0, 0.1), (-0.1,), (0.1, -0.1), (), (0.0, 0.0)])
def test_temperatures_that_are_not_above_0_are_refused(temperatures):
    with pytest.raises(ValueError, match="--temperatures: expected"):
        drift.Config(temperatures=temperatures)
    assert tiny(temperatures=(0.0,)).temperatures == MIXED


def test_inputs_of_the_direct_and_conditional_network(monkeypatch):
    y, z = torch.randn(2, 3, 1, 256, 8, dtype=torch.complex64)
    sigma = torch.tensor([0.1, 0.2, 0.3])
    given = []
    for changes in ({}, dict(conditional=True)):
        model = tiny(mask=False, **changes)
        model.net.forward = lambda x: given.append(x) or x[:, :1]
        replay(monkeypatch, [z])
        model(y, sigma)
        if not changes:
            model(y, torch.zeros(3))                                       # sigma 0 draws nothing
    close(given[0], y + drift.per_bin(sigma) * z)
    close(given[1], y, 0)
    close(given[2], torch.cat([z, y], dim=1), 0)


def test_mask_is_a_gain_below_2_and_keeps_the_phase():
    y = torch.randn(2, 1, 256, 8, dtype=torch.complex64)
    torch.manual_seed(0)
    model = drift.DriftSE(drift.Config(**drift.PRESETS["tiny"]))           # at initialisation
    gain = model(y, torch.zeros(2)) / y
    assert gain.imag.abs().max() < 1e-6 and gain.real.std() < 1e-3 < gain.real.min() <= gain.real.max() < 2
    model.net.forward = lambda x: 30 * torch.complex(x.imag.sign(), x.real)
    out = model(y, torch.zeros(2))
    close(out, y * (1 + y.imag.sign()), 1e-5)


@pytest.mark.parametrize("changes", [{}, dict(sigma=0.05), dict(conditional=True), dict(mask=False)])
def test_enhances_any_length_once_at_the_gain_of_its_input(changes):
    model, wave = tiny(**changes), torch.randn(2, 5003) * 0.1
    out = model.enhance(wave)
    assert out.shape == wave.shape and out.isfinite().all() and model.calls == 1
    model = tiny(normalize="peak", **changes)
    close(model.enhance(wave).abs().amax(1), wave.abs().amax(1), 1e-5)
    assert model.enhance(torch.zeros(1, 4000)).abs().max() < 1e-4


def test_gain_is_restored_only_where_the_loss_ignores_it():
    torch.manual_seed(0)
    for changes, seen in (({}, False), (drift.DAGGER, True), (dict(magnitude_weight=1.0), True)):
        drifts, spectra = [], []
        for gain in (1, 3):                                                # of the compressed spectrum: of waves, 9
            model = tiny(mask=False, **changes)
            model.net.forward = lambda y: gain * y
            _, parts = model.loss(some_batch(model))
            model.after_update()
            tracked = 1 if seen else 1 + 0.01 * (gain ** -2 - 1)
            assert model.gain.item() == pytest.approx(tracked, rel=1e-3)
            model.gain.fill_(1 if seen else gain ** -2)
            wave = some_batch(model)[1]
            close(model.enhance_wave(wave), 9 * wave if seen and gain == 3 else wave, 2e-2)
            drifts.append(parts["drift"].item())
            spectra.append(parts.get("ccmse", parts.get("magnitude")))
        assert drifts[1] == pytest.approx(drifts[0], rel=1e-3)
        assert not seen or spectra[1] > 10 * spectra[0]


TRAIN = ("train", "--preset", "tiny", "--num-frames", "24", "--lr", "5e-4", "--clip", "2", "--batch-size", "2",
         "--device", "cpu", "--valid-every", "0", "--valid-files", "1")


@pytest.mark.parametrize("unpaired", [False, True])
def test_train_resume_enhance_evaluate(unpaired, corpus, tmp_path, capsys):
    """By command, with the latent that needs no download, stopped half way; one call a recording afterwards."""
    flags = (*TRAIN, "--data", corpus, "--sigma-max", "0.3")
    check_commands(run, (*flags, "--unpaired", corpus / "train/clean") if unpaired else flags, corpus, tmp_path, capsys)


@pytest.mark.parametrize("flags", [
    "--sigma-max 0 --layers 2", "--sigma-max 0.3 --sigma 0.01", "--conditional --sigma-max 0.3",
    "--pesq-weight 1e-4 --si-sdr-weight 1e-4 --ccmse-weight 1e-3"])
def test_every_variant_trains_and_enhances_by_command(flags, corpus, tmp_path):
    assert run(*TRAIN, "--data", corpus, *flags.split(), "--steps", "2", "--out", tmp_path) == 0
    assert run("enhance", corpus / "test/noisy/0.wav", "--checkpoint", tmp_path / "last.safetensors",
               "--out", tmp_path / "enhanced") == 0
    assert len(data.load_audio(tmp_path / "enhanced/0.wav")[0][0]) == 32000


def test_what_cannot_be_trained_is_said_and_leaves_nothing(corpus, tmp_path, capsys):
    for flags, message in (
            (("--encoder", tmp_path / "nowhere"), "--encoder mel"),
            (("--unpaired", corpus / "train/clean", "--ccmse-weight", "1e-3"), "and magnitude weights must be 0"),
            (("--unpaired", tmp_path / "nowhere"), "nowhere"), (("--unpaired", corpus), "give a folder of clean")):
        assert run(*TRAIN, "--data", corpus, *flags, "--steps", "2", "--out", tmp_path / "run") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
    for weights in (dict(pesq_weight=1.0), dict(si_sdr_weight=1.0), dict(ccmse_weight=1.0),
                    dict(magnitude_weight=1.0)):
        assert tiny(**weights).needs_pairs
    assert not tiny().needs_pairs


@pytest.mark.parametrize("name", ["drift", "drift_dagger"])
def test_shipped_weights_raise_the_mean_si_sdr(name):
    model = train.load_checkpoint(name, drift.DriftSE)
    dataset = data.PairedAudio(train.HERE / "tutorials/audio", "test", num_samples=32640)
    gains = []
    for number in range(len(dataset)):
        _, clean, noisy = dataset.utterance(number)
        gains.append(metrics.si_sdr(clean, model.enhance(noisy[None])[0]) - metrics.si_sdr(clean, noisy))
    assert model.calls == len(gains) == 3 and sum(gains) / 3 > 2, gains


# ---- an encoder of one's own ----

TOY = encoder.EncoderConfig(hidden=32, channels=16, clusters=8)


def encoder_run(corpus, out, steps):
    return train.TrainConfig(data=str(corpus), out=str(out), steps=steps, batch_size=2, lr=2e-3, ema=0.9, device="cpu")


def test_encoder_is_trained_resumed_and_used(corpus, tmp_path, capsys):
    """Stopped half way it is the same; its folder is a latent space; gradients reach the wave."""
    for steps in (2, 6):
        encoder.train_encoder(encoder_run(corpus, tmp_path / "a", steps), TOY)
    encoder.train_encoder(encoder_run(corpus, tmp_path / "b", 6), TOY)
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in "ab")
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])

    latents = drift.SpeechLatents(str(tmp_path / "a"))
    averaged = {name.removeprefix("encoder."): p for name, p in a["ema"]["shadow"].items()}
    assert all(torch.equal(p, averaged[name]) for name, p in latents.encoder.named_parameters())
    wave = torch.randn(2, 8000, requires_grad=True)
    features = latents(wave)
    assert [f.shape for f in features] == 3 * [(2, 24, 32)]
    sum(f.square().sum() for f in features).backward()
    assert wave.grad.abs().max() > 0
    assert (tmp_path / "a/model.safetensors").stat().st_mode == (tmp_path / "a/last.pt").stat().st_mode
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"last.pt", "config.json", "model.safetensors"}


def test_encoder_command_passes_flags_and_names_errors(tmp_path, monkeypatch, capsys):
    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["encoder.py", *map(str, flags)])
        try:
            encoder.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert run("--data", tmp_path / "nowhere", "--out", tmp_path / "run") == 2
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert run("--out", tmp_path / "run") == 2
    assert "--data DIR" in capsys.readouterr().err and not (tmp_path / "run").exists()
    seen = []
    monkeypatch.setattr(encoder, "train_encoder", lambda *given: seen.extend(given))
    assert run("--data", "speech", "--steps", "7", "--hidden", "32") == 0
    assert (seen[0].data, seen[0].steps, seen[0].out) == ("speech", 7, "runs/encoder")
    assert seen[1] == encoder.EncoderConfig(hidden=32)


def bursts(n, samples=16000):
    """Noise, loud and quiet by turns every 0.5 s, from a random moment on: what is hidden follows from the rest."""
    time = torch.arange(samples) + torch.randint(16000, (n, 1))
    return torch.randn(n, samples) * torch.where(time % 16000 < 8000, 1.0, 0.1)


def test_masked_prediction_learns_from_the_surroundings():
    torch.manual_seed(0)
    frames = drift.mel_frames(drift.standardised(bursts(8)), drift.FLOORS[1], context=0)
    quiet, loud = (frames[k].mean(0) for k in (frames.mean(2) < 0.3, frames.mean(2) > 0.8))
    method = encoder.MaskedPrediction(encoder.EncoderConfig(hidden=32, channels=16, clusters=2, mask_length=5),
                                    torch.stack([quiet, loud]))
    opt = torch.optim.Adam(method.parameters(), 3e-3)
    losses, hits = [], []
    for _ in range(80):
        loss, parts = method.loss((bursts(4), None))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
        hits.append(parts["hits"].item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.4)
    assert sum(losses[-10:]) / 10 < 0.4 and sum(hits[-10:]) / 10 > 0.8, (losses[::8], hits[::8])


def test_encoder_trained_on_noise_finds_clean_clusters(monkeypatch):
    method, heard, asked = encoder.MaskedPrediction(dataclasses.replace(TOY, noisy=True), torch.randn(8, 64)), [], []
    method.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    units = encoder.units
    monkeypatch.setattr(encoder, "units", lambda wave, centres: asked.append(wave) or units(wave, centres))
    clean, noisy = torch.randn(2, 2, 16000)
    method.loss((clean, noisy))
    torch.testing.assert_close(heard[0], drift.standardised(noisy))
    torch.testing.assert_close(asked[0], drift.standardised(clean))


@pytest.mark.parametrize("start, frames", [(0.0, 10), (1.0, 49)])
def test_only_masked_frames_count_and_no_crop_is_without(start, frames):
    """No span is drawn: the first frame begins one. Each frame begins one: all are masked."""
    torch.manual_seed(0)
    method = encoder.MaskedPrediction(dataclasses.replace(TOY, mask_start=start), torch.randn(8, 64))
    seen = []
    method.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss, _ = method.loss((torch.randn(2, 16000), None))
    loss.backward()
    assert len(seen[0]) == 2 * frames and method.encoder.masked_spec_embed.grad.abs().max() > 0


def test_units_are_nearest_centres():
    wave = drift.standardised(torch.cat([torch.zeros(1, 8000), torch.randn(1, 8000)], dim=1))
    frames = drift.mel_frames(wave, drift.FLOORS[1], context=0)[0]
    centres = torch.stack([frames[5], frames[40]])
    assert encoder.units(wave, centres)[0].tolist() == [0] * 25 + [1] * 25


class Gains(torch.nn.Module):
    """One gain for each frequency, in the place of the network."""

    multiple = 1

    def __init__(self):
        super().__init__()
        self.gains = torch.nn.Parameter(torch.ones(256, 1))

    def forward(self, x):
        return self.gains * x


@pytest.mark.parametrize("scaling", ["driftse", "original"])
def test_training_with_drifts_alone_removes_noise(scaling, corpus, tmp_path):
    """Harmonics in white noise: nothing but the field teaches which frequencies to keep."""
    model = tiny(mask=False, scaling=scaling)
    model.net = Gains()
    options = dict(seed=0, device="cpu")
    dataset = data.open_data(corpus, "train", num_samples=model.num_samples, **options)
    config = train.TrainConfig(out=str(tmp_path), steps=60, lr=0.03, ema=0.9, save_every=1e9)
    for _ in train.fit(model, data.batches(dataset, 4), config):
        pass
    _, clean, noisy = data.open_data(corpus, "valid", num_samples=16000, **options).utterance(0)
    with model.ema.applied():
        enhanced = model.enhance(noisy[None])[0]
    before, after = metrics.si_sdr(clean, noisy), metrics.si_sdr(clean, enhanced)
    assert after > before + 2
