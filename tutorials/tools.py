"""Helpers of the notebooks: show a function, play sound, check a number, answer an exercise, draw a spectrogram, train
briefly, print rows of the experiments. The methods are in the folder above, which this module puts on the path.
"""

import base64
import inspect
import io
import math
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
from IPython.display import Markdown, display

import data
import scoring
import train

FAST = bool(os.environ.get("TUTORIALS_FAST"))            # set by the tests: short runs, no players
STRICT = FAST or bool(os.environ.get("TUTORIALS_STRICT"))           # set by the build: a failed check stops the run
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
    """A player for each wave (L,) at 16 kHz, by name. GitHub removes them: open the notebook, or its HTML page."""
    rows = []
    for name, wave in waves.items():
        file = io.BytesIO()
        soundfile.write(file, np.asarray(wave).clip(-1, 1), data.SAMPLE_RATE, format="MP3", compression_level=0.0)
        sound = base64.b64encode(file.getvalue()).decode()
        rows.append(f'<tr><td>{name.replace("_", " ")}</td><td><audio controls preload="none" '
                    f'src="data:audio/mpeg;base64,{sound}"></audio></td></tr>')
    if not FAST:
        names = ", ".join(name.replace("_", " ") for name in waves)
        note = f"Players: {names}. GitHub removes them; they work in Jupyter and on the HTML page of this notebook."
        display({"text/html": f'<table>{"".join(rows)}</table><p class="elsewhere"><small>{note}</small></p>',
                 "text/plain": note}, raw=True)


def check(what, measured, expected, tolerance, trained=False):
    """Print a number and its expected value. If they differ by more than the tolerance, say so; the build fails.

    trained: the result of a training, which the tests cut short: there it is only printed.
    """
    print(f"{what}: {measured:.6g}, expected {expected:.6g} {f'within {tolerance:.2g}' if tolerance else 'exactly'}")
    verdict(abs(measured - expected) <= tolerance or trained and FAST, f"{what}: {measured} is not {expected}")


def below(what, measured, limit, trained=False):
    """Like `check`, for a number that must be smaller than a limit."""
    print(f"{what}: {measured:.3g}, below {limit:.3g}")
    verdict(measured < limit or trained and FAST, f"{what}: {measured} is not below {limit}")


def verdict(holds, message):
    """A failed check stops the build and the tests. A reader who changes a cell goes on, with a note."""
    if not holds and STRICT:
        raise AssertionError(message)
    if not holds:
        print("   <- no longer as expected: the consequence of a change?")


def best_gain_per_second():
    """Exercise 8.1: the largest gain of SI-SDR per second of one core, dB/s, in tables/shipped.csv."""
    noisy, *models = (row for row in read_rows("shipped") if row["row"] == "noisy" or row["core_seconds"])
    return max((float(row["si_sdr"]) - float(noisy["si_sdr"])) / float(row["core_seconds"]) for row in models)


# Of each exercise: the true value (or a function that returns it), its tolerance, and what to look at.
ANSWERS = {
    "1.1": (2.0, 0.02, "each part has variance 1; |z|^2 is the sum of the squares of both parts"),
    "1.2": (129, 0, "T = 1 + L / h rounded up, here with L = 32640 and h = 256"),
    "1.3": (-4.541, 0.05, "the part of the delayed wave along the original has the energy 0.51^2, the rest is error"),
    "2.1": (0.339307, 1e-3, "multiply sde.std(t)^2 by 2 theta and add its derivative at t = 0.5, then take the root"),
    "2.2": (60, 0, "the body of the loop in predictor_corrector: who calls `score`, and how often?"),
    "2.3": (0.0, 1e-6, "bridge_ode draws no noise, and all its runs start at the same y"),
    "3.1": (0.2714, 1e-3, "g^2 = c k^(2t) at t = 0.3; the step goes from 0.3 to 0"),
    "3.2": (0.6175, 1e-4, "BBED.mean at the second of the five times: the weight of x0 is 1 - t"),
    "3.3": (-0.80, 0.01, "1 + dt / (1 - t) - g^2 dt / std^2 with t = dt = 0.5"),
    "4.1": (1.8e-10, 1e-11, "kept(of(consistency.pc_step), 15)"),
    "4.2": (-27.13, 0.1, "the weight of y is 1 - exp(-theta t) at t = 0.03; amplitudes: 20 log10"),
    "4.3": (1.0, 1e-6, "kept() once with noise=True and once with noise=False, and their ratio"),
    "5.1": (0.875, 1e-3, "k = 1 keeps all patches: mean of (|S| - |T|)^2 over the eight bins"),
    "5.2": (4.0, 1e-3, "errors are squares of amplitudes"),
    "5.3": (0.625, 0.01, "every positive patch is among the kept ones; how many are kept?"),
    "6.1": (0.2324, 1e-3, "slope of x_1 -> x_1 - 0.97 u^(c), times sigma = 0.487"),
    "6.2": (0.0, 1e-3, "each jump along the exact average velocity ends on the path of the flow"),
    "6.3": (25.6, 0.01, "the norm is the root of the sum of the squares over 256 x 256 bins"),
    "7.1": (1.0, 0.01, "drift.standardised, the first function shown under `latent space`"),
    "7.2": (0.006, 0.005, "toy.energy_distance(move(200, (1.0,))[-1], reference)"),
    "7.3": (-0.271713, 1e-4, "drift.drifting_field(x, x, x, 0.5) of the two points; the first coordinate of the first row"),
    "8.1": (best_gain_per_second, 0.5, "(si_sdr - si_sdr of noisy) / core_seconds of each row of `table`; take the largest"),
    "8.2": (1 / 27, 1e-4, "three draws, each of which takes that recording with probability 1/3"),
    "8.3": (math.sqrt(110 / 3), 0.05, "the standard error of a mean is proportional to 1 / sqrt(n)"),
}


def answer(exercise, value):
    """Compare your value with the true one and print: right, close, or what to look at. Never raises."""
    truth, tolerance, look = ANSWERS.get(str(exercise), (None, 0, ""))
    if truth is None:
        print(f"exercise {exercise}: there is no exercise of this number")
        return
    try:
        value = float(value.detach() if torch.is_tensor(value) else value)
        truth = float(truth() if callable(truth) else truth)
    except Exception:
        print(f"exercise {exercise}: expected a number. Look at: {look}")
        return
    off = abs(value - truth)
    if off <= tolerance:
        print(f"exercise {exercise}: {value:.6g} is right")
    elif off <= max(5 * tolerance, 0.1 * abs(truth)):
        print(f"exercise {exercise}: {value:.6g} is close, but not right. Look at: {look}")
    else:
        print(f"exercise {exercise}: {value:.6g} is not right. Look at: {look}")


def pretrained(name, **changes):
    """The model of a checkpoint in pretrained/."""
    return train.load_checkpoint(name, **changes)


def recording(name):
    """(clean, noisy) of a recording in tutorials/audio, float32 (L,); in the tests its first second."""
    waves = (data.load_audio(ROOT / "tutorials" / "audio" / side / f"{name}.flac")[0][0] for side in ("clean", "noisy"))
    return [wave[:fast(len(wave), 16000)] for wave in waves]


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
    """Train for `steps` steps: the logged numbers of each step, by name, as arrays.

    dataset: by default the three recordings. crops: size of a fixed training set; 0: new crops in every step.
    """
    logged, batch_size = [], fast(batch_size, 1)
    config = train.TrainConfig(steps=steps, batch_size=batch_size, lr=lr, **options)
    dataset = dataset or data.open_data(ROOT / "tutorials" / "audio", "train", num_samples=method.num_samples,
                                        normalize=method.config.normalize)
    train.seed_everything(config.seed)
    for _, parts in train.fit(method, data.batches(dataset, batch_size, num_crops=crops), config):
        logged.append({name: float(value) for name, value in parts.items()})
    method.eval()
    return {name: np.array([row[name] for row in logged if name in row]) for name in logged[-1]}


def fifths(values):
    """(mean of the first fifth, mean of the last fifth)."""
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
