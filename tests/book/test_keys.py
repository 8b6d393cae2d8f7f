import ast
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnemosyne.book import keys
from mnemosyne.book.keys import Deferred, code, may_reach, program, shapes, value
from mnemosyne.book.studies import ablation, random_features
from mnemosyne.memory.features import favor_plus_plus, positive
from mnemosyne.optimizer import zoo

X = jnp.arange(3.0)


def times(factor):
    return lambda x: factor * x


def test_a_program_is_what_it_computes_not_what_it_is_called():
    def another_name(y):
        """With a docstring."""
        return 2.0 * y  # and a comment

    assert program(times(2.0), X) == program(another_name, X)
    assert program(times(2.0), X) == program(times(2.0), jnp.ones(3))  # shapes, not values
    others = [times(3.0), times(np.array([1.0, 2.0, 3.0])), lambda x: x * 2.0 + 0.0, lambda x: {"a": 2.0 * x}]
    assert len({program(f, X) for f in [times(2.0), *others]}) == 5
    assert program(times(2.0), X) != program(times(2.0), X[:2])
    assert program(times(2.0), X) != program(times(2.0), X.astype(jnp.bfloat16))


@pytest.mark.parametrize("size", [1, 2000])
def test_constants_count_by_content_wherever_they_are(size):
    a = np.linspace(0, 1, size)
    b = a.copy()
    b[-1] += 1e-6

    def inner(c):
        return lambda x: jax.lax.scan(jax.jit(lambda s, _: (s + jnp.asarray(c).sum(), None)), x, None, length=2)[0]

    assert program(inner(a), 1.0) == program(inner(a.copy()), 1.0)
    assert program(inner(a), 1.0) != program(inner(b), 1.0)


def test_how_a_derivative_is_taken_counts_once_it_is_taken():
    @jax.custom_jvp
    def f(x):
        return x**2

    f.defjvp(lambda primals, tangents: (f(*primals), 2.0 * primals[0] * tangents[0]))
    before, of_gradient = program(f, 1.0), program(jax.grad(f), 1.0)
    f.defjvp(lambda primals, tangents: (f(*primals), 3.0 * primals[0] * tangents[0]))
    assert program(lambda x: f(x), 1.0) == before
    assert program(jax.grad(lambda x: f(x)), 1.0) != of_gradient


def test_names_of_classes_are_no_part_of_a_program():
    one, other = NamedTuple("One", [("a", float)]), NamedTuple("Other", [("a", float)])
    assert program(lambda x: one(2.0 * x), X) == program(lambda x: other(2.0 * x), X)
    assert program(lambda x: one(2.0 * x), X) != program(lambda x: (2.0 * x,), X)


def test_random_keys_and_branches_are_told_apart():
    draw = lambda seed: lambda x: x + jax.random.normal(jax.random.key(seed), (3,))
    assert program(draw(0), X) == program(draw(0), X) != program(draw(1), X)
    branch = lambda a: lambda x: jax.lax.cond(x.sum() > 0, lambda x: x * a, lambda x: x, x)
    assert program(branch(1.0), X) == program(branch(1.0), X) != program(branch(2.0), X)


def test_values():
    a, b = {"x": (1, 2.0, "y"), "z": np.ones(3)}, {"x": (1, 2.0, "y"), "z": np.ones(3)}
    assert value(a) == value(b)
    changed = [{**a, "x": (1, 2.0, "w")}, {**a, "z": np.zeros(3)}, {**a, "z": np.ones(3, np.float32)}, {**a, "q": None}]
    assert len({value(x) for x in [a, *changed]}) == 5
    assert value(1) != value(1.0) != value(True)
    assert value(jnp.ones(2)) == value(np.ones(2, np.float32))
    assert value(jax.random.key(0)) != value(jax.random.key(1))
    assert value(range(3)) != value(range(4))
    with pytest.raises(TypeError, match="what a object holds cannot be hashed; hand over arrays"):
        value([object()])


def test_functions_count_by_code_defaults_and_what_they_close_over():
    assert value(times(2.0)) == value(times(2.0)) != value(times(3.0))
    assert value(favor_plus_plus(0.1)) == value(favor_plus_plus(0.1)) != value(favor_plus_plus(0.2))
    assert value(positive) != value(favor_plus_plus(0.1))
    assert value(lambda x, a=1: x) != value(lambda x, a=2: x)
    assert value(times) != value(test_values)


def test_a_deferred_value_is_its_key_and_its_shapes():
    calls = []
    like = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    later = Deferred("abc", like, lambda: calls.append(1) or {"w": jnp.ones(2)})
    assert value({"theta": later}) == value({"theta": Deferred("abc", like, lambda: None)})
    assert value({"theta": later}) != value({"theta": Deferred("abd", like, lambda: None)})
    assert shapes({"theta": later, "n": np.ones(3)})["theta"] == like
    assert program(lambda t: t["theta"]["w"] * 2, {"theta": later})
    assert not calls
    assert later.value is later.value
    assert calls == [1]


SOURCE = '''"""A module."""
from mnemosyne import {module}_helper
from mnemosyne.{module}_helper import halve

LIMIT = 3  # of something


def study(n):
    """Do it."""
    return [halve(i) + {module}_helper.SHIFT for i in range(n) if i < LIMIT]


def label():
    return "a label"
'''
HELPER = 'SHIFT = 1\n\n\ndef halve(i):\n    return i / 2\n\n\ndef unused():\n    return "red"\n'
CHANGES = {
    "its own constant": ("LIMIT = 3", "LIMIT = 4"),
    "its own code": ("halve(i) +", "halve(i) -"),
    "a function it calls": ("i / 2", "i / 3"),
    "a constant of another module": ("SHIFT = 1", "SHIFT = 2"),
}
NO_CHANGES = {
    "its name": ("def study", "def investigate"),
    "the name of a function it calls": ("halve", "half"),
    "the name of a constant": ("LIMIT", "BOUND"),
    "the name of a constant elsewhere": ("SHIFT", "OFFSET"),
    "a docstring": ("Do it.", "Do it well."),
    "a comment": ("# of something", "# of all"),
    "a label": ("a label", "another label"),
    "a colour elsewhere": ('"red"', '"blue"'),
}


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """`code` of a study in a module of the package, after a change of its source and its helper's."""
    monkeypatch.setattr(sys.modules["mnemosyne"], "__path__", [*sys.modules["mnemosyne"].__path__, str(tmp_path)])
    count = iter(range(10))

    def after(old="", new=""):
        name = f"made_up_{next(count)}"
        for end, text in {"": SOURCE.format(module=name), "_helper": HELPER}.items():
            (tmp_path / f"{name}{end}.py").write_text(text.replace(old, new), encoding="utf-8")
        importlib.invalidate_caches()
        keys._definitions.cache_clear()
        module = importlib.import_module(f"mnemosyne.{name}")
        return code(next(f for f in vars(module).values() if getattr(f, "__module__", "") == module.__name__))

    return after


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_study_reaches_is_part_of_its_code(studied, change):
    before = studied()
    assert studied() == before
    assert studied(*change) != before


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_what_a_study_does_not_compute_is_no_part_of_its_code(studied, change):
    assert studied(*change) == studied()


def test_a_real_study_reaches_what_it_uses():
    reached = {}
    keys._reach("mnemosyne.book.studies.random_features", "causal_errors", reached)
    names = {name for _, name in reached}
    assert {"causal_errors", "_thick", "thick_cam", "cam", "positive", "oracle_reads"} <= names
    assert "curves" not in names  # of plotting
    assert code(random_features.causal_errors) != code(random_features.variances)


def test_code_is_read_by_several_threads_at_once():
    text = Path(keys.__file__).read_text(encoding="utf-8")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: ast.dump(keys.syntax(text)), range(40)))
    assert found == {ast.dump(ast.parse(text))}


def test_what_may_read_shipped_weights_is_known_of_the_package_and_supposed_of_all_else():
    assert may_reach(ablation.trained, zoo.folder)
    assert may_reach(zoo.pretrained, zoo.folder)
    assert not may_reach(random_features.unbiasedness, zoo.folder)
    assert may_reach(lambda x: x, zoo.folder)
