"""A row of the network: a prompt and its responses, each response blind to the others."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Packed:
    """B rows of T input tokens with K tokens to predict.

    `ids`, `positions` [B, T]; `mask` bool [B, 1, T, T] (query may see key); `source` [K] places in
    the flattened [B * T] hidden states; `target` [K] token ids; `allowed` bool [K, V] or None.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    allowed: torch.Tensor | None = None

    def to(self, device):
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v if v is None else v.to(device) for k, v in moved.items()})


def pack(prompts, responses, *, pad_id, allowed=None):
    """Pack B prompts with J responses each (lists of int arrays; responses[j][b]) into one
    `Packed`.

    `allowed` optionally gives bool [len, V] per response, in the same nesting. Targets come row by
    row, response by response, in token order.
    """
    B = len(prompts)
    parts = [[x] + [branch[b][:-1] for branch in responses] for b, x in enumerate(prompts)]
    T = max(sum(map(len, row)) for row in parts)
    ids, positions = np.full((B, T), pad_id), np.zeros((B, T), dtype=np.int64)
    segment, source = np.full((B, T), -1), []
    for b, row in enumerate(parts):
        n, at = len(row[0]), 0
        for j, part in enumerate(row):
            ids[b, at : at + len(part)], segment[b, at : at + len(part)] = part, j
            positions[b, at : at + len(part)] = np.arange(len(part)) + (n if j else 0)
            if j:
                source += [b * T + n - 1, *range(b * T + at, b * T + at + len(part))]
            at += len(part)
    segment = torch.from_numpy(segment)
    query, key = segment[:, :, None], segment[:, None, :]
    mask = ((query == key) | (key == 0)) & (key >= 0) & torch.ones(T, T, dtype=torch.bool).tril()
    mask |= torch.eye(T, dtype=torch.bool)  # padding sees itself: no row of the softmax is empty
    every = [branch[b] for b in range(B) for branch in responses]
    if allowed is not None:
        allowed = torch.from_numpy(
            np.concatenate([branch[b] for b in range(B) for branch in allowed])
        )
    arrays = (ids, positions, np.array(source), np.concatenate(every))
    ids, positions, source, target = (torch.from_numpy(a.astype(np.int64)) for a in arrays)
    return Packed(ids, positions, mask[:, None], source, target, allowed)


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
