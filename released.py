"""The checkpoints that the papers' authors released: which method a file belongs to, and how its
names translate to ours.

    load               the model of a file's content, for train.load_checkpoint

Covers sgmse, sgmse-bbed, sgmse_crp, ROSE-CD, MeanFlowSE, DriftSE and NBSS (SpatialNet).
"""

import dataclasses

import consistency
import drift
import meanflow
import nets
import sgmse
from train import CheckpointError, Stub

NETWORK = dict(width="nf", channel_mults="ch_mult", num_res_blocks="num_res_blocks",
               attention_resolutions="attn_resolutions")                  # our field: theirs
SPECTROGRAM = dict(n_fft="n_fft", hop_length="hop_length", num_frames="num_frames",
                   exponent="spec_abs_exponent", factor="spec_factor")


def load(content, **changes):
    """The model of a released checkpoint, with its averaged weights.

    content: the file as train.read_pickle gives it. changes: config fields to override. Raises
    CheckpointError for a hyper-parameter that is not covered, ValueError for a file of another
    program.
    """
    theirs = (content.get("hyper_parameters") or {}) if isinstance(content, dict) else {}
    keys = content.keys() if isinstance(content, dict) else ()
    theirs = vars(theirs) if isinstance(theirs, Stub) else theirs          # a Namespace
    if {"model", "ema", "scheduler", "config"} <= set(keys):
        return drift_se(content, changes)
    if "ode" in theirs and "ema" in keys:
        return mean_flow_se(content, changes)
    if "sde" in theirs and "ema" in keys:
        # ROSE-CD's distilled model has the wrapper of its teacher, but its input is not scaled.
        distilled = theirs.get("loss_type") == "precond_denoiser" and theirs.get("c_in") == "1"
        return consistency_model(content, changes) if distilled else score_sde(content, changes)
    weights = content.get("state_dict") or content if keys else {}
    if any(str(name).endswith("layers.0.full.weight") for name in weights):
        return separator(weights, changes)
    if {"model", "optimizer", "step"} <= set(keys):
        raise ValueError("the state of a training; use best.safetensors or last.safetensors "
                         "beside it")
    raise ValueError("not a checkpoint of a supported program: sgmse, sgmse-bbed, sgmse_crp, "
                     "ROSE-CD, MeanFlowSE, DriftSE, NBSS")


def score_sde(checkpoint, changes):
    """sgmse, sgmse-bbed, sgmse_crp, or the teacher of ROSE-CD."""
    model = sgmse.ScoreSDE(score_config(checkpoint["hyper_parameters"], **changes))
    model.net = averaged_network(model.net, checkpoint)
    return model


def score_config(theirs, **changes):
    """sgmse.Config of a released checkpoint's hyper-parameters, of any of their versions."""
    check_supported(theirs, backbone=("ncsnpp", "ncsnpp_v2"), output_scale=("time",), sr=(16000,),
                    sde=("ouve", "bbed", "bbve", "sbve"), T_sampling=(0.999,), window=("hann",),
                    transform_type=("exponent",), normalize=("noisy",), centered=(True,))
    version = {"ncsnpp": 1, "ncsnpp_v2": 2}[theirs["backbone"]]
    names = NETWORK | SPECTROGRAM | {name: name
                                     for name in ("t_eps", "N", "fourier_scale", "l1_weight",
                                                  "pesq_weight")}
    ours = dict(sde=theirs["sde"], version=version)
    if version == 2:
        names |= dict(objective="loss_type", weighting="loss_weighting")
        names |= {name: name
                  for name in ("network_scaling", "c_in", "c_out", "c_skip", "sigma_data")}
        ours |= dict(pad_mode="reflect")
    # Older files also have an `sde_n`, which never was the number of steps of a sampler.
    if theirs["sde"] == "ouve":
        names |= dict(theta="theta", sigma_min="sigma_min", sigma_max="sigma_max")
    elif theirs["sde"] == "bbed":
        names |= dict(k="k", c="theta")
    elif theirs["sde"] == "bbve":                        # an older name of BBED
        low, high = theirs["sigma_min"], theirs["sigma_max"]
        ours |= dict(sde="bbed", k=high / low, c=theirs["theta"] * low ** 2)
    else:
        names |= dict(k="k", c="c")
        ours |= dict(sampler=f"bridge_{theirs.get('sampler_type', 'ode')}")
    if theirs.get("inference_N"):                        # CRP
        names |= dict(N="inference_N", start="inference_start")
        ours |= dict(sampler="em")
    return sgmse.Config(**renamed(theirs, names) | ours | changes)


def consistency_model(checkpoint, changes):
    """The distilled model of ROSE-CD."""
    theirs = checkpoint["hyper_parameters"]
    check_supported(theirs, c_out=("edm",), c_skip=("edm",), network_scaling=("none",),
                    sde=("ouve",))
    shared = {field.name for field in dataclasses.fields(consistency.Config)} - {"N", "snr"}
    config = {name: value for name, value in vars(score_config(theirs)).items() if name in shared}
    config = config | dict(solver="renoise") | changes
    model = consistency.ConsistencyModel(consistency.Config(**config))
    model.net = averaged_network(model.net, checkpoint)
    return model


def mean_flow_se(checkpoint, changes):
    """MeanFlowSE."""
    theirs = checkpoint["hyper_parameters"]
    check_supported(theirs, ode=("flowmatching",), backbone=("ncsnpp",), sr=(16000,),
                    sigma_min=(0.0,),
                    window=("hann",), transform_type=("exponent",), normalize=("noisy",))
    names = NETWORK | SPECTROGRAM | dict(sigma_max="sigma_max", t_eps="t_eps",
                                         c="mf_first_order_coef",
                                         fourier_scale="fourier_scale")
    config = meanflow.PRESETS["meanflowse"] | renamed(theirs, names) | changes
    model = meanflow.MeanFlowCorrector(meanflow.Config(**config))
    model.net = averaged_network(model.net, checkpoint)
    return model


def separator(weights, changes):
    """SpatialNet of NBSS, which is then the whole model."""
    sizes = nets.SpatialNet.official_sizes(weights)
    check_supported(sizes, bins=(257,), layers=(8,), width=(96,), hidden=(192,), squeezed=(8,),
                    groups=(8,))
    config = dict(num_mics=sizes["num_mics"], num_speakers=sizes["num_speakers"],
                  separator="train") | changes
    model = meanflow.MeanFlowCorrector(meanflow.Config(**config))
    model.separator = meanflow.Separator.from_official(weights, **sizes)
    return model


def drift_se(checkpoint, changes):
    """DriftSE."""
    theirs, weights = checkpoint["config"], checkpoint["ema"]
    check_supported(theirs, sr=(16000,), window=("hann",), transform_type=("exponent",))
    signals = weights["all_modules.0.weight"].shape[1] // 2  # complex signals into the first layer
    config = renamed(theirs, NETWORK | SPECTROGRAM) | dict(conditional=signals == 2)
    if theirs.get("train_add_gaussian"):
        config["sigma"] = 0.01                           # at inference, by their program
    model = drift.DriftSE(drift.Config(**config | changes))
    model.net = nets.NCSNpp.from_official(weights, **model.net.config)
    return model


def check_supported(theirs, **accepted):
    """Raises CheckpointError, by name, for a hyper-parameter without one of the accepted values."""
    for key, values in accepted.items():
        if theirs.get(key) is not None and theirs[key] not in values:
            raise CheckpointError(f"{key} {theirs[key]} is not covered, only "
                                  f"{', '.join(map(str, values))}")


def renamed(theirs, names):
    """{our name: value} of the hyper-parameters that are there; names: {ours: theirs}."""
    values = {ours: theirs[name] for ours, name in names.items() if theirs.get(name) is not None}
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value
            for name, value in values.items()}


def averaged_network(net, checkpoint):
    """`net`, an NCSNpp, with a Lightning checkpoint's averaged weights, in official order.

    Raises CheckpointError for the weights of another network.
    """
    names = [official for official, _ in net.official_names()]
    average = checkpoint["ema"]["shadow_params"]
    if len(average) != len(names):
        raise CheckpointError(f"the checkpoint averages {len(average)} tensors; its "
                              f"hyper-parameters describe a network of {len(names)}")
    return type(net).from_official(dict(zip(names, average)), **net.config)
