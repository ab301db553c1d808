"""Is a learned cost's unit right? E[c] by the oracle against the limit, by how the cost was learned.

    python tests/benchmarks/cost_models.py --seeds 5 6 7 --rows ROWS.jsonl
    python tests/benchmarks/cost_models.py --rows ROWS.jsonl --csv notebooks/tables/cost_model.csv

The first form trains and appends lines, the second makes the table (mean over seeds, 95 %
interval). Every cost model learns from 4,800 pairs of the default world (200 steps of 32, rate 3e-3
but where another is named); the 1,200 others fit what is fitted afterwards. Then no policy is
trained: C-DPO's problem with the learned cost and the oracle's reward is solved exactly on the
training prompts of one noun a category, so that what is seen is the cost model alone. `cost` is the
oracle's E[c] of that optimum: the limit, if the unit is right; `lam` its multiplier, `lam_star` the
oracle's; `off` |E[c] - limit|. `sign`: the share of responses, weighted by the reference, that are
called safe or unsafe as the oracle does. `slope`: points of the learned cost for one of the oracle's (least
squares, weighted by the reference), over all responses, the safe ones and the unsafe ones.

loss        safe_rlhf: as published; equal_status: its pairwise term on pairs of equal status alone;
            hinge: that, and sign terms of sharpness 20, which ask for the right sign and no more
map         none; temperature, isotonic: fitted to the 1,200 pairs (`real/calibration.py`)
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from safealign_utils import evaluate, intervals, references
from safealign_utils.real import calibration, scorer_training
from safealign_utils.world import optimum
from safealign_utils.world.world import World

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.trainings import ends

BETA, PAIRS, KEPT = 0.5, 6000, 4800
LIMITS = (-0.8, -0.4, 0.0, 0.4)
LOSSES = {  # name: options of train_cost
    "safe_rlhf, rate 1e-3": dict(loss="safe_rlhf", learning_rate=1e-3),
    **{loss: dict(loss=loss, learning_rate=3e-3) for loss in scorer_training.COST_LOSSES},
}
MAPS = {
    "none": lambda cost, table: np.asarray,
    "temperature": calibration.temperature,
    "isotonic": calibration.isotonic,
}


def slope(learned, cost, weight):
    """Points of the learned cost for one of the oracle's, over responses of some weight."""
    weight = weight / weight.sum()
    x = cost - (weight * cost).sum()
    return float((weight * x * learned).sum() / (weight * x * cost).sum())


def solved(ref, reward, learned, limit):
    """(multiplier, policy) of the exact problem with a learned cost; NaN and None where no policy meets the limit."""
    try:
        lam = optimum.lambda_star(ref, reward, learned, beta=BETA, cost_limit=limit)
    except ValueError:
        return np.nan, None
    return lam, optimum.lagrangian_optimal(ref, reward, learned, lam=lam, beta=BETA)


def rows_of(seed, world):
    """The rows of a seed: every loss, map and limit."""
    reference, table = (
        references.reference_policy(world, seed=seed)[0],
        world.pairs(PAIRS, seed=seed),
    )
    train, rest = table[:KEPT], table[KEPT:].reset_index(drop=True)
    nouns = [world.category(x.category).nouns[1] for x in world.prompts]
    prompts = [x for x in world.select("train") if world.prompts[x].noun == nouns[x]]
    ref = evaluate.exact(reference, prompts).logp
    reward, cost = world.reward[prompts], world.cost[prompts]
    texts = [
        (world.prompts[x].text, world.text(x, y)) for x in prompts for y in range(ref.shape[1])
    ]
    asked = dict(seed=seed, steps=200, batch_size=32)
    for loss, options in LOSSES.items():
        model = scorer_training.train_cost(reference, train, **asked, **options)
        raw = model(*zip(*texts))
        for name, made in MAPS.items():
            if loss == "safe_rlhf, rate 1e-3" and name != "none":
                continue
            learned = made(model, rest)(raw).reshape(cost.shape)
            row = dict(seed=seed, loss=loss, map=name)
            row["sign"] = optimum.expect(ref, (learned > 0) == (cost > 0))
            for part, some in (("all", cost > -np.inf), ("safe", cost <= 0), ("unsafe", cost > 0)):
                row[f"slope_{part}"] = slope(learned[some], cost[some], np.exp(ref)[some])
            for limit in LIMITS:
                star, _ = solved(ref, reward, cost, limit)
                lam, policy = solved(ref, reward, learned, limit)
                found = dict(limit=limit, lam=lam, lam_star=star, cost=np.nan, unsafe=np.nan)
                if policy is not None:
                    found |= dict(
                        cost=optimum.expect(policy, cost), unsafe=optimum.expect(policy, cost > 0)
                    )
                yield row | found


def table(rows):
    """Means over seeds with intervals, a line a loss, map and limit."""
    rows, out = pd.DataFrame(rows), []
    rows["off"] = (rows.cost - rows.limit).abs()
    slopes = [f"slope_{part}" for part in ("all", "safe", "unsafe")]
    for key, group in rows.groupby(["loss", "map", "limit"], sort=False):
        solvable = group.dropna(subset="cost")
        row = dict(zip(("loss", "map", "limit"), key)) | dict(
            seeds=len(group), solvable=len(solvable)
        )
        if len(solvable):
            row |= ends("cost", solvable.cost, None) | ends("off", solvable.off, intervals.POSITIVE)
            row |= {name: solvable[name].mean() for name in ("lam", "lam_star", "unsafe")}
        row |= ends("sign", group.sign, intervals.SHARE)
        out.append(row | {name: group[name].mean() for name in slopes})
    return pd.DataFrame(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[])
    parser.add_argument("--rows", required=True, type=Path)
    parser.add_argument("--csv", default="")
    args = parser.parse_args()
    world = World() if args.seeds else None
    for seed in args.seeds:
        start = time.process_time()
        lines = [json.dumps(row) + "\n" for row in rows_of(seed, world)]
        with open(args.rows, "a", encoding="utf-8") as file:
            file.writelines(lines)
        print(f"seed {seed}: {time.process_time() - start:.0f} CPU seconds", flush=True)
    if args.csv:
        lines = args.rows.read_text(encoding="utf-8").splitlines()
        found = table([json.loads(line) for line in lines]).round(4)
        found.to_csv(args.csv, index=False)
        print(found.to_string(index=False))


if __name__ == "__main__":
    main()
