"""Learned update rules, the optax transformations made of them, and the weights that ship.

tx = pretrained()                               # shipped weights, nothing to tune
tx = from_rule(theta, paper_rule(COORDINATE), optax.identity())   # weights of your own
"""

from mnemosyne.optimizer.composite import hybrid, state_bytes, super_mnemosyne
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.pace import at_pace
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.rule import COORDINATE, LIGHT, Config, Rule
from mnemosyne.optimizer.transform import from_rule, scale_by_own_rms, scale_by_tensor_rms
from mnemosyne.optimizer.zoo import pretrained

__all__ = [
    "COORDINATE",
    "LIGHT",
    "OPTIMIZERS",
    "Config",
    "Rule",
    "at_pace",
    "from_rule",
    "hybrid",
    "odd_rule",
    "paper_rule",
    "pretrained",
    "scale_by_own_rms",
    "scale_by_tensor_rms",
    "state_bytes",
    "super_mnemosyne",
]
