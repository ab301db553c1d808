"""Exact evaluation of one prompt: packed trie by group size against one row a response. CPU seconds, float32.

Run: python tests/benchmarks/trie.py
"""

import time

import numpy as np
import torch

from safealign_utils import logprobs
from safealign_utils.logprobs import LogProbs
from safealign_utils.packing import pack
from safealign_utils.references import reference_policy
from safealign_utils.world.world import World


def seconds(f, repeat=5):
    f()
    start = time.process_time()
    for _ in range(repeat):
        f()
    return (time.process_time() - start) / repeat


def main():
    world = World()
    policy = reference_policy(world, seed=0)[0]
    prompt = np.array(policy.tokenizer(world.prompts[0].text)["input_ids"])
    replies = [policy.grammar.response(0, y)[0] for y in range(604)]

    def by_row():
        with torch.no_grad():
            for i in range(0, 604, 64):
                rows = replies[i : i + 64]
                LogProbs(policy)(pack([prompt] * len(rows), [rows], pad_id=0))

    base = seconds(by_row)
    print(f"one row a response, 64 a batch: {base:.4f} s")
    for group in (16, 32, 64, 128, 604):
        t = seconds(lambda g=group: logprobs.token_logps(policy, 0, group=g))
        print(f"packed trie, {group:>3} responses a row: {t:.4f} s, {base / t:.1f}x")


if __name__ == "__main__":
    main()
