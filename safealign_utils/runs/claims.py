"""Verdicts on claims: does a paper's statement hold in our world, by how much, and how surely.

A claim never raises. It is judged on one value per seed (paired differences where methods are compared)
by a 95 % t-interval against a threshold; one seed decides nothing.
"""

import numpy as np
from scipy import stats


def interval(values, level=0.95):
    """(mean, low, high) of one value per seed: a t-interval; low and high are None for a single seed."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None, None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def judge(id, values, *, above=None, below=None):
    """The verdict that values lie above (or below) a threshold: holds, does_not_hold or undecided.

    `values`: one per seed; give exactly one of `above`, `below`. It holds where the whole interval lies on
    that side, does not hold where the whole interval lies on the other.
    """
    if len(values) == 0 or not np.isfinite(np.asarray(values, dtype=float)).all():
        raise ValueError(f"claim {id}: judged on {list(values)}; one finite value a seed is needed")
    mean, low, high = interval(values)
    return verdict(id, mean, low, high, len(values), above=above, below=below)


def verdict(id, value, low, high, n, *, above=None, below=None):
    """The same for an interval found elsewhere, a bootstrap say."""
    sign, limit = (1, above) if above is not None else (-1, below)
    if low is None:
        word = "undecided"
    else:
        ends = sorted((sign * (low - limit), sign * (high - limit)))
        word = "holds" if ends[0] > 0 else "does_not_hold" if ends[1] < 0 else "undecided"
    return {"id": id, "verdict": word, "value": value, "low": low, "high": high, "n": n}
