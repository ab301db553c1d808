"""CPU seconds an optimiser step of the token lever costs, side by side in one process.

World, float32, batches of 32 of 600 pairs, one thread. Blocks of plain DPO and of Selective-DPO at 40 % with
four kinds of scores, in turn; a step is timed from one batch to the next, so that set-up does not count. Median
over all steps of all blocks but the first round, and the median over rounds of the ratio to DPO in that round.

Run: python tests/benchmarks/tokens.py [--toy]
"""

import os
import statistics
import sys
import tempfile
import time

os.environ["SAFEALIGN_CACHE"] = tempfile.mkdtemp()

import numpy as np  # noqa: E402

from safealign_utils import (
    evaluate,  # noqa: E402
    pairs,
    references,
    train,
)
from safealign_utils.methods import (
    selective,  # noqa: E402
    token_controls,
)
from safealign_utils.world.world import World  # noqa: E402

SETTING = dict(beta=0.5, batch_size=32, learning_rate=3e-3, seed=0, use_cache=False)
KEEP = 0.4


def levers(world, reference, table, tokens):
    """The token lever of every variant; None is plain DPO."""
    other = references.reference_policy(world, seed=1)[0]
    responses = evaluate.exact(reference, np.unique(table.prompt_id))
    truth = token_controls.advantages(reference.grammar, responses, table, values=world.reward).map(
        np.abs
    )
    scores = {
        "equal score reference": selective.Signed(),
        "score reference's offsets": selective.Signed(selective.offset(other, reference, tokens)),
        "random masks": token_controls.Random(),
        "fixed oracle": token_controls.Fixed(truth),
    }
    return {"plain DPO": None} | {
        name: selective.TopTokens(KEEP, score) for name, score in scores.items()
    }


def block(reference, tokens, lever, steps):
    """CPU seconds of each of `steps` optimiser steps: the time between the starts of two batches."""
    starts, real = [], train.log_ratios
    train.log_ratios = lambda *given: (starts.append(time.process_time()), real(*given))[1]
    try:
        train.align(reference, tokens, token_lever=lever, steps=steps + 1, **SETTING)
    finally:
        train.log_ratios = real
    return np.diff(starts).tolist()


def main(n, rounds, steps):
    world = World()
    reference = references.reference_policy(world, seed=0)[0]
    table = pairs.label(world.pairs(n, seed=0))
    tokens = pairs.tokenize(table, reference)
    variants = levers(world, reference, table, tokens)
    seconds = {name: [] for name in variants}
    for turn in range(rounds + 1):  # the first warms up
        order = list(variants)[:: 1 if turn % 2 else -1]
        for name in order:
            seconds[name].append(block(reference, tokens, variants[name], steps))
    print(f"CPU seconds a step, {rounds} blocks of {steps} steps each, keep {KEEP}")
    for name, blocks in seconds.items():
        middle = statistics.median(s for each in blocks[1:] for s in each)
        ratios = [
            statistics.median(a) / statistics.median(b)
            for a, b in zip(blocks[1:], seconds["plain DPO"][1:])
        ]
        print(f"{name:<28}{middle:9.4f} s{statistics.median(ratios):8.3f} times plain DPO")


if __name__ == "__main__":
    toy = "--toy" in sys.argv
    main(n=64 if toy else 600, rounds=2 if toy else 20, steps=2 if toy else 10)
