"""A notebook as one HTML page that needs neither network nor script."""

import re
from html import escape
from pathlib import Path
from string import Template

from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from ..figures.style import VERDICTS

# A verdict's colour, and what stays on the page where it is chosen.
CHOICE = """.{0} {{ --tone: {1}; }}
main:has(#show-{0}:checked) :is(.results, .claim:not(:has(.{0}))) {{ display: none; }}
"""


def page(book, title, *, links=(), **options):
    """A notebook as HTML; `options` are those of nbconvert's exporter.

    `links` names the notebooks that have pages. Raw HTML in Markdown is shown as text, scripts and
    the notebook's folder are left out, and a figure without a description is described by the
    heading above it.
    """
    heading = title
    for number, cell in enumerate(book.cells):
        found = re.findall(r"^#+ (.+)", cell.source, re.MULTILINE)
        heading = found[-1] if found and cell.cell_type == "markdown" else heading
        cell.metadata["alt"] = f"Figure: {heading}"
        cell["id"] = str(number)  # papermill's is another each time
        cell.source = re.sub(r"^out_dir = .*$", "", cell.source, flags=re.MULTILINE)
    exporter = HTMLExporter(template_name="basic", exclude_raw=True, **options)
    exporter.register_filter("markdown2html", markdown)
    exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3"))
    exporter.register_filter("clean_html", lambda code: code)  # pygments has escaped it
    body = TemplateExporter.from_notebook_node(exporter, book)[0]  # HTMLExporter's parses it again
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL | re.IGNORECASE)
    for name in links:
        body = body.replace(f'href="{name}.ipynb"', f'href="{name}.html"')
    style = "".join(CHOICE.format(v, colour) for v, (*_, colour) in VERDICTS.items())
    whole = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return whole.substitute(title=escape(title), verdicts=style, body=body)


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
