"""Makes curves readable: running means, logarithmic axes, names, and no more points than a screen shows."""

import numpy as np

QUARTILES = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")  # by noise level, q1 the least noise
LOSS_LABEL = "what training minimises"
QUARTILE_LABELS = ("the quarter with least noise", "second quarter", "third quarter", "the quarter with most noise")
LOG_FROM = 5.0  # the axis is logarithmic if the largest value is more than this many times the smallest
SMOOTHED_FROM = 100  # rows; with fewer, the raw curve is clear enough


def is_wide(values: np.ndarray) -> bool:
    """Whether finite values are easier to read on a logarithmic axis."""
    return bool(values.min() > 0 and values.max() > LOG_FROM * values.min())


def window(values: np.ndarray) -> int:
    """Returns over how many rows a curve is averaged at most: a fiftieth of a long run, one row of a short one."""
    return len(values) // 50 if len(values) >= SMOOTHED_FROM else 1


def running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean of the finite values of the last rows up to each row; NaN where the row itself is not finite.

    It reaches back over a tenth of the rows so far, at most `window`: a fixed window lags where a loss first falls.
    """
    finite, rows = np.isfinite(values), np.arange(1, len(values) + 1)
    first = rows - np.minimum(window(values), rows // 10 + 1)
    spans = np.stack([first, rows], 1).ravel()  # start and end for each row; [::2] drops the sums between two spans
    # Each span is summed separately: with differences of cumulative sums, a loss of 1e20 would wipe out all after it.
    sums, counts = (np.add.reduceat(np.append(x, 0), spans)[::2] for x in (np.where(finite, values, 0.0), finite))
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)


def thinned(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a curve with at most `most` points: means of the finite values of neighbours, NaN if there are none."""
    if len(x) <= most:
        return x, y
    return _group_means(x, most), _group_means(y, most)


def _group_means(values: np.ndarray, count: int) -> np.ndarray:
    finite = (group[np.isfinite(group)] for group in np.array_split(values, count))
    return np.array([group.mean() if len(group) else np.nan for group in finite])
