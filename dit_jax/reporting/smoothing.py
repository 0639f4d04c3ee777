"""Curves that a person can read: running means, and no more points than a screen shows."""

import numpy as np

SMOOTHED_FROM = 100  # rows; with fewer the raw curve is clear enough


def window(values: np.ndarray) -> int:
    """Over how many rows curves are averaged at most: a fiftieth of a long run, one row of a short one."""
    return len(values) // 50 if len(values) >= SMOOTHED_FROM else 1


def running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean of the finite values of the last rows up to each row; NaN where the row itself is not finite.

    It reaches back over a tenth of the rows so far, `window` at most: a fixed window lags where a loss first falls.
    """
    finite, rows = np.isfinite(values), np.arange(1, len(values) + 1)
    first = rows - np.minimum(window(values), rows // 10 + 1)
    sums = np.concatenate([[0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    return np.where(finite, (sums[rows] - sums[first]) / np.maximum(counts[rows] - counts[first], 1), np.nan)


def thinned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points of a curve: means of neighbours, of the finite ones; NaN where there is none."""
    if len(x) <= most:
        return x, y
    groups = zip(np.array_split(x, most), np.array_split(y, most), strict=True)
    return tuple(np.array(column) for column in zip(*(map(_finite_mean, group) for group in groups), strict=True))


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
