"""Mnemosyne: a learned optimizer with attention memory, and the companion to its paper.

tx = mnemosyne.pretrained()  # an optax transformation; nothing to tune
"""

from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.optimizer.zoo import pretrained

__all__ = ["pretrained", "state_bytes"]
