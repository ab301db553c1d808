"""Every method in the default world and in the harder one, side by side: what carries over to nouns never trained on.

    python tests/benchmarks/two_worlds.py [--seeds 5 6 … 12] [--csv FOLDER]

6,000 pairs, 200 steps at 3e-3, the grammar softmax, β 0.5, for every method. Three splits: trained prompts (in the
harder world those of every third noun), held-out nouns, the held-out category. Beside each policy stands the same one
*read by words alone*: of its log-ratios to the reference, averaged over the training prompts of one intent, a policy
is made on the held-out prompts. What the policy itself has more is knowledge of the noun that was asked about.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.trainings import OWN, TABLES, Seed, collect

from safealign_utils import evaluate
from safealign_utils.intervals import summarise
from safealign_utils.world import optimum
from safealign_utils.world.language import SPLITS
from safealign_utils.world.world import World

METHODS = ("ref", "dpo", "dpo_safebetter", "safedpo", "safedpo_delta", "cdpo_soft", "selective")
METHODS += ("dog_d_safedpo", "random_safedpo")
SHOWN = ["reward", "unsafe", "tv_opt", "kl_opt", "benign_refusal", "kl_ref"]


def prompts(world):
    """{split: prompt ids}; of the harder world's training prompts those of every third noun."""
    out = {split: world.select(split) for split in SPLITS}
    if world.size == "attributes":
        nouns = list(dict.fromkeys(world.prompts[x].noun for x in out["train"]))[::3]
        out["train"] = np.array([x for x in out["train"] if world.prompts[x].noun in nouns])
    return out


def by_words(world, theta, ref, split):
    """An Exact of the policy that has learned words alone: its mean log-ratio, by intent, on other prompts.

    In the default world, whose categories have words of their own, the mean is over the nouns of one.
    """

    def group(x):
        x = world.prompts[x]
        return x.intent, x.category if world.size == "default" else ""

    change, known = theta.logp - ref["train"].logp, [group(x) for x in theta.prompts]
    mean = {g: change[[k == g for k in known]].mean(axis=0) for g in set(known)}
    target = ref[split]
    logp = target.logp + np.array([mean[group(x)] for x in target.prompts])
    return evaluate.Exact(optimum.normalise(logp), 0 * target.leak, target.prompts)


def rows_of(world, seed, method, refs):
    """Metrics of one method for one seed on every split, and by words alone."""
    policy = seed.reference if method == "ref" else seed.trained(method)
    found = {split: seed.exact(policy, ref.prompts) for split, ref in refs.items()}
    rows = []
    for split, theta in found.items():
        alone = split != "train" and method != "ref"
        alone = alone and (world.size == "attributes" or split == "heldout")
        read = {"the policy": theta}
        if alone:
            read["words alone"] = by_words(world, found["train"], refs, split)
        for way, table in read.items():
            target = seed.own_optimum(OWN[method], refs[split]) if method in OWN else None
            values = evaluate.metrics(table, refs[split], world, target=target)
            rows.append({"method": method, "split": split, "read": way, **values})
    return rows


def run(worlds, size, number):
    """All rows of one world and one seed."""
    world = worlds[size]
    seed = Seed(world, number)
    refs = {split: seed.exact(seed.reference, x) for split, x in prompts(world).items()}
    return [row for method in METHODS for row in rows_of(world, seed, method, refs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5, 13)))
    parser.add_argument("--csv", type=Path, default=TABLES)
    args = parser.parse_args()
    worlds = {size: World(size) for size in ("default", "attributes")}
    keys = [(size, seed) for seed in args.seeds for size in worlds]
    rows = collect(
        args.csv / "two_worlds_seeds.csv",
        lambda *key: run(worlds, *key),
        keys,
        ["world", "seed"],
    )
    table = summarise(rows.to_dict("records"), ["world", "split", "method", "read"], SHOWN)
    table.round(6).to_csv(args.csv / "two_worlds.csv", index=False)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
