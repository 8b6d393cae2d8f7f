"""What the site does beyond Sphinx: fresh numbers, docstrings as they are written here, badges, an entry page."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mnemosyne.book import pages

CODE = re.compile(r"(`[^`]+`)")
SECTION = re.compile(r"(Args|Returns|Raises):$")
STATEMENT = re.compile(r"[a-z_, ]+ = [\w.]+\(")


def badges(repository: str, notebook: str) -> str:
    """Links that open a chapter in Colab and in Binder, in markdown; nothing without a repository's address."""
    if not repository:
        return ""
    name = repository.removeprefix("https://github.com/").strip("/")
    return (
        f"[Open in Colab](https://colab.research.google.com/github/{name}/blob/HEAD/notebooks/{notebook}.ipynb) · "
        f"[Open in Binder](https://mybinder.org/v2/gh/{name}/HEAD?labpath=notebooks/{notebook}.ipynb)"
    )


def with_badges(source: str, line: str) -> str:
    """A notebook with a line below its title."""
    notebook = json.loads(source)
    heading, _, rest = "".join(notebook["cells"][0]["source"]).partition("\n")
    notebook["cells"][0]["source"] = f"{heading}\n\n{line}\n{rest}"
    return json.dumps(notebook)


def read(app, document: str, source: list[str]) -> None:
    """Bring a page's generated blocks up to date, and give a chapter its badges."""
    folder, _, name = document.partition("/")
    if folder == "docs":
        source[0] = pages.refreshed(source[0])
    elif folder == "notebooks" and app.config.repository:
        source[0] = with_badges(source[0], badges(app.config.repository, name))


def docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring of this house into reStructuredText: `code`, and indented equations and code as they are."""
    lines[:] = "\n\n".join(_paragraphs("\n".join(lines).split("\n\n"))).split("\n")


def _paragraphs(paragraphs: list[str]) -> Iterator[str]:
    """Each paragraph, marked as verbatim if it is set in by four or more beside the last that was not."""
    indent = 0
    for paragraph in paragraphs:
        lines = paragraph.split("\n")
        if lines[0].strip() == "Example:":
            yield "\n".join(["Example::", "", *lines[1:]])
        elif _indent(lines[0]) >= indent + 4:
            yield " " * indent + "::\n\n" + paragraph
        elif STATEMENT.match(lines[0]):
            yield "\n".join(["::", "", *(f"    {line}" for line in lines)])
        else:
            yield "\n".join(map(_inline, lines))
            indent = _indent(lines[-1 if SECTION.match(lines[0]) else 0])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _inline(line: str) -> str:
    """Code between double backticks; every other character that reStructuredText would read is escaped."""
    parts = CODE.split(line)  # text and code in turns
    first, *rest = (re.sub(r"([*|\\]|_\b)", r"\\\1", text) for text in parts[::2])
    ends = ("\\ " if text[:1].isalnum() else "" for text in rest)  # code ends where no letter follows
    return first + "".join(f"`{code}`{end}{text}" for code, end, text in zip(parts[1::2], ends, rest, strict=True))


def enter(app, error) -> None:
    """The page at the root leads to the start page."""
    if error is None:
        page = '<!doctype html><meta charset="utf-8"><title>Mnemosyne</title>'
        page += '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">Mnemosyne</a>\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app) -> dict:
    """Tell Sphinx."""
    app.add_config_value("repository", "", "env")
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    app.connect("build-finished", enter)
    return {"parallel_read_safe": True}
