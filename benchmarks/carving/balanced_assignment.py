"""Deals neurons into experts of equal size: balanced assignment and balanced k-means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

KMEANS_ROUNDS = 12

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def balanced_assignment(gain: Float, capacity: int) -> Int:
    """Deals items into bins of exactly `capacity` so that the summed gain is the greatest possible.

    `gain` is `[items, bins]`, with `items == bins * capacity`; returns each item's bin. Exact: every item
    starts in the bin it likes best, which is optimal for the counts it gives; then one item at a time moves
    along the cheapest chain of bins from one that is too full to one that is not (successive shortest paths
    on the graph of the bins).
    """
    items, bins = gain.shape
    if items != bins * capacity:
        raise ValueError(f"{items} items do not fill {bins} bins of {capacity}")
    bin_of: Int = gain.argmax(axis=1)
    counts = np.bincount(bin_of, minlength=bins)
    while counts.max() > capacity:
        loss, mover = moving_losses(gain, bin_of)
        chain = cheapest_chain(loss, np.flatnonzero(counts > capacity), np.flatnonzero(counts < capacity))
        for here, there in pairwise(chain):
            bin_of[mover[here, there]] = there
        counts[chain[0]] -= 1
        counts[chain[-1]] += 1
    return bin_of


def moving_losses(gain: Float, bin_of: Int) -> tuple[Float, Int]:
    """What the cheapest move of one item from bin to bin costs, `[bins, bins]`, and which item it is."""
    bins = gain.shape[1]
    loss = np.full((bins, bins), np.inf)
    mover = np.zeros((bins, bins), dtype=np.int64)
    for here in range(bins):
        members = np.flatnonzero(bin_of == here)
        if len(members):
            costs = gain[members, here][:, None] - gain[members]  # [members, bins]
            mover[here] = members[costs.argmin(axis=0)]
            loss[here] = costs.min(axis=0)
    np.fill_diagonal(loss, np.inf)
    return loss, mover


def cheapest_chain(loss: Float, starts: Int, ends: Int) -> list[int]:
    """The path of least summed loss from any start to any end (Bellman-Ford: losses may be negative)."""
    bins = len(loss)
    distance = np.full(bins, np.inf)
    distance[starts] = 0.0
    previous = np.full(bins, -1)
    margin = 1e-12 * np.abs(loss[np.isfinite(loss)]).max(initial=0.0)  # rounding must not close a loop
    for _ in range(bins):
        through = distance[:, None] + loss
        nearest = through.argmin(axis=0)
        reached = through[nearest, np.arange(bins)]
        better = reached < distance - margin
        if not better.any():
            break
        distance[better], previous[better] = reached[better], nearest[better]
    chain = [int(ends[distance[ends].argmin()])]
    while previous[chain[-1]] >= 0:
        chain.append(int(previous[chain[-1]]))
    return chain[::-1]


def balanced_kmeans(profiles: torch.Tensor, clusters: int, generator: torch.Generator) -> Int:
    """Groups the columns of `[T, neurons]` into equal clusters by the cosine of their profiles; each column's
    cluster.

    All of it happens on the columns' Gram matrix, so a round does not touch the tokens.
    """
    unit = F.normalize(profiles, dim=0)
    gram = (unit.T @ unit).double().numpy()  # [neurons, neurons]
    neurons = len(gram)
    cluster_of: Int = torch.randperm(neurons, generator=generator).numpy() % clusters
    for _ in range(KMEANS_ROUNDS):
        members = np.eye(clusters)[cluster_of]  # [neurons, clusters]
        toward = gram @ members
        norms = np.sqrt((members * toward).sum(axis=0))
        before, cluster_of = cluster_of, balanced_assignment(toward / norms, neurons // clusters)
        if np.array_equal(before, cluster_of):
            break
    return cluster_of
