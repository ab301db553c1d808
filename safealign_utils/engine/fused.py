"""The parts of a Llama with gradients written out by hand: fewer passes over memory than autograd.

Each is a `torch.autograd.Function` that computes what the plain modules of transformers compute,
and is tested against them, value and gradient. N tokens lie in one table [N, D], without padding.
"""

from dataclasses import dataclass

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, silu

CHUNK = 2**22  # logits that are alive at once


class Norm(Function):
    """RMS norm of x [N, D] with a weight [D]: x / rms(x) * weight, in the type `dtype`."""

    @staticmethod
    def forward(ctx, x, weight, eps, dtype):
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        grad = grad.to(x.dtype)
        unit = x * scale
        product = grad * unit
        of_weight = product.sum(0) if ctx.needs_input_grad[1] else None
        share = (product @ weight).unsqueeze(-1).div_(-x.shape[-1])
        of_x = torch.addcmul(grad * weight, unit, share).mul_(scale)
        return of_x, of_weight, None, None


class Project(Function):
    """Several linear maps of one x [N, D]: x @ weight.T for each weight [M, D]."""

    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        return tuple(x @ weight.t() for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        of_x = grads[0] @ weights[0]
        for grad, weight in zip(grads[1:], weights[1:]):
            of_x.addmm_(grad, weight)
        of_weights = [
            grad.t() @ x if needed else None
            for grad, needed in zip(grads, ctx.needs_input_grad[1:])
        ]
        return of_x, *of_weights


class Adapted(Function):
    """`Project` with adapters: x W' + (x A') B' for each frozen weight W [M, D], A [r, D] and
    B [M, r].

    Called with x [N, D], then all W, all A, all B.
    """

    @staticmethod
    def forward(ctx, x, *tables):
        n = len(tables) // 3
        weights, downs, ups = tables[:n], tables[n : 2 * n], tables[2 * n :]
        ctx.ranks, down = [len(part) for part in downs], torch.cat(downs)
        inner = x @ down.t()
        ctx.save_for_backward(x, inner, down, *weights, *ups)
        inner = inner.split(ctx.ranks, 1)
        return tuple((x @ w.t()).addmm_(u, up.t()) for w, u, up in zip(weights, inner, ups))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, inner, down, *tables = ctx.saved_tensors
        weights, ups = tables[: len(grads)], tables[len(grads) :]
        of_inner = torch.cat([grad @ up for grad, up in zip(grads, ups)], 1)
        of_x = of_inner @ down
        for grad, weight in zip(grads, weights):
            of_x.addmm_(grad, weight)
        of_ups = [grad.t() @ part for grad, part in zip(grads, inner.split(ctx.ranks, 1))]
        of_downs = (of_inner.t() @ x).split(ctx.ranks)
        return of_x, *[None] * len(weights), *of_downs, *of_ups


class SwiGLU(Function):
    """silu(gate) * up, [N, M] each."""

    @staticmethod
    def forward(ctx, gate, up):
        bent = silu(gate)
        ctx.save_for_backward(gate, up, bent)
        return bent * up

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up, bent = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * bent


# ---------------------------------------------------------------- attention
@dataclass(frozen=True)
class Part:
    """Rows of queries and the keys that they see.

    `queries` int [R * G * Q] and `keys` int [R * S] are places (token, head) in the tables, R rows
    of one key head each and G heads of queries for it. `bias` [R, G * Q, S] is added to the scores:
    0 or the lowest number. `real` [R * G * Q, 1] is 0 where a place only pads.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """How the tokens of a batch attend to one another, in parts.

    `home_q`, `home_k`: where in all parts, one after another, the places of the tables lie; `more`:
    the keys that stand there more than once, as prompts do: (rows, their further places, where
    those of a row begin). `angles_q`,
    `angles_k`: cosine and sine [N, 1, width] of the rotary positions, the sines of the first half
    negative; those of queries hold the scale of attention.
    """

    width: int
    parts: tuple
    home_q: torch.Tensor
    home_k: torch.Tensor
    more: tuple
    angles_q: tuple
    angles_k: tuple


def turn(x, cos, sin):
    """Rotary positions: x [N, H * width] as rows [N * H, width], halves turned into each other."""
    x = x.view(len(x), -1, cos.shape[-1])
    other = x.roll(cos.shape[-1] // 2, -1)
    return (x * cos).add_(other.mul_(sin)).view(-1, cos.shape[-1])


def turn_back(grad, cos, sin):
    """The gradient of `turn`, [N, H * width], from rows [N * H, width]."""
    grad = grad.view(len(cos), -1, cos.shape[-1])
    other = (grad * sin).roll(cos.shape[-1] // 2, -1)
    return (grad * cos).add_(other).view(len(cos), -1)


class Attention(Function):
    """Softmax attention of queries [N_q, H * width] over keys and values [N, H_k * width]."""

    @staticmethod
    def forward(ctx, q, k, v, plan):
        q, k, v = turn(q, *plan.angles_q), turn(k, *plan.angles_k), v.view(-1, plan.width)
        out, saved = _Pieces(plan, "queries", q), []
        for part in plan.parts:
            asked, keys = _rows(q, part.queries, part), _rows(k, part.keys, part)
            values = _rows(v, part.keys, part)
            share = torch.baddbmm(part.bias, asked, keys.transpose(1, 2)).softmax(-1)
            torch.bmm(share, values, out=out.next(part))
            saved += [asked, keys, values, share]
        ctx.plan = plan
        ctx.save_for_backward(*saved)
        return out.table.index_select(0, plan.home_q).view(len(plan.angles_q[0]), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        plan, saved = ctx.plan, ctx.saved_tensors
        grad = grad.reshape(-1, plan.width)
        of_q, of_k, of_v = (_Pieces(plan, name, grad) for name in ("queries", "keys", "keys"))
        for number, part in enumerate(plan.parts):
            asked, keys, values, share = saved[4 * number : 4 * number + 4]
            own = _rows(grad, part.queries, part)
            own.view(-1, plan.width).mul_(part.real)
            of_share = torch.bmm(own, values.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_share, share, -1, share.dtype)
            torch.bmm(of_scores, keys, out=of_q.next(part))
            torch.bmm(of_scores.transpose(1, 2), asked, out=of_k.next(part))
            torch.bmm(share.transpose(1, 2), own, out=of_v.next(part))
        of_q = turn_back(of_q.table.index_select(0, plan.home_q), *plan.angles_q)
        of_k = turn_back(_key_home(of_k.table, plan), *plan.angles_k)
        return of_q, of_k, _key_home(of_v.table, plan).view(len(plan.angles_k[0]), -1), None


class _Pieces:
    """One table of the queries (or keys) of all parts, handed out part by part."""

    def __init__(self, plan, name, like):
        self.name, self.at = name, 0
        size = sum(len(getattr(part, name)) for part in plan.parts)
        self.table = like.new_empty(size, plan.width)

    def next(self, part):
        start, self.at = self.at, self.at + len(getattr(part, self.name))
        return self.table[start : self.at].view(len(part.bias), -1, self.table.shape[1])


def _rows(table, places, part):
    return table.index_select(0, places).view(len(part.bias), -1, table.shape[-1])


def _key_home(table, plan):
    """Sums of what a table says of each key, wherever it stands."""
    out = table.index_select(0, plan.home_k)
    rows, places, starts = plan.more
    if len(rows):
        out[rows] += embedding_bag(places, table, starts, mode="sum")
    return out


# ---------------------------------------------------------------- the head
class Head(Function):
    """Log-probs [K] of targets from hidden states [M, D] and the head's weight [V, D]; `source` [K]
    says from which.

    `allowed` bool [M, V] or None: then the second result [M] is log of the mass that the softmax
    gives to the allowed tokens. No more than CHUNK logits are alive at once; where that holds all
    of them they are kept for the gradient, else computed again.
    """

    @staticmethod
    def forward(ctx, hidden, weight, source, target, allowed):
        size = max(1, CHUNK // len(weight))
        starts = range(0, len(hidden), size)
        ctx.parts = [_Part(slice(s, s + size), source, target, len(starts) > 1) for s in starts]
        logp, mass = hidden.new_empty(len(source), dtype=_in(hidden)), []
        for part in ctx.parts:
            logp[part.every], state = _softmax(hidden, weight, allowed, part)
            mass += [] if allowed is None else [state[3].log() - state[1].log()]
        ctx.kept = state if len(ctx.parts) == 1 else None
        ctx.save_for_backward(hidden, weight, source, allowed)
        return logp, torch.cat(mass) if mass else None

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_mass):
        hidden, weight, source, allowed = ctx.saved_tensors
        of_row = torch.zeros(len(hidden), dtype=grad.dtype).index_add_(0, source, grad)
        of_hidden, of_weight = torch.empty_like(hidden), None
        for part in ctx.parts:
            rows = part.rows
            state = ctx.kept or _softmax(hidden, weight, allowed, part)[1]
            more = None if grad_mass is None else grad_mass[rows]
            logits = _gradient(*state, of_row[rows], more)
            logits.index_put_((part.row, part.target), grad[part.every], accumulate=True)
            logits = logits.to(hidden.dtype)
            torch.mm(logits, weight, out=of_hidden[rows])
            if ctx.needs_input_grad[1]:
                own = logits.t() @ hidden[rows]
                of_weight = own if of_weight is None else of_weight.add_(own)
        return of_hidden, of_weight, None, None, None


class _Part:
    """Some rows of the hidden states: `every` are the numbers of their targets."""

    def __init__(self, rows, source, target, cut):
        self.rows, self.every = rows, slice(None)
        if cut:
            self.every = torch.nonzero((source >= rows.start) & (source < rows.stop))[:, 0]
        self.row, self.target = source[self.every] - rows.start, target[self.every]


def _in(hidden):
    return torch.promote_types(hidden.dtype, torch.float32)


def _softmax(hidden, weight, allowed, part):
    """The targets' log-probs, and (exponentials, their sum, allowed as numbers, the sum of those);
    of the rows of a part."""
    logits = (hidden[part.rows] @ weight.t()).to(_in(hidden))
    logits -= logits.amax(1, keepdim=True)
    chosen = logits[part.row, part.target]
    e = logits.exp_()
    total = e.sum(1)
    chosen -= total.log()[part.row]
    if allowed is None:
        return chosen, (e, total, None, None)
    inside = allowed[part.rows].to(e.dtype)
    return chosen, (e, total, inside, torch.linalg.vecdot(e, inside))


def _gradient(e, total, allowed, total_allowed, grad, grad_mass):
    """The gradient of the logits but for the targets' own."""
    if grad_mass is None:
        return e * (-grad / total)[:, None]
    factor = allowed * (grad_mass / total_allowed)[:, None]
    return factor.sub_(((grad + grad_mass) / total)[:, None]).mul_(e)
