"""The explorer in JupyterLab, driven by keyboard and mouse in a real browser."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Generous, for machines that do other work meanwhile.
START_S = 180
STEP_MS = 30_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory, phantom):
    """The address of a notebook that explores a case of the phantom, served by JupyterLab."""
    folder = tmp_path_factory.mktemp("lab")
    source = (
        "import mvl\nfrom mvl.data.nifti import read_label\n"
        "from mvl.data.sources import list_cases\n\n"
        f"case = list_cases({str(phantom / 'Task04_Hippocampus')!r})[0]\n"
        "truth = read_label(case.label)[0] > 0\n"
        "explorer = mvl.explore(case, prediction=truth[:, ::-1])\nexplorer"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (folder / "served").mkdir()
    nbformat.write(notebook, folder / "served" / "explore.ipynb")
    # Nothing is read from or written to the settings of whoever runs the tests.
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "IPYTHONDIR": str(folder)}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "PYTHONPATH": str(ROOT)}
    news = folder / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={folder / 'served'}"],
            env=os.environ | own,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _address(folder / "RUNTIME", server)
        finally:
            server.terminate()  # takes its kernels with it
            server.wait(60)


def _address(runtime, server):
    """Where the notebook is, once the server has written down where it listens."""
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and server.poll() is None:
        time.sleep(0.2)
        for path in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):  # half written
                found = json.loads(path.read_text())
                return f"{found['url']}lab/tree/explore.ipynb?token={found['token']}"
    pytest.fail(f"JupyterLab did not start: {(runtime.parent / 'log').read_text()[-2000:]}")


@pytest.fixture(scope="module")
def complaints():
    """What the browser's console has complained of."""
    return []


@pytest.fixture(scope="module")
def page(browser, lab, complaints):
    """The notebook's page, its cell executed."""
    page = browser.new_page(viewport={"width": 1400, "height": 1150})
    page.set_default_timeout(STEP_MS)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto(lab, timeout=1000 * START_S)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(
        timeout=1000 * START_S
    )
    page.keyboard.press("Shift+Enter")
    page.locator("img.widget-image").wait_for(timeout=1000 * START_S)
    yield page
    page.close()


@pytest.fixture(scope="module")
def screenshot(page, screenshots):
    return lambda name: page.screenshot(path=screenshots / f"explorer-{name}.png")


def picture(page):
    """The address of the picture's bytes, which is another one for other bytes."""
    return page.locator("img.widget-image").get_attribute("src")


def changed_from(page, before):
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').src !== before", arg=before
    )
    return picture(page)


def slider(page, name):
    return page.locator(".widget-slider", has_text=name).locator(".noUi-handle").first


def value(page, name):
    return int(
        page.locator(".widget-slider", has_text=name).locator(".widget-readout").inner_text()
    )


def step(page, key):
    """Press a key and wait for the picture that follows."""
    before = picture(page)
    page.keyboard.press(key)
    changed_from(page, before)


def test_keys_step_through_the_slices(page, screenshot):
    screenshot("opened")
    first = value(page, "axial")
    slider(page, "axial").click()
    step(page, "ArrowRight")
    assert value(page, "axial") == first + 1
    step(page, "ArrowRight")
    step(page, "ArrowLeft")
    assert value(page, "axial") == first + 1
    screenshot("stepped")
    step(page, "Home")
    assert value(page, "axial") == 0
    step(page, "PageUp")
    assert value(page, "axial") > 1
    step(page, "End")
    # The keys went to the slider alone: JupyterLab has shortcuts on them, too.
    assert page.locator(".noUi-handle:focus").count() == 1
    page.keyboard.press("Tab")
    assert page.locator(".noUi-handle:focus").count() == 0


def test_contours_go_and_come_by_the_space_bar(page, screenshot):
    for name in ("truth", "prediction", "crosshair"):
        toggle = page.locator(".widget-toggle-button", has_text=name)
        toggle.focus()
        assert "mod-active" in toggle.get_attribute("class")
        step(page, "Space")
        assert "mod-active" not in toggle.get_attribute("class")
    screenshot("bare")
    for name in ("truth", "prediction", "crosshair"):
        page.locator(".widget-toggle-button", has_text=name).focus()
        step(page, "Space")


def test_the_window_changes_and_is_taken_back(page, screenshot):
    window = page.locator(".widget-slider", has_text="window")
    start = window.locator(".widget-readout").inner_text()
    window.locator(".noUi-handle").first.click()
    for _ in range(20):
        step(page, "ArrowRight")
    assert window.locator(".widget-readout").inner_text() != start
    screenshot("windowed")
    before = picture(page)
    page.get_by_role("button", name="auto").click()
    changed_from(page, before)
    assert window.locator(".widget-readout").inner_text() == start


def test_the_browser_had_nothing_to_complain_of(page, complaints):
    assert not complaints
