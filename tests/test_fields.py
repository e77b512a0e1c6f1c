"""Every constant of every Config does something: changed alone, it changes what it is for.

The list is made from the dataclasses: a field that is not in SPECS fails. The networks are small, and their parameters
random, so that every branch counts.
"""

import dataclasses
import functools
from pathlib import Path

import pytest
import torch

import consistency
import dispatch
import drift
import encoder
import meanflow
import sgmse
import train
from helpers import lively

NET = dict(width=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(), n_fft=62, hop_length=16,
           num_frames=24)
LONG = dict(num_frames=400)                              # enough for PESQ and for mel frames
SIZES = {"width": ("weights", 12), "channel_mults": ("weights", (1, 1)), "num_res_blocks": ("weights", 2),
         "attention_resolutions": ("weights", (32,))}
SPECTROGRAM = {"n_fft": ("loss enhance", 126), "hop_length": ("crop enhance", 32), "num_frames": ("crop", 16),
               "exponent": ("loss enhance", 0.7), "factor": ("loss enhance", 0.3), "pad_mode": ("enhance", "reflect"),
               "normalize": ("enhance", "robust")}
V2, DATA = dict(version=2), dict(version=2, objective="data_prediction")
DENOISER = dict(version=2, objective="denoiser")
BBED, CRP = dict(sde="bbed"), dict(crp="last", sampler="em", start=0.5, N=2)
RENOISE, PC = dict(solver="renoise", weight="1"), dict(solver="pc")
ALONE = dict(pesq_weight=0.0, si_sdr_weight=0.0)
U_NET, SEPARATOR = dict(network="ncsnpp"), dict(separator="train", separator_size="compact")
EXACT = dict(derivative="exact", derivative_clip=0.0)

# field -> (what it must change, another value, [constants that give it a part])
SPECS = {
    "sgmse": SIZES | SPECTROGRAM | {
        "sde": ("loss enhance", "bbed"), "theta": ("loss enhance", 2.0), "sigma_min": ("loss enhance", 0.01),
        "sigma_max": ("loss enhance", 0.3), "k": ("loss enhance", 2.0, BBED), "c": ("loss enhance", 0.3, BBED),
        "t_eps": ("loss enhance", 0.2), "objective": ("loss enhance", "precond_denoiser", V2),
        "weighting": ("loss", "edm", DENOISER), "network_scaling": ("loss enhance", "1/sigma", V2),
        "c_in": ("loss enhance", "edm", V2), "c_out": ("loss enhance", "sigma", V2),
        "c_skip": ("loss enhance", "edm", V2), "sigma_data": ("loss enhance", 0.3, V2 | dict(c_in="edm")),
        "l1_weight": ("loss", 1.0, DATA), "pesq_weight": ("loss", 1.0, DATA | LONG),
        "crp": ("loss", "random", CRP), "sampler": ("enhance", "em"), "N": ("enhance", 3), "snr": ("enhance", 0.3),
        "start": ("enhance", 0.5), "spacing": ("enhance", 2.0, dict(N=3)), "version": ("loss enhance", 2), "fourier_scale": ("start", 4.0)},
    "consistency": SIZES | SPECTROGRAM | {
        "teacher": "test_student_starts_as_its_teacher_and_does_not_carry_it",
        "solver": ("loss", "renoise_shared", RENOISE), "stochastic": ("loss", False, PC), "snr": ("loss", 0.3, PC),
        "weight": ("loss", "karras", ALONE), "consistency_weight": ("loss", 2.0), "pesq_weight": ("loss", 1.0, LONG),
        "si_sdr_weight": ("loss", 1.0, LONG), "form": ("loss enhance", "data"), "strict": ("loss enhance", True),
        "c_in": ("loss enhance", "edm"), "sigma_data": ("loss enhance", 0.3), "N": ("enhance", 2),
        "sde": ("loss enhance", "bbed"), "theta": ("loss", 2.0), "sigma_min": ("loss enhance", 0.01),
        "sigma_max": ("loss enhance", 0.3), "k": ("loss enhance", 2.0, BBED), "c": ("loss enhance", 0.3, BBED),
        "t_eps": ("loss", 0.2), "fourier_scale": ("start", 4.0), "pad_mode": ("enhance", "constant")},
    "student": {name: (*spec, U_NET) for name, spec in (SIZES | SPECTROGRAM).items()} | {
        "teacher": "test_loss_is_the_task_s_plus_the_weighted_distillation",
        "distil": ("loss", "random", dict(keep=0.3)), "distance": ("loss", "response"), "distil_weight": ("loss", 1.0),
        "task": ("loss", "mse"),
        "warmup": ("loss", 10), "keep": ("loss", 0.3), "rule": ("loss", "positive"), "low": ("loss", 1),
        "high": ("loss", 7), "beta": ("loss", 0.2), "exact": ("loss", False), "network": ("weights", "ncsnpp"),
        "hidden": ("weights", 12), "layers": ("weights", 2), "num_frames": ("crop", 300), "attention_resolutions": ("weights", (256,), U_NET)},
    "meanflow": SIZES | SPECTROGRAM | {
        "separator": ("weights", "train"), "separator_size": ("weights", "small", SEPARATOR),
        "separator_seconds": ("crop", 1.0, SEPARATOR), "num_mics": ("weights", 2, SEPARATOR),
        "num_speakers": ("weights", 2, SEPARATOR), "sigma_max": ("loss enhance", 0.3), "t_eps": ("loss", 0.3),
        "c": ("loss", 1.0, EXACT), "derivative": "test_derivative_of_the_config_is_the_one_taken",
        "derivative_clip": ("loss", 0.1), "average_weight": ("loss", 0.1), "average": ("enhance", False),
        "along": ("loss", "own", EXACT), "displacement": ("loss", False), "endpoint_weight": ("loss", 3.0),
        "reduction": ("loss", "mean"), "schedule": ("loss", 1000), "N": ("enhance", 2), "t_end": ("loss enhance", 0.3),
        "sigma_data": ("loss enhance", 0.4), "fourier_scale": ("start", 4.0)},
    "drift": SIZES | SPECTROGRAM | {
        "encoder": "test_encoder_gives_hidden_states_every_20_ms",
        "layers": ("loss", (0, 1)), "field": ("loss", "separate"), "scaling": ("loss", "original"),
        "temperatures": ("loss", (0.3,)), "exclude_self": ("loss", False), "sigma_max": ("loss", 0.1),
        "sigma": ("enhance", 0.1), "conditional": ("weights", True), "mask": ("loss enhance", True),
        "drift_weight": ("loss", 2.0), "pesq_weight": ("loss", 1.0), "si_sdr_weight": ("loss", 1.0),
        "ccmse_weight": ("loss", 1.0), "magnitude_weight": ("loss", 1.0), "num_frames": ("crop", 300)},
    "encoder": {"hidden": ("weights", 32), "depth": ("weights", 1), "channels": ("weights", 12),
                "clusters": ("weights", 8), "mask_start": ("loss", 0.3), "mask_length": ("loss", 3),
                "noisy": ("loss", True)}}
CONFIGS = {"sgmse": sgmse.Config, "consistency": consistency.Config, "student": dispatch.Config,
           "meanflow": meanflow.Config, "drift": drift.Config, "encoder": encoder.EncoderConfig}
BASES = {"sgmse": NET | dict(N=2), "consistency": NET | RENOISE | ALONE,
         "student": dict(hidden=8, n_fft=510, hop_length=64, num_frames=60, width=8, channel_mults=(1, 2),
                         num_res_blocks=1, attention_resolutions=()),
         "meanflow": NET, "drift": NET | LONG | dict(encoder="mel", layers=(0,), sigma_max=0.0),
         "encoder": dict(hidden=16, channels=8, clusters=4)}


class Known:
    """A teacher whose score or output is a formula."""

    def to(self, device):
        return self

    def score(self, x, y, t):
        return (0.3 * y - x) / (0.2 + t)[:, None, None, None]

    def enhance(self, wave):
        """Next to nothing below 1 kHz, where the bands of the frequency-dependent distillation meet then."""
        spectrum = torch.fft.rfft(wave)
        frequency = torch.linspace(0, 8000, spectrum.shape[-1])
        return torch.fft.irfft(torch.where(frequency < 1000, 1e-3, 1.0) * spectrum, wave.shape[-1])


def build(method, changes):
    torch.manual_seed(0)
    config = CONFIGS[method](**BASES[method] | changes)
    if method == "encoder":
        return encoder.MaskedPrediction(config, torch.randn(config.clusters, 64)).eval()
    Method = {"sgmse": sgmse.ScoreSDE, "consistency": consistency.ConsistencyModel, "student": dispatch.Student,
              "meanflow": meanflow.MeanFlowCorrector, "drift": drift.DriftSE}[method]
    model = lively(Method(config).eval())
    if method in ("consistency", "student"):
        model.teacher = Known()
    if method == "drift":
        model.prepare()
    if method in ("student", "meanflow"):                # in the middle of a training of eight updates
        model.ema, model.progress = train.EMA(model), 0.5
        model.ema.num_updates = 4
    return model


@functools.cache
def observed(method, what, changes):
    """What a model of these constants, a tuple of items, shows: its loss, its output, its weights or its crops."""
    model = build(method, dict(changes))
    generator = torch.Generator().manual_seed(1)
    if what == "weights":
        return {name: tuple(p.shape) for name, p in model.named_parameters()}
    if what == "crop":
        return model.num_samples
    if what == "start":
        return torch.cat([p.flatten() for p in model.parameters()])
    if what == "loss":
        samples = 16000 if method == "encoder" else model.num_samples
        clean = (torch.rand(3, samples, generator=generator) - 0.5).cumsum(1) * 0.05
        noisy = clean + 0.2 * (torch.rand(3, samples, generator=generator) - 0.5)
        torch.manual_seed(2)
        return model.loss((clean, noisy))[0].detach()
    wave = 0.1 * torch.rand(2, 1003, generator=generator)
    wave[:, 500] = 0.9                                   # a click
    torch.manual_seed(3)
    return model.enhance(wave).detach()


def frozen(changes):
    return tuple(sorted(changes.items()))


FIELDS = [(method, field.name) for method, Config in CONFIGS.items() for field in dataclasses.fields(Config)]


@pytest.mark.parametrize("method, field", FIELDS)
def test_field_changes_what_it_is_for(method, field):
    spec = SPECS[method][field]
    if isinstance(spec, str):                            # more than a value: a test of its own
        assert any(f"def {spec}(" in path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
        return
    what, value, context = *spec[:2], spec[2] if len(spec) > 2 else {}
    for kind in what.split():
        before, after = (observed(method, kind, frozen(changes)) for changes in (context, context | {field: value}))
        if isinstance(before, torch.Tensor):
            assert before.isfinite().all() and after.isfinite().all()
            assert not torch.equal(before, after), kind  # of a field that is ignored no digit changes
        else:
            assert before != after, kind


@pytest.mark.parametrize("method, changes, fields", [
    ("sgmse", CRP, dict(N=3, start=0.3, sde="bbed")), ("sgmse", CRP | dict(N=3), dict(spacing=2.0)), ("sgmse", DENOISER, dict(weighting="sigma^2")),
    ("sgmse", DENOISER | dict(weighting="edm"), dict(sigma_data=0.3)), ("sgmse", V2, dict(network_scaling="1/t")),
    ("sgmse", V2, dict(c_out="1/sigma")), ("sgmse", V2 | dict(c_out="edm"), dict(sigma_data=0.3)),
    ("sgmse", V2 | dict(c_skip="edm"), dict(sigma_data=0.3)), ("sgmse", V2, dict(c_skip="y")),
    ("consistency", dict(solver="euler"), dict(stochastic=False)),
    ("consistency", dict(solver="heun"), dict(stochastic=False)), ("consistency", dict(solver="euler"), dict(solver="heun")),
    ("consistency", dict(solver="mix"), dict(solver="euler")), ("consistency", dict(weight="snr"), dict(weight="snr+1")),
    ("consistency", dict(weight="truncated-snr"), dict(weight="snr+1")),
    ("student", dict(distance="response"), dict(keep=0.3, low=5, exact=False, rule="both")),
    ("meanflow", dict(derivative="exact"), dict(derivative_clip=0.1)), ("drift", {}, dict(sigma_max=0.3)),
    ("sgmse enhance", dict(sampler="em"), dict(start=0.5, N=3)), ("sgmse enhance", dict(sampler="ode"), dict(start=0.5, N=3)),
    ("sgmse enhance", dict(sampler="em", N=3), dict(spacing=2.0)), ("sgmse enhance", dict(sampler="ode", N=3), dict(spacing=2.0)),
    ("sgmse enhance", DATA | dict(sde="sbve", sampler="bridge_ode"), dict(N=3, sampler="bridge_sde", k=2.0, c=0.3))])
def test_choice_beside_it_changes_the_loss_or_the_output(method, changes, fields):
    method, _, what = method.partition(" ")
    for field, value in fields.items():
        before, after = (observed(method, what or "loss", frozen(c)) for c in (changes, changes | {field: value}))
        assert not torch.equal(before, after), field


def test_observations_depend_on_nothing_but_the_constants():
    for method in CONFIGS:
        first = observed(method, "loss", ())
        observed.cache_clear()
        torch.testing.assert_close(observed(method, "loss", ()), first, rtol=0, atol=0)
