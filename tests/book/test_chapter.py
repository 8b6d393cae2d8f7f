import gzip
import json
import os
import stat
import threading

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import pytest

from mnemosyne import store
from mnemosyne.book import chapter, folders, plotting, results
from mnemosyne.book.chapter import open_run
from mnemosyne.book.keys import Deferred
from mnemosyne.book.scale import SCALES, scale_named
from mnemosyne.book.studies import comparison, fine_tuning, random_features
from mnemosyne.evaluate import Contender, train, untuned
from mnemosyne.memory.compact import cam
from mnemosyne.metatrain.loop import meta_train
from mnemosyne.metatrain.replicas import Replicas
from mnemosyne.metatrain.students import by_coordinate
from mnemosyne.metatrain.truncated import MetaConfig, Truncated
from mnemosyne.optimizer.paper import paper_rule
from mnemosyne.optimizer.rule import Config
from mnemosyne.optimizer.sizes import scale_by_tensor_rms
from mnemosyne.optimizer.transform import from_rule
from mnemosyne.tasks.standins import pretrain
from mnemosyne.types import Task
from tests.helpers import quadratic
from tests.metatrain.test_run_folder import Walk


def test_scales_divide():
    for scale in SCALES.values():
        assert scale.steps % scale.every == 0
        assert scale.short_steps % scale.every == 0
        assert all(m % scale.every == 0 and m <= scale.steps for m in scale.marks)
        assert scale.meta_iterations % 10 == 0
        assert scale.ablation_iterations % Replicas.chunk == 0
        assert scale.ablation_steps % scale.every == 0
        assert scale.ablation_seeds >= (3 if scale.judges else 2)
        assert scale.fine_tune_steps % scale.every == fine_tuning.ITERATIONS % scale.every == 0
        assert scale.standin[0] >= 3  # Fig. 5 trains the last two layers, Fig. 9 two thirds


def test_unknown_scale_seed_and_notebook_are_refused(checkout):
    with pytest.raises(ValueError, match="unknown scale 'huge'; choose one of quick, laptop, paper"):
        scale_named("huge")
    with pytest.raises(ValueError, match="unknown scale"):
        open_run("01_good", "huge")
    for seed in (-1, True):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            open_run("01_good", "quick", seed)
    with pytest.raises(ValueError, match="no notebook '09_x'; there are 01_good, 02_bad"):
        open_run("09_x")


def test_root_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("MNEMOSYNE_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="MNEMOSYNE_ROOT"):
        folders.root()


def bowl(scale=1.0, data=None, metric=1.0, shape=(3,)):
    """A task of a few numbers, and what may be changed of it: a constant, the data, what is measured, the shape."""
    return Task(
        name="bowl",
        data=jnp.ones(2) if data is None else data,
        init=lambda key: jax.random.normal(key, shape),
        batch=lambda data, key: data,
        loss=lambda p, b: scale * jnp.mean(p**2) * b.sum(),
        metrics=lambda p, data: {"loss": metric * jnp.mean(p**2)},
    )


@pytest.fixture
def trained(checkout, monkeypatch):
    """What was really trained, so far."""
    calls = []
    monkeypatch.setattr(chapter, "train", lambda task, c, **kw: calls.append((task, c)) or train(task, c, **kw))
    return calls


def test_two_optimizers_of_one_name_have_their_own_rows(trained):
    run = open_run("01_good")
    first = run.train(bowl(), untuned("mine", optax.sgd(1e-1)), 40)
    second = run.train(bowl(), untuned("mine", optax.adam(1e-3)), 40)
    assert len(trained) == 2
    assert not np.allclose(first.train_loss, second.train_loss)
    again = open_run("01_good").train(bowl(), untuned("mine", optax.sgd(1e-1)), 40)
    assert len(trained) == 2
    assert again.equals(first)


def scaled(factor):
    """An optimizer that differs from its like in what it closes over."""
    return optax.chain(optax.stateless(lambda u, p: jax.tree.map(lambda x: factor * x, u)), optax.sgd(0.1))


CHANGES = {
    "a constant of the loss": lambda run: run.train(bowl(scale=2.0), ADAM, 40),
    "data": lambda run: run.train(bowl(data=jnp.ones(2) / 3), ADAM, 40),
    "a metric": lambda run: run.train(bowl(metric=2.0), ADAM, 40),
    "a shape": lambda run: run.train(bowl(shape=(4,)), ADAM, 40),
    "steps": lambda run: run.train(bowl(), ADAM, 60),
    "rates": lambda run: run.train(bowl(), ADAM._replace(rates=(0.1, 0.02)), 40),
    "a closure": lambda run: run.train(bowl(), ADAM._replace(make=lambda rate: scaled(3.0)), 40),
    "another closure": lambda run: run.train(bowl(), ADAM._replace(make=lambda rate: scaled(4.0)), 40),
    "settings": lambda run: run.train(bowl(), ADAM._replace(settings=np.float32([0.3, 0.4])), 40),
    "the seeds": lambda run: open_run("01_good", "quick", 1).train(bowl(), ADAM, 40),
}
ADAM = Contender("Adam", optax.adam, (0.1, 0.01))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_the_computation_is_computed_anew(trained, change):
    run = open_run("01_good")
    first = run.train(bowl(), ADAM, 40)
    other = change(run)
    assert len(trained) == 2
    assert not first.equals(other)


def test_what_changes_a_name_is_not(trained):
    run = open_run("01_good")
    first = run.train(bowl(), ADAM, 40)

    def loss(p, b):
        """With a docstring."""
        return 1.0 * jnp.mean(p**2) * b.sum()  # and a comment

    renamed = run.train(bowl()._replace(name="B", loss=loss), ADAM._replace(name="A"), 40)
    assert len(trained) == 1
    assert set(renamed.task) == {"B"}
    assert set(renamed.optimizer) == {"A"}
    assert renamed.drop(columns=["task", "optimizer"]).equals(first.drop(columns=["task", "optimizer"]))
    assert list(first.columns) == ["task", "optimizer", "rate", "seed", "step", "train_loss", "validation_loss"]


def test_a_damaged_row_file_is_told_and_trained_again(trained, checkout, capsys):
    run = open_run("01_good")
    first = run.train(bowl(), ADAM, 40)
    (path,) = (checkout / "data/cache/kept").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    assert run.train(bowl(), ADAM, 40).equals(first)
    assert len(trained) == 2
    assert "is damaged; it is not used" in capsys.readouterr().out


def test_force_trains_again(trained, monkeypatch):
    open_run("01_good").train(bowl(), ADAM, 40)
    monkeypatch.setenv("MNEMOSYNE_FORCE", "1")
    open_run("01_good").train(bowl(), ADAM, 40)
    assert len(trained) == 2


def test_pre_trained_parameters_are_computed_once_and_kept(checkout, monkeypatch):
    calls = []
    monkeypatch.setattr(chapter, "pretrain", lambda task, *rest: calls.append(rest) or pretrain(task, *rest))
    run = open_run("01_good", seed=3)
    (first, measured), (second, again) = run.pretrain(bowl(), 40), run.pretrain(bowl(), 40)
    assert calls == [(40, 3)]
    assert np.array_equal(first, second)
    assert measured == again
    run.pretrain(bowl(), 60)
    run.pretrain(bowl(data=jnp.ones(2) / 3), 40)
    open_run("01_good", seed=4).pretrain(bowl(), 40)
    assert len(calls) == 4


def test_meta_training_is_kept_by_its_program_and_read_without_its_weights(checkout, monkeypatch):
    calls = []
    monkeypatch.setattr(chapter, "meta_train", lambda trainer, **kw: calls.append(1) or meta_train(trainer, **kw))

    def rule(discount):
        return paper_rule(
            Config(hidden=4, projections=4, encoders=1, feedforward=6), cam(projections=4, discount=discount)
        )

    def trainer(discount):
        student = by_coordinate(rule(discount), optax.identity(), coordinates=8)
        return Truncated(student, (quadratic("a", 3),), MetaConfig(iterations=20, horizon=10, window=5))

    run = open_run("01_good")
    theta, log = run.meta_train(trainer(0.5))
    assert not calls
    again, same = open_run("01_good").meta_train(trainer(0.5))
    assert log.value == same.value
    assert len(calls) == 1
    assert [row["iteration"] for row in log.value] == [20]
    assert theta.key == again.key
    assert all(map(np.array_equal, jax.tree.leaves(theta.value), jax.tree.leaves(again.value)))
    other, its_log = run.meta_train(trainer(1.0))  # the weights have the same shapes
    assert its_log.value != log.value
    assert len(calls) == 2
    assert other.key != theta.key

    def contender(theta):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), theta.like)
        one = Deferred(theta.key, like, lambda: jax.tree.map(lambda x: x[None], theta.value))
        return Contender("mine", lambda theta: from_rule(theta, rule(0.5), scale_by_tensor_rms()), (0,), one)

    rows = run.train(quadratic("b", 3), contender(theta), 40)
    for path in (checkout / "data/cache/kept").glob("*.safetensors"):
        path.unlink()  # what is published need not hold weights for its rows to be found
    kept, _ = open_run("01_good").meta_train(trainer(0.5))
    assert open_run("01_good").train(quadratic("b", 3), contender(kept), 40).equals(rows)
    assert len(calls) == 2
    assert all(map(np.array_equal, jax.tree.leaves(kept.value), jax.tree.leaves(theta.value)))
    assert len(calls) == 3
    monkeypatch.setenv("MNEMOSYNE_FORCE", "1")
    forced, its_log = open_run("01_good").meta_train(trainer(0.5))
    assert its_log.value
    assert all(map(np.array_equal, jax.tree.leaves(forced.value), jax.tree.leaves(theta.value)))
    assert len(calls) == 4  # once for both
    assert not list((checkout / "data/cache/meta-training").iterdir())  # checkpoints are large


def test_of_two_that_meta_train_the_same_one_waits_and_reads(checkout, monkeypatch):
    """The other process is played by this thread: it holds the lock, and what it computes turns up."""
    calls, waiting, found = [], threading.Event(), []
    monkeypatch.setattr(chapter, "meta_train", lambda trainer, **kw: calls.append(1) or meta_train(trainer, **kw))
    monkeypatch.setattr(chapter, "_waiting", lambda who: waiting.set())

    def read():
        theta, log = open_run("01_good").meta_train(Walk())
        found.append((log.value, theta.value["x"].tolist()))

    read()
    kept, aside = checkout / "data/cache/kept", checkout / "aside"
    kept.rename(aside)
    (lock,) = (checkout / "data/cache/locks").iterdir()
    second = threading.Thread(target=read)
    with store.locked(lock, lambda who: None):
        second.start()
        assert waiting.wait(60)
        aside.rename(kept)
    second.join()
    assert found[0] == found[1]
    assert len(calls) == 1


def test_fewer_seeds_are_another_run(trained):
    run, plain = open_run("01_good"), untuned("mine", optax.sgd(0.1))
    few, usual = run.trained(bowl(), plain, 40, run.seeds[:2]), run.trained(bowl(), plain, 40)
    assert few.key != usual.key == run.trained(bowl(), plain, 40, run.seeds).key
    assert set(few.value.seed) == set(run.seeds[:2])
    assert set(usual.value.seed) == set(run.seeds)


def test_a_summary_is_found_without_what_it_sums_up(trained, checkout):
    run = open_run("01_good")
    parts = [run.trained(bowl(), untuned("mine", optax.sgd(rate)), 40) for rate in (0.1, 0.2)]
    assert not trained
    first = run.summary(comparison.stood, parts[:1], marks=(20,))
    assert len(trained) == 1
    for path in (checkout / "data/cache/kept").iterdir():
        if "train_loss" in gzip.decompress(path.read_bytes()).decode():
            path.unlink()
    again = [open_run("01_good").trained(bowl(), untuned("mine", optax.sgd(0.1)), 40)]
    assert run.summary(comparison.stood, again, marks=(20,)).equals(first)
    assert len(trained) == 1
    assert not run.summary(comparison.stood, again, marks=(40,)).equals(first)
    assert not run.summary(comparison.stood, parts[1:], marks=(20,)).equals(first)
    assert len(trained) == 3


def test_a_study_is_computed_once(checkout):
    run = open_run("01_good")
    rest = 4, 8, (0,), 100
    first = run.keep(random_features.unbiasedness, 0.4, (0.25, 1.0), *rest)
    assert len(run.kept.used) == 1
    assert run.keep(random_features.unbiasedness, 0.4, (0.25, 1.0), *rest).equals(first)
    assert len(run.kept.used) == 1
    run.keep(random_features.unbiasedness, 0.4, (0.25, 2.0), *rest)
    run.keep(random_features.unbiasedness, 0.3, (0.25, 1.0), *rest)
    assert len(run.kept.used) == 3


def test_tables_say_how_they_came_and_do_not_change(checkout):
    run, rows = open_run("01_good", seed=2), pd.DataFrame({"a": [1 / 3], "b": ["x"]})
    back = run.table("t", rows)
    path = checkout / "runs/quick-seed-2/tables/t.csv"
    before = path.read_bytes()
    assert back.a[0] == pytest.approx(1 / 3, rel=1e-5)
    run.table("t", rows)
    assert path.read_bytes() == before
    about = json.loads(path.with_suffix(".meta.json").read_text(encoding="utf-8"))
    assert about["scale"]["data"] == "digits"
    assert about["seed"] == 2
    assert {"command", "versions", "device", "computed"} <= about.keys()
    assert results.read_table("quick", "t", 2).equals(back)
    assert results.read_table("paper", "t") is None
    assert len(run.close()) == 6


def test_figures_are_the_same_bytes_each_time(checkout):
    run, files = open_run("01_good"), []
    for _ in range(2):
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3])
        run.figure("f", fig)
        plt.close(fig)
        files.append([(checkout / f"runs/quick/figures/f.{e}").read_bytes() for e in ("png", "pdf")])
    assert files[0] == files[1]


def test_a_claim_is_shown_when_made_and_written_with_the_others(checkout):
    run = open_run("01_good")
    shown = run.claim("x", held=True, ours="o", seeds=3, note="n")
    assert shown.loc["x", ["verdict", "paper", "rule", "ours", "seeds", "note"]].tolist() == [
        *("reproduced", "p", "r", "o", 3, "n")
    ]
    run.claim("empirical", held=[True], ours="o", sizes={"limit": 2})
    run.claim("x", held=False, ours="o")  # a cell that is run again
    assert list(run.claims().verdict) == ["not reproduced", "not testable at this scale"]
    first, second = results.read_claims("quick", "01_good")
    assert (first["paper"], first["anywhere"], second["anywhere"]) == ("p", True, False)
    assert second["rule"] == "below 2 in every cell; partly: in half"
    assert list(first) == ["id", "paper", "rule", "ours", "verdict", "interval", "seeds", "note", "anywhere"]


def test_output_can_go_elsewhere(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_OUTPUT", str(tmp_path / "elsewhere"))
    run = open_run("01_good")
    run.table("t", pd.DataFrame({"a": [1.0]}))
    assert (tmp_path / "elsewhere/quick/tables/t.csv").exists()
    assert not (checkout / "runs").exists()
    run.claim("x", held=True, ours="o")
    run.claims()
    assert results.read_claims("quick", "01_good")
    monkeypatch.delenv("MNEMOSYNE_OUTPUT")
    assert not results.read_claims("quick", "01_good")


def test_a_table_that_was_not_run_is_the_published_one_and_is_told(checkout, capsys):
    published = checkout / "data/results/quick"
    published.mkdir(parents=True)
    (published / "t.csv").write_text("a\n17\n", encoding="utf-8")
    assert results.read_table("quick", "t").a[0] == 17
    assert "t: the published table; no run here has written it" in capsys.readouterr().out
    open_run("01_good").table("t", pd.DataFrame({"a": [18]}))
    capsys.readouterr()
    assert results.read_table("quick", "t").a[0] == 18
    assert not capsys.readouterr().out
    assert results.read_table("quick", "u") is None


def test_an_empirical_claim_waits_for_real_data(checkout):
    long = "a rule that is long " * 9
    path = folders.claims()
    path.write_text(path.read_text(encoding="utf-8").replace("below {limit} in every cell", long), encoding="utf-8")

    def verdicts(scale):
        run = open_run("01_good", scale)
        run.claim("x", held=True, ours="o")
        run.claim("empirical", held=[True, False], ours="o")
        return run.claims()

    quick = verdicts("quick")
    assert list(quick.verdict) == ["reproduced", "not testable at this scale"]
    assert list(verdicts("laptop").verdict) == ["reproduced", "partly"]
    assert long.strip() in quick.to_html()


def test_a_changed_size_is_honoured_and_lies_apart_from_what_the_scale_gives(trained, checkout, capsys):
    run = open_run("01_good", "quick", steps=200, seeds=2, own={"features": 8})
    assert (run.scale.steps, run.scale.marks, len(run.seeds)) == (200, (100, 200), 2)
    assert "at scale quick-steps-200-seeds-2-features-8" in capsys.readouterr().out
    rows = run.train(bowl(), ADAM, run.scale.steps)
    assert (rows.step.max(), rows.seed.nunique()) == (200, 2)
    run.table("t", rows)
    folder = checkout / "runs/quick-steps-200-seeds-2-features-8/tables"
    about = json.loads((folder / "t.meta.json").read_text(encoding="utf-8"))
    assert about["command"] == (
        "01_good at scale quick with steps = 200, seeds = 2, features = 8; not what is published"
    )
    assert about["scale"]["steps"] == 200
    run.close()
    assert results.read_table("quick", "t") is None
    assert not results.written("quick", "01_good")  # what publishing copies


def test_a_size_left_alone_or_given_as_it_is_changes_nothing(checkout):
    usual = open_run("01_good", "laptop")
    same = open_run("01_good", "laptop", steps=5_000, seeds=0, own={"features": 0})
    assert same.scale == usual.scale
    assert same.folder == usual.folder
    assert "make figures SCALE=laptop ONLY=01" in same._command()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"stepss": 3}, "no size 'stepss' to change; a scale has patch, seeds, steps"),
        ({"name": 3}, "no size 'name'"),
        ({"seeds": -1}, "seeds must be a whole number ≥ 1, or 0 for the usual one, got -1"),
        ({"seeds": True}, "seeds must be a whole number"),
        ({"own": {"features": 2.5}}, "features must be a whole number .*, got 2.5"),
    ],
)
def test_a_size_that_cannot_be_is_refused(checkout, sizes, told):
    with pytest.raises(ValueError, match=told):
        open_run("01_good", **sizes)


def test_fewer_where_nothing_is_judged(checkout):
    assert open_run("01_good").few("abcd", 2) == ["a", "b"]
    assert open_run("01_good", "laptop").few("abcd", 2) == ["a", "b", "c", "d"]


def test_a_read_only_folder_is_named(checkout):
    folder = checkout / "runs"
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:  # root may write anywhere: put a file in the folder's place instead
        (folder / "quick").write_text("", encoding="utf-8")
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="cannot write results to"):
        open_run("01_good")
    folder.chmod(stat.S_IRWXU)


def test_plots_draw_every_series():
    steps = np.tile([20, 40, 60], 4)
    rows = pd.DataFrame({"optimizer": ["Adam"] * 6 + ["Mnemosyne"] * 6, "rate": [0.1] * 6 + [1.0] * 6})
    rows = rows.assign(step=steps, seed=np.repeat([0, 1, 0, 1], 3), loss=np.linspace(2, 1, 12))
    _, axes = plt.subplots(1, 5)
    plotting.curves(axes[0], rows, "loss")
    assert [line.get_label() for line in axes[0].lines] == ["Adam 1e-1", "Mnemosyne"]
    sweep = pd.concat([rows, rows[rows.optimizer == "Adam"].assign(rate=0.01)])
    plotting.rate_sweep(axes[1], sweep[sweep.step == 60], "loss")
    assert {"Mnemosyne, untuned", "Adam"} == set(axes[1].get_legend_handles_labels()[1])
    plotting.meta_curve(axes[2], pd.DataFrame({"iteration": [1, 2], "loss": [2.0, 1.0]}), label="a")
    plotting.bars(axes[3], np.array([1.0, -1.0]), "bars")
    plotting.heat(axes[4], np.eye(2), "heat")
    assert axes[2].lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert len(axes[3].patches) == 2
    assert axes[4].images[0].get_clim() == (-1.0, 1.0)
    _, ax = plotting.canvas(2, 1)
    plotting.box(ax, 0, 0, 1, 1, "box")
    plotting.arrow(ax, (0, 0), (1, 1))
    assert [t.get_text() for t in ax.texts] == ["box"]
    assert len(ax.patches) == 2
    plt.close("all")


def tuned():
    """Losses of one optimizer at three rates: one is fast, one is low in the end, one has lost a run of its two."""
    losses = {0.3: (1.0, 0.9), 0.1: (30.0, 0.2), 0.03: (0.1, 0.1)}
    each = [
        (rate, seed, 10 * t, xs[t - 1] + 0.02 * seed) for rate, xs in losses.items() for t in (1, 2) for seed in (0, 1)
    ]
    rows = pd.DataFrame(each, columns=["rate", "seed", "step", "loss"])
    lost = (rows.rate == 0.03) & (rows.seed == 1)
    return rows.assign(optimizer="Adam", loss=rows.loss.where(~lost, np.inf))


def test_a_tuned_optimizer_is_drawn_at_the_rate_that_is_best_at_each_step():
    rows = tuned().assign(accuracy=lambda r: -r.loss)
    assert np.allclose(plotting.envelope(rows, "loss", "loss"), [[1.0, 1.02], [0.2, 0.22]])
    assert np.allclose(plotting.envelope(rows, "accuracy", "loss"), [[-1.0, -1.02], [-0.2, -0.22]])
    _, ax = plt.subplots()
    ours = rows[rows.rate == 0.3].assign(optimizer="Mnemosyne", rate=1.0)
    plotting.curves(ax, pd.concat([ours, rows]), "loss")
    labels = ["Mnemosyne", "Adam, best rate at each step", "thin: one rate each"]
    assert [line.get_label() for line in ax.lines] == labels
    assert np.allclose(ax.lines[1].get_ydata(), [1.01, 0.21])
    faint = [line[:, 1] for line in ax.collections[-1].get_segments()]
    assert np.allclose(faint, [[0.1, 0.1], [30.01, 0.21], [1.01, 0.91]])
    assert ax.get_ylim()[1] < 3  # a bad rate does not stretch the axis
    plt.close("all")


def test_a_legend_below_names_what_panels_share_once():
    fig, axes = plt.subplots(1, 2)
    for ax, label in zip(axes, ("b", "c"), strict=True):
        ax.plot([0, 1], label="a")
        ax.plot([1, 0], label=label)
    plotting.legend_below(fig, 3)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["a", "b", "c"]
    plt.close("all")


def test_symbols_are_set_as_formulas_are():
    assert plotting.in_math("attention, h = 4") == "attention, $h$ = 4"
    assert plotting.in_math("FAVOR++, ρ = 0.5") == r"FAVOR++, $\rho$ = 0.5"
    assert [plotting.in_math(t) for t in ("r", "λ", "LSTM", "regular")] == ["$r$", r"$\lambda$", "LSTM", "regular"]
    assert [plotting.number(x) for x in (0.05, 20, 1000, 5e5, 1e-6)] == [
        "0.05",
        "20",
        "1000",
        r"$5 \times 10^{5}$",
        "$10^{-6}$",
    ]


def test_a_heat_map_shows_more_than_its_largest_value():
    matrix = np.full((40, 40), 0.1)
    matrix[0, 0], matrix[0, 1] = 1.0, np.nan
    _, ax = plt.subplots()
    plotting.heat(ax, matrix, "heat")
    assert np.allclose(ax.images[0].get_clim(), (-0.1, 0.1))
    plt.close("all")


def test_a_figure_that_a_page_would_shrink_is_refused(checkout):
    run = open_run("01_good")
    fig, ax = plt.subplots()
    ax.set(xlabel="step", title="a title")
    run.figure("fine", fig)
    assert {"fine.png", "fine.pdf"} == {p.name for p in (run.folder / "figures").iterdir()}
    ax.text(0, 0, "").set_fontsize(3)
    ax.text(0, 0, "hidden", fontsize=3, visible=False)
    run.figure("fine", fig)
    ax.annotate("too small", (0, 0), fontsize=6)
    with pytest.raises(ValueError, match=r"figure 'small' has text under 7 pt: 'too small' \(6\)"):
        run.figure("small", fig)
    with pytest.raises(ValueError, match=r"figure 'wide' is 6.4 in wide and a page has 5.5"):
        run.figure("wide", plt.figure(figsize=(6.4, 2)))
    plt.close("all")


def test_a_title_that_its_page_would_cut_is_refused(checkout):
    run, fig = open_run("01_good"), plt.figure(figsize=(3, 2))
    title = "wider than three inches " * 3
    fig.suptitle(title.replace("inches ", "inches\n"))
    run.figure("fine", fig)
    fig.suptitle(title)
    with pytest.raises(ValueError, match="figure 'cut' is narrower than 'wider than three"):
        run.figure("cut", fig)
    plt.close("all")


def test_variants_are_medians_over_the_meta_seeds_beside_them():
    losses = {0: (1.0, 4.0), 1: (3.0, 3.0), 2: (9.0, 9.0)}  # two tasks each; meta-seed 0's geometric mean is 2
    rows = [("a", k, step, x / step) for k, xs in losses.items() for x in xs for step in (1, 2)]
    _, ax = plt.subplots()
    plotting.variants(ax, pd.DataFrame(rows, columns=["variant", "meta_seed", "step", "loss"]), "step", "loss")
    assert np.allclose([line.get_ydata() for line in ax.lines], [[2.0, 1.0], [3.0, 1.5], [9.0, 4.5], [3.0, 1.5]])
    assert ax.get_legend_handles_labels()[1] == ["a"]
    score = pd.DataFrame([(v, s, v * 10 + s) for v in (3, 1) for s in (0, 1, 5)], columns=["variant", "meta_seed", "y"])
    _, ax = plt.subplots()
    plotting.sweep(ax, score, {3: 0.5, 1: 0.25}, "y")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.25", "0.5"]
    assert [list(line.get_ydata()) for line in ax.lines] == [[10, 30], [11, 31], [15, 35], [11, 31]]
    plt.close("all")


@pytest.mark.parametrize(
    ("limits", "ticks"), [((1.6, 2.3), {1.8: "1.8", 2.0: "2"}), ((0.04, 30), {0.05: "0.05", 20.0: "20", 3.0: ""})]
)
def test_a_logarithmic_axis_is_labelled_in_plain_numbers(limits, ticks):
    _, ax = plt.subplots()
    plotting.log_losses(ax)
    ax.set_ylim(*limits)
    assert {x: ax.yaxis.get_minor_formatter()(x, 0) for x in ticks} == ticks
    plt.close("all")
