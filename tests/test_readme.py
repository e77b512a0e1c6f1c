"""What the pages promise about the files beside them."""

import argparse
import dataclasses
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
import encoder
import scoring
import train

ROOT = Path(__file__).parents[1]
NAMES = "README.md", "pretrained/README.md", "tests/README.md", "tutorials/experiments/README.md"
PAGES = {ROOT / name: (ROOT / name).read_text() for name in NAMES}
METHODS = "sgmse.py", "consistency.py", "dispatch.py", "meanflow.py", "drift.py"
README = PAGES[ROOT / "README.md"]
GUIDE = PAGES[ROOT / "tutorials/experiments/README.md"]
# Scripts of the guide, whose commands are checked as well.
SHELL = {path: path.read_text() for path in [ROOT / "pretrained/train_all.sh", *sorted((ROOT / "tutorials/experiments").glob("*.sh"))]}


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


def spans(text):
    """Inline code of a page, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]


def filled_in(block):
    """Lines of a block of commands, with its variables replaced by their values."""
    variables = {"1": "CORPUS", "CORPUS": "CORPUS", "DEVICE": "cpu"}
    for line in block.splitlines():
        line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), line)
        if assigned := re.match(r'(\w+)="([^:]*)"$', line):
            variables[assigned[1]] = assigned[2]
        else:
            yield line


def page_commands():
    """Each command of a method on the pages and in SHELL: (page, arguments from the method's file on)."""
    for page, text in [*PAGES.items(), *SHELL.items()]:
        found = [text] if page in SHELL else blocks(text)
        if text == GUIDE:
            found.append("\n".join(span for span in spans(text) if span.startswith("python ")))
        for line in (line for block in found for line in filled_in(block)):
            words = shlex.split(line, comments=True)
            starts = [i for i, word in enumerate(words) if word in METHODS]
            if starts:
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
    """Each command of a script of tests/ or tutorials/ on the pages, in blocks and within sentences, and in SHELL."""
    lines = [line for text in PAGES.values() for line in [*spans(text), *(line for block in blocks(text)
                                                                         for line in filled_in(block))]]
    for line in [*lines, *(line for text in SHELL.values() for line in filled_in(text))]:
        if found := re.match(r"(?:\S*/)?python ((?:tests|tutorials)/\S+\.py.*)", line):
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


# ---- the guide to the experiments ----

def test_the_guide_is_a_guide():
    """At most 200 lines, and tables of at most six rows; the numbers are in tables/."""
    lines = GUIDE.splitlines()
    assert len(lines) <= 200
    assert all(table.count("\n") <= 8 for table in re.findall(r"(?:^\|.*\n)+", GUIDE, re.M))


def test_every_section_of_the_guide_has_command_and_control():
    questions = re.findall(r"^## [^\n]*\?\n(.*?)(?=^## )", GUIDE, re.M | re.S)
    assert len(questions) > 12
    for section in (" ".join(section.split()) for section in questions):
        assert all(re.search(rf"\*{word}:\*", section) for word in ("Commands?", "Control", "What could change it")), section


def test_options_named_in_the_guide_exist():
    known = {option for script in ("compare.py", "voices.py", "behind.py") for option in re.findall(
        r'"(--[a-z-]+)"', (ROOT / "tutorials/experiments" / script).read_text())} | {"--help", "--csv"}
    configs = [runpy.run_path(str(ROOT / name))["Config"] for name in METHODS]
    for Config in (*configs, train.TrainConfig, encoder.EncoderConfig):
        known |= {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)}
    assert not {option for span in spans(GUIDE) if not span.startswith("python ")
                for option in re.findall(r"--[a-z][a-z-]*", span)} - known


def test_a_method_of_ones_own_trains_enhances_and_is_scored(corpus, tmp_path, monkeypatch, capsys):
    """The example of the guide, as a file beside its run."""
    [code] = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    (tmp_path / "flow.py").write_text(code)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["flow.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path("flow.py", run_name="__main__")
        assert stop.value.code == 0
        return capsys.readouterr().out

    run("train", "--data", corpus, "--preset", "tiny", "--num-frames", "24", "--batch-size", "2", "--steps", "2",
        "--valid-every", "0", "--device", "cpu", "--out", "run")
    use = "--checkpoint", "run/last.safetensors", "--device", "cpu", "--out"
    assert "5 network evaluations" in run("enhance", corpus / "test/noisy/0.wav", *use, "out")
    assert (tmp_path / "out/0.wav").exists()
    scores = run("evaluate", "--data", corpus, "--workers", "1", "--metrics", "si_sdr", "--N", "1", *use, "scores")
    assert "enhanced - noisy" in scores and len((tmp_path / "scores/scores.csv").read_text().splitlines()) == 3


def test_intervals_of_the_guide_are_in_the_tables():
    """Each [low, high] of the guide, to its digits: of a row, of minus a row (a loss), or in percent."""
    rows = [row for path in (ROOT / "tutorials/experiments/tables").glob("*.csv") for row in scoring.read_table(path)]
    known = [(float(row["low"]), float(row["high"])) for row in rows if row["low"]]
    known += [(-high, -low) for low, high in known] + [(100 * low, 100 * high) for low, high in known]
    found = re.findall(r"\[(−?\d+(?:\.\d+)?),\s(−?\d+(?:\.\d+)?)\]", GUIDE)
    assert len(found) > 40
    for pair in found:
        unit = 10.0 ** -len(pair[0].partition(".")[2])
        low, high = (float(text.replace("−", "-")) for text in pair)
        assert any(max(abs(a - low), abs(b - high)) <= 0.5001 * unit for a, b in known), pair
