"""Numbers of a page in Markdown, and where a committed table has them.

A number is *strongly* found where a whole group of numbers is found together: "a (b to c)" as a quantity with its
interval in one row of a table, a table of the page by one column of a CSV each. Else any cell of the
section's tables may show it; a short number is then found by chance now and then.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from . import ROOT

# What holds digits and is no measured number. Each pattern says which.
NOT_A_NUMBER = (
    r"```.*?```",  # code
    r"`[^`\n]*`",  # code, a name, a command
    r"\]\([^)]*\)",  # where a link goes
    r"https?://\S+",
    r"\b\d{4}\.\d{5}\b",  # arXiv ids
    r"\b\d{4}-\d\d-\d\d\b",  # dates
    r"(?<![\w.-])(?!\d[\d.]*e[-−]?\d)(?=[\w.-]*[A-Za-z])(?=[\w.-]*\d)[A-Za-z0-9][\w.-]*\w",  # GPT-2, 7B, a commit
    r"\bCC BY(-NC)? \d\.\d\b|\bApache-\d\.\d\b",  # licences
    r"\bPython \d\.\d+|\b\d\.\d\d, \d\.\d\d and \d\.\d\d resolve",  # versions
    r"\b[Nn]otebooks? \d\d( and \d\d)?|\b0\d · |\(0[1-8](, 0[1-8])*\)|\b(of|for|and|notebook) 0[0-9]\b",  # their names
    r"\b9[59] % (bootstrap )?(t-)?intervals?|\(95 % interval\)",  # what kind of interval
    r"(?m)^\d+\. ",  # a list's own numbers
    r"10[¹²³⁴⁵⁶⁷⁸⁹⁰]+",
    r"(β|Δ|λ|δ|C|q)( = | )\d[\d.]*",  # a setting by its symbol
    r"Table \d+",
)
NUMBER = r"(?<![\w.])[−+-]?(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?:e[−-]?\d+)?"
FOUND = re.compile(rf"(?=[−+\-.\d])({NUMBER})(?![\w])")
TRIPLE = re.compile(rf"({NUMBER})( nats| points)?(?: %)? \(({NUMBER}) to ({NUMBER})[,)]")
TABLES = ROOT / "notebooks" / "tables"
LONG = 3  # digits: a shorter number is found in some cell by chance


def blanked(text):
    """The text with all that is no number blanked out, every other character in its place."""
    for pattern in NOT_A_NUMBER:
        text = re.sub(pattern, _blank, text, flags=re.S if "```" in pattern else 0)
    return text


def _blank(match):
    return "".join("\n" if c == "\n" else " " for c in match[0])


def spots(text):
    """(start, end, number as written) of every number in a blanked text."""
    found = ((m.start(1), m.end(1), m[1].rstrip(",")) for m in FOUND.finditer(text))
    return [(a, a + len(said), said) for a, _, said in found if re.search(r"\d", said)]


def plain(said):
    """The number that a text says, and how many decimals it gives (None: in powers of ten)."""
    said = said.replace("−", "-").replace(",", "").lstrip("+")
    decimals = None if "e" in said else len(said.partition(".")[2])
    return float(said), decimals


def shows(said, values):
    """Which values (of any shape) a number as written shows, rounded as it is; without a sign, their size."""
    values, (number, decimals) = np.asarray(values, dtype=float), plain(said)
    if said[0] not in "+-−":
        values = np.abs(values)
    half = 0.5 * 10.0 ** (np.floor(np.log10(number)) if decimals is None else -decimals)
    return np.abs(values - number) <= half * (1 + 1e-6)


def turned(values, percent):
    """Values [...] as a page may put them, [..., turns]: with either sign, in per cent, and what is left of 100 %."""
    turns = [values, -values]
    if percent:
        turns += [100 * values, -100 * values, 100 - values, 100 - 100 * values]
    return np.stack(turns, axis=-1)


# ---------------------------------------------------------------- tables that are committed
@dataclass(frozen=True)
class Sources:
    """Some files of `notebooks/tables`, CSV and texts; `more()`: frames that follow from them."""

    names: tuple
    more: object = list

    @cached_property
    def tables(self):
        """The CSVs and what follows from them, their numbers alone: data frames."""
        files = [pd.read_csv(TABLES / name) for name in self.names if name.endswith(".csv")]
        return [table.select_dtypes("number").astype(float) for table in [*self.more(), *files]]

    @cached_property
    def values(self):
        """Every number of the files."""
        out = [table.to_numpy().ravel() for table in self.tables]
        for name in self.names:
            if not name.endswith(".csv"):
                text = blanked((TABLES / name).read_text())
                out.append(np.array([plain(said)[0] for _, _, said in spots(text)]))
        return np.unique(np.concatenate(out))

    @cached_property
    def triples(self):
        """Every quantity with its ends: [N, 3]."""
        out = [np.empty((0, 3))]
        for table in self.tables:
            for name in table:
                ends = [f"{name}_low", f"{name}_high"]
                ends = ends if ends[0] in table else ["low", "high"]
                if ends[0] in table and name not in ends:
                    out.append(table[[name, *ends]].to_numpy())
        return np.concatenate(out)

    def anywhere(self, said, percent):
        """Whether any cell shows the number."""
        return shows(said, turned(self.values, percent)).any()

    def triple(self, said, percent):
        """Whether a quantity and its interval, three numbers, stand in one row."""
        values = turned(self.triples, percent)
        ordered = np.stack([values[:, 0], values[:, 1:].min(axis=1), values[:, 1:].max(axis=1)])
        return np.all([shows(word, v) for word, v in zip(said, ordered)], axis=0).any()


# ---------------------------------------------------------------- a page, number by number
@dataclass(frozen=True)
class Said:
    """A number of a page: its section, the text around it, the number, and how it was found.

    "strong": with its neighbours; "cell": three digits or more, somewhere in the section's tables; "short": fewer
    digits there, which says little; "": nowhere.
    """

    section: str
    around: str
    number: str
    found: str


def read(text, sources):
    """Every number of a page as `Said`. `sources(section)` gives the `Sources` of a heading, None: leave it out."""
    clear, out = blanked(text), []
    for section, start, end in sections(text):
        own = sources(section)
        if own is None:
            continue
        spans = list(lines(clear, start, end))
        for is_table, rows in itertools.groupby(
            spans, lambda span: clear[slice(*span)].startswith("|")
        ):
            rows = list(rows)
            strong = (
                in_table([clear[a:b] for a, b in rows], own) if is_table else [set()] * len(rows)
            )
            for (a, b), found in zip(rows, strong):
                out += of_line(text[a:b], clear[a:b], section, own, found)
    return out


def sections(text):
    """(heading, start, end) of every part under a `##`."""
    heads = [(m.start(), m.end(), m[1]) for m in re.finditer(r"(?m)^##? (.*)$", text)]
    ends = [start for start, _, _ in heads[1:]] + [len(text)]
    return [(name, begin, end) for (_, begin, name), end in zip(heads, ends)]


def lines(text, start, end):
    """(start, end) of every line that is not empty: a paragraph, an item or a row of a table."""
    at = start
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            yield at, at + len(line)
        at += len(line)


def of_line(text, clear, section, own, strong):
    """Every number of one line as `Said`; those at `strong` places are found already."""
    found, row, out = dict.fromkeys(strong, "strong"), clear.startswith("|"), []
    for m in TRIPLE.finditer(clear):
        near = clear[m.end(1) : m.start(3)] + clear[m.end() : m.end() + 12]
        how = (
            "strong"
            if own.triple((m[1], m[3], m[4]), row or "%" in near or "points" in near)
            else ""
        )
        for part in (1, 3, 4):
            found.setdefault(m.start(part), how)
    for at, stop, said in spots(clear):
        if at not in found:
            long = len(re.sub(r"\D", "", said).lstrip("0")) >= LONG
            shown = own.anywhere(said, row or _percent(clear, stop))
            found[at] = ("cell" if long else "short") if shown else ""
        around = " ".join(text[max(0, at - 40) : stop + 20].split())
        out.append(Said(section, around, said, found[at]))
    return out


def _percent(line, stop):
    """Whether a number that ends here is one of hundredths, as far as the next words tell."""
    return bool(
        re.match(r"( \(| to|,| and| points|\)| /|;| against)?[^|]{0,40}?(%|points)", line[stop:])
    )


# ---------------------------------------------------------------- a table of the page against tables of a file
def in_table(rows, own):
    """For each row of a table of the page the places of numbers that a column of some CSV has.

    A row of the page belongs to the CSV's row that shows most of its numbers; a column of it to the CSV's column, and
    the turn, that shows most of its rows. What then agrees is found.
    """
    cells = [_cells(row) for row in rows]
    found = [set() for _ in rows]
    places = sorted({place for row in cells for place in row})
    for table in own.tables:
        grid = turned(table.to_numpy(), True)  # [rows, columns, turns]
        match = [_best_row(row, grid) for row in cells]
        for place in places:
            held = [(i, *row[place]) for i, row in enumerate(cells) if place in row]
            votes = np.array([shows(said, grid[match[i]]) for i, _, said in held])
            best = np.unravel_index(votes.sum(axis=0).argmax(), votes.shape[1:])
            agree = votes[:, best[0], best[1]]
            if agree.sum() >= max(2, 0.6 * len(held)):
                for (i, at, _), right in zip(held, agree):
                    found[i] |= {at} if right else set()
    return found


def _cells(row):
    """{(cell, number within it): (place, number as written)} of one row."""
    out, counts = {}, {}
    for at, _, said in spots(row):
        cell = row[:at].count("|")
        counts[cell] = counts.get(cell, -1) + 1
        out[cell, counts[cell]] = at, said
    return out


def _best_row(row, grid):
    """The number of the CSV's row that shows most of a row's numbers."""
    shown = [shows(said, grid).any(axis=(1, 2)) for _, said in row.values()]
    return int(np.sum(shown, axis=0).argmax()) if shown else 0
