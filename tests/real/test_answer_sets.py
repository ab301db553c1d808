"""Answer sets: the rules, the pairs, a policy restricted to S against brute force, and batches by prompt."""

import numpy as np
import pytest
import torch
from helpers.made_models import model_folder

from safealign_utils import pairs, train
from safealign_utils.real import answer_sets, models
from safealign_utils.world import optimum


@pytest.fixture(scope="module")
def sets():
    return answer_sets.load()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return models.load_policy(str(model_folder(tmp_path_factory.mktemp("m") / "m", "llama")))


def test_the_sets_are_what_they_say(sets):
    kinds = [prompt.kind for prompt in sets.prompts]
    assert len(kinds) == 108 and {kinds.count(k) for k in kinds} == {36}
    assert not set(sets.select("train")) & set(sets.select("heldout"))
    assert len(sets.select("train")) == 72
    for x, answers in enumerate(sets.answers):
        n = len(answers)
        assert len(set(answers)) == n >= 3 and sets.there[x].sum() == n
        assert (sets.cost[x, :n] <= 0).any(), "a safe answer to every prompt"
        assert sets.refuses[x, 0] and sets.reward[x, 0] == 0
        assert not sets.refuses[x, 1] and sets.reward[x, 1] >= 1
        if kinds[x] != "risky":
            assert (sets.cost[x, :n] == -1).all()


def test_rewards_by_rule():
    asked = "How do I hang a picture?"
    assert answer_sets.reward_of(asked, "I'm sorry, but I can't help with that.") == 0.0
    assert answer_sets.reward_of(asked, "Yes") == pytest.approx(1 + 0 + 1 / 30)
    assert answer_sets.reward_of(asked, "Hang the picture " * 20) == pytest.approx(3.0)
    assert answer_sets.reward_of("Why?", "Because.") == pytest.approx(2 + 1 / 30)


@pytest.mark.parametrize(
    "answer, along",
    [
        ("You can take a thin wire and push it into the lock.", True),
        ("Here are some tips: take a thin wire.", True),
        ("Locks are a wonder of the old world.", False),
        ("I'm sorry, but I cannot help you with that.", False),
        ("It is illegal to open the door of somebody else.", False),
        ("I don't have the ability to do so.", False),
        ("You should never drink and drive.", False),
    ],
)
def test_what_goes_along(answer, along):
    assert answer_sets.goes_along(answer) == along


@pytest.mark.parametrize(
    "text, cut",
    [
        ("One. Two and", "One."),
        ("No end at all", "No end at all"),
        ("Do this:  1. Cut\nit. 2. Then", "Do this: 1. Cut it."),
        (
            "Yes! You can cut it with a knife that is sharp. Then rest.",
            "Yes! You can cut it with a knife that is sharp.",
        ),
        ("Is it? Yes! And", "Is it? Yes!"),
    ],
)
def test_first_sentences(text, cut):
    assert answer_sets.first_sentences(text) == cut


def test_pairs_hold_labels_scores_and_places(sets):
    table = sets.pairs([2, 5])
    for row in table.itertuples():
        x, i, j = row.prompt_id, row.y_0, row.y_1
        assert (row.response_0, row.response_1) == (sets.answers[x][i], sets.answers[x][j])
        assert (row.reward_0, row.cost_1) == (sets.reward[x, i], sets.cost[x, j])
        better = row.better_response_id
        if abs(row.reward_0 - row.reward_1) > 1e-9:
            assert better == int(row.reward_1 > row.reward_0)
        else:
            assert str(better) == "<NA>"
    n = [len(sets.answers[x]) for x in (2, 5)]
    assert len(table) == sum(m * (m - 1) // 2 for m in n)


def test_a_policy_on_the_sets_is_brute_force(sets, policy):
    """log pi_S and the mass of S from one plain forward an answer."""
    ids = np.array([1, 7])
    found = answer_sets.read(policy, sets, ids)
    for row, x in enumerate(ids):
        said, prompt = list(sets.answers[x]), sets.prompts[x].text
        table = pairs.tokenize(
            sets.pairs([x]).assign(chosen=0, p=1.0, margin=0.0), policy, max_length=answer_sets.ROOM
        )
        by_text = {}
        for (_, pair), chosen in zip(sets.pairs([x]).iterrows(), table.chosen):
            by_text[pair.response_0] = chosen
        for (_, pair), rejected in zip(sets.pairs([x]).iterrows(), table.rejected):
            by_text[pair.response_1] = rejected
        raw = []
        for answer in said:
            ids_of = torch.tensor([[*table.prompts[0], *by_text[answer]]])
            with torch.no_grad():
                logits = policy.model(ids_of).logits[0, len(table.prompts[0]) - 1 : -1]
            y = torch.tensor(by_text[answer])
            raw.append(float(logits.double().log_softmax(-1)[range(len(y)), y].sum()))
        total = np.logaddexp.reduce(raw)
        assert found.log_mass[row] == pytest.approx(total, abs=1e-3)
        assert found.logp[row, : len(said)] == pytest.approx(np.array(raw) - total, abs=1e-3)
        assert np.isneginf(found.logp[row, len(said) :]).all()
        assert prompt == sets.prompts[x].text


def test_optima_of_ragged_sets_are_those_of_each_set(sets):
    """A prompt with fewer answers: the table's optimum is that of the prompt alone."""
    g = np.random.default_rng(0)
    logp = np.where(sets.there, g.normal(-30, 5, sets.there.shape), -np.inf)[:9]
    logp = optimum.normalise(logp)
    best = optimum.safe_optimal(logp, sets.reward[:9], sets.cost[:9], beta=0.1)
    for x in range(9):
        n = len(sets.answers[x])
        own = optimum.safe_optimal(
            logp[x : x + 1, :n], sets.reward[x : x + 1, :n], sets.cost[x : x + 1, :n], beta=0.1
        )
        assert best[x, :n] == pytest.approx(own[0])


def test_a_batch_by_prompt_is_the_mean_over_each_prompts_pairs(sets, policy):
    """Loss and gradient of a batch of prompts against pairs one by one, float64."""
    exact = policy.to("float64")
    table = sets.pairs([0, 3])
    table = pairs.soft_label(table, table.reward_0, table.reward_1).drop(index=[1, 2])
    tokens = pairs.tokenize(table, exact, max_length=answer_sets.ROOM)
    groups = train.rows_by_prompt(tokens)
    assert sorted(map(len, groups)) == sorted(table.groupby("prompt").size())
    frozen = train.reference_logprobs(exact, tokens)
    moved = exact.copy()
    with torch.no_grad():
        for p in moved.model.parameters():
            p.add_(
                0.01
                * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
            )
    module = train.LogProbs(moved)
    whole = train.Objective(moved, tokens, frozen, beta=0.1, groups=groups)
    single = train.Objective(moved, tokens, frozen, beta=0.1)
    total, sums = whole(module, [1, 0])
    by_hand = sum(sum(single(module, [row])[0] for row in rows) / len(rows) for rows in groups)
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert sums["loss"] == pytest.approx(total.item())
    parameters = list(moved.model.parameters())
    for a, b in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(by_hand, parameters)
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_training_by_prompt_has_batches_of_prompts(sets, policy, fresh_cache):
    table = pairs.label(sets.pairs(sets.select("train")[:6]), "better")
    tokens = pairs.tokenize(table, policy, max_length=answer_sets.ROOM)
    given = dict(beta=0.1, steps=3, batch_size=2, learning_rate=1e-3, seed=0)
    one = train.align(policy, tokens, by_prompt=True, **given)
    assert one.log.loss[0] == pytest.approx(np.log(2), abs=1e-5)
    other = train.align(policy, tokens, **given)
    assert not other.cached and other.policy.hash != one.policy.hash
    assert train.align(policy, tokens, by_prompt=True, **given).cached
