"""A clock that jumps by some three years, forwards and back, at every look."""

import random
import time

_real, _rng = time.time, random.Random(0)
time.time = lambda: _real() + _rng.choice((-1e8, 0.0, 1e8))
