"""Mnemosyne as an optax transformation (paper §3.4).

    tx = from_rule(theta, odd_rule(LIGHT), scale_by_tensor_rms())  # optax.GradientTransformationExtraArgs

is a chain of three parts, each of which can be swapped or used alone:

    zero_nonfinite()  →  scale_by_tensor_rms()  →  scale_by_rule(theta, odd_rule(LIGHT))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mnemosyne.memory.contract import is_traced
from mnemosyne.optimizer.packing import BatchesState, in_batches, scale_by_batches
from mnemosyne.optimizer.rule import Rule
from mnemosyne.types import Params, State, Theta


class ZeroNonfiniteState(NamedTuple):
    """Counts what was dropped, so that no rescue is silent."""

    steps: Int[Array, ""]  # int32, number of updates in which some gradient was NaN or infinite


def zero_nonfinite() -> optax.GradientTransformation:
    """Replace NaN and infinite gradients by zero, and count the steps in which there were any.

    A rule with a memory must not be fed NaN: it would remember it. A zero gradient says nothing, and an odd
    rule adds nothing of its own to it.
    """

    def init(params: Params) -> ZeroNonfiniteState:
        del params
        return ZeroNonfiniteState(steps=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        none = jnp.zeros(len(jax.tree.leaves(updates)), bool)
        _, (bad,) = in_batches(find, [updates], [none])
        cleaned = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), updates)
        return cleaned, ZeroNonfiniteState(steps=state.steps + jnp.any(bad).astype(jnp.int32))

    def find(tensors, elements, found):
        return [], [found[0] | ~jnp.all(jnp.isfinite(elements[0]))]

    return optax.GradientTransformation(init, update)


def scale_by_rule(theta: Theta, rule: Rule) -> optax.GradientTransformation:
    """Turn gradients into updates by a learned rule, element by element.

    Args:
        theta: the rule's weights.
        rule: pure functions, see `rule.Rule`.

    Returns:
        A transformation. Updates are float32 and are to be *added* to parameters.
    """

    return scale_by_batches(rule.state, lambda tensors, memory, g: rule.step(theta, memory, g))


def from_rule(theta: Theta, rule: Rule, prepare: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer for any network of a coordinate-wise rule and weights of your own (paper §3.4, Fig. 2a).

        Δx_t = rule_θ( ĝ_1, …, ĝ_t ),   ĝ = prepare(g)

    Args:
        theta: meta-trained weights, as `init` of the rule shapes them.
        rule: what turns prepared gradients into updates: `paper_rule(…)` or `odd_rule(…)`.
        prepare: what gradients go through first, the same as in meta-training: `optax.identity()` for the paper's
            rule, `scale_by_tensor_rms()` for the odd one.

    Returns:
        An `optax.GradientTransformationExtraArgs` over any pytree of floating-point arrays: the chain zero_nonfinite →
        prepare → scale_by_rule. Its memories are `float32`, of fixed size per parameter; updates have the gradients'
        dtypes and are to be *added* to parameters.

    Raises:
        ValueError: if `theta` does not fit `rule`; at `init`, if a parameter is not a floating-point
            array; at `update`, if the gradients' tree or shapes differ from the parameters'.

    Numerics: zero, NaN and infinite gradients leave the state finite; the last two count as zero and
    are counted in the state. An update of a zero gradient is what the memory of earlier ones makes it.

    Reference: Jain et al. 2023.

    Example:
        tx = from_rule(theta, paper_rule(COORDINATE), optax.identity())
        state = tx.init(params)
        updates, state = tx.update(grads, state)
    """
    check_theta(theta, rule.init, "this rule")
    return for_any_network(prepare, scale_by_rule(theta, rule))


@jax.tree_util.register_static
class Layout(NamedTuple):
    """Which arrays an optimizer was initialised for; static, without any array of its own.

    That of no array at all goes with any other, since `optax.tree_map_params` initialises an optimizer with nothing.
    """

    names: tuple[str, ...]  # paths in the tree
    shapes: tuple[tuple[int, ...], ...]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) or not (self.names and other.names)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return 0


class NetworkState(NamedTuple):
    """The state of an optimizer made by `for_any_network`."""

    layout: Layout
    parts: State  # of the chain


def for_any_network(*parts: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer for any network of a chain of transformations that want finite gradients in float32.

    Args:
        parts: the chain. It is initialised with parameters in float32, and gets gradients in float32 in which zeros
            stand for what is not finite.

    Returns:
        The chain zero_nonfinite → parts; updates have the gradients' dtypes. Gradients of float64 beyond the range of
        float32 count as `LARGEST`.

    Raises:
        ValueError: at `init`, if a parameter is not a floating-point array; at `update`, if a gradient is not or has
            another path or shape than its parameter had, or if the state was made by another optimizer.
    """
    chain = optax.with_extra_args_support(optax.chain(zero_nonfinite(), *parts))

    def init(params: Params) -> NetworkState:
        _check_floating(params)
        return NetworkState(layout_of(params), apart(chain.init(in_float32(params))))

    def update(updates, state, params=None, **extra):
        _check_floating(updates)
        _check_state(state, updates, init)
        steps, after = chain.update(in_float32(updates), state.parts, params, **extra)
        steps = jax.tree.map(lambda u, g: u.astype(jnp.result_type(g)), steps, updates)
        return steps, NetworkState(state.layout, keep_dtypes(after, state.parts))

    return optax.GradientTransformationExtraArgs(init, update)


def apart(state: State) -> State:
    """The same state with a buffer for each array, so that it can be donated to a step. A trace shares none."""
    seen = set()

    def own(x):
        if is_traced(x) or id(x) not in seen:
            seen.add(id(x))
            return x
        return jnp.copy(x)

    return jax.tree.map(own, state)


def memory_of(state: NetworkState) -> State:
    """What the memories of an optimizer made by `for_any_network` hold, from its state."""
    (found,) = (part.memory for part in state.parts if isinstance(part, BatchesState))
    return found


LARGEST = 2.0**126
"""The largest number whose reciprocal in float32 is not flushed to zero."""


def in_float32(tree: Params) -> Params:
    """Arrays in float32; finite numbers of float64 beyond it become `LARGEST`."""

    def cast(x):
        x = jnp.asarray(x)
        within = jnp.where(jnp.isinf(x), x, jnp.clip(x, -LARGEST, LARGEST)) if x.dtype == jnp.float64 else x
        return within.astype(jnp.float32)

    return jax.tree.map(cast, tree)


def keep_dtypes(after: State, before: State) -> State:
    """A state in the dtypes it had, whatever JAX's 64-bit mode makes of numbers meanwhile."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), after, before)


def layout_of(params: Params) -> Layout:
    """Paths and shapes. A box around an array, as Flax annotates shardings, is no part of its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return Layout(
        tuple(name_of(path).removesuffix(".value") for path, _ in leaves), tuple(jnp.shape(p) for _, p in leaves)
    )


def name_of(path: tuple) -> str:
    """A leaf's place in a tree, for messages."""
    return jax.tree_util.keystr(path) or "the parameters"


def _check_floating(params: Params) -> None:
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        try:
            dtype = jnp.result_type(p)
        except TypeError as error:
            raise ValueError(f"{name_of(path)} is a {type(p).__name__}, not an array. {_APART}") from error
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name_of(path)} has dtype {dtype}; this optimizer updates floating-point arrays only. {_APART} Split "
                "a complex array into its real and imaginary parts with optax.contrib.split_real_and_imaginary."
            )


_APART = "Hold what is not trained apart from the parameters that are differentiated and updated."


def foreign(state: State) -> ValueError:
    """What is wrong with a state of another kind."""
    return ValueError(
        f"this state was made by another optimizer: it is a {type(state).__name__}; give what this optimizer's own "
        "init(params) or last update returned, as in update(gradients, state, params)"
    )


def _check_state(state: State, updates: Params, init: Callable[[Params], NetworkState]) -> None:
    """Raise a ValueError unless a state is what `init` makes for arrays like these gradients."""
    if not isinstance(state, NetworkState) or not isinstance(state.layout, Layout):
        raise foreign(state)
    given, wanted = (dict(zip(*layout, strict=True)) for layout in (layout_of(updates), state.layout))
    differing = [f"  {where}: {got} instead of {want}" for where, got, want in _differences(given, wanted)]
    if differing:
        raise ValueError(
            "the gradients differ from the parameters that this state was initialised with, in names or shapes:\n"
            + "\n".join(differing[:8] + ["  …"] * (len(differing) > 8))
        )
    expected = jax.eval_shape(init, updates)
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError(
            "this state was made by another optimizer, or for another kind of tree: "
            "go on with the one that made it, or call init(params) anew"
        )
    for (path, x), like in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        if jnp.shape(x) != like.shape:
            raise ValueError(
                f"this state was made by another optimizer: {name_of(path)} has shape {jnp.shape(x)}, "
                f"but this one keeps {like.shape} there"
            )


def check_theta(theta: Theta, init: Callable, what: str) -> None:
    """Raise a ValueError that lists what differs, unless weights have the names and shapes that `init` makes."""
    expected = jax.eval_shape(lambda: init(jax.random.key(0)))
    shapes = jax.tree.map(jnp.shape, theta), jax.tree.map(jnp.shape, expected)
    differing = [f"  {where}: {got} instead of {want}" for where, got, want in _differences(*map(_flat, shapes))]
    if differing:
        raise ValueError(f"these weights do not fit {what}:\n" + "\n".join(differing))


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _differences(got: dict, want: dict) -> list[tuple[str, Any, Any]]:
    names = sorted(got.keys() | want.keys())
    return [(n, got.get(n, "nothing"), want.get(n, "nothing")) for n in names if got.get(n) != want.get(n)]
