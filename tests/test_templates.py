"""Chat templates of the usual families: ids of prompt, response and end are those of the whole chat."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.made_tokenizers import CHATML, FAMILIES, LLAMA3
from helpers.tiny_models import policy_of

from safealign_utils import templates, tokens
from safealign_utils.logprobs import LogProbs
from safealign_utils.packing import pack
from safealign_utils.real import read_pairs
from safealign_utils.study.study import show_template
from safealign_utils.templates import encode_prompts, encode_responses, end_id, outline

QUESTION = "How do I cut bread?"
DIALOGUE = (
    "Human: How do I cut bread?\n\nAssistant: With a knife.\n\nHuman: And soup?\n\nAssistant:"
)
TOLD = "System: Be kind.\n\n" + DIALOGUE
ANSWERS = [
    "With a knife.",
    "  blanks before and behind \n",
    "\tTwo lines.\n\n1. one\n2. two",
    "``` \ncode\n```",
    "Übung: ½ — ✓ 你好",
    "7",
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    made = FAMILIES[request.param]
    return dataclasses.replace(made, make=None), made.make()


def policy(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer, template="chat", grammar=None)


def whole_ids(tokenizer, prompt, answer):
    """The ids of the whole chat by the template itself, at the date that the kit writes."""
    chat = [*templates.turns(prompt), {"role": "assistant", "content": answer}]
    if "strftime_now" not in tokenizer.chat_template:
        return tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"]
    return tokenizer(templates.render(tokenizer, chat, ask=False), add_special_tokens=False)[
        "input_ids"
    ]


def assert_whole(tokenizer, prompt, answers):
    """Prompt, response and end are what the whole chat begins with; only blanks and EOS follow."""
    (x,) = encode_prompts([prompt], policy(tokenizer))
    for answer, y in zip(answers, encode_responses(answers, tokenizer, "chat")):
        own, ids = [*x.tolist(), *y.tolist()], whole_ids(tokenizer, prompt, answer)
        names = tokenizer.convert_ids_to_tokens
        assert names(own) == names(ids[: len(own)]), answer
        assert y.tolist().count(end_id(tokenizer, "chat")) == 1
        rest = tokenizer.decode(ids[len(own) :]).replace(tokenizer.eos_token, "")
        assert not rest.strip()


# ---------------------------------------------------------------- ids of the whole chat
def test_prompt_response_and_end_are_the_whole_chat(family):
    known, tokenizer = family
    for prompt in (QUESTION, DIALOGUE, *([TOLD] if known.takes_system else [])):
        assert_whole(tokenizer, prompt, ANSWERS)
    if not known.takes_system:
        with pytest.raises(ValueError, match="refuses the prompt.*use template=dialogue"):
            encode_prompts([TOLD], policy(tokenizer))


def test_real_pairs_are_the_whole_chat(family, real_data):
    """A sample of real pairs, those among them whose answers have blanks at an end."""
    tokenizer = family[1]
    table = read_pairs.load_pairs(str(real_data / "pku_saferlhf_pairs.jsonl"))
    blank = [i for i, y in enumerate(table.response_1) if y != y.strip()]
    assert blank
    for row in table.iloc[[*range(0, len(table), 50), *blank]].itertuples():
        assert_whole(tokenizer, row.prompt, [row.response_0, row.response_1])


def test_one_token_ends_an_answer_and_bos_is_where_the_template_writes_it(family):
    known, tokenizer = family
    assert tokenizer.convert_ids_to_tokens(end_id(tokenizer, "chat")) == known.end
    for prompt, questions in ((QUESTION, 1), (DIALOGUE, 2)):
        x = encode_prompts([prompt], policy(tokenizer))[0].tolist()
        turns = 1 + len(templates.turns(prompt)) + bool(known.system)  # and the answer's own
        wanted = {None: 0, "once": 1, "every": questions, "opens every turn": turns}[known.bos]
        bos = tokenizer.bos_token_id
        assert x.count(bos) == wanted if bos is not None else known.bos is None
        assert known.bos is None or x[0] == bos


def test_the_row_is_shown_with_what_the_template_adds(family):
    """The default system prompt is there to be read, in the outline and in the ids of a row."""
    known, tokenizer = family
    text = outline(tokenizer, "chat")
    assert text == outline(tokenizer) and text.endswith(known.end)
    assert known.system in text and text.count("{prompt}") == text.count("{response}") == 1
    row = dict(prompt=QUESTION, response_0="With a knife.", response_1="7", chosen=0, p=1.0)
    shown = tokens.show_row(row | {"margin": 0.0}, policy(tokenizer))
    read = tokenizer.decode(shown.id, clean_up_tokenization_spaces=False)
    squeeze = lambda said: "".join(said.split())
    wanted = text.replace("{prompt}", QUESTION).replace("{response}", "With a knife.")
    assert squeeze(read) == squeeze(wanted)
    assert shown.what.iloc[-1] == "end" and shown.what.tolist().count("end") == 1


def test_a_study_prints_what_a_chat_template_adds(capsys):
    made = FAMILIES["smollm2"].make()
    show_template(policy(made))
    said = "<|im_start|>system\nYou are a helpful assistant named SmolLM.<|im_end|>\n"
    said += "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"
    assert capsys.readouterr().out == f"template   chat, {said!r}\n"
    made.chat_template = None
    show_template(SimpleNamespace(tokenizer=made, template="auto"))
    assert capsys.readouterr().out == "", "the other templates are the kit's own"


def test_outlines_of_the_other_templates():
    made = FAMILIES["mistral"].make()
    assert outline(made, "dialogue") == "<s>USER: {prompt} ASSISTANT:{response}</s>"
    assert outline(made, "plain") == "<s>{prompt}{response}</s>"
    assert outline(made, "chat") == "<s>[INST] {prompt} [/INST] {response}</s>"
    assert outline(FAMILIES["llama 2"].make()) == "<s>[INST] {prompt} [/INST] {response} </s>"


# ---------------------------------------------------------------- pad = EOS = end
@pytest.mark.parametrize("name", ["chatml", "smollm2", "llama 2", "llama 3"])
def test_padding_by_the_token_that_ends_is_no_mistake(name):
    """Lengths decide, not ids: the end is scored once in every row, whatever pads it."""
    made = FAMILIES[name].make()
    pad = end = end_id(made, "chat")
    assert made.pad_token_id == end
    x = encode_prompts([QUESTION, DIALOGUE], policy(made))
    y = encode_responses(["7", "With a knife."], made, "chat")
    z = encode_responses(["With a knife, and a board.", "2"], made, "chat")
    net, found = wide(len(made)), []
    for token in (pad, 7):
        batch = pack(x, [y, z], pad_id=token)
        assert (batch.target == end).sum() == 4
        with torch.no_grad():
            found.append(LogProbs(net).eval()(batch)[0])
    assert torch.equal(*found) and len(found[0]) == sum(map(len, [*y, *z]))
    alone = pack(x[:1], [y[:1]], pad_id=pad)
    with torch.no_grad():
        assert torch.allclose(LogProbs(net).eval()(alone)[0], found[0][: len(y[0])], atol=1e-5)


def wide(words):
    """A random network for as many words."""
    net = policy_of("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net.model.resize_token_embeddings(words)
    return net


# ---------------------------------------------------------------- what a template may do, and may not
def test_bos_twice_is_refused_in_every_family(family):
    known, tokenizer = family
    if tokenizer.bos_token is None or known.bos is None:
        return
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ bos_token }}" + kept
        with pytest.raises(ValueError, match="beginning-of-sequence token twice; correct chat_te"):
            encode_prompts([QUESTION], policy(tokenizer))
    finally:
        tokenizer.chat_template = kept


def test_no_generation_prompt_is_read_off_the_whole_chat():
    """A template that asks for nothing: the header of the answer is taken from a whole chat."""
    made = FAMILIES["chatml"].make()
    asks = encode_prompts([QUESTION, DIALOGUE], policy(made))
    made.chat_template = CHATML[: CHATML.index("{% if add_generation_prompt")]
    silent = encode_prompts([QUESTION, DIALOGUE], policy(made))
    assert all(map(np.array_equal, asks, silent))
    assert_whole(made, DIALOGUE, ANSWERS)


def test_answers_are_trimmed_as_the_template_trims_them():
    said = ["\n With a knife. \n"]
    kept = FAMILIES["chatml"].make()
    assert kept.decode(encode_responses(said, kept, "chat")[0]) == said[0] + "<|im_end|>"
    kept.chat_template = CHATML.replace("m['content']", "m['content'].lstrip('\\n')")
    assert kept.decode(encode_responses(said, kept, "chat")[0]) == " With a knife. \n<|im_end|>"
    made = FAMILIES["llama 3"].make()
    assert made.decode(encode_responses(said, made, "chat")[0]) == "With a knife.<|eot_id|>"
    made = FAMILIES["llama 2"].make()
    names = made.convert_ids_to_tokens(encode_responses(said, made, "chat")[0])
    assert "".join(names) == "▁With▁a▁knife.▁</s>"


def test_an_empty_answer_is_its_end(family):
    tokenizer = family[1]
    (y,) = encode_responses([""], tokenizer, "chat")
    assert y[-1] == end_id(tokenizer, "chat") and not tokenizer.decode(y[:-1]).strip()


REFUSED = {
    "an answer is changed": (
        LLAMA3.replace("| trim", "| upper"),
        "cannot be told apart; use template=dialogue",
    ),
    "an answer is left out": (
        LLAMA3.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"),
        "cannot be told apart; use template=dialogue",
    ),
    "another header is asked for": (
        LLAMA3.replace("prompt %}<|start", "prompt %}?<|start"),
        "cannot be told apart; use template=dialogue",
    ),
    "an error of its own": (
        LLAMA3.replace("{{ bos_token }}", "{{ raise_exception('tools only') }}"),
        "refuses the prompt .*tools only.*use template=dialogue",
    ),
    "a name that is not there": (
        LLAMA3.replace("bos_token", "other_token + ''"),
        "refuses the prompt .*other_token.*use template=dialogue",
    ),
    "not a template": (
        LLAMA3.replace("{% endfor %}", ""),
        "refuses the prompt .*use template=dialogue",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_written_is_refused_with_the_fix(why):
    made = FAMILIES["llama 3"].make()
    made.chat_template, message = REFUSED[why]
    with pytest.raises(ValueError, match=f"template='chat': .*{message}"):
        templates.check_template(made, "auto")


def test_an_answer_that_the_template_rewrites_is_refused():
    """As Qwen 3's: a thought in an answer goes elsewhere, so which ids are the response is open."""
    made = FAMILIES["chatml"].make()
    thought = "{% set parts = m['content'].split('</think>') %}{% if m['role'] == 'assistant' %}"
    thought += "<think>\n{{ parts[0] if parts[1:] else '' }}\n</think>\n\n{% endif %}"
    made.chat_template = CHATML.replace("{{ m['content'] }}", thought + "{{ parts[-1] }}")
    assert_whole(made, QUESTION, ANSWERS)
    with pytest.raises(ValueError, match="rewrites the response 'hm</think>7'.*template=dialogue"):
        encode_responses(["With a knife.", "hm</think>7"], made, "chat")
    sampled = encode_responses(["With a knife.", "hm</think>7"], made, "chat", sampled=True)
    assert made.decode(sampled[1][:-1]).endswith("hm</think>7"), "read as the policy gave it"
    assert sampled[0].tolist() == encode_responses(["With a knife."], made, "chat")[0].tolist()
