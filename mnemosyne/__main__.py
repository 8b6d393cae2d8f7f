"""The command line: reproduce, publish, meta-train, search, data, weights. `python -m mnemosyne --help`.

`data` and `weights` work with what the optimizer needs. The others import the libraries of the book when called.
"""

import argparse
import sys

from mnemosyne.optimizer import zoo
from mnemosyne.store import StoreError
from mnemosyne.tasks.data import images

OF_THE_BOOK = {
    "reproduce": "regenerate every figure and table by running the notebooks",
    "publish": "copy what runs have computed to what the repository keeps",
    "meta-train": "meta-train an optimizer and write its weights and card",
    "search": "search for the pace of `paced`",
}
"""Commands of `book.commands`, each with a line of help."""


def data(action: str, name: str | None) -> None:
    """List data sets, download one's originals, or check that they are the published files."""
    if action == "list":
        for known in images.NAMES:
            print(f"{known:14s} {state(known)}")
        print(f"originals: {images.originals()} (MNEMOSYNE_DATA)")
        return
    if name is None:
        raise ValueError(f"which data set? python -m mnemosyne data {action} {'|'.join(images.SOURCES)}")
    if action == "fetch":
        print(f"{name}: originals in {images.fetch(name)}")
    else:
        images.verify(name)
        print(f"{name}: every file is the published one")


def state(name: str) -> str:
    """One line on whether a data set can be used."""
    if name in images.DIGITS:
        return "bundled with scikit-learn"
    try:
        images.verify(name)
        return f"present; {images.SOURCES[name].licence}"
    except images.DataError:
        source = images.SOURCES[name]
        remedy = f"python -m mnemosyne data fetch {name}" if source.url else "no public address; see data/README.md"
        return f"absent or damaged: {remedy}; {source.licence}"


def weights(action: str, name: str | None) -> None:
    """List the weights that ship with the package, or print the card of one."""
    if action == "card":
        print(zoo.card(name or "paced"))
        return
    for known in zoo.available():
        paths = zoo.files_of(known)
        parts = "" if known in zoo.shipped() else "  of " + " and ".join(path.stem for path in paths)
        print(f"{known:16s} {sum(path.stat().st_size for path in paths) / 1e3:6.1f} kB{parts}")


def parser() -> argparse.ArgumentParser:
    """What the command line takes; of the book's commands only that they are there."""
    whole = argparse.ArgumentParser(prog="mnemosyne", description="A learned optimizer, and the book about it.")
    commands = whole.add_subparsers(required=True, metavar="command")
    for name, about in OF_THE_BOOK.items():
        commands.add_parser(name, help=about)
    for name, run, actions, about, whose in (
        ("data", data, ("list", "fetch", "verify"), "list, download or check data sets", "a data set; list takes none"),
        ("weights", weights, ("list", "card"), "list what ships, print a card", "whose card; that of paced by default"),
    ):
        command = commands.add_parser(name, help=about, description=run.__doc__)
        command.add_argument("action", choices=actions)
        command.add_argument("name", nargs="?", help=whose)
        command.set_defaults(run=run)
    return whole


def from_the_book(name: str, args: list[str]) -> int:
    """Run a command whose libraries may be missing; a SystemExit says which extra has them."""
    try:
        from mnemosyne.book import commands
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"mnemosyne {name} needs {error.name}, which is not installed: pip install 'mnemosyne-optimizer[book]'"
        ) from error
    return commands.run(name, args)


def main(args: list[str] | None = None) -> None:
    """Run one command; a mistake in its arguments or data is a message, not a traceback."""
    words = sys.argv[1:] if args is None else args
    try:
        if words and words[0] in OF_THE_BOOK:
            sys.exit(from_the_book(words[0], words[1:]))
        chosen = vars(parser().parse_args(words))
        chosen.pop("run")(**chosen)
        sys.exit(0)
    except (ValueError, images.DataError, StoreError, PermissionError, FileNotFoundError) as error:
        sys.exit(f"mnemosyne: {error}")


if __name__ == "__main__":
    main()
