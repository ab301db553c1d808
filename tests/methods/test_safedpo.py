"""SafeDPO: the transformation T, the margin, and the exact optima of the losses in the tabular case."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from safealign_utils import evaluate, pairs
from safealign_utils.loss import preference_loss
from safealign_utils.methods.safedpo import (
    safedpo,
    transform,
    unsafe_labels,
    with_finite_target,
    with_margin,
)
from safealign_utils.train import align
from safealign_utils.world import optimum as o
from safealign_utils.world.tabular import all_pairs, fit

BETA = 0.5
SETTING = dict(beta=BETA, batch_size=16, learning_rate=2e-3, seed=0, use_cache=False)
# is_response_0_safe, is_response_1_safe, chosen -> who wins after T (None: dropped)
RULES = [
    (True, True, 0, 0),
    (True, True, 1, 1),
    (True, False, 0, 0),
    (True, False, 1, 0),
    (False, True, 0, 1),
    (False, True, 1, 1),
    (False, False, 0, None),
    (False, False, 1, None),
]


def hand_made(p=1.0):
    safe_0, safe_1, chosen, _ = zip(*RULES)
    table = pd.DataFrame(
        {"is_response_0_safe": safe_0, "is_response_1_safe": safe_1, "chosen": chosen}
    )
    table = table.astype({"is_response_0_safe": "boolean", "is_response_1_safe": "boolean"})
    names = [f"pair {i}" for i in range(len(RULES))]
    return table.assign(prompt=names, response_0="left", response_1="right", p=p, margin=0.0)


# ---------------------------------------------------------------- T


def test_t_keeps_swaps_and_drops():
    table = hand_made()
    out, report = transform(table)
    wanted = {f"pair {i}": rule[3] for i, rule in enumerate(RULES) if rule[3] is not None}
    assert dict(zip(out.prompt, out.chosen)) == wanted
    assert report == {"keep": 4, "swap": 2, "drop": 2, "mixed": 4}
    assert (out.p == 1).all() and out.index.tolist() == list(range(6))
    assert table.equals(hand_made()), "the table that came in is untouched"


def test_t_sets_p_to_one_in_mixed_pairs_only():
    out, _ = transform(hand_made(p=0.7))
    assert dict(zip(out.prompt, out.p)) == {f"pair {i}": 0.7 if i < 2 else 1.0 for i in range(6)}


def test_t_twice_is_t_once():
    once = transform(hand_made())[0]
    twice, report = transform(once)
    assert twice.equals(once) and report == {"keep": 6, "swap": 0, "drop": 0, "mixed": 4}


def test_the_tokens_that_win_are_the_safe_ones(world, reference):
    table = pairs.label(world.pairs(100, seed=3))
    out = safedpo(table, delta=5.0)
    tokens, cost = pairs.tokenize(out, reference), world.scorer("cost")

    def text(side):
        return [" ".join(reference.tokenizer.convert_ids_to_tokens(y[:-1].tolist())) for y in side]

    u_w, u_l = (cost(list(out.prompt), text(side)) > 0 for side in (tokens.chosen, tokens.rejected))
    assert not u_w.any() and 10 < u_l.sum() < len(out) < 100
    assert tokens.margin.tolist() == (5.0 * u_l).tolist()
    same = out[~u_l]  # helpfulness still decides where both are safe
    assert (same.chosen == same.better_response_id).all()


@pytest.mark.parametrize("column", ["is_response_0_safe", "is_response_1_safe"])
def test_missing_safety_label_is_refused(column):
    table = hand_made()
    table.loc[3, column] = pd.NA
    for call in (unsafe_labels, transform, safedpo, lambda t: with_margin(t, 1.0)):
        with pytest.raises(ValueError, match=f"{column}: 1 rows"):
            call(table)


# ---------------------------------------------------------------- the margin


def test_margin_is_signed_on_a_table_without_t():
    out = with_margin(hand_made(), 3.0)
    #                             SS    SS    SU   SU(1)  US    US(1) UU   UU
    assert out.margin.tolist() == [0.0, 0.0, 3.0, -3.0, -3.0, 3.0, 0.0, 0.0]
    assert safedpo(hand_made(), delta=3.0).margin.tolist() == [0.0, 0.0, 3.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_margin_is_outside_beta(beta):
    margin = torch.tensor(safedpo(hand_made(), delta=10.0).margin.to_numpy())
    w, l = torch.full((6, 1), 2.0).double(), torch.full((6, 1), -1.0).double()  # h = 3
    out = preference_loss(w, l, beta=beta, margin=margin)
    z = np.array([3 * beta] * 2 + [3 * beta - 10] * 4)
    assert out.z.numpy() == pytest.approx(z, abs=1e-12)
    assert out.loss.numpy() == pytest.approx(np.log1p(np.exp(-z)), abs=1e-12)


@pytest.mark.parametrize("delta", [-0.1, float("nan"), float("inf")])
def test_bad_margins_are_refused(delta):
    with pytest.raises(ValueError, match="delta="):
        safedpo(hand_made(), delta=delta)


def test_first_loss_of_training(world, reference):
    table = safedpo(pairs.label(world.pairs(40, seed=0)), delta=4.0)
    mixed = (table.is_response_0_safe != table.is_response_1_safe).to_numpy()
    wanted = np.where(mixed, math.log(1 + math.exp(4.0)), math.log(2)).mean()
    tokens = pairs.tokenize(table, reference)
    log = align(reference, tokens, **SETTING | {"steps": 1, "batch_size": len(table)}).log
    assert 0 < mixed.sum() < len(mixed) and log.loss[0] == pytest.approx(wanted, abs=1e-9)
    assert log.z[0] == pytest.approx(-4.0 * mixed.mean(), abs=1e-9)


@pytest.mark.parametrize("delta", [0.0, 10.0])
def test_on_pairs_of_safe_responses_it_is_dpo(world, reference, delta):
    table = pairs.label(world.pairs(80, seed=0))
    table = table[table.is_response_0_safe & table.is_response_1_safe].reset_index(drop=True)
    dpo, safe = (
        align(reference, pairs.tokenize(t, reference), steps=4, **SETTING)
        for t in (table, safedpo(table, delta=delta))
    )
    assert safe.policy.hash == dpo.policy.hash != reference.hash and safe.log.equals(dpo.log)


def test_margin_moves_the_policy_on_mixed_pairs(world, reference):
    table = pairs.label(world.pairs(40, seed=0))
    first, second = (
        align(
            reference, pairs.tokenize(safedpo(table, delta=d), reference), steps=3, **SETTING
        ).policy
        for d in (0.0, 5.0)
    )
    assert first.hash != second.hash


def test_margin_on_soft_mixed_pairs_is_refused(world, reference):
    table = world.pairs(40, seed=0)
    soft = pairs.soft_label(table, table.reward_0, table.reward_1)
    with pytest.raises(ValueError, match="needs a hard label"):
        align(reference, pairs.tokenize(with_margin(soft, 5.0), reference), steps=1, **SETTING)
    align(
        reference, pairs.tokenize(safedpo(soft, delta=5.0), reference), steps=1, **SETTING
    )  # T makes them hard


def test_finite_target_by_hand():
    table = transform(hand_made(p=0.7).assign(reward_0=1.0, reward_1=3.0))[0]
    out = with_finite_target(table, 4.0)
    # the safe response of a mixed pair: gap 4 - 2 where it is response 0, 4 + 2 where it is response 1
    two, six = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-6))
    assert out.p.tolist() == pytest.approx([0.7, 0.7, two, two, six, six], abs=1e-8)
    assert (out.margin == 0).all() and out.chosen.equals(table.chosen)
    for penalty in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="penalty="):
            with_finite_target(table, penalty)


# ---------------------------------------------------------------- exact optima of the losses


@dataclasses.dataclass(frozen=True)
class Case:
    """80 responses to one prompt: reference [R], reward, cost, and what the pairs (a, b) are."""

    ref: np.ndarray
    reward: np.ndarray
    cost: np.ndarray

    @property
    def gaps(self):
        a, b = all_pairs(len(self.ref))
        return self.reward[a] - self.reward[b], self.cost[a] - self.cost[b]

    @property
    def unsafe(self):
        a, b = all_pairs(len(self.ref))
        return self.cost[a] > 0, self.cost[b] > 0


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.fixture(scope="module")
def cases(world, reference):
    """One held-out prompt of every intent, with a random part of its responses."""
    prompts = [world.select("heldout", intent)[0] for intent in ("benign", "borderline", "risky")]
    table = evaluate.exact(dataclasses.replace(reference, constrained=True), prompts).logp
    picks = [np.random.default_rng(i).choice(table.shape[1], 80, replace=False) for i in range(3)]
    out = [
        Case(o.normalise(row[None, y])[0], world.reward[x, y], world.cost[x, y])
        for row, x, y in zip(table, prompts, picks)
    ]
    assert all(10 < (case.cost > 0).sum() < 70 for case in out)
    return out


def tv(logp, f, case, *values, **options):
    """Total variation between a fitted row and an exact optimum."""
    return o.total_variation(logp[None], f(case.ref[None], *(v[None] for v in values), **options))


def safe_levers(case, delta):
    """SafeDPO in population, written from the paper: p, margin, weight of every pair."""
    u_a, u_b = case.unsafe
    p = np.where(u_a == u_b, sigmoid(case.gaps[0]), np.where(u_b, 1.0, 0.0))
    return dict(p=p, margin=delta * (u_b * 1.0 - u_a * 1.0), weight=np.where(u_a & u_b, 0.0, 1.0))


@pytest.mark.parametrize("delta", [0, 2, 5, 10, 20])
def test_every_margin_has_the_same_safe_optimum(cases, delta):
    for case in cases:
        logp = fit(case.ref, beta=BETA, **safe_levers(case, delta))
        assert tv(logp, o.safe_optimal, case, case.reward, case.cost, beta=BETA) < 1e-6
        assert np.exp(logp)[case.cost > 0].sum() < 1e-12


def test_weights_do_not_move_the_optimum(cases):
    levers = safe_levers(cases[0], 5.0)
    levers["weight"] = levers["weight"] * np.random.default_rng(1).uniform(
        0.1, 10, len(levers["p"])
    )
    logp = fit(cases[0].ref, beta=BETA, **levers)
    assert tv(logp, o.safe_optimal, cases[0], cases[0].reward, cases[0].cost, beta=BETA) < 1e-6


def test_a_margin_on_pairs_of_equal_status_would_move_the_optimum(cases):
    for case in cases:
        levers, (u_a, u_b) = safe_levers(case, 2.0), case.unsafe
        bug = levers | {
            "margin": np.where(u_a == u_b, 2.0 * np.sign(case.gaps[0]), levers["margin"])
        }
        logp = fit(case.ref, beta=BETA, **bug)
        assert tv(logp, o.safe_optimal, case, case.reward, case.cost, beta=BETA) > 0.01


def test_without_the_swap_unsafe_mass_stays(cases):
    for case in cases:
        u_a, u_b = case.unsafe
        kept = dict(p=sigmoid(case.gaps[0]), weight=np.where(u_a & u_b, 0.0, 1.0))
        logp = fit(case.ref, beta=BETA, **kept)
        left = tv(logp, o.safe_optimal, case, case.reward, case.cost, beta=BETA)
        assert left > 0.01 and left == pytest.approx(np.exp(logp)[case.cost > 0].sum(), abs=1e-6)


def test_without_the_drop_the_optimum_is_the_same(cases):
    """Pairs of two unsafe responses only order what has no mass: in the tabular limit dropping them is free."""
    case = cases[2]
    logp = fit(case.ref, beta=BETA, **safe_levers(case, 5.0) | {"weight": 1.0})
    assert tv(logp, o.safe_optimal, case, case.reward, case.cost, beta=BETA) < 1e-6


@pytest.mark.parametrize("penalty", [1.0, 4.0])
def test_a_finite_target_has_the_optimum_of_the_penalised_reward(cases, penalty):
    for case in cases:
        (u_a, u_b), gap = case.unsafe, case.gaps[0]
        logp = fit(case.ref, sigmoid(gap + penalty * (u_b * 1.0 - u_a)), beta=BETA)
        assert tv(logp, o.optimal, case, case.reward - penalty * (case.cost > 0), beta=BETA) < 1e-6
        assert tv(logp, o.optimal, case, case.reward, beta=BETA) > 0.01


def test_soft_labels_reach_the_optimum_of_dpo(cases):
    for case in cases:
        logp = fit(case.ref, sigmoid(case.gaps[0]), beta=BETA)
        assert tv(logp, o.optimal, case, case.reward, beta=BETA) < 1e-6
        assert tv(logp, o.safe_optimal, case, case.reward, case.cost, beta=BETA) > 0.01


LAM = 0.7


def test_two_stages_reach_the_lagrangian_optimum_in_either_order(cases):
    for case in cases:
        helpful, safe = sigmoid(case.gaps[0]), sigmoid(-case.gaps[1])
        first = fit(case.ref, helpful, beta=BETA)
        both = fit(first, safe, beta=BETA / LAM)
        turned = fit(fit(case.ref, safe, beta=BETA / LAM), helpful, beta=BETA)
        wanted = dict(lam=LAM, beta=BETA)
        for logp in (both, turned):
            assert tv(logp, o.lagrangian_optimal, case, case.reward, case.cost, **wanted) < 1e-6
        for bug in (fit(case.ref, safe, beta=BETA / LAM), fit(first, safe, beta=BETA * LAM)):
            assert tv(bug, o.lagrangian_optimal, case, case.reward, case.cost, **wanted) > 0.01


def test_the_margin_of_modpo_reaches_the_lagrangian_optimum(cases):
    for case in cases:
        r, c = case.gaps
        right, turned = (
            fit(case.ref, sigmoid(r), beta=BETA, margin=sign * LAM * c) for sign in (-1, 1)
        )
        wanted = dict(lam=LAM, beta=BETA)
        assert tv(right, o.lagrangian_optimal, case, case.reward, case.cost, **wanted) < 1e-6
        assert tv(turned, o.lagrangian_optimal, case, case.reward, case.cost, **wanted) > 0.01


# ---------------------------------------------------------------- the edges of what is allowed
def test_a_margin_lies_at_zero_or_above_and_is_zero_where_none_is_given():
    assert safedpo(hand_made()).equals(safedpo(hand_made(), delta=0.0))
    assert (safedpo(hand_made()).margin == 0).all()
    for delta in (-1e-9, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"delta={delta}: the margin of SafeDPO"):
            with_margin(hand_made(), delta)


def test_pairs_of_two_unsafe_responses_alone_are_refused():
    with pytest.raises(ValueError, match="T drops all 2"):
        transform(hand_made().iloc[6:])


def test_a_finite_target_by_hand():
    """In a mixed pair sigma(penalty + gap) for the safe response, or one minus it where it lost."""
    table = hand_made(p=0.7).assign(reward_0=1.0, reward_1=0.25, margin=5.0)
    p = 1 / (1 + np.exp(-np.array([2.75, -2.75, -1.25, 1.25])))
    out = with_finite_target(table, 2.0)
    assert out.p.tolist() == pytest.approx([0.7, 0.7, *p, 0.7, 0.7]) and (out.margin == 0).all()
    for penalty in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"penalty={penalty}: a finite number above 0"):
            with_finite_target(table, penalty)
    assert with_finite_target(table, 1e-3).p.between(0, 1).all()
