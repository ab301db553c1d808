"""One training step (32 pairs of the world, forward, backward): CPU seconds, variants alternated in one run.

Run: python tests/benchmarks/step.py
"""

import time

import numpy as np
import torch

from safealign_utils import pairs
from safealign_utils.logprobs import LogProbs
from safealign_utils.packing import pack
from safealign_utils.references import reference_policy
from safealign_utils.world.world import World


def main():
    world = World()
    policy = reference_policy(world, seed=0)[0]
    tokens = pairs.tokenize(pairs.label(world.pairs(32, seed=0)), policy)
    shared = tokens.batch(np.arange(32), policy)
    apart = pack([*tokens.prompts] * 2, [[*tokens.chosen, *tokens.rejected]], pad_id=0)
    hidden = lambda b: policy.model(input_ids=b.ids).logits.log_softmax(-1)

    def step(f):
        policy.model.zero_grad()
        f().sum().backward()

    variants = {
        "prompt shared, head at response tokens": lambda: LogProbs(policy)(shared)[0],
        "a row a response, head at response tokens": lambda: LogProbs(policy)(apart)[0],
        "a row a response, head everywhere": lambda: hidden(apart),
        "prompt shared, and the live reference": lambda: (
            LogProbs(policy)(shared)[0] - _frozen(policy, shared)
        ),
    }
    spent = dict.fromkeys(variants, 0.0)
    for turn in range(12):
        for name, f in variants.items():
            start = time.process_time()
            step(f)
            spent[name] += (time.process_time() - start) * (turn > 1)
    best = spent["prompt shared, head at response tokens"]
    for name, s in spent.items():
        print(f"{name:<45}{1000 * s / 10:7.1f} ms a step, {s / best:.2f}x")


def _frozen(policy, batch):
    with torch.no_grad():
        return LogProbs(policy)(batch)[0]


if __name__ == "__main__":
    main()
