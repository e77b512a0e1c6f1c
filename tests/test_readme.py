"""What the pages promise about the files beside them."""

import argparse
import hashlib
import inspect
import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch

import commands

ROOT = Path(__file__).parents[1]
NAMES = "README.md", "pretrained/README.md", "tests/README.md", "tutorials/experiments/README.md"
PAGES = {ROOT / name: (ROOT / name).read_text() for name in NAMES}
METHODS = "sgmse.py", "consistency.py", "dispatch.py", "meanflow.py", "drift.py"
README = PAGES[ROOT / "README.md"]


@pytest.mark.parametrize("name, file, line", sorted(set(re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README))))
def test_link_leads_to_the_definition(name, file, line):
    assert re.match(rf"(def|class) {name}\b", (ROOT / file).read_text().splitlines()[int(line) - 1])


@pytest.mark.parametrize("page, path", sorted({(str(page.relative_to(ROOT)), path) for page, text in PAGES.items()
                                               for path in re.findall(r"\]\((?!http)([^)#]+)", text)}))
def test_linked_file_exists(page, path):
    assert ((ROOT / page).parent / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", "".join(PAGES.values())))))
def test_named_test_exists(name):
    assert any(f"def {name}(" in path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


def section(file, first, after):
    """Lines of a file from one heading to another."""
    lines = (ROOT / file).read_text().splitlines()
    heads = {line.strip("# -"): number for number, line in enumerate(lines) if line.startswith("# ---")}
    return "\n".join(lines[heads[first]:heads[after]])


def alone(source, imports):
    """What a component defines in an empty namespace with these import lines."""
    namespace = {"__name__": "component"}
    sys.modules["component"] = types.ModuleType("component")               # dataclasses look there
    exec(imports + "\n" + source, namespace)
    return types.SimpleNamespace(**namespace)


def spectrograms():
    torch.manual_seed(0)
    return [torch.randn(2, 1, 16, 16, dtype=torch.complex64, requires_grad=i == 0) for i in range(2)]


def test_networks_run_alone():
    for text in ((ROOT / "nets.py").read_text(),):
        nets = alone(text, "")
        x, _ = spectrograms()
        net = nets.NCSNpp(1, 1, 8, (1, 1), 1, (), num_times=1)
        net(x, torch.tensor([0.3, 0.7])).abs().sum().backward()
        nets.SpatialNet(1, 1, bins=16, **nets.COMPACT)(x).abs().sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize("name", ["half_square", "si_sdr_loss", "sa_sdr_loss", "ccmse_loss", "magnitude_loss", "PESQLoss"])
def test_each_loss_runs_alone(name):
    import losses
    torch.manual_seed(0)
    source = inspect.getsource(getattr(losses, name))
    if name == "PESQLoss":
        text = (ROOT / "losses.py").read_text()
        source = text[text.index("# Of the 49 Bark bands"):]
    function = getattr(alone(source, "import itertools\nimport numpy as np\nimport torch\n"
                                     "from scipy.signal import butter, lfilter"), name)
    wave = torch.randn(2, 8000, requires_grad=True)
    clean = torch.randn(2, 8000)
    x, x0 = spectrograms()
    arguments = {"half_square": (x,), "magnitude_loss": (x0[:, 0], x[:, 0]), "sa_sdr_loss": (clean[:, None], wave[:, None])}
    out = (function() if name == "PESQLoss" else function)(*arguments.get(name, (clean, wave)))
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    grad = wave.grad if wave.grad is not None else x.grad
    assert grad.isfinite().all() and grad.any()


def test_processes_losses_and_samplers_run_alone():
    sgmse = alone(section("sgmse.py", "processes", "the model"),
                  "import math\nfrom dataclasses import dataclass\nimport torch\n"
                  "from losses import PESQ, half_square\nfrom data import per_bin")
    x0, y = spectrograms()
    for process in (sgmse.OUVE(), sgmse.BBED()):
        sgmse.dsm_loss(lambda x, y, t: -x, x0, y, process).backward()
        sgmse.crp_loss(lambda x, y, t: y - x * x0, x0, y, process, N=2).backward()
        assert sgmse.predictor_corrector(lambda x, y, t: y - x, y, process, N=2).isfinite().all()
    assert sgmse.bridge_ode(lambda x, y, t: y, y, sgmse.SBVE(), N=2).isfinite().all() and x0.grad.any()


def test_drifting_field_and_loss_run_alone():
    drift = alone(section("drift.py", "fields", "latent spaces"), "import math\nimport torch")
    x, positives = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4)
    drift.drifting_loss(x, positives).backward()
    assert x.grad.any() and drift.drifting_field(x, positives, x, 1.0).shape == (6, 4)


def test_spectrogram_and_mixing_run_alone():
    import data
    source = "\n".join(map(inspect.getsource, (data.Spectrogram, data.mix_at_snr, data.per_bin)))
    piece = alone(source, "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F")
    wave = torch.randn(2, 4000, requires_grad=True)
    back = piece.Spectrogram().inverse(piece.Spectrogram()(piece.mix_at_snr(wave, torch.randn(2, 4000), 5)), 4000)
    back.sum().backward()
    assert wave.grad.isfinite().all() and wave.grad.any()


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    """Both blocks as they stand, but for two steps of training instead of a hundred."""
    import data
    import metrics
    import train
    (tmp_path / "tutorials").symlink_to(ROOT / "tutorials")
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(first, {})
    clean, out = (data.load_audio(path)[0][0] for path in ("tutorials/audio/clean/windmill.flac", "windmill.wav"))
    assert metrics.si_sdr(clean, out) > 12
    assert "steps=100" in second
    exec(second.replace("steps=100", "steps=2"), {})
    assert train.load_checkpoint("mine.safetensors").num_samples


@pytest.mark.parametrize("name, digest", re.findall(r"^\| `(\w+)` \|.* (\w{12}) \|$", PAGES[ROOT / "pretrained/README.md"], re.M))
def test_card_knows_the_weights(name, digest):
    assert hashlib.sha256((ROOT / f"pretrained/{name}.safetensors").read_bytes()).hexdigest()[:12] == digest


def test_card_names_all_weights():
    shipped = {path.stem for path in (ROOT / "pretrained").glob("*.safetensors")}
    assert set(re.findall(r"^\| `(\w+)` \|.* \w{12} \|$", PAGES[ROOT / "pretrained/README.md"], re.M)) == shipped


def test_continuous_integration_runs_the_second_command():
    commands = re.findall(r"^python3 -m venv .*$", README, re.M)
    assert len(commands) == 2
    assert commands[1].replace("install -r", "install -q -r") in (ROOT / ".ci/run").read_text()


def blocks(text):
    return re.findall(r"```sh\n(.*?)```", text, re.S)


def page_commands():
    """Each command of a method on the pages, variables of the block filled in: (page, arguments from the script on)."""
    script = ROOT / "pretrained/train_all.sh"
    for page, text in [*PAGES.items(), (script, f"```sh\n{script.read_text()}```")]:
        for block in blocks(text):
            variables = {"CORPUS": "corpus", "DEVICE": "cpu"}
            for line in block.splitlines():
                line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)
                if (assigned := re.match(r'(\w+)="(.*)"$', line)) and "${" not in line:
                    variables[assigned[1]] = assigned[2]
                words = shlex.split(line, comments=True)
                starts = [i for i, word in enumerate(words) if word in METHODS]
                if starts and not assigned:
                    yield str(page.relative_to(ROOT)), words[starts[0]:]


COMMANDS = list(page_commands())


def test_the_pages_have_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page, words", COMMANDS, ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60])
def test_every_command_of_the_pages_is_understood(page, words, monkeypatch):
    seen = []
    for name in ("train_command", "enhance_command", "evaluate_command"):
        monkeypatch.setattr(commands, name, lambda Method, args: seen.append(args))
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert stop.value.code == 0 and len(seen) == 1
    assert "$" not in " ".join(words)


def scripts():
    """Each command of a script of tests/ or tutorials/ on the pages, in blocks and within sentences."""
    for text in PAGES.values():
        sentences = re.sub(r"```.*?```", "", text, flags=re.S)
        spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", sentences)]
        for span in [*spans, *(line for block in blocks(text) for line in block.splitlines())]:
            if found := re.match(r"(?:\S*/)?python ((?:tests|tutorials)/\S+\.py.*)", span):
                yield tuple(shlex.split(found[1], comments=True))


SCRIPTS = sorted(set(scripts()))


def test_the_pages_have_commands_of_scripts():
    assert {Path(words[0]).name for words in SCRIPTS} >= {"nfe.py", "compare.py", "benchmark_speed.py", "latents.py"}


@pytest.mark.parametrize("words", SCRIPTS, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_a_script_is_understood(words, monkeypatch):
    class Understood(Exception):
        pass

    parse_args = argparse.ArgumentParser.parse_args

    def understood(*args):
        parse_args(*args)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", understood)
    monkeypatch.setattr(sys, "argv", list(words))
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str((ROOT / words[0]).parent))
    with pytest.raises(Understood):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
