import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import optax
import pytest

from mnemosyne import __main__ as cli
from mnemosyne.book import bench
from mnemosyne.metatrain import recipes
from mnemosyne.metatrain.pes import PESConfig
from mnemosyne.metatrain.truncated import MetaConfig
from mnemosyne.optimizer import zoo
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.tasks import sets, suite
from mnemosyne.tasks.classification import MLPSpec
from mnemosyne.types import Task
from tests.conftest import notebook


def call(capsys, *args):
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    return end.value.code, capsys.readouterr()


def test_data_list_and_mistakes(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path))
    code, said = call(capsys, "data", "list")
    assert code == 0
    assert "bundled with scikit-learn" in said.out
    assert "absent or damaged: python -m mnemosyne data fetch mnist" in said.out
    code, _ = call(capsys, "data", "verify", "mnist")
    assert "mnist is not usable" in code
    assert "which data set?" in call(capsys, "data", "fetch")[0]
    assert "unknown data set 'imagenet'" in call(capsys, "data", "verify", "imagenet")[0]


def test_weights(capsys):
    code, said = call(capsys, "weights", "list")
    assert code == 0
    assert [line.split()[0] for line in said.out.splitlines()] == zoo.available()
    assert call(capsys, "weights", "card", "light")[1].out.strip() == zoo.card("light").strip()
    assert "did you mean 'light'" in call(capsys, "weights", "card", "ligt")[0]


def test_reproduce_mistakes(capsys):
    assert "unknown scale 'big'" in call(capsys, "reproduce", "--scale", "big")[0]
    assert "no notebook 77" in call(capsys, "reproduce", "--only", "77")[0]


def test_meta_train_writes_weights_card_and_log(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "META_TRAIN", ((MLPSpec((4,), "relu"), 2),))
    monkeypatch.setattr(sets, "META_VALIDATION", ((MLPSpec((5,), "relu"), 2),))
    args = ["meta-train", "light", "--dataset", "digits", "--out", str(tmp_path), "--iterations", "20"]
    args += ["--coordinates", "8", "--warmup", "5", "--selection.marks", "20", "--horizon", "40"]
    code, said = call(capsys, *args)
    assert code == 0
    assert "iteration 20  " in said.out
    theta, learned = zoo.load_weights(tmp_path / "light.safetensors")
    assert learned is OPTIMIZERS["light"].learned
    assert np.isfinite(theta["head"]["out"]).all()
    card = (tmp_path / "light.md").read_text(encoding="utf-8")
    assert '"iterations": 20' in card
    command = card.split("`")[1].split()  # the card's own command is the one that was given, but for the folder
    assert command[:4] == ["python", "-m", "mnemosyne", "meta-train"]
    given = args[: args.index("--out")] + args[args.index("--out") + 2 :]
    assert sorted(command[3:]) == sorted(given)
    assert "mlp 4 relu on images pooled by 2" in card
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["config"]["coordinates"] == 8
    assert (tmp_path / "light.csv").read_text(encoding="utf-8").startswith("iteration,")
    code, said = call(capsys, *args)  # a finished run is not repeated
    assert code == 0
    assert "wrote" in said.out


@pytest.mark.parametrize(("name", "tasks"), [("paced", "varied"), ("slim", "hard")])
def test_search_writes_weights_of_the_whole_optimizer(name, tasks, capsys, tmp_path, monkeypatch):
    few = lambda images, text: [suite.regression(3, (4,), "relu"), suite.mlp(suite.small(images, 4), (3,), "relu")]
    monkeypatch.setitem(recipes.SEARCHED_ON, tasks, few)
    monkeypatch.setattr(sets, "varied_validation", few)
    told = f"search {name} --images digits --text synthetic --iterations 2 --steps 20 --marks 10 20 --pairs 2"
    told += " --tasks hard --emphasis 1.0 --floor 0.001" if tasks == "hard" else ""
    args = [*told.split(), "--selection.marks", "20", "--selection.seeds", "0"]
    code, said = call(capsys, *args, "--out", str(tmp_path))
    assert code == 0
    assert "iteration 2" in said.out
    theta, learned = zoo.load_weights(tmp_path / f"{name}.safetensors")
    assert learned is OPTIMIZERS[name].learned
    card = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert sorted(card.split("`")[1].split()[3:]) == sorted(args)
    if name == "paced":
        direction, _ = zoo.load_weights(zoo.path_of("normalised"))
        assert np.array_equal(theta["direction"]["head"]["out"], direction["head"]["out"])
        assert zoo.digest("normalised") in card


def test_evolve_writes_weights_card_and_log(capsys, tmp_path, monkeypatch):
    few = lambda *data: [suite.regression(3, (4,), "relu")]
    monkeypatch.setattr(sets, "evolved_train", few)
    monkeypatch.setattr(sets, "varied_validation", few)
    args = ["evolve", "small_fc", "--images", "digits", "--text", "synthetic", "--out", str(tmp_path)]
    args += ["--iterations", "20", "--horizons", "20", "40", "--window", "10", "--pairs", "2"]
    args += ["--selection.marks", "20", "--selection.seeds", "0"]
    code, said = call(capsys, *args)
    assert code == 0
    assert "iteration 20" in said.out
    theta, learned = zoo.load_weights(tmp_path / "small_fc.safetensors")
    assert learned is OPTIMIZERS["small_fc"].learned
    born = learned.init(jax.random.fold_in(jax.random.key(0), 1))
    assert not np.allclose(theta["layers"][0]["w"], born["layers"][0]["w"])
    command = (tmp_path / "small_fc.md").read_text(encoding="utf-8").split("`")[1].split()
    assert sorted(command[3:]) == sorted(args[: args.index("--out")] + args[args.index("--out") + 2 :])


def test_meta_train_mistakes(capsys):
    code, said = call(capsys, "meta-train", "heavy")
    assert code == 2
    assert "coordinate" in said.out + said.err
    code, said = call(capsys, "meta-train", "light", "--dataset", "digits", "--window", "7")
    assert code == 2
    assert "window 7 does not divide horizon 100" in " ".join((said.out + said.err).replace("│", " ").split())
    code, said = call(capsys, "evolve", "small_fc", "--horizons", "100", "--window", "30")
    assert code == 2
    assert "window 30 does not divide horizon 100" in " ".join((said.out + said.err).replace("│", " ").split())


def never(*args, **kwargs):
    raise AssertionError("work was begun")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iterations", "50"], "iterations must be a multiple of 20, got 50"),
        (["--iterations", "0"], "iterations must be at least 1, got 0"),
        (["--iterations", "x"], "iterations"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--seed", "4294967296"], "seed must be below 2**32"),
        (["--learning-rate", "nan"], "learning_rate must be a finite number"),
        (["--selection.marks", "0"], "each of marks must be at least 1"),
        (["--selection.snapshots", "0"], "snapshots must be at least 1"),
        (["--selection.seeds", "-1"], "each of seeds must be at least 0"),
        (["--out", "file"], "cannot write results to file: File exists"),
        (["--out", "file/deeper"], "cannot write results to file/deeper: Not a directory"),
    ],
)
def test_bad_arguments_of_meta_train_fail_before_any_work(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(recipes.data, "load", never)
    code, said = call(capsys, "meta-train", "light", "--dataset", "digits", *words)
    assert code
    assert message in " ".join(f"{code} {said.out} {said.err}".replace("│", " ").split())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.bad_input
def test_data_that_meta_training_cannot_use_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path / "none"))
    out = ["--out", str(tmp_path / "out")]
    assert "unknown data set 'mnits'" in call(capsys, "meta-train", "light", "--dataset", "mnits", *out)[0]
    assert "mnist is not usable" in call(capsys, "meta-train", "light", *out)[0]
    assert "shakespeare is text, not images" in call(capsys, "meta-train", "light", "--dataset", "shakespeare", *out)[0]
    assert "unknown text 'x'" in call(capsys, "search", "--images", "digits", "--text", "x", *out)[0]


def test_the_recipe_serves_images_of_any_size():
    """The networks of the recipe are for images of MNIST's size; `digits`, which are always there, are 8×8."""
    trainer = recipes.by_truncation("light", MetaConfig(iterations=20), "digits").trainer
    for task in trainer.tasks:
        params = jax.eval_shape(task.init, jax.random.key(0))
        batch = jax.eval_shape(lambda key, task=task: task.batch(task.data, key), jax.random.key(0))
        assert jax.eval_shape(task.loss, params, batch).shape == ()


@pytest.mark.bad_input
def test_a_root_that_is_no_checkout_is_named(capsys, tmp_path, monkeypatch):
    for root, message in ((tmp_path, "holds no notebooks"), (tmp_path / "nowhere", "is no folder")):
        monkeypatch.setenv("MNEMOSYNE_ROOT", str(root))
        for command in ("reproduce", "publish"):
            code, said = call(capsys, command)
            assert message in code
            assert str(root) in code
            assert not said.out


@pytest.mark.bad_input
@pytest.mark.parametrize("words", [("list",), ("fetch", "mnist"), ("verify", "mnist")])
def test_a_file_in_the_place_of_the_data_is_named(capsys, tmp_path, monkeypatch, words):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MNEMOSYNE_DATA", str(tmp_path / "file"))
    code, said = call(capsys, "data", *words)
    assert f"{tmp_path / 'file'} is a file, and should be the folder of the originals" in code
    assert not said.out


@pytest.mark.parametrize(("module", "config"), [("truncated.py", MetaConfig), ("pes.py", PESConfig)])
def test_every_configuration_field_is_explained(module, config):
    source = (Path(recipes.__file__).parent / module).read_text(encoding="utf-8")
    for field in config.__dataclass_fields__:
        line = next(line for line in source.splitlines() if line.strip().startswith(f"{field}:"))
        assert "#" in line or field == "seed"


def test_bench_measures_ratios_and_bytes():
    table = bench.bench(sizes=(1_000,), rounds=1).set_index("optimizer")
    assert set(table.index) == {"optax.adam", "slim", "paced", "light", "coordinate"}
    assert round(table["bytes/parameter"]["paced"]) == 392
    assert round(table["bytes/parameter"]["light"]) == 384
    assert round(table["bytes/parameter"]["coordinate"]) == 4352
    assert table["× adam"]["optax.adam"] == 1.0
    assert (table["× copy of its state"] > 0).all()


def test_bench_of_training_counts_what_is_trained_and_what_rests():
    body = jnp.ones((50, 50))
    loss = lambda params, batch: jnp.sum((batch @ params["w"]) ** 2)
    task = Task("t", jnp.ones((8, 50)), lambda key: {"w": body}, lambda data, key: data, loss, None)
    table = bench.bench_training({"SGD": (task, optax.sgd(0.1)), "Adam": (task, optax.adam(0.1))}, 8, rounds=1)
    assert list(table.index) == ["SGD", "Adam"]
    assert list(table.parameters) == [2_500, 2_500]
    assert list(table["state bytes"]) == [0, 20_004]
    sgd, adam = table["peak bytes"]
    assert sgd >= body.nbytes + task.data.nbytes
    assert 20_000 <= adam - sgd <= 50_000
    assert (table["examples/s"] > 0).all()


def test_bench_of_compiling_counts_tensors():
    table = bench.bench_compiling(numbers=(2, 4), names=("light",), rounds=1)
    assert list(table.columns) == ["tensors", "adam, s", "light"]
    assert list(table["tensors"]) == [2, 4]
    assert (table > 0).all(axis=None)


def test_bench_compares_the_parallel_form_with_the_scan():
    table = bench.bench_sequence(t=200, rounds=1).set_index("of")
    assert set(table.index) == {"output", "gradient"}
    assert (table["relative difference"] < 1e-4).all()
    assert (table["ratio"] > 0).all()
    assert np.allclose(table["ratio"], table["scan, ms"] / table["parallel, ms"])


ROOT = Path(cli.__file__).parents[1]


def command(*args, cwd=ROOT, **environment):
    """Arguments of a process that runs the command line."""
    known = {k: v for k, v in os.environ.items() if k not in ("MNEMOSYNE_ROOT", "MNEMOSYNE_OUTPUT", "MPLBACKEND")}
    return {
        "args": [sys.executable, "-m", "mnemosyne", *args],
        "cwd": cwd,
        "env": known | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def test_version(capsys):
    code, said = call(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"mnemosyne \S.*\n", said.out)


@pytest.mark.bad_input
def test_a_reader_that_has_gone_ends_a_command_quietly():
    with subprocess.Popen(**command("weights", "card", "light")) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.bad_input
def test_letters_that_an_encoding_lacks_are_printed_as_question_marks():
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(**command("weights", "card", "light", **ascii_only), check=True)
    assert done.stdout.decode("ascii").splitlines()[0] == "# light"
    assert done.stdout.count(b"?") == sum(ord(c) > 127 for c in zoo.card("light")) + zoo.card("light").count("?")


@pytest.fixture
def elsewhere(checkout):
    """The checkout of two notebooks in a folder whose name has a space, braces and letters beyond ASCII."""
    folder = checkout / "nöt {here} ελ"
    folder.mkdir()
    for name in ("notebooks", "mnemosyne", "data"):
        (checkout / name).rename(folder / name)
    return folder


@pytest.mark.bad_input
def test_notebooks_run_anywhere_in_any_locale_and_without_a_home(elsewhere):
    told = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "HOME": "/dev/null/none"}
    done = subprocess.run(**command("reproduce", "--only", "01", cwd=elsewhere, **told), check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"reproduced" in done.stdout
    (claim,) = json.loads((elsewhere / "runs/quick/tables/01_good.claims.json").read_text(encoding="utf-8"))
    assert claim["verdict"] == "reproduced"


SLEEPS = "import os, time\nopen('pid', 'w', encoding='utf-8').write(str(os.getpid()))\ntime.sleep(600)"


def kernel_of(folder, process):
    """Wait for the kernel of a run to say its number."""
    path = folder / "notebooks/pid"
    while not (path.exists() and path.read_text(encoding="utf-8")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return int(path.read_text(encoding="utf-8"))


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def heeded():
    """A background job of a shell ignores SIGINT, and so does what it starts, unless there is a handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_ends_quietly_with_its_kernels(checkout, number, code, heeded):
    page = nbformat.writes(notebook(SLEEPS))
    (checkout / "notebooks/02_bad.ipynb").write_text(page, encoding="utf-8")
    with subprocess.Popen(**command("reproduce", "--only", "02", cwd=checkout)) as process:
        pid = kernel_of(checkout, process)
        process.send_signal(number)
        said, wrong = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in said + wrong
    assert b"stopped" in wrong
    assert is_gone(pid)
    assert not list(checkout.rglob("*.part"))
