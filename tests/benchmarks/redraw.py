"""Draw the figures of committed tables again whose intervals are new: nothing is trained.

python tests/benchmarks/redraw.py       # frontier, tradeoff, shares, side_by_side, effects
"""

from pathlib import Path

import numpy as np
import pandas as pd

from safealign_utils import evaluate, references
from safealign_utils.figures import dpo_and_safety, side_by_side, style, tokens_and_pairs
from safealign_utils.methods import baselines
from safealign_utils.world import optimum
from safealign_utils.world.world import World

RESULTS = Path(__file__).parents[2] / "notebooks" / "tables"
SEEDS, BETA = (0, 1, 2), 0.5
WORDS = {"unsafe": "P(unsafe)", "reward": "E[r]", "tv_safe": "TV to π*_c"}


def save(figure, name):
    """Only the PNG: the committed figures have no SVG."""
    style.save(figure, RESULTS / name)
    (RESULTS / f"{name}.svg").unlink()


def table(name):
    return pd.read_csv(RESULTS / f"{name}_full.csv")


def exact_parts(world):
    """Reward-KL frontier, cost frontiers {words: [K, 2]} and optima (harmless, E[r], words), means over seeds."""
    held, train = world.select("heldout"), world.select("train")
    reward, cost = world.reward[held], world.cost[held]
    unsafe, strengths = 1.0 * (cost > 0), np.geomspace(0.2, 20, 60)
    ends, frontiers, lines = [], [], {"exact: r − λc": [], "exact: r − λ·1{c > 0}": []}
    for seed in SEEDS:
        reference, _ = references.reference_policy(world, seed=seed)
        ref = evaluate.exact(reference, held).logp
        of_train = evaluate.exact(reference, train).logp
        lam = baselines.mocan_lambda(of_train, world.reward[train], world.cost[train], beta=BETA)
        best = {
            "π*": optimum.lagrangian_optimal(ref, reward, cost, lam=0.0, beta=BETA),
            "π*_λ": optimum.lagrangian_optimal(ref, reward, cost, lam=lam, beta=BETA),
            "π*_c": optimum.safe_optimal(ref, reward, cost, beta=BETA),
        }
        ends.append([(harmless(p, unsafe), optimum.expect(p, reward)) for p in best.values()])
        frontiers.append(optimum.reward_frontier(ref, reward, strengths))
        for rows, c, top, column in zip(lines.values(), (cost, unsafe), (4.0, 8.0), (3, 2)):
            own = optimum.cost_frontier(ref, reward, c, np.linspace(0, top, 50), beta=BETA)
            rows.append(np.stack([100 * (1 - own[:, column]), own[:, 1]], axis=1))
    stars = [(x, y, words) for (x, y), words in zip(np.mean(ends, axis=0), best)]
    curves = {words: np.mean(rows, axis=0) for words, rows in lines.items()}
    return np.mean(frontiers, axis=0), curves, stars


def harmless(policy, unsafe):
    return 100 * (1 - optimum.expect(policy, unsafe))


def main():
    n = len(SEEDS)
    save(side_by_side.effects(table("06_effects"), quantities=WORDS, n=n), "effects")
    rules = table("04_rules")
    shared = ["dpo", "signed", "random", "beta", "oracle"]
    save(tokens_and_pairs.shares(rules[rules.rule.isin(shared)], n=n), "shares")
    frontier, curves, stars = exact_parts(World())
    save(dpo_and_safety.frontier(frontier, table("01_frontier"), n=n), "frontier")
    save(side_by_side.methods(table("06_methods"), curves=curves, stars=stars, n=n), "side_by_side")
    words = dict(xlabel="harmless: 100 (1 − P(unsafe)), held-out nouns", ylabel="helpfulness: E[r]")
    words |= dict(title="Helpful and harmless", n=n, exact=stars)
    save(dpo_and_safety.plane(table("02_methods"), x="harmless", y="reward", **words), "tradeoff")


if __name__ == "__main__":
    main()
