"""An executed notebook as the body of a page that asks for nothing and runs nothing.

nbconvert makes the HTML with its template `basic`, which fetches no scripts. Its own sanitiser
would let through pictures from anywhere and styles, so that the allow-list is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from mvl.errors import MvlError
from mvl.show import figures

#: What HTML from a notebook may hold. Everything else is shown as the text that it is.
# fmt: off
_TAGS = {
    "a", "b", "blockquote", "br", "caption", "code", "dd", "del", "div", "dl", "dt", "em", "h1",
    "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "small", "span",
    "strong", "sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul",
}
# fmt: on
_LINK = re.compile(r"(https?|mailto):|\d\d_\w+\.html$")
_IMAGE = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/\n]+=*\n?")
#: The forms of an output that are shown, the first that it has; none needs a script.
_FORMS = ["image/png", "image/jpeg", "image/svg+xml"]
_FORMS += ["text/markdown", "text/html", "text/latex", "text/plain"]


@dataclass
class Page:
    """One executed notebook.

    Attributes:
        title: its first heading, or the file's name.
        question: what it asks, or "".
        content: the cells, as safe HTML.
        failure: which cell ended it and why, or "".
        anchor: the id of that cell.
        synthetic: whether an output says that its data is synthetic.
    """

    title: str
    question: str = ""
    content: Markup = Markup("")
    failure: str = ""
    anchor: str = ""
    synthetic: bool = False


def read_page(path: Path, names: Iterable[str] = ()) -> Page:
    """Read an executed notebook, as papermill leaves it, and make everything in it safe to show.

    Links to the notebooks of `names` lead to their pages; a link to any other file is only text.

    Raises:
        MvlError: the file is not a readable notebook.
    """
    import nbformat

    try:
        return _page(nbformat.read(path, as_version=4), path.stem, names)
    except Exception as error:  # nbformat has no common class for what a broken file raises
        raise MvlError(f"{path.name} is no readable notebook: {error}") from error


def _page(notebook, name, names):
    page = Page(name)
    tagged = [(cell, cell.metadata.get("tags", ())) for cell in notebook.cells]
    tagged = [(cell, tags) for cell, tags in tagged if "papermill-error-cell-tag" not in tags]
    injected = any("injected-parameters" in tags for _, tags in tagged)
    if tagged and tagged[0][0].cell_type == "markdown":
        first = tagged[0][0]
        head, _, rest = first.source.lstrip().partition("\n")
        if head.startswith("# "):  # it becomes the page's own heading
            page.title, first.source = _text(head[2:]) or name, rest
        if asked := re.search(r"\*\*The question: (.+?)\*\*", first.source):
            question = _text(asked[1])
            page.question = question[:1].upper() + question[1:]
    notebook.cells, number = [], 0
    for cell, tags in tagged:
        number += "injected-parameters" not in tags
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", ()):
            if output.output_type == "error" and "raises-exception" not in tags:
                text = f"{output.ename}: {output.evalue}".strip(": ")
                page.failure = f"cell {number} of {len(tagged) - injected} failed: {text}"
                page.anchor = f"cell-id={cell.id}"  # as nbconvert writes it
            # `notebook.banner` says so, or a table's caption does.
            said = str(output.get("data", {}).get("text/markdown", ""))
            page.synthetic |= bool(re.search("⚠ Synthetic data|SYNTHETIC DATA", said))
        if not (injected and "parameters" in tags):
            notebook.cells.append(_bare(cell, names))
    notebook.metadata = {}
    page.content = Markup(_exporter().from_notebook_node(notebook)[0])
    return page


def _bare(cell, names):
    """A cell with links to pages, and without metadata but a picture's width."""
    cell.metadata = {}
    if cell.cell_type == "markdown":
        for name in names:
            cell.source = cell.source.replace(f"]({name}.ipynb)", f"]({name}.html)")
    if "outputs" in cell:
        # What a cell showed and took back leaves an output without content.
        cell.outputs = [output for output in cell.outputs if output.get("data", True)]
        for output in cell.outputs:
            if "metadata" in output:
                about = {"alt": _described(cell.source)}
                width = output.metadata.get("image/png", {}).get("width")
                if isinstance(width, int):  # of a picture with more pixels than it is shown with
                    about["width"] = width
                output.metadata = {form: about for form in _FORMS[:2]}
    return cell


def _described(source):
    """What the figure is that a cell draws, by the first line of its function's docstring."""
    drawn = [getattr(figures, name, None) for name in re.findall(r"figures\.(\w+)\(", source)]
    texts = [f.__doc__.partition("\n\n")[0] for f in drawn if hasattr(f, "__wrapped__")]
    return " ".join(texts[-1].split()) if texts else "A figure; the text around it says of what."


@cache
def _exporter():
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    settings = {"NbConvertBase": {"display_data_priority": _FORMS}}
    settings["CoalesceStreamsPreprocessor"] = {"enabled": True}
    exporter = HTMLExporter(
        config=Config(settings),
        template_name="basic",
        sanitize_html=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    exporter.register_filter("clean_html", _clean)
    return exporter


def _text(markdown):
    from nbconvert.filters import markdown2html

    return Markup(markdown2html(markdown)).striptags()


def _clean(html):
    """HTML of which only what the allow-list names is HTML; the rest has become text."""
    from bleach import Cleaner

    # pandas puts a style sheet before each table: left out, where a script is shown as text.
    html = re.sub(r"<style\b.*?</style\s*>", "", str(html), flags=re.DOTALL | re.IGNORECASE)
    # How Markdown's tables and pandas align numbers.
    html = re.sub(r'style="text-align: ?right;?"', 'class="n"', html)
    attributes = {
        "a": lambda _, name, value: name == "href" and _LINK.match(value),
        "img": lambda _, name, value: name == "alt" or (name == "src" and _IMAGE.fullmatch(value)),
        **dict.fromkeys(("td", "th"), ["colspan", "rowspan"]),
        # The highlighter's are of one or two letters.
        "*": lambda _, name, value: name == "class" and (len(value) <= 2 or value == "dataframe"),
    }
    protocols = {"http", "https", "mailto", "data"}
    return Cleaner(_TAGS, attributes, protocols, strip_comments=True).clean(html)
