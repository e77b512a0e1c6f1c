"""What each method costs: one table from one run.

    python tests/benchmark_methods.py [--preset small] [--seconds 10 60 600 3600]

Of each method: training crops (2 s of audio or what its preset has, by the default batch of 4) a second, the real-time
factor of the shipped weights (median of three, 10 s), and the peak memory of a fresh process that enhances a recording
of so many seconds, with one step of those samplers that take several: each needs what the others do. Training hears
noise at random: what is measured does not depend on what is heard. On CUDA it has the precision and the memory format
of the train command, and the most memory that a step took of the GPU stands beside its rate. All times are taken first,
so that only they need an idle machine. Nothing here is a test.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import commands
import consistency
import dispatch
import drift
import meanflow
import sgmse
import train

METHODS = {                                              # name: (class, changes for training, shipped weights)
    "SGMSE+ (BBED)": (sgmse.ScoreSDE, {}, "sgmse_stage1"),
    "CRP, 5 calls": (sgmse.ScoreSDE, dict(crp="last", N=5), "sgmse"),
    "ROSE-CD": (consistency.ConsistencyModel, dict(teacher="sgmse_stage1"), "consistency"),
    "DISPatch": (dispatch.Student, dict(teacher="sgmse_stage1"), None),
    "MeCo, separator": (meanflow.MeanFlowCorrector, dict(separator="train", separator_size="compact"), None),
    "MeCo, corrector": (meanflow.MeanFlowCorrector, dict(separator="frozen", separator_size="compact", schedule=1),
                        "meanflow"),
    "DriftSE": (drift.DriftSE, {}, "drift"),
    "DriftSE dagger": (drift.DriftSE, drift.DAGGER, "drift_dagger")}


def crops_per_second(Method, changes, preset, batch, steps, device):
    """(median over steps, the first of which only warm up; seconds of a crop; MiB of the GPU)."""
    cuda = device.type == "cuda"
    method = Method(Method.Config(**Method.presets[preset] | changes))
    method = method.to(device, memory_format=torch.channels_last if cuda else torch.contiguous_format)
    if hasattr(method, "prepare") and changes.get("separator") != "frozen":
        method.prepare(fresh=changes.get("crp") is None)
    opt, times = torch.optim.Adam(p for p in method.parameters() if p.requires_grad), []
    method.ema = train.EMA(method)
    method.ema.num_updates = 10 ** 6                     # beyond every schedule: all losses take part
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for step in range(steps + 2):
        clean, noise = 0.1 * torch.randn(2, batch, method.num_samples, device=device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda, cache_enabled=False):
            loss, _ = method.loss((clean, clean + noise))
        loss.backward()
        opt.step()
        opt.zero_grad()
        loss.item()                                      # on CUDA it waits for the result
        times.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() / 2 ** 20 if cuda else 0
    return batch / np.median(times[2:]), method.num_samples / 16000, memory


def real_time_factor(name, seconds, device):
    method, wave = train.load_checkpoint(name).to(device), 0.1 * torch.randn(1, 16000 * seconds, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            method.enhance(wave).sum().item()
            times.append(time.perf_counter() - started)
    return np.median(times[1:]) / seconds


def enhance_and_say_peak(name, path):
    """Runs in a process of its own: MiB of memory at most."""
    one_step = dict(N=1) if name.startswith("sgmse") else {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        commands.enhance_file(train.load_checkpoint(name, **one_step), path, Path(folder) / "out.wav")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024)                  # getrusage would give the parent's


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", help="(default: small)")
    parser.add_argument("--batch", type=int, default=4, help="crops of a training step (default: 4)")
    parser.add_argument("--steps", type=int, default=5, help="training steps to time (default: 5)")
    parser.add_argument("--seconds", type=int, nargs="*", default=(10, 60, 600), metavar="S",
                        help="lengths whose memory is measured (default: 10 60 600)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    args = parser.parse_args()
    device, rng = train.pick_device(args.device), np.random.default_rng(0)
    torch.set_float32_matmul_precision("high")           # as the train command does
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else device}, {torch.get_num_threads()} threads, preset {args.preset}, batch {args.batch}")
    rows = []
    for title, (Method, changes, name) in tqdm(METHODS.items(), unit="method", desc="times"):
        crops, length, memory = crops_per_second(Method, changes, args.preset, args.batch, args.steps, device)
        rows.append(f"| {title} | {length:.1f} s | {crops:.2f}{f' ({memory:.0f} MiB)' if memory else ''} |")
        if name is not None:
            method = train.load_checkpoint(name)
            with torch.inference_mode():
                method.enhance(0.1 * torch.randn(1, 16000))
            rows[-1] += f" {method.calls} | {real_time_factor(name, 10, device):.4f} |"
    patient = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}                  # memory may be measured beside other work
    with tempfile.TemporaryDirectory() as folder:
        for s in args.seconds:
            with soundfile.SoundFile(f"{folder}/{s}.wav", "w", 16000, 1, "PCM_16") as file:
                for _ in range(s):
                    file.write(0.1 * rng.standard_normal(16000))
        print("\n| method | crop | training crops/s | calls | real-time factor | " + " | ".join(
            f"MiB for {s} s" for s in args.seconds) + " |\n|" + "---|" * (5 + len(args.seconds)), flush=True)
        for row, (_, _, name) in zip(rows, METHODS.values()):
            if name is None:
                print(row + " |" * (2 + len(args.seconds)), flush=True)
                continue
            peaks = [subprocess.run([sys.executable, __file__, "--peak", name, f"{folder}/{s}.wav"], env=patient,
                                    capture_output=True, text=True, check=True).stdout.strip() for s in args.seconds]
            print(f"{row} {' | '.join(peaks)} |", flush=True)


if __name__ == "__main__":
    commands.keep_memory()                                  # as all commands do
    if sys.argv[1:2] == ["--peak"]:
        enhance_and_say_peak(*sys.argv[2:])
    else:
        main()
