"""Crops per second that the training loop can have, and the time to decode a corpus and to simulate rooms before it.

    python tests/benchmark_data.py [--speech DIR --noise DIR] [--device cpu|cuda] [--seconds 3]

Without folders: 60 recordings of 6 s as PCM WAV, 20 of noise, in a temporary folder. Decoded once into a file that is
mapped; crops are cut by this process and, beside a GPU, by workers. In rooms: each crop convolved with the responses of a
room, which are simulated once.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import rooms

BATCH, SAMPLES, ROOMS = 16, 32640, 16


def synthetic(folder):
    rng = np.random.default_rng(0)
    for kind, count in (("speech", 60), ("noise", 20)):
        for i in range(count):
            wave = 0.1 * rng.standard_normal(6 * data.SAMPLE_RATE)
            data.save_audio(folder / kind / f"{i}.wav", wave, data.SAMPLE_RATE)
    return folder / "speech", folder / "noise"


def crops_per_second(dataset, seconds, workers=0):
    batches = data.batches(dataset, BATCH, workers=workers)
    for batch in itertools.islice(batches, 3):           # start the workers, warm the caches
        peak = batch[1].abs().max().item()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        peak = next(batches)[1].abs().max().item()       # .item() waits for the device
        count += BATCH
    assert peak == 1
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speech", help="folder of speech (default: synthetic)")
    parser.add_argument("--noise", help="folder of noise (default: synthetic)")
    parser.add_argument("--device", default="cpu", help="where batches are made (default: cpu)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = (args.speech, args.noise) if args.speech and args.noise else synthetic(Path(folder))
        device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
        print(f"device {device}, {torch.get_num_threads()} torch threads; "
              f"batches of {BATCH} x {SAMPLES} samples")
        start = time.perf_counter()
        dataset = data.MixedAudio(*folders, num_samples=SAMPLES, device=args.device)
        took = time.perf_counter() - start
        files = sum(len(source.paths) for source in dataset.sources)
        minutes = sum(source.lengths.sum() for source in dataset.sources) / data.SAMPLE_RATE / 60
        print(f"decode {files} files, {minutes:.1f} min of audio: {took:.2f} s")
        for workers in (0,) if args.device == "cpu" else (0, 2, 4):
            print(f"mapped, {workers} workers    {crops_per_second(dataset, args.seconds, workers):8.0f} crops/s")
        for mics, speakers in ((1, 1), (4, 1), (4, 2)):
            config, cache = rooms.RoomConfig(mics, speakers), Path(folder) / "rooms"
            start = time.perf_counter()
            rooms.simulated_rooms(range(ROOMS), config, cache)
            took = time.perf_counter() - start
            mixtures = rooms.RoomMixtures(*folders, config, ROOMS, cache=cache, num_samples=SAMPLES, device=args.device)
            print(f"rooms, mics {mics}, speakers {speakers}  {crops_per_second(mixtures, args.seconds):8.0f} crops/s; "
                  f"{took / ROOMS:.2f} s a room to simulate")


if __name__ == "__main__":
    main()
