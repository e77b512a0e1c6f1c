"""The command line that all methods share: train, enhance, evaluate.

    main               the commands of a method;   add_flags   a flag for each field of a dataclass
    enhance_file       one recording to another, in windows, so that memory stays flat
    validate           scores of a few recordings, while a method is trained
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import functools
import inspect
import itertools
import json
import math
import os
import re
import sys
import time
import typing
import warnings
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import metrics
import nets
import rooms
from train import (HERE, TrainConfig, check_method, comments, fit, load_checkpoint, pick_device,
                   progress_of, read_metadata,
                   read_pickle, refuse_changes, save_checkpoint, seed_everything)


# -------------------------------------------------------------------------------------- enhancement

def windowed(enhance, blocks, window, context, fade):
    """Enhance a stream in overlapping windows; yields pieces of the output, float32 (C, n).

    enhance: function (C, n) -> (C, n), n <= window. blocks: iterator of (C, n) arrays. Of each
    window, `context` samples at an inner edge are thrown away, since there the network sees only
    one side; the next `fade` samples cross-fade with the neighbour. A stream of at most `window`
    samples is enhanced whole.
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


def enhance_file(method, path, out, seed=0, window=30.0, progress=None, strict=False):
    """Enhance a recording: same sample rate, length, channels and, for WAV and FLAC, sample format.

    Every channel is enhanced by itself, with the same noise; if the method takes several
    microphones or separates speakers, the channels are the microphones and `out` has one for each
    speaker. window: seconds enhanced at once; memory does not grow with the length beyond it.
    progress: function called with the seconds of audio done. strict: whether a recording that lacks
    samples is refused, see data.read_blocks. Returns the seconds of audio. Raises AudioError for an
    input that cannot be used; then, and when killed, `out` stays as it was.
    """
    path, out = Path(path), Path(out)
    info = data.audio_info(path)
    mics, speakers = method.num_mics, method.num_speakers
    array = (mics, speakers) != (1, 1)
    if array and info.channels != mics:
        raise data.AudioError(f"{path}: has {info.channels} channel(s); this checkpoint takes one "
                              f"for each of its {mics} microphone(s). Use a checkpoint trained for "
                              f"{info.channels}")
    channels_out = speakers if array else info.channels
    if out.exists() and out.samefile(path):
        raise data.AudioError(f"{path}: the output would overwrite the recording; choose another "
                              "--out")
    peak = np.zeros(info.channels, np.float32)  # of the whole file, before anything is written
    samples = 0
    for block in data.read_blocks(path, strict=strict):
        peak = np.maximum(peak, np.abs(block).max(0, initial=0))
        samples += len(block)
    shortest = method.spectrogram.n_fft
    if samples < shortest:
        raise data.AudioError(f"{path}: {samples} samples at 16 kHz, shorter than one frame of "
                              f"{shortest}")

    device = next(method.parameters()).device
    peaks = torch.from_numpy(peak).to(device)[:, None]
    before = None  # the speakers at the end of the last window
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
    # The network's norms take in the whole window, so that two windows never quite agree on a
    # second: fade slowly.
    context = fade = min(second, size // 8)
    pieces = windowed(enhance, (block.T for block in data.read_blocks(path, strict=strict)), size,
                      context, fade)
    back = None
    if info.samplerate != second:
        back = soxr.ResampleStream(second, info.samplerate, channels_out, dtype="float32",
                                   quality="HQ")
    format = format_of(out)
    lossless = info.format in (*data.LOSSLESS, "WAVEX") and format in data.LOSSLESS
    subtype = data.written_subtype(info, format) if lossless else None
    frames = math.ceil(samples * info.samplerate / second)
    if abs(info.frames - frames) <= info.samplerate / second + 1:  # else the header does not know
        frames = info.frames
    left = frames
    with data.audio_writer(out, info.samplerate, channels_out, subtype, left) as writer:
        beyond = 0  # samples that a file of integers cannot hold
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
        # a resampler may end a sample early
        writer.write(np.zeros((left, channels_out), np.float32))
        fraction = beyond / (frames * channels_out)
        if fraction > 0.01 and writer.subtype not in ("FLOAT", "DOUBLE"):
            warnings.warn(f"{out}: {fraction:.0%} of the samples were beyond full scale and are "
                          "clipped. If the recording is not as loud, look at the checkpoint and "
                          "its number of network evaluations")
    return frames / info.samplerate


def in_order(reference, speakers):
    """The rows of `speakers` (S, L) in the order that correlates most with `reference` (S, L')."""
    length = min(reference.shape[1], speakers.shape[1])
    unit = lambda x: x[:, :length] / x[:, :length].norm(dim=1, keepdim=True).clamp(min=1e-8)
    likeness = unit(reference) @ unit(speakers).T         # (S, S)
    orders = itertools.permutations(range(len(speakers)))
    return speakers[list(max(orders,
                             key=lambda order: sum(row[k] for row, k in zip(likeness, order))))]


def format_of(path):
    """libsndfile's name of the format that a suffix means."""
    suffix = path.suffix.lower()
    return data.FORMATS.get(suffix, suffix[1:].upper())


def output_paths(inputs, folder):
    """Pairs (recording, output path); folders keep their structure below `folder`.

    WAV, FLAC and other formats without loss are kept; others become FLAC. Raises FileNotFoundError
    for a missing input, ValueError where an output would overwrite an input or another output.
    """
    folder, pairs = Path(folder), []
    for given in map(Path, inputs):
        if given.is_dir():
            if folder.resolve() == given.resolve():
                raise ValueError(f"--out {folder} is the input folder itself; choose another")
            root = folder if len(inputs) == 1 else folder / given.resolve().name
            inside = [p for p in data.list_audio(given)
                      if folder.resolve() not in p.resolve().parents]
            pairs += [(p, root / p.relative_to(given)) for p in inside]
        elif given.is_file():
            pairs.append((given, folder / given.name))
        else:
            raise FileNotFoundError(f"no file or folder {given}")
    pairs = [(p, out if format_of(out) in data.LOSSLESS else out.with_suffix(".flac"))
             for p, out in pairs]
    sources, seen = {p.resolve() for p, _ in pairs}, {}
    for p, out in pairs:
        if out.resolve() in sources:
            raise ValueError(f"{out} is one of the inputs; choose another --out")
        if seen.setdefault(out, p) != p:
            raise ValueError(f"{seen[out]} and {p} would both be written to {out}; enhance them "
                             "in two runs")
    return pairs


# -------------------------------------------------------------------------------------------- flags

def add_flags(parser, cls, only=None, defaults=None, shown=None):
    """One flag per dataclass field, the inherited ones last; the comment on its line is the help.

    A Literal offers its choices and no others. only: names of the fields to offer. defaults: an
    object of the class, whose values the help shows. shown: names on the help page; default: all.
    Only flags that are given reach the result.
    """
    hints = typing.get_type_hints(cls)
    for field in sorted(dataclasses.fields(cls),
                        key=lambda field: field.name not in cls.__annotations__):
        if only is not None and field.name not in only:
            continue
        text, kind = comments(cls)[field.name], type(field.default)
        value = getattr(defaults, field.name, "")
        if value not in ("", ()) and "(default" not in text:
            value = " ".join(map(str, value)) if kind is tuple else value
            text += f" (default: {value})"
        hidden = shown is not None and field.name not in shown
        options = dict(default=argparse.SUPPRESS, dest=field.name,
                       help=argparse.SUPPRESS if hidden else text.replace("%", "%%"))
        if kind is bool:
            options |= dict(action=argparse.BooleanOptionalAction)
        elif kind is tuple:
            options |= dict(type=type(field.default[0]), nargs="*", metavar="X")
        elif typing.get_origin(hints[field.name]) is typing.Literal:
            options |= dict(type=kind, choices=typing.get_args(hints[field.name]))
        else:
            options |= dict(type=kind, metavar=kind.__name__.upper())
        # in order, each once
        names = dict.fromkeys((f"--{field.name.replace('_', '-')}", f"--{field.name}"))
        parser.add_argument(*names, **options)


def explicit_flags(args, cls):
    """The flags of `add_flags` that were on the command line, as a dictionary."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}


# -------------------------------------------------------------------------------------------- train

def train_command(Method, args):
    """Train until the steps or minutes are over; the same command continues an interrupted run."""
    check_method(Method)
    published = {} if args.init else Method.training.get(args.preset, {})
    config = TrainConfig(**published | explicit_flags(args, TrainConfig))
    config.out = config.out or f"runs/{stem(Method)}"
    if not config.data:
        raise ValueError("give the training data with --data DIR; see --help")
    device, rank, world = join_processes(config)
    out, say = Path(config.out), print if rank == 0 else lambda *a, **k: None
    seed_everything(config.seed)
    method = build(Method, config, device, args.preset, explicit_flags(args, Method.Config))
    dataset, valid = open_datasets(method, config, device)
    best = best_score(out / "best.safetensors")
    record, state = config.identity(world) | {"corpus": dataset.identity}, None
    if (out / "last.pt").exists():
        state = read_pickle(out / "last.pt")
        refuse_changes(state, method.config, record, out / "last.pt")
        if progress_of(state["step"], state["seconds"], config) >= 1:
            say(f"already finished, after step {state['step']}: {out / 'last.safetensors'}. More "
                f"{'--minutes' if config.minutes else '--steps'} or another --out train on")
            return
    done = state["step"] if state else 0

    size = sum(p.numel() for p in method.parameters() if p.requires_grad)
    start = f"from {config.init}" if config.init else f"preset {args.preset}"
    say(f"{type(method).__name__}, {start}: {size:,} trainable parameters on {device}, "
        f"{config.precision}; {len(dataset)} recordings; "
        f"{config.batch_size * config.accumulate * world} crops a step -> {config.out}")
    if done:
        say(f"continues at step {done}")
    log = open_log(out, done) if rank == 0 else None
    batches = data.batches(dataset, config.batch_size, done * config.accumulate, rank, world,
                           config.workers, config.num_crops)
    # What ends the run is what the bar counts.
    total, unit = (round(60 * config.minutes), "s") if config.minutes else (config.steps, "step")
    bar, smooth = tqdm(total=total, unit=unit, disable=rank > 0, mininterval=1), None
    for step, parts in fit(method, batches, config, state, record):
        bar.update(int(min(method.progress, 1) * total) - bar.n)
        finished = method.progress >= 1
        if step % 50 == 0 or finished:
            values = {name: float(value) for name, value in parts.items()}
            smooth = values["loss"] if smooth is None else 0.9 * smooth + 0.1 * values["loss"]
            bar.set_postfix(step=step, loss=f"{smooth:.4g}")
            if log:
                log(step, values)
        if finished and rank == 0:
            bar.close()
            with method.ema.applied():
                save_checkpoint(out / "last.safetensors", method, step=step)
        if config.valid_every and (finished or step % config.valid_every == 0):
            if valid and rank == 0:
                best = validate_and_keep(method, valid, config, step, log, bar.write, best)
            if world > 1:
                dist.barrier()
    bar.close()
    for line in left_out(dataset.problems):
        say(line)
    if world > 1:
        dist.destroy_process_group()


def left_out(problems, named=5):
    """Lines about the most frequent problems of a Counter, as Crops.note keeps it."""
    first, others = problems.most_common(named), problems.most_common()[named:]
    lines = [f"left out {count} x {problem}" for problem, count in first]
    if others:
        lines.append(f"left out {sum(count for _, count in others)} x {len(others)} others, each "
                     "named when it came")
    return lines


def join_processes(config):
    """(device, rank, number of processes), as torchrun started them."""
    device = pick_device(config.device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        # The others wait while rank 0 validates.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                timeout=datetime.timedelta(days=1))
    if config.precision == "auto":
        config.precision = "bf16" if device.type == "cuda" else "fp32"
    torch.set_float32_matmul_precision("high")
    return device, rank, world


def build(Method, config, device, preset, changes):
    """The method to train: from --init, or from its preset. changes: fields of its Config."""
    if config.init:
        method = load_checkpoint(config.init, Method, config.init_partial, **changes)
    else:
        method = Method(Method.Config(**(Method.presets[preset] | changes)))
    if config.unpaired and method.needs_pairs:
        raise ValueError("--unpaired: these losses need the clean reference of each crop; the "
                         "pesq, si_sdr, ccmse and magnitude weights must be 0")
    if hasattr(method, "prepare"):
        method.prepare(fresh=not config.init)
    method.store = Path(config.out).parent / "store" if config.num_crops else None
    if config.compile:
        method.net.compile(dynamic=False)  # changing shapes break inductor in some releases
    # Tensor cores want channels last; the backward pass of a CPU is a quarter slower with it.
    return method.to(device, memory_format=torch.channels_last if device.type == "cuda"
                     else torch.contiguous_format)


def open_datasets(method, config, device):
    """(training crops, validation recordings or None)."""
    mics, speakers = method.num_mics, method.num_speakers
    num_rooms = config.rooms or 200 * ((mics, speakers) != (1, 1))
    options = dict(snrs=config.snrs, corpora=Path(config.out).parent / "corpora", seed=config.seed,
                   num_samples=method.num_samples, device=device,
                   augmentation=data.Augmentation(**{
                       field.name: getattr(config, field.name)
                       for field in dataclasses.fields(data.Augmentation)}))
    level = dict(normalize=method.config.normalize)
    if num_rooms:
        options |= dict(config=rooms.RoomConfig(mics, speakers),
                        cache=config.room_cache or Path(config.out).parent / "rooms")
        dataset = rooms.open_rooms(config.data, "train", rooms=num_rooms, **level, **options)
        reopen = functools.partial(rooms.open_rooms, rooms=min(num_rooms, config.valid_files))
    else:
        reopen = data.open_data
        if config.unpaired:
            dataset = data.UnpairedAudio(config.data, config.unpaired, "train", **level, **options)
        else:
            dataset = data.open_data(config.data, "train", **level, **options)
    try:
        return dataset, reopen(config.data, "valid", **options | dict(
            device="cpu", seed=VALID_SEED, augmentation=data.Augmentation(babble=config.babble)))
    except FileNotFoundError as error:
        warnings.warn(f"no validation: {error}")
        return dataset, None


VALID_SEED = 0    # of mixtures and noise in validation, whatever the seed of the training


def validate_and_keep(method, valid, config, step, log, say, best):
    """Validate; the best weights become best.safetensors. Returns the best score so far."""
    with method.ema.applied(), nets.in_precision(method, None):
        method.eval()
        scores, noisy, audio, note = validate(method, valid, config)
        method.train()
        log(step, scores, audio)
        say(f"step {step}: enhanced {in_words(scores)} | noisy {in_words(noisy)}{note}")
        if selection_score(scores) > best:
            save_checkpoint(Path(config.out) / "best.safetensors", method, step=step, **scores)
    return max(best, selection_score(scores))


def in_words(scores):
    return "  ".join(f"{name} {value:.3f}" for name, value in scores.items())


def selection_score(scores):
    """The score by which a checkpoint is chosen: PESQ + 5 ESTOI + 0.1 SI-SDR."""
    return scores["pesq"] + 5 * scores["estoi"] + 0.1 * scores["si_sdr"]


def best_score(path):
    """selection_score of a run's best checkpoint. Raises CheckpointError for a damaged file."""
    return selection_score(read_metadata(path)["extra"]) if path.is_file() else -float("inf")


def open_log(folder, step=0):
    """Function (step, scalars, waves) that appends to log.jsonl, and to TensorBoard if installed.

    Lines of steps after `step`, which a resumed run repeats, are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    if path.exists():
        # a kill can leave half a line
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        found = [re.match(r'{"step": (\d+)', line) for line in lines]
        kept = [line for line, match in zip(lines, found) if not match or int(match[1]) <= step]
        with data.atomic_write(path) as part:
            Path(part).write_text("".join(f"{line}\n" for line in kept))
    try:
        from torch.utils.tensorboard import SummaryWriter
        board = SummaryWriter(folder)
    except ImportError:
        board = None

    def log(step, scalars, waves=()):
        # JSON has no NaN
        values = {name: value if np.isfinite(value) else None for name, value in scalars.items()}
        with open(path, "a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time()), **values}) + "\n")
        if board:
            for name, value in scalars.items():
                board.add_scalar(name, value, step)
            for name, wave in dict(waves).items():
                board.add_audio(name, wave, step, data.SAMPLE_RATE)
    return log


def validate(method, dataset, config):
    """Enhance and score some recordings: (means, means of the noisy side, waves, note)."""
    device = next(method.parameters()).device
    numbers = np.linspace(0, len(dataset) - 1, min(config.valid_files, len(dataset))).astype(int)
    names, rows, waves = ("pesq", "estoi", "si_sdr"), [], {}
    for number in tqdm(numbers, "validating", unit="file", leave=False):
        name, clean, noisy = dataset.utterance(number)
        seed_everything(VALID_SEED)
        enhanced = method.enhance(noisy[None].to(device)).float().cpu()[0]
        if enhanced.ndim == 2:                           # speakers
            enhanced = in_order(clean, enhanced)
            noisy = noisy.reshape(-1, noisy.shape[-1])[:1].expand_as(clean)
        rows.append((f"{number} {name}", clean, enhanced, noisy))
        waves = waves or {name: wave if wave.ndim == 1 else wave[0] for name, wave in
                          (("clean", clean), ("noisy", noisy), ("enhanced", enhanced))}
    results, before = (metrics.evaluate([(name, clean, x) for name, clean, x in side], names,
                                        progress=False)
                       for side in ([row[:3] for row in rows],
                                    [(*row[:2], row[3]) for row in rows]))
    note = f"  n {len(rows)}" + "".join(f"; no score: {row['name']}: {row['error']}"
                                        for row in results.failed)
    return *({name: side.mean(name) for name in names} for side in (results, before)), waves, note


def load_for_use(Method, args):
    """The method of --checkpoint on --device."""
    return load_checkpoint(args.checkpoint, Method,
                           **explicit_flags(args, Method.Config)).to(pick_device(args.device))


def enhance_command(Method, args):
    method = load_for_use(Method, args)
    pairs = output_paths(args.inputs or [HERE / "tutorials" / "audio" / "noisy"], args.out)
    failed = enhance_all(method, pairs, args.seed, args.window)
    if failed < len(pairs):
        print(f"written to {args.out}")
    return failed


def enhance_all(method, pairs, seed, window, strict=False):
    """Enhance (recording, output) pairs; returns the number of failures. strict: see enhance_file.
    """
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

    print(f"{type(method).__name__}: {method.evaluations()} network evaluation(s) for each window "
          f"of {window:g} s")

    def progress(done):
        bar.update(min(done, total - bar.n))             # rounding must not pass the total

    for path, out in pairs:
        try:
            with torch.inference_mode():
                seconds += enhance_file(method, path, out, seed, window, progress, strict)
        except (data.AudioError, OSError, soundfile.LibsndfileError) as error:
            failures.append(f"{path} -> {out}: {error}" if str(path) not in str(error)
                            else str(error))
    bar.close()
    elapsed = time.monotonic() - started
    if seconds:
        print(f"{len(pairs) - len(failures)} recordings, {seconds:.1f} s of audio in "
              f"{elapsed:.1f} s: real-time factor {elapsed / seconds:.3f}, "
              f"{method.calls - calls} network evaluations")
    for failure in failures:
        print(f"not enhanced: {failure}", file=sys.stderr)
    return len(failures)


def evaluate_command(Method, args):
    which = metrics.known(args.metrics.split(","))
    if args.every < 1 or args.first < 0:
        raise ValueError(f"--every is 1 or more, --first 0 or more; got {args.every} and "
                         f"{args.first}")
    try:
        clean, noisy = data.paired_paths(args.data, args.split)
    except FileNotFoundError:
        try:
            dataset = data.open_data(args.data, args.split)
        except FileNotFoundError as error:  # without references, as the DNS challenge's blind set
            noisy = data.list_audio(data.real_recordings(args.data))
            clean, which = noisy, metrics.without_reference(which)
            print(f"{error}. So {len(noisy)} recordings are enhanced and scored without clean ones")
        else:  # speech and noise: mixed as for validation in training
            clean, noisy = data.write_mixtures(dataset, Path(args.out) / "mixtures", args.first,
                                               args.every)
    alone = clean is noisy
    method = load_for_use(Method, args)
    if args.first >= len(clean):
        raise ValueError(f"--first {args.first}: there are {len(clean)} files, counted from 0")
    chosen = slice(args.first, None, args.every)
    clean, noisy = clean[chosen], noisy[chosen]
    out, folder = Path(args.out), os.path.commonpath([path.parent for path in noisy])
    names = [str(path.relative_to(folder).with_suffix("")) for path in noisy]
    enhanced = [out / "enhanced" / f"{name}.wav" for name in names]
    for path in enhanced:  # of another checkpoint, they would be scored as this one's
        path.unlink(missing_ok=True)
    failed = enhance_all(method, list(zip(noisy, enhanced)), args.seed, args.window, strict=True)
    if (method.num_mics, method.num_speakers) != (1, 1) and not alone:
        first = [out / "microphone0" / f"{name}.wav" for name in names]
        for *paths, out_path in zip(clean, noisy, first, enhanced):
            if out_path.is_file():  # what could not be enhanced is left to the scoring to name
                microphone_0(*paths)
                match_speakers(paths[0], out_path)
        noisy = first
    sizes = {name: sum(p.numel() for p in part.parameters())
             for name, part in method.named_children()}
    print("parameters: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size))
    print(f"{len(names)} recordings of {args.data}, {args.split}")
    references = [None] * len(names) if alone else clean
    before = metrics.evaluate(zip(names, references, noisy, noisy), which, args.workers)
    after = metrics.evaluate(zip(names, references, enhanced, noisy), which, args.workers)
    after.save_csv(out / "scores.csv")
    for title, results in (("noisy", before), ("enhanced", after),
                           ("enhanced - noisy", after.compare(before))):
        print(f"\n{title}\n{results.table()}")
    return failed + len(after.failed)


def microphone_0(clean, noisy, out):
    """Write the reference microphone once for each speaker of `clean`; all are paths."""
    speakers, mixture = (data.load_audio(path)[0] for path in (clean, noisy))
    data.save_audio(out, mixture[:1].expand(len(speakers), -1), data.SAMPLE_RATE)


def match_speakers(clean, enhanced):
    """Put the speakers of the file `enhanced` in the order of `clean`."""
    data.save_audio(enhanced,
                    in_order(*(data.load_audio(path)[0]
                               for path in (clean, enhanced))), data.SAMPLE_RATE)


# --------------------------------------------------------------------------------- the command line

def add_train(commands, Method):
    help = "train on a folder of recordings; continues a run that was interrupted"
    sub = commands.add_parser("train", help=help, description=help,
                              usage="%(prog)s --data DIR [options]", add_help=False)
    everything = "--help-all" in sys.argv
    sub.add_argument("-h", "--help", action="help", help="show the usual options")
    sub.add_argument("--help-all", action="help", help="every constant of the method and the "
                                                       "training")
    sub.add_argument("--preset", choices=tuple(Method.presets), default="paper",
                     help="values of the method's constants (default: paper)")
    values = TrainConfig(out=f"runs/{stem(Method)}", **Method.training.get("paper", {}))
    names = [field.name for field in dataclasses.fields(TrainConfig)
             if field.name not in OPTIONAL or field.name in Method.options]
    add_flags(sub, TrainConfig, names, values, None if everything else COMMON)
    group = sub.add_argument_group("method (defaults of the preset paper)") if everything else sub
    add_flags(group, Method.Config, defaults=Method.Config(), shown=None if everything else ())
    sub.set_defaults(run=functools.partial(train_command, Method), init="")


# The flags of train on its short help page.
COMMON = ("data", "out", "init", "steps", "minutes", "batch_size", "lr", "clip", "seed", "device",
          "precision")
# The flags of train that only methods with them in `options` have.
OPTIONAL = ("unpaired", "rooms", "room_cache")


def add_use(sub, Method, out):
    """Options of both enhance and evaluate."""
    shipped = shipped_checkpoints(stem(Method))
    default = stem(Method) if stem(Method) in shipped else f"runs/{stem(Method)}/best.safetensors"
    sub.add_argument("--out", default=out, help=f"folder to write to (default: {out})")
    sub.add_argument("--checkpoint", default=default, help="weights: a file, or the name of one "
                     f"in pretrained/: {', '.join(shipped)} (default: {default})")
    sub.add_argument("--device", default="auto",
                     help="cpu, cuda or cuda:1 (default: cuda if available)")
    sub.add_argument("--seed", type=int, default=0, help="of the noise that is drawn (default: 0)")
    sub.add_argument("--window", type=float, default=30,
                     help="seconds enhanced at once (default: 30)")
    add_flags(sub.add_argument_group("method (defaults of the checkpoint)"), Method.Config,
              Method.inference)


def stem(Method):
    """Name of the file of a method: sgmse, consistency, ..."""
    return Path(inspect.getfile(Method)).stem


def shipped_checkpoints(module):
    """Names of the weights in pretrained/ that a method's file can load."""
    paths = sorted((HERE / "pretrained").glob("*.safetensors"))
    return [path.stem for path in paths if read_metadata(path)["method"].startswith(f"{module}.")]


def keep_memory():
    """Keep freed memory in the process (glibc); else the system clears its pages at every layer.

    A quarter of a forward pass of the paper's network on two CPU cores. What is kept serves the
    next tensors.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block that goes back when it is freed
        libc.mallopt(-1, -1)                             # M_TRIM_THRESHOLD: nor the end of the heap


def main(Method):
    """The command line of a method: train, enhance, evaluate, and what Method.add_commands adds.

    Exits 1 where a recording failed, 2 for a request that cannot be met, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name may be anything, a terminal ASCII alone
        stream.reconfigure(errors="backslashreplace")
    data.plain_warnings()
    keep_memory()
    summary = inspect.cleandoc(inspect.getmodule(Method).__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(description=" ".join(summary.split()))
    commands = parser.add_subparsers(dest="command", required=True)
    add_train(commands, Method)
    if hasattr(Method, "add_commands"):
        Method.add_commands(commands)

    sub = commands.add_parser("enhance", help="remove noise from recordings")
    sub.add_argument("inputs", nargs="*", metavar="FILE_OR_FOLDER",
                     help="recordings of any common format, rate and number of channels, or "
                     "folders of them (default: tutorials/audio/noisy)")
    add_use(sub, Method, "enhanced")
    sub.set_defaults(run=functools.partial(enhance_command, Method))

    sub = commands.add_parser("evaluate", help="enhance a test set and score it")
    sub.add_argument("--data", required=True, help="folder with clean and noisy files, or speech "
                     "and noise to mix, as for train; or of noisy recordings alone, for scores "
                     "without reference; for several microphones or speakers, see python rooms.py "
                     "--help")
    sub.add_argument("--split", default="test", choices=("train", "valid", "test"),
                     help="(default: test)")
    sub.add_argument("--every", type=int, default=1, help="score every n-th file only (default: 1)")
    sub.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    sub.add_argument("--metrics", default="pesq,estoi,si_sdr",
                     help="(default: pesq,estoi,si_sdr); see metrics.py")
    sub.add_argument("--workers", type=int, default=os.cpu_count(),
                     help="processes that score (default: all cores)")
    add_use(sub, Method, f"evaluated/{stem(Method)}")
    sub.set_defaults(run=functools.partial(evaluate_command, Method))

    args = parser.parse_args()
    try:
        failed = args.run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted" + "; the same command "
                                                "continues" * (args.command == "train"),
              file=sys.stderr)
        sys.exit(130)
    sys.exit(1 if failed else 0)
