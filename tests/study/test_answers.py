"""What policies say: the draws are the policies', common random numbers are common, hazards are marked."""

import numpy as np
import pytest

from safealign_utils import evaluate
from safealign_utils.engine.streams import generator
from safealign_utils.study import answers


@pytest.fixture(scope="module")
def exact(reference, world):
    return evaluate.exact(reference, answers.three_prompts(world)).logp


def test_there_is_one_prompt_of_each_intent(world):
    asked = [world.prompts[x] for x in answers.three_prompts(world)]
    assert [x.intent for x in asked] == ["benign", "borderline", "risky"]
    assert {x.split for x in asked} == {"heldout"}


def test_shares_of_the_draws_are_the_probabilities():
    logp, cost = np.log([0.1, 0.2, 0.3, 0.4]), np.array([1.0, -1.0, 0.0, -1.0])
    grid = (np.arange(1000) + 0.5) / 1000
    found = np.bincount([answers.drawn(logp, cost, u) for u in grid], minlength=4)
    assert found.tolist() == [100, 200, 300, 400]
    assert answers.drawn(logp, cost, 0.0) == 1, "of equal costs the first"
    assert answers.drawn(logp, cost, 1 - 1e-16) == 0, "the dearest last"


def test_a_response_that_never_occurs_is_never_drawn():
    logp, cost = np.array([-np.inf, 0.0, -np.inf]), np.array([-1.0, 0.0, 1.0])
    assert {answers.drawn(logp, cost, u) for u in (0.0, 0.5, 1 - 1e-16)} == {1}


def test_with_one_number_more_mass_on_costs_is_a_dearer_answer(exact, world):
    """Tilted towards cost, every policy's draw at the same u costs at least as much."""
    x = answers.three_prompts(world)[2]
    tables = [exact[2] + tilt * world.cost[x] for tilt in (0.0, 0.5, 2.0)]
    tables = [t - np.log(np.exp(t).sum()) for t in tables]
    for u in (0.1, 0.5, 0.9):
        costs = [world.cost[x, answers.drawn(t, world.cost[x], u)] for t in tables]
        assert costs == sorted(costs)


def test_equal_probabilities_do_not_hang_on_rounding():
    assert answers.likeliest(np.log([0.2, 0.4, 0.4 + 1e-12])) == 1
    assert answers.likeliest(np.log([0.2, 0.4, 0.401])) == 2


def test_hazards_and_nothing_else_are_marked(world):
    x = answers.three_prompts(world)[2]
    for y, response in enumerate(world.responses):
        text, hazards = answers.marked(world, x, y), sum(k[0] == "H" for k in response.kinds)
        assert text.count("[") == text.count("]") == hazards
        assert text.replace("[", "").replace("]", "") == world.text(x, y)
    assert (world.cost[x] > 0)[
        [not any(k[0] == "H" for k in y.kinds) for y in world.responses]
    ].sum() == 0


def test_every_policy_gets_the_same_number_and_its_own_answer(exact, world, capsys):
    x = answers.three_prompts(world)[2]
    safe = exact - 50.0 * (world.cost[answers.three_prompts(world)] > 0)
    safe -= np.log(np.exp(safe).sum(axis=1, keepdims=True))
    answers.show(world, {"reference": exact, "twin": exact, "safe": safe})
    said = capsys.readouterr().out
    benign, borderline, risky = said.strip().split("\n\n")
    one, twin, other = (
        risky.split(f"  {n}: ")[1].split("\n  ")[1:] for n in ("reference", "twin", "safe")
    )
    assert one[:4] == twin[:4]
    assert "0.0% of its answers are unsafe" in risky and "UNSAFE" not in "".join(other)
    u = generator(0, "shown answers", x).random()
    y = answers.drawn(exact[2], world.cost[x], u)
    assert answers.marked(world, x, y) in risky


def test_the_numbers_lie_far_from_every_share_of_the_reference(exact, world):
    for row, x in enumerate(answers.three_prompts(world)):
        order = np.lexsort((np.arange(exact.shape[1]), world.cost[x]))
        u = generator(0, "shown answers", x).random()
        assert np.abs(np.cumsum(np.exp(exact[row][order])) - u).min() > 1e-6
