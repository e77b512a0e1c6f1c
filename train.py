"""The training loop, checkpoints, and what a distilled model needs of its teacher.

    Method              base of the methods and their contract
    fit                 the loop: gradient, clip, Adam, average; resumes and saves by itself
    EMA                 average of the weights, with the reference's warm-up
    save_checkpoint     averaged weights and config as .safetensors
    load_checkpoint     the model of such a file
    Teacher             a trained model, frozen

The class Method states what a method has to offer.

Every random number of step n comes from a generator seeded with (seed, n, rank): a run that was
killed and resumed gives bit for bit the weights of one that was not, on the same machine with the
same number of threads; on a GPU, whose sums have no fixed order, almost the same.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import random
import re
import signal
import sys
import threading
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

import data
import nets
from nets import Count, Fraction, Weight

HERE = Path(__file__).resolve().parent


@dataclass
class TrainConfig(data.Augmentation):
    """Constants of a training. Annotated gives the interval of accepted values."""
    data: str = ""  # VoiceBank-DEMAND, {train,valid}/{clean,noisy} or {train,valid}/{speech,noise}
    out: str = ""                    # folder of the run; a run that is there is resumed
    init: str = ""  # checkpoint to start from: its weights and, unless given here, its constants
    init_partial: bool = False       # load only tensors of --init whose name and shape match
    steps: Count = 58000  # updates of the weights
    minutes: Weight = 0.0  # largest duration of the training; 0: --steps alone ends it
    batch_size: Count = 8  # crops per process and backward pass
    accumulate: Count = 1  # backward passes per update
    lr: Weight = 1e-4  # learning rate of AdamW
    lr_warmup: Annotated[int, "[0, inf)"] = 0  # steps over which the learning rate rises from 0
    lr_decay: Fraction = 0.0  # last fraction of the training, over which it falls to a tenth
    weight_decay: Weight = 0.0  # of AdamW; with 0 it is Adam
    betas: Annotated[tuple, "[0, 1)"] = (0.9, 0.999)  # of AdamW: gradient and its square
    ema: Annotated[float, "[0, 1)"] = 0.999  # decay of the averaged weights
    clip: Weight = 0.0  # largest norm of the gradient; 0: no limit
    seed: Annotated[int, "[0, inf)"] = 0  # of weights, crops and noise
    device: str = "auto"             # cpu, cuda or cuda:1; auto: cuda if available
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # of the network; auto: bf16 on CUDA
    compile: bool = False            # torch.compile the network: minutes at the start, faster steps
    workers: Annotated[int, "[0, inf)"] = 4  # processes that cut crops for a GPU
    valid_every: Annotated[int, "[0, inf)"] = 1000  # steps between validations; 0: never
    valid_files: Count = 20  # recordings to enhance and score
    save_every: Weight = 60.0  # seconds between checkpoints
    snrs: Annotated[tuple, "(-inf, inf)"] = (0.0, 5.0, 10.0, 15.0)  # dB, of mixtures
    num_crops: Annotated[int, "[0, inf)"] = 0  # size of a fixed training set; 0: every crop is new
    rooms: Annotated[int, "[0, inf)"] = 0  # simulated; 0: none, or 200 for arrays and speakers
    room_cache: str = ""  # folder of their impulse responses (default: rooms, beside the run)
    unpaired: str = ""  # folder of clean speech that replaces the clean references (drift.py)

    def __post_init__(self):
        nets.check_fields(self)
        if len(self.betas) != 2:
            raise ValueError(f"--betas: expected two numbers; got {len(self.betas)}")

    def identity(self, world=1):
        """Settings that a resumed run must have in common with the interrupted one."""
        names = (*(field.name for field in dataclasses.fields(data.Augmentation)), "snrs", "rooms",
                 "num_crops", "init",
                 "init_partial", "batch_size", "accumulate", "seed")
        return {name: getattr(self, name) for name in names} | {"processes": world}


# ---------------------------------------------------------------------------------- the contract

class Method(torch.nn.Module):
    """Base of all methods: a network between two spectrograms. Subclass it to add your own.

    | a method has           | what it is                                                       |
    |------------------------|------------------------------------------------------------------|
    | Config                 | frozen dataclass on nets.NetworkConfig and SpectrogramConfig; a  |
    |                        | comment on the line of each field is its help                    |
    | presets                | {name: fields that differ}, with "paper"                         |
    | training               | {preset: fields of TrainConfig that differ}                      |
    | inference              | names of the fields that may change after training               |
    | __init__(config)       | super().__init__(config), then self.net = self.network(...)      |
    | loss(batch)            | clean, noisy waves (B, L) -> (scalar, dict of scalars to log)    |
    | sample(y)              | noisy spectrogram, complex (B, 1, F, T) -> clean                |
    | evaluations()          | network evaluations of it; default: config.N, or 1               |
    | prepare(fresh)         | optional, before training; fresh: not from --init                |
    | needs_pairs            | False where clean references of other recordings will do         |
    | options                | of commands.OPTIONAL, the flags of train that it has             |
    | num_mics, num_speakers | where not 1: waves (B, M, L) in, (B, S, L) out                   |

    It finds here: spectrogram, num_samples of a training crop, calls (network evaluations so
    far), and in training ema (EMA), progress (fraction done, 0 to 1), store (folder for results
    on a fixed training set, or None).
    """

    training, inference, options = {}, (), ()
    needs_pairs, num_mics, num_speakers = True, 1, 1

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.spectrogram = data.Spectrogram(config.n_fft, config.hop_length, config.exponent,
                                            config.factor)
        self.num_samples = self.spectrogram.samples(config.num_frames)
        self.calls, self.ema, self.progress, self.store, self.teacher = 0, None, 1.0, None, None
        self.measured_gain = None

    def network(self, in_channels=2, **options):
        """NCSNpp of the config's sizes; options: num_times, version, ..."""
        config = self.config
        if hasattr(config, "fourier_scale"):
            options["fourier_scale"] = config.fourier_scale
        return nets.NCSNpp(in_channels, 1, config.width, config.channel_mults,
                           config.num_res_blocks, config.attention_resolutions,
                           image_size=config.n_fft // 2 + 1, **options)

    def spectra(self, waves):
        """Spectrograms, complex (B, 1, F, T), of several waves (B, L)."""
        return [self.spectrogram(wave)[:, None] for wave in waves]

    def wave(self, spec):
        """The wave (B, L) of a training crop's spectrogram (B, 1, F, T)."""
        return self.spectrogram.inverse(spec[:, 0], self.spectrogram.samples(spec.shape[-1]))

    def track_gain(self, gain):
        """Call in a loss that ignores gain; after_update averages it in the buffer `gain`."""
        self.measured_gain = gain.detach()

    def after_update(self):
        """Called by fit after each update of the weights: an average over some 100 steps."""
        if self.measured_gain is not None:
            self.gain = self.gain.lerp(self.measured_gain, 0.01)

    def evaluations(self):
        """Network evaluations of a window."""
        return getattr(self.config, "N", 1)

    @torch.no_grad()
    def enhance(self, wave, peak=None):
        """Noisy (B, L) in [-1, 1] at 16 kHz -> enhanced (B, L); see data.enhance_normalised.

        peak (B, 1): of the whole recording, where the wave is a window of it.
        """
        return data.enhance_normalised(self.enhance_wave, wave, self.config.normalize, peak)

    def enhance_wave(self, wave):
        """The same at level 1."""
        return data.in_spectrogram(self.sample, wave, self.spectrogram, self.net.multiple,
                                   self.config.pad_mode)


def check_method(Method):
    """Raises TypeError, before any training, for a class that lacks part of the contract."""
    missing = [name for name in ("Config", "presets", "loss", "sample")
               if not hasattr(Method, name)]
    if missing:
        raise TypeError(f"{Method.__name__} lacks {', '.join(missing)}; see train.Method")
    if "paper" not in Method.presets:
        raise TypeError(f"{Method.__name__}.presets lacks 'paper'; see train.Method")
    lacking = [field.name for field in dataclasses.fields(Method.Config)
               if field.name not in comments(Method.Config)]
    if lacking:
        raise TypeError("a comment on its line is the help of a field; "
                        f"{Method.__name__}.Config has none for {', '.join(lacking)}")


@functools.lru_cache
def comments(cls):
    """{field: comment on its line} of a dataclass and its bases."""
    source = "".join(inspect.getsource(part) for part in reversed(cls.__mro__[:-1]))
    source = re.sub(r",\n +", ", ", source)              # an annotation may be broken
    return dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", source, re.M))


# ------------------------------------------------------------------------------------ the loop

def fit(method, batches, config, resume=None, record=None):
    """Train: yields (step, parts to log) after each update; steps count from 1.

    batches: iterator of what method.loss takes, from the resumed step on. config: a TrainConfig;
    with an empty `out` nothing is written. resume: content of a last.pt, record: a dictionary to
    store in it. last.pt is written every config.save_every seconds and at the end, always before
    an update and after its gradient: it holds no weights whose next gradient is not finite.

    The caller validates and logs between two steps, so that a killed validation is repeated:
    last.pt is older. Ctrl-C ends the training between two steps, with last.pt written. A step whose
    gradient is not finite is skipped; ten in a row raise FloatingPointError.
    """
    run = Run(method, config, resume)
    loss = distributed(method)
    method.train()
    set_precision(method, torch.bfloat16 if config.precision == "bf16" else None)
    for step in range(run.step + 1, config.steps + 2):
        method.progress = run.progress                   # for a loss with a schedule
        seed_everything(config.seed, step, run.rank)
        with delayed_interrupt() as interrupts:
            value, parts = backward(loss, batches, config)
            norm = torch.nn.utils.clip_grad_norm_(run.weights, config.clip or float("inf"))
            if norm.isfinite():
                run.save(record, now=run.progress >= 1 or interrupts)
            if run.progress >= 1 or interrupts:
                run.opt.zero_grad()
                break
            run.update(step, value, norm)
            method.progress = run.progress
        yield step, {"loss": value.detach(), "gradient": norm, **parts}
    set_precision(method, None)
    if interrupts:
        raise KeyboardInterrupt


def set_precision(method, dtype):
    """Set the precision of a method's and its teacher's networks: a dtype, or None for the
    weights'.
    """
    teacher = getattr(method, "teacher", None)
    for module in (*method.modules(), *(teacher.model.modules() if teacher else ())):
        if hasattr(module, "precision"):
            module.precision = dtype


def backward(loss, batches, config):
    """Adds the gradient of a step's batches. Returns the last loss and its parts."""
    for micro in range(config.accumulate):
        last = micro + 1 == config.accumulate
        with contextlib.nullcontext() if last or not dist.is_initialized() else loss.no_sync():
            value, parts = loss(next(batches))
            (value / config.accumulate).backward()
    return value, parts


class Run:
    """The state of a training: optimiser, averaged weights, steps, clock."""

    def __init__(self, method, config, resume=None):
        self.method, self.config, self.step, self.seconds, self.bad = method, config, 0, 0.0, 0
        self.rank, self.world = (dist.get_rank(),
                                 dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.weights = [p for p in method.parameters() if p.requires_grad]
        self.opt = torch.optim.AdamW(self.weights, config.lr, config.betas,
                                     weight_decay=config.weight_decay)
        method.ema = self.ema = EMA(method, config.ema)  # for a loss with a target network
        if resume:
            method.load_state_dict(resume["model"])
            self.ema.load_state_dict(resume["ema"])
            group = {name: self.opt.param_groups[0][name]
                     for name in ("lr", "betas", "weight_decay")}
            self.opt.load_state_dict(resume["optimizer"])
            self.opt.param_groups[0] |= group            # the command's, which may have changed
            self.step, self.seconds = resume["step"], resume["seconds"]
        self.started, self.saved = time.monotonic() - self.seconds, time.monotonic()
        self.progress = self.measure()

    def measure(self):
        """progress_of, by the clock of one process for all."""
        progress = progress_of(self.step, self.seconds, self.config)
        if self.config.minutes and dist.is_initialized():
            shared = torch.tensor(progress, device=self.weights[0].device)
            dist.broadcast(shared, 0)
            progress = shared.item()
        return progress

    def update(self, step, value, norm):
        """One step of the optimiser and of the average, unless the gradient is not finite."""
        if norm.isfinite():
            self.opt.param_groups[0]["lr"] = learning_rate(step, self.progress, self.config)
            self.opt.step()
            self.ema.update()
            getattr(self.method, "after_update", lambda: None)()
            self.bad = 0
        else:
            self.bad += 1
            warnings.warn(f"step {step}: loss {value.item():.4g}, gradient not finite; the "
                          "weights stay as they were")
        self.opt.zero_grad()
        if self.bad == 10:
            last = Path(self.config.out) / "last.pt"
            then = f"continue from {last}" if self.config.out and last.exists() else "start again"
            raise FloatingPointError("ten steps in a row without a finite gradient, up to step "
                                     f"{step}. Lower --lr, set --clip 1 or --precision fp32, and "
                                     f"{then}")
        self.step, self.seconds = step, time.monotonic() - self.started
        self.progress = self.measure()

    def save(self, record, now):
        """Write last.pt if it is due: the state before an update with a finite gradient."""
        due = now or time.monotonic() - self.saved > self.config.save_every
        if due and self.config.out and self.rank == 0 and self.step:
            state = {"step": self.step, "seconds": self.seconds, "model": self.method.state_dict(),
                     "ema": self.ema.state_dict(), "optimizer": self.opt.state_dict(),
                     "config": dataclasses.asdict(self.method.config), "run": record or {}}
            write_checkpoint(Path(self.config.out) / "last.pt",
                             lambda part: torch.save(state, part))
            self.saved = time.monotonic()


class Loss(torch.nn.Module):
    """method.loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        return self.method.loss(batch)


def distributed(method):
    """method.loss, with gradients averaged over the processes of torchrun."""
    if not dist.is_initialized():
        return method.loss
    device = next(method.parameters()).device
    return torch.nn.parallel.DistributedDataParallel(Loss(method), [device]
                                                     if device.type == "cuda" else None)


@contextlib.contextmanager
def delayed_interrupt():
    """Collect Ctrl-C in a list, so that no update stays half done; a second one interrupts."""
    interrupts = []

    def note(*_):
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(True)

    if threading.current_thread() is not threading.main_thread():
        yield interrupts                                 # only the main thread receives signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def progress_of(step, seconds, config):
    """Fraction of the training that is done, by steps or by the clock, whichever is further."""
    return max(step / config.steps, seconds / (60 * config.minutes) if config.minutes else 0)


def learning_rate(step, progress, config):
    """Learning rate of a step, counted from 1; progress: the fraction done before it."""
    rise = min(1, step / config.lr_warmup) if config.lr_warmup else 1
    fall = 10 ** -max(0, (progress - 1) / config.lr_decay + 1) if config.lr_decay else 1
    return config.lr * rise * fall


def refuse_changes(state, config, record, path):
    """Raises ValueError if settings or corpus of a resumed run differ from those in last.pt."""
    theirs, ours = state["config"] | state["run"], dataclasses.asdict(config) | record
    changed = [f"{name} {theirs.get(name)} -> {value}" for name, value in ours.items()
               if theirs.get(name) != value]
    if changed:
        raise ValueError(f"{path} is a run with other settings ({', '.join(changed)}): choose "
                         "another --out, or start from its weights with --init")


def seed_everything(seed, step=0, rank=0):
    """Seed torch, numpy and random with one number made of the three."""
    mixed = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


class EMA:
    """Exponential moving average of a module's trainable parameters.

    The decay of update n is min(decay, (1 + n) / (10 + n)), as in the reference: the start is soon
    forgotten.
    """

    def __init__(self, module, decay=0.999):
        self.module, self.decay, self.num_updates = module, decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()
                       if p.requires_grad}

    def parameters(self):
        return [p for p in self.module.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self):
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(list(self.shadow.values()), self.parameters(), 1 - decay)

    @contextlib.contextmanager
    def applied(self):
        """Context in which the module has the averaged weights."""
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


# -------------------------------------------------------------------------------- checkpoints


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file and says why."""


def one_line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__


def write_checkpoint(path, write):
    """write(temporary path), then rename: a kill leaves the old file or the new one. Raises
    OSError, with the old file kept, where the new one cannot be written.
    """
    try:
        with data.atomic_write(path) as part:
            write(part)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise OSError(f"{path} could not be written, the file before is kept ({one_line(error)}). "
                      "Is the disk full?"
                      ) from None


def save_checkpoint(path, method, dtype=None, **extra):
    """Weights and config of a method as .safetensors: enough to rebuild it, and no pickle.

    dtype: torch.float16 halves the file. extra: what else to note in the metadata (step, scores).
    """
    weights = {name: p.to(dtype or p.dtype).contiguous() for name, p in method.state_dict().items()}
    name = f"{Path(inspect.getfile(type(method))).stem}.{type(method).__name__}"
    metadata = {"method": name, "config": json.dumps(dataclasses.asdict(method.config)),
                "extra": json.dumps(extra)}
    write_checkpoint(path, lambda part: safetensors.torch.save_file(weights, part, metadata))


def load_checkpoint(path, Method=None, partial=False, **changes):
    """The method of a checkpoint, in evaluation mode, in float32.

    path: one of ours (.safetensors), the name of one in pretrained/ ("sgmse"), or a checkpoint that
    the authors of a method released: released.py finds out whose it is. Method: its class or
    another of the same file, as the checkpoint says; by default any of the files beside this one.
    partial: load only tensors whose name and shape match; a warning names the others. changes:
    config fields to override. Raises CheckpointError, ValueError for changes that do not exist.
    """
    path = checkpoint_path(path)
    if zipfile.is_zipfile(path):                         # a torch.save file
        import released                                  # knows the methods, which import this file
        content = read_pickle(path)
        try:
            method = released.load(content, **changes).eval()
            resolve_class(Method, type(method).__module__, type(method).__name__)
            return method
        except KeyError as error:
            raise CheckpointError(f"{path}: looks like a released checkpoint, but lacks "
                                  f"{error}") from None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from None
    metadata = read_metadata(path)
    weights = {name: p.float() for name, p in safetensors.torch.load_file(path).items()}
    broken = [name for name, p in weights.items() if not p.isfinite().all()]
    if broken:
        raise CheckpointError(f"{path}: '{broken[0]}' has values that are NaN or infinite")
    module, name = metadata["method"].split(".")
    try:
        Method = resolve_class(Method, module, name)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    known, config = {field.name for field in dataclasses.fields(Method.Config)}, metadata["config"]
    if unknown := changes.keys() - known:
        raise CheckpointError(f"{path}: a {name} has no {', '.join(sorted(unknown))}")
    if gone := config.keys() - known:
        raise CheckpointError(f"{path}: written by another version of {module}.py, with constants "
                              "that this one lacks: "
                              + ", ".join(f"{field} {config[field]}" for field in sorted(gone)))
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in (config | changes).items()}
    method = Method(Method.Config(**config))
    if partial:
        own = method.state_dict()
        weights = {name: p for name, p in weights.items() if name in own
                   and p.shape == own[name].shape}
        if fresh := sorted(own.keys() - weights.keys()):
            warnings.warn(f"{path} does not have these, they start afresh: {', '.join(fresh)}")
        weights = own | weights
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config "
                              f"({one_line(error)})") from None
    return method.eval()


def read_metadata(path):
    """{"method", "config", "extra"} of our checkpoint. Raises CheckpointError for other files."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({error}). Remove it "
                              "to go on") from None
    if "method" not in metadata:
        raise CheckpointError(f"{path}: weights without a config; only files written by this "
                              "project can be rebuilt")
    return {"method": metadata["method"],
            **{name: json.loads(metadata[name]) for name in ("config", "extra")}}


def checkpoint_path(path):
    """Path of a checkpoint: a file, or a name in pretrained/. Raises CheckpointError."""
    path, shipped = Path(path), HERE / "pretrained" / f"{path}.safetensors"
    if not path.is_file() and not shipped.is_file():
        raise CheckpointError(f"{path}: no such file. Train one, or give another")
    return path if path.is_file() else shipped


def resolve_class(Method, module, name):
    """The class `name` of module.py, or of Method's own module. Raises ValueError if it is
    elsewhere.
    """
    if Method is not None:
        if module != Path(inspect.getfile(Method)).stem:
            raise ValueError(f"holds a {name}; use python {module}.py, or give a {Method.__name__}")
        return getattr(sys.modules[Method.__module__], name)
    if not (module.isidentifier() and (HERE / f"{module}.py").is_file()):
        raise ValueError(f"written by a method '{module}' that is not in this folder")
    return getattr(importlib.import_module(module), name)


class Stub:
    """Stands for any class or function that a foreign pickle names: building one runs nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):                      # such as hyper-parameters in a Namespace
            self.__dict__.update(state)


def read_pickle(path):
    """A torch.save file as tensors and plain containers. Nothing that it names is imported or run.

    Raises CheckpointError for a file that is damaged or wants something that could run.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(Stub, name) for name in named]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: no checkpoint, a damaged one, or one that wants to run "
                              f"code ({one_line(error)})") from None


def pick_device(name):
    """The device of that name; auto: CUDA if available. Raises ValueError if it is absent."""
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available()
                              else "cpu")
        torch.empty(1, device=device).item()             # raises on "meta"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name}: not available on this machine ({one_line(error)}). "
                         "cpu always is") from None
    return device


class Teacher:
    """A trained, frozen model from which another learns.

    Not a module: its weights belong to no checkpoint of the student, whose config keeps the
    `record` of it: its file's name and the start of that file's SHA-256,
    NAME@0123456789abcdef. path: a file, the name of one in pretrained/, or such a record.
    Raises ValueError.
    """

    def __init__(self, path, Method=None):
        name = path[:-17] if is_fingerprint(path) else path
        try:
            self.model = load_checkpoint(name, Method).requires_grad_(False)
        except CheckpointError as error:
            raise ValueError(f"--teacher {path}: {error}") from None
        digest = hashlib.sha256(checkpoint_path(name).read_bytes()).hexdigest()[:16]
        self.record = f"{Path(name).name}@{digest}"
        if is_fingerprint(path) and path != self.record:
            raise ValueError(f"the teacher was {path}, and {name} here is {self.record}: "
                             "give its file with --teacher")

    def to(self, device):
        """The model, on this device."""
        return self.model.to(device)


def is_fingerprint(teacher):
    """Whether a config's `teacher` is the fingerprint kept from an earlier training."""
    return re.fullmatch(r".+@[0-9a-f]{16}", teacher) is not None
