"""How often 95 % intervals hold the truth: the engines of before against `safealign_utils.intervals`, by simulation.

    python tests/benchmarks/intervals.py [--csv FILE] [--runs 2000]

Over seeds n values are drawn from a population with a known mean; before: the plain t-interval, whatever the range.
Over prompts n prompts are drawn with their pairs; before: the percentile bootstrap over pairs of `evaluate.accuracy`,
for means that of `sampled.bootstrap` with Wilson's interval where all agree. `above` and `below` are the shares, in per
cent, of intervals that lie wholly above or below the truth; `outside`: those that reach where no value can be.
"""

import argparse

import numpy as np
import pandas as pd
from scipy import stats

from safealign_utils import intervals

SEEDS, PROMPTS = (3, 5, 20, 125), (3, 5, 20, 125)
DRAWS = 1000
TOO_FEW = {  # why an interval holds the truth in less than 93 of 100
    "share .002, wide": "sd twice the mean, long tail: most draws of a few seeds do not show it",
    "KL": "lognormal: most draws of a few seeds do not show its long tail",
    "long tail": "exponential: most draws of a few prompts do not show its long tail",
    "independent": "whole numbers of hits: few shares are possible, and the nearest ones decide",
    "clustered": "a share near its end, or few prompts: the few that differ decide",
}
TOO_MANY = {  # and why in more than 97
    "independent": "whole numbers of hits: few shares are possible; where all agree Clopper-Pearson, at least nominal",
    "clustered": "often all hits agree: Clopper-Pearson counts each prompt once, and is at least nominal",
}


def populations(g, runs, n):
    """(name, bounds, mean, values [runs, n]) over seeds."""
    for mean, strength in ((0.002, 2000), (0.02, 200), (0.5, 20), (0.98, 200)):
        values = g.beta(strength * mean, strength * (1 - mean), (runs, n))
        yield f"share {mean:g}".replace("0.", "."), intervals.SHARE, mean, values
    yield "share .002, wide", intervals.SHARE, 0.002, g.beta(0.25, 0.25 * 499, (runs, n))
    for name, sigma in (("KL", 0.47), ("KL, long tail", 1.0)):
        yield (
            name,
            intervals.POSITIVE,
            float(np.exp(sigma**2 / 2)),
            g.lognormal(0, sigma, (runs, n)),
        )
    yield "|x|", intervals.POSITIVE, float(np.sqrt(2 / np.pi)), np.abs(g.normal(size=(runs, n)))
    yield (
        "difference of shares",
        intervals.DIFFERENCE,
        -0.48,
        g.beta(10, 10, (runs, n)) - g.beta(98, 2, (runs, n)),
    )
    yield "reward", None, 0.0, g.normal(size=(runs, n))


def of_prompts(g, n):
    """(name, bounds, mean, one draw: (values, prompts)) over prompts."""
    for p in (0.02, 0.5, 0.8, 0.98):
        yield (
            f"independent pairs, share {p:g}",
            intervals.SHARE,
            p,
            (g.random(n) < p) * 1.0,
            np.arange(n),
        )
    group = np.repeat(np.arange(n), g.integers(1, 7, n))
    for p in (0.1, 0.6, 0.98):
        share = g.beta(1.5 * p, 1.5 * (1 - p), n)
        hits = (g.random(len(group)) < share[group]) * 1.0
        yield f"clustered pairs (ICC .4), share {p:g}", intervals.SHARE, p, hits, group
    one, other = (
        g.random(len(group)) < g.beta(1.5 * p, 1.5 * (1 - p), n)[group] for p in (0.6, 0.5)
    )
    yield "clustered pairs, difference", intervals.DIFFERENCE, 0.1, one * 1.0 - other, group
    yield "scores, normal", None, 0.0, g.normal(size=n), np.arange(n)
    yield "scores, long tail", None, 1.0, g.exponential(size=n), np.arange(n)


def plain(values):
    """The t-interval of before."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def percentile(values, g):
    """The bootstrap of before: over pairs, whichever prompt they belong to."""
    drawn = g.integers(len(values), size=(DRAWS, len(values)))
    return np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])


def row(kind, name, n, bounds, truth, old, new):
    """One line of the table, from the ends [runs, 2] of both engines."""
    out = {"over": kind, "quantity": name, "n": n}
    for engine, ends in (("old", np.array(old)), ("new", np.array(new))):
        below, above = (
            100 * np.mean(ends[:, 1] < truth - 1e-12),
            100 * np.mean(ends[:, 0] > truth + 1e-12),
        )
        low, high = bounds or (-np.inf, np.inf)
        outside = (ends[:, 0] < low - 1e-9) | (
            ends[:, 1] > (np.inf if high is None else high) + 1e-9
        )
        out |= {engine: 100 - below - above, f"{engine}_above": above, f"{engine}_below": below}
        out |= {
            f"{engine}_outside": 100 * outside.mean(),
            f"{engine}_width": float(np.median(ends[:, 1] - ends[:, 0])),
        }
    reasons = TOO_FEW if out["new"] < 93 else TOO_MANY if out["new"] > 97 else {}
    return out | {"why": next((text for word, text in reasons.items() if word in name), "")}


def table(runs):
    g, rows = np.random.default_rng(0), []
    for n in SEEDS:
        for name, bounds, truth, values in populations(g, runs, n):
            new = [intervals.over_seeds(v, bounds)[1:] for v in values]
            rows.append(row("seeds", name, n, bounds, truth, [plain(v) for v in values], new))
    for n in PROMPTS:
        found = {}
        for _ in range(runs):
            for name, bounds, truth, values, group in of_prompts(g, n):
                ends = intervals.over_prompts(values, group, bounds=bounds, draws=DRAWS)[1:3]
                kept = found.setdefault(name, (bounds, truth, [], []))
                kept[2].append(percentile(values, g))
                kept[3].append(ends)
        rows += [row("prompts", name, n, *kept) for name, kept in found.items()]
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", default="")
    parser.add_argument("--runs", type=int, default=2000)
    args = parser.parse_args()
    found = table(args.runs).round(3)
    print(found.drop(columns="why").round(2).to_string(index=False))
    if args.csv:
        found.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
