"""One table of verdicts, a row a claim and below it its settings, from the records of finished runs.

    python tests/benchmarks/verdicts.py FOLDER... --frozen COMMIT [--earlier TABLE] [--csv FILE] [--counts FILE]

FOLDER: one that holds record.json, or runs that do; COMMIT: the one whose rules judged. p is two-sided, for the value
against its bar; `adjusted_p` is Benjamini and Hochberg's, over all claims with a p, theorems and properties of the
world apart. `confirmed` is the verdict that stands after that correction. `detectable`: how far from its bar a value
would have had to be to be decided in four of five repetitions, for what is undecided (power; same seeds, same noise).
`--earlier`: a table of this command; what it has of the same rules stands where FOLDER has no record of the notebook.
`--counts` writes the claims by kind and verdict, before (the rules of then on seeds 0 to 2, `verdicts_full.csv`) and
after.
"""

import argparse
import json
from pathlib import Path

import pandas as pd
from scipy import special

from safealign_utils import intervals
from safealign_utils.study import claims
from safealign_utils.study.records import COMMITTED

DECIDING = ("holds", "does_not_hold", "undecided")
COLUMNS = "claim kind setting verdict confirmed value low high n p adjusted_p detectable rule notebook frozen"


def records_of(folders):
    """The records of the runs in some folders."""
    files = sorted(file for folder in folders for file in Path(folder).rglob("record.json"))
    return [json.loads(file.read_text("utf-8")) for file in files]


def detectable(one):
    """Distance from the bar with a power of 80 %, in the value's unit; None where decided."""
    if one["verdict"] != "undecided" or one["low"] is None or one["n"] < 2:
        return None
    power = special.stdtrit(one["n"] - 1, 0.8) / special.stdtrit(one["n"] - 1, 0.975)
    return (one["high"] - one["low"]) / 2 * (1 + power)


def row(claim, one, setting):
    words = {"claim": claim.id, "kind": claim.kind, "setting": setting, "rule": claim.bar}
    numbers = {name: one[name] for name in ("verdict", "value", "low", "high", "n", "p")}
    return words | numbers | {"detectable": detectable(one), "notebook": claim.notebook}


def rows_of(claim, judged):
    """The claim's one verdict, then those at its settings where there are several."""
    if not judged:
        word = "needs_scale" if claim.scope == "only at scale" else "not_judged"
        nothing = dict.fromkeys(("value", "low", "high", "p"))
        return [row(claim, {"verdict": word, "n": 0} | nothing, "")]
    both = claims.together(claim, judged)
    setting = both["at"].removeprefix(claim.id).strip("[]")
    if len(judged) == 1:
        return [row(claim, both, setting)]
    of_each = [row(claim, one, one["id"].removeprefix(claim.id).strip("[]")) for one in judged]
    return [row(claim, both, f"all {len(judged)}; decided at {setting}"), *of_each]


def confirmed(verdict, p):
    """The verdict that stands where p is corrected."""
    decided = verdict in ("holds", "does_not_hold")
    return "undecided" if decided and p is not None and p >= 1 - intervals.LEVEL else verdict


def table(judged, frozen, earlier=None):
    """The table of `judged` {claim: verdicts}, over the whole ledger, and of `earlier` {claim: rows}."""
    earlier, ledger = earlier or {}, claims.ledger()
    groups = [
        earlier[id] if id in earlier and not judged.get(id) else rows_of(claim, judged.get(id, []))
        for id, claim in ledger.items()
    ]
    heads = [rows[0] for rows in groups]
    counted = [head["p"] if head["kind"] in claims.COUNTED else None for head in heads]
    for head, adjusted in zip(heads, claims.adjusted(counted), strict=True):
        head["adjusted_p"] = adjusted
        head["confirmed"] = confirmed(head["verdict"], adjusted)
    out = pd.DataFrame([row | {"frozen": frozen} for rows in groups for row in rows])
    return out[COLUMNS.split()]


def earlier_rows(file, frozen):
    """{claim: its rows} of a table that the same rules judged, what they did not judge left out."""
    table = pd.read_csv(file)
    if {*table.frozen} != {frozen}:
        raise SystemExit(f"--earlier {file}: judged by {', '.join({*table.frozen})}, not {frozen}")
    table = table.astype(object).where(table.notna(), None)
    groups = {id: rows.to_dict("records") for id, rows in table.groupby("claim", sort=False)}
    return {id: rows for id, rows in groups.items() if rows[0]["verdict"] in DECIDING}


def counts(table):
    """Claims by kind and confirmed verdict."""
    heads = table[table.confirmed.notna()]
    return pd.crosstab(heads.kind, heads.confirmed)


WORST = ("does_not_hold", "undecided", "not_judged", "needs_scale", "holds")


def before():
    """Claims by kind and verdict under the rules of before, settings together, from their table."""
    old = pd.read_csv(COMMITTED / "verdicts_full.csv").replace("not_measured", "not_judged")
    changed = pd.read_csv(COMMITTED / "ledger_changes.csv").set_index("claim").kind
    known = {id: claim.kind for id, claim in claims.ledger().items()} | changed.to_dict()
    by_claim = old.groupby("id", sort=False).verdict.agg(lambda v: min(v, key=WORST.index))
    kinds = by_claim.index.map(known).to_numpy()
    return pd.crosstab(kinds, by_claim.to_numpy(), rownames=["kind"])


def before_and_after(table):
    """Both counts, one below the other."""
    both = {"before": before(), "after": counts(table)}
    out = pd.concat(both, names=["rules"]).fillna(0).astype(int)
    return out.reindex(columns=["holds", *WORST[:-1]], fill_value=0).reset_index()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="of records")
    parser.add_argument("--frozen", required=True, help="commit whose rules judged")
    parser.add_argument("--earlier", default="", help="table of other notebooks, the same rules")
    parser.add_argument("--csv", default="", help="write the table there")
    parser.add_argument("--counts", default="", help="write the counts there")
    args = parser.parse_args()
    earlier = earlier_rows(args.earlier, args.frozen) if args.earlier else {}
    found = table(claims.by_claim(records_of(args.folders)), args.frozen, earlier)
    if args.csv:
        found.to_csv(args.csv, index=False, float_format="%.6g")
    shown = found[found.confirmed.notna() & found.value.notna()]
    print(shown.drop(columns=["notebook", "frozen"]).round(4).to_string(index=False, na_rep=""))
    both = before_and_after(found)
    if args.counts:
        both.to_csv(args.counts, index=False)
    print(both.to_string(index=False))


if __name__ == "__main__":
    main()
