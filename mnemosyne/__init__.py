"""Mnemosyne: a learned optimizer with attention memory, and the companion to its paper.

tx = mnemosyne.pretrained()  # an optax transformation; nothing to tune
"""

from mnemosyne.coordinate import Config
from mnemosyne.mixed import state_bytes
from mnemosyne.optimizer import mnemosyne
from mnemosyne.zoo import pretrained

__all__ = ["Config", "mnemosyne", "pretrained", "state_bytes"]
