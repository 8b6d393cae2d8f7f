"""What a computation is, as a hash: a traced program with its constants, values, or the code of a function.

    program(step, params, batch)      # the same for a renamed function, another comment or another file
    value({"rates": (0.1, 0.01)})     # arrays by content, functions by what `code` says and what they close over
    code(study.energy_changes)        # the function, and all of the package that it reaches, by syntax

Whatever is kept of a run is found again under such a hash, so that what has changed is computed anew, and what has
not is not. Comments, docstrings, names of functions, files and modules are no part of a computation. Labels and
colours are no part of a program; they are part of `code` that reaches the record of an optimizer.
"""

import ast
import functools
import hashlib
import importlib.util
import re
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

PACKAGE = __name__.split(".")[0]
_LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})


class Deferred:
    """A value that is known by how it is computed, before it is: hashed by its key, traced by its shapes."""

    def __init__(self, key: str, like: Any, compute: Callable[[], Any]):
        self.key = key
        self.like = like  # pytree of `jax.ShapeDtypeStruct`s
        self._compute = compute

    @functools.cached_property
    def value(self) -> Any:
        return self._compute()


def combined(*parts: str) -> str:
    """One hash of several, in order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# Programs -------------------------------------------------------------------------------------------------------------


def program(function: Callable, *args: Any) -> str:
    """The hash of a function as JAX traces it: primitives, shapes, and constants by content.

    Args:
        function: what `jax.jit` takes.
        args: pytrees of arrays, of `jax.ShapeDtypeStruct`s, or of `Deferred`s; their values do not matter.
    """
    traced = jax.jit(function).trace(*shapes(args))
    return combined(_closed(traced.jaxpr, {}), _structure(traced.out_info))


def _structure(tree: Any) -> str:
    """How a pytree is built, without the names of its classes."""
    return re.sub(r"namedtuple\[\w+\]", "namedtuple", str(jax.tree.structure(tree)))


def shapes(tree: Any) -> Any:
    """A pytree of arrays and `Deferred`s as one of shapes."""
    known = jax.tree.map(lambda x: x.like if isinstance(x, Deferred) else x, tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), known)


def _closed(jaxpr: Any, seen: dict) -> str:
    """The hash of a jaxpr, closed or open; `seen` keeps those of parts that occur again."""
    if id(jaxpr) not in seen:
        consts = getattr(jaxpr, "consts", ())
        # Besides arrays there are literals, whose type has changed its name over versions of JAX.
        constants = [value(c if isinstance(c, jax.Array) else np.asarray(c)) for c in consts]
        lines = _lines(getattr(jaxpr, "jaxpr", jaxpr), seen)
        seen[id(jaxpr)] = combined(*constants, *lines)
    return seen[id(jaxpr)]


def _lines(jaxpr: Any, seen: dict) -> Iterator[str]:
    """A jaxpr's equations as text, with variables numbered in order."""
    numbers: dict = {}

    def named(v: Any) -> str:
        if isinstance(v, core.Literal):
            return f"{_typed(v.aval)}={value(np.asarray(v.val))}"
        return f"{numbers.setdefault(v, len(numbers))}:{_typed(v.aval)}"

    yield " ".join(map(named, (*jaxpr.constvars, *jaxpr.invars)))
    for e in jaxpr.eqns:
        # How a custom derivative is taken is no part of a program in which derivatives have been taken.
        left_out = {"name", "jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_thunk"}
        params = [f"{k}={_parameter(e.params[k], seen)}" for k in sorted(e.params.keys() - left_out)]
        yield f"{e.primitive.name} {params} {[named(v) for v in e.invars]} {[named(v) for v in e.outvars]}"
    yield " ".join(map(named, jaxpr.outvars))


def _typed(aval: Any) -> str:
    return f"{aval}{'~' if getattr(aval, 'weak_type', False) else ''}"


def _parameter(x: Any, seen: dict) -> str:
    """A primitive's parameter."""
    if isinstance(x, (core.Jaxpr, core.ClosedJaxpr)):
        return _closed(x, seen)
    if isinstance(x, (tuple, list)):
        return f"({','.join(_parameter(y, seen) for y in x)})"
    if isinstance(x, (np.ndarray, jax.Array, types.FunctionType)):
        return value(x)
    return re.sub(r"0x[0-9a-f]+", "", repr(x))


# Values ---------------------------------------------------------------------------------------------------------------


def value(x: Any) -> str:
    """The hash of plain values, arrays, containers, dataclasses, functions and `Deferred`s.

    Raises:
        TypeError: for anything else, such as an open file, whose content a hash cannot know.
    """
    if isinstance(x, Deferred):
        return x.key
    if x is None or isinstance(x, (bool, int, float, complex, str, bytes, np.dtype, range, Path)):
        return combined(type(x).__name__, repr(x))
    if isinstance(x, (jax.Array, np.ndarray, np.generic)):
        return _array(x)
    if isinstance(x, dict):
        return combined("dict", *(combined(value(k), value(v)) for k, v in x.items()))
    if isinstance(x, (tuple, list)):
        return combined("tuple", *map(value, x))
    if isinstance(x, functools.partial):
        return combined("partial", value(x.func), value(x.args), value(x.keywords))
    if isinstance(x, type):
        return combined("type", code(x))
    if is_dataclass(x):
        return combined("dataclass", *(combined(f.name, value(getattr(x, f.name))) for f in fields(x)))
    if isinstance(x, types.MethodType):
        return combined(value(x.__self__), value(x.__func__))
    if hasattr(x, "__wrapped__"):  # jitted, or checked
        return value(x.__wrapped__)
    if isinstance(x, types.FunctionType):
        return _function(x)
    if callable(x) and hasattr(x, "__qualname__"):
        return combined(str(x.__module__), x.__qualname__)
    raise TypeError(f"what a {type(x).__name__} holds cannot be hashed; hand over arrays, plain values or functions")


def _array(x: Any) -> str:
    known = _ARRAYS.get(id(x))
    if known is None or known[0] is not x:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return combined(str(x.dtype), _array(jax.random.key_data(x)))
        content = np.ascontiguousarray(x)
        digest = hashlib.sha256(content.view(np.uint8) if content.size and content.ndim else content.tobytes())
        known = x, combined(str(content.dtype), str(content.shape), digest.hexdigest())
        if isinstance(x, jax.Array) and content.nbytes > 10**6:  # cannot change, and takes time
            _ARRAYS[id(x)] = known
    return known[1]


_ARRAYS: dict[int, tuple[Any, str]] = {}


def _function(f: types.FunctionType) -> str:
    """A function by its code, its defaults and what it closes over."""
    if id(f) in _OPEN:
        return "itself"
    _OPEN.add(id(f))
    try:
        cells = [value(c.cell_contents) for c in f.__closure__ or ()]
        return combined(code(f), value(f.__defaults__), value(f.__kwdefaults__), *cells)
    finally:
        _OPEN.discard(id(f))


_OPEN: set[int] = set()  # functions being hashed, of which one may close over itself


# Code -----------------------------------------------------------------------------------------------------------------


def code(function: types.FunctionType | type) -> str:
    """The hash of a function's or a class's code, and of all definitions of this package that it reaches.

    In the package a definition counts as it is written, without docstrings and comments, whatever it is called and
    wherever it stands: a name that stands for a definition of the package is written as the definition's number, in the
    order in which they are reached. A library's function counts by name. Of others, as in a notebook, compiled code
    counts and the globals it names.
    """
    if _of_package(function):
        reached: dict[tuple[str, str], str] = {}
        _reach(function.__module__, function.__qualname__.split(".")[0], reached)
        return combined(*reached.values())
    if isinstance(function, type) or function.__code__.co_filename.startswith(_LIBRARIES):
        return combined(function.__module__, function.__qualname__)
    body, known = function.__code__, function.__globals__
    return combined(_compiled(body), *(_global(known[n]) for n in sorted(body.co_names) if n in known))


def may_reach(function: Callable, definition: types.FunctionType) -> bool:
    """Whether the code of a function reaches a definition of the package; yes where the function is not of it."""
    if not isinstance(function, types.FunctionType) or not _of_package(function):
        return True
    reached: dict[tuple[str, str], str] = {}
    _reach(function.__module__, function.__qualname__.split(".")[0], reached)
    return (definition.__module__, definition.__qualname__) in reached


def _of_package(x: Any) -> bool:
    return x.__module__.split(".")[0] == PACKAGE


def package() -> str:
    """The hash of all of the package's code."""
    folder = Path(importlib.util.find_spec(PACKAGE).origin).parent
    files = sorted(folder.rglob("*.py"))
    return combined(*(f"{path.relative_to(folder)} {_dumped(path.read_text(encoding='utf-8'))}" for path in files))


@functools.cache
def _dumped(text: str) -> str:
    return _dump(syntax(text))


def syntax(text: str) -> ast.Module:
    """`ast.parse`, which in Python 3.11 fails at times when two threads are in it."""
    with _PARSING:
        return ast.parse(text)


_PARSING = threading.Lock()


def _global(x: Any) -> str:
    if not isinstance(x, types.ModuleType):
        return value(x)
    if x.__name__.split(".")[0] != PACKAGE:
        return x.__name__
    return combined(*sorted(map(_dump, _definitions(x.__name__)[0].values())))


def _compiled(body: types.CodeType) -> str:
    constants = [_compiled(c) if isinstance(c, types.CodeType) else repr(c) for c in body.co_consts]
    return combined(body.co_code.hex(), str(body.co_names), *constants)


def _reach(module: str, name: str, reached: dict[tuple[str, str], str]) -> int | None:
    """Add a definition and, by the names in it, those it reaches: {(module, name): its syntax}.

    Returns:
        The definition's place in the order of `reached`; None where the package has no definition of this name.
    """
    defined, imported = _definitions(module)
    if name not in defined:
        return _reach(*imported[name], reached) if name in imported and imported[name][1] else None
    if (module, name) not in reached:
        reached[module, name] = ""  # its place is taken before those of what it reaches
        reached[module, name] = _dump(defined[name], functools.partial(_reference, module, reached))
    return list(reached).index((module, name))


def _reference(module: str, reached: dict[tuple[str, str], str], node: ast.AST) -> str | None:
    """A node that stands for a definition of the package, as the definition's number; None for all other nodes."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
        return "import"
    number = None
    if isinstance(node, ast.Name):
        number = _reach(module, node.id, reached)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        of, within = _definitions(module)[1].get(node.value.id, ("", "a name"))
        number = None if within else _reach(of, node.attr, reached)
    return None if number is None else f"@{number}"


@functools.cache
def _definitions(module: str) -> tuple[dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """A module's top-level definitions by name, and what of this package it imports: name → (module, name or "")."""
    tree = syntax(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    defined: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {n.id: node for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = (inner, "") if _is_module(inner) else (node.module, alias.name)
                imported[alias.asname or alias.name] = found
    return defined, imported


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _dump(node: Any, reference: Callable[[ast.AST], str | None] = lambda node: None, inner: bool = False) -> str:
    """Syntax as text, without docstrings, the same in every version of Python.

    Args:
        node: a node, a list of nodes or a plain value.
        reference: → the text of a node that stands for something else.
        inner: whether it stands within another node; what is not, a definition, is written without its name.
    """
    if isinstance(node, list):
        return f"[{','.join(_dump(n, reference, True) for n in node)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    known = reference(node)
    if known is not None:
        return known
    parts = dict(ast.iter_fields(node))
    if isinstance(parts.get("body"), list):
        parts["body"] = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    if not inner:
        parts.pop("name", None)
    kept = [f"{k}={_dump(v, reference, True)}" for k, v in parts.items() if v not in (None, [])]
    return f"{type(node).__name__}({','.join(kept)})"
