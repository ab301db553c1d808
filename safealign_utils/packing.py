"""A row of the network: a prompt and its responses, each response blind to the others."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Packed:
    """B rows of T input tokens with K tokens to predict.

    `ids`, `positions` [B, T]; `prompt` [B, n] and `response` [B, J, m]: the places of their tokens
    in the flattened [B * T], -1 behind an end; `source` [K]: the places from which the tokens
    `target` [K] are predicted; `allowed` bool [K, V] or None. A response's token sees the prompt
    and its own tokens before it, or those that `sees` bool [B, J, m, m] names. `node` int [B, T] is
    the same where token and all before it are.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    prompt: torch.Tensor
    response: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    allowed: torch.Tensor | None = None
    sees: torch.Tensor | None = None
    node: torch.Tensor | None = None

    def to(self, device):
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v if v is None else v.to(device) for k, v in moved.items()})

    @property
    def mask(self):
        """Which key each query sees, bool [B, 1, T, T]; padding sees itself, so that no row of the
        softmax is empty."""
        B, T = self.ids.shape
        segment = self.ids.new_full((B * T,), -1)
        for number, places in enumerate((self.prompt, *self.response.unbind(1))):
            segment[places[places >= 0]] = number
        segment = segment.view(B, T)
        query, key = segment[:, :, None], segment[:, None, :]
        mask = ((query == key) | (key == 0)) & (key >= 0)
        mask &= torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
        if self.sees is not None:
            for rows, sees in zip(self.response.unbind(1), self.sees.unbind(1)):
                self._see(mask, rows, sees)
        return (mask | torch.eye(T, dtype=torch.bool, device=mask.device))[:, None]

    @staticmethod
    def _see(mask, rows, sees):
        """Put what the tokens of a response, places [B, m], see of each other into the mask."""
        T = mask.shape[-1]
        real = rows[:, :, None].ge(0) & rows[:, None].ge(0)
        query = rows[:, :, None].expand_as(real)[real]
        key = rows[:, None].expand_as(real)[real]
        mask.view(-1, T)[query, key % T] = sees[real]


def pack(prompts, responses, *, pad_id, allowed=None, nodes=None):
    """Pack B prompts with J responses each (lists of int arrays; responses[j][b]) into one
    `Packed`.

    `allowed` optionally gives bool [len, V] per response, in the same nesting, and `nodes` [B] the
    `Packed.node` of a row's tokens, prompt and responses. Targets come row by row, response by
    response, in token order.
    """
    B, J = len(prompts), len(responses)
    every = [branch[b] for b in range(B) for branch in responses]
    parts = [x for b in range(B) for x in (prompts[b], *(y[:-1] for y in every[b * J : b * J + J]))]
    lengths = np.array([len(x) for x in parts]).reshape(B, 1 + J)
    T, place = _places(lengths)
    real, inner = place >= 0, np.arange(place.shape[2])
    after = np.where(np.arange(1 + J) > 0, lengths[:, :1], 0)

    def table(values, empty):
        out = np.full(B * T, empty, dtype=np.int64)
        out[place[real]] = values
        return out.reshape(B, T)

    prompt, response = place[:, 0, : lengths[:, 0].max()], place[:, 1:, : lengths[:, 1:].max()]
    last = np.take_along_axis(prompt, lengths[:, :1] - 1, 1)
    source = np.concatenate([np.broadcast_to(last[:, None], (B, J, 1)), response], -1)
    arrays = dict(
        ids=table(np.concatenate(parts), pad_id),
        positions=table((after[..., None] + inner)[real], 0),
        prompt=prompt,
        response=response,
        source=source[source >= 0],
        target=np.concatenate(every).astype(np.int64),
    )
    if allowed is not None:
        every_allowed = [branch[b] for b in range(B) for branch in allowed]
        arrays["allowed"] = np.concatenate(every_allowed)
    if nodes is not None:
        arrays["node"] = table(np.concatenate(nodes), -1)
    return Packed(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _places(lengths):
    """Longest row T, and places [B, 1 + J, longest part] in the flattened [B, T] of the tokens of
    parts of `lengths` [B, 1 + J], -1 behind an end."""
    T, start = int(lengths.sum(1).max()), lengths.cumsum(1) - lengths
    inner = np.arange(lengths.max())
    place = (np.arange(len(lengths)) * T)[:, None, None] + start[..., None] + inner
    place[inner >= lengths[..., None]] = -1
    return T, place


def prefix_nodes(prompts, responses):
    """Numbers of the tokens of rows of prompt and responses as `pack` takes them: the same where a
    token and all that it sees are the same. A list [B] of int arrays, a row's parts in turn."""
    paths = [np.concatenate([x, y[b][:-1]]) for b, x in enumerate(prompts) for y in responses]
    lengths, tokens = np.array([len(path) for path in paths]), pad(paths)
    node, count = np.full(tokens.shape, -1), 0
    parent = np.full(len(paths), -1)
    for t in range(tokens.shape[1]):
        here = np.nonzero(lengths > t)[0]
        step = np.stack([parent[here], tokens[here, t]], 1)
        _, number = np.unique(step @ [tokens.max() + 1, 1], return_inverse=True)
        parent[here] = node[here, t] = number + count
        count += number.max() + 1
    rows = []
    for b, prompt in enumerate(prompts):
        own = [
            node[len(responses) * b + j, : lengths[len(responses) * b + j]]
            for j in range(len(responses))
        ]
        rows.append(np.concatenate([own[0], *(part[len(prompt) :] for part in own[1:])]))
    return rows


def split(values, lengths_w, lengths_l):
    """Spread values [K] of a batch of pairs over two padded tables [B, T_w] and [B, T_l], zeros
    behind the end."""
    mask_w, mask_l = length_mask(lengths_w), length_mask(lengths_l)
    owner = np.repeat(
        np.tile([True, False], len(lengths_w)), np.stack([lengths_w, lengths_l], 1).ravel()
    )
    owner = torch.from_numpy(owner).to(values.device)
    tables = []
    for mask, mine in ((mask_w, owner), (mask_l, ~owner)):
        mask = mask.to(values.device)
        tables.append(
            torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
                mask, values[mine]
            )
        )
    return tables


def length_mask(lengths):
    """bool [B, T]: True at the tokens of each row."""
    return torch.arange(int(max(lengths)))[None] < torch.as_tensor(np.asarray(lengths))[:, None]


def pad(rows):
    table = np.zeros((len(rows), max(map(len, rows))), dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return torch.from_numpy(table)
