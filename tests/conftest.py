"""The repository root on the path, few threads, and the marker of the tests that take long."""

import os
import sys
from pathlib import Path

# Before torch is imported: two threads that wait for each other by spinning crawl on a machine that is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tutorials" / "experiments")]
import data

# Beside another process of tests, one thread each is faster.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than 8 seconds of one core; leave out with -m 'not slow'")


def pytest_runtest_setup(item):
    """No test draws what the tests before it leave."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """train and valid pairs: harmonics with a syllable rhythm, and the same in noise."""
    root, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        for i in range(count):
            t = np.arange(16000 * 2) / 16000
            voice = sum(np.sin(2 * np.pi * (120 + 10 * i) * k * t) / k for k in range(1, 20))
            clean = 0.05 * voice * (0.2 + np.clip(np.sin(2 * np.pi * 3 * t), 0, 1))
            for kind, wave in (("clean", clean), ("noisy", clean + 0.03 * rng.standard_normal(len(t)))):
                data.save_audio(root / split / kind / f"{i}.wav", wave.astype(np.float32), 16000, "PCM_16")
    return root
