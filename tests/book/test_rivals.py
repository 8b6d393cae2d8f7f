import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from mnemosyne.book.studies import comparison, rivals
from mnemosyne.evaluate import ADAM, train
from mnemosyne.types import Task

BOWL = Task(
    "bowl",
    data=jnp.zeros(1),
    init=lambda key: {"x": 1.0 + 0.1 * jax.random.normal(key, (3,))},
    batch=lambda data, key: jax.random.normal(key, (3,)),
    loss=lambda params, noise: jnp.sum(params["x"] ** 2) + 0.01 * noise @ params["x"] + 1.0,
    metrics=lambda params, data: {"loss": jnp.sum(params["x"] ** 2)},
)


@pytest.mark.parametrize("rival", rivals.tuning_free(), ids=lambda c: c.name)
def test_each_rival_trains_as_it_comes(rival):
    rows = train(BOWL, rival, seeds=(0,), steps=2_000, every=500)
    assert np.isfinite(rows.train_loss).all()
    assert rows.train_loss.iloc[-1] < rows.train_loss.iloc[0]


def test_schedule_free_is_measured_at_its_average():
    """On a bowl that gradients leave at once, the loss is that of the running average and not of the last point."""
    rival = rivals.tuning_free()[-1]
    rows = train(BOWL, rival, seeds=(0,), steps=20, every=1)
    init, key = jax.random.split(jax.random.key(0))
    tx, params = rival.make(1.0), BOWL.init(init)
    state = tx.init(params)
    for t in range(20):
        noise = BOWL.batch(BOWL.data, jax.random.fold_in(key, t))
        average = optax.contrib.schedule_free_eval_params(state, params)
        assert np.isclose(rows.train_loss[t + 1], BOWL.loss(average, noise), rtol=1e-5)
        updates, state = tx.update(jax.grad(BOWL.loss)(params, noise), state, params)
        params = optax.apply_updates(params, updates)
    assert not np.isclose(rows.train_loss[20], BOWL.loss(params, noise), rtol=1e-6)


@pytest.mark.parametrize(("make", "shape"), [(rivals.decayed, [1.0, 0.75, 0.5, 0.25]), (rivals.warmed, [0.0, 1.0])])
def test_schedules_follow_their_shape(make, shape):
    tx = make(4).make(0.1)
    state, moved = tx.init(jnp.zeros(1)), []
    for _ in shape:
        updates, state = tx.update(jnp.ones(1), state)
        moved.append(-float(updates[0]) / 0.1)
    assert np.allclose(moved, shape, atol=1e-4)


def rows_of(losses: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Rows at step 10 of (task, optimizer) → a loss for each seed."""
    return pd.DataFrame(
        [
            {"task": t, "optimizer": o, "rate": 1.0, "seed": seed, "step": 10, "train_loss": v}
            for (t, o), values in losses.items()
            for seed, v in enumerate(values)
        ]
    )


def test_the_bootstrap_covers_tasks_and_seeds():
    rng, losses = np.random.default_rng(0), {}
    for k in range(40):
        own = np.exp(0.5 + rng.normal(0.0, 0.4))
        losses[f"t{k}", "Adam"] = [1.0, 1.0, 1.0]
        losses[f"t{k}", "Rule"] = list(own * np.exp(rng.normal(0.0, 0.1, 3)))
    found = rivals.bootstrapped(comparison.best_losses(rows_of(losses), 10), "Adam").iloc[0]
    half = (np.log(found.high) - np.log(found.low)) / 2
    assert 0.75 < half / (1.96 * 0.4 / 40**0.5) < 1.3  # tasks differ by 0.4, which seeds alone would not show
    assert found.low < np.exp(0.5) < found.high
    same = rivals.bootstrapped(comparison.best_losses(rows_of(losses), 10), "Adam").iloc[0]
    assert found.equals(same)


def test_a_lost_run_makes_a_mean_infinite():
    losses = {("t", "Adam"): [1.0, 1.0], ("t", "Rule"): [1.0, np.nan]}
    assert np.isinf(rivals.bootstrapped(comparison.best_losses(rows_of(losses), 10), "Adam")["mean"][0])


def test_who_overtakes_and_when():
    curve = lambda o, rate, values: pd.DataFrame(
        {"task": "t", "optimizer": o, "rate": rate, "seed": 0, "step": [0, 10, 20], "train_loss": values}
    )
    parts = [curve("Adam", 0.1, [9.0, 5.0, 3.0]), curve("Adam", 0.01, [9.0, 6.0, 4.0])]
    parts += [curve("fast", 1.0, [9.0, 3.0, 1.0]), curve("slow", 1.0, [9.0, 8.0, 7.0])]
    found = rivals.overtaken(parts, 20).set_index("optimizer").steps
    assert found.to_dict() == {"Adam": 20, "fast": 10, "slow": np.inf}


def test_lost_runs_are_counted():
    parts = [train(BOWL, ADAM._replace(rates=(0.01, np.inf)), seeds=(0, 1), steps=20, every=10)]
    assert rivals.lost(parts)[["diverged", "runs"]].to_numpy().tolist() == [[0, 2], [2, 2]]
