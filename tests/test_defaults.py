"""The published default of every preset, written by hand from the papers and their programs; and those of our own presets.

A constant that changes anywhere turns this table red.
"""

import inspect

import numpy as np
import pytest

import commands
import consistency
import data
import dispatch
import drift
import losses
import meanflow
import metrics
import nets
import sgmse
import train
from helpers import METHODS

NETWORK = dict(width=128, channel_mults=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, attention_resolutions=(16,))
SPECTROGRAM = dict(n_fft=510, hop_length=128, num_frames=256, exponent=0.5, factor=0.15, pad_mode="constant",
                   normalize="peak")
SMALL = dict(width=16, channel_mults=(1, 1, 2, 4, 6), num_res_blocks=1, attention_resolutions=(), normalize="robust")
TINY = dict(width=8, channel_mults=(1, 1, 2, 2, 2), num_res_blocks=1, attention_resolutions=(), normalize="robust")

SGMSE = NETWORK | SPECTROGRAM | dict(
    sde="ouve", theta=1.5, sigma_min=0.05, sigma_max=0.5, k=2.6, c=0.51, t_eps=0.03, objective="score_matching",
    weighting="1", network_scaling="none", c_in="1", c_out="1", c_skip="0", sigma_data=0.1, l1_weight=0.001,
    pesq_weight=0.0, crp="none", sampler="pc", N=30, snr=0.5, start=1.0, spacing=1.0, version=1, fourier_scale=16.0)
SGMSE_LIGHT = dict(sde="bbed", objective="data_prediction", c_skip="y", l1_weight=0.1, pesq_weight=5e-4, sampler="em",
                   start=0.5, version=2, hop_length=256, num_frames=128, fourier_scale=1.0)
ROSE_CD = NETWORK | SPECTROGRAM | dict(
    teacher="", solver="pc", stochastic=True, snr=0.5, weight="1", consistency_weight=1.0, pesq_weight=5e-4,
    si_sdr_weight=5e-5, form="edm", strict=False, c_in="1", sigma_data=0.1, N=1, sde="ouve", theta=1.5, sigma_min=0.05,
    sigma_max=0.5, k=2.6, c=0.51, t_eps=0.03, fourier_scale=16.0, pad_mode="reflect")
ROSE_LIGHT = dict(form="data", strict=True, sde="bbed", hop_length=256, num_frames=128, pad_mode="constant",
                  fourier_scale=1.0)
DISPATCH = NETWORK | SPECTROGRAM | dict(
    distil="selective", teacher="", distance="frequency", distil_weight=5.0, task="si_sdr", warmup=0, keep=0.8,
    rule="top_k", low=20, high=20, beta=0.5, exact=True, network="mask", hidden=48, layers=1, n_fft=512, num_frames=501,
    exponent=1.0, factor=1.0)
DISPATCH_U_NET = dict(network="ncsnpp", n_fft=510, hop_length=256, num_frames=128, exponent=0.5, factor=0.15)
MECO = NETWORK | SPECTROGRAM | dict(
    separator="none", separator_size="small", separator_seconds=4.0, num_mics=1, num_speakers=1, sigma_max=0.487,
    t_eps=0.03, c=0.5, derivative="difference", derivative_clip=5.0, along="conditional", displacement=True,
    average_weight=0.25, average=True, endpoint_weight=1.0, reduction="sum", schedule=0, N=1, t_end=0.03, sigma_data=0.0, fourier_scale=16.0, hop_length=64)
PRINCIPLED = dict(c=1.0, derivative="exact", derivative_clip=0.0, reduction="mean")
MECO_LIGHT = PRINCIPLED | dict(hop_length=256, num_frames=64, sigma_data=0.6, endpoint_weight=30.0, fourier_scale=1.0)
DRIFTSE = NETWORK | SPECTROGRAM | dict(
    encoder="ntu-spml/distilhubert", layers=(0, 1, 2), field="joint", scaling="driftse", temperatures=(0.0,),
    exclude_self=True, sigma_max=0.3, sigma=0.0, conditional=False, mask=False, drift_weight=1.0, pesq_weight=0.0,
    si_sdr_weight=0.0, ccmse_weight=0.0, magnitude_weight=0.0)
DRIFT_LIGHT = dict(encoder="mel", exclude_self=False, temperatures=(0.02, 0.05, 0.1), sigma_max=0.0, mask=True,
                   drift_weight=1000.0, hop_length=256, num_frames=64)
TABLE = {
    (sgmse.ScoreSDE, "paper"): SGMSE,
    (sgmse.ScoreSDE, "bbed"): SGMSE | dict(sde="bbed", start=0.999),
    (sgmse.ScoreSDE, "edm"): SGMSE | dict(version=2, objective="precond_denoiser", weighting="edm", c_in="edm",
                                          c_out="edm", c_skip="edm", pad_mode="reflect"),
    (sgmse.ScoreSDE, "bridge"): SGMSE | dict(sde="sbve", c=0.4, objective="data_prediction", pesq_weight=5e-4,
                                             sampler="bridge_ode", N=50, version=2, pad_mode="reflect"),
    (sgmse.ScoreSDE, "small"): SGMSE | SGMSE_LIGHT | SMALL | dict(N=15),
    (sgmse.ScoreSDE, "tiny"): SGMSE | SGMSE_LIGHT | TINY | dict(N=5),
    (consistency.ConsistencyModel, "paper"): ROSE_CD,
    (consistency.ConsistencyModel, "small"): ROSE_CD | ROSE_LIGHT | SMALL,
    (consistency.ConsistencyModel, "tiny"): ROSE_CD | ROSE_LIGHT | TINY,
    (dispatch.Student, "paper"): DISPATCH,
    (dispatch.Student, "teacher"): DISPATCH | dict(distil="none", hidden=256, layers=2),
    (dispatch.Student, "small"): DISPATCH | DISPATCH_U_NET | SMALL,
    (dispatch.Student, "tiny"): DISPATCH | DISPATCH_U_NET | TINY,
    (meanflow.MeanFlowCorrector, "paper"): MECO,
    (meanflow.MeanFlowCorrector, "principled"): MECO | PRINCIPLED,
    (meanflow.MeanFlowCorrector, "meanflowse"): MECO | dict(hop_length=128, displacement=False, endpoint_weight=0.0,
                                                            t_end=0.0),
    (meanflow.MeanFlowCorrector, "flow"): MECO | dict(hop_length=128, endpoint_weight=0.0, t_end=0.0,
                                                      average_weight=0.0, average=False, N=5),
    (meanflow.MeanFlowCorrector, "small"): MECO | MECO_LIGHT | SMALL,
    (meanflow.MeanFlowCorrector, "tiny"): MECO | MECO_LIGHT | TINY | dict(separator_size="compact"),
    (drift.DriftSE, "paper"): DRIFTSE,
    (drift.DriftSE, "dagger"): DRIFTSE | dict(pesq_weight=1e-4, si_sdr_weight=1e-4, ccmse_weight=1e-3),
    (drift.DriftSE, "small"): DRIFTSE | DRIFT_LIGHT | SMALL,
    (drift.DriftSE, "tiny"): DRIFTSE | DRIFT_LIGHT | TINY,
}
PUBLISHED_DRIFTSE = dict(lr=5e-4, weight_decay=0.01, betas=(0.9, 0.95), lr_warmup=200, batch_size=16, clip=2.0)


@pytest.mark.parametrize("Method, preset", TABLE, ids=lambda value: getattr(value, "__name__", value))
def test_preset_has_its_published_constants(Method, preset):
    assert vars(Method.Config(**Method.presets[preset])) == TABLE[Method, preset]


def test_every_preset_has_a_row():
    assert set(TABLE) == {(Method, preset) for Method in METHODS.values() for preset in Method.presets}


def test_training_has_the_published_constants():
    usual = dict(steps=58000, minutes=0.0, batch_size=8, accumulate=1, lr=1e-4, lr_warmup=0, lr_decay=0.0,
                 weight_decay=0.0, betas=(0.9, 0.999), ema=0.999, clip=0.0, seed=0, precision="auto", workers=4,
                 valid_every=1000, valid_files=20, save_every=60.0, snrs=(0.0, 5.0, 10.0, 15.0), num_crops=0, rooms=0,
                 data="", out="", init="", init_partial=False, device="auto", compile=False, room_cache="", unpaired="")
    augmentation = dict.fromkeys(("babble", "second_noise", "synthetic_noise", "hiss", "speech_dropout", "no_speech",
                                  "quiet_part", "speed", "random_eq"), 0.0)
    assert vars(train.TrainConfig()) == usual | augmentation
    assert drift.DriftSE.training == {"paper": PUBLISHED_DRIFTSE, "dagger": PUBLISHED_DRIFTSE}
    assert not any(Method.training for Method, _ in TABLE if Method is not drift.DriftSE)


def defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}


@pytest.mark.parametrize("function, published", [
    (sgmse.OUVE, dict(theta=1.5, sigma_min=0.05, sigma_max=0.5, T=1.0, t_eps=0.03)),
    (sgmse.BBED, dict(k=2.6, c=0.51, T=0.999, t_eps=0.03)),
    (sgmse.SBVE, dict(k=2.6, c=0.4, T=1.0, t_eps=0.03, eps=1e-8)),
    (sgmse.predictor_corrector, dict(N=30, snr=0.5, corrector_steps=1, start=None, spacing=1.0)),
    (sgmse.bridge_ode, dict(N=50)), (sgmse.bridge_sde, dict(N=50)), (sgmse.bridge_times, dict(end=1e-4)),
    (sgmse.edm_weight, dict(sigma_data=0.1)),
    (consistency.time_grid, dict(N=30)), (sgmse.edm_scaling, dict(sigma_data=0.1, std_eps=0.0)),
    (meanflow.sample_times, dict(gamma=1.0, t_eps=0.03, equal=0.1, device=None)),
    (meanflow.path, dict(sigma_max=0.487)), (meanflow.difference_derivative, dict(eps=1e-3)),
    (meanflow.sample, dict(N=1, t_end=0.03, sigma_max=0.487, average=True)),
    (drift.noise_level, dict(sigma_max=0.3, sigma_min=0.01, mean=-3.0, std=1.2, device=None)),
    (dispatch.selective_patch_loss, dict(size=20, keep=0.8, rule="top_k", exact=True)),
    (dispatch.selective_frequency_loss, dict(low=10, high=40, keep=0.8, beta=0.5, rule="top_k", exact=True)),
    (data.Spectrogram, dict(n_fft=510, hop_length=128, exponent=0.5, factor=0.15, window="hann", transform="exponent")),
    (data.MixedAudio, dict(snrs=(0, 5, 10, 15), num_samples=32640, seed=0, device="cpu", corpora=None, without=(),
                           normalize="peak", augmentation=data.Augmentation())),
    (data.PairedAudio, dict(split="train", num_samples=32640, seed=0, device="cpu", corpora=None, without=(),
                            normalize="peak")),
    (data.open_data, dict(snrs=(0, 5, 10, 15), augmentation=data.Augmentation())),
    (data.batches, dict(step=0, rank=0, world=1, workers=4, num_crops=0)),
    (losses.waveform_terms, dict(pesq=0.0, si_sdr=0.0, ccmse=0.0)),
    (meanflow.average_weight, dict(largest=0.25)),
    (nets.SpatialNet, dict(bins=257, layers=8, width=96, hidden=192, heads=4, squeezed=8, groups=8)),
    (nets.NCSNpp, dict(in_channels=2, out_channels=1, width=128, channel_mults=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2,
                       attention_resolutions=(16,), image_size=256, num_times=1, version=1, fourier_scale=16))],
    ids=lambda value: getattr(value, "__name__", ""))
def test_function_has_its_published_defaults(function, published):
    assert defaults(function) == published


def test_constants_outside_any_config():
    assert drift.TEMPERATURES == {"driftse": (0.1, 0.5, 1.0), "original": (0.02, 0.05, 0.2)}
    assert [meanflow.interval_exponent(p) for p in (0, 0.35, 0.7, 1)] == pytest.approx([8, 4.5, 1, 1])
    assert [meanflow.average_weight(p) for p in (0, 0.1, 0.5, 1)] == pytest.approx([0, 0.05, 0.25, 0.25])
    assert nets.COMPACT == dict(layers=2, width=32, hidden=64, heads=2, squeezed=4, groups=4)


def test_scores_are_weighted_and_spread_as_the_pages_say():
    base = dict(pesq=2.0, estoi=0.7, si_sdr=10.0)
    step = {"pesq": 0.1, "estoi": 0.02, "si_sdr": 1.0}
    for name, size in step.items():                      # each counts a tenth
        gain = commands.selection_score(base | {name: base[name] + size}) - commands.selection_score(base)
        assert gain == pytest.approx(0.1)
    rows = [{"name": str(i), "si_sdr": float(i), "note": "", "error": ""} for i in range(5)]
    table = metrics.Results(rows, ["si_sdr"]).table()
    assert f"{np.std(range(5), ddof=1):.3f}" in table and f"{np.std(range(5)):.3f}" not in table
