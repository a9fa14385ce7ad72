"""Kernel facts: parsed sources, the committed page, roofs by hand, one kernel in a child."""

import subprocess
import sys

import pytest

from hspec_lab import figures_kernels, kernel_facts

PAGE = """# Kernels, compiled

Made with Triton 3.9.0, without a GPU.

| operation | configuration | target | registers | spilled | shared | warps | programs per SM | \
unpacking | tensor core | all instructions | of the loop, a weight |
|---|---|---|---|---|---|---|---|---|---|---|---|
| one | a | sm_90 | 40 | 0 | 2048 | 4 | 5 | 25 | 4 | 392 | 1.52 |
| one | b | sm_90 | 60 | 8 | 1024 | 4 | 5 | 25 | 0 | 392 |  |
| two | a | sm_80 | 24 | 0 | 0 | 1 | 32 | 4 | 0 | 112 |  |
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / "kernels.md").write_text(PAGE)
    return tmp_path / "kernels.md"


def test_every_operation_says_what_it_costs():
    table = kernel_facts.operations().set_index("operation")
    assert {"w4a16_matmul", "tree_attention", "accept_greedy_tree"} <= set(table.index)
    assert table["what"].str.len().min() > 20 and table["cost"].str.len().min() > 5
    assert table.loc["rms_norm", "cost"] == (
        "reads and writes T * C values, twice with a residual; one launch, a program a row"
    )


def test_a_markdown_table_breaks_no_formula():
    table = kernel_facts.pd.DataFrame({"a_b": [1], "cost": ["3*n | 2*n"]})
    lines = kernel_facts.as_markdown(table, "a_b", "cost").splitlines()
    assert lines == ["| a_b | cost |", "| --- | --- |", r"| 1 | 3\*n \| 2\*n |"]


def test_a_listing_is_the_source_with_its_decorator():
    text = kernel_facts.listing("rms_norm", "rms_norm_ref", "_rms_norm_kernel")
    assert text.startswith("```python\ndef rms_norm_ref(") and text.endswith("\n```")
    assert "@triton.jit\ndef _rms_norm_kernel(" in text
    with pytest.raises(ValueError, match="rms_norm.py has no nothing; it has rms_norm_ref"):
        kernel_facts.listing("rms_norm", "nothing")
    with pytest.raises(ValueError, match="no kernel 'nothing'; there are accept_drawn_tree"):
        kernel_facts.listing("nothing", "x")


def test_a_page_becomes_numbers(page):
    table = kernel_facts.compiled(page)
    assert list(table["registers"]) == [40, 60, 24] and table["spilled"].sum() == 8
    assert table["of the loop, a weight"].tolist()[0] == 1.52
    assert table["of the loop, a weight"].isna().sum() == 2
    assert table.attrs["note"].startswith("Triton 3.9.0, ahead of time")
    worst = kernel_facts.worst(table)
    assert worst.to_dict("records") == [
        {
            "operation": "one",
            "n_configurations": 2,
            "registers": 60,
            "spilled": 8,
            "shared_kb": 2.0,
            "tensor_core": True,
        }
    ]


def test_the_committed_page_is_read():
    table = kernel_facts.compiled()
    assert set(table["target"]) == {"sm_80", "sm_90", "sm_100"}
    assert set(table["operation"]) <= set(kernel_facts.operations()["operation"])
    assert table["registers"].between(1, figures_kernels.MOST_REGISTERS).all()


def test_a_page_without_a_table_is_refused(tmp_path):
    (tmp_path / "other.md").write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no table of operation"):
        kernel_facts.compiled(tmp_path / "other.md")
    with pytest.raises(ValueError, match="cannot be read"):
        kernel_facts.compiled(tmp_path / "missing.md")


def test_roofs_follow_from_bytes_and_peaks():
    table = kernel_facts.ceilings("h100", "shape:llama-3-8b", ("w16a16",), rows=(1, 128))
    us = table.set_index(["bound", "n"])["us"]
    n_weights = 28672 * 4096
    assert us["memory", 1] == pytest.approx(1e6 * 2 * n_weights / (0.8 * 3350e9))
    assert us["compute", 128] == pytest.approx(1e6 * 2 * 128 * n_weights / (0.6 * 989.4e12))
    assert us["unpacking", 1] == 0
    with pytest.raises(ValueError, match="got 'middle'"):
        kernel_facts.ceilings("h100", "shape:llama-3-8b", ("w16a16",), matrix="middle")


def test_a_pass_is_the_sum_of_its_parts():
    table = kernel_facts.one_pass("h100", "shape:llama-3-8b@w4a16-g128", 16)
    assert table["share"].sum() == pytest.approx(1) and table["us"].is_monotonic_decreasing
    assert {"gate_up", "attention", "launches"} <= set(table["module"])


def test_figures_hold_their_tables(page):
    table = kernel_facts.compiled(page)
    figure = figures_kernels.registers_by_operation(table, **table.attrs)
    assert sum(len(trace.x) for trace in figure.data) == len(table)
    crossed = [symbol for trace in figure.data for symbol in trace.marker.symbol if "-x" in symbol]
    assert len(crossed) == 1
    roofs = kernel_facts.ceilings("h100", "shape:llama-3-8b", ("w16a16", "w4a16-g128"))
    panels = figures_kernels.product_ceilings(roofs, **roofs.attrs)
    assert [note.text for note in panels.layout.annotations] == ["w16a16", "w4a16-g128"]
    named = [trace.name for trace in panels.data if trace.showlegend]
    assert len(named) == len(set(named)) == 4


def test_a_kernel_agrees_with_its_definition_in_a_child():
    pytest.importorskip("triton")
    tried = kernel_facts.trial("accept_greedy_tree")
    assert len(tried) == 6 and tried["agrees"].all()
    with pytest.raises(ValueError, match="no operation 'nothing'; there are accept_drawn_tree"):
        kernel_facts.trial("nothing")
    told = kernel_facts.take_away(kernel_facts.operations(), tried, kernel_facts.compiled())
    assert "6 of 6 interpreted cases agree" in told


def test_facts_need_neither_torch_nor_triton():
    code = "import sys, hspec_lab.kernel_facts as k; k.operations(); k.compiled()\n"
    code += "assert not {'torch', 'triton', 'hspec_kernels'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
