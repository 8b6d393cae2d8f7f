"""What each name stands for: Mnemosyne, its variants and its learned rivals, before and after meta-training.

Every entry differs from another in one argument or two: a memory, a rule around it, what gradients go through first.
"""

from typing import NamedTuple

import optax

from mnemosyne.coordinate import COORDINATE, LIGHT, Rule, coordinate_rule, log_value
from mnemosyne.memory import cam
from mnemosyne.mixed import hybrid, super_learned
from mnemosyne.optimizer import drop_in, scale_by_own_rms, scale_by_tensor_rms
from mnemosyne.ordinary import ordinary_rule, stacked_rule
from mnemosyne.pace import paced
from mnemosyne.recurrent import lstm, s4
from mnemosyne.tensorwise import tensorwise
from mnemosyne.types import Learned
from mnemosyne.velo import velo


class Coordinatewise(NamedTuple):
    """A coordinate-wise rule and the preparation of its gradients."""

    rule: Rule
    prepare: optax.GradientTransformation

    @property
    def learned(self) -> Learned:
        return Learned(self.rule.init, lambda theta: drop_in(theta, self.rule, self.prepare))


COORDINATEWISE = {
    "coordinate": Coordinatewise(ordinary_rule(COORDINATE), optax.identity()),
    "odd": Coordinatewise(coordinate_rule(COORDINATE), scale_by_tensor_rms()),
    "light": Coordinatewise(coordinate_rule(LIGHT), scale_by_tensor_rms()),
    "normalised": Coordinatewise(coordinate_rule(LIGHT, represent=log_value), scale_by_own_rms()),
    "lstm": Coordinatewise(stacked_rule(lstm(hidden=20), layers=2, width=20), optax.identity()),
    "s4": Coordinatewise(ordinary_rule(COORDINATE, s4(state=4)), optax.identity()),
}
"""The paper's optimizer and its like: inputs as the paper has them, unless made odd and normalised per tensor."""

LIGHT_LEARNED, TENSOR = COORDINATEWISE["light"].learned, tensorwise()

ARCHITECTURES: dict[str, Learned] = {
    **{name: entry.learned for name, entry in COORDINATEWISE.items()},
    "velo_lstm": velo(lstm(hidden=64)),
    "velo_cam": velo(cam(projections=16, discount=0.1)),
    "paced": paced(*COORDINATEWISE["normalised"]),
    "tensor": TENSOR,
    "super": super_learned(LIGHT_LEARNED, TENSOR),
    "hybrid": Learned(LIGHT_LEARNED.init, lambda theta: hybrid(LIGHT_LEARNED.make(theta))),
}
"""Every name `pretrained` may know, once there are weights."""

PARTS = {"super": {"light": "light", "tensor": "tensor"}, "hybrid": "light"}
"""Those that have no weights of their own, and whose they take in their place."""
