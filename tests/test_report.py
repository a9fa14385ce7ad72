"""The report is one file that needs nothing else and hides nothing."""

import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from hspec_lab.report import write_report

ROWS = [
    {
        "format": "fp32",
        "method": "ar",
        "tokens_per_s": 130.04,
        "speedup": 1.0,
        "mean_emitted": 1.0,
        "mean_emitted_outside_loops": float("nan"),
        "loop_share": 0.25,
        "mismatches": 0,
        "phase_share": {"verify_target": 0.9, "gap": 0.1},
    },
    {
        "format": "fp32",
        "method": "hier<spec>",
        "tokens_per_s": np.float64(260.0),
        "speedup": 2.0,
        "mean_emitted": 3.5,
        "mean_emitted_outside_loops": 3.25,
        "loop_share": 0.25,
        "mismatches": np.int64(1),
        "phase_share": {"draft": 0.3, "verify_target": 0.7},
    },
]
ENVIRONMENT = {"device": "cpu", "threads": 2, "versions": {"torch": "2.13.0"}, "load": [0.5, 1]}


@pytest.fixture
def page(tmp_path):
    figures = {
        "A figure": go.Figure(go.Bar(x=[1], y=[2])),
        "A text": "<p>ready</p>",
        "More": go.Figure(),
    }
    path = write_report(tmp_path / "new" / "report.html", ROWS, figures, ENVIRONMENT, note="a & b")
    return path.read_text(encoding="utf-8")


def outside_plotly(page):
    return re.sub(r"<script>.*?</script>", "", page, flags=re.S)


def test_page_fetches_nothing_and_holds_plotly_once(page):
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", outside_plotly(page))
    assert page.count("* plotly.js v") == 1


def test_page_shows_every_figure_in_its_place(page):
    assert page.count('class="plotly-graph-div"') == 2
    assert "<h2>A text</h2><p>ready</p>" in page


def test_page_prints_light_and_with_figures_as_wide_as_paper(page):
    printed = re.search(r"@media print \{(.*?)\n\}", page, flags=re.S)[1]
    assert "color-scheme: light" in printed
    zoom, width = re.search(r"zoom: ([\d.]+)", printed)[1], re.search(r"width: (\d+) \}", page)[1]
    # css pixels between the margins of A4
    assert float(zoom) * int(width) < 186 / 25.4 * 96


def test_table_shows_every_row_and_marks_the_best(page):
    text = outside_plotly(page)
    for shown in ("130.0", "260.0", "1.00×", "<b>2.00×</b>", "3.25", "25%", "hier&lt;spec&gt;"):
        assert shown in text
    assert "<td>–</td>" in text, "what is not known is a dash"
    assert "verify_target 90%" in text


def test_conditions_are_spelled_out_and_text_is_escaped(page):
    text = outside_plotly(page)
    assert "<th>versions.torch</th><td>2.13.0</td>" in text
    assert "<td>0.5, 1</td>" in text
    assert "a &amp; b" in text


def test_page_follows_the_readers_light_or_dark_theme(page):
    assert "prefers-color-scheme: dark" in page


def test_rows_lie_in_the_page_as_json(page):
    data = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, flags=re.S)
    rows = json.loads(data[1])["rows"]
    assert [row["method"] for row in rows] == ["ar", "hier<spec>"]
    assert rows[0]["mean_emitted_outside_loops"] is None and rows[1]["mismatches"] == 1


def test_a_data_frame_with_fewer_columns_is_enough(tmp_path):
    rows = pd.DataFrame(ROWS)[["format", "method", "tokens_per_s"]].assign(extra="<x>")
    text = outside_plotly(write_report(tmp_path / "r.html", rows, {}, {}).read_text())
    assert "loop share" not in text and "<th>extra</th>" in text and "&lt;x&gt;" in text


def test_a_report_about_nothing_is_still_a_page(tmp_path):
    assert "Conditions" in write_report(tmp_path / "r.html", [], {}, {}).read_text()
