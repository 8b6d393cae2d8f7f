"""Make a virtual environment from locks, and say how far it is: `environment.py .venv requirements.lock …`.

Every lock after the first adds to it. pip gets what the locks pin, each file by its hash, and resolves nothing
(--no-deps): so no later release of anything changes what is installed. `pip check` says afterwards whether all fits.
A finished environment holds a record of its locks' hashes. One that was interrupted, moved or made of other locks is
emptied and made anew, from pip's cache where that has the files.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("Python 3.11 or later is needed, this is " + sys.version)

RECORD = "locks.json"  # {} until the environment is finished
EVERY = 5  # seconds between two lines
# Without --no-build-isolation pip builds what has no wheel with the newest setuptools, whatever the lock says.
# Compiling everything takes as long as the rest; a first import compiles what is USED.
STRICTLY = ["--require-hashes", "--no-deps", "--no-build-isolation"]
LOCKED = ["install", *STRICTLY, "--no-compile", "--progress-bar", "off", "-r"]
PROJECT = ["install", "--no-index", "--no-deps", "--no-build-isolation", "-e", "."]
USED = "mnemosyne.book.commands, mnemosyne.book.plotting, sklearn.datasets, ipykernel.kernelapp"


def names(lock: str) -> set[str]:
    """Return what a lock's text pins."""
    return set(re.findall(r"^([\w.-]+)(?:\[.*?\])?==", lock, re.MULTILINE))


def todo(venv: Path, locks: list[Path]) -> tuple[list[Path], bool]:
    """Return which locks are to be installed, and whether the environment is to be emptied before.

    Raises:
        SystemExit: the folder holds something that was not made here.
    """
    if not (venv / RECORD).exists():
        if venv.exists() and any(venv.iterdir()):
            sys.exit(f"{venv} was not made by this: remove it (make clean), or name another folder (VENV=…)")
        return locks, True
    try:
        record = json.loads((venv / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        record = {}
    held = record.get("locks", {})
    here = record.get("path") == str(venv.resolve()) and (venv / "bin/python").exists()
    if not here or locks[0].name not in held or any(held.get(k.name, digest(k)) != digest(k) for k in locks):
        return locks, True
    return [lock for lock in locks if lock.name not in held], False


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def progress(log: str, pinned: int, unpacked: int) -> str:
    """Say how far pip is, from what it has printed and how many packages have been unpacked."""
    if collected := re.search(r"^Installing collected packages: (.+)", log, re.MULTILINE):
        return f"{unpacked} of {len(collected[1].split(', '))} unpacked"
    fetched, satisfied, ignored = (
        len(set(re.findall(rf"^(?:{word}) (\S+)", log, re.MULTILINE)))
        for word in ("Collecting|Processing", "Requirement already satisfied:", "Ignoring")
    )
    files = re.findall(r"^  (?:Downloading|Using cached) ([^-]+)-\S+ \((.+)\)$", log, re.MULTILINE)
    at = ", at {}, {}".format(*files[-1]) if files else ""
    return f"{fetched + satisfied} of {pinned - ignored} fetched{at}"


def pip(venv: Path, *arguments, say=None) -> None:
    """Run the environment's pip, its output in a file; every few seconds print what `say` makes of that."""
    log = venv / "pip.log"
    command = [venv / "bin/python", "-m", "pip", "--disable-pip-version-check", *arguments]
    with log.open("wb") as out:
        at_once = os.environ | {"PYTHONUNBUFFERED": "1"}
        run = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=at_once)
    begun = said = time.monotonic()
    while run.poll() is None:
        time.sleep(0.1)
        if say and time.monotonic() - said > EVERY:
            said = time.monotonic()
            print(f"{said - begun:5.0f} s  {say(log.read_text(errors='replace', encoding='utf-8'))}", flush=True)
    if run.returncode:
        print(*log.read_text(errors="replace", encoding="utf-8").splitlines()[-20:], sep="\n", file=sys.stderr)
        sys.exit(f"pip {' '.join(map(str, arguments))}: failed, all of it in {log}; the next try starts anew")


def install(venv: Path, lock: Path) -> None:
    """Install what a lock pins, setuptools first: it builds what has no wheel."""
    text = lock.read_text(encoding="utf-8")
    if builder := re.search(r"^setuptools==(?:.*\\\n)+.*\n", text, re.MULTILINE):
        (venv / "builder.lock").write_text(builder[0], encoding="utf-8")
        pip(venv, *LOCKED, venv / "builder.lock")
    packages = next(venv.glob("lib/python*/site-packages"))
    before = len(list(packages.glob("*.dist-info")))
    print(f"{lock}: {len(names(text))} packages pinned for all systems", flush=True)
    pip(
        venv,
        *LOCKED,
        lock,
        say=lambda log: progress(log, len(names(text)), len(list(packages.glob("*.dist-info"))) - before),
    )


def main(venv: Path, *locks: Path) -> None:
    sys.stdout.reconfigure(errors="replace")  # a path may have letters that the locale lacks
    begun = time.monotonic()
    wanted, anew = todo(venv, list(locks))
    if not wanted:
        return
    held = {} if anew else json.loads((venv / RECORD).read_text(encoding="utf-8"))["locks"]
    held |= {lock.name: digest(lock) for lock in wanted}
    venv.mkdir(parents=True, exist_ok=True)
    (venv / RECORD).write_text("{}", encoding="utf-8")  # from here on it is unfinished
    if anew:
        print(f"{venv}: a new environment, Python {sys.version.split()[0]}", flush=True)
        for path in venv.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != RECORD:
                path.unlink()
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    for lock in wanted:
        install(venv, lock)
    if anew:
        print("this project, and a first import", flush=True)
        pip(venv, *PROJECT)
        compiles = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
        subprocess.run([venv / "bin/python", "-c", f"import {USED}"], check=True, env=compiles)
    pip(venv, "check")
    (venv / RECORD).write_text(json.dumps({"path": str(venv.resolve()), "locks": held}), encoding="utf-8")
    print(f"{venv}: ready after {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
