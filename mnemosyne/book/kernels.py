"""Notebooks executed through papermill, each in a kernel of its own that ends with it, or with the process."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from mnemosyne.book import folders, whole


class Failed(Exception):
    """A notebook that did not run to its end; the message says where and why."""


class Kernels:
    """The kernels of one run, so that all can be ended at once."""

    def __init__(self) -> None:
        self._lock, self._processes, self._ended = threading.Lock(), [], False

    def add(self, process) -> None:
        """Note a kernel's process; it is killed at once if the others have been."""
        with self._lock:
            self._processes.append(process)
            if self._ended:
                process.kill()

    def end(self) -> None:
        """Kill every kernel, and those that start later."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.kill()


def execute(source: Path, copy: Path, parameters: dict, kernels: Kernels, at: Callable[[str], None]) -> None:
    """Execute a notebook, and write it with its outputs after each cell.

    Args:
        source: the notebook.
        copy: where it is written as executed.
        parameters: values for its cell of parameters.
        kernels: where its kernel is noted.
        at: is told where it is, as "cell 3/18".

    Raises:
        Failed: if a cell fails, or the kernel dies.
        store.StoreError: if the copy cannot be written.
        whole.Damaged: if the source is no notebook.
    """
    places, launched = ["its start"], []

    def told(where: str) -> None:
        places.append(where)
        at(where)

    class Manager(AsyncKernelManager):
        async def _async_launch_kernel(self, *args, **kwargs):
            await super()._async_launch_kernel(*args, **kwargs)
            launched.append(self.provisioner.process)
            kernels.add(self.provisioner.process)

    try:
        papermill.execute_notebook(
            # As a notebook, since papermill fills in braces in a path.
            whole.notebook(source),
            None,
            parameters=parameters,
            engine_name="told",
            progress_bar=False,
            cwd=str(source.parent),
            kernel_name="python3",
            at=told,
            copy=copy,
            kernel_manager_class=Manager,
            # Plain sockets are no news, errors are raised; figures are on the page whatever MPLBACKEND says.
            extra_arguments=["--log-level=50", "--matplotlib=inline"],
        )
    except PapermillExecutionError as error:
        raise Failed(f"cell [{error.exec_count}] of {copy}: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise Failed(f"its kernel died in {places[-1]}{_how(launched)}; {copy} has what came before") from error


def _how(launched: list) -> str:
    """What ended a kernel, as far as its process says."""
    code = launched[-1].poll() if launched else None
    if code is None or code >= 0:
        return "" if code is None else f", with exit code {code}"
    hint = ", as a machine does that has no memory left" if -code == signal.SIGKILL else ""
    return f", ended by {signal.Signals(-code).name}{hint}"


class ToldEngine(NBClientEngine):
    """papermill's engine, which tells where it is instead of drawing a bar, and writes each file whole."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, at, copy, **kwargs):
        cells, cell_start, saved = nb_man.nb.cells, nb_man.cell_start, nb_man.save
        nb_man.nb.metadata.papermill.update(input_path=copy.name, output_path=copy.name)

        def told(cell, cell_index=None, **more):
            at(f"cell {cell_index + 1}/{len(cells)}")
            return cell_start(cell, cell_index, **more)

        def save(**more):
            folders.write(copy, nbformat.writes(nb_man.nb) + "\n")
            saved(**more)

        nb_man.cell_start, nb_man.save = told, save
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("told", ToldEngine)
logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it names no notebook; `Failed` does


@contextmanager
def environment(force: bool) -> Iterator[None]:
    """Kernels that start within are told how to run by environment variables, which end with it."""
    before = dict(os.environ)
    defaults = {
        "JAX_COMPILATION_CACHE_DIR": str(folders.cache() / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    told = {"MNEMOSYNE_BATCH": "1", "MNEMOSYNE_FORCE": "1" if force else ""}  # the first: see explore.sliders
    told["PYTHONUTF8"] = "1"  # names of files may have any letters, whatever the locale
    with tempfile.TemporaryDirectory(prefix="mnemosyne-", ignore_cleanup_errors=True) as folder:
        # A home may be read-only; and a reader's own settings of IPython are no part of a run.
        told |= {"JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}
        if not _writable(Path.home()):
            defaults["MPLCONFIGDIR"] = folder
        os.environ.update(defaults | before | told)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _writable(folder: Path) -> bool:
    with suppress(OSError):
        folders.writable(folder)
        return True
    return False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within, SIGTERM and a terminal that goes away raise SystemExit, so that what must be ended is ended."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
