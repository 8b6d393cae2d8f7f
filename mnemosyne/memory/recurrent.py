"""Recurrent memories under the contract of `memory.Memory`: an LSTM cell and a diagonal state-space layer (S4D).

Both take address and content of a pattern side by side, as one input u = [a, c], and answer with a linear read-out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnemosyne.memory.compact import CHUNK
from mnemosyne.memory.contract import Memory, check_pattern
from mnemosyne.memory.layers import linear, linear_init
from mnemosyne.types import Theta


class LSTMState(NamedTuple):
    """The hidden state of an LSTM cell. Its size depends on neither t nor the pattern's dimensions."""

    h: Float[Array, "*s h"]  # what the cell shows, float32
    c: Float[Array, "*s h"]  # what the cell keeps, float32


def lstm(*, hidden: int = 20) -> Memory:
    """Long short-term memory: one cell and a linear read-out (Hochreiter and Schmidhuber 1997).

        [i, f, g, o] = W_a a + W_c c + W_h h + b
        c ← σ(f) c + σ(i) tanh(g)        h ← σ(o) tanh(c)        out = W_o h + b_o

    The forget gate's bias starts at +1, so that a new cell remembers (Gers et al. 2000).

    Args:
        hidden: width of the cell; 20 in Andrychowicz et al. 2016, 64 in `rnn_fc_lopt`, 512 in VeLO.

    Returns:
        A `Memory` with a state of 2 · hidden numbers. `window` is `step` over the sequence: there is no faster way.

    Raises:
        ValueError: if hidden is not a whole number ≥ 1; at the first pattern, if it does not fit θ.

    Example:
        memory = lstm(hidden=20)
        theta = memory.init(jax.random.key(0), 2, 2, 1)
        state, out = memory.step(theta, memory.state((5,), 2, 2), address, content)
    """
    if not isinstance(hidden, int) or hidden < 1:
        raise ValueError(f"an LSTM cell needs a whole number of hidden units, at least 1, got hidden = {hidden!r}")

    def init(key: Array, address: int, content: int, out: int) -> Theta:
        gates, read_out = jax.random.split(key)
        w = linear_init(gates, address + content + hidden, 4 * hidden)["w"]
        # The order of the gates is i, f, g, o.
        return {
            "address": w[:address],
            "content": w[address : address + content],
            "hidden": w[address + content :],
            "bias": jnp.zeros(4 * hidden, jnp.float32).at[hidden : 2 * hidden].set(1.0),
            "out": linear_init(read_out, hidden, out),
        }

    def state(shape: tuple, address: int, content: int) -> LSTMState:
        del address, content
        return LSTMState(jnp.zeros((*shape, hidden), jnp.float32), jnp.zeros((*shape, hidden), jnp.float32))

    def step(theta: Theta, state: LSTMState, address: Array, content: Array) -> tuple[LSTMState, Array]:
        _check(theta["address"], theta["content"], address, content)
        gates = address @ theta["address"] + content @ theta["content"] + state.h @ theta["hidden"]
        i, f, g, o = jnp.split(gates + _behind(theta["bias"], gates), 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return LSTMState(h, c), linear(theta["out"], h)

    def window(theta: Theta, state: LSTMState, address: Array, content: Array) -> Array:
        _check(theta["address"], theta["content"], address, content)
        return jax.lax.scan(lambda s, x: step(theta, s, *x), state, (address, content))[1]

    return Memory(init, state, step, window)


class S4State(NamedTuple):
    """The modes of one state-space model per input channel. Its size does not depend on t."""

    real: Float[Array, "*s d n"]  # Re x, for d = a + c channels of n = state/2 modes, float32
    imag: Float[Array, "*s d n"]  # Im x, float32


def linear_frequencies(n: int) -> Float[Array, "n"]:
    """Im A of S4D-Lin: π i for i = 0..n−1, a Fourier basis (Gu et al. 2022, §4)."""
    return math.pi * jnp.arange(n, dtype=jnp.float32)


def inverse_frequencies(n: int) -> Float[Array, "n"]:
    """Im A of S4D-Inv: (N/π) (N/(2i+1) − 1) with N = 2n, like S4's own spectrum (Gu et al. 2022, §4)."""
    return 2 * n / math.pi * (2 * n / (2 * jnp.arange(n, dtype=jnp.float32) + 1) - 1.0)


def s4(
    *,
    state: int = 16,
    frequencies: Callable[[int], Array] = linear_frequencies,
    delta: tuple[float, float] = (1e-3, 1e-1),
) -> Memory:
    """Diagonal state-space layer, S4D: one linear system per input channel and a mixing read-out (Gu et al. 2022).

        x_t = Ā x_{t−1} + B̄ u_t,   Ā = e^{ΔA},   B̄ = (e^{ΔA} − 1)/A          (zero-order hold of x' = Ax + u)
        y_t = 2 Re(C x_t) + D u_t                out = W_o gelu(y) + b_o

    A is diagonal with Re A < 0, kept as log(−Re A) and Im A. Its modes stand for themselves and their conjugates,
    hence 2 Re, and B is one, since only its product with C matters. No number in θ or state is complex.

    Args:
        state: N, real numbers of state per channel, i.e. N/2 modes; even.
        frequencies: n → the first Im A, `linear_frequencies` or `inverse_frequencies`. Re A starts at −1/2.
        delta: range of the first Δ, log-uniform over channels, S4's own by default. A channel remembers 2/Δ steps.

    Returns:
        A `Memory` with a state of (a + c) N numbers.

    Raises:
        ValueError: if state is not an even number ≥ 2 or delta not 0 < smallest ≤ largest; at the first pattern, if it
            does not fit θ.

    Numerics: `window` is a convolution within chunks of `CHUNK` patterns and the recurrence between them, which is
    O(t) and equal to `step` but for rounding. B̄ is free of cancellation, however small Δ A.
    """
    if not isinstance(state, int) or state < 2 or state % 2:
        raise ValueError(f"state numbers come in complex pairs: give an even state ≥ 2, got state = {state!r}")
    if not 0 < delta[0] <= delta[1] < math.inf:
        raise ValueError(f"delta must be a range 0 < smallest ≤ largest of step sizes, got {delta}")
    n = state // 2

    def init(key: Array, address: int, content: int, out: int) -> Theta:
        steps, c, skip, read_out = jax.random.split(key, 4)
        d = address + content
        skips = jax.random.normal(skip, (d,), jnp.float32)
        c_real, c_imag = jax.random.normal(c, (2, d, n), jnp.float32) / 2**0.5
        return {
            "log_decay": jnp.full((d, n), math.log(0.5), jnp.float32),
            "frequency": jnp.tile(frequencies(n)[None], (d, 1)),
            "log_delta": jax.random.uniform(
                steps, (d,), jnp.float32, minval=math.log(delta[0]), maxval=math.log(delta[1])
            ),
            "C": {"real": c_real, "imag": c_imag},
            "skip": {"address": skips[:address], "content": skips[address:]},
            "out": linear_init(read_out, d, out),
        }

    def empty(shape: tuple, address: int, content: int) -> S4State:
        zeros = jnp.zeros((*shape, address + content, n), jnp.float32)
        return S4State(zeros, zeros)

    def step(theta: Theta, state: S4State, address: Array, content: Array) -> tuple[S4State, Array]:
        u, skipped = _channels(theta, address, content)
        keep, take = discretise(theta)
        scaled = S4State(*(_behind(b, state.real) * u[..., None] for b in take))
        state = S4State(*map(jnp.add, _times(keep, state), scaled))
        y = 2.0 * jnp.sum(_times(S4State(**theta["C"]), state).real, axis=-1)
        return state, linear(theta["out"], jax.nn.gelu(y + skipped))

    def window(theta: Theta, state: S4State, address: Array, content: Array) -> Array:
        u, skipped = _channels(theta, address, content)
        return linear(theta["out"], jax.nn.gelu(convolve(theta, state, u) + skipped))

    return Memory(init, empty, step, window)


def discretise(theta: Theta) -> tuple[S4State, S4State]:
    """Ā and B̄ of every channel by zero-order hold, [d n] each."""
    re, im = -jnp.exp(theta["log_decay"]), theta["frequency"]
    step = jnp.exp(theta["log_delta"])[:, None]
    # e^z − 1 = expm1(x) cos y − 2 sin²(y/2) + i e^x sin y, so that a small z loses no digits.
    x, y = step * re, step * im
    rise = jnp.expm1(x) * jnp.cos(y) - 2.0 * jnp.sin(y / 2) ** 2, jnp.exp(x) * jnp.sin(y)
    size = re**2 + im**2
    return powers(theta, jnp.ones((), jnp.float32)), _times(S4State(re / size, -im / size), S4State(*rise))


def powers(theta: Theta, t: Float[Array, "*t"]) -> S4State:
    """Ā^t = e^{tΔA}, [*t d n]."""
    step = jnp.exp(theta["log_delta"])[:, None]
    z = lambda a: t[..., None, None] * _behind(step * a, t[..., None, None])
    size, angle = jnp.exp(z(-jnp.exp(theta["log_decay"]))), z(theta["frequency"])
    return S4State(size * jnp.cos(angle), size * jnp.sin(angle))


def convolve(theta: Theta, state: S4State, u: Float[Array, "t *s d"]) -> Float[Array, "t *s d"]:
    """2 Re(C x_t) for a sequence of inputs, as a convolution with K_t = 2 Re(C Ā^t B̄).

    What was in the state before the first input adds 2 Re(C Ā^{t+1} x).
    """
    t = u.shape[0]
    chunk = max(1, min(CHUNK, t))
    n = -(-t // chunk)
    chunks = jnp.pad(u, [(0, n * chunk - t)] + [(0, 0)] * (u.ndim - 1)).reshape(n, chunk, *u.shape[1:])
    c, (_, take) = S4State(**theta["C"]), discretise(theta)
    power = powers(theta, jnp.arange(chunk + 1.0, dtype=jnp.float32))  # Ā^0 .. Ā^chunk, [chunk+1 d n]
    response = _times(take, power)  # Ā^t B̄
    kernel = 2.0 * jnp.sum(_times(c, response).real, axis=-1)  # K_t
    age = jnp.arange(chunk)[:, None] - jnp.arange(chunk)[None, :]
    toeplitz = jnp.where(age[..., None] >= 0, kernel[jnp.maximum(age, 0)], 0.0)  # [t u d]
    asked = S4State(*(part[1:] for part in _times(c, power)))  # C Ā^{t+1}
    through = S4State(*(part[chunk] for part in power))
    written = S4State(*(part[:chunk][::-1] for part in response))  # what the input at u leaves at the chunk's end

    def advance(x: S4State, u: Array) -> tuple[S4State, Array]:
        y = jnp.einsum("tud,u...d->t...d", toeplitz, u)
        y += 2.0 * jnp.einsum("tdn,...dn->t...d", asked.real, x.real)
        y -= 2.0 * jnp.einsum("tdn,...dn->t...d", asked.imag, x.imag)
        added = (jnp.einsum("u...d,udn->...dn", u, part) for part in written)
        return S4State(*map(jnp.add, _times(through, x), added)), y

    _, y = jax.lax.scan(advance, state, chunks)
    return y.reshape(n * chunk, *u.shape[1:])[:t]


def _channels(theta: Theta, address: Array, content: Array) -> tuple[Array, Array]:
    """The input u = [a, c] and D u."""
    skip = theta["skip"]
    _check(skip["address"], skip["content"], address, content)
    u = jnp.concatenate([address, content], axis=-1)
    return u, u * _behind(jnp.concatenate([skip["address"], skip["content"]]), u)


def _times(x: S4State, y: S4State) -> S4State:
    """Multiply complex numbers element by element; x may lack leading axes of y."""
    a, b = (_behind(part, y.real) for part in x)
    return S4State(a * y.real - b * y.imag, a * y.imag + b * y.real)


def _check(for_address: Array, for_content: Array, address: Array, content: Array) -> None:
    """Compare a pattern with weights whose first axes are the address's and the content's."""
    check_pattern({"query": {"w": for_address}, "value": for_content}, address, content)


def _behind(x: Array, like: Array) -> Array:
    """Put axes of one in front of x until it has the rank of `like`."""
    return x.reshape(*(1,) * (like.ndim - x.ndim), *x.shape)
