import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from mnemosyne.evaluate import ADAM, RMSPROP, SGD, Contender, best_rates, diverged, interval, train, untuned
from mnemosyne.types import Task


def bowl():
    loss = lambda params, batch: jnp.sum((params - batch) ** 2)
    metrics = lambda params, data: {"loss": jnp.sum((params - data) ** 2)}
    return Task("bowl", jnp.ones(2), lambda k: jax.random.normal(k, (2,)), lambda d, k: d, loss, metrics)


def test_rows_are_what_separate_runs_give():
    rates, seeds = (0.1, 0.01), (3, 5)
    rows = train(bowl(), Contender("SGD", optax.sgd, rates), seeds=seeds, steps=6, every=3)
    assert list(rows.columns[:5]) == ["task", "optimizer", "rate", "seed", "step"]
    assert len(rows) == 2 * 2 * 3
    for rate in rates:
        for seed in seeds:
            x, losses = jax.random.normal(jax.random.split(jax.random.key(seed))[0], (2,)), []
            for _ in range(6):
                losses.append(float(jnp.sum((x - 1) ** 2)))
                x = x - rate * 2 * (x - 1)
            run = rows[(rows.rate == rate) & (rows.seed == seed)].set_index("step")
            assert np.isclose(run.train_loss[0], losses[0], rtol=1e-5)
            assert np.isclose(run.train_loss[3], np.mean(losses[:3]), rtol=1e-4)
            assert np.isclose(run.train_loss[6], np.mean(losses[3:]), rtol=1e-4)
            assert np.isclose(run.validation_loss[6], float(jnp.sum((x - 1) ** 2)), rtol=1e-4)


def test_seeds_are_shared_by_optimizers():
    a, b = (train(bowl(), c, seeds=(0,), steps=2, every=1) for c in (untuned("x", optax.sgd(0.1)), ADAM))
    assert set(a[a.step == 0].train_loss) == set(b[b.step == 0].train_loss)


def test_steps_must_be_whole_stretches():
    for steps in (6, 0, -4):
        with pytest.raises(ValueError, match=f"steps = {steps} is no positive multiple of every = 4"):
            train(bowl(), ADAM, seeds=(0,), steps=steps, every=4)


def test_an_accelerator_takes_all_runs_at_once(monkeypatch):
    train_bowl = lambda: train(bowl(), ADAM, seeds=(0, 1), steps=4, every=2)
    mapped, real = [], jax.vmap
    monkeypatch.setattr(jax, "vmap", lambda f, *axes: mapped.append(f) or real(f, *axes))
    one_by_one = train_bowl()
    assert not mapped
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    pd.testing.assert_frame_equal(train_bowl(), one_by_one, rtol=1e-5)
    assert mapped


def test_what_depends_on_the_task_alone_is_traced_once_for_all_optimizers():
    task, traced = bowl(), []
    counted = lambda name: lambda *args: traced.append(name) or getattr(task, name)(*args)
    counting = task._replace(init=counted("init"), metrics=counted("metrics"))
    for contender in (ADAM, RMSPROP, untuned("x", optax.sgd(0.1))):
        train(counting, contender, seeds=(0, 1), steps=4, every=2)
    assert traced == ["init", "metrics"]


@pytest.mark.parametrize("contender", [ADAM, RMSPROP, SGD], ids=lambda c: c.name)
def test_baselines_run_over_their_grids(contender):
    rows = train(bowl(), contender, seeds=(0,), steps=4, every=2)
    assert sorted(rows.rate.unique()) == sorted(contender.rates)
    assert len(contender.rates) == 7
    steps = np.diff(np.log10(sorted(contender.rates)))
    assert np.allclose(steps, 0.5, atol=0.03)  # half-decades


def table(losses):
    rows = [(r, s, t, x) for (r, s), run in losses.items() for t, x in enumerate(run)]
    return pd.DataFrame(rows, columns=["rate", "seed", "step", "train_loss"]).assign(task="t", optimizer="o")


def test_the_best_rate_is_of_the_mean_and_never_one_that_blew_up():
    rows = table({(0.1, 0): [3, 1.0], (0.1, 1): [3, 2.0], (1.0, 0): [3, 0.1], (1.0, 1): [3, np.nan]})
    best = best_rates(rows, 1)
    assert set(best.rate) == {0.1}
    assert len(best) == 4


def test_divergence():
    rows = table({(1.0, 0): [3, 1.0], (1.0, 1): [3, 4.0], (1.0, 2): [3, np.nan, 1.0]})
    assert diverged(rows).set_index("seed").diverged.to_dict() == {0: False, 1: True, 2: True}


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        mean, half = interval(rng.normal(size=5))
        hits += abs(mean) < half
    assert abs(hits / 2000 - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5
    assert np.isnan(interval([1.0])[1])
