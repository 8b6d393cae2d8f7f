"""How long an update and a memory take: ratios measured in one run, `make bench`."""

import sys
import time
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from mnemosyne.inner import inner_step
from mnemosyne.memory.compact import cam
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.composite import state_bytes
from mnemosyne.provenance import device, versions
from mnemosyne.tasks.models.transformer import count
from mnemosyne.types import Params, Task

SIZES = (10_000, 100_000, 1_000_000)
COMPILED = ("slim", "paced", "light", "coordinate", "tensor", "hybrid", "super")
ROUNDS = 7  # medians of so many, the contenders taking turns so that the machine's noise is shared


def bench(sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS) -> pd.DataFrame:
    """Time one update of each optimizer, and the floor: a plain copy of its state.

    Returns:
        Rows (optimizer, parameters, state bytes per parameter, ns per parameter, × Adam, × copying its state).
    """
    rows = []
    for n in sizes:
        params = {"w": jnp.zeros((n // 100, 100))}
        grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
        contenders = {"optax.adam": optax.adam(1e-3)}
        contenders |= {name: zoo.pretrained(name) for name in ("slim", "paced", "light", "coordinate")}
        timed = {}
        for name, tx in contenders.items():
            state = tx.init(params)
            timed |= {(name, "update"): stepper(tx, grads, state), (name, "copy"): stepper_copy(tx.init(params))}
        spent = in_turns(timed, rounds).median()
        adam = spent["optax.adam", "update"]
        for name, tx in contenders.items():
            update, copy = spent[name, "update"], spent[name, "copy"]
            rows.append(
                {
                    "optimizer": name,
                    "parameters": n,
                    "bytes/parameter": round(state_bytes(tx, params) / n, 1),
                    "ns/parameter": update / n * 1e9,
                    "× adam": update / adam,
                    "× copy of its state": update / copy,
                }
            )
    return pd.DataFrame(rows)


def bench_compiling(
    numbers: tuple[int, ...] = (10, 50, 200, 1_000), names: tuple[str, ...] = COMPILED, rounds: int = 3
) -> pd.DataFrame:
    """Time tracing and compiling one update of a network of so many tensors, half of them (16, 16) and half (16,).

    Returns:
        A row for each number of tensors (tensors, seconds of `optax.adam`, of each name over Adam's); medians, the
        contenders taking turns.
    """
    contenders = {"optax.adam": optax.adam(1e-3)} | {name: zoo.pretrained(name) for name in names}
    rows = []
    for n in numbers:
        params = {f"layer{i}": {"w": jnp.ones((16, 16)), "b": jnp.zeros(16)} for i in range(n // 2)}
        rounds_of = [{name: seconds_to_compile(tx, params) for name, tx in contenders.items()} for _ in range(rounds)]
        spent = pd.DataFrame(rounds_of).median()
        rows.append({"tensors": n, "adam, s": spent["optax.adam"], **(spent / spent["optax.adam"])[list(names)]})
    return pd.DataFrame(rows)


def seconds_to_compile(tx: optax.GradientTransformation, params: Params) -> float:
    """Seconds to trace and compile an update; right only without JAX's cache of compiled programs."""
    state = tx.init(params)
    jax.clear_caches()
    began = time.perf_counter()
    jax.jit(tx.update).lower(params, state, params).compile()
    return time.perf_counter() - began


def bench_sequence(t: int = 4_096, d: int = 16, projections: int = 16, rounds: int = ROUNDS) -> pd.DataFrame:
    """Time CAM over a sequence of t patterns: step after step in a compiled scan, and its parallel form.

    Returns:
        Rows (what, ms of the scan, ms of the parallel form, their ratio, largest relative difference).
    """
    memory = cam(projections=projections)
    theta, patterns = memory.init(jax.random.key(0), d, d, d), jax.random.normal(jax.random.key(1), (t, d))
    empty = memory.state((), d, d)
    scan = lambda theta: jax.lax.scan(lambda s, x: memory.step(theta, s, x, x), empty, patterns)[1]
    parallel = lambda theta: memory.window(theta, empty, patterns, patterns)
    gradient = lambda f: jax.grad(lambda theta: jnp.sum(f(theta) ** 2))
    rows = []
    for what, of in (("output", lambda f: f), ("gradient", gradient)):
        by_form = [jax.jit(of(form)) for form in (scan, parallel)]
        one, other = (np.concatenate([x.ravel() for x in jax.tree.leaves(f(theta))]) for f in by_form)
        spent = [[], []]
        for _ in range(rounds):
            for f, into in zip(by_form, spent, strict=True):
                into.append(per_call(f, theta, calls=10))
        slow, fast = (float(np.median(s)) for s in spent)
        difference = float(np.abs(one - other).max() / np.abs(one).max())
        rows.append([what, slow * 1e3, fast * 1e3, slow / fast, difference])
    return pd.DataFrame(rows, columns=["of", "scan, ms", "parallel, ms", "ratio", "relative difference"])


def bench_training(
    entries: dict[str, tuple[Task, optax.GradientTransformation]], examples: int, rounds: int = ROUNDS
) -> pd.DataFrame:
    """Time whole training steps, gradient and update, the entries taking turns.

    Args:
        entries: what is trained, and by what, by label. The parameters of a task are those that are trained.
        examples: in a batch of each task.
        rounds: a time is the median of so many.

    Returns:
        By label (parameters, state bytes, peak bytes, examples/s). The peak is the compiler's count for one
        step: parameters, state and batch, frozen parameters among it, and all temporaries.
    """
    ready = {label: _prepared(*entry) for label, entry in entries.items()}
    spent = in_turns({label: step for label, (step, _) in ready.items()}, rounds)
    table = pd.DataFrame.from_dict({label: about for label, (_, about) in ready.items()}, orient="index")
    return table.assign(**{"examples/s": examples / spent.median()})


def seconds_per_step(
    entries: dict[str, tuple[Task, optax.GradientTransformation]], rounds: int = ROUNDS, calls: int = 1
) -> pd.DataFrame:
    """Seconds of whole training steps: a row for each round, in which the entries take turns, a column for each entry.

    Args:
        entries: what is trained, and by what, by label.
        rounds: rows.
        calls: steps that a number is the mean of.
    """
    return in_turns({label: _prepared(*entry)[0] for label, entry in entries.items()}, rounds, calls)


_SETTLING = 0.1  # seconds


def in_turns(steps: dict[Hashable, Callable[[], float]], rounds: int, calls: int = 1) -> pd.DataFrame:
    """What timers return: rounds × timers, means of `calls` after those of 0.1 s, and one at least, that do not count.

    After an optimizer with a state of hundreds of megabytes the first calls of a small one take up to twice as long.
    """

    def settled(step: Callable[[], float]) -> float:
        spent = step()
        while spent < _SETTLING:
            spent += step()
        return float(np.mean([step() for _ in range(calls)]))

    return pd.DataFrame([{label: settled(step) for label, step in steps.items()} for _ in range(rounds)])


def _prepared(task: Task, tx: optax.GradientTransformation) -> tuple[Callable[[], float], dict[str, int]]:
    """A timer of training steps, and how many bytes they need."""
    params = task.init(jax.random.key(0))
    step, peak = _training_step(task, tx, params)
    # Buffers of their own, since a step overwrites them; some states start as the parameters themselves.
    carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
    return _timer(step, carry), {
        "parameters": count(params),
        "state bytes": state_bytes(tx, params),
        "peak bytes": peak,
    }


def _training_step(task: Task, tx: optax.GradientTransformation, params: Params) -> tuple[Callable, int]:
    """Compile a step of (parameters, state), which it overwrites, on one batch; and count the bytes it needs."""
    batch = task.batch(task.data, jax.random.key(1))

    def step(carry, batch):
        return inner_step(task, tx, carry, batch)[0]

    compiled = jax.jit(step, donate_argnums=0).lower((params, tx.init(params)), batch).compile()
    sizes = compiled.memory_analysis()
    peak = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return lambda carry: compiled(carry, batch), peak - sizes.alias_size_in_bytes


def per_call(f: Callable, *args, calls: int) -> float:
    """Seconds per call of a compiled function, after one that warms the caches."""
    jax.block_until_ready(f(*args))
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(f(*args))
    return (time.perf_counter() - began) / calls


def stepper(tx: optax.GradientTransformation, grads, state) -> Callable[[], float]:
    """A function that makes one update, state donated, and returns the seconds it took."""
    update = jax.jit(lambda g, s: tx.update(g, s), donate_argnums=1)
    return _timer(lambda s: update(grads, s)[1], state)


def stepper_copy(state) -> Callable[[], float]:
    """A function that reads and writes the state once and returns the seconds it took: the floor of an update."""
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    return _timer(bump, state)


def _timer(advance: Callable, state) -> Callable[[], float]:
    held = [jax.block_until_ready(advance(state))]  # compiled before it is timed

    def once() -> float:
        began = time.perf_counter()
        held[0] = jax.block_until_ready(advance(held[0]))
        return time.perf_counter() - began

    return once


def main() -> None:
    """Print the table."""
    sys.stdout.reconfigure(errors="replace")  # × and λ, whatever the locale
    jax.config.update("jax_enable_compilation_cache", False)
    print(f"{device()}; {versions()}; medians of {ROUNDS}, contenders in turn\n")
    print(bench().to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    print("\nTracing and compiling an update, over Adam's; medians of 3\n")
    print(bench_compiling().to_string(index=False, float_format=lambda x: f"{x:.1f}"))
    print("\nCAM over 4,096 patterns, d = 16, 32 features\n")
    print(bench_sequence().to_string(index=False, float_format=lambda x: f"{x:.2g}"))


if __name__ == "__main__":
    main()
