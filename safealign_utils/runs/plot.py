"""The command `plot`: a column of a table against a parameter, with 95 % t-intervals over seeds.

The table has one row per run and method, with `seed`, the swept parameters and the quantities. One
of means (no `seed`, but `<y>_low` and `<y>_high`, as the committed ones are) is drawn as it is.
"""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn

from .. import intervals
from ..engine import boundary
from ..engine.boundary import Refusal, shown
from ..figures import style
from ..study import settings
from .verify import MANIFEST

LARGEST = 2**30  # bytes of a table
TURNED = {"rotation": 30, "ha": "right"}  # names that would not fit beside each other
LABELS = {
    "reward": "E[r]",
    "cost": "E[c]",
    "unsafe": "P(unsafe)",
    "benign_refusal": "P(refusal) on benign prompts",
    "kl_ref": "KL to the reference (nats)",
    "kl_opt": "KL to the method's own optimum (nats)",
    "tv_opt": "total variation to the method's own optimum",
    "leak": "leak: probability outside the grammar",
    "frontier_gap": "E[r] below the exact frontier",
    "lambda": "λ",
    "train_cost": "E[c] on the training prompts",
    "delta": "Δ (nats)",
    "beta": "β",
    "keep": "share of tokens kept",
    "budget": "share of pairs kept",
    "label_noise": "share of flipped labels",
    "pairs": "training pairs",
    "steps": "training steps",
    "learning_rate": "learning rate",
    "cost_limit": "limit on E[c]",
    "dual_lr": "step size of λ",
}


def plot(path, *, x, y, hue="method", only="", where=(), out=""):
    """Draw the column `y` of a table against `x`, beside it or into `out`; print what was drawn."""
    with boundary.reading(f"table={shown(str(path))}", "give a sweep's table, and its columns"):
        _plot(path, x=x, y=y, hue=hue, only=only, where=where, out=out)


def _plot(path, *, x, y, hue, only, where, out):
    table = read(path)
    if not out and Path(path).with_name(MANIFEST).is_file():
        why = "without it the figure would go beside the table, among committed files"
        raise Refusal(f"--out: {why}; name a file elsewhere, such as --out {y}_against_{x}.png")
    rows = select(table, x=x, y=y, hue=hue, only=only, where=where)
    target = Path(out) if out else Path(path).with_name(f"{y}_against_{x}.png")
    figure = draw(rows, x=x, y=y, hue=hue, means="seed" not in table)
    files = write(figure, target, both=not out)
    for line, part in rows.groupby("line", sort=False):
        print(f"{line}: {part.x.nunique()} points, n = {_span(part.n)}")
    print(*files, sep="\n")


def read(path):
    """A CSV or parquet file as a table. Raises Refusal where it cannot be read."""
    path, asked = Path(path), f"table={shown(str(path))}"
    kinds = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in kinds:
        raise Refusal(f"{asked}: neither .csv nor .parquet; give results/sweeps/NAME/table.csv")
    with boundary.reading(asked, "give a sweep's table"):
        with boundary.open_file(path, asked, LARGEST) as file:
            table = kinds[path.suffix](file)
    if table.empty:
        raise Refusal(f"{asked}: holds no rows; run its sweep first")
    return table


# ---------------------------------------------------------------- the rows to draw
def select(table, *, x, y, hue="method", only="", where=()):
    """The rows to draw: line, x, y, n (seeds of the point), a row for every seed.

    A row of a table of means stands three times, with its mean and both ends as y. `where` are
    (column, text) pairs that rows must equal. Left out, unless named in `only` (names with commas):
    lines whose name has a bracket (a point of a sweep inside a notebook) and lines without a finite
    y. Raises Refusal for a column or name that is not there, and where rows of one point differ in
    more than their seed.
    """
    for option, column in (("--x", x), ("--y", y), ("--hue", hue)):
        _check_column(table, option, column)
    if not _is_scale(table[y]):
        raise Refusal(f"--y {y}: holds no numbers; name a quantity, such as unsafe or reward")
    for name, text in where:
        table = _having(table, name, text)
    if x == "method":
        table = table[~_has_bracket(table[x])]
    table = table[table[x].notna() & np.isfinite(table[y].astype(float))]
    table, ends = _lines(table, y=y, hue=hue, only=only), [f"{y}_low", f"{y}_high"]
    means = "seed" not in table
    if means and not {*ends} <= {*table}:
        why = f"the table has neither a column 'seed' nor {y}_low and {y}_high"
        raise Refusal(f"--y {y}: {why}; give a sweep's table")
    _check_one_row_a_point(table, [hue, x] if means else [hue, x, "seed"], y)
    rows = pd.DataFrame({"line": table[hue].astype(str), "x": table[x], "y": table[y]})
    if means:
        rows["n"] = table["n"].astype(int) if "n" in table else 0
        return pd.concat([rows.assign(y=table[column]) for column in (y, *ends)])
    return rows.assign(n=rows.groupby(["line", "x"]).y.transform("size"))


def _check_column(table, option, column):
    if column not in table:
        known = settings.nearest(column, list(table))
        raise Refusal(f"{option} {shown(column)[1:-1]}: no such column; {known}")


def _having(table, name, text):
    _check_column(table, "--where", name)
    column, same = table[name], table[name].astype(str) == text
    if _is_scale(column):
        number = pd.to_numeric(text, errors="coerce")
        same = np.isclose(column.astype(float), number, rtol=1e-9, atol=0)
    if not same.any():
        asked = f"--where {name}={shown(text)[1:-1]}"
        raise Refusal(f"{asked}: no row has it; {name} is one of {_listed(column)}")
    return table[same]


def _lines(table, *, y, hue, only):
    names = table[hue].astype(str)
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    for name in wanted:
        if name not in set(names):
            fix = settings.nearest(name, list(names.unique()))
            raise Refusal(f"--only {shown(name)[1:-1]}: no such {hue} with a finite {y}; {fix}")
    if not wanted:
        table = table[~_has_bracket(names)]
    if table.empty:
        fix = "choose another column, or name lines with --only"
        raise Refusal(f"--y {y}: no finite number to draw; {fix}")
    return pd.concat([table[names == name] for name in wanted]) if wanted else table


def _check_one_row_a_point(table, keys, y):
    """Refuse a mean over rows that differ in more than the seed: it would hide what was swept."""
    twice = table[table.duplicated(keys, keep=False)]
    if twice.empty:
        return
    _, one = next(iter(twice.groupby(keys, sort=False)))
    asked = [c for c in table if c in settings.FIELDS or not pd.api.types.is_float_dtype(table[c])]
    asked = [c for c in asked if c not in (*keys, y, "run_id")]  # no quantity
    differ = [c for c in asked if one[c].nunique(dropna=False) > 1]
    point = ", ".join(f"{key}={one[key].iloc[0]}" for key in keys)
    words, fix = "nothing but the run", "remove the copies"
    if differ:
        words, fix = ", ".join(differ[:4]), f"--where {differ[0]}={one[differ[0]].iloc[0]}"
        fix = f"choose one with {fix}"
    raise Refusal(f"{len(one)} rows for {point}: they differ in {words}; {fix}")


def _has_bracket(column):
    return column.astype(str).str.contains("[", regex=False)


def _listed(column):
    return boundary.some(dict.fromkeys(map(str, column)), 8)


def _is_scale(column):
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _span(n):
    low, high = int(min(n)), int(max(n))
    return "not stated" if high == 0 else str(low) if low == high else f"{low} to {high}"


# ---------------------------------------------------------------- the drawing
@style.styled
def draw(rows, *, x, y, hue="method", means=False):
    """A line for each value of the hue: over numbers with a band, over names points with bars.

    `rows` are those of `select`, `means` says that they are of a table of means.
    """
    figure, ax = style.new_axes(width=6.2, height=3.8)
    names, looks, scale = list(dict.fromkeys(rows.x)), _looks(rows, hue), _is_scale(rows.x)
    shift = min(0.12, 0.7 / len(looks))
    for i, (line, part) in enumerate(rows.groupby("line", sort=False)):
        at, how = part.x, dict(err_style="band", err_kws={"alpha": 0.18, "lw": 0})
        if not scale:
            at = part.x.map(names.index) + shift * (i - (len(looks) - 1) / 2)
            how = dict(err_style="bars", err_kws={"capsize": 2}, linestyle="")
        colour, marker, name = looks[line]
        name = style.plain(name)
        how |= dict(color=colour, marker=marker, ms=5, lw=1.5)
        how |= dict(label=f"{name} (n = {_span(part.n)})")
        seaborn.lineplot(x=at, y=part.y, ax=ax, **_estimate(line, part, y, means), **how)
    if not scale:
        crowded = sum(len(str(name)) for name in names) > 36
        shown = list(map(style.plain, names))
        ax.set_xticks(range(len(names)), shown, **(TURNED if crowded else {}))
    several = rows.duplicated(["line", "x"]).any()
    ylabel = y if means else label(y)  # means may be of differences
    ax.set(xlabel=style.plain(label(x)), ylabel=style.plain(ylabel))
    ax.set_title("mean and 95 % interval" if several else "one seed, no interval")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _estimate(line, part, y, means):
    """How seaborn finds the middle and the ends of a point from its rows."""
    if means:
        return dict(estimator="median", errorbar=("pi", 100))
    bounds = intervals.range_of(y, part.y, difference=line.startswith("effect["))
    return dict(
        estimator=lambda values: intervals.over_seeds(values, bounds)[0],
        errorbar=lambda values: intervals.over_seeds(values, bounds)[1:],
    )


def _looks(rows, hue):
    """{line: (colour, marker, name)}: the kit's own where it has one, else of a fixed sequence; a
    colour that a line before has is not taken again."""
    plain, spare = (
        zip(itertools.cycle(seaborn.color_palette(palette).as_hex()), itertools.cycle(markers))
        for palette, markers in (("deep", "o"), ("bright", "X*dhpP8"))
    )
    out, taken = {}, set()
    for line in dict.fromkeys(rows.line):
        colour, marker, name = style.METHODS.get(line) or (*next(plain), line.replace("_", " "))
        if colour in taken:
            colour, marker = next(spare)
        taken.add(colour)
        name = name if hue in ("method", "rule") else f"{label(hue)} {line}"
        out[line] = colour, marker, name
    return out


def label(column):
    return LABELS.get(column, column.replace("_", " "))


def write(figure, out, *, both=False):
    """Save as PNG or SVG (or both, of the same name), whole or not at all; returns the paths."""
    out = Path(out)
    if out.suffix not in (".png", ".svg"):
        fix = f"name a file such as {out.with_suffix('.png')}"
        raise Refusal(f"--out {out}: neither .png nor .svg; {fix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".plot.") as folder:
            names = style.save(figure, Path(folder) / out.stem)
            wanted = [out.parent / name for name in names if both or name == out.name]
            for path in wanted:
                os.replace(Path(folder) / path.name, path)
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise Refusal(f"--out {out}: {why}; name another file") from None
    return wanted
