"""The optax contract over random trees and gradients, for every optimizer that ships.

An optimizer is compiled once for each tree, inside `optax.MultiSteps` whose number of steps is an argument, and then
meets many random gradients. Trees that are drawn at random are traced only, but in the long form.
"""

from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.transform import ZeroNonfiniteState
from tests.faults.tally import record

NAMES = zoo.available()
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
LOOSE = {"float32": 1e-3, "float16": 4e-3, "bfloat16": 2e-2}  # of a tensor's largest update
STEPS = 2
RARE = {
    "zero": 0.0,
    "negative zero": -0.0,
    "nan": np.nan,
    "infinite": np.inf,
    "minus infinite": -np.inf,
    "subnormal": 1e-41,
    "tiny": 1e-38,
    "huge": 1e38,
    "minus huge": -3e38,
}

few = partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # a smaller tree is another program to compile
    suppress_health_check=list(HealthCheck),
)


class Pair(NamedTuple):
    first: Any
    second: Any


class Leaf(NamedTuple):
    """What a leaf of a drawn tree is, before there are numbers in it."""

    shape: tuple
    dtype: Any


class Gradient(NamedTuple):
    """How gradients are drawn: normal numbers, among which are others at random."""

    seed: int
    rare: tuple  # names in RARE
    share: float  # of elements that are one of them
    scale: float


CALM = Gradient(0, (), 0.0, 1.0)

EVERYTHING = {
    "pair": Pair((Leaf((), jnp.float32), Leaf((2, 1, 3, 1, 2, 1), jnp.bfloat16)), None),
    "list": [Leaf((0, 3), jnp.float32), {}, Leaf((5,), jnp.float32), ()],
    "matrix": Leaf((3, 4), jnp.float16),
}
"""A tree with one of each kind, for which every optimizer is compiled."""


SMALL = [Leaf((2, 3), jnp.float32), Leaf((), jnp.bfloat16)]
"""A tree on which each primitive may run alone."""

leaves = st.builds(Leaf, st.lists(st.sampled_from([1, 2, 3, 0, 5]), max_size=6).map(tuple), st.sampled_from(DTYPES))
trees = st.recursive(
    leaves | st.none(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=4,
)
gradients = st.builds(
    Gradient,
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(sorted(RARE)), max_size=4).map(tuple),
    st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    st.sampled_from([1.0, 1e-3, 1e-20, 1e20]),
)


def is_leaf(x):
    return isinstance(x, Leaf)


def filled(tree, make):
    return jax.tree.map(make, tree, is_leaf=is_leaf)


def ones(tree):
    return filled(tree, lambda leaf: jnp.ones(leaf.shape, leaf.dtype))


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def drawn(tree, how):
    """Gradients of several steps, [t …]."""
    rng = np.random.default_rng(how.seed)

    def make(leaf):
        shape = (STEPS, *leaf.shape)
        g = how.scale * rng.normal(size=shape)
        if how.rare:
            others = rng.choice([RARE[name] for name in how.rare], size=shape)
            g = np.where(rng.random(shape) < how.share, others, g)
        with np.errstate(over="ignore"):
            return g.astype(np.float32).astype(leaf.dtype)

    return filled(tree, make)


def integers(tree, how):
    """Gradients whose mean over two steps every dtype holds exactly, some of them NaN for odd seeds."""
    rng = np.random.default_rng(how.seed)

    def make(leaf):
        g = rng.integers(-9, 10, (STEPS, *leaf.shape)).astype(np.float32)
        return np.where((how.seed % 2 > 0) & (rng.random(g.shape) < 0.1), np.nan, g).astype(leaf.dtype)

    return filled(tree, make)


def asked(name):
    """What an optimizer's update asks for beside gradients and parameters."""
    return {"value": 1.0, "horizon": 10.0} if name.startswith("velo") else {}


@partial(jax.jit, static_argnums=0)
def run(name, every, gradients, params):
    """(updates [t …], state) of the optimizer on means over `every` gradients."""
    many = optax.MultiSteps(zoo.pretrained(name), lambda step: every)
    step = lambda state, g: many.update(g, state, params, **asked(name))[::-1]
    state, updates = jax.lax.scan(step, many.init(params), gradients)
    return updates, state.inner_opt_state


def finite(tree):
    return all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(tree))


def bad_steps(gradients):
    """In how many steps something is NaN or infinite."""
    ok = [np.isfinite(np.asarray(g, np.float32)).reshape(STEPS, -1).all(axis=1) for g in jax.tree.leaves(gradients)]
    return int(np.sum(~np.all(ok, axis=0))) if ok else 0


def counted(state):
    """How many steps each part of an optimizer says were bad."""
    is_count = lambda x: isinstance(x, ZeroNonfiniteState)
    return [int(x.steps) for x in jax.tree.leaves(state, is_leaf=is_count) if is_count(x)]


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        rtol = LOOSE[str(y.dtype)]
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        assert np.abs(x - y).max(initial=0.0) <= rtol * np.abs(y).max(initial=0.0) + 1e-7


def check_strange(name, tree, how):
    """Updates and state stay finite, have the gradients' dtypes and shapes, and bad steps are counted."""
    g = drawn(tree, how)
    updates, state = run(name, 1, g, ones(tree))
    assert described(updates) == described(g)
    assert finite((updates, state)), "an update or the state is not finite"
    counts = counted(state)
    assert max(counts) <= bad_steps(g) <= sum(counts), "bad steps are not counted"


def check_mean(name, tree, how):
    """MultiSteps(2) moves by what one step on the mean does."""
    g = integers(tree, how)
    params = ones(tree)
    together, _ = run(name, 2, g, params)
    mean = jax.tree.map(lambda x: np.broadcast_to((x[:1] + x[1:]) / 2, x.shape).astype(x.dtype), g)
    alone, _ = run(name, 1, mean, params)
    assert not any(np.asarray(u[0], np.float32).any() for u in jax.tree.leaves(together))
    close(jax.tree.map(lambda u: u[1], together), jax.tree.map(lambda u: u[0], alone))


def check_eager(name, tree, how):
    """The first compiled update is the eager one."""
    g, params = integers(tree, how), ones(tree)
    updates, _ = run(name, 1, g, params)
    with jax.disable_jit():
        tx = zoo.pretrained(name)
        eager, _ = tx.update(jax.tree.map(lambda x: jnp.asarray(x[0]), g), tx.init(params), params, **asked(name))
    close(eager, jax.tree.map(lambda u: u[0], updates))


def check_traced(name, tree):
    """The tree, shapes and dtypes of gradients and state are kept by a step."""
    tx, params = zoo_transformation(name), ones(tree)
    before = jax.eval_shape(tx.init, params)
    updates, after = jax.eval_shape(partial(tx.update, **asked(name)), params, before, params)
    assert described(updates) == described(params)
    assert described(after) == described(before)


@cache
def zoo_transformation(name):
    return zoo.pretrained(name)


def each(strategy, examples, check):
    """Run a check on so many drawn examples, the same ones each time."""

    def test(example):
        check(example)

    few(max_examples=examples)(given(strategy)(test))()


@pytest.mark.parametrize("name", NAMES)
def test_random_trees_keep_their_form(name):
    each(trees, 4, lambda tree: check_traced(name, tree))


@pytest.mark.parametrize("name", NAMES)
def test_random_gradients_on_a_tree_of_everything(name):
    each(gradients, 20, lambda how: check_strange(name, EVERYTHING, how))


@pytest.mark.parametrize("name", NAMES)
def test_steps_on_a_mean(name):
    each(gradients, 5, lambda how: check_mean(name, EVERYTHING, how))


def test_compiled_is_eager():
    check_eager("light", SMALL, CALM)


@pytest.mark.slow
def test_two_thousand_random_examples():
    """Every optimizer on the tree of everything and the largest of those drawn; the tally is kept."""
    pool = {}
    each(trees, 40, lambda tree: pool.update({repr(tree): tree}))
    largest = sorted(pool.values(), key=lambda tree: -len(jax.tree.leaves(tree, is_leaf=is_leaf)))
    pool = [EVERYTHING, *largest[:4]]
    rows = [tally(name, pool) for name in NAMES]
    record("fuzz", rows)
    assert sum(row["tried"] for row in rows) >= 2000
    assert not [row for row in rows if row["wrong"]]


def tally(name, pool):
    """What came of every example of an optimizer: a row of the table."""
    ended = Counter()

    def tried(check, *example):
        try:
            check(name, *example)
            ended["right"] += 1
        except Exception as error:
            ended["wrong"] += 1
            said.append(str(error) or type(error).__name__)

    said = []
    for tree in pool:
        tried(check_traced, tree)
        each(gradients, 24, lambda how, tree=tree: tried(check_strange, tree, how))
        each(gradients, 4, lambda how, tree=tree: tried(check_mean, tree, how))
    tried(check_eager, SMALL, CALM)
    note = "; ".join(dict.fromkeys(text.splitlines()[0][:120] for text in said))
    what = f"random trees and gradients: {name}"
    return {"what": what, "tried": ended.total(), "right": ended["right"], "wrong": ended["wrong"], "note": note}
