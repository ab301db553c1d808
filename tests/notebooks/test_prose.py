"""Every number in a notebook's prose is shown beside it, or stands in a committed table that the cell links.

Beside it: by the cells of its section or of the one before. A whole number may also be a setting of the notebook or
of a profile, or stand anywhere on the page.

`python tests/notebooks/test_prose.py` prints the table: notebook, number, where it was found, the words around it.
"""

import functools
import json
import re
from collections import Counter

import numpy as np
import pytest
from helpers import ROOT, prose

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[0-6]_*.ipynb"))
ELSEWHERE = (  # what is no result of this project: a paper's own numbers, settings of a formula
    r"(?s)^## What the paper reports\n.*?(?=\n## |\Z)",
    r"(?s)\nDepartures from the paper.*",
    r"(?m)^\| `(small|full)` \|.*$",  # seconds and memory, held by test_reading_guide.py
    r"\$\$?[^$]+\$\$?",  # formulas
    r"\bseeds \d+ to \d+|\blevel 3 nearly the code|\*\*Step \d",
    r"would keep 4 or 5 of 11",  # an example
    r"log\(1/2\) = −0\.69",
    r"\bwidth 64\b",  # the network
    r"authors' default of 0\.01",  # Safe RLHF's KL coefficient
)
PROFILES = prose.spots(
    prose.blanked(
        "".join(
            (NOTEBOOKS[0].parent / "profiles" / f"{name}.yaml").read_text()
            for name in ("small", "full")
        )
    )
)
SETTINGS = [prose.plain(said)[0] for _, _, said in PROFILES]


def numbers(text):
    """The numbers of a text, or of HTML without its elements."""
    text = prose.blanked(re.sub(r"<[^>]+>", " ", text).replace("**", " "))
    return [prose.plain(said)[0] for _, _, said in prose.spots(text)]


def printed(output):
    """All text of an output."""
    data = output.get("data", {})
    parts = [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    text = " ".join("".join(part) for part in parts)
    return re.sub(r"(?s)<script>.*?</script>", "", text)


def sections(path):
    """The cells of each part of a notebook, from one heading to the next."""
    out = [[]]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        parts = re.split(r"(?m)^(?=## )", "".join(cell["source"]))
        if cell["cell_type"] == "code" or len(parts) == 1:
            out[-1].append(cell)
            continue
        for n, part in enumerate(parts):
            if n:
                out.append([])
            if part.strip():
                out[-1].append({**cell, "source": part})
    return out


def values(cells):
    """(what the outputs of some cells show, what their code sets): the numbers."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    shown = [n for cell in code for output in cell["outputs"] for n in numbers(printed(output))]
    source = "\n".join("".join(cell["source"]) for cell in code)
    literals = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])", source)
    return np.unique(shown), np.unique([float(n) for n in literals])


def prose_of(cell):
    """A Markdown cell's text with all that is not to be found blanked out."""
    text = "".join(cell["source"])
    for pattern in ELSEWHERE:
        text = re.sub(pattern, prose._blank, text)
    return text


def found(said, text, shown, literals):
    """Where a number stands: in a table that the cell links, beside it, as a setting; or nowhere."""
    percent = ("%" in text or " points" in text) and len(said.partition(".")[2]) < 3
    names = tuple(sorted(set(re.findall(r"tables/([\w.]+\.(?:csv|txt|md))", text))))
    if names and sources(names).anywhere(said, percent):
        return "table"
    if prose.shows(said, prose.turned(shown, percent)).any():
        return "beside"
    return "setting" if prose.shows(said, prose.turned(literals, percent)).any() else ""


@functools.cache
def sources(names):
    return prose.Sources(names)


def spots(path):
    """(number, words around it, text, values beside it) of every number in a notebook's prose."""
    parts = sections(path)
    everywhere = np.concatenate([*values(sum(parts, [])), SETTINGS])
    for before, cells in zip([[], *parts], parts):
        shown, literals = values(before + cells)
        for cell in (cell for cell in cells if cell["cell_type"] == "markdown"):
            text = prose_of(cell)
            for start, end, said in prose.spots(prose.blanked(text)):
                whole = everywhere if "." not in said else literals
                around = " ".join(text[max(0, start - 60) : end + 40].split())
                yield said, around, text, (shown, np.concatenate([literals, whole]))


def rows(path):
    """(number, where it is found, the words around it) of every number."""
    return [(said, found(said, text, *known), words) for said, words, text, known in spots(path)]


def digits(said):
    return sum(c.isdigit() for c in said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_number_of_the_prose_is_shown(path):
    table = rows(path)
    assert len(table) >= 5
    assert [row for row in table if not row[1]] == []


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_a_result_changed_by_hand_is_noticed(path):
    """Of numbers with three digits or more, each with another last digit: most are nowhere then."""
    noticed = []
    for said, _, text, known in spots(path):
        if digits(said) >= 3:
            other = said[:-1] + str((int(said[-1]) + 3) % 10)
            noticed.append(not found(other, text, *known))
    assert len(noticed) > 4
    assert np.mean(noticed) > 0.5, f"{np.mean(noticed):.2f} of {len(noticed)}"


if __name__ == "__main__":
    for path in NOTEBOOKS:
        table = rows(path)
        print(path.stem, dict(Counter(where or "nowhere" for _, where, _ in table)))
        for said, where, around in table:
            print(f"  {said:>8} | {where or 'nowhere':<7} | {around}")
