"""An executed notebook as safe, static HTML: what a page of the report shows of it.

nbconvert's own page asks content delivery networks for require.js and MathJax. Here nbconvert
turns Markdown into HTML, and the rest is done so that a page asks for nothing: images are data
URIs, formulas are drawn, HTML that a notebook wrote passes an allow-list, and whatever else it
holds (scripts, styles, frames, pictures from elsewhere) is shown as text or left out.
"""

import base64
import re
import struct
from dataclasses import dataclass, field

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

from mvl.errors import MvlError
from mvl.show import figures

#: What HTML from a notebook may hold. Everything else is shown as the text that it is.
# fmt: off
_TAGS = frozenset((
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "dd", "del", "div", "dl", "dt", "em",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre", "s",
    "small", "span", "strong", "sub", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr",
    "u", "ul",
))
# fmt: on
_IMAGE = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/]+=*")
#: Frames a formula's number while HTML is cleaned and arranged; private use, so nobody's text.
_OPEN, _CLOSE = "\ue000", "\ue001"
_PAPERMILL = "papermill-error-cell-tag"
_ONE = r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?%)?"
_NUMBER = re.compile(rf"{_ONE}(( ±| to) {_ONE})?|nan|NaN|–")
#: So many letters stand in one line of a table: a row of six lines for a name is hard to read.
_SHORT = 32


@dataclass(frozen=True)
class Block:
    """One piece of a notebook's page.

    Attributes:
        kind: "html" (content is safe HTML), "code" (highlighted), "text", "stderr", "error" or
            "figure" (content is a data URI).
        content: see `kind`.
        label: of a code cell what it is, of a figure what stands below it.
        alt: of a figure, in words.
        size: of a figure (width, height) in pixels, or None where it is not known.
    """

    kind: str
    content: str
    label: str = ""
    alt: str = ""
    size: tuple[int, int] | None = None


@dataclass
class Page:
    """One executed notebook.

    Attributes:
        name: the file's name without its ending.
        title: its first heading.
        question: what it asks, as text; "" where its first cell asks nothing.
        answer: what its last cell answers, as safe HTML.
        blocks: list of `Block`.
        failure: which cell ended it and why, or "".
        synthetic: whether an output says that its data is synthetic.
        executed: papermill's start (ISO 8601) and duration in seconds, or None.
    """

    name: str
    title: str = ""
    question: str = ""
    answer: Markup = Markup("")
    blocks: list = field(default_factory=list)
    failure: str = ""
    synthetic: bool = False
    executed: tuple[str, float] | None = None


def read_page(path, links=None):
    """Read an executed notebook and make everything in it ready to be shown.

    Args:
        path: an .ipynb file, as papermill leaves it.
        links: {name of a notebook: address of its page}; a link to any other file is only text.

    Returns:
        A `Page`.

    Raises:
        MvlError: the file is no notebook.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        return _Reader(path.stem, links or {}).read(notebook)
    except MvlError:
        raise
    except Exception as error:  # nbformat has no common class for what a broken file raises
        raise MvlError(f"{path.name} is no readable notebook: {error}") from error


class _Reader:
    """Goes through a notebook's cells and remembers where it is."""

    def __init__(self, name, links):
        self.page = Page(name, title=name)
        self.links = links
        self.level = 1
        self.heading = ""
        self.ids = set()
        self.figures = 0

    def read(self, notebook):
        page = self.page
        ran = notebook.metadata.get("papermill", {})
        if ran.get("start_time") and ran.get("duration") is not None:
            page.executed = (str(ran["start_time"]), float(ran["duration"]))
        cells = [c for c in notebook.cells if _PAPERMILL not in c.metadata.get("tags", ())]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        # `display.banner` says so at the top of every notebook that opens a volume.
        page.synthetic = any("⚠ Synthetic data" in _mime(o, "text/markdown") for o in outputs)
        if cells and cells[0].cell_type == "markdown":
            self._opening(cells[0])
        injected = any("injected-parameters" in c.metadata.get("tags", ()) for c in cells)
        number = 0
        for cell in cells:
            tags = cell.metadata.get("tags", ())
            number += "injected-parameters" not in tags
            if cell.cell_type == "markdown":
                self._html(_markdown(cell.source, cell.get("attachments")))
            elif cell.cell_type == "code" and not (injected and "parameters" in tags):
                self._code(cell, tags, number, len(cells) - injected)
        if cells and cells[-1].cell_type == "code" and not page.failure:
            answers = filter(None, (_mime(o, "text/markdown") for o in cells[-1].outputs))
            page.answer = self._fragment("\n\n".join(answers))
        return page

    def _opening(self, cell):
        """Title and question, from the first cell; the title becomes the page's own heading."""
        first, _, rest = cell.source.lstrip().partition("\n")
        if first.startswith("# "):
            self.page.title = _as_text(first[2:]) or self.page.name
            cell.source = rest
        if asked := re.search(r"\*\*The question: (.+?)\*\*", cell.source):
            question = _as_text(asked[1])
            self.page.question = question[:1].upper() + question[1:]

    def _code(self, cell, tags, number, cells):
        if cell.source.strip():
            label = "The profile's parameters" if "injected-parameters" in tags else ""
            self._add("code", _highlighted(cell.source), label)
        for output in _joined(cell.outputs):
            kind = output.output_type
            if kind == "stream":
                self._add("stderr" if output.name == "stderr" else "text", _plain(output.text))
            elif kind == "error" and "raises-exception" in tags:
                self._add("stderr", _plain("\n".join(output.traceback)))
            elif kind == "error":
                said = f"{output.ename}: {output.evalue}".strip(": ")
                self.page.failure = f"cell {number} of {cells} failed: {_plain(said)}"
                self._add("error", _plain("\n".join(output.traceback)), self.page.failure)
            else:
                self._output(output, cell)

    def _output(self, output, cell):
        """The richest form of an output that needs no script."""
        for mime in ("image/svg+xml", "image/png", "image/jpeg"):
            if content := _mime(output, mime):
                return self._figure(mime, content, output, cell)
        if text := _mime(output, "text/markdown"):
            return self._html(_markdown(text))
        if text := _mime(output, "text/html"):
            return self._html(text)
        if text := _mime(output, "text/latex"):
            return self._html(_markdown(text))
        return self._add("text", _plain(_mime(output, "text/plain")))

    def _figure(self, mime, content, output, cell):
        if mime == "image/svg+xml":
            content = base64.b64encode(content.encode()).decode()
        source = f"data:{mime};base64,{''.join(content.split())}"
        if not _IMAGE.fullmatch(source):
            return self._add("text", "[a picture that cannot be read]")
        self.figures += 1
        label = f"Figure {self.figures}. {self.heading or self.page.title}"
        alt = output.metadata.get("alt") or cell.metadata.get("alt") or _described(cell.source)
        alt = str(alt or f"Figure of the section “{self.heading or self.page.title}”.")
        size = _png_size(content) if mime == "image/png" else None
        return self._add("figure", source, label, alt, size)

    def _add(self, kind, content, label="", alt="", size=None):
        if content:
            self.page.blocks.append(Block(kind, content, label, alt, size))

    def _html(self, given):
        html, formulas = given if isinstance(given, tuple) else (given, [])
        self._add("html", _finished(self._arranged(_clean(html)), formulas))

    def _fragment(self, markdown):
        """Safe HTML for another page: without headings, addresses within this page, pictures."""
        html, formulas = _markdown(markdown)
        soup = _soup(_clean(html))
        for image in soup.find_all("img"):
            image.replace_with(image.get("alt") or "")
        for heading in soup.find_all(_HEADINGS):
            heading.name = "p"
        for link in soup.find_all("a"):
            link.unwrap()
        _arrange_tables(soup)
        return _finished(soup, formulas)

    def _arranged(self, html):
        """Headings in order below the page's own, links that lead somewhere, tables that scroll."""
        soup = _soup(html)
        for heading in soup.find_all(_HEADINGS):
            # No level is skipped, whatever the notebook does.
            self.level = max(2, min(int(heading.name[1]), self.level + 1))
            heading.name = f"h{self.level}"
            self.heading = heading.get_text(" ", strip=True)
            heading["id"] = self._free_id(self.heading)
        for link in soup.find_all("a"):
            self._arrange_link(link)
        for image in soup.find_all("img"):
            if not _IMAGE.fullmatch(image.get("src", "")):
                said = image.get("alt") or "without description"
                # A badge: what it says is the text of its link.
                image.replace_with(said if image.find_parent("a") else f"[picture: {said}]")
            elif not (image.get("alt") or "").strip():
                image["alt"] = f"Picture of the section “{self.heading or self.page.title}”."
        _arrange_tables(soup)
        return soup

    def _arrange_link(self, link):
        target = link.get("href", "")
        name = target.rpartition("/")[2].removesuffix(".ipynb")
        if re.match(r"(https?|mailto):", target):
            return
        if target.endswith(".ipynb") and name in self.links:
            link["href"] = self.links[name]
        else:
            link.unwrap()

    def _free_id(self, text):
        base = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
        # Two letters, so that no section is taken for a landmark of the page.
        found, number = f"s-{base}", 1
        while found in self.ids:
            number += 1
            found = f"s-{base}-{number}"
        self.ids.add(found)
        return found


_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]


def _mime(output, mime):
    """One form of an output as text, "" where it has none."""
    content = output.get("data", {}).get(mime, "")
    return content if isinstance(content, str) else ""


def _joined(outputs):
    """Outputs with streams that follow each other made one, as a terminal would have shown them."""
    found = []
    for output in outputs:
        stream = output.get("name") if output.output_type == "stream" else None
        if stream and found and found[-1].get("name") == stream:
            text = found[-1].text + output.text
            found[-1] = type(output)(found[-1] | {"text": text})
        else:
            found.append(output)
    return found


def _plain(text):
    """Text as a terminal would have left it: no colours, progress bars in their last state."""
    from nbconvert.filters import strip_ansi

    lines = strip_ansi(text).replace("\r\n", "\n").split("\n")
    kept = (line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines)
    return "\n".join(kept).strip("\n")


def _highlighted(source):
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return Markup(highlight(source, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip("\n"))


def _described(source):
    """What the figure is that a cell draws, by the first line of its function's docstring."""
    drawn = [getattr(figures, name, None) for name in re.findall(r"figures\.(\w+)\(", source)]
    texts = [f.__doc__.partition("\n\n")[0] for f in drawn if getattr(f, "__wrapped__", None)]
    return " ".join(texts[-1].split()) if texts else ""


def _png_size(content):
    """(width, height) of a PNG in base64, from its header."""
    head = base64.b64decode(content[:32])
    return struct.unpack(">II", head[16:24]) if head[:8] == b"\x89PNG\r\n\x1a\n" else None


def _soup(html):
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser")


def _clean(html):
    """HTML of which only what the allow-list names is HTML; the rest has become text."""
    from bleach import Cleaner

    # pandas puts a style sheet before each table: left out, where a script is shown as text.
    html = re.sub(r"<style\b.*?</style\s*>", "", html, flags=re.DOTALL | re.IGNORECASE)
    attributes = {
        "a": ["href"],
        "abbr": ["title"],
        "img": ["src", "alt"],
        "td": ["colspan", "rowspan"],
        "th": ["colspan", "rowspan"],
    }
    protocols = {"http", "https", "mailto", "data"}
    return Cleaner(_TAGS, attributes, protocols, strip_comments=True).clean(html)


def _arrange_tables(soup):
    """Numbers to the right, headings that say what they head, and a frame that scrolls."""
    for table in soup.find_all("table"):
        columns, heads = {}, {}
        for row in table.find_all("tr"):
            in_head = row.find_parent("thead") is not None
            for place, cell in enumerate(row.find_all(["td", "th"], recursive=False)):
                if cell.name == "th" and not cell.get_text(strip=True):
                    cell.name = "td"  # pandas heads its index with nothing
                elif cell.name == "th":
                    cell["scope"] = "col" if in_head else "row"
                (heads if in_head else columns).setdefault(place, []).append(cell)
        # Where a cell spans several columns or rows, those below it are not in their places.
        spanned = table.find(colspan=True) or table.find(rowspan=True)
        for place, cells in columns.items():
            cells = [cell for cell in cells if cell.name == "td"]
            if spanned or not cells:
                continue
            texts = [cell.get_text(strip=True) for cell in cells]
            if all(map(_NUMBER.fullmatch, texts)):
                for cell in cells + heads.get(place, []):
                    cell["class"] = "n"
            elif max(map(len, texts)) <= _SHORT:
                for cell in cells:
                    cell["class"] = "short"
        # A keyboard scrolls only what it can reach.
        frame = soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "group"})
        frame["aria-label"] = "table"
        table.wrap(frame)


# --- Markdown and formulas -----------------------------------------------------------------


def _markdown(source, attachments=None):
    """(HTML with a mark where each formula stands, the formulas)."""
    from nbconvert.filters.markdown_mistune import (
        InvalidNotebook,
        IPythonRenderer,
        MarkdownWithMath,
    )

    class Renderer(IPythonRenderer):
        """nbconvert's, but for formulas: it leaves these to MathJax."""

        def __init__(self):
            super().__init__(escape=False, exclude_anchor_links=True, attachments=attachments)
            self.formulas = []

        def block_math(self, body):
            return self._keep(body, True)

        def inline_math(self, body):
            return self._keep(body, False)

        def latex_environment(self, name, body):
            return self._keep(body, True)

        def _keep(self, tex, alone):
            self.formulas.append((tex, alone))
            return f"{_OPEN}{len(self.formulas) - 1}{_CLOSE}"

    renderer = Renderer()
    source = source.translate({ord(_OPEN): None, ord(_CLOSE): None})
    try:
        html = MarkdownWithMath(renderer).render(source)
    except InvalidNotebook as error:
        return str(escape(f"[{error}]")), []
    return html, renderer.formulas


def _as_text(markdown):
    """Markdown without its marks, formulas as TeX."""
    html, formulas = _markdown(markdown.strip())
    text = _soup(_clean(html)).get_text().strip()
    for number, (tex, _) in enumerate(formulas):
        text = text.replace(f"{_OPEN}{number}{_CLOSE}", tex)
    return text


def _finished(soup, formulas):
    """Arranged HTML with its formulas drawn."""

    def drawn(mark):
        number = int(mark[1])
        return str(_formula(*formulas[number])) if number < len(formulas) else ""

    return Markup(re.sub(f"{_OPEN}(\\d+){_CLOSE}", drawn, str(soup).strip()))


def _formula(tex, alone):
    """A formula as a drawing in the text's colour and size; what cannot be drawn stays TeX.

    Args:
        tex: without dollars.
        alone: in a line of its own.
    """
    tex = " ".join(tex.split())
    try:
        with mpl.rc_context({"mathtext.fontset": "stix"}):
            outline = TextPath((0, 0), f"${tex}$", size=100)
    except ValueError:
        return Markup('<code class="tex">{}</code>').format(tex)
    if not len(outline.vertices):
        return Markup("")
    box = outline.get_extents()
    low, high = min(box.y0, 0), max(box.y1, 0)
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    steps = []
    for points, code in outline.iter_segments(curves=True, simplify=False):
        if code == Outline.CLOSEPOLY:
            steps.append("Z")
        elif code in letters:
            # A picture's y goes down, a formula's up.
            pairs = zip(points[::2], points[1::2], strict=True)
            steps.append(
                letters[code] + " ".join(f"{x - box.x0:.1f} {high - y:.1f}" for x, y in pairs)
            )
    svg = Markup(
        '<svg class="math{}" role="img" aria-label="{}" viewBox="0 0 {:.1f} {:.1f}" '
        'style="width:{:.3f}em;height:{:.3f}em;vertical-align:{:.3f}em"><path d="{}"/></svg>'
    )
    width, height = box.width, high - low
    # 112: at 100 units an em the letters would look smaller than those around them.
    sizes = (width / 100 * 1.12, height / 100 * 1.12, low / 100 * 1.12)
    return svg.format(" alone" if alone else "", tex, width, height, *sizes, "".join(steps))
