"""Checkpoints that the authors of each system released: a file of every layout, built here, gives their network's numbers
and enhances by the commands of its own method; those of the others say whose it is."""

import json

import numpy as np
import pytest
import soundfile
import torch

import consistency
import drift
import meanflow
import nets
import sgmse
import train
from helpers import load, official_checkpoint, run_command

METHODS = {"sgmse": sgmse.ScoreSDE, "consistency": consistency.ConsistencyModel, "meanflow": meanflow.MeanFlowCorrector,
           "drift": drift.DriftSE}
SMALL = dict(ch_mult=[1, 2, 2, 2], num_res_blocks=1, attn_resolutions=[32, 8], nf=8, n_fft=62, hop_length=16, num_frames=32,
             spec_factor=0.15, spec_abs_exponent=0.5, window="hann", transform_type="exponent", normalize="noisy", lr=1e-4)
FIRST = dict(ch_mult=[1, 1, 2], num_res_blocks=2, attn_resolutions=[8])    # of the first version of the network
OUVE = dict(sde="ouve", theta=1.5, sigma_min=0.05, sigma_max=0.5, N=2, t_eps=0.03)
EDM = dict(backbone="ncsnpp_v2", loss_type="precond_denoiser", c_out="edm", c_skip="edm", sigma_data=0.1,
           network_scaling=None, loss_weighting="edm")
HYPER = {
    "sgmse": SMALL | OUVE | FIRST | dict(backbone="ncsnpp", loss_type="mse"),
    "bridge.pt": SMALL | dict(backbone="ncsnpp_v2", sde="sbve", k=2.6, c=0.4, N=2, sampler_type="ode", t_eps=1e-4,
                              loss_type="data_prediction", l1_weight=0.001, pesq_weight=5e-4),
    "crp": SMALL | FIRST | dict(backbone="ncsnpp", sde="bbed", k=2.6, theta=0.52, sde_n=30,
                        T_sampling=0.999, output_scale="time", inference_N=1, inference_start=0.5, loss_type="default"),
    "ROSE-CD": SMALL | OUVE | EDM | dict(c_in="1", pesq_weight=5e-4),
    "ROSE-CD's teacher": SMALL | OUVE | EDM | dict(c_in="edm"),
    "MeanFlowSE": SMALL | FIRST | dict(ode="flowmatching", backbone="ncsnpp",
                               sigma_min=0.0, sigma_max=0.487, t_eps=0.03, mf_first_order_coef=0.5),
    "DriftSE": SMALL | dict(train_add_gaussian=True)}
OWNER = {"sgmse": "sgmse", "bridge.pt": "sgmse", "crp": "sgmse", "ROSE-CD": "consistency", "ROSE-CD's teacher": "sgmse",
         "MeanFlowSE": "meanflow", "DriftSE": "drift", "NBSS": "meanflow"}
WEIGHTS = {"sgmse": "net_crp_ncsnpp", "crp": "net_crp_ncsnpp", "bridge.pt": "net_ncsnpp_v2_b", "ROSE-CD": "net_ncsnpp_v2_b",
           "ROSE-CD's teacher": "net_ncsnpp_v2_b", "MeanFlowSE": "net_meanflowse_ncsnpp", "DriftSE": "net_ncsnpp_v2_drift_b"}
CALLS = {"sgmse": 4, "bridge.pt": 2, "crp": 1, "ROSE-CD": 1, "ROSE-CD's teacher": 4, "MeanFlowSE": 1, "DriftSE": 1, "NBSS": 1}


def official(name):
    """Official weights by their names, in the order of the checkpoints."""
    fixture = load(WEIGHTS[name])
    return {key: torch.from_numpy(fixture[f"p/{key}"]) for key in json.loads(str(fixture["state_names_json"]))}


def separator(prefix="arch."):
    """A SpatialNet for one microphone and one speaker, and its tensors as NBSS names them."""
    torch.manual_seed(0)
    net, theirs, weights = nets.SpatialNet(1, 1), {ours: name for name, ours in nets.OFFICIAL_PARTS.items()}, {}
    for name, p in net.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module.startswith("layers."):
            _, number, part = module.split(".", 2)
            convolution = p.ndim == 2 and part in ("squeeze", "unsqueeze", "feed_forward.into", "feed_forward.out")
            weights[f"{prefix}layers.{number}.{theirs[part]}.{kind}"] = p[..., None] if convolution else p
        elif module == "full_band":
            weights |= {f"{prefix}layers.{number}.full.{kind}": p for number in range(8)}
        else:
            weights[f"{prefix}{name}"] = p
    return net, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> path of a file of that system's layout."""
    folder, paths = tmp_path_factory.mktemp("released"), {}
    for name in OWNER:
        paths[name] = folder / (name if name.endswith(".pt") else f"{name}.ckpt")
        if name == "NBSS":
            torch.save({"state_dict": separator()[1], "epoch": 100, "hyper_parameters": {}}, paths[name])
        elif name == "DriftSE":
            weights = official(name)
            torch.save({"model": {f"module.{key}": torch.zeros_like(p) for key, p in weights.items()}, "ema": weights,
                        "optimizer": {}, "scheduler": {}, "epoch": 50, "step": 1000, "config": HYPER[name]}, paths[name])
        else:
            official_checkpoint(paths[name], HYPER[name], official(name))
    return paths


@pytest.mark.parametrize("name", OWNER)
def test_whose_it_is_is_found_out_from_the_content(name, files):
    model = train.load_checkpoint(files[name])
    assert type(model).__name__ == METHODS[OWNER[name]].__name__ and not model.training


@pytest.mark.parametrize("name", OWNER)
def test_released_file_enhances_by_its_own_method_alone(name, files, tmp_path, capsys):
    soundfile.write(tmp_path / "noisy.wav", 0.1 * np.random.default_rng(0).standard_normal(1500), 16000, "FLOAT")
    for method, Method in METHODS.items():
        code = run_command(Method, "enhance", tmp_path / "noisy.wav", "--checkpoint", files[name], "--device", "cpu",
                           "--out", tmp_path / method)
        said = capsys.readouterr()
        if method == OWNER[name]:
            assert code == 0 and f", {CALLS[name]} network evaluations" in said.out
            wave, _ = soundfile.read(tmp_path / method / "noisy.wav")
            assert len(wave) == 1500 and np.isfinite(wave).all() and wave.std() > 0
        else:
            assert code == 2 and f"use python {OWNER[name]}.py" in said.err and said.err.count("\n") == 1


def close(a, b, tolerance):
    assert (a - b).abs().max() < tolerance * b.abs().max()


@torch.no_grad()
def test_student_of_rose_cd_gives_the_reference_s_estimate(files):
    fixture = load("rosecd")
    model = train.load_checkpoint(files["ROSE-CD"])
    assert (model.config.form, model.config.c_in, model.config.solver, model.config.strict) == ("edm", "1", "renoise", False)
    assert model.config.N == 1 and model.config.pesq_weight == 5e-4 and model.config.pad_mode == "reflect"
    close(model(*(torch.from_numpy(fixture[key]) for key in ("x_t", "y", "t"))), torch.from_numpy(fixture["D_student"]), 1e-5)


@torch.no_grad()
def test_teacher_of_rose_cd_can_teach(files):
    config = train.load_checkpoint(files["ROSE-CD's teacher"]).config
    assert (config.objective, config.c_in, config.c_out, config.c_skip) == ("precond_denoiser", "edm", "edm", "edm")
    assert (config.weighting, config.N, config.sigma_data) == ("edm", 2, 0.1)
    student = consistency.ConsistencyModel(consistency.Config(
        teacher=str(files["ROSE-CD's teacher"]), n_fft=62, hop_length=16, num_frames=32, width=8, channel_mults=(1, 2, 2, 2),
        num_res_blocks=1, attention_resolutions=(32, 8)))
    student.prepare(fresh=True)
    assert student.config.teacher.startswith("ROSE-CD's teacher.ckpt@")


@torch.no_grad()
def test_meanflowse_gives_the_reference_s_one_step(files):
    fixture, model = load("meanflowse"), train.load_checkpoint(files["MeanFlowSE"])
    assert model.config.c == 0.5 and model.config.t_end == 0 and model.config.hop_length == 16
    y, z = torch.from_numpy(fixture["y"][:1]), torch.from_numpy(fixture["solver/prior_z"])
    out = meanflow.sample(lambda x, r, t: model(x, y, r, t), y, z, 1, model.config.t_end)
    close(out, torch.from_numpy(fixture["solver/euler_mf_N1_eps0.0/out"]), 2e-5)


@torch.no_grad()
def test_driftse_gives_the_reference_s_network(files):
    fixture, model = load("net_ncsnpp_v2_drift_b"), train.load_checkpoint(files["DriftSE"])
    assert model.config.sigma == 0.01 and not model.config.conditional and not model.config.mask
    close(model(torch.from_numpy(fixture["x0"]), torch.zeros(2)), torch.from_numpy(fixture["out0"]), 1e-4)


@torch.no_grad()
def test_spatialnet_is_the_separator_and_its_output_the_result(files):
    model, (net, _) = train.load_checkpoint(files["NBSS"]), separator()
    assert (model.config.separator, model.config.num_mics, model.config.num_speakers) == ("train", 1, 1)
    Y = torch.randn(1, 1, 257, 10, dtype=torch.complex64)
    close(nets.SpatialNet.forward(model.separator, Y), net(Y), 1e-6)


@pytest.mark.parametrize("name, changes", [
    ("ROSE-CD", dict(sr=48000)), ("ROSE-CD", dict(network_scaling="1/t")), ("MeanFlowSE", dict(sigma_min=0.1)),
    ("MeanFlowSE", dict(ode="stochasticinterpolant")), ("MeanFlowSE", dict(backbone="dcunet")), ("DriftSE", dict(sr=48000))])
def test_what_does_not_fit_is_refused_with_the_name_of_the_key(name, changes, files, tmp_path):
    path, (key, value) = tmp_path / "other.ckpt", *changes.items()
    if name == "DriftSE":
        content = torch.load(files[name], weights_only=True)
        torch.save(content | dict(config=HYPER[name] | changes), path)
    else:
        official_checkpoint(path, HYPER[name] | changes, official(name))
    with pytest.raises(train.CheckpointError, match=f"other.ckpt: {key} {value} is not covered"):
        train.load_checkpoint(path)


def test_large_spatialnet_is_refused_with_its_size(tmp_path):
    net, weights = separator()
    weights["arch.encoder.weight"] = torch.zeros(192, 2, 5)
    torch.save({"state_dict": weights}, tmp_path / "large.ckpt")
    with pytest.raises(train.CheckpointError, match="large.ckpt: width 192 is not covered, only 96"):
        train.load_checkpoint(tmp_path / "large.ckpt")


@pytest.mark.parametrize("content, message", [
    (dict(step=1, model={}, ema={}, optimizer={}, config={}), "the state of a training; use best.safetensors"),
    ({"something": torch.zeros(1)}, "supported program"), ([1, 2], "supported program"),
    ({0: torch.zeros(1)}, "supported program"), ({"state_dict": None}, "supported program"),
    ({"hyper_parameters": {"sde": "ouve"}, "ema": {}}, "looks like a released checkpoint, but lacks '[a-z_]+'")])
def test_other_files_of_torch_are_refused_in_words(content, message, tmp_path):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(train.CheckpointError, match=f"last.pt: .*{message}"):
        train.load_checkpoint(tmp_path / "last.pt")
