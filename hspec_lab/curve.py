"""Cost curves as numbers over n: fits, knees, corners and plateaus; numpy and pandas alone.

A curve is a pandas Series of times, of any unit, indexed by n in ascending order.  Nothing here
looks at units, and every function stands a few per cent of noise and single outliers.
"""

import numpy as np
import pandas as pd

# a plateau has at least so many n; inside it, time grows by no more than this share of its level,
# or of the jump behind it
_LEAST_FLAT, _LEVEL_SHARE, _JUMP_SHARE = 4, 0.05, 1 / 3
_LEAST_NOISE = 1e-3
_OUTLIER = 5.0  # standard deviations
_LEAST_TIMES = 4  # an n with fewer is not firm
SURE = 3.0  # standard errors from which on a dependence on the context is believed


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nondecreasing sequence nearest to `values`, by weighted squares (pool adjacent)."""
    levels, sums, sizes = [], [], []
    for value, weight in zip(values, weights, strict=True):
        levels.append(value)
        sums.append(weight)
        sizes.append(1)
        while len(levels) > 1 and levels[-2] > levels[-1]:
            value, weight, size = levels.pop(), sums.pop(), sizes.pop()
            whole = sums[-1] + weight
            levels[-1] = (levels[-1] * sums[-1] + value * weight) / whole
            sums[-1], sizes[-1] = whole, sizes[-1] + size
    return np.repeat(levels, sizes)


def knee(curve: pd.Series, factor: float = 1.5) -> int:
    """The last n whose time is within `factor` of the first one's, read off the monotone fit.

    Raises:
        ValueError: the curve is empty or does not begin at n = 1.
    """
    if not len(curve) or curve.index[0] != 1:
        found = curve.index[0] if len(curve) else "nothing"
        raise ValueError(f"a knee is told from n = 1 on, the curve begins with {found}")
    fit = isotonic(_without_outliers(curve), np.ones(len(curve)))
    # noise in the first time must not leave the curve without a knee
    within = fit <= factor * max(fit[0], curve.iloc[0])
    return int(curve.index[np.flatnonzero(within)[-1]])


def corner(curve: pd.Series) -> int | None:
    """Where a curve of two straight pieces bends upwards; None where one straight piece will do."""
    x, y = curve.index.to_numpy(dtype=float), _without_outliers(curve)
    if len(x) < 6:
        return None
    weights = 1 / y
    line = _squares(np.stack([np.ones_like(x), x]), y, weights)[0]
    found = []
    for k in x[2:-2]:
        squares, slopes = _squares(np.stack([np.ones_like(x), x, np.maximum(0, x - k)]), y, weights)
        found.append((squares if slopes[2] > 0 else np.inf, int(k)))
    squares, place = min(found)
    if not np.isfinite(squares):
        return None
    floor = len(x) * _LEAST_NOISE**2
    # two more parameters have to earn their place (BIC)
    gain = len(x) * np.log((line + floor) / (squares + floor))
    return place if gain > 2 * np.log(len(x)) else None


def plateaus(curve: pd.Series) -> list[tuple[int, int]]:
    """Stretches over which time hardly grows, as first and last n; kernels' tiles make such steps.

    The curve is cut where straight pieces explain it best, each new piece having to earn its
    place; pieces that are flat, by themselves or beside the jump at their end, are told.
    """
    if len(curve) < _LEAST_FLAT:
        return []
    n, y = curve.index.to_numpy(), _without_outliers(curve)
    pieces = _pieces(n.astype(float), y, _noise(y))
    fits = [
        np.polyfit(n[a:b], y[a:b], 1, w=1 / y[a:b]) if b - a > 1 else (0, y[a]) for a, b in pieces
    ]
    found = []
    for i, ((a, b), line) in enumerate(zip(pieces, fits, strict=True)):
        if b - a < _LEAST_FLAT:
            continue
        first, last = np.polyval(line, [n[a], n[b - 1]])
        jump = 0.0
        if b < len(n):
            jump = np.polyval(fits[i + 1], n[b]) - last
        elif a > 0:
            jump = first - np.polyval(fits[i - 1], n[a - 1])
        if abs(last - first) <= max(_LEVEL_SHARE * first, _JUMP_SHARE * jump):
            found.append((int(n[a]), int(n[b - 1])))
    return found


def _pieces(x: np.ndarray, y: np.ndarray, noise: float) -> list[tuple[int, int]]:
    """Bounds of the straight pieces, by dynamic programming over all cuts."""
    n = len(x)
    weights = 1 / (noise * y) ** 2
    x, y = x - x.mean(), y - y.mean()
    sums = [np.append(0, np.cumsum(weights * part)) for part in (1, x, y, x * x, x * y, y * y)]
    best, cut = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
    best[0] = 0
    for end in range(1, n + 1):
        w, wx, wy, wxx, wxy, wyy = (part[end] - part[:end] for part in sums)
        spread = np.maximum(wxx - wx**2 / w, 1e-12)
        shared = wxy - wx * wy / w
        squares = np.maximum(wyy - wy**2 / w - shared**2 / spread, 0)
        # level, slope and place of a new piece
        total = best[:end] + squares + 3 * np.log(n)
        cut[end] = int(total.argmin())
        best[end] = total[cut[end]]
    bounds, end = [], n
    while end:
        bounds.append((int(cut[end]), end))
        end = int(cut[end])
    return bounds[::-1]


def _noise(y: np.ndarray) -> float:
    """Relative standard deviation, told from second differences, which steps hardly touch."""
    seconds = np.diff(y, 2) / y[1:-1]
    return max(_LEAST_NOISE, float(np.median(np.abs(seconds))) / 0.6745 / 6**0.5)


def _without_outliers(curve: pd.Series) -> np.ndarray:
    """Times, those far off the running median of five replaced by it; the ends stay."""
    y = curve.to_numpy(dtype=float)
    middle = pd.Series(y).rolling(5, center=True).median().to_numpy()
    is_far = np.abs(y - middle) > _OUTLIER * _noise(y) * middle if len(y) > 4 else False
    return np.where(is_far, middle, y)


def _squares(terms: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted sum of squares left by a least-squares fit, and its coefficients."""
    found = np.linalg.lstsq((terms * weights).T, y * weights, rcond=None)[0]
    return float((((found @ terms - y) * weights) ** 2).sum()), found


def midmean(values: np.ndarray) -> float:
    """Mean of the middle half: as robust as a median, and means of parts add up to the whole's."""
    ordered = np.sort(values)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def robust_fit(terms: np.ndarray, y: np.ndarray, rounds: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Linear fit that outliers do not move (bisquare weights, residuals relative to the fit).

    Args:
        terms: [n_terms, n], of full rank.
        y: [n], above 0.

    Returns:
        coefficients and their standard errors, [n_terms].
    """
    weights = 1 / y
    keep = np.ones_like(y)
    for _ in range(rounds):
        scaled = terms * weights * keep
        found = np.linalg.lstsq(scaled.T, y * weights * keep, rcond=None)[0]
        fitted = np.maximum(found @ terms, 1e-3 * np.median(y))
        off = (y - fitted) / fitted
        scale = max(float(np.median(np.abs(off))) / 0.6745, 1e-9)
        # square roots, as they multiply both sides of the equations
        keep = np.maximum(0, 1 - (off / (4.685 * scale)) ** 2)
        weights = 1 / fitted
    scaled = terms * weights * keep
    covariance = np.linalg.pinv(scaled @ scaled.T)
    return found, scale * np.sqrt(np.diag(covariance))


def curve_of_times(
    n: np.ndarray, kv_len: np.ndarray, times: np.ndarray, context: float, longest: int = 0
) -> tuple[np.ndarray, float]:
    """A monotone curve over n from single times, at one context.

    An n that was hardly measured is taken between its neighbours, or, behind the last firm one, on
    the line of the upper half.

    Args:
        n, kv_len, times: [n_times], rows of each pass and tokens stored before it.
        longest: an n up to which the curve goes on at least.

    Returns:
        float64 [max(n, longest) + 1], entry 0 NaN, below the least n that one's time; and the
        relative standard error of an entry, the median over n.
    """
    times = times - _growth(n, kv_len, times) * (kv_len - context)
    by_n = pd.Series(times).groupby(n)
    counts = by_n.size()
    firm = counts >= min(_LEAST_TIMES, counts.max())
    values = by_n.apply(lambda some: midmean(some.to_numpy()))[firm]
    fit = isotonic(values.to_numpy(), counts[firm].to_numpy(dtype=float))
    known, every = values.index.to_numpy(), np.arange(1, max(int(n.max()), longest) + 1)
    found = np.interp(every, known, fit)
    half = len(known) // 2
    if known[-1] > known[half]:
        rise = (fit[-1] - fit[half]) / (known[-1] - known[half])
        found += rise * np.maximum(0, every - known[-1])
    ranges = by_n.quantile(0.75) - by_n.quantile(0.25)
    errors = (0.93 * ranges / counts**0.5)[firm] / values  # of a median, if the spread is normal
    return np.append(np.nan, found), float(errors.median())


def _growth(n: np.ndarray, kv_len: np.ndarray, times: np.ndarray) -> np.ndarray:
    """How much each time grows with every token stored; 0 where the data does not show it.

    It is the same for all n (keys and values are read once) or in proportion to n (they are
    multiplied with every row), whichever shows more clearly.
    """
    grouped = pd.Series(times).groupby(n)
    typical = grouped.transform("median").to_numpy()
    apart = kv_len - pd.Series(kv_len).groupby(n).transform("mean").to_numpy()
    found = []
    for rows in (np.ones_like(typical), n.astype(float)):
        terms = np.stack([np.ones_like(typical), apart * rows / typical])
        if np.ptp(terms[1]) > 0:
            slopes, errors = robust_fit(terms, times / typical)
            found.append((slopes[1] / max(errors[1], 1e-12), slopes[1], rows))
    sure, slope, rows = max(found, key=lambda one: one[0], default=(0, 0, 0))
    return slope * rows if sure > SURE else np.zeros_like(typical)
