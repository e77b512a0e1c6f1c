"""Level of the speech in a band of an enhanced recording, in dB relative to the clean one: scores for `--metrics`.

    python tutorials/experiments/comparison.py --data CORPUS --metrics bands:pitch,bands:middle,bands:presence,bands:high

The gain of a band is the projection of the enhanced onto the clean band, as in SI-SDR: 0 dB for speech that kept its
level, whatever noise is left.
"""

import numpy as np


def gain(clean, enhanced, sample_rate, low, high):
    """Gain in dB of the clean speech (L,) between two frequencies in Hz, within the enhanced (L,)."""
    a, b = (np.fft.rfft(wave.astype(np.float64)) for wave in (clean, enhanced))
    f = np.fft.rfftfreq(len(clean), 1 / sample_rate)
    band = (f >= low) & (f < high)
    projection = np.vdot(a[band], b[band]).real / max(np.vdot(a[band], a[band]).real, 1e-20)
    return 20 * np.log10(max(projection, 1e-6))


def pitch(clean, enhanced, sample_rate):
    """50 to 300 Hz."""
    return gain(clean, enhanced, sample_rate, 50, 300)


def middle(clean, enhanced, sample_rate):
    """300 Hz to 1 kHz."""
    return gain(clean, enhanced, sample_rate, 300, 1000)


def presence(clean, enhanced, sample_rate):
    """1 to 4 kHz."""
    return gain(clean, enhanced, sample_rate, 1000, 4000)


def high(clean, enhanced, sample_rate):
    """4 to 8 kHz."""
    return gain(clean, enhanced, sample_rate, 4000, 8000)
