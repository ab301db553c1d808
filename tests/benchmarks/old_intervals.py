"""Give the committed tables of before the intervals of `safealign_utils.intervals`, and say what that changes on the page.

    python tests/benchmarks/old_intervals.py        # the tables, the README's numbers, notebooks/tables/intervals_old_new.csv

The tables hold a mean and the ends of a plain t-interval over seeds; a new interval needs the mean, the half width and
the quantity's range, so nothing is run again. Old tables and the old README are read from the commit BEFORE. Bootstraps
over pairs or prompts need every pair's outcome, which no table holds: they stay, and the list says so.
"""

import csv
import io
import re
import subprocess
from pathlib import Path

import pandas as pd

from safealign_utils import intervals
from safealign_utils.study import claims

BEFORE = "ece4d6f"
ROOT = Path(__file__).parents[2]
RESULTS = Path("notebooks/tables")
PERCENT = ("05_selection_full.csv", "05_budgets_full.csv", "dog_pools.csv")
DIFFERENCES = (
    "04_differences_to_dpo_full.csv",
    "token_noise.csv",
    "token_nuisance.csv",
    "06_effects_full.csv",
    "06_effects_all_tokens_full.csv",
    "06_simple_effects_full.csv",
)
VERDICTS = "verdicts_full.csv"  # its intervals are judged anew by the next full run; here they explain the README
TABLES = {  # of a section of the README, the first that holds a number wins
    "Levers together": ("06_effects_full", "06_methods", "06_"),
    "SafeDPO": ("02_",),
    "C-DPO": ("03_",),
    "Selective-DPO": ("04_", "token_"),
    "DOG-DPO, a reconstruction": ("05_selection", "05_", "dog_"),
    "DPO": ("01_",),
    "Real text": ("refusals", "0"),
}
REFUSALS = {  # (wrong, responses) of the rules for refusals: tests/real/test_refusals.py
    "refusals to unsafe prompts": (17, 198),
    "refusals to safe prompts": (13, 116),
    "answers to unsafe prompts": (0, 9),
    "answers to safe prompts": (10, 202),
}
SETTINGS = ("beta", "budget", "delta", "keep", "limit", "pairs", "steps")
NUMBER = r"[−-]?\d[\d,]*(?:\.\d+)?"
PAIR = re.compile(rf"(?P<low>{NUMBER}) to (?P<high>{NUMBER})(?=[),| ](?!for))")


def before(path):
    return subprocess.run(
        ["git", "show", f"{BEFORE}:{path}"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def names():
    listed = subprocess.run(
        ["git", "ls-tree", "--name-only", f"{BEFORE}:{RESULTS}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return [name for name in listed if name.endswith(".csv")]


def bootstrapped(name):
    return "real_text" in name and not name.endswith("coverage.csv")


def convert(name):
    """(the new text, its cells): a cell is (row, quantity, mean, old ends, new ends)."""
    rows = list(csv.DictReader(io.StringIO(before(RESULTS / name))))
    table, cells = pd.DataFrame(rows), []
    digits = 5 if name in ("dog_pools.csv", "token_noise.csv", "token_nuisance.csv") else None
    for q in [c for c in table if {f"{c}_low", f"{c}_high"} <= set(table)]:
        means = pd.to_numeric(table[q])
        bounds = intervals.range_of(
            q, means.dropna(), percent=name in PERCENT, difference=name in DIFFERENCES
        )
        for row in rows:
            if row[q] == "" or row[f"{q}_low"] == "":
                continue
            mean, low, high = (float(row[c]) for c in (q, f"{q}_low", f"{q}_high"))
            new = low, high
            if not bootstrapped(name) and bounds is not None and low < high:
                new = intervals.from_half_width(mean, (high - low) / 2, bounds)
                new = new if digits is None else tuple(round(v, digits) for v in new)
                row[f"{q}_low"], row[f"{q}_high"] = map(repr, new)
            where = " ".join(
                v for c, v in list(row.items())[:4] if re.match("[^-0-9]", v) or c in SETTINGS
            )
            cells.append(
                (f"{name}: {where}", q, mean, (low, high), None if bootstrapped(name) else new)
            )
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue(), cells


def judged():
    """The cells of the verdicts: the claim's range says which interval its values have."""
    cells = []
    for row in csv.DictReader(io.StringIO(before(RESULTS / VERDICTS))):
        claim = claims.ledger().get(row["id"])
        if claim is None or not row["low"]:
            continue
        mean, low, high = (float(row[c]) for c in ("value", "low", "high"))
        new = low, high
        if claim.scope == "statistical" and "bootstrap" not in claim.metric:
            new = intervals.from_half_width(mean, (high - low) / 2, claim.range or None)
        cells.append(
            (f"{VERDICTS}: {row['id']} {row['setting']}".strip(), "value", mean, (low, high), new)
        )
    return cells


def rounds():
    """The cells of C-DPO's errors at each limit: this table has a row a seed."""
    cells, table = [], pd.read_csv(io.StringIO(before(RESULTS / "03_kkt_full.csv")))
    errors = {
        "lambda_error": (table.lam - table.lam_star).abs(),
        "train_cost_error": table.slack.abs(),
    }
    for limit, rows in table.groupby("limit"):
        for q, error in errors.items():
            mean, *old = intervals.over_seeds(error[rows.index])
            new = intervals.over_seeds(error[rows.index], intervals.POSITIVE)[1:]
            cells.append((f"03_kkt_full.csv: limit {limit:g}", q, mean, tuple(old), new))
    return cells


def real_text():
    """The cells of tables that name their ends low and high: bootstraps, and Wilson's, which are as before."""
    cells = []
    for group, (wrong, n) in REFUSALS.items():
        ends = intervals.of_share(wrong, n)
        cells.append((f"refusals.MEASURED: {group}", "share", wrong / n, ends, ends))
    for name, keys, q in (
        ("02_real_text_scorers.csv", 2, "value"),
        ("05_real_text_accuracy.csv", 2, "accuracy"),
    ):
        for row in csv.DictReader(io.StringIO(before(RESULTS / name))):
            where = " ".join(list(row.values())[:keys])
            ends = float(row["low"]), float(row["high"])
            cells.append((f"{name}: {where}", q, float(row[q]), ends, None))
    return cells


def written(value, like, scale, minus):
    decimals = len(like.partition(".")[2])
    text = f"{abs(scale * value):.{decimals}f}"
    return (minus if scale * value < 0 else "") + text


def candidates(cells, low, high, units=0):
    """The cells whose old ends are printed as `low` and `high`, or `units` of the last digit away: (cell, scale)."""
    plain = [t.replace("−", "-") for t in (low, high)]
    for cell in cells:
        for scale in (1, 100, -1, -100) if cell[0].startswith(VERDICTS) else (1, 100):
            ends = cell[3] if scale > 0 else cell[3][::-1]
            shown = [written(v, t, scale, "-") for v, t in zip(ends, plain)]
            room = (units + 0.1) * 10.0 ** -len(low.partition(".")[2])
            if all(abs(float(a) - float(b.replace(",", ""))) <= room for a, b in zip(shown, plain)):
                yield cell, scale


def _preferred(fits, section, left):
    """Of the cells that fit, those of the section's own tables; in a row, of the method that it names."""
    row = re.sub(
        r"[^a-z0-9]+", "_", left.split("|")[1].lower() if left.startswith("|") else ""
    ).strip("_")
    named = lambda fit: (
        row.startswith(re.split(r"[ .]", fit[0][0].partition(": ")[2])[0]) * len(fit[0][0])
    )
    fits = sorted(fits, key=named, reverse=True)
    for start in (*TABLES.get(section, ()), VERDICTS):
        if mine := [(cell, scale) for cell, scale in fits if cell[0].startswith(start)]:
            return mine
    return fits


def page(text, cells):
    """(the new text, rows of the table old against new)."""
    rows, section, out = [], "", []
    for line in text.splitlines(keepends=True):
        section = line.lstrip("# ").strip() if line.startswith("#") else section

        def one(found, line=line, section=section):
            low, high = found["low"], found["high"]
            left = line[: found.start()]
            values = re.findall(NUMBER, left)
            value = values[-1] if values else ""
            near = []
            for units in (0, 1):
                fits = candidates(cells, low, high, units)
                near = near or [
                    (c, s) for c, s in fits if value and _equal(value, written(c[2], value, s, "-"))
                ]
            near = _preferred(near, section, left)
            if not near:
                if "(" in left[-3:] or "," in left[-3:] or "|" in left[-3:]:
                    rows.append(
                        (section, _words(left), value, found[0], "", "no table holds what it needs")
                    )
                return found[0]
            minus = "-" if "-" in low + high + value else "−"
            options = {}
            for cell, scale in near:
                if cell[4] is None:
                    options.setdefault(
                        found[0],
                        (cell, "a bootstrap over pairs: needs every outcome, so a new run"),
                    )
                    continue
                ends = cell[4] if scale > 0 else cell[4][::-1]
                shown = " to ".join(written(v, t, scale, minus) for v, t in zip(ends, (low, high)))
                options.setdefault(shown, (cell, f"{cell[0]}, {cell[1]}"))
            shown, (cell, source) = next(iter(options.items()))
            rows.append((section, _words(left), value, found[0], shown, source))
            return shown

        out.append(PAIR.sub(one, line))
    return "".join(out), rows


def _equal(a, b):
    return abs(float(a.replace("−", "-").replace(",", ""))) == abs(float(b))


def _words(left):
    """The words before a number: the row of a table, else the end of the sentence."""
    cells = [c.strip() for c in left.split("|")]
    return (
        " | ".join([cells[1], str(len(cells) - 2)]) if left.startswith("|") else left[-60:].strip()
    )


def main():
    cells, tables = [], {}
    for name in names():
        text, found = convert(name)
        tables[name] = text
        cells += found
    for name, text in tables.items():
        if text != before(RESULTS / name) and name != VERDICTS:
            (ROOT / RESULTS / name).write_text(text, encoding="utf-8")
            print(f"converted {name}")
    new, rows = page(before("README.md"), cells + rounds() + judged() + real_text())
    head = ["section", "quantity", "value", "old", "new", "source"]
    pd.DataFrame(rows, columns=head).to_csv(ROOT / RESULTS / "intervals_old_new.csv", index=False)
    now = (ROOT / "README.md").read_text(encoding="utf-8")
    old_lines, lines = before("README.md").splitlines(), new.splitlines()
    for was, is_now in zip(old_lines, lines):
        if was != is_now and was in now:
            now = now.replace(was, is_now)
        elif was != is_now:
            print(f"README: this line was edited since; change it by hand: {is_now[:100]}")
    (ROOT / "README.md").write_text(now, encoding="utf-8")


if __name__ == "__main__":
    main()
