"""The forward of a Llama, Mistral or Qwen2 on a CPU, fast: the same function as transformers' own.

No padding is computed but in attention, where prompt and responses are asked for apart; the last
layer answers only where the loss reads; weights are cast once; what LoRA adapters add is computed
beside the weights, which then get no gradient. `fits` says which networks and batches it takes: all
others go through transformers (`logprobs.hidden_states`).
"""

import collections

import numpy as np
import torch
from torch.nn.functional import embedding
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2

from .batches import longest_first
from .double import DoubleNorm
from .fused import Adapted, Attention, Head, Norm, Part, Plan, Project, SwiGLU
from .lora import parts_of

BASES = (llama.LlamaModel, mistral.MistralModel, qwen2.Qwen2Model)
LAYERS = (llama.LlamaDecoderLayer, mistral.MistralDecoderLayer, qwen2.Qwen2DecoderLayer)
NORMS = (llama.LlamaRMSNorm, mistral.MistralRMSNorm, qwen2.Qwen2RMSNorm)
PARTS = (*BASES, *LAYERS, *NORMS, DoubleNorm, llama.LlamaMLP, mistral.MistralMLP, qwen2.Qwen2MLP)
PARTS += (llama.LlamaAttention, mistral.MistralAttention, qwen2.Qwen2Attention, torch.nn.Linear)
FORWARDS = {kind: kind.forward for kind in PARTS}
SILU = (torch.nn.SiLU, SiLUActivation)
CAPTURING = "transformers.utils.output_capturing"
VECTOR = 16  # numbers
CACHE = 2**15  # scores of a head that are computed at once


def fits(model, batch):
    """Whether a model and a `Packed` batch are what this file computes: on a CPU, with weights in
    float32 or better (or the bfloat16 that is computed in), and layers that nobody has changed."""
    base, config, dtype = model.base_model, model.config, next(model.parameters()).dtype
    known = type(base) in BASES and all(type(layer) in LAYERS for layer in base.layers)
    exact = torch.finfo(dtype).bits >= 32
    exact |= dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu")
    if not known or batch.ids.device.type != "cpu" or not exact:
        return False
    window = getattr(config, "sliding_window", None)
    short = not window or batch.ids.shape[1] <= window
    norms = type(base.norm) in ((DoubleNorm,) if dtype == torch.float64 else NORMS)
    own = all(kind.forward is forward for kind, forward in FORWARDS.items())
    hooked = any(has_hooks(part) for part in model.modules())
    return short and norms and own and not hooked and all(map(_is_usual, base.layers))


def has_hooks(module):
    """Whether a module has forward hooks but those that transformers leaves behind, which are idle,
    where a forward was asked for inner states."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", "") != CAPTURING for hook in hooks)


def _is_usual(layer):
    """Whether a layer computes with SiLU, the usual scale of attention, and without dropout."""
    attention = layer.self_attn
    scale = attention.scaling == attention.head_dim**-0.5
    drops = attention.attention_dropout and layer.training
    return isinstance(layer.mlp.act_fn, SILU) and scale and not drops


def computed_in(model):
    """bfloat16 where autocast asks for it, else the type of the weights."""
    asked = torch.is_autocast_enabled("cpu")
    return torch.bfloat16 if asked else next(model.parameters()).dtype


def hidden_states(model, batch):
    """Last hidden states [K, D] at the places of a `Packed` batch from which its tokens are
    predicted."""
    tokens = Tokens(batch)
    return _hidden_states(model, tokens).index_select(0, torch.from_numpy(tokens.source))


def layer_states(model, batch, layers):
    """`logprobs.plain_layer_states`; nothing above the highest layer is computed."""
    tokens, found, dtype = Tokens(batch), {}, computed_in(model)
    source, read = torch.from_numpy(tokens.source), torch.from_numpy(tokens.read)
    with torch.autocast("cpu", enabled=False):
        for number, x in enumerate(_layers(model, tokens, dtype)):
            if number in layers:
                x = x if len(x) == len(read) else x.index_select(0, read)
                found[number] = x.index_select(0, source)
            if number == max(layers):
                break
    return [found[layer] for layer in layers]


def log_probs(model, batch):
    """`logprobs.plain_log_probs` of a model whose head is plain, too."""
    tokens, head = Tokens(batch), model.get_output_embeddings()
    hidden, source = _hidden_states(model, tokens), torch.from_numpy(tokens.source)
    allowed = batch.allowed
    if allowed is not None and batch.node is None:
        hidden, source = hidden.index_select(0, source), torch.arange(len(source))
    elif allowed is not None:
        allowed = allowed[torch.from_numpy(_inverse(tokens.source, len(hidden)))]
    with torch.autocast("cpu", enabled=False):
        weight = head.weight.to(hidden.dtype)
        logp, mass = Head.apply(hidden, weight, source, batch.target, allowed)
        return logp, None if mass is None else mass[source]


def is_plain(module):
    """Whether a module is a linear map without bias, hooks or an adapter."""
    return type(module) is torch.nn.Linear and module.bias is None and not has_hooks(module)


def _hidden_states(model, tokens):
    """Last hidden states [M, D] of the tokens of `read`."""
    dtype = computed_in(model)
    with torch.autocast("cpu", enabled=False):
        (last,) = collections.deque(_layers(model, tokens, dtype), maxlen=1)
    return last


def _layers(model, tokens, dtype):
    """Embeddings [N, D], then the hidden states after each layer in turn; after the last those of
    the tokens of `read`, normed."""
    base = model.base_model
    ids, positions, read = map(torch.from_numpy, (tokens.ids, tokens.positions, tokens.read))
    x = embedding(ids, base.embed_tokens.weight)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    angles = [a[0, :, None].to(dtype) for a in base.rotary_emb(x[None], positions[None])]
    angles[1][..., : angles[1].shape[-1] // 2].neg_()
    every, last = tokens.plans(model.config, angles)
    yield x
    for number, layer in enumerate(base.layers, 1):
        at_end = number == len(base.layers)
        plan, asked = (last, read) if at_end else (every, None)
        if layer.gradient_checkpointing and base.training:
            x = torch.utils.checkpoint.checkpoint(
                _layer, layer, x, plan, asked, dtype, use_reentrant=False
            )
        else:
            x = _layer(layer, x, plan, asked, dtype)
        yield _norm(base.norm, x, dtype) if at_end else x


def _layer(layer, x, plan, asked, dtype):
    """One layer; `asked` int [M]: only these tokens are answered."""
    attention, mlp = layer.self_attn, layer.mlp
    h = _norm(layer.input_layernorm, x, dtype)
    if asked is None:
        q, k, v = _project(h, attention.q_proj, attention.k_proj, attention.v_proj)
    else:
        (q,) = _project(h.index_select(0, asked), attention.q_proj)
        k, v = _project(h, attention.k_proj, attention.v_proj)
        x = x.index_select(0, asked)
    x = _add(x, Attention.apply(q, k, v, plan), attention.o_proj)
    h = _norm(layer.post_attention_layernorm, x, dtype)
    return _add(x, SwiGLU.apply(*_project(h, mlp.gate_proj, mlp.up_proj)), mlp.down_proj)


def _norm(module, x, dtype):
    return Norm.apply(x, module.weight.to(x.dtype), module.variance_epsilon, dtype)


def _project(x, *modules):
    layers, adapters = zip(*map(parts_of, modules))
    if not all(map(_has_no_bias, layers)) or any(adapters) and not all(adapters):
        return tuple(_linear(module, x) for module in modules)
    weights = [layer.weight.to(x.dtype) for layer in layers]
    if not any(adapters):
        return Project.apply(x, *weights)
    downs, ups = ([part.to(x.dtype) for part in parts] for parts in zip(*adapters))
    return Adapted.apply(x, *weights, *downs, *ups)


def _has_no_bias(module):
    return type(module) is torch.nn.Linear and module.bias is None


def _linear(module, x):
    layer, adapter = parts_of(module)
    if type(layer) is not torch.nn.Linear:
        return module(x)
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    out = torch.nn.functional.linear(x, layer.weight.to(x.dtype), bias)
    return out if adapter is None else _adapt(out, x, *adapter)


def _adapt(out, x, down, up):
    """What an adapter adds to an output [N, M] of x [N, D]: (x down') up'."""
    return torch.addmm(out, x @ down.to(x.dtype).t(), up.to(x.dtype).t())


def _add(x, h, module):
    """x + module(h)."""
    layer, adapter = parts_of(module)
    if not _has_no_bias(layer) or x.dtype != h.dtype:
        return x + _linear(module, h).to(x.dtype)
    out = torch.addmm(x, h, layer.weight.t())
    return out if adapter is None else _adapt(out, h, *adapter)


class Tokens:
    """The N different tokens of a `Packed` batch: without padding, each prefix once.

    `ids`, `positions` [N]; `read` [M]: the tokens from which others are predicted; `source` [K]:
    which of those.
    """

    def __init__(self, batch):
        prompt, response, ids, positions, source = (
            table.numpy()
            for table in (batch.prompt, batch.response, batch.ids, batch.positions, batch.source)
        )
        places = np.concatenate([table[table >= 0] for table in (prompt, response)])
        first, numbers = slice(None), np.arange(len(places))
        if batch.node is not None:
            nodes = batch.node.numpy().ravel()[places]
            _, first, numbers = np.unique(nodes, return_index=True, return_inverse=True)
        number = np.full(ids.size + 1, -1)  # the last is that of place -1: none
        number[places] = numbers
        self.prompt, self.response, self.sees = number[prompt], number[response], batch.sees
        self.ids, self.positions = ids.ravel()[places[first]], positions.ravel()[places[first]]
        self.read, self.source = np.unique(number[source], return_inverse=True)

    def plans(self, config, angles):
        """The `Plan` of attention of all layers but the last, and of the last, which asks for the
        tokens of `read` only."""
        groups = config.num_key_value_heads
        heads = groups, config.num_attention_heads // groups
        tables = self._tables()
        places = [_by_head(keys, groups, 1) for _, keys, _ in tables]
        homes = _homes(np.concatenate(places), len(self.ids) * groups)
        places = [torch.from_numpy(p.clip(0)) for p in places]
        biases = [_bias(sees, *heads, angles[0].dtype) for _, _, sees in tables]
        scaled = [angle * angle.shape[-1] ** -0.5 for angle in angles]
        out, every = [], np.arange(len(self.ids))
        for asked, read in ((every, slice(None)), (_inverse(self.read, len(every)), self.read)):
            parts, home = _parts(tables, places, biases, np.append(asked, -1), heads)
            angles_q = tuple(angle[read] for angle in scaled)
            out.append(Plan(angles[0].shape[-1], parts, home, *homes, angles_q, tuple(angles)))
        return out

    def _tables(self):
        """[(queries [r, Q], keys [r, S], sees bool [r, Q, S])]: numbers of tokens, -1 for none. Of
        the prompts, and of the responses, which see their prompt too; rows of like length
        together."""
        B, J, m = self.response.shape
        lengths = (self.prompt >= 0).sum(1) + (self.response >= 0).sum(2).max(1)
        together, out = np.clip(CACHE // (lengths.max() ** 2), 1, B), []
        for rows in longest_first(lengths, together):
            x, y = _trim(self.prompt[rows]), _trim(self.response[rows].reshape(len(rows) * J, m))
            length, own = y.shape[1], np.tri(y.shape[1], dtype=bool)
            if self.sees is not None:
                own = self.sees.numpy()[rows].reshape(-1, m, m)[:, :length, :length]
            keys = np.concatenate([np.repeat(x, J, 0), y], 1)
            sees = np.ones((len(y), length, keys.shape[1]), dtype=bool)
            sees[..., x.shape[1] :] = own
            out += [_wide(x, x, np.tri(x.shape[1], dtype=bool)), _wide(y, keys, sees)]
        return out


def _parts(tables, keys, biases, asked, heads):
    """The `Part`s of a plan, and where in them the queries lie. `asked` [N + 1]: the number of each
    token's query, -1 for none."""
    queries, used = [], []
    for (table, _, sees), bias in zip(tables, biases):
        some, columns = _asking(asked[table])
        if columns is not None:
            sees = np.take_along_axis(sees, columns[..., None], 1)
            bias = _bias(sees, *heads, bias.dtype)
        queries.append(_by_head(some, *heads))
        used.append(bias)
    home = _inverse(np.concatenate(queries), (asked.max() + 1) * heads[0] * heads[1])
    real = np.zeros(sum(map(len, queries)))
    real[home] = 1  # of a token that asks in several rows one counts
    real = torch.from_numpy(real).to(used[0].dtype)[:, None].split([len(q) for q in queries])
    queries = [torch.from_numpy(places.clip(0)) for places in queries]
    return tuple(map(Part, queries, keys, used, real)), torch.from_numpy(home)


def _bias(sees, groups, share, dtype):
    """What is added to the scores of queries, [r * groups, share * Q, S]: 0, or the lowest number
    where a key is not seen."""
    bias = torch.from_numpy(~sees).to(dtype).mul_(torch.finfo(dtype).min)
    bias = bias[:, None, None].expand(-1, groups, share, -1, -1)
    return bias.reshape(len(sees) * groups, -1, sees.shape[2])


def _trim(table):
    """A table [r, n] of numbers without last columns that only pad."""
    return table[:, : max(1, int((table >= 0).any(0).sum()))]


def _wide(queries, keys, sees):
    """Keys padded to full vectors of the processor: torch's softmax is slow at a row's rest."""
    width = -(-keys.shape[1] // VECTOR) * VECTOR
    wide = np.full((len(keys), width), -1)
    wide[:, : keys.shape[1]] = keys
    seen = np.zeros((len(keys), queries.shape[1], width), dtype=bool)
    seen[..., : keys.shape[1]] = sees
    seen &= (wide >= 0)[:, None]
    return queries, wide, seen


def _asking(queries):
    """The queries [r, Q] that are not -1, those first; and which columns they are, None: all."""
    count = (queries >= 0).sum(1).max()
    if count == queries.shape[1]:
        return queries, None
    order = np.argsort(queries < 0, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(queries, order, 1), order


def _by_head(table, groups, share):
    """Places (token, head) of tokens [R, m] in the order row, key head, head, token, -1 for none:
    int [R * heads * m]."""
    head = np.arange(groups * share).reshape(groups, share, 1)
    token = table[:, None, None]
    return np.where(token >= 0, token * (groups * share) + head, -1).ravel()


def _inverse(places, size):
    """Where each number from 0 to `size` stands in `places`, -1 where it does not."""
    out = np.full(size + 1, -1)
    out[places] = np.arange(len(places))
    return out[:-1]


def _homes(places, size):
    """Where each number from 0 to `size` stands in `places` at last; and of those that stand there
    more than once: (numbers, where they stand else, where that list begins for each)."""
    last = _inverse(places, size)
    more = np.nonzero(places >= 0)[0]
    more = more[last[places[more]] != more]
    more = more[np.argsort(places[more], kind="stable")]
    rows, start = np.unique(places[more], return_index=True)
    return torch.from_numpy(last), tuple(torch.from_numpy(x) for x in (rows, more, start))
