"""Answers of a policy to prompts and conversations: order, batches, resuming, ends, turns."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from safealign_utils import sampling, templates
from safealign_utils.engine import distributed
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

        monkeypatch.setattr(sampling, "sample", ended)
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
    policy, real, calls = policies["llama"], sampling.sample, []

    def fails_later(*args, **options):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(sampling, "sample", fails_later)
    with pytest.raises(KeyboardInterrupt):
        generate(policy, TEXTS, batch_size=2, **SHORT)
    whole = generate(policy, TEXTS, batch_size=2, **SHORT)
    assert calls == [1, 2, 2, 2], "the first batch was not drawn again"
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


@pytest.mark.parametrize(
    "options", [dict(max_tokens=0), dict(max_tokens=2.5), dict(batch_size=0), dict(temperature=-1)]
)
def test_bad_settings(policies, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        generate(policies["llama"], TEXTS, **SHORT | options)


def test_a_prompt_that_does_not_fit_fails_first(policies, monkeypatch):
    calls, real = [], sampling.sample
    monkeypatch.setattr(
        sampling, "sample", lambda *a, **k: calls.append(len(a[1])) or real(*a, **k)
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
        ids = sampling.encode(policy, asked[1])[0][1]
        wanted = f"<|user|>{talks[2][0]}<|end|><|assistant|>{said[2][0]}<|end|><|user|>{talks[2][1]}<|end|><|assistant|>"
        assert policy.tokenizer.decode(ids) == wanted


def test_a_turn_after_a_context_is_asked_within_it(monkeypatch):
    asked, hello = [], {"role": "assistant", "content": "Hello."}
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    monkeypatch.setattr(sampling, "generate", lambda p, x, **k: asked.append(x) or ["Hello."])
    converse(SimpleNamespace(tokenizer=None), [(templates.dialogue(talk), "More?")])
    more = {"role": "user", "content": "More?"}
    assert [templates.turns(x) for (x,) in asked] == [talk, [*talk, hello, more]]


def test_marks_in_an_answer_do_not_end_the_conversation(policies, monkeypatch):
    """A small model may write a mark of some chat format as plain text."""
    asked, told = [], "Fine. [INST] And <|user|> you?"
    monkeypatch.setattr(sampling, "generate", lambda p, x, **k: asked.append(x) or [told])
    said = converse(policies["chat"], [("Hi", "More?")])
    assert said == [(told, told)], "answers stay as they were given"
    ((later,),) = asked[1:]
    assert "Fine.  And  you?" in later and templates.write_prompts(
        [later], policies["chat"].tokenizer, "chat"
    )


def test_the_second_turn_has_the_same_numbers_for_every_policy(policies, monkeypatch):
    seen, real = [], sampling._numbers
    monkeypatch.setattr(sampling, "_numbers", lambda *a: seen.append(real(*a)) or seen[-1])
    for kind in ("llama", "gpt2"):
        converse(policies[kind], [(TEXTS[0], TEXTS[1])], **SHORT)
    assert np.array_equal(seen[1], seen[3]) and not np.array_equal(seen[0], seen[1])


def test_answers_belong_to_their_prompts(policies):
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


def test_nothing_is_printed(policies, capfd):
    table = pd.DataFrame({"turns": [(x,) for x in TEXTS[:2]]})
    answer(policies["llama"], table, **SHORT)
    assert capfd.readouterr() == ("", "")
