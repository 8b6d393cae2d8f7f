"""The site as `make docs` builds it: no warning, every link and figure there, nothing fetched from elsewhere.

Without Sphinx all of it is skipped; without a Chromium, what has to be seen in a browser is.
"""

import html
import importlib.util
import itertools
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from mnemosyne.book import folders, pages, results

ROOT = folders.root()
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
LOCAL = re.compile(r'(?:href|src)="([^"]+)"')

pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"the site needs {', '.join(ABSENT)}, which are not installed")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def site():
    """The site's folder, as the command of the Makefile builds it."""
    command = re.search(
        r'^docs: .*\n\t"\$\(BIN\)/python" (.*)$', (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folders.cache() / "site"


@pytest.fixture(scope="module")
def written(site):
    """Path of every page → its text."""
    found = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if "_static" not in path.parts}
    assert len(found) > 30
    return found


def links(text):
    """What a page refers to on this site: (path or "", anchor or "")."""
    for link in LOCAL.findall(text):
        parts = urlsplit(html.unescape(link))
        if not parts.scheme and not parts.netloc:
            yield unquote(parts.path), unquote(parts.fragment)


def names(text):
    """Anchors of a page."""
    return set(map(html.unescape, re.findall(r'\b(?:id|name)="([^"]+)"', text)))


def test_every_link_and_anchor_leads_somewhere(site, written):
    anchors = {path: names(text) for path, text in written.items()}
    broken = []
    for page, text in written.items():
        for path, anchor in links(text):
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and target in anchors and anchor not in anchors[target]):
                broken.append(f"{page.relative_to(site)}: {path}#{anchor}")
    assert broken == []


def test_every_figure_opens(site, written):
    count = 0
    for page, text in written.items():
        for source in re.findall(r'<img[^>]*\bsrc="([^"]+)"', text):
            assert not urlsplit(source).scheme, f"{page.relative_to(site)} asks the network for {source}"
            with Image.open(page.parent / unquote(source)) as image:
                assert min(image.size) > 10
                image.load()
            count += 1
    assert count > 100


def test_no_page_asks_the_network_for_anything(site, written):
    for page, text in written.items():
        asked = re.findall(r'<(?:script|link|img|iframe)[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"', text)
        assert asked == [], page.relative_to(site)


def test_the_ledger_has_every_published_claim(written, site):
    text = html.unescape(re.sub(r"<[^>]+>", "", written[site / "docs/ledger.html"]))
    squeezed = lambda s: re.sub(r"\W+", "", s)
    for claim in pages.claims():
        for part in ("id", "paper", "rule", "ours", "interval", "verdict", "command"):
            assert squeezed(claim[part]) in squeezed(text), (claim["id"], part)


def test_chapters_follow_each_other(written, site):
    names = results.notebooks()
    for before, after in itertools.pairwise(names):
        assert re.search(rf'class="right-next"\s+href="{after}.html"', written[site / f"notebooks/{before}.html"])
        assert re.search(rf'class="left-prev"\s+href="{before}.html"', written[site / f"notebooks/{after}.html"])


def test_the_reference_has_the_public_names(written, site):
    text = written[site / "docs/api.html"]
    for name in ("pretrained", "memory.cam", "optimizer.paper_rule", "metatrain.Truncated", "evaluate.train"):
        assert f'id="mnemosyne.{name}"' in text
    assert "<code" in text
    assert "Args:" not in text  # napoleon has read them


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import house

    return house


def test_an_address_brings_the_badges_back_and_none_leaves_chapters_without(house, written):
    assert house.badges("", "07_mlps") == ""
    line = house.badges("https://github.com/someone/mnemosyne/", "07_mlps")
    assert "https://colab.research.google.com/github/someone/mnemosyne/blob/HEAD/notebooks/07_mlps.ipynb" in line
    assert "https://mybinder.org/v2/gh/someone/mnemosyne/HEAD?labpath=notebooks/07_mlps.ipynb" in line
    shown = json.loads(house.with_badges((ROOT / "notebooks/07_mlps.ipynb").read_text(encoding="utf-8"), line))
    first = "".join(shown["cells"][0]["source"])
    assert re.match(rf"# 07 · [^\n]*\n\n{re.escape(line)}\n\n\*\*Reproduces", first)
    assert not any("mybinder.org" in text for text in written.values())


def test_docstrings_keep_equations_code_and_stars(house):
    lines = [
        "Add to *s.",
        "",
        "    N ← N + φ(k) cᵀ",
        "",
        "Args:",
        "    x: an `Array`s list",
        "",
        "Example:",
        "    f(*x)",
    ]
    house.docstring(None, "function", "f", None, None, lines)
    expected = ["Add to \\*s.", "", "::", "", "    N ← N + φ(k) cᵀ", "", "Args:", "    x: an ``Array``\\ s list", ""]
    assert lines == [*expected, "Example::", "", "    f(*x)"]


LOOK = """<!doctype html><meta charset="utf-8"><iframe id="page"></iframe><script>
const frame = document.getElementById("page"), seen = [];
const loaded = (image) => { image.loading = "eager"; return image.decode().catch(() => 0); };
const size = (element) => parseFloat(getComputedStyle(element).fontSize);
const look = async () => {
  for (const width of [390, 1280]) for (const path of PATHS) {
    Object.assign(frame, { width, height: 900, src: "/" + path });
    await new Promise((done) => (frame.onload = done));
    const view = frame.contentWindow, doc = frame.contentDocument;
    await Promise.all([...doc.images].map(loaded));
    if (view.MathJax && view.MathJax.startup) await view.MathJax.startup.promise;
    seen.push({
      path, width,
      wide: doc.documentElement.scrollWidth,
      broken: [...doc.images].filter((i) => !i.naturalWidth).map((i) => i.src),
      foreign: view.performance.getEntriesByType("resource").map((e) => e.name).filter(
        (name) => !name.startsWith(location.origin)),
      formulas: doc.querySelectorAll("mjx-container").length,
      wrong: doc.querySelectorAll("mjx-merror").length,
      small: Math.min(...[...doc.querySelectorAll("article p, article td")].map(size)),
    });
  }
  return seen;
};
look().catch((error) => String(error)).then((found) => fetch("/", { method: "POST", body: JSON.stringify(found) }));
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves files, keeps what is posted, prints nothing."""

    def do_POST(self):
        self.server.posted.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(site):
    """The site on a port of this machine, with a page that looks at all others."""
    paths = sorted(
        p.relative_to(site).as_posix() for p in site.rglob("*.html") if p.parent.name in ("docs", "notebooks")
    )
    (site / "look.html").write_text(LOOK.replace("PATHS", json.dumps(paths)), encoding="utf-8")
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site))
    serving.posted = queue.Queue()
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    (site / "look.html").unlink()


def browser(folder: Path, server, path: str, *flags: str) -> list[str]:
    """The command that opens a page of the site without a window."""
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += f" --disable-component-update --disable-sync --user-data-dir={folder}"
    return [CHROMIUM, *quiet.split(), *flags, f"http://127.0.0.1:{server.server_port}/{path}"]


@in_browser
def test_every_page_looks_right_in_a_browser_on_a_desk_and_on_a_phone(server, tmp_path):
    with subprocess.Popen(browser(tmp_path, server, "look.html"), stderr=subprocess.DEVNULL) as process:
        try:
            seen = json.loads(server.posted.get(timeout=300))
        finally:
            process.terminate()
    assert isinstance(seen, list), seen
    assert len(seen) > 60
    wrong = [
        page for page in seen if page["wide"] > page["width"] or page["broken"] or page["foreign"] or page["wrong"]
    ]
    assert wrong == []
    assert all(page["small"] is None or page["small"] >= 12 for page in seen)
    assert sum(page["formulas"] for page in seen) > 100


@in_browser
@pytest.mark.parametrize("asked", ["", "?verdict=partly", "?text=random+features"])
def test_the_ledger_is_searched_and_filtered(server, tmp_path, asked):
    command = browser(tmp_path, server, f"docs/ledger.html{asked}", "--virtual-time-budget=10000", "--dump-dom")
    dom = subprocess.run(command, capture_output=True, timeout=120, check=True, encoding="utf-8").stdout
    rows = re.findall(r"<tr[^>]*\bid=\"claim-[^>]*>", dom)
    shown = [row for row in rows if "hidden" not in row]
    claims = pages.claims()
    assert len(rows) == len(claims)
    if asked == "":
        assert len(shown) == len(claims)
    if "verdict" in asked:
        assert len(shown) == sum(c["verdict"] == "partly" for c in claims)
    if "text" in asked:
        assert 0 < len(shown) < len(claims)
    assert f"{len(shown)} of {len(claims)} claims" in dom
