"""Looking at recorded runs needs no model code: a fresh process saves, reloads and analyses one."""

import subprocess
import sys

SCRIPT = """
import sys
from importlib.util import find_spec
import pandas as pd
from hspec_lab import Config, Eagle2, Refine, Run, open_store, store
from hspec_lab.config import as_dict, config_id
from hspec_lab.trace import Recorder

draft = Refine("zoo:intermediate@w8a8", Eagle2(tree_size=5))
root = sys.argv[1]
for config in (Config(), Config(draft=draft)):
    recorder = Recorder()
    recorder.start_prompt(0)
    with recorder.span("prefill", "target", 4, 0):
        pass
    recorder.begin_round(4)
    with recorder.span("verify_target", "target", 1, 4):
        pass
    recorder.end_round(0, 0, 1)
    rows = [[0, -1, 0, 7, "a", "target"], [0, 0, 1, 8, "b", "target"]]
    tokens = pd.DataFrame(rows, columns=list(store.TABLES["tokens"]))
    head = {
        "kind": "measured",
        "config": as_dict(config),
        "config_id": config_id(config),
        "method": config.method,
        "format": config.format,
        "environment": {"device": "cpu", "threads": 2},
        "prompts": ["p"],
        "outputs": ["ab"],
    }
    folder = store.new_folder(root, head["config_id"])
    store.write_run(folder, head, recorder.tables() | {"tokens": tokens})

assert len(open_store(root).compare()) == 2
for run in open_store(root):
    assert run.summary()["n_emitted"] == 1 and len(run.breakdown()) == 2
    assert "method" in repr(run) and "<table>" in run._repr_html_()
    run.export("perfetto", root + "/trace.json")
# the drawing module belongs here too, as soon as it is there
if find_spec("hspec_lab.figures"):
    run.figure(), run.text_html()
heavy = {"torch", "transformers", "triton", "hspec_kernels"} & set(sys.modules)
assert not heavy, f"imported: {sorted(heavy)}"
print("torch-free")
"""


def test_a_run_is_saved_reloaded_and_analysed_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "torch-free"), done.stderr
