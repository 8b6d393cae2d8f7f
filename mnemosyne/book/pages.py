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
    """The result in four lines: quality, with the memory and without, claims, price."""
    every = claims()
    transfer = next(c for c in every if c["id"] == "transfer")
    ratios = [
        f"{found} after {int(step):,} steps" for found, step in re.findall(r"(\S+ \[.+?\]) at (\d+)", transfer["ours"])
    ]
    diverged, runs = re.search(r"(\d+) of (\d+) diverged", transfer["ours"]).groups()
    ours, last = means_of(LABEL["coordinate"]), means_of(LABEL["paced"]).iloc[-1]
    counts = Counter(c["verdict"] for c in every)
    return (
        f"- **Quality.** We divide the training loss of `paced`, untuned, by that of Adam at its best learning rate, "
        f"on {last.tasks} networks that meta-training never saw. The geometric mean is {' and '.join(ratios)} "
        f"(95% intervals over {transfer['seeds']} seeds; over networks the interval after {last.step:,} steps is "
        f"[{last.low:.2f}, {last.high:.2f}]). "
        f"After {last.step:,} steps it is {last.worst:.2f} on the worst network. "
        f"Scale `{SCALE}`: `{transfer['command']}`. "
        f"{diverged} of {runs} runs diverged. {prodigy()}\n"
        f"- **Without a memory.** {fresh()}\n"
        f"- **Claims.** The verdicts on {len(every)} claims, most of them the paper's, are "
        f"{', '.join(f'{counts[v]} {v}' for v in VERDICTS if counts[v])}. The paper's own rule, as we meta-trained "
        f"it, has a loss of {' and '.join(f'{mean:.2f}' for mean in ours['mean'])} times the best Adam's on the "
        "networks above, after the same steps.\n"
        f"- **Price.** {price()}\n"
    )


def means_of(optimizer: str) -> pd.DataFrame:
    """The published geometric means of an optimizer's loss over that of Adam at its best rate, by step."""
    return published("transfer_means").query("optimizer == @optimizer").sort_values("step")


def prodigy() -> str:
    """What the published comparison says of Prodigy, which needs no learning rate either."""
    means = means_of("Prodigy")
    return f"Prodigy has {' and '.join(f'{row.mean:.2f} after {row.step:,} steps' for row in means.itertuples())}."


def fresh() -> str:
    """What the fresh tasks say of `slim`, beside `paced` and Prodigy."""
    means, runs = published("untuned_means"), published("untuned_lost").set_index("optimizer")
    slim, by_name = LABEL["slim"], means.sort_values("step").groupby("optimizer")
    told = {name: " / ".join(f"{mean:.2f}" for mean in g["mean"]) for name, g in by_name}
    steps = " / ".join(f"{step:,}" for step in sorted(means.step.unique()))
    return (
        f"On fresh tasks (`make figures SCALE=laptop ONLY=29`) the same mean after {steps} steps is {told[slim]} for "
        f"`slim`, Adam's step at a learned pace in Adam's bytes, {told[LABEL['paced']]} for `paced`, {told['Prodigy']} "
        f"for Prodigy. The worst task of `slim` has {by_name.get_group(slim).worst.max():.2f}; "
        f"{runs.diverged[slim]} of {runs.runs[slim]} runs diverged."
    )


def price() -> str:
    """Bytes of state and time of `paced` beside Adam's."""
    costs, time = published("regime_costs"), published("space_time")
    layer = costs.query("regime == 'last layer'").set_index("optimizer")
    held = (layer["state bytes"] / layer["parameters"]).round().astype(int)
    steps = costs[costs.optimizer == LABEL["paced"]].set_index("regime")["× Adam"]
    light, adam = (time[time.optimizer == name].iloc[0] for name in (LABEL["light"], "Adam"))
    return (
        f"`paced` holds {held[LABEL['paced']]} bytes of state per parameter; Adam holds {held['Adam']}. "
        f"At {light.parameters:,} parameters an update of `light`, which has a memory as large as that of `paced`, "
        f"takes {light['ns per parameter']:.0f} ns per parameter; "
        f"Adam's takes {adam['ns per parameter']:.1f} ns (2 CPU cores). "
        f"A whole training step of a small ViT takes {steps['Fig. 5']:.1f} times as long as with Adam when two of its "
        f"three layers are trained, {steps['last layer']:.2f} times when only the last layer is."
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
        (
            f"`{name}`",
            cell(row, 200),
            cell(row, 1000),
            f"{row['worst', 1000]:,.{2 if row['worst', 1000] < 100 else 0}f}",
        )
        for name in ("paced", "slim", "light", "coordinate", "lstm", "velo_lstm", "velo_cam")
        for row in [rows.loc[LABEL[name]]]
    ]
    return table(("", "after 200 steps", "after 1,000 steps", "worst network, 1,000 steps"), found)


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

GENERATED: dict[str, Callable[[], str]] = {
    "headline": headline,
    "ledger": ledger,
    "theory": lambda: verdicts_of("0[0-5]"),
    "optimizer": lambda: verdicts_of("0[6-9]|29"),
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
