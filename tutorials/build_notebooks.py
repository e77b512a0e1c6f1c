"""Build the notebooks from their sources, or HTML pages from the notebooks, to read without running anything.

    python tutorials/build_notebooks.py [SOURCE ...] [--all]     N_name.py -> N_name.ipynb, those that are out of date
    python tutorials/build_notebooks.py --html FOLDER            one self-contained page a notebook, and an index

A notebook remembers a hash of what it was built from: its source, the modules beside it, the source text of each
function that it shows and the bytes of each checkpoint and table that it names. The same sources give the same bytes. A cell
tagged `export-NAME` puts its picture into tutorials/NAME.png, too.
"""

import argparse
import ast
import base64
import contextlib
import functools
import hashlib
import html
import importlib
import inspect
import io
import json
import os
import re
import struct
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT = 800_000                                          # bytes of a notebook


class BuildError(ValueError):
    """A notebook that must not be kept. The message names it and says why."""


# ------------------------------------------------------------------------------------------------ up to date?

def sources():
    return sorted(HERE.glob("[1-9]_*.py"))


def calls(tree, name):
    """The arguments of each call of a function `name` in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield from node.args


def built_from(source, code_only=False):
    """SHA-256 of all that a notebook is made of, see above; code_only: of all that its outputs are made of."""
    text = Path(source).read_text()
    tree = ast.parse(text)
    parts = [(ast.unparse(tree) if code_only else text).encode()]
    parts += [(HERE / name).read_bytes() for name in ("tools.py", "toy.py")]
    sys.path[:0] = [str(ROOT), str(HERE)]
    try:
        for argument in calls(tree, "show"):
            names = ast.unparse(argument).split(".")
            shown = functools.reduce(getattr, names[1:], importlib.import_module(names[0]))
            parts.append(inspect.getsource(shown).encode())
    finally:
        del sys.path[:2]
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    named = [*sorted((ROOT / "pretrained").glob("*.safetensors")), *sorted((HERE / "experiments" / "tables").glob("*.csv"))]
    parts += [path.read_bytes() for path in named if path.stem in strings or path.name in strings]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def is_stale(source):
    notebook = Path(source).with_suffix(".ipynb")
    if not notebook.exists():
        return True
    return json.loads(notebook.read_text())["metadata"].get("built_from") != built_from(source)


def redefined(source):
    """Names of functions and classes that a source defines although a module of ours has them."""
    modules = [ast.parse(path.read_text()) for path in [*ROOT.glob("*.py"), HERE / "tools.py", HERE / "toy.py"]]
    definitions = (ast.FunctionDef, ast.ClassDef)
    ours = {node.name for tree in modules for node in tree.body if isinstance(node, definitions)}
    tree, theirs = ast.parse(Path(source).read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, definitions):
            theirs.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            theirs |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return sorted(ours & theirs)


# ------------------------------------------------------------------------------------------------ running

def build(source, anew=False):
    """Run a source from top to bottom in a fresh kernel; its notebook as text. Raises BuildError, CellExecutionError.

    Where nothing but its Markdown has changed, the outputs are kept, unless `anew`.
    """
    import jupytext
    from nbclient import NotebookClient
    source = Path(source)
    if names := redefined(source):
        raise BuildError(f"{source.name} defines {', '.join(names)}, which a module has: import it")
    notebook, before = jupytext.read(source), source.with_suffix(".ipynb")
    digests = {"built_from": built_from(source), "ran_from": built_from(source, code_only=True)}
    old = json.loads(before.read_text()) if before.exists() and not anew else {"cells": [], "metadata": {}}
    if old["metadata"].get("ran_from") == digests["ran_from"]:             # only the text around the code has changed
        ran = iter([cell for cell in old["cells"] if cell["cell_type"] == "code"])
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell |= {key: value for key, value in next(ran).items() if key in ("outputs", "execution_count")}
    else:
        os.environ["TUTORIALS_STRICT"] = "1"             # a failed check stops the build
        NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False,
                       extra_arguments=["--log-level=ERROR"],
                       resources={"metadata": {"path": str(source.parent)}}).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = joined([tidy(output, source.name) for output in cell.outputs])
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{number:03}"
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}, **digests}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    for trace in (" at 0x", str(ROOT), str(Path.home()) + "/"):
        if trace in text:
            at = text.index(trace)
            raise BuildError(f"{source.name}: its output holds '{trace}', which is of this machine or this run: "
                             f"...{text[max(0, at - 80):at + 80]}...")
    if len(text.encode()) > LIMIT:
        raise BuildError(f"{source.name}: {len(text.encode())} bytes, more than {LIMIT}")
    return text


def tidy(output, name):
    """An output without what differs between runs; pictures with 256 colours, which takes a quarter of the bytes."""
    if output.get("name") == "stderr":
        raise BuildError(f"{name}: a cell writes to stderr: {output['text'][:500]}")
    if "data" in output:
        output.metadata = {}
        if output.output_type == "execute_result":
            output.execution_count = None
        if "image/png" in output.data:
            output.data = {"image/png": smaller(output.data["image/png"])}
    return output


def joined(outputs):
    """What was printed in a row as one output: a kernel cuts it where its clock says so."""
    kept = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def smaller(png):
    from PIL import Image
    image, file = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def exports(notebook):
    """{name: bytes of a PNG} of the cells with a tag `export-NAME`."""
    found = {}
    for cell in notebook["cells"]:
        for tag in cell["metadata"].get("tags", []):
            if tag.startswith("export-"):
                pictures = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
                found[tag.removeprefix("export-")] = base64.b64decode(pictures[-1])
    return found


# ------------------------------------------------------------------------------------------------ pages

STYLE = """
:root { --ink: #1c2024; --soft: #5b6570; --line: #e3e6ea; --paper: #fff; --shade: #f6f7f9; --accent: #0b62a8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 system-ui, "Segoe UI", Roboto,
       "Helvetica Neue", sans-serif; }
main { max-width: 63rem; margin: 0 auto; padding: 1.5rem 1.25rem 5rem; }
section > * { max-width: 47rem; } section > .math, section > .scroll { max-width: none; }
.elsewhere { display: none; }
nav { font-size: .85rem; color: var(--soft); border-bottom: 1px solid var(--line); padding-bottom: .6rem; display: flex;
      gap: 1rem; justify-content: space-between; flex-wrap: wrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 2rem; line-height: 1.2; margin: 1.6rem 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.4rem; margin: 2.8rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.12rem; margin: 2rem 0 .4rem; }
p, ul, ol { margin: .6rem 0; } li { margin: .25rem 0; }
code { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--shade);
       padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere; }
pre { margin: .5rem 0; padding: .7rem .9rem; overflow-x: auto; border-radius: 7px; background: var(--shade);
      font-size: .78rem; line-height: 1.45; }
pre code { background: none; padding: 0; font-size: .78rem; overflow-wrap: normal; }
.input pre { border-left: 3px solid #b9c4d0; }
.shown pre { background: #fbf8f1; border-left: 3px solid #d9b55b; }
.shown > p { font-size: .82rem; color: var(--soft); margin: 1rem 0 0; }
.text pre { background: none; border: 1px solid var(--line); color: #24492e; white-space: pre-wrap; }
.scroll { overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; margin: .9rem 0; }
td code { white-space: nowrap; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: middle; }
th { border-bottom: 2px solid #c9d0d8; font-weight: 600; }
audio { height: 34px; width: min(21rem, 56vw); vertical-align: middle; }
math { font-size: 1.06em; } math[display=block] { margin: .7rem 0; overflow-x: auto; overflow-y: hidden; padding: .2rem; }
details { border: 1px solid var(--line); border-radius: 7px; padding: .4rem .9rem; margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
.input details { border: 0; border-left: 3px solid #b9c4d0; border-radius: 0 7px 7px 0; background: var(--shade);
                 padding: .1rem .9rem; font-size: .85rem; } .input details pre { border: 0; padding: .3rem 0; }
@media (max-width: 600px) { body { font-size: 16px; } main { padding: 1rem .9rem 4rem; } h1 { font-size: 1.6rem; }
  th, td { padding: .32rem .4rem; } table { font-size: .86rem; } audio { width: 52vw; }
  .scroll img { max-width: none; height: auto; max-height: 19rem; } .scroll img { min-width: min(100%, 30rem); }
  .scroll img.tall { max-height: none; } }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e4e7eb; --soft: #9aa5b1; --line: #333a42; --paper: #14171a; --shade: #1d2126;
          --accent: #7ab8ee; }
  .shown pre { background: #211f18; } .text pre { color: #b5d8be; } img { background: #fff; border-radius: 4px; } }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head>
<body><main>{body}</main></body></html>
"""


@functools.cache
def markdown():
    """Function Markdown -> HTML, formulas as MathML, which browsers draw by themselves."""
    import latex2mathml.converter
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    def code(text, language, _):
        return highlight(text, get_lexer_by_name(language or "text"), HtmlFormatter(nowrap=True))

    def letter(match):
        """A script or double-struck letter as the character that it is: browsers know no other mathvariant by now."""
        kind = {"script": "SCRIPT", "double-struck": "DOUBLE-STRUCK"}[match[1]]
        for name in (f"{kind} CAPITAL {match[2]}", f"MATHEMATICAL {kind} CAPITAL {match[2]}"):
            with contextlib.suppress(KeyError):
                return f"<mi>{unicodedata.lookup(name)}</mi>"

    def math(text, options):
        drawn = latex2mathml.converter.convert(text, display="block" if options["display_mode"] else "inline")
        return re.sub(r'<mi mathvariant="(script|double-struck)">([A-Z])</mi>', letter, drawn)

    return MarkdownIt("commonmark", {"html": True, "highlight": code}).enable("table").use(
        dollarmath_plugin, renderer=math, allow_space=False, double_inline=True).render


def for_page(lines):
    """Markdown with its pictures inside. Links lead to other pages; to other files they would lead nowhere.

    Only prose is rewritten: code and formulas, in which brackets may follow brackets, stay as they are.
    """
    def rewritten(m):
        if m["kept"]:
            return m["kept"]
        if m["mark"]:
            picture = base64.b64encode((HERE / m["target"]).read_bytes()).decode()
            return f"![{m['label']}](data:image/png;base64,{picture})"
        other = re.fullmatch(r"(\d_\w+)\.ipynb", m["target"])
        return f"[{m['label']}]({other[1]}.html)" if other else m["label"]
    return re.sub(r"(?P<kept>```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$)"
                  r"|(?P<mark>!?)\[(?P<label>[^\]]*)\]\((?!https?:)(?P<target>[^)]*)\)", rewritten, "".join(lines), flags=re.S)


def caption(cells, number):
    """The first paragraph below cell `number`, as plain text: it says what its picture shows. "" without one."""
    if number + 1 == len(cells) or cells[number + 1]["cell_type"] != "markdown":
        return ""
    first = "".join(cells[number + 1]["source"]).split("\n\n")[0]
    if re.match(r"#|\||\$\$|<", first):
        return ""
    return re.sub(r"\s+", " ", re.sub(r"\]\([^)]*\)|[*`\[\]$\\]", "", first)).strip()


def page(notebook, before="", after=""):
    """A notebook as one HTML page that needs nothing else."""
    from pygments.formatters import HtmlFormatter
    render, body, title = markdown(), [], "Notebook"

    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if heading := re.match(r"# (.*)", text):
                title = heading[1]
            body.append(f"<section>{render(for_page(text))}</section>")
            continue
        lines = text.count("\n") + 1
        code = render(f"```python\n{text}\n```")
        if lines > 12:                                   # who looks sees the outcome first
            code = f"<details><summary>the code of this cell, {lines} lines</summary>{code}</details>"
        body.append(f'<div class="input">{code}</div>')
        for output in cell["outputs"]:
            content = output.get("data", {})
            if "image/png" in content:
                alt = html.escape(caption(notebook["cells"], number) or f"figure of {title}")
                picture = content["image/png"].strip()
                width, height = struct.unpack(">II", base64.b64decode(picture[:32])[16:])
                tall = 'class="tall" ' if height > width else ""
                body.append(f'<div class="scroll"><img {tall}alt="{alt}" '
                            f'src="data:image/png;base64,{picture}"></div>')
            elif "image/svg+xml" in content:
                body.append(f'<div class="scroll">{"".join(content["image/svg+xml"])}</div>')
            elif "text/html" in content:
                body.append(f'<div class="scroll">{"".join(content["text/html"])}</div>')
            elif "text/markdown" in content:
                body.append(f'<div class="shown">{render(for_page(content["text/markdown"]))}</div>')
            else:
                text = "".join(output.get("text") or content.get("text/plain", ""))
                body.append(f'<div class="text"><pre>{html.escape(text)}</pre></div>')
    body = re.sub(r"(<table>.*?</table>)", r'<div class="scroll">\1</div>', "".join(body), flags=re.S)
    nav = f'<nav><span>{before}</span><a href="index.html">all notebooks</a><span>{after}</span></nav>'
    dark = "\n".join(line for line in HtmlFormatter(style="github-dark").get_style_defs("pre").splitlines()
                     if not line.startswith(("pre {", "td.", "span.")))
    style = (HtmlFormatter(style="friendly").get_style_defs("pre") + STYLE
             + f"@media (prefers-color-scheme: dark) {{ {dark} }}\n")
    return PAGE.format(title=html.escape(re.sub(r"[$`]", "", title)), style=style, body=nav + body + nav)


def export(notebooks, folder):
    """Pages of the notebooks (paths), and index.html, in `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    read = [json.loads(path.read_text()) for path in notebooks]
    heads = ["".join(notebook["cells"][0]["source"]).split("\n\n") for notebook in read]
    titles = [head[0].removeprefix("# ") for head in heads]
    link = lambda i, text: f'<a href="{notebooks[i].stem}.html">{text}</a>' if 0 <= i < len(notebooks) else ""
    for i, notebook in enumerate(read):
        (folder / f"{notebooks[i].stem}.html").write_text(
            page(notebook, link(i - 1, "&larr; before"), link(i + 1, "next &rarr;")))
    text = ["<h1>Generative speech enhancement in eight notebooks</h1>",
            "<p>Each page plays the sound, states each equation, shows the function that computes it, checks it and draws it. "
            "The sources are notebooks: to run them, open <code>tutorials/</code> in JupyterLab.</p>"]
    toy = [picture for notebook in read for name, picture in exports(notebook).items() if name == "toy"]
    text += [f'<img alt="The toy under every method" src="data:image/png;base64,{base64.b64encode(p).decode()}">'
             for p in toy]
    for i, head in enumerate(heads):
        text.append(f"<h3>{link(i, html.escape(titles[i]))}</h3>{markdown()(head[1] if len(head) > 1 else '')}")
    (folder / "index.html").write_text(PAGE.format(title="Generative speech enhancement", style=STYLE,
                                                   body="".join(text)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, metavar="SOURCE", help="(default: all that are out of date)")
    parser.add_argument("--all", action="store_true", help="build those that are up to date, too")
    parser.add_argument("--html", metavar="FOLDER", help="write pages of the notebooks as they are, and build nothing")
    args = parser.parse_args()
    if args.html:
        export([path for source in sources() if (path := source.with_suffix(".ipynb")).exists()], args.html)
        return
    for source in args.sources or sources():
        if not (args.sources or args.all or is_stale(source)):
            continue
        print(source.name, flush=True)
        try:
            text = build(source, args.all)
        except BuildError as error:
            sys.exit(f"not built: {error}")
        source.with_suffix(".ipynb").write_text(text)
        for name, picture in exports(json.loads(text)).items():
            (HERE / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
