"""JupyterLab as a person meets it: a server of its own, headless Chromium, and a notebook in it.

Shared by the browser tests, the pictures and the benchmark; nothing here knows a panel.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import jupytext
import psutil
from playwright.sync_api import Browser, Page, Playwright, TimeoutError

TESTS = Path(__file__).parents[1]
NOTEBOOKS = TESTS.parent / "notebooks"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")
# a saved notebook would change under the next test; news would ask the network
SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}

# cells out of sight have no elements; the notebook's model knows them all
_CELLS = """[...jupyterapp.shell.currentWidget.content.model.cells]
    .filter((cell) => cell.type === "code")"""
_ERRORS = f"""{_CELLS}.flatMap((cell) => cell.outputs.toJSON())
    .filter((output) => output.output_type === "error"
        || output.name === "stderr" && String(output.text).includes("Traceback"))
    .map(({{ ename, evalue, text }}) => ename ? `${{ename}}: ${{evalue}}` : String(text))"""


def find_chromium() -> str | None:
    """The browser this machine has: $CHROMIUM, else the first known name on the path."""
    named = os.environ.get("CHROMIUM")
    found = (shutil.which(name) for name in ([named] if named else NAMES))
    return next((path for path in found if path), None)


def launch(playwright: Playwright, chromium: str) -> Browser:
    """Start that browser, headless."""
    return playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab whose files lie in `folder`."""

    url: str
    token: str
    folder: Path
    process: subprocess.Popen

    def ask(self, path: str, method: str = "GET"):
        """Call the server's own interface; the answer is parsed, None where there is none."""
        headers = {"Authorization": f"token {self.token}"}
        with urlopen(Request(f"{self.url}/api/{path}", headers=headers, method=method)) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def add(self, name: str, source: Path | str) -> str:
        """Place a notebook, from a paired file or from text, without outputs; returns its name."""
        if isinstance(source, Path):
            notebook = jupytext.read(source)
        else:
            notebook = jupytext.reads(source, "py:percent")
        # without pairing: nothing is written beside it
        notebook.metadata.pop("jupytext", None)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        jupytext.write(notebook, self.folder / f"{name}.ipynb")
        return f"{name}.ipynb"

    def kernel_id(self, name: str) -> str:
        """The kernel behind an open notebook."""
        return next(one["kernel"]["id"] for one in self.ask("sessions") if one["path"] == name)

    def kernel_process(self, name: str) -> psutil.Process:
        """The process of that kernel."""
        wanted = self.kernel_id(name)
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any(wanted in word for word in child.cmdline()):
                return child
        raise LookupError(f"{name} has no kernel process")

    def shut_kernels(self, names: list[str] | None = None) -> None:
        """End the kernels of these notebooks, or all, so that one does not slow the next."""
        for session in self.ask("sessions"):
            if names is None or session["path"] in names:
                self.ask(f"sessions/{session['id']}", "DELETE")


@contextmanager
def served(folder: Path, port: int | None = None, **environment: str) -> Iterator[Lab]:
    """Run JupyterLab over `folder`; settings, workspaces and the store lie below it too."""
    port, token = port or free_port(), secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=own_environment(folder) | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    lab = Lab(f"http://127.0.0.1:{port}", token, folder, process)
    try:
        until_up(lab.url, token, process, folder / "server.log")
        yield lab
        lab.shut_kernels()
    finally:
        process.terminate()
        process.wait(60)


def own_environment(folder: Path) -> dict[str, str]:
    """Variables for a server that leaves the user's own settings, and runs, alone."""
    settings = folder / "settings"
    for plugin, values in SETTINGS.items():
        package, name = plugin.split(":")
        path = settings / package / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    return os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "HSPEC_STORE": str(folder / "runs"),
        # what pretends to measure lies beside the tests; the kernel's child imports it too
        "PYTHONPATH": str(TESTS),
    }


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until_up(url: str, token: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until a server answers; RuntimeError with its last words when it does not."""
    request = Request(f"{url}/api/status", headers={"Authorization": f"token {token}"})
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            return urlopen(request).close()
        except OSError:
            time.sleep(0.1)
    said = log.read_text()[-2000:]
    raise RuntimeError(f"JupyterLab did not come up within 90 s:\n{said}")


def open_notebook(page: Page, lab: Lab, name: str) -> None:
    """Show a notebook and wait until its kernel is there and idle."""
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.wait_for()
    # the menus answer before the file behind them is there
    page.wait_for_function(
        """() => {
            const shown = jupyterapp.shell.currentWidget;
            return shown?.context?.isReady && shown.sessionContext?.isReady;
        }"""
    )
    until_idle(page)


def command(page: Page, name: str, **arguments) -> None:
    """Start a command of JupyterLab, as its menus do; what it is for must be waited for."""
    page.evaluate(
        "([name, given]) => { jupyterapp.commands.execute(name, given) }", [name, arguments]
    )


def run_all(page: Page, timeout_s: float = 120) -> None:
    """Run every cell and wait for the last, or the first that fails."""
    command(page, "notebook:clear-all-cell-outputs")
    page.wait_for_function(f"() => {_CELLS}.every((cell) => cell.executionCount === null)")
    command(page, "notebook:run-all-cells")
    try:
        page.wait_for_function(
            f"""() => {_CELLS}.every((cell) => cell.executionCount !== null
                && cell.executionState !== "running") || {_ERRORS}.length > 0""",
            timeout=timeout_s * 1000,
        )
    except TimeoutError as error:
        state = "(cell) => [cell.executionCount, cell.executionState]"
        cells = page.evaluate(f"() => {_CELLS}.map({state})")
        raise AssertionError(f"cells did not end within {timeout_s:.0f} s: {cells}") from error
    until_idle(page)


def restart_kernel(page: Page) -> None:
    """Restart the kernel as the menu does, and wait for the new one."""
    number = "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.connectionStatus"
    command(page, "notebook:restart-kernel")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    page.locator(".jp-Dialog").wait_for(state="detached")
    page.wait_for_function(f"{number} === 'connected'")
    until_idle(page)


def until_idle(page: Page) -> None:
    """Wait until the kernel has nothing to do."""
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()


def errors_shown(page: Page) -> list[str]:
    """What failed cells say, and tracebacks that a callback has printed."""
    return page.evaluate(f"() => {_ERRORS}")


def theme(page: Page, name: str) -> None:
    """Switch JupyterLab to its `Light` or `Dark` theme."""
    command(page, "apputils:change-theme", theme=f"JupyterLab {name}")
    light = "true" if name == "Light" else "false"
    page.locator(f"body[data-jp-theme-light={light}]").wait_for(state="attached")
