"""Runs with the same seeds compared in pairs: what a sweep can and cannot tell.

Seed s decides order, augmentation and initialisation, so the difference of two settings
at equal seeds varies less than each of them. Its mean has a Student t interval, and a
table of many settings a correction for their number (Holm, 1979).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from lvb.analysis import markdown

LEVEL = 0.95

Results = Mapping[int, float]  # A figure per seed.


class Difference(NamedTuple):
    """The mean of paired differences and what it is worth.

    Attributes:
      mean: over the shared seeds, in the unit of the figures; NaN without any.
      low: lower end of the interval.
      high: upper end of the interval.
      p_value: of the two-sided t test that the mean is zero; 1 if it has no meaning.
      count: number of shared seeds.
    """

    mean: float
    low: float
    high: float
    p_value: float
    count: int


def paired_difference(
    ours: Results, theirs: Results, *, level: float = LEVEL
) -> Difference:
    """Compares two settings at the seeds they share.

    One seed has no interval: its ends are infinite. Differences that are all equal
    come of a coarse figure, such as accuracy on few images, and not of certainty, so
    their p value is 1 although the interval is a point.

    Args:
      ours: figures by seed.
      theirs: figures by seed.
      level: probability that the interval covers the true mean.

    Returns:
      Of ours minus theirs.

    Raises:
      ValueError: if `level` is no share strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"paired_difference: level={level}; use for example 0.95.")
    seeds = sorted(ours.keys() & theirs.keys())
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if not seeds:
        return Difference(math.nan, -math.inf, math.inf, 1.0, 0)
    mean = float(differences.mean())
    if len(seeds) == 1:
        return Difference(mean, -math.inf, math.inf, 1.0, 1)
    # Up to rounding: 0.9 - 0.8 is not 0.7 - 0.6.
    if np.ptp(differences) <= 1e-9 * np.abs(differences).max():
        return Difference(mean, mean, mean, 1.0, len(seeds))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(level)
    return Difference(mean, float(low), float(high), float(test.pvalue), len(seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p values for their number, Holm (Scand. J. Stat. 6, 1979).

    With the p values in rising order, p(1) <= ... <= p(m), the adjusted k-th is the
    largest of (m - j + 1) p(j) over j <= k, at most 1. Calling those below 0.05
    different makes one or more false calls in at most 5 % of such tables.

    Args:
      p_values: of m tests.

    Returns:
      The adjusted ones, in the order they came.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    ordered = np.maximum.accumulate(factors * np.asarray(p_values, float)[order])
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(ordered, 1.0)
    return adjusted.tolist()


def comparison_table(
    results: Mapping[str, Results],
    *,
    baseline: str,
    published: Mapping[str, str] | None = None,
    level: float = LEVEL,
) -> str:
    """Mean, spread and difference from a baseline of every setting, as Markdown.

    A difference is bold only if it is separated: its Holm-adjusted p value over the
    table is below 1 - level.

    Args:
      results: figures by setting, then by seed; a setting may have none yet.
      baseline: the setting to compare with.
      published: what a paper prints, by setting, for a column of its own.
      level: of the intervals.

    Returns:
      A table, and a line that says what stands in it.

    Raises:
      ValueError: if there is no such baseline.
    """
    if baseline not in results:
        raise ValueError(
            f"comparison_table: no setting {baseline!r}; there are "
            f"{', '.join(results)}."
        )
    others = [name for name in results if name != baseline]
    differences = [
        paired_difference(results[name], results[baseline], level=level)
        for name in others
    ]
    adjusted = holm([difference.p_value for difference in differences])
    shown = {
        name: _difference_cell(difference, bold=p_value < 1 - level)
        for name, difference, p_value in zip(others, differences, adjusted, strict=True)
    }
    percent = f"{100 * level:g} %"
    rows = [
        [name, *_summary_cells(figures), shown.get(name, "baseline")]
        for name, figures in results.items()
    ]
    header = ["setting", "seeds", "mean", "sd", f"paired difference [{percent}]"]
    if published:
        header.append("paper")
        for row in rows:
            row.append(published.get(row[0], "-"))
    return (
        f"{markdown.table(header, rows)}\n\n"
        f"Differences from {baseline} at equal seeds, with {percent} t-intervals; bold "
        "where separated after Holm's correction over the table."
    )


def _summary_cells(figures: Results) -> tuple[str, str, str]:
    values = list(figures.values())
    mean = f"{np.mean(values):.2f}" if values else "-"
    spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "-"
    return str(len(values)), mean, spread


def _difference_cell(difference: Difference, *, bold: bool) -> str:
    if not difference.count:
        return "-"
    mean = f"{difference.mean:+.2f}"
    if difference.count == 1:
        return f"{mean} (one seed)"
    text = f"{mean} [{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"**{text}**" if bold else text
