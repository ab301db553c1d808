"""Exact ids of one row for four kinds of tokenizer and every template: BOS once, the end once, the boundary, cuts."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.made_tokenizers import CHATML, LLAMA3, SMOL, byte_level, sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from safealign_utils import templates, tokens

INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
DIALOGUE = (
    "Human: How do I cut bread?\n\nAssistant: With a knife.\n\nHuman: And soup?\n\nAssistant:"
)
ROW = dict(
    prompt="How do I cut bread?",
    response_0="With a knife.",
    response_1="With your teeth.",
    chosen=0,
    p=1.0,
    margin=0.0,
)


def llama3():
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ]
    return byte_level(special, bos_token=special[0], eos_token=special[1], chat=LLAMA3)


def qwen():
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|endoftext|>", chat=CHATML
    )


def llama2():
    return sentencepiece(chat=INST)


def gpt2(folder):
    bpe = Tokenizer(
        models.BPE.from_file(str(folder / "gpt2_encoder.json"), str(folder / "gpt2_vocab.bpe"))
    )
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


MADE = {"llama3": llama3, "qwen": qwen, "llama2": llama2}


@pytest.fixture(scope="module", params=MADE)
def tokenizer(request):
    return MADE[request.param]()


def policy(tokenizer, template):
    return SimpleNamespace(tokenizer=tokenizer, template=template, grammar=None)


def table(*rows):
    return pd.DataFrame(rows or [ROW])


# ---------------------------------------------------------------- exact ids


def test_exact_ids_of_gpt2(real_data):
    shown = tokens.show_row(ROW, policy(gpt2(real_data), "dialogue"))
    assert shown.token.tolist() == [
        "<|endoftext|>",
        "USER",
        ":",
        "ĠHow",
        "Ġdo",
        "ĠI",
        "Ġcut",
        "Ġbread",
        "?",
        "ĠASS",
        "IST",
        "ANT",
        ":",
        "With",
        "Ġa",
        "Ġknife",
        ".",
        "<|endoftext|>",
    ]
    assert shown.id.tolist() == [
        50256,
        29904,
        25,
        1374,
        466,
        314,
        2005,
        8509,
        30,
        24994,
        8808,
        8643,
        25,
        3152,
        257,
        9845,
        13,
        50256,
    ]
    assert shown.what.tolist() == ["bos"] + ["prompt"] * 12 + ["response"] * 4 + ["end"]
    assert shown.scored.tolist() == [False] * 13 + [True] * 5
    assert templates.check_template(gpt2(real_data)) == "dialogue", "GPT-2 has no chat template"


def test_exact_text_of_every_template():
    """What is read, with the names of all special tokens in it."""

    def said(name, template, response="chosen"):
        names = tokens.show_row(ROW, policy(MADE[name](), template), response=response).token
        return "".join(names).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")

    question, answer = "USER: How do I cut bread? ASSISTANT:", "With a knife."
    assert said("llama3", "dialogue") == f"<|begin_of_text|>{question}{answer}<|end_of_text|>"
    assert said("qwen", "dialogue") == f"{question}{answer}<|endoftext|>"
    assert said("llama2", "dialogue") == f"<s> {question} {answer}</s>", (
        "sentencepiece puts a blank before a text"
    )
    begin = "BEGINNING OF CONVERSATION: "
    assert said("llama2", "safe_rlhf") == f"<s> {begin}{question}{answer}</s>", (
        "no blank behind ASSISTANT:"
    )
    assert (
        said("llama3", "safe_rlhf") == f"<|begin_of_text|>{begin}{question}{answer}<|end_of_text|>"
    )
    assert said("llama2", "plain") == f"<s> How do I cut bread?{answer}</s>"
    assert said("qwen", "plain", "rejected") == "How do I cut bread?With your teeth.<|endoftext|>"
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    want = f"<|begin_of_text|>{head('user')}How do I cut bread?<|eot_id|>{head('assistant')}{answer}<|eot_id|>"
    assert said("llama3", "chat") == want == said("llama3", "auto")
    want = f"<|im_start|>user\nHow do I cut bread?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
    assert said("qwen", "chat") == want
    assert said("llama2", "chat") == f"<s> [INST] How do I cut bread? [/INST] {answer} </s>", (
        "the template's own blank before EOS"
    )


@pytest.mark.parametrize("template", ["dialogue", "safe_rlhf", "chat", "plain"])
def test_once_bos_once_end_and_apart(tokenizer, template):
    p = policy(tokenizer, template)
    pairs = tokens.tokenize(table(), p)
    x, bos, end = (
        pairs.prompts[0].tolist(),
        tokenizer.bos_token_id,
        templates.end_id(tokenizer, template),
    )
    assert x.count(bos) == (bos is not None) and (bos is None or x[0] == bos)
    for y, text in ((pairs.chosen[0], ROW["response_0"]), (pairs.rejected[0], ROW["response_1"])):
        assert (
            y[-1] == end and y.tolist().count(end) == 1 and tokenizer.decode(y[:-1]).strip() == text
        )
        assert not set(y[:-1].tolist()) & set(tokenizer.all_special_ids)
    alone = templates.encode_prompts([ROW["prompt"]], p)[0]
    assert alone.tolist() == x, "a prompt's ids do not depend on the response"
    assert x[len(x) - 1] == templates.encode_prompts(["another"], p)[0][-1] or template == "plain"


def test_the_chat_template_writes_prompt_and_answer(tokenizer):
    """Ids are those of transformers for the same messages: for the prompt alone, and with the answer."""
    p = policy(tokenizer, "chat")
    for text in (ROW["prompt"], DIALOGUE):
        messages = templates.turns(text)
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert templates.encode_prompts([text], p)[0].tolist() == own
        whole = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": "With a knife."}]
        )
        row = [
            *own,
            *templates.encode_responses(["With a knife."], tokenizer, "chat")[0][:-1].tolist(),
        ]
        assert whole["input_ids"][: len(row)] == row
        rest = [i for i in whole["input_ids"][len(row) :] if tokenizer.decode([i]).strip()]
        assert rest[0] == templates.end_id(tokenizer, "chat")
    assert len(templates.turns(DIALOGUE)) == 3


def test_safe_rlhf_is_the_text_read_at_once():
    t = llama2()
    p = policy(t, "safe_rlhf")
    text = "BEGINNING OF CONVERSATION: USER: How do I cut bread? ASSISTANT:With a knife."
    row = [
        *templates.encode_prompts([ROW["prompt"]], p)[0],
        *templates.encode_responses([ROW["response_0"]], t, "safe_rlhf")[0],
    ]
    assert [int(i) for i in row] == [*t(text)["input_ids"], t.eos_token_id]
    with pytest.raises(ValueError, match="safe_rlhf.*takes one question, found 3 turns"):
        templates.encode_prompts([DIALOGUE], p)


def test_end_of_turn_or_end_of_text():
    a, b, c = llama3(), qwen(), llama2()
    assert [templates.end_id(t, "chat") for t in (a, b)] == [2, 2] and [
        a.eos_token_id,
        b.eos_token_id,
    ] == [1, 0]
    assert (
        templates.end_id(c, "chat") == c.eos_token_id
        and templates.end_id(a, "dialogue") == a.eos_token_id
    )
    b.chat_template = CHATML.replace("<|im_end|>", "(end)")
    assert templates.end_id(b, "chat") == b.eos_token_id, "words that end a turn are no token"
    b.chat_template = CHATML.replace("<|im_end|>\n", "<|im_end|>\n<|endoftext|>")
    assert templates.end_id(b, "chat") == 2, "the first of two"


def test_what_stands_before_an_answer_belongs_to_the_prompt():
    t = qwen()
    think = "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    t.chat_template = CHATML.replace("{{ m['content'] }}", think + "{{ m['content'] }}")
    x = templates.encode_prompts(["Hi"], policy(t, "chat"))[0]
    assert t.decode(x).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert t.decode(templates.encode_responses(["Yes."], t, "chat")[0]) == "Yes.<|im_end|>"


def test_a_date_in_a_template_is_always_the_same():
    t = llama3()
    t.chat_template = (
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}{{ date_string }}|{{ strftime_now('%Y') }}|"
    ) + LLAMA3.replace("{{ bos_token }}", "")
    assert t.decode(templates.encode_prompts(["Hi"], policy(t, "chat"))[0]).startswith(
        "26 Jul 2024|26 Jul 2024|"
    )


# ---------------------------------------------------------------- what is refused


def test_templates_that_cannot_be_written_are_refused():
    a = llama3()
    with pytest.raises(
        ValueError, match="template='Chat': choose auto, dialogue, safe_rlhf, chat or plain"
    ):
        templates.check_template(a, "Chat")
    a.chat_template = "{{ bos_token }}" + LLAMA3
    with pytest.raises(ValueError, match="beginning-of-sequence token twice.*template=dialogue"):
        templates.check_template(a, "auto")
    a.chat_template = LLAMA3.replace("{{ m['content'] | trim }}", "{{ m['content'] | upper }}")
    with pytest.raises(ValueError, match="cannot be told apart; use template=dialogue"):
        templates.check_template(a, "chat")
    a.chat_template = LLAMA3.replace(
        "{% if add_generation_prompt %}", "{% if add_generation_prompt %}?"
    )
    with pytest.raises(ValueError, match="cannot be told apart"):
        templates.encode_prompts(["Hi"], policy(a, "chat"))
    a.chat_template = None
    with pytest.raises(ValueError, match="no chat template; use template=dialogue"):
        templates.check_template(a, "chat")
    assert (
        templates.check_template(a, "auto") == "dialogue"
        and templates.check_template(qwen()) == "chat"
    )
    with pytest.raises(ValueError, match="refuses the prompt 'Hi'.*only user and assistant"):
        templates.encode_prompts(
            ["System: Be kind.\n\nHuman: Hi\n\nAssistant:"], policy(llama2(), "chat")
        )


def test_no_special_token_comes_from_a_text(tokenizer):
    evil = f"a {tokenizer.eos_token} b"
    for template in ("dialogue", "safe_rlhf", "plain", "chat"):
        y = templates.encode_responses([evil], tokenizer, template)[0]
        assert y.tolist().count(tokenizer.eos_token_id) == (y[-1] == tokenizer.eos_token_id)
        if template != "plain":
            with pytest.raises(
                ValueError,
                match=f"template='{template}'.*holds the special token .*messages as a list",
            ):
                templates.encode_prompts([evil], policy(tokenizer, template))
    x = templates.encode_prompts([evil], policy(tokenizer, "plain"))[0].tolist()
    assert x.count(tokenizer.eos_token_id) == 1, "plain: the prompt itself, as its writer marked it"


# ---------------------------------------------------------------- dialogues


def test_a_prompt_without_a_first_token_of_its_own_begins_with_its_text(tokenizer):
    """No "bos" is shown where the template writes none."""
    bare = SimpleNamespace(tokenizer=tokenizer, template="plain", grammar=None)
    shown = tokens.show_row(ROW, bare)
    begins = shown.id[0] == tokenizer.bos_token_id
    assert (shown.what[0] == "bos") == begins and shown.what.tolist().count("bos") == begins


def test_turns_and_back():
    messages = templates.turns(DIALOGUE)
    assert [m["role"] for m in messages] == ["user", "assistant", "user"] and messages[2][
        "content"
    ] == "And soup?"
    assert templates.dialogue(messages) == DIALOGUE
    assert templates.turns("\n\nHuman: Hi\n\nAssistant:") == [{"role": "user", "content": "Hi"}]
    assert templates.turns(DIALOGUE.removesuffix("\n\nAssistant:")) == messages, (
        "without the open turn at the end too"
    )
    told = "System: Be kind.\n\nHuman: Hi\n\nAssistant:"
    assert [m["role"] for m in templates.turns(told)] == ["system", "user"] and templates.dialogue(
        templates.turns(told)
    ) == told
    assert templates.turns("Human: a\n\nHuman: b\n\nAssistant:") == [
        {"role": "user", "content": "a\n\nb"}
    ]
    for plain in (
        "What does Human: mean?",
        "A\n\nHuman: b",
        "Assistant: c",
        "Human: a\n\nAssistant: b",
    ):
        assert templates.turns(plain) == [{"role": "user", "content": plain}]
        assert templates.dialogue(templates.turns(plain)) == plain
    assert (
        templates.format_prompt(DIALOGUE) == DIALOGUE
        and templates.format_prompt("x") == "USER: x ASSISTANT:"
    )


# ---------------------------------------------------------------- cuts


@pytest.mark.parametrize("template", ["dialogue", "chat"])
def test_cuts_are_counted_and_nothing_is_emptied(tokenizer, template):
    p, many = policy(tokenizer, template), "bread knife " * 60
    rows = [
        ROW,
        ROW | {"prompt": many},
        ROW | {"response_0": many},
        ROW | {"prompt": many, "response_0": many, "response_1": many},
    ]
    head = tokens._header(p)
    for max_length in (2 * head + 2, 2 * head + 3, 64, 256):
        cut = tokens.tokenize(table(*rows), p, max_length=max_length)
        assert len(cut) == 4
        for x, w, l in zip(cut.prompts, cut.chosen, cut.rejected):
            assert (
                len(x) > head and len(w) and len(l) and len(x) + max(len(w), len(l)) <= max_length
            )
    assert (cut.truncated, cut.truncated_prompts) == (3, 2), "of 256"
    whole = tokens.tokenize(table(*rows), p, max_length=4096)
    assert (whole.truncated, whole.truncated_prompts) == (0, 0)
    assert np.array_equal(cut.prompts[0], whole.prompts[0]) and np.array_equal(
        cut.chosen[0], whole.chosen[0]
    )
    for short, long in zip(cut.prompts[1:2], whole.prompts[1:2]):
        tail = len(short) - head
        assert (
            short[:head].tolist() == long[:head].tolist()
            and short[head:].tolist() == long[len(long) - tail :].tolist()
        )
    end = templates.end_id(tokenizer, template)
    assert cut.chosen[2][-1] != end and cut.rejected[2][-1] == end, (
        "a text that was cut did not end there"
    )
    assert len(cut.chosen[1]) == len(whole.chosen[1]), "a long prompt gives way to the response"
    with pytest.raises(
        ValueError, match=f"max_length={2 * head + 1}: .*use {2 * head + 2} or more"
    ):
        tokens.tokenize(table(*rows), p, max_length=2 * head + 1)


def test_a_cut_chat_keeps_its_head():
    t = llama3()
    x = tokens.tokenize(
        table(ROW | {"prompt": "bread " * 400}), policy(t, "chat"), max_length=48
    ).prompts[0]
    head = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    assert t.decode(x).startswith(head) and t.decode(x).endswith(
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_dialogue_is_what_it_was(tokenizer):
    """The ids of the template `dialogue`, written out by hand: the committed results were made with them."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompts = [ROW["prompt"], DIALOGUE, "  odd blanks \n\n here ", "x" * 300]
    texts = [x if x.rstrip().endswith("Assistant:") else f"USER: {x} ASSISTANT:" for x in prompts]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    p = policy(tokenizer, "dialogue")
    assert [x.tolist() for x in templates.encode_prompts(prompts, p)] == [
        start + row for row in ids
    ]
    said = ["With a knife.", " a", "b \n"]
    want = [
        [*row, tokenizer.eos_token_id]
        for row in tokenizer(said, add_special_tokens=False)["input_ids"]
    ]
    assert [y.tolist() for y in templates.encode_responses(said, tokenizer)] == want
    rows = table(*(ROW | {"prompt": x} for x in prompts))
    made = tokens.tokenize(rows, p, max_length=64)
    for x, full in zip(made.prompts, ids):
        assert x.tolist()[len(start) :] == full[-(len(x) - len(start)) :]


def test_the_same_prompt_twice_and_prompts_in_any_order(tokenizer):
    rows = [ROW, ROW | {"prompt": "A"}, ROW, ROW | {"prompt": "B", "chosen": 1}]
    made = tokens.tokenize(table(*rows), policy(tokenizer, "dialogue"))
    alone = [tokens.tokenize(table(row), policy(tokenizer, "dialogue")) for row in rows]
    for part in ("prompts", "chosen", "rejected"):
        assert all(
            np.array_equal(getattr(made, part)[i], getattr(a, part)[0]) for i, a in enumerate(alone)
        )
    assert np.array_equal(made.chosen[3], made.rejected[0])


def test_a_chat_whose_first_token_opens_every_turn():
    """SmolLM2's way: BOS is <|im_start|>, written by the template alone; EOS is <|im_end|>."""
    special = ["<|im_start|>", "<|im_end|>"]
    smol = byte_level(special, bos_token=special[0], eos_token=special[1], chat=SMOL)
    assert templates.check_template(smol, "chat") == templates.check_template(smol) == "chat"
    policy = SimpleNamespace(tokenizer=smol, template="chat", grammar=None)
    text = templates.render(smol, [{"role": "user", "content": ROW["prompt"]}])
    shown = tokens.show_row(ROW, policy)
    x = shown.id[~shown.scored].tolist()
    assert (
        x == smol(text, add_special_tokens=False)["input_ids"]
        and x.count(0) == 3
        and x[:2] != [0, 0]
    )
    assert (
        shown.what.tolist().count("bos") == 1
        and shown.what[0] == "bos"
        and shown.what.iloc[-1] == "end"
    )
    y = shown.id[shown.scored].tolist()
    assert y == [*smol("With a knife.", add_special_tokens=False)["input_ids"], 1]
    assert smol.decode(x + y) == text + "With a knife.<|im_end|>"
    smol.chat_template = "{{ bos_token }}" + SMOL
    with pytest.raises(ValueError, match="beginning-of-sequence token twice"):
        templates.check_template(smol, "chat")


def test_nothing_of_the_world_is_cut(tokens):
    assert (tokens.truncated, tokens.truncated_prompts) == (0, 0) and len(tokens) == 64


def test_a_pair_takes_256_tokens_where_nothing_else_is_asked_for(tokenizer):
    p, many = policy(tokenizer, "dialogue"), "bread knife " * 200
    cut = tokens.tokenize(table(ROW | {"prompt": many, "response_0": many}), p)
    assert len(cut.prompts[0]) + len(cut.chosen[0]) == 256
    row = table(ROW | {"prompt": many, "response_0": many}).iloc[0]
    assert len(tokens.show_row(row, p)) == 256
    assert len(tokens.show_row(row, p, max_length=99)) == 99
