"""What several test files share."""

import sys

import pytest

import train


def run_command(Method, *arguments):
    """A command line of a method in this process, so that files and devices stay warm: its exit code."""
    before = sys.argv
    sys.argv = [f"{Method.__name__}.py", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            train.main(Method)
    finally:
        sys.argv = before
    return stop.value.code
