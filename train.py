"""The training loop, the checkpoints and the command line that all methods share.

    fit                 the loop: gradient, clip, Adam, average; resumes and saves by itself
    EMA                 average of the weights, with the reference's warm-up
    save_checkpoint     averaged weights and config as .safetensors;   load_checkpoint   the model again
    enhance_file        one recording to another, in windows, so that memory stays flat
    main                train, enhance and evaluate for a method

A method is a module with a dataclass `Config`, a dictionary `presets` of its values, the names `inference` of those
fields that may change after training, `num_samples` of a training crop, loss(batch) -> (scalar, dict) and
enhance(wave (B, L), peak (B, 1) of the whole recording) -> wave; where it needs more than data, also prepare(fresh),
called before training;
where a preset is trained by other constants than the defaults here, also a dictionary `recipes` of these;
where its loss can do with clean speech of other recordings than the noisy ones', also needs_pairs = False; where it
hears several microphones or separates talkers, num_mics and num_speakers, with waves (B, M, L) in and (B, S, L) out.
In training it finds its average as `ema`, the share of the training that is done as `progress`, and as `store`, where
crops come again, a folder for what it need not compute twice (else None).

Every random number of step n comes from a generator seeded with (seed, n, rank): a run that was killed and resumed
gives bit for bit the weights of one that was not, on the same machine with the same number of threads; on a GPU, which
adds in any order, nearly.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import os
import random
import re
import shlex
import sys
import time
import typing
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import soxr
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import metrics

HERE = Path(__file__).resolve().parent


@dataclass
class TrainConfig:
    data: str = ""                   # VoiceBank-DEMAND, or {train,valid}/{clean,noisy}, or {train,valid}/{speech,noise}
    snrs: tuple = (0.0, 5.0, 10.0, 15.0)  # dB, drawn at random when speech and noise are mixed
    babble: float = 0.0              # share of these mixtures whose noise is six talkers of the speech at once
    made: float = 0.0                # share with rumble, hum, wind or bands of noise, made, beside the noise or alone
    pauses: float = 0.0              # share in which the speech pauses and the noise goes on
    coloured: float = 0.0            # share in which speech and noise pass an equaliser each
    rooms: int = 0                   # simulated rooms to mix in; 0: none, or 200 for several microphones or talkers
    room_cache: str = ""             # folder for what is simulated (default: rooms, beside the folder of the run)
    crops: int = 0                   # train on so many crops, again and again; 0: each is cut and mixed anew
    unpaired: str = ""               # folder of clean speech to learn from instead of that under the noise: drift.py
    out: str = ""                    # folder of the run; one that is there is resumed
    init: str = ""                   # checkpoint to start from: its weights and, unless given here, its constants
    partly: bool = False             # take of --init what fits by name and shape, as with another number of talkers
    steps: int = 58000               # updates of the weights
    minutes: float = 0.0             # stop after so many, as if the last step were done; 0: when --steps are
    batch_size: int = 8              # crops per process and backward pass
    accumulate: int = 1              # backward passes per update
    lr: float = 1e-4                 # of AdamW
    weight_decay: float = 0.0        # of AdamW; with 0 it is Adam
    betas: tuple = (0.9, 0.999)      # of AdamW: decay of its two averages, of the gradient and of its square
    lr_warmup: int = 0               # first steps, over which the learning rate rises from 0
    decay: float = 0.0               # last share of the training, over which the learning rate falls to a tenth
    ema: float = 0.999               # decay of the averaged weights
    clip: float = 0.0                # largest norm of the gradient; 0: no limit
    precision: typing.Literal["auto", "bf16", "fp32"] = "auto"  # of the network; auto: bf16 on CUDA, else fp32
    compile: bool = False            # torch.compile the network: minutes at the start, faster steps
    workers: int = 4                 # processes that cut crops, beside a GPU or of a corpus too large for the memory
    valid_every: int = 1000          # steps between validations; 0: never
    valid_files: int = 20            # recordings to enhance and score
    save_every: float = 60.0         # seconds between checkpoints
    seed: int = 0                    # of weights, crops and noise
    device: str = "auto"             # cpu, cuda or cuda:1; auto: cuda where there is one

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "valid_files"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be more than 0; got {getattr(self, name)}")
        for name in ("babble", "made", "pauses", "coloured", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is a share, 0 to 1; got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--betas are two numbers from 0 to 1; got {' '.join(map(str, self.betas))}")

    def identity(self, world=1):
        """What a run that is resumed must share with the one that was interrupted."""
        names = ("snrs", "babble", "made", "pauses", "coloured", "rooms", "crops", "init", "partly", "batch_size",
                 "accumulate", "seed")
        return {name: getattr(self, name) for name in names} | {
            "data": os.path.realpath(self.data), "unpaired": self.unpaired and os.path.realpath(self.unpaired),
            "processes": world}


# ------------------------------------------------------------------------------------------------ the loop

class Loss(torch.nn.Module):
    """method.loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        return self.method.loss(batch)


def fit(method, loader, config, ema=None, resumed=None):
    """Train: yield (step, what to log) after each update; step counts from 1.

    loader: function (number of the first batch, rank, world size) -> endless iterator of batches. Continues from
    config.out/last.pt where there is one, and writes it every config.save_every seconds, before each validation and at
    the end. resumed: called with the step that a run continues from, its weights in place. A step whose gradient is not
    finite is skipped; ten in a row raise FloatingPointError.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(method.parameters()).device
    weights = [p for p in method.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(weights, config.lr, config.betas, weight_decay=config.weight_decay)
    method.ema = ema = ema or EMA(method, config.ema)    # for a loss with a target network
    last = Path(config.out) / "last.pt"
    done, before = resume(last, method, opt, ema, config.identity(world)) if last.exists() else (0, 0.0)

    loss = Loss(method)
    if dist.is_initialized():
        loss = torch.nn.parallel.DistributedDataParallel(loss, device_ids=[device] if device.type == "cuda" else None)
    # Without its cache: there a call without gradient leaves copies of the weights that have none, for calls with one.
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False)
    batches = iter(loader(done * config.accumulate, rank, world))
    method.train()
    started = saved = time.monotonic()
    bad, progress = 0, progress_of(done, before, config)
    if done and resumed:
        resumed(done)
    for step in range(done + 1, config.steps + 1):
        if progress >= 1:
            break
        method.progress = progress                       # for a loss with a schedule
        opt.param_groups[0]["lr"] = learning_rate(step, progress, config)
        seed_everything(config.seed, step, rank)
        for micro in range(config.accumulate):
            wait = micro + 1 < config.accumulate and dist.is_initialized()
            with loss.no_sync() if wait else contextlib.nullcontext(), autocast:
                value, parts = loss(next(batches))
                (value / config.accumulate).backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, config.clip or float("inf"))
        if norm.isfinite():
            opt.step()
            ema.update()
            bad = 0
        else:
            bad += 1
            warnings.warn(f"step {step}: loss {value.item():.4g}, gradient not finite; the weights stay as they were")
            if bad == 10:
                raise FloatingPointError(f"ten steps in a row without a finite gradient, up to step {step}. Lower "
                                         "--lr, set --clip 1 or --precision fp32, and continue from the checkpoint")
        opt.zero_grad()
        seconds = before + time.monotonic() - started
        progress = progress_of(step, seconds, config)
        if config.minutes and dist.is_initialized():     # the clock of one for all
            shared = torch.tensor(progress, device=device)
            dist.broadcast(shared, 0)
            progress = shared.item()
        due = time.monotonic() - saved > config.save_every or progress >= 1
        if rank == 0 and (due or config.valid_every and step % config.valid_every == 0):
            state = {"step": step, "seconds": seconds, "model": method.state_dict(), "ema": ema.state_dict(),
                     "optimizer": opt.state_dict(), "config": dataclasses.asdict(method.config),
                     "run": config.identity(world)}
            save_atomically(last, lambda path: torch.save(state, path))
            saved = time.monotonic()
        yield step, {"loss": value.detach(), "gradient": norm, **parts}


def learning_rate(step, progress, config):
    """That of a step, counted from 1, when a share `progress` of the training was done before it."""
    rise = min(1, step / config.lr_warmup) if config.lr_warmup else 1
    fall = 10 ** -max(0, (progress - 1) / config.decay + 1) if config.decay else 1
    return config.lr * rise * fall


def progress_of(step, seconds, config):
    """Share of the training that is done, by the steps or by the clock, whichever is further."""
    return max(step / config.steps, seconds / (60 * config.minutes) if config.minutes else 0)


def resume(path, method, opt, ema, run):
    """Load last.pt into the three; returns how many steps it has done, and in how many seconds.

    run: see TrainConfig.identity. Raises ValueError for a run with other settings.
    """
    state = read_pickle(path)
    theirs, ours = state["config"] | state.get("run", {}), dataclasses.asdict(method.config) | run
    changed = [f"{k} {theirs[k]} -> {v}" for k, v in ours.items() if k in theirs and theirs[k] != v]
    if changed:
        raise ValueError(f"{path} is a run with other settings ({', '.join(changed)}): choose another --out, or give "
                         "--init its weights")
    method.load_state_dict(state["model"])
    group = {name: opt.param_groups[0][name] for name in ("lr", "betas", "weight_decay")}
    opt.load_state_dict(state["optimizer"])
    opt.param_groups[0] |= group                         # the command's, which may have changed
    ema.load_state_dict(state["ema"])
    return state["step"], state.get("seconds", 0.0)


def seed_everything(seed, step=0, rank=0):
    """Seed torch, numpy and random with one number made of the three."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


class EMA:
    """Exponential moving average of a module's trainable parameters.

    The decay of update n is min(decay, (1 + n) / (10 + n)), as in the reference: the start is soon forgotten.
    """

    def __init__(self, module, decay=0.999):
        self.module, self.decay, self.num_updates = module, decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    def parameters(self):
        return [p for p in self.module.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self):
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.shadow.values()), self.parameters(), 1 - decay)

    @contextlib.contextmanager
    def applied(self):
        """Within it the module has the averaged weights; afterwards its own again, whatever happens."""
        with torch.no_grad():
            own = [p.clone() for p in self.parameters()]
            torch._foreach_copy_(self.parameters(), list(self.shadow.values()))
        try:
            yield self.module
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters(), own)

    def state_dict(self):
        return {"num_updates": self.num_updates, "shadow": self.shadow}

    def load_state_dict(self, state):
        self.num_updates = state["num_updates"]
        for name, p in self.shadow.items():
            p.copy_(state["shadow"][name])


# ------------------------------------------------------------------------------------------------ checkpoints

class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file and says why."""


def one_line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__


def save_atomically(path, write):
    """write(temporary path), flush it to the disk, rename it to `path`: a kill leaves the old file or the new one.

    Raises OSError, and leaves the old file, where the new one cannot be written.
    """
    try:
        with data.appearing(path) as part:
            write(part)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise OSError(f"{path} could not be written, what was there is kept ({one_line(error)})") from None


def save_checkpoint(path, method, dtype=None, **extra):
    """Weights and config of a method as .safetensors: enough to rebuild it, and no pickle.

    dtype: torch.float16 halves the file. extra: what else to note in the metadata (step, scores).
    """
    weights = {name: p.to(dtype or p.dtype).contiguous() for name, p in method.state_dict().items()}
    name = f"{Path(inspect.getfile(type(method))).stem}.{type(method).__name__}"
    metadata = {"method": name, "config": json.dumps(dataclasses.asdict(method.config)), "extra": json.dumps(extra)}
    save_atomically(path, lambda part: safetensors.torch.save_file(weights, part, metadata))


def load_checkpoint(path, Method=None, partly=False, **changes):
    """The method of a checkpoint, in evaluation mode, in float32.

    path: one of ours (.safetensors), the name of one in pretrained/ ("sgmse"), or a checkpoint that the authors of a
    method released: whose it is, `released` finds out.
    Method: its class or another of the same file, as the checkpoint says; by default any of the files beside this one.
    partly: what has another name or shape in the file starts afresh, with a warning that names it.
    changes: config fields to override. Raises CheckpointError, ValueError for changes that do not exist.
    """
    path = checkpoint_path(path)
    if zipfile.is_zipfile(path):                         # a torch.save file
        content = read_pickle(path)
        try:
            Method = chosen(Method, *released(content))
            return Method.from_official(content, **changes).eval()
        except KeyError as error:
            raise CheckpointError(f"{path}: looks like a released checkpoint, but lacks {error}") from None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({error})") from None
    if "method" not in metadata:
        raise CheckpointError(f"{path}: weights without a config; only files written by this project can be rebuilt")
    broken = [name for name, p in weights.items() if not p.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: '{broken[0]}' has values that are NaN or infinite")
    module, name = metadata["method"].split(".")
    try:
        Method = chosen(Method, module, name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    known, config = {field.name for field in dataclasses.fields(Method.Config)}, json.loads(metadata["config"])
    if unknown := changes.keys() - known:
        raise CheckpointError(f"{path}: a {name} has no {', '.join(sorted(unknown))}")
    if gone := config.keys() - known:
        raise CheckpointError(f"{path}: written by another version of {module}.py, with constants that this one lacks: "
                              + ", ".join(f"{field} {config[field]}" for field in sorted(gone)))
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in (config | changes).items()}
    method = Method(Method.Config(**config))
    if partly:
        own = method.state_dict()
        weights = {name: p for name, p in weights.items() if name in own and p.shape == own[name].shape}
        if fresh := sorted(own.keys() - weights.keys()):
            warnings.warn(f"{path} does not have these, they start afresh: {', '.join(fresh)}")
        weights = own | weights
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config ({one_line(error)})") from None
    return method.eval()


def checkpoint_path(path):
    """The file, or that of one in pretrained/ by its name. Raises CheckpointError where there is neither."""
    path, shipped = Path(path), HERE / "pretrained" / f"{path}.safetensors"
    if not path.is_file() and not shipped.is_file():
        raise CheckpointError(f"{path}: no such file. Train one, or give another")
    return path if path.is_file() else shipped


def chosen(Method, module, name):
    """The class `name` of module.py: beside Method, where that is given, which raises ValueError if it is elsewhere."""
    if Method is not None:
        if module != Path(inspect.getfile(Method)).stem:
            raise ValueError(f"holds a {name}; use python {module}.py, or give a {Method.__name__}")
        return getattr(sys.modules[Method.__module__], name)
    if not (module.isidentifier() and (HERE / f"{module}.py").is_file()):
        raise ValueError(f"written by a method '{module}' that is not in this folder")
    return getattr(importlib.import_module(module), name)


# ---- what the authors of the methods released ----

def released(content):
    """(file, class) of ours for a checkpoint that a method's authors released, told by what it holds.

    content: as read_pickle gives it. Raises ValueError for one of none of them.
    """
    if isinstance(content, dict):
        theirs, keys = content.get("hyper_parameters") or {}, content.keys()
        if {"model", "ema", "scheduler", "config"} <= keys:
            return "drift", "DriftSE"
        if "ode" in theirs and "ema" in keys:
            return "meanflow", "MeanFlowCorrector"
        if "sde" in theirs and "ema" in keys:
            # ROSE-CD's student has the wrapper of its teacher, but hears its input unscaled.
            student = theirs.get("loss_type") == "precond_denoiser" and theirs.get("c_in") == "1"
            return ("consistency", "ConsistencyModel") if student else ("sgmse", "ScoreSDE")
        if any(str(name).endswith("layers.0.full.weight") for name in content.get("state_dict") or content):
            return "meanflow", "MeanFlowCorrector"
        if {"model", "optimizer", "step"} <= keys:
            raise ValueError("the state of a training; use best.safetensors or last.safetensors beside it")
    raise ValueError("a pickle of none of the systems that are known here: sgmse, sgmse-bbed, sgmse_crp, ROSE-CD, "
                     "MeanFlowSE, DriftSE, NBSS")


def covered(theirs, **accepted):
    """Raises CheckpointError, with its name, for a hyper-parameter of another value than the accepted ones or none."""
    for key, values in accepted.items():
        if theirs.get(key) is not None and theirs[key] not in values:
            raise CheckpointError(f"{key} {theirs[key]} is not covered, only {', '.join(map(str, values))}")


def renamed(theirs, names):
    """{our name: value} of those hyper-parameters that are there; names: {ours: theirs}."""
    values = {ours: theirs[name] for ours, name in names.items() if theirs.get(name) is not None}
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in values.items()}


def averaged_network(net, checkpoint):
    """`net`, an NCSNpp, with the averaged weights of a Lightning checkpoint: a list, in the order of official_names.

    Raises CheckpointError where that is another network.
    """
    names, average = [official for official, _ in net.official_names()], checkpoint["ema"]["shadow_params"]
    if len(average) != len(names):
        raise CheckpointError(f"the checkpoint averages {len(average)} tensors; its hyper-parameters describe a "
                              f"network of {len(names)}")
    return type(net).from_official(dict(zip(names, average)), **net.config)


class Inert:
    """Stands for any class or function that a foreign pickle names: building one does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_pickle(path):
    """A torch.save file as tensors and plain containers. Nothing that it names is imported or run.

    Raises CheckpointError for a file that is damaged or wants something that could run.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(Inert, name) for name in named]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: no checkpoint, a damaged one, or one that wants to run code "
                              f"({one_line(error)})") from None


# ------------------------------------------------------------------------------------------------ enhancement

def windowed(enhance, blocks, window, context, fade):
    """Enhance a stream in overlapping windows: yields consecutive pieces of the output, float32 (C, n).

    enhance: function (C, n) -> (C, n), n <= window. blocks: iterator of (C, n) arrays. Of each window, `context`
    samples at an inner edge are thrown away, since there the network sees only one side; the next `fade` samples
    cross-fade with the neighbour. A stream of at most `window` samples is enhanced whole.
    """
    ramp = np.linspace(0, 1, fade + 2, dtype=np.float32)[1:-1]
    buffer, tail, last = next(blocks), None, False
    while not last:
        while buffer.shape[1] <= window and (block := next(blocks, None)) is not None:
            buffer = np.concatenate([buffer, block], axis=1)
        last = buffer.shape[1] <= window
        piece = enhance(buffer[:, :window])
        piece = piece[:, 0 if tail is None else context:None if last else -context]
        if tail is not None:
            piece[:, :fade] = ramp * piece[:, :fade] + (1 - ramp) * tail
        if not last:
            piece, tail = piece[:, :-fade], piece[:, -fade:]
        yield piece
        buffer = buffer[:, window - 2 * context - fade:]


def enhance_file(method, path, out, seed=0, window=30.0, progress=None):
    """Enhance a recording: same sample rate, length, channels and, for WAV and FLAC, sample format.

    Every channel is enhanced by itself, with the same noise; where the method hears several microphones or separates
    talkers, the channels are the microphones and `out` has one for each talker. window: seconds enhanced at once;
    memory does not grow with the length beyond it. progress: function called with the seconds of audio done. Returns
    the seconds of audio. Raises AudioError for an input that cannot be used; then, and when killed, `out` stays as it
    was.
    """
    path, out = Path(path), Path(out)
    info = data.audio_info(path)
    mics, talkers = channels(method)
    array = (mics, talkers) != (1, 1)
    if array and info.channels != mics:
        raise data.AudioError(f"{path}: has {info.channels} channel(s), and this checkpoint wants one for each of its "
                              f"{mics} microphone(s); use one that was trained for {info.channels}")
    channels_out = talkers if array else info.channels
    if out.exists() and out.samefile(path):
        raise data.AudioError(f"{path}: the output would overwrite the recording; choose another --out")
    peak = np.zeros(info.channels, np.float32)           # of the whole file, before anything is written
    samples = 0
    for block in data.read_blocks(path):
        peak = np.maximum(peak, np.abs(block).max(0, initial=0))
        samples += len(block)
    shortest = method.spectrogram.n_fft
    if samples < shortest:
        raise data.AudioError(f"{path}: {samples} samples at 16 kHz, shorter than one frame of {shortest}")

    device = next(method.parameters()).device
    peaks = torch.from_numpy(peak).to(device)[:, None]
    before = None                                        # the talkers at the end of the last window
    numbers = itertools.count()                          # of windows

    def enhance(wave):
        nonlocal before
        number = next(numbers)
        wave = torch.from_numpy(np.ascontiguousarray(wave)).to(device)
        if not array:
            outputs = []
            for channel, peak in zip(wave, peaks):
                seed_everything(seed, number)
                outputs.append(method.enhance(channel[None], peak[None]).float().cpu())
            return torch.cat(outputs).numpy()
        seed_everything(seed, number)
        waves = method.enhance(wave[None], peaks.amax(0, keepdim=True))[0].float().cpu()
        waves = waves if before is None else in_order(before, waves)
        before = waves[:, -2 * context - fade:]          # what the next window begins with
        return waves.numpy()

    second = data.SAMPLE_RATE
    size = int(window * second)
    # The network's norms take in the whole window, so that two windows never quite agree on a second: fade slowly.
    context = fade = min(second, size // 8)
    pieces = windowed(enhance, (block.T for block in data.read_blocks(path)), size, context, fade)
    back = None
    if info.samplerate != second:
        back = soxr.ResampleStream(second, info.samplerate, channels_out, dtype="float32", quality="HQ")
    format = data.FORMATS.get(out.suffix.lower(), out.suffix[1:].upper())
    lossless = info.format in (*data.LOSSLESS, "WAVEX") and format in data.LOSSLESS
    subtype = data.written_subtype(info, format) if lossless else None
    left = min(info.frames, -(-(samples + 1) * info.samplerate // second))         # some headers say a little too much
    with data.audio_writer(out, info.samplerate, channels_out, subtype, left) as writer:
        beyond = 0                                       # samples that a file of integers cannot hold
        for piece in pieces:
            if progress:
                progress(piece.shape[1] / second)
            piece = np.ascontiguousarray(piece.T)
            piece = piece if back is None else back.resample_chunk(piece)
            beyond += np.count_nonzero(np.abs(piece) > 1)
            writer.write(piece[:left])
            left -= len(piece[:left])
        if back is not None:
            piece = back.resample_chunk(np.zeros((0, channels_out), np.float32), last=True)[:left]
            writer.write(piece)
            left -= len(piece)
        writer.write(np.zeros((left, channels_out), np.float32))           # a resampler may end a sample early
        share = beyond / (info.frames * channels_out)
        if share > 0.01 and writer.subtype not in ("FLOAT", "DOUBLE"):
            warnings.warn(f"{out}: {share:.0%} of the samples were beyond full scale and are clipped. Unless the "
                          "recording is as loud, look at the checkpoint and its number of calls")
    return info.frames / info.samplerate


def channels(method):
    """(microphones it hears at once, talkers it separates): (1, 1) for a method that names none."""
    return getattr(method, "num_mics", 1), getattr(method, "num_speakers", 1)


def in_order(reference, talkers):
    """The rows of `talkers` (S, L) in the order most like `reference` (S, L'), by correlation over what both have."""
    length = min(reference.shape[1], talkers.shape[1])
    unit = lambda x: x[:, :length] / x[:, :length].norm(dim=1, keepdim=True).clamp(min=1e-8)
    likeness = unit(reference) @ unit(talkers).T         # (S, S)
    orders = itertools.permutations(range(len(talkers)))
    return talkers[list(max(orders, key=lambda order: sum(row[k] for row, k in zip(likeness, order))))]


def output_paths(inputs, folder):
    """Pairs (recording, where its enhanced version goes); folders keep their structure below `folder`.

    WAV, FLAC and other formats without loss are kept; others become FLAC. Raises FileNotFoundError for what does not
    exist, ValueError where an output would fall on an input or two would share a name.
    """
    folder, pairs = Path(folder), []
    for given in map(Path, inputs):
        if given.is_dir():
            if folder.resolve() == given.resolve():
                raise ValueError(f"--out {folder} is the input folder itself; choose another")
            root = folder if len(inputs) == 1 else folder / given.resolve().name
            inside = [p for p in data.list_audio(given) if folder.resolve() not in p.resolve().parents]
            pairs += [(p, root / p.relative_to(given)) for p in inside]
        elif given.is_file():
            pairs.append((given, folder / given.name))
        else:
            raise FileNotFoundError(f"no file or folder {given}")
    lossy = (".mp3", ".ogg", ".oga", ".opus")
    keep = [suffix for suffix in data.SUFFIXES if suffix not in lossy]
    pairs = [(p, out if out.suffix.lower() in keep else out.with_suffix(".flac")) for p, out in pairs]
    sources, seen = {p.resolve() for p, _ in pairs}, {}
    for p, out in pairs:
        if out.resolve() in sources:
            raise ValueError(f"{out} is one of the inputs; choose another --out")
        if seen.setdefault(out, p) != p:
            raise ValueError(f"{seen[out]} and {p} would both be written to {out}; enhance them in two runs")
    return pairs


# ------------------------------------------------------------------------------------------------ commands

def add_flags(parser, cls, only=None, defaults=None):
    """One flag per dataclass field, the inherited ones last; the comment on its line is the help.

    A Literal offers its choices and no others. only: names of the fields to offer. defaults: an object of the class,
    whose values the help shows. Only flags that are given reach the result.
    """
    source = "".join(inspect.getsource(part) for part in reversed(cls.__mro__[:-1]))
    comments = dict(re.findall(r"^    (\w+): [^#]*# (.*)$", source, re.M))
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name not in cls.__annotations__):
        if only is not None and field.name not in only:
            continue
        text, kind = comments[field.name], type(field.default)
        value = getattr(defaults, field.name, "")
        if value not in ("", ()) and "(default" not in text:
            value = " ".join(map(str, value)) if kind is tuple else value
            text += f" (default: {value})"
        options = dict(default=argparse.SUPPRESS, dest=field.name, help=text.replace("%", "%%"))
        if kind is bool:
            options |= dict(action=argparse.BooleanOptionalAction)
        elif kind is tuple:
            options |= dict(type=type(field.default[0]), nargs="*", metavar="X")
        elif choices := typing.get_args(field.type):
            options |= dict(type=kind, choices=choices)
        else:
            options |= dict(type=kind, metavar=kind.__name__.upper())
        names = dict.fromkeys((f"--{field.name.replace('_', '-')}", f"--{field.name}"))     # in order, each once
        parser.add_argument(*names, **options)


def as_flags(values):
    """{field: value} as it would be typed on a command line."""
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def given(args, cls):
    """The flags of `add_flags` that were on the command line, as a dictionary."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}


def pick_device(name):
    """The device of that name; auto: cuda where there is one. Raises ValueError for one that is not there."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: not to be had on this machine ({one_line(error)}). cpu always is") from None
    return device


def train_command(Method, args):
    recipe = {} if getattr(args, "init", "") else getattr(Method, "recipes", {}).get(args.preset, {})
    config = TrainConfig(**recipe | given(args, TrainConfig))
    config.out = config.out or f"runs/{Path(inspect.getfile(Method)).stem}"
    if not config.data:
        raise ValueError("give the training data with --data DIR; see --help")
    device, rank, world, store = join_processes(config)
    out, say = Path(config.out), print if rank == 0 else lambda *a, **k: None
    seed_everything(config.seed)
    method = build(Method, config, device, args.preset, given(args, Method.Config))
    dataset, valid = open_datasets(method, config, device)
    valid = valid if rank == 0 else None

    size = sum(p.numel() for p in method.parameters() if p.requires_grad)
    start = f"from {config.init}" if config.init else f"preset {args.preset}"
    say(f"{type(method).__name__}, {start}: {size:,} trainable parameters on {device}, {config.precision}; "
        f"{len(dataset)} recordings; {config.batch_size * config.accumulate * world} crops a step -> {config.out}")
    if (done := steps_done(out)) and rank == 0:
        say(f"continues at step {done} of {config.steps}")
    log = open_log(out) if rank == 0 else None
    ema = EMA(method, config.ema)

    def loader(step, rank, world):
        return data.batches(dataset, config.batch_size, step, rank, world, config.workers, config.crops)

    bar, smooth = tqdm(total=config.steps, unit="step", disable=rank > 0, mininterval=1), None
    bar.update(done)

    def validation(step):
        """Every so many steps, once each: a run that was killed in one has saved the step already."""
        if config.valid_every and step % config.valid_every == 0:
            if valid and not validated(out, step):
                validate_and_keep(method, ema, valid, config, step, log, bar.write)
            wait_for_rank_0(store, rank, f"validated {step}")

    for step, parts in fit(method, loader, config, ema, validation):
        bar.update(step - bar.n)
        if step % 50 == 0 or step == config.steps:
            values = {name: float(value) for name, value in parts.items()}
            smooth = values["loss"] if smooth is None else 0.9 * smooth + 0.1 * values["loss"]
            bar.set_postfix(loss=f"{smooth:.4g}")
            if log:
                log(step, values)
        validation(step)
    bar.close()
    if rank == 0:
        finish(method, ema, valid, config, log, say)
    for line in left_out(dataset.problems):
        say(line)
    if world > 1:
        dist.destroy_process_group()


def left_out(problems, named=5):
    """What a training could not use, a line for each of the most frequent: a Counter of problems, as note keeps it."""
    first, others = problems.most_common(named), problems.most_common()[named:]
    lines = [f"left out {count} x {problem}" for problem, count in first]
    if others:
        lines.append(f"left out {sum(count for _, count in others)} x {len(others)} others, each named when it came")
    return lines


def join_processes(config):
    """(device, rank, number of processes, their store), as torchrun started them; else one process without a store."""
    device, store = pick_device(config.device), None
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        store, rank, world = next(dist.rendezvous("env://"))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world)
    if config.precision == "auto":
        config.precision = "bf16" if device.type == "cuda" else "fp32"
    torch.set_float32_matmul_precision("high")
    return device, rank, world, store


def wait_for_rank_0(store, rank, event):
    """Returns when rank 0 has come here, however long it takes: at a collective operation the others would time out."""
    if store is None:
        return
    if rank == 0:
        store.set(event, "done")
    while not store.check([event]):
        time.sleep(0.2)


def build(Method, config, device, preset, changes):
    """The method to train: from --init, or from its preset. changes: fields of its Config."""
    if config.init:
        method = load_checkpoint(config.init, Method, config.partly, **changes)
    else:
        method = Method(Method.Config(**(Method.presets[preset] | changes)))
    if config.unpaired and getattr(method, "needs_pairs", True):
        raise ValueError("--unpaired: these losses compare with the clean recording of the same speech. Of the methods "
                         "here only drift.py can do without; its pesq, si_sdr, ccmse and magnitude weights must be 0")
    if hasattr(method, "prepare"):
        method.prepare(fresh=not config.init)
    method.store = Path(config.out).parent / "store" if config.crops else None
    if config.compile:
        method.net.compile(dynamic=False)                # changing shapes break inductor in some releases
    # Tensor cores want channels last; the backward pass of a CPU is a quarter slower with it.
    return method.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.contiguous_format)


def open_datasets(method, config, device):
    """(training crops, validation recordings or None)."""
    mics, talkers = channels(method)
    rooms = config.rooms or 200 * ((mics, talkers) != (1, 1))
    options = dict(snrs=config.snrs, babble=config.babble, num_samples=method.num_samples, seed=config.seed,
                   device=device, mics=mics, talkers=talkers, rooms=rooms,
                   room_cache=config.room_cache or Path(config.out).parent / "rooms")
    variety = dict(made=config.made, pauses=config.pauses, coloured=config.coloured,
                   normalize=method.config.normalize)
    if config.unpaired:
        dataset = data.UnpairedAudio(config.data, config.unpaired, "train", **variety, **options)
    else:
        dataset = data.open_data(config.data, "train", **variety, **options)
    try:
        options |= dict(device="cpu", seed=0, rooms=min(rooms, config.valid_files))
        return dataset, data.open_data(config.data, "valid", **options)
    except FileNotFoundError as error:
        warnings.warn(f"no validation: {error}")
        return dataset, None


def steps_done(out):
    """How many steps a run has done, by its last.pt; 0 where there is none."""
    last = Path(out) / "last.pt"
    return read_pickle(last)["step"] if last.exists() else 0


def validated(out, step):
    """Whether the log of a run has scores after that step."""
    log = Path(out) / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return any("pesq" in line for line in map(json.loads, lines) if line["step"] == step)


def validate_and_keep(method, ema, dataset, config, step, log, say):
    """Score the averaged weights; where they are the best of the run they become best.safetensors."""
    best = Path(config.out) / "best.safetensors"
    with ema.applied():
        method.eval()
        scores, audio, note = validate(method, dataset, config)
        method.train()
        if merit(scores) > best_so_far(best):
            save_checkpoint(best, method, step=step, **scores)
        log(step, scores, audio)                         # last: it says that all of this is done
        say(f"step {step}: " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()) + note)


def finish(method, ema, valid, config, log, say):
    """The last validation and last.safetensors, unless an earlier run of the same command has come so far."""
    last, step = Path(config.out) / "last.safetensors", steps_done(config.out)
    if notes_of(last).get("step") == step:
        say(f"already finished, after step {step}: {last}. More --steps or another --out train on")
        return
    if valid and config.valid_every and not validated(config.out, step):
        validate_and_keep(method, ema, valid, config, step, log, say)
    with ema.applied():
        save_checkpoint(last, method, step=step)


def merit(scores):
    """One number to choose a checkpoint by: 0.1 PESQ count as much as 0.02 ESTOI and 1 dB of SI-SDR."""
    return scores["pesq"] + 5 * scores["estoi"] + 0.1 * scores["si_sdr"]


def notes_of(path):
    """What save_checkpoint was told to note in a file; {} where there is no file."""
    if not path.is_file():
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["extra"])


def best_so_far(path):
    """`merit` of the best checkpoint of a run that is resumed."""
    notes = notes_of(path)
    return merit(notes) if notes else -float("inf")


def open_log(folder):
    """Function (step, scalars, waves by name) that appends to FOLDER/log.jsonl, and to TensorBoard where installed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    if path.exists():                                    # a kill can leave half a last line
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    try:
        from torch.utils.tensorboard import SummaryWriter
        board = SummaryWriter(folder)
    except ImportError:
        board = None

    def log(step, scalars, waves=()):
        values = {name: value if np.isfinite(value) else None for name, value in scalars.items()}  # JSON has no NaN
        with open(path, "a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time()), **values}) + "\n")
        if board:
            for name, value in scalars.items():
                board.add_scalar(name, value, step)
            for name, wave in dict(waves).items():
                board.add_audio(name, wave, step, data.SAMPLE_RATE)
    return log


def validate(method, dataset, config):
    """Enhance a few recordings, evenly spaced: (mean scores by name, waves by name, what to say about n)."""
    device = next(method.parameters()).device
    numbers = np.linspace(0, len(dataset) - 1, min(config.valid_files, len(dataset))).astype(int)
    pairs, waves = [], {}
    for number in numbers:
        name, clean, noisy = dataset.utterance(number)
        seed_everything(config.seed, 0)
        enhanced = method.enhance(noisy[None].to(device)).float().cpu()[0]
        if enhanced.ndim == 2:                           # talkers
            enhanced = in_order(clean, enhanced)
        pairs.append((f"{number} {name}", clean, enhanced))
        waves = waves or {name: wave if wave.ndim == 1 else wave[0]
                          for name, wave in (("clean", clean), ("noisy", noisy), ("enhanced", enhanced))}
    results = metrics.evaluate(pairs, ("pesq", "estoi", "si_sdr"), progress=False)
    note = f"  n {len(pairs)}" + "".join(f"; no score: {row['name']}: {row['error']}" for row in results.failed)
    return {name: results.mean(name) for name in ("pesq", "estoi", "si_sdr")}, waves, note


def load_for_use(Method, args):
    """The method of --checkpoint on --device."""
    return load_checkpoint(args.checkpoint, Method, **given(args, Method.Config)).to(pick_device(args.device))


def enhance_command(Method, args):
    method = load_for_use(Method, args)
    pairs = output_paths(args.inputs or [HERE / "tutorials" / "audio" / "noisy"], args.out)
    failed = enhance_all(method, pairs, args.seed, args.window)
    print(f"written to {args.out}")
    return failed


def enhance_all(method, pairs, seed, window):
    """Enhance (recording, output) pairs; returns the number of recordings that could not be."""
    if not 1 <= window < float("inf"):
        raise ValueError(f"--window is in seconds, 1 or more; got {window}")
    failures, seconds, calls, started = [], 0.0, method.calls, time.monotonic()
    total = 0.0
    for path, _ in pairs:
        with contextlib.suppress(data.AudioError):
            info = data.audio_info(path)
            total += info.frames / info.samplerate
    bar = tqdm(total=total, desc="enhancing", mininterval=1,
               bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]")

    def progress(done):
        bar.update(min(done, total - bar.n))             # rounding must not pass the total

    for path, out in pairs:
        try:
            with torch.inference_mode():
                seconds += enhance_file(method, path, out, seed, window, progress)
        except (data.AudioError, OSError) as error:
            failures.append(str(error))
    bar.close()
    elapsed = time.monotonic() - started
    if seconds:
        print(f"{len(pairs) - len(failures)} recordings, {seconds:.1f} s of audio in {elapsed:.1f} s: real-time factor "
              f"{elapsed / seconds:.3f}, {method.calls - calls} network calls")
    for failure in failures:
        print(f"not enhanced: {failure}", file=sys.stderr)
    return len(failures)


def evaluate_command(Method, args):
    metrics.name_weights(args)
    which = metrics.known(args.metrics.split(","))
    if args.every < 1 or args.first < 0:
        raise ValueError(f"--every is 1 or more, --first 0 or more; got {args.every} and {args.first}")
    try:
        clean, noisy = data.paired_paths(args.data, args.split)
    except FileNotFoundError:
        try:
            dataset = data.open_data(args.data, args.split)
        except FileNotFoundError as error:               # recordings alone, as in the blind set of the DNS challenge
            noisy = data.list_audio(data.real_recordings(args.data))
            clean, which = noisy, metrics.without_reference(which)
            print(f"{error}. So {len(noisy)} recordings are enhanced and scored without clean ones")
        else:                                            # speech and noise: mixed as for validation in training
            clean, noisy = data.write_mixtures(dataset, Path(args.out) / "mixtures", args.first, args.every)
    alone = clean is noisy
    method = load_for_use(Method, args)
    if args.first >= len(clean):
        raise ValueError(f"--first {args.first}: there are {len(clean)} files, counted from 0")
    chosen = slice(args.first, None, args.every)
    clean, noisy = clean[chosen], noisy[chosen]
    out, folder = Path(args.out), os.path.commonpath([path.parent for path in noisy])
    names = [str(path.relative_to(folder).with_suffix("")) for path in noisy]
    enhanced = [out / "enhanced" / f"{name}.wav" for name in names]
    for path in enhanced:                                # of another checkpoint, they would be scored as this one's
        path.unlink(missing_ok=True)
    failed = enhance_all(method, list(zip(noisy, enhanced)), args.seed, args.window)
    if channels(method) != (1, 1) and not alone:
        heard = [out / "microphone0" / f"{name}.wav" for name in names]
        for *paths, out_path in zip(clean, noisy, heard, enhanced):
            if out_path.is_file():                       # what could not be enhanced is left to the scoring to name
                microphone_0(*paths)
                match_talkers(paths[0], out_path)
        noisy = heard
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in method.named_children()}
    print("parameters: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size))
    print(f"{len(names)} recordings of {args.data}, {args.split}")
    before = metrics.evaluate(zip(names, clean, noisy, noisy), which, args.workers)
    after = metrics.evaluate(zip(names, enhanced if alone else clean, enhanced, noisy), which, args.workers)
    after.save_csv(out / "scores.csv")
    for title, results in (("noisy", before), ("enhanced", after), ("enhanced - noisy", after.compare(before))):
        print(f"\n{title}\n{results.table()}")
    return failed + len(after.failed)


def microphone_0(clean, noisy, out):
    """What the first microphone of an array hears, once for each talker of `clean`, written to `out`; all are paths."""
    talkers, heard = (data.load_audio(path)[0] for path in (clean, noisy))
    data.save_audio(out, heard[:1].expand(len(talkers), -1), data.SAMPLE_RATE)


def match_talkers(clean, enhanced):
    """Puts the talkers of the file `enhanced` in the order of `clean`."""
    data.save_audio(enhanced, in_order(*(data.load_audio(path)[0] for path in (clean, enhanced))), data.SAMPLE_RATE)


def add_train(commands, name, Method, out, help):
    """A command `name` that trains a Method, by default in the folder `out`."""
    sub = commands.add_parser(name, help=help, description=help)
    sub.add_argument("--preset", choices=tuple(Method.presets), default="paper",
                     help="values of the method's constants (default: paper)")
    recipe = getattr(Method, "recipes", {}).get("paper", {})
    add_flags(sub.add_argument_group("training" + " (defaults of the preset paper)" * bool(recipe)), TrainConfig,
              defaults=TrainConfig(out=out, **recipe))
    add_flags(sub.add_argument_group("method (defaults of the preset paper)"), Method.Config, defaults=Method.Config())
    sub.set_defaults(run=functools.partial(train_command, Method), out=out)


def add_use(sub, Method, stem, out):
    """What enhance and evaluate have in common."""
    sub.add_argument("--out", default=out, help=f"folder to write to (default: {out})")
    names = ", ".join(path.stem for path in sorted((HERE / "pretrained").glob(f"{stem}*.safetensors")))
    sub.add_argument("--checkpoint", default=stem,
                     help=f"weights: a file, or the name of one in pretrained/: {names} (default: {stem})")
    sub.add_argument("--device", default="auto", help="cpu, cuda or cuda:1 (default: cuda where there is one)")
    sub.add_argument("--seed", type=int, default=0, help="of the noise that is drawn (default: 0)")
    sub.add_argument("--window", type=float, default=30, help="seconds enhanced at once (default: 30)")
    add_flags(sub.add_argument_group("method (defaults of the checkpoint)"), Method.Config, Method.inference)


def keep_memory():
    """Have the C library keep what tensors free, where it is glibc: otherwise the system clears pages at every layer.

    A quarter of a forward pass of the paper's network on two CPU cores. What is kept serves the next tensors.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)                              # M_MMAP_MAX: no block that goes back when it is freed
        libc.mallopt(-1, -1)                             # M_TRIM_THRESHOLD: nor the end of the heap


def main(Method):
    """The command line of a method: train, enhance, evaluate, and what Method.add_commands adds, if it has that.

    Exits 2 for a request that cannot be met.
    """
    for stream in (sys.stdout, sys.stderr):              # a file's name may be anything, a terminal ASCII alone
        stream.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    keep_memory()
    module = inspect.getmodule(Method)
    stem = Path(inspect.getfile(Method)).stem
    parser = argparse.ArgumentParser(description=(module.__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add_train(commands, "train", Method, f"runs/{stem}",
              "train on a folder of recordings; continues a run that was interrupted")
    if hasattr(Method, "add_commands"):
        Method.add_commands(commands)

    sub = commands.add_parser("enhance", help="clean recordings")
    sub.add_argument("inputs", nargs="*", metavar="FILE_OR_FOLDER",
                     help="recordings: WAV, FLAC, OGG, MP3, any rate, any channels (default: tutorials/audio/noisy)")
    add_use(sub, Method, stem, "enhanced")
    sub.set_defaults(run=functools.partial(enhance_command, Method))

    sub = commands.add_parser("evaluate", help="enhance a test set and score it")
    sub.add_argument("--data", required=True, help="folder with clean and noisy files, or speech and noise to mix, "
                     "as for train; or of noisy recordings alone, for scores without reference; for several "
                     "microphones or talkers, see python data.py --help")
    sub.add_argument("--split", default="test", choices=("train", "valid", "test"), help="(default: test)")
    sub.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    sub.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    sub.add_argument("--metrics", default="pesq,estoi,si_sdr", help="(default: pesq,estoi,si_sdr); see metrics.py")
    metrics.add_weights_flag(sub)
    sub.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that score (default: all cores)")
    add_use(sub, Method, stem, f"evaluated/{stem}")
    sub.set_defaults(run=functools.partial(evaluate_command, Method))

    args = parser.parse_args()
    try:
        failed = args.run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if failed else 0)
