"""DISPatch: learning from a teacher where the teacher is better.

Paper: Kim, Choi, "DISPatch: Distilling Selective Patches for Speech Enhancement" (ICASSP
2026, arXiv 2509.15922).

The idea: a compact student learns its task and, beside it, to agree with a trained teacher,
but only on those patches of the spectrogram where the teacher is closer to the clean speech
than the student is.

    errors of patches     means over bins of a frame    patches, patch_mean
    ... two kinds         magnitudes, complex cosine    magnitude_error, cosine_distance
    knowledge gap score   E_student - E_teacher         knowledge_gap_score
    selection             the highest fraction          select, selected_mean
    response              (|S| - |T|)^2 over those      selective_patch_loss
    frequency-dependent   one error up to the split of  selective_frequency_loss
                          the teacher, another above    band_split
    features              frames as alike as the        selective_feature_loss
                          teacher's
    training              the task + weight x one       Student.loss
    ... the task          -SI-SDR, or squared error     losses.si_sdr_loss

Where we differ. The teacher may be a checkpoint of any method. How the paper selects
features is not known: selective_feature_loss says what is done here.

Tutorial: tutorials/5_patches.ipynb

    python dispatch.py train --data DIR --preset tiny --teacher sgmse
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn

import commands
import losses
import nets
import train
from data import Spectrogram, SpectrogramConfig, cached_rows
from nets import Count, Fraction, Positive, Weight


@dataclass(frozen=True)
class Config(nets.NetworkConfig, SpectrogramConfig):
    """Constants of the method; `paper` is the published loss with our compact student."""
    distil: Literal["selective", "random", "all", "none"] = "selective"  # patches
    teacher: str = ""                # checkpoint of any method
    distance: Literal["frequency", "response",
                      "feature"] = "frequency"  # DFKD's, of magnitudes, of GRU states
    distil_weight: Weight = 5.0      # of the distillation
    task: Literal["si_sdr", "mse"] = "si_sdr"  # -SI-SDR in dB, or error of the spectrogram
    warmup: Annotated[int, "[0, inf)"] = 0  # steps of the task alone before patches
    keep: Annotated[float, "(0, 1]"] = 0.8  # fraction of the patches to distil
    rule: Literal["top_k", "positive", "both"] = "top_k"  # see select
    low: Count = 20                  # bins of a patch
    high: Count = 20                 # those above the split; multi-scale (MSSP): 10, 40
    beta: Fraction = 0.5             # weight of the cosine distance above the split
    exact: bool = True               # means and bands as released
    network: Literal["mask", "ncsnpp"] = "mask"  # a compact recurrent network, or the U-Net
    hidden: Count = 48               # of mask: channels
    layers: Count = 1                # of mask
    n_fft: Count = 512               # STFT window, samples
    num_frames: Count = 501          # frames of a training crop
    exponent: Positive = 1.0         # amplitude compression of the spectrogram
    factor: Positive = 1.0           # its scale


# ------------------------------------------------------------------------ selective patches
# Spectra of waves: student S, teacher T and clean Y, complex (B, F, frames). A patch is
# `size` bins of one frame.

def selective_patch_loss(S, T, Y, size=20, keep=0.8, rule="top_k", exact=True):
    """Response distillation, (|S| - |T|)^2, on the patches that `select` picks.

    exact: as released, the sum is divided by the nominal number of patches, keep * all of
    them, and the zeros beyond the top bin count; otherwise, and where the rule is positive
    and has no such number, by the number kept in each utterance, over real bins.
    """
    T = T.detach()
    inside = None if exact else torch.ones_like(S, dtype=torch.bool)

    def error(a, b):
        return patch_mean(magnitude_error(a, b), size, inside)

    gap = knowledge_gap_score(error(S, Y), error(T, Y))                 # (B, bands, frames)
    mask = select(gap, keep, rule)
    nominal = exact and rule != "positive"
    return selected_mean(error(S, T), mask, keep * gap.numel() if nominal else None)


def selective_frequency_loss(S, T, Y, low=10, high=40, keep=0.8, beta=0.5, rule="top_k",
                             exact=True):
    """Frequency-dependent distillation (DFKD) on patches of `low` bins below, `high` above
    the split.

    Below: the complex cosine distance. Above: beta of it and (1 - beta) of the magnitude
    error. low = high is DISPatch without its multi-scale patches. exact: as released, the
    split bin is in both bands, counts are pooled over the batch, and the zeros of the other
    band count in the means.
    """
    T = T.detach()
    bins = torch.arange(S.shape[1], device=S.device)[None, :, None]        # (1, F, 1)
    split = band_split(T)[:, None]                                         # (B, 1, frames)
    below = bins <= split                                                  # (B, F, frames)
    above = bins >= split if exact else bins > split

    def error_below(a, b):
        return cosine_distance(a, b, low)

    def error_above(a, b):
        magnitude = patch_mean(magnitude_error(a, b), high, None if exact else above)
        return beta * cosine_distance(a, b, high) + (1 - beta) * magnitude

    loss = 0
    for size, inside, error in ((low, below, error_below), (high, above, error_above)):
        s, t, y = (x * inside for x in (S, T, Y))
        gap = knowledge_gap_score(error(s, y), error(t, y))             # (B, bands, frames)
        mask = select(gap, keep, rule, candidates=patches(inside, size).any(2))
        count = mask.sum().clamp(min=1) if exact else None
        loss = loss + selected_mean(error(s, t), mask, count)
    return loss


def selective_feature_loss(h_S, h_T, S, T, Y, size=20, keep=0.8, rule="top_k"):
    """Feature distillation: the cosine similarity of the student's features in any two
    frames is trained to equal the teacher's, weighted by the fraction of their patches that
    are selected.

    Cross-layer similarity distillation with a frame's fraction of patches as its weight:
    how the paper selects features is not known. h_S (B, frames, D), h_T (B, frames, D'), D'
    of any size; spectra and patches as in selective_patch_loss.
    """
    def error(a, b):
        return patch_mean(magnitude_error(a, b), size)

    def alikeness(h):
        h = nn.functional.normalize(h, dim=2)
        return h @ h.transpose(1, 2)                                # (B, frames, frames)

    mask = select(knowledge_gap_score(error(S, Y), error(T, Y)), keep, rule)
    w = mask.float().mean(1)                                               # (B, frames)
    w = w[:, :, None] * w[:, None]                                  # (B, frames, frames)
    difference = (alikeness(h_T.detach()) - alikeness(h_S)).square()
    return ((w * difference).sum((1, 2)) / w.sum((1, 2)).clamp(min=1e-8)).mean()


def patches(x, size):
    """(B, F, frames) -> (B, bands, size, frames), bands = ceil(F / size), padded with
    zeros.
    """
    x = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size))


def patch_mean(error, size, inside=None):
    """Mean of an error per bin (B, F, frames) over each patch: (B, bands, frames).

    inside: the bins that count, bool (B, F, frames); None: all, and the zeros that fill the
    last band, as released.
    """
    if inside is None:
        return patches(error, size).mean(2)
    return patches(error * inside, size).sum(2) / patches(inside, size).sum(2).clamp(min=1)


def magnitude_error(a, b):
    """(|a| - |b|)^2 of each bin."""
    return (a.abs() - b.abs()).square()


def cosine_distance(a, b, size, eps=1e-8):
    """1 - Re <a, b> / (|a| |b|) of each complex patch: (B, bands, frames) in [0, 2].

    It depends on the phase.
    """
    def inner(a, b):                                        # Re <a, b> of each patch
        return patches(a.real * b.real + a.imag * b.imag, size).sum(2)

    norm_a, norm_b = ((inner(x, x) + eps).sqrt() for x in (a, b))
    return 1 - inner(a, b) / (norm_a * norm_b + eps)


def knowledge_gap_score(student_error, teacher_error):
    """Errors against clean, per patch: positive where the teacher is closer."""
    return student_error - teacher_error


def select(score, keep=0.8, rule="top_k", candidates=None):
    """The patches to distil in each utterance, bool like `score` (B, bands, frames).

    top_k, as released: the fraction `keep` with the highest score and all that tie with the
    last, whatever their sign. positive: where the teacher is better. both: the positive
    ones of top_k. random: as many as top_k, drawn at random, the control. candidates:
    bool, those that take part.
    """
    score = score.detach()
    if candidates is None:
        candidates = torch.ones_like(score, dtype=torch.bool)
    if rule == "positive":
        return candidates & (score > 0)
    ranked = torch.rand_like(score) if rule == "random" else score
    mask = torch.zeros_like(candidates)
    for i in range(len(score)):
        among = ranked[i][candidates[i]]
        if len(among):
            threshold = among.topk(max(int(keep * len(among)), 1)).values[-1]
            mask[i] = candidates[i] & (ranked[i] >= threshold)
    return mask & (score > 0) if rule == "both" else mask


def selected_mean(error, mask, denominator=None):
    """Mean of a patch error over the selected patches of each utterance, averaged over the
    batch, 0 where none is; or its sum over all of them divided by the `denominator`.
    """
    if denominator is not None:
        return (error * mask).sum() / denominator
    return ((error * mask).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)).mean()


def band_split(T):
    """The bin where the running maximum of |T| over frequency rises most: (B, frames)."""
    highest = T.abs().cummax(1).values                                     # (B, F, frames)
    return ((highest[:, 1:] - highest[:, :-1]) / (highest[:, :-1] + 1e-8)).argmax(1)


# -------------------------------------------------------------------------------- the model

class Student(train.Method):
    """A compact network and, while it is trained, its teacher."""

    Config = Config
    U_NET = dict(network="ncsnpp", n_fft=510, hop_length=256, num_frames=128, exponent=0.5,
                 factor=0.15, normalize="robust")
    presets = {
        "paper": {},
        "teacher": dict(distil="none", hidden=256, layers=2),          # of the compact pair
        "small": U_NET | nets.without_time(nets.SMALL),
        "tiny": U_NET | nets.without_time(nets.TINY),
    }

    def __init__(self, config=Config()):
        super().__init__(config)
        self.patch_spectrogram = Spectrogram(512, 128, transform="none")   # to compare in
        if config.network == "mask":
            self.net = nets.MaskGRU(config.n_fft // 2 + 1, config.hidden, config.layers)
        else:
            self.net = self.network(1, version=2, num_times=0)
        # SI-SDR leaves the gain of a U-Net open; this is what brings it back to clean
        # speech.
        self.register_buffer("gain", torch.ones(()))

    def prepare(self, fresh):
        """Load the teacher. Raises ValueError if it is missing or not needed."""
        config = self.config
        if config.distil == "none":
            if config.teacher and not train.is_fingerprint(config.teacher):
                raise ValueError("--distil none takes no --teacher")
            self.config = dataclasses.replace(config, teacher="")
        elif not config.teacher:
            raise ValueError(f"--distil {config.distil} needs a --teacher, a checkpoint of "
                             "any method; --distil none trains without one")
        else:
            self.teacher = train.Teacher(config.teacher)
            if (self.teacher.model.num_mics, self.teacher.model.num_speakers) != (1, 1):
                raise ValueError(f"--teacher {config.teacher} takes several microphones or "
                                 "separates speakers; a student needs one that maps a "
                                 "recording to one voice")
            if config.distance == "feature":
                hop = self.patch_spectrogram.hop_length
                for name, model in (("student", self), ("teacher", self.teacher.model)):
                    theirs = model.config
                    if getattr(theirs, "network", "") != "mask" or theirs.hop_length != hop:
                        raise ValueError("--distance feature compares two recurrent "
                                         "networks' states, those of --network mask with "
                                         f"--hop-length {hop}; the {name} has none")
            self.config = dataclasses.replace(config, teacher=self.teacher.record)

    def loss(self, batch):
        """batch: clean and noisy waves (B, L) at level 1. Returns (loss, its parts)."""
        clean, noisy = batch
        enhanced = self.enhance_wave(noisy)
        if self.config.task == "si_sdr" and self.config.network == "ncsnpp":
            power = enhanced.square().sum().clamp(min=1e-8)
            self.track_gain(self.gain * (enhanced * clean).sum() / power)
        if self.config.task == "si_sdr":
            task = losses.si_sdr_loss(clean, enhanced).mean()
            parts = {"si_sdr": -task.detach()}
        else:
            error = self.spectrogram(enhanced) - self.spectrogram(clean)
            task = error.abs().square().mean()
            parts = {"mse": task.detach()}
        warming_up = self.ema is not None and self.ema.num_updates < self.config.warmup
        if self.teacher is None or warming_up:
            return task, parts

        teacher = self.teacher_output("enhance", noisy)
        S, T, Y = (self.patch_spectrogram(wave) for wave in (enhanced, teacher, clean))
        distilled = self.distillation(S, T, Y, noisy)
        loss = task + self.config.distil_weight * distilled
        return loss, parts | {"distilled": distilled.detach()}

    def distillation(self, S, T, Y, noisy=None):
        """Distillation loss between spectra of student, teacher and clean, complex (B, F,
        frames). noisy: the waves (B, L) they were made of, for features.
        """
        config = self.config
        low, high, keep, rule = config.low, config.high, config.keep, config.rule
        if config.distil == "random":
            rule = "random"
        if config.distil == "all":                 # one patch a band, and every one of them
            low, high, keep, rule = S.shape[1], S.shape[1], 1.0, "top_k"
        if config.distance == "feature":
            theirs = self.teacher_output("features", noisy)
            return selective_feature_loss(self.features(noisy), theirs, S, T, Y, low, keep,
                                          rule)
        if config.distance == "response":
            return selective_patch_loss(S, T, Y, low, keep, rule, config.exact)
        return selective_frequency_loss(S, T, Y, low, high, keep, config.beta, rule,
                                        config.exact)

    def teacher_output(self, what, noisy):
        """The teacher's `what` of waves (B, L), cached for a fixed training set."""
        function = getattr(self.teacher.to(noisy.device), what)
        if self.store is None:
            return function(noisy)
        return cached_rows(function, noisy, self.store, f"{self.teacher.record}-{what}")

    def features(self, wave):
        """Hidden states of the recurrent network: (B, L) -> (B, frames, hidden)."""
        return self.net.features(self.spectrogram(wave)[:, None])

    def enhance_wave(self, wave):
        """Waves of level 1, (B, L) -> (B, L)."""
        return self.gain * super().enhance_wave(wave)

    def sample(self, y):
        """Noisy spectrogram -> clean one, complex (B, 1, F, T)."""
        self.calls += 1
        return self.net(y) if self.config.network == "mask" else y + self.net(y)


if __name__ == "__main__":
    commands.main(Student)
