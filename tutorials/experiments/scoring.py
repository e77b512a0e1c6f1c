"""Shared by the experiments: a cache of scores, known by what they were computed from, and tables as CSV files."""

import ast
import csv
import functools
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import commands
import data
import metrics
import train

COLUMNS = {"pesq": "WB-PESQ", "estoi": "ESTOI", "si_sdr": "SI-SDR (dB)"}
TABLES = Path(__file__).parent / "tables"
# Columns of a table, in this order, of which it has those that it needs; with the number of recordings n and the metric
# they identify an observation.
KEYS = ("table", "row", "sha256", "checkpoint", "front_end", "teacher", "layer", "test", "device", "seconds", "snr", "fifth",
        "preset", "seed", "steps", "crops", "nfe", "start", "spacing")
VALUES = ("metric", "mean", "low", "high", "n")


def identity(*parts):
    """A short name for anything that JSON can hold: equal for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


@functools.cache
def code(folder=ROOT):
    """Identity of the modules in a folder, by their syntax trees: docstrings, comments and spaces do not count."""
    trees = []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                del node.body[0]
        trees.append((path.name, ast.dump(tree)))
    return identity(trees)


@functools.cache
def content(path, size, changed):
    """Hash of a file, read again only if its size or time of modification changed."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def files(paths):
    """Name and content of recordings: the same for copies in another folder."""
    return [(Path(path).name, content(path, (info := os.stat(path)).st_size, info.st_mtime_ns)) for path in paths]


def sha256(checkpoint):
    """SHA-256 of a checkpoint: a file, or the name of one in pretrained/."""
    return hashlib.sha256(train.checkpoint_path(checkpoint).read_bytes()).hexdigest()


def scores(path, pairs, workers, which=tuple(COLUMNS)):
    """Results of (name, clean, other) pairs, from the file `path` if it exists. which: names of metrics.

    Ends the program if a recording has no score, since a table is over all recordings.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics.evaluate(pairs, which, workers).save_csv(path)
    results = read(path)
    if results.failed:
        sys.exit(f"{path}: {len(results.failed)} recordings could not be scored; the first, {results.failed[0]['name']}: "
                 f"{results.failed[0]['error']}. Repair it and delete the file")
    return results


def read(path):
    """The results in a file of Results.save_csv."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames if name not in ("name", "seconds", "note", "error")]
        rows = [{key: float(value) if key in columns else value for key, value in row.items()
                 if value or key not in columns} for row in reader]
    return metrics.Results(rows, columns)


def enhanced_and_scored(checkpoint, folder, recordings, workers, which=tuple(COLUMNS), **changes):
    """Results of a checkpoint, with these fields of its config changed, on (name, clean, noisy) recordings.

    Waves and scores are kept in `folder`, under the identity of the code, checkpoint, changes and recordings; the file
    of scores is named after the metrics `which` unless they are the default.
    """
    waves = files(path for _, *pair in recordings for path in pair)
    folder = folder / identity(code(), sha256(checkpoint), changes, waves)
    outputs = [folder / f"{name}.wav" for name, _, _ in recordings]
    if not all(path.exists() for path in outputs):
        print(f"{checkpoint} {changes or ''}")
        method = train.load_checkpoint(checkpoint, **changes).to(train.pick_device("auto"))
        if commands.enhance_all(method, [(noisy, out) for (_, _, noisy), out in zip(recordings, outputs)], 0, 30):
            sys.exit("some recordings could not be enhanced; nothing is scored")
    pairs = [(name, clean, out) for (name, clean, _), out in zip(recordings, outputs)]
    scored = folder / scores_of(which)
    if not scored.exists():
        for _, clean, out in pairs:
            if soundfile.info(clean).channels > 1:       # speakers, in any order
                commands.match_speakers(clean, out)
    return scores(scored, pairs, workers, which)


def cost(checkpoint, paths, **changes):
    """(network evaluations for a recording, parameters, CPU seconds for a second of audio, all threads together)."""
    method, seconds = train.load_checkpoint(checkpoint, **changes), 0
    waves = [data.load_audio(path)[0] for path in paths]
    with torch.inference_mode():
        method.enhance(waves[0])                         # warm
        method.calls, started = 0, time.process_time()
        for wave in waves:
            method.enhance(wave)
            seconds += wave.shape[1] / data.SAMPLE_RATE
        used = time.process_time() - started
    return method.calls // len(waves), sum(p.numel() for p in method.parameters()), used / seconds


def mixtures(clean, folder, noise, snr, seed):
    """(name, clean, noisy) of clean recordings, each in noise(number, samples, rng) at snr(number) dB, in a folder.

    Each recording has its own random generator, seeded with its number and the seed.
    """
    recordings = []
    for number, path in enumerate(clean):
        noisy = folder / f"{path.stem}.flac"
        recordings.append((path.stem, path, noisy))
        if not noisy.exists():
            speech = data.load_audio(path)[0][0]
            sound = noise(number, len(speech), np.random.default_rng([number, seed]))
            mixture = data.mix_at_snr(speech, torch.from_numpy(np.asarray(sound, np.float32)), snr(number))
            data.save_audio(noisy, 0.9 * mixture / mixture.abs().max(), data.SAMPLE_RATE, "PCM_24")
    return recordings


def noisy_scored(folder, recordings, workers, which=tuple(COLUMNS), array=False):
    """Results of the noisy recordings, kept in the same way; of an array, those of its reference microphone."""
    waves = identity(code(), files(path for _, *pair in recordings for path in pair))
    scored = folder / f"noisy-{waves}-{scores_of(which)}"
    if array and not scored.exists():
        reference = [(name, clean, folder / f"microphone0-{waves}" / f"{name}.wav") for name, clean, _ in recordings]
        for (_, clean, noisy), (*_, out) in zip(recordings, reference):
            commands.microphone_0(clean, noisy, out)
        recordings = reference
    return scores(scored, recordings, workers, which)


def scores_of(which):
    return "scores.csv" if which == tuple(COLUMNS) else f"{'-'.join(which)}.csv"


def cell(results, column):
    low, high = metrics.bootstrap_interval(results.values(column))
    return f"{results.mean(column):.3f} [{low:.3f}, {high:.3f}]"


# ---- tables: CSV files with one observation a row ----

def observation(table, row, metric, values, **keys):
    """Mean and 95 % interval of the values of a metric, as a row of a table; keys: of KEYS."""
    numbers = np.mean(values), *metrics.bootstrap_interval(values)
    return {"table": table, "row": row, **keys, "metric": metric, "n": len(values)} | {
        name: f"{number:.6f}" for name, number in zip(("mean", "low", "high"), numbers)}


def observations(table, row, results, columns=COLUMNS, costs={}, **keys):
    """Rows of a table: each score of the results, and each of the costs {metric: number}, which has no interval."""
    found = [observation(table, row, column, results.values(column), **keys) for column in columns]
    return found + [{"table": table, "row": row, **keys, "metric": name, "mean": number, "n": len(results.rows)}
                    for name, number in costs.items()]


def plain(value):
    """A key as text; the same for equal numbers: "1" for 1, 1.0 and "1.0"."""
    try:
        return f"{float(value):.15g}"
    except ValueError:
        return str(value)


def read_table(path):
    """The rows of a table, dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path, rows):
    """Write a table; of two rows for the same observation the later one counts."""
    def key(row):
        return tuple(row.get(name) or "" for name in (*KEYS, "metric", "n"))

    rows = [{name: plain(value) if name in (*KEYS, "n") else value for name, value in row.items()} for row in rows]
    used = [name for name in KEYS if any(row.get(name) for row in rows)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with data.atomic_write(Path(path)) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*used, *VALUES), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key(row): row for row in rows}.values())


def add_rows(path, rows):
    """Add rows to their tables: each replaces the row of the same observation; the others stay.

    path: of --csv. None: do nothing; "": tables/TABLE.csv; otherwise a file that takes all of them.
    """
    if path is None:
        return
    by_path = {}
    for row in rows:
        by_path.setdefault(Path(path) if path else TABLES / f"{row['table']}.csv", []).append(row)
    for file, new in by_path.items():
        write_table(file, [*(read_table(file) if file.exists() else ()), *new])


def wide(rows):
    """Observations of a table, joined: one dict for each row and its keys, with METRIC, METRIC_low, METRIC_high, n."""
    joined = {}
    for row in rows:
        keys = {name: value for name, value in row.items() if name not in ("metric", "mean", "low", "high")}
        found = joined.setdefault(tuple(keys.items()), keys)
        found |= {row["metric"]: row["mean"], f"{row['metric']}_low": row["low"], f"{row['metric']}_high": row["high"]}
    return list(joined.values())


def save_figure(figure, path, dpi):
    """A PNG of 256 colours, a third of the bytes."""
    figure.savefig(path, dpi=dpi)
    Image.open(path).convert("RGB").quantize(256).save(path, "PNG", optimize=True)


def add_csv_flag(parser):
    parser.add_argument("--csv", nargs="?", const="", metavar="FILE",
                        help="add the printed scores to a table, by default in tutorials/experiments/tables/")
