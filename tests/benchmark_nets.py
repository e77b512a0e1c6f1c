"""What NCSN++ costs, and how much of it is the work it cannot do without.

    python tests/benchmark_nets.py [--device cuda] [--threads 2] [--only paper|width32|small] [--repeats 5]

Per network, batch 1 at 256 x 256: parameters, GFLOP of a forward pass (two per multiply-add), time and memory of a
forward pass and of forward + backward, in both memory formats, and where the time of the faster one goes. The ratio
compares each time with the same convolutions and matrix products alone: same shapes, memory format and precision,
measured in turns in the same run, medians. The depthwise FIR filters of the resampling count as overhead, like
norms, activations and additions: they are not the network's own convolutions.

CPU: float32; memory is the growth of the process's peak, in a fresh process per case (Linux). CUDA: bfloat16 autocast;
memory is the peak that torch allocates, weights included. On a busy machine only the ratios mean something.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import commands
import nets

CASES = {"paper": dict(), "width32": dict(width=32), "small": nets.SMALL}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

# Which profiled operations make up which share; convolutions with a 4x4 kernel are the FIR filters.
SHARES = {
    "FIR": ("fir", "fir_backward"),
    "GroupNorm": ("aten::native_group_norm", "aten::native_group_norm_backward"),
    "SiLU": ("aten::silu", "aten::silu_backward"),
    "attention": ("aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
                  "aten::_scaled_dot_product_flash_attention_backward", "aten::_softmax_backward_data",
                  "aten::_scaled_dot_product_efficient_attention_backward",
                  "aten::_scaled_dot_product_cudnn_attention_backward"),
    "convolutions": ("aten::convolution", "aten::convolution_backward"),
}


def build(case, memory_format, device):
    """The network and its real input, as `NCSNpp.unet` takes them."""
    torch.manual_seed(0)
    net = nets.NCSNpp(version=2, **CASES[case]).to(device, memory_format=FORMATS[memory_format])
    x = torch.randn(1, 4, 256, 256, device=device).to(memory_format=FORMATS[memory_format])
    return net, (x, torch.tensor([0.5], device=device))


def autocast(inputs):
    return torch.autocast("cuda", torch.bfloat16, enabled=inputs[0].is_cuda)


def run(function, inputs, grad=None):
    """One forward pass; given the output's gradient, all gradients that training takes, too. Returns the output."""
    with torch.set_grad_enabled(grad is not None), autocast(inputs):
        out = function(*inputs)
    if grad is not None:
        owner = getattr(function, "__self__", function)                 # of a method such as net.unet
        parameters = owner.parameters() if isinstance(owner, nn.Module) else []
        torch.autograd.grad(out, [p for p in [*parameters, *inputs] if p.requires_grad], grad)
    return out


def core_products(net, inputs):
    """(function, inputs, gradient of the output) of each convolution and matrix product, laid out as the network's."""
    products = []

    def record(layer, args):
        products.append((layer, [torch.randn_like(args[0]).requires_grad_(args[0].requires_grad)]))

    def record_attention(layer, args):
        b, c, f, t = args[0].shape
        query, key, value = torch.randn(3, b, 1, f * t, c, device=args[0].device, dtype=args[0].dtype)
        weights = torch.randn(b, 1, f * t, f * t, device=args[0].device, dtype=args[0].dtype)
        products.append((torch.matmul, [query.requires_grad_(), key.transpose(-1, -2).requires_grad_()]))
        products.append((torch.matmul, [weights.requires_grad_(), value.requires_grad_()]))

    recorders = {nn.Conv2d: record, nn.Linear: record, nets.Attention: record_attention}
    hooks = [m.register_forward_pre_hook(recorders[type(m)]) for m in net.modules() if type(m) in recorders]
    with autocast(inputs):
        net.unet(*inputs)                        # with gradients: the input itself needs none, all that follows does
    for hook in hooks:
        hook.remove()
    return [(function, args, torch.randn_like(run(function, args))) for function, args in products]


def run_products(products, backward):
    for function, inputs, grad in products:
        run(function, inputs, grad if backward else None)


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(net, inputs, repeats, backward):
    """Median seconds of the network and of its products alone, taken in turns."""
    products = core_products(net, inputs)
    grad = torch.randn_like(run(net.unet, inputs)) if backward else None
    run_products(products, backward)                                    # warm up
    turns = [(seconds(run, net.unet, inputs, grad), seconds(run_products, products, backward)) for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*turns)]


def gigaflop(products):
    with FlopCounterMode(display=False) as counter:
        run_products(products, backward=False)
    return counter.get_total_flops() / 1e9


def shares(net, inputs, backward):
    """Share of the profiled time by kind of operation."""
    cuda = inputs[0].is_cuda
    grad = torch.randn_like(run(net.unet, inputs)) if backward else None
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        run(net.unet, inputs, grad)
    total, by_name = 0, {}
    for event in profile.events():
        total += event.self_device_time_total if cuda else event.self_cpu_time_total
        name = event.name
        if name in SHARES["convolutions"]:
            weight = event.input_shapes[2 if name.endswith("backward") else 1]
            name = name.replace("aten::convolution", "fir") if weight[-1] == 4 else name
        by_name[name] = by_name.get(name, 0) + (event.device_time_total if cuda else event.cpu_time_total)
    parts = {share: sum(by_name.get(name, 0) for name in names) / total for share, names in SHARES.items()}
    return parts | {"rest": 1 - sum(parts.values())}


def resident(key):
    """Bytes of this process in Linux's books: VmRSS now, VmHWM at its peak (`getrusage` inherits the parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def memory(case, memory_format, device, backward):
    """Bytes at the peak of one pass: on the CPU, beyond what the process held before."""
    net, inputs = build(case, memory_format, device)
    grad = torch.ones(1, 2, 256, 256, device=device) if backward else None
    before = resident("VmRSS") if device == "cpu" else 0
    run(net.unet, inputs, grad)
    return resident("VmHWM") - before if device == "cpu" else torch.cuda.max_memory_allocated()


def memory_in_a_fresh_process(case, memory_format, args, backward):
    command = [sys.executable, __file__, "--only", case, "--device", args.device, "--threads", str(args.threads),
               "--memory", memory_format, "forward+backward" if backward else "forward"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(case, args):
    results, profiles = {}, {}
    for memory_format in FORMATS:
        net, inputs = build(case, memory_format, args.device)
        for backward in (False, True):
            results[memory_format, backward] = measure(net, inputs, args.repeats, backward)
            profiles[memory_format, backward] = shares(net, inputs, backward)
    parameters, gflop = sum(p.numel() for p in net.parameters()), gigaflop(core_products(net, inputs))
    print(f"\n{case}: {parameters:,} parameters, {gflop:.1f} GFLOP")
    for backward in (False, True):
        best = min(FORMATS, key=lambda memory_format: results[memory_format, backward][0])
        for memory_format in FORMATS:
            whole, products = results[memory_format, backward]
            peak = memory_in_a_fresh_process(case, memory_format, args, backward)
            print(f"  {'forward + backward' if backward else 'forward':18} {memory_format:13} {whole * 1e3:8.1f} ms = "
                  f"{whole / products:.2f} x {products * 1e3:.1f} ms of products, peak {peak / 1e6:.0f} MB"
                  f"{'   <- faster' if memory_format == best else ''}")
        parts = ", ".join(f"{share} {part:.0%}" for share, part in profiles[best, backward].items())
        print(f"  {'':18} {best}: {parts}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--only", choices=CASES, help="one network instead of all three")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns per measurement")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)     # one case of a fresh process
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    commands.keep_memory()                                  # as all commands do
    if args.memory:
        print(memory(args.only, args.memory[0], args.device, args.memory[1] == "forward+backward"))
        return
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, batch 1, 256 x 256")
    for case in [args.only] if args.only else CASES:
        report(case, args)


if __name__ == "__main__":
    main()
