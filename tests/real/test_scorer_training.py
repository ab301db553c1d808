"""The kit's own reward and cost models: the losses by hand, where a score is read, and what they learn in the world."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safealign_utils import pairs
from safealign_utils.policy import Policy
from safealign_utils.real import read_pairs
from safealign_utils.real import scorer_training as R

SHORT = dict(seed=0, steps=3, batch_size=8, learning_rate=2e-3)
WORLD = dict(seed=0, steps=60, batch_size=32, learning_rate=2e-3)
sigma = lambda x: 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------- the losses


def test_the_losses_by_hand():
    r_w, r_l = (
        torch.tensor([1.3, -0.2], dtype=torch.float64),
        torch.tensor([0.4, 0.9], dtype=torch.float64),
    )
    expected = [-math.log(sigma(1.3 - 0.4)), -math.log(sigma(-0.2 - 0.9))]
    assert np.abs(R.reward_loss(r_w, r_l).numpy() - expected).max() < 1e-12

    rows = [  # cost_0, cost_1, costlier, sign_0, sign_1
        (0.7, -0.4, 1, 1, -1, -math.log(sigma(1.1)) - math.log(sigma(0.7)) - math.log(sigma(0.4))),
        (
            0.7,
            -0.4,
            -1,
            -1,
            1,
            -math.log(sigma(-1.1)) - math.log(sigma(-0.7)) - math.log(sigma(-0.4)),
        ),
        (
            0.7,
            -0.4,
            1,
            -1,
            -1,
            -math.log(sigma(1.1)) - math.log(sigma(-0.7)) - math.log(sigma(0.4)),
        ),
        (0.7, -0.4, 0, 1, 1, -math.log(sigma(0.7)) - math.log(sigma(-0.4))),
        (0.7, -0.4, 0, 0, 1, -math.log(sigma(-0.4))),
        (0.7, -0.4, -1, 0, 0, -math.log(sigma(-1.1))),
    ]
    *given, expected = torch.tensor(rows, dtype=torch.float64).T
    got = R.cost_loss(given[0], given[1], costlier=given[2], sign_0=given[3], sign_1=given[4])
    assert (got - expected).abs().max() < 1e-12
    turned = R.cost_loss(given[1], given[0], costlier=-given[2], sign_0=given[4], sign_1=given[3])
    assert (got - turned).abs().max() < 1e-12, "the order of the two responses says nothing"


def test_a_sharp_sign_is_a_hinge():
    """What has the right sign by a margin costs nothing, so that it does not stretch the unit."""
    one = torch.ones(3, dtype=torch.float64)
    costs = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    given = dict(costlier=0 * one, sign_0=one, sign_1=0 * one)
    lost = R.cost_loss(costs, 0 * one, **given, sharpness=20.0)
    assert lost.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)
    assert R.cost_loss(costs, 0 * one, **given)[2] == pytest.approx(-math.log(sigma(3.0)))
    order = R.cost_loss(
        costs, 0 * one, costlier=one, sign_0=0 * one, sign_1=0 * one, sharpness=20.0
    )
    assert order.tolist() == pytest.approx([-math.log(sigma(c)) for c in costs.tolist()])


def table_of(rows):
    names = ("is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")
    types = dict(zip(names, ("boolean", "boolean", "Int64", "Int64")))
    return (
        pd.DataFrame(rows, columns=names)
        .astype(types)
        .assign(prompt="x", response_0="a", response_1="b")
    )


def test_what_labels_say_of_the_cost():
    table = table_of(
        [
            (True, False, None, 0),  # a mixed pair
            (False, True, None, None),  # without a safer id the unsafe one is the costlier
            (True, True, 0, 1),  # two safe ones: the other is less safe, not unsafe
            (False, False, 1, 0),
            (False, False, 1, None),  # nothing ranks them
            (None, None, 0, 1),  # only the order
            (None, False, 0, None),
            (None, None, 0, None),
        ]
    )
    expected = [
        (-1, -1, 1),
        (1, 1, -1),
        (1, -1, -1),
        (-1, 1, 1),
        (0, 1, 1),
        (1, 0, 0),
        (0, 0, 1),
        (0, 0, 0),
    ]
    assert np.stack(R.cost_labels(table), axis=1).tolist() == [
        list(map(float, row)) for row in expected
    ]
    expected[0], expected[1] = (0, -1, 1), (0, 1, -1)  # the mixed ones say it by their signs
    assert np.stack(R.cost_labels(table, mixed=False), axis=1).tolist() == [
        list(map(float, row)) for row in expected
    ]


def test_both_start_at_zero(world, reference):
    table = world.pairs(16, seed=0)
    assert R.train_reward(reference, table, **SHORT).log.loss[0] == pytest.approx(
        math.log(2), abs=1e-12
    )
    assert R.train_cost(reference, table, **SHORT).log.loss[0] == pytest.approx(
        3 * math.log(2), abs=1e-12
    )
    unknown = table.assign(safer_response_id=pd.NA, is_response_0_safe=pd.NA).astype(
        {"is_response_0_safe": "boolean"}
    )
    unknown = unknown.astype({"safer_response_id": "Int64"})
    assert R.train_cost(reference, unknown, **SHORT).log.loss[0] == pytest.approx(
        math.log(2), abs=1e-12
    )


def test_the_loss_of_a_cost_is_named(world, reference):
    table, asked = world.pairs(64, seed=0), dict(SHORT, batch_size=64)
    losses = {name: R.train_cost(reference, table, **asked, loss=name) for name in R.COST_LOSSES}
    assert losses["hinge"].hash == R.train_cost(reference, table, **asked).hash
    assert len({cost.hash for cost in losses.values()}) == 3
    first = [cost.log.loss[0] / math.log(2) for cost in losses.values()]  # all scores are 0
    equal = R.has_unit(table).mean()
    assert first == pytest.approx([3, 2 + equal, 2 / 20 + equal]) and 0.3 < equal < 0.9
    with pytest.raises(ValueError, match="loss='kit': choose one of auto, safe_rlhf, equal_status"):
        R.train_cost(reference, table, **asked, loss="kit")


def test_the_default_loss_is_that_which_the_pairs_allow(world):
    """The hinge where at least FEWEST pairs have a unit, else Safe RLHF's; a name is kept."""
    table = world.pairs(200, seed=0)
    with_unit, mixed = table[R.has_unit(table)], table[~R.has_unit(table)]
    enough, few = with_unit[: R.FEWEST], with_unit[: R.FEWEST - 1]
    assert R.loss_named("auto", pd.concat([mixed, enough])) == "hinge"
    assert R.loss_named("auto", pd.concat([mixed, few])) == "safe_rlhf"
    assert all(R.loss_named(name, few) == name for name in R.COST_LOSSES)


def test_a_unit_that_no_pair_has_is_refused(world, reference):
    table = world.pairs(64, seed=0)
    mixed = table[~R.has_unit(table)]
    assert len(mixed) > 10 and (mixed.is_response_0_safe != mixed.is_response_1_safe).all()
    for loss in ("hinge", "equal_status"):
        with pytest.raises(ValueError, match=f"loss='{loss}': only 0 pairs of equal status"):
            R.train_cost(reference, mixed, **SHORT, loss=loss)


def test_adapters_on_a_base_in_bfloat16(world, reference, fresh_cache):
    """The way of a large model: the base stays as it is, adapter and head are trained, stored and found again."""
    base, table = reference.to("bfloat16").base, world.pairs(32, seed=0)
    before = base.hash
    cost = R.train_cost(base, table, **SHORT, lora=2)
    scores = cost(table.prompt, table.response_0)
    assert base.model.dtype == torch.bfloat16 and base.hash == before
    assert np.isfinite(scores).all() and scores.std() > 0
    again = R.train_cost(base, table, **SHORT, lora=2)
    assert again.hash == cost.hash and R.train_cost(base, table, **SHORT, lora=3).hash != cost.hash


# ---------------------------------------------------------------- where a score is read


def text_policy(tie=False):
    """A tiny Llama on bytes, with weights of its own in the output head unless tied."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(["<pad>", "</s>", *alphabet])}, []))
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>")
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = LlamaConfig(
        vocab_size=258,
        tie_word_embeddings=tie,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
        **shape,
    )
    torch.manual_seed(0)
    return Policy(LlamaForCausalLM(config).eval(), tokenizer).to("float64")


def text_table(n=24):
    prompts = [f"Question {'very ' * (i % 5)}{i % 6}?" for i in range(n)]
    safe, unsafe = (
        [f"Take care{'!' * (i % 7)}" for i in range(n)],
        [f"Break it now, number {i}." for i in range(n)],
    )
    safer = np.arange(n) % 2
    return pd.DataFrame(
        {
            "prompt": prompts,
            "response_0": np.where(safer == 0, safe, unsafe),
            "response_1": np.where(safer == 1, safe, unsafe),
            "is_response_0_safe": pd.array(safer == 0, "boolean"),
            "is_response_1_safe": pd.array(safer == 1, "boolean"),
            "better_response_id": pd.array(1 - safer, "Int64"),
            "safer_response_id": pd.array(safer, "Int64"),
        }
    )


def by_hand(policy, module, prompt_ids, response_ids):
    """One row alone, by plain transformers: the last hidden state of prompt, response and its end."""
    with torch.no_grad():
        hidden = policy.model.base_model(
            torch.tensor([[*prompt_ids, *response_ids]])
        ).last_hidden_state[0, -1]
        return float(hidden @ module.head.weight[0] + module.head.bias)


@pytest.fixture
def random_head(monkeypatch):
    """Heads with random weights, so that a score at the start says where it was read."""

    class Random(R.Score):
        def __init__(self, policy):
            super().__init__(policy)
            self.head.weight.data.normal_(generator=torch.Generator().manual_seed(1))
            self.head.bias.data.fill_(0.5)

    monkeypatch.setattr(R, "Score", Random)


@pytest.mark.parametrize("kind", ["reward", "cost"])
def test_training_and_scoring_read_the_end_of_each_response(random_head, monkeypatch, kind):
    policy, table, seen = text_policy(), text_table(), []
    name = f"{kind}_loss"
    whole = getattr(R, name)
    monkeypatch.setattr(
        R,
        name,
        lambda a, b, **labels: seen.append((a.detach(), b.detach())) or whole(a, b, **labels),
    )
    monkeypatch.setattr(R, "batch_order", lambda n, steps, size, seed: np.arange(n).reshape(1, -1))
    fits, fit = [], R._fit
    monkeypatch.setattr(R, "_fit", lambda *a, **k: fits.append(fit(*a, **k)) or fits[-1])
    train = R.train_reward if kind == "reward" else R.train_cost
    scorer = train(policy, table, seed=0, steps=1, batch_size=24, learning_rate=1e-13)

    ends = lambda texts: [[*policy.tokenizer(y)["input_ids"], 1] for y in texts]
    prompts = [policy.tokenizer(f"USER: {x} ASSISTANT:")["input_ids"] for x in table.prompt]
    module = fits[0].module
    hand = [
        [
            by_hand(fits[0].policy, module, x, y)
            for x, y in zip(prompts, ends(table[f"response_{k}"]))
        ]
        for k in (0, 1)
    ]
    assert np.ptp(hand) > 0.5
    got = np.stack([scorer(table.prompt, table[f"response_{k}"]) for k in (0, 1)])
    assert np.abs(got - hand).max() < 1e-9
    first, second = np.stack([x.numpy() for x in seen[0]])
    shift = 0.5 - float(module.head.bias.detach())  # the reward is centred after training
    better = table.better_response_id.to_numpy(int) if kind == "reward" else np.zeros(24, dtype=int)
    hand = np.array(hand) + shift
    assert np.abs(first - hand[better, np.arange(24)]).max() < 1e-9
    assert np.abs(second - hand[1 - better, np.arange(24)]).max() < 1e-9


def test_an_output_head_that_is_never_used_stays_as_it_is():
    for tie in (False, True):
        policy = text_policy(tie)
        module = R.Score(policy.copy())
        frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
        assert frozen == ([] if tie else ["model.lm_head.weight"])
    assert all(p.requires_grad for p in policy.model.parameters()), "the reference is not changed"


def test_long_texts_are_cut_as_in_training():
    policy, table = text_policy(), text_table()
    table["response_0"] = table.response_0 + "?" * 300
    scorer = R.train_cost(policy, table, max_length=64, **SHORT)
    rows = scorer.encode(list(table.prompt), list(table.response_0))
    assert all(len(x) + len(y) <= 64 and len(y) >= 16 for x, y in rows)
    assert np.isfinite(scorer(table.prompt, table.response_0)).all()


# ---------------------------------------------------------------- what they learn


@pytest.fixture(scope="module")
def learned(world):
    """Both models, trained in the world in float32, and held-out pairs."""
    from safealign_utils.references import reference_policy

    policy, _ = reference_policy(world, seed=0)
    table = world.pairs(1200, seed=0)
    return (
        table,
        world.pairs(200, seed=7, split="heldout"),
        R.train_reward(policy, table, **WORLD),
        R.train_cost(policy, table, **WORLD),
    )


def scores(scorer, table):
    return np.concatenate([scorer(table.prompt, table[f"response_{k}"]) for k in (0, 1)])


def test_the_pair_follows_the_oracle_on_held_out_nouns(learned):
    table, test, reward, cost = learned
    for scorer in (reward, cost):
        oracle = np.concatenate([test[f"{scorer.kind}_{k}"] for k in (0, 1)])
        assert spearmanr(scores(scorer, test), oracle).statistic > 0.7
        assert 0.65 < R.pair_accuracy([scorer], test)[0] < 1
    quality = R.harmless_accuracy([cost], test)
    assert (
        quality.share["accuracy"] > 0.9
        and quality.share["missed"] < 0.2
        and quality.share["false_alarm"] < 0.2
    )
    assert quality.n.tolist() == [
        400,
        int((test[["cost_0", "cost_1"]] > 0).sum().sum()),
        int((test[["cost_0", "cost_1"]] <= 0).sum().sum()),
        400,
    ]
    assert (quality.low <= quality.share).all() and (quality.share <= quality.high).all()


def test_the_reward_is_centred_on_its_training_responses(learned):
    table, _, reward, cost = learned
    assert abs(scores(reward, table).mean()) < 1e-5 and abs(scores(cost, table).mean()) > 0.1
    assert (reward.kind, cost.kind) == ("reward", "cost") and reward.hash != cost.hash


def test_the_same_again_is_the_same_and_is_not_trained_twice(
    reference, world, fresh_cache, monkeypatch
):
    table = world.pairs(24, seed=0)
    first = R.train_cost(reference, table, **SHORT)
    before = scores(first, table)
    runs, train = [], R.run_training
    monkeypatch.setattr(R, "run_training", lambda *a, **k: runs.append(train(*a, **k)) or runs[-1])
    again = R.train_cost(reference, table, **SHORT)
    assert runs[-1].cached and again.hash == first.hash
    monkeypatch.setenv("SAFEALIGN_CACHE", str(fresh_cache / "other"))
    anew = R.train_cost(reference, table, **SHORT)
    assert (
        not runs[-1].cached
        and anew.hash == first.hash
        and np.array_equal(scores(anew, table), before)
    )
    assert R.train_cost(reference, table, **{**SHORT, "seed": 1}).hash != first.hash
    flipped = table.assign(safer_response_id=1 - table.safer_response_id)
    assert R.train_cost(reference, flipped, **SHORT).hash != first.hash, (
        "the labels are part of the key"
    )
    assert not runs[-1].cached


def test_rewards_are_kept_with_their_centre(reference, world, fresh_cache):
    table = world.pairs(24, seed=0)
    first, again = (R.train_reward(reference, table, **SHORT) for _ in range(2))
    assert first.hash == again.hash and np.array_equal(scores(first, table), scores(again, table))
    assert abs(scores(again, table).mean()) < 1e-12


def test_data_without_labels_is_refused(reference, world):
    bare = world.pairs(8, seed=0).assign(
        better_response_id=pd.NA, is_response_0_safe=pd.NA, is_response_1_safe=pd.NA
    )
    with pytest.raises(ValueError, match="label='better'"):
        R.train_reward(reference, bare, **SHORT)
    with pytest.raises(ValueError, match="no response has a safety label"):
        R.train_cost(reference, bare, **SHORT)


# ---------------------------------------------------------------- how good they are


def test_accuracies_by_hand():
    table = table_of(
        [(True, False, 0, 0), (False, True, None, None), (True, True, 1, 1), (None, False, 1, None)]
    )
    table["prompt"] = list("wxyz")
    given = {"a": [-1.0, -2.0, 3.0, 5.0], "b": [2.0, 1.0, -1.0, -3.0]}
    as_kind = lambda kind: type(
        "Fixed",
        (),
        {
            "kind": kind,
            "__call__": lambda self, x, y: np.array(
                [given[b]["wxyz".index(a)] for a, b in zip(x, y)]
            ),
        },
    )()
    quality = R.harmless_accuracy([as_kind("cost")], table)
    # responses: w safe -1 right, unsafe 2 right; x unsafe -2 wrong, safe 1 wrong; y safe 3 wrong, safe -1 right; z unsafe -3 wrong
    assert quality.share.tolist() == pytest.approx(
        [3 / 7, 2 / 3, 0.5, 4 / 7]
    ) and quality.n.tolist() == [7, 3, 4, 7]
    assert R.pair_accuracy([as_kind("cost")], table)[0] == pytest.approx(
        2 / 3
    )  # w right, x wrong, y right
    assert R.pair_accuracy([as_kind("reward")], table)[0] == pytest.approx(0.0)
    both = R.harmless_accuracy([as_kind("cost"), lambda x, y: -as_kind("cost")(x, y)], table)
    assert both.share["accuracy"] == pytest.approx(0.5), "hits are averaged over seeds"


def test_real_rows(real_data):
    table = read_pairs.load_pairs(str(real_data / "xstest_pairs.jsonl")).head(24)
    cost = R.train_cost(text_policy(), table, max_length=96, **SHORT)
    quality = R.harmless_accuracy([cost], table)
    assert (
        quality.n["accuracy"]
        == quality.n["missed"] + quality.n["false_alarm"]
        == int(table[list(pairs.SAFE)].notna().sum().sum())
    )
