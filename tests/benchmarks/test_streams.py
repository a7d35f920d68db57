"""Figures of streams."""

from __future__ import annotations

import pytest

from benchmarks.streams import percentile


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.25, 1.0), (0.5, 2.0), (0.51, 3.0), (1.0, 4.0)]
)
def test_a_percentile_is_what_the_share_does_not_exceed(share: float, value: float) -> None:
    assert percentile([4.0, 2.0, 1.0, 3.0], share) == value
