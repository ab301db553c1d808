"""Learning rates, chosen for each method on training prompts by the same trials; DPO's headline by the choice.

    python tests/benchmarks/rates.py [--seeds 0 1 2 3 4] [--fresh 5 6 … 12] [--csv FOLDER]

Default world, 6,000 pairs, β 0.5. DPO and Selective-DPO on the plain network with the leak penalty (as in notebooks 01
and 04), the others with the grammar softmax (02, 03). Every method gets the same TRIALS, on development seeds. Two
scores, both on training prompts: `loss`, the method's own loss on 1,000 pairs that it was not trained on (labelled as
it labels its own, so with no more than it is given; Selective-DPO's over all tokens), and `kl_opt`, the distance to
the method's exact optimum (on the first noun's prompts of each category), which only a made world knows. The loss
chooses; what the distance would have chosen is said. A trial counts once every method and seed has it.

Then hard and soft labels of DPO on fresh seeds and held-out nouns: at the setting of the profile `full`, at the one
that each has chosen, and at the one nearest to the optimum.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.trainings import BETA, HEADLINE, OWN, TABLES, Seed, collect

from safealign_utils import evaluate, pairs
from safealign_utils.intervals import POSITIVE, over_seeds, summarise
from safealign_utils.world.world import World

PLAIN = ("dpo", "dpo_soft", "selective")
METHODS = (*PLAIN, "dpo_safebetter", "safedpo", "cdpo_soft")
TRIALS = (*((rate, 200) for rate in (1e-3, 3e-3, 1e-2, 3e-4)), (1e-3, 600))  # in this order
NEW_PAIRS = 1000
QUANTITIES = ["loss", "kl_opt", "tv_opt", "reward", "unsafe"]


def fresh_loss(seed, method, policy):
    """The method's own loss, nats, on pairs of the training prompts that nobody was trained on."""
    table = pairs.label(seed.world.pairs(NEW_PAIRS, seed=seed.seed + 2**30))
    table = seed.labelled(method, table)
    tokens = pairs.tokenize(table, seed.reference)
    z = BETA * evaluate.pair_margins(policy, seed.reference, tokens) - table.margin.to_numpy()
    p = table.p.to_numpy()
    return float((p * np.logaddexp(0, -z) + (1 - p) * np.logaddexp(0, z)).mean())


def prompts(world, split):
    """Where a policy is read: all prompts of a split; of the training prompts those of each category's first noun."""
    x = world.select(split)
    if split != "train":
        return x
    first = {world.prompts[i].category: world.prompts[i].noun for i in reversed(x)}
    return np.array([i for i in x if world.prompts[i].noun in first.values()])


def measured(seed, method, split, **setting):
    """One row: a training's distances on a split's prompts."""
    policy, x = seed.trained(method, **setting), prompts(seed.world, split)
    ref, theta = (seed.exact(p, x) for p in (seed.reference, policy))
    target = seed.own_optimum(OWN[method], ref)
    row = evaluate.metrics(theta, ref, seed.world, target=target)
    return {"split": split, "loss": fresh_loss(seed, method, policy), **row}


def trial(world, rate, steps, number, method):
    """One trial of one method for one development seed, on the training prompts."""
    seed = Seed(world, number, constrained=method not in PLAIN)
    return [measured(seed, method, "train", learning_rate=rate, steps=steps)]


def complete(rows, seeds, methods=METHODS):
    """The rows of the trials that every one of the methods has for every seed."""
    rows = rows[rows.seed.isin(seeds) & rows.method.isin(methods)]
    count = rows.groupby(["rate", "steps"])["method"].transform("size")
    return rows[count == len(methods) * len(seeds)]


def chosen(table):
    """The table of trials with two columns: which one the loss chooses, and which the distance."""
    for name, quantity in (("chosen", "loss"), ("nearest", "kl_opt")):
        best = table.groupby("method")[quantity].transform("min")
        table[name] = table[quantity] == best
    return table


def settings(trials, method):
    """{what it is: training settings} of DPO's headline for hard or soft labels."""
    out = {"profile full": dict(HEADLINE)}
    for words, column in (("chosen by loss", "chosen"), ("nearest to π*", "nearest")):
        best = trials[(trials.method == method) & trials[column]].iloc[0]
        out[words] = dict(learning_rate=float(best.rate), steps=int(best.steps))
    return out


def headline(world, trials, number):
    """DPO on hard and on soft labels for one fresh seed, on the held-out nouns."""
    seed, rows = Seed(world, number, constrained=False), []
    for method in ("dpo", "dpo_soft"):
        for words, setting in settings(trials, method).items():
            found = measured(seed, method, "heldout", **setting)
            shown = {"rate": setting["learning_rate"], "steps": setting["steps"]}
            rows.append({"method": method, "setting": words, **shown, **found})
    return rows


def gaps(rows):
    """The gap between hard and soft labels in nats, paired by seed, for each pair of settings."""
    kl = rows.pivot(index="seed", columns=["method", "setting"], values="kl_opt")
    out, base = [], None
    for words in rows.setting.unique():
        gap = kl["dpo", words] - kl["dpo_soft", words]
        base = gap if base is None else base
        values = over_seeds(gap), over_seeds(gap / base, POSITIVE if (gap > 0).all() else None)
        row = dict(zip(("gap", "gap_low", "gap_high"), values[0]))
        row |= dict(zip(("of_full", "of_full_low", "of_full_high"), values[1]))
        out.append({"setting": words, "n": len(gap), **row})
    return pd.DataFrame(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=len(TRIALS), help="the first so many")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--fresh", type=int, nargs="*", default=list(range(5, 13)))
    parser.add_argument("--csv", type=Path, default=TABLES)
    args = parser.parse_args()
    world, by = World(), ["method", "rate", "steps"]
    tried = TRIALS[: args.trials]
    keys = [(*each, seed, m) for seed in args.seeds for each in tried for m in args.methods]
    file, of = args.csv / "rates_seeds.csv", ["rate", "steps", "seed", "method"]
    rows = collect(file, lambda *key: trial(world, *key), keys, of)
    rows = complete(rows, args.seeds, args.methods)
    trials = chosen(summarise(rows.to_dict("records"), by, QUANTITIES))
    trials.round(6).to_csv(args.csv / "rates.csv", index=False)
    print(trials.round(4).to_string(index=False))
    if args.fresh:
        keys = [(seed,) for seed in args.fresh]
        file = args.csv / "rates_headline_seeds.csv"
        rows = collect(file, lambda seed: headline(world, trials, seed), keys, ["seed"])
        table = summarise(rows.to_dict("records"), ["method", "setting", *by[1:]], QUANTITIES)
        table.round(6).to_csv(args.csv / "rates_headline.csv", index=False)
        gaps(rows).round(6).to_csv(args.csv / "rates_gap.csv", index=False)
        print(table.round(4).to_string(index=False))
        print(gaps(rows).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
