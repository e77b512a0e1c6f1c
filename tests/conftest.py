"""The repository root on the path, two threads, and the marker of the tests that take long."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than 8 seconds of one core; leave out with -m 'not slow'")
