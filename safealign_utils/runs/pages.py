"""Pieces of the report: executed notebooks as HTML, formulas as MathML, tables and figures as a page shows them.

Nothing here asks the network for anything, when it is written or when it is read.
"""

import base64
import math
import re
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

ROWS = 60  # of a table that a page shows
SVG_BYTES = 150_000  # larger drawings are shown as PNG


def template(name):
    """A template of this folder; every value that it prints is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return env.get_template(name)


# ---------------------------------------------------------------- notebooks
def formula(tex, display=False):
    """TeX as MathML, which browsers draw by themselves; as it is written where that cannot be done."""
    try:
        return Markup(convert(tex.strip(), display="block" if display else "inline"))
    except Exception:  # the converter raises what it pleases; a formula is no reason to lose a page
        return Markup("<code>{}</code>").format(tex.strip())


class _Renderer(IPythonRenderer):
    def inline_math(self, body):
        return formula(body)

    def block_math(self, body):
        return formula(body, display=True)

    def latex_environment(self, name, body):
        return formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)

    def image(self, text, url, title=None):
        return (
            super().image(text, url, title) if url.startswith("data:") else str(escape(text or url))
        )


def markdown(text, attachments=None):
    """Markdown as HTML, without raw HTML of its author."""
    safe = dict(escape=True, allow_harmful_protocols=False)
    renderer = _Renderer(**safe, exclude_anchor_links=True, attachments=attachments or {})
    return Markup(MarkdownWithMath(renderer=renderer).render(text))


class _Exporter(HTMLExporter):
    def markdown2html(self, context, source):
        return markdown(source, context.get("cell", {}).get("attachments"))


_Exporter.markdown2html = jinja2.pass_context(_Exporter.markdown2html)


def notebook(path, *, known=(), back="../report.html"):
    """An executed notebook as one HTML page; links to the notebooks in `known` lead to their pages."""
    import logging

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if "injected-parameters" in cell.metadata.get(
            "tags", []
        ):  # where it was written is nobody's business
            cell.source = "\n".join(
                line for line in cell.source.splitlines() if not line.startswith("out_dir")
            )
    exporter = _Exporter(template_name="basic", log=logging.getLogger("safealign.quiet"))
    exporter.log.setLevel(logging.CRITICAL)
    body, _ = exporter.from_notebook_node(book)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL | re.IGNORECASE)
    for name in known:
        body = body.replace(f'href="{name}.ipynb"', f'href="{name}.html"')
    return template("notebook.html.j2").render(title=heading(book)[0], body=Markup(body), back=back)


def heading(book):
    """Title and first sentences of a notebook, from its first cell: "02 · SafeDPO", as plain text, and HTML."""
    text = next((cell.source for cell in book.cells if cell.cell_type == "markdown"), "")
    title, _, rest = text.partition("\n")
    return title.lstrip("# ").strip(), markdown(rest.strip().split("\n\n")[0])


# ---------------------------------------------------------------- tables and figures
def number(value, digits=4):
    """A number as a table shows it: four decimals, fewer where it is large; "" for none."""
    if isinstance(value, (bool, str)) or value is None:
        return "" if value is None else str(value)
    value = float(value)
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size < 1e-12:  # rounding, and no measurement
        return "0"
    if value == int(value) and size < 1e9:
        text = f"{int(value):,}"
    elif size < 5e-5:
        text = f"{value:.1e}"
    else:
        text = f"{value:,.{digits if size < 10 else min(digits, 3) if size < 100 else 1}f}"
    return text.replace("-", "−")


def table(frame):
    """A table ready to be shown: columns, rows of (text, interval, whether a number), and how much was left out.

    Columns q, q_low and q_high become one: the number with its interval, or alone where both ends equal it.
    """
    ends = {
        f"{c}_{end}"
        for c in frame
        for end in ("low", "high")
        if {f"{c}_low", f"{c}_high"} <= set(frame)
    }
    columns = [c for c in frame if c not in ends]
    kinds = [
        pd.api.types.is_numeric_dtype(frame[c]) and not pd.api.types.is_bool_dtype(frame[c])
        for c in columns
    ]
    digits = {c: _digits(frame[c]) if numeric else 0 for c, numeric in zip(columns, kinds)}
    rows = [
        [_cell(record, c, digits[c]) for c in columns]
        for record in frame.head(ROWS).to_dict("records")
    ]
    return {
        "columns": columns,
        "numeric": kinds,
        "rows": rows,
        "total": len(frame),
        "shown": len(rows),
    }


def _digits(column):
    """Decimals that a column needs: one or two where every value has no more (a setting), else four."""
    values = column.dropna()
    return next((n for n in (1, 2) if (values.round(n) == values).all()), 4)


def _cell(record, column, digits):
    low, high = record.get(f"{column}_low"), record.get(f"{column}_high")
    value, between = record[column], ""
    if low is not None and not pd.isna(low) and not low == value == high:
        between = f"{number(low)} to {number(high)}"
    return number("" if pd.isna(value) else value, digits), between


def read_table(path):
    """The table in a CSV file; an empty one where it cannot be read."""
    try:
        return table(pd.read_csv(path))
    except (OSError, ValueError):
        return table(pd.DataFrame({"this file cannot be read": []}))


def figure(stem):
    """A figure as data, from stem.svg where that is small, else from stem.png: its source, and whether it is wide."""
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    wide = False
    if png.is_file():
        head = png.read_bytes()[:24]
        width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
        wide = width > 1.9 * height
    small = svg.is_file() and (svg.stat().st_size <= SVG_BYTES or not png.is_file())
    kind, path = ("svg+xml", svg) if small else ("png", png)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {
        "name": stem.name.replace("_", " "),
        "source": f"data:image/{kind};base64,{data}",
        "wide": wide,
    }


def interval(rule, value, low, high, *, width=220, height=26):
    """A claim's value and interval beside its rule, as a small drawing: the side where it holds is shaded."""
    ((side, limit),) = rule.items()
    ends = [v for v in (value, low, high, limit) if v is not None]
    span = (max(ends) - min(ends)) or max(abs(limit), 1e-3)
    left, right = min(ends) - 0.18 * span, max(ends) + 0.18 * span
    at = lambda v: round((v - left) / (right - left) * width, 1)
    a, b = (at(limit), width) if side == "above" else (0, at(limit))
    middle = height / 2
    parts = [
        Markup('<rect class="side" x="{}" y="2" width="{}" height="{}"/>').format(
            a, round(b - a, 1), height - 4
        ),
        Markup('<line class="limit" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(at(limit), height),
    ]
    if low is not None:
        line = '<line class="range" x1="{}" x2="{}" y1="{m}" y2="{m}"/>'
        parts.append(Markup(line).format(at(low), at(high), m=middle))
    parts.append(Markup('<circle class="value" cx="{}" cy="{}" r="4"/>').format(at(value), middle))
    words = f"{number(value)}, the rule: {side} {limit:g}"
    start = Markup('<svg class="interval" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        width, height, words
    )
    return start + Markup("").join(parts) + Markup("</svg>")
