"""The notebooks: built from their sources, run without an error, short enough for a test."""

import csv
import html
import importlib
import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

TUTORIALS = Path(__file__).parents[1] / "tutorials"
sys.path.insert(0, str(TUTORIALS))
import build_notebooks

SOURCES = build_notebooks.sources()
NAMES = [source.stem for source in SOURCES]


@pytest.fixture(params=SOURCES, ids=NAMES)
def source(request):
    return request.param


@pytest.fixture
def notebook(source):
    return json.loads(source.with_suffix(".ipynb").read_text())


def test_notebook_is_built_from_what_stands_beside_it(source):
    assert not build_notebooks.is_stale(source), f"run: python tutorials/build_notebooks.py {source.name}"


def test_every_cell_ran_and_none_failed(notebook):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 5
    assert sum("<audio" in "".join(o.get("data", {}).get("text/html", "")) for o in outputs) >= 1


def test_notebook_is_small_and_holds_what_its_source_says(source, notebook):
    import jupytext
    assert source.with_suffix(".ipynb").stat().st_size <= build_notebooks.LIMIT
    cells = notebook["cells"]
    assert [cell["id"] for cell in cells] == [f"{n:03}" for n in range(len(cells))] and len(cells) <= 70
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 320
    assert ["".join(cell["source"]) for cell in cells] == [cell.source for cell in jupytext.read(source).cells]


def test_page_plan_is_the_same_everywhere(source):
    text = source.read_text()
    exercises = text[text.index("\n# ## Exercises"):]
    assert [exercises.count(f"<summary>{name}</summary>") for name in ("Hint", "Solution")] == [3, 3]
    number = source.name[0]
    assert re.findall(r'^answer\("(\d\.\d)"', exercises, re.M) == [f"{number}.{n}" for n in (1, 2, 3)]
    for bar in ("lvert", "lVert", "rvert", "rVert"):     # MathML needs a pair that stretches
        assert text.count(f"\\{bar}") == text.count(f"\\{'left' if bar[0] == 'l' else 'right'}\\{bar}")
    assert "\n# ## Listen" in text and "**You will**" in text and "\n# | symbol | meaning | value |" in text.split("# %%", 2)[1]


def test_every_picture_is_followed_by_what_it_shows(notebook):
    cells = notebook["cells"]
    for number, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert build_notebooks.caption(cells, number), "".join(cell["source"])


def test_committed_answers_are_right(source, notebook):
    printed = "".join("".join(output.get("text", [])) for cell in notebook["cells"] for output in cell.get("outputs", []))
    assert re.findall(r"exercise (\d\.\d): \S+ is right", printed) == [f"{source.stem[0]}.{k}" for k in (1, 2, 3)]


def test_source_runs_short(source, monkeypatch, capsys):
    """From top to bottom, with fewer steps and without its players; what it sets stays its own."""
    import matplotlib.pyplot as plt
    monkeypatch.setenv("TUTORIALS_FAST", "1")
    monkeypatch.syspath_prepend(str(TUTORIALS))
    before, backend = torch.get_num_threads(), plt.get_backend()
    plt.switch_backend("Agg")
    for name in ("tools", "toy"):
        sys.modules.pop(name, None)                      # read the variable anew
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)                # more than 20 open figures
            runpy.run_path(str(source))
        assert plt.get_fignums()
    finally:
        plt.close("all")
        plt.switch_backend(backend)
    assert torch.get_num_threads() == before and torch.get_default_dtype() == torch.float32
    out = capsys.readouterr().out
    assert "expected" in out
    assert re.findall(r"exercise (\d\.\d): .* is right", out) == [f"{source.name[0]}.{n}" for n in (1, 2, 3)]


@pytest.fixture
def tools(monkeypatch):
    """A function: the module tools as it is with TUTORIALS_FAST and TUTORIALS_STRICT set, or not."""
    def load(*names):
        for name in ("TUTORIALS_FAST", "TUTORIALS_STRICT"):
            monkeypatch.delenv(name, raising=False)
        for name in names:
            monkeypatch.setenv(name, "1")
        monkeypatch.delitem(sys.modules, "tools", raising=False)
        return importlib.import_module("tools")

    monkeypatch.syspath_prepend(str(TUTORIALS))
    yield load
    sys.modules.pop("tools", None)


def test_answers_are_judged_and_never_stop_the_run(tools, capsys):
    """The truth is right, a value beside it close, another one is told what to look at; so is what is no number."""
    module = tools()
    for exercise, (truth, tolerance, look) in module.ANSWERS.items():
        truth = truth() if callable(truth) else truth
        for value in (truth, truth + 2 * tolerance + 0.02 * abs(truth), 10 * truth + 30, float("nan"), "many", None):
            module.answer(exercise, value)
    module.answer("9.1", 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24 * 6 + 1 and "no exercise of this number" in lines[-1]
    for k in range(24):
        right, close, wrong, *others = lines[6 * k:6 * k + 6]
        assert right.endswith("is right") and ("is close" in close or "is right" not in close)
        assert all("Look at: " in line and "is right" not in line for line in (wrong, *others))


def test_a_changed_number_stops_the_build_but_not_a_reader(tools, capsys):
    strict = tools("TUTORIALS_STRICT")
    for look in (lambda: strict.check("steps", 30, 60, 0), lambda: strict.below("error", 2, 1)):
        with pytest.raises(AssertionError, match="is not"):
            look()
    reader = tools()
    capsys.readouterr()
    reader.check("steps", 30, 60, 0)
    reader.below("error", 2, 1)
    assert capsys.readouterr().out.count("no longer as expected") == 2


def test_exported_pictures_are_those_of_the_notebooks():
    for path in TUTORIALS.glob("[1-9]_*.ipynb"):
        for name, picture in build_notebooks.exports(json.loads(path.read_text())).items():
            assert (TUTORIALS / f"{name}.png").read_bytes() == picture and len(picture) < 200_000


# ------------------------------------------------------------------------------------------------ the build

SMALL = """# %% [markdown]
# # A small page
#
# It says $x_t=\\mu+\\sigma z$, and below that
#
# $$\\frac12E\\lvert\\sigma s+z\\rvert^2$$
#
# and leads [elsewhere](../README.md), [to itself](9_small.ipynb) and [out](https://arxiv.org).

# %% tags=["export-picture"]
import matplotlib.pyplot as plt
plt.plot([0, 1]);

# %%
from IPython.display import HTML
print("a < b")
HTML('<audio controls src="data:audio/mpeg;base64,AAAA"></audio>')
"""


@pytest.fixture
def small(tmp_path):
    """A function: text -> path of a source with it."""
    def write(text):
        path = tmp_path / "9_small.py"
        path.write_text(text)
        return path
    return write


def test_build_gives_the_same_bytes_twice_and_knows_what_it_is_made_of(small):
    source = small(SMALL)
    text = build_notebooks.build(source)
    assert text == build_notebooks.build(source)
    source.with_suffix(".ipynb").write_text(text.replace("a < b\\n", "kept\\n"))
    assert "kept" in build_notebooks.build(small(SMALL.replace("It says", "It said")))        # new words run nothing
    assert "kept" not in build_notebooks.build(small(SMALL.replace("[0, 1]", "[0, 2]")))
    small(SMALL)
    source.with_suffix(".ipynb").write_text(text)
    assert not build_notebooks.is_stale(source)
    notebook = json.loads(text)
    assert [cell["id"] for cell in notebook["cells"]] == ["000", "001", "002"]
    assert build_notebooks.exports(notebook)["picture"].startswith(b"\x89PNG")
    small(SMALL.replace("a < b", "a > b"))
    assert build_notebooks.is_stale(source)


@pytest.mark.parametrize("text, reason", [
    ("# %%\ndef distances():\n    pass\n", "distances"),
    ("# %%\nper_bin = lambda a: a\n", "per_bin"),
    ("# %%\nimport sys\nprint(1, file=sys.stderr)\n", "stderr"),
    ("# %%\nprint(object())\n", "at 0x"),
    (f"# %%\nprint({str(build_notebooks.ROOT)!r})\n", "of this machine"),
    ("# %%\nprint('x' * 900_000)\n", "more than 800000")])
def test_build_refuses(small, text, reason):
    with pytest.raises(build_notebooks.BuildError, match=reason):
        build_notebooks.build(small(text))


def test_shown_functions_and_named_weights_count(tmp_path, monkeypatch, small):
    """A changed docstring, and one flipped byte of weights, make a notebook stale; what it does not use does not."""
    root = tmp_path / "root"
    (root / "pretrained").mkdir(parents=True)
    (root / "shown_here.py").write_text('def one():\n    """One."""\n\n\ndef two():\n    """Two."""\n')
    for name in ("model", "other"):
        (root / "pretrained" / f"{name}.safetensors").write_bytes(b"\0\1")
    source = small('# %%\nshow(shown_here.one)\nfor name in ["model"]:\n    pretrained(name)\n')

    def digest():
        code = f"import build_notebooks, pathlib; build_notebooks.ROOT = pathlib.Path({str(root)!r}); "
        code += f"print(build_notebooks.built_from({str(source)!r}))"
        return subprocess.run([sys.executable, "-c", code], cwd=TUTORIALS, capture_output=True, text=True, check=True).stdout

    first = digest()
    (root / "shown_here.py").write_text('def one():\n    """One."""\n\n\ndef two():\n    """Three."""\n')
    (root / "pretrained" / "other.safetensors").write_bytes(b"\0\0")
    assert digest() == first
    (root / "pretrained" / "model.safetensors").write_bytes(b"\0\0")
    second = digest()
    (root / "shown_here.py").write_text('def one():\n    """One!"""\n\n\ndef two():\n    """Three."""\n')
    assert len({first, second, digest()}) == 3


def test_rows_of_the_experiments_are_printed_with_what_tells_them_apart():
    code = "import tools; tools.experiment('patches', 'DISPatch', seed=1, columns=('estoi',))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TUTORIALS, capture_output=True, text=True, check=True)
    n, head, *lines = done.stdout.splitlines()
    with open(TUTORIALS / "experiments" / "tables" / "patches.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "1" and row["row"].startswith("DISPatch")
                and row["metric"] == "estoi"]
    assert n == "n = 110" and head.split() == ["row", "teacher", "steps", "estoi"] and len(lines) == len(rows) > 3
    for line, row in zip(lines, rows):
        assert line.startswith(row["row"]) and row["teacher"] in line and row["steps"] in line
        assert line.endswith("{:.3f} [{:.3f}, {:.3f}]".format(*(float(row[name]) for name in ("mean", "low", "high"))))


# ------------------------------------------------------------------------------------------------ pages

def test_page_holds_sound_picture_and_formulas_and_asks_nobody(small, tmp_path):
    source = small(SMALL)
    source.with_suffix(".ipynb").write_text(build_notebooks.build(source))
    build_notebooks.export([source.with_suffix(".ipynb")], tmp_path / "pages")
    page = (tmp_path / "pages" / "9_small.html").read_text()
    assert '<math display="block"' in page.replace("xmlns=\"http://www.w3.org/1998/Math/MathML\" ", "")
    assert "<audio" in page and "data:image/png;base64," in page and "a &lt; b" in page and "<title>A small page" in page
    assert "$" not in re.sub("<style>.*?</style>|base64,[^\"']*", "", page, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!data:|index.html|9_small.html|https://arxiv.org)""", page)
    assert "README.md" not in page and '<a href="9_small.html">to itself</a>' in page
    assert 'href="9_small.html">A small page' in (tmp_path / "pages" / "index.html").read_text()


def test_code_on_a_page_is_the_code_of_its_source(source, notebook):
    """Nothing that rewrites links touches code: `WEIGHTS[field](x)` is no link."""
    page = build_notebooks.page(notebook)
    drawn = [html.unescape(re.sub("<[^>]*>", "", block)).strip("\n") for block in
             re.findall(r'<pre><code class="language-python">(.*?)</code></pre>', page, re.S)]
    written = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            written.append("".join(cell["source"]))
        texts = [cell["source"]] if cell["cell_type"] == "markdown" else [
            output["data"].get("text/markdown", "") for output in cell["outputs"] if "data" in output]
        written += [block for text in texts for block in re.findall(r"```python\n(.*?)```", "".join(text), re.S)]
    assert drawn == [block.strip("\n") for block in written]


def test_only_prose_is_rewritten_for_a_page():
    prose = build_notebooks.for_page(["see [this](2_score.ipynb), [that](../README.md), [out](https://arxiv.org)\n"])
    assert prose == "see [this](2_score.html), that, [out](https://arxiv.org)\n"
    for kept in ("```python\nWEIGHTS[field](x)\n```", "`W[a](b)`", "$[f](x)$", "$$\\big[f](x)$$"):
        assert build_notebooks.for_page([kept]) == kept


def test_every_formula_of_every_notebook_is_drawn(source, notebook):
    page = build_notebooks.page(notebook)
    outside = re.sub("<style>.*?</style>|<pre>.*?</pre>|<code>.*?</code>|base64,[^\"']*", "", page, flags=re.S)
    assert "$" not in outside and "\\" not in outside and "<merror" not in page
    assert page.count("<math") >= 10 and page.count("<audio") == sum(
        "".join(output.get("data", {}).get("text/html", "")).count("<audio")
        for cell in notebook["cells"] for output in cell.get("outputs", []))
    assert not re.search(r'<(script|link|iframe|img)[^>]*(src|href)="(?!data:)', page)
