import base64
import io
import json
import os
import stat

import jax.numpy as jnp
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mnemosyne import plotting, reproduce, results, study_finetune
from mnemosyne.evaluate import Contender
from mnemosyne.results import Claim, open_run
from mnemosyne.scale import SCALES, scale_named
from mnemosyne.several import Several
from mnemosyne.types import Task

CELLS = {
    "01_good": 'from mnemosyne.results import Claim, open_run\nrun = open_run("01_good", scale, seed)\n'
    'run.claims([Claim(id="x", paper="p", rule="r", ours=f"seed {seed}", verdict="reproduced")])',
    "02_bad": "print('before')\nraise RuntimeError('on purpose')",
}


def notebook(source):
    cells = [nbformat.v4.new_code_cell('scale: str = "quick"\nseed: int = 0'), nbformat.v4.new_code_cell(source)]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mnemosyne").mkdir()
    for name, source in CELLS.items():
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(nbformat.writes(notebook(source)))
    monkeypatch.setenv("MNEMOSYNE_ROOT", str(tmp_path))
    return tmp_path


def test_scales_divide():
    for scale in SCALES.values():
        assert scale.steps % scale.every == 0
        assert scale.short_steps % scale.every == 0
        assert all(m % scale.every == 0 and m <= scale.steps for m in scale.marks)
        assert scale.meta_iterations % 10 == 0
        assert scale.ablation_iterations % Several.chunk == 0
        assert scale.ablation_steps % scale.every == 0
        assert scale.ablation_seeds >= (3 if scale.judges else 2)
        assert scale.fine_tune_steps % scale.every == study_finetune.ITERATIONS % scale.every == 0
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
        results.root()


def test_runs_are_computed_once(checkout, monkeypatch):
    calls = []

    def train(task, contender, *, seeds, steps, every):
        calls.append((task, contender, seeds, steps, every))
        return pd.DataFrame({"x": [0.1, 1 / 3]})

    monkeypatch.setattr(results, "train", train)
    run, task, adam = (
        open_run("01_good"),
        Task("t", jnp.ones(2), lambda key: jnp.ones(3), lambda d, key: d, lambda p, b: p.sum() * b.sum(), None),
        Contender("Adam", None, (0.1, 0.01)),
    )
    first, second = run.train(task, adam, 40), run.train(task, adam, 40)
    assert len(calls) == 1
    assert calls[0][2:] == ((0, 1, 2), 40, 20)
    assert first.equals(second)
    assert np.array_equal(first.x, [0.1, 1 / 3])
    for other in (adam._replace(rates=(0.1,)), adam._replace(weights="other"), adam._replace(name="B")):
        run.train(task, other, 40)
    run.train(task, adam, 60)
    run.train(task._replace(init=lambda key: jnp.ones(4)), adam, 40)  # another network by the same name
    run.train(task._replace(data=jnp.ones(2) / 3), adam, 40)  # other data
    open_run("01_good", "quick", 1).train(task, adam, 40)
    assert len(calls) == 8
    assert calls[-1][2] == (1000, 1001, 1002)


def test_pre_trained_parameters_are_computed_once_and_kept(checkout, monkeypatch):
    calls = []

    def pretrain(task, steps, seed):
        calls.append((task.name, steps, seed))
        return {"w": jnp.full(3, float(len(calls)))}, {"loss": jnp.float32(0.25)}

    monkeypatch.setattr(results, "pretrain", pretrain)
    loss = lambda p, b: p["w"].sum() * b.sum()
    task = Task("t", jnp.ones(2), lambda key: {"w": jnp.ones(3)}, lambda d, key: d, loss, None)
    run = open_run("01_good", seed=3)
    (first, measured), (second, again) = run.pretrain(task, 40), run.pretrain(task, 40)
    assert calls == [("t", 40, 3)]
    assert np.array_equal(first["w"], second["w"])
    assert measured == again == {"loss": 0.25}
    run.pretrain(task, 60)
    run.pretrain(task._replace(data=jnp.ones(2) / 3), 40)
    open_run("01_good", seed=4).pretrain(task, 40)
    assert len(calls) == 4
    assert len(list((checkout / "data/cache/pretrained").iterdir())) == 4  # whole files alone


def test_tables_say_how_they_came_and_do_not_change(checkout):
    run, rows = open_run("01_good", seed=2), pd.DataFrame({"a": [1 / 3], "b": ["x"]})
    back = run.table("t", rows)
    path = checkout / "data/results/quick/t.csv"
    before = path.read_bytes()
    assert back.a[0] == pytest.approx(1 / 3, rel=1e-5)
    run.table("t", rows)
    assert path.read_bytes() == before
    about = json.loads(path.with_suffix(".meta.json").read_text())
    assert about["scale"]["data"] == "digits"
    assert about["seed"] == 2
    assert {"command", "versions", "device"} <= about.keys()
    assert results.read_table("quick", "t").equals(back)
    assert results.read_table("paper", "t") is None
    assert len(run.close()) == 6


def test_figures_are_the_same_bytes_each_time(checkout):
    run, files = open_run("01_good"), []
    for _ in range(2):
        fig, ax = plt.subplots()
        ax.plot([1, 2, 3])
        run.figure("f", fig)
        plt.close(fig)
        files.append([(checkout / f"figures/quick/f.{e}").read_bytes() for e in ("png", "pdf")])
    assert files[0] == files[1]


def test_claims(checkout):
    run = open_run("01_good")
    claim = Claim(id="x", paper="p", rule="r", ours="o", verdict="partly")
    table = run.claims([claim])
    assert list(table.verdict) == ["partly"]
    assert results.read_claims("quick", "01_good")[0]["rule"] == "r"
    with pytest.raises(ValueError, match="verdict 'great'"):
        Claim(id="x", paper="p", rule="r", ours="o", verdict="great")


def test_output_can_go_elsewhere(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_OUTPUT", str(tmp_path / "elsewhere"))
    open_run("01_good").table("t", pd.DataFrame({"a": [1.0]}))
    assert (tmp_path / "elsewhere" / "data/results/quick/t.csv").exists()
    assert not (checkout / "data/results/quick/t.csv").exists()
    open_run("01_good").claims([Claim(id="x", paper="p", rule="r", ours="o", verdict="partly")])
    assert results.read_claims("quick", "01_good")
    monkeypatch.delenv("MNEMOSYNE_OUTPUT")
    assert not results.read_claims("quick", "01_good")


def test_a_read_only_folder_is_named(checkout):
    folder = checkout / "data"
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:  # root may write anywhere: put a file in the folder's place instead
        (folder / "results").write_text("")
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match="cannot write results to"):
        open_run("01_good")
    folder.chmod(stat.S_IRWXU)


@pytest.mark.filterwarnings("ignore")
def test_reproduce_runs_caches_fails_and_tells(checkout, capsys):
    assert reproduce.reproduce(only=("01",), seed=3) == 0
    first = capsys.readouterr().out
    assert "cell 2/" in first
    assert "seed 3" in first
    assert "reproduced" in first
    assert reproduce.reproduce(only=("01",), seed=3) == 0
    assert "cached" in capsys.readouterr().out
    assert reproduce.reproduce(only=("01",), seed=4) == 0
    assert "ran" in capsys.readouterr().out

    kept = (checkout / "data/results/quick/01_good.claims.json").read_bytes()
    assert reproduce.reproduce(only=("02", "01_good"), force=True, keep_going=True) == 1
    told = capsys.readouterr().out
    assert "[01_good] ran" in told
    assert "RuntimeError: on purpose" in told
    copy = nbformat.read(checkout / "data/cache/executed/quick/02_bad.ipynb", as_version=4)
    assert any("before" in str(c.get("outputs")) for c in copy.cells)
    assert (checkout / "data/results/quick/01_good.claims.json").read_bytes() != b""
    assert kept


def test_a_failure_keeps_the_next_from_starting(checkout, capsys):
    (checkout / "notebooks" / "03_later.ipynb").write_text(nbformat.writes(notebook("1")))
    assert reproduce.reproduce(only=("02", "03"), jobs=1) == 1
    told = capsys.readouterr().out
    assert "[03_later] starts" not in told
    assert "not run" in told  # in the closing table


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_that_reads_tables_runs_after_those_that_write_them(checkout, capsys):
    opened = "import time\nimport pandas as pd\nfrom mnemosyne.results import Claim, open_run, read_table\n"
    claim = 'run.claims([Claim(id="x", paper="p", rule="r", ours=ours, verdict="reproduced")])'
    writer = 'run = open_run("04_writer")\ntime.sleep(2)\nrun.table("t", pd.DataFrame({"a": [NUMBER]}))\nours = ""\n'
    reader = 'run = open_run("05_reader")\nours = "read {}".format(read_table("quick", "t").a[0])\n'
    for name, source in {"04_writer": writer.replace("NUMBER", "17"), "05_reader": reader}.items():
        (checkout / "notebooks" / f"{name}.ipynb").write_text(nbformat.writes(notebook(opened + source + claim)))
    assert reproduce.reproduce(only=("04", "05"), jobs=2) == 0
    assert "read 17" in capsys.readouterr().out
    assert reproduce.reproduce(only=("05",)) == 0
    assert "[05_reader] cached" in capsys.readouterr().out
    changed = notebook(opened + writer.replace("NUMBER", "18") + claim)
    (checkout / "notebooks" / "04_writer.ipynb").write_text(nbformat.writes(changed))
    assert reproduce.reproduce(only=("04", "05"), jobs=2) == 0
    assert "read 18" in capsys.readouterr().out


def test_reproduce_refuses_what_is_not_there(checkout):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        reproduce.reproduce(jobs=0)
    with pytest.raises(ValueError, match="no notebook 07; there are 01_good, 02_bad"):
        reproduce.reproduce(only=("07",))
    with pytest.raises(ValueError, match="unknown scale"):
        reproduce.reproduce(scale="tiny")
    with pytest.raises(ValueError, match="drop --in-place"):
        reproduce.reproduce(scale="laptop", in_place=True)


def test_tidy_removes_when_and_where():
    nb = notebook("1")
    nb.metadata["papermill"] = {"output_path": "somewhere"}
    nb.cells[1].metadata["papermill"] = {"duration": 1.0}
    tidied = reproduce.tidy(nb)
    assert "papermill" not in json.dumps(tidied)
    assert tidied.cells[0].metadata["tags"] == ["parameters"]


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
    plotting.arrow(ax, (0, 0), (1, 1), "arrow")
    assert [t.get_text() for t in ax.texts] == ["box", "arrow"]
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
    ("limits", "ticks"), [((1.6, 2.3), {1.8: "1.8", 2.0: "2"}), ((0.04, 30), {0.05: "0.05", 20.0: "20", 4.0: ""})]
)
def test_a_logarithmic_axis_is_labelled_in_plain_numbers(limits, ticks):
    _, ax = plt.subplots()
    plotting.log_losses(ax)
    ax.set_ylim(*limits)
    assert {x: ax.yaxis.get_minor_formatter()(x, 0) for x in ticks} == ticks
    plt.close("all")


def test_pictures_keep_their_size_in_few_colors():
    wide = np.linspace(0, 255, 200 * 300 * 3).reshape(200, 300, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, format="png")
    small = base64.b64decode(reproduce.in_few_colors(base64.b64encode(buffer.getvalue()).decode()))
    again = Image.open(io.BytesIO(small))
    assert again.size == (300, 200)
    assert np.abs(np.asarray(again.convert("RGB"), int) - wide).mean() < 8
