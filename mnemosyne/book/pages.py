"""Numbers in README and docs: each block between two markers is what a function makes of published claims and tables.

    python -m mnemosyne.book.pages      # writes every block anew

A block begins at a line `<!-- generated: name -->` and ends at `<!-- end -->`. No number in it is typed.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from mnemosyne.book import folders, results, whole
from mnemosyne.book.verdicts import VERDICTS
from mnemosyne.optimizer.registry import OPTIMIZERS
from mnemosyne.optimizer.zoo import RECOMMENDED
from mnemosyne.tasks.data.sources import SOURCES

SCALE = "laptop"
LABEL = {name: entry.label for name, entry in OPTIMIZERS.items()}
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def published(id: str) -> pd.DataFrame:
    """A published table."""
    path = folders.published_tables(SCALE) / f"{id}.csv"
    found = whole.published(path, whole.table)
    if found is None:
        raise whole.Damaged(path, "is not published")
    return found


def claims() -> list[dict]:
    """Every published claim, in the order of chapters, each with its chapter and the command that tests it."""
    return [
        claim | {"chapter": name, "command": f"make figures SCALE={SCALE} ONLY={name.split('_')[0]}"}
        for name in results.notebooks()
        for claim in results.published_claims(SCALE, name)
    ]


def title(notebook: str) -> str:
    """What the first line of a chapter calls it."""
    first = whole.notebook(folders.root() / "notebooks" / f"{notebook}.ipynb").cells[0]
    return first.source.splitlines()[0].removeprefix("# ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown. A bar inside a cell is escaped."""
    lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def headline() -> str:
    """The result in four lines: quality, quality with a memory, claims, price."""
    every = claims()
    ours, counts = means_of(LABEL["coordinate"]), Counter(c["verdict"] for c in every)
    return (
        f"- **Quality.** {quality()}\n"
        f"- **With a memory.** {remembering()}\n"
        f"- **Claims.** The verdicts on {len(every)} claims, most of them the paper's, are "
        f"{', '.join(f'{counts[v]} {v}' for v in VERDICTS if counts[v])}. The paper's own rule, as we meta-trained "
        f"it, has a loss of {' and '.join(f'{mean:.2f}' for mean in ours['mean'])} times the best Adam's on the "
        f"{ours.tasks.iloc[0]} networks of chapter 09, after the same steps.\n"
        f"- **Price.** {price()}\n"
    )


def means_of(optimizer: str) -> pd.DataFrame:
    """The published geometric means of an optimizer's loss over that of Adam at its best rate, by step."""
    return published("transfer_means").query("optimizer == @optimizer").sort_values("step")


def quality() -> str:
    """What the fresh tasks say of the recommended optimizer and of Prodigy, which needs no learning rate either."""
    means, tasks = published("untuned_means").sort_values("step"), published("untuned_summary").task.nunique()
    ours, rival = (means[means.optimizer == name] for name in (LABEL[RECOMMENDED], "Prodigy"))
    lost = published("untuned_lost").set_index("optimizer").loc[LABEL[RECOMMENDED]]
    told = [f"{r.mean:.2f} [{r.low:.2f}, {r.high:.2f}] after {r.step:,} steps" for r in ours.itertuples()]
    return (
        f"`mnemosyne.pretrained()` is `{RECOMMENDED}`. We divide its training loss, untuned, by that of Adam at the "
        f"best of seven learning rates, on {tasks} tasks of kinds that meta-training never saw. The geometric mean is "
        f"{', '.join(told)} (95% intervals over tasks and seeds). "
        f"The worst task at any of these steps has {ours.worst.max():.2f}. "
        f"{int(lost.diverged)} of {int(lost.runs)} runs diverged. {on_larger()} "
        f"On the {tasks} tasks Prodigy has {' / '.join(f'{mean:.2f}' for mean in rival['mean'])} after the same steps. "
        f'Scale `{SCALE}`: `make figures SCALE={SCALE} ONLY="29 30"`.'
    )


def on_larger() -> str:
    """What the recommended optimizer's loss is over the best constant Adam's on the larger networks, at their end."""
    rows, sizes = published("larger_ratios"), published("larger_price").groupby("task", sort=False).parameters.first()
    last = rows.step.max()
    at = rows[(rows.step == last) & (rows.optimizer == LABEL[RECOMMENDED])].set_index("task").shown
    told = [f"{at[task]} on {task} with {n:,} parameters" for task, n in sizes.items()]
    return (
        f"On larger networks its loss over that of Adam at the best of its rates is {' and '.join(told)} after "
        f"{last:,} steps (95% intervals over seeds)."
    )


def remembering() -> str:
    """What chapter 09 says of `paced` and of Prodigy."""
    transfer = next(c for c in claims() if c["id"] == "transfer")
    ratios = [
        f"{found} after {int(step):,} steps" for found, step in re.findall(r"(\S+ \[.+?\]) at (\d+)", transfer["ours"])
    ]
    diverged, runs = re.search(r"(\d+) of (\d+) diverged", transfer["ours"]).groups()
    ours, rival = means_of(LABEL["paced"]).iloc[-1], means_of("Prodigy")
    return (
        "`paced` keeps an attention memory for every parameter, which says where to go. "
        f"On {ours.tasks} other networks its loss over that of Adam at the best of seven rates (thirteen where the "
        f"best is at an edge) is, in the geometric mean, {' and '.join(ratios)} "
        f"(95% intervals over {transfer['seeds']} seeds only). "
        f"After {ours.step:,} steps it is {ours.worst:.2f} on the worst network. {diverged} of {runs} runs diverged. "
        f"Prodigy has {' and '.join(f'{mean:.2f}' for mean in rival['mean'])} after the same steps. "
        f"Scale `{SCALE}`: `{transfer['command']}`."
    )


def price() -> str:
    """Bytes of state and time beside Adam's, of the recommended optimizer and of `paced`."""
    alone, costs = published("untuned_price").set_index("optimizer"), published("regime_costs")
    steps = costs[costs.optimizer == LABEL["paced"]].set_index("regime")["× Adam"]
    ours, memory = alone.loc[LABEL[RECOMMENDED]], alone.loc[LABEL["paced"]]
    return (
        f"`{RECOMMENDED}` holds {ours.bytes:.0f} bytes of state per parameter, as Adam does; `paced` holds "
        f"{memory.bytes:.0f}. At {int(ours.parameters):,} parameters an update alone takes {ours.ns:.1f} ns per "
        f"parameter with `{RECOMMENDED}`, {alone.ns['Adam']:.1f} with Adam, {alone.ns['AdamW']:.1f} with AdamW, "
        f"{alone.ns['Prodigy']:.1f} with Prodigy, {memory.ns:.0f} with `paced` (2 CPU cores). A whole training "
        f"step of a small ViT takes {steps['Fig. 5']:.1f} times as long as with Adam when `paced` trains two of its "
        f"three layers, {steps['last layer']:.2f} times when only the last one."
    )


def verdicts_of(notebooks: str) -> str:
    """Claims of the chapters whose numbers a pattern matches, as a table."""
    rows = [
        (f"[{c['id']}](../notebooks/{c['chapter']}.ipynb)", c["verdict"], c["paper"], _measured(c))
        for c in claims()
        if re.match(notebooks, c["chapter"])
    ]
    return table(("claim and chapter", "verdict", "the paper says", "we measured"), rows)


def _measured(claim: dict) -> str:
    return "; ".join(part for part in (claim["ours"], claim["interval"]) if part)


def ledger() -> str:
    """Every claim with its rule, its verdict, and the command that tests it."""
    rows = [
        (
            f"`{c['id']}`",
            c["verdict"],
            c["paper"],
            c["rule"],
            c["ours"],
            c["interval"] or "none: counted, or exact",
            f"[{title(c['chapter'])}](../notebooks/{c['chapter']}.ipynb)",
            f"`{c['command']}`",
        )
        for c in claims()
    ]
    return table(("claim", "verdict", "paper says", "rule", "measured", "interval", "chapter", "command"), rows)


def losses(summary: str, optimizers: dict[str, str], steps: Sequence[int]) -> str:
    """Mean loss ± half of its 95% interval, with the learning rate in brackets where there is one; lowest in bold."""
    rows = []
    for (task, step), group in published(summary).query("step in @steps").groupby(["task", "step"], sort=True):
        group = group.set_index("optimizer").loc[list(optimizers)]
        cells = [
            f"{mark}{row.loss:.3f} ± {row.half:.3f}{mark}"
            + ("" if row.rate == 1 else f" ({row.rate:.0e})".replace("e-0", "e-"))
            for row in group.itertuples()
            for mark in ["**" if row.loss == group.loss.min() else ""]
        ]
        rows.append((task, f"{step:,}", *cells))
    return table(("network", "step", *optimizers.values()), rows)


def ratios(summary: str, optimizers: dict[str, str], steps: Sequence[int]) -> str:
    """Loss over that of Adam at its best rate, after each number of steps, a row for each network."""
    rows = published(summary).query("step in @steps").pivot(index="task", columns=["optimizer", "step"], values="loss")
    cell = lambda row, name: " / ".join(f"{row[name, s] / row['Adam', s]:.2f}" for s in steps)
    return table(
        ("network", *optimizers.values()),
        [(task, *(cell(row, name) for name in optimizers)) for task, row in rows.iterrows()],
    )


def transfer_means() -> str:
    """Geometric means over the sixteen networks, with intervals over networks."""
    rows = published("transfer_means").pivot(index="optimizer", columns="step")
    cell = lambda row, s: f"{row['mean', s]:.2f} [{row['low', s]:.2f}, {row['high', s]:.2f}]"
    found = [
        (f"`{name}`", cell(row, 200), cell(row, 1000), f"{worst:,.{2 if worst < 100 else 0}f}")
        for name in ("slim", "paced", "light", "coordinate", "lstm", "velo_lstm", "velo_cam")
        for row in [rows.loc[LABEL[name]]]
        for worst in [row["worst", 1000]]
    ]
    return table(("", "after 200 steps", "after 1,000 steps", "worst network, 1,000 steps"), found)


def fresh_means() -> str:
    """Geometric means over the fresh tasks, with intervals over tasks and seeds, of all that need no tuning."""
    rows = published("untuned_means").pivot(index="optimizer", columns="step")
    marks = sorted(rows["mean"].columns)
    rows = rows.sort_values(("mean", marks[1]))
    cell = lambda row, s: f"{row['mean', s]:.2f} [{row['low', s]:.2f}, {row['high', s]:.2f}]"
    found = [(name, *(cell(row, s) for s in marks), f"{row['worst'].max():,.2f}") for name, row in rows.iterrows()]
    return table(("", *(f"after {s:,} steps" for s in marks), "worst task, any of these"), found)


def costs() -> str:
    """What a whole training step takes beside that of Adam on the same parameters."""
    rows = [
        (
            regime,
            optimizer,
            f"{trained:,}",
            f"{state / trained:.1f}",
            f"{peak / 1e6:.1f}",
            f"{speed:,.0f}",
            f"{times:.2f}",
        )
        for regime, optimizer, trained, state, peak, speed, times in published("regime_costs").itertuples(index=False)
    ]
    head = ("trained", "optimizer", "parameters", "bytes of state per parameter", "peak MB", "examples per s", "× Adam")
    return table(head, rows)


def addresses() -> str:
    """Where each data set comes from."""
    rows = [(f"`{name}`", s.url or "no public address", s.licence) for name, s in SOURCES.items()]
    return table(("data set", "address of its files", "licence"), rows)


def gallery() -> str:
    """Every published figure under the chapter that draws it."""
    shown = []
    for name in results.notebooks():
        code = whole.text(folders.root() / "notebooks" / f"{name}.ipynb")
        drawn = dict.fromkeys(re.findall(r'run\.figure\(\\"(\w+)\\"', code))
        drawn = [id for id in drawn if whole.published(folders.published_figures(SCALE) / f"{id}.png", whole.picture)]
        if drawn:
            pictures = "\n".join(f"![{id}](../figures/{SCALE}/{id}.png)" for id in drawn)
            shown.append(f"### [{title(name)}](../notebooks/{name}.ipynb)\n\n{pictures}\n")
    return "\n".join(shown)


def faults() -> str:
    """What was tried against the project, how often, and what came of it: every tally, and their sums."""
    paths = sorted(folders.faults().glob("*.csv"))
    if not paths:
        return "Nothing has been tried yet.\n"
    tallies = pd.concat([pd.read_csv(path, keep_default_na=False).assign(by=path.stem) for path in paths])
    counts = ["tried", "right", "clear_error", "wrong"]
    sums = [f"**{count:,}**" for count in tallies[counts].sum()]
    rows = [
        (row.by, row.what, *(f"{count:,}" for count in (row.tried, row.right, row.clear_error, row.wrong)), row.note)
        for row in tallies.itertuples()
    ]
    head = ("tally", "what was tried", "how often", "right", "clear error", "wrong", "remark")
    return table(head, [*rows, ("", "**all**", *sums, "")])


def prices() -> str:
    """What every optimizer costs and is worth: weights, bytes, time over Adam's by parameters, loss over Adam's."""
    found, means = published("overhead_prices"), published("transfer_means")
    times = found.pivot(index="optimizer", columns="parameters", values="times")
    first = found.groupby("optimizer")[["weights", "bytes"]].first().join(times).sort_values(times.columns[0])
    last = means.step.max()
    worth = means[means.step == last].set_index("optimizer")["mean"].rename("loss")
    number = lambda x: "" if pd.isna(x) else f"{x:,.3g}" if x < 1_000 else f"{x:,.0f}"
    sizes = (f"time, × Adam, {n:,} parameters" for n in times.columns)
    head = ("optimizer", "weights", "bytes per parameter", *sizes, f"loss, × best Adam, {last:,} steps")
    return table(head, [(name, *map(number, row)) for name, row in first.join(worth).iterrows()])


def _labelled(*labels: str) -> dict[str, str]:
    return {LABEL.get(x, x): f"`{x}`" if x.islower() else x for x in labels}


_TENSORS = {LABEL[name]: f"`{name}`" for name in ("tensor", "tensor_paced", "super", "super_paced")}

_LARGER = ("slim", "Mnemosyne slim, end known", "Adam", "AdamW, warm-up and cosine", "Prodigy", "Prodigy, decayed")

GENERATED: dict[str, Callable[[], str]] = {
    "headline": headline,
    "ledger": ledger,
    "theory": lambda: verdicts_of("0[0-5]"),
    "optimizer": lambda: verdicts_of("0[6-9]|29|30"),
    "choices": lambda: verdicts_of("1[0-4]"),
    "larger": lambda: verdicts_of("1[5-9]|20"),
    "tradeoffs": lambda: verdicts_of("2[1-4]"),
    "memformers": lambda: verdicts_of("2[5-8]"),
    "fig10": lambda: losses(
        "fig10_summary", _labelled("coordinate", "paced", "LSTM", "Adam", "RMSProp"), (100, 300, 1000, 5000)
    ),
    "fig03": lambda: ratios(
        "fig03abc_summary", _labelled("coordinate", "paced", "LSTM", "S4", "Lion", "RMSProp", "SGD"), (300, 1000)
    ),
    "tensorwise": lambda: ratios("tensorwise_summary", _TENSORS, (300, 1000)),
    "transfer": transfer_means,
    "fresh": fresh_means,
    "size": lambda: losses("larger_summary", _labelled(*_LARGER), (200, 1000)),
    "costs": costs,
    "prices": prices,
    "gallery": gallery,
    "addresses": addresses,
    "faults": faults,
}


def refreshed(text: str) -> str:
    """A page with every generated block written anew."""
    return _BLOCK.sub(lambda block: f"{block[1]}{GENERATED[block[2]]()}{block[3]}", text)


def pages() -> list[Path]:
    """README and every page of docs."""
    return [folders.root() / "README.md", *sorted((folders.root() / "docs").glob("*.md"))]


def main() -> None:
    """Write every generated block of every page; a SystemExit names a file that is damaged."""
    sys.stderr.reconfigure(errors="replace")  # a path may have letters that the locale lacks
    try:
        _refresh()
    except (ValueError, OSError) as error:
        raise SystemExit(f"mnemosyne.book.pages: {error}") from error


def _refresh() -> None:
    for page in pages():
        text = whole.text(page)
        if (new := refreshed(text)) != text:
            folders.write(page, new)
            print(f"wrote {page.relative_to(folders.root())}")


if __name__ == "__main__":
    main()
