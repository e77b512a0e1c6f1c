"""Shared by the notebooks: show a function, play sound, check a number, draw a spectrogram, train for a minute, and
print tables of the experiments. Puts the folder of the methods and that of the experiments on the path.
"""

import base64
import inspect
import io
import os
import sys
import textwrap
from pathlib import Path

# Both are read when torch and tqdm are imported: import this module first.
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")      # threads that wait give way: on a busy machine ten times faster
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tutorials" / "experiments")]

import matplotlib.pyplot as plt
import numpy as np
import soundfile
import torch
from IPython.display import HTML, Markdown, display

import data
import scoring
import train

STRICT = bool(os.environ.get("TUTORIALS_FAST") or os.environ.get("TUTORIALS_BUILD"))      # a wrong number stops the run
FAST = bool(os.environ.get("TUTORIALS_FAST"))            # the tests run every notebook so, short and without its players
RECORDINGS = ("windmill", "waterfall", "cheer")          # 5, 2.5 and 7.5 dB

plt.rcParams.update({
    "figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 9.5,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.5,
    "legend.frameon": False, "legend.fontsize": 8.5, "image.origin": "lower", "image.aspect": "auto"})


def fast(full, short):
    """`full`, or in the tests `short`."""
    return short if FAST else full


def show(*functions):
    """The source text of functions, methods or classes, each with its file."""
    for function in functions:
        file, code = Path(inspect.getfile(inspect.unwrap(function))), textwrap.dedent(inspect.getsource(function))
        link = os.path.relpath(file, ROOT / "tutorials")
        display(Markdown(f"[{file.name}]({link}): `{function.__qualname__}`\n\n```python\n{code.rstrip()}\n```"))


def play(**waves):
    """A player for each wave (L,) at 16 kHz, by name. GitHub shows none: open the notebook, or its HTML page."""
    rows = []
    for name, wave in waves.items():
        file = io.BytesIO()
        soundfile.write(file, np.asarray(wave).clip(-1, 1), data.SAMPLE_RATE, format="MP3", compression_level=0.0)
        sound = base64.b64encode(file.getvalue()).decode()
        rows.append(f'<tr><td>{name.replace("_", " ")}</td><td><audio controls preload="none" '
                    f'src="data:audio/mpeg;base64,{sound}"></audio></td></tr>')
    if not FAST:
        display(HTML(f"<table>{''.join(rows)}</table>"))


def check(what, measured, expected, tolerance, trained=False):
    """Print a number beside its expected value, and whether it is as close as the tolerance.

    trained: it is the outcome of a training, which the tests cut short. Where a notebook is built or tested, a
    difference stops it; a reader who has changed a value is only told.
    """
    print(f"{what}: {measured:.6g}, expected {expected:.6g} {f'within {tolerance:.2g}' if tolerance else 'exactly'}")
    verify(abs(measured - expected) <= tolerance or trained and FAST, f"{what}: {measured} is not {expected}")


def below(what, measured, limit, trained=False):
    """As `check`, for a number that must be smaller than a limit."""
    print(f"{what}: {measured:.3g}, below {limit:.3g}")
    verify(measured < limit or trained and FAST, f"{what}: {measured} is not below {limit}")


def verify(right, message):
    if not right and STRICT:
        raise AssertionError(message)
    if not right:
        print(f"    differs from the page: {message}")


def answer(exercise, value, truth, tolerance, look):
    """Compare the reader's value of an exercise with the truth: right, close, or where to look. Never stops a run."""
    try:
        error = abs(float(value) - float(truth))
    except (TypeError, ValueError):
        print(f"exercise {exercise}: expected a number; got {value!r}")
        return
    if error <= tolerance:
        print(f"exercise {exercise}: right, {float(value):.6g}")
    elif error <= 0.2 * abs(truth) + tolerance:
        print(f"exercise {exercise}: {float(value):.6g} is close; look again: {look}")
    else:
        print(f"exercise {exercise}: not {float(value):.6g}; look at this: {look}")


def pretrained(name, **changes):
    """The model of a checkpoint in pretrained/."""
    return train.load_checkpoint(name, **changes)


def recording(name):
    """(clean, noisy) of a recording in tutorials/audio, float32 (L,); in the tests its first 1.5 s."""
    waves = (data.load_audio(ROOT / "tutorials" / "audio" / side / f"{name}.flac")[0][0] for side in ("clean", "noisy"))
    return [wave[:fast(len(wave), 24000)] for wave in waves]


def enhance(method, noisy, seed=0):
    """(L,) -> (L,), with the noise that the seed gives."""
    train.seed_everything(seed)
    with torch.no_grad():
        return method.enhance(noisy[None])[0]


def spectrogram(axis, wave, title="", high=8):
    """Draw a wave (L,): kHz over seconds, dB below the loudest bin. Returns the image, for a colour bar."""
    power = torch.stft(wave, 512, 128, window=torch.hann_window(512), return_complex=True).abs().square()
    level = 10 * (power / power.max()).clamp(min=1e-8).log10()
    image = axis.imshow(level.numpy(), vmin=-70, vmax=0, cmap="magma",
                        extent=(0, len(wave) / data.SAMPLE_RATE, 0, data.SAMPLE_RATE / 2000))
    axis.set(title=title, ylabel="kHz", ylim=(0, high))
    return image


def tiny(Method, **changes):
    """An untrained model of the preset `tiny`, on crops of a second; changes: other fields of its config."""
    return Method(Method.Config(**Method.presets["tiny"] | dict(num_frames=64) | changes))


def train_small(method, steps, batch_size=4, lr=1e-3, dataset=None, crops=0, **options):
    """Train for so many steps: the logged numbers of each step, by name, as arrays.

    dataset: by default the three recordings. crops: so many, again and again; 0: each is cut anew.
    """
    logged = []
    config = train.TrainConfig(steps=steps, batch_size=batch_size, lr=lr, **options)
    dataset = dataset or data.open_data(ROOT / "tutorials" / "audio", "train", num_samples=method.num_samples,
                                        normalize=method.config.normalize)
    train.seed_everything(config.seed)
    for _, parts in train.fit(method, data.batches(dataset, batch_size, num_crops=crops), config):
        logged.append({name: float(value) for name, value in parts.items()})
    method.eval()
    return {name: np.array([row[name] for row in logged if name in row]) for name in logged[-1]}


def fifths(values):
    """(mean of the first fifth, mean of the last fifth): what a training did."""
    n = max(1, len(values) // 5)
    return float(np.mean(values[:n])), float(np.mean(values[-n:]))


def read_rows(table):
    """Rows of experiments/tables/TABLE.csv: a dict each, with METRIC, METRIC_low, METRIC_high as text."""
    return scoring.wide(scoring.read_table(scoring.TABLES / f"{table}.csv"))


def experiment(table, *rows, columns=("pesq", "estoi", "si_sdr"), **where):
    """Print rows of a table of the experiments: the columns in which they differ, and mean [95 % interval] of each score.

    rows: how their names begin (default: all); where: {column: value} of the rows to print.
    """
    found = [row for row in read_rows(table) if row["row"].startswith(rows or "")
             and all(row[key] == str(value) for key, value in where.items())]
    keys = [key for key in scoring.KEYS[2:] if len({row.get(key) for row in found if row["row"] != "noisy"}) > 1]
    cells = [["row", *keys, *columns]]
    for row in found:
        scores = ["{:.3f} [{:.3f}, {:.3f}]".format(*(float(row[column + end]) for end in ("", "_low", "_high")))
                  for column in columns]
        cells.append([row["row"], *(row[key] for key in keys), *scores])
    widths = [max(map(len, column)) for column in zip(*cells)]
    print("n = " + ", ".join(dict.fromkeys(row["n"] for row in found)))
    for line in cells:
        print("  ".join(f"{word:{width}}" for word, width in zip(line, widths)).rstrip())
