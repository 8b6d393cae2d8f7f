"""The house: imports point one way, from the book down to the memory."""

import ast
import importlib
import re
import types
from pathlib import Path

import pytest

import mnemosyne

HOUSE = Path(mnemosyne.__file__).parent

# What each room may import besides itself, and besides `types`, `store` and `inner`, which all may.
ALLOWED = {
    "types": set(),
    "store": set(),
    "inner": set(),
    "provenance": set(),
    "memory": set(),
    "theory": {"memory"},
    "optimizer": {"memory"},
    "tasks": set(),
    "evaluate": {"optimizer"},
    "memformers": set(),
    "metatrain": {"memory", "optimizer", "tasks", "evaluate", "provenance"},
    "book": {"memory", "theory", "optimizer", "tasks", "evaluate", "metatrain", "memformers", "provenance"},
}
FOUNDATION = {"types", "store", "inner"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "mnemosyne"


def modules() -> dict[str, Path]:
    paths = sorted(HOUSE.rglob("*.py"))
    parts = {p: ("mnemosyne", *p.relative_to(HOUSE).with_suffix("").parts) for p in paths}
    return {".".join(x for x in names if x != "__init__"): p for p, names in parts.items()}


def imports(path: Path) -> set[str]:
    """The modules of this package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {next(m for m in known(name)) for name in found if name.split(".")[0] == "mnemosyne"}


def known(name: str):
    """The module that a dotted name is, or is in."""
    while name:
        if name in MODULES:
            yield name
        name = name.rpartition(".")[0]


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    here = room(module)
    if here in ("mnemosyne", "__main__"):
        return
    used = {room(other) for other in imports(MODULES[module])} - {here} - FOUNDATION
    assert used <= ALLOWED[here], f"{module} of {here} imports {sorted(used - ALLOWED[here])}"


@pytest.mark.parametrize("facade", [m for m, path in MODULES.items() if path.name == "__init__.py"])
def test_a_name_of_a_facade_is_one_thing(facade):
    """What it lists is there, and hides no module of the room by a function of the same name."""
    room = importlib.import_module(facade)
    for name in getattr(room, "__all__", ()):
        thing = getattr(room, name)
        assert f"{facade}.{name}" not in MODULES or isinstance(thing, types.ModuleType), name


def test_every_room_is_known():
    assert {room(m) for m in MODULES} - {"mnemosyne", "__main__"} == set(ALLOWED)


def test_there_is_no_import_circle():
    """Beyond façades, which a module of the room does not import."""
    arrows = {m: {o for o in imports(p) if MODULES[o].name != "__init__.py"} for m, p in MODULES.items()}
    floors: dict[str, int] = {}

    def floor(module: str, above: tuple[str, ...] = ()) -> int:
        assert module not in above, " → ".join((*above, module))
        if module not in floors:
            floors[module] = 1 + max((floor(m, (*above, module)) for m in arrows[module]), default=0)
        return floors[module]

    assert max(map(floor, arrows)) > 1


def test_the_house_has_the_size_that_its_page_says():
    """The rooms of docs/rooms.md in the column "now"; modules and lines are those of the day of the move."""
    inner = [m for m, path in MODULES.items() if path.name != "__init__.py"]
    arrows = {(room(m), room(o)) for m in inner for o in imports(MODULES[m])}
    arrows = {(here, there) for here, there in arrows if here != there and {here, there} <= set(ALLOWED)}
    floor = lambda r: 1 + max((floor(there) for here, there in arrows if here == r), default=0)
    counted = {
        "rooms": len(ALLOWED),
        "imports between rooms": len(arrows),
        "floors of rooms, the longest way down": max(map(floor, ALLOWED)),
    }
    page = (HOUSE.parent / "docs" / "rooms.md").read_text(encoding="utf-8")
    said = {row: int(now) for row, now in re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d+) \|$", page, re.MULTILINE)}
    assert {row: said[row] for row in counted} == counted


def mentions() -> list[tuple[str, str]]:
    """Every `module.name` in docstrings and comments whose module is one of this package, with where it stands."""
    bases = {m.rpartition(".")[2] for m in MODULES}
    found = [
        (m, said)
        for m, p in MODULES.items()
        for said in re.findall(r"`(\w+\.\w+)[^`]*`", p.read_text(encoding="utf-8"))
    ]
    return [(m, said) for m, said in found if said.split(".")[0] in bases]


@pytest.mark.parametrize(("where", "said"), sorted(set(mentions())))
def test_what_docstrings_point_at_is_there(where, said):
    base, name = said.split(".")
    homes = [m for m in MODULES if m.rpartition(".")[2] == base]
    there = (f"{m}.{name}" in MODULES or hasattr(importlib.import_module(m), name) for m in homes)
    assert any(there), f"{where} speaks of `{said}`"
