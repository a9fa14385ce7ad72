"""What a person waits for: JupyterLab in headless Chromium, a slider moved by keys.

    python benchmarks/browser.py [--moves 100] [--more 1000] [--json FILE]

Time runs from the key's own time stamp to the frame after plotly's `afterplot`, on the page's
clock; a view counts as repainted when it holds what it holds once all is quiet.  A move that a
view does not show (the same rows verified, say) does not count for that view.  Memory is the
kernel's resident set, before and after `--more` moves.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "tests")]

import lab as laboratory  # noqa: E402
from panel import Panel  # noqa: E402

from hspec_lab.widgets.pictures import VIEWS  # noqa: E402

FIRST_MS, ALL_MS, FIRST_FIGURE_S, GROWTH_MB = 100, 300, 20, 50
SHOWS_NOW = ("breakdown", "speedup")  # the bars, and the mark of the present setting
QUIET_MS = 250
NOTEBOOK = """# %%
import synthetic
from hspec_lab import Explorer
store, config = synthetic.write_synthetic_store("runs")
# %%
Explorer(store, config=config)
"""
# every repaint with what it shows: [view, ms, text]; `held` is what a view showed before the move
_LISTEN = """(grid) => {
    const held = (plot) => JSON.stringify(plot._fullData.map(({ x, y, z }) => [
        Array.from(x ?? []), Array.from(y ?? []), Array.from(z ?? [])]));
    const plots = [...grid.children].map((view) => view.querySelector(".js-plotly-plot"));
    window.moves = { key: 0, repaints: [], held: plots.map(held) };
    grid.closest(".hspec-explorer").addEventListener("keydown", (event) => {
        Object.assign(window.moves, { key: event.timeStamp, repaints: [] });
    }, true);
    plots.forEach((plot, view) => plot.on("plotly_afterplot", () => requestAnimationFrame(() => {
        const frame = new MessageChannel();
        frame.port1.onmessage = () =>
            window.moves.repaints.push([view, performance.now(), held(plot)]);
        frame.port2.postMessage(null);
    })));
}"""
_QUIET = """([quiet, room]) => {
    const { key, repaints } = window.moves, last = repaints.at(-1)?.[1] ?? key;
    return key > 0 && performance.now() - last > (repaints.length ? quiet : room);
}"""
# ms from the key to the first repaint that shows the last state; null where nothing changed
_TAKE = """() => {
    const { key, repaints, held } = window.moves;
    const found = held.map((before, view) => {
        const mine = repaints.filter((one) => one[0] === view), last = mine.at(-1)?.[2];
        if (last === undefined || last === before) return null;
        held[view] = last;
        return mine.find((one) => one[2] === last)[1] - key;
    });
    Object.assign(window.moves, { key: 0, repaints: [] });
    return found;
}"""


def moved(page: Page, panel: Panel, n_moves: int) -> np.ndarray:
    """Move the tree size key by key; ms to the repaint of each view, [moves, views], or NaN."""
    panel.root.locator(".hspec-grid").evaluate(_LISTEN)
    handle = panel.handle("tree size")
    times = []
    for number in range(n_moves):
        handle.focus()
        page.keyboard.press("ArrowRight" if number // 30 % 2 == 0 else "ArrowLeft")
        # seldom, so as not to be in the way
        page.wait_for_function(_QUIET, arg=[QUIET_MS, 3000], polling=100)
        times.append([np.nan if ms is None else ms for ms in page.evaluate(_TAKE)])
    return np.array(times)


def summary(times: np.ndarray) -> dict:
    """Median and 95th percentile in ms of the moves that were seen, and how many there were."""
    seen = times[np.isfinite(times)]
    if not len(seen):
        return {"n": 0}
    middle, high = np.quantile(seen, [0.5, 0.95])
    return {"n": len(seen), "median": round(float(middle), 1), "p95": round(float(high), 1)}


def slider(browser: Browser, folder: Path, n_moves: int, n_more: int) -> dict:
    """Repaint times of the Explorer's views, and what its kernel keeps."""
    with laboratory.served(folder) as lab:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        laboratory.open_notebook(page, lab, lab.add("moves", NOTEBOOK))
        laboratory.run_all(page)
        panel = Panel(page)
        panel.until_drawn()
        panel.until(lambda: "predicted on" in panel.status)
        # the other formats' curves arrive in the background
        panel.until(lambda: sum(", best" in one["name"] for one in panel.traces("speedup")) >= 3)
        page.wait_for_timeout(3000)
        panel.press("tree size", "ArrowLeft", 20)
        page.wait_for_timeout(2000)
        times = moved(page, panel, n_moves)
        kernel = lab.kernel_process("moves.ipynb")
        before = kernel.memory_info().rss
        for number in range(n_more):
            panel.press("tree size", "ArrowRight" if number // 30 % 2 == 0 else "ArrowLeft")
            page.wait_for_timeout(20)
        page.wait_for_timeout(2000)
        grown = kernel.memory_info().rss - before
        page.close()
    first = np.nanmax(times[:, [VIEWS.index(name) for name in SHOWS_NOW]], axis=1, initial=-1)
    whole = np.nanmax(times, axis=1, initial=-1)
    found = {name: summary(times[:, at]) for at, name in enumerate(VIEWS)}
    found["first"] = summary(np.where(first < 0, np.nan, first))
    found["all"] = summary(np.where(whole < 0, np.nan, whole))
    return found | {"grown_mb": round(grown / 1e6, 1), "more": n_more}


def first_figure_s(browser: Browser, folder: Path) -> dict:
    """Seconds from `make lab` to the quickstart's first figure on the page."""
    port, token = laboratory.free_port(), "benchmark"
    command = ["make", "--no-print-directory", "lab", f"PORT={port}", "BROWSER=0"]
    command.append(f"ARGS=--IdentityProvider.token={token} --ServerApp.port_retries=0")
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    start = time.monotonic()
    with open(folder / "make.log", "w") as log:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=laboratory.own_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        laboratory.until_up(f"http://127.0.0.1:{port}", token, server, folder / "make.log")
        up = time.monotonic() - start
        page.goto(f"http://127.0.0.1:{port}/lab/tree/notebooks/00_quickstart.ipynb?token={token}")
        page.locator(".js-plotly-plot .gtitle").first.wait_for(state="attached", timeout=120_000)
        return {"server": round(up, 1), "figure": round(time.monotonic() - start, 1)}
    finally:
        page.close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def report(n_moves: int = 100, n_more: int = 1000) -> dict | None:
    """Measure, and print each number beside its limit; None without a browser."""
    chromium = laboratory.find_chromium()
    if chromium is None:
        print("panel in a browser: not measured, no chromium")
        return None
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = laboratory.launch(playwright, chromium)
        lab, own = Path(folder, "lab"), Path(folder, "make")
        lab.mkdir()
        own.mkdir()
        found = slider(browser, lab, n_moves, n_more)
        found["make_lab_s"] = first_figure_s(browser, own)
        found["chromium"] = browser.version
        browser.close()
    _print(found, n_moves)
    return found


def _print(found: dict, n_moves: int) -> None:
    print(f"a slider of the Explorer moved {n_moves} times, ms to the repaint (Chromium ", end="")
    print(f"{found['chromium']}):")
    names = {"first": f"breakdown and mark (limit {FIRST_MS})", "all": f"all views ({ALL_MS})"}
    for name in ("first", "all", *VIEWS):
        times = found[name]
        told = f"median {times['median']}, p95 {times['p95']}" if times["n"] else "never changed"
        print(f"  {names.get(name, name):32} {told}, {times['n']} moves")
    print(f"kernel memory after {found['more']} moves: {found['grown_mb']:+} MB ({GROWTH_MB})")
    lab = found["make_lab_s"]
    print(f"make lab: server {lab['server']} s, first figure {lab['figure']} s ({FIRST_FIGURE_S})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = report(args.moves, args.more)
    if args.json and found:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
