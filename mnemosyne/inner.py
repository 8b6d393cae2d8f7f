"""The inner loop's step: what an optimizer does to a network, whoever is watching."""

from typing import Any

import jax
import optax

from mnemosyne.types import Batch, Params, Scalar, State, Task

Carry = tuple[Params, State]  # parameters, and the optimizer's state


def inner_step(
    task: Task, tx: optax.GradientTransformation, carry: Carry, batch: Batch, horizon: Any = None
) -> tuple[Carry, Scalar, Params]:
    """Take one step of training.

        x_{t+1} = x_t + u( ∇f(x_t) )

    Args:
        task: f, by its loss.
        tx: u. It is told the loss and the horizon, which VeLO's architecture asks for and others do not.
        carry: x_t and the state of u.
        batch: one training batch.
        horizon: how many steps are planned.

    Returns:
        ((x_{t+1}, state), loss before the step, gradient).
    """
    params, state = carry
    loss, grads = jax.value_and_grad(task.loss)(params, batch)
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(grads, state, params, value=loss, horizon=horizon)
    return (optax.apply_updates(params, updates), state), loss, grads
