"""A real browser for the tests of this folder; they are skipped, with the reason, without one.

Chromium (chromium, chromium-browser or google-chrome on the path) is driven by Python's
playwright, whose own browsers are not used. Screenshots stay in results/screenshots.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

SCREENSHOTS = Path(__file__).resolve().parents[2] / "results" / "screenshots"


@pytest.fixture(scope="session")
def browser():
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        pytest.skip("needs Chromium, which is not installed")
    if find_spec("playwright") is None:
        pytest.skip("needs playwright, which is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox, since tests in a container run as root.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots():
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
