"""Meta-training: how a learned rule gets its weights (paper App. B.1).

Optimizees run for a horizon of steps under the rule as it is. Every `window` steps the rule's weights θ take one
Adam step on

    L(θ) = loss in the window + w · mean (u_θ − u_expert)² / η²

where the expert is Adam at rate η on the same, on-policy gradients. With second derivatives of the optimizee
dropped, as is usual since Andrychowicz et al. 2016, the window's meta-gradient is that of Σ_s u_s · G_s with
G_s = Σ_{t>s} g_t. So windows are rolled out without differentiation, and only the memory's parallel form is
differentiated, on a random sample of coordinates: the same gradient in expectation, at a cost that does not
grow with the optimizee. Tasks are weighed by 1 / Σ_s |u_expert,s · G_s|, each in units of its own.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mnemosyne import store
from mnemosyne.coordinate import Rule
from mnemosyne.optimizer import scale_by_tensor_rms
from mnemosyne.types import State, Task, Theta


@dataclass(frozen=True)
class MetaConfig:
    """What meta-training does. The paper states horizon, window, batch, meta-rate, expert and scaling."""

    iterations: int = 460  # meta-steps, one window each
    horizon: int = 100  # steps an optimizee is trained before it starts afresh
    window: int = 20  # steps of truncated back-propagation; must divide the horizon
    replicas: int = 1  # independent runs of each task at a time
    learning_rate: float = 1e-3  # of meta-Adam, cosine-decayed to a tenth; the paper's is 3e-4
    clip: float = 1.0  # global norm of the meta-gradient
    expert_rate: float = 1e-2  # η of the expert Adam; the paper's is 3e-2, too large for standardised MNIST
    imitation: float = 2.0  # w after warm-up; the paper does not state it
    imitation_warmup: float = 10.0  # w before
    warmup: int = 60  # iterations
    scaling: float = 1.0  # s: coordinates are scaled by exp(U(−s, s)) (Lv et al. 2017)
    coordinates: int = 1500  # drawn for each meta-gradient, over all tasks together
    seed: int = 0


class Slots(NamedTuple):
    """R replicas of one task, each somewhere within its horizon. P is the task's number of parameters."""

    x: Array  # [r p] parameters divided by `scale`
    scale: Array  # [r p]
    memory: State  # [r p …]
    prepare: State  # [r …]
    expert: State  # [r …]
    age: Array  # [r] int32, steps since the start
    first: Array  # [r] loss at the start
    failed: Array  # [r] bool


class Carry(NamedTuple):
    """Everything meta-training goes on from; what a checkpoint holds."""

    theta: Theta
    meta: State  # of the meta-optimizer
    slots: tuple[Slots, ...]  # one per task
    iteration: Array  # int32


class Rollout(NamedTuple):
    """What one window of one task yields: [t r p] each but the losses."""

    losses: Array  # [t+1 r]
    gradients: Array  # [t+1 r p], of the scaled parameters
    inputs: Array  # [t r p], what the rule saw
    expert: Array  # [t r p], what the expert would have done


def meta_train(
    rule: Rule,
    tasks: Sequence[Task],
    config: MetaConfig,
    *,
    folder: Path | None = None,
    prepare: optax.GradientTransformation | None = None,
    report: Callable[[dict], None] = lambda row: None,
    chunk: int = 20,
) -> tuple[Theta, list[dict]]:
    """Meta-train a rule.

    Args:
        rule: what to train.
        tasks: the optimizees; all run side by side.
        config: see `MetaConfig`.
        folder: where `log.jsonl`, `checkpoint.safetensors` and snapshots of θ go. If it holds a checkpoint of
            the same configuration, training goes on from there, and ends in the same bits as if it had never
            stopped.
        prepare: as in `optimizer.drop_in`.
        report: called with each row of the log.
        chunk: iterations compiled into one program; a row of the log is the mean over a chunk.

    Returns:
        (θ, log).

    Raises:
        ValueError: if window does not divide horizon, chunk does not divide iterations, or the folder holds a
            checkpoint of another configuration.
    """
    if config.horizon % config.window:
        raise ValueError(f"window {config.window} does not divide horizon {config.horizon}")
    if config.iterations % chunk:
        raise ValueError(f"chunk {chunk} does not divide iterations {config.iterations}")
    trainer = Trainer(rule, tuple(tasks), config, scale_by_tensor_rms() if prepare is None else prepare)
    carry, log = trainer.start(), []
    if folder is not None:
        carry, log = _resume(folder, carry, config, [t.name for t in tasks])
    program = jax.jit(trainer.run, static_argnums=2, donate_argnums=0)
    data = tuple(t.data for t in tasks)
    for row in log:
        report(row)
    while int(carry.iteration) < config.iterations:
        began = time.perf_counter()
        carry, measured = program(carry, data, chunk)
        row = {"iteration": int(carry.iteration), **{k: float(v) for k, v in measured.items()}}
        row["seconds"] = round(time.perf_counter() - began, 3)
        log.append(row)
        if folder is not None:
            _save(folder, carry, row, last=row["iteration"] == config.iterations)
        report(row)
    return carry.theta, log


class Trainer(NamedTuple):
    """Pure functions of one meta-training run."""

    rule: Rule
    tasks: tuple[Task, ...]
    config: MetaConfig
    prepare: optax.GradientTransformation

    def start(self) -> Carry:
        """θ, optimizees and their ages at iteration 0; ages are staggered so that every window has all phases."""
        key = jax.random.key(self.config.seed)
        theta = self.rule.init(jax.random.fold_in(key, 1))
        windows = self.config.horizon // self.config.window
        slots = []
        for i, task in enumerate(self.tasks):
            fresh = self.fresh(task, jax.random.fold_in(key, 2 + i))
            turn = (np.arange(self.config.replicas) + i) % windows
            slots.append(fresh._replace(age=jnp.asarray(turn * self.config.window, jnp.int32)))
        return Carry(theta, self.meta_optimizer().init(theta), tuple(slots), jnp.zeros((), jnp.int32))

    def meta_optimizer(self) -> optax.GradientTransformation:
        c = self.config
        rate = optax.cosine_decay_schedule(c.learning_rate, max(c.iterations, 1), alpha=0.1)
        return optax.chain(optax.clip_by_global_norm(c.clip), optax.adam(rate))

    def fresh(self, task: Task, key: Array) -> Slots:
        """R new replicas of a task, with new random scales."""
        r, s = self.config.replicas, self.config.scaling
        init_key, scale_key = jax.random.split(key)
        x = jax.vmap(lambda k: ravel_pytree(task.init(k))[0])(jax.random.split(init_key, r))
        scale = jnp.exp(jax.random.uniform(scale_key, x.shape, minval=-s, maxval=s))
        zeros = jnp.zeros(r, jnp.int32)
        return Slots(
            x=x / scale,
            scale=scale,
            memory=self.rule.state(x.shape),
            prepare=jax.vmap(lambda z: self.prepare.init(_unravel(task)(z)))(x),
            expert=jax.vmap(self.expert().init)(x),
            age=zeros,
            first=jnp.full(r, jnp.inf, jnp.float32),
            failed=zeros > 0,
        )

    def expert(self) -> optax.GradientTransformation:
        return optax.adam(self.config.expert_rate)

    def rollout(self, task: Task, data, theta: Theta, slots: Slots, key: Array) -> tuple[Slots, Rollout]:
        """Train R replicas for one window under the rule, without differentiating through it."""
        unravel, replicas = _unravel(task), self.config.replicas

        def gradients(x, key):
            def loss(z, scale, k):
                return task.loss(unravel(z * scale), task.batch(data, k))

            loss, g = jax.vmap(jax.value_and_grad(loss))(x, slots.scale, jax.random.split(key, replicas))
            return loss, jnp.where(jnp.isfinite(g), g, 0.0)

        def prepared(g, state):
            updates, state = self.prepare.update(unravel(g), state)
            return ravel_pytree(updates)[0], state

        def step(carry, key):
            x, memory, prepare, expert = carry
            loss, g = gradients(x, key)
            inputs, prepare = jax.vmap(prepared)(g, prepare)
            wanted, expert = jax.vmap(self.expert().update)(g, expert)
            memory, u = self.rule.step(theta, memory, inputs)
            return (x + u, memory, prepare, expert), (loss, g, inputs, wanted)

        keys = jax.random.split(key, self.config.window + 1)
        carry = (slots.x, slots.memory, slots.prepare, slots.expert)
        (x, memory, prepare, expert), (losses, g, inputs, wanted) = jax.lax.scan(step, carry, keys[:-1])
        last_loss, last_g = gradients(x, keys[-1])  # so that the window's last update gets a signal too
        losses, g = jnp.concatenate([losses, last_loss[None]]), jnp.concatenate([g, last_g[None]])
        first = jnp.where(slots.age == 0, losses[0], slots.first)
        # A run ten times above its first loss is lost, and would drown the others' gradients.
        failed = ~(jnp.isfinite(last_loss) & (last_loss < 10.0 * first))
        age = slots.age + self.config.window
        slots = Slots(x, slots.scale, memory, prepare, expert, age, first, failed)
        return slots, Rollout(losses, g, inputs, wanted)

    def meta_loss(self, theta: Theta, memories: list, rollouts: list[Rollout], key: Array, weight: Array):
        """The factorised meta-loss on a sample of coordinates; differentiate this by θ."""
        n = max(1, self.config.coordinates // len(rollouts))
        samples = []
        for i, (memory, rollout) in enumerate(zip(memories, rollouts, strict=True)):
            ahead = jnp.cumsum(rollout.gradients[:0:-1], axis=0)[::-1]  # G_s = Σ_{t>s} g_t
            # In units of what the expert's updates are worth, or the task with the steepest loss decides alone.
            ahead = ahead / (len(rollouts) * jnp.maximum(jnp.sum(jnp.abs(rollout.expert * ahead)), 1e-12))
            windows = [a.reshape(a.shape[0], -1) for a in (rollout.inputs, ahead, rollout.expert)]
            pick, chance = sample_coordinates(jax.random.fold_in(key, i), windows[1], n)
            inputs, ahead, wanted = (a[:, pick] for a in windows)
            start = jax.tree.map(lambda a, p=pick: a.reshape(-1, *a.shape[2:])[p], memory)
            spread = 1.0 / (len(rollouts) * n * chance * windows[0].shape[1])  # mean over all coordinates
            samples.append((start, inputs, ahead / (n * chance)[None], wanted, spread))
        starts, *rest = zip(*samples, strict=True)
        start = jax.tree.map(lambda *a: jnp.concatenate(a), *starts)
        inputs, ahead, wanted, spread = (jnp.concatenate(a, axis=-1) for a in rest)
        u = self.rule.window(theta, start, inputs)
        misfit = jnp.mean((u - wanted) ** 2, axis=0) / self.config.expert_rate**2
        imitation = jnp.sum(spread * misfit)
        return jnp.sum(u * ahead) + weight * imitation, imitation

    def iterate(self, carry: Carry, data: tuple) -> tuple[Carry, dict[str, Array]]:
        """One meta-step: renew finished optimizees, roll out a window, update θ."""
        c = self.config
        key = jax.random.fold_in(jax.random.key(c.seed), 1000 + carry.iteration)
        slots, memories, rollouts = [], [], []
        for i, (task, old, arrays) in enumerate(zip(self.tasks, carry.slots, data, strict=True)):
            fresh_key, roll_key = jax.random.split(jax.random.fold_in(key, i))
            over = (old.age >= c.horizon) | old.failed
            old = jax.tree.map(
                lambda new, was, over=over: jnp.where(over.reshape(-1, *(1,) * (was.ndim - 1)), new, was),
                self.fresh(task, fresh_key),
                old,
            )
            new, rollout = self.rollout(task, arrays, carry.theta, old, roll_key)
            slots.append(new)
            memories.append(old.memory)
            rollouts.append(rollout)
        weight = jnp.where(carry.iteration < c.warmup, c.imitation_warmup, c.imitation)
        gradient, imitation = jax.grad(self.meta_loss, has_aux=True)(
            carry.theta, memories, rollouts, jax.random.fold_in(key, len(slots)), weight
        )
        norm = optax.global_norm(gradient)
        # A meta-gradient that is not finite teaches nothing; it is skipped and shows as `skipped`.
        usable = jnp.isfinite(norm)
        gradient = jax.tree.map(lambda g: jnp.where(usable, g, 0.0), gradient)
        update, meta = self.meta_optimizer().update(gradient, carry.meta, carry.theta)
        theta = optax.apply_updates(carry.theta, update)
        measured = {
            "loss": jnp.mean(jnp.stack([jnp.mean(r.losses) for r in rollouts])),
            "imitation": imitation,
            "gradient_norm": norm,
            "failed": jnp.sum(jnp.stack([jnp.sum(s.failed) for s in slots])).astype(jnp.float32),
            "skipped": 1.0 - usable.astype(jnp.float32),
        }
        return Carry(theta, meta, tuple(slots), carry.iteration + 1), measured

    def run(self, carry: Carry, data: tuple, n: int) -> tuple[Carry, dict[str, Array]]:
        """n meta-steps in one program; measurements are their means."""
        carry, measured = jax.lax.scan(lambda c, _: self.iterate(c, data), carry, None, length=n)
        return carry, jax.tree.map(jnp.mean, measured)


def sample_coordinates(key: Array, ahead: Array, n: int) -> tuple[Array, Array]:
    """Draw n coordinates with replacement, those that matter for the loss more often.

        p_i = ½ · 1/P + ½ · ‖G_i‖ / Σ_j ‖G_j‖

    The first half keeps every coordinate's weight in the imitation loss below 2. The second is what lowers the
    variance of the task loss: in an MLP on images a few hundred output weights carry most of the gradient, and
    a uniform draw hardly ever finds them.

    Args:
        key: a JAX random key.
        ahead: G [t p], gradients still to come.
        n: how many.

    Returns:
        (indices [n], their p_i [n]).
    """
    size = jnp.linalg.norm(ahead, axis=0)
    total = jnp.sum(size)
    matter = jnp.where(total > 0, size / jnp.where(total > 0, total, 1.0), 1.0 / size.shape[0])
    chance = 0.5 / size.shape[0] + 0.5 * matter
    pick = jax.random.categorical(key, jnp.log(chance), shape=(n,))
    return pick, chance[pick]


def _unravel(task: Task) -> Callable:
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))[1]


def _resume(folder: Path, start: Carry, config: MetaConfig, tasks: list[str]) -> tuple[Carry, list[dict]]:
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({"config": asdict(config), "tasks": tasks}, indent=1)
    note = folder / "config.json"
    if note.exists() and note.read_text() != identity:
        raise ValueError(f"{folder} holds a run of another configuration: {note}. Choose another folder.")
    note.write_text(identity)
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        (folder / "log.jsonl").unlink(missing_ok=True)
        return start, []
    carry = store.load_tree(checkpoint, start)
    log = [row for row in read_log(folder) if row["iteration"] <= int(carry.iteration)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return carry, log


def read_log(folder: Path) -> Iterator[dict]:
    """Read a run's `log.jsonl`, leaving out a last line that a crash cut short."""
    for line in (folder / "log.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


SAVE_EVERY = 100
"""Iterations between snapshots of θ and checkpoints."""


def _save(folder: Path, carry: Carry, row: dict, last: bool) -> None:
    """Append the row; now and then save θ for selection and a checkpoint to go on from."""
    with (folder / "log.jsonl").open("a") as f:
        f.write(json.dumps(row) + "\n")
    if last or row["iteration"] % SAVE_EVERY == 0:
        store.save_tree(folder / f"theta-{row['iteration']:06d}.safetensors", carry.theta)
        store.save_tree(folder / "checkpoint.safetensors", carry)
