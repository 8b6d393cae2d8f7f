"""Publish what a run at a scale has computed: the only writer of what the repository keeps of results.

    publish(scale="laptop")      # tables, claims, figures, executed notebooks, and the rows behind them

A run writes to folders that git ignores, so that nothing published changes by running. Publishing copies from there
what is up to date.
"""

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

from mnemosyne.book import chapter, folders, kept, reproduce
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
        ValueError: if a notebook's run is not up to date; the message has the command that makes it so.
    """
    names, whole = reproduce.select(only), scale_named(scale).judges
    stale = [name for name in names if not reproduce.up_to_date(name, scale, 0)]
    if stale:
        numbers = " ".join(name.split("_")[0] for name in stale)
        raise ValueError(
            f'no run that is up to date of {", ".join(stale)}; make figures SCALE={scale} ONLY="{numbers}"'
        )
    files: list[Path] = []
    for name in names:
        files += _copy(name, scale, whole)
        if whole:
            if keys := chapter.used(scale, name):
                rows = folders.published_rows() / scale / f"{name}.zip"
                kept.publish(rows, keys)
                files.append(rows)
            source = reproduce.source_of(name)
            shown = with_outputs(_read(source), _read(reproduce.executed(name, scale, 0)))
            folders.write(source, nbformat.writes(shown) + "\n")
            files.append(source)
    if not only:
        places = folders.published_tables(scale), folders.published_figures(scale), folders.published_rows() / scale
        for folder in places:
            for path in set(folder.glob("*")) - set(files):
                path.unlink()
    return files


def _copy(name: str, scale: str, whole: bool) -> list[Path]:
    """Copy a notebook's tables, claims and figures, or its claims alone."""
    files = []
    for path in chapter.written(scale, name):
        kind, file = path.split("/")
        if whole or file.endswith(".claims.json"):
            to = {"tables": folders.published_tables, "figures": folders.published_figures}[kind](scale) / file
            folders.write(to, (folders.runs(scale) / path).read_bytes())
            files.append(to)
    return files


def _read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


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
