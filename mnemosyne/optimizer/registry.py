"""What each name stands for: Mnemosyne, its variants and its learned rivals, before and after meta-training.

Every entry differs from another in one argument or two: a memory, a rule around it, what gradients go through first.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm, s4
from mnemosyne.optimizer.composite import hybrid, super_learned
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.pace import paced
from mnemosyne.optimizer.paper import paper_rule, stacked_rule
from mnemosyne.optimizer.rule import COORDINATE, LIGHT, Rule, log_value
from mnemosyne.optimizer.tensorwise import tensorwise
from mnemosyne.optimizer.transform import drop_in, scale_by_own_rms, scale_by_tensor_rms
from mnemosyne.optimizer.velo import velo
from mnemosyne.types import Learned


class Coordinatewise(NamedTuple):
    """A coordinate-wise rule and the preparation of its gradients."""

    rule: Rule
    prepare: optax.GradientTransformation

    @property
    def learned(self) -> Learned:
        return Learned(self.rule.init, lambda theta: drop_in(theta, self.rule, self.prepare))


COORDINATEWISE = {
    "coordinate": Coordinatewise(paper_rule(COORDINATE), optax.identity()),
    "odd": Coordinatewise(odd_rule(COORDINATE), scale_by_tensor_rms()),
    "light": Coordinatewise(odd_rule(LIGHT), scale_by_tensor_rms()),
    "normalised": Coordinatewise(odd_rule(LIGHT, represent=log_value), scale_by_own_rms()),
    "lstm": Coordinatewise(stacked_rule(lstm(hidden=20), layers=2, width=20), optax.identity()),
    "s4": Coordinatewise(paper_rule(COORDINATE, s4(state=4)), optax.identity()),
}
"""The paper's optimizer and its like: inputs as the paper has them, unless made odd and normalised per tensor."""

LIGHT_LEARNED, NORMALISED = COORDINATEWISE["light"].learned, COORDINATEWISE["normalised"].learned
TENSOR = tensorwise()
AVERAGED = tensorwise(prepare=optax.chain(scale_by_tensor_rms(), optax.ema(0.9, accumulator_dtype=jnp.bfloat16)))

ARCHITECTURES: dict[str, Learned] = {
    **{name: entry.learned for name, entry in COORDINATEWISE.items()},
    "velo_lstm": velo(lstm(hidden=64)),
    "velo_cam": velo(cam(projections=16, discount=0.1)),
    "paced": paced(NORMALISED),
    "tensor": TENSOR,
    "tensor_averaged": AVERAGED,
    "tensor_paced": paced(AVERAGED, jnp.bfloat16),
    "super": super_learned(LIGHT_LEARNED, TENSOR),
    "super_paced": paced(super_learned(NORMALISED, AVERAGED), jnp.bfloat16),
    "hybrid": Learned(LIGHT_LEARNED.init, lambda theta: hybrid(LIGHT_LEARNED.make(theta))),
}
"""Every name `pretrained` may know, once there are weights."""

PARTS = {
    "tensor_paced": {"direction": "tensor_averaged", "pace": "paced/pace"},
    "super": {"light": "light", "tensor": "tensor"},
    "super_paced": {"direction": {"light": "normalised", "tensor": "tensor_averaged"}, "pace": "paced/pace"},
    "hybrid": "light",
}
"""Those that have no weights of their own, and whose they take in their place; "a/b" is the branch b of a's."""
