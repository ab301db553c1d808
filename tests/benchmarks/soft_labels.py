"""Soft labels made of hard labels alone, against their controls: labels x method x steps.

    python tests/benchmarks/soft_labels.py --seeds 5 6 --rows ROWS.jsonl [--arms core extra long]
    python tests/benchmarks/soft_labels.py --rows ROWS.jsonl --csv notebooks/tables/soft_labels.csv
    python tests/benchmarks/soft_labels.py --seeds 5 6 --quality notebooks/tables/label_quality.csv

The first form trains and appends a line a policy (what is there already is not trained again), the
second makes the table: mean over seeds with its 95 % interval, and the paired difference to hard
labels and to the cross-fitted ones. The default world, 6,000 pairs, beta 0.5, batches of 32,
float32, grammar softmax, rate 3e-3 but where another is named; read on the held-out nouns. `tv` and
`kl` are distances to the method's own optimum: pi* of DPO, pi*_c of SafeDPO, pi*_lambda of C-DPO at
lambda* of the training prompts for the limit 0. Of SafeDPO `kl` is KL(optimum || policy), of the
others KL(policy || optimum).

labels: hard; smoothed (to the mean that the cross-fitted labels give to the winners that people
named); cdpo and rdpo (with the share of labels that the oracle calls wrong, which nobody knows);
ipo; dr_dpo; hard_1e-3 and hard_3e-4 (lower rates; the best of them and of fewer steps is looked for
on the seeds of the table itself, which is in favour of this control); average (of the log-probs of
three policies, trained in other orders); votes (3,000 pairs with two votes each); cross_fitted;
reward_model and word_counts (one of its members alone); geometric and distilled (GDPO and distilled
DPO on the cross-fitted labels); oracle (an upper bound). Hard labels with known costs are MODPO in
the case of C-DPO, and `coin` draws by r - lambda c. Selective-DPO's score reference is the policy
`hard` of DPO; `dckd` learns from that policy directly.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from safealign_utils import evaluate, intervals, pairs, references, train
from safealign_utils.engine.streams import generator
from safealign_utils.methods import baselines, cdpo, distillation, label_noise, safedpo, selective
from safealign_utils.methods.ipo import ipo
from safealign_utils.real import soft_labels
from safealign_utils.world import optimum
from safealign_utils.world.world import World

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.trainings import ends

BETA, RATE, PAIRS = 0.5, 3e-3, 6000
MEMBER = dict(steps=200, batch_size=32)
RATES = {"hard_1e-3": 1e-3, "hard_3e-4": 3e-4}
CORE = {
    ("safedpo", 600): ("hard", "cross_fitted", "smoothed", "oracle"),
    ("dpo", 200): ("hard", "cross_fitted", "smoothed", "oracle", "hard_1e-3"),
    ("cdpo", 200): ("hard", "coin", "cross_fitted", "oracle"),
    ("safedpo", 200): ("hard", "cross_fitted", "hard_1e-3", "rdpo", "ipo"),
}
EXTRA = {
    ("safedpo", 600): ("hard_1e-3", "votes", "word_counts"),
    ("selective", 200): ("selective", "dckd"),
    ("dpo", 200): (
        "geometric", "distilled", "rdpo", "ipo", "dr_dpo", "cdpo", "word_counts", "reward_model",
        "votes", "hard_3e-4",
    ),
    ("safedpo", 200): ("average", "hard_3e-4", "oracle"),
    ("safedpo", 60): ("hard",),
    ("dpo", 60): ("hard",),
}  # fmt: skip
LONG = {("safedpo", 1800): ("hard", "cross_fitted")}
ARMS = {"core": CORE, "extra": EXTRA, "long": LONG}
LINKS = {
    "rdpo": label_noise.robust,
    "ipo": ipo,
    "dr_dpo": label_noise.SoftMinimum(1.0),
    "geometric": label_noise.geometric,
    "distilled": label_noise.distilled,
}
SOFT = ("cross_fitted", "geometric", "distilled")


class Seed:
    """What belongs to one seed: pairs, labels, reference, optima."""

    def __init__(self, world, seed, kept=None):
        self.world, self.seed, self.kept, self.policies = world, seed, kept, {}
        reference = references.reference_policy(world, seed=seed)[0]
        self.reference = replace(reference, constrained=True)
        self.table = pairs.label(world.pairs(PAIRS, seed=seed))
        self.heldout, self.trained = world.select("heldout"), world.select("train")

    @cached_property
    def members(self):
        """{name: member of the cross-fitted labels}, and `reward_model`, which is asked alone."""
        made = dict(MEMBER, seed=self.seed)
        dpo = dict(made, learning_rate=RATE, beta=BETA, use_cache=False)
        return {
            "implicit": soft_labels.ImplicitReward(self.reference, dpo),
            "word_counts": evaluate.bag_of_words,
            "reward_model": soft_labels.RewardModel(self.reference, dict(made, learning_rate=1e-3)),
        }

    @cached_property
    def cross_fitted(self):
        return self.softened("cross_fitted", ("implicit", "word_counts"))

    def softened(self, name, members):
        """Cross-fitted labels by named members, from the folder `kept` where they lie there."""
        file = self.kept and self.kept / f"{name}_seed{self.seed}.npy"
        if file and file.is_file():
            chosen, p = np.load(file)
            return self.table.assign(chosen=chosen.astype(int), p=p, margin=0.0)
        soft = pairs.cross_fitted(self.table, [self.members[member] for member in members])
        if file:
            np.save(file, np.stack([soft.chosen, soft.p]))
        return soft

    @cached_property
    def noise(self):
        """The share of labels that the oracle calls wrong."""
        gap = self.table.reward_0 - self.table.reward_1
        return float(((gap > 0) != (self.table.chosen == 0)).mean())

    @cached_property
    def smoothing(self):
        """1 - the mean that cross-fitted labels give to the winner that people named."""
        soft = self.cross_fitted
        p = np.where(soft.chosen == self.table.chosen, soft.p, 1 - soft.p)
        return 1 - float(p.mean())

    @cached_property
    def votes(self):
        half = self.table[: PAIRS // 2]
        u = np.array([generator(self.seed, "pair", i).random() for i in range(len(half))])  # free
        second = u < 1 / (1 + np.exp(half.reward_1 - half.reward_0))
        agree = second == (half.chosen == 0)
        return half.assign(p=np.where(agree, 1.0, 0.5))

    def labels(self, name):
        """The helpfulness labels of a name, as a table."""
        if name in SOFT:
            return self.cross_fitted
        if name in ("cdpo", "rdpo"):
            return label_noise.smoothed(self.table, self.noise)
        if name == "smoothed":
            return label_noise.smoothed(self.table, self.smoothing)
        if name == "votes":
            return self.votes
        if name in ("reward_model", "word_counts"):
            return self.softened(name, (name,))
        if name == "oracle":
            return pairs.soft_label(self.table, self.table.reward_0, self.table.reward_1)
        return self.table

    def logp(self, prompts):
        return evaluate.exact(self.reference, prompts).logp

    @cached_property
    def lam(self):
        reward, cost = self.world.reward[self.trained], self.world.cost[self.trained]
        return optimum.lambda_star(self.logp(self.trained), reward, cost, beta=BETA)

    def target(self, method, prompts):
        ref, reward, cost = self.logp(prompts), self.world.reward[prompts], self.world.cost[prompts]
        if method == "safedpo":
            return optimum.safe_optimal(ref, reward, cost, beta=BETA)
        lam = self.lam if method == "cdpo" else 0.0
        return optimum.lagrangian_optimal(ref, reward, cost, lam=lam, beta=BETA)

    def levers(self, method, name):
        """The table that a method makes of labels."""
        if method == "safedpo":
            return safedpo.safedpo(self.labels(name))
        if method != "cdpo":
            return self.labels(name)
        if name == "hard":
            return baselines.modpo(self.table, self.lam)
        if name in ("coin", "oracle"):
            by = "coin" if name == "coin" else "soft"
            return cdpo.relabel(self.table, self.lam, by=by, seed=self.seed)
        return cdpo.relabel(pairs.rewards_of_labels(self.labels(name)), self.lam)

    def policy(self, method, name, steps, rate=RATE, order=0):
        setting = dict(steps=steps, batch_size=32, learning_rate=rate)
        setting |= dict(seed=self.seed + 1000 * order, use_cache=False)
        if method == "selective":
            return self.from_teacher(name, setting)
        tokens = pairs.tokenize(self.levers(method, name), self.reference)
        link = LINKS.get(name)
        run = train.align(self.reference, tokens, beta=BETA, link=link, **setting)
        if (method, name, steps, order) == ("dpo", "hard", 200, 0):
            self.policies["teacher"] = run.policy
        return run.policy

    def from_teacher(self, name, setting):
        teacher = self.policies.get("teacher") or self.policy("dpo", "hard", setting["steps"])
        tokens = pairs.tokenize(self.table, self.reference)
        if name == "dckd":
            return distillation.distil(teacher, self.reference, tokens, **setting).policy
        score = selective.Signed(selective.offset(teacher, self.reference, tokens))
        lever = selective.TopTokens(0.4, score)
        run = train.align(self.reference, tokens, beta=BETA, token_lever=lever, **setting)
        return run.policy

    def measure(self, policies, method, prompts=None):
        """A row of distances of a policy, or of the mean of several policies' log-probs."""
        prompts = self.heldout if prompts is None else prompts
        logp = optimum.normalise(
            np.mean([evaluate.exact(p, prompts).logp for p in policies], axis=0)
        )
        target, cost = self.target(method, prompts), self.world.cost[prompts]
        kl = optimum.kl(target, logp) if method == "safedpo" else optimum.kl(logp, target)
        row = {"tv": optimum.total_variation(logp, target), "kl": kl}
        row |= {"unsafe": optimum.expect(logp, cost > 0), "cost": optimum.expect(logp, cost)}
        row |= {"reward": optimum.expect(logp, self.world.reward[prompts])}
        if method == "selective" and "teacher" in self.policies:
            teacher = evaluate.exact(self.policies["teacher"], prompts).logp
            row |= {"kl_teacher": optimum.kl(logp, teacher)}
        return row


def known_rows(file):
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def run(seeds, arms, file, kept):
    world, done = (
        World(),
        {(r["seed"], r["method"], r["steps"], r["labels"]) for r in known_rows(file)},
    )
    for seed in seeds:
        of = Seed(world, seed, kept)
        for (method, steps), names in ((a, n) for arm in arms for a, n in ARMS[arm].items()):
            for name in names:
                if (seed, method, steps, name) not in done:
                    append(file, one(of, method, steps, name))


def one(of, method, steps, name):
    """Train and measure one arm of a seed: a row."""
    start, rate = time.process_time(), RATES.get(name, RATE)
    orders = range(3) if name == "average" else (0,)
    policies = [of.policy(method, name, steps, rate, order) for order in orders]
    row = dict(seed=of.seed, method=method, steps=steps, labels=name)
    row |= of.measure(policies, method) | dict(noise=of.noise, lam=of.lam)
    return row | dict(seconds=time.process_time() - start)


def quality(seeds, file):
    """How near labels come to the oracle's probabilities, before any training: a table of cross
    entropies (nats a pair; the oracle's own is the least possible), for word counts alone."""
    rows, world = [], World()
    for seed in seeds:
        table = pairs.label(world.pairs(PAIRS, seed=seed))
        first = (table.chosen == 0).to_numpy()
        true = 1 / (1 + np.exp((table.reward_1 - table.reward_0).to_numpy()))
        soft = {"oracle": true}
        for by in ("pair", "prompt"):
            found = pairs.cross_fitted(table, [evaluate.bag_of_words], by=by)
            soft[f"word counts, by {by}"] = np.where(found.chosen == 0, found.p, 1 - found.p)
        p = soft["word counts, by pair"]
        mean = np.where(first, p, 1 - p).mean()
        soft["smoothed to the same mean"] = np.where(first, mean, 1 - mean)
        for name, p in soft.items():
            right = float(((p > 0.5) == (true > 0.5)).mean())
            rows.append(dict(seed=seed, labels=name, cross_entropy=entropy(true, p), right=right))
    kinds = dict(cross_entropy=intervals.POSITIVE, right=intervals.SHARE)
    out = [
        {"labels": name, "seeds": len(of)}
        | {k: v for q, bounds in kinds.items() for k, v in ends(q, of[q], bounds).items()}
        for name, of in pd.DataFrame(rows).groupby("labels", sort=False)
    ]
    found = pd.DataFrame(out).round(4)
    found.to_csv(file, index=False)
    print(found.to_string(index=False))


def entropy(true, p):
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return float(-(true * np.log(p) + (1 - true) * np.log(1 - p)).mean())


def append(file, row):
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}),
        flush=True,
    )


def table(rows):
    """Mean and interval over seeds of every arm, and its paired differences in the method's distance."""
    rows, out = pd.DataFrame(rows), []
    for (method, steps), group in rows.groupby(["method", "steps"], sort=False):
        distance = "tv" if method == "safedpo" else "kl"
        wide = group.pivot(index="seed", columns="labels", values=distance)
        for name, arm in group.groupby("labels", sort=False):
            row = dict(method=method, labels=name, steps=steps, seeds=len(arm), distance=distance)
            for quantity in (distance, "unsafe", "reward"):
                bounds = (
                    None
                    if quantity == "reward"
                    else intervals.SHARE
                    if quantity != "kl"
                    else intervals.POSITIVE
                )
                row |= ends(quantity if quantity != distance else "value", arm[quantity], bounds)
            for other in ("hard", "cross_fitted"):
                if other in wide and other != name:
                    gap = (wide[name] - wide[other]).dropna()
                    row |= ends(
                        f"minus_{other}", gap, intervals.DIFFERENCE if distance == "tv" else None
                    )
            if "kl_teacher" in arm and arm.kl_teacher.notna().any():
                row |= ends("kl_teacher", arm.kl_teacher, intervals.POSITIVE)
            out.append(row)
    return pd.DataFrame(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seeds", nargs="*", type=int, default=[])
    add("--arms", nargs="*", default=["core"], choices=list(ARMS))
    add("--rows", type=Path, default=Path("soft_labels.jsonl"))
    add("--quality", default="", metavar="CSV", help="no training: how near labels come")
    add("--keep", type=Path, help="folder where cross-fitted labels are kept between runs")
    add("--csv", default="")
    args = parser.parse_args()
    if args.quality:
        return quality(args.seeds, args.quality)
    run(args.seeds, args.arms, args.rows, args.keep)
    if args.csv:
        found = table(known_rows(args.rows)).round(4)
        found.to_csv(args.csv, index=False)
        print(found.to_string(index=False))


if __name__ == "__main__":
    main()
