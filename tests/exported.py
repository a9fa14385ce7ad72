"""Timelines that tests export."""

from synthetic_traces import a_round, kernel, launch, module, named, phase, trace

# that a shell, a path, a query or a page would trip over
NAMES = [
    "../../up",
    "/etc/x",
    "C:\\x",
    'a"b\\',
    "line\nbreak",
    "",
    " ",
    "é漢\U0001f600",
    "a" * 5000,
]


def rich(n_rounds=3):
    """Rounds of ours with modules, kernels and a launch, and what others named."""
    ranges, launches, kernels = [named("outer", 0, 100 * n_rounds, thread=5)], [], []
    for number in range(n_rounds):
        at = 100 * number
        about = {"prompt": number // 2, "number": number}
        ranges += [
            a_round(at, at + 95, emitted=2, **about),
            phase("draft", "head", at + 2, at + 40, **about),
            module("attention", "draft", "head", at + 3, at + 20),
            phase("verify_target", "target", at + 41, at + 80, **about),
            phase("accept", "target", at + 81, at + 94, **about),
        ]
        launches.append(launch(number, at=at + 42))
        kernels += [
            kernel(number, at + 50, at + 70),
            kernel(number, at + 60, at + 75, "copy", kind="memcpy", stream=13) | {"bytes": 512},
        ]
    kept = {"notes": ("one thing was left out",), "about": {"method": "chain", "of": [1, None]}}
    return trace(ranges, launches, kernels, **kept)


def untrusted():
    """Names that a shell, a path, a query or a page would trip over."""
    return trace(
        [named(name, 10 * i, 10 * i + 5) for i, name in enumerate(NAMES)],
        [],
        [kernel(1, 10 * i, 10 * i + 5, name) for i, name in enumerate(NAMES)],
    )
