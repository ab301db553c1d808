"""Token log-probabilities: the hot path of training and evaluation.

Several responses share one prompt, so a row holds `prompt | response | response ...` once, with a
mask that lets a response see the prompt and itself only: a pair is a small tree, and so is a whole
grammar. The language-model head runs at the places that are read. Log-probs are in nats, one per
response token, the end-of-sequence token included; the prompt's last token predicts the first.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .engine import cache, distributed, fast_llama
from .packing import Packed, pack, pad, prefix_nodes, split

RARE = -60.0  # log of the allowed mass below which it is summed apart, in nats
GROUP = 32  # responses a row of the packed trie: the fastest of tests/benchmarks/trie.py
# Responses of real text in one entry: what was computed before a run was killed is there after.
STORED = 2048


def attention_bias(model, batch):
    """What is added to the attention scores of a `Packed` batch, [B, 1, T, T]: 0, or the lowest
    number behind the mask.

    Layers that see only their last `sliding_window` tokens (Mistral, some of Qwen2) get a mask of
    their own where a row is longer; a model that has both kinds gets a dict of two, as transformers
    takes it.
    """
    dtype, config = next(model.parameters()).dtype, model.config
    mask = batch.mask
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    bias.masked_fill_(~mask, torch.finfo(dtype).min)
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if not window or batch.ids.shape[1] <= window or kinds == {"full_attention"}:
        return bias
    distance = batch.positions[:, None, :, None] - batch.positions[:, None, None, :]
    near = bias.masked_fill(distance >= window, torch.finfo(dtype).min)
    return near if len(kinds) == 1 else {"full_attention": bias, "sliding_attention": near}


def plain_hidden_states(model, batch):
    """`hidden_states` of any causal LM, by its own forward."""
    bias = attention_bias(model, batch)
    out = model.base_model(
        input_ids=batch.ids, attention_mask=bias, position_ids=batch.positions, use_cache=False
    )
    return out.last_hidden_state.flatten(0, 1)[batch.source]


def hidden_states(model, batch):
    """Last hidden states [K, D] at the places of a `Packed` batch from which its tokens are
    predicted."""
    fast = fast_llama.fits(model, batch)
    return (fast_llama.hidden_states if fast else plain_hidden_states)(model, batch)


def plain_layer_states(model, batch, layers):
    """`layer_states` of any causal LM, by its own forward."""
    bias = attention_bias(model, batch)
    given = dict(attention_mask=bias, position_ids=batch.positions, use_cache=False)
    out = model.base_model(input_ids=batch.ids, output_hidden_states=True, **given)
    return [out.hidden_states[layer].flatten(0, 1)[batch.source] for layer in layers]


def layer_states(model, batch, layers):
    """The same after each of `layers`, numbered from 0, the embeddings, to the last: a list."""
    fast = fast_llama.fits(model, batch)
    return (fast_llama.layer_states if fast else plain_layer_states)(model, batch, layers)


def plain_log_probs(model, batch):
    """The targets' log-probs [K] under the plain softmax, and log of its mass on the allowed tokens
    [K] or None."""
    logits = model.get_output_embeddings()(hidden_states(model, batch))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    every = logits.logsumexp(1)
    logp = logits.gather(1, batch.target[:, None])[:, 0] - every
    if batch.allowed is None:
        return logp, None
    return logp, logits.masked_fill(~batch.allowed, -torch.inf).logsumexp(1) - every


class LogProbs(torch.nn.Module):
    """A policy's network that answers a `Packed` batch with log-probs [K], in float32 or better.

    Where the policy is `constrained` the softmax runs over the allowed tokens only (the grammar
    softmax); where it is `bf16` the network computes in bfloat16. The second result is log of the
    mass that the plain softmax gives to the allowed tokens, [K] or None.
    """

    def __init__(self, policy):
        super().__init__()
        self.model, self.constrained, self.bf16 = policy.model, policy.constrained, policy.bf16
        self._no_split_modules = (
            policy.model._no_split_modules
        )  # what FSDP may not take apart: the decoder layers

    def forward(self, batch: Packed):
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.bf16):
            return self._logprobs(batch)

    def _logprobs(self, batch):
        if self.constrained and batch.allowed is None:
            raise ValueError("the grammar softmax needs the allowed tokens of every place")
        head = self.model.get_output_embeddings()
        if not (fast_llama.fits(self.model, batch) and fast_llama.is_plain(head)):
            logp, log_allowed = plain_log_probs(self.model, batch)
        else:
            logp, log_allowed = fast_llama.log_probs(self.model, batch)
            if log_allowed is not None and log_allowed.min() < RARE:  # near what exp can hold
                logp, log_allowed = plain_log_probs(self.model, batch)
        return logp - log_allowed if self.constrained else logp, log_allowed


@dataclass(frozen=True)
class ReferenceTable:
    """Log-probs of every response token of N pairs under a frozen policy, one array a response."""

    chosen: list
    rejected: list

    def rows(self, rows, like):
        """Padded tables [B, T_w] and [B, T_l] of some pairs, in the type and on the device of
        `like`."""
        return tuple(
            pad([values[i] for i in rows]).to(like) for values in (self.chosen, self.rejected)
        )


def log_ratios(module, tokens, rows, policy, reference):
    """Token log-ratios to the reference [B, T_w], [B, T_l] of some pairs, and log of the allowed
    mass [K] or None.

    `module` is a `LogProbs` of `policy`; `reference` a `ReferenceTable`, or a frozen `LogProbs` to
    ask anew.
    """
    batch, lengths = (
        tokens.batch(rows, policy).to(policy.device),
        (tokens.lengths_w[rows], tokens.lengths_l[rows]),
    )
    logp, log_allowed = module(batch)
    w, l = split(logp, *lengths)
    if isinstance(reference, ReferenceTable):
        ref_w, ref_l = reference.rows(rows, w)
    else:
        with torch.no_grad():
            ref_w, ref_l = split(reference(batch)[0], *lengths)
    return w - ref_w, l - ref_l, log_allowed


# ---------------------------------------------------------------- all responses as a trie
@lru_cache(maxsize=4)
def _forest(grammar, group):
    return grammar.forest(group)


def token_logps(policy, prompt_id, *, group=GROUP):
    """Log-prob of every node of the response trie of one prompt, float64 [M], read as one packed
    trie."""
    grammar, forest = policy.grammar, _forest(policy.grammar, group)
    prompt = np.array(policy.tokenizer(grammar.world.prompts[prompt_id].text)["input_ids"])
    (G, T), n, c = forest.node.shape, len(prompt), grammar.category[prompt_id]
    ids = np.concatenate([np.tile(prompt, (G, 1)), grammar.tokens[c, forest.node]], axis=1)
    positions = np.concatenate([np.tile(np.arange(n), (G, 1)), n + forest.depth], axis=1)
    place = np.arange(G * (n + T)).reshape(G, n + T)
    allowed = (
        torch.from_numpy(grammar.allowed[grammar.states(c, grammar.parent[forest.target])])
        if policy.constrained
        else None
    )
    source = forest.row * (n + T) + np.where(forest.place < 0, n - 1, n + forest.place)
    arrays = (
        ids,
        positions,
        place[:, :n],
        place[:, None, n:],
        source,
        grammar.tokens[c, forest.target],
    )
    sees = torch.from_numpy(forest.ancestors)[:, None]
    batch = Packed(*map(torch.from_numpy, arrays), allowed, sees)
    with torch.no_grad():
        logp, _ = LogProbs(policy).eval()(batch.to(policy.device))
    out = np.empty(len(grammar.parent))
    out[forest.target] = logp.double().cpu().numpy()
    return out


def trie_logprobs(policy, prompts):
    """{prompt id: log-prob of every node of its response trie, float64 [M]} of a policy of the
    world.

    Each prompt is read by itself and kept on disk, so that a number never depends on what else was
    asked. Several processes share the work.
    """
    prompts = sorted(set(np.asarray(prompts).tolist()))
    kind = f"trie/{distributed.agree(cache.key('trie', policy=policy))}"
    stored = {x: cache.load(kind, str(x)) for x in prompts}
    nodes = {x: found[0]["logp"] for x, found in stored.items() if found is not None}
    missing = distributed.same([x for x in prompts if x not in nodes])
    mine = {x: token_logps(policy, x) for x in missing[distributed.rank() :: distributed.count()]}
    for x, logp in mine.items():
        cache.store(kind, str(x), {"logp": logp})
    for share in distributed.gather(mine):
        nodes |= share
    return nodes


# ---------------------------------------------------------------- log pi_ref, by response
def reference_logprobs(policy, tokens, *, batch_size=0):
    """The `ReferenceTable` of tokenised pairs (`pairs.TokenPairs`) under a frozen policy.

    A log-prob belongs to a response and its prompt, not to who is called chosen: each is computed
    once and kept on disk by (prompt, response), so that other labels, or some of the pairs, find
    everything. In the world they are read from the trie of all responses. On real text what was
    asked before can change a number by rounding; below float32 by up to 0.4 nats, so there only the
    very same pairs find it again. `batch_size` counts responses, 0 is 16. Several processes share
    the work.
    """
    if tokens.states_w is not None:
        return _from_tries(policy, tokens)
    every = Responses(tokens)
    inputs = (
        dict(policy=policy) if reads_alike(policy) else dict(policy=policy, responses=every.names)
    )
    kind = f"reference/{distributed.agree(cache.key('reference', **inputs))}"
    known = _known(kind)
    wanted = set(every.names) - set(known)
    missing = every.missing(distributed.same(sorted(wanted)))
    for part in _parts(missing, STORED):
        names = [every.names[i] for i in part]
        found = _compute(policy, every, part, batch_size or 16)
        known |= zip(names, found)
        if distributed.rank() == 0:
            lengths = np.array([len(values) for values in found])
            written = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), -1)
            arrays = {"names": written, "lengths": lengths, "logp": np.concatenate(found)}
            cache.store(kind, cache.digest(*names), arrays)
    return ReferenceTable(*every.in_pairs(known))


def _from_tries(policy, tokens):
    """The `ReferenceTable` of pairs of the world."""
    grammar = policy.grammar
    texts = [prompt.text for prompt in grammar.world.prompts]
    ids = {np.array(row).tobytes(): x for x, row in enumerate(policy.tokenizer(texts)["input_ids"])}
    prompts = [ids[np.asarray(row).tobytes()] for row in tokens.prompts]
    nodes = trie_logprobs(policy, prompts)

    def values(responses):
        paths = [grammar.paths[grammar.number(x, y)] for x, y in zip(prompts, responses)]
        return [nodes[x][path[path >= 0]] for x, path in zip(prompts, paths)]

    return ReferenceTable(values(tokens.chosen), values(tokens.rejected))


def reads_alike(policy):
    """Whether a policy gives a response the same log-probs in any batch, but for rounding: in
    float32 and better."""
    return not policy.bf16 and torch.finfo(policy.model.dtype).bits >= 32


class Responses:
    """The 2 N responses of N tokenised pairs, chosen and rejected in turn, each with a name made of
    its content."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.names = [self._name(*self.parts(i)) for i in range(2 * len(tokens))]

    def parts(self, number):
        """(prompt, response) of a number."""
        row, rejected = divmod(number, 2)
        return self.tokens.prompts[row], (self.tokens.rejected if rejected else self.tokens.chosen)[
            row
        ]

    @staticmethod
    def _name(prompt, response):
        h = hashlib.blake2b(digest_size=16)
        for ids in (prompt, response):
            h.update(len(ids).to_bytes(8, "little"))
            h.update(np.asarray(ids, dtype=np.int64).tobytes())
        return h.digest()

    def missing(self, names):
        """Numbers of the first responses of these names, those of one prompt side by side, like
        lengths together."""
        first = {}
        for number, name in enumerate(self.names):
            first.setdefault(name, number)
        groups = {}
        for number in sorted(first[name] for name in names):
            prompt, response = self.parts(number)
            groups.setdefault((len(prompt), prompt.tobytes()), []).append((len(response), number))
        return [number for _, group in sorted(groups.items()) for _, number in sorted(group)]

    def in_pairs(self, known):
        """Known values, spread over the pairs: two lists [N], of the chosen and of the rejected
        responses."""
        values = [known[name] for name in self.names]
        return values[0::2], values[1::2]


def _known(kind):
    """{name: log-probs} of all responses that are kept for a policy."""
    out = {}
    for file in sorted(cache.path(kind, "").parent.glob("*.safetensors")):
        stored = cache.load(kind, file.stem)
        if stored is not None:
            arrays = stored[0]
            values = np.split(arrays["logp"], np.cumsum(arrays["lengths"])[:-1])
            out |= zip((name.tobytes() for name in arrays["names"]), values)
    return out


def _parts(items, size):
    return [items[i : i + size] for i in range(0, len(items), max(1, size))]


@torch.no_grad()
def _compute(policy, every, numbers, batch_size):
    """Log-probs of some responses, an array each, in their order. Two responses of one prompt share
    a row."""
    rows = []
    for number in numbers:
        alone = bool(rows) and len(rows[-1]) == 1
        if alone and np.array_equal(every.parts(rows[-1][0])[0], every.parts(number)[0]):
            rows[-1].append(number)
        else:
            rows.append([number])
    batches = []
    for width in (2, 1):
        wide = [row for row in rows if len(row) == width]
        wide.sort(
            key=lambda row: sum(len(every.parts(n)[1]) for n in row) + len(every.parts(row[0])[0])
        )
        batches += _parts(wide, max(1, batch_size // width))
    module, found = LogProbs(policy).eval(), {}
    for batch in batches[distributed.rank() :: distributed.count()]:
        for number, values in _read(module, policy, every, batch):
            found[number] = values
    found = {
        number: values for share in distributed.gather(found) for number, values in share.items()
    }
    return [found[number] for number in numbers]


def _read(module, policy, every, batch):
    """(number, log-probs) of the responses of some rows, lists of one or two numbers."""
    prompts = [every.parts(row[0])[0] for row in batch]
    responses = [[every.parts(row[j])[1] for row in batch] for j in range(len(batch[0]))]
    nodes = prefix_nodes(prompts, responses)  # rows of one prompt stand side by side
    packed = pack(prompts, responses, pad_id=policy.pad_id, nodes=nodes)
    logp, _ = module(packed.to(policy.device))
    numbers = [number for row in batch for number in row]
    lengths = [len(every.parts(number)[1]) for number in numbers]
    return zip(numbers, (part.cpu().numpy() for part in logp.split(lengths)))
