"""Does a test turn red when a value changes? Seeded mutants of the program, each run against the tests of its file.

    python tests/mutants.py --seed 0 --count 40 [--files train.py data.py] [--workers 2]

A mutant is one change of one expression: another number, comparison, operator, boolean, and/or, min/max. Docstrings and
the words of errors and help stay as they are. Prints a line for each mutant and how many survived.
"""

import argparse
import ast
import concurrent.futures
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Tests that hold the values of a file, in the order in which they are run.
TESTS = {
    "sgmse.py": "test_defaults test_sgmse test_fields",
    "consistency.py": "test_defaults test_consistency test_fields",
    "dispatch.py": "test_defaults test_patches test_fields",
    "meanflow.py": "test_defaults test_meanflow test_fields",
    "drift.py": "test_defaults test_drift test_fields",
    "nets.py": "test_defaults test_nets test_spatialnet test_patches",
    "losses.py": "test_pesq_loss test_meanflow test_drift",
    "data.py": "test_data test_recordings test_robustness test_rooms",
    "rooms.py": "test_rooms", "metrics.py": "test_metrics test_robustness",
    "released.py": "test_released test_sgmse",
    "train.py": "test_defaults test_train test_options test_patches test_robustness",
    "commands.py": "test_recordings test_train test_robustness test_options test_rooms"}
SWAPS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum"}


def places(tree):
    """Functions that change one expression of the tree each, with (line, words)."""
    skipped = {id(inner) for node in ast.walk(tree) for inner in ast.walk(node)
               if isinstance(node, (ast.JoinedStr, ast.Raise))
               or isinstance(node, ast.keyword) and node.arg in ("help", "description", "metavar")}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            found.append((node, "value", not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            found.append((node, "value", node.value + 1 if isinstance(node.value, int) else node.value * 1.5 or 0.5))
        elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            found.append((node, "op", SWAPS[type(node.op)]()))
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            found.append((node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            found.append((node, "attr", NAMES[node.attr]))
        elif isinstance(node, ast.Name) and node.id in NAMES:
            found.append((node, "id", NAMES[node.id]))
    return found


def mutants(files, seed, count):
    """(file, line, before, after, source) of randomly chosen changes, as many a file as it has places."""
    rng = random.Random(seed)
    every = [(file, number) for file in files for number in range(len(places(ast.parse((ROOT / file).read_text()))))]
    for file, number in rng.sample(every, min(count, len(every))):
        source = (ROOT / file).read_bytes()
        node, field, value = places(ast.parse(source))[number]
        before = ast.unparse(node)
        setattr(node, field, value)
        # In the text, since comments are the help of options.
        lines = source.splitlines(keepends=True)
        start = sum(map(len, lines[:node.lineno - 1])) + node.col_offset
        end = sum(map(len, lines[:node.end_lineno - 1])) + node.end_col_offset
        after = ast.unparse(node) if field in ("value", "attr", "id") else f"({ast.unparse(node)})"
        yield file, node.lineno, before, after, source[:start] + after.encode() + source[end:]


def fate(mutant, seconds=1500):
    """What became of it in a copy of the tree: "SURVIVED" where all tests of its file pass, "killed", or "timed out" (an
    endless loop, or a slow machine).
    """
    file, *_, source = mutant
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "enhanced", "__pycache__",
                                                                  "*.ipynb"))
        (copy / file).write_bytes(source)
        tests = [f"tests/{name}.py" for name in TESTS[file].split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, timeout=seconds,
                                  env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"})
        except subprocess.TimeoutExpired:
            return "timed out"
        return "killed" if done.returncode else "SURVIVED"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--count", type=int, default=40, help="(default: 40)")
    parser.add_argument("--files", nargs="+", default=list(TESTS), choices=list(TESTS), help="(default: all)")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time (default: 2)")
    args = parser.parse_args()
    chosen, survivors = list(mutants(args.files, args.seed, args.count)), 0
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        for (file, line, before, after, _), word in zip(chosen, pool.map(fate, chosen)):
            survivors += word == "SURVIVED"
            print(f"{word:9} {file}:{line}  {before}  ->  {after}", flush=True)
    print(f"{survivors} of {len(chosen)} survived")
    return survivors > len(chosen) / 20


if __name__ == "__main__":
    sys.exit(main())
