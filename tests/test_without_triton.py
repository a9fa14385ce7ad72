"""Without triton everything but the kernels works, and what needs them says what is missing."""

import subprocess
import sys

ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own that finds no triton."""
    return subprocess.run(
        [sys.executable, "-c", ABSENT + code], capture_output=True, text=True, timeout=120
    )


def test_the_zoo_decodes_on_a_cpu():
    done = run("""
from hspec_lab import Config
from hspec_lab.experiment import Session

config = Config(target="zoo:target@w8a8", n_prompts=1, max_new_tokens=4)
session = Session(config)
for _ in session.rounds_of(0):
    pass
assert len(session.output_ids(0)) == 4
assert not {"triton", "hspec_kernels"} & set(sys.modules)
""")
    assert done.returncode == 0, done.stderr


def test_what_needs_kernels_names_the_extra():
    done = run("""
import torch
from hspec_lab.quant.device import check_triton, make_device_linear

for ask in (check_triton, lambda: make_device_linear(torch.ones(32, 32), "w8a8", torch.float16)):
    try:
        ask()
    except ValueError as refusal:
        print(refusal)
""")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("pip install 'hspec-lab[kernels]'" in line for line in lines)


def test_importing_a_kernel_names_the_extra():
    done = run("import hspec_kernels.w4a16_matmul")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: hspec_kernels needs triton, which is not installed here: "
        "pip install 'hspec-lab[kernels]' on Linux"
    )
