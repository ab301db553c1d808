"""Sampling responses from a policy: batched, with a key-value cache, the same digits for a seed.

Tokens are drawn by inverting the distribution with uniform numbers fixed beforehand, so two
policies that differ little give mostly equal samples (common random numbers). A constrained policy
stays in the grammar.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from . import templates
from .engine import cache, distributed
from .engine.batches import longest_first
from .engine.streams import generator
from .templates import encode_prompts


# ---------------------------------------------------------------- texts
def generate(policy, prompts, *, max_tokens, temperature=1.0, seed=0, batch_size=16, keys=None):
    """One answer to each of N prompt texts: a list of texts without the token that ended them.

    Temperature 0 takes the likeliest token. The random numbers of a prompt depend on `seed`, its
    text (or its entry of `keys`), and how often it came before in the list; so neither the batch
    size nor the other prompts matter, but for rounding, which changes with the padding: of 100
    answers of 40 tokens none changed in float32, but 46 in bfloat16 (batches of 1 against 25, a
    tiny model); compare policies at one batch size. Every batch is kept on disk by content, and
    several processes share them. Raises ValueError for bad settings.
    """
    for name, value in (("max_tokens", max_tokens), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: a whole number of at least 1")
    prompts = list(prompts)
    if not prompts:
        return []
    u = _numbers(prompts if keys is None else list(keys), max_tokens, seed)
    ids, categories = encode(policy, prompts)
    ends, said = end_ids(policy), {}
    asked = cache.key("answers", policy=policy, ends=sorted(ends), temperature=float(temperature))
    batches = longest_first(map(len, ids), batch_size)[distributed.rank() :: distributed.count()]
    bar = dict(desc="answers", unit="batch", leave=False, disable=not sys.stderr.isatty())
    for rows in tqdm(batches, **bar):
        batch = [ids[i] for i in rows]
        own = None if categories is None else categories[rows]
        key = cache.digest(asked, batch, u[rows], own)
        responses = _stored(key)
        if responses is None:
            options = dict(categories=own, temperature=temperature, ends=ends)
            responses = sample(policy, batch, u[rows], **options)
            lengths = np.array([len(y) for y in responses])
            cache.store("answers", key, {"ids": np.concatenate(responses), "lengths": lengths})
        said |= zip(rows.tolist(), (text.strip() for text in decode(policy, responses, ends)))
    whole = {i: text for share in distributed.gather(said) for i, text in share.items()}
    return [whole[i] for i in range(len(prompts))]


def _stored(key):
    """The responses of a batch that was drawn before, or None."""
    if (found := cache.load("answers", key)) is None:
        return None
    return np.split(found[0]["ids"], np.cumsum(found[0]["lengths"])[:-1])


def converse(policy, conversations, **options):
    """Answers to N conversations, turn by turn: a list of N tuples of texts, one a user's turn.

    `conversations` are sequences of the user's turns; the first may be a dialogue
    (`templates.dialogue`) with what was said before. `options` are those of `generate`. Each turn
    sees the policy's own answers to the ones before, without marks of a chat format in them, which
    no prompt may hold; its random numbers depend on the user's turns alone.
    """
    said, marks = [[] for _ in conversations], templates.marker_pattern(policy.tokenizer)
    for k in range(max(map(len, conversations), default=0)):
        rows = [i for i, turns in enumerate(conversations) if len(turns) > k]
        shown = [[marks.sub("", text) for text in said[i]] for i in rows]
        talks = [_messages(conversations[i][: k + 1], y) for i, y in zip(rows, shown)]
        prompts = [templates.dialogue(talk) for talk in talks]
        keys = ["\n\n".join(conversations[i][: k + 1]) for i in rows]
        for i, text in zip(rows, generate(policy, prompts, keys=keys, **options)):
            said[i].append(text)
    return [tuple(y) for y in said]


def answer(policy, table, **options):
    """A table of prompts (`prompts.load_prompts`) with a policy's answers to them.

    New columns: answers (a tuple of texts, one a turn) and response (the first of them). `options`
    are those of `generate`.
    """
    said = converse(policy, table.turns.tolist(), **options)
    return table.assign(answers=said, response=[y[0] for y in said])


def end_ids(policy):
    """The ids that end a response besides EOS: the template's end of turn, and those that the
    model's generation settings name, where these know the tokenizer's end as well (the default of a
    configuration may be any word's id)."""
    if policy.grammar is not None:
        return set()
    own = {templates.end_id(policy.tokenizer, policy.template)}
    settings = getattr(policy.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    named = set(named if isinstance(named, list) else [] if named is None else [named])
    return own | (named if named & (own | {policy.tokenizer.eos_token_id}) else set())


def _messages(asked, said):
    out = []
    for question, reply in zip(asked, [*said, None]):
        out += [{"role": "user", "content": question}] if out else templates.turns(question)
        if reply is not None:
            out.append({"role": "assistant", "content": reply})
    return out


def _numbers(keys, max_tokens, seed):
    """Uniform numbers [N, max_tokens]: a stream for every key and every time that it comes."""
    seen, out = {}, np.empty((len(keys), max_tokens))
    for i, key in enumerate(keys):
        seen[key] = seen.get(key, -1) + 1
        numbers = generator(seed, "answers", int(cache.digest(key), 16), seen[key])
        out[i] = numbers.random(max_tokens)
    return out


# ---------------------------------------------------------------- ids
@torch.no_grad()
def sample(policy, prompts, u, *, categories=None, temperature=1.0, ends=()):
    """One response per prompt: a list of N int arrays, ended by the end-of-sequence token or by
    `u`'s width.

    `prompts` list of N int arrays; `u` [N, T] uniform numbers in [0, 1); `categories` [N] the
    prompts' category in the world, needed where the policy is constrained; `ends` further ids that
    end a response (the end of a turn). Temperature 0 takes the likeliest token and leaves `u`
    unread but for its width. Raises ValueError for a negative temperature and for prompts that
    leave the model's positions no room.
    """
    _check_settings(policy, prompts, u, categories, temperature)
    policy.model.eval()
    # one context for all tokens: it casts the weights once
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.bf16):
        return _sample(policy, prompts, u, categories, temperature, ends)


def _sample(policy, prompts, u, categories, temperature, ends):
    ids, mask = _padded_left(prompts, policy.pad_id, u.shape[1])
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    longest, ends = ids.shape[1], [policy.tokenizer.eos_token_id, *ends]
    grammar = policy.grammar if policy.constrained else None
    state = grammar.states(np.asarray(categories), -1) if grammar else None
    past, out, is_open = DynamicCache(), [], np.ones(len(prompts), dtype=bool)
    for t in range(u.shape[1]):
        seen = slice(0, longest + t)
        new = slice(seen.stop - ids.shape[1], seen.stop)
        logits = _next_logits(policy, ids, mask[:, seen], positions[:, new], past)
        if grammar:
            allowed = _tensor(grammar.allowed[state], policy.device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        token = np.where(is_open, _drawn_tokens(logits, u[:, t : t + 1], temperature), -1)
        out.append(token)
        is_open &= ~np.isin(token, ends)
        if not is_open.any():
            break
        if grammar:
            token = np.where(is_open, token, -1)
            moved = grammar.next_state(np.where(is_open, state, 0), token)
            state = np.where(is_open, moved, state)
        ids = np.where(is_open, token, policy.pad_id)[:, None]
    return [row[row >= 0] for row in np.stack(out, axis=1)]


def _check_settings(policy, prompts, u, categories, temperature):
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature={temperature}: a number >= 0; 0 takes the likeliest token")
    if policy.constrained and categories is None:
        raise ValueError("categories: a constrained policy needs the category of every prompt")
    longest = max(map(len, prompts))
    room = getattr(policy.model.config, "max_position_embeddings", None)
    if room and longest + u.shape[1] > room:
        raise ValueError(
            f"prompts: one has {longest} tokens; with {u.shape[1]} to come it exceeds the model's "
            f"{room} positions"
        )


def _padded_left(prompts, pad_id, new):
    """(ids [N, T], mask [N, T + new]): all prompts end at the same place, where `new` tokens
    follow."""
    N, longest = len(prompts), max(map(len, prompts))
    ids = np.full((N, longest), pad_id)
    mask = np.zeros((N, longest + new), dtype=np.int64)
    for i, x in enumerate(prompts):
        ids[i, longest - len(x) :] = x
        mask[i, longest - len(x) :] = 1
    return ids, mask


def _next_logits(policy, ids, mask, positions, past):
    """Logits [N, V] of what follows `ids`, in float64; `past` remembers keys and values."""
    inputs = dict(input_ids=ids, attention_mask=mask, position_ids=positions)
    inputs = {name: _tensor(values, policy.device) for name, values in inputs.items()}
    reply = policy.model(**inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
    return reply.logits[:, -1].double()


def _drawn_tokens(logits, u, temperature):
    """Ids [N] at the places u [N, 1] of the distributions; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1).cpu().numpy()
    cdf = (logits / temperature).softmax(-1).cumsum(-1)
    places = _tensor(u, cdf.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, places, right=True)[:, 0].cpu().numpy()


def _tensor(array, device):
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@dataclass(frozen=True)
class Drawn:
    """N sampled responses: token ids of prompts and responses, their texts, and in the world, for a
    constrained policy, `allowed` bool [len, V] of every response."""

    prompts: list
    responses: list
    texts: list
    allowed: list | None


def encode(policy, texts):
    """(ids of the prompts as a list of int arrays, their categories in the world or None)."""
    if policy.grammar is None:
        return encode_prompts(texts, policy), None
    numbers = [policy.grammar.world.prompt_id(x) for x in texts]
    ids = [np.array(row) for row in policy.tokenizer(list(texts))["input_ids"]]
    return ids, policy.grammar.category[numbers]


def decode(policy, responses, ends=()):
    """The texts of sampled responses, without the token that ends them."""
    tokenizer = policy.tokenizer
    ends = [tokenizer.eos_token_id, *ends]
    said = [y[:-1] if len(y) and y[-1] in ends else y for y in responses]
    if policy.grammar is not None:
        return [" ".join(tokenizer.convert_ids_to_tokens(y.tolist())) for y in said]
    return tokenizer.batch_decode(said, skip_special_tokens=True)


def draw(policy, texts, u, **options):
    """One response to each of N prompt texts by the uniform numbers `u` [N, T]: a `Drawn`."""
    prompts, categories = encode(policy, texts)
    out = sample(policy, prompts, u, categories=categories, **options)
    words, grammar, allowed = decode(policy, out, options.get("ends", ())), policy.grammar, None
    if policy.constrained:
        if any(y[-1] != policy.tokenizer.eos_token_id for y in out):
            raise ValueError(
                f"u: {u.shape[1]} tokens are too few for the world's responses; use 48"
            )
        numbers = [grammar.world.prompt_id(x) for x in texts]
        states = [grammar.response(x, grammar.number(x, y))[1] for x, y in zip(numbers, out)]
        allowed = [grammar.allowed[s] for s in states]
    return Drawn(prompts, out, words, allowed)
