"""DOG-DPO's selection: greedy log det against brute force, directions against plain forwards, the cache."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from helpers import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from safealign_utils.logprobs import layer_states
from safealign_utils.methods import dog, pair_controls
from safealign_utils.pairs import TokenPairs
from safealign_utils.policy import Policy


def unit_rows(n, d, seed=0, dtype=torch.float64):
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (u / u.norm(dim=1, keepdim=True)).to(dtype)


def rows(n, d, seed=0):
    """Rows of unequal length: no ties."""
    return unit_rows(n, d, seed) * torch.linspace(0.5, 2, n, dtype=torch.float64)[:, None]


# ---------------------------------------------------------------- greedy log det


@pytest.mark.parametrize("seed", range(4))
def test_greedy_against_all_subsets(seed):
    F = rows(11, 4, seed)
    for k in (1, 3, 6, 11):
        best = max(dog.log_det(F, list(S), ridge=0.5) for S in itertools.combinations(range(11), k))
        found = dog.log_det(F, dog.greedy_log_det(F, k, ridge=0.5).rows, ridge=0.5)
        assert (1 - 1 / np.e) * best <= found <= best + 1e-12
        if k in (1, 11):  # where greedy is exact
            assert found == pytest.approx(best, abs=1e-12)


def test_on_orthogonal_rows_greedy_is_exact():
    F = torch.diag(torch.tensor([1.0, 3, 2, 5, 4]).double())
    picks = dog.greedy_log_det(F, 3)
    assert picks.rows.tolist() == [3, 4, 1]
    assert picks.gains == pytest.approx(np.log1p([25, 16, 9]), abs=1e-12)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 7.0])
def test_every_step_is_the_naive_best_and_its_gain_adds_up(ridge):
    F, chosen, total = rows(25, 5, seed=3), [], 0.0  # k is far above the rank
    picks = dog.greedy_log_det(F, 25, ridge=ridge)
    for step, gain in enumerate(picks.gains):
        values = [
            -np.inf if i in chosen else dog.log_det(F, [*chosen, i], ridge=ridge) for i in range(25)
        ]
        assert picks.rows[step] == np.argmax(values)
        chosen.append(int(np.argmax(values)))
        total += gain
        assert total == pytest.approx(max(values), abs=1e-8)
    assert picks.rows.dtype == np.int64 and sorted(chosen) == list(range(25))


def test_no_row_is_picked_twice_beyond_the_rank():
    for F in (
        unit_rows(3, 8).repeat(20, 1),
        torch.zeros(60, 4).double(),
        unit_rows(60, 2, dtype=torch.float32),
    ):
        picks = dog.greedy_log_det(F, 60)
        assert sorted(picks.rows) == list(range(60))
        assert (picks.gains >= 0).all() and np.isfinite(picks.gains).all()


def test_of_equal_rows_the_first_wins():
    F = unit_rows(30, 6)
    assert dog.greedy_log_det(F, 1).rows.tolist() == [0], "unit rows all tie at the first pick"
    twice = torch.cat([F[5:], F[:5], F[5:]])
    once = dog.greedy_log_det(twice[:30], 12).rows
    assert dog.greedy_log_det(twice, 12).rows.tolist() == once.tolist()


def test_float32_and_column_order_pick_the_same():
    F = rows(200, 16)
    picks = dog.greedy_log_det(F, 60)
    single = dog.greedy_log_det(F.float(), 60)
    assert single.rows.tolist() == picks.rows.tolist() and single.gains == pytest.approx(
        picks.gains, abs=1e-5
    )
    assert dog.greedy_log_det(F.T.contiguous().T, 60).rows.tolist() == picks.rows.tolist()


def test_quotas_are_kept():
    F, block = rows(40, 5), np.repeat([0, 1, 2, 3], 10)
    picks = dog.greedy_log_det(F, 15, quota=np.array([2, 0, 9, 4]), block=block)
    assert np.bincount(block[picks.rows], minlength=4).tolist() == [2, 0, 9, 4]
    loose = dog.greedy_log_det(F, 15, quota=[40] * 4, block=block)
    assert loose.rows.tolist() == dog.greedy_log_det(F, 15).rows.tolist() != picks.rows.tolist()


def step_by_step(F, k, ridge, quota, block):
    """The greedy loop as one reads it, a look at every number."""
    N, width = F.shape
    block, quota = (np.zeros(N, dtype=int), [k]) if quota is None else (block, quota)
    left = np.minimum(quota, np.bincount(block, minlength=len(quota)))
    q = torch.linalg.vector_norm(F, dim=1).square_()
    q[torch.from_numpy(left[block] == 0)] = -torch.inf
    tolerance = (1e-9 if F.dtype == torch.float64 else 1e-5) * float(q.max())
    inverse, columns, rows, energies = (
        torch.eye(width, dtype=torch.float64),
        F.T.contiguous(),
        [],
        np.zeros(k),
    )
    for step in range(k):
        j = int(torch.nonzero(q >= q.max() - tolerance)[0, 0])
        rows.append(j)
        f = F[j].double().contiguous()
        v = inverse @ f
        energies[step] = max(float(f @ v), 0.0)
        shrink = -1 / (ridge + energies[step])
        inverse.addr_(v, v, alpha=shrink)
        along = torch.mv(columns.T, v.to(q.dtype))
        q.addcmul_(along, along, value=shrink)
        q[j] = -torch.inf
        left[block[j]] -= 1
        if not left[block[j]]:
            q[torch.from_numpy(block == block[j])] = -torch.inf
    return rows, np.log1p(energies / ridge)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("by_columns", [True, False])
def test_no_bit_of_the_greedy_has_moved(dtype, by_columns):
    draw = np.random.default_rng(0)
    for seed in range(40):
        N, width = int(draw.integers(2, 300)), 2 * int(draw.integers(1, 35))
        F = unit_rows(N, width, seed)[draw.integers(0, N, N) if seed % 3 == 0 else slice(None)].to(
            dtype
        )  # some repeat
        F = F.T.contiguous().T if by_columns else F
        block, quota = (
            (draw.integers(0, 5, N), draw.integers(0, N, 5)) if seed % 4 < 2 else (None, None)
        )
        most = N if quota is None else int(np.minimum(quota, np.bincount(block, minlength=5)).sum())
        given = dict(ridge=float(draw.uniform(0.01, 3)), quota=quota, block=block)
        k = int(draw.integers(1, most + 1))
        rows, gains = step_by_step(F, k, **given)
        picks = dog.greedy_log_det(F, k, **given)
        assert (
            picks.rows.dtype == np.int64
            and picks.rows.tolist() == rows
            and np.array_equal(picks.gains, gains)
        )


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: a number read back, or a result whose size is not known before."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
        Waits.found += func.overloadpacket.__name__ in names
        return func(*args, **kwargs or {})


def test_the_greedy_loop_waits_for_nothing(monkeypatch):
    def cpu(tensor, real=torch.Tensor.cpu):
        Waits.found += 1
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    F, counts = unit_rows(400, 8), []
    halves = dict(quota=np.array([150, 250]), block=np.arange(400) % 2)
    for k, options in ((5, {}), (300, {}), (5, halves), (300, halves)):
        Waits.found = 0
        with Waits():
            dog.greedy_log_det(F, k, **options)
        counts.append(Waits.found)
    assert counts[0] == counts[1] < 10 and counts[3] < 30, counts


# ---------------------------------------------------------------- directions


def plain(policy, tokens, layer, pooling):
    """Directions from one forward of the plain network per response, unpacked."""
    out = []
    for x, w, l in zip(tokens.prompts, tokens.chosen, tokens.rejected):
        side = []
        for y in (w, l):
            ids = torch.tensor([[*x, *y[:-1]]])
            states = policy.model(ids, output_hidden_states=True).hidden_states[layer][0]
            own = states[len(x) :] if len(y) > 1 else states[-1:]
            side.append(own.mean(0) if pooling == "mean" else own[-1])
        out.append(side[0] - side[1])
    return torch.stack(out).detach()


def new_gpt2(reference, **shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=40, n_layer=2, initializer_range=0.3, **shape)
        return Policy(transformers.GPT2LMHeadModel(config).eval(), reference.tokenizer)


@pytest.fixture(scope="module")
def gpt2(reference):
    policy = new_gpt2(reference, n_embd=32, n_head=4)
    policy.model.double()
    return policy


@pytest.fixture(scope="module")
def uneven():
    """Pairs of very unequal length; one response is nothing but its end."""
    draw = np.random.default_rng(0)

    def ids(n):
        return draw.integers(3, 40, n)

    lengths = [(3, 9, 2), (12, 4, 4), (1, 1, 6), (5, 2, 1), (7, 7, 3)]
    x, w, l = zip(*[[ids(n) for n in row] for row in lengths])
    return TokenPairs(x, w, l, np.ones(5), np.zeros(5))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_directions_against_plain_forwards(
    reference, tokens, gpt2, uneven, layer, pooling, monkeypatch
):
    sides = ("prompts", "chosen", "rejected", "states_w", "states_l")
    few = dataclasses.replace(tokens, **{name: getattr(tokens, name)[:12] for name in sides})
    monkeypatch.setattr(dog, "BATCH", 4)
    for policy, some in ((reference, few), (gpt2, uneven)):
        wanted, options = plain(policy, some, layer, pooling), dict(layer=layer, pooling=pooling)
        found = dog.directions(policy, some, normalise=False, **options)
        assert found.dtype == torch.float64 and torch.allclose(found, wanted, atol=1e-10, rtol=0)
        unit, some_differ = dog.directions(policy, some, **options), wanted.norm(dim=1) > 1e-9
        assert unit.norm(dim=1).numpy() == pytest.approx(1.0 * some_differ.numpy(), abs=1e-12)
        assert torch.allclose(unit * wanted.norm(dim=1, keepdim=True), wanted, atol=1e-9)


def test_equal_states_have_no_direction(reference, tokens):
    same = dataclasses.replace(tokens, rejected=tokens.chosen, states_l=tokens.states_w)
    assert (dog.directions(reference, same) == 0).all()
    back = [np.r_[y[:-1][::-1], y[-1]] for y in tokens.chosen]
    turned = dataclasses.replace(tokens, rejected=back, states_l=tokens.states_w)
    assert (dog.directions(reference.to("float32"), turned, layer=0) == 0).all(), (
        "same words, other order: noise"
    )


def test_directions_in_lower_precision_are_float32(reference, tokens):
    wanted = dog.directions(reference, tokens)
    for dtype, cosine in (("float32", 0.9999), ("bfloat16", 0.95)):
        u = dog.directions(reference.to(dtype), tokens)
        assert u.dtype == torch.float32 and ((u * wanted).sum(1) > cosine).all()


# ---------------------------------------------------------------- directions, in blocks on disk


@pytest.fixture(scope="module")
def small(reference):
    return new_gpt2(reference, n_embd=16, n_head=2)


@pytest.fixture(scope="module")
def many():
    """37 pairs of unequal length."""
    g = np.random.default_rng(1)

    def draw():
        return [g.integers(3, 40, g.integers(1, 12)) for _ in range(37)]

    return TokenPairs(draw(), draw(), draw(), np.ones(37), np.zeros(37))


@torch.no_grad()
def in_one_go(policy, tokens, layer, pooling, normalise, batch_size):
    """Directions with nothing on disk, each batch at once."""
    lengths = [len(x) for x in tokens.prompts] + tokens.lengths_w + tokens.lengths_l
    names = [x.tobytes() for x in tokens.prompts]
    longest = {x: max(n for n, y in zip(lengths, names) if y == x) for x in names}
    order = sorted(range(len(names)), key=lambda i: (longest[names[i]], names.index(names[i])))
    parts = []
    for rows in np.array_split(order, -(-len(tokens) // batch_size)):
        batch, dtype = tokens.batch(rows, policy), policy.model.dtype
        bias = torch.zeros(batch.mask.shape, dtype=dtype).masked_fill_(
            ~batch.mask, torch.finfo(dtype).min
        )
        inputs = dict(
            input_ids=batch.ids, attention_mask=bias, position_ids=batch.positions, use_cache=False
        )
        hidden = (
            policy.model.base_model(**inputs, output_hidden_states=True)
            .hidden_states[layer]
            .flatten(0, 1)[batch.source]
        )
        depth = policy.model.config.num_hidden_layers
        (own,) = layer_states(policy.model, batch, [layer % (depth + 1)])
        scale = hidden.abs().max().clamp(min=1)
        assert (own - hidden).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5) * scale
        hidden = own
        lengths = np.stack([tokens.lengths_w[rows], tokens.lengths_l[rows]], 1).ravel()
        own = [s[1:] if len(s) > 1 else s for s in hidden.split(lengths.tolist())]
        pooled = [s.mean(0) if pooling == "mean" else s[-1] for s in own]
        w, l = torch.stack(pooled[0::2]), torch.stack(pooled[1::2])
        noise = (1e-9 if dtype == torch.float64 else 1e-5) * w.norm(dim=1, keepdim=True)
        parts.append(torch.where((w - l).norm(dim=1, keepdim=True) > noise, w - l, 0.0))
    u = torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable"))]
    return torch.nn.functional.normalize(u, dim=1) if normalise else u


@pytest.mark.parametrize(
    "layer, pooling, normalise, size",
    [
        (-1, "mean", True, 64),
        (2, "last", True, 5),
        (-1, "mean", False, 5),
        (1, "mean", True, 5),
        (0, "last", False, 3),
    ],
)
def test_blocks_change_no_bit(
    reference, tokens, small, many, layer, pooling, normalise, size, fresh_cache, monkeypatch
):
    monkeypatch.setattr(dog, "BLOCK", 2)
    monkeypatch.setattr(dog, "BATCH", size)
    for policy, some in ((reference, tokens), (reference.to("float32"), tokens), (small, many)):
        wanted = in_one_go(policy, some, layer, pooling, normalise, size)
        for _ in range(2):  # computed, then read
            found = dog.directions(policy, some, layer=layer, pooling=pooling, normalise=normalise)
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.fixture
def forwards(monkeypatch):
    """Counts the batches that go through the network; the one with number `stop` fails."""
    seen, real = [], dog._layer

    def layer(*given):
        if len(seen) == layer.stop:
            raise KeyboardInterrupt
        seen.append(given)
        return real(*given)

    layer.stop = None
    for name, value in (("_layer", layer), ("BLOCK", 3), ("BATCH", 4)):
        monkeypatch.setattr(dog, name, value)
    return layer, seen


def test_what_was_killed_goes_on_where_it_was(small, many, fresh_cache, forwards):
    layer, seen = forwards
    wanted = in_one_go(small, many, -1, "mean", True, 4)  # ten batches: blocks of 3, 3, 3, 1
    layer.stop = 8
    with pytest.raises(KeyboardInterrupt):
        dog.directions(small, many)
    files = sorted((fresh_cache / "directions").iterdir())
    assert len(seen) == 8 and len(files) == 2 and all(f.suffix == ".safetensors" for f in files)
    layer.stop = None
    assert torch.equal(dog.directions(small, many), wanted) and len(seen) == 8 + 10 - 6
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert torch.equal(dog.directions(small, many), wanted) and len(seen) == 12 + 3, "a torn block"


def test_only_the_same_question_is_read_from_disk(small, many, fresh_cache, forwards):
    _, seen = forwards
    other = small.copy()
    other.model.get_input_embeddings().weight.data[3] += 1
    longer = dataclasses.replace(many, chosen=[np.r_[y, 5] for y in many.chosen])
    rest = dataclasses.replace(many, rejected=[np.r_[y, 5] for y in many.rejected])
    turned = dataclasses.replace(many, chosen=many.rejected, rejected=many.chosen)
    asks = [(small, many, dict(layer=1)), (small, many, dict(pooling="last")), (small, many, {})]
    asks += [(other, many, {}), (small, longer, {}), (small, rest, {}), (small, turned, {})]
    asks += [(small.to("bfloat16"), many, {})]
    for policy, some, options in asks:
        before = len(seen)
        u = dog.directions(policy, some, **options)
        assert len(seen) - before == 10, options
        again = dog.directions(policy, some, normalise=False, **options)
        assert torch.equal(torch.nn.functional.normalize(again, dim=1), u), (
            "one entry, of any length"
        )
        assert torch.equal(dog.directions(policy, some, **{"layer": 2} | options), u)
        assert len(seen) - before == 10, "read, under either name of a layer"


def test_batches_are_part_of_the_key(small, many, fresh_cache, forwards, monkeypatch):
    """The same pairs in one block, padded otherwise, have other digits."""
    _, seen = forwards
    sides = ("prompts", "chosen", "rejected")
    few = dataclasses.replace(many, **{name: getattr(many, name)[:12] for name in sides})
    for size, batches in ((4, 3), (12, 1), (12, 0)):
        before = len(seen)
        monkeypatch.setattr(dog, "BATCH", size)
        dog.directions(small, few)
        assert len(seen) - before == batches


def test_the_progress_bar_is_for_those_who_watch(small, many, fresh_cache, capsys, monkeypatch):
    dog.directions(small, many)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    dog.directions(small, many, layer=1)
    shown = capsys.readouterr().err
    assert "directions:" in shown and "0/1" in shown


# ---------------------------------------------------------------- copies, anchor and residuals


COPIES = [
    ("x", "a", "b", 0, 1),
    ("y", "a", "b", 0, 1),
    ("x", "b", "a", 1, 2),
    ("x", "a", "b", 1, 1),
    ("x", "a", "c", 0, 1),
]


def copies(**columns):
    """Five pairs with copies among them; one of the copies has another winner."""
    return pd.DataFrame(
        COPIES, columns=["prompt", "response_0", "response_1", "chosen", "source"]
    ).assign(**columns)


def test_copies_are_merged_by_their_texts():
    merged, counts = dog.merge_copies(copies())
    assert merged.equals(copies().iloc[[0, 1, 4]].reset_index(drop=True)) and counts.tolist() == [
        3,
        1,
        1,
    ]


def test_no_label_decides_which_pairs_are_copies():
    """So a pool can be merged, and pairs picked from it, before anyone has labelled them."""
    wanted, counts = dog.merge_copies(copies())
    for chosen in (0, 1, [1, 0, 1, 0, 1]):
        merged, again = dog.merge_copies(copies(chosen=chosen))
        assert merged.drop(columns="chosen").equals(wanted.drop(columns="chosen"))
        assert again.tolist() == counts.tolist()
    unlabelled, _ = dog.merge_copies(copies().drop(columns="chosen"))
    assert len(unlabelled) == 3


def data_sets(shared, copies, own, width=24):
    """Four data sets on coordinate axes: `copies[i]` rows on shared axis i, `own` on an axis of the data set."""
    axes = [np.r_[np.repeat(np.arange(shared), copies), np.full(own, shared + j)] for j in range(4)]
    u = torch.eye(width).double()[np.concatenate(axes)]
    return u, np.repeat(list("dcba"), [len(a) for a in axes]), np.concatenate(axes) >= shared


@pytest.mark.parametrize("n", [8, 60])
def test_anchor_spans_the_shared_and_residuals_the_own_directions(n):
    u, source, own = data_sets(4, [30, 28, 26, 24], n)
    where, eigenvalues = (
        dog.coordinates(u, source),
        np.array([30, 28, 26, 24, n / 4, n / 4]) / (108 + n),
    )
    assert (
        where.names == ("a", "b", "c", "d") and (np.array(where.names)[where.block] == source).all()
    )
    assert where.energies.tolist() == np.stack([~own, own], 1).astype(float).tolist()
    for singular in where.singular:  # one own direction, and nothing else
        assert singular[:2] == pytest.approx([(n / (108 + n)) ** 0.5, 0], abs=1e-7)
    assert where.residual.shape[1] == 1, "q shrinks to what is left"
    more = np.r_[
        np.arange(len(u)), np.flatnonzero(source == "a")
    ]  # a larger data set weighs no more
    for found in (where, dog.coordinates(u[more], source[more])):
        assert found.anchor_values[:6] == pytest.approx(eigenvalues, abs=1e-12)


def test_the_literal_reading_fills_residuals_with_what_is_shared():
    u, source, own = data_sets(10, 30 - np.arange(10), 12)
    literal = dog.coordinates(u, source, outside="anchor", residual_rank=6)
    ours = dog.coordinates(u, source)
    assert (literal.energies[own] == 0).all(), "the own directions are in neither subspace"
    assert (ours.energies[own] == [0, 1]).all() and (ours.energies[~own][:, 1] == 0).all()
    last = np.r_[np.flatnonzero(~own), np.flatnonzero(own)]  # ties go against the own pairs
    u, source, own = u[last], source[last], own[last]
    assert not own[dog.dog_d(u, source, 20, outside="anchor", residual_rank=6).rows].any()
    assert own[dog.dog_d(u, source, 20).rows].any()


def test_a_single_data_set_takes_what_lies_outside_the_anchor():
    u = rows(50, 8)
    both = [
        dog.coordinates(u, ["one"] * 50, outside=o, residual_rank=3) for o in ("others", "anchor")
    ]
    assert np.array_equal(*[c.energies for c in both]) and both[0].residual.shape == (50, 3)
    full = dog.coordinates(u, ["one"] * 50, residual_rank=8)
    assert full.energies.sum(1) == pytest.approx(u.square().sum(1).numpy(), abs=1e-8)


def test_features_of_two_data_sets_meet_in_the_anchor_only():
    u, source = unit_rows(40, 12), np.repeat(["p", "q"], 20)
    where = dog.coordinates(u, source, residual_rank=3, span=0.5)
    F = dog.features(where, weights=(9.0, 0.25))
    a, b = where.anchor @ where.anchor.T, where.residual @ where.residual.T
    same = torch.from_numpy(source[:, None] == source[None])
    assert F.shape == (40, 4 + 2 * 3) and torch.allclose(
        F @ F.T, 9 * a + 0.25 * b * same, atol=1e-12
    )


# ---------------------------------------------------------------- budget and frontier


@pytest.mark.parametrize(
    "how, k, quota",
    [
        ("proportional", 10, [5, 3, 2]),
        ("proportional", 1, [1, 0, 0]),
        ("proportional", 7, [4, 2, 1]),
        ("equal", 9, [3, 3, 3]),
        ("equal", 10, [4, 3, 3]),
        ("equal", 90, [40, 31, 19]),
        ("equal", 2, [1, 1, 0]),
        ("proportional", 100, [50, 31, 19]),
        ("equal", 100, [50, 31, 19]),
    ],
)
def test_split_of_the_budget(how, k, quota):
    assert dog.split_budget(k, np.repeat(["a", "b", "c"], [50, 31, 19]), how).tolist() == quota


def test_budget_size():
    assert [dog.budget_size(b, 200) for b in (0.11, 1, 1e-6)] == [22, 200, 1]


@pytest.mark.parametrize("seed", range(3))
def test_fronts_against_peeling(seed):
    e = np.random.default_rng(seed).integers(0, 12, (150, 2)) / 10  # with many ties
    wanted, left, number = np.full(150, -1), np.arange(150), 0
    while len(left):
        dominated = [((e[left] >= e[i]).all(1) & (e[left] > e[i]).any(1)).any() for i in left]
        wanted[left[~np.array(dominated)]], number = number, number + 1
        left = left[np.array(dominated)]
    assert dog.fronts(e).tolist() == wanted.tolist() and number > 5


def test_dog_takes_front_by_front():
    u = unit_rows(45, 20).repeat(2, 1)[:90]  # every pair twice
    source = np.repeat(["p", "q", "r"], [50, 30, 10])
    energy = dog.coordinates(u, source).energies
    front = dog.fronts(energy)
    order = sorted(range(90), key=lambda i: (front[i], -round(energy[i].sum(), 9)))
    assert dog.dog(u, source, 20).tolist() == order[:20]
    split = dog.dog_d(u, source, 20, split="proportional").rows
    assert [int((source[split] == name).sum()) for name in "pqr"] == [11, 7, 2]
    assert len(set(split)) == 20
    spread = dog.dog_d(u, source, 21, split="equal").rows
    assert [int((source[spread] == name).sum()) for name in "pqr"] == [7, 7, 7]


# ---------------------------------------------------------------- refusals


U, NAMES, MANY = unit_rows(12, 4), ["p"] * 6 + ["q"] * 6, dict(anchor_rank=2, residual_rank=2)
REFUSED = [
    (lambda: dog.greedy_log_det(U, 0), "k=0: choose between 1 and all 12"),
    (lambda: dog.greedy_log_det(U, 13), "k=13"),
    (
        lambda: dog.greedy_log_det(U, 3, ridge=0.0),
        "ridge=0.0: must be above 0, as det is 0 once k exceeds the rank",
    ),
    (lambda: dog.greedy_log_det(U, 3, ridge=np.nan), "ridge=nan"),
    (
        lambda: dog.greedy_log_det(U / 0, 3),
        "features: hold numbers that are not finite at pair rows",
    ),
    (
        lambda: dog.greedy_log_det(U, 9, quota=[8, 2], block=np.repeat([0, 1], 6)),
        "allows 8 picks .* lower k=9",
    ),
    (lambda: dog.budget_size(0.0, 9), "budget=0.0"),
    (lambda: dog.budget_size(1.1, 9), "budget=1.1"),
    (
        lambda: dog.split_budget(3, NAMES, "fair"),
        "split='fair': choose proportional, equal or global",
    ),
    (lambda: dog.split_budget(13, NAMES, "equal"), "k=13"),
    (lambda: dog.coordinates(U, NAMES, anchor_rank=5), "anchor_rank=5: a subspace of D = 4"),
    (lambda: dog.coordinates(U, NAMES), "residual_rank=16: a subspace of D = 4"),
    (
        lambda: dog.coordinates(U, NAMES, **MANY, outside="all"),
        "outside='all'.*choose others or anchor",
    ),
    (lambda: dog.coordinates(U, NAMES, **MANY, span=0.0), "span=0.0"),
    (lambda: dog.coordinates(U, NAMES[1:], **MANY), "source: 11 names for 12 directions"),
]


@pytest.mark.parametrize("call, reason", REFUSED)
def test_refusals_say_what_to_do(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


@pytest.mark.parametrize("options", [dict(layer=3), dict(layer=-4), dict(pooling="max")])
def test_layers_and_poolings_that_do_not_exist_are_refused_before_any_forward(
    reference, tokens, options
):
    with pytest.raises(
        ValueError, match="|".join([r"layers 0 to 2, or -3 to -1", "choose mean or last"])
    ):
        dog.directions(dataclasses.replace(reference, tokenizer=None), tokens, **options)


def test_the_benchmark_runs():
    command = [sys.executable, ROOT / "tests/benchmarks/selection.py", "--toy"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (
        printed.startswith("time and memory of selection against N") and printed.count("\n") >= 12
    )


def test_directions_that_are_not_finite_are_refused_by_row():
    """Whatever selects by directions names the pairs; nothing is chosen by what NaN compares like."""
    u = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 20)))
    source = np.array(["a", "b"] * 6)
    u[3, 1], u[7] = torch.nan, torch.inf
    calls = [
        lambda: dog.coordinates(u, source),
        lambda: dog.greedy_log_det(u, 2),
        lambda: dog.dog(u, source, 2),
        lambda: dog.dog_d(u, source, 2),
        lambda: pair_controls.k_means(u, 2, seed=0),
        lambda: pair_controls.facility_location(u, 2),
        lambda: pair_controls.k_centre(u, 2),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match="not finite at pair rows 3, 7 .2 in all.; drop those pairs"
        ):
            call()
    with pytest.raises(ValueError, match="energies: row 1"):
        dog.fronts(np.array([[1.0, 2.0], [np.nan, 0.0]]))


def test_singular_values_are_those_of_the_residual():
    """By numpy's SVD of the directions of each data set, outside the anchor; a span of all is taken."""
    u = np.random.default_rng(3).normal(size=(30, 5))
    source = np.repeat(["a", "b"], [12, 18])
    asked = dict(anchor_rank=2, residual_rank=3, outside="anchor", span=1.0)
    where = dog.coordinates(torch.from_numpy(u), source, **asked)
    parts = [u[source == name] for name in where.names]
    mean = np.mean([part.T @ part / len(part) for part in parts], axis=0)
    anchor = np.linalg.eigh(mean)[1][:, :-3:-1]
    outside = np.eye(5) - anchor @ anchor.T
    assert len(where.singular) == 2
    for part, values in zip(parts, where.singular):
        wanted = np.linalg.svd(part @ outside, compute_uv=False) / np.sqrt(len(part))
        assert np.allclose(values, wanted, atol=1e-7)


def test_five_pairs_are_named_of_those_that_are_not_finite():
    u = torch.ones(8, 2, dtype=torch.float64)
    u[1:7, 0] = torch.nan
    with pytest.raises(ValueError, match=r"rows 1, 2, 3, 4, 5, \.\.\. \(6 in all\)"):
        dog.check_finite(u)
    with pytest.raises(ValueError, match=r"rows 1, 2, 3, 4, 5 \(5 in all\)"):
        dog.check_finite(u[:6])


# ---------------------------------------------------------------- the edges of what is allowed
def test_what_is_not_given_is_what_the_docstrings_say():
    u, source = rows(60, 24), np.repeat(["p", "q", "r"], 20)
    where = dog.coordinates(u, source)
    said = dict(anchor_rank=4, residual_rank=16, outside="others", span=0.9)
    same = dog.coordinates(u, source, **said)
    assert torch.equal(where.anchor, same.anchor) and torch.equal(where.residual, same.residual)
    assert where.anchor.shape == (60, 4) and where.residual.shape[1] <= 16
    one = dog.dog_d(u, source, 9)
    two = dog.dog_d(u, source, 9, split="global", ridge=1.0, weights=(1.0, 1.0), **said)
    assert one.rows.tolist() == two.rows.tolist() and np.array_equal(one.gains, two.gains)
    assert dog.log_det(u, [0, 5]) == pytest.approx(
        np.linalg.slogdet(np.eye(24) + (u[[0, 5]].T @ u[[0, 5]]).numpy())[1]
    )
    assert dog.greedy_log_det(u, 4).gains.sum() == pytest.approx(
        dog.log_det(u, dog.greedy_log_det(u, 4).rows)
    )


@pytest.mark.parametrize(
    "dtype, tied, more", [(torch.float64, 5e-10, 2e-9), (torch.float32, 4e-6, 3e-5)]
)
def test_how_near_two_rows_are_tied(dtype, tied, more):
    """Within a share of the largest square: the first wins, and beyond it the larger."""
    for scale in (1.0, 30.0):
        for off, first in ((tied, 0), (more, 1)):
            squares = torch.tensor([1.0, 1.0 + off, 0.1], dtype=torch.float64)
            F = scale * torch.diag(squares.sqrt()).to(dtype)
            assert dog.greedy_log_det(F, 1).rows.tolist() == [first], (scale, off)


def test_how_much_of_a_moment_the_others_span():
    """The fewest leading eigenvectors that hold the share; one that holds it exactly is enough."""
    u = torch.diag(torch.tensor([3.0, 1.0, 0.0]).double())
    for span, count in ((0.9, 1), (0.9 + 1e-6, 2), (0.5, 1), (1.0, 2)):
        assert dog._leading(u.T @ u, span).shape == (3, count), span


def test_moments_of_many_rows_and_of_many_dimensions():
    u = torch.randn(9000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = torch.arange(0, 9000)
    assert torch.allclose(dog._moment(u, some), u.T @ u / 9000, atol=1e-12)
    for D, dtype in ((1024, torch.float64), (1025, torch.float32)):
        assert dog._moment(torch.ones(2, D), torch.arange(2)).dtype == dtype


def test_budgets_at_their_ends():
    assert [dog.budget_size(b, 10) for b in (0.149, 0.151, 0.95, 1e-9)] == [1, 2, 10, 1]
    assert dog.split_budget(3, NAMES, "global") is None
    for call in (lambda: dog.check_count(0, 5), lambda: dog.check_count(6, 5)):
        with pytest.raises(ValueError, match="choose between 1 and all 5 pairs"):
            call()
    dog.check_count(1, 1)
    for ridge in (-1.0, np.inf):
        with pytest.raises(ValueError, match=f"ridge={ridge}"):
            dog.greedy_log_det(U, 3, ridge=ridge)
    full = dog.coordinates(U, NAMES, anchor_rank=4, residual_rank=4, span=1.0)
    none = dog.coordinates(U, NAMES, anchor_rank=0, residual_rank=0)
    assert full.anchor.shape == (12, 4) and none.anchor.shape == none.residual.shape == (12, 0)
