"""train.py: nothing is lost, nothing changes by interruption, and the commands work door to door."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import torch.distributed as dist

import commands
import consistency
import data
import dispatch
import drift
import meanflow
import metrics
import sgmse
import train
from helpers import peak, run_command

ROOT = Path(__file__).parent.parent
run = functools.partial(run_command, sgmse.ScoreSDE)


def tiny(seed=0, **changes):
    train.seed_everything(seed)
    return sgmse.ScoreSDE(sgmse.Config(**sgmse.PRESETS["tiny"] | dict(num_frames=16, pesq_weight=0) | changes))


def loader_of(corpus, method, batch_size=2):
    dataset = data.PairedAudio(corpus, "train", num_samples=method.num_samples)
    return lambda step, rank, world: data.batches(dataset, batch_size, step, rank, world)


def settings(out, **changes):
    usual = dict(out=str(out), steps=20, lr=1e-3, clip=1.0, save_every=1e9, precision="fp32")
    return train.TrainConfig(**usual | changes)


def fit(method, loader, config):
    """train.fit, resumed from config.out where there is something to resume."""
    last = Path(config.out) / "last.pt"
    state = train.read_pickle(last) if config.out and last.exists() else None
    if state:
        train.refuse_changes(state, method.config, {}, last)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    done = state["step"] if state else 0
    return train.fit(method, loader(done * config.accumulate, rank, world), config, state)


def state_of(path):
    """The content of last.pt but for what the clock says."""
    state = torch.load(path, weights_only=True)
    return {name: x for name, x in state.items() if name != "seconds"} if isinstance(state, dict) else state


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ---- the loop ----

def test_resumed_run_is_bit_for_bit_the_unbroken_one(tmp_path, corpus):
    def losses(method, config):
        return [parts["loss"].item() for _, parts in fit(method, loader_of(corpus, method), config)]

    whole = losses(tiny(), settings(tmp_path / "a", steps=7))
    head = losses(tiny(), settings(tmp_path / "b", steps=3))
    tail = losses(tiny(seed=5), settings(tmp_path / "b", steps=7))                  # the checkpoint replaces what it starts from
    assert head + tail == whole
    assert same(state_of(tmp_path / "a/last.pt"), state_of(tmp_path / "b/last.pt"))


def in_fresh_process(function, *arguments, code=0):
    """Run a function of this file in a process that has torch, but no threads yet, so that it may fork."""
    script = (f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}; "
              f"import test_train; test_train.{function.__name__}(*sys.argv[1:])")
    result = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == code, result.stderr[-3000:]
    return result


def forked(function, *arguments):
    """The process id of a child that runs the function."""
    child = os.fork()
    if not child:
        try:
            function(*arguments)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def fit_saving_always(out, corpus, steps):
    torch.set_num_threads(1)
    method = tiny()
    for _ in fit(method, loader_of(corpus, method), settings(out, steps=steps, save_every=0.0)):
        pass


def kill_often(folder, corpus):
    """4 times: resume the run, wait for it to save, kill it a random moment later, look at what it left."""
    torch.optim.AdamW(tiny().parameters())               # imports what it needs, so that no child has to
    dice, last, seen = random.Random(0), Path(folder) / "broken/last.pt", 0
    when = lambda: last.stat().st_mtime_ns if last.exists() else 0
    for _ in range(4):
        written, child = when(), forked(fit_saving_always, f"{folder}/broken", corpus, 10 ** 6)
        for _ in range(2):                               # the first is of the step that it resumed from
            while when() == written:
                assert os.waitpid(child, os.WNOHANG) == (0, 0)
                time.sleep(0.001)
            written = when()
        time.sleep(dice.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        step = state_of(last)["step"]                    # readable, and never older than before
        assert step > seen
        seen = step
    for name in ("broken", "whole"):
        assert os.waitpid(forked(fit_saving_always, f"{folder}/{name}", corpus, seen + 2), 0)[1] == 0
    assert same(state_of(last), state_of(f"{folder}/whole/last.pt"))
    print(seen)


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing_and_changes_nothing(tmp_path, corpus):
    """A run that saves after every step is killed 4 times, mostly while saving, and ends as one that was not."""
    assert int(in_fresh_process(kill_often, tmp_path, corpus).stdout) >= 4


class Toy(torch.nn.Module):
    """A method without noise: its loss is a function of the batch alone."""

    @dataclasses.dataclass
    class Config:
        size: int = 8                # samples, of a crop

    def __init__(self, config=Config()):
        super().__init__()
        self.config = config
        self.net = torch.nn.Linear(config.size, config.size)

    def loss(self, batch):
        clean, noisy = batch
        return (self.net(noisy) - clean).square().mean(), {}


def toy_batches(batch_size, poison=()):
    """Batch n of rank r of w: the part of the n-th w * batch_size examples that is the rank's."""
    def loader(step, rank, world):
        for number in itertools.count(step):
            rng = np.random.default_rng(number)
            whole = torch.from_numpy(rng.standard_normal((2, 8, 8)).astype(np.float32))
            if number in poison:
                whole[1, 0, 0] = float("nan")
            yield whole[:, rank * batch_size:][:, :batch_size].unbind(0)
    return loader


@contextlib.contextmanager
def steps_of_sgd():
    """Within it fit takes plain steps, which show the gradient itself."""
    kept, torch.optim.AdamW = torch.optim.AdamW, lambda p, lr, *_, **__: torch.optim.SGD(p, lr)
    try:
        yield
    finally:
        torch.optim.AdamW = kept


def toy_run(out, batch_size, **changes):
    train.seed_everything(0)
    method = Toy()
    with steps_of_sgd():
        for _ in fit(method, toy_batches(batch_size), settings(out, steps=3, lr=0.1, clip=0.0, **changes)):
            pass
    return method


def toy_rank(folder, rank):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([p.detach() for p in toy_run(f"{folder}/run", 4).parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_toy_ranks(folder):
    for child in [forked(toy_rank, folder, rank) for rank in range(2)]:
        assert os.waitpid(child, 0)[1] == 0


def test_two_processes_with_half_the_batch_take_the_steps_of_one(tmp_path):
    in_fresh_process(two_toy_ranks, tmp_path)
    first, second = state_of(tmp_path / "0.pt"), state_of(tmp_path / "1.pt")
    assert same(first, second)
    for a, b in zip(first, toy_run(tmp_path / "one", 8).parameters()):
        torch.testing.assert_close(a, b.detach(), atol=1e-6, rtol=0)


def test_accumulated_gradients_average_their_batches(tmp_path):
    method = Toy()
    batches = list(itertools.islice(toy_batches(8)(0, 0, 1), 2))
    expected = sum(torch.autograd.grad(method.loss(b)[0], method.net.weight)[0] for b in batches) / 2
    before = method.net.weight.detach().clone()
    with steps_of_sgd():
        next(fit(method, toy_batches(8), settings(tmp_path, lr=1.0, clip=0.0, accumulate=2)))
    torch.testing.assert_close(before - method.net.weight.detach(), expected)


def test_gradient_is_clipped_to_its_limit(tmp_path):
    method = Toy()
    before = method.net.weight.detach().clone(), method.net.bias.detach().clone()
    with steps_of_sgd():
        next(fit(method, toy_batches(8), settings(tmp_path, lr=1.0, clip=0.01)))
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, (method.net.weight, method.net.bias))])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_optimiser_is_adamw_with_its_decay_and_warm_up(tmp_path):
    """Two steps of AdamW (Loshchilov and Hutter, Algorithm 2), by hand, at half and at all of the learning rate."""
    options = dict(steps=2, lr=0.1, betas=(0.5, 0.75), weight_decay=0.2, lr_warmup=2, clip=0.0)
    method, m, v, batches = Toy(), 0, 0, toy_batches(8)(0, 0, 1)
    steps = fit(method, toy_batches(8), settings(tmp_path, **options))
    for step, lr in ((1, 0.05), (2, 0.1)):
        w = method.net.weight.detach().clone()
        g = torch.autograd.grad(method.loss(next(batches))[0], method.net.weight)[0]
        m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g ** 2
        update = (m / (1 - 0.5 ** step)) / ((v / (1 - 0.75 ** step)).sqrt() + 1e-8)
        w = w - lr * (update + 0.2 * w)
        next(steps)
        torch.testing.assert_close(method.net.weight.detach(), w)


def test_resumed_run_takes_the_command_s_learning_rate(tmp_path):
    """Its averages are those of the run, what it makes of them is the command's, as for a run without a break."""
    def go(out, steps, **options):
        train.seed_everything(0)
        method = Toy()
        list(fit(method, toy_batches(8), settings(out, steps=steps, lr=0.1, save_every=0, **options)))
        return [p.detach().clone() for p in method.parameters()]
    go(tmp_path / "a", 2)
    changed = go(tmp_path / "a", 4, weight_decay=0.5, betas=(0.1, 0.2))
    go(tmp_path / "b", 2)
    assert not same(changed, go(tmp_path / "b", 4))
    go(tmp_path / "c", 2, weight_decay=0.5, betas=(0.7, 0.7))
    go(tmp_path / "d", 2)
    assert not same(go(tmp_path / "c", 4), go(tmp_path / "d", 4))


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 1.0), (-0.1, 0.9), (0.9, 0.9, 0.9)])
def test_betas_that_average_nothing_are_refused(betas):
    with pytest.raises(ValueError, match="--betas"):
        train.TrainConfig(betas=betas)


def test_preset_s_training_defaults_yield_to_the_command(monkeypatch, tmp_path):
    """As drift.py's paper is: AdamW with decay and warm-up. Weights given by --init bring none."""
    seen = []

    def join_processes(config):
        seen.append(config)
        raise ValueError("this is all that was to be seen")
    monkeypatch.setattr(commands, "join_processes", join_processes)
    for flags in ((), ("--lr", "1e-3"), ("--preset", "dagger"), ("--preset", "small"), ("--init", "drift")):
        monkeypatch.setattr(sys, "argv", ["drift.py", "train", "--data", str(tmp_path), *flags])
        with pytest.raises(SystemExit):
            commands.main(drift.DriftSE)
    published = dict(lr=5e-4, weight_decay=0.01, betas=(0.9, 0.95), lr_warmup=200, batch_size=16, clip=2.0)
    values = [{name: getattr(config, name) for name in published} for config in seen]
    plain = {name: getattr(train.TrainConfig(), name) for name in published}
    assert values == [published, published | {"lr": 1e-3}, published, plain, plain]


def test_poisoned_batch_leaves_weights_and_average(tmp_path):
    method, history = Toy(), []
    with pytest.warns(UserWarning, match="step 3: .*not finite"):
        for step, _ in fit(method, toy_batches(8, poison={2}), settings(tmp_path, steps=4)):
            history.append((method.net.weight.detach().clone(), method.ema.shadow["net.weight"].clone()))
    assert same(history[1], history[2]) and not same(history[2], history[3])
    assert all(p.isfinite().all() for p in method.parameters())


def test_ten_poisoned_batches_in_a_row_stop_the_run(tmp_path):
    method = Toy()
    with warnings.catch_warnings(), pytest.raises(FloatingPointError, match="ten steps in a row"):
        warnings.simplefilter("ignore")
        for _ in fit(method, toy_batches(8, poison=set(range(3, 99))), settings(tmp_path, steps=50)):
            pass


@pytest.mark.parametrize("n, decay", [(1, 0.181818), (100, 0.918182), (1000, 0.991089), (8990, 0.999), (20000, 0.999)])
def test_average_warms_up_as_the_reference_does(n, decay):
    module = torch.nn.Linear(1, 1, bias=False)
    ema = train.EMA(module)
    ema.num_updates = n - 1
    ema.shadow["weight"].zero_()
    with torch.no_grad():
        module.weight.fill_(1)
    ema.update()
    assert 1 - ema.shadow["weight"].item() == pytest.approx(decay, abs=1e-6)


def test_averaged_weights_leave_when_validation_fails():
    module = torch.nn.Linear(2, 2)
    ema = train.EMA(module)
    ema.shadow["weight"].zero_()
    own = module.weight.detach().clone()
    with contextlib.suppress(RuntimeError), ema.applied():
        assert not module.weight.any()
        raise RuntimeError
    assert torch.equal(module.weight, own)


def test_run_with_other_settings_is_not_resumed(tmp_path, corpus):
    method = tiny()
    for _ in fit(method, loader_of(corpus, method), settings(tmp_path, steps=1)):
        pass
    other = tiny(snr=0.3)
    with pytest.raises(ValueError, match="snr 0.5 -> 0.3.*another --out"):
        next(fit(other, loader_of(corpus, other), settings(tmp_path)))


# ---- checkpoints ----

def test_checkpoint_gives_the_same_model(tmp_path):
    method = tiny(N=3)
    train.save_checkpoint(tmp_path / "a.safetensors", method, step=7)
    again = train.load_checkpoint(tmp_path / "a.safetensors")
    assert type(again).__name__ == "ScoreSDE" and dataclasses.asdict(again.config) == dataclasses.asdict(method.config)
    assert same(dict(again.state_dict()), dict(method.state_dict())) and not again.training


def test_shipped_weights_are_found_by_name_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert same(train.load_checkpoint("sgmse").state_dict(), shipped().state_dict())
    assert run("enhance", "--checkpoint", "no_such_name", ROOT / "tutorials/audio/noisy") == 2
    assert "no_such_name: no such file" in capsys.readouterr().err


def test_half_precision_checkpoint_is_half_the_size_and_close(tmp_path):
    method = tiny()
    train.save_checkpoint(tmp_path / "a.safetensors", method)
    train.save_checkpoint(tmp_path / "b.safetensors", method, torch.float16)
    assert os.path.getsize(tmp_path / "b.safetensors") < 0.6 * os.path.getsize(tmp_path / "a.safetensors")
    for a, b in zip(method.parameters(), train.load_checkpoint(tmp_path / "b.safetensors").parameters()):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def damaged(tmp_path):
    """name -> a file that is no usable checkpoint."""
    good = tmp_path / "good.safetensors"
    method = tiny()
    train.save_checkpoint(good, method)
    content = good.read_bytes()
    with safetensors.safe_open(good, "pt") as file:
        metadata = file.metadata()
    broken = {"empty": b"", "truncated": content[:len(content) // 2], "zeros": bytes(200),
              "huge_header": struct.pack("<Q", 2 ** 62) + content[8:]}
    for name, value in broken.items():
        (tmp_path / f"{name}.safetensors").write_bytes(value)
    weights = dict(method.state_dict())
    name = next(iter(weights))
    safetensors.torch.save_file(weights | {name: weights[name] * float("nan")}, tmp_path / "nan.safetensors", metadata)
    safetensors.torch.save_file(weights | {name: torch.zeros(3)}, tmp_path / "shape.safetensors", metadata)
    safetensors.torch.save_file(weights, tmp_path / "bare.safetensors")
    safetensors.torch.save_file(weights, tmp_path / "foreign.safetensors", metadata | {"method": "os.system"})
    return [p for p in sorted(tmp_path.glob("*.safetensors")) if p != good] + [tmp_path / "missing.safetensors"]


def test_damaged_checkpoints_get_one_line_and_exit_code_2(tmp_path, capsys, corpus):
    paths = damaged(tmp_path)
    assert len(paths) == 9
    for path in paths:
        started = time.process_time()                    # of this process: others may be busy
        assert run("enhance", corpus / "test/noisy/0.wav", "--checkpoint", path, "--out", tmp_path / "out") == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and str(path) in message and "Traceback" not in message
        assert time.process_time() - started < 1


def test_foreign_module_name_is_not_imported(tmp_path):
    damaged(tmp_path)
    with pytest.raises(train.CheckpointError, match="not in this folder"):
        train.load_checkpoint(tmp_path / "foreign.safetensors")


def test_no_file_is_read_with_pickle_unlocked():
    for path in ROOT.glob("*.py"):
        assert not re.search(r"weights_only\s*=\s*False|pickle\.loads?\(", path.read_text()), path


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "last.pt"
    path.write_text("old")

    def write(part):
        Path(part).write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError):
        train.write_checkpoint(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["last.pt"]


SHORT = ("train", "--preset", "tiny", "--num-frames", "24", "--batch-size", "1", "--valid-every", "0", "--device", "cpu")


def train_with_files_of_at_most(size, corpus, out, steps):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)        # an error instead of an end
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    sys.argv = ["sgmse.py", *SHORT, "--data", corpus, "--out", out, "--steps", steps]
    commands.main(sgmse.ScoreSDE)


def test_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path, corpus):
    """A limit on the size of files stands for the full disk: the checkpoint of step 2 cannot be written."""
    assert run(*SHORT, "--data", corpus, "--out", tmp_path / "run", "--steps", "1") == 0
    before = (tmp_path / "run/last.pt").read_bytes()
    enough = (tmp_path / "run/last.safetensors").stat().st_size            # for the weights, not for the optimiser too
    full = in_fresh_process(train_with_files_of_at_most, enough, corpus, tmp_path / "run", 2, code=2)
    assert "last.pt" in full.stderr and "Traceback" not in full.stderr
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.part"))


# ---- enhancement ----

class Echo(torch.nn.Module):
    """Gives back what it gets, and notes the sizes."""

    num_mics = num_speakers = 1

    def __init__(self, gain=1.0):
        super().__init__()
        self.spectrogram, self.calls, self.sizes = data.Spectrogram(), 0, []
        self.gain = torch.nn.Parameter(torch.tensor(gain))

    def enhance(self, wave, peak=None):
        self.sizes.append(wave.shape[-1])
        self.calls += 1
        return wave * self.gain.detach()

    def evaluations(self):
        return 1


@pytest.mark.parametrize("length", [1, 700, 1000, 1001, 1751, 2501, 9999])
def test_windows_put_together_are_the_whole(length):
    """Where each window is right but for its edges, the stream is right everywhere."""
    wave = np.random.default_rng(0).standard_normal((2, length)).astype(np.float32)

    def spoilt_edges(x):
        x = x.copy()
        if x.shape[1] == 1000:
            x[:, -100:] = 1e3
        return x

    blocks = (wave[:, i:i + 333] for i in range(0, length, 333))
    enhance = spoilt_edges if length > 1000 else np.copy
    out = np.concatenate(list(commands.windowed(enhance, blocks, 1000, 100, 50)), axis=1)
    np.testing.assert_allclose(out, wave, atol=1e-6)


def shipped(**changes):
    return train.load_checkpoint(ROOT / "pretrained/sgmse.safetensors", sgmse.ScoreSDE, **changes)


def twenty_seconds():
    waves = [data.load_audio(path)[0][0] for path in data.list_audio(ROOT / "tutorials/audio/noisy")]
    return torch.cat([*waves, *waves])[:20 * 16000]


@torch.inference_mode()
def test_twenty_seconds_are_enhanced_as_one_piece(tmp_path):
    wave, method = twenty_seconds(), shipped(N=2)
    data.save_audio(tmp_path / "in.wav", wave, 16000, "FLOAT")
    commands.enhance_file(method, tmp_path / "in.wav", tmp_path / "out.wav")
    train.seed_everything(0)
    whole, [out] = method.enhance(wave[None])[0], data.load_audio(tmp_path / "out.wav")[0]
    assert (out - whole).square().sum() < 1e-4 * whole.square().sum()      # -40 dB


@torch.inference_mode()
def test_windows_agree_where_they_meet(tmp_path):
    """Two windows of 10 s instead of one piece: another estimate, with other noise and other seconds in the norms, but
    no step in it."""
    wave, method = twenty_seconds(), shipped(N=2)
    data.save_audio(tmp_path / "in.wav", wave, 16000, "FLOAT")
    commands.enhance_file(method, tmp_path / "in.wav", tmp_path / "out.wav", window=10)
    train.seed_everything(0)
    whole, [out] = method.enhance(wave[None])[0], data.load_audio(tmp_path / "out.wav")[0]
    difference = out - whole
    assert difference.square().mean() < 0.01 * whole.square().mean()
    steps = difference.diff().abs()
    edges = [int(s * 16000) for s in (8, 9, 15, 16)]     # of the fades
    assert max(steps[e - 2:e + 2].max() for e in edges) <= steps.max() / 2


@pytest.mark.parametrize("rate, channels, subtype, suffix", [
    (16000, 1, "PCM_16", ".wav"), (48000, 2, "PCM_24", ".wav"), (44100, 1, "FLOAT", ".wav"),
    (8000, 3, "PCM_16", ".flac"), (22050, 2, "PCM_24", ".flac"), (96000, 1, "PCM_32", ".wav")])
def test_enhanced_file_has_the_form_of_its_input(tmp_path, rate, channels, subtype, suffix):
    wave = 0.1 * np.random.default_rng(0).standard_normal((rate + 17, channels))
    soundfile.write(tmp_path / f"in{suffix}", wave, rate, subtype)
    commands.enhance_file(Echo(), tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", window=1.0)
    paths = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    a, b = ([getattr(soundfile.info(p), what) for what in ("samplerate", "channels", "frames", "subtype", "format")]
            for p in paths)
    assert a == b
    if rate == 16000:
        np.testing.assert_allclose(*(soundfile.read(p)[0] for p in paths), atol=1e-4)


def test_an_output_that_a_file_of_integers_would_clip_is_said(tmp_path):
    wave = np.tile(np.r_[np.full(98, 0.1), 0.5, 0.5], 400)[:, None].repeat(2, 1)           # 2 % of it loud
    for subtype in ("PCM_16", "FLOAT"):
        soundfile.write(tmp_path / f"{subtype}.wav", wave, 16000, subtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        commands.enhance_file(Echo(1.9), tmp_path / "PCM_16.wav", tmp_path / "out.wav")
        commands.enhance_file(Echo(3.0), tmp_path / "FLOAT.wav", tmp_path / "out.wav")
        assert soundfile.read(tmp_path / "out.wav")[0].max() == pytest.approx(1.5)
    with pytest.warns(UserWarning, match="out.wav: 2% of the samples were beyond full scale and are clipped"):
        commands.enhance_file(Echo(3.0), tmp_path / "PCM_16.wav", tmp_path / "out.wav")


def test_enhanced_file_stays_in_step_with_its_input(tmp_path):
    """A chirp through 44.1 -> 16 -> 44.1 kHz in windows: no shift, no gap."""
    t = np.arange(44100 * 5) / 44100
    soundfile.write(tmp_path / "in.wav", 0.5 * np.sin(2 * np.pi * (200 + 600 * t) * t), 44100, "FLOAT")
    commands.enhance_file(Echo(), tmp_path / "in.wav", tmp_path / "out.wav", window=2.5)
    a, b = soundfile.read(tmp_path / "in.wav")[0], soundfile.read(tmp_path / "out.wav")[0]
    assert 20 * np.log10(np.abs(a - b)[200:-200].max() / 0.5) < -60


def test_each_channel_is_enhanced_by_itself(tmp_path):
    method = tiny(sde="sbve", sampler="bridge_ode").eval()                 # draws no noise
    wave = 0.1 * np.random.default_rng(0).standard_normal((8000, 2))
    soundfile.write(tmp_path / "two.wav", wave, 16000, "FLOAT")
    soundfile.write(tmp_path / "one.wav", wave[:, 1], 16000, "FLOAT")
    for name in ("one", "two"):
        with torch.inference_mode():
            commands.enhance_file(method, tmp_path / f"{name}.wav", tmp_path / f"{name}_out.wav")
    two, one = (soundfile.read(tmp_path / f"{name}_out.wav")[0] for name in ("two", "one"))
    np.testing.assert_allclose(two[:, 1], one, atol=1e-5)


def test_bad_recordings_are_named_and_the_others_done(tmp_path, capsys, corpus):
    source, out = tmp_path / "in", tmp_path / "out"
    good = 0.1 * np.random.default_rng(0).standard_normal(8000)
    (source / "deep/er").mkdir(parents=True)
    soundfile.write(source / "deep/er/good.wav", good, 16000)
    soundfile.write(source / "good.mp3", good, 16000)
    soundfile.write(source / "nan.wav", np.full(8000, np.nan), 16000, "FLOAT")
    soundfile.write(source / "short.wav", good[:100], 16000)
    (source / "text.wav").write_text("not audio")
    (source / "empty.flac").write_bytes(b"")
    (source / "cut.wav").write_bytes((source / "deep/er/good.wav").read_bytes()[:5000])
    train.save_checkpoint(tmp_path / "w.safetensors", tiny(N=1))
    with pytest.warns(UserWarning, match="cut.wav: truncated"):
        assert run("enhance", source, "--out", out, "--checkpoint", tmp_path / "w.safetensors") == 1
    printed = capsys.readouterr()
    for name in ("nan.wav", "short.wav", "text.wav", "empty.flac"):
        assert f"not enhanced: {source / name}" in printed.err
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "cut.wav", "deep/er/good.wav", "good.flac"]
    assert "3 recordings" in printed.out and "2 network evaluations" in printed.out and "real-time factor" in printed.out


def test_silent_recording_stays_silent(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.zeros(16000), 16000)
    with torch.inference_mode():
        commands.enhance_file(tiny(N=1).eval(), tmp_path / "in.wav", tmp_path / "out.wav")
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() < 1e-4


def test_recordings_are_never_written_over(tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    soundfile.write(source / "a.wav", np.zeros(16000), 16000)
    content = (source / "a.wav").read_bytes()
    train.save_checkpoint(tmp_path / "w.safetensors", tiny(N=1))
    use = ("--checkpoint", tmp_path / "w.safetensors")
    (tmp_path / "link").symlink_to(source)
    for given, out in itertools.product((source, source / "a.wav"), (source, tmp_path / "link")):
        assert run("enhance", given, "--out", out, *use) == 2
        assert re.search("choose another( --out)?$", capsys.readouterr().err)
    assert (source / "a.wav").read_bytes() == content


def test_two_inputs_for_one_output_are_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "a.wav", np.zeros(1000), 16000)
    with pytest.raises(ValueError, match="both be written"):
        commands.output_paths([tmp_path / "x/a.wav", tmp_path / "y/a.wav"], tmp_path / "out")
    pairs = commands.output_paths([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    assert [out.relative_to(tmp_path) for _, out in pairs] == [Path("out/x/a.wav"), Path("out/y/a.wav")]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        commands.output_paths([tmp_path / "nowhere"], tmp_path / "out")


def test_outputs_are_not_enhanced_again(tmp_path, monkeypatch):
    (tmp_path / "in/out").mkdir(parents=True)
    soundfile.write(tmp_path / "in/a.wav", np.zeros(1000), 16000)
    soundfile.write(tmp_path / "in/out/a.wav", np.zeros(1000), 16000)
    monkeypatch.chdir(tmp_path / "in")
    for given in (".", "../in", tmp_path / "in"):
        assert [(p.name, out) for p, out in commands.output_paths([given], "out")] == [("a.wav", Path("out/a.wav"))]


def peak_memory(source, target):
    commands.enhance_file(Echo(), source, target)
    print(peak())


@pytest.mark.slow
def test_twenty_minutes_take_no_more_memory_than_ten_seconds(tmp_path):
    second = 0.1 * np.random.default_rng(0).standard_normal((24000, 2)).astype(np.float32)
    peaks = {}
    for name, seconds in (("short", 10), ("long", 1200)):
        with soundfile.SoundFile(tmp_path / f"{name}.wav", "w", 24000, 2, "PCM_16") as file:
            for _ in range(seconds):
                file.write(second)
        peaks[name] = float(in_fresh_process(peak_memory, tmp_path / f"{name}.wav", tmp_path / "out.wav").stdout)
        (tmp_path / f"{name}.wav").unlink()
    assert peaks["long"] - peaks["short"] < 100            # MiB; the samples of one channel have 110


def test_progress_of_a_folder_counts_its_seconds(tmp_path, monkeypatch):
    """Of all recordings that can be read, to the end."""
    bars, tqdm = [], commands.tqdm
    monkeypatch.setattr(commands, "tqdm", lambda *a, **k: bars.append(tqdm(*a, **k)) or bars[-1])
    for name, samples in (("a", 16000), ("b", 24000)):
        data.save_audio(tmp_path / f"{name}.wav", 0.1 * torch.randn(samples), 16000)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    pairs = [(tmp_path / f"{name}.wav", tmp_path / f"out/{name}.wav") for name in "abc"]
    assert commands.enhance_all(Echo(), pairs, 0, 30) == 1
    assert [bar.total for bar in bars] == [2.5] and (bars[0].disable or bars[0].n == 2.5)


class TwoVoices(Echo):
    """Two speakers at two microphones: each estimate is a microphone, with noise."""

    num_mics = num_speakers = 2

    def enhance(self, wave, peak=None):
        return wave + 0.1 * torch.randn_like(wave)


def test_array_validation_compares_its_reference_microphone(monkeypatch):
    clean, noisy = torch.randn(2, 2, 16000)
    seen = []

    class One:
        def __len__(self):
            return 1

        def utterance(self, number):
            return "a", clean, noisy

    def evaluate(pairs, names, progress):
        seen.append(pairs)
        return metrics.Results([dict(name="a", note="", error="", **dict.fromkeys(names, 1.0))], names)

    monkeypatch.setattr(metrics, "evaluate", evaluate)
    commands.validate(TwoVoices(), One(), train.TrainConfig(valid_files=1))
    enhanced, before = seen
    assert torch.equal(before[0][2], noisy[:1].expand(2, -1)) and enhanced[0][2].shape == clean.shape


# ---- door to door ----

def test_train_interrupt_resume_enhance_evaluate(tmp_path, capsys, corpus, monkeypatch):
    """The commands of the README on a small corpus, with no network."""
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("something wanted the network"))
    flags = ("train", "--data", corpus, "--preset", "tiny", "--num-frames", "24", "--batch-size", "2",
             "--device", "cpu", "--valid-files", "1", "--N", "1")
    run(*flags, "--out", tmp_path / "a", "--steps", "4", "--valid-every", "2")
    run(*flags, "--out", tmp_path / "b", "--steps", "2", "--valid-every", "2")
    assert run(*flags, "--out", tmp_path / "b", "--steps", "4", "--valid-every", "2") == 0
    assert same(state_of(tmp_path / "a/last.pt"), state_of(tmp_path / "b/last.pt"))
    log = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "pesq" in entry] == [2, 4]
    assert capsys.readouterr().out.startswith("ScoreSDE, preset tiny: ")

    weights, noisily = tmp_path / "a/last.safetensors", ("--sampler", "em", "--N", "3")
    assert (tmp_path / "a/best.safetensors").exists()
    assert run("enhance", corpus / "test/noisy", "--out", tmp_path / "enhanced", "--checkpoint", weights, *noisily) == 0
    assert "6 network evaluations" in capsys.readouterr().out    # two files, three steps
    first = (tmp_path / "enhanced/0.wav").read_bytes()
    again = ("enhance", corpus / "test/noisy/0.wav", "--checkpoint", weights, *noisily)
    run(*again, "--out", tmp_path / "again")
    run(*again, "--out", tmp_path / "other", "--seed", "1")
    assert (tmp_path / "again/0.wav").read_bytes() == first != (tmp_path / "other/0.wav").read_bytes()

    capsys.readouterr()
    scores = ("--out", tmp_path / "scores", "--workers", "1")
    assert run("evaluate", "--data", corpus, "--checkpoint", weights, *scores) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("noisy", "enhanced - noisy", "pesq", "estoi", "si_sdr"))
    assert len((tmp_path / "scores/scores.csv").read_text().splitlines()) == 3


def test_run_killed_in_its_last_validation_is_finished(tmp_path, corpus, monkeypatch):
    flags = ("train", "--data", corpus, "--preset", "tiny", "--num-frames", "24", "--batch-size", "2",
             "--device", "cpu", "--valid-files", "1", "--N", "1", "--steps", "3", "--out", tmp_path / "run")

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commands, "validate", killed)
        assert run(*flags) == 130
    assert run(*flags) == 0
    assert (tmp_path / "run/best.safetensors").exists() and (tmp_path / "run/last.safetensors").exists()


def test_run_killed_in_a_validation_repeats_it(tmp_path, corpus, monkeypatch):
    def flags(name):
        return ("train", "--data", corpus, "--preset", "tiny", "--num-frames", "24", "--batch-size", "2", "--device",
                "cpu", "--valid-files", "1", "--valid-every", "2", "--N", "1", "--steps", "3", "--out", tmp_path / name)

    def scores(name):
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        return [(line["step"], line["si_sdr"]) for line in lines if "pesq" in line]

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    assert run(*flags("whole")) == 0
    for place in ("validate", "save_checkpoint"):        # before the scores, and before they are kept
        with monkeypatch.context() as patch:
            patch.setattr(commands, place, killed)
            assert run(*flags(place)) == 130
        assert run(*flags(place)) == 0
        assert scores(place) == scores("whole") and [step for step, _ in scores(place)] == [2, 3]
        best = [tmp_path / name / "best.safetensors" for name in (place, "whole")]
        assert same(*(train.load_checkpoint(path).state_dict() for path in best))
        assert train.read_metadata(best[0]) == train.read_metadata(best[1])


@pytest.mark.slow
def test_noisy_side_is_scored_by_the_same_metrics(tmp_path, corpus, capsys):
    train.save_checkpoint(tmp_path / "model.safetensors", tiny())
    assert run("evaluate", "--data", corpus, "--checkpoint", tmp_path / "model.safetensors", "--metrics",
               "si_sdr,si_sir_sar", "--out", tmp_path / "scores", "--workers", "1") == 0
    tables = capsys.readouterr().out.split("\n\n")
    assert [table.splitlines()[0] for table in tables[1:4]] == ["noisy", "enhanced", "enhanced - noisy"]
    assert all("n/a" not in table and "si_sar" in table for table in tables[1:4])


def test_what_was_left_out_is_summed_up_in_a_few_lines():
    problems = collections.Counter({f"{n}.wav: silent": n for n in range(1, 9)})
    lines = commands.left_out(problems)
    assert lines[0] == "left out 8 x 8.wav: silent" and len(lines) == 6
    assert lines[-1].startswith("left out 6 x 3 others")                  # 1 + 2 + 3
    assert commands.left_out(collections.Counter(a=2)) == ["left out 2 x a"] and not commands.left_out(collections.Counter())


def test_corrected_checkpoint_remembers_its_calls_and_its_start(tmp_path, capsys, corpus):
    """CRP: stage 1 in, a checkpoint out that samples as it was trained, without being told."""
    first = tmp_path / "first.safetensors"
    train.save_checkpoint(first, tiny(sde="bbed", t_eps=0.03, objective="precond_denoiser", sampler="pc"))
    flags = ("train", "--data", corpus, "--init", first, "--crp", "last", "--sampler", "em", "--N", "2",
             "--start", "0.4", "--batch-size", "2", "--device", "cpu", "--valid-every", "0", "--out", tmp_path / "crp")
    assert run(*flags, "--steps", "2") == 0
    assert capsys.readouterr().out.startswith(f"ScoreSDE, from {first}: ")
    assert run(*flags, "--steps", "3") == 0              # and goes on from its checkpoint
    weights = tmp_path / "crp/last.safetensors"
    assert not same(train.load_checkpoint(weights).state_dict(), train.load_checkpoint(first).state_dict())
    capsys.readouterr()
    for command in (("enhance", corpus / "test/noisy"), ("evaluate", "--data", corpus, "--workers", "1")):
        assert run(*command, "--checkpoint", weights, "--out", tmp_path / command[0]) == 0
        assert "4 network evaluations" in capsys.readouterr().out               # two files, two calls each
    assert train.load_checkpoint(weights).config.start == 0.4


def test_help_names_every_field_with_its_unit_and_default(capsys):
    assert run("train", "--help-all") == 0
    text = " ".join(capsys.readouterr().out.split())
    fields = [field for cls in (train.TrainConfig, sgmse.Config) for field in dataclasses.fields(cls)
              if field.name not in commands.OPTIONAL]                      # those are on the pages of other methods
    for field in fields:
        assert f"--{field.name.replace('_', '-')}" in text
    assert "seconds between checkpoints (default: 60.0)" in text
    assert text.count("(default:") >= len([f for f in fields if f.default != ""])


@pytest.mark.parametrize("arguments, message", [
    (("train",), "--data DIR"), (("train", "--data", "nowhere"), "no folder nowhere"),
    (("evaluate", "--data", "nowhere"), "no ")])
def test_unusable_requests_exit_2_with_one_line(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


DEFAULTS = {"sgmse": (sgmse.ScoreSDE, "tiny", ()), "consistency": (consistency.ConsistencyModel, "tiny", ("--teacher", "TEACHER")),
            "dispatch": (dispatch.Student, "paper", ("--distil", "none")), "meanflow": (meanflow.MeanFlowCorrector, "tiny", ()),
            "drift": (drift.DriftSE, "tiny", ()),
            "dagger": (drift.DriftSE, "dagger", ("--encoder", "mel", "--width", "8", "--channel-mults", "1", "1"))}


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_training_validates_at_its_end(name, tmp_path, corpus, capsys):
    """At the default --valid-every: a line with the scores of both sides, best.safetensors, and the log."""
    Method, preset, flags = DEFAULTS[name]
    train.save_checkpoint(tmp_path / "teacher.safetensors", tiny(objective="data_prediction", c_skip="y", num_frames=24))
    flags = [tmp_path / "teacher.safetensors" if flag == "TEACHER" else flag for flag in flags]
    assert run_command(Method, "train", "--data", corpus, "--preset", preset, *flags, "--steps", "2", "--batch-size", "1",
                       "--num-frames", "64", "--valid-files", "1", "--device", "cpu", "--out", tmp_path / "run") == 0
    assert re.search(r"step 2: enhanced pesq \d.*\| noisy pesq \d", capsys.readouterr().out)
    assert train.load_checkpoint(tmp_path / "run/best.safetensors").num_samples
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "estoi" in line] == [2]
    assert train.read_metadata(tmp_path / "run/last.safetensors")["extra"] == {"step": 2}


def test_a_corpus_without_validation_is_trained_to_its_end(tmp_path, corpus):
    shutil.copytree(corpus / "train", tmp_path / "data/train")
    with pytest.warns(UserWarning, match="no validation"):
        assert run("train", "--data", tmp_path / "data", "--preset", "tiny", "--steps", "1", "--batch-size", "1",
                   "--num-frames", "64", "--device", "cpu", "--out", tmp_path / "run") == 0
    assert (tmp_path / "run/last.safetensors").exists() and not (tmp_path / "run/best.safetensors").exists()


def test_a_damaged_best_checkpoint_is_named_before_training(tmp_path, corpus, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.safetensors").write_bytes(b"half")
    assert run("train", "--data", corpus, "--preset", "tiny", "--steps", "1", "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]                        # after the bar of the decoding
    assert "best.safetensors" in last and "Remove it" in last and "Traceback" not in error


def test_method_without_its_contract_is_refused():
    class NoLoss(train.Method):
        Config, presets = sgmse.Config, {"paper": {}}
    with pytest.raises(TypeError, match="NoLoss lacks loss, sample"):
        train.check_method(NoLoss)

    class NoPaper(sgmse.ScoreSDE):
        presets = {"small": {}}
    with pytest.raises(TypeError, match="NoPaper.presets lacks 'paper'"):
        train.check_method(NoPaper)


def test_a_training_of_ones_own_needs_no_folder(corpus):
    method, batch = tiny(), [torch.randn(2, 16 * 256) * 0.1] * 2
    losses = [parts["loss"].item() for _, parts in train.fit(method, itertools.repeat(batch), train.TrainConfig(steps=3))]
    assert len(losses) == 3 and losses[0] != losses[2]


def test_the_cost_of_a_checkpoint_is_said_before_it_runs(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(8000) / 10, 16000)
    train.save_checkpoint(tmp_path / "m.safetensors", tiny(N=3, sampler="pc"))
    assert run("enhance", tmp_path / "a.wav", "--checkpoint", tmp_path / "m.safetensors", "--out", tmp_path / "out") == 0
    assert "6 network evaluation(s) for each window of 30 s" in capsys.readouterr().out


def test_a_name_that_is_no_unicode_is_enhanced(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xe4rger.wav"
    soundfile.write(name, np.random.default_rng(0).standard_normal(8000) / 10, 16000)
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out/\xe4rger.wav"))
    commands.enhance_file(Echo(), Path(os.fsdecode(name)), out)
    assert soundfile.info(os.fsencode(out)).frames == 8000
