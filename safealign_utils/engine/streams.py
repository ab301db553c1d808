"""Random streams: one table of them, so that no two purposes draw the same numbers by accident.

A stream is a name and, where there are many of a kind, their indices; two streams of one seed are
independent, and the same on every machine. NumPy reads a seed with zeros behind it as the seed
without them, so that indices may not lead from one name into another
(`tests/engine/test_streams.py` draws from all of them).
"""

import numpy as np

STREAMS = {
    "pair": (),  # of the world, by its number
    "thrown labels": (4,),  # a coin in place of every label
    "halves": (5,),  # of a table of pairs
    "optimum": (5,),  # draws from it
    "dealt names": (6,),  # of data sets
    "pool": (),  # rows of a pool of data sets: data set, kind of row, number
    "pool order": (2**30,),
    "batch order": (2**30,),
    "coin flips": (2**30 + 7,),
    "prompts of the cost": (2**30 + 11,),
    "samples of the cost": (2**30 + 12,),  # by round
    "answers": (2**30 + 13,),  # by the digest of a prompt, and how often it came before
    "rollouts": (2**30 + 13,),  # of PPO, by iteration
    "minibatches": (2**30 + 17,),  # of PPO, by iteration
    "resampled prompts": (2**30 + 14,),
    "pair controls": (2**30 + 21,),
    "shown answers": (2**30 + 23,),  # by prompt
    "behaviour": (2**31,),  # samples that the reference policies are trained on
}
# Streams that share numbers, and why that is left: another number would move every record.
SHARED = {
    ("pair", "thrown labels"): "the coins of labels are the numbers of pair 4",
    ("halves", "optimum", "pair"): "halves, and draws from the optimum, have the numbers of pair 5",
    ("dealt names", "pair"): "the names dealt out have the numbers of pair 6",
    ("pair", "pool"): "the first row of each data set (kind 0, number 0) has the numbers of a pair",
    (
        "pool order",
        "batch order",
    ): "the order of a pool is the first permutation of as many batches",
}


def generator(seed, name, *indices):
    """The NumPy generator of a stream of STREAMS; `seed` and `indices` are whole numbers from 0."""
    return np.random.Generator(np.random.PCG64([seed, *STREAMS[name], *indices]))
