"""Tokens: how prompts and responses become ids, and the tokenised pairs that training reads.

A row is: what the template writes before the answer (a beginning-of-sequence token once, if the
tokenizer has one), the response, and one token that ends it. Prompt and response are tokenised
apart, so no token spans both.

What a prompt becomes, and what ends the answer:

    dialogue   `USER: {prompt} ASSISTANT:`; a dialogue that already ends in `Assistant:` stays as it
               is; EOS
    safe_rlhf  `BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:`, of the beaver models;
               EOS
    chat       the tokenizer's chat template up to the assistant's turn; its end of turn, or EOS
    plain      the prompt itself, with the special tokens that it names; EOS
    auto       chat where the tokenizer has a chat template, else dialogue
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from .packing import pack, prefix_nodes
from .templates import check_template, encode_prompts, encode_responses, end_id


@dataclass(frozen=True)
class TokenPairs:
    """N tokenised pairs: lists of int arrays, responses with the token that ends them; p, margin
    float64 [N].

    `states_w`, `states_l` hold the grammar state before every token (the world only); `truncated`
    counts the responses cut at max_length, `truncated_prompts` the pairs whose prompt lost tokens.
    """

    prompts: list
    chosen: list
    rejected: list
    p: np.ndarray
    margin: np.ndarray
    states_w: list | None = None
    states_l: list | None = None
    truncated: int = 0
    truncated_prompts: int = 0

    def __len__(self):
        return len(self.prompts)

    @cached_property
    def lengths_w(self):
        return np.array([len(y) for y in self.chosen])

    @cached_property
    def lengths_l(self):
        return np.array([len(y) for y in self.rejected])

    @cached_property
    def nodes(self):
        """Numbers of the tokens of every pair, `packing.prefix_nodes`."""
        return prefix_nodes(self.prompts, [self.chosen, self.rejected])

    def cache_content(self):
        """Every token, its grammar state and the levers of every pair, as they are now."""
        joined = [
            [np.concatenate(part), list(map(len, part))]
            for part in (self.prompts, self.chosen, self.rejected)
        ]
        states = [
            np.concatenate(part) for part in (self.states_w, self.states_l) if part is not None
        ]
        return [*joined, states, self.p, self.margin]

    def batch(self, rows, policy):
        """The pairs of `rows` as one `packing.Packed`: prompt, chosen, rejected in a row each."""
        allowed = None
        if self.states_w is not None:
            table = policy.grammar.allowed
            states = (self.states_w, self.states_l)
            allowed = [[table[part[i]] for i in rows] for part in states]
        prompts = [self.prompts[i] for i in rows]
        responses = [[part[i] for i in rows] for part in (self.chosen, self.rejected)]
        nodes = [self.nodes[i] for i in rows]
        return pack(prompts, responses, pad_id=policy.pad_id, allowed=allowed, nodes=nodes)


def chosen_rejected(table, of_0, of_1):
    """What belongs to responses 0 and 1, sorted into chosen and rejected: two arrays [N]."""
    first = (table.chosen == 0).to_numpy()
    return np.where(first, of_0, of_1), np.where(first, of_1, of_0)


def tokenize(table, policy, *, max_length=256, sampled=False):
    """Tokenise labelled pairs for a policy. In the world the grammar gives ids and states.

    Elsewhere the policy's template does (see above), and a pair takes at most `max_length` tokens,
    prompt and longer response together. A long prompt loses its beginning, but keeps BOS and the
    header of a chat; it keeps half of the length at least. A long response loses its end and with
    it the token that ends it: the text did not stop there. Neither is dropped or emptied. With
    `sampled`, a response that a chat template would rewrite is read as the policy gave it. Raises
    ValueError where max_length holds no header and token.
    """
    levers = dict(p=table.p.to_numpy(float), margin=table.margin.to_numpy(float))
    if policy.grammar is not None:
        return _world_tokens(table, policy, levers)
    head, (inverse, texts) = _header(policy), pd.factorize(table.prompt)
    if max_length // 2 <= head:
        raise ValueError(
            f"max_length={max_length}: the head of template={policy.template!r} takes {head} of "
            f"these tokens; use {2 * head + 2} or more"
        )
    known, rows = encode_prompts(texts, policy), []
    chosen, rejected = (
        encode_responses(y, policy.tokenizer, policy.template, sampled=sampled)
        for y in chosen_rejected(table, table.response_0, table.response_1)
    )
    cut = cut_prompts = 0
    for i, y_w, y_l in zip(inverse, chosen, rejected):
        room = max(max_length - max(len(y_w), len(y_l)), max_length // 2)
        prompt = _shorten(known[i], room, head)
        left = max_length - len(prompt)
        rows.append((prompt, y_w[:left], y_l[:left]))
        cut_prompts += len(known[i]) > room
        cut += (len(y_w) > left) + (len(y_l) > left)
    prompts, chosen, rejected = map(list, zip(*rows))
    cuts = dict(truncated=int(cut), truncated_prompts=int(cut_prompts))
    return TokenPairs(prompts, chosen, rejected, **levers, **cuts)


def _world_tokens(table, policy, levers):
    prompts = {x: np.array(policy.tokenizer(x)["input_ids"]) for x in table.prompt.unique()}
    (chosen, states_w), (rejected, states_l) = (
        zip(*[policy.grammar.response(x, y) for x, y in zip(table.prompt_id, numbers)])
        for numbers in chosen_rejected(table, table.y_0, table.y_1)
    )
    states = dict(states_w=states_w, states_l=states_l)
    return TokenPairs([prompts[x] for x in table.prompt], chosen, rejected, **levers, **states)


def _shorten(ids, keep, head):
    """At most `keep` ids: the first `head` and the last ones."""
    return ids if len(ids) <= keep else np.concatenate([ids[:head], ids[len(ids) - keep + head :]])


def _header(policy):
    """How many ids stand before the text of any prompt and survive a cut: BOS, and the header of a
    chat."""
    if check_template(policy.tokenizer, policy.template) != "chat":
        return int(policy.tokenizer.bos_token_id is not None)
    a, b = (ids.tolist() for ids in encode_prompts(["0", "z"], policy))
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), 0)


def show_row(row, policy, *, max_length=256, response="chosen"):
    """The exact ids of one labelled pair as training reads them, for eyes and tests: a DataFrame.

    `row` is one row of a labelled table. Columns: `id`; `token`; `what` (bos, prompt, response or
    end) and `scored` (does the loss read its log-prob). `response` is chosen or rejected.
    """
    tokens = tokenize(pd.DataFrame([row]), policy, max_length=max_length)
    x, y = tokens.prompts[0].tolist(), getattr(tokens, response)[0].tolist()
    what = ["prompt"] * len(x) + ["response"] * len(y)
    if x and x[0] == policy.tokenizer.bos_token_id:
        what[0] = "bos"
    if y[-1] == end_id(policy.tokenizer, policy.template):
        what[-1] = "end"
    names = policy.tokenizer.convert_ids_to_tokens(x + y)
    return pd.DataFrame(
        {"id": x + y, "token": names, "what": what, "scored": [False] * len(x) + [True] * len(y)}
    )
