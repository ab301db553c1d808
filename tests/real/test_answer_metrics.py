"""Sampled evaluation: drawing answers (order, batches, resuming, ends, turns) and what is computed from them."""

import dataclasses
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from safealign_utils import evaluate, intervals, sampling
from safealign_utils.engine import distributed
from safealign_utils.real import answer_metrics
from safealign_utils.real.answer_metrics import (
    Estimate,
    bootstrap,
    by_category,
    compare,
    evaluate_answers,
    write_answers,
)
from safealign_utils.real.models import load_policy
from safealign_utils.sampling import answer, converse, end_ids, generate

TEXTS = [
    "Tell me a joke about the sea.",
    "Hi",
    "How do I kill the lights in this old house, please?",
    "Why is it so?",
    "Go",
]
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def byte_pairs(chat):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = ["<pad>", "</s>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def tiny(folder, kind, chat=False):
    """A random model saved by plain transformers and loaded by the kit, in float64."""
    tokenizer = byte_pairs(chat)
    shape = dict(
        vocab_size=len(tokenizer),
        initializer_range=0.3,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    if kind == "llama":
        size = dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
        config, build = t.LlamaConfig(**shape, **size), t.LlamaForCausalLM
    else:
        config, build = t.GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4), t.GPT2LMHeadModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_policy(str(folder)).to("float64")


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    plain = {kind: tiny(folder / kind, kind) for kind in ("llama", "gpt2")}
    chat = tiny(folder / "chat", "llama", chat=True)
    return plain | {"chat": dataclasses.replace(chat, template="chat")}


@pytest.fixture(autouse=True)
def empty(fresh_cache):
    """Nothing is remembered from one test to the next."""


KINDS = ("llama", "gpt2", "chat")
SHORT = dict(max_tokens=10, seed=3)


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_order_change_nothing(policies, kind, tmp_path, monkeypatch):
    policy = policies[kind]
    whole = generate(policy, TEXTS, batch_size=8, **SHORT)
    assert len(set(whole)) == len(TEXTS) and all(isinstance(y, str) for y in whole)
    for size in (1, 2, 3):
        monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / str(size)))
        assert generate(policy, TEXTS, batch_size=size, **SHORT) == whole
    turned = [3, 0, 4, 2, 1]
    assert generate(policy, [TEXTS[i] for i in turned], batch_size=2, **SHORT) == [
        whole[i] for i in turned
    ]
    assert generate(policy, TEXTS[2:3], **SHORT) == whole[2:3], "the other prompts do not matter"
    assert (
        generate(policy, TEXTS, max_tokens=10, seed=4) != whole
        and generate(policy, [], **SHORT) == []
    )


def test_the_same_prompt_twice_gets_numbers_of_its_own(policies):
    once, twice, thrice = (generate(policies["llama"], ["Hi"] * n, **SHORT) for n in (1, 2, 3))
    assert len(set(thrice)) == 3 and thrice[:2] == twice and twice[:1] == once


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_that_of_transformers(policies, kind):
    policy = policies[kind]
    tokenizer, ends = policy.tokenizer, sorted({1} | end_ids(policy))
    got = generate(policy, TEXTS, max_tokens=12, temperature=0, batch_size=3)
    for text, ours in zip(TEXTS, got):
        asked = (
            f"<|user|>{text}<|end|><|assistant|>" if kind == "chat" else f"USER: {text} ASSISTANT:"
        )
        ids = tokenizer(asked, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = policy.model.generate(
            ids,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ends,
            attention_mask=torch.ones_like(ids),
        )
        assert ours == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_no_end_is_left_in_a_text(policies, monkeypatch):
    """EOS in a plain template, the end of turn in a chat; what stands before it stays."""
    for kind, end in (("llama", 1), ("chat", 2)):
        policy = policies[kind]
        word = policy.tokenizer("Tell me", add_special_tokens=False)["input_ids"]
        seen = []

        def ended(policy, prompts, u, *, ends, word=word, end=end, seen=seen, **_):
            seen.append({policy.tokenizer.eos_token_id, *ends})
            return [np.array([*word, end])] * len(prompts)

        monkeypatch.setattr(answer_metrics, "sample", ended)
        assert generate(policy, TEXTS[:2], **SHORT) == ["Tell me"] * 2 and seen[0] == {1, end}


def test_ends_of_a_response(policies):
    plain, chat = policies["llama"], policies["chat"]
    assert end_ids(plain) == {1} and end_ids(chat) == {1, 2}
    settings = plain.copy()
    settings.model.generation_config = t.GenerationConfig(eos_token_id=[1, 7])
    assert end_ids(settings) == {1, 7}
    settings.model.generation_config = t.GenerationConfig(eos_token_id=2)
    assert end_ids(settings) == {1}, (
        "a setting that does not know the tokenizer's end is not believed"
    )


def test_an_end_of_turn_that_is_no_special_token_is_cut_too(policies):
    """Drawn until an ordinary word comes that the settings name as an end: it is the last id and not in the text."""
    policy = policies["llama"].copy()
    word = policy.tokenizer("Hi", add_special_tokens=False)["input_ids"][0]
    policy.model.generation_config = t.GenerationConfig(eos_token_id=[1, word])
    long, short = (
        generate(p, ["Go"] * 40, max_tokens=60, seed=0) for p in (policies["llama"], policy)
    )
    name = policy.tokenizer.decode([word])
    cut = [(a, b) for a, b in zip(long, short) if a != b]
    assert (
        cut
        and all(a.startswith(b) and name not in b for a, b in cut)
        and all(name in a for a, _ in cut)
    )


def test_a_run_that_was_cut_off_goes_on(policies, monkeypatch):
    policy, real, calls = policies["llama"], answer_metrics.sample, []

    def fails_later(*args, **options):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(answer_metrics, "sample", fails_later)
    with pytest.raises(KeyboardInterrupt):
        generate(policy, TEXTS, batch_size=2, **SHORT)
    whole = generate(policy, TEXTS, batch_size=2, **SHORT)
    assert calls == [2, 2, 2, 1], "the first batch was not drawn again"
    assert generate(policy, TEXTS, batch_size=2, **SHORT) == whole and len(calls) == 4
    for changed in (dict(seed=4), dict(temperature=0.5), dict(max_tokens=9)):
        generate(policy, TEXTS, batch_size=2, **SHORT | changed)
    assert len(calls) == 13, "whatever decides the answers is part of the key"
    other = policies["gpt2"]
    (
        generate(other, TEXTS[:1], **SHORT),
        generate(dataclasses.replace(other, template="plain"), TEXTS[:1], **SHORT),
    )
    assert len(calls) == 15


def test_several_processes_share_the_batches(policies, monkeypatch):
    policy = policies["llama"]
    whole, shares = generate(policy, TEXTS, batch_size=2, **SHORT), []
    monkeypatch.setattr(distributed, "count", lambda: 2)
    for number in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        monkeypatch.setattr(
            distributed,
            "gather",
            lambda value: [shares.append(value) or value, dict.fromkeys(range(5))],
        )
        generate(policy, TEXTS, batch_size=2, **SHORT)
    assert [len(s) for s in shares] == [3, 2] and not set(shares[0]) & set(shares[1])
    assert [(shares[0] | shares[1])[i] for i in range(5)] == whole


def test_nothing_is_printed(policies, capfd, tmp_path):
    table = pd.DataFrame(
        {"id": [1, 2], "prompt": TEXTS[:2], "turns": [(x,) for x in TEXTS[:2]], "category": "c"}
    )
    said = answer(policies["llama"], table, **SHORT)
    evaluate_answers(said, reward=length)
    write_answers(tmp_path, said)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options", [dict(max_tokens=0), dict(max_tokens=2.5), dict(batch_size=0), dict(temperature=-1)]
)
def test_bad_settings(policies, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(policies["llama"], TEXTS, **SHORT | options)


def test_a_prompt_that_does_not_fit_fails_first(policies, monkeypatch):
    calls, real = [], answer_metrics.sample
    monkeypatch.setattr(
        answer_metrics, "sample", lambda *a, **k: calls.append(len(a[1])) or real(*a, **k)
    )
    with pytest.raises(ValueError, match="exceeds the model's 1024 positions"):
        generate(policies["gpt2"], [*TEXTS, "word " * 1000], batch_size=1, **SHORT)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "kind, between",
    [("llama", "Human: {}\n\nAssistant: {}\n\nHuman: {}\n\nAssistant:"), ("chat", None)],
)
def test_conversations(policies, kind, between, monkeypatch):
    policy, real, asked = policies[kind], sampling.generate, []
    monkeypatch.setattr(sampling, "generate", lambda p, x, **k: asked.append(x) or real(p, x, **k))
    talks = [(TEXTS[0], TEXTS[1]), (TEXTS[2],), (TEXTS[3], TEXTS[4])]
    said = converse(policy, talks, **SHORT)
    assert [len(y) for y in said] == [2, 1, 2] and all(isinstance(y, tuple) for y in said)
    assert [y[0] for y in said] == real(policy, [x[0] for x in talks], **SHORT)
    assert len(asked) == 2 and asked[0] == [x[0] for x in talks]
    if between:
        assert asked[1] == [between.format(talks[i][0], said[i][0], talks[i][1]) for i in (0, 2)]
    else:
        ids = answer_metrics.encode(policy, asked[1])[0][1]
        wanted = f"<|user|>{talks[2][0]}<|end|><|assistant|>{said[2][0]}<|end|><|user|>{talks[2][1]}<|end|><|assistant|>"
        assert policy.tokenizer.decode(ids) == wanted


def test_the_second_turn_has_the_same_numbers_for_every_policy(policies, monkeypatch):
    seen, real = [], sampling._numbers
    monkeypatch.setattr(sampling, "_numbers", lambda *a: seen.append(real(*a)) or seen[-1])
    for kind in ("llama", "gpt2"):
        converse(policies[kind], [(TEXTS[0], TEXTS[1])], **SHORT)
    assert np.array_equal(seen[1], seen[3]) and not np.array_equal(seen[0], seen[1])


def test_answers_belong_to_their_prompts(policies, tmp_path):
    table = pd.DataFrame(
        {
            "id": [7, 8, 9],
            "prompt": TEXTS[:3],
            "turns": [(x,) for x in TEXTS[:3]],
            "category": list("abc"),
        }
    )
    table = table.assign(turns=[(TEXTS[0], "And?"), (TEXTS[1],), (TEXTS[2],)])
    said = answer(policies["gpt2"], table, **SHORT)
    assert (
        said.response.tolist()
        == generate(policies["gpt2"], TEXTS[:3], **SHORT)
        == [y[0] for y in said.answers]
    )
    path = write_answers(tmp_path / "new", said, name="gpt2")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert (
        path.name == "gpt2.jsonl"
        and [r["id"] for r in rows] == [7, 8, 9]
        and [len(r["answers"]) for r in rows] == [2, 1, 1]
    )
    assert [r["answers"][0] for r in rows] == said.response.tolist() and [
        r["category"] for r in rows
    ] == list("abc")


# ---------------------------------------------------------------- intervals


def test_bootstrap_by_hand():
    """Four prompts are too few to draw from: Student's t with 3 degrees of freedom, sd sqrt(6)."""
    value, low, high, n = bootstrap([0.0, 0.0, 3.0, 5.0])
    assert (value, n) == (2.0, 4)
    assert (low, high) == pytest.approx(
        (2 - 3.182446 * 6**0.5 / 2, 2 + 3.182446 * 6**0.5 / 2), abs=1e-5
    )
    many = np.random.default_rng(0).normal(size=50)
    assert bootstrap(many) == bootstrap(many) != bootstrap(many, seed=1)


@pytest.mark.parametrize("draw", ["normal", "skewed", "share"])
def test_bootstrap_covers(draw):
    """95 % intervals hold the mean in about 95 of 100 repetitions (fewer for 60 skewed values)."""
    g = np.random.default_rng(0)
    make = {
        "normal": lambda: g.normal(1, 2, 60),
        "skewed": lambda: g.exponential(1, 60),
        "share": lambda: (g.random(60) < 0.3) * 1.0,
    }
    truth = {"normal": 1, "skewed": 1, "share": 0.3}[draw]
    inside = [
        low <= truth <= high
        for _, low, high, _ in (bootstrap(make[draw](), draws=800, seed=s) for s in range(500))
    ]
    assert 0.90 < np.mean(inside) < 0.98


def test_bootstrap_where_all_agree():
    """Resampling eight zeros gives zero; Clopper-Pearson's interval for 0 of 8 ends where (1 - p)^8 = 0.025."""
    value, low, high, n = bootstrap(np.zeros(8))
    assert (value, low, n) == (0, 0, 8) and high == pytest.approx(1 - 0.025 ** (1 / 8), abs=1e-9)
    assert bootstrap(np.ones(8)).low == pytest.approx(0.025 ** (1 / 8), abs=1e-9)
    assert bootstrap(np.zeros(8), bounds=intervals.DIFFERENCE)[:3] == (0, 0, 0), (
        "a difference of 0 everywhere is 0"
    )
    assert np.isnan(bootstrap([0.5]).low) and bootstrap([0.5]).n == 1
    for bad in ([], [1.0, np.nan]):
        with pytest.raises(ValueError, match="values:"):
            bootstrap(bad)


def test_bootstrap_is_fast():
    values = np.random.default_rng(0).normal(size=1000)
    before = time.process_time()
    bootstrap(values)
    assert time.process_time() - before < 1, (
        "10,000 resamples of 1,000 prompts; 0.1 s on an idle core"
    )


# ---------------------------------------------------------------- what is computed

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
    table, metrics = evaluate_answers(mine, reward=length, cost=minus, against=reference)
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
            evaluate_answers(answers([NO, YES, YES, NO]), reward=length, against=wrong)


@pytest.mark.parametrize("scores", [[1.0], [1.0, 2.0, np.nan, 0.0], [[1.0, 2.0, 3.0, 4.0]]])
def test_bad_scorers_are_refused(scores):
    with pytest.raises(ValueError, match="cost: the scorer gave"):
        evaluate_answers(answers([NO, YES, YES, NO]), cost=lambda prompts, responses: scores)


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
