"""What an optimizer remembers with (paper §3.3, App. A.1, B.2).

A memory is a pair of pure functions. `state` makes an empty memory and `step` shows it one pattern:

    state = memory.state(shape, d, c)                          # one memory per element of `shape`
    state, out = memory.step(theta, state, address, content)   # address [*shape d], content [*shape c]

`window` is `step` over a sequence, for memories that know a faster way than one step after another.
The paper's is `cam`. The others keep the same contract, so that a comparison swaps one argument.
"""

from mnemosyne.memory import features
from mnemosyne.memory.cache import attention
from mnemosyne.memory.compact import cam, read, write
from mnemosyne.memory.contract import Memory, redraw
from mnemosyne.memory.features import (
    FeatureMap,
    favor_plus_plus,
    hyperbolic,
    orthogonal_projections,
    positive,
    relu,
    square,
)
from mnemosyne.memory.layers import layer_norm, linear
from mnemosyne.memory.recurrent import lstm, s4
from mnemosyne.memory.thick import thick_cam

__all__ = [
    "FeatureMap",
    "Memory",
    "attention",
    "cam",
    "favor_plus_plus",
    "features",
    "hyperbolic",
    "layer_norm",
    "linear",
    "lstm",
    "orthogonal_projections",
    "positive",
    "read",
    "redraw",
    "relu",
    "s4",
    "square",
    "thick_cam",
    "write",
]
