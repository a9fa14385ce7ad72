"""Look at a notebook as a person would: in JupyterLab, both themes; the Explorer dragged, measured.

    python tests/browser/screenshots.py FOLDER [NOTEBOOK]

Starts a JupyterLab of its own with settings of its own, runs all cells of NOTEBOOK (one over
invented runs when none is given) in headless Chromium and leaves pictures in FOLDER: of the
Explorer, or where a notebook has none, of every figure.  Exits 1 when the panel does not do what
was asked of it or a figure is cut off.  CHROMIUM names the browser, else Playwright's own.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import jupytext
from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).parent
URL = "http://127.0.0.1:8931"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
LAB = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=8931"]
LAB += ["--ServerApp.port_retries=0", "--IdentityProvider.token=look"]
INVENTED = f"""# %%
import sys
sys.path.insert(0, {str(HERE.parent)!r})
import synthetic
from hspec_lab import Explorer
# %%
store, config = synthetic.write_synthetic_store("runs")
Explorer(store, measure=synthetic.quick_measure, config=config)
"""


def main(folder: Path, notebook: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if notebook:
        jupytext.write(jupytext.read(notebook), folder / "look.ipynb")
    else:
        invented = jupytext.reads(INVENTED, "py:percent")
        invented.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        jupytext.write(invented, folder / "look.ipynb")
    own = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    env = os.environ | {name: str(folder.resolve() / path) for name, path in own.items()}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "HSPEC_TEST_PAUSE": "0.8"}
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(LAB, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        _until_up(server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("CHROMIUM"), args=FLAGS
            )
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(120_000)
            expect.set_options(timeout=60_000)
            run_all(page)
            has_panel = "Explorer(" in (folder / "look.ipynb").read_text(encoding="utf-8")
            (look_at_panel if has_panel else look_at_figures)(page, folder)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def run_all(page: Page) -> None:
    """Open the notebook and run it from top to bottom."""
    page.goto(f"{URL}/lab/tree/look.ipynb?token=look&reset")
    page.locator(".jp-Notebook").wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    # the menu answers before the notebook behind it does
    page.wait_for_timeout(4000)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Escape")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def theme(page: Page, name: str) -> None:
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).first.hover()
    page.get_by_text(f"JupyterLab {name}", exact=True).click()


def check_whole(plot, name: str) -> None:
    """A figure must fit the room it has."""
    drawn, room = plot.locator(".main-svg").first.bounding_box(), plot.bounding_box()
    assert drawn["width"] <= room["width"] + 1, f"{name}: a figure is cut off"


def look_at_figures(page: Page, folder: Path) -> None:
    """Take a picture of every figure, with the text around it, in both themes."""
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.keyboard.press("Control+b")
    for name, width in (("Light", 1280), ("Dark", 1280), ("Dark", 2560)):
        theme(page, name)
        page.set_viewport_size({"width": width, "height": 1100})
        page.wait_for_timeout(1500)
        headings = page.locator(".jp-MarkdownOutput h1, .jp-MarkdownOutput h2")
        for number in range(headings.count()):
            headings.nth(number).scroll_into_view_if_needed()
            headings.nth(number).evaluate("e => e.scrollIntoView({block: 'start'})")
            page.wait_for_timeout(1500)
            page.screenshot(path=folder / f"{name.lower()}-{width}-{number}.png")
            for plot in page.locator(".js-plotly-plot").all():
                check_whole(plot, f"{name} {width} {number}")


def look_at_panel(page: Page, folder: Path) -> None:
    """Drive the panel and take the pictures."""
    panel = page.locator(".hspec-explorer").first
    # a figure that has a title has been drawn; before that it is an empty frame
    expect(panel.locator(".gtitle")).to_have_count(2)

    def picture(name: str) -> None:
        page.wait_for_timeout(1500)
        panel.scroll_into_view_if_needed()
        page.screenshot(path=folder / f"{name}.png")
        for plot in panel.locator(".js-plotly-plot").all():
            check_whole(plot, name)

    theme(page, "Light")  # which one Lab starts in is not ours to say
    picture("light-1280-sidebar")
    page.keyboard.press("Control+b")
    picture("light-1280")
    page.set_viewport_size({"width": 2560, "height": 1200})
    picture("light-2560")
    theme(page, "Dark")
    picture("dark-2560")
    page.set_viewport_size({"width": 1280, "height": 1000})
    picture("dark-1280")
    panel.get_by_text("eagle2", exact=True).first.click()
    handle = panel.locator(".noUi-handle").first
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    status = panel.get_by_role("status")
    expect(status).to_contain_text("not measured yet")
    picture("moved")
    panel.get_by_text("Measure", exact=True).click()
    expect(status).to_contain_text("prompt")
    picture("measuring")
    expect(status).to_contain_text("measured on")
    picture("measured")


def _until_up(server: subprocess.Popen) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise SystemExit("JupyterLab did not start; see server.log")
        try:
            urlopen(f"{URL}/api/status?token=look").close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("JupyterLab did not answer within a minute")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
