"""The words of the field as this project uses them; imports nothing.

proposal     a tree of tokens that a drafter offers; node 0 is its root, the *pending* token:
             emitted already, its keys and values not stored yet
n_proposed   nodes offered, the root not counted
n_accepted   proposed tokens that the verifying model kept; excludes the extra token
n_emitted    n_accepted + 1: every round adds one token of the verifying model's own,
             *recovered* after a rejection, *bonus* after full acceptance
tree_size    nodes including the root;  depth: levels below the root
kv_len       tokens whose keys and values are stored
level        which model did the work: target, intermediate, head
"""

PHASES = (
    "prefill",
    "draft",
    "verify_intermediate",
    "verify_target",
    "accept",
    "kv_commit",
    "gap",
)
# phases of a decoding round, in the order in which figures stack them
ROUND_PHASES = PHASES[1:]
LEVELS = ("target", "intermediate", "head")
# those that a name alone asks for; a static tree has to be given node by node
METHODS = ("ar", "chain", "eagle2", "hierspec")
# every method that a run can have, in the order of figures
ALL_METHODS = ("ar", "chain", "eagle2", "static", "hierspec")
# what `trace_out` writes
EXPORTS = ("perfetto", "nsys-sqlite", "parquet", "speedscope")


def category_of(level: str, phase: str) -> str:
    """What traces file a phase of a level under: target/verify, head/draft, target/kv_commit."""
    return f"{level}/{'verify' if phase.startswith('verify_') else phase}"


def phase_of(category: str) -> tuple[str, str] | None:
    """The (level, phase) that `category_of` wrote; None for a category that is not ours."""
    level, slash, phase = category.partition("/")
    if phase == "verify":
        phase = "verify_target" if level == "target" else "verify_intermediate"
    return (level, phase) if level and slash and phase in PHASES else None
