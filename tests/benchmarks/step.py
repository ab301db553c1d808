"""One training step of the world, 32 pairs: CPU milliseconds of one thread, variants alternated in one run.

    python tests/benchmarks/step.py [--against FOLDER]

Forward and gradient as transformers computes them (`logprobs.plain_log_probs`) and by hand (`engine/fast_llama.py`),
equal log-probs first. With --against, whole steps of `train.align` in this clone and in another (of another commit),
each in a process of its own that goes on living; the ratio is the median of those within a round.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from safealign_utils import pairs
from safealign_utils.engine import fast_llama
from safealign_utils.logprobs import LogProbs
from safealign_utils.references import reference_policy
from safealign_utils.world.world import World

ROUNDS = 9
KINDS = [(dtype, inside) for dtype in ("float32", "float64") for inside in (False, True)]
TOLERANCE = {"float32": 1e-4, "float64": 1e-12}
STEPS = """
import json, sys, time
from dataclasses import replace
import numpy as np
from safealign_utils import pairs, train
try:
    from safealign_utils.references import reference_policy
    from safealign_utils.world.world import World
except ImportError:  # where they were before the package had rooms
    from safealign_utils.policy import reference_policy
    from safealign_utils.world import World
world = World()
reference, table = reference_policy(world, seed=0)[0], pairs.label(world.pairs(2000, seed=0))
setting = dict(beta=0.1, batch_size=32, learning_rate=1e-3, seed=1, leak_weight=0.5, use_cache=False)
name = "log_ratios" if hasattr(train, "log_ratios") else "_log_ratios"
real, starts, made = getattr(train, name), [], {}
setattr(train, name, lambda *given: (starts.append(time.process_time()), real(*given))[1])
for line in sys.stdin:
    dtype, inside = kind = tuple(json.loads(line))
    if kind not in made:
        policy = replace(reference.to(dtype), constrained=inside)
        made[kind] = policy, pairs.tokenize(table, policy)
        train.align(*made[kind], steps=3, **setting)
    starts.clear()
    loss = train.align(*made[kind], steps=12, **setting).log.loss.iloc[-1]
    print(json.dumps([1000 * float(np.median(np.diff(starts))), float(loss)]), flush=True)
"""


def by_hand():
    """Print milliseconds of forward and gradient, plain and by hand."""
    world, fits = World(), fast_llama.fits
    reference = reference_policy(world, seed=0)[0]
    table = pairs.label(world.pairs(32, seed=0))
    for dtype, inside in KINDS:
        policy = dataclasses.replace(reference.to(dtype), constrained=inside)
        batch = pairs.tokenize(table, policy).batch(np.arange(32), policy)
        spent, found = {True: [], False: []}, {}
        for _ in range(ROUNDS + 1):
            for fast in spent:
                fast_llama.fits = fits if fast else lambda *given: False
                start = time.process_time()
                policy.model.zero_grad()
                found[fast], mass = LogProbs(policy)(batch)
                (found[fast].sum() + mass.sum()).backward()
                spent[fast].append(1000 * (time.process_time() - start))
        fast_llama.fits = fits
        gap = float((found[True] - found[False]).detach().abs().max())
        assert gap < TOLERANCE[dtype], gap
        report(f"{dtype}, {_softmax(inside)}, by hand", spent[False][1:], spent[True][1:])


def against(folder):
    """Print milliseconds of whole steps in another clone and in this one."""
    here = Path(__file__).parents[2]
    children = [_child(clone) for clone in (folder, here)]
    for kind in KINDS:
        spent, losses = ([], []), {}
        for turn in range(ROUNDS):
            for number in (0, 1) if turn % 2 else (1, 0):
                children[number].stdin.write(json.dumps(kind) + "\n")
                children[number].stdin.flush()
                ms, losses[number] = json.loads(children[number].stdout.readline())
                spent[number].append(ms)
        assert abs(losses[0] - losses[1]) < TOLERANCE[kind[0]], losses
        report(f"{kind[0]}, {_softmax(kind[1])}, whole step, here against there", *spent)


def _child(folder):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    how = dict(cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", STEPS], text=True, **how)


def _softmax(inside):
    return "grammar softmax" if inside else "plain softmax"


def report(what, before, after):
    ratio = statistics.median(b / a for a, b in zip(before, after))
    medians = statistics.median(before), statistics.median(after)
    print("{:<58}{:7.1f} to {:5.1f} ms, {:.2f}".format(what, *medians, ratio), flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--against", metavar="FOLDER", help="a clone of another commit")
    given = ask.parse_args()
    torch.set_num_threads(1)
    by_hand()
    if given.against:
        against(Path(given.against).resolve())
