"""What a table of answers is worth: metrics by hand, intervals over prompts, and against what is known exactly."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from safealign_utils import evaluate
from safealign_utils.intervals import DIFFERENCE, SHARE
from safealign_utils.real.answer_metrics import (
    Estimate,
    by_category,
    compare,
    estimate,
    evaluate_answers,
    write_answers,
)
from safealign_utils.sampling import generate

length = lambda prompts, responses: np.array([len(y) for y in responses], dtype=float)


def answers(responses, unsafe=(False, False, True, True), categories="aabb"):
    n = len(responses)
    table = pd.DataFrame(
        {"id": range(1, n + 1), "prompt": [f"p{i}" for i in range(n)], "response": responses}
    )
    return table.assign(category=list(categories), unsafe=pd.array(unsafe, dtype="boolean"))


NO, YES = "I'm sorry, but I can't help with that.", "Sure, here it is."


def test_metrics_by_hand():
    costs = dict(zip(("p0", "p1", "p2", "p3"), (-2.0, 0.0, 0.1, -1.0)))
    cost = lambda prompts, responses: [costs[x] for x in prompts]
    table, metrics = evaluate_answers(
        answers([NO, YES, YES, NO], unsafe=(False, True, True, True)), reward=length, cost=cost
    )
    value = {name: m.value for name, m in metrics.items()}
    assert value == {
        "refusal": 0.5,
        "over_refusal": 1,
        "unsafe_compliance": 2 / 3,
        "harmless_ratio": 0.75,
        "reward": (len(NO) + len(YES)) / 2,
        "cost": pytest.approx(-2.9 / 4),
    }
    assert {name: m.n for name, m in metrics.items() if m.n != 4} == {
        "over_refusal": 1,
        "unsafe_compliance": 3,
    }
    assert all(m.low <= m.value <= m.high for m in metrics.values())
    assert table.harmless.tolist() == [1, 1, 0, 1] and table.refusal.tolist() == [1, 0, 0, 1]
    assert table.cost.tolist() == list(costs.values()) and table.category.tolist() == list("aabb")


def test_rows_hold_no_text():
    table, _ = evaluate_answers(answers([NO, YES, YES, NO]), reward=length)
    assert not {"prompt", "response", "answers", "turns"} & set(table)
    assert not any(
        text in str(cell)
        for text in (NO, YES, "p0")
        for cell in table.drop(columns="prompt_hash").to_numpy().ravel()
    )


def test_what_is_unknown_is_left_out():
    _, metrics = evaluate_answers(answers([NO, YES, YES, YES], unsafe=(None,) * 4))
    assert set(metrics) == {"refusal"} and metrics["refusal"].value == 0.25
    bare = pd.DataFrame({"prompt": ["x", "y"], "response": [NO, YES]})
    table, metrics = evaluate_answers(bare)
    assert (
        set(metrics) == {"refusal"} and table.id.tolist() == [1, 2] and (table.category == "").all()
    )
    _, metrics = evaluate_answers(answers([NO, NO, YES, YES], unsafe=(False, None, None, None)))
    assert metrics["over_refusal"].n == 1 and "unsafe_compliance" not in metrics


def test_categories():
    table, _ = evaluate_answers(answers([NO, YES, YES, YES], categories="abab"), reward=length)
    rows = by_category(table).set_index(["category", "metric"])
    assert (
        rows.value["a", "refusal"] == 0.5
        and rows.value["b", "refusal"] == 0
        and (rows.n.loc[:, "reward"] == 2).all()
    )
    assert rows.value["a", "over_refusal"] == 1 and rows.value["b", "over_refusal"] == 0
    assert rows.value["a", "reward"] == (len(NO) + len(YES)) / 2 and rows.value[
        "b", "reward"
    ] == len(YES)
    assert rows.low["b", "reward"] == rows.high["b", "reward"] == len(YES)


def test_win_rates_by_hand():
    """Longer answers win by reward, lose by cost; p3 ties."""
    mine, other = answers([YES * 2, YES, YES * 2, YES]), answers([YES, YES * 2, YES, YES])
    minus = lambda prompts, responses: length(prompts, responses) - 20
    reference, _ = evaluate_answers(other, reward=length, cost=minus)
    table, _ = evaluate_answers(mine, reward=length, cost=minus)
    metrics = compare(table, reference)
    assert (
        metrics["win_rate_by_reward_model"].value == 2.5 / 4
        and metrics["win_rate_by_cost_model"].value == 1.5 / 4
    )
    assert (
        metrics["difference.reward"].value == len(YES) / 4
        and metrics["difference.harmless_ratio"].value == -0.25
    )
    back = compare(reference, table)
    assert (
        back["win_rate_by_reward_model"].value == 1.5 / 4
        and back["difference.cost"].value == -len(YES) / 4
    )
    assert {"difference.refusal", "difference.over_refusal", "difference.unsafe_compliance"} < set(
        metrics
    )
    same = compare(table, table)
    assert (
        same.pop("win_rate_by_reward_model")
        == same.pop("win_rate_by_cost_model")
        == Estimate(0.5, 0.5, 0.5, 4)
    )
    assert {found[:3] for found in same.values()} == {(0, 0, 0)}, (
        "no difference of any unit is a share of 0"
    )


def test_answers_to_one_prompt_are_drawn_together():
    """Each prompt answered four times is no more evidence than once."""
    once = answers([YES, NO] * 15, unsafe=[False] * 30, categories="a" * 30)
    _, one = evaluate_answers(once)
    _, four = evaluate_answers(pd.concat([once] * 4, ignore_index=True))
    assert four["refusal"] == one["refusal"]._replace(n=120)


def test_other_prompts_are_not_compared():
    table, _ = evaluate_answers(answers([NO, YES, YES, NO]), reward=length)
    turned, _ = evaluate_answers(answers([NO, YES, YES, NO]).iloc[[1, 0, 2, 3]], reward=length)
    other, _ = evaluate_answers(
        answers([NO, YES, YES, NO]).assign(prompt=list("wxyz")), reward=length
    )
    moved, _ = evaluate_answers(answers([NO, YES, YES, NO], categories="abba"), reward=length)
    for wrong in (turned, other, moved, table.iloc[:3]):
        with pytest.raises(ValueError, match="against: its rows are of other prompts"):
            compare(table, wrong)


@pytest.mark.parametrize("scores", [[1.0], [1.0, 2.0, np.nan, 0.0], [[1.0, 2.0, 3.0, 4.0]]])
def test_bad_scorers_are_refused(scores):
    with pytest.raises(ValueError, match="cost: the scorer gave"):
        evaluate_answers(answers([NO, YES, YES, NO]), cost=lambda prompts, responses: scores)


def test_an_estimate_has_two_ends():
    """What `intervals.over_prompts` has no end for is NaN; the rest is as there."""
    one, none = estimate([0.5], ["a"], None), estimate([], [], SHARE)
    assert one.value == 0.5 and one.n == 1 and np.isnan([one.low, one.high]).all()
    assert none.n == 0 and np.isnan(none[:3]).all()
    assert estimate([0.0] * 8, range(8), DIFFERENCE) == (0, 0, 0, 8)
    assert estimate([0.0] * 8, range(8), SHARE).high == pytest.approx(1 - 0.025 ** (1 / 8))


def test_answers_are_written_and_not_printed(tmp_path, capfd):
    said = answers([NO, YES, YES, NO]).assign(answers=[(NO,), (YES, NO), (YES,), (NO,)])
    path = write_answers(tmp_path / "new", said, name="gpt2")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.name == "gpt2.jsonl" and [row["id"] for row in rows] == [1, 2, 3, 4]
    assert [row["answers"] for row in rows] == [list(y) for y in said.answers]
    assert [row["category"] for row in rows] == list("aabb")
    assert set(rows[0]) == {"id", "category", "prompt", "answers", "response"}
    evaluate_answers(said, reward=length)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- against what is known exactly


@pytest.fixture(scope="module")
def worldly(world, reference):
    """The reference in the world's grammar and a policy beside it, their samples scored by the oracle."""
    inside = dataclasses.replace(reference, constrained=True)
    near = dataclasses.replace(reference.copy(), constrained=True)
    with torch.no_grad():
        for i, weights in enumerate(near.model.parameters()):
            weights *= 1 + 0.01 * np.sin(i + 1)
    return inside, near


def drawn(policy, world, prompts, times, seed=0):
    texts = [world.prompts[x].text for x in prompts for _ in range(times)]
    said = generate(policy, texts, max_tokens=40, seed=seed, batch_size=64)
    frame = pd.DataFrame(
        {
            "prompt": texts,
            "response": said,
            "category": [world.prompts[x].category for x in prompts for _ in range(times)],
        }
    )
    return evaluate_answers(frame, reward=world.scorer("reward"), cost=world.scorer("cost"))


def test_means_are_those_of_the_enumerated_distribution(world, worldly):
    prompts, times = list(range(0, 72, 6)), 50
    inside, _ = worldly
    table, metrics = drawn(inside, world, prompts, times)
    p = np.exp(evaluate.exact(inside, prompts).logp)
    for name, values in {
        "reward": world.reward,
        "cost": world.cost,
        "harmless": world.cost <= 0,
    }.items():
        truth = float((p * values[prompts]).sum(axis=1).mean())
        error = table[name].std() / np.sqrt(len(table))
        found = metrics["harmless_ratio" if name == "harmless" else name]
        assert abs(found.value - truth) < 4 * error and found.high - found.low < 5 * error
        assert abs(-found.value - truth) > 4 * error, "the sign would be seen"


def test_common_random_numbers_make_differences_narrow(world, worldly):
    prompts, times = list(range(0, 72, 6)), 20
    (a, of_a), (b, _), (c, _) = (
        drawn(p, world, prompts, times, seed=s) for p, s in zip((*worldly, worldly[1]), (0, 0, 1))
    )
    paired, apart = compare(a, b)["difference.reward"], compare(a, c)["difference.reward"]
    width = lambda e: e.high - e.low
    assert width(paired) < 0.7 * width(apart) and width(paired) < width(of_a["reward"])
    truth = [
        float((np.exp(evaluate.exact(p, prompts).logp) * world.reward[prompts]).sum(axis=1).mean())
        for p in worldly
    ]
    assert paired.low - width(paired) < truth[0] - truth[1] < paired.high + width(paired)
