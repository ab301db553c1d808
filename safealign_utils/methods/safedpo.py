"""SafeDPO (Kim et al., arXiv 2505.20065): helpfulness pairs and safety labels, no cost model.

It moves two levers of the one loss, in one stage. *Winner*: the transformation T keeps a pair whose
winner is safe, swaps a pair whose loser alone is safe, drops a pair of two unsafe responses.
*Margin*: a safe winner must beat an unsafe loser by delta, outside beta; pairs of equal status have
none. u = 1 means unsafe.
"""

import numpy as np

from ..pairs import SAFE, chosen_rejected


def unsafe_labels(table):
    """u of the chosen and of the rejected response: two bool [N].

    Raises ValueError where a safety label is missing.
    """
    for column in SAFE:
        missing = int(table[column].isna().sum())
        if missing:
            raise ValueError(f"{column}: {missing} rows have no safety label; drop them first")
    return chosen_rejected(table, *(~table[column].to_numpy(bool) for column in SAFE))


def transform(table):
    """T of Eq. 10-11 on a labelled table: (the new table, report).

    Pairs of equal status keep `chosen` and `p`, soft or hard; in mixed pairs the safe response wins
    with p = 1. The report counts the rows that each rule moved (keep, swap, drop) and the mixed
    rows. Raises ValueError where T drops every pair.
    """
    u_w, u_l = unsafe_labels(table)
    swap, drop, mixed = u_w & ~u_l, u_w & u_l, u_w != u_l
    if drop.all():
        raise ValueError(
            f"pairs: T drops all {len(table)}, as both responses are unsafe; give more pairs"
        )
    chosen = np.where(swap, 1 - table.chosen, table.chosen)
    p = np.where(mixed, 1.0, table.p)
    moved = table.assign(chosen=chosen, p=p)[~drop].reset_index(drop=True)
    rules = {"keep": ~u_w, "swap": swap, "drop": drop, "mixed": mixed}
    return moved, {name: int(rows.sum()) for name, rows in rules.items()}


def with_margin(table, delta):
    """Set the margin delta (u_l - u_w) of Eq. 12, 0 on equal status.

    It is a signed function of the two responses: swapping them turns its sign.
    """
    if not 0 <= delta < np.inf:
        raise ValueError(f"delta={delta}: the margin of SafeDPO is a number, 0 or above")
    u_w, u_l = unsafe_labels(table)
    return table.assign(margin=delta * (u_l.astype(float) - u_w))


def safedpo(table, *, delta=0.0):
    """SafeDPO's table: T, then the margin. Train on it with the one loss, and any other lever."""
    return with_margin(transform(table)[0], delta)


def with_finite_target(table, penalty):
    """On T's table, soft labels: in mixed pairs the safe one wins with p = sigma(penalty + gap).

    The gap is r_w - r_l, from the columns reward_k. The optimum is that of r - penalty 1{c > 0},
    whose distance to pi*_c falls as exp(-penalty / beta). *Differs from the paper:* there the safe
    response always wins (p = 1), an infinite target that a network approaches for ever, at the
    expense of the order among safe responses.
    """
    if not 0 < penalty < np.inf:
        raise ValueError(f"penalty={penalty}: a finite number above 0, in units of reward")
    u_w, u_l = unsafe_labels(table)
    r_w, r_l = chosen_rejected(table, table.reward_0, table.reward_1)
    gap = r_w - r_l
    p = 1 / (1 + np.exp(-penalty * (u_l.astype(float) - u_w) - gap))
    return table.assign(p=np.where(u_w != u_l, p, table.p), margin=0.0)
