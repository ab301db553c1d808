"""The command `plot`: a column of a sweep's table against a parameter, mean over seeds with 95 % t-intervals.

The table is long: one row per run and method, with `seed`, the swept parameters and the quantities. A table of
means (no `seed`, but `<y>_low` and `<y>_high`, as the committed ones are) is drawn as it is.
"""

import difflib
import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn

from .. import intervals
from ..figures import style
from ..study.settings import FIELDS, Refusal
from .reference import MANIFEST

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


def plot(args):
    table = read(args.table)
    if not args.out and Path(args.table).with_name(MANIFEST).is_file():
        fix = f"name a file elsewhere, such as --out {args.y}_against_{args.x}.png"
        raise Refusal(
            f"--out: without it the figure would go beside the table, among committed files; {fix}"
        )
    points = summarise(table, x=args.x, y=args.y, hue=args.hue, only=args.only, where=args.rows)
    out = (
        Path(args.out) if args.out else Path(args.table).with_name(f"{args.y}_against_{args.x}.png")
    )
    words = label(args.y) if "seed" in table else args.y  # a table of means may hold differences
    files = write(
        draw(points, xlabel=label(args.x), ylabel=words, hue=args.hue), out, both=not args.out
    )
    for part in points.groupby("line", sort=False):
        print(f"{part[0]}: {len(part[1])} points, n = {_span(part[1].n)}")
    print("\n".join(map(str, files)))
    return 0


def read(path):
    """A CSV or parquet file as a table. Raises Refusal where it cannot be read."""
    path = Path(path)
    kinds = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in kinds:
        raise Refusal(
            f"table={str(path)!r}: neither .csv nor .parquet; give results/sweeps/NAME/table.csv"
        )
    try:
        table = kinds[path.suffix](path)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise Refusal(
            f"table={str(path)!r}: cannot be read ({why}); give a sweep's table"
        ) from None
    if table.empty:
        raise Refusal(f"table={str(path)!r}: holds no rows; run its sweep first")
    return table


def summarise(table, *, x, y, hue="method", only="", where=()):
    """The points to draw: a table with columns line, x, mean, low, high, n; `low` and `high` are NaN for one seed.

    `where` are (column, text) pairs that rows must equal. Left out, unless named in `only` (names with commas): lines
    whose name has a bracket (a point of a sweep inside a notebook) and lines without a finite y. Raises Refusal for
    a column or a name that is not there, and where rows of one point differ in more than their seed.
    """
    for option, column in (
        ("--x", x),
        ("--y", y),
        ("--hue", hue),
        *(("--where", name) for name, _ in where),
    ):
        _column(table, option, column)
    if not pd.api.types.is_numeric_dtype(table[y]) or pd.api.types.is_bool_dtype(table[y]):
        raise Refusal(f"--y {y}: holds no numbers; name a quantity, such as unsafe or reward")
    for name, text in where:
        kept = table[_equal(table[name], text)]
        if kept.empty:
            raise Refusal(
                f"--where {name}={text}: no row has it; {name} is one of {_listed(table[name])}"
            )
        table = kept
    if x == "method":
        table = table[~table[x].astype(str).str.contains("[", regex=False)]
    table = _lines(table[table[x].notna()], y=y, hue=hue, only=only)
    seeds = "seed" in table
    if not seeds and not {f"{y}_low", f"{y}_high"} <= set(table):
        raise Refusal(
            f"--y {y}: the table has neither a column 'seed' nor {y}_low and {y}_high; give a sweep's table"
        )
    _one_row_a_point(table, [hue, x, "seed"] if seeds else [hue, x], y)
    rows, ranges = [], {}
    for line, part in table.groupby(hue, sort=False):
        ranges[line] = intervals.range_of(y, part[y], difference=str(line).startswith("effect["))
    for (line, at), part in table.groupby([hue, x], sort=False):
        if seeds:
            mean, low, high = intervals.over_seeds(part[y], ranges[line])
            rows.append((str(line), at, mean, low, high, len(part)))
        else:
            one = part.iloc[0]
            rows.append(
                (str(line), at, one[y], one[f"{y}_low"], one[f"{y}_high"], int(one.get("n", 0)))
            )
    points = pd.DataFrame(rows, columns=["line", "x", "mean", "low", "high", "n"])
    points[["low", "high"]] = points[["low", "high"]].astype(float)
    order = {name: i for i, name in enumerate(dict.fromkeys(points.line))}
    if _is_scale(points.x):
        rank = lambda column: column.map(order) if column.name == "line" else column
        return points.sort_values(["line", "x"], key=rank, ignore_index=True)
    return points


def _lines(table, *, y, hue, only):
    """Rows of the lines to draw that have a finite y."""
    names = table[hue].astype(str)
    finite = np.isfinite(table[y].astype(float))
    if only:
        wanted = [name.strip() for name in only.split(",") if name.strip()]
        for name in wanted:
            if name not in set(names):
                near = difflib.get_close_matches(name, names.unique(), n=1)
                fix = f"did you mean {near[0]!r}?" if near else f"it has {_listed(names)}"
                raise Refusal(f"--only {name}: no such {hue}; {fix}")
            if not finite[names == name].any():
                raise Refusal(f"--only {name}: {y} has no finite number there; leave it out")
        table, finite = table[names.isin(wanted)], finite[names.isin(wanted)]
        order = table[hue].astype(str).map({name: i for i, name in enumerate(wanted)})
        table = table.iloc[np.argsort(order, kind="stable")]
        finite = finite.loc[table.index]
    else:
        points = names.str.contains("[", regex=False)
        table, finite = table[~points], finite[~points]
    if not finite.any():
        raise Refusal(
            f"--y {y}: no finite number to draw; choose another column, or name lines with --only"
        )
    return table[finite]


def _column(table, option, column):
    if column not in table:
        near = difflib.get_close_matches(str(column), list(table), n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(table)}"
        raise Refusal(f"{option} {column}: no such column; {fix}")


def _one_row_a_point(table, keys, y):
    """Refuse a mean over rows that differ in more than the seed: it would hide what was swept."""
    twice = table[table.duplicated(keys, keep=False)]
    if twice.empty:
        return
    _, one = next(iter(twice.groupby(keys, sort=False)))
    asked = [
        c for c in table if c in FIELDS or not pd.api.types.is_float_dtype(table[c])
    ]  # no quantity
    differ = [
        c for c in asked if c not in (*keys, y, "run_id") and one[c].nunique(dropna=False) > 1
    ]
    point = ", ".join(f"{k}={one[k].iloc[0]}" for k in keys)
    fix = (
        f"choose one with --where {differ[0]}={one[differ[0]].iloc[0]}"
        if differ
        else "remove the copies"
    )
    words = ", ".join(differ[:4]) or "nothing but the run"
    raise Refusal(f"{len(one)} rows for {point}: they differ in {words}; {fix}")


def _equal(column, text):
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        try:
            return np.isclose(column.astype(float), float(text), rtol=1e-9, atol=0)
        except ValueError:
            return np.zeros(len(column), dtype=bool)
    return column.astype(str) == text


def _listed(column):
    known = list(dict.fromkeys(column.astype(str)))
    return ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")


def _is_scale(column):
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _span(n):
    low, high = int(min(n)), int(max(n))
    return "not stated" if high == 0 else str(low) if low == high else f"{low} to {high}"


# ---------------------------------------------------------------- the drawing
def label(column):
    return LABELS.get(column, column.replace("_", " "))


def _looks(lines):
    """{line: (colour, name)}: the kit's own where it has one, else a fixed sequence."""
    from ..figures.tokens_and_pairs import RULES

    spare = itertools.cycle(seaborn.color_palette("deep").as_hex())
    out = {}
    for line in lines:
        if line in style.COLOURS:
            out[line] = style.COLOURS[line], style.NAMES.get(line, line)
        else:
            out[line] = RULES.get(line) or (next(spare), line.replace("_", " "))
    return out


@style.styled
def draw(points, *, xlabel, ylabel, hue="method"):
    """One line for each value of the hue with its 95 % interval: bands over numbers, bars over names."""
    figure, ax = style.new_axes(width=6.2, height=3.8)
    looks, scale = _looks(dict.fromkeys(points.line)), _is_scale(points.x)
    places = {name: i for i, name in enumerate(dict.fromkeys(points.x))}
    for i, (line, part) in enumerate(points.groupby("line", sort=False)):
        colour, name = looks[line]
        name = name if hue in ("method", "rule") else f"{label(hue)} {line}"
        name += f" (n = {_span(part.n)})"
        if scale:
            ax.plot(part.x, part["mean"], "o-", ms=4, lw=1.5, color=colour, label=name)
            ax.fill_between(part.x, part.low, part.high, color=colour, alpha=0.18, lw=0)
        else:
            at = part.x.map(places).astype(float) + (i - (len(looks) - 1) / 2) * min(
                0.12, 0.7 / len(looks)
            )
            ends = np.nan_to_num([part["mean"] - part.low, part.high - part["mean"]])
            ax.errorbar(
                at, part["mean"], ends, fmt="o", ms=4, lw=1.2, capsize=2, color=colour, label=name
            )
    if not scale:
        names = list(map(str, places))
        crowded = sum(map(len, names)) > 36
        ax.set_xticks(
            list(places.values()), names, rotation=30 * crowded, ha="right" if crowded else "center"
        )
    intervals = "mean and 95 % interval" if points.low.notna().any() else "one seed, no interval"
    ax.set(xlabel=xlabel, ylabel=ylabel, title=intervals)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def write(figure, out, *, both=False):
    """Save as the asked PNG or SVG (or both, of the same name), whole or not at all; returns the paths."""
    out = Path(out)
    if out.suffix not in (".png", ".svg"):
        raise Refusal(
            f"--out {out}: neither .png nor .svg; name a file such as {out.with_suffix('.png')}"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".plot.") as folder:
            names = style.save(figure, Path(folder) / out.stem)
            wanted = [out.parent / name for name in names if both or name == out.name]
            for path in wanted:
                os.replace(Path(folder) / path.name, path)
    except OSError as error:
        raise Refusal(
            f"--out {out}: cannot be written ({error.strerror or error}); name another file"
        ) from None
    return wanted
