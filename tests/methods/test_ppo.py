"""PPO-Lagrangian: its pieces by hand, and what its runs move."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from safealign_utils import evaluate
from safealign_utils.logprobs import LogProbs
from safealign_utils.methods import ppo
from safealign_utils.sampling import draw
from safealign_utils.world import optimum as o

# ---------------------------------------------------------------- pieces


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0]]).double()
    values = torch.tensor([[0.5, 0.2, 0.4], [1.0, 0.5, 0.0]]).double()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).double()
    advantage, returns = ppo.generalised_advantages(rewards, values, mask)
    # deltas -0.3, 0.2, 0.6 and 1.5, -1.5
    assert advantage[0].tolist() == pytest.approx([0.4315, 0.77, 0.6])
    assert advantage[1].tolist() == pytest.approx([1.5 - 0.95 * 1.5, -1.5, 0.0])
    assert returns[0].tolist() == pytest.approx([0.9315, 0.97, 1.0])


@pytest.mark.parametrize("gae", [0.95, 1.0])
def test_advantages_are_discounted_sums(monkeypatch, gae):
    monkeypatch.setattr(ppo, "GAE", gae)
    g = np.random.default_rng(0)
    rewards, values = g.normal(size=(2, 6, 8))
    lengths = np.array([8, 1, 3, 8, 5, 2])
    mask = np.arange(8) < lengths[:, None]
    rewards, values = rewards * mask, values * mask
    advantage, _ = ppo.generalised_advantages(
        *(torch.tensor(a, dtype=torch.float64) for a in (rewards, values, mask))
    )
    for b, n in enumerate(lengths):
        delta = rewards[b, :n] + np.append(values[b, 1:n], 0.0) - values[b, :n]
        wanted = [sum(gae**k * delta[t + k] for k in range(n - t)) for t in range(n)]
        assert (
            advantage[b, :n].tolist() == pytest.approx(wanted, abs=1e-12)
            and (advantage[b, n:] == 0).all()
        )
        if gae == 1:
            assert advantage[b, 0].item() == pytest.approx(
                rewards[b].sum() - values[b, 0], abs=1e-12
            )


@pytest.mark.parametrize(
    "ratio, advantage, loss, moves",
    [
        (1.5, 1, -1.2, 0),
        (1.5, -1, 1.5, 1),
        (0.5, 1, -0.5, 1),
        (0.5, -1, 0.8, 0),
        (1.1, 2, -2.2, 1),
        (0.9, -2, 1.8, 1),
    ],
)
def test_clipped_surrogate(ratio, advantage, loss, moves):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    out = ppo.policy_loss(logp, torch.zeros(1).double(), torch.tensor([float(advantage)]).double())
    out.backward()
    assert out.item() == pytest.approx(loss) and (logp.grad.item() != 0) == bool(moves)


def test_next_lambda():
    assert ppo.next_lambda(1.0, 0.5, 0.0) == pytest.approx(math.exp(0.05))
    assert ppo.next_lambda(2.0, 0.5, 0.25) == pytest.approx(2 * math.exp(0.05))
    assert ppo.next_lambda(1.0, -0.5, 0.0) == pytest.approx(math.exp(-0.05))
    assert ppo.next_lambda(4.9, 10.0, 0.0) == 5.0
    assert ppo.next_lambda(0.0, 10.0, 0.0) == 0.0


@pytest.mark.parametrize("lam", [0.0, 1.0, 3.0])
def test_token_advantages_of_a_minibatch(inside, other, world, prompts, lam):
    """With an untrained critic: (r - lam c) / (1 + lam) at the end, less the penalty at every token, discounted."""
    texts = [world.prompts[x].text for x in prompts]
    out = draw(other, texts, np.random.default_rng(2).random((3, 40)))
    reward, cost, coefficient = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.7, -1.5]), 0.4
    networks = ppo._Networks(LogProbs(other).eval(), LogProbs(inside).eval(), ppo.Critic(inside))
    rows = np.array([2, 0])
    batch = ppo._rollout(networks, other, out, rows, (reward, cost), lam, coefficient)
    wanted, old = [], []
    for i in rows:
        ids, allowed, prompt = out.responses[i], out.allowed[i], out.prompts[i]
        logps = []
        for policy in (other, inside):
            with torch.no_grad():
                logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[
                    0, len(prompt) - 1 : -1
                ]
            logits = np.where(allowed, logits.numpy(), -np.inf)
            logps.append(
                (logits - np.logaddexp.reduce(logits, axis=1)[:, None])[range(len(ids)), ids]
            )
        token = -coefficient * (logps[0] - logps[1])
        token[-1] += (reward[i] - lam * cost[i]) / (1 + lam)
        wanted += [
            sum(0.95**k * token[t + k] for k in range(len(ids) - t)) for t in range(len(ids))
        ]
        old += logps[0].tolist()
    assert np.abs(batch.old.numpy() - old).max() < 1e-9
    assert np.abs(batch.advantage.numpy() - wanted).max() < 1e-9


# ---------------------------------------------------------------- runs


@pytest.fixture(autouse=True)
def one_response_a_prompt(monkeypatch):
    monkeypatch.setattr(ppo, "SAMPLES", 1)


def run(policy, world, prompts, **options):
    scorers = dict(reward=world.scorer("reward"), cost=world.scorer("cost"))
    setting = dict(cost_limit=0.0, iterations=2, learning_rate=1e-3, seed=0)
    return ppo.ppo_lagrangian(policy, prompts, **scorers | setting | options)


def nothing(prompts, responses):
    return np.zeros(len(prompts))


def test_a_run_is_counted_remembered_and_deterministic(inside, world, prompts, request):
    before = inside.hash
    one, two = (run(inside, world, prompts) for _ in range(2))
    assert one.samples == 2 * 3 and len(one.log) == 2 and one.policy.hash != before
    assert two.policy.hash == one.policy.hash and two.log.equals(one.log)
    assert (two.lam, two.samples, two.seconds) == (one.lam, one.samples, one.seconds), (
        "it came from the cache"
    )
    request.getfixturevalue("fresh_cache")
    again = run(inside, world, prompts)
    assert again.policy.hash == one.policy.hash and again.seconds != one.seconds
    assert dataclasses.replace(inside).hash == before, "the reference stayed as it was"


@pytest.mark.parametrize("limit", [-5.0, 5.0])
def test_lambda_follows_the_mean_cost_of_the_episodes(inside, world, prompts, limit):
    out = run(inside, world, prompts, cost_limit=limit)
    first = math.exp(0.1 * (out.log.cost[0] - limit))
    second = first * math.exp(0.1 * first * (out.log.cost.mean() - limit))
    assert out.log.lam.tolist() == pytest.approx([first, second]) and out.lam == out.log.lam[1]
    assert (out.lam > first > 1) if limit < 0 else (out.lam < first < 1)


def test_without_scores_nothing_moves(inside, world, prompts, fresh_cache):
    out = run(inside, world, prompts, reward=nothing, cost=nothing)
    assert out.policy.hash == inside.hash and out.log[["reward", "cost"]].to_numpy().max() == 0


@pytest.mark.parametrize("what, first", [("reward", 0.0), ("cost", 5.0)])
def test_reward_rises_and_cost_falls(inside, world, prompts, fresh_cache, monkeypatch, what, first):
    """Each score alone: the reward at lambda 0, the cost with a large lambda."""
    for name, value in (("SAMPLES", 12), ("LAMBDA", first), ("LAMBDA_LR", 0.0)):
        monkeypatch.setattr(ppo, name, value)
    alone = dict(reward=nothing) if what == "cost" else {}
    out = run(inside, world, prompts, iterations=6, **alone)
    values = getattr(world, what)[prompts]
    before, after = (
        o.expect(evaluate.exact(p, prompts).logp, values) for p in (inside, out.policy)
    )
    assert (after - before if what == "reward" else before - after) > 0.1


@pytest.mark.parametrize("iterations, samples", [(1, 6), (3, 2)])
def test_every_response_is_read_twice(
    inside, world, prompts, fresh_cache, monkeypatch, iterations, samples
):
    seen = []
    monkeypatch.setattr(ppo, "SAMPLES", samples)
    monkeypatch.setattr(ppo, "MINIBATCH", 4)
    monkeypatch.setattr(ppo, "_update", lambda *given: seen.append(len(given[-1].batch.ids)))
    out = run(inside, world, prompts, iterations=iterations)
    assert out.samples == iterations * 3 * samples and sum(seen) == 2 * out.samples
    assert max(seen) <= 4


def test_the_penalty_follows_lambda_where_beta_is_given():
    setting = dict(cost_limit=0.0, iterations=1, learning_rate=1e-3, seed=0)
    assert ppo.Setting(**setting).coefficient(3.0) == 0.01
    assert ppo.Setting(**setting, kl_coeff=0.2).coefficient(3.0) == 0.2
    assert ppo.Setting(**setting, beta=0.5).coefficient(3.0) == 0.5 / 4


@pytest.mark.parametrize(
    "name, value",
    [("iterations", 0), ("learning_rate", 0.0), ("learning_rate", math.inf), ("beta", -1.0)],
)
def test_bad_settings_are_refused(inside, world, prompts, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        run(inside, world, prompts, **{name: value})


def test_the_cache_sees_the_scorers(inside, world, prompts, fresh_cache):
    one = run(inside, world, prompts)
    other = run(inside, world, prompts, reward=lambda x, y: -world.scorer("reward")(x, y))
    assert (
        other.log.reward[0] == pytest.approx(-one.log.reward[0])
        and other.policy.hash != one.policy.hash
    )
