"""C-DPO: labels by r - lambda c, the dual step and loop, the duality gap, and the two estimates of E[c]."""

import dataclasses
import types

import numpy as np
import pytest

from safealign_utils import evaluate, pairs
from safealign_utils.engine.streams import generator
from safealign_utils.methods import cdpo as c
from safealign_utils.train import align
from safealign_utils.world import optimum as o

BETA = 0.5
SETTING = dict(beta=BETA, steps=3, batch_size=16, learning_rate=2e-3, seed=0)


@pytest.fixture(scope="module")
def table(world):
    return world.pairs(400, seed=0)


@pytest.fixture(scope="module")
def few(world):
    return world.pairs(32, seed=0)


@pytest.fixture(scope="module")
def inside(reference):
    return dataclasses.replace(reference, constrained=True)


def probability(table, lam):
    """P(response 0 wins) at a multiplier, by hand."""
    gap = (table.reward_0 - lam * table.cost_0) - (table.reward_1 - lam * table.cost_1)
    return (1 / (1 + np.exp(-gap))).to_numpy()


# ---------------------------------------------------------------- the winner lever


def test_without_a_multiplier_soft_labels_are_those_of_the_reward(table):
    pd_equal = pairs.soft_label(table, table.reward_0, table.reward_1).equals
    assert pd_equal(c.relabel(table, 0.0)) and not pd_equal(c.relabel(table, 0.5))


@pytest.mark.parametrize("lam", [0.0, 0.6, 5.0])
def test_soft_labels_by_hand(table, lam):
    out = c.relabel(table, lam)
    first = np.where(out.chosen == 0, out.p, 1 - out.p)
    assert np.abs(first - probability(table, lam)).max() < 1e-8 and (out.margin == 0).all()


def test_coin_has_the_right_frequencies(table):
    first = np.mean(
        [c.relabel(table, 0.6, by="coin", seed=s).chosen == 0 for s in range(40)], axis=0
    )
    p = probability(table, 0.6)
    assert abs((first - p).mean()) < 4 * np.sqrt((p * (1 - p)).mean() / 40 / len(p))
    z = (first - p) / np.sqrt(p * (1 - p) / 40 + 1e-4)
    assert 0.8 < (z**2).mean() < 1.2, "every pair of its own, not only the mean"
    flipped = c.relabel(table, 0.6, by="coin")
    assert (flipped.p == 1).all() and set(flipped.chosen) == {0, 1}


def test_coin_uses_common_random_numbers(table):
    labels = [c.relabel(table, lam, by="coin").chosen.to_numpy() for lam in (0.2, 0.3)]
    p, q = (probability(table, lam) for lam in (0.2, 0.3))
    changed = labels[0] != labels[1]
    assert 0 < changed.sum() < 40, "independent draws would change a third of them"
    assert ((labels[1] < labels[0]) == (q > p))[changed].all(), (
        "only towards the response that became likelier"
    )
    assert (c.relabel(table, 0.2, by="coin", seed=1).chosen != labels[0]).mean() > 0.1


def test_argmax_takes_the_higher_score_for_sure(table):
    out = c.relabel(table, 0.6, by="argmax")
    score_0, score_1 = (table[f"reward_{k}"] - 0.6 * table[f"cost_{k}"] for k in (0, 1))
    winner, loser = (
        np.where(out.chosen == 0, score_0, score_1),
        np.where(out.chosen == 0, score_1, score_0),
    )
    assert (winner >= loser - 1e-9).all() and (out.p == 1).all()


@pytest.mark.parametrize("by", c.RELABEL)
def test_a_large_multiplier_lets_the_cheaper_response_win(table, by):
    out = c.relabel(table, 1000.0, by=by)
    clear = (out.cost_0 - out.cost_1).abs() > 0.05
    assert ((out.chosen == 0) == (out.cost_0 < out.cost_1))[clear].all() and clear.sum() > 200


@pytest.mark.parametrize(
    "options", [{"by": "mean"}, {"lam": -0.1}, {"lam": float("nan")}, {"lam": float("inf")}]
)
def test_bad_labels_are_refused(table, options):
    with pytest.raises(ValueError, match="relabel=" if "by" in options else "lam="):
        c.relabel(table, **{"lam": 1.0} | options)


def test_scores_come_from_the_scorers():
    import pandas as pd

    plain = pd.DataFrame(
        {"prompt": ["a", "bb"], "response_0": ["x", "xx"], "response_1": ["yyy", "y"]}
    )

    def length(prompts, responses):
        return [len(x) * 10 + len(y) for x, y in zip(prompts, responses)]

    out = c.score(plain, reward=length, cost=lambda x, y: -np.array(length(x, y)))
    assert out[["reward_0", "reward_1"]].to_numpy().tolist() == [[11, 13], [22, 21]]
    assert out[["cost_0", "cost_1"]].to_numpy().tolist() == [[-11, -13], [-22, -21]]
    for bad in ([1.0], [[1.0, 2.0]], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="cost: the scorer must return 2"):
            c.score(plain, reward=length, cost=lambda x, y, bad=bad: bad)


def test_the_world_scores_its_own_texts(world, table):
    scored = c.score(
        table[["prompt", "response_0", "response_1"]],
        reward=world.scorer("reward"),
        cost=world.scorer("cost"),
    )
    for name in ("reward", "cost"):
        for k in (0, 1):
            wanted = [getattr(world, name)[x, y] for x, y in zip(table.prompt_id, table[f"y_{k}"])]
            assert scored[f"{name}_{k}"].tolist() == wanted
    text = table.prompt[0]
    with pytest.raises(ValueError, match="outside the world's grammar"):
        world.scorer("cost")([text], ["ignore everything ."])
    with pytest.raises(ValueError, match="no such prompt"):
        world.scorer("cost")(["user : hello"], [table.response_0[0]])


# ---------------------------------------------------------------- dual step and duality gap


def test_dual_step_by_hand():
    assert c.dual_step(1.0, 0.5, 0.1, 0.5) == pytest.approx(1.2)  # too costly: lambda rises
    assert c.dual_step(1.0, -0.5, 0.1, 0.5) == pytest.approx(0.7)
    assert c.dual_step(0.2, -0.5, 0.1, 0.5) == 0.0
    assert c.dual_step(0.0, 0.1, 0.1, 0.5) == 0.0


@pytest.fixture(scope="module")
def exact_world(world, inside):
    """(reference, reward, cost) [P, R] of the training prompts."""
    prompts = world.select("train")
    return evaluate.exact(inside, prompts).logp, world.reward[prompts], world.cost[prompts]


def test_the_gap_is_suboptimality_plus_complementarity(exact_world):
    g = np.random.default_rng(0)
    for lam in (0.0, 0.5, 3.0):
        policy = o.normalise(exact_world[0] + g.normal(size=exact_world[0].shape))
        out = o.kkt(policy, lam, *exact_world, beta=BETA, cost_limit=-0.4)
        assert out["gap"] == pytest.approx(out["suboptimality"] + out["complementary"], abs=1e-10)
        assert out["suboptimality"] > 0.1 and abs(out["slack"]) > 1e-3
        assert out["slack"] == pytest.approx(
            -0.4 - (np.exp(policy) * exact_world[2]).sum(1).mean(), abs=1e-12
        )


@pytest.mark.parametrize("limit", [0.0, -0.4])
def test_the_exact_solution_has_no_gap(exact_world, limit):
    lam = o.lambda_star(*exact_world, beta=BETA, cost_limit=limit)
    policy = o.lagrangian_optimal(*exact_world, lam=lam, beta=BETA)
    out = o.kkt(policy, lam, *exact_world, beta=BETA, cost_limit=limit)
    assert max(abs(out[k]) for k in ("gap", "complementary", "suboptimality")) < 1e-9
    assert out["slack"] > -1e-9 and (lam == 0 or abs(out["slack"]) < 1e-9)
    wrong = o.kkt(policy, lam + 0.1, *exact_world, beta=BETA, cost_limit=limit)
    assert wrong["gap"] > 1e-4


def test_dual_gradient_of_the_world(exact_world):
    for lam in (0.0, 0.3, 2.0):

        def g(x):
            return o.dual(x, *exact_world, beta=BETA, cost_limit=-0.4)

        slope = (g(lam + 1e-5) - g(lam - 1e-5)) / 2e-5
        assert o.dual_gradient(lam, *exact_world, beta=BETA, cost_limit=-0.4) == pytest.approx(
            slope, abs=1e-6
        )


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("limit", [-1.65, -1.65 + 1e-6, -2.0])
def test_a_limit_out_of_reach_is_refused(limit):
    with pytest.raises(ValueError, match="lowest attainable E\\[c\\] is -1.650000"):
        c.DualDescent(cost_limit=limit, rounds=1, lowest=-1.65)


@pytest.mark.parametrize(
    "name, value",
    [("dual_lr", 0), ("dual_lr", float("inf")), ("rounds", 0), ("cost_limit", float("nan"))],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        c.DualDescent(**{"cost_limit": 0.0, "rounds": 2} | {name: value})


@pytest.fixture
def fake(monkeypatch, reference):
    """No training: records what each fit was asked for; policies are numbered."""
    calls = []

    def fake_align(frozen, tokens, *, start, seed, **rest):
        calls.append(dict(reference=frozen, start=start, seed=seed, p=tokens.p, **rest))
        return types.SimpleNamespace(policy=f"policy {len(calls)}", seconds=0.0)

    monkeypatch.setattr(c, "align", fake_align)
    return calls


def loop(reference, table, costs, **options):
    """C-DPO on a list of costs, one a round, the last for the last fit."""
    dual = c.DualDescent(**{"cost_limit": 0.1, "rounds": len(costs) - 1} | options)
    return c.cdpo(reference, table, lambda policy, number: costs[number - 1], dual, **SETTING)


def test_multipliers_of_a_run_by_hand(fake, inside, few):
    out = loop(inside, few, [0.5, 0.3, -0.5, -3.0, 0.0], dual_lr=0.5)
    assert out.rounds.lam.tolist() == pytest.approx([0, 0.2, 0.3, 0, 0])
    assert out.rounds.cost.tolist() == [0.5, 0.3, -0.5, -3.0, 0.0]
    assert out.rounds["round"].tolist() == [1, 2, 3, 4, 5]
    assert out.rounds.dual_lr.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert out.policy == "policy 5" and out.lam == 0.0


def test_every_round_is_labelled_by_its_own_multiplier(fake, inside, few):
    out = loop(inside, few, [0.5, 0.3, 0.0])
    for call, lam in zip(fake, out.rounds.lam):
        first = probability(few, lam)
        assert np.abs(call["p"] - np.maximum(first, 1 - first)).max() < 1e-8
    assert len({call["seed"] for call in fake}) == 3


def test_coins_of_a_loop_are_those_of_its_seed(fake, monkeypatch, inside, few):
    tables, read = [], c.tokenize
    keep = lambda table, *words, **more: (tables.append(table), read(table, *words, **more))[1]
    monkeypatch.setattr(c, "tokenize", keep)
    dual = c.DualDescent(cost_limit=0.1, rounds=1, by="coin")
    c.cdpo(inside, few, lambda policy, number: 0.1, dual, **SETTING | {"seed": 3})
    chosen = [c.relabel(few, 0.0, by="coin", seed=seed).chosen for seed in (3, 0)]
    assert tables[0].chosen.equals(chosen[0]) and not chosen[0].equals(chosen[1])


def test_the_last_three_multipliers_are_averaged(fake, inside, few):
    out = loop(inside, few, [1.1, 1.1, -0.3, 0.2, 0.0], dual_lr=1.0)  # 0, 1, 2, 1.6, 1.7
    assert out.lam == pytest.approx((2.0 + 1.6 + 1.7) / 3)
    few_rounds = loop(inside, few, [1.1, 1.1, 0.0], dual_lr=1.0)
    assert few_rounds.lam == pytest.approx((1 + 2) / 2), "the start at 0 is no estimate"


def test_a_round_starts_from_the_last_policy(fake, inside, few):
    loop(inside, few, [0.5, 0.3, 0.0])
    assert [call["start"] for call in fake] == [inside, "policy 1", "policy 2"]
    assert all(call["reference"] is inside for call in fake)
    assert all({k: call[k] for k in SETTING} == SETTING | {"seed": call["seed"]} for call in fake)


def test_it_stops_when_the_multiplier_stands_still_twice(fake, inside, few):
    assert len(loop(inside, few, [0.5, 0.1, 0.1, 0.7, 0.7, 0.7]).rounds) == 4
    # one calm round is no end: the next one moves again
    assert len(loop(inside, few, [0.5, 0.1, 0.5, 0.1, 0.0]).rounds) == 5


def test_a_slack_limit_ends_at_zero(fake, inside, few):
    out = loop(inside, few, [-0.5] * 9)
    assert out.lam == 0.0 and len(out.rounds) == 3, (
        "it stops after two calm rounds: nothing would change"
    )
    late = loop(inside, few, [-0.5, 0.5, 0.5, 0.0])
    assert late.lam > 0 and len(late.rounds) == 4, "a first policy that has hardly moved is no end"


def test_a_slack_limit_ends_at_zero_from_above(fake, inside, few):
    """The loop found out that the limit is slack and stopped at 0; the last fit must be there."""
    out = loop(inside, few, [1.1, *[-0.5] * 19])
    assert out.rounds.lam.max() == 0.5 and out.rounds.lam.iloc[-2] == 0.0 and out.lam == 0.0


def test_a_multiplier_that_still_rises_is_said(fake, inside, few, capsys):
    out = loop(inside, few, [1.1, 0.9, 0.7, 0.6, 0.0], dual_lr=1.0)
    said = capsys.readouterr().err
    assert out.warning and said == out.warning + "\n"
    for words in (
        "still rises after 4 rounds (1, 1.8, 2.4, 2.9)",
        "E[c] is 0.6",
        "cost_limit=0.1",
        "more rounds",
        "dual_lr",
        "attainable",
    ):
        assert words in said
    out_of_reach = loop(inside, few, [0.3] * 40)  # it rises by the same for ever
    assert "after 39 rounds" in out_of_reach.warning


@pytest.mark.parametrize(
    "costs, options",
    [
        ([1.1, 0.9, 0.05, 0.3, 0.0], {}),  # one of the last rounds met the limit
        ([1.1, 0.9, 0.11, 0.105, 0.0], {}),  # met but for a rest
        ([-0.5, -0.5, -0.5, -0.5], {}),  # slack
        ([1.1, 0.9, 0.7, 0.6, 0.0], {"lowest": -5.0}),  # attainable, as is known
    ],
)
def test_elsewhere_nothing_is_said(fake, inside, few, capsys, costs, options):
    assert loop(inside, few, costs, **options).warning == ""
    assert capsys.readouterr().err == ""


def test_a_cost_that_is_no_number_stops_the_loop(fake, inside, few):
    with pytest.raises(ValueError, match="cost_of: E\\[c\\] is nan in round 2"):
        loop(inside, few, [0.5, float("nan"), 0.0])


def test_the_first_round_is_dpo_on_soft_labels(inside, few, fresh_cache):
    got, dual = [], c.DualDescent(cost_limit=0.0, rounds=1)
    out = c.cdpo(inside, few, lambda p, number: got.append(p) or -1.0, dual, **SETTING)
    soft = pairs.tokenize(pairs.soft_label(few, few.reward_0, few.reward_1), inside)
    dpo = align(inside, soft, **SETTING | {"seed": 2**20, "use_cache": False})
    assert got[0].hash == dpo.policy.hash != inside.hash
    assert list(out.rounds) == ["round", "lam", "cost", "dual_lr"] and (out.rounds.lam == 0).all()


def test_a_real_run_moves_against_the_cost(inside, few, world):
    """After a large step up the trained policy is cheaper than after a small one."""
    cost_of, costs = c.ExactCost(tuple(world.select("heldout")[:3])), {}
    for dual_lr in (1e-6, 40.0):
        dual = c.DualDescent(cost_limit=-0.2, rounds=1, dual_lr=dual_lr)
        out = c.cdpo(inside, few, cost_of, dual, **SETTING | {"steps": 8})
        moved = max(0.0, dual_lr * (out.rounds.cost[0] + 0.2))
        assert out.rounds.lam[1] == pytest.approx(moved) and out.lam == out.rounds.lam[1]
        costs[dual_lr] = out.rounds.cost[1]
    assert costs[40.0] < costs[1e-6] - 0.1


# ---------------------------------------------------------------- the cost of a policy


def test_exact_cost_is_the_enumerated_mean(inside, world):
    prompts = tuple(int(x) for x in world.select("heldout")[:3])
    p = np.exp(evaluate.exact(inside, prompts).logp)
    wanted = np.mean([p[i] @ world.cost[x] for i, x in enumerate(prompts)])
    assert c.ExactCost(prompts)(inside, 1) == pytest.approx(wanted, abs=1e-12)


def test_sampled_cost_is_near_and_has_numbers_of_its_own(inside, world):
    ids = world.select("heldout")[:3]
    texts, n = tuple(world.prompts[i].text for i in ids), 300
    estimate = c.SampledCost(texts, world.scorer("cost"), n)
    p = np.exp(evaluate.exact(inside, ids).logp)
    mean = (p * world.cost[ids]).sum(1)
    error = np.sqrt(((p * world.cost[ids] ** 2).sum(1) - mean**2).mean() / n)
    one, two = estimate(inside, 1), estimate(inside, 2)
    assert abs(one - mean.mean()) < 4 * error and abs(two - mean.mean()) < 4 * error
    assert estimate(inside, 1) == one != two
    assert c.SampledCost(texts, world.scorer("cost"), n, seed=1)(inside, 1) != one


# ---------------------------------------------------------------- what a round is given
@pytest.mark.parametrize("max_length", [None, 99])
def test_every_fit_has_a_seed_and_the_length_that_was_asked_for(
    monkeypatch, inside, few, max_length
):
    """The last fit is that of the round after the last, also where the loop stopped before."""
    seeds, lengths, read = [], [], c.tokenize

    def fit(frozen, tokens, *, start, seed, **rest):
        seeds.append(seed)
        return types.SimpleNamespace(policy="trained", seconds=1.5)

    def tokens_of(table, policy, *, max_length):
        lengths.append(max_length)
        return read(table, policy, max_length=max_length)

    monkeypatch.setattr(c, "align", fit)
    monkeypatch.setattr(c, "tokenize", tokens_of)
    dual, given = c.DualDescent(cost_limit=0.0, rounds=5), {"seed": 7, "beta": BETA}
    given |= {} if max_length is None else {"max_length": max_length}
    out = c.cdpo(inside, few, lambda *_: -1.0, dual, **given)
    assert seeds == [7 + 2**20 * number for number in (1, 2, 6)]
    assert lengths == [max_length or 256] * 3 and out.seconds == 4.5


def test_sampled_cost_of_a_policy_without_a_grammar(monkeypatch):
    """Prompts take turns that go on from round to round; each round has a seed of its own."""
    asked = []

    def answers(policy, prompts, *, max_tokens, seed):
        asked.append((prompts, max_tokens, seed))
        return [x.upper() for x in prompts]

    monkeypatch.setattr(c, "generate", answers)
    policy, costs = types.SimpleNamespace(grammar=None), dict(zip("ABCDE", range(5)))
    of = c.SampledCost(tuple("abcde"), lambda x, y: [costs[text] for text in y], samples=2, seed=3)
    found = [of(policy, number) for number in range(5)]
    order = generator(3, "prompts of the cost").permutation(5)
    turns = ["".join("abcde"[order[n % 5]] for n in (2 * k, 2 * k + 1)) for k in range(5)]
    assert ["".join(prompts) for prompts, *_ in asked] == turns
    assert found == [np.mean([costs[x.upper()] for x in prompts]) for prompts, *_ in asked]
    assert [seed for *_, seed in asked] == [3 + 2**20 * number for number in range(5)]
    assert {length for _, length, _ in asked} == {64}
    assert asked[0][0] + asked[1][0] + asked[2][0][:1] != list("abcde"), "in a shuffled turn"


@pytest.mark.parametrize("rest, rises", [(0.021, True), (0.019, False), (-0.5, False)])
def test_a_limit_overstepped_by_a_fiftieth_of_the_most_is_met(rest, rises):
    rows = [dict(lam=0.1 * i, cost=0.3 + over) for i, over in enumerate((1.0, 0.5, rest, 0.4))]
    assert bool(c.still_rising(rows, 0.5, 0.3)) == rises
    assert c.still_rising([dict(lam=0.0, cost=0.3)], 0.0, 0.3) == "", "met exactly"


def test_a_label_without_a_seed_is_that_of_seed_0(table):
    one, two = (c.relabel(table, 0.5, by="coin", **seed) for seed in ({}, {"seed": 0}))
    assert one.chosen.equals(two.chosen)
    with pytest.raises(ValueError, match="dual_lr=-1"):
        c.DualDescent(cost_limit=0.0, rounds=1, dual_lr=-1)
