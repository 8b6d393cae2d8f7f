"""Hand-designed optimizers over grids of learning rates: what Mnemosyne is measured against (paper §5)."""

import optax

from mnemosyne.evaluate import Contender

RATES = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)
"""Seven half-decades, so that the best rate lies inside; `edge` in `study_rivals.standings` tells where it does not."""

ADAM = Contender("Adam", optax.adam, RATES)
RMSPROP = Contender("RMSProp", optax.rmsprop, RATES)
SGD = Contender("SGD", optax.sgd, (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03))
LION = Contender("Lion", optax.lion, (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5))
LION_PAPER = Contender("Lion", optax.lion, (1e-1, 1e-2, 2e-3, 1e-3, 1e-4))
"""The five rates of Tab. 1."""

ADAM_BEYOND = Contender("Adam", optax.adam, (10.0, 3.0, 1.0, 1e-4, 3e-5, 1e-5))
"""Adam at rates on either side of `RATES`, for tasks whose best is at an edge."""
