"""Every number of README.md comes from a table, from what is counted now, or is stated with a reason; FINDINGS.md by its tables.

`python tests/test_numbers.py` prints how much of FINDINGS.md is found (helpers/prose.py), and writes the numbers that
are not found with their neighbours into tests/reference/numbers_without_table.txt, to be looked at in the diff.
"""

import functools
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from helpers import ROOT, prose

TABLES = ROOT / "notebooks" / "tables"
RULES = yaml.safe_load((ROOT / "tests" / "numbers.yaml").read_text())
WITHOUT = ROOT / "tests" / "reference" / "numbers_without_table.txt"
README, FINDINGS = (
    (ROOT / name).read_text() for name in ("README.md", "notebooks/tables/FINDINGS.md")
)


# ---------------------------------------------------------------- README: every number
def live(name):
    """What is counted now."""
    from safealign_utils.engine import room
    from safealign_utils.references import SHIPPED

    notebook = (ROOT / "notebooks" / "07_a_real_model.ipynb").read_text()
    sweeps = (TABLES / "sweeps.txt").read_text()
    return {
        "lines of loss.py": lambda: (
            len((ROOT / "safealign_utils/loss.py").read_text().split("\n")) - 1
        ),
        "claims": lambda: len(ledger()),
        "holds in notebook 07": lambda: notebook.count('"[holds] '),
        "does not hold in notebook 07": lambda: notebook.count('"[does not hold] '),
        "undecided in notebook 07": lambda: notebook.count('"[undecided] '),
        "runs of tests/benchmarks/sweeps.py": lambda: int(sweeps.split()[0]),
        "start-up in sweeps.txt": lambda: 5 * round(_overhead(sweeps) / 5),
        "default size of the cache": lambda: room.DEFAULT,
        "default threads": _default_threads,
        "last shipped seed": lambda: max(
            int(re.findall(r"\d+", f.stem)[0]) for f in SHIPPED.iterdir()
        ),
    }[name]()


def _default_threads():
    from safealign_utils.engine import torch_setup

    with mock.patch.dict(os.environ, clear=True):
        return torch_setup.threads()


def _overhead(text):
    return float(np.mean([float(v) for v in re.findall(r"workers?: .* overhead ([\d.]+)", text)]))


def ledger():
    from safealign_utils.study import claims

    return claims.ledger()


def value(source):
    """The value that a source of numbers.yaml has now."""
    if "live" in source:
        return live(source["live"])
    if "kind" in source:
        return sum(claim.kind == source["kind"] for claim in ledger().values())
    table = pd.read_csv(TABLES / source["table"])
    for column, wanted in source.get("where", {}).items():
        table = table[table[column] == wanted]
    assert len(table) == 1, f"{source}: {len(table)} rows"
    return float(table[source["of"]].iloc[0]) * source.get("times", 1)


@functools.cache
def rules():
    """(sentence, values) of every sentence with numbers from elsewhere."""
    out = []
    for rule in RULES["readme"]:
        values = [value(source) for source in rule["from"]]
        out.append((rule["says"], values))
    return out


def wrong(text):
    """What is wrong with the numbers of a README: a list of messages, empty where all is well."""
    clear, out = prose.blanked(text), []
    for says, values in rules():
        found = re.search(_pattern(says), text)
        if not found:
            out.append(f"README no longer says {says!r}: change tests/numbers.yaml")
            continue
        for said, wanted in zip(found.groups(), values):
            if not prose.shows(said, wanted):
                out.append(f"{says!r}: {said}, but its source has {wanted:g}")
        clear = _without(clear, found)
    for reason in RULES["stated"]:
        for says in reason["says"]:
            places = list(re.finditer(re.escape(says), text))
            if not places:
                out.append(f"README no longer says {says!r}: change tests/numbers.yaml")
            for place in places:
                clear = _without(clear, place)
    left = [(start, said) for start, _, said in prose.spots(clear)]
    return out + [f"{said}: no source, in {text[max(0, a - 40) : a + 20]!r}" for a, said in left]


def _pattern(says):
    """The sentence as a pattern, with a group at each number."""
    return re.escape(says).replace(r"\{\}", r"([−-]?\d[\d,]*(?:\.\d+)?)")


def _without(text, match):
    return text[: match.start()] + " " * (match.end() - match.start()) + text[match.end() :]


def test_every_number_of_the_readme_has_its_source():
    assert wrong(README) == []


def mutated(text, start, said, g):
    """The text with the last digit of a number changed."""
    at = start + max(i for i, c in enumerate(said) if c.isdigit())
    return text[:at] + str((int(text[at]) + g.choice([1, 2, 3, 7, 8, 9])) % 10) + text[at + 1 :]


def test_a_number_of_the_readme_changed_by_hand_is_found():
    """Each of them in turn."""
    g = random.Random(0)
    places = prose.spots(prose.blanked(README))
    assert len(places) > 60
    for start, _, said in places:
        assert wrong(mutated(README, start, said, g)), README[start - 30 : start + 10]


def test_a_number_without_source_is_found():
    text = README.replace("## Sweep", "In 17 of 20 runs it was faster.\n\n## Sweep")
    assert [message.split(":")[0] for message in wrong(text)] == ["17", "20"]


# ---------------------------------------------------------------- FINDINGS: by the tables of each section
def errors_by_seed():
    """C-DPO's errors by seed, mean and interval: they follow from a committed table."""
    from safealign_utils.intervals import POSITIVE, over_seeds

    kkt, rows = pd.read_csv(TABLES / "03_kkt_full.csv"), []
    for limit, of in kkt.groupby("limit"):
        for off in ((of.lam - of.lam_star).abs(), of.slack.abs()):
            row = dict(zip(("value", "low", "high"), over_seeds(off, POSITIVE)))
            rows.append({"limit": limit, "lam_star": of.lam_star.mean(), **row})
    return [pd.DataFrame(rows)]


def across():
    """Committed tables with what stands in several of their rows in one, as the page shows them."""
    worlds = pd.read_csv(TABLES / "two_worlds.csv")
    costs = pd.read_csv(TABLES / "cost_model.csv")
    seen = dict(columns=["world", "split", "read"], values=["reward", "unsafe", "tv_opt"])
    return [
        worlds.pivot(index="method", **seen),
        costs.pivot(index=["loss", "map"], columns="limit", values="cost"),
    ]


FOLLOWS = {"errors by seed": errors_by_seed, "across": across}


@functools.cache
def sources(section):
    """The tables of a section of FINDINGS.md; None for what has none."""
    starts = next((v for k, v in RULES["findings"].items() if section.startswith(k)), None)
    if starts is None:
        return None
    files = sorted(f.name for f in TABLES.iterdir() if f.suffix in (".csv", ".txt"))
    names = tuple(f for f in files if any(f.startswith(start) for start in starts))
    assert names, section
    more = [frames for name, frames in FOLLOWS.items() if name in starts]
    return prose.Sources(names, *more)


def lines(said):
    """The numbers that are not found with their neighbours, as they stand in the text."""
    return [
        f"{x.found or 'no table':<8} | {x.section[:20]} | {x.number} | {x.around}"
        for x in said
        if x.found != "strong"
    ]


@functools.cache
def findings():
    return prose.read(FINDINGS, sources)


def test_the_numbers_of_findings_that_are_not_found_with_their_neighbours_are_listed():
    """So one changed by hand is seen, whether a table has it (it is one more) or not (its line differs)."""
    assert lines(findings()) == WITHOUT.read_text().splitlines()


def test_most_of_findings_is_found_with_its_neighbours():
    found = Counter(x.found for x in findings())
    assert found["strong"] > 0.65 * len(findings()), found


def test_a_number_of_findings_changed_by_hand_is_found():
    """A sample of those that were found with their neighbours, as each needs its section to be read again."""
    caught, n = caught_of(random.Random(0), 60)
    assert caught > 0.9 * n, (caught, n)


def caught_of(g, n):
    """How many of n numbers that were found with their neighbours are not once their last digit is changed."""
    caught = 0
    parts = [(FINDINGS[a:b], name) for name, a, b in prose.sections(FINDINGS) if sources(name)]
    parts = [(text, name, strong) for text, name in parts if (strong := strongly(text, name))]
    for text, name, strong in g.choices(parts, weights=[len(text) for text, *_ in parts], k=n):
        places, i = prose.spots(prose.blanked(text)), g.choice(strong)
        start, _, said = places[i]
        after = part(mutated(text, start, said, g), name)
        caught += after[i].found != "strong"
    return caught, n


def strongly(text, name):
    """Which numbers of a section are found with their neighbours."""
    return [i for i, x in enumerate(part(text, name)) if x.found == "strong"]


@functools.lru_cache(maxsize=16)
def part(text, name):
    """The numbers of one section."""
    return prose.read(f"## {name}{text}", sources)


def main():
    said = findings()
    WITHOUT.write_text("".join(line + "\n" for line in lines(said)))
    print(json.dumps(Counter(x.found or "no table" for x in said)))
    for n in RULES["findings"]:
        of = Counter(x.found or "no table" for x in said if x.section.startswith(n))
        print(f"{n:<18}", dict(of))
    caught, n = caught_of(random.Random(0), 300)
    print(
        f"of {n} numbers found with their neighbours, changed in the last digit: {caught} noticed"
    )


if __name__ == "__main__":
    main()
