"""A notebook as one HTML page that needs neither network nor script, and has none of an output's.

What a notebook shows was made by its cells, by data and by models: nothing of it is trusted. Of an
output the kinds of SHOWN are taken; the page's body is then read as a browser reads it, and only
the elements, attributes and style properties named here are written again (nh3). The page's
Content-Security-Policy (page.html) would stop what came through.
"""

import re
from html import escape
from pathlib import Path
from string import Template

import nh3
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..figures.style import VERDICTS

# A verdict's colour, and what stays on the page where it is chosen.
CHOICE = """.{0} {{ --tone: {1}; }}
main:has(#show-{0}:checked) :is(.results, .claim:not(:has(.{0}))) {{ display: none; }}
"""
SHOWN = "text/html text/markdown text/latex image/png image/jpeg text/plain".split()
TAGS = frozenset(
    "a abbr b blockquote br code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr"
    " i img li ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul"
    " math menclose mfrac mi mn mo mover mpadded mphantom mroot mrow ms mspace msqrt mstyle msub"
    " msubsup msup mtable mtd mtext mtr munder munderover".split()
)
OF_REPORT = frozenset(  # what the report draws and offers to choose, besides
    "article fieldset input label legend nav svg circle line rect".split()
)
ATTRIBUTES = {
    "*": "id class style title role tabindex aria-label aria-hidden".split(),
    "a": ["href"],
    "img": ["src", "alt"],
    "input": "type name checked".split(),
    "td": "colspan rowspan".split(),
    "th": "colspan rowspan".split(),
    "math": ["display"],
    "mo": "accent fence form lspace maxsize minsize movablelimits rspace stretchy".split(),
    "mover": ["accent"],
    "mspace": ["width"],
    "mstyle": "displaystyle scriptlevel".split(),
    "mtable": ["columnalign"],
    "mtd": ["columnalign"],
    "svg": ["viewBox"],
    "circle": "cx cy r".split(),
    "line": "x1 x2 y1 y2".split(),
    "rect": "x y width height".split(),
}
STYLES = "text-align color background-color --width".split()
PICTURE = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/=\s]*")


def page(book, title, *, links=(), tags=TAGS, **options):
    """A notebook as HTML; `options` are those of nbconvert's exporter.

    `links` names the notebooks that have pages, `tags` the elements that a page may have. Raw HTML
    in Markdown is shown as text, active content and the notebook's folder are left out, and a
    figure without a description is described by the heading above it.
    """
    heading = title
    for number, cell in enumerate(book.cells):
        found = re.findall(r"^#+ (.+)", cell.source, re.MULTILINE)
        heading = found[-1] if found and cell.cell_type == "markdown" else heading
        cell.metadata["alt"] = f"Figure: {heading}"
        cell["id"] = str(number)  # papermill's is another each time
        cell.source = re.sub(r"^out_dir = .*$", "", cell.source, flags=re.MULTILINE)
        for output in cell.get("outputs", ()):
            _keep_shown(output, tags)
    exporter = HTMLExporter(template_name="basic", exclude_raw=True, **options)
    exporter.register_filter("markdown2html", markdown)
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3"))
    exporter.register_filter("clean_html", lambda code: code)  # pygments has escaped it
    body = TemplateExporter.from_notebook_node(exporter, book)[0]  # HTMLExporter's parses it again
    body = clean(body, tags)
    for name in links:
        body = body.replace(f'href="{escape(name)}.ipynb"', f'href="{escape(name)}.html"')
    style = "".join(CHOICE.format(v, colour) for v, (*_, colour) in VERDICTS.items())
    whole = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return whole.substitute(title=escape(title), verdicts=style, body=body)


def clean(html, tags=TAGS):
    """HTML with the elements `tags` and what ATTRIBUTES and STYLES allow them; text stays."""
    return nh3.clean(
        html,
        tags=set(tags),
        attributes={tag: set(names) for tag, names in ATTRIBUTES.items() if tag in {"*", *tags}},
        filter_style_properties=set(STYLES),
        url_schemes={"http", "https", "mailto", "data"},
        attribute_filter=_allowed,
        link_rel=None,
    )


def _allowed(tag, name, value):
    """An attribute's value, or None: pictures lie in the page, and no link is one of them."""
    if name == "src":
        return value if PICTURE.fullmatch(value) else None
    if name == "href":
        scheme = re.sub(r"[\x00-\x20]", "", value).lower()  # browsers leave these out too
        return None if scheme.startswith("data:") else value
    return None if name == "style" and "(" in value else value


def _keep_shown(output, tags):
    """Of an output what can be shown; each by itself, so that none can swallow what comes after."""
    if "data" in output:
        data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
        if "text/html" in data:
            data["text/html"] = clean(data["text/html"], tags)
        elif "text/latex" in data:
            data["text/markdown"] = data.pop("text/latex")
        kinds = ", ".join(map(str, output.data))
        output.data, output.metadata = data or {"text/plain": f"({kinds}: not shown)"}, {}


def markdown(text):
    """Markdown as HTML, its formulas as MathML, which browsers draw by themselves."""
    return MarkdownWithMath(renderer=_Renderer(allow_harmful_protocols=False)).render(text)


class _Renderer(IPythonRenderer):
    def inline_math(self, body, display="inline"):
        try:
            return convert(body.strip(), display=display)
        except Exception:  # the converter raises what it pleases; one formula is no reason to stop
            return f"<code>{escape(body.strip())}</code>"

    def block_math(self, body):
        return self.inline_math(body, "block")

    def latex_environment(self, name, body):
        return self.inline_math(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def image(self, text, url, title=None):
        inline = url.startswith("data:")  # all else would ask the network
        return super().image(text, url, title) if inline else escape(text or url)
