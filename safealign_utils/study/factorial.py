"""Levers against each other: a factorial of two levels each, its effects, and how two get on.

Every combination of levels is one cell. The *effect* of a lever is the mean over the cells at its
second level minus the mean at its first. The *interaction* of two is half the difference between
the one's effect at the other's second level and at its first: 0 where the two add up. So with two
levers alone, and means over both, y = mean + (s_a A + s_b B + s_a s_b AB) / 2 with s = -1 at the
first level and +1 at the second.
"""

from itertools import combinations, product

import numpy as np
import pandas as pd

SAME = 0.05  # an interaction below it, a twentieth of a probability or of a reward, is none


def design(levers):
    """All combinations of `levers` {name: (first level, second level)}: a list of {name: level}."""
    for name, levels in levers.items():
        if len(set(levels)) != 2:
            raise ValueError(f"{name}={list(levels)}: a lever has two different levels")
    return [dict(zip(levers, levels)) for levels in product(*levers.values())]


def effects(table, levers, quantities):
    """Effects and two-way interactions, a row a seed and effect ("a" or "a x b"): the quantities.

    `table` has columns seed, the levers and the quantities. Raises ValueError unless each seed has
    each cell once.
    """
    cells, rows = len(design(levers)), []
    for seed, part in table.groupby("seed"):
        if len(part) != cells or len(part.drop_duplicates(list(levers))) != cells:
            words = f"a factorial needs each of its {cells} cells once"
            raise ValueError(f"seed {seed}: {len(part)} rows; {words}")
        sign = {name: np.where(part[name] == second, 1, -1) for name, (_, second) in levers.items()}
        sign |= {f"{a} x {b}": sign[a] * sign[b] for a, b in combinations(levers, 2)}
        for effect, s in sign.items():
            found = {q: 2 * float((s * part[q]).mean()) for q in quantities}
            rows.append({"seed": seed, "effect": effect, **found})
    return pd.DataFrame(rows)


def reading(first, second, both, *, margin=SAME):
    """How two levers get on, from (value, low, high) of both effects and of their interaction.

    "add up": the interaction's interval lies between -margin and margin (two one-sided tests); one
    that holds 0 and is wider is "undecided": that none was seen does not say that none is. "do the
    same work": both effects have one sign, the interaction the other. "strengthen": all three have
    one sign. "fight": the effects have different signs. "interact": an effect's own interval holds
    0, so it has no sign. One seed (low None), or an end that is not a number: "undecided".
    """
    intervals = np.array([first, second, both], dtype=float)
    if not np.isfinite(intervals).all():
        return "undecided"
    value, low, high = intervals.T
    one, other, inter = np.where((low <= 0) & (high >= 0), 0, np.sign(value))
    if -margin < low[2] and high[2] < margin:
        return "add up"
    if inter == 0:
        return "undecided"
    if one * other == 0:
        return "interact"
    return "fight" if one != other else "strengthen" if inter == one else "do the same work"
