"""Linear heads on a frozen model's hidden states against word counts, by cross-validation over prompts.

    python tests/benchmarks/probes.py PAIRS.jsonl [--model smollm2]

Prints, for each kind that the pairs have labels for, the share of pairs ordered rightly by heads and by word counts in
the same five folds of prompts, their paired difference, and of a cost how often its sign is that of the safety label;
95 % intervals over prompts. CPU seconds of all of it, states from nothing.
"""

import argparse
import os
import tempfile
import time

import torch

from safealign_utils import evaluate
from safealign_utils.real import models, probe, read_pairs, scorer_training
from safealign_utils.study import inputs


def told(name, found):
    value, low, high, n = found
    print(
        f"  {name:<26}{100 * value:6.1f} %  ({100 * low:.1f} to {100 * high:.1f}, n = {n})",
        flush=True,
    )


def measure(kind, states, table):
    found, rows = probe.cross_validated(kind, states, table)
    ordered = scorer_training.with_order(kind, rows)
    over = dict(prompts=ordered.prompt, same_pairs=True)
    own = [scorer_training.pair_margins(found, ordered)]
    words = [probe.words_out_of_fold(kind, rows)]
    told("pairs, heads", evaluate.accuracy(own, **over))
    told("pairs, word counts", evaluate.accuracy(words, **over))
    told("heads minus word counts", evaluate.accuracy(own, against=words, **over))
    if kind == "cost":
        for name, row in scorer_training.harmless_accuracy([found], rows).iterrows():
            told(f"responses, {name}", row)


def main(data, model):
    policy = models.load_policy(model, template="auto").to("bfloat16", "cpu")
    os.environ["SAFEALIGN_CACHE"] = tempfile.mkdtemp()  # the model lies in the usual one
    table, start = read_pairs.load_pairs(data), time.process_time()
    states = probe.States(policy)
    lacking = inputs.unlabelled(table, dict(reward_model="probe", cost_model="probe"))
    for kind in ("reward", "cost"):
        if f"{kind}_model" not in lacking:
            print(kind)
            measure(kind, states, table)
    print(f"{time.process_time() - start:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("data")
    ask.add_argument("--model", default="smollm2")
    given = ask.parse_args()
    torch.set_num_threads(1)
    main(given.data, given.model)
