"""Mnemosyne: learned optimizers, with attention memory and without, and the companion to the paper behind them.

tx = mnemosyne.pretrained()  # an optax transformation; nothing to tune
"""

from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.stacks import stacked
from mnemosyne.optimizer.zoo import pretrained, scale_by_pretrained

__all__ = ["pretrained", "scale_by_pretrained", "stacked", "state_bytes"]
