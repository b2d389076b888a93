"""Which of a test's cases run every time, and which only with the slow tests."""

import pytest


def slow_but(fast, cases):
    """Marks every case slow but a few.

    Args:
      fast: the first so many cases, or a collection of those that stay fast.
      cases: as for `pytest.mark.parametrize`.

    Returns:
      The cases, as for `pytest.mark.parametrize`.
    """
    cases = list(cases)
    kept = cases[:fast] if isinstance(fast, int) else fast
    return [
        case
        if case in kept
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
        )
        for case in cases
    ]
