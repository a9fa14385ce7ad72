"""`make images`: the panels and each notebook's first figure, as JupyterLab shows them.

    python tests/browser/screenshots.py [--to docs/images] [NOTEBOOK ...]

Runs every notebook (or those named by their beginning, `00 04`) from its paired text, on this
machine, in headless Chromium, and writes PNG files: of each panel in both themes, on a laptop and
on a wide screen, of every first figure in the light theme.  Ends with 1 when a cell fails or a
figure is cut off.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import lab as laboratory
from palette import small
from playwright.sync_api import Browser, Locator, Page, sync_playwright

IMAGES = laboratory.TESTS.parent / "docs" / "images"
PANELS = {
    "explorer": ("00", ".hspec-explorer:has(.hspec-grid)"),
    "tree": ("04", ".hspec-tree"),
    "timeline": ("06", ".hspec-explorer"),
}
LOOKS = [(theme, width) for theme in ("Light", "Dark") for width in (1280, 2560)]
MOST_BYTES = 3_000_000
# a figure is drawn again behind its panel's new width, which no event tells the end of
SETTLE_MS = 1500
_CUT_OFF = """(plots) => plots.filter((plot) => plot.querySelector(".main-svg")
    && plot.querySelector(".main-svg").getBoundingClientRect().width
        > plot.parentElement.getBoundingClientRect().width + 1).length"""


def pictures(page: Page, number: str, folder: Path) -> list[str]:
    """Take all pictures of the open notebook; returns what is wrong with it."""
    page.set_viewport_size({"width": 1280, "height": 1000})
    laboratory.theme(page, "Light")
    first = page.locator(".js-plotly-plot:has(.gtitle)").first
    wrong = []
    if first.count():
        take(first, folder / f"figure-{number}.png")
    for name, (where, selector) in PANELS.items():
        if where == number:
            wrong += looks(page, page.locator(selector).first, name, folder)
    return wrong


def looks(page: Page, panel: Locator, name: str, folder: Path) -> list[str]:
    """Take a panel in both themes and both widths; returns where a figure is cut off."""
    wrong = []
    # recordings are read in the background, and every figure gets its title then
    panel.locator(".gtitle").first.wait_for(state="attached")
    page.wait_for_timeout(10_000)
    for theme, width in LOOKS:
        laboratory.theme(page, theme)
        # as high as the panel, so that one picture holds it
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(SETTLE_MS)
        room = int(panel.bounding_box()["height"]) + 200
        page.set_viewport_size({"width": width, "height": max(room, 1000)})
        take(panel, folder / f"{name}-{theme.lower()}-{width}.png")
        if panel.locator(".js-plotly-plot").evaluate_all(_CUT_OFF):
            wrong.append(f"{name}, {theme}, {width} pixels: a figure is cut off")
    return wrong


def take(what: Locator, path: Path) -> None:
    """Write a picture of one element."""
    what.evaluate("(element) => element.scrollIntoView({ block: 'center' })")
    what.page.wait_for_timeout(SETTLE_MS)
    path.write_bytes(small(what.screenshot(), what.page))


def visit(browser: Browser, lab: laboratory.Lab, source: Path, folder: Path) -> list[str]:
    """Run one notebook in a page of its own and take its pictures; returns what is wrong."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(120_000)
    try:
        laboratory.open_notebook(page, lab, lab.add(source.stem, source))
        laboratory.command(page, "application:toggle-left-area")
        laboratory.run_all(page, 240)
        failed = laboratory.errors_shown(page)
        return [*failed, *pictures(page, source.stem[:2], folder)]
    finally:
        page.close()
        lab.shut_kernels()


def main(folder: Path, wanted: list[str]) -> int:
    chromium = laboratory.find_chromium()
    if chromium is None:
        sys.exit("no picture taken: no chromium or chrome on the path, and CHROMIUM names none")
    sources = sorted(laboratory.NOTEBOOKS.glob("[0-9][0-9]_*.py"))
    sources = [one for one in sources if not wanted or one.name.startswith(tuple(wanted))]
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory() as own, sync_playwright() as playwright:
        browser = laboratory.launch(playwright, chromium)
        with laboratory.served(Path(own)) as lab:
            for source in sources:
                print(source.stem, flush=True)
                found = visit(browser, lab, source, folder)
                wrong += [f"{source.stem}: {text}" for text in found]
        browser.close()
    size = sum(path.stat().st_size for path in folder.glob("*.png"))
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        wrong.append(f"the pictures have {size} bytes together, at most {MOST_BYTES} are wanted")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=IMAGES)
    parser.add_argument("notebooks", nargs="*")
    given = parser.parse_args()
    sys.exit(main(given.to, given.notebooks))
