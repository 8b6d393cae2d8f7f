"""Mnemosyne as an optax transformation (paper §3.4).

    tx = from_rule(theta, odd_rule(LIGHT), scale_by_tensor_rms())  # optax.GradientTransformationExtraArgs

is a chain of three parts, each of which can be swapped or used alone:

    zero_nonfinite()  →  scale_by_tensor_rms()  →  scale_by_rule(theta, odd_rule(LIGHT))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnemosyne.optimizer.packing import BatchesState, Tensors, in_batches, scale_by_batches
from mnemosyne.optimizer.rule import Rule
from mnemosyne.types import Params, State, Theta

RMS_DECAY = 0.999
"""Decay of each tensor's running gradient size: long enough that the rule sees gradients shrink."""


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
        none = jax.tree.map(lambda _: jnp.zeros((), bool), updates)
        (cleaned,), (bad,) = in_batches(clean, [updates], [none])
        bad = jnp.array(jax.tree.leaves(bad), bool)
        return cleaned, ZeroNonfiniteState(steps=state.steps + jnp.any(bad).astype(jnp.int32))

    def clean(tensors, elements, none):
        (g,), (none,) = elements, none
        finite = jnp.isfinite(g)
        return [jnp.where(finite, g, jnp.zeros_like(g))], [none | ~jnp.all(finite)]

    return optax.GradientTransformation(init, update)


def root_mean_squares(tensors: Tensors, g: Array) -> Float[Array, "n"]:
    """√(mean g²) of each tensor, without overflow or underflow of the squares; 0 for an empty one."""
    largest = tensors.largest(jnp.abs(g))
    # The reciprocal of a very large number would be flushed to zero.
    shrink = jnp.where(largest > 1.0, 2.0**-10, 1.0)
    unit = tensors.spread(shrink) * g / tensors.spread(jnp.where(largest > 0, shrink * largest, 1.0))
    return largest * jnp.sqrt(tensors.total(unit * unit) / np.maximum(tensors.sizes, 1))


class ScaleByTensorRmsState(NamedTuple):
    """One number per tensor."""

    count: Int[Array, ""]  # int32
    size: Params  # tree of float32 scalars: running mean of each tensor's gradient root-mean-square


def scale_by_tensor_rms(decay: float = RMS_DECAY, limit: float = 1e3) -> optax.GradientTransformation:
    """Divide each tensor's gradient by the running size of that tensor's gradients.

        s_t = β s_{t−1} + (1 − β) rms(g_t)        ĝ_t = clip( g_t (1 − β^t) / s_t, ±limit )

    Whatever the loss is multiplied by cancels, so a rule trained on gradients of one magnitude serves all.
    The paper feeds raw gradients; this is our addition, since log|g| alone makes an optimizer fail as soon
    as a loss is rescaled. `optax.identity()` in its place gives the paper's input.

    Args:
        decay: β in [0, 1), per step.
        limit: largest magnitude let through, in units of the running size.

    Returns:
        A transformation whose updates are float32. A tensor that has had only zero gradients gives zeros.

    Raises:
        ValueError: if decay is outside [0, 1).

    Numerics: sizes from 1e-37 to 1e38 are told apart, since squares are taken after dividing by the maximum.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")

    def init(params: Params) -> ScaleByTensorRmsState:
        size = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
        return ScaleByTensorRmsState(count=jnp.zeros((), jnp.int32), size=size)

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        unbias = 1.0 - decay ** count.astype(jnp.float32)

        def scale(tensors, elements, sizes):
            g, size = elements[0].astype(jnp.float32), sizes[0]
            size = decay * size + (1.0 - decay) * root_mean_squares(tensors, g)
            typical = tensors.spread(jnp.where(size > 0, size / unbias, 1.0))
            return [jnp.clip(g / typical, -limit, limit)], [size]

        (updates,), (size,) = in_batches(scale, [updates], [state.size])
        return updates, ScaleByTensorRmsState(count, size)

    return optax.GradientTransformation(init, update)


def scale_by_own_rms(decay: float = RMS_DECAY) -> optax.GradientTransformation:
    """Divide each tensor's gradient by its running size, then each element by its own, as Adam does.

    Returns:
        A transformation with one more number of state per parameter, float32. Invariant to a factor on the loss.

    Numerics: elements whose size stays below a thousandth of their tensor's are not raised to one.
    """
    own = optax.scale_by_rms(decay, eps=1e-6, bias_correction=True)
    in_float32 = lambda params: jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)

    def update(updates, state, params=None):
        del params

        def scale(tensors, elements, count):
            del tensors
            (g,), after = own.update([elements[0]], state._replace(nu=[elements[1]]))
            return [g, *after.nu], count

        (updates, nu), _ = in_batches(scale, [updates, state.nu])
        return updates, state._replace(count=optax.safe_increment(state.count), nu=nu)

    own_in_float32 = optax.GradientTransformation(lambda params: own.init(in_float32(params)), update)
    return optax.chain(scale_by_tensor_rms(decay), own_in_float32)


def scale_by_rule(theta: Theta, rule: Rule) -> optax.GradientTransformation:
    """Turn gradients into updates by a learned rule, element by element.

    Args:
        theta: the rule's weights.
        rule: pure functions, see `rule.Rule`.

    Returns:
        A transformation. Updates are float32 and are to be *added* to parameters.
    """

    return scale_by_batches(rule.state, None, lambda tensors, memory, g: rule.step(theta, memory, g))


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
    single = jax.eval_shape(lambda: rule.state(()))
    return checked(scale_by_rule(theta, rule), prepare, lambda updates, memory: _check_alike(updates, memory, single))


def checked(
    kernel: optax.GradientTransformation,
    prepare: optax.GradientTransformation,
    check: Callable[[Params, State], None],
) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer for any network of a kernel that wants finite, prepared gradients.

    Args:
        kernel: what turns prepared gradients into updates, made by `packing.scale_by_batches`.
        prepare: what gradients go through first.
        check: (gradients, memory) → raises a ValueError where they do not belong together.

    Returns:
        The chain zero_nonfinite → prepare → kernel; updates have the gradients' dtypes.

    Raises:
        ValueError: at `init`, if a parameter is not a floating-point array; at `update`, as `check` does.
    """
    chain = optax.chain(zero_nonfinite(), prepare, kernel)

    def init(params: Params):
        _check_floating(params)
        return chain.init(params)

    def update(updates, state, params=None, **extra):
        del extra
        check(updates, memory_of(state))
        steps, state = chain.update(updates, state, params)
        return jax.tree.map(lambda u, g: u.astype(jnp.result_type(g)), steps, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def memory_of(state: State) -> State:
    """What the memories of an optimizer made by `checked` hold, from its state."""
    (found,) = (part.memory for part in state if isinstance(part, BatchesState))
    return found


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path) or "the parameters"


def _check_floating(params: Params) -> None:
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(p)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{_name(path)} has dtype {dtype}; this optimizer updates floating-point arrays only. "
                "Leave it out with optax.masked or optax.partition, or split a complex array into its "
                "real and imaginary parts with optax.contrib.split_real_and_imaginary."
            )


def check_tree(updates: Params, memory: State, single: State) -> Params:
    """Raise a ValueError unless the gradients' tree is that of the parameters which made the memory.

    Returns:
        One of the memory's trees, an array for every parameter.
    """
    tree = jax.tree.structure(single).flatten_up_to(memory)[0]
    if jax.tree.structure(updates) != jax.tree.structure(tree):
        raise ValueError(
            "the gradients' tree differs from that of the parameters this state was initialised with:\n"
            f"  gradients   {jax.tree.structure(updates)}\n  parameters  {jax.tree.structure(tree)}"
        )
    return tree


def _check_alike(updates: Params, memory: State, single: State) -> None:
    """Compare the gradients' tree and shapes with those of the parameters that made the state."""
    tree = check_tree(updates, memory, single)
    extra = len(jax.tree.leaves(single)[0].shape)
    pairs = zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(tree), strict=True)
    for (path, g), m in pairs:
        shape = m.shape[: m.ndim - extra]
        if jnp.shape(g) != shape:
            raise ValueError(
                f"the gradient at {_name(path)} has shape {jnp.shape(g)}, but its parameter had shape {shape} "
                "when the optimizer's state was initialised"
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
