"""The explorer in JupyterLab, driven by keyboard and mouse in a real browser."""

import json
import os
import re
import subprocess
import sys
import time

import nbformat
import pytest

from mvl.files import REPOSITORY

#: Generous, for machines that do other work meanwhile; milliseconds.
START, STEP = 180_000, 30_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory, phantom):
    """The address of a notebook that explores a case of the phantom, served by JupyterLab."""
    folder = tmp_path_factory.mktemp("lab")
    source = (
        "import mvl\nfrom mvl.data.nifti import read_label\n\n"
        f"case = mvl.list_cases({str(phantom / 'Task04_Hippocampus')!r})[0]\n"
        "mvl.explore(case, prediction=read_label(case.label)[0][:, ::-1])"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "explore.ipynb")
    # Nothing is read from or written to the settings of whoever runs the tests.
    kinds = ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_SETTINGS")
    settings = {f"{kind}_DIR": str(folder / kind) for kind in (*kinds, "JUPYTERLAB_WORKSPACES")}
    news = folder / "JUPYTERLAB_SETTINGS" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={folder}"],
            env=os.environ | settings | {"IPYTHONDIR": str(folder), "PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        # It writes this page once it listens, after the file that has its address and token.
        runtime, give_up = folder / "JUPYTER_RUNTIME", time.monotonic() + START / 1000
        while not [*runtime.glob("jpserver-*-open.html")]:
            if time.monotonic() > give_up or server.poll() is not None:
                pytest.fail(f"JupyterLab did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)
        about = json.loads(next(runtime.glob("jpserver-*.json")).read_text())
        yield f"{about['url']}lab/tree/explore.ipynb?token={about['token']}"
    finally:
        server.terminate()  # takes its kernels with it
        server.wait(60)


@pytest.fixture(scope="module")
def page(browser, lab):
    """The notebook's page, its cell executed; the browser must have nothing to complain of."""
    page, complaints = browser.new_page(viewport={"width": 1400, "height": 1150}), []
    page.set_default_timeout(STEP)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto(lab, timeout=START)
    cell = page.locator(".jp-Notebook .jp-Cell").first
    cell.click()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=START)
    page.keyboard.press("Shift+Enter")
    begun = cell.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]+\]"))
    give_up = time.monotonic() + STEP / 1000
    while not begun.count() and time.monotonic() < give_up:
        page.wait_for_timeout(200)
    if not begun.count():  # a page under load may have missed the key
        cell.click()
        page.keyboard.press("Shift+Enter")
    page.locator("img.widget-image").wait_for(timeout=START)
    yield page
    page.close()
    assert not complaints


def step(page, act):
    """Press a key, or call a function, and wait for the picture that follows."""
    before = page.locator("img.widget-image").get_attribute("src")
    act() if callable(act) else page.keyboard.press(act)
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').src !== before", arg=before
    )


def readout(page, name):
    return page.locator(".widget-slider", has_text=name).locator(".widget-readout").inner_text()


def click_slider(page, name):
    page.locator(".widget-slider", has_text=name).locator(".noUi-handle").first.click()


def test_keys_step_through_the_slices(page, screenshots):
    page.screenshot(path=screenshots / "explorer-opened.png")
    first = int(readout(page, "axial"))
    click_slider(page, "axial")
    for keys, expected in (
        (["ArrowRight"], first + 1),
        (["ArrowRight", "ArrowLeft"], first + 1),
        (["Home"], 0),
    ):
        for key in keys:
            step(page, key)
        assert int(readout(page, "axial")) == expected
    step(page, "PageUp")
    assert int(readout(page, "axial")) > 1
    step(page, "End")
    # The keys went to the slider alone: JupyterLab has shortcuts on them, too.
    assert page.locator(".noUi-handle:focus").count() == 1
    page.keyboard.press("Tab")
    assert page.locator(".noUi-handle:focus").count() == 0


def test_contours_go_and_come_by_the_space_bar(page, screenshots):
    for shown in (False, True):
        for name in ("truth", "prediction", "crosshair"):
            switch = page.get_by_label(name)
            switch.focus()
            step(page, "Space")
            assert switch.is_checked() == shown
        page.screenshot(path=screenshots / f"explorer-{'all' if shown else 'bare'}.png")


def test_the_window_changes_and_is_taken_back(page, screenshots):
    start = readout(page, "window")
    click_slider(page, "window")
    for _ in range(5):
        step(page, "ArrowRight")
    assert readout(page, "window") != start
    page.screenshot(path=screenshots / "explorer-windowed.png")
    step(page, page.get_by_role("button", name="auto").click)
    assert readout(page, "window") == start
