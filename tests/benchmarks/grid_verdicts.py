"""Verdicts on the claims that only the larger grids measured, from the committed tables of those grids.

    python tests/benchmarks/grid_verdicts.py [--csv FILE]

The tables hold means and intervals, no values by seed. Where a column is a paired difference, its interval judges.
Where there are two columns, their difference is taken on the scale of their range (logit for shares, log for
divergences) with Welch's t, as if the seeds were not the same: wider than the paired interval where seeds move both
alike. A mean without an interval decides nothing. Rules and margins are the ledger's; a difference in place of a log
ratio has the same bar, 0.
"""

import argparse

import numpy as np
import pandas as pd
from scipy import special

from safealign_utils import intervals
from safealign_utils.study import claims
from safealign_utils.study.records import COMMITTED

PERCENT, POSITIVE, SHARE = (0, 100), intervals.POSITIVE, intervals.SHARE
SELECTION, RULES, FORCE = "05_selection_full", "04_rules_full", "04_restoring_force_full"
DIFFERENCES, PLAIN, RECIPES = (
    "04_differences_to_dpo_full",
    "04_without_penalty_full",
    "02_recipes_full",
)
OTHER_SHARES = (0.1, 0.2, 0.6, 0.8)


def row_of(table, where):
    """The one row of a committed table with these settings."""
    found = pd.read_csv(COMMITTED / f"{table}.csv")
    for name, value in where.items():
        found = found[found[name] == value]
    if len(found) != 1:
        raise ValueError(f"{table}: {len(found)} rows have {where}; name one")
    return found.iloc[0]


def estimate(row, column, n, bounds=None):
    """(value, error, degrees of freedom) of a column on the scale of its range."""
    value, low, high = (float(row[f"{column}{end}"]) for end in ("", "_low", "_high"))
    half = intervals.half_width(low, high, bounds)
    middle = intervals.on_scale(value, bounds)
    return middle, half / special.stdtrit(n - 1, (1 + intervals.LEVEL) / 2), n - 1


def apart(one, other):
    """Two estimates' difference, its error and Welch's degrees of freedom."""
    (a, error_a, df_a), (b, error_b, df_b) = one, other
    error = np.hypot(error_a, error_b)
    return a - b, error, error**4 / (error_a**4 / df_a + error_b**4 / df_b)


def judged(id, found, n, setting="", bounds=None):
    """A verdict as `claims.judge` gives it, from (value, error, degrees of freedom).

    With `bounds` value and error are on their scale, and so the bar is taken there.
    """
    claim, (value, error, df) = claims.ledger()[id], found
    half = error * special.stdtrit(df, (1 + intervals.LEVEL) / 2)

    def above(limit):
        return float(special.stdtr(df, (intervals.on_scale(limit, bounds) - value) / error))

    p = min(1.0, 2 * min(claims.one_sided(claim, above)))
    ends = [intervals.off_scale(v, bounds) for v in (value, value - half, value + half)]
    verdict = claims.verdict_of(claim, *ends[1:])
    name = f"{id}[{setting}]" if setting else id
    return dict(zip(("value", "low", "high"), ends), id=name, verdict=verdict, n=n, p=p)


def single(id, table, where, column, *, n, bounds, setting=""):
    """One column against the bar, both on the scale of its range."""
    return judged(id, estimate(row_of(table, where), column, n, bounds), n, setting, bounds)


def paired(id, table, where, column, *, n, sign=1, setting=""):
    """A column that is a paired difference."""
    value, error, df = estimate(row_of(table, where), column, n)
    return judged(id, (sign * value, error, df), n, setting)


def unpaired(id, table, two, column, *, n, bounds=None, setting="", ratio=False):
    """Two rows' difference on the scale of `bounds`; `column` one name, or two. With `ratio` the
    rule is about their ratio, not its log."""
    columns = (column, column) if isinstance(column, str) else column
    rows = [row_of(table, where) for where in two]
    ends = [estimate(row, c, n, bounds) for row, c in zip(rows, columns, strict=True)]
    return judged(id, apart(*ends), n, setting, POSITIVE if ratio else None)


def of_training():
    """Those of notebooks 02 and 04, three seeds each."""
    at = lambda method: {"method": method, "steps": 1800}
    signed = lambda keep: {"rule": "signed", "keep": keep}
    rule = lambda name: {"rule": name}
    force = lambda kind, labels="given": {"reference": kind, "keep": 0.4, "labels": labels}
    of = dict(n=3)
    yield unpaired(
        "safedpo_soft.nearer_than_hard",
        RECIPES,
        (at("safedpo_soft"), at("safedpo")),
        "tv_opt",
        bounds=SHARE,
        **of,
    )
    yield single(
        "safedpo_finite.near_optimum", RECIPES, at("safedpo_finite"), "tv_opt", bounds=SHARE, **of
    )
    for k in OTHER_SHARES:
        two, words = (signed(k), signed(0.4)), f"keep={k}"
        of_share = dict(bounds=POSITIVE, setting=words, **of)
        yield unpaired("selective.share_beats", RULES, two, "kl_opt", **of_share)
    for k in (*OTHER_SHARES, 0.4):
        words, beta = f"keep={k}", {"rule": "beta", "keep": k}
        asked = dict(setting=words, **of)
        yield paired("beta_scaled.above_dpo_frontier", DIFFERENCES, beta, "frontier_gap", **asked)
        two = ({"rule": "random", "keep": k}, beta)
        yield unpaired("random_tokens.like_scaled_beta", DIFFERENCES, two, "reward", **asked)
    two = force("larger"), force("aligned")
    yield unpaired("selective.larger_helps", FORCE, two, "kl_opt", bounds=POSITIVE, **of)
    for labels in ("given", "coins"):
        both = (force("larger", labels),) * 2
        asked = dict(setting=f"score_reference=larger,labels={labels}", **of)
        ends, left = "selective.ends_at_score_reference", "selective.imitates_score_reference"
        yield unpaired(ends, FORCE, both, ("reward", "own"), **asked)
        asked |= dict(bounds=POSITIVE, ratio=True)
        yield unpaired(left, FORCE, both, ("kl_score", "kl_start"), **asked)
    for id, name in (("oracle_tokens.leaks_more", "oracle"), ("selective.leaks_less", "signed")):
        yield unpaired(id, PLAIN, (rule(name), rule("dpo")), "leak", bounds=SHARE, **of)


def of_selection():
    """Those of notebook 05, five seeds."""
    rule = lambda name: {"rule": name}
    of = dict(n=5)
    for name in ("dog_d", "dog"):
        two = rule(name), rule("facility")
        id = f"{name}.safer_than_facility"
        yield unpaired(id, SELECTION, two, "unsafe", bounds=PERCENT, **of)
    for name in ("safety_log_det", "sharp_log_det"):
        id = f"{name}.safer_than_log_det"
        yield paired(id, SELECTION, rule(name), "unsafe_minus_log_det", **of)
    copies = rule("random_copies")
    id = "random.safer_than_random_copies"
    yield paired(id, SELECTION, copies, "unsafe_minus_random", sign=-1, **of)
    for name in ("largest_margin", "smallest_margin", "easiest_half"):
        id = f"{name}.safer_than_random"
        yield paired(id, SELECTION, rule(name), "unsafe_minus_random", **of)
    yield paired(
        "log_det.keeps_up", SELECTION, rule("dog_d"), "unsafe_minus_log_det", sign=-1, **of
    )


def undecided():
    """Those of which a table holds no interval, or none that is paired over seeds."""
    for name in ("safety_log_det", "sharp_log_det"):
        log_det, own = (row_of(SELECTION, {"rule": r}).benign_refusal for r in ("log_det", name))
        yield f"{name}.refuses_no_more", own - log_det, None, None, 5
    row = row_of("05_real_text_accuracy", {"rule": "dog_d", "source": "all"})
    yield (
        "dog_d.orders_better",
        row.minus_random,
        row.minus_random_low,
        row.minus_random_high,
        int(row.n),
    )


def table():
    """A row a claim and setting; the claim's one verdict is that of `claims.together`."""
    rows = [*of_training(), *of_selection()]
    nothing = dict(verdict="undecided", p=None)
    for id, value, low, high, n in undecided():
        rows.append(dict(id=id, value=value, low=low, high=high, n=n) | nothing)
    groups = {}
    for one in rows:
        groups.setdefault(one["id"].partition("[")[0], []).append(one)
    out = []
    for id, some in groups.items():
        both = claims.together(claims.ledger()[id], some)["verdict"]
        known = dict(claim=id, kind=claims.ledger()[id].kind, verdict=both)
        rule = claims.ledger()[id].bar
        for one in some:
            setting = one["id"].removeprefix(id).strip("[]")
            numbers = {name: one[name] for name in ("value", "low", "high", "n", "p")}
            out.append(known | dict(setting=setting, at_setting=one["verdict"]) | numbers)
            out[-1]["rule"] = rule
    out.append(dict(claim="selective.orders_better", kind="kit", verdict="not_judged", n=0))
    return pd.DataFrame(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", default="", help="write the table there")
    args = parser.parse_args()
    found = table()
    if args.csv:
        found.to_csv(args.csv, index=False, float_format="%.6g")
    print(found.round(4).to_string(index=False, na_rep=""))
    print(found.drop_duplicates("claim").verdict.value_counts().to_string())


if __name__ == "__main__":
    main()
