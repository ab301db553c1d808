"""The command `report`: report.ipynb, executed on the runs of a folder, as one HTML page.

Each of the notebook's cells shows one section of `Report`. Executed notebooks become pages too. A
run shows what lies in its own folder: one whose record names anything else is refused, and said.
"""

import base64
import os
import sys
import tempfile
from functools import partial
from html import escape
from numbers import Real
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
from IPython.display import HTML, Markdown

from ..engine import boundary, cache
from ..figures import style, verdicts
from ..figures.style import VERDICTS
from ..study import claims as ledgers
from ..study import records
from ..study.records import COMMITTED
from ..study.settings import Refusal
from . import runner, verify

EVIDENCE = {
    "P": "the paper's own text",
    "S": "quoted by somebody else",
    "D": "derived, and checked numerically",
    "M": "from memory",
    "bar": "a bar that the kit set before its runs",
    "later": "written after first results were known",
}
KINDS = {
    "theorem": "mathematics: a check of the code, not counted as a claim",
    "world": "a property of the made world, which its oracle decides: not counted",
    "paper": "a paper's statement, in our words",
    "kit": "the kit's finding",
}
SCOPES = {
    "exact": "exact values, no sampling in them",
    "statistical": "over seeds",
    "only at scale": "open here, only at scale",
}
QUANTITIES = "reward cost unsafe benign_refusal kl_ref kl_opt tv_opt frontier_gap leak".split()
SETTINGS = "seed seeds dtype pairs steps beta data".split()
ROWS = 60  # of a table that the page shows
SVG_BYTES = 150_000  # larger drawings are shown as PNG
FILE_BYTES = 50_000_000  # larger files are named only
ABOUT = (  # the words in an SVG of who made it
    "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "http://creativecommons.org/ns#",
    "http://purl.org/dc/elements/1.1/",
)
DRAWN = (
    "svg defs g path use style clipPath rect circle line polygon polyline metadata title".split()
)


def report(results, profile=None, out=""):
    """Write the page of results/PROFILE, without a profile full, else small; print its counts."""
    profile = profile or ("full" if _runs(Path(results) / "full")[0] else "small")
    folder = Path(results) / profile
    print(write(folder, out))
    shown = Report(folder)
    counts = shown.counts.sum()
    print(", ".join(f"{n} {VERDICTS[word][0]}" for word, n in counts.items() if n))
    print(shown.verdict_lines())
    return 0


def write(folder, out="", *, tables=COMMITTED):
    """Write the page of the runs in `folder`, results/PROFILE; returns its path.

    `tables` is the folder of the committed tables. Raises Refusal where there is no run, the ledger
    cannot be read, or the page cannot be written.
    """
    import nbformat
    import papermill

    from . import engines, pages

    shown, folder = Report(folder), Path(folder).resolve()  # refused before a kernel starts
    for name, why in shown.odd.items():
        print(f"{folder / name}: left out ({why}); run {name} again", file=sys.stderr)
    out = Path(out or folder / "report.html")
    beside = out.with_name(f"{out.stem}_notebooks")
    given = dict(folder=str(folder), notebooks=beside.name, tables=str(Path(tables).resolve()))
    source = nbformat.read(Path(__file__).with_name("report.ipynb"), as_version=4)
    engine = dict(kernel_name="python3", engine_name=engines.NAME, progress_bar=False)
    try:
        for name in shown.runs:
            book = nbformat.read(folder / name / f"{name}.ipynb", as_version=4)
            book.cells.insert(0, nbformat.v4.new_markdown_cell(f"[← Report](../{out.name})"))
            text = pages.page(book, shown.headings[name][0], links=shown.runs)
            cache.write_whole(beside / f"{name}.html", text)
        book = papermill.execute_notebook(source, None, given, **engine)
        title = f"SafeAlign Kit: report, profile {folder.name}"
        cache.write_whole(
            out, pages.page(book, title, tags=pages.TAGS | pages.OF_REPORT, exclude_input=True)
        )
    except OSError as error:
        why = f"cannot be written ({error.strerror or error}); name another file"
        raise Refusal(f"--out {out}: {why}") from None
    return out


def _runs(folder):
    """({name: record} of the finished runs in a folder, {name: why one is left out}), in reading
    order. Left out is a run whose tables, figures or notebook are no plain files of its folder."""
    found, odd = {}, {}
    for name in sorted(path.parent.name for path in folder.glob("*/record.json")):
        own = folder / name
        try:
            if outside := [file for file in _named(own) if _is_foreign(own, file)]:
                what = f"{str(outside[0])[:200]!r}, which is no plain file of this folder"
                raise Refusal(f"its record names {what}")
            record = records.read(own)
            if not record or not {"total", "peak_memory_bytes"} <= record["timings"].keys():
                raise Refusal("its record is not complete, or not one of the kit's")
            boundary.read_cells(own / f"{name}.ipynb")
        except Refusal as error:
            odd[name] = str(error)
            continue
        found[name] = record
    return found, odd


def _named(folder):
    """The files that a run's record names, and its notebook."""
    names = [f"{folder.name}.ipynb"]
    try:
        record = boundary.read_json(folder / "record.json")
        names += [*record["tables"], *record["figures"]]
    except (ValueError, KeyError, TypeError):
        pass  # no record, which `records.read` says
    stems = [name[:-4] for name in names if str(name).endswith((".png", ".svg"))]
    return [*names, *(f"{stem}{end}" for stem in stems for end in (".png", ".svg"))]


def _is_foreign(folder, name):
    """Whether what a record names is there, and is not the run's own."""
    named = os.path.join(folder, name) if isinstance(name, str) else ""
    there = os.path.lexists(named) if "\0" not in named else False
    return records.own_file(folder, name) is None and (there or os.path.basename(named) != name)


class Report:
    """The sections of the report on the runs in `folder`, each shown by one cell of the notebook.

    `notebooks` is the folder of the executed notebooks' pages, as links name it; `tables` that of
    the committed tables. Raises Refusal where there is no run, or the ledger cannot be read.
    """

    def __init__(self, folder, notebooks="", tables=COMMITTED):
        self.folder, self.pages, self.tables = Path(folder), notebooks, Path(tables)
        (self.runs, self.odd), profile = _runs(self.folder), self.folder.name
        self.again = f"make reproduce PROFILE={'full' if profile == 'full' else 'small'}"
        self.ledger = verify.ledger()
        bars = {id: claim.bar for id, claim in self.ledger.items()}
        self.committed = records.committed_verdicts(bars)
        for name in list(self.runs):
            if why := self._why_not(name):
                self.odd[name] = why
                del self.runs[name]
        if not self.runs:
            where = f"--results {self.folder.parent}: {folder} holds no finished run"
            where += "".join(f" ({name}: {why})" for name, why in [*self.odd.items()][:1])
            raise Refusal(f"{where}; `{self.again}` makes them")
        self.verdicts = self._verdicts()
        names = sorted({*self.verdicts.notebook, *self.runs})
        self.headings = {name: self._heading(name) for name in names}
        self.claims = self._claims()
        self.counts = self._counts("notebook").reindex(index=names, fill_value=0)

    def _counts(self, column):
        counts = pd.crosstab(self.claims[column], self.claims.verdict)
        return counts.reindex(columns=list(VERDICTS), fill_value=0)

    def _why_not(self, name):
        """Why a run cannot be shown, "" where it can: whatever is odd in it stops no other run."""
        try:
            for row in pd.DataFrame(self._judged(name)).to_dict("records"):
                _found(self.ledger.get(row["id"]), row)
            self._heading(name)
            self._results(name)
            self.runs[name]["provenance"].get("git")
        except Exception as error:
            return f"cannot be shown ({type(error).__name__}: {str(error)[:200]})"
        return ""

    def _judged(self, name):
        """The verdicts of a run's record, with the notebook that each belongs to."""
        for verdict in self.runs[name]["claims"]:
            id, _, setting = verdict["id"].partition("[")
            home = self.ledger[id].notebook if id in self.ledger else name
            own = dict(id=id, setting=setting.rstrip("]"), notebook=home)
            yield {"p": None} | verdict | own  # older records say no p

    def _verdicts(self):
        """A row for each verdict of the records, then one for each claim that has none."""
        rows = [row for name in self.runs for row in self._judged(name)]
        judged = {row["id"] for row in rows}
        for id, claim in self.ledger.items():
            if id not in judged:
                word = "needs_scale" if claim.scope == "only at scale" else "not_measured"
                rows.append(dict(id=id, verdict=word, setting="", notebook=claim.notebook))
        columns = "notebook id setting verdict value low high n p".split()
        table = pd.DataFrame(rows, columns=columns).astype({"p": float})
        place = table.id.map({id: i for i, id in enumerate(self.ledger)})  # unknown ones come last
        return table.assign(place=place).sort_values(["notebook", "place"], kind="stable")

    def _claims(self):
        """A row for each claim: its one verdict, with p and the p corrected for their number."""
        judged, homes = {}, {}
        for id, rows in self.verdicts.groupby("id", sort=False):
            judged[id] = rows.astype(object).where(rows.notna(), None).to_dict("records")
            homes[id] = dict(notebook=rows.notebook.iloc[0], settings=len(rows))
        rows = {id: homes[id] | one for id, one in ledgers.summary(judged).items()}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")
        columns = "notebook kind verdict settings p adjusted".split()
        return table[columns].astype({"p": float, "adjusted": float})

    def kinds(self):
        """Verdicts by kind of claim, a table; what they mean."""
        counts = self._counts("kind").reindex([k for k in KINDS if k in {*self.claims.kind}])
        counts = counts.rename(columns={v: VERDICTS[v][0] for v in counts})
        counts.insert(0, "in words", [KINDS[kind] for kind in counts.index])
        return HTML(table(counts.rename_axis("kind").reset_index()))

    def _heading(self, name):
        """(title, first paragraph) of a notebook as it was run, else as the kit has it."""
        folder = self.folder / name if name in self.runs else runner.ROOT / "notebooks"
        path = folder / f"{name}.ipynb"
        cells = boundary.read_cells(path) if path.is_file() else []
        texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
        title, _, rest = (texts or [name])[0].partition("\n")
        return title.lstrip("# ").strip(), rest.strip().split("\n\n")[0]

    def opening(self):
        """The figure of all verdicts, and their counts, by which the claims below are chosen."""
        titled = self.counts.rename(index=lambda name: self.headings[name][0])
        alt = "Verdicts by notebook"
        for title, row in titled.iterrows():
            alt += f"; {title}: " + ", ".join(f"{n} {VERDICTS[v][0]}" for v, n in row.items() if n)
        with tempfile.TemporaryDirectory() as folder:
            style.save(verdicts.verdicts(titled), Path(folder) / "verdicts")
            drawn = _figure(folder, "verdicts", alt)
        total = self.counts.to_numpy().sum()
        tiles = f'<label><input type="radio" name="show" checked><b>{total}</b> in all</label>'
        for v, n in self.counts.sum().items():
            button = f'<input type="radio" name="show" id="show-{v}">'
            tiles += f'<label class="{v}">{button}<b>{n}</b>{_words(v)}</label>'
        tiles = f'<fieldset class="tiles"><legend>Claims, by verdict</legend>{tiles}</fieldset>'
        return HTML(f'<div class="opening">{drawn}{tiles}</div>')

    def notes(self):
        """How complete the records are, and whether one version of the package made them."""
        known = [path.stem for path in runner.numbered()]
        missing = ", ".join(name for name in known if name not in self.runs)
        made = [record["provenance"] for record in self.runs.values()]
        codes = len({p.get("code") for p in made})
        commits = ", ".join(sorted({p.get("git") or "no checkout" for p in made}))
        text = f"{len(self.runs)} of {len({*known, *self.runs})} notebooks, profile "
        text += f"{self.folder.name}, commit {commits}. A claim that is judged at several settings "
        text += "counts once: it holds where it holds at all of them. One about seeds stays "
        text += "undecided where there is one seed. p is two-sided, for the value against the bar; "
        text += "*adjusted* p is that of Benjamini and Hochberg, over the claims judged here."
        if missing:
            text += f"\n\n> **Not here:** {missing}. `{self.again}` runs those only."
        if codes > 1:
            text += f"\n\n> **Mixed code:** made by {codes} versions of the package. "
            text += f"`{self.again}` runs again what is out of date."
        for name, why in self.odd.items():
            text += f"\n\n> **Left out:** {name}, as {escape(' '.join(why.split()))}"
        return Markdown(text)

    def contents(self):
        """Links to the sections."""
        links = {name: title for name, (title, _) in self.headings.items()}
        links |= {"Larger-sweeps": "Larger sweeps", "Provenance": "Provenance"}
        items = (f'<li><a href="#{escape(i)}">{escape(text)}</a></li>' for i, text in links.items())
        return HTML(f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>')

    def notebooks(self):
        """Of each notebook its results, then its claims with their verdicts."""
        shown = []
        for name, (title, first) in self.headings.items():
            head = f'<h2 id="{escape(name)}">{escape(title)}</h2>'
            groups = self.verdicts[self.verdicts.notebook == name].groupby("id", sort=False)
            claims = [self._claim(id, rows) for id, rows in groups]
            shown += [HTML(head), Markdown(first), HTML(self._results(name)), HTML("".join(claims))]
        return shown

    def _results(self, name):
        if name not in self.runs:
            return "<p>This notebook is not among these records.</p>"
        record, folder = self.runs[name], self.folder / name
        facts = {k: v for k, v in record["parameters"].items() if k in SETTINGS}
        facts["seconds"] = round(record["timings"]["total"])
        facts["MB"] = round(record["timings"]["peak_memory_bytes"] / 2**20)
        facts = {k: v if isinstance(v, str) else f"{v:,g}" for k, v in facts.items()}
        items = "".join(f"<li>{escape(k)} <b>{escape(v)}</b></li>" for k, v in facts.items())
        page = escape(f"{self.pages}/{name}.html")
        items += f'<li><a href="{page}">the executed notebook</a></li>'
        stems = dict.fromkeys(Path(file).stem for file in record["figures"])
        drawn = "".join(_figure(folder, stem) for stem in stems)
        tables = "".join(_file(folder, file) for file in record["tables"])
        shown = f'<ul class="facts">{items}</ul>{_headline(record["metrics"])}{drawn}{tables}'
        return f'<div class="results">{shown}</div>'

    def _claim(self, id, rows):
        claim, facts = self.ledger.get(id), {}
        says = "Not in the ledger: there is no rule to read this verdict by."
        if claim:
            says, source = claim.says, "the kit" if claim.paper == "kit" else claim.paper
            facts["Kind"] = KINDS[claim.kind]
            facts["Source"] = f"{source} ({EVIDENCE[claim.evidence]})"
            facts["Measured"] = f"{claim.metric}; {SCOPES[claim.scope]}"
            facts["Rule"] = claim.bar
            facts["Refuted by"] = claim.refuted_by
        if claim and claim.reason:
            facts["Why this bar"] = claim.reason
        if claim and claim.profile:
            facts["Would be tested by"] = claim.profile
        terms = "".join(f"<dt>{term}</dt><dd>{escape(text)}</dd>" for term, text in facts.items())
        says = f'<h4>{escape(id)}</h4><p class="says">{escape(says)}</p><dl>{terms}</dl>'
        rows = rows.to_dict("records")
        found = "".join(_found(claim, row) + self._full_runs(row) for row in rows)
        found += self._corrected(id)
        id = f"claim-{escape(id)}"
        return f'<article class="claim" id="{id}"><div>{says}</div><div>{found}</div></article>'

    def _full_runs(self, row):
        """What the committed runs of `full` say of a claim that one seed leaves undecided."""
        at = f"[{row['setting']}]" if row["setting"] else ""
        known = self.committed.get(row["id"] + at)
        if known is None or row["verdict"] != "undecided" or row["n"] != 1:
            return ""
        ends = _between(known["low"], known["high"])
        found = f"{_words(known['verdict'])}, {number(known['value'])} {ends} n = {known['n']}"
        return f'<p class="corrected">full runs, {known["seeds"]}: {found}</p>'

    def verdict_lines(self):
        """Every judged claim in a line: kind, value, interval, n, p, adjusted p."""
        judged = self.verdicts[self.verdicts.value.notna()]
        shown = judged.join(self.claims[["kind", "adjusted"]], on="id")
        shown = shown["kind id setting verdict value low high n p adjusted".split()]
        return shown.round(4).to_string(index=False, na_rep="")

    def _corrected(self, id):
        """A claim's one verdict over its settings, and its p corrected for the number of claims."""
        row = self.claims.loc[id]
        words = f"over {row.settings} settings: {_words(row.verdict)}" if row.settings > 1 else ""
        if not pd.isna(row.p):
            words += ("; " if words else "") + f"p {_chance(row.p)}"
        if not pd.isna(row.adjusted):
            words += f", adjusted {_chance(row.adjusted)}"
        return f'<p class="corrected">{words}</p>' if words else ""

    def sweeps(self):
        """Committed tables and figures by the command that made them; a changed one is marked."""
        listed = pd.DataFrame.from_dict(verify.manifest(self.tables), orient="index")
        if listed.empty:
            return HTML("<p>None here.</p>")
        changed = {f.what for f in verify.compare_committed(self.tables) if not f.passed}
        text = ""
        by_command = listed.groupby(["command", "commit", "date"], sort=False)
        for (command, commit, date), files in by_command:
            text += f"<h4>{escape(command)}</h4><p>commit {escape(commit)}, {escape(date)}</p>"
            for name in sorted(files.index, key=lambda name: (not name.endswith(".png"), name)):
                if name in changed:
                    text += f"<p><b>✕ {escape(name)} is not the file of its manifest</b></p>"
                text += _file(self.tables, name)
        return HTML(text)

    def provenance(self):
        """What made each record: run id, code, machine, packages, time and memory."""
        rows = pd.json_normalize(list(self.runs.values()), sep=" ")
        rows["seconds"] = rows["timings total"]
        rows["MB"] = rows["timings peak_memory_bytes"] / 2**20
        rows = rows.filter(regex="^notebook$|^run_id$|^provenance |^seconds$|^MB$").round(0)
        rows = rows.rename(columns=lambda name: name.split(" ")[-1])
        return HTML(table(rows.loc[:, ~rows.columns.duplicated()]))


def _words(verdict):
    words, sign, _ = VERDICTS[verdict]
    return f'<span aria-hidden="true">{sign}</span> {words}'


def _found(claim, row):
    text = f'<span class="pill">{_words(row["verdict"])}</span> {escape(row["setting"])}'
    value, low, high = row["value"], row["low"], row["high"]
    if not pd.isna(value):
        text += drawing(claim.rule, value, low, high) if claim else "<br>"
        text += f"<b>{number(value)}</b> {_between(low, high)} n = {number(row['n'])}"
        text += "" if pd.isna(row["p"]) else f", p {_chance(row['p'])}"
    return f'<div class="verdict {row["verdict"]}">{text}</div>'


def _chance(p):
    return "&lt; 0.0001" if p < 1e-4 else f"= {p:.4f}"


def _headline(metrics):
    """The metrics `method.quantity` at the headline setting, as a table."""
    names = [name.rpartition(".")[::2] for name in metrics]
    index = pd.MultiIndex.from_tuples(names, names=["method", "quantity"])
    found = pd.Series(list(metrics.values()), index, dtype=float)
    wide = found.unstack(sort=False).reindex(columns=QUANTITIES).filter(regex=r"^[^[]+$", axis=0)
    wide = wide.dropna(how="all").dropna(how="all", axis="columns").rename_axis("method")
    return table(wide.reset_index()) if len(wide) else ""


def _file(folder, name):
    """A table, drawing or text of a folder as the page shows it; nothing where it is missing."""
    path = records.own_file(folder, name)
    if path is None:
        return ""
    if path.suffix == ".png":
        return _figure(folder, name[:-4])
    if path.stat().st_size > FILE_BYTES:
        return f"<p>{escape(name)} is too large to be shown here.</p>"
    if path.suffix == ".csv":
        try:
            frame = pd.read_csv(path)
        except ValueError:
            frame = pd.DataFrame({"this file cannot be read": []})
        name, inside = f"{path.stem}, {len(frame):,} rows", table(frame)
    else:
        name, text = path.name, path.read_text(encoding="utf-8", errors="replace")
        inside = f'<pre class="box" tabindex="0">{escape(text)}</pre>'
    return f"<details><summary>{escape(name)}</summary>{inside}</details>"


def _figure(folder, stem, alt=""):
    """A figure inline: stem.svg where that is small and plain, else stem.png."""
    svg, png = (records.own_file(folder, f"{stem}.{kind}") for kind in ("svg", "png"))
    if png is None or png.stat().st_size > FILE_BYTES:
        return ""
    small = svg is not None and svg.stat().st_size <= SVG_BYTES and _only_draws(svg)
    data = base64.b64encode((svg if small else png).read_bytes()).decode("ascii")
    width = int.from_bytes(png.read_bytes()[16:20], "big") * 96 // 150  # our PNGs: 150 an inch
    name = stem.replace("_", " ")
    image = f'src="data:image/{"svg+xml" if small else "png"};base64,{data}"'
    image = f'<img {image} alt="{escape(alt or "Figure: " + name)}" style="--width: {width}px">'
    return f"<figure>{image}<figcaption>{'' if alt else escape(name)}</figcaption></figure>"


def _only_draws(svg):
    """Whether an SVG holds shapes and no more: who opens a picture by itself runs its scripts."""
    try:
        return all(map(_is_drawn, ElementTree.parse(svg).iter()))
    except (ElementTree.ParseError, LookupError, ValueError):
        return False


def _is_drawn(part):
    space, _, tag = str(part.tag).lstrip("{").rpartition("}")
    links = [value for name, value in part.attrib.items() if name.endswith("href")]
    active = any(name.lower().startswith("on") for name in part.attrib)
    known = space in ABOUT or space == "http://www.w3.org/2000/svg" and tag in DRAWN
    return known and not active and all(link.startswith("#") for link in links)


def table(frame):
    """A table as HTML, cut where it is long; columns q, q_low and q_high become one."""
    shown = frame.head(ROWS).reset_index(drop=True)
    look = {c: partial(number, digits=_digits(frame[c])) for c in frame.select_dtypes("number")}
    both = {c for c in look if {f"{c}_low", f"{c}_high"} <= set(look)}
    head, rows = "", [""] * len(shown)
    for c in (c for c in shown if c not in {f"{b}_{end}" for b in both for end in ("low", "high")}):
        side = ' class="right"' if c in look else ""
        head += f"<th{side}>{escape(str(c))}</th>"
        for i, value in enumerate(shown[c]):
            text = escape(look.get(c, number)(value))
            ends = (
                _between(*(shown[f"{c}_{end}"][i] for end in ("low", "high"))) if c in both else ""
            )
            rows[i] += f"<td{side}>{text}{ends}</td>"
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    text = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    text = f'<div class="box" tabindex="0">{text}</div>'
    if len(frame) > ROWS:
        text += f"<p>The first {ROWS} of {len(frame):,} rows; the CSV file holds all.</p>"
    return text


def _digits(column):
    """Decimals of a column: one or two where no value has more (a setting), else four."""
    values = column.dropna()
    return next((n for n in (1, 2) if (values.round(n) == values).all()), 4)


def number(value, digits=4):
    """A number as a table shows it: `digits` decimals, fewer where it is large; "" for none."""
    if isinstance(value, (bool, str)):
        return str(value)
    if not isinstance(value, Real):  # of a record, which may hold anything
        return "" if value is None or value is pd.NA else boundary.shown(value)
    if pd.isna(value):
        return ""
    size = abs(value)
    if size < 1e-12:  # rounding, and no measurement
        return "0"
    if value % 1 == 0 and size < 1e9:
        digits = 0
    elif size >= 10:
        digits = min(digits, 3 if size < 100 else 1)
    text = f"{value:.1e}" if size < 5e-5 else f"{value:,.{digits}f}"
    return text.replace("-", "−").replace("inf", "∞")


def _between(low, high):
    equal = pd.isna(low) or low == high
    return "" if equal else f'<span class="between">{number(low)} to {number(high)}</span>'


def drawing(rule, value, low=None, high=None):
    """A value, its interval and its rule as SVG: the side where the claim holds is shaded."""
    side = next(side for side in ledgers.SIDES if side in rule)
    limit, limits = rule[side], [rule[side]] if side != "within" else [-rule[side], rule[side]]
    ends = [v for v in (value, low, high, *limits) if not pd.isna(v)]
    span = (max(ends) - min(ends)) or max(abs(limit), 1e-3)

    def x(v):
        return round((v - min(ends) + 0.18 * span) / (1.36 * span) * 220, 1)

    start, end = 0 if side == "below" else x(limits[0]), 220 if side == "above" else x(limits[-1])
    line = ""
    if not pd.isna(low):
        line = f'<line class="range" x1="{x(low)}" x2="{x(high)}" y1="13" y2="13"/>'
    words = f"{number(value)}, the rule: {side} {limit:g}"
    bars = "".join(f'<line class="limit" x1="{x(v)}" x2="{x(v)}" y1="0" y2="26"/>' for v in limits)
    return (
        f'<svg class="interval" viewBox="0 0 220 26" role="img" aria-label="{words}">'
        f'<rect class="side" x="{start}" y="2" width="{round(end - start, 1)}" height="22"/>'
        f"{bars}{line}"
        f'<circle class="value" cx="{x(value)}" cy="13" r="4"/></svg>'
    )
