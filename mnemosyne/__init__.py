"""Mnemosyne: a learned optimizer with attention memory, and the companion to its paper.

tx = mnemosyne.pretrained()  # an optax transformation; nothing to tune
"""

from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.stacks import stacked
from mnemosyne.optimizer.zoo import pretrained, scale_by_pretrained

__all__ = ["pretrained", "scale_by_pretrained", "stacked", "state_bytes"]
