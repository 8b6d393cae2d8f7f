"""Learned update rules, the optax transformations made of them, and the weights that ship.

tx = pretrained()                               # shipped weights, nothing to tune
tx = from_rule(theta, paper_rule(COORDINATE), optax.identity())   # weights of your own
"""

from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.accumulators import Features, feature_names
from mnemosyne.optimizer.composite import hybrid, state_bytes, super_mnemosyne
from mnemosyne.optimizer.controlled_adam import nn_adam
from mnemosyne.optimizer.hierarchical import rnn_fc
from mnemosyne.optimizer.nesterov import nadamw
from mnemosyne.optimizer.odd import odd_rule
from mnemosyne.optimizer.pace import FEATURES, at_pace
from mnemosyne.optimizer.paper import feedforward, paper_rule
from mnemosyne.optimizer.perparameter import fc, per_parameter, small_fc
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.rule import COORDINATE, LIGHT, Config, Rule, log_sign
from mnemosyne.optimizer.sizes import scale_by_own_rms, scale_by_tensor_rms
from mnemosyne.optimizer.stacks import stacked
from mnemosyne.optimizer.transform import from_rule
from mnemosyne.optimizer.unit_direction import celo2
from mnemosyne.optimizer.zoo import pretrained, scale_by_pretrained

__all__ = [
    "COORDINATE",
    "FEATURES",
    "LIGHT",
    "OPTIMIZERS",
    "Config",
    "Features",
    "Rule",
    "at_pace",
    "celo2",
    "fc",
    "feature_names",
    "feedforward",
    "from_rule",
    "hybrid",
    "log_sign",
    "nadamw",
    "nn_adam",
    "odd_rule",
    "paper_rule",
    "per_parameter",
    "pretrained",
    "rnn_fc",
    "scale_by_own_rms",
    "scale_by_pretrained",
    "scale_by_tensor_rms",
    "small_fc",
    "stacked",
    "state_bytes",
    "super_mnemosyne",
    "zoo",
]
