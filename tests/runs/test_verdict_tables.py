"""The tables of verdicts: one row a claim from records, and from the intervals of committed tables."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from scipy import stats

from safealign_utils import intervals
from safealign_utils.study import claims


def benchmark(name):
    file = ROOT / "tests" / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verdicts, grids = benchmark("verdicts"), benchmark("grid_verdicts")


def records(**values):
    """A record whose claims were judged on these values, one list a claim."""
    judged = [claims.judge(id, v) for id, v in values.items()]
    return [{"claims": judged}]


def test_a_row_a_claim_and_the_correction():
    found = {
        "safedpo.unsafe": [0.001, 0.002, 0.0015, 0.001],
        "safedpo.helpful": [1.5, 1.6, 1.4, 1.7],
        "dpo_safebetter.more_helpful": [0.05, -0.04, 0.06, 0.01],
        "delta.same_optimum": [0.0, 0.0],
    }
    table = verdicts.table(claims.by_claim(records(**found)), "f00dcaf")
    assert list(table.columns) == verdicts.COLUMNS.split()
    heads = table[table.confirmed.notna()].set_index("claim")
    assert list(heads.index) == list(claims.ledger()), "each claim once, in the ledger's order"
    assert (table.frozen == "f00dcaf").all()
    known = [heads.p[id] for id in list(found)[:3]]
    assert heads.loc[list(found)[:3], "adjusted_p"].tolist() == claims.adjusted(known)
    assert np.isnan(heads.adjusted_p["delta.same_optimum"]), "a theorem is not among the claims"
    assert heads.confirmed["safedpo.unsafe"] == "holds"
    assert heads.confirmed["cdpo.lambda"] == "not_judged"
    assert heads.confirmed["safedpo.harmless_7b"] == "needs_scale"


def test_what_the_correction_takes_back():
    assert verdicts.confirmed("holds", 0.049) == "holds"
    assert verdicts.confirmed("holds", 0.051) == "undecided"
    assert verdicts.confirmed("holds", None) == "holds", "exact values have no p"
    assert verdicts.confirmed("needs_scale", None) == "needs_scale"


def test_settings_are_listed_under_their_claim():
    judged = [
        claims.judge("cdpo.cost", v, cost_limit=at)
        for at, v in ((0.0, [0.001, 0.002, -0.001]), (-0.4, [0.2, 0.21, 0.19]))
    ]
    rows = verdicts.rows_of(claims.ledger()["cdpo.cost"], judged)
    assert [row["verdict"] for row in rows] == ["does_not_hold", "holds", "does_not_hold"]
    assert rows[0]["setting"] == "all 2; decided at cost_limit=-0.4"
    assert [row["setting"] for row in rows[1:]] == ["cost_limit=0", "cost_limit=-0.4"]


def test_what_could_have_been_seen():
    """Of a claim that stays undecided: at that distance four of five repetitions are decided."""
    g, n, spread = np.random.default_rng(0), 8, 0.3
    judged = claims.judge("dpo_safebetter.more_helpful", g.normal(0, spread, n) * 0.01)
    judged |= {"verdict": "undecided"}
    half = intervals.half_width(judged["low"], judged["high"])
    assert half < verdicts.detectable(judged) < 2 * half
    error = spread / n**0.5
    distance = error * (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1))
    words = [
        claims.judge("dpo_safebetter.more_helpful", distance + g.normal(0, spread, n))["verdict"]
        for _ in range(1000)
    ]
    assert words.count("holds") / 1000 == pytest.approx(0.8, abs=0.06)
    assert verdicts.detectable(judged | {"verdict": "holds"}) is None


def test_two_columns_are_compared_by_welchs_t():
    """The intervals of two samples, as a table holds them, give scipy's p of the samples."""
    g = np.random.default_rng(3)
    one, other = g.normal(1.0, 0.3, 5), g.normal(0.5, 0.1, 5)
    both = [
        dict(zip(("q", "q_low", "q_high"), intervals.over_seeds(v), strict=True))
        for v in (one, other)
    ]
    value, error, df = grids.apart(*(grids.estimate(row, "q", 5) for row in both))
    p = 2 * stats.t.sf(abs(value / error), df)
    assert p == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue, rel=1e-9)


def test_one_column_has_the_verdict_of_its_values():
    """From mean and interval alone, on the logit scale: as the ledger judges the values."""
    values = np.array([0.05, 0.09, 0.07])
    mean, low, high = intervals.over_seeds(values, (0, 1))
    row = {"tv": mean, "tv_low": low, "tv_high": high}
    id = "safedpo_finite.near_optimum"
    judged = grids.judged(id, grids.estimate(row, "tv", 3, (0, 1)), 3, "", (0, 1))
    wanted = claims.judge(id, values)
    for name in ("value", "low", "high", "p"):
        assert judged[name] == pytest.approx(wanted[name], rel=1e-9), name
    assert judged["verdict"] == wanted["verdict"]


def test_the_committed_tables_are_what_the_scripts_give():
    """Verdicts of the larger grids from the tables that lie there now; counts of claims."""
    table = grids.table()
    heads = table.drop_duplicates("claim").set_index("claim")
    committed = pd.read_csv(grids.COMMITTED / "verdicts_grids.csv")
    assert committed.verdict.tolist() == table.verdict.tolist()
    known = committed.p.notna()
    assert np.allclose(committed.p[known], table.p[known].astype(float), atol=1e-5)
    unseen = set(heads.index) - set(claims.ledger())
    assert unseen == set()
    with pytest.raises(ValueError, match="name one"):
        grids.row_of("04_rules_full", {"rule": "signed"})


def test_the_list_of_changed_rules_is_that_of_the_ledger():
    """What was dropped is gone, what is new or changed stands as the list says, each with a reason."""
    listed, ledger = pd.read_csv(grids.COMMITTED / "ledger_changes.csv"), claims.ledger()
    assert listed.claim.is_unique and listed.why.str.len().min() > 10
    gone = listed.change.isin(["dropped", "merged"])
    assert set(listed.claim[gone]).isdisjoint(ledger) and set(listed.claim[~gone]) <= set(ledger)
    for row in listed[~gone].itertuples():
        claim = ledger[row.claim]
        assert row.kind == claim.kind
        bar = f"{claim.side} {claim.rule[claim.side]} ({claim.scope})"
        assert row.new_rule == f"{claim.metric}: {bar}", row.claim
        assert (row.change == "new") == (not isinstance(row.old_rule, str)), row.claim
        assert row.change != "changed" or row.old_rule != row.new_rule, row.claim


def test_notebooks_judged_earlier_stand(tmp_path):
    """Rows of a table by the same rules, where there is no newer record; p is corrected over all."""
    once = verdicts.table(
        claims.by_claim(records(**{"safedpo.unsafe": [0.001, 0.002, 0.0015]})), "f00"
    )
    once.to_csv(tmp_path / "once.csv", index=False)
    with pytest.raises(SystemExit, match="judged by f00, not bad"):
        verdicts.earlier_rows(tmp_path / "once.csv", "bad")
    earlier = verdicts.earlier_rows(tmp_path / "once.csv", "f00")
    assert list(earlier) == ["safedpo.unsafe"]
    newer = claims.by_claim(records(**{"safedpo.helpful": [1.5, 1.6, 1.4]}))
    both = verdicts.table(newer, "f00", earlier).set_index("claim")
    found = {"safedpo.unsafe": [0.001, 0.002, 0.0015], "safedpo.helpful": [1.5, 1.6, 1.4]}
    at_once = verdicts.table(claims.by_claim(records(**found)), "f00").set_index("claim")
    for name in ("value", "p", "adjusted_p"):
        np.testing.assert_allclose(both.loc[list(found), name], at_once.loc[list(found), name])
