"""Templates: how a prompt and a response become text, and text becomes ids."""

import re

import numpy as np

TEMPLATES = ("auto", "dialogue", "safe_rlhf", "chat", "plain")
TURN = re.compile(r"(\ASystem|(?:\A|\n\n)(?:Human|Assistant)):")
ROLES = {"System": "system", "Human": "user", "Assistant": "assistant"}
# How chat formats mark turns and ends: ChatML and Llama 3, Llama 2 and Mistral, Gemma, DeepSeek.
MARKERS = (
    r"<\|\w+\|>|<｜[^｜<>]+｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos)>"
)
# Llama 3's templates write today's date: the same tokens every day need one date.
DATE = "26 Jul 2024"
PROBE = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer."}]


# ---------------------------------------------------------------- templates
def check_template(tokenizer, template="auto"):
    """The template that `template` stands for. Raises ValueError, with the fix, where the tokenizer
    cannot write it."""
    if template not in TEMPLATES:
        raise ValueError(
            f"template={template!r}: choose {', '.join(TEMPLATES[:-1])} or {TEMPLATES[-1]}"
        )
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "dialogue"
    if template != "chat":
        return template
    if not tokenizer.chat_template:
        raise ValueError(
            "template='chat': the tokenizer has no chat template; use template=dialogue, or a "
            "model with one"
        )
    bos, begin = tokenizer.bos_token_id, _ids(tokenizer, [_around_answer(tokenizer)[0]], True)[0]
    if bos is not None and begin[:2] == [bos, bos]:  # at every turn it is fine
        raise ValueError(
            "template='chat': the chat template writes the beginning-of-sequence token twice; "
            "correct chat_template in the tokenizer's folder, or use template=dialogue"
        )
    return template


def format_prompt(prompt):
    """The template `dialogue`; a prompt that ends with the assistant's turn stays as it is."""
    return prompt if prompt.rstrip().endswith("Assistant:") else f"USER: {prompt} ASSISTANT:"


def turns(prompt):
    """The messages of a prompt, dicts of role and content: one user's turn, or those of a
    `Human: ... Assistant: ...` dialogue (the form of hh-rlhf), the assistant's open turn at the end
    left out."""
    head, *parts = TURN.split(prompt.strip())
    out = []
    for name, text in zip(parts[::2], parts[1::2]):
        role = ROLES[name.strip()]
        if out and out[-1]["role"] == role:  # chat templates want turns that alternate
            out[-1]["content"] += "\n\n" + text.strip()
        else:
            out.append({"role": role, "content": text.strip()})
    if out and out[-1] == {"role": "assistant", "content": ""}:
        out.pop()
    ends = (out[0]["role"], out[-1]["role"]) if out and not head.strip() else ("assistant", "")
    is_dialogue = ends[0] != "assistant" and ends[1] == "user"
    return out if is_dialogue else [{"role": "user", "content": prompt}]


def dialogue(messages):
    """The prompt text of messages: the one question itself, or a dialogue that ends in
    `Assistant:`. See `turns`."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    names = {role: name for name, role in ROLES.items()}
    said = [f"{names[m['role']]}: {m['content']}".strip() for m in messages]
    return "\n\n".join([*said, "Assistant:"])


def outline(tokenizer, template="auto"):
    """A row as the template writes it, with {prompt} and {response} in their places: all that it
    adds is there to be read, a default system prompt too."""
    template, bos = check_template(tokenizer, template), tokenizer.bos_token or ""
    (text,) = write_prompts(["{prompt}"], tokenizer, template)
    start = "" if template == "chat" or bos and text.startswith(bos) else bos
    (said,) = chat_answers(tokenizer, ["{response}"]) if template == "chat" else ["{response}"]
    return start + text + said + tokenizer.convert_ids_to_tokens(end_id(tokenizer, template))


# ---------------------------------------------------------------- ids
def encode_prompts(prompts, policy):
    """Ids of the prompts in the policy's template, up to where the answer begins: a list of int
    arrays."""
    tokenizer, template = policy.tokenizer, check_template(policy.tokenizer, policy.template)
    texts = write_prompts(prompts, tokenizer, template)
    ids = _ids(tokenizer, texts, special=template in ("chat", "plain"))
    if template == "chat":
        return [np.array(row) for row in ids]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [np.array(row if row[:1] == start else start + row) for row in ids]


def write_prompts(prompts, tokenizer, template):
    """The texts of prompts in a template other than auto. Raises ValueError, naming the prompt,
    where that cannot be: a template refuses a role or further turns, or the prompt holds a special
    token that is not the template's own."""
    if template == "chat":
        return _chat(tokenizer, [turns(x) for x in prompts])
    if template != "plain":
        _check_markers(prompts, template, marker_pattern(tokenizer))
    write = {"dialogue": format_prompt, "safe_rlhf": _safe_rlhf, "plain": str}[template]
    return [write(x) for x in prompts]


def encode_responses(responses, tokenizer, template="dialogue", *, sampled=False):
    """Ids of the responses and of the token that ends each: a list of int arrays.

    Where a sentencepiece tokenizer puts a space before a text, `dialogue` keeps that space; the
    others continue the prompt as it stands (`ASSISTANT:` is followed by the answer itself). A chat
    template writes its answers: what it trims is trimmed, and the blanks that it puts around an
    answer are there. Raises ValueError where it writes one otherwise than the last turn of a chat;
    with `sampled`, such an answer is read as the policy gave it.
    """
    template, responses = check_template(tokenizer, template), [str(y) for y in responses]
    end = end_id(tokenizer, template)
    if template == "chat":
        responses = chat_answers(tokenizer, responses, sampled=sampled)
    ids = _ids(tokenizer, responses)
    if template != "dialogue":
        mark, bare, after = _ids(tokenizer, ["\n", "a", "\na"])
        if after != mark + bare:
            # A space was put before the text: read it behind a newline, then drop the newline.
            n, marked = len(mark), _ids(tokenizer, ["\n" + y for y in responses])
            ids = [m[n:] if m[:n] == mark else row for m, row in zip(marked, ids)]
    return [np.array([*row, end]) for row in ids]


def end_id(tokenizer, template):
    """The id that ends a response: EOS; in a chat the special token that the template puts behind
    an answer, if any."""
    if check_template(tokenizer, template) == "chat":
        end = _end_of_turn(tokenizer, _around_answer(tokenizer)[2])
        return tokenizer.eos_token_id if end is None else end
    return tokenizer.eos_token_id


def _end_of_turn(tokenizer, behind):
    """The id of the special token that a text begins with, blanks aside; None for none."""
    end = _ids(tokenizer, [behind.strip()], special=True)[0][:1]
    special = end and tokenizer.convert_ids_to_tokens(end[0]) in _special_tokens(tokenizer)
    return end[0] if special else None


def _ids(tokenizer, texts, special=False):
    """Ids without added tokens. Unless `special`, a special token's name is plain text."""
    options = dict(add_special_tokens=False, split_special_tokens=not special)
    return tokenizer(list(texts), **options)["input_ids"]


# ---------------------------------------------------------------- marks of chat formats
def marker_pattern(tokenizer=None):
    """What finds the mark of a chat format in a text: the common ones, and the names of the
    tokenizer's special tokens.

    A special token that is an ordinary word, as in some small tokenizers, is no mark.
    """
    names = [] if tokenizer is None else sorted(_special_tokens(tokenizer), key=len, reverse=True)
    names = [re.escape(name) for name in names if re.search(r"[<\[|]", name)]
    return re.compile("|".join([*names, MARKERS]))


def _special_tokens(tokenizer):
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)


def _check_markers(prompts, template, pattern):
    for text in prompts:
        if found := pattern.search(text):
            raise ValueError(
                f"template={template!r}: the prompt {text[:40]!r} holds the special token "
                f"{found[0]!r} of a chat format; give its messages as a list, or take the marks out"
            )


# ---------------------------------------------------------------- how each template writes
def _safe_rlhf(prompt):
    messages = turns(prompt)
    if len(messages) > 1:
        raise ValueError(
            f"template='safe_rlhf': takes one question, found {len(messages)} turns in "
            f"{prompt[:40]!r}; use dialogue"
        )
    return f"BEGINNING OF CONVERSATION: USER: {messages[0]['content']} ASSISTANT:"


def _chat(tokenizer, chats):
    """The texts of chats up to the assistant's next turn. Raises ValueError where the template
    cannot write one."""
    special = "|".join([re.escape(name) for name in _special_tokens(tokenizer) if name] + [MARKERS])
    said = (message["content"] for messages in chats for message in messages)
    _check_markers(said, "chat", re.compile(special))
    lead = _around_answer(tokenizer)[0].removeprefix(render(tokenizer, PROBE[:1]))
    return [render(tokenizer, messages) + lead for messages in chats]


def chat_answers(tokenizer, answers, *, sampled=False):
    """The texts of answers as a chat template writes them, up to the token that ends them. One that
    it rewrites is refused (ValueError), or with `sampled` kept as it stands."""
    before, lead, behind = _around_answer(tokenizer)
    ends = _end_of_turn(tokenizer, behind) is not None
    blank = behind[: len(behind) - len(behind.lstrip())] if ends else ""
    out = []
    for answer in answers:
        chat = [PROBE[0], {"role": "assistant", "content": answer}]
        whole = render(tokenizer, chat, ask=False)
        text = whole.removeprefix(before).removesuffix(behind)
        kept = text.startswith(lead) and text.strip() == answer.strip()
        rewritten = before + text + behind != whole or not kept
        if rewritten and sampled:
            text = lead + answer
        elif rewritten:
            raise ValueError(
                f"template='chat': the chat template rewrites the response {answer[:40]!r}, so it "
                "cannot be told from its turn; take its marks out, or use template=dialogue"
            )
        out.append(text + blank)
    return out


def _around_answer(tokenizer):
    """What a chat template writes (before an answer to `Question?`, as blank right before it, right
    behind it)."""
    before, whole = render(tokenizer, PROBE[:1]), render(tokenizer, PROBE, ask=False)
    lead, found, behind = whole.removeprefix(before).partition(PROBE[1]["content"])
    if not whole.startswith(before) or not found:
        raise ValueError(
            "template='chat': the chat template writes an answer otherwise than it asks for one, "
            "so prompt and response cannot be told apart; use template=dialogue"
        )
    return (before, lead, behind) if not lead.strip() else (before + lead, "", behind)


def render(tokenizer, messages, ask=True):
    """The text of messages by a tokenizer's chat template, with `ask` up to the next answer."""
    import jinja2

    template = tokenizer.get_chat_template().replace("strftime_now(", f"'{DATE}'.format(")
    options = dict(chat_template=template, date_string=DATE, add_generation_prompt=ask)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except jinja2.TemplateError as error:
        raise ValueError(
            "template='chat': the chat template refuses the prompt "
            f"{messages[-1]['content'][:40]!r} ({error}); use template=dialogue"
        ) from error
