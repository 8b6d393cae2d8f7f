"""Publish what a run at a scale has computed: the only writer of what the repository keeps of results.

    publish(scale="laptop")      # tables, claims, figures, executed notebooks, and the rows behind them

A run writes to folders that git ignores, so that nothing published changes by running. Publishing copies from there
what is up to date.
"""

import base64
import hashlib
import io
import json
from pathlib import Path

import nbformat
from PIL import Image

from mnemosyne.book import folders, kept, reproduce, results, whole
from mnemosyne.book.scale import scale_named


def publish(*, scale: str = "laptop", only: tuple[str, ...] = ()) -> list[Path]:
    """Copy runs of a scale, with seed 0, to what is published.

    At a scale that judges no empirical claim, claims alone are published, which later runs are compared with.

    Args:
        scale: of the runs.
        only: notebooks, by number or name; all by default. With all, what no notebook writes any more is deleted.

    Returns:
        The files that were written.

    Raises:
        ValueError: if a notebook's run is not up to date, or its rows are damaged; the message has the command that
            makes it so. Nothing is written then.
    """
    with folders.alone(folders.cache() / "locks" / "publish", "publish"), reproduce.alone(scale, 0, "publish"):
        for folder in (*_places(scale), whole.listing(scale).parent, folders.root() / "notebooks"):
            folders.sweep(folder)
        names = reproduce.select(only)
        stale = [name for name in names if not reproduce.up_to_date(name, scale, 0)]
        if stale:
            numbers = " ".join(name.split("_")[0] for name in stale)
            raise ValueError(
                f'no run that is up to date of {", ".join(stale)}; make figures SCALE={scale} ONLY="{numbers}"'
            )
        files: dict[Path, bytes] = {}  # all is read before anything is written
        for name in names:
            files |= _made(name, scale, scale_named(scale).judges)
        for path, content in files.items():
            folders.write(path, content)
        if not only:
            for path in {p for folder in _places(scale) for p in folder.glob("*")} - files.keys():
                path.unlink()
        _list(scale, files, whole.digests(scale) if only else {})
    return list(files)


def _places(scale: str) -> tuple[Path, Path, Path]:
    return folders.published_tables(scale), folders.published_figures(scale), folders.published_rows() / scale


def _made(name: str, scale: str, judges: bool) -> dict[Path, bytes]:
    """What a notebook's run has made, by the place where it is published; its claims alone where nothing is judged."""
    tables, figures, rows = _places(scale)
    files = {}
    for path in results.written(scale, name):
        kind, file = path.split("/")
        if judges or file.endswith(".claims.json"):
            files[{"tables": tables, "figures": figures}[kind] / file] = (folders.runs(scale) / path).read_bytes()
    if judges:
        if keys := results.used(scale, name):
            files[rows / f"{name}.zip"] = kept.archive(keys, f"make figures SCALE={scale} ONLY={name.split('_')[0]}")
        source = reproduce.source_of(name)
        shown = with_outputs(whole.notebook(source), whole.notebook(reproduce.executed(name, scale, 0)))
        files[source] = (nbformat.writes(shown) + "\n").encode("utf-8")
    return files


def _list(scale: str, files: dict[Path, bytes], known: dict[str, str]) -> None:
    """List the digests of published tables, claims and figures, with those that were published before."""
    tables, figures, _ = _places(scale)
    new = {p.name: hashlib.sha256(content).hexdigest() for p, content in files.items() if p.parent in (tables, figures)}
    folders.write(whole.listing(scale), json.dumps(dict(sorted((known | new).items())), indent=0) + "\n")


def with_outputs(source: nbformat.NotebookNode, run: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook as it is written, with the outputs of an executed copy, and without when and where that was.

    The copy has one cell more, in which papermill has put the parameters.
    """
    source.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    done = [c for c in run.cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
    code = [c for c in source.cells if c.cell_type == "code"]
    for count, (cell, executed) in enumerate(zip(code, done, strict=True), start=1):
        cell.outputs, cell.execution_count = executed.outputs, count
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = count
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = in_few_colors(output["data"]["image/png"])
    for cell in source.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    return source


def in_few_colors(png: str) -> str:
    """Re-encode a base64 PNG with a palette of 128 colours: a third of the size and, for plots, the same picture."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(128).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()
