"""An executed notebook as the body of a page that asks for nothing and runs nothing.

nbconvert makes the HTML with its own template `basic`, without the scripts that its other templates
fetch. What it lacks is here: an allow-list for HTML of outputs, links between the pages, headings
in order below the page's own, described figures, tables that scroll.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup
from markupsafe import Markup

from mvl.errors import MvlError
from mvl.show import figures
from mvl.show.tables import NUMBER

#: What HTML from a notebook may hold. Everything else is shown as the text that it is.
# fmt: off
_TAGS = frozenset((
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "dd", "del", "div", "dl", "dt", "em",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "s",
    "small", "span", "strong", "sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr",
    "u", "ul",
))
# fmt: on
_HEADINGS = [f"h{level}" for level in range(1, 7)]
_IMAGE = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/\n]+=*\n?")
#: The forms of an output that are shown, the first that it has; none needs a script.
_FORMS = ["image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/html", "text/latex"]
_FORMS += ["text/plain"]


@dataclass
class Page:
    """One executed notebook.

    Attributes:
        title: its first heading, or the file's name.
        question: what it asks, or "".
        content: the cells, as safe HTML.
        failure: which cell ended it and why, or "".
        synthetic: whether an output says that its data is synthetic.
    """

    title: str
    question: str = ""
    content: Markup = Markup("")
    failure: str = ""
    synthetic: bool = False


def read_page(path: Path, links: dict[str, str] | None = None) -> Page:
    """Read an executed notebook, as papermill leaves it, and make everything in it safe to show.

    Args:
        links: {name of a notebook: address of its page}; a link to any other file is only text.

    Raises:
        MvlError: the file is not a readable notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        return _page(notebook, path.stem, links or {})
    except Exception as error:  # nbformat has no common class for what a broken file raises
        raise MvlError(f"{path.name} is no readable notebook: {error}") from error


def _page(notebook, name, links):
    page = Page(name)
    tags = {id(cell): cell.metadata.get("tags", ()) for cell in notebook.cells}
    cells = [c for c in notebook.cells if "papermill-error-cell-tag" not in tags[id(c)]]
    injected = any("injected-parameters" in tags[id(cell)] for cell in cells)
    texts = [_markdown_of(output) for cell in cells for output in cell.get("outputs", ())]
    # `notebook.banner` says so, or a table's caption does.
    page.synthetic = any(re.search("⚠ Synthetic data|SYNTHETIC DATA", text) for text in texts)
    if cells and cells[0].cell_type == "markdown":
        first, _, rest = cells[0].source.lstrip().partition("\n")
        if first.startswith("# "):  # it becomes the page's own heading
            page.title, cells[0].source = _soup(_html(first[2:])).get_text().strip() or name, rest
        if asked := re.search(r"\*\*The question: (.+?)\*\*", cells[0].source):
            question = _soup(_html(asked[1])).get_text().strip()
            page.question = question[:1].upper() + question[1:]
    number = 0
    for cell in cells:
        number += "injected-parameters" not in tags[id(cell)]
        for output in cell.get("outputs", ()):
            if output.output_type == "error" and "raises-exception" not in tags[id(cell)]:
                text = f"{output.ename}: {output.evalue}".strip(": ")
                page.failure = f"cell {number} of {len(cells) - injected} failed: {text}"
    shown = [c for c in cells if not (injected and "parameters" in tags[id(c)])]
    page.content = _content(notebook, shown, page, links)
    return page


def _markdown_of(output):
    text = output.get("data", {}).get("text/markdown", "")
    return text if isinstance(text, str) else ""


def _content(notebook, cells, page, links):
    """nbconvert's HTML of the cells, cleaned and arranged."""
    for number, cell in enumerate(cells):
        described = cell.metadata.get("alt") or _described(cell.source)
        # What a cell showed and took back leaves an output without content.
        outputs = [o for o in cell.get("outputs", ()) if o.get("data", True)]
        if outputs:
            cell.outputs = outputs
        for output in outputs:
            # Of its metadata, nbconvert would take addresses of pictures, sizes and frames.
            if "metadata" in output:
                alt = str(output.metadata.get("alt") or described)
                output.metadata = {form: {"alt": alt} for form in _FORMS[1:3]}
        cell.metadata, cell.id = {}, f"cell-{number}"
    notebook.cells, notebook.metadata = cells, {}
    html, _ = _exporter().from_notebook_node(notebook)
    soup = _soup(html)
    _arrange(soup, page, links)
    return Markup(str(soup))


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


def _described(source):
    """What the figure is that a cell draws, by the first line of its function's docstring."""
    drawn = [getattr(figures, name, None) for name in re.findall(r"figures\.(\w+)\(", source)]
    texts = [f.__doc__.partition("\n\n")[0] for f in drawn if getattr(f, "__wrapped__", None)]
    return " ".join(texts[-1].split()) if texts else ""


def _soup(html):
    return BeautifulSoup(html, "html.parser")


def _html(markdown):
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    return _clean(MarkdownWithMath(renderer).render(markdown))


def _clean(html):
    """HTML of which only what the allow-list names is HTML; the rest has become text."""
    from bleach import Cleaner

    # pandas puts a style sheet before each table: left out, where a script is shown as text.
    html = re.sub(r"<style\b.*?</style\s*>", "", str(html), flags=re.DOTALL | re.IGNORECASE)
    attributes = {
        "a": ["href"],
        "abbr": ["title"],
        "img": ["src", "alt"],
        "td": ["colspan", "rowspan"],
        "th": ["colspan", "rowspan"],
        # The highlighter's, which are of one or two letters.
        "span": lambda tag, name, value: name == "class" and len(value) <= 2,
    }
    protocols = {"http", "https", "mailto", "data"}
    return Cleaner(_TAGS, attributes, protocols, strip_comments=True).clean(html)


def _arrange(soup, page, links):
    """What a page wants of nbconvert's HTML, in the order of the document."""
    level, heading, count = 1, page.title, 0
    for tag in soup.find_all([*_HEADINGS, "a", "img", "table", "pre"]):
        if tag.name in _HEADINGS:
            # No level is skipped, whatever the notebook does.
            level = max(2, min(int(tag.name[1]), level + 1))
            tag.name, heading = f"h{level}", tag.get_text(" ", strip=True)
        elif tag.name == "a":
            target = tag.get("href", "")
            name = target.rpartition("/")[2].removesuffix(".ipynb")
            if target.endswith(".ipynb") and name in links:
                tag["href"] = links[name]
            elif not re.match(r"(https?|mailto):", target):
                tag.unwrap()
        elif tag.name == "img":
            count += _arrange_image(soup, tag, heading, count + 1)
        elif tag.name == "table":
            _arrange_table(soup, tag)
        else:
            tag["tabindex"] = "0"  # a keyboard scrolls only what it can reach
    for stream in soup.select(".output_stderr"):
        details = soup.new_tag("details", attrs={"class": "messages"})
        stream.wrap(details)
        summary = soup.new_tag("summary")
        summary.string = "Messages"
        stream.insert_before(summary)
    if page.failure and (errors := soup.select(".output_error")):
        errors[-1]["id"] = "failure"


def _arrange_image(soup, image, heading, number):
    """Describe a picture, and frame one that is an output; how many figures it makes: 0 or 1."""
    text = (image.get("alt") or "").strip()
    if not _IMAGE.fullmatch(image.get("src", "")):
        text = text or "without description"
        # A badge: what it says is the text of its link.
        image.replace_with(text if image.find_parent("a") else f"[picture: {text}]")
        return 0
    if not text or text.startswith("No description has been provided"):
        image["alt"] = f"Figure of the section “{heading}”."
    if not image.find_parent(class_=["output_png", "output_svg", "output_jpeg"]):
        return 0
    caption = soup.new_tag("figcaption")
    caption.string = f"Figure {number}. {heading}"
    frame = {"class": "scroll picture", "tabindex": "0", "role": "group", "aria-label": "picture"}
    scroll = image.wrap(soup.new_tag("div", attrs=frame))
    scroll.wrap(soup.new_tag("figure")).append(caption)
    return 1


def _arrange_table(soup, table):
    """Numbers to the right, names in one line, headings that say what they head, a frame."""
    rows = [row.find_all(["td", "th"], recursive=False) for row in table.find_all("tr")]
    for cell in table.find_all("th"):
        if not cell.get_text(strip=True):
            cell.name = "td"  # pandas heads its index with nothing
        else:
            cell["scope"] = "col" if cell.find_parent("thead") else "row"
    # Where a cell spans several columns or rows, those below it are not in their places.
    if not (table.find(colspan=True) or table.find(rowspan=True)):
        for column in zip(*rows, strict=False):
            body = [cell for cell in column if not cell.find_parent("thead")]
            texts = [cell.get_text(strip=True) for cell in body if cell.name == "td"]
            number = all(map(NUMBER.fullmatch, texts))
            if texts and (number or max(map(len, texts)) <= 32):
                for cell in column if number else body:
                    cell["class"] = "n" if number else "short"
    frame = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "table"}
    table.wrap(soup.new_tag("div", attrs=frame))
