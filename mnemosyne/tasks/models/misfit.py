"""What to say of a checkpoint that does not fit: what differs, a few of each kind, and what to write to load it."""

import math
import re
from typing import NamedTuple

from mnemosyne.tasks.models.public import Names

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
SHOWN = 3  # of each kind of difference
LAYER = re.compile(r"\.(?:layer|block)\.(\d+)\.")


class Tensor(NamedTuple):
    """A tensor of a checkpoint, there or wanted."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]  # one that is there; those that are allowed

    def fits(self, wanted: "Tensor") -> bool:
        return self.shape == wanted.shape and set(self.dtypes) <= set(wanted.dtypes)

    def __str__(self) -> str:
        return f"({self.shape}, {' or '.join(map(repr, self.dtypes))})"


def misfit(have: dict[str, Tensor], should: dict[str, Tensor], leaves: dict[str, str], names_of: Names) -> list[str]:
    """Lines on what differs and on what to write; none if all fits.

    Args:
        have: tensors of the checkpoint by their names of today, without those that are passed over.
        should: those that are wanted.
        leaves: the path of the leaf that each of these fills.
        names_of: of the family.
    """
    missing, extra = sorted(should.keys() - have.keys()), sorted(have.keys() - should.keys())
    both = sorted(n for n in have.keys() & should.keys() if not have[n].fits(should[n]))
    kinds = {
        "of another shape": [n for n in both if have[n].shape != should[n].shape],
        "of another dtype": [n for n in both if have[n].shape == should[n].shape],
        "missing": missing,
        "not wanted": extra,
    }
    if len(missing) == len(should) and extra:
        return [
            f"  none of its {len(extra)} tensors has a name that is wanted: is it of another model or library?",
            f"  it holds {', '.join(extra[:SHOWN])} …, wanted are {', '.join(missing[:SHOWN])} …",
        ]
    lines = [line for kind, found in kinds.items() for line in _listed(kind, found, have, should)]
    if not lines:
        return []
    if foreign := [say for pattern, say in names_of.foreign if any(re.fullmatch(pattern, n) for n in extra)]:
        return [*lines, *foreign]
    advice = [*_sizes(kinds["of another shape"], have, should, names_of), *_layers(have, should)]
    if not advice:
        advice = [*_dtypes(kinds["of another dtype"], have, should), *_leaves(missing, leaves), *_unused(extra, should)]
    found = [f"{kind}: {name}" for kind, names in kinds.items() for name in names]
    remarks = [say for pattern, say in names_of.remarks if any(re.fullmatch(pattern, text) for text in found)]
    return [*lines, *advice, *remarks]


def _listed(kind: str, found: list[str], have: dict[str, Tensor], should: dict[str, Tensor]) -> list[str]:
    lines = [f"  {n}: {have.get(n, 'missing')}, wanted {should.get(n, 'nothing')}" for n in found[:SHOWN]]
    return lines + ([f"  and {len(found) - SHOWN} more {kind}"] if len(found) > SHOWN else [])


def _sizes(found: list[str], have: dict[str, Tensor], should: dict[str, Tensor], names_of: Names) -> list[str]:
    """Fields of the module that the checkpoint has otherwise."""
    fields = [
        f"{field}={have[name].shape[0]}"
        for name, field in names_of.sizes
        if name in found and have[name].shape[1:] == should[name].shape[1:]
    ]
    fields += _side(found, have, should)
    if not fields:
        return []
    return [f"To load it, give the shapes of a model with its sizes: module.clone({', '.join(fields)})."]


def _side(found: list[str], have: dict[str, Tensor], should: dict[str, Tensor]) -> list[str]:
    """The side of the images that a ViT with so many positions has, if they are a square and a class token."""
    positions, patches = "vit.embeddings.position_embeddings", "vit.embeddings.patch_embeddings.projection.weight"
    if positions not in found or patches not in should or have[positions].shape[::2] != should[positions].shape[::2]:
        return []
    tokens = have[positions].shape[1] - 1
    if tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
        return []
    return [f"side={math.isqrt(tokens) * should[patches].shape[-1]}"]


def _layers(have: dict[str, Tensor], should: dict[str, Tensor]) -> list[str]:
    there, wanted = (
        max((int(m[1]) + 1 for n in names if (m := LAYER.search(n))), default=0) for names in (have, should)
    )
    if there == wanted or not there:
        return []
    return [f"It has {there} layers, wanted are {wanted}: module.clone(layers={there})."]


def _dtypes(found: list[str], have: dict[str, Tensor], should: dict[str, Tensor]) -> list[str]:
    """How to have the values rounded, if they are floating-point numbers."""
    known = {short: name for name, short in DTYPES.items()}
    there = sorted({d for n in have.keys() & should.keys() for d in have[n].dtypes})
    if not found:
        return []
    if strange := [dtype for dtype in there if dtype not in known]:
        return [f"{', '.join(strange)} is quantised or no weight: save the model in floating point first."]
    written = [f"jnp.{known[d]}" for d in there]
    stored = written[0] if len(written) == 1 else f"({', '.join(written)})"
    return [f"To load it, rounded to the dtypes of `like`: load_checkpoint(…, stored={stored})"]


def _leaves(missing: list[str], leaves: dict[str, str]) -> list[str]:
    """Modules of which the checkpoint has nothing, to be left out."""
    absent, present = ({path.split(".")[0] for n, path in leaves.items() if (n in missing) == m} for m in (True, False))
    if not (absent - present):
        return []
    left = f"{{k: v for k, v in like.items() if k not in {sorted(absent - present)}}}"
    return [f"To load it without these: load_checkpoint(path, names_of, {left})"]


def _unused(extra: list[str], should: dict[str, Tensor]) -> list[str]:
    """Patterns of what nothing fits, to be passed over."""
    kept = {name.rpartition(".")[0] for name in should}
    modules = {name.rpartition(".")[0] for name in extra} - kept - {""}
    alone = [name for name in extra if name.rpartition(".")[0] not in modules]
    patterns = sorted([*map(re.escape, alone), *(rf"{re.escape(module)}\..*" for module in modules)])
    if not patterns:
        return []
    if len(patterns) > SHOWN:
        firsts = sorted({re.escape(name.split(".")[0]) for name in extra})
        patterns = [rf"{first}\..*" for first in firsts]
    written = ", ".join(f'r"{pattern}"' for pattern in patterns)
    return [f"To pass over what is not wanted: load_checkpoint(…, unused=({written},))"]
