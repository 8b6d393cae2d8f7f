"""One record for each optimizer that has a name: what it is, what it is called, and whose weights it takes.

Every entry differs from another in one argument or two: a memory, a rule around it, what gradients go through first.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from mnemosyne.memory.compact import cam
from mnemosyne.memory.recurrent import lstm, s4
from mnemosyne.optimizer.composite import hybrid, super_learned
from mnemosyne.optimizer.controlled_adam import nn_adam
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.pace import paced
from mnemosyne.optimizer.paper import paper_rule, stacked_rule
from mnemosyne.optimizer.perparameter import small_fc
from mnemosyne.optimizer.rule import COORDINATE, LIGHT, Rule, log_value
from mnemosyne.optimizer.sizes import scale_by_own_rms, scale_by_tensor_rms
from mnemosyne.optimizer.slim import slim
from mnemosyne.optimizer.tensorwise import tensorwise
from mnemosyne.optimizer.transform import from_rule, scale_by_rule
from mnemosyne.optimizer.velo import velo
from mnemosyne.types import Learned


class Coordinatewise(NamedTuple):
    """A coordinate-wise rule and the preparation of its gradients."""

    rule: Rule
    prepare: optax.GradientTransformation

    @property
    def learned(self) -> Learned:
        return Learned(self.rule.init, lambda theta: from_rule(theta, self.rule, self.prepare))

    @property
    def direction(self) -> Learned:
        """As part of an optimizer that has seen to it that gradients are finite."""
        return Learned(self.rule.init, lambda theta: optax.chain(self.prepare, scale_by_rule(theta, self.rule)))


@dataclass(frozen=True)
class Optimizer:
    """What stands under a name, before and after meta-training."""

    label: str  # in tables, legends and text
    color: str  # in figures
    differs: str  # what sets it apart from the paper's, for its card
    learned: Learned
    coordinatewise: Coordinatewise | None = None  # its rule, where it has one rule for all coordinates
    parts: Any = None  # whose weights it takes, where it has none of its own; "a/b" is the branch b of a's


PAPER = Coordinatewise(paper_rule(COORDINATE), optax.identity())
ODD = Coordinatewise(odd_rule(COORDINATE), scale_by_tensor_rms())
ODD_LIGHT = Coordinatewise(odd_rule(LIGHT), scale_by_tensor_rms())
NORMALISED = Coordinatewise(odd_rule(LIGHT, represent=log_value), scale_by_own_rms())
TWO_LSTMS = Coordinatewise(stacked_rule(lstm(hidden=20), layers=2, width=20), optax.identity())
PAPER_WITH_S4 = Coordinatewise(paper_rule(COORDINATE, s4(state=4)), optax.identity())
TENSOR = tensorwise()
AVERAGED = tensorwise(prepare=optax.chain(scale_by_tensor_rms(), optax.ema(0.9, accumulator_dtype=jnp.bfloat16)))

_ODD = "odd by construction (u(−g) = −u(g)); each tensor's gradient is divided by its running size"
_CHUNKS = "each tensor's gradient is divided by its running size; chunks of 128 elements, two levels of pooling"

OPTIMIZERS = {
    "coordinate": Optimizer("Mnemosyne", "#0b4f8a", "the paper's inputs, blocks and horizons", PAPER.learned, PAPER),
    "odd": Optimizer("Mnemosyne odd", "#3f7fbf", _ODD, ODD.learned, ODD),
    "light": Optimizer("Mnemosyne light", "#5fa8d3", _ODD, ODD_LIGHT.learned, ODD_LIGHT),
    "normalised": Optimizer(
        "Mnemosyne normalised",
        "#8fb8a0",
        "light, with each element's gradient also divided by its own running size, as Adam does",
        NORMALISED.learned,
        NORMALISED,
    ),
    "lstm": Optimizer(
        "LSTM", "#7a7a7a", "two LSTM layers of 20, as Andrychowicz et al. 2016", TWO_LSTMS.learned, TWO_LSTMS
    ),
    "s4": Optimizer(
        "S4",
        "#b39b3a",
        "the blocks of `coordinate` with a diagonal state-space model (S4D) of four states a channel as memory",
        PAPER_WITH_S4.learned,
        PAPER_WITH_S4,
    ),
    "velo_lstm": Optimizer(
        "VeLO, LSTM",
        "#c98686",
        "VeLO's architecture with an LSTM of 64, a mixing layer of 32 and a bank of 64 networks of width 4, "
        "without its large-scale meta-training",
        velo(lstm(hidden=64)),
    ),
    "velo_cam": Optimizer(
        "VeLO, CAM",
        "#9c4f4f",
        "as velo_lstm, with a CAM of 16 projections (λ = 0.1) in the LSTM's place",
        velo(cam(projections=16, discount=0.1)),
    ),
    "paced": Optimizer(
        "Mnemosyne paced",
        "#c2185b",
        "the direction of `normalised` at a pace of its own for every tensor, a power law of nine features",
        paced(NORMALISED.direction),
    ),
    "slim": Optimizer(
        "Mnemosyne slim",
        "#7bc043",
        "Adam's direction and state, with learned β₁ and β₂, at a pace of its own for every tensor, a power law of "
        "fifteen features; no memory but Adam's two averages",
        slim(),
    ),
    "tensor": Optimizer("Mnemosyne tensor-wise", "#2b8f8a", _CHUNKS, TENSOR),
    "tensor_averaged": Optimizer(
        "Mnemosyne tensor-wise, averaged",
        "#6fb3a8",
        "as tensor, but of gradients averaged over some ten steps (β = 0.9), at two bytes a parameter",
        AVERAGED,
    ),
    "tensor_paced": Optimizer(
        "Mnemosyne tensor-wise, paced",
        "#125a57",
        "the direction of `tensor_averaged` at the pace of `paced`",
        paced(AVERAGED, jnp.bfloat16),
        parts={"direction": "tensor_averaged", "pace": "paced/pace"},
    ),
    "super": Optimizer(
        "Mnemosyne Super",
        "#1b1b3a",
        "`light` on the largest tensors, `tensor` on the rest",
        super_learned(ODD_LIGHT.learned, TENSOR),
        parts={"light": "light", "tensor": "tensor"},
    ),
    "super_paced": Optimizer(
        "Mnemosyne Super, paced",
        "#6b2a7d",
        "`normalised` on the largest tensors, `tensor_averaged` on the rest, at the pace of `paced`",
        paced(super_learned(NORMALISED.learned, AVERAGED), jnp.bfloat16),
        parts={"direction": {"light": "normalised", "tensor": "tensor_averaged"}, "pace": "paced/pace"},
    ),
    "hybrid": Optimizer(
        "Mnemosyne light, hybrid",
        "#a58fc9",
        "`light` on tensors of two axes or more, Adam on the others",
        Learned(ODD_LIGHT.learned.init, lambda theta: hybrid(ODD_LIGHT.learned.make(theta))),
        parts="light",
    ),
    "small_fc": Optimizer(
        "small_fc",
        "#e07b39",
        "a network of 197 weights for every parameter (Metz et al. 2022), of which it sees 39 numbers",
        small_fc(),
    ),
    "nn_adam": Optimizer(
        "nn_adam",
        "#b8860b",
        "Adam whose rate, β₁, β₂ and ε an LSTM of 32 moves for each tensor (Metz et al. 2022)",
        nn_adam(lstm(hidden=32)),
    ),
}
"""Every name that `pretrained` may know, once there are weights."""
