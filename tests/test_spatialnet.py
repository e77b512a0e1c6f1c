"""nets.SpatialNet: its sizes, what each part may look at, its door, and that it learns to separate."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import losses
import nets
from data import Spectrogram
from helpers import growth

BINS = 33


def compact(num_mics=4, num_speakers=2, bins=BINS):
    torch.manual_seed(0)
    return nets.SpatialNet(num_mics, num_speakers, bins, **nets.COMPACT)


def some(num_mics=4, frames=11, n=2):
    torch.manual_seed(1)
    return torch.randn(n, num_mics, BINS, frames, dtype=torch.complex64)


def official():
    """The reference's tensors, the sizes of its network in our names, its input and its output."""
    fixture = np.load(Path(__file__).parent / "fixtures/spatialnet_b.npz")
    weights = {name[2:]: torch.from_numpy(fixture[name]) for name in fixture.files if name.startswith("p/")}
    Y, out, grad = (torch.from_numpy(fixture[key]) for key in ("Y", "out", "grad_full_weight"))
    return weights, json.loads(str(fixture["kwargs_json"])), Y, out, grad


@pytest.mark.parametrize("prefix", ["", "arch."])
def test_outputs_and_gradient_equal_the_reference(prefix):
    """Its level, norms, convolutions, full-band map, attention and decoder, with random weights everywhere."""
    weights, sizes, Y, expected, grad = official()
    weights = {prefix + name: tensor for name, tensor in weights.items()}
    net = nets.SpatialNet.from_official(weights, **sizes)
    assert nets.SpatialNet.official_sizes(weights) | dict(heads=sizes["heads"]) == sizes
    assert (net(Y) - expected).abs().max() < 1e-5 * expected.abs().max()
    out = net.double()(Y.to(torch.complex128))
    assert (out - expected).abs().max() < 2e-7 * expected.abs().max()      # the fixture is kept in single precision
    out.abs().square().mean().backward()
    assert (net.full_band.weight.grad - grad).abs().max() < 2e-7 * grad.abs().max()


def test_tensors_of_other_sizes_or_names_are_refused():
    weights, sizes, *_ = official()
    for changes in (dict(layers=4), dict(width=32, groups=4), dict(num_mics=3)):
        with pytest.raises(ValueError, match="not those of a SpatialNet of these sizes"):
            nets.SpatialNet.from_official(weights, **sizes | changes)
    with pytest.raises(ValueError, match="layers.0.other.weight"):
        nets.SpatialNet.from_official(weights | {"layers.0.other.weight": torch.zeros(1)}, **sizes)


def test_full_band_map_starts_as_small_as_the_original_s():
    """Uniform up to 1 / F, not 1 / sqrt(F) as a dense layer of F inputs."""
    torch.manual_seed(0)
    full_band = nets.FullBand(8, 257)
    for p in full_band.parameters():
        assert 0.99 / 257 < p.abs().max() <= 1 / 257


LARGE = dict(layers=12, width=192, hidden=384, squeezed=16)


@pytest.mark.parametrize("arguments, sizes, count", [
    ((4, 2), {}, 1585460), ((6, 2, 129), {}, 1191092), ((6, 2), LARGE, 7303588), ((4, 2, 129), nets.COMPACT, 111028)])
def test_networks_have_the_published_sizes(arguments, sizes, count):
    with torch.device("meta"):
        net = nets.SpatialNet(*arguments, **sizes)
    assert sum(p.numel() for p in net.parameters()) == count


def test_layers_share_one_full_band_map():
    """Every layer is handed the same module, whose gradient is the sum of what the layers would give alone."""
    net, seen = compact(), []
    for layer in net.layers:
        layer.register_forward_hook(lambda layer, args, out: seen.append(args[1]))
    net(some()).abs().square().mean().backward()
    assert seen == [net.full_band, net.full_band]
    assert sum("full_band" in name for name, _ in net.named_parameters()) == 2
    assert net.full_band.weight.grad.abs().sum() > 0


def test_full_band_is_a_dense_map_for_each_channel():
    full_band, x = compact().full_band, torch.randn(2, BINS, 5, 4)
    expected = torch.stack([torch.nn.functional.linear(x[..., c].transpose(1, 2), full_band.weight[c],
                                                       full_band.bias[c]).transpose(1, 2) for c in range(4)], dim=-1)
    torch.testing.assert_close(full_band(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("direction", ["frequency", "time"])
@torch.no_grad()
def test_each_half_of_a_layer_looks_along_one_axis(direction):
    """Silence the updates along one axis: a change in one frame, or one frequency, stays there."""
    net = compact()
    layer, x = net.layers[0], torch.randn(1, BINS, 7, 32)
    silenced = {"frequency": [layer.attention.out_proj, layer.feed_forward.out],
                "time": [layer.unsqueeze, layer.frequency0.conv, layer.frequency1.conv]}[direction]
    for part in silenced:
        for p in part.parameters():
            p.zero_()
    here = (0, slice(None), 3) if direction == "frequency" else (0, 3)
    changed = x.clone()
    changed[here] += torch.randn_like(changed[here])
    touched = (layer(changed, net.full_band) - layer(x, net.full_band)).abs().amax(-1)[0] > 1e-6      # (F, T)
    expected = torch.zeros_like(touched)
    expected[here[1:]] = True
    assert torch.equal(touched, expected)


def test_attention_along_time_is_torch_s_without_its_table():
    """Output and gradient are those of nn.MultiheadAttention; 1876 frames of 64 bins and two heads would have weights of
    1.7 GB."""
    torch.manual_seed(0)
    layer, h = nets.SpatialLayer(8, 16, 2, 2, 2), torch.randn(5, 40, 8)
    torch.nn.init.normal_(layer.attention.in_proj_bias)
    expected = layer.attention(h, h, h, need_weights=False)[0]
    torch.testing.assert_close(layer.attend(h), expected)
    parameters = list(layer.attention.parameters())
    for ours, theirs in zip(torch.autograd.grad(layer.attend(h).sin().sum(), parameters),
                            torch.autograd.grad(expected.sin().sum(), parameters)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    setup = ("layer, h = nets.SpatialLayer(8, 16, 2, 2, 2).eval(), torch.randn(64, 1876, 8); "
             "inference = torch.inference_mode(); inference.__enter__(); layer.attend(h[:, :8])")
    assert growth(setup, "layer.attend(h)") < 100


@torch.no_grad()
def test_output_scales_with_the_input_and_per_frequency():
    """The level of every frequency at microphone 0 is taken out before and put back after."""
    net, Y = compact(), some()
    gain = torch.linspace(0.1, 10, BINS)[:, None]
    torch.testing.assert_close(net(gain * Y), gain * net(Y), atol=1e-3, rtol=1e-3)
    assert (net(0 * Y)).abs().max() < 1e-4


@pytest.mark.parametrize("num_mics, num_speakers, frames", [(1, 1, 1), (2, 3, 8), (4, 2, 11)])
@torch.no_grad()
def test_takes_any_number_of_microphones_speakers_and_frames(num_mics, num_speakers, frames):
    out = compact(num_mics, num_speakers)(some(num_mics, frames, 3))
    assert out.shape == (3, num_speakers, BINS, frames) and out.dtype == torch.complex64 and out.isfinite().all()


@torch.no_grad()
def test_examples_of_a_batch_do_not_see_each_other():
    net, Y = compact(), some(n=3)
    torch.testing.assert_close(net(Y), torch.cat([net(y[None]) for y in Y]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 3, BINS, 5) + 0j, torch.zeros(1, 4, 5, BINS) + 0j,
                                   torch.zeros(1, 4, BINS, 5), torch.zeros(4, BINS, 5) + 0j])
def test_a_wrong_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\(B, 4, 33, T\)"):
        compact()(wrong)


def test_learns_to_separate_two_speakers_by_their_delays():
    """SA-SDR with the best permutation: two noises, of which the second reaches microphone 1 three samples later.

    Nothing but the direction tells them apart, and the order of the references changes from batch to batch.
    """
    torch.manual_seed(0)
    net, stft = nets.SpatialNet(2, 2, BINS, **nets.COMPACT), Spectrogram(64, 32, transform="none")
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    scores = []
    for update in range(60):
        speakers = torch.randn(4, 2, 1024)
        mixture = torch.stack([speakers.sum(1), speakers[:, 0] + speakers[:, 1].roll(3, -1)], dim=1)
        estimate = stft.istft(net(stft.stft(mixture)), 1024)
        loss = losses.sa_sdr_loss(speakers.flip(1) if update % 2 else speakers, estimate)[0].mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        scores.append(-loss.item())
    assert sum(scores[:5]) / 5 < 1 and sum(scores[-10:]) / 10 > 4
