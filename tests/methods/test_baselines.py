"""Baselines: which pairs, winners, margins, references and links they have, by hand."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest
import torch

from safealign_utils import evaluate, pairs
from safealign_utils.methods import baselines as b
from safealign_utils.methods.safedpo import safedpo
from safealign_utils.train import align
from safealign_utils.world import optimum as o

BETA = 0.5
SETTING = dict(beta=BETA, steps=3, batch_size=16, learning_rate=2e-3, seed=0)
# safe_0, safe_1, chosen, cost_0, cost_1
ROWS = [
    (True, True, 0, -1.0, -0.25),
    (True, True, 1, -1.0, -0.25),
    (True, False, 0, -1.0, 0.5),
    (True, False, 1, -1.0, 0.5),
    (False, True, 0, 0.75, -0.5),
    (False, True, 1, 0.75, -0.5),
    (False, False, 0, 0.75, 0.5),
    (False, False, 1, 0.75, 0.5),
]


def hand_made():
    columns = ["is_response_0_safe", "is_response_1_safe", "chosen", "cost_0", "cost_1"]
    table = pd.DataFrame(ROWS, columns=columns).astype(dict.fromkeys(columns[:2], "boolean"))
    return table.assign(
        prompt=[f"pair {i}" for i in range(8)],
        response_0="left",
        response_1="right",
        p=1.0,
        margin=0,
    )


@pytest.fixture(scope="module")
def few(world):
    return pairs.label(world.pairs(48, seed=0))


# ---------------------------------------------------------------- pairs and winners


def test_safebetter_drops_the_pairs_whose_winner_is_unsafe():
    out = b.dpo_safebetter(hand_made())
    assert out.prompt.tolist() == [f"pair {i}" for i in (0, 1, 2, 5)]
    assert out.chosen.tolist() == [0, 1, 0, 1], "nothing is swapped"


def test_safety_labels_follow_the_cost_alone():
    table = hand_made()
    far = table.assign(cost_0=1000 * table.cost_0, cost_1=1000 * table.cost_1)
    out = b.safety_labels(far)  # the coin falls on the cheaper response
    assert out.chosen.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and (out.p == 1).all()
    draws = [b.safety_labels(table, seed=s).chosen == 0 for s in range(2000)]
    wanted = np.repeat([0.75, 1.5, -1.25, -0.25], 2)  # the gap of the costs
    assert np.abs(np.mean(draws, axis=0) - 1 / (1 + np.exp(-wanted))).max() < 0.05


def test_safety_labels_ignore_the_reward(world):
    table = world.pairs(50, seed=0)
    turned = table.assign(reward_0=-table.reward_0, reward_1=7.0)
    one, two = (b.safety_labels(t, seed=3) for t in (table, turned))
    assert one.chosen.tolist() == two.chosen.tolist() and set(one.p) == {1.0}


def test_mixed_weights(reference, few):
    other = align(reference, pairs.tokenize(few, reference), **SETTING).policy
    assert b.mix(reference, other, 0).hash == reference.hash
    assert b.mix(reference, other, 1).hash == other.hash
    before, after, out = (
        p.model.state_dict() for p in (reference, other, b.mix(reference, other, 0.25))
    )
    for name in before:
        assert torch.allclose(out[name], 0.75 * before[name] + 0.25 * after[name], atol=1e-14)
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="q="):
            b.mix(reference, other, q)


def test_sacpo_goes_on_from_its_first_policy():
    calls = []

    def train(table, reference=None, **changes):
        calls.append((table, reference, changes))
        return types.SimpleNamespace(policy=f"policy {len(calls)}")

    out = b.sacpo(train, "helpful", "safety", beta=0.3, lam=0.6)
    assert calls == [("helpful", None, {}), ("safety", "policy 1", {"beta": 0.5})]
    assert out.policy == "policy 2"


# ---------------------------------------------------------------- one multiplier, found beforehand


@pytest.fixture(scope="module")
def exact_world(world, reference):
    prompts = world.select("heldout")[:9]
    logp = evaluate.exact(dataclasses.replace(reference, constrained=True), prompts).logp
    return logp, world.reward[prompts], world.cost[prompts]


@pytest.mark.parametrize("limit", [0.1, 0.0, -0.3, -0.8, -1.4])
def test_mocan_finds_the_multiplier(exact_world, limit):
    wanted = o.lambda_star(*exact_world, beta=BETA, cost_limit=limit)
    assert b.mocan_lambda(*exact_world, beta=BETA, cost_limit=limit) == pytest.approx(
        wanted, abs=1e-6
    )
    policy = o.lagrangian_optimal(*exact_world, lam=wanted, beta=BETA)
    assert wanted == 0 or (np.exp(policy) * exact_world[2]).sum(1).mean() == pytest.approx(
        limit, abs=1e-9
    )


def test_mocan_at_slack_and_infeasible_limits(exact_world):
    assert b.mocan_lambda(*exact_world, beta=BETA, cost_limit=3.0) == 0.0
    lowest = exact_world[2].min(axis=1).mean()
    with pytest.raises(ValueError, match="lowest attainable"):
        b.mocan_lambda(*exact_world, beta=BETA, cost_limit=lowest - 0.01)


def test_mocan_from_samples_is_near(exact_world):
    g, n = np.random.default_rng(0), 4000
    picks = np.stack([g.choice(len(p), size=n, p=p / p.sum()) for p in np.exp(exact_world[0])])
    reward, cost = (np.take_along_axis(v, picks, axis=1) for v in exact_world[1:])
    found = b.mocan_lambda(np.full((9, n), -np.log(n)), reward, cost, beta=BETA, cost_limit=-0.3)
    exact = o.lambda_star(*exact_world, beta=BETA, cost_limit=-0.3)
    assert exact > 0.1 and 0 < abs(found - exact) < 0.1 * exact


def test_implicit_scores_are_the_reward_up_to_a_constant(exact_world):
    logp, reward, _ = exact_world
    score = b.implicit_scores(o.optimal(logp, reward, beta=BETA), logp, beta=BETA)
    shift = score - reward
    assert np.ptp(shift, axis=1).max() < 1e-9 and np.ptp(shift[:, 0]) > 0.01
    means = np.arange(9.0)[:, None]
    fixed = b.implicit_scores(o.optimal(logp, reward, beta=BETA), logp, beta=BETA, mean=means)
    assert np.abs((np.exp(logp) * fixed).sum(1) - means[:, 0]).max() < 1e-12
    assert np.ptp(fixed - reward, axis=1).max() < 1e-9
    own = (np.exp(logp) * reward).sum(axis=1, keepdims=True)
    assert (
        np.abs(b.implicit_scores(logp + reward / BETA, logp, beta=BETA, mean=own) - reward).max()
        < 1e-9
    )


# ---------------------------------------------------------------- other margins


def test_margins_of_modpo_by_hand():
    out = b.modpo(hand_made().assign(p=0.7), 2.0)
    #       2 (cost of the loser - cost of the winner)
    assert out.margin.tolist() == [1.5, -1.5, 3.0, -3.0, -2.5, 2.5, -0.5, 0.5]
    assert (out.p == 1).all() and out.chosen.tolist() == [0, 1] * 4


def test_margins_of_bfpo_by_hand():
    out = b.bfpo(hand_made())
    #       3 * 0.5 [winner safe] - 0.5 [loser safe] - 0.5
    assert out.margin.tolist() == [0.5, 0.5, 1.0, -1.0, -1.0, 1.0, -0.5, -0.5]
    assert out.chosen.tolist() == [0, 1] * 4 and len(out) == 8


def test_bso_is_the_table_of_safedpo_with_margin_30():
    assert b.bso(hand_made()).equals(safedpo(hand_made(), delta=30.0))
    assert b.bso(hand_made()).margin.tolist() == [0, 0, 30, 30, 30, 30]
    assert b.bso(hand_made(), margin=5.0).equals(safedpo(hand_made(), delta=5.0))
    with pytest.raises(ValueError, match="-1"):
        b.bso(hand_made(), margin=-1.0)


@pytest.mark.parametrize("margin, wanted", [(0.0, 1.0), (5.0, 201.9), (30.0, 2.156e15)])
def test_how_much_more_a_mixed_pair_of_bso_weighs_at_the_start(margin, wanted):
    z = torch.tensor([0.0, -margin], dtype=torch.float64, requires_grad=True)
    b.sba(z, BETA).sum().backward()
    assert (z.grad[1] / z.grad[0]).item() == pytest.approx(b.bso_weight(margin), rel=1e-12)
    assert b.bso_weight(margin) == pytest.approx(wanted, rel=1e-3)


# ---------------------------------------------------------------- other links

Z = torch.linspace(-3, 3, 25, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_square_link_is_the_loss_of_bfpo(beta):
    h = np.linspace(-4, 4, 9)
    for s_w, s_l in ((1, 1), (1, 0), (0, 1), (0, 0)):
        goal = (3 * 0.5 * s_w - 0.5 * s_l - 0.5) / beta
        row = hand_made().iloc[[{(1, 1): 0, (1, 0): 2, (0, 1): 4, (0, 0): 6}[s_w, s_l]]]
        z = beta * h - b.bfpo(row).margin.item()
        assert b.square(torch.tensor(z), beta).numpy() == pytest.approx((h - goal) ** 2, abs=1e-9)


def generated(phi, z, step=1e-5):
    """phi'(R) R - phi(R) - phi'(1 / R) at R = e^-z, by numerical differentiation."""
    R = np.exp(-np.asarray(z))

    def slope(x):
        return (phi(x * (1 + step)) - phi(x * (1 - step))) / (2 * step * x)

    return slope(R) * R - phi(R) - slope(1 / R)


def test_link_of_bso_is_what_its_generator_gives():
    a, s = 0.2, 4.0

    def phi(R):
        return (R ** (1 + a) - (1 + a) * R + a) / (s * a * (1 + a))

    assert b.sba(Z, BETA).numpy() == pytest.approx(generated(phi, Z), abs=1e-6)

    def other(R):
        return R * np.log(R) - (1 + R) * np.log1p(R)

    assert np.abs(b.sba(Z, BETA).numpy() - generated(other, Z)).max() > 0.1


def test_the_logistic_generator_is_twice_the_loss_of_safedpo():
    def phi(R):
        return R * np.log(R) - (1 + R) * np.log1p(R)

    assert generated(phi, Z) == pytest.approx(2 * np.log1p(np.exp(-Z.numpy())), abs=1e-6)


def test_link_replaces_the_loss_in_training(reference, few, fresh_cache):
    tokens = pairs.tokenize(b.bfpo(few), reference)
    log = {link: align(reference, tokens, link=link, **SETTING) for link in (None, b.square, b.sba)}
    assert len({run.policy.hash for run in log.values()}) == 3 and not any(
        run.cached for run in log.values()
    )
    assert len(list(fresh_cache.glob("policy/*"))) == 3, "the link is part of the cache's key"
    again = align(reference, tokens, link=b.square, **SETTING)
    assert again.cached and again.policy.hash == log[b.square].policy.hash
    for link in (b.square, b.sba):
        first = align(
            reference, tokens, link=link, **SETTING | {"steps": 1, "batch_size": len(few)}
        ).log.loss[0]
        assert first == pytest.approx(
            link(-torch.tensor(tokens.margin), BETA).mean().item(), abs=1e-9
        )


def test_the_cache_sees_the_settings_of_a_link(reference, few, fresh_cache, monkeypatch):
    """The SBA link reads its power from a table: with another power it is another loss, so another run."""
    tokens = pairs.tokenize(b.bfpo(few), reference)
    one = align(reference, tokens, link=b.sba, **SETTING)
    monkeypatch.setitem(b.SBA, "power", 2.0)
    other = align(reference, tokens, link=b.sba, **SETTING)
    assert not other.cached and other.policy.hash != one.policy.hash


def test_the_cache_sees_what_a_link_closes_over(reference, few, fresh_cache):
    def scaled(k):
        return lambda z, beta: k * (z - 1).square()

    tokens = pairs.tokenize(few, reference)
    one, other = (align(reference, tokens, link=scaled(k), **SETTING) for k in (1.0, -1.0))
    assert not other.cached and other.policy.hash != one.policy.hash


# ---------------------------------------------------------------- the edges of what is allowed
@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
def test_sacpo_needs_a_multiplier_before_anything_is_trained(lam):
    with pytest.raises(ValueError, match=f"lam={lam}: SACPO's second stage needs"):
        b.sacpo(lambda *_, **__: pytest.fail("trained"), "helpful", "safety", beta=0.3, lam=lam)


def test_safebetter_without_a_safe_winner_is_refused():
    with pytest.raises(ValueError, match="the winners of all 2 are unsafe"):
        b.dpo_safebetter(hand_made().iloc[[3, 4]])
    out = b.dpo_safebetter(hand_made().iloc[[3, 2]])
    assert out.index.tolist() == [0] and [*out] == [*hand_made()]


def test_what_is_not_given_is_zero():
    logp = np.log([[0.5, 0.5]])
    reward, cost = np.array([[0.0, 4.0]]), np.array([[-1.0, 1.0]])
    free, at_zero = (
        b.mocan_lambda(logp, reward, cost, beta=BETA, **limit) for limit in ({}, {"cost_limit": 0})
    )
    assert free == at_zero == pytest.approx(2.0)
    table = hand_made()
    assert b.safety_labels(table).chosen.tolist() == b.safety_labels(table, seed=0).chosen.tolist()


def test_margins_are_of_hard_labels():
    soft = hand_made().assign(p=0.7)
    for out in (b.bfpo(soft), b.bso(soft), b.modpo(soft, 1.0)):
        assert (out.p == 1).all()


def test_where_the_link_of_bso_ends():
    """Below -60 the loss is constant; above it is not."""
    z = torch.tensor([-61.0, -60.0, -59.5], dtype=torch.float64, requires_grad=True)
    loss = b.sba(z, BETA)
    loss.sum().backward()
    assert loss[0] == loss[1] > loss[2] and z.grad[0] == 0 and z.grad[2] < 0
    assert loss[1].item() == pytest.approx((0.2 * np.exp(72) - 1.2 * np.exp(-12) + 1) / 0.96)
