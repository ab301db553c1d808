"""For each rule a method that is broken: the notebook's own cells judge, and the verdict turns.

A bench hands a notebook's claim cells the rows that it would have made, honest ones, for which
every claim holds, or the same with one method broken. What a break does to the numbers is written
beside it; that such breaks do that to trained policies is shown in `test_claims.py`.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.claim_cells import SEEDS, WOBBLE, Recorder, jitter, rows_of, run

from safealign_utils.study import claims

LEDGER = claims.ledger()


def by_seed_of(value, salt=0):
    return np.array([jitter(value, s, salt) for s in SEEDS])


# ---------------------------------------------------------------- 01
HONEST_01 = {
    "chosen": -1.0,
    "gap": {"dpo": 0.02, "dpo_soft": 0.01},
    "kl": {"dpo": 0.3, "dpo_soft": 0.03, "ml_on_optimum": 0.02, "fewer": 0.6},
    "correlation": 0.95,
    "falls": 0.62,
    "right": {"dpo": 0.75, "bag_of_words": 0.70},
    "kl_ref": {"ipo": 1.0, "dpo_certain": 2.0},
}


def dpo_basics(m):
    kl = pd.DataFrame({k: by_seed_of(m["kl"][k], i) for i, k in enumerate(("dpo", "dpo_soft"))})
    rows = [
        {"method": method, "pairs": n, "seed": s, "kl_opt": jitter(m["kl"][name], s, i)}
        for i, (method, n, name) in enumerate(
            [("dpo", 1500, "fewer"), ("dpo", 6000, "dpo"), ("ml_on_optimum", 6000, "ml_on_optimum")]
        )
        for s in SEEDS
    ]
    ordered = lambda share: np.where(np.arange(400) < round(400 * share), 1.0, -1.0)
    log = lambda s: SimpleNamespace(
        tail=lambda n: SimpleNamespace(chosen=by_seed_of(m["chosen"])[s : s + 1])
    )
    chosen = np.where(np.arange(1000) < 1000 * m["falls"], -1.0, 1.0)
    return run(
        "01_dpo_basics",
        Recorder(),
        runs={("dpo", s): SimpleNamespace(log=log(s)) for s in SEEDS},
        points=rows_of({k: {"frontier_gap": v} for k, v in m["gap"].items()}, ["method"]),
        METHODS=("dpo", "dpo_soft"),
        kl=kl.set_axis(SEEDS),
        rows=pd.DataFrame(rows),
        settings=SimpleNamespace(pairs=6000),
        reward_correlation=lambda s: m["correlation"] + 0.1 * WOBBLE[s.seed],
        at_optimum=lambda setup: (chosen, None),
        margins={
            k: [ordered(v + 0.1 * WOBBLE[(s + i) % 4]) for s in SEEDS]
            for i, (k, v) in enumerate(m["right"].items())
        },
        links=rows_of({k: {"kl_ref": v} for k, v in m["kl_ref"].items()}, ["method"]),
    )


# ---------------------------------------------------------------- 02
HONEST_02 = {
    "rows": {
        "ref": dict(unsafe=0.34, benign_refusal=0.15, reward=0.6),
        "dpo": dict(unsafe=0.63, benign_refusal=0.0005, reward=2.2, frontier_gap=0.02),
        "dpo_safebetter": dict(unsafe=0.02, benign_refusal=0.001, reward=1.4, missed=0.1),
        "safedpo": dict(unsafe=0.0017, benign_refusal=0.005, reward=1.2, missed=0.11),
        "dpo_harmless": dict(unsafe=0.0018, benign_refusal=0.5, reward=-0.4),
        "sacpo": dict(unsafe=0.36, reward=1.8, missed=0.3),
        "ppo_lagrangian": dict(unsafe=0.42, reward=2.0, missed=0.2),
    },
    "free": {"ppo": dict(frontier_gap=0.05), "dpo_soft": dict(frontier_gap=0.01)},
    "grid": {0.0: dict(unsafe=0.0017, reward=1.2), 20.0: dict(unsafe=0.0001, reward=0.5)},
    "apart": 0.02,
    "leak": {0.0: 0.28, 20.0: 0.91},
    "unseen": {"safedpo": 0.117, "dpo_safebetter": 0.19},
    "long": {"safedpo": 0.59, "safedpo_soft": 0.09, "safedpo_finite": 0.08},
    "penalised": 0.0017,
    "table": 0.0,
}


def safedpo(m):
    numbers = dict.fromkeys(("unsafe", "reward", "benign_refusal", "missed"), 0.1)
    numbers |= {"frontier_gap": 0.1, "leak": 0.0, "kl_ref": 1.0, "kl_opt": 1.0}
    rows = rows_of({k: numbers | v for k, v in m["rows"].items()}, ["method"])
    free = rows_of({k: numbers | v for k, v in m["free"].items()}, ["method"])
    place = lambda rows: {(r["method"], r["seed"]): r for r in rows}
    policies = place(rows)
    as_rows = lambda table, key, q: rows_of({k: {q: v} for k, v in table.items()}, [key])
    longest = as_rows(m["long"], "method", "tv_opt")
    study = Recorder(
        heldout=np.arange(2),
        responses=lambda policy: SimpleNamespace(logp=policy["missed"]),
        exact=lambda setup, policy, target: {k: v for k, v in policy.items() if k in numbers},
        optimum=lambda setup: None,
        train=lambda setup, table: SimpleNamespace(policy=place(free)["dpo_soft", setup.seed]),
        ppo=lambda setup, **k: SimpleNamespace(policy=place(free)["ppo", setup.seed]),
    )
    for setup in study.setups:
        setup.train = SimpleNamespace(reward_0=0, reward_1=0)
    return run(
        "02_safedpo",
        study,
        "def by_seed(rows",
        "def missed(",
        "def unconstrained(",
        rows=rows,
        grid=rows_of(m["grid"], ["delta"]),
        twins=as_rows(m["leak"], "delta", "leak"),
        unseen=as_rows(m["unseen"], "method", "unsafe"),
        recipe=[row | {"steps": 1800} for row in longest],
        long=1800,
        apart=lambda setup, low, high: jitter(m["apart"], setup.seed),
        tv={0: m["table"], 5: m["table"]},
        penalised_apart=lambda setup: m["penalised"],
        policies={s: {k: policies[k, s] for k in m["rows"]} for s in SEEDS},
        world=SimpleNamespace(cost=np.ones((2, 3)), reward=np.ones((2, 3))),
        optimum=SimpleNamespace(matched_gap=lambda logp, *rest: logp),
        soft_label=lambda *a: None,
        settings=SimpleNamespace(deltas=[0.0, 20.0], steps=200, beta=0.5),
    )


# ---------------------------------------------------------------- 03
STAR = 0.5
HONEST_03 = {
    "cdpo": dict(lam=0.004, over=0.005, reward=0.01, unsafe=0.01, kl_opt=0.01, missed=0.01),
    "labels": {
        "cdpo_soft": dict(kl_opt=0.015, over=0.004),
        "cdpo_coin": dict(kl_opt=0.3, over=0.1),
        "cdpo_argmax": dict(kl_opt=0.8, over=0.1),
    },
    "points": {
        "dpo": dict(cost=0.6, reward=2.2, kl_opt=0.3),
        "fixed_lambda": dict(cost=-0.6, reward=1.6, kl_opt=0.3),
        "mocan_soft": dict(cost=0.0, reward=2.0, kl_opt=0.002),
        "ppo_lagrangian": dict(cost=0.0, reward=1.9, kl_opt=0.01),
    },
    "ppo": dict(over=-0.02, missed=0.05),
}
OPTIMUM = {"r": 2.04, "unsafe": 0.43}


class Score(str):
    """A score of the responses, by name; c > 0 is the unsafe ones."""

    def __gt__(self, other):
        return "unsafe"

    __hash__ = str.__hash__


def cdpo(m):
    of, small = m["cdpo"], {s: 0.1 * WOBBLE[s] for s in SEEDS}
    ends = [
        {
            "seed": s,
            "lambda": STAR + of["lam"] + small[s],
            "train_cost": of["over"] + small[s],
            "reward": OPTIMUM["r"] + of["reward"] + small[s],
            "unsafe": OPTIMUM["unsafe"] + of["unsafe"] + small[s],
            "kl_opt": jitter(of["kl_opt"], s, 1),
        }
        for s in SEEDS
    ]
    labels = rows_of({k: {"kl_opt": v["kl_opt"]} for k, v in m["labels"].items()}, ["method"])
    labels = [
        r | {"train_cost": m["labels"][r["method"]]["over"] + small[r["seed"]]} for r in labels
    ]
    # the optimum of lambda = 0 and of 1: what the policies of honest points are
    exact = {0.0: {"r": 2.2, "c": 0.6}, 1.0: {"r": 1.6, "c": -0.6}}

    def expect(policy, values):
        return OPTIMUM[str(values)] if policy == STAR and values != "c" else exact[policy][values]

    policy = lambda number: SimpleNamespace(policy=number)
    study = Recorder(responses=lambda number: SimpleNamespace(logp=number))
    return run(
        "03_cdpo_dual_gradient_descent",
        study,
        "def over(",
        "def beside_optimum(",
        ends=ends,
        labels=labels,
        points=rows_of(m["points"], ["method"]),
        limit=0.0,
        lam_star=dict.fromkeys(SEEDS, STAR),
        target=lambda setup, lam: lam,
        held_r=Score("r"),
        held_c=Score("c"),
        optimum=SimpleNamespace(expect=expect, matched_gap=lambda logp, *rest: logp),
        reached={s: m["ppo"]["over"] + small[s] for s in SEEDS},
        runs={s: policy(jitter(of["missed"], s)) for s in SEEDS},
        ppo={s: policy(jitter(m["ppo"]["missed"], s, 2)) for s in SEEDS},
        mean=lambda values: float(np.mean(list(values))),
        settings=SimpleNamespace(fixed_lambda=1.0),
    )


# ---------------------------------------------------------------- 04
TOKENS = dict(kl_opt=0.3, frontier_gap=0.1, reward=2.2, kl_ref=1.0)
HONEST_04 = {
    "first_step": 0.0,
    "results": {
        ("dpo", 1.0): TOKENS,
        ("signed", 0.4): TOKENS | dict(kl_opt=0.2, frontier_gap=0.05),
        ("signed", 0.2): TOKENS | dict(kl_opt=0.4),
        ("oracle", 0.4): TOKENS | dict(kl_opt=0.2),
        ("random", 0.4): TOKENS | dict(kl_opt=0.2),
        ("beta", 0.4): TOKENS | dict(frontier_gap=0.05),
        ("frozen", 0.4): TOKENS | dict(kl_ref=6.0),
    },
    "ladder": {
        ("given", "aligned"): dict(off=0.002, left=0.01, kl_opt=0.3),
        ("given", "larger"): dict(off=0.002, left=0.01, kl_opt=0.2),
        ("given", "optimum"): dict(off=-0.01, left=0.01, kl_opt=0.01),
        ("coins", "aligned"): dict(off=0.002, left=0.01, kl_opt=0.3),
        ("coins", "larger"): dict(off=0.002, left=0.01, kl_opt=0.3),
        ("coins", "optimum"): dict(off=-0.01, left=0.01, kl_opt=0.01),
    },
    "own": {("signed", "given"): dict(off=0.01, kl_opt=0.2), ("signed", "coins"): dict(off=0.01)},
    "aligned": 0.3,
    "found": dict(makes=0.9, signed=0.6, advantage=0.61, after=0.85),
    "leak": {"dpo": 0.04, "oracle": 0.09, "signed": 0.02},
}


def selective(m):
    ladder = [
        {
            "labels": labels,
            "reference": kind,
            "keep": 0.4,
            "seed": s,
            "own": 2.2,
            "reward": 2.2 + v["off"] + 0.1 * WOBBLE[s],
            "kl_score": jitter(v["left"], s, i),
            "kl_start": 1.0,
            "kl_opt": jitter(v["kl_opt"], s, i),
        }
        for i, ((labels, kind), v) in enumerate(m["ladder"].items())
        for s in SEEDS
    ]
    own = [
        {"rule": r, "labels": b, "seed": s, "own": 2.2, "kl_opt": jitter(v.get("kl_opt", 0.3), s)}
        | {"reward": 2.2 + v["off"] + 0.1 * WOBBLE[s]}
        for (r, b), v in m["own"].items()
        for s in SEEDS
    ]
    found = [
        {"score_reference": "aligned", "when": when, "seed": s}
        | {"makes_branching": makes + 0.1 * WOBBLE[s]}
        | {"signed_branching": m["found"]["signed"] + 0.1 * WOBBLE[s]}
        | {"advantage_branching": m["found"]["advantage"] + 0.1 * WOBBLE[(s + 1) % 4]}
        for when, makes in (("start", m["found"]["makes"]), ("end", m["found"]["after"]))
        for s in SEEDS
    ]
    index = ["score_reference", "when", "seed"]
    rules = [rule for rule, _ in m["results"] if rule != "dpo"] + ["shuffled"]
    return run(
        "04_selective_dpo_token_scoring",
        Recorder(optimum=lambda setup: setup.seed),
        "def paired(",
        grid=list(m["results"]),
        results=rows_of(m["results"], ["rule", "keep"]),
        metric=lambda rule: {"oracle": "oracle_tokens", "random": "random_tokens"}[rule],
        first_step_apart=lambda setup: m["first_step"],
        kinds=("aligned", "larger", "optimum"),
        points=[(kind, 0.4, labels) for labels, kind in m["ladder"]],
        ladder=ladder,
        one_model=own,
        score_table=lambda setup, kind: None,
        optimum=SimpleNamespace(kl=lambda table, best: jitter(m["aligned"], best, 2)),
        found_by=pd.DataFrame(found).set_index(index).sort_index(),
        plain=rows_of({k: {"leak": v} for k, v in m["leak"].items()}, ["rule"]),
        settings=SimpleNamespace(token_rules=rules, keep=0.4),
    )


# ---------------------------------------------------------------- 05
HONEST_05 = {
    "rules": {
        "ref": dict(unsafe=0.34),
        "full_data": dict(unsafe=0.005),
        "random": dict(unsafe=0.08, worst=0.26),
        "random_copies": dict(unsafe=0.14),
        "dog": dict(unsafe=0.005),
        "dog_d": dict(unsafe=0.005, worst=0.014),
        "literal": dict(unsafe=0.2),
        "log_det": dict(unsafe=0.01),
        "sharp_log_det": dict(unsafe=0.003),
        "safety_log_det": dict(unsafe=0.003),
        "k_means": dict(unsafe=0.09),
        "facility": dict(unsafe=0.09),
        "largest_margin": dict(unsafe=0.03),
        "smallest_margin": dict(unsafe=0.03),
        "easiest_half": dict(unsafe=0.03),
    },
    "found": {"dog_d": 0.95, "literal": 0.7},
    "without_names": 0.3,
    "seconds": {
        "DOG-D, end to end": 3.0,
        "facility location": 30.0,
        "k-means": 8.0,
        "k-centre": 6.0,
    },
}
USUAL = dict(worst=0.2, benign_refusal=0.01)
HONEST_05["rules"] = {rule: USUAL | own for rule, own in HONEST_05["rules"].items()}


def dog(m):
    rows = pd.DataFrame(rows_of(m["rules"], ["rule"]))
    costs = pd.DataFrame({"method": list(m["seconds"]), "seconds": list(m["seconds"].values())})
    coverage = rows_of({k: {"own_found": v} for k, v in m["found"].items()}, ["rule"])
    return run(
        "05_dog_selection",
        Recorder(),
        "def recovered(",
        "def asked_for(",
        "def gap(",
        results=rows,
        share=pd.DataFrame(index=["random"]),
        coverage=[row | {"mixed": 0.5} for row in coverage],
        asked=list(m["rules"]),
        metric=lambda rule: rule,
        found_without_names=lambda setup: jitter(m["without_names"], setup.seed),
        committed=lambda name: costs.assign(device="cpu", N=10_000),
    )


# ---------------------------------------------------------------- 06
LEVERS = dict(
    pairs=("all", "dog"),
    winner=("helpful", "T"),
    margin=("none", "delta"),
    tokens=("all", "selective"),
)


def sixteen(unsafe):
    """P(unsafe) of every cell from {(winner, margin, tokens): value}, the same for both pairs."""
    return {(pairs, *cell): v for pairs in LEVERS["pairs"] for cell, v in unsafe.items()}


HONEST_06 = {
    "cells": sixteen(
        {
            ("helpful", "none", "all"): 0.55,
            ("helpful", "delta", "all"): 0.01,
            ("T", "none", "all"): 0.02,
            ("T", "delta", "all"): 0.005,
            ("helpful", "none", "selective"): 0.56,
            ("helpful", "delta", "selective"): 0.55,
            ("T", "none", "selective"): 0.55,
            ("T", "delta", "selective"): 0.54,
        }
    ),
    "all_four": 0.2,
    "over": 0.01,
    "dog_safedpo": 0.021,
    "asked": 0.025,
}


def levers(m):
    usual = {"tv_safe": 0.5, "frontier_gap": 0.1, "leak": 0.0}
    cells = rows_of({k: usual | {"unsafe": v} for k, v in m["cells"].items()}, list(LEVERS))
    for row in cells:
        if [row[name] for name in LEVERS] == ["dog", "T", "delta", "selective"]:
            row["tv_safe"] = jitter(m["all_four"], row["seed"])
    points = {"safedpo": {"unsafe": 0.02}, "dog_d_safedpo": {"unsafe": m["dog_safedpo"]}}
    per_seed = pd.DataFrame({"effect": ["winner x tokens"], "unsafe": [0.0]})
    study = Recorder()
    study.check = lambda words, passed: None  # of cells that check trainings, not claims
    return run(
        "06_one_loss_four_levers",
        study,
        "def value(rows",
        "def change(lever",
        "def of_winner(",
        LEVERS=LEVERS,
        cells=cells,
        points=rows_of(points, ["method"]),
        soft=[],
        asked=[{"score": "T", "winner": "helpful", "seed": s, "unsafe": m["asked"]} for s in SEEDS],
        three_levers={k: LEVERS[k] for k in ("pairs", "winner", "margin")},
        three=pd.DataFrame([row for row in cells if row["tokens"] == "all"]),
        per_seed=per_seed,
        cell=lambda *a: SimpleNamespace(hash=""),
        run=SimpleNamespace(policy=SimpleNamespace(hash="")),
        first=None,
        exact_cost=lambda policy, at: m["over"] + 0.1 * WOBBLE[policy],
        runs={("cdpo", s): SimpleNamespace(policy=s, lam=0.5) for s in SEEDS},
        lams=dict.fromkeys(SEEDS, 0.5),
        settings=SimpleNamespace(methods=["safedpo", "dog_d_safedpo", "cdpo"], cost_limit=0.0),
    )


# ---------------------------------------------------------------- 07
HONEST_07 = {
    "rows": {
        ("train", "ref"): dict(kl_opt=1.2),
        ("train", "dpo"): dict(kl_opt=0.9),
        ("train", "dpo_soft"): dict(kl_opt=0.3),
        ("train", "selective"): dict(kl_opt=1.2),
        ("train", "dog_d"): dict(kl_opt=0.8),
        ("train", "random"): dict(kl_opt=1.0),
        ("heldout", "ref"): dict(kl_opt=1.2),
        ("heldout", "dpo"): dict(unsafe=0.10),
        ("heldout", "dpo_soft"): dict(kl_opt=0.7, log_mass=-1.5),
        ("heldout", "safedpo"): dict(unsafe=0.02),
    },
    "over": 0.01,
    "lam": 1.05,
    "between": 0.02,
}


def real_model(m):
    usual = dict(kl_opt=1.0, unsafe=0.1, log_mass=-1.0)
    rows = rows_of({k: usual | v for k, v in m["rows"].items()}, ["split", "method"])
    ended = lambda s: SimpleNamespace(
        lam=m["lam"] + WOBBLE[s],
        rounds=SimpleNamespace(cost=pd.Series([0.5, -0.8 + m["over"] + WOBBLE[s]])),
    )
    return run(
        "07_a_real_model",
        Recorder(between=lambda one, other: by_seed_of(m["between"])),
        rows=rows,
        real_model=SimpleNamespace(SPLITS=("train", "heldout")),
        loops={s: ended(s) for s in SEEDS},
        lam=1.0,
        settings=SimpleNamespace(cost_limit=-0.8),
    )


# ---------------------------------------------------------------- what is broken, and what it does
BENCHES = {
    "01": (dpo_basics, HONEST_01),
    "02": (safedpo, HONEST_02),
    "03": (cdpo, HONEST_03),
    "04": (selective, HONEST_04),
    "05": (dog, HONEST_05),
    "06": (levers, HONEST_06),
    "07": (real_model, HONEST_07),
}
BREAKS = [  # bench, claim, what is broken, {where in the metric set: the number of the broken method}
    ("01", "dpo.chosen_falls", "likelihood of the chosen added to the loss", {"chosen": 0.5}),
    ("01", "dpo.chosen_falls_at_optimum", "rewards of another sign", {"falls": 0.3}),
    ("01", "dpo.implicit_reward", "beta left out, and prompts not centred", {"correlation": 0.6}),
    ("01", "dpo.on_frontier", "flipped labels", {"gap.dpo": 0.2}),
    ("01", "dpo_soft.on_frontier", "soft labels of the wrong response", {"gap.dpo_soft": 0.2}),
    ("01", "dpo_soft.near_optimum", "1 - p in place of p", {"kl.dpo_soft": 4.0}),
    ("01", "dpo_soft.nearer_than_hard", "1 - p in place of p", {"kl.dpo_soft": 4.0}),
    ("01", "ml_on_optimum.nearer_than_dpo", "samples of the reference", {"kl.ml_on_optimum": 2.3}),
    ("01", "dpo.more_pairs_help", "a cache that returns the small run", {"kl.dpo": 0.9}),
    ("01", "dpo.beats_bag_of_words", "chosen and rejected swapped", {"right.dpo": 0.25}),
    ("01", "ipo.keeps_near", "DPO's link in place of the square", {"kl_ref.ipo": 3.0}),
    ("02", "safedpo.unsafe", "no swap: unsafe winners stay", {"rows.safedpo.unsafe": 0.05}),
    ("02", "safedpo.helpful", "trained on safety labels", {"rows.safedpo.reward": -0.4}),
    ("02", "safedpo.refusal", "trained on safety labels", {"rows.safedpo.benign_refusal": 0.5}),
    (
        "02",
        "safedpo.as_safe_as_dpo_harmless",
        "no swap",
        {"rows.safedpo.unsafe": 0.05},
    ),
    (
        "02",
        "dpo_safebetter.more_helpful",
        "a filter of the safe winners",
        {"rows.dpo_safebetter.reward": 0.9},
    ),
    (
        "02",
        "safedpo.safer_than_dpo_safebetter",
        "no swap",
        {"rows.safedpo.unsafe": 0.05},
    ),
    ("02", "dpo.less_safe_than_sft", "the cost as reward, negated", {"rows.dpo.unsafe": 0.01}),
    (
        "02",
        "safedpo.refuses_more_than_dpo",
        "refusals read on risky prompts",
        {"rows.dpo.benign_refusal": 0.3},
    ),
    (
        "02",
        "safedpo.more_helpful_than_ppo",
        "a margin on pairs of equal status",
        {"rows.safedpo.missed": 0.6},
    ),
    (
        "02",
        "safedpo.more_helpful_than_sacpo",
        "a margin on pairs of equal status",
        {"rows.safedpo.missed": 0.6},
    ),
    (
        "02",
        "safedpo.nearer_frontier_than_safebetter",
        "a margin on pairs of equal status",
        {"rows.safedpo.missed": 0.6},
    ),
    ("02", "dpo.frontier_against_ppo", "flipped labels", {"rows.dpo.frontier_gap": 0.3}),
    (
        "02",
        "dpo_soft.frontier_against_ppo",
        "1 - p in place of p",
        {"free.dpo_soft.frontier_gap": 0.3},
    ),
    ("02", "safedpo.penalty_converges", "a penalty of 1 beta", {"penalised": 0.2}),
    ("02", "delta.same_optimum", "a margin on pairs of equal status", {"table": 0.05}),
    ("02", "delta.safer", "the margin's sign turned", {"grid.20.unsafe": 0.2}),
    ("02", "delta.costs_reward", "a margin that is dropped when packed", {"grid.20.reward": 1.9}),
    ("02", "delta.same_policy", "one Delta that is not trained", {"apart": 0.6}),
    ("02", "delta.leaks_more", "the grammar softmax left on", {"leak.20": 0.001}),
    ("02", "safedpo.safer_on_unseen", "no swap", {"unseen.safedpo": 0.4}),
    ("02", "safedpo_soft.nearer_than_hard", "1 - p in place of p", {"long.safedpo_soft": 0.95}),
    ("02", "safedpo_finite.near_optimum", "a target of 1 beta", {"long.safedpo_finite": 0.5}),
    ("03", "cdpo.lambda", "the multiplier moves on the wrong side", {"cdpo.lam": -0.5}),
    ("03", "cdpo.cost", "the sign of the cost swapped", {"cdpo.over": 0.9}),
    ("03", "cdpo.cost", "a step that overshoots: too safe is no better", {"cdpo.over": -0.5}),
    ("03", "cdpo.reward", "the multiplier counted twice", {"cdpo.reward": -0.4}),
    ("03", "cdpo.unsafe_as_optimum", "the sign of the cost swapped", {"cdpo.unsafe": 0.4}),
    ("03", "cdpo.more_reward_than_ppo", "arg-max labels", {"cdpo.missed": 0.4}),
    ("03", "cdpo.more_reward_unmatched", "the multiplier counted twice", {"cdpo.reward": -0.6}),
    (
        "03",
        "cdpo_soft.near_optimum",
        "1 - p in place of p",
        {"labels.cdpo_soft.kl_opt": 4.0},
    ),
    ("03", "cdpo_soft.over_coin", "coins in place of p", {"labels.cdpo_soft.kl_opt": 0.3}),
    ("03", "cdpo_soft.cost", "labels by r + lambda c", {"labels.cdpo_soft.over": 0.8}),
    (
        "03",
        "cdpo_argmax.overshoots",
        "soft labels under arg-max's name",
        {"labels.cdpo_argmax.kl_opt": 0.015},
    ),
    (
        "03",
        "fixed_lambda.cost_as_optimum",
        "r + lambda c in place of r - lambda c",
        {"points.fixed_lambda.cost": 1.5},
    ),
    (
        "03",
        "fixed_lambda.reward_as_optimum",
        "lambda counted twice",
        {"points.fixed_lambda.reward": 0.9},
    ),
    (
        "03",
        "mocan_soft.nearer_than_cdpo",
        "its multiplier on the held-out prompts",
        {"points.mocan_soft.kl_opt": 0.1},
    ),
    ("03", "ppo_lagrangian.cost", "the multiplier not projected at 0", {"ppo.over": -0.6}),
    ("04", "selective.first_step_is_dpo", "ties that keep the first tokens", {"first_step": 0.001}),
    (
        "04",
        "selective.nearer_than_dpo",
        "the score's sign turned",
        {"results.signed 0.4.kl_opt": 3.0},
    ),
    (
        "04",
        "selective.above_dpo_frontier",
        "the score's sign turned",
        {"results.signed 0.4.frontier_gap": 0.5},
    ),
    ("04", "selective.share_beats", "a better share", {"results.signed 0.2.kl_opt": 0.1}),
    (
        "04",
        "oracle_tokens.nearer_than_dpo",
        "advantages of the wrong response",
        {"results.oracle 0.4.kl_opt": 3.0},
    ),
    (
        "04",
        "random_tokens.nearer_than_dpo",
        "a mask of the prompt's tokens",
        {"results.random 0.4.kl_opt": 2.3},
    ),
    (
        "04",
        "beta_scaled.above_dpo_frontier",
        "beta divided by the share",
        {"results.beta 0.4.frontier_gap": 0.3},
    ),
    (
        "04",
        "random_tokens.like_scaled_beta",
        "a random mask drawn once",
        {"results.random 0.4.reward": 1.2},
    ),
    (
        "04",
        "frozen.runs_away",
        "a frozen mask that is drawn again",
        {"results.frozen 0.4.kl_ref": 1.0},
    ),
    (
        "04",
        "selective.larger_helps",
        "the larger network untrained",
        {"ladder.given larger.kl_opt": 2.0},
    ),
    (
        "04",
        "selective.optimum_helps",
        "the optimum of another seed",
        {"ladder.given optimum.kl_opt": 2.0},
    ),
    (
        "04",
        "selective.ends_at_score_reference",
        "one reference of three: a mask that is kept",
        {"ladder.coins larger.off": 0.6},
    ),
    (
        "04",
        "selective.imitates_score_reference",
        "one reference of three: a mask that is kept",
        {"ladder.coins larger.left": 0.8},
    ),
    (
        "04",
        "selective.labels_hardly_matter",
        "plain DPO under its name",
        {"ladder.coins aligned.off": -1.6},
    ),
    (
        "04",
        "selective.own_setting_improves",
        "the aligned model on swapped labels",
        {"aligned": 0.05},
    ),
    (
        "04",
        "selective.own_setting_stays",
        "plain DPO under its name",
        {"own.signed given.off": 0.3},
    ),
    ("04", "selective.finds_preference", "the score's sign turned", {"found.makes": 0.1}),
    ("04", "selective.finds_critical", "labels not shifted", {"found.signed": 0.45}),
    ("04", "selective.finds_after_training", "scores of the policy itself", {"found.after": 0.5}),
    ("04", "oracle_tokens.leaks_more", "the penalty left on", {"leak.oracle": 0.005}),
    ("04", "selective.leaks_less", "a mask without the end of the text", {"leak.signed": 0.3}),
    ("05", "dog_d.recovers_most", "rows of another table", {"rules.dog_d.unsafe": 0.3}),
    ("05", "dog.recovers_most", "rows of another table", {"rules.dog.unsafe": 0.3}),
    *(
        ("05", f"{rule}.safer_than_{other}", "rows of another table", {f"rules.{rule}.unsafe": 0.3})
        for rule in ("dog_d", "dog")
        for other in ("random", "log_det", "k_means", "facility")
    ),
    ("05", "dog_d.five_points_safer", "rows drawn at random", {"rules.dog_d.unsafe": 0.079}),
    (
        "05",
        "dog_d.refuses_no_more",
        "mixed pairs only",
        {"rules.dog_d.benign_refusal": 0.2},
    ),
    ("05", "dog_d.halves_worst", "one category missed", {"rules.dog_d.worst": 0.3}),
    (
        "05",
        "literal.worse_than_dog_d",
        "DOG-D's rows under its name",
        {"rules.literal.unsafe": 0.001},
    ),
    (
        "05",
        "log_det.keeps_up",
        "directions that are not of unit length",
        {"rules.log_det.unsafe": 0.1},
    ),
    ("05", "safety_log_det.safer_than_log_det", "T turned", {"rules.safety_log_det.unsafe": 0.2}),
    (
        "05",
        "sharp_log_det.safer_than_log_det",
        "ten times the ridge",
        {"rules.sharp_log_det.unsafe": 0.1},
    ),
    (
        "05",
        "safety_log_det.refuses_no_more",
        "mixed pairs only",
        {"rules.safety_log_det.benign_refusal": 0.2},
    ),
    (
        "05",
        "sharp_log_det.refuses_no_more",
        "mixed pairs only",
        {"rules.sharp_log_det.benign_refusal": 0.2},
    ),
    (
        "05",
        "random.safer_than_random_copies",
        "copies merged for the wrong one",
        {"rules.random_copies.unsafe": 0.03},
    ),
    *(
        (
            "05",
            f"{rule}.safer_than_random",
            "the other end of the order",
            {f"rules.{rule}.unsafe": 0.3},
        )
        for rule in ("largest_margin", "smallest_margin", "easiest_half")
    ),
    ("05", "dog_d.finds_rare", "residuals outside the anchor", {"found.dog_d": 0.03}),
    ("05", "literal.finds_rare", "one direction of residuals", {"found.literal": 0.03}),
    ("05", "dog_d.needs_names", "names that are not used", {"without_names": 0.95}),
    ("05", "dog_d.selects_faster", "an n x n matrix", {"seconds.DOG-D, end to end": 300.0}),
    ("06", "side_by_side.dog_safedpo", "rows of another table", {"dog_safedpo": 0.3}),
    ("06", "side_by_side.cdpo_one_budget", "the multiplier never moves", {"over": 0.6}),
    ("06", "levers.margin_alone", "the margin's sign turned", {"cells.all helpful delta all": 0.9}),
    (
        "06",
        "levers.same_work",
        "a margin that is dropped when packed",
        {"cells.all helpful delta all": 0.55, "cells.dog helpful delta all": 0.55},
    ),
    ("06", "levers.pairs_and_winner", "the picks without T", {"cells.dog T none all": 0.6}),
    (
        "06",
        "levers.tokens_undo_winner",
        "the score reference is SafeDPO",
        {"cells.all T none selective": 0.02, "cells.dog T none selective": 0.02},
    ),
    ("06", "levers.safe_score_reference", "a helpful score reference", {"asked": 0.5}),
    ("06", "levers.all_four", "the sixteenth cell is another", {"all_four": 0.9}),
    (
        "07",
        "real_model.dpo_nears_optimum",
        "one split of two: 1 - p in place of p",
        {"rows.heldout dpo_soft.kl_opt": 3.0},
    ),
    (
        "07",
        "real_model.soft_labels_nearer",
        "1 - p in place of p",
        {"rows.train dpo_soft.kl_opt": 3.0},
    ),
    ("07", "real_model.safedpo_safer", "no swap", {"rows.heldout safedpo.unsafe": 0.3}),
    ("07", "real_model.cdpo_meets_limit", "the sign of the cost swapped", {"over": 0.9}),
    ("07", "real_model.cdpo_finds_lambda", "the multiplier never moves", {"lam": 0.01}),
    (
        "07",
        "real_model.selective_ends_at_score_reference",
        "a selection that is not made anew",
        {"between": 3.0},
    ),
    (
        "07",
        "real_model.dog_d_nearer_than_random",
        "rows of another table",
        {"rows.train dog_d.kl_opt": 2.0},
    ),
    (
        "07",
        "real_model.mass_falls",
        "likelihood added to the loss",
        {"rows.heldout dpo_soft.log_mass": 0.5},
    ),
]


def broken(honest, changes):
    """A metric set with some numbers changed: `changes` {path with dots: number}."""
    out = copy.deepcopy(honest)
    for path, number in changes.items():
        place, at = out, path
        while isinstance(place, dict) and at not in {name_of(k) for k in place}:
            key = next(k for k in place if at.startswith(f"{name_of(k)}."))
            place, at = place[key], at.removeprefix(f"{name_of(key)}.")
        key = next(k for k in place if name_of(k) == at)
        assert place[key] != number, path
        place[key] = number
    return out


def name_of(key):
    if isinstance(key, tuple):
        return " ".join(f"{part:g}" if isinstance(part, float) else part for part in key)
    return f"{key:g}" if isinstance(key, float) else key


@pytest.mark.parametrize("name", BENCHES)
def test_honest_methods_pass_every_rule(name):
    make, honest = BENCHES[name]
    found = make(honest)
    assert set(found.values()) == {"holds"}, {k: v for k, v in found.items() if v != "holds"}
    assert set(found) <= {id for bench, id, *_ in BREAKS if bench == name}, "a rule without a break"


@pytest.mark.parametrize(
    "name, id, words, changes", BREAKS, ids=[f"{id}: {words}" for _, id, words, _ in BREAKS]
)
def test_a_broken_method_turns_the_verdict(name, id, words, changes):
    make, honest = BENCHES[name]
    assert make(broken(honest, changes))[id] == "does_not_hold", words


def test_the_breaks_cover_the_ledger_of_the_world():
    of_world = {
        id for id, c in LEDGER.items() if c.scope != "only at scale" and c.notebook[:2] in BENCHES
    }
    covered = {id for _, id, *_ in BREAKS}
    assert of_world - covered == set(), "a rule that no broken method was shown to flip"
    assert len(covered) >= 40
