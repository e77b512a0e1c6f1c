"""Losses of several methods. Each function runs alone when copied.

    half_square        half the squared error of complex spectrograms
    si_sdr_loss        negative scale-invariant SDR of waves, in dB
    sa_sdr_loss        negative source-aggregated SDR of the best permutation, in dB
    ccmse_loss         relative squared error of complex spectra at several resolutions
    magnitude_loss     relative squared error of magnitudes
    waveform_terms     weighted sum of those of waves
    PESQLoss           wide-band PESQ as a differentiable disturbance, 0 (identical) .. 5.89

Imports torch, numpy and scipy, nothing of ours.
"""

import itertools

import numpy as np
import torch


def half_square(error):
    """Half the squared modulus, summed over each example's bins, averaged over the batch.

    error: complex tensor (B, C, F, T) -> ().
    """
    return 0.5 * error.abs().square().sum((1, 2, 3)).mean()


def waveform_terms(clean, enhanced, pesq=0.0, si_sdr=0.0, ccmse=0.0):
    """Weighted sum of losses between waves (B, L); a loss of weight 0 is left out.

    pesq, si_sdr, ccmse: the weights. Returns the sum () and {name: mean to log}.
    """
    weights = {"pesq": pesq, "si_sdr": si_sdr, "ccmse": ccmse}
    losses = {"pesq": PESQ, "si_sdr": si_sdr_loss, "ccmse": ccmse_loss}
    terms = {name: losses[name](clean, enhanced).mean() for name in weights if weights[name]}
    total = sum((weights[name] * term for name, term in terms.items()), clean.new_zeros(()))
    return total, {name: -term.detach() if name == "si_sdr" else term.detach()
                   for name, term in terms.items()}


def si_sdr_loss(clean, enhanced, eps=1e-8):
    """Negative SI-SDR in dB of tensors (B, L), freed of their means: (B,).

    For a silent clean signal the loss is 0, without gradient.
    """
    clean, enhanced = (wave - wave.mean(-1, keepdim=True) for wave in (clean, enhanced))
    scale = (enhanced * clean).sum(-1, keepdim=True) / (clean.square().sum(-1, keepdim=True) + eps)
    signal, error = (scale * clean).square().sum(-1), (enhanced - scale * clean).square().sum(-1)
    loss = -10 * (signal / (error + eps) + eps).log10()
    return loss * (clean.square().sum(-1) > eps)


def sa_sdr_loss(clean, estimate, eps=1e-8):
    """Negative source-aggregated SDR of the best permutation, dB (B,), and the permuted estimates.

    clean, estimate: waves (B, S, L). One ratio for the whole mixture, so that a speaker may
    be silent.
    """
    speakers = torch.arange(clean.shape[1], device=clean.device)
    orders = list(itertools.permutations(speakers.tolist()))
    orders = torch.tensor(orders, device=clean.device)                     # (S!, S)
    errors = (clean[:, :, None] - estimate[:, None]).square().sum(-1)     # (B, S, S): pairs
    error, best = errors[:, speakers, orders].sum(-1).min(-1)               # (B,)
    loss = -10 * ((clean.square().sum((1, 2)) + eps) / (error + eps)).log10()
    return loss, estimate.gather(1, orders[best][:, :, None].expand_as(estimate))


def ccmse_loss(clean, enhanced, sizes=(512, 1024, 2048)):
    """Squared error of complex spectra over the power of the clean: waves (B, L) -> ().

    Called "complex compressed MSE" by the released code, which compresses nothing.
    """
    total = 0
    for size in sizes:
        window = torch.hann_window(size, device=clean.device, dtype=clean.dtype)
        S, S_hat = (torch.stft(x, size, size // 4, window=window, return_complex=True)
                    for x in (clean, enhanced))          # (B, bins, frames)
        error, power = ((s.abs().square().sum((1, 2)).mean() for s in (S_hat - S, S)))
        total = total + error / (power + 1e-2)  # finite where no target of the batch has speech
    return total / len(sizes)


def magnitude_loss(S, S_hat):
    """Squared error of magnitudes over the power of the clean: spectra (B, F, T) -> ().

    Of compressed spectra it weighs the weak bins at high frequencies, which a PESQ loss
    ignores, and unlike an error of complex spectra it does not shrink where the phase is lost.
    """
    error = (S_hat.abs() - S.abs()).square().mean()
    return error / (S.abs().square().mean() + 1e-5)


# Of the 49 Bark bands of ITU-T P.862 at 16 kHz, as its reference software lists them: how many of
# 256 bins, widths (Bark), power corrections, hearing thresholds (dB). The first band has no part in
# the sums over bands.
BAND_BINS = [1] * 8 + [2] + [1] * 5 + [2, 1, 1] + [2] * 8 + [3] * 4 + [
    4, 3, 4, 5, 4, 5, 6, 6, 7, 8, 9, 9, 12, 12, 15, 16, 18, 21, 25, 20]

BAND_WIDTHS = """
    .157344 .317994 .322441 .326934 .331474 .336061 .340697 .345381 .350114 .354897 .359729
    .364611 .369544 .374529 .379565 .384653 .389794 .394989 .400236 .405538 .410894 .416306
    .421773 .427297 .432877 .438514 .444209 .449962 .455774 .461645 .467577 .473569 .479621
    .485736 .491912 .498151 .504454 .510819 .517250 .523745 .530308 .536934 .543629 .550390
    .557220 .564119 .571085 .578125 .585232"""

BAND_CORRECTIONS = """
    100 99.999992 100 100.000008 100.000008 100.000015 99.999992 99.999969 50.000027 100
    99.999969 100.000015 99.999947 100.000061 53.047077 110.000046 117.991989 65 68.760147
    69.999931 71.428818 75.000038 76.843384 80.968781 88.646126 63.864388 68.155350 72.547775
    75.584831 58.379192 80.950836 64.135651 54.384785 73.821884 64.437073 59.176456 65.521278
    61.399822 58.144047 57.004543 64.126297 54.311001 61.114979 55.077751 56.849335 55.628868
    53.137054 54.985844 79.546974"""

BAND_THRESHOLDS = """
    77.1 63.9 48.5 36.9 30.7 25.9 20.2 16.6 12.5 9.9 6.9 4.9 2.8 1.0 -0.1 -1.4 -2.5 -3.4 -4.1
    -4.8 -5.3 -5.7 -5.9 -6.0 -6.0 -6.0 -6.0 -5.8 -5.4 -5.1 -4.7 -4.3 -4.0 -3.6 -3.3 -3.1 -3.0
    -3.0 -2.9 -2.8 -2.8 -2.8 -2.9 -3.2 -3.7 -4.3 -4.4 -3.8 -2.7"""


class PESQLoss:
    """Wide-band PESQ at 16 kHz as a loss, without time alignment: 0 (identical) .. 5.89.

        loss = PESQLoss()(clean, enhanced)   # (B, L), (B, L) -> (B,) or (L,), (L,) -> (); L >= 5376
        PESQLoss.mos(loss)                   # MOS-LQO as of the package `pesq`: 4.64 .. 1.01

    Nothing in it is learnt or saved, and it follows its inputs to their device: a torch.nn.Module
    holds it as a plain attribute. It computes in float64, which autocast leaves alone: in float32
    the sixth powers of small disturbances underflow. The loss is as precise as the inputs, float32
    at least. Neither signal's level matters.

    A silent clean signal (peak <= 1e-6) leaves nothing to score: loss 0. A silent estimate of an
    audible one gets the largest loss. Neither has a gradient, nor does a frame that is identical or
    above `worst`. Almost silent ones can have a large gradient: clip its norm in training.
    Raises ValueError for signals that are too short, not floating point or not alike in shape.

    ITU-T P.862 and P.862.2, with the simplifications of the package torch-pesq, whose numbers it
    gives. Below, [P] marks a constant of P.862 and its reference software, [W] one of P.862.2,
    wide-band, and [T] one of torch-pesq 0.1.2, where it does otherwise: no alignment in time, one
    filter less, a gain that does not remember.
    """

    shortest = 5376            # samples: a block of 20 frames
    # [P] of the symmetric and the asymmetric disturbance: 4.5 - these is the raw score
    weights = 0.1, 0.0309
    worst = 45                 # [P] disturbance of a frame

    def __init__(self):
        self.device = None                   # of the tables, made at first use

    def __call__(self, clean, enhanced):
        if clean.shape != enhanced.shape or not (clean.is_floating_point()
                                                 and enhanced.is_floating_point()):
            raise ValueError("expected two signals (B, L) or (L,) of floating point; got clean "
                             f"{clean.dtype} {tuple(clean.shape)} and enhanced {enhanced.dtype} "
                             f"{tuple(enhanced.shape)}")
        if clean.shape[-1] < self.shortest:
            raise ValueError(f"PESQ needs {self.shortest} samples at 16 kHz or more; got "
                             f"{clean.shape[-1]}")
        self.to(clean.device)
        R, G = self.compensated(*(self.bark_spectrum(x.double()) for x in (clean, enhanced)))
        loss = sum(weight * d for weight, d in zip(self.weights, self.disturbances(R, G)))
        audible, answered = (x.abs().amax(-1) > 1e-6 for x in (clean, enhanced))
        loss = torch.where(audible & answered, loss, self.worst * sum(self.weights) * audible)
        return loss.to(torch.promote_types(enhanced.dtype, torch.float32))

    def bark_spectrum(self, x):
        """(B, L) -> (B, frames, 49): power in Bark bands after P.862.2's high-pass, at one level.
        """
        length = x.shape[-1]

        def convolve(x, response):
            size = length + len(response)
            return torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(response, size),
                                   size)[..., :length]

        # [P] a mean power of 1e7, over the signal and its padding of 320 ms; [T] the factor.
        power = convolve(x, self.band_pass).square().sum(-1,
                                                         keepdim=True) / ((length + 5120) * 1.04684)
        x = x * (1e7 / (power + 1e-30)).sqrt()      # finite in silence
        x = torch.cat([x[..., :15] * self.fade, x[..., 15:-15], x[..., -15:] * self.fade.flip(0)],
                      dim=-1)
        # [T] sic: not -length % 256
        x = torch.nn.functional.pad(convolve(x, self.pre_filter), (0, length % 256))
        spectrum = torch.fft.rfft(x.unfold(-1, 512, 256) * self.window)[..., :256]
        return (spectrum.real.square() + spectrum.imag.square()) @ self.bark

    def compensated(self, R, G):
        """Both spectra (B, frames, 49), R with the fixed filter of G, G without its changing gain.

        [P] Every constant; [T] the gain of a frame is smoothed with the frame before's own, not its
        smoothed one.
        """
        power = self.audible(R, 100).sum(-1, keepdim=True)
        mean_r, mean_g = (((power >= 1e7) * self.audible(B, 100)).mean(-2, keepdim=True)
                          for B in (R, G))
        R = R * ((mean_g + 1000) / (mean_r + 1000)).clamp(0.01, 100)
        loud_r, loud_g = (self.audible(B, 1).sum(-1, keepdim=True) + 5000 for B in (R, G))
        gain = loud_r / loud_g
        gain = torch.cat([gain[..., :1, :], 0.8 * gain[..., 1:, :] + 0.2 * gain[..., :-1, :]],
                         dim=-2)
        return R, G * gain.clamp(3e-4, 5)

    def disturbances(self, R, G):
        """Yields the symmetric and the asymmetric disturbance (B,), 0 .. 45, of (B, frames, 49).

        [P] Every constant: a dead zone of a quarter; asymmetry from 3 to 12; norms 2 and 1 over
        bands, 6 over the 20 frames of a block, 2 over blocks, each a half-overlapping one.
        """
        loud_r, loud_g = self.loudness(R), self.loudness(G)
        masked = torch.minimum(loud_r, loud_g) / 4
        difference = loud_g - loud_r
        difference = self.width * (difference - difference.clamp(-masked, masked))
        asymmetry = ((G + 50) / (R + 50)) ** 1.2      # noise added is worse than speech taken away
        asymmetry = asymmetry.clamp(max=12) * (asymmetry >= 3)
        # (B, frames): loud speech hides more
        cover = ((self.audible(R, 1).sum(-1) + 1e5) / 1e7) ** 0.04
        norm = torch.linalg.vector_norm      # has gradient 0 at 0, where a root has none
        for frame in (self.width.sum().sqrt() * norm(difference, dim=-1),
                      norm(difference * asymmetry, 1, dim=-1)):
            blocks = (frame / cover).clamp(max=self.worst).unfold(-1, 20, 10)      # (B, blocks, 20)
            yield norm(norm(blocks, 6, dim=-1), dim=-1) / 20 ** (1 / 6) / blocks.shape[-2] ** 0.5

    def loudness(self, B):
        """[P] Zwicker's law, power -> sone per Bark, (B, frames, 49); 0 below the threshold."""
        ratio = (B / self.threshold).clamp(min=1)
        growth = (0.5 + 0.5 * ratio) ** self.exponent - 1
        return 0.1866055 * (2 * self.threshold) ** self.exponent * growth

    def audible(self, B, factor):
        """Power (B, frames, 49), 0 up to `factor` times the threshold of hearing."""
        return B * (B > factor * self.threshold)

    @staticmethod
    def make_tables():
        """Filters, windows and constants of the 49 bands, arrays by name."""
        from scipy.signal import butter, lfilter         # here, since it imports slowly

        width, correction, threshold_db = (np.array(table.split(), dtype=float) for table in (
            BAND_WIDTHS, BAND_CORRECTIONS, BAND_THRESHOLDS))      # (49,)
        centre = np.cumsum(width) - width / 2
        # [P] S_p; (256, 49)
        bark = np.repeat(np.eye(len(width)), BAND_BINS, axis=0) * correction * 6.910853e-6
        width[0] = bark[0] = 0      # outside the sums over bands; no mean
        # The filters as responses of 2048 samples: beyond 471 both are under 1e-7 of their peaks.
        # Coefficients in float32, as in torch-pesq: exact ones move the disturbances by 0.2 %. [T]
        # order 5; [P] 325 to 3250 Hz.
        band_pass = np.array(butter(5, [325, 3250], "bandpass", fs=16000),
                             dtype=np.float32).astype(float)
        # [W] the input filter
        pre_filter = [2.740826, -5.4816519, 2.740826], [1, -1.9444777, 0.94597794]
        impulse = np.eye(1, 2048)[0]
        return {
            "band_pass": lfilter(*band_pass, impulse), "pre_filter": lfilter(*pre_filter, impulse),
            "fade": np.arange(1, 16) / 16,  # [T] of 15 samples
            "window": 0.5 - 0.5 * np.cos(np.pi * np.arange(512) / 256),  # [P] Hann, 32 ms
            "bark": bark, "width": width, "threshold": 10 ** (threshold_db / 10),
            # [P] Zwicker's, up below 4 Bark
            "exponent": 0.23 * np.clip(6 / (centre + 2), 1, 2) ** 0.15}

    def to(self, device):
        """Makes the tables tensors on this device: self.bark, ... Calls do it for themselves."""
        if device != self.device:
            # what is made in inference mode would be of no use in training
            with torch.inference_mode(False):
                vars(self).update({name: torch.tensor(x, device=device)
                                   for name, x in self.make_tables().items()})
            self.device = device
        return self

    @staticmethod
    def mos(loss):
        """[W] MOS-LQO of a loss, a number, array or tensor; 4.5 - loss is the raw score."""
        return 0.999 + 4 / (1 + np.e ** (3.8224 - 1.3669 * (4.5 - loss)))


PESQ = PESQLoss()    # has nothing to learn
