"""Level of the speech in a band of an enhanced recording, in dB relative to the clean one: scores for `--metrics`.

    python tutorials/experiments/comparison.py --data CORPUS --metrics bands:pitch,bands:middle,bands:presence,bands:high

The gain of a band is the projection of the enhanced onto the clean band, as in SI-SDR: 0 dB for speech that kept its
level, whatever noise is left.
"""

import functools

import numpy as np


def gain(clean, enhanced, sample_rate, low, high):
    """Gain in dB of the clean speech (L,) between two frequencies in Hz, within the enhanced (L,)."""
    a, b = (np.fft.rfft(wave.astype(np.float64)) for wave in (clean, enhanced))
    f = np.fft.rfftfreq(len(clean), 1 / sample_rate)
    band = (f >= low) & (f < high)
    projection = np.vdot(a[band], b[band]).real / max(np.vdot(a[band], a[band]).real, 1e-20)
    return 20 * np.log10(max(projection, 1e-6))


pitch = functools.partial(gain, low=50, high=300)
middle = functools.partial(gain, low=300, high=1000)
presence = functools.partial(gain, low=1000, high=4000)
high = functools.partial(gain, low=4000, high=8000)
