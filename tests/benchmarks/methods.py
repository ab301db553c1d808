"""Seconds of SafeDPO, C-DPO and PPO-Lagrangian, side by side in one process, from an empty cache.

A short slice of each, in turn, three times; the medians are scaled to the lengths of notebook 03's `full`
profile (200 steps; 9 fits of 100 steps, each with E[c] from 450 samples; 60 iterations of 360 samples).
"""

import os
import statistics
import tempfile
import time
from dataclasses import replace

os.environ["SAFEALIGN_CACHE"] = tempfile.mkdtemp()

from safealign_utils import pairs, references, train  # noqa: E402
from safealign_utils.methods import cdpo, ppo, safedpo  # noqa: E402
from safealign_utils.world.world import World  # noqa: E402


def main(steps=20, iterations=2):
    world = World()
    reference = replace(references.reference_policy(world, seed=0)[0], constrained=True)
    table, prompts = pairs.label(world.pairs(600, seed=0)), world.select("train")
    texts = tuple(world.prompts[i].text for i in prompts)
    cost_of = cdpo.SampledCost(texts, world.scorer("cost"), 450)
    setting = dict(beta=0.5, batch_size=32, learning_rate=3e-3, seed=0, use_cache=False)
    scorers = dict(reward=world.scorer("reward"), cost=world.scorer("cost"))
    tables = {"SafeDPO": safedpo.safedpo(table), "C-DPO": cdpo.relabel(table, 0.5)}
    tokens = {name: pairs.tokenize(t, reference) for name, t in tables.items()}
    seconds = {name: [] for name in ("SafeDPO step", "C-DPO step", "C-DPO E[c]", "PPO iteration")}

    def clock(name, count, work):
        start = time.perf_counter()
        work()
        seconds[name].append((time.perf_counter() - start) / count)

    for repeat in range(4):  # the first warms up
        for name in tables:
            clock(
                f"{name} step",
                steps,
                lambda name=name: train.align(reference, tokens[name], steps=steps, **setting),
            )
        clock("C-DPO E[c]", 1, lambda repeat=repeat: cost_of(reference, repeat))
        ask = dict(cost_limit=0.0, beta=0.5, iterations=iterations, learning_rate=1e-3, seed=repeat)
        clock(
            "PPO iteration",
            iterations,
            lambda ask=ask: ppo.ppo_lagrangian(reference, prompts, **scorers, **ask),
        )
    middle = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    whole = {
        "SafeDPO": 200 * middle["SafeDPO step"],
        "C-DPO": 900 * middle["C-DPO step"] + 9 * middle["C-DPO E[c]"],
        "PPO-Lagrangian": 60 * middle["PPO iteration"],
    }
    for name, value in middle.items():
        print(f"{name:<16}{value:8.3f} s")
    for name, value in whole.items():
        ratio = whole["PPO-Lagrangian"] / value
        print(f"{name:<16}{value:8.1f} s in all; PPO-Lagrangian takes {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
