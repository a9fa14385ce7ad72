"""A JupyterLab and a browser for the tests of this folder, or the word that there is no browser."""

import os
import re

import lab as laboratory
import pytest
from playwright.sync_api import sync_playwright

NO_CHROMIUM = "browser tests skipped: no chromium"
# what JupyterLab itself complains of, whatever a notebook does; each with its reason
ALLOWED: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server over an empty folder; pretended measuring takes some seconds."""
    if laboratory.find_chromium() is None:
        if os.environ.get("HSPEC_NEEDS_BROWSER") == "1":
            pytest.fail("no chromium on the path, and HSPEC_NEEDS_BROWSER=1 asks for one")
        pytest.skip(NO_CHROMIUM)
    folder = tmp_path_factory.mktemp("lab")
    with laboratory.served(folder, HSPEC_TEST_PAUSE="1") as lab:
        yield lab


# of a module, not a session: playwright's loop must be gone when other files start their own
@pytest.fixture(scope="module")
def context(lab):
    """A browser window as large as a laptop's."""
    with sync_playwright() as playwright:
        browser = laboratory.launch(playwright, laboratory.find_chromium())
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(60_000)
        context.complaints = []
        context.on("console", lambda message: _heard(context, message.type, message.text))
        context.on("weberror", lambda error: _heard(context, "error", str(error.error)))
        yield context
        browser.close()


@pytest.fixture
def quiet(context):
    """After a test, nothing must stand in the browser's console as an error."""
    context.complaints.clear()
    yield
    assert context.complaints == []


@pytest.fixture
def opened(context, lab, quiet):
    """Opens a notebook in a tab of its own and runs all its cells."""
    pages, names = [], []

    def open(name, source, timeout_s=120):
        page = context.new_page()
        pages.append(page)
        names.append(f"{name}.ipynb")
        laboratory.open_notebook(page, lab, lab.add(name, source))
        laboratory.run_all(page, timeout_s)
        return page

    yield open
    for page in pages:
        page.close()
    lab.shut_kernels(names)


def pytest_terminal_summary(terminalreporter):
    """Say in any case that nothing was looked at; a quiet run hides why tests are skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any(NO_CHROMIUM in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(NO_CHROMIUM)


def _heard(context, kind: str, text: str) -> None:
    if kind == "error" and not any(re.search(pattern, text) for pattern in ALLOWED):
        context.complaints.append(text)
