"""Which published numbers the model's parameters see, and the fit to them."""

from dataclasses import astuple

import numpy as np

from hspec_lab.paper.engine import Engine, Fitted, engine_of, mean_emitted

# what numbers are fitted, and by which parameters, with their units
FITS = {
    "FP16 tokens/s, 8B on the A100": {"memory_share": ""},
    "quantization only, 8B on the A100": {"layer_us": "µs", "latency_us": "µs", "group_cost": ""},
    "T(60)/T(1) of FP16 and W4A16-g128": {"row_us": "µs", "multiply_share": ""},
    "gain of EAGLE-2, FP16 8B on the A100": {"accept_8b": ""},
    "gain of EAGLE-2, W8A8 70B on the A100": {"accept_70b": ""},
    "accepted share of drafts of 8 and 10, 8B for 70B": {"agreement": ""},
}
SMALL, LARGE = "8B, A100", "70B, A100"
RATIOS = ("FP16", "W4A16-g128")


def misfits(fitted: Fitted, numbers: dict) -> dict[str, np.ndarray]:
    """log(ours / theirs) of every number that a parameter sees, by the names of `FITS`."""
    small, ratios = numbers["columns"][SMALL], numbers["verification"]
    ours, kernels = engine_of(numbers, SMALL, fitted), numbers["kernels"]
    plain = ours.pass_us(kernels["FP16"])
    bars = {name: bar[0] for name, bar in small["bars"].items() if name != small["unit"]}
    quotients = (
        [1e6 / plain / numbers["anchor"]["tokens_per_s"]],
        [plain / ours.pass_us(kernels[name]) / bar for name, bar in bars.items()],
        [verify_ratio(ours, name, ratios["rows"]) / ratios[name] for name in RATIOS],
        [gain(numbers, SMALL, "FP16", fitted) / small["bars"]["FP16"][2]],
        [gain(numbers, LARGE, "W8A8", fitted) / numbers["columns"][LARGE]["bars"]["W8A8"][2]],
        [
            (mean_emitted(fitted.agreement, int(n)) - 1) / int(n) / share
            for n, share in numbers["pair"]["accepted_share"].items()
        ],
    )
    return {name: np.log(values) for name, values in zip(FITS, quotients, strict=True)}


def verify_ratio(ours: Engine, scheme: str, rows: int) -> float:
    """T(rows) / T(1) of a format."""
    return ours.pass_us(ours.kernels[scheme], rows) / ours.pass_us(ours.kernels[scheme])


def emitted(column: dict, fitted: Fitted) -> float:
    """Tokens that EAGLE-2 emits a round with a column's model and tree."""
    accept = fitted.accept_8b if column["model"] == "llama-3-8b" else fitted.accept_70b
    return mean_emitted(accept, column["depth"])


def gain(numbers: dict, name: str, scheme: str, fitted: Fitted) -> float:
    """Speed-up of EAGLE-2 over plain decoding of the same format, in one of figure 1's columns."""
    column, kernel = numbers["columns"][name], numbers["kernels"][scheme]
    ours, tokens = engine_of(numbers, name, fitted), emitted(column, fitted)
    return ours.gain(kernel, column["tree_size"], column["depth"], tokens)


def fit(numbers: dict, n_steps: int = 60) -> Fitted:
    """Least squares on `misfits` over the parameters' logarithms, by damped Gauss-Newton steps."""

    def off(logs: np.ndarray) -> np.ndarray:
        return np.concatenate(list(misfits(Fitted(*np.exp(logs)), numbers).values()))

    logs = np.log(astuple(Fitted()))
    nudges = 1e-5 * np.eye(len(logs))
    for _ in range(n_steps):
        here = off(logs)
        slopes = np.stack([off(logs + nudge) - off(logs - nudge) for nudge in nudges], axis=1)
        step = np.clip(np.linalg.lstsq(slopes / 2e-5, -here, rcond=None)[0], -0.3, 0.3)
        # the longest of several times has corners, over which a whole step may go too far
        while (off(logs + step) ** 2).sum() > (here**2).sum() and np.abs(step).max() > 1e-10:
            step = step / 2
        logs = logs + step
        if np.abs(step).max() < 1e-10:
            break
    return Fitted(*(float(value) for value in np.exp(logs)))
