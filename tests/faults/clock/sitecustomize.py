"""A clock that jumps by some three years every three seconds, forwards and back."""

import time

_real = time.time
time.time = lambda: _real() + 1e8 * (int(time.monotonic() / 3) % 2)
