"""NCSN++: the reference's numbers, one answer by two routes, its door.

tests/fixtures/net_*.npz hold inputs, random weights and outputs of the official systems (sgmse, sgmse_crp, MeanFlowSE,
DriftSE) at toy size; init_ncsnpp.json holds statistics of their initialisation at width 32, over three seeds.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nets
from helpers import growth

FIXTURES = Path(__file__).parent / "fixtures"

# file -> what its network is, beyond the sizes written in it
REFERENCES = {
    "net_ncsnpp_v2_b": dict(version=2),
    "net_ncsnpp_v2_drift_b": dict(version=2, num_times=0, in_channels=1),
    "net_meanflowse_ncsnpp": dict(version=2, num_times=2),
    "net_crp_ncsnpp": dict(version=1),
}
every_reference = pytest.mark.parametrize("name", REFERENCES)


class Reference:
    """One fixture: official weights, our arguments for the same network, the calls made and their outputs."""

    def __init__(self, name):
        self.data = np.load(FIXTURES / f"{name}.npz")
        sizes = self.json("kwargs_json")["kwargs"]
        self.kwargs = dict(
            REFERENCES[name], width=sizes["nf"], channel_mults=sizes["ch_mult"], image_size=sizes["image_size"],
            num_res_blocks=sizes["num_res_blocks"], attention_resolutions=sizes["attn_resolutions"])
        self.names = self.json("state_names_json")
        self.weights = {name: self.tensor(f"p/{name}") for name in self.names}

    def json(self, key):
        return json.loads(str(self.data[key]))

    def tensor(self, key):
        return torch.from_numpy(self.data[key])

    def net(self):
        return nets.NCSNpp.from_official(self.weights, **self.kwargs)

    def call(self, i):
        """x, the times, and the reference's output in float64, of call 0 or 1."""
        num_times = self.kwargs.get("num_times", 1)
        x = torch.cat([self.tensor(f"{key}{i}") for key in "xy"[:self.kwargs.get("in_channels", 2)]], dim=1)
        return x, [self.tensor(f"{key}{i}") for key in "td"[:num_times]], self.tensor(f"out64_{i}")


def lively(**kwargs):
    """A TINY network whose every branch counts: at initialisation half of them add nothing."""
    torch.manual_seed(0)
    net = nets.NCSNpp(**dict(nets.TINY, version=2) | kwargs)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return net


def spectrogram(*shape, seed=1, dtype=torch.complex64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def size(**kwargs):
    """A network without memory: names, shapes and counts only."""
    with torch.device("meta"):
        return nets.NCSNpp(**kwargs)


def count(net):
    return sum(p.numel() for p in net.parameters())


def relative(a, b):
    """Largest distance over the largest value of b."""
    return ((a - b).abs().max() / b.abs().max()).item()


# The reference's numbers -----------------------------------------------------------------------------------------


@every_reference
@pytest.mark.parametrize("i", [0, 1])
@torch.no_grad()
def test_outputs_equal_the_reference(name, i):
    reference = Reference(name)
    net, (x, times, expected) = reference.net(), reference.call(i)
    assert relative(net(x, *times), expected) < 1e-4


@every_reference
@torch.no_grad()
def test_in_float64_the_reference_is_met_to_rounding(name):
    reference = Reference(name)
    x, times, expected = reference.call(1)
    out = reference.net().double()(x.to(torch.complex128), *[t.double() for t in times])
    assert out.dtype == torch.complex128
    assert relative(out, expected) < 1e-12


@every_reference
@pytest.mark.parametrize("i", [0, 1])
@torch.no_grad()
def test_bfloat16_stays_within_two_percent(name, i):
    reference = Reference(name)
    net, (x, times, expected) = reference.net(), reference.call(i)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, *times)
    assert out.dtype == torch.complex64
    assert (out - expected).norm() / expected.norm() < 0.02


@every_reference
def test_gradient_norms_equal_the_reference(name):
    reference = Reference(name)
    net, (x, times, _) = reference.net(), reference.call(0)
    net(x, *times).abs().square().mean().backward()
    ours = dict(net.official_names())
    assert [official for official in ours] == reference.json("grad_names_json")
    grads = [net.get_parameter(ours[official]).grad for official in ours]
    norms = np.array([0.0 if g is None else g.norm().item() for g in grads])
    expected = reference.data["grad_norms0"]
    # A key's bias shifts all logits alike, so its gradient is rounding only: hence the absolute part.
    np.testing.assert_allclose(norms, expected, rtol=1e-4, atol=1e-5 * expected.max())


@torch.no_grad()
def test_second_time_adds_an_embedding():
    reference = Reference("net_meanflowse_ncsnpp")
    net, (x, (t, d), _) = reference.net(), reference.call(0)
    without = nets.as_complex(net.unet(nets.as_real(x), t))
    assert relative(without, reference.tensor("out0_d_none")) < 1e-4
    assert relative(net(x, t, torch.zeros_like(d)), without) > 0.1      # delta = 0 is not "no delta"


# The paper's network ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs, parameters", [
    (dict(), 65_590_822),
    (dict(version=2), 65_590_822),
    (dict(version=2, in_channels=6, num_times=2), 66_115_310),
    (dict(version=2, in_channels=1, num_times=0), 59_582_484),
    (dict(version=2, width=32), 4_131_238),
    (dict(version=2, width=16), 1_043_430),
])
def test_parameter_counts_are_the_reference_s(kwargs, parameters):
    assert count(size(**kwargs)) == parameters


def test_only_the_fourier_frequencies_are_not_trained():
    frozen = {name: p.numel() for name, p in size().named_parameters() if not p.requires_grad}
    assert frozen == {"times.0.frequencies": 128}


def test_small_has_at_most_two_million_parameters():
    assert count(size(version=2, **nets.SMALL)) <= 2_000_000


def test_official_names_list_647_tensors_in_order():
    net = size()
    names = [(official, list(net.get_parameter(name).shape)) for official, name in net.official_names()]
    assert names[:3] == [("output_layer.weight", [2, 4, 1, 1]), ("output_layer.bias", [2]), ("all_modules.0.W", [128])]
    assert names[-1] == ("all_modules.76.bias", [4])
    assert len(names) == 647
    assert {name for _, name in net.official_names()} == set(net.state_dict())
    assert len({official.split(".")[1] for official, _ in names[2:]}) == 77


def test_each_module_has_the_official_number_of_parameters():
    net, modules = size(), {}
    for official, name in net.official_names():
        module = official.split(".")[1] if official.startswith("all_modules") else "output_layer"
        modules[module] = modules.get(module, 0) + net.get_parameter(name).numel()
    expected = {1: 131_584, 2: 262_656, 3: 4_736, 4: 361_344, 6: 377_856, 7: 640, 12: 1_050_368, 13: 1_312_512,
                14: 1_378_304, 15: 1_280, 21: 263_680, 35: 2_034_176, 39: 9_220, 62: 1_706_240, 66: 706_048,
                67: 541_952, 70: 4_612, 71: 377_856, 76: 4_612, "output_layer": 10}
    assert {module: modules[str(module)] for module in expected} == expected


def test_initialisation_keeps_the_reference_s_bounds():
    torch.manual_seed(0)
    block = nets.ResBlock(128, 128, 512)
    attention = nets.Attention(256)
    bounds = [(block.conv0, math.sqrt(3 / 1152)), (block.dense, math.sqrt(3 / 320)),
              (block.conv1, math.sqrt(3e-10 / 1152)), (attention.query, math.sqrt(0.3 / 256)),
              (attention.out, math.sqrt(3e-10 / 256))]
    for layer, bound in bounds:
        assert 0.99 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
        assert not layer.bias.any()
    assert nets.TimeEmbedding(512, 16).frequencies.std() == pytest.approx(16, rel=0.1)


def test_group_norm_has_32_groups_of_4_channels_at_most():
    groups = {channels: nets.group_norm(channels).num_groups for channels in (1, 8, 20, 64, 128, 256, 384, 512)}
    assert groups == {1: 1, 8: 2, 20: 5, 64: 16, 128: 32, 256: 32, 384: 32, 512: 32}
    assert nets.group_norm(200).num_groups == 25                        # 32 do not divide it: the next that do


@pytest.mark.parametrize("key, kwargs", [("with_time", {}), ("without_time", dict(in_channels=1, num_times=0))])
def test_initialisation_has_the_reference_s_statistics(key, kwargs):
    torch.manual_seed(0)
    net = nets.NCSNpp(version=2, width=32, **kwargs)
    ours = dict(net.official_names())
    for official, expected in json.loads((FIXTURES / "init_ncsnpp.json").read_text())[key].items():
        weight = net.get_parameter(ours[official]).detach()
        shape = expected["shape"][::-1] + [1, 1] if ".NIN_" in official else expected["shape"]
        assert list(weight.shape) == shape, official
        if expected["std"] == 0 or weight.numel() > 1000:
            assert weight.std() == pytest.approx(expected["std"], rel=0.05), official
            assert weight.abs().max() == pytest.approx(expected["absmax"], rel=0.01), official
        if official == "all_modules.0.W":                               # 32 draws only
            assert weight.std() == pytest.approx(expected["std"], rel=0.35)
        if official.startswith("output_layer"):                         # the framework's own, by the fan-in
            assert weight.abs().max() <= 1 / math.sqrt(net.head.in_channels)


def test_at_initialisation_the_output_is_the_last_bias():
    torch.manual_seed(0)
    net = nets.NCSNpp(version=2, **nets.TINY)
    out = net(spectrogram(1, 2, 16, 16), torch.tensor([0.5]))
    assert (out - torch.complex(*net.head.bias)).abs().max() < 1e-3


def golden_weights():
    """Self-check 28: cosines in place of random weights, so that anybody can write them down."""
    weights = {}
    for j, (official, name) in enumerate((net := size()).official_names()):
        shape = list(net.get_parameter(name).shape)
        shape = shape[1::-1] if ".NIN_" in official and official.endswith("W") else shape
        wave = np.cos(0.7 * np.arange(math.prod(shape)) + j)
        if len(shape) >= 2:
            wave *= math.sqrt(2 * shape[0] / math.prod(shape))
        elif official.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave *= 0.1
        weights[official] = torch.from_numpy(wave.astype(np.float32)).view(shape)
    return weights


@pytest.mark.slow
@torch.no_grad()
def test_golden_forward_pass_of_the_papers_network():
    f, n = torch.arange(256.0)[:, None], torch.arange(64.0)
    xt = 0.1 * torch.complex((0.01 * f + 0.03 * n).cos(), (0.02 * f - 0.05 * n).sin())
    y = 0.1 * torch.complex((0.015 * f + 0.04 * n).sin(), (0.025 * f - 0.02 * n).cos())
    x, t, weights = torch.stack([xt, y])[None], torch.tensor([0.5]), golden_weights()
    golden = {1: ([-3.78651 + 3.53471j, 1.07716 - 2.14207j, 1.64977 - 1.47196j, -0.84116 + 0.51312j], 2.467513),
              2: ([-1.86624 + 1.76091j, 0.56561 - 1.07749j, 0.85190 - 0.74242j, -0.39356 + 0.25012j], 1.230335)}
    out = {}
    for version, (values, mean) in golden.items():
        out[version] = nets.NCSNpp.from_official(weights, version=version)(x, t)[0, 0]
        found = out[version][[0, 10, 128, 255], [0, 20, 32, 63]]
        assert (found - torch.tensor(values)).abs().max() < 5e-4
        assert out[version].abs().mean().item() == pytest.approx(mean, abs=5e-4)
    bias = 0.1 * complex(math.cos(1), math.cos(1.7))
    assert (out[1] - (2 * out[2] - bias)).abs().max() < 1e-4


# FIR resampling --------------------------------------------------------------------------------------------------


def test_fir_keeps_ones_inside_and_fades_at_the_edges():
    down, up = (nets.Resample(3, up=up)(torch.ones(1, 3, 8, 12)) for up in (False, True))
    assert down.shape == (1, 3, 4, 6) and up.shape == (1, 3, 16, 24)
    for out, edge in ((down, 7 / 8), (up, 3 / 4)):
        torch.testing.assert_close(out[..., 1:-1, 1:-1], torch.ones_like(out[..., 1:-1, 1:-1]))
        torch.testing.assert_close(out[..., 0, 1:-1], torch.full_like(out[..., 0, 1:-1], edge))
        torch.testing.assert_close(out[..., 1:-1, -1], torch.full_like(out[..., 1:-1, -1], edge))
        torch.testing.assert_close(out[..., 0, 0], torch.full_like(out[..., 0, 0], edge ** 2))


@pytest.mark.parametrize("up", [False, True])
def test_fir_equals_filtering_at_full_resolution(up):
    x = torch.randn(2, 5, 6, 10, dtype=torch.float64)
    k = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    full = x
    if up:
        full = torch.zeros(2, 5, 12, 20, dtype=torch.float64)
        full[:, :, ::2, ::2] = 4 * x
    full = F.pad(full, (2, 1, 2, 1) if up else (1, 1, 1, 1)).flatten(0, 1)[:, None]
    full = F.conv2d(F.conv2d(full, k.view(1, 1, 4, 1)), k.view(1, 1, 1, 4)).unflatten(0, (2, 5))[:, :, 0]
    torch.testing.assert_close(nets.Resample(5, up).double()(x), full if up else full[:, :, ::2, ::2])


# Released weights ------------------------------------------------------------------------------------------------


@every_reference
@torch.no_grad()
def test_from_official_takes_prefixes_and_foreign_entries(name):
    reference = Reference(name)
    x, times, _ = reference.call(0)
    shuffled = {f"dnn.{name}": tensor for name, tensor in reversed(reference.weights.items())}
    shuffled["pesq_loss.bark.fbank"] = torch.zeros(3)
    assert torch.equal(nets.NCSNpp.from_official(shuffled, **reference.kwargs)(x, *times), reference.net()(x, *times))


@every_reference
def test_averaged_weights_are_named_by_their_order(name):
    reference = Reference(name)
    official = [official for official, _ in reference.net().official_names()]
    assert official == reference.names
    unnamed = list(reference.weights.values())                          # as `ema["shadow_params"]` stores them
    net = nets.NCSNpp.from_official(dict(zip(official, unnamed)), **reference.kwargs)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), reference.net().state_dict().values()))


def test_from_official_names_the_tensor_that_does_not_fit():
    reference = Reference("net_ncsnpp_v2_b")
    missing = {name: tensor for name, tensor in reference.weights.items() if name != "all_modules.5.NIN_2.W"}
    with pytest.raises(ValueError, match=r"no 'all_modules\.5\.NIN_2\.W' \(our encoders\.0\.attentions\.0\.value\.w"):
        nets.NCSNpp.from_official(missing, **reference.kwargs)
    left = reference.weights | {"all_modules.99.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"lacks, such as 'all_modules\.99\.weight'"):
        nets.NCSNpp.from_official(left, **reference.kwargs)
    with pytest.raises(ValueError, match=r"(?s)other shapes.*stem\.weight.*\[8, 4, 3, 3\].*\[16, 4, 3, 3\]"):
        nets.NCSNpp.from_official(reference.weights, **reference.kwargs | dict(width=16))


@pytest.mark.parametrize("wrong", [
    dict(num_res_blocks=2), dict(channel_mults=(1, 2, 2)), dict(attention_resolutions=(8,)), dict(num_times=2),
    dict(num_times=0), dict(in_channels=1), dict(out_channels=2),
], ids=str)
def test_from_official_refuses_weights_of_another_architecture(wrong):
    reference = Reference("net_ncsnpp_v2_b")
    with pytest.raises(ValueError, match=r"all_modules|delta_|output_layer|head"):
        nets.NCSNpp.from_official(reference.weights, **reference.kwargs | wrong)


# One answer by two routes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("F, T", [(37, 51), (257, 9), (1, 1), (256, 32)])
@pytest.mark.parametrize("num_times", [0, 1, 2])
@torch.no_grad()
def test_any_size_keeps_its_shape(F, T, num_times):
    net = lively(num_times=num_times, in_channels=3, out_channels=2)
    out = net(spectrogram(1, 3, F, T), *[torch.tensor([0.3])] * num_times)
    assert out.shape == (1, 2, F, T) and out.dtype == torch.complex64
    assert torch.isfinite(out.abs()).all()


@torch.no_grad()
def test_padding_appends_zeros_and_only_where_a_size_needs_it():
    net, t = lively(channel_mults=(1, 2, 2)), torch.tensor([0.3])
    seen = []
    net.stem.register_forward_hook(lambda layer, args, out: seen.append(args[0]))
    x = spectrogram(1, 2, 37, 51)
    out = net(x, t)
    assert seen[0].shape == (1, 4, 40, 52)
    padded = F.pad(x, (0, 1, 0, 3))
    torch.testing.assert_close(out, net(padded, t)[:, :, :37, :51], rtol=0, atol=0)
    assert torch.equal(seen[1], nets.as_real(padded))                   # a size that fits arrives as it is
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_a_batch_equals_its_members_one_by_one(version):
    net, x = lively(version=version).double(), spectrogram(3, 2, 19, 23, dtype=torch.complex128)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(net(x, t), torch.cat([net(x[i:i + 1], t[i:i + 1]) for i in range(3)]))


@torch.no_grad()
def test_channels_last_equals_contiguous():
    net, x, t = lively().double(), spectrogram(2, 2, 19, 23, dtype=torch.complex128), torch.tensor([0.2, 0.9])
    expected = net(x, t)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x, t), expected)
    torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last), t), expected)


def test_real_and_imaginary_parts_alternate_and_come_back():
    x = spectrogram(2, 3, 4, 5)
    real = nets.as_real(x)
    assert torch.equal(real[:, 0::2], x.real) and torch.equal(real[:, 1::2], x.imag)
    assert torch.equal(nets.as_complex(real), x)
    assert nets.as_complex(real.bfloat16()).dtype == torch.complex64


@pytest.mark.parametrize("num_times, version", [(1, 1), (1, 2), (2, 2)])
@torch.no_grad()
def test_jvp_matches_central_difference(num_times, version):
    net = lively(num_times=num_times, version=version).double()
    x, dx = (spectrogram(2, 2, 16, 12, seed=seed, dtype=torch.complex128) for seed in (1, 2))
    times = [torch.tensor([0.4, 0.8], dtype=torch.float64), torch.tensor([0.1, 0.5], dtype=torch.float64)][:num_times]
    h = 1e-5
    with sdpa_kernel(SDPBackend.MATH):                   # fused attention has no forward mode
        out, slope = torch.func.jvp(net, (x, *times), (dx, *map(torch.ones_like, times)))
        ahead, behind = (net(x + s * dx, *[t + s for t in times]) for s in (h, -h))
        assert relative(slope, (ahead - behind) / (2 * h)) < 1e-5
        assert torch.equal(out, net(x, *times))


@pytest.mark.parametrize("num_times, version", [(0, 2), (1, 1), (1, 2), (2, 2)])
def test_every_trainable_parameter_gets_a_gradient(num_times, version):
    net = lively(num_times=num_times, version=version, attention_resolutions=(256,))
    net(spectrogram(1, 2, 32, 32), *[torch.tensor([0.4])] * num_times).abs().square().mean().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == p.requires_grad, name


@torch.no_grad()
def test_forward_is_one_graph_without_breaks():
    net, x, times = lively(num_times=2, channel_mults=(1, 2)), spectrogram(2, 2, 17, 23), [torch.tensor([0.4, 0.7])] * 2
    graph = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(graph(x, *times), net(x, *times), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_compiled_outputs_and_gradients_equal_eager():
    net = lively(channel_mults=(1,), num_res_blocks=1, attention_resolutions=())
    x, t = spectrogram(2, 2, 17, 23), torch.tensor([0.4, 0.7])
    outs = [f(x, t) for f in (torch.compile(net, fullgraph=True, dynamic=False, backend="aot_eager"), net)]
    assert relative(*outs) < 1e-5
    assert relative(*(torch.autograd.grad(out.abs().square().mean(), net.stem.weight)[0] for out in outs)) < 1e-4


@torch.no_grad()
def test_times_below_1e_4_count_as_that():
    net, x = lively(), spectrogram(1, 2, 16, 16)
    at = lambda t: net(x, torch.tensor([t]))
    assert torch.equal(at(1e-5), at(1e-4)) and torch.equal(at(0.0), at(1e-4)) and not torch.equal(at(2e-4), at(1e-4))


@torch.no_grad()
def test_sums_of_blocks_stay_float32_under_autocast():
    net, seen = lively(attention_resolutions=(256,)), []
    for module in net.modules():
        if isinstance(module, (nets.ResBlock, nets.Attention)):
            module.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
        if isinstance(module, nets.Decoder) and module.grow:
            module.grow.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        net(spectrogram(1, 2, 32, 32), torch.tensor([0.5]))
    assert len(seen) > 20 and set(seen) == {torch.float32}


# Memory and time -------------------------------------------------------------------------------------------------


def test_attention_over_8000_positions_builds_no_table_of_them():
    """8064 x 8064 weights would be 248 MiB, and as many again for their soft-max."""
    assert growth("layer, x = nets.Attention(16), torch.randn(1, 16, 128, 63); layer(x[..., :8, :8])", "layer(x)") < 60


def test_tiny_enhances_thirty_seconds_in_flat_memory():
    """1876 frames of 256 bins; the spectrogram itself is 4 MiB, and eight channels of it 15."""
    setup = ("net, t = nets.NCSNpp(version=2, **nets.TINY), torch.tensor([0.5]); "
             "x = torch.randn(1, 2, 256, 1876, dtype=torch.complex64); net(x[..., :16], t)")
    assert growth(setup, "net(x, t)") < 600


def test_tiny_computes_less_than_small():
    operations = {}
    for name, sizes in (("tiny", nets.TINY), ("small", nets.SMALL)):
        with FlopCounterMode(display=False) as counter:
            nets.NCSNpp(version=2, **sizes)(torch.randn(1, 2, 256, 64, dtype=torch.complex64), torch.rand(1))
        operations[name] = counter.get_total_flops()
    assert 0 < operations["tiny"] < 0.5 * operations["small"]


# The door --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [torch.randn(1, 2, 16, 16), spectrogram(1, 1, 16, 16), spectrogram(16, 2, 16)],
                         ids=["real", "one channel", "no batch"])
def test_a_wrong_spectrogram_is_refused_with_a_remedy(x):
    with pytest.raises(ValueError) as error:
        lively()(x, torch.tensor([0.5]))
    message = str(error.value)
    assert "expected a complex spectrogram (B, 2, F, T)" in message
    assert f"got {x.dtype} {tuple(x.shape)}" in message
    assert "torch.cat([xt, y], dim=1)" in message


@pytest.mark.parametrize("num_times, given", [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_a_wrong_number_of_times_is_refused(num_times, given):
    net = lively(num_times=num_times)
    with pytest.raises(ValueError, match=rf"takes {num_times} time\(s\) after x; got {given}"):
        net(spectrogram(1, 2, 16, 16), *[torch.tensor([0.5])] * given)


def test_version_1_without_a_time_is_refused():
    with pytest.raises(ValueError, match="use version=2 with num_times=0"):
        nets.NCSNpp(version=1, num_times=0)


def test_config_rebuilds_the_network():
    net = lively(num_times=2, in_channels=3)
    again = nets.NCSNpp(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert again.config == net.config


def test_nets_runs_alone_in_an_empty_folder(tmp_path):
    shutil.copy(nets.__file__, tmp_path)
    code = ("import torch, nets; x = torch.randn(1, 2, 33, 20, dtype=torch.complex64); "
            "net = nets.NCSNpp(version=2, **nets.TINY); print(tuple(net(x, torch.tensor([0.5])).shape))")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 1, 33, 20)", result.stderr
