"""Pairs as directions: pooled hidden states of the reference, chosen minus rejected, in blocks that are kept on disk.

A large pool takes hours; every finished block of about a thousand pairs is one entry of the cache, so that an
extraction that was killed goes on where it was.
"""

import sys

import numpy as np
import torch
from tqdm import tqdm

from .. import cache
from ..logprobs import attention_bias

DIGITS = {torch.float64: 9, torch.float32: 5}  # what rounding noise does not reach
BLOCK = 16  # batches of one entry of the cache


def check_finite(u, rows=None, name="u"):
    """Refuse directions (or features) u [N, D] that hold NaN or infinity; ValueError names the
    pairs' row numbers."""
    bad = torch.nonzero(~u.isfinite().all(dim=1))[:, 0].cpu().numpy()
    if len(bad):
        rows = np.sort(bad if rows is None else np.asarray(rows)[bad]).tolist()
        few = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise ValueError(
            f"{name}: hold numbers that are not finite at pair rows {few} ({len(rows)} in all); drop those pairs, "
            "or look for the hidden states that overflow"
        )


@torch.no_grad()
def directions(policy, tokens, *, layer=-1, pooling="mean", normalise=True, batch_size=64):
    """u [N, D]: pooled hidden states of each pair (`pairs.TokenPairs`), chosen minus rejected, on the policy's device.

    `layer` 0 is the embeddings, -1 the last layer with its final norm. `pooling` is the mean over the response's
    tokens or the last of them, the end-of-sequence token left out; a response of nothing else takes the
    prompt's last place. float64 stays float64, all else gives float32. A difference within rounding is 0.
    Blocks are kept on disk, keyed by weights, tokens, batches, layer, pooling and this code.
    Raises ValueError for a layer that the network does not have, another pooling, and states that
    are not finite.
    """
    depth = policy.model.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer={layer}: the network has layers 0 to {depth}, or {-depth - 1} to -1 from the end")
    if pooling not in ("mean", "last"):
        raise ValueError(f"pooling={pooling!r}: choose mean or last")
    order = np.argsort([len(x) for x in tokens.prompts] + tokens.lengths_w + tokens.lengths_l, kind="stable")
    batches = np.array_split(order, -(-len(tokens) // batch_size))  # of like length: little padding
    blocks, u = [batches[i : i + BLOCK] for i in range(0, len(batches), BLOCK)], None
    with tqdm(total=len(tokens), desc="directions", unit="pair", disable=not sys.stderr.isatty(), leave=False) as bar:
        for block in blocks:
            rows, found = np.concatenate(block), _block(policy, tokens, block, layer % (depth + 1), pooling, bar)
            if u is None:
                u = found.new_empty(len(tokens), found.shape[1], device=policy.device)
            u[torch.from_numpy(rows).to(u.device)] = found.to(u.device)
    return u.div_(u.norm(dim=1, keepdim=True).clamp_min_(1e-12)) if normalise else u


def _block(policy, tokens, batches, layer, pooling, bar):
    """Differences [n, D] of some batches (lists of row numbers), read from the cache where they are there."""
    take = lambda things: [[things[i] for i in rows] for rows in batches]
    texts = [take(side) for side in (tokens.prompts, tokens.chosen, tokens.rejected)]
    way = dict(kind=type(tokens), layer=layer, pooling=pooling)
    key = cache.key("directions", policy=policy, texts=texts, **way)
    stored = cache.load("directions", key)
    if stored is not None:
        bar.update(sum(map(len, batches)))
        return torch.from_numpy(stored[0]["u"])
    parts = []
    for rows in batches:
        parts.append(_batch(policy, tokens, rows, layer, pooling))
        bar.update(len(rows))
    u = torch.cat(parts)
    check_finite(u, np.concatenate(batches))
    cache.store("directions", key, {"u": u.cpu().numpy()})
    return u


def _batch(policy, tokens, rows, layer, pooling):
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.bf16):
        hidden = _layer(policy.model.eval(), tokens.batch(rows, policy).to(policy.device), layer)
    lengths = np.stack([tokens.lengths_w[rows], tokens.lengths_l[rows]], 1).ravel()
    pooled = [_pool(states, pooling) for states in hidden.split(lengths.tolist())]
    w, l = torch.stack(pooled[0::2]), torch.stack(pooled[1::2])
    noise = 10.0 ** -DIGITS[w.dtype] * w.norm(dim=1, keepdim=True)
    return torch.where((w - l).norm(dim=1, keepdim=True) > noise, w - l, 0.0)


def _layer(model, batch, layer):
    """Hidden states [K, D] of one layer at the `source` places of a `Packed` batch, in float32 or float64."""
    bias = attention_bias(model, batch)
    inputs = dict(input_ids=batch.ids, attention_mask=bias, position_ids=batch.positions, use_cache=False)
    inner = layer < model.config.num_hidden_layers  # the last is there anyway; all of them fill a GPU
    out = model.base_model(**inputs, output_hidden_states=inner)
    hidden = (out.hidden_states[layer] if inner else out.last_hidden_state).flatten(0, 1)
    return hidden[batch.source].to(torch.promote_types(hidden.dtype, torch.float32))


def _pool(states, pooling):
    """[D] from the states [n, D] at the prompt's last place and at a response's n - 1 tokens before its end."""
    own = states[1:] if len(states) > 1 else states
    return own.mean(0) if pooling == "mean" else own[-1]
