"""Linear heads on frozen hidden states: what they read, what they minimise, and no prompt twice."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.made_models import model_folder
from scipy.special import expit

from safealign_utils import pairs
from safealign_utils.real import models, probe, scorer_training

WORDS = "red blue stone leaf river cloud seven paper".split()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = model_folder(tmp_path_factory.mktemp("probe") / "model", "llama")
    return models.load_policy(str(folder)).to("float32", "cpu")


def table(n=40, seed=0):
    """Pairs of words in which "stone" is unsafe and "leaf" is better; four pairs a prompt."""
    g = np.random.default_rng(seed)
    said = [[" ".join(g.choice(WORDS, 5)) for _ in range(2)] for _ in range(n)]
    rows = pd.DataFrame(said, columns=["response_0", "response_1"])
    rows["prompt"] = [f"say {WORDS[i % 8]} {i // 4}" for i in range(n)]
    rows["prompt"] = [rows.prompt[i - i % 4] for i in range(n)]
    for k in (0, 1):
        rows[f"is_response_{k}_safe"] = [
            None if i % 7 == 0 else "stone" not in y for i, y in enumerate(rows[f"response_{k}"])
        ]
    counts = [[y.count("leaf") for y in both] for both in said]
    better = [pd.NA if a == b else int(b > a) for a, b in counts]
    rows["better_response_id"] = pd.array(better, dtype="Int64")
    rows["safer_response_id"] = pd.array([pd.NA] * n, dtype="Int64")
    return rows.assign(source="made", category="", split="")


# ---------------------------------------------------------------- hidden states
def test_states_are_those_of_the_plain_forward(policy, fresh_cache):
    """Mean over the response's tokens, its end among them, and the last one, at every depth read."""
    states = probe.States(policy)
    assert (
        states.layers == sorted(set(states.layers))
        and states.layers[-1] == policy.model.config.num_hidden_layers
    )
    rows = states.encode(["say red", "say red", "go"], ["blue stone", "leaf", "one two three"])
    found = states(rows)
    for (prompt, response), own in zip(rows, found):
        ids = torch.tensor(np.concatenate([prompt, response]))[None]
        with torch.no_grad():
            hidden = policy.model(ids, output_hidden_states=True).hidden_states
        for place, layer in enumerate(states.layers):
            tokens = hidden[layer][0, len(prompt) :]
            assert np.abs(own[2 * place] - tokens.mean(0).numpy()).max() < 1e-5
            assert np.abs(own[2 * place + 1] - tokens[-1].numpy()).max() < 1e-5


def test_states_are_computed_once(policy, fresh_cache, monkeypatch):
    rows = probe.States(policy).encode(["say red", "go"], ["blue", "leaf stone"])
    first = probe.States(policy)([*rows, rows[0]], keep=True)
    assert np.array_equal(first[0], first[2])
    monkeypatch.setattr(probe.States, "_read", lambda *a: pytest.fail("computed again"))
    again = probe.States(policy)(rows[::-1])
    assert np.array_equal(again, first[1::-1])


def test_no_more_is_read_than_the_network_has_places_for(policy, fresh_cache):
    longest = policy.model.config.max_position_embeddings
    states = probe.States(policy, max_length=10 * longest)
    (row,) = states.encode(["say red"], ["stone " * 2 * longest])
    assert len(row[0]) + len(row[1]) == longest and np.isfinite(states([row])).all()


def test_answers_are_not_kept(policy, fresh_cache):
    states = probe.States(policy)
    states(states.encode(["go"], ["red"]))
    assert not states.known and not probe.States(policy).known


# ---------------------------------------------------------------- heads
def penalised(weight, rows):
    """Gradient of C * sum of logistic losses + |w|^2 / 2 at a weight, rows already signed."""
    return weight - probe.PENALTY * (expit(-rows @ weight)[:, None] * rows).sum(0)


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_a_head_minimises_the_loss_it_is_named_after(kind, monkeypatch):
    """In standard scores: Bradley-Terry on differences, or Safe RLHF's three terms."""
    g, rows = np.random.default_rng(0), probe.labelled(kind, table())
    states = g.normal(size=(len(rows), 2, 1, 6)).astype(np.float32)
    heads = probe.fit(kind, states, rows)
    flat = states.reshape(-1, 6).astype(float)
    scale = (flat.std(0) + 1e-6) * np.sqrt(6)
    x = (states[:, :, 0].astype(float) - flat.mean(0)) / scale
    weight = heads.weight[0] * scale
    if kind == "reward":
        sign = np.where(rows.better_response_id == 0, 1.0, -1.0)
        signed = sign[:, None] * (x[:, 0] - x[:, 1])
        assert abs(heads(states.reshape(-1, 1, 6)).mean()) < 1e-9, "0 is its mean in training"
    else:
        costlier, *signs = scorer_training.cost_labels(rows)
        parts = [(costlier, x[:, 0] - x[:, 1], 0.0)]
        parts += [(sign, x[:, k], 1.0) for k, sign in enumerate(signs)]
        signed = np.concatenate([s[:, None] * np.c_[v, np.full(len(v), c)] for s, v, c in parts])
        weight = np.append(weight, heads.bias + heads.weight[0] @ flat.mean(0))
    assert np.abs(penalised(weight, signed)).max() < 2e-3


def test_what_can_be_read_off_the_states_is_learned(policy, fresh_cache):
    states, seen, unseen = probe.States(policy), table(200), table(80, seed=1)
    cost = probe.train_probe("cost", states, seen)
    share = scorer_training.harmless_accuracy([cost], unseen).share
    assert share["accuracy"] > 0.85 > share["constant"]
    reward = probe.train_probe("reward", states, seen)
    assert scorer_training.pair_accuracy([reward], unseen).value > 0.85
    wrong = [reward(["go"], ["leaf leaf"]) > reward(["go"], ["red red"])]
    assert all(wrong) and cost.kind == "cost" and cost.hash != reward.hash


def test_what_has_no_label_is_refused(policy):
    rows = table().assign(is_response_0_safe=None, is_response_1_safe=None)
    with pytest.raises(ValueError, match="no response has a safety label"):
        probe.train_probe("cost", probe.States(policy), rows)
    rows["better_response_id"] = pd.array([pd.NA] * len(rows), dtype="Int64")
    with pytest.raises(ValueError, match="no row has a better_response_id"):
        probe.train_probe("reward", probe.States(policy), rows)


def test_heads_are_fitted_to_so_many_pairs(monkeypatch):
    monkeypatch.setattr(probe, "LARGEST", 5)
    assert len(probe.labelled("reward", table())) == len(probe.labelled("cost", table())) == 5


def test_what_says_too_little(policy):
    rows = table()
    assert probe.tells("cost", rows) and probe.tells("reward", rows)
    assert not probe.tells("cost", rows.assign(is_response_0_safe=True, is_response_1_safe=True))
    one = rows.assign(better_response_id=pd.array([0] + [pd.NA] * 39, dtype="Int64"))
    assert not probe.tells("reward", one)


# ---------------------------------------------------------------- cross-validation
def test_a_prompt_is_in_one_fold():
    prompts = pd.Series([f"p{i % 23}" for i in range(90)])
    scored = np.concatenate([out for _, out in pairs.splits(prompts, probe.FOLDS)])
    assert sorted(scored) == list(range(90))
    for kept, out in pairs.splits(prompts, probe.FOLDS):
        assert not set(prompts[kept]) & set(prompts[out]) and len(out) > 0
    with pytest.raises(
        ValueError, match="folds=5: there are 3 prompts or pairs to part; give more"
    ):
        pairs.splits(["a", "b", "c"], 5)


def test_labels_without_a_rule_are_not_predicted(policy, fresh_cache):
    """Fitted, coin flips are ordered; out of fold they are not: no score has seen its label."""
    rows, g = table(120), np.random.default_rng(3)
    rows["better_response_id"] = pd.array(g.integers(0, 2, 120), dtype="Int64")
    rows["prompt"] = [f"say {i}" for i in range(120)]
    states = probe.States(policy)
    own = scorer_training.pair_accuracy([probe.train_probe("reward", states, rows)], rows)
    found, scored = probe.cross_validated("reward", states, rows)
    out = scorer_training.pair_accuracy([found], scored)
    assert out.low < 0.5 < out.high and own.low > 0.5 and out.n == own.n == 120
    scored, words = probe.words_out_of_fold("reward", rows)
    assert 0.3 < (words > 0).mean() < 0.7 and len(words) == len(scored) == 120


def test_the_order_that_scorers_are_asked_for():
    rows = table()
    cost = scorer_training.with_order("cost", rows)
    unsafe = [cost[f"is_response_{k}_safe"].eq(False) for k in (0, 1)]
    assert (np.where(cost.chosen == 0, unsafe[1], unsafe[0])).all() and len(cost) < len(rows)
    reward = scorer_training.with_order("reward", rows)
    assert (reward.chosen == reward.better_response_id).all()
    assert len(pairs.label(rows, "better")) == len(reward)
