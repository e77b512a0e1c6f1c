"""The front end of data.py with hiss in pauses, a quiet speaker after a loud one, and recordings without speech.

    python tutorials/experiments/front_end.py drift_dagger consistency [--pauses 25 30 34 38 42] [--csv]

SI-SDR in dB of the shipped recordings windmill and cheer, each alone, before three seconds of hiss, and with cheer 20 or
30 dB below windmill in one file. --pauses: values of data.PAUSE; a frame whose power is so many dB below that of the
loudest second is a pause. The control "plain" normalises the whole recording by one gain and enhances it in one pass.
"""

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import metrics
import train
from scoring import add_csv_flag, add_rows

AUDIO = train.HERE / "tutorials" / "audio"


def recording(name):
    """(clean, noisy), each (L,)."""
    return [data.load_audio(AUDIO / side / f"{name}.flac")[0][0].numpy() for side in ("clean", "noisy")]


def plain(enhance, wave):
    """The control: one gain for the whole wave (B, M, L), without segments and mirrored edges."""
    wave = wave - wave.mean(-1, keepdim=True)
    level = data.click_robust_peak(wave).amax(1, keepdim=True).clamp(min=1e-8)
    return enhance((wave / level).clamp(-data.LIMIT, data.LIMIT)) * level


def conditions(enhance):
    """{condition: SI-SDR in dB}."""
    (loud, loud_noisy), (quiet, quiet_noisy) = recording("windmill"), recording("cheer")
    rng, n = np.random.default_rng(0), len(loud)
    found = {"windmill": metrics.si_sdr(loud, enhance(loud_noisy)), "cheer": metrics.si_sdr(quiet, enhance(quiet_noisy))}
    for level in (-70, -60, -50):
        hiss = 10 ** (level / 20) * rng.standard_normal(48000).astype(np.float32)
        found[f"windmill, then hiss of {level} dBFS"] = metrics.si_sdr(loud, enhance(np.r_[loud_noisy, hiss])[:n])
    for below in (20, 30):
        gain = 10 ** (-below / 20) * np.sqrt(np.mean(loud ** 2) / np.mean(quiet ** 2))
        out = enhance(np.r_[loud_noisy, gain * quiet_noisy])
        found[f"windmill, {below} dB above cheer"] = metrics.si_sdr(loud, out[:n])
        found[f"cheer, {below} dB below windmill"] = metrics.si_sdr(quiet, out[n:])
    noise = loud_noisy - loud
    found["attenuation of the noise alone"] = metrics.attenuation(noise, enhance(noise))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--pauses", type=float, nargs="+", default=[data.PAUSE], help="dB (default: %(default)s)")
    add_csv_flag(parser)
    args = parser.parse_args()
    rows = []
    for checkpoint in args.checkpoints:
        method, columns = train.load_checkpoint(checkpoint), {}

        def enhance(wave):
            train.seed_everything(0)
            with torch.inference_mode():
                return method.enhance(torch.from_numpy(np.asarray(wave, np.float32))[None])[0].numpy()

        with mock.patch.object(data, "enhance_active", plain):
            columns["plain"] = conditions(enhance)
        for pause in args.pauses:
            with mock.patch.object(data, "PAUSE", pause):
                columns[f"{pause:g} dB"] = conditions(enhance)
        print(f"\n{checkpoint}\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for condition in columns["plain"]:
            print(f"| {condition} | {' | '.join(f'{column[condition]:.1f}' for column in columns.values())} |")
        rows += [{"table": "front_end", "row": condition, "checkpoint": checkpoint, "front_end": name,
                  "metric": "attenuation" if "attenuation" in condition else "si_sdr", "mean": f"{value:.3f}", "n": 1}
                 for name, column in columns.items() for condition, value in column.items()]
    add_rows(args.csv, rows)


if __name__ == "__main__":
    main()
