"""Batches of rows of like length: little padding, and what does not fit in memory fails at once."""

import numpy as np


def longest_first(lengths, size):
    """Numbers of the rows in batches of like size, `size` at most, the longest rows first: a list
    of int arrays."""
    order = np.argsort(list(lengths), kind="stable")
    return np.array_split(order, -(-len(order) // size))[::-1]
