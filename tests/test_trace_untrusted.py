"""Exports of ours that somebody changed: numbers, nesting and tables that we would never write."""

import json

import numpy as np
import pandas as pd
import pytest
from test_trace_in import everything, refused

from hspec_lab import trace_out
from hspec_lab.analysis import as_text
from hspec_lab.capture.results import as_json
from hspec_lab.timeline import UNKNOWN
from hspec_lab.trace_in import parquet, ranges, read_trace

COUNTS = ["n_proposed", "n_accepted", "n_emitted", "kv_len"]


def exported(tmp_path, to, **about):
    """An export with more words about itself, and where those words are."""
    timeline = everything()
    timeline.about.update(about)
    return trace_out.write(timeline, to, tmp_path / "trace")


@pytest.mark.parametrize("to", trace_out.FORMATS)
def test_words_about_itself_that_nest_without_end_are_left_out(tmp_path, to):
    deep = json.loads("[" * 400 + "]" * 400)
    found = read_trace(exported(tmp_path, to, config=deep))
    assert found.about == {}
    assert as_json(found)["about"] == {}


@pytest.mark.parametrize("said", [None, [], 3, "x", [{"a": 1}]])
def test_only_an_object_says_something_about_an_export(said):
    assert ranges.about_of(said) == {}
    assert ranges.about_of({"config": {"a": [said]}}) == {"config": {"a": [said]}}


@pytest.mark.parametrize("to", trace_out.FORMATS)
@pytest.mark.parametrize("number", [1 << 61, -7])
def test_numbers_of_tokens_that_cannot_be_are_unknown(tmp_path, to, number):
    timeline = everything()
    is_round = timeline.ranges["kind"] == "round"
    timeline.ranges.loc[is_round, COUNTS] = number
    found = read_trace(trace_out.write(timeline, to, tmp_path / "trace"))
    assert (found.ranges.loc[is_round, COUNTS] == UNKNOWN).all(axis=None)
    assert found.ranges.loc[is_round, "n_nodes"].tolist() == [5]
    found.ranges["warmup"] = False
    assert "tokens emitted" not in as_text(found)


def test_a_time_of_the_device_without_end_is_unknown(tmp_path):
    timeline = everything()
    is_phase = timeline.ranges["kind"] == "phase"
    timeline.ranges.loc[is_phase, "device_us"] = 123456.75
    path = trace_out.write(timeline, "perfetto", tmp_path / "trace")
    path.write_text(path.read_text().replace("123456.75", "1e999"))
    assert read_trace(path).ranges["device_us"].isna().all()


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("start_ns", np.array([1, 2**64 - 1], "uint64"), "start_ns holds uint64, not int64"),
        ("start_ns", [1.5, np.nan], "start_ns holds double, not int64"),
        ("name", [["a"], ["b"]], "name holds list"),
        ("name", [b"a", b"\xff"], "name holds binary, not str"),
    ],
)
def test_columns_of_other_types_are_refused_and_not_converted(tmp_path, column, values, says):
    path = exported(tmp_path, "parquet")
    wrong = everything().launches.drop(columns=column).assign(**{column: pd.Series(values)})
    wrong.to_parquet(path / "launches.parquet")
    refused(path, says)


def test_words_may_be_stored_once(tmp_path):
    path = exported(tmp_path, "parquet")
    rows = everything().launches
    rows.assign(name=rows["name"].astype("category")).to_parquet(path / "launches.parquet")
    pd.testing.assert_frame_equal(read_trace(path).launches, rows)


def test_a_small_file_of_many_rows_or_long_words_is_refused(tmp_path, monkeypatch):
    path = exported(tmp_path, "parquet")
    rows = everything().kernels.iloc[[0] * 1000].assign(name="x" * 1000)
    rows.to_parquet(path / "kernels.parquet")
    assert (path / "kernels.parquet").stat().st_size < 20_000
    assert len(read_trace(path).kernels) == 1000
    monkeypatch.setattr(parquet, "MOST_REPEATED", 10**6 - 1)
    refused(path, "name repeats words of 1,000 bytes too often")
    monkeypatch.setattr(parquet, "MOST_ROWS", 999)
    refused(path, "kernels.parquet has 1,000 rows")
