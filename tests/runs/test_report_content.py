"""The report shows only what belongs to the run, and nothing in it can act: scripts planted in every field of a
record, in notebooks (Markdown, formulas, every kind of output), tables, figures, answers and names are text or gone,
and a path that leads out of the run's folder is refused."""

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from helpers.finished_runs import PROVENANCE, finished
from reference_values import register

from safealign_utils.runs import cli, pages, report
from safealign_utils.study import claims, records
from safealign_utils.study.settings import Refusal

PLANTED = [
    "<script>alert(1)</script>",
    "<ScRiPt src=https://evil.example/x.js></sCrIpT>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<img src=x onerror=alert(1)>",
    "<img src=https://evil.example/p.png>",
    '<form action="https://evil.example"><button formaction="javascript:alert(1)">go</button></form>',
    '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    '<a href="javascript:alert(1)">x</a><a href=" java&#x09;script:alert(1)">x</a>',
    '<a href="data:text/html,<script>alert(1)</script>">x</a><a href="vbscript:x">x</a>',
    '<iframe srcdoc="<script>alert(1)</script>"></iframe><object data="x"></object><embed src="x">',
    '<base href="https://evil.example/"><link rel="stylesheet" href="https://evil.example/x.css">',
    "<style>@import 'https://evil.example/x.css'; .claim { display: none }</style>",
    '<div style="position:fixed;inset:0;background:url(https://evil.example/b)" onclick=alert(1)>x</div>',
    '<math href="javascript:alert(1)"><mtext><a xlink:href="javascript:alert(1)">x</a></mtext></math>',
    "<details open ontoggle=alert(1)><summary>x</summary></details><video src=x onerror=alert(1)>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "]]><script>alert(1)</script><!--",
]
EVERY = "".join(PLANTED)
MARKED = r"""$\href{javascript:alert(1)}{x}$ $$\href{https://evil.example}{\text{<script>alert(1)</script>}}$$
$\text{</math><script>alert(1)</script>}$ $\style{background:url(https://evil.example)}{x}$
[a](javascript:alert(1)) [b](data:text/html,x) [c](JAVASCRIPT:alert(1)) <javascript:alert(1)>
![p](https://evil.example/p.png) ![q](javascript:alert(1)) [r]: javascript:alert(1)
"""
KINDS = """text/html text/markdown text/latex text/plain image/png image/jpeg image/svg+xml application/javascript
application/json application/pdf application/vnd.jupyter.widget-view+json application/geo+json text/x-unknown""".split()
ELEMENTS = {"html", "head", "meta", "title", "style", "body", "main", *pages.TAGS, *pages.OF_REPORT}


class Acting(HTMLParser):
    """What of a page could act, load or lead somewhere; `texts` is what it shows."""

    def __init__(self, html):
        super().__init__()
        self.found, self.texts, self.styles, self.pictures = [], [], 0, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ELEMENTS:
            self.found.append((tag, attrs))
        self.styles += tag == "style"
        for name, value in attrs:
            self.attribute(tag, name, value or "", dict(attrs))

    handle_startendtag = handle_starttag

    def attribute(self, tag, name, value, attrs):
        plain = re.sub(r"[\x00-\x20]", "", value).lower()
        wrong = (
            name.startswith("on") or name in "action formaction srcset srcdoc xlink:href".split()
        )
        if name == "src":
            self.pictures.append(value)
            wrong = tag != "img" or not plain.startswith("data:image/")
        if name == "href":
            scheme = re.match(r"[a-z][a-z0-9+.-]*:", plain)
            wrong = tag != "a" or bool(scheme) and scheme[0] not in ("http:", "https:", "mailto:")
        if name == "style":
            wrong = bool(re.search(r"\(|position|behaviou?r|expression|@", plain))
        if name == "http-equiv":
            wrong = value != "Content-Security-Policy"
        if wrong:
            self.found.append((tag, name, value[:80]))

    def handle_comment(self, data):
        self.found.append(("comment", data[:80]))

    def handle_data(self, data):
        self.texts.append(data)


def check_harmless(html):
    """Nothing in a page acts: read as it stands, and as a second reader would write it again."""
    acting = Acting(html)
    assert acting.found == [] and acting.styles == 1
    for picture in acting.pictures:
        if picture.startswith("data:image/svg"):
            drawn = base64.b64decode(picture.partition(",")[2]).decode().lower()
            assert not re.search(r"<script|\son\w+\s*=|href=\"[^#]|foreignobject", drawn)
    body = html[html.index("<main>") + 6 : html.rindex("</main>")]
    again = pages.clean(body, pages.TAGS | pages.OF_REPORT)
    assert pages.clean(again, pages.TAGS | pages.OF_REPORT) == again
    assert Acting(again).found == []
    return acting


def outputs():
    """An output of every kind, with everything planted in it, and in what goes with it."""
    made = [
        nbformat.v4.new_output("display_data", data={kind: EVERY}, metadata={kind: {"alt": EVERY}})
        for kind in KINDS
    ]
    isolated = {"text/html": {"isolated": True}}
    made.append(nbformat.v4.new_output("display_data", {"text/html": EVERY}, metadata=isolated))
    made.append(nbformat.v4.new_output("display_data", {"text/markdown": MARKED}))
    made.append(nbformat.v4.new_output("display_data", {"text/latex": r"$\href{javascript:1}{x}$"}))
    made.append(nbformat.v4.new_output("execute_result", {kind: EVERY for kind in KINDS}))
    made.append(nbformat.v4.new_output("stream", text=EVERY + "\x1b[31m" + EVERY))
    return [*made, nbformat.v4.new_output("error", ename=EVERY, evalue=EVERY, traceback=[EVERY])]


def plant(folder, name="02_safedpo"):
    """A finished run with everything planted wherever there is place for a text."""
    known = next(c for c in claims.ledger().values() if c.notebook == name)
    verdict = dict(id=f"{known.id}[{EVERY}]", verdict="holds", value=0.4, low=0.3, high=0.45, n=3)
    strange = verdict | dict(id=EVERY)
    asked = dict(
        seed=EVERY, seeds=EVERY, dtype=EVERY, pairs=EVERY, steps=EVERY, beta=EVERY, data=EVERY
    )
    made = {key: EVERY for key in PROVENANCE} | dict(packages={EVERY: EVERY})
    finished(
        folder,
        name,
        title=EVERY,
        markdown=EVERY + "\n\n" + MARKED,
        verdicts=[verdict, strange],
        parameters=asked,
        metrics={f"{EVERY}.unsafe": 0.5, f"dpo.{EVERY}": 0.5, "dpo.unsafe": 0.25},
        provenance=made,
        run_id=EVERY,
    )
    book = nbformat.read(folder / name / f"{name}.ipynb", as_version=4)
    cells = [
        nbformat.v4.new_code_cell(EVERY, outputs=outputs(), metadata={"alt": EVERY}),
        nbformat.v4.new_raw_cell(EVERY),
        nbformat.v4.new_markdown_cell(
            f"## {EVERY}\n\n{MARKED}\n\n```\n{EVERY}\n```\n\n| {EVERY} |\n|---|\n| x |"
        ),
        nbformat.v4.new_markdown_cell("the last words, $\\pi^*$"),
    ]
    book.cells += cells
    book.metadata["title"] = EVERY
    nbformat.write(book, folder / name / f"{name}.ipynb")
    extra_files(folder / name)


def extra_files(folder):
    """A table with everything in head and cells, answers, and figures that are more than drawings."""
    pd.DataFrame({EVERY: [EVERY, "x"], "n": [1, 2]}).to_csv(folder / "evil.csv", index=False)
    (folder / "answers.jsonl").write_text(json.dumps({"prompt": EVERY, "response": EVERY}) + "\n")
    odd = "<script>alert(1)</script>.txt".replace("/", "_")
    (folder / odd).write_text(EVERY)
    (folder / "drawn.png").write_bytes((folder / "curve.png").read_bytes())
    drawn = (folder / "curve.svg").read_text().replace("</svg>", "<script>alert(1)</script></svg>")
    (folder / "drawn.svg").write_text(drawn)
    record = json.loads((folder / "record.json").read_text())
    record["tables"] += ["evil.csv", "answers.jsonl", odd]
    record["figures"] += ["drawn.png", "drawn.svg"]
    (folder / "record.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    top = tmp_path_factory.mktemp("report") / "<b onclick=alert(1)>"
    plant(top / "results" / "small")
    committed = top / "committed"
    committed.mkdir()
    (committed / "<img src=x onerror=alert(1)>.txt").write_text(EVERY)
    names = [path.name for path in committed.iterdir()]
    register(committed, names, command=EVERY, date=EVERY, commit=EVERY)
    return report.write(top / "results" / "small", tables=committed)


def test_nothing_of_the_report_acts(planted):
    acting = check_harmless(planted.read_text())
    shown = "".join(acting.texts)
    assert shown.count("<script>alert(1)</script>") > 20, "what was written is there to be read"
    for name in ("evil, 2 rows", "answers.jsonl", "drawn", "curve"):
        assert name in shown, name


def test_nothing_of_a_notebooks_page_acts(planted):
    page = planted.parent / "report_notebooks" / "02_safedpo.html"
    acting = check_harmless(page.read_text())
    assert "the last words" in acting.texts[-2] + "".join(acting.texts[-12:]), (
        "nothing swallowed it"
    )
    assert "<math" in page.read_text()


def test_each_planted_text_by_itself(tmp_path):
    """As raw HTML of an output, one after another: what follows it is still there."""
    for text in PLANTED:
        cell = nbformat.v4.new_code_cell(
            "1",
            outputs=[
                nbformat.v4.new_output("display_data", {"text/html": text}),
                nbformat.v4.new_output("display_data", {"text/html": "<p>after</p>"}),
            ],
        )
        html = pages.page(nbformat.v4.new_notebook(cells=[cell]), "One")
        assert Acting(html).found == [] and "<p>after</p>" in html, text


def test_tables_figures_and_formulas_of_outputs_still_show():
    frame = pd.DataFrame({"a": [1.5]})
    data = [
        {"text/html": frame.to_html(), "text/plain": "a"},
        {"image/png": "aGVsbG8=", "text/plain": "<Figure>"},
        {"text/latex": r"$$\frac{1}{2}$$"},
        {"application/javascript": "alert(1)", "text/plain": "what it says"},
        {"text/html": '<span style="background-color: #ffeeaa">token</span>'},
    ]
    made = [nbformat.v4.new_output("display_data", one) for one in data]
    cell = nbformat.v4.new_code_cell("1", outputs=made)
    html = pages.page(nbformat.v4.new_notebook(cells=[cell]), "One")
    for part in ("<td>1.5</td>", 'src="data:image/png;base64,aGVsbG8="', "<mfrac>", "what it says"):
        assert part in html, part
    assert 'style="background-color:#ffeeaa"' in html and "alert" not in html


def test_the_policy_of_the_page_allows_no_network_and_no_script(planted):
    for path in (planted, planted.parent / "report_notebooks" / "02_safedpo.html"):
        head = path.read_text().partition("<body>")[0]
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', head)[1]
        parts = dict(part.split(" ", 1) for part in policy.split("; "))
        assert parts["default-src"] == parts["base-uri"] == parts["form-action"] == "'none'"
        assert parts["img-src"] == "data:" and "script-src" not in parts and "http" not in policy
        assert head.index("Content-Security-Policy") < head.index("<style>")


# ---------------------------------------------------------------- paths
SECRET = "a line that belongs to somebody else"


def outside(folder, way):
    """A name in a run's folder that leads out of it, made in one of several ways."""
    (folder.parent.parent / "outside.csv").write_text(f"{SECRET}\n1\n")
    if way == "up":
        return "../../outside.csv"
    if way == "root":
        return str(folder.parent.parent / "outside.csv")
    if way == "link":
        (folder / "link.csv").symlink_to(folder.parent.parent / "outside.csv")
        return "link.csv"
    if way == "link to a folder":
        (folder / "sub").symlink_to(folder.parent.parent)
        return "sub/outside.csv"
    if way == "pipe":
        os.mkfifo(folder / "pipe.csv")
        return "pipe.csv"
    return "/dev/zero"


def leads_out(folder, way, kind):
    """Two runs, one of which names what is not its own."""
    evil, good = finished(folder, "02_safedpo"), finished(folder, "01_dpo_basics", title="01 · DPO")
    record = json.loads((evil / "record.json").read_text())
    record[kind].append(outside(evil, way))
    (evil / "record.json").write_text(json.dumps(record))
    return evil, good


@pytest.mark.parametrize("kind", ["tables", "figures"])
@pytest.mark.parametrize("way", ["up", "root", "link", "link to a folder", "pipe", "device"])
def test_a_path_out_of_the_runs_folder_is_refused(tmp_path, way, kind):
    """The run that names it is left out, with the name; the other is there."""
    evil, good = leads_out(tmp_path / "small", way, kind)
    assert records.read(evil) is None and records.read(good)
    shown = report.Report(tmp_path / "small")
    assert list(shown.runs) == ["01_dpo_basics"] and list(shown.odd) == ["02_safedpo"]
    assert "no plain file of this folder" in shown.odd["02_safedpo"]
    drawn = "".join(part.data for part in shown.notebooks())
    assert SECRET not in drawn and "Left out:" in shown.notes().data


def test_the_command_says_which_run_it_leaves_out(tmp_path, capsys):
    evil, _ = leads_out(tmp_path / "small", "up", "tables")
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "02_safedpo" in err and "no plain file of this folder" in err and err.count("\n") == 1
    html = (tmp_path / "small" / "report.html").read_text()
    assert SECRET not in html and "Left out:" in html and "01 · DPO" in html
    assert not (tmp_path / "small" / "report_notebooks" / "02_safedpo.html").exists()


def test_the_only_run_that_leads_out_is_a_refusal(tmp_path, capsys):
    evil = finished(tmp_path / "small")
    record = json.loads((evil / "record.json").read_text())
    record["tables"].append(outside(evil, "up"))
    (evil / "record.json").write_text(json.dumps(record))
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "'../../outside.csv', which is no plain file of this folder" in err
    assert err.count("\n") == 1 and not (tmp_path / "small" / "report.html").exists()


@pytest.mark.parametrize("file", ["curve.svg", "curve.png", "02_safedpo.ipynb"])
def test_a_link_in_place_of_a_figure_or_the_notebook_is_refused(tmp_path, file):
    """Also where the record does not name it: of a figure it names both, or one."""
    evil = finished(
        tmp_path / "small", figures=["curve.png" if file != "curve.png" else "curve.svg"]
    )
    (tmp_path / "secret").write_text(SECRET)
    (evil / file).unlink()
    (evil / file).symlink_to(tmp_path / "secret")
    with pytest.raises(Refusal, match="no plain file of this folder"):
        report.Report(tmp_path / "small")


def test_what_is_odd_in_one_record_stops_no_other_run(tmp_path, capsys):
    finished(tmp_path / "small", "01_dpo_basics", title="01 · DPO")
    strange = dict(id="x", verdict=EVERY, value="many", low=[], high={}, n=None)
    finished(tmp_path / "small", "02_safedpo", verdicts=[strange])
    finished(tmp_path / "small", "03_x", parameters={"seed": {}}, timings=dict(total=1.0, peak=1))
    (tmp_path / "small" / "04_y").mkdir()
    (tmp_path / "small" / "04_y" / "record.json").write_text("null")
    assert cli.main(["report", "--results", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "02_safedpo: left out (" in err and "03_x: left out (" in err
    assert "01_dpo" not in err and max(map(len, err.splitlines())) < 2000
    assert "01 · DPO" in (tmp_path / "small" / "report.html").read_text()


def test_a_file_that_is_too_large_is_named_only(tmp_path, monkeypatch):
    folder = finished(tmp_path / "small")
    monkeypatch.setattr(report, "FILE_BYTES", 10)
    assert (
        report._file(folder, "methods.csv") == "<p>methods.csv is too large to be shown here.</p>"
    )
    assert report._figure(folder, "curve") == ""


@pytest.mark.parametrize(
    "more",
    [
        "<script>alert(1)</script>",
        "<foreignObject><b/></foreignObject>",
        '<image href="https://evil.example/x.png"/>',
        '<use href="https://evil.example/x.svg#a"/>',
        '<g onload="alert(1)"/>',
        '<x:script xmlns:x="http://www.w3.org/1999/xhtml">alert(1)</x:script>',
        "<animate/>",
        "<g",
    ],
)
def test_a_drawing_that_is_more_than_shapes_is_shown_as_png(tmp_path, more):
    folder = finished(tmp_path / "small")
    assert "image/svg+xml" in report._figure(folder, "curve")
    svg = Path(folder / "curve.svg")
    svg.write_text(svg.read_text().replace("</svg>", f"{more}</svg>"))
    assert "image/png" in report._figure(folder, "curve")
