"""`safealign report`: one page that needs nothing else, says every verdict in words, and lets no text become HTML."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from helpers.finished_runs import EVIL, PROVENANCE, finished
from IPython.display import HTML
from reference_values import register as enter

from safealign_utils.runs import cli, pages, report
from safealign_utils.study import claims, records
from safealign_utils.study.settings import Refusal


def claim(id, **changes):
    values = dict(
        id=id,
        paper="kit",
        says=f"{id} is so.",
        evidence="bar",
        refuted_by=f"{id} is not so",
        notebook="02_safedpo",
        metric=f"{id}.metric",
        rule={"below": 0.5},
        scope="statistical",
    )
    return claims.Claim(**values | changes)


def verdict(id, word, value=0.4, low=0.3, high=0.45, n=3):
    return dict(id=id, verdict=word, value=value, low=low, high=high, n=n)


LEDGER = [
    claim("a"),
    claim("b", paper="2505.20065, Table 17", evidence="S"),
    claim("c", scope="exact"),
    claim("d"),
    claim("e", notebook="03_x"),
    claim("f", scope="only at scale", profile="a 7B model & real data"),
]
VERDICTS = [
    verdict("a", "holds"),
    verdict("b", "does_not_hold", 0.9, 0.8, 0.95),
    verdict("c[keep=0.2]", "holds"),
    verdict("c[keep=0.4]", "undecided", low=None, high=None, n=1),
]


def sections(folder, committed):
    """All that the notebook shows on the runs in a folder, as HTML, without a kernel."""
    shown = report.Report(folder, "pages", committed)
    parts = [shown.opening(), shown.notes(), shown.kinds(), shown.contents()]
    parts += shown.notebooks()
    parts += [shown.sweeps(), shown.provenance()]
    return "".join(p.data if isinstance(p, HTML) else pages.markdown(p.data) for p in parts)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """One run, judged by a ledger of six claims, and two committed files."""
    monkeypatch.setattr(claims, "ledger", lambda: {c.id: c for c in LEDGER})
    numbered = [ROOT / "notebooks" / f"{n}.ipynb" for n in ("02_safedpo", "03_x")]
    monkeypatch.setattr(report.runner, "numbered", lambda: numbered)
    folder, committed = tmp_path / "small", tmp_path / "committed"
    finished(folder, verdicts=VERDICTS)
    register(committed)
    return SimpleNamespace(folder=folder, committed=committed, html=sections(folder, committed))


def register(committed):
    committed.mkdir()
    (committed / "sweep.csv").write_text("keep,unsafe\n0.2,0.125\n")
    (committed / "cost.txt").write_text("5.2x & more\n")
    made = dict(command="make the sweep", date="2026-01-01", commit="f00dcaf")
    enter(committed, ["sweep.csv", "cost.txt"], **made)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of one run, written by the command's own way: a kernel executes the notebook."""
    top = tmp_path_factory.mktemp("report")
    evil = (
        f"{EVIL}\n\n[no](javascript:alert) [next](03_x.ipynb) ![p](https://elsewhere.example/p.png)"
    )
    known = next(c for c in claims.ledger().values() if c.notebook == "02_safedpo")
    unknown = verdict("not.in_the_ledger", "holds")
    judged = [verdict(f"{known.id}[{EVIL}]", "undecided", low=None, high=None, n=1), unknown]
    finished(top / "results" / "small", verdicts=judged, markdown=evil)
    register(top / "committed")
    return report.write(top / "results" / "small", tables=top / "committed")


class Reader(HTMLParser):
    """Tags with their attributes; the text of each article by its id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.articles, self.text, self._now = [], {}, "", None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._now = dict(attrs)["id"].removeprefix("claim-") if tag == "article" else self._now

    def handle_endtag(self, tag):
        self._now = None if tag == "article" else self._now

    def handle_data(self, data):
        self.text += data
        if self._now:
            words = " ".join(data.split())
            self.articles[self._now] = f"{self.articles.get(self._now, '')}{words} "


def test_every_claim_of_the_ledger_has_its_verdict_in_words(made):
    told = Reader(made.html).articles
    assert list(told) == ["a", "b", "c", "d", "f", "e"], "by notebook"
    a = "a is so.; the kit; holds; 0.4000; 0.3000 to 0.4500; n = 3; below 0.5; a is not so; a.metric"
    for id, words in {
        "a": a,
        "b": "2505.20065, Table 17; quoted by somebody else; does not hold; 0.9000",
        "c": "keep=0.2; keep=0.4; holds; undecided; n = 1",
        "d": "not measured",
        "e": "not measured",
        "f": "needs scale; a 7B model & real data",
    }.items():
        assert all(word in told[id] for word in words.split("; ")), told[id]
    assert "holds" not in told["d"] and "needs scale" not in told["a"]


def test_the_counts_stand_on_top_and_choose(made):
    found = re.findall(r'<label class="(\w+)"><input [^>]*id="show-(\w+)"><b>(\d+)</b>', made.html)
    counts = "holds 1, does_not_hold 1, undecided 1, needs_scale 1, not_measured 2"
    assert ", ".join(f"{word} {n}" for word, _, n in found) == counts
    assert all(word == chosen for word, chosen, _ in found)
    drawn = "02 · SafeDPO: 1 holds, 1 does not hold, 1 undecided, 1 needs scale, 1 not measured"
    alt = next(a["alt"] for t, a in Reader(made.html).tags if t == "img")
    assert alt == f"Verdicts by notebook; {drawn}; 03_x: 1 not measured"


def test_the_page_needs_nothing_but_itself(page):
    for path in (page, page.parent / "report_notebooks" / "02_safedpo.html"):
        html = path.read_text()
        reader = Reader(html)
        assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in reader.tags}
        images = [attrs for tag, attrs in reader.tags if tag == "img"]
        assert all(a["src"].startswith("data:image/") and a["alt"] for a in images)
        assert len([a for _, a in reader.tags if "src" in a]) == len(images)
        assert not re.search(r"url\(|@import|srcset=|elsewhere", html)
        policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
        assert policy == (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        )
        links = [a["href"] for t, a in reader.tags if t == "a" and "href" in a]
        ids = {a["id"] for _, a in reader.tags if "id" in a}
        known = {"03_x.ipynb", "#harmful-link"}  # no page of its own here; what javascript: became
        for link in set(links) - known:
            assert link[1:] in ids if link[0] == "#" else (path.parent / link).is_file(), link
    assert "/secret/place" not in html, "where a run was written is not told"
    assert "<math" in html and "MathJax" not in html
    files = sorted(f.name for f in page.parent.iterdir())
    assert files == ["02_safedpo", "report.html", "report_notebooks"], "nothing half-written"


def test_no_text_becomes_html(page):
    for path in (page, page.parent / "report_notebooks" / "02_safedpo.html"):
        html = path.read_text()
        assert EVIL not in html and "&lt;script&gt;" in html, path.name


def test_code_is_hidden(page):
    assert "report.opening()" not in page.read_text() and "In [" not in page.read_text()


def test_figures_of_executed_notebooks_are_described(tmp_path):
    """By the heading above them."""
    png = nbformat.v4.new_output("display_data", data={"image/png": "aGVsbG8="})
    cells = [
        nbformat.v4.new_markdown_cell("# One\n\n## What it costs & why"),
        nbformat.v4.new_code_cell("# no heading", outputs=[png]),
    ]
    html = pages.page(nbformat.v4.new_notebook(cells=cells), "One")
    assert 'alt="Figure: What it costs &amp; why"' in html


def test_tables_are_rounded_with_their_intervals_and_figures_are_inline(made):
    text = " ".join(Reader(made.html.replace("<span", " <span")).text.split())
    assert "0.2500 0.2000 to 0.3000" in text and "0.3333" in text
    assert "0.33333" not in text and "safedpo[delta=1]" not in text, "sweeps are in the tables only"
    drawn = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="Figure: curve"', made.html)
    file = made.folder / "02_safedpo" / "curve.svg"
    assert [base64.b64decode(svg) for svg in drawn] == [file.read_bytes()]


def test_missing_notebooks_and_provenance_are_told(made):
    text = " ".join(Reader(made.html).text.split())
    for word in ("Not here: 03_x", "make reproduce PROFILE=small", "1 of 2 notebooks"):
        assert word in text, word
    for word in ("id01", "abc1234", "c0de", "a CPU; AVX2", "d0", "r0", "61", "1,024", "2.13.0"):
        assert word in text, word


def test_a_notebook_without_claims_is_shown(made):
    finished(made.folder, "08_own", title="08 · Own pairs")
    assert '<h2 id="08_own">08 · Own pairs</h2>' in sections(made.folder, made.committed)


def test_a_record_without_results_is_shown(made):
    """Notebook 08 without data: it ran, and there is nothing to show."""
    finished(made.folder, "08_own", title="08 · Own pairs", metrics={}, tables=[], figures=[])
    shown = sections(made.folder, made.committed)
    assert '<h2 id="08_own">08 · Own pairs</h2>' in shown


def test_committed_sweeps_are_shown_by_command_and_a_changed_one_is_marked(made):
    text = Reader(made.html).text
    for word in ("make the sweep", "f00dcaf", "5.2x & more"):
        assert word in text
    assert "is not the file" not in text
    (made.committed / "sweep.csv").write_text("keep,unsafe\n0.2,0.5\n")
    (made.committed / "cost.txt").unlink()
    changed = sections(made.folder, made.committed)
    assert re.findall(r"✕ (\S+) is not the file", changed) == ["cost.txt", "sweep.csv"]
    assert "None here." in sections(made.folder, made.folder / "none")


def test_mixed_code_is_told(made):
    assert "Mixed code" not in made.html
    other = PROVENANCE | {"code": "beef"}
    finished(made.folder, "03_x", title="03 · X", provenance=other)
    html = sections(made.folder, made.committed)
    assert "made by 2 versions of the package" in html and "Not here" not in html


def test_the_same_records_give_the_same_page_wherever_it_is_written(page, monkeypatch, capsys):
    """`--out page.html` from the project's root: the executed notebooks go to a folder of their own."""
    top = page.parents[2]
    (top / "notebooks").mkdir()
    monkeypatch.chdir(top)
    write = report.write
    monkeypatch.setattr(report, "write", lambda *a: write(*a, tables=top / "committed"))
    assert cli.main(["report", "--results", "results", "--out", "page.html"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("page.html\n") and "1 holds, 1 undecided, 10 needs scale" in out
    assert not list((top / "notebooks").iterdir())
    html = (top / "page.html").read_text()
    assert html == page.read_text().replace("report_notebooks/", "page_notebooks/")
    beside = (top / "page_notebooks" / "02_safedpo.html").read_text()
    assert 'href="page_notebooks/02_safedpo.html"' in html and 'href="../page.html"' in beside


@pytest.mark.parametrize("text", ["- id: a", "- id: [", "- id: a\n  \xff"])
def test_a_ledger_that_cannot_be_read_is_a_refusal(tmp_path, monkeypatch, capsys, text):
    finished(tmp_path / "small")
    file = tmp_path / "claims.yaml"
    file.write_bytes(text.encode("latin1"))
    monkeypatch.setattr(claims, "ledger", lambda: claims.read(file.read_text("utf-8")))
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "claims.yaml: cannot be read" in err and err.count("\n") == 1


def test_a_verdict_that_the_ledger_does_not_know_is_shown_as_such(made, monkeypatch):
    monkeypatch.setattr(claims, "ledger", lambda: {c.id: c for c in LEDGER[1:]})
    told = Reader(sections(made.folder, made.committed)).articles
    assert "Not in the ledger" in told["a"] and "holds" in told["a"]


def test_a_run_that_is_not_complete_is_no_record(made):
    (made.folder / "02_safedpo" / "methods.csv").unlink()
    with pytest.raises(Refusal, match="holds no finished run"):
        report.write(made.folder)


@pytest.mark.parametrize(
    "name, content",
    [
        ("record.json", "null"),
        ("record.json", "[" * 10**5),
        ("record.json", '{"schema": 1, "status": "complete", "claims": [1]}'),
        ("03_x.ipynb", '{"cells": [null]}'),
        ("03_x.ipynb", "\0"),
    ],
)
def test_one_odd_run_stops_no_report_and_is_named(made, name, content):
    (made.folder / "02_safedpo").rename(made.folder / "kept")
    finished(made.folder, verdicts=VERDICTS)
    odd = made.folder / "02_safedpo"
    for file in [*odd.iterdir()]:
        if file.name == "02_safedpo.ipynb":
            file.rename(odd / "03_x.ipynb")
    odd.rename(made.folder / "03_x")
    (made.folder / "kept").rename(odd)
    (made.folder / "03_x" / name).write_text(content)
    shown = report.Report(made.folder, "pages", made.committed)
    assert [*shown.runs] == ["02_safedpo"] and [*shown.odd] == ["03_x"]
    assert shown.notes().data.count("Left out:** 03_x, as ") == 1


def test_no_records_are_a_refusal_with_the_fix(tmp_path, capsys):
    assert cli.main(["report", "--results", str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert "make reproduce PROFILE=small" in err and err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_page_that_cannot_be_written_is_a_refusal(made):
    (made.folder / "file").write_text("")
    with pytest.raises(Refusal, match="--out .*file/page.html: cannot be written"):
        report.write(made.folder, made.folder / "file" / "page.html")


def test_the_ledger_itself_can_be_shown(page):
    """The committed ledger on a record that measured one of its claims: all of it is on the page."""
    told = Reader(page.read_text()).articles
    assert set(told) == {*claims.ledger(), "not.in_the_ledger"}
    judged = next(c.id for c in claims.ledger().values() if c.notebook == "02_safedpo")
    assert "undecided" in told[judged] and "Not in the ledger" in told["not.in_the_ledger"]


@pytest.mark.parametrize("odd", [{"a": {"x": [1, 2]}, "x": 3}, {"MB": [None], "b c": {"c": {}}}])
def test_a_provenance_of_any_shape_is_shown(odd, tmp_path):
    """Nested, twice under one last name, and no number: a record may hold anything."""
    finished(tmp_path / "small", provenance=PROVENANCE | odd)
    shown = report.Report(tmp_path / "small", "pages", tmp_path)
    assert shown.runs and "<table>" in shown.provenance().data


# ---------------------------------------------------------------- pieces
NUMBERS = [
    (0.25, "0.2500"),
    (-1.5, "−1.5000"),
    (3, "3"),
    (12345.0, "12,345"),
    (1e-7, "1.0e−07"),
    (-3e-17, "0"),
    (123.456, "123.5"),
    (float("nan"), ""),
    (float("inf"), "∞"),
    (None, ""),
    ("dpo", "dpo"),
    ([1, {"a": 2}], "[1, {'a': 2}]"),
]


@pytest.mark.parametrize("value, text", NUMBERS)
def test_numbers_as_they_are_shown(value, text):
    assert report.number(value) == text


def test_settings_are_shown_as_they_were_set_and_long_tables_are_cut():
    frame = pd.DataFrame({"keep": np.tile([0.2, 0.4], 50), "unsafe": np.linspace(0, 1, 100)})
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", report.table(frame))
    assert cells[2:4] == ["0.4", "0.0101"] and len(cells) == 2 * report.ROWS
    assert f"The first {report.ROWS} of 100 rows" in report.table(frame)


def test_the_drawing_of_an_interval_puts_the_rule_where_it_is():
    holds = report.drawing({"below": 0.5}, 0.4, 0.3, 0.45)
    side = float(re.search(r'<rect class="side" x="0" y="2" width="([\d.]+)"', holds).group(1))
    assert float(re.search(r'class="limit" x1="([\d.]+)"', holds).group(1)) == side
    low, high = map(float, re.search(r'class="range" x1="([\d.]+)" x2="([\d.]+)"', holds).groups())
    dot = float(re.search(r'cx="([\d.]+)"', holds).group(1))
    assert 0 < low < dot < high < side < 220
    above = report.drawing({"above": 0.5}, 0.4)
    dot = float(re.search(r'cx="([\d.]+)"', above).group(1))
    assert dot < float(re.search(r'<rect class="side" x="([\d.]+)"', above).group(1))
    assert 'class="range"' not in above and 'aria-label="0.4000, the rule: above 0.5"' in above


def test_a_margin_is_drawn_on_both_sides():
    drawn = report.drawing({"within": 0.5, "why": "x"}, 0.1, -0.2, 0.3)
    limits = [float(x) for x in re.findall(r'class="limit" x1="([\d.]+)"', drawn)]
    rect = re.search(r'<rect class="side" x="([\d.]+)" y="2" width="([\d.]+)"', drawn)
    start, width = map(float, rect.groups())
    assert limits == [start, pytest.approx(start + width)]
    assert start < float(re.search(r'cx="([\d.]+)"', drawn).group(1)) < start + width
    assert "the rule: within 0.5" in drawn


def test_one_verdict_over_settings_and_its_corrected_p(tmp_path, monkeypatch):
    """Three claims of four are counted; each shows its p, and that corrected for two."""
    ledger = [claim("a"), claim("b"), claim("t", kind="theorem", scope="exact")]
    monkeypatch.setattr(claims, "ledger", lambda: {c.id: c for c in ledger})
    found = [verdict("a[keep=0.2]", "holds") | {"p": 0.01}]
    found += [verdict("a[keep=0.4]", "undecided") | {"p": 0.2}]
    found += [verdict("b", "holds") | {"p": 0.03}, verdict("t", "holds") | {"p": None}]
    finished(tmp_path / "small", verdicts=found)
    shown = report.Report(tmp_path / "small", "pages", tmp_path)
    assert shown.claims.verdict.to_dict() == {"a": "undecided", "b": "holds", "t": "holds"}
    assert shown.claims.p.round(6).tolist()[:2] == [0.2, 0.03]
    corrected = claims.adjusted([0.2, 0.03])
    assert shown.claims.adjusted.tolist()[:2] == pytest.approx(corrected)
    assert pd.isna(shown.claims.adjusted["t"]), "a theorem is a check, and not counted"
    told = Reader("".join(p.data for p in shown.notebooks() if isinstance(p, HTML))).articles
    assert "over 2 settings: ? undecided" in told["a"] and "p = 0.2000" in told["a"]
    assert f"p = 0.0300, adjusted = {corrected[1]:.4f}" in told["b"]
    assert "mathematics: a check of the code" in told["t"]
    kinds = shown.kinds().data
    assert re.search(r"theorem.*kit", kinds, re.S) and "paper</td>" not in kinds
    line = next(line for line in shown.verdict_lines().splitlines() if " b " in line)
    assert line.split()[0] == "kit" and f"{corrected[1]:.4f}".rstrip("0") in line


def test_what_one_seed_leaves_open_is_told_from_the_full_runs(tmp_path, monkeypatch):
    known = dict(verdict="holds", value=-0.5, low=-0.75, high=-0.25, n=8, seeds="seeds 5 to 12")
    monkeypatch.setattr(claims, "ledger", lambda: {c.id: c for c in (claim("a"), claim("b"))})
    monkeypatch.setattr(records, "committed_verdicts", lambda bars: {"a[keep=0.4]": known})
    found = [verdict("a[keep=0.2]", "undecided") | {"n": 1}]
    found += [verdict("a[keep=0.4]", "undecided") | {"n": 1}, verdict("b", "holds") | {"n": 1}]
    finished(tmp_path / "small", verdicts=found)
    shown = report.Report(tmp_path / "small", "pages", tmp_path)
    told = Reader("".join(p.data for p in shown.notebooks() if isinstance(p, HTML))).articles
    assert told["a"].count("full runs, seeds 5 to 12: ✓ holds, −0.5") == 1
    assert "full runs" not in told["b"]


def test_formulas_of_the_notebooks_become_mathml():
    """Every formula of the committed notebooks can be drawn; one that cannot is left readable."""
    count = 0
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                html = pages.markdown("".join(cell["source"]))
                count += html.count("<math")
                assert not re.search(r"<code>[^<]*\\(pi|beta|sum|log)", html), path.name
    assert count > 50
    assert r"<code>\notatexcommand{</code>" in pages.markdown(r"$\notatexcommand{$")
