"""What happens inside an optimizer at one step: the gradients that it met, and what its parts made of them.

start, gradients, updates = histories(task, tx, 30, key)
stages = through_tensorwise(theta, gradients["Dense_0"]["kernel"])
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnemosyne.inner import inner_step
from mnemosyne.memory.compact import cam
from mnemosyne.memory.contract import queries_and_keys
from mnemosyne.memory.features import hyperbolic
from mnemosyne.memory.layers import layer_norm, linear
from mnemosyne.optimizer.paper import remember, two_inputs
from mnemosyne.optimizer.rule import COORDINATE, Config
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.spatial import metatokens, pool, pool_hierarchically
from mnemosyne.optimizer.tensorwise import move
from mnemosyne.types import Params, Task, Theta


def histories(
    task: Task, tx: optax.GradientTransformationExtraArgs, steps: int, key: Array
) -> tuple[Params, Params, Params]:
    """Train for some steps: (the parameters at the start, gradients, updates), the latter two [steps …] each."""
    # The last update stays in the state, where it can be read.
    last = optax.GradientTransformation(lambda params: params, lambda updates, state, params=None: (updates, updates))
    watched = optax.named_chain(("optimizer", tx), ("update", last))

    @jax.jit
    def course():
        def step(carry, t):
            carry, _, gradients = inner_step(task, watched, carry, task.batch(task.data, jax.random.fold_in(key, t)))
            return carry, (gradients, carry[1]["update"])

        params = task.init(key)
        return params, *jax.lax.scan(step, (params, watched.init(params)), jnp.arange(steps))[1]

    return course()


class Stages(NamedTuple):
    """What the parts of the tensor-wise optimizer made of one tensor of n elements at one step (Fig. 2b)."""

    gradient: Float[Array, "*s"]  # as it came
    inputs: Float[Array, "n k"]  # r
    chunks: Float[Array, "c d"]  # after one level of pooling
    metatokens: Float[Array, "l d"]  # after all of them
    remembered: Float[Array, "l d"]  # after the temporal encoders
    attention: Float[Array, "l1"]  # of the spatial encoder's token to itself and each meta-token; sums to one
    code: Float[Array, "d"]  # e
    update: Float[Array, "n"]


def through_tensorwise(
    theta: Theta, gradients: Float[Array, "t *s"], config: Config = COORDINATE, length: int = 128
) -> Stages:
    """Follow one tensor through the tensor-wise optimizer, part by part (§3.2–3.4).

    Args:
        theta: as `tensorwise(config, length=length).init` shapes it.
        gradients: of t steps; the stages are those of the last.
        config: the sizes.
        length: L.
    """
    memory = cam(projections=config.projections, discount=config.discount)
    see = lambda g: two_inputs(g, config.magnitude)
    prepare = scale_by_tensor_rms()
    _, prepared = jax.lax.scan(lambda s, g: prepare.update(g, s)[::-1], prepare.init(gradients[0]), gradients)
    flat = prepared.reshape(len(prepared), -1)
    sizes, embed = flat.shape[1:], lambda g: linear(theta["embed"], see(g))
    state = tuple(
        memory.state((metatokens(*sizes, length, len(theta["levels"])),), config.hidden, config.hidden)
        for _ in theta["encoders"]
    )
    for g in flat:
        tokens, counts = pool_hierarchically(theta["levels"], g, sizes, length, embed)
        state, remembered = remember(memory, theta["encoders"], state, tokens)
    (code,) = pool(theta["spatial"], remembered, counts, *counts)
    return Stages(
        gradient=gradients[-1],
        inputs=see(flat[-1]),
        chunks=pool(theta["levels"][0], flat[-1], sizes, length, embed),
        metatokens=tokens,
        remembered=remembered,
        attention=attention(theta["spatial"], remembered),
        code=code,
        update=move(theta, see(flat[-1]), code, config.output_scale),
    )


def attention(theta: Theta, tokens: Float[Array, "l d"]) -> Float[Array, "l1"]:
    """The weights with which a pooling's learned token reads itself and l tokens, by the features' kernel."""
    among, omega = layer_norm(jnp.concatenate([theta["token"][None], tokens])), theta["encoder"]["memory"]["omega"]
    q, k = queries_and_keys(theta["encoder"]["memory"], among)
    weights = hyperbolic.features(k, omega) @ hyperbolic.query(q[0], omega)
    return weights / jnp.sum(weights)
