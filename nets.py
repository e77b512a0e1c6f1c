"""NCSN++, the U-Net that every method here shares, and two smaller networks.

The file imports nothing of ours: to reuse it, copy it. Song et al., "Score-Based
Generative Modeling through Stochastic Differential Equations", ICLR 2021, in the
complex-spectrogram form of SGMSE+ (Richter et al., TASLP 2023, arXiv 2208.05830).

    NCSNpp             the whole network; `NCSNpp.from_official` takes released weights
      ResBlock         two 3x3 convolutions, time embedding in between (BigGAN block)
      Attention        single-head self-attention over all frequency-time positions
      Resample         FIR low-pass and a factor of two, up or down, on both axes
      TimeEmbedding    Fourier features of a time and two dense layers
    SMALL, TINY        its sizes in the presets of those names
    SpatialNet         speakers from spectrograms of several microphones (arXiv 2307.16516)
      SpatialLayer     across frequency FrequencyConv, FullBand, FrequencyConv; along time
                       attention, FeedForward
    COMPACT            its sizes for tests and CPUs
    MaskGRU            a mask from a small recurrent network: the compact pair of DISPatch

Shapes: spectrograms are complex (B, C, F, T); inside, real (B, 2C, F, T) in the order re,
im, re, im, ... Where we differ: the reference filters at full resolution and discards three
of four results; here the same filter is one strided depthwise convolution, with the same
numbers.
"""

import contextlib
import math
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F


# Types of Config fields with their accepted values; see check_fields.
Count = Annotated[int, "[1, inf)"]
Positive = Annotated[float, "(0, inf)"]
Weight = Annotated[float, "[0, inf)"]
Fraction = Annotated[float, "[0, 1]"]


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of NCSNpp, part of every method's Config; the defaults are those of SGMSE+.

    Raises ValueError for a value that its annotation excludes, see check_fields.
    """
    width: Count = 128               # channels at full resolution
    channel_mults: Annotated[tuple, "[1, inf)"] = (1, 1, 2, 2, 2, 2, 2)  # per level, in widths
    num_res_blocks: Count = 2        # per resolution
    attention_resolutions: Annotated[tuple, "[1, inf)",
                                     "may be empty"] = (16,)  # frequency heights with it

    def __post_init__(self):
        check_fields(self)


def check_fields(config):
    """Raises ValueError for a value of a dataclass that its annotation excludes.

    Literal["a", "b"] lists the values; Annotated[float, "[0, 1)"] gives the interval of
    numbers, or of the elements of a tuple, which is not empty unless "may be empty".
    """
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ValueError(f"{flag}: expected one of {choices}; got {value}")
        for interval in getattr(hint, "__metadata__", ())[:1]:
            low, high = map(float, interval[1:-1].split(","))
            elements = value if isinstance(value, tuple) else (value,)
            if not elements and "may be empty" not in hint.__metadata__:
                raise ValueError(f"{flag}: expected one number or more")
            for x in elements:
                above = x >= low if interval[0] == "[" else x > low
                below = x <= high if interval[-1] == "]" else x < high
                if not (above and below):
                    raise ValueError(f"{flag}: expected a number in {interval}; got {x}")


# One definition each, so that methods compare like with like. Most of the cost of an NCSN++
# sits in its first two resolutions, so these stay narrow there and grow below. Slow Fourier
# features (scale 1): a short training cannot afford to learn every noise level on its own.
SMALL = dict(width=16, channel_mults=(1, 1, 2, 4, 6), num_res_blocks=1,
             attention_resolutions=(), fourier_scale=1.0)
TINY = dict(width=8, channel_mults=(1, 1, 2, 2, 2), num_res_blocks=1,
            attention_resolutions=(), fourier_scale=1.0)


def without_time(network):
    """The preset of a network that is told no time."""
    return {name: value for name, value in network.items() if name != "fourier_scale"}


def fan_average_(layer, scale=1.0):
    """In place: uniform weights of variance scale / mean fan, and zero biases.

    Scale 0 stands for 1e-10, as in the reference: branches that start with it add nothing
    at first.
    """
    weight = layer.weight
    fan_average = weight[0, 0].numel() * (weight.shape[0] + weight.shape[1]) / 2
    bound = math.sqrt(3 * max(scale, 1e-10) / fan_average)
    nn.init.uniform_(weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


def conv(in_channels, out_channels, kernel_size, scale=1.0):
    """Convolution that keeps the size of the map."""
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return fan_average_(layer, scale)


def group_norm(channels):
    """GroupNorm as in the reference: at most 32 groups of at least four channels."""
    most = max(min(channels // 4, 32), 1)
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class TimeEmbedding(nn.Module):
    """(B,) -> (B, 4 width): random Fourier features of a scalar, then two dense layers."""

    def __init__(self, width, scale):
        super().__init__()
        # A parameter, not a buffer: released averaged weights list it among the parameters.
        self.frequencies = nn.Parameter(torch.randn(width) * scale, requires_grad=False)
        self.dense0 = fan_average_(nn.Linear(2 * width, 4 * width))
        self.dense1 = fan_average_(nn.Linear(4 * width, 4 * width))

    def forward(self, u):
        angle = 2 * math.pi * u[:, None] * self.frequencies                # (B, width)
        features = torch.cat([angle.sin(), angle.cos()], dim=1)            # (B, 2 width)
        return self.dense1(F.silu(self.dense0(features)))


class Resample(nn.Module):
    """Low-pass by the outer product of [1, 3, 3, 1] and resample by two; zeros outside.

    (B, C, F, T) -> (B, C, F/2, T/2), or (B, C, 2F, 2T) when `up`. A constant filter:
    nothing to learn or store.
    """

    def __init__(self, channels, up):
        super().__init__()
        k = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(k, k) / 64 * (4 if up else 1)   # up: 3 of 4 inputs are 0
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1), persistent=False)
        self.up = up

    def forward(self, x):
        convolve = F.conv_transpose2d if self.up else F.conv2d
        kernel = self.kernel.to(x.dtype)
        return convolve(x, kernel, stride=2, padding=1, groups=len(kernel))


class ResBlock(nn.Module):
    """(B, in, F, T) and embedding (B, E) -> (B, out, F', T'), resampled."""

    def __init__(self, in_channels, out_channels, emb_channels, resample=None):
        super().__init__()
        self.resample = Resample(in_channels, up=resample == "up") if resample else None
        self.norm0 = group_norm(in_channels)
        self.conv0 = conv(in_channels, out_channels, 3)
        self.dense = None
        if emb_channels:
            self.dense = fan_average_(nn.Linear(emb_channels, out_channels))
        self.norm1 = group_norm(out_channels)
        self.conv1 = conv(out_channels, out_channels, 3, scale=0)
        self.shortcut = None
        if resample or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1)

    def forward(self, x, emb=None):
        h = F.silu(self.norm0(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h)
        if self.dense:
            h = h + self.dense(F.silu(emb))[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        if self.shortcut:
            x = self.shortcut(x)
        return (at_least_float32(x) + h) * math.sqrt(0.5)


class Attention(nn.Module):
    """Self-attention over all F T positions of a (B, C, F, T) map, one head and a residual.

    torch.func.jvp wants it within sdpa_kernel(SDPBackend.MATH): fused kernels have no
    forward mode.
    """

    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.query = conv(channels, channels, 1, scale=0.1)
        self.key = conv(channels, channels, 1, scale=0.1)
        self.value = conv(channels, channels, 1, scale=0.1)
        self.out = conv(channels, channels, 1, scale=0)

    def forward(self, x):
        h = self.norm(x)
        # Contiguous: of strided ones the CPU builds the whole table of F T x F T weights.
        tokens = [layer(h).flatten(2).transpose(1, 2)[:, None].contiguous()
                  for layer in (self.query, self.key, self.value)]   # each (B, 1, F T, C)
        h = F.scaled_dot_product_attention(*tokens)                        # (B, 1, F T, C)
        h = h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])              # (B, C, F, T)
        return (at_least_float32(x) + self.out(h)) * math.sqrt(0.5)


class Encoder(nn.Module):
    """One resolution on the way down: (its skips, features of the next or None)."""

    def __init__(self, in_channels, channels, num_blocks, attention, image_channels,
                 emb_channels, last):
        super().__init__()
        widths = [in_channels] + [channels] * num_blocks
        self.blocks = nn.ModuleList(ResBlock(a, b, emb_channels)
                                    for a, b in zip(widths, widths[1:]))
        self.attentions = nn.ModuleList(Attention(channels) if attention else nn.Identity()
                                        for _ in self.blocks)
        self.down = None if last else ResBlock(channels, channels, emb_channels, "down")
        self.shrink = None if last else Resample(image_channels, up=False)
        # The input joins again at every resolution.
        self.combine = None if last else conv(image_channels, channels, 1)

    def forward(self, h, image, emb):
        skips = []
        for block, attention in zip(self.blocks, self.attentions):
            h = attention(block(h, emb))
            skips.append(h)
        if self.down is None:
            return skips, h, image
        image = self.shrink(image)
        h = self.down(h, emb) + self.combine(image)
        return skips + [h], h, image


class Decoder(nn.Module):
    """One resolution on the way up: consumes its skips and adds to the output image."""

    def __init__(self, in_channels, skip_channels, channels, attention, image_channels,
                 emb_channels, last):
        super().__init__()
        widths = [in_channels] + [channels] * len(skip_channels)
        self.blocks = nn.ModuleList(ResBlock(a + s, b, emb_channels)
                                    for a, s, b in zip(widths, skip_channels, widths[1:]))
        self.attention = Attention(channels) if attention else nn.Identity()
        self.norm = group_norm(channels)
        self.to_image = conv(channels, image_channels, 3, scale=0)
        self.up = None if last else ResBlock(channels, channels, emb_channels, "up")
        self.grow = None if last else Resample(image_channels, up=True)

    def forward(self, h, image, skips, emb):
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        h = self.attention(h)
        part = at_least_float32(self.to_image(F.silu(self.norm(h))))
        image = part if image is None else image + part
        if self.up is None:
            return h, image
        return self.up(h, emb), self.grow(image)


class NCSNpp(nn.Module):
    """NCSN++ on complex spectrograms.

    forward(x, *times): x complex (B, in_channels, F, T), F and T of any size; each time
    (B,). Returns complex (B, out_channels, F, T). The first time is the process time t in
    (0, 1]; the second, where there are two, is the length delta = t - r >= 0 of the
    interval that an average velocity spans. Raises ValueError for a wrong shape, dtype or
    number of times.

    Card of the paper's network: the defaults, 65,590,822 parameters.
    """

    precision = None             # of forward: torch.bfloat16 in mixed-precision training

    def __init__(
        self,
        in_channels=2,             # complex signals in: the state x_t, conditions such as y
        out_channels=1,                          # complex signals out
        width=128,                               # channels at full resolution
        channel_mults=(1, 1, 2, 2, 2, 2, 2),     # per level, in widths; each halves F, T
        num_res_blocks=2,                     # per resolution on the way down; up, one more
        attention_resolutions=(16,),      # sizes F with attention, also the bottleneck
        image_size=256,                          # F that attention_resolutions refers to
        num_times=1,                           # 0: direct map; 1: t; 2: t and delta = t - r
        version=1,                        # 1 divides by t before the last layer; 2 does not
        fourier_scale=16,                        # std of the random frequencies of log t
    ):
        super().__init__()
        if version == 1 and num_times == 0:
            raise ValueError("version 1 divides its output by t: use version=2 with "
                             "num_times=0")
        self.config = dict(
            in_channels=in_channels, out_channels=out_channels, width=width,
            channel_mults=tuple(channel_mults), num_res_blocks=num_res_blocks,
            attention_resolutions=tuple(attention_resolutions), image_size=image_size,
            num_times=num_times, version=version, fourier_scale=fourier_scale)
        image = 2 * in_channels       # real channels of the input and of the output pyramid
        emb = 4 * width if num_times else 0
        levels = len(channel_mults)
        self.multiple = 2 ** (levels - 1)        # F and T are padded to a multiple of this
        self.times = nn.ModuleList(TimeEmbedding(width, fourier_scale)
                                   for _ in range(num_times))
        self.stem = conv(image, width, 3)

        attended = [image_size // 2 ** level in attention_resolutions
                    for level in range(levels)]
        self.encoders = nn.ModuleList()
        h, skips = width, [[width]]              # channels; those of each level's skips
        for level, mult in enumerate(channel_mults):
            self.encoders.append(Encoder(h, width * mult, num_res_blocks, attended[level],
                                         image, emb, last=level == levels - 1))
            h = width * mult
            skips[-1] += [h] * num_res_blocks    # the first is of the stem, or a combine
            skips.append([h])

        self.middle = nn.ModuleList([ResBlock(h, h, emb), Attention(h),
                                     ResBlock(h, h, emb)])

        self.decoders = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mults))):
            self.decoders.append(Decoder(h, skips[level][::-1], width * mult,
                                         attended[level], image, emb, last=level == 0))
            h = width * mult

        self.head = nn.Conv2d(image, 2 * out_channels, 1)

    def forward(self, x, *times):
        expected = self.config["in_channels"]
        if not x.is_complex() or x.ndim != 4 or x.shape[1] != expected:
            raise ValueError(f"expected a complex spectrogram (B, {expected}, F, T); got "
                             f"{x.dtype} {tuple(x.shape)}. Join state and condition with "
                             "torch.cat([xt, y], dim=1); see data.Spectrogram.")
        if len(times) != len(self.times):
            raise ValueError(f"this network takes {len(self.times)} time(s) after x; got "
                             f"{len(times)}")
        bins, frames = x.shape[2:]
        x = F.pad(as_real(x), (0, -frames % self.multiple, 0, -bins % self.multiple))
        with autocast(self, x):
            x = self.unet(x, *times)
        return as_complex(x[..., :bins, :frames])

    def unet(self, x, *times):
        """The network on real channels: (B, 2 in_channels, F, T) -> (B, 2 out, F, T)."""
        emb = None
        if times:
            emb = self.times[0](times[0].clamp(min=1e-4).log())
        if len(times) == 2:
            emb = emb + self.times[1](times[1].log1p())

        h, image = self.stem(x), x
        stack = [h]
        for encoder in self.encoders:
            skips, h, image = encoder(h, image, emb)
            stack += skips

        block, attention, block_after = self.middle
        h = block_after(attention(block(h, emb)), emb)

        image = None
        for decoder in self.decoders:
            h, image = decoder(h, image, stack, emb)

        if self.config["version"] == 1:
            image = image / times[0][:, None, None, None]
        return self.head(image)

    @classmethod
    def from_official(cls, state_dict, **kwargs):
        """The network of a released checkpoint, with the same outputs.

        state_dict: tensors by their official names (`all_modules.4.Conv_0.weight`, ...), with or
        without the prefixes `module.` and `dnn.`; entries that belong to no network (a PESQ loss)
        are ignored. kwargs: those of the constructor, as far as the checkpoint's differ from its
        defaults. For averaged weights, which are stored as a list without names, see
        `official_names`. Raises ValueError where the two do not fit.
        """
        net = cls(**kwargs)
        weights = {name.removeprefix("module.").removeprefix("dnn."): tensor
                   for name, tensor in state_dict.items()}
        ours = {}
        for official, name in net.official_names():
            if official not in weights:
                raise ValueError(f"the checkpoint has no '{official}' (our {name}): are "
                                 "width, channel_mults, num_res_blocks, "
                                 "attention_resolutions and num_times as in its training?")
            tensor = weights.pop(official)
            if ".NIN_" in official and official.endswith("W"):
                tensor = tensor.T[:, :, None, None]      # stored as (in, out)
            ours[name] = tensor
        left = [name for name in weights
                if name.startswith(("all_modules.", "delta_", "output_layer."))]
        if left:
            raise ValueError(f"the checkpoint has {len(left)} tensors that this network "
                             f"lacks, such as '{left[0]}'")
        try:
            net.load_state_dict(ours)
        except RuntimeError as error:
            raise ValueError("the checkpoint's tensors have other shapes than this "
                             f"network's: {error}") from None
        return net

    def official_names(self):
        """Pairs (official name, our name) in the order of released checkpoints."""
        ours = {id(p): name for name, p in self.named_parameters()}
        in_block = (("GroupNorm_0", "norm0"), ("Conv_0", "conv0"), ("Dense_0", "dense"),
                    ("GroupNorm_1", "norm1"), ("Conv_1", "conv1"), ("Conv_2", "shortcut"))
        in_attention = (("GroupNorm_0", "norm"), ("NIN_0", "query"), ("NIN_1", "key"),
                        ("NIN_2", "value"), ("NIN_3", "out"))

        def pairs(prefix, layer):
            if isinstance(layer, (ResBlock, Attention)):
                inside = in_block if isinstance(layer, ResBlock) else in_attention
                for official, name in inside:
                    if getattr(layer, name) is not None:
                        yield from pairs(f"{prefix}.{official}", getattr(layer, name))
            elif isinstance(layer, nn.Parameter):
                yield prefix, ours[id(layer)]
            else:
                nin = ".NIN_" in prefix
                yield f"{prefix}.{'W' if nin else 'weight'}", ours[id(layer.weight)]
                yield f"{prefix}.{'b' if nin else 'bias'}", ours[id(layer.bias)]

        yield from pairs("output_layer", self.head)
        if len(self.times) == 2:
            yield from pairs("delta_gfproj.W", self.times[1].frequencies)
            yield from pairs("delta_fc1", self.times[1].dense0)
            yield from pairs("delta_fc2", self.times[1].dense1)
        for number, (suffix, layer) in enumerate(self.official_order()):
            yield from pairs(f"all_modules.{number}{suffix}", layer)

    def official_order(self):
        """Pairs (suffix, layer) in the order of the reference's list `all_modules`."""
        if len(self.times):
            time = self.times[0]
            yield from ((".W", time.frequencies), ("", time.dense0), ("", time.dense1))
        yield "", self.stem
        for encoder in self.encoders:
            for block, attention in zip(encoder.blocks, encoder.attentions):
                yield "", block
                if isinstance(attention, Attention):
                    yield "", attention
            if encoder.down:
                yield "", encoder.down
                yield ".Conv_0", encoder.combine
        yield from (("", layer) for layer in self.middle)
        for decoder in self.decoders:
            yield from (("", block) for block in decoder.blocks)
            if isinstance(decoder.attention, Attention):
                yield "", decoder.attention
            yield from (("", decoder.norm), ("", decoder.to_image))
            if decoder.up:
                yield "", decoder.up


def autocast(net, x):
    """Context of a forward pass in net.precision (None: that of its weights).

    Without the cache: there a pass without gradient leaves copies of the weights that have
    none, for passes with one.
    """
    return torch.autocast(x.device.type, net.precision or torch.bfloat16,
                          enabled=net.precision is not None, cache_enabled=False)


@contextlib.contextmanager
def in_precision(model, dtype):
    """Within it the networks of `model` compute in this dtype, or None: that of the weights."""
    networks = [module for module in model.modules() if hasattr(module, "precision")]
    before = [net.precision for net in networks]
    for net in networks:
        net.precision = dtype
    try:
        yield
    finally:
        for net, dtype in zip(networks, before):
            net.precision = dtype


def as_real(x):
    """complex (B, C, F, T) -> real (B, 2C, F, T), real and imaginary parts alternating."""
    return torch.view_as_real(x).movedim(-1, 2).flatten(1, 2)


def as_complex(x):
    """The inverse of `as_real`."""
    x = at_least_float32(x).unflatten(1, (-1, 2)).movedim(2, -1)
    return torch.view_as_complex(x.contiguous())


def at_least_float32(x):
    """Half precision has no complex numbers, and long sums lose their last digits in it."""
    return x if x.dtype == torch.float64 else x.float()


# ------------------------------------------------------------------------------- SpatialNet

# The separator of tests and CPUs. Small, the default of the class, has the published sizes.
COMPACT = dict(layers=2, width=32, hidden=64, heads=2, squeezed=4, groups=4)


class FrequencyConv(nn.Module):
    """Neighbouring frequencies of each frame: (B, F, T, H) -> the same."""

    def __init__(self, width, groups):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2, groups=groups)
        self.prelu = nn.PReLU(width)

    def forward(self, x):
        h = self.norm(x).permute(0, 2, 3, 1).flatten(0, 1)                 # (B T, H, F)
        return self.prelu(self.conv(h)).unflatten(0, (len(x), -1)).permute(0, 3, 1, 2)


class FullBand(nn.Module):
    """A dense F -> F map for each channel of (B, F, T, C)."""

    def __init__(self, channels, bins):
        super().__init__()
        bound = 1 / bins                        # as the original's: a fan-in of bins x bins
        weight = torch.empty(channels, bins, bins)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels, bins).uniform_(-bound, bound))

    def forward(self, x):
        return torch.einsum("cgf, bftc -> bgtc", self.weight, x) + self.bias.T[:, None]


class FeedForward(nn.Module):
    """Neighbouring frames of each frequency: (N, T, H) -> the same."""

    def __init__(self, width, hidden, groups):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)
        self.convs = nn.ModuleList(nn.Conv1d(hidden, hidden, 3, padding=1, groups=groups)
                                   for _ in range(3))
        self.hidden_norm = nn.GroupNorm(groups, hidden)

    def forward(self, x):
        h = F.silu(self.into(self.norm(x))).transpose(1, 2)                # (N, hidden, T)
        h = F.silu(self.convs[0](h))
        h = F.silu(self.hidden_norm(self.convs[1](h)))
        h = F.silu(self.convs[2](h))
        return self.out(h.transpose(1, 2))


class SpatialLayer(nn.Module):
    """Three residual updates across frequency, two along time, of (B, F, T, H)."""

    def __init__(self, width, hidden, heads, squeezed, groups):
        super().__init__()
        self.frequency0 = FrequencyConv(width, groups)
        self.frequency1 = FrequencyConv(width, groups)
        self.full_norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, squeezed)
        self.unsqueeze = nn.Linear(squeezed, width)
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = FeedForward(width, hidden, groups)

    def forward(self, x, full_band):
        """full_band: function (B, F, T, squeezed) -> the same, common to all layers."""
        bins = x.shape[1]
        x = x + self.frequency0(x)
        x = x + F.silu(self.unsqueeze(full_band(F.silu(self.squeeze(self.full_norm(x))))))
        x = x + self.frequency1(x)
        x = x.flatten(0, 1)                              # (B F, T, H): each frequency alone
        h = self.attention_norm(x)
        x = x + self.attend(h)
        x = x + self.feed_forward(x)
        return x.unflatten(0, (-1, bins))

    def attend(self, h):
        """Self-attention along time, (B F, T, H), without the T x T weights that the module
        builds where no gradient is needed: 7 GB for 30 s.
        """
        layer = self.attention
        tokens = F.linear(h, layer.in_proj_weight, layer.in_proj_bias)     # (B F, T, 3 H)
        tokens = tokens.unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(*tokens.contiguous())   # (B F, heads, T, D)
        return layer.out_proj(h.transpose(1, 2).flatten(2))


class SpatialNet(nn.Module):
    """Separates speakers in complex spectrograms of one or several microphones.

    Quan and Li, "SpatialNet: Extensively Learning Spatial Information for Multichannel
    Joint Speech Separation, Denoising and Dereverberation" (TASLP 2024, arXiv 2307.16516).
    forward(Y): complex (B, num_mics, F, T), not compressed, F = bins, T of any size ->
    complex (B, num_speakers, F, T), the speakers at the reference microphone in arbitrary
    order. The output scales with the input. Raises ValueError for a wrong shape or
    dtype.

    The defaults are the published small network: 1,585,460 parameters for 4 microphones and
    2 speakers.
    """

    precision = None             # of forward: torch.bfloat16 in mixed-precision training

    def __init__(
        self,
        num_mics,
        num_speakers,
        bins=257,                                # F of the spectrogram: n_fft // 2 + 1
        layers=8,
        width=96,                                # H, channels of a frequency-time point
        hidden=192,                              # channels inside the feed-forward
        heads=4,                                 # of the attention along time
        squeezed=8,                   # channels, of the H, that see all frequencies at once
        groups=8,                                # of the grouped convolutions
    ):
        super().__init__()
        self.expected = num_mics, bins
        self.encoder = nn.Conv1d(2 * num_mics, width, 5, padding=2)        # along time
        self.full_band = FullBand(squeezed, bins)       # most weights: shared by the layers
        self.layers = nn.ModuleList(SpatialLayer(width, hidden, heads, squeezed, groups)
                                    for _ in range(layers))
        self.decoder = nn.Linear(width, 2 * num_speakers)

    def forward(self, Y):
        mics, bins = self.expected
        if not Y.is_complex() or Y.ndim != 4 or Y.shape[1:3] != (mics, bins):
            raise ValueError(f"expected a complex spectrogram (B, {mics}, {bins}, T) of "
                             f"{mics} microphone(s); got {Y.dtype} {tuple(Y.shape)}")
        level = Y[:, :1].abs().mean(3, keepdim=True) + 1e-6  # (B, 1, F, 1), at the reference
        x = as_real(Y / level).transpose(1, 2).flatten(0, 1)               # (B F, 2 M, T)
        with autocast(self, x):
            x = at_least_float32(self.encoder(x))                          # (B F, H, T)
            x = x.transpose(1, 2).unflatten(0, (-1, bins))                 # (B, F, T, H)
            for layer in self.layers:
                x = layer(x, self.full_band)
            x = self.decoder(x).permute(0, 3, 1, 2)                        # (B, 2 S, F, T)
        return as_complex(x) * level                                       # (B, S, F, T)

    @classmethod
    def from_official(cls, state_dict, **sizes):
        """The network of a checkpoint of NBSS, SpatialNet's own program.

        state_dict: tensors by their official names (`layers.0.fconv1.1.weight`, ...), with
        or without the prefix `arch.`. sizes: the constructor's arguments, as far as the
        checkpoint's differ from its defaults; `official_sizes` reads all but the heads from
        the shapes. Raises ValueError where the two do not fit.
        """
        net = cls(**sizes)
        empty = net.state_dict()
        ours = {}
        for name, tensor in state_dict.items():
            name = name.removeprefix("module.").removeprefix("arch.")
            module, _, kind = name.rpartition(".")
            if module.startswith("layers."):
                _, number, part = module.split(".", 2)
                module = f"layers.{number}.{OFFICIAL_PARTS.get(part, part)}"
                if part == "full":                       # the same in every layer
                    module = "full_band"
            name = f"{module}.{kind}"
            if name in empty and tensor.ndim == empty[name].ndim + 1:
                tensor = tensor[..., 0]          # a convolution of one frame: a dense layer
            ours[name] = tensor
        try:
            net.load_state_dict(ours)
        except RuntimeError as error:
            raise ValueError("the checkpoint's tensors are not those of a SpatialNet of "
                             f"these sizes: {error}") from None
        return net

    @staticmethod
    def official_sizes(state_dict):
        """The constructor's arguments but `heads`, read from a checkpoint's shapes."""
        shapes = {name.removeprefix("module.").removeprefix("arch."): p.shape
                  for name, p in state_dict.items()}
        width, inputs, _ = shapes["encoder.weight"]
        squeezed, bins, _ = shapes["layers.0.full.weight"]
        layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
        return dict(num_mics=inputs // 2, num_speakers=shapes["decoder.weight"][0] // 2,
                    bins=bins, layers=len(layers), width=width,
                    hidden=shapes["layers.0.tconvffn.1.weight"][0], squeezed=squeezed,
                    groups=width // shapes["layers.0.fconv1.1.weight"][1])


# The parts of a layer by the names of SpatialNet's own program.
OFFICIAL_PARTS = {
    "fconv1.0": "frequency0.norm", "fconv1.1": "frequency0.conv",
    "fconv1.2": "frequency0.prelu",
    "norm_full": "full_norm", "squeeze.0": "squeeze", "unsqueeze.0": "unsqueeze",
    "fconv2.0": "frequency1.norm", "fconv2.1": "frequency1.conv",
    "fconv2.2": "frequency1.prelu",
    "norm_mhsa": "attention_norm", "mhsa": "attention",
    "mhsa.out_proj": "attention.out_proj",
    "tconvffn.0": "feed_forward.norm", "tconvffn.1": "feed_forward.into",
    "tconvffn.3": "feed_forward.convs.0", "tconvffn.5": "feed_forward.convs.1",
    "tconvffn.6": "feed_forward.hidden_norm", "tconvffn.8": "feed_forward.convs.2",
    "tconvffn.10": "feed_forward.out"}



# ------------------------------------------------------------------------------------- mask

class MaskGRU(nn.Module):
    """A real mask: log-magnitude, dense layer, GRU along time, dense layer, sigmoid.

    forward(y): complex (B, 1, F, T), F = bins, not compressed -> each bin times a number in
    (0, 1). Causal. Parameters at 257 bins: 39,089; 921,601 with hidden = 256, layers = 2.
    """

    multiple = 1                                         # of which T must be one
    precision = None                                     # see NCSNpp

    def __init__(self, bins=257, hidden=48, layers=1):
        super().__init__()
        self.encoder = nn.Linear(bins, hidden)
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True)
        self.decoder = nn.Linear(hidden, bins)

    def features(self, y):
        """Hidden states of the GRU: (B, 1, F, T) -> (B, T, hidden)."""
        x = y[:, 0].abs().clamp(min=1e-4).log().transpose(1, 2)            # (B, T, F)
        return self.gru(self.encoder(x))[0]

    def forward(self, y):
        with autocast(self, y):
            mask = self.decoder(self.features(y)).sigmoid()                # (B, T, F)
        return mask.to(y.real.dtype).transpose(1, 2)[:, None] * y          # (B, 1, F, T)
