"""The command line: reproduce, publish, meta-train, search, evolve, data, weights. `python -m mnemosyne --help`.

`weights` works with what the optimizer needs. The others import the libraries of an extra when called, and say which.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from mnemosyne.optimizer import zoo
from mnemosyne.store import StoreError

OF_THE_BOOK = {
    "reproduce": "regenerate every figure and table by running the notebooks",
    "publish": "copy what runs have computed to what the repository keeps",
    "meta-train": "meta-train an optimizer and write its weights and card",
    "search": "search for a law of a few numbers over whole runs, and write its weights and card",
    "evolve": "meta-train an optimizer by evolution and write its weights and card",
}
"""Commands of `book.commands`, each with a line of help."""


def data(action: str, name: str | None) -> None:
    """List data sets, download one's originals, or check that they are the published files."""
    with extra("data", "tasks"):
        from mnemosyne.tasks.data import images
    originals = images.originals()
    if action == "list":
        for known in images.NAMES:
            print(f"{known:14s} {images.state(known)}")
        print(f"originals: {originals} (MNEMOSYNE_DATA)")
        return
    if name is None:
        raise ValueError(f"which data set? python -m mnemosyne data {action} {'|'.join(images.SOURCES)}")
    if action == "fetch":
        print(f"{name}: originals in {images.fetch(name)}")
    else:
        images.verify(name)
        print(f"{name}: every file is the published one")


def weights(action: str, name: str | None) -> None:
    """List the weights that ship with the package, or print the card of one."""
    if action == "card":
        print(zoo.card(name or zoo.RECOMMENDED))
        return
    for known in zoo.available():
        paths = zoo.files_of(known)
        parts = "" if known in zoo.shipped() else "  of " + " and ".join(path.stem for path in paths)
        print(f"{known:16s} {sum(path.stat().st_size for path in paths) / 1e3:6.1f} kB{parts}")


def installed() -> str:
    """The version that is installed; where the package is only on the path, that there is none."""
    try:
        return version("mnemosyne-optimizer")
    except PackageNotFoundError:
        return "(not installed: on the path of imports alone)"


def parser() -> argparse.ArgumentParser:
    """What the command line takes; of the book's commands only that they are there."""
    whole = argparse.ArgumentParser(prog="mnemosyne", description="A learned optimizer, and the book about it.")
    whole.add_argument("--version", action="version", version=f"mnemosyne {installed()}")
    commands = whole.add_subparsers(required=True, metavar="command")
    for name, about in OF_THE_BOOK.items():
        commands.add_parser(name, help=about)
    for name, run, actions, about, whose in (
        ("data", data, ("list", "fetch", "verify"), "list, download or check data sets", "a data set; list takes none"),
        (
            "weights",
            weights,
            ("list", "card"),
            "list what ships, print a card",
            "whose card; that of the recommended one by default",
        ),
    ):
        command = commands.add_parser(name, help=about, description=run.__doc__)
        command.add_argument("action", choices=actions)
        command.add_argument("name", nargs="?", help=whose)
        command.set_defaults(run=run)
    return whole


@contextmanager
def extra(command: str, needed: str) -> Iterator[None]:
    """Import what a command needs; where a library is missing, a SystemExit names it and the extra that has it."""
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = f"pip install 'mnemosyne-optimizer[{needed}]'"
        raise SystemExit(f"mnemosyne {command} needs {error.name}, which is not installed: {remedy}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """End without a traceback when a reader of the output has gone (141), or at Ctrl-C (130), as other commands do.

    A letter that the output's encoding lacks is printed as a question mark.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be written goes nowhere, else Python tells of it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def main(args: list[str] | None = None) -> None:
    """Run one command; a mistake in its arguments or data is a message, not a traceback."""
    words = sys.argv[1:] if args is None else args
    with quietly():
        try:
            if words and words[0] in OF_THE_BOOK:
                with extra(words[0], "book"):
                    from mnemosyne.book import commands
                sys.exit(commands.run(words[0], words[1:]))
            chosen = vars(parser().parse_args(words))
            chosen.pop("run")(**chosen)
            sys.exit(0)
        except BrokenPipeError:
            raise
        except (ValueError, StoreError, OSError) as error:
            sys.exit(f"mnemosyne: {error}")


if __name__ == "__main__":
    main()
