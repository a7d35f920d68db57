"""How much better a rollout went than was to be expected: what weighs its tokens.

`advantages` is the paper's, one number a rollout: its reward against the mean of its problem's.

`prefix_advantages` expects more finely, one number a token: the reward against the mean reward of
the problem's other rollouts that had begun with the same tokens. What follows an early mistake is
then expected to fail and is not blamed for it. It costs no further token: rollouts of one problem
share their beginnings. Cf. the tree baselines of RL with verifiable rewards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def advantages(rewards: npt.ArrayLike, clip: float) -> Floats:
    """(r - mean) / std over one problem's rollouts, within +-clip; zeros where all are equal.

    The standard deviation is the population's, as the paper's formula reads.
    """
    r = np.asarray(rewards, dtype=np.float64)
    deviation = r.std()
    if deviation == 0:
        return np.zeros_like(r)
    return np.clip((r - r.mean()) / deviation, -clip, clip)


def prefix_advantages(
    rewards: npt.ArrayLike, tokens: Sequence[Sequence[int]], clip: float
) -> list[Floats]:
    """(r - V(prefix)) / std over one problem's rollouts, within +-clip; zeros where all are equal.

    V of a prefix is the mean reward of the n other rollouts that begin with it, and of the V one
    token earlier, which counts as one more: (sum + V) / (n + 1). Where nobody else went, the last
    V stays. V of the empty prefix is the mean of all others.

    Args:
        rewards: [N] 0 or 1.
        tokens: N answers, [T] ids each.

    Returns:
        N arrays [T].
    """
    r = np.asarray(rewards, dtype=np.float64)
    deviation = r.std()
    if deviation == 0:
        return [np.zeros(len(answer)) for answer in tokens]
    # The tree of all answers: node -> (rollouts, their rewards); 0 is the empty prefix.
    child: dict[tuple[int, int], int] = {}
    visits, sums = defaultdict[int, int](int), defaultdict[int, float](float)
    paths = []
    for reward, answer in zip(r, tokens, strict=True):
        path = [0]
        for token in answer[:-1]:
            path.append(child.setdefault((path[-1], token), len(child) + 1))
        for node in path:
            visits[node] += 1
            sums[node] += reward
        paths.append(path)
    found = []
    for reward, path in zip(r, paths, strict=True):
        value, values = (sums[0] - reward) / (visits[0] - 1), []
        for depth, node in enumerate(path):
            if depth:
                value = (sums[node] - reward + value) / visits[node]
            values.append(value)
        found.append(np.clip((reward - np.array(values)) / deviation, -clip, clip))
    return found
