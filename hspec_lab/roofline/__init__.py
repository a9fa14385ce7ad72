"""Times on devices one does not own: a roofline of passes, drafts, prefill and memory; no torch.

shape     sizes of a model and bytes of its weights, as stored
family    what is assumed of kernels, or fitted: shares, tiles, unpacking, launches
work      a forward pass by module; prefill; the knee
head      an EAGLE-2 draft
memory    what must fit
calibrate fits families to what was measured
stage_costs(device, target, ...) -> stages.StageCosts, which `predict` takes
"""

from hspec_lab.roofline.calibrate import calibrate
from hspec_lab.roofline.calibration import Calibration
from hspec_lab.roofline.family import Families, Family, families_for, family_key
from hspec_lab.roofline.head import draft_us
from hspec_lab.roofline.memory import Memory, fits, head_bytes, memory_bytes
from hspec_lab.roofline.shape import Shape, matrix_bytes, shape_of, split_reference
from hspec_lab.roofline.stage_costs import stage_costs
from hspec_lab.roofline.work import knee, pass_table, pass_us, prefill_us

__all__ = [
    "Calibration",
    "Families",
    "Family",
    "Memory",
    "Shape",
    "calibrate",
    "draft_us",
    "families_for",
    "family_key",
    "fits",
    "head_bytes",
    "knee",
    "matrix_bytes",
    "memory_bytes",
    "pass_table",
    "pass_us",
    "prefill_us",
    "shape_of",
    "split_reference",
    "stage_costs",
]
