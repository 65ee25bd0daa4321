"""The report of a batch run, opened from its folder in a real browser."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mvl.runner import execute
from mvl.show.report import write_report
from mvl.study.profiles import load_profile

ROOT = Path(__file__).resolve().parents[2]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def report(tmp_path_factory, browser):
    """index.html of a small repository whose two notebooks have been executed."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "profiles", root / "profiles")
    shutil.copytree(
        ROOT / "results" / "reference",
        root / "results" / "reference",
        ignore=shutil.ignore_patterns("best"),
    )
    draw = "import matplotlib.pyplot as plt\n\nplt.plot([1, 2, 4]);"
    stories = {
        "00_first": [
            "# First\n\n**The question: does it open?** See [next](01_second.ipynb).",
            draw,
        ],
        "01_second": ["# Second", "print('a long line ' * 60)"],
    }
    (root / "notebooks").mkdir()
    for name, (text, code) in stories.items():
        parameters = new_code_cell("profile = ''", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[new_markdown_cell(text), parameters, new_code_cell(code)])
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    assert all(outcome.status == "ok" for outcome in execute.run("smoke", root=root).values())
    return write_report(load_profile("smoke", root), {}, root)


@pytest.fixture
def opened(browser, report):
    """`opened(name, **options)`: a page of the report; complaints and requests are kept."""
    contexts = []

    def open_page(name="index.html", **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.complaints, page.asked = [], []
        page.on("pageerror", lambda error: page.complaints.append(f"uncaught: {error}"))
        page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((report.parent / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "size"), [("phone", PHONE), ("desk", DESK)])
def test_a_page_fits_its_screen_and_asks_nobody(opened, screenshots, device, size, scheme):
    page = opened(viewport=size, color_scheme=scheme)
    page.screenshot(path=screenshots / f"report-{device}-{scheme}.png", full_page=True)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size["width"]
    assert page.locator("img").count() > 0
    for image in page.locator("img").all():
        assert image.get_attribute("alt")
        assert image.evaluate("picture => picture.complete && picture.naturalWidth > 0")
    assert not page.complaints
    assert {url.partition(":")[0] for url in page.asked} <= {"file", "data"}


def test_verdicts_are_visible_on_a_phone(opened):
    page = opened(viewport=PHONE)
    cells = page.locator("table.stacked td[data-name=verdict]:visible").all()
    assert cells
    for cell in cells:
        box = cell.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


def test_a_report_is_at_most_twelve_screens_on_a_desk(opened):
    page = opened(viewport={"width": 1440, "height": 900})
    assert page.evaluate("document.documentElement.scrollHeight") <= 12 * 900


def test_dark_is_dark_and_paper_is_white(opened):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = (background(opened(color_scheme=scheme)) for scheme in ("light", "dark"))
    printed = opened(color_scheme="dark")
    printed.emulate_media(media="print")
    assert len({light, dark}) == 2 and background(printed) != dark


def test_a_reader_goes_from_notebook_to_notebook_and_back(opened, screenshots):
    page = opened(viewport=DESK)
    page.locator("a[href='00_first.html']").first.click()
    page.screenshot(path=screenshots / "report-notebook.png", full_page=True)
    page.get_by_role("link", name="next", exact=True).click()
    assert page.url.endswith("01_second.html")
    page.get_by_role("link", name="Report").click()
    assert page.url.endswith("index.html") and not page.complaints
