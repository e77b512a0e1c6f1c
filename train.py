"""The training loop, checkpoints, and what a distilled model needs of its teacher.

    fit                 the loop: gradient, clip, Adam, average; resumes and saves by itself
    EMA                 average of the weights, with the reference's warm-up
    save_checkpoint     averaged weights and config as .safetensors;   load_checkpoint   the model again
    Teacher             a trained model, frozen

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

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import sys
import time
import typing
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

import data

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
    method released: released.py finds out whose it is.
    Method: its class or another of the same file, as the checkpoint says; by default any of the files beside this one.
    partly: what has another name or shape in the file starts afresh, with a warning that names it.
    changes: config fields to override. Raises CheckpointError, ValueError for changes that do not exist.
    """
    path = checkpoint_path(path)
    if zipfile.is_zipfile(path):                         # a torch.save file
        import released                                  # knows the methods, which import this file
        content = read_pickle(path)
        try:
            method = released.load(content, **changes).eval()
            chosen(Method, type(method).__module__, type(method).__name__)
            return method
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


def pick_device(name):
    """The device of that name; auto: cuda where there is one. Raises ValueError for one that is not there."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: not to be had on this machine ({one_line(error)}). cpu always is") from None
    return device


class Teacher:
    """A trained model, frozen, that a student learns from; it follows the data to their
    device.

    Not a module: its weights belong to no checkpoint of the student, whose config keeps the
    `record` of it: its file's name and the start of that file's SHA-256,
    NAME@0123456789abcdef. path: a file, the name of one in pretrained/, or such a record.
    Raises ValueError.
    """

    def __init__(self, path, Method=None):
        name = path[:-17] if is_record(path) else path
        try:
            self.model = load_checkpoint(name, Method).requires_grad_(False)
        except CheckpointError as error:
            raise ValueError(f"--teacher {path}: {error}") from None
        digest = hashlib.sha256(checkpoint_path(name).read_bytes()).hexdigest()[:16]
        self.record = f"{Path(name).name}@{digest}"
        if is_record(path) and path != self.record:
            raise ValueError(f"the teacher was {path}, and {name} here is {self.record}: "
                             "give its file with --teacher")

    def on(self, device):
        """The model, on this device."""
        return self.model.to(device)


def is_record(teacher):
    """Whether a config's `teacher` is the record of an earlier training, given by nobody
    now.
    """
    return re.fullmatch(r".+@[0-9a-f]{16}", teacher) is not None
