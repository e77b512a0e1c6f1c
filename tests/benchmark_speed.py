"""Real-time factors of checkpoints on one set of recordings, and how many times slower the first is than each other.

    python tests/benchmark_speed.py sgmse_stage1@30,pc sgmse_stage1@30 sgmse consistency

A checkpoint is a file or the name of one in pretrained/; after @ may stand its number of steps N and, after a comma,
its sampler. Models of one microphone hear the first channel of a recording. The checkpoints take turns, so that whatever else the machine does
meets them alike; the median of the rounds is printed. Reading and writing of files is not in it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import commands
import data
import train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT[@N[,SAMPLER]]")
    parser.add_argument("--data", type=Path, default=ROOT / "tutorials/audio/noisy",
                        help="folder of recordings (default: tutorials/audio/noisy)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    args = parser.parse_args()

    commands.keep_memory()                                  # as all commands do
    device = train.pick_device(args.device)
    methods = {}
    for name in args.checkpoints:
        path, _, how = name.partition("@")
        steps, _, sampler = how.partition(",")
        changes = ({"N": int(steps)} if steps else {}) | ({"sampler": sampler} if sampler else {})
        methods[name] = train.load_checkpoint(path, **changes).to(device)
    waves = [data.load_audio(path)[0].to(device) for path in data.list_audio(args.data)]
    seconds = sum(wave.shape[1] for wave in waves) / data.SAMPLE_RATE

    calls, times = {}, {name: [] for name in methods}
    with torch.inference_mode():
        for _ in tqdm(range(args.rounds + 1), desc="rounds", leave=False):                 # the first only warms up
            for name, method in methods.items():
                method.calls, started = 0, time.perf_counter()
                array = (method.num_mics, method.num_speakers) != (1, 1)
                for wave in waves:                       # sum: on CUDA it waits for the result
                    method.enhance(wave[None] if array else wave[:1]).sum().item()
                times[name].append((time.perf_counter() - started) / seconds)
                calls[name] = method.calls / len(waves)
    print(f"{len(waves)} recordings, {seconds:.1f} s of audio, {args.rounds} rounds, on {device}, "
          f"{torch.get_num_threads()} threads\n\n"
          "| | calls | real-time factor | times faster than the first |\n|---|---|---|---|")
    factors = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}
    for name, factor in factors.items():
        print(f"| `{name}` | {calls[name]:g} | {factor:.4f} | {factors[args.checkpoints[0]] / factor:.1f} |")


if __name__ == "__main__":
    main()
