"""DOG for large pools: blocks on disk, a greedy loop that waits for nobody, and greedy over parts of the pool."""

import dataclasses
import importlib
import sys
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from helpers import ROOT
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from safealign_utils import pairs
from safealign_utils.methods import dog
from safealign_utils.methods import dog as d
from safealign_utils.methods.dog_partitioned import partitioned_dog_d
from safealign_utils.pairs import TokenPairs
from safealign_utils.policy import Policy


def unit_rows(n, width, seed=0, dtype=torch.float64):
    u = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (u / u.norm(dim=1, keepdim=True)).to(dtype)


# ---------------------------------------------------------------- directions, in blocks


@pytest.fixture(scope="module")
def gpt2(reference):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
        )
        return Policy(transformers.GPT2LMHeadModel(config).eval(), reference.tokenizer)


@pytest.fixture(scope="module")
def many():
    """37 pairs of unequal length."""
    g = np.random.default_rng(1)
    draw = lambda: [g.integers(3, 40, g.integers(1, 12)) for _ in range(37)]
    return TokenPairs(draw(), draw(), draw(), np.ones(37), np.zeros(37))


@torch.no_grad()
def in_one_go(policy, tokens, layer, pooling, normalise, batch_size):
    """Directions with nothing on disk and every layer kept: what the digits of the notebooks were made with."""
    order = np.argsort(
        [len(x) for x in tokens.prompts] + tokens.lengths_w + tokens.lengths_l, kind="stable"
    )
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
            .flatten(0, 1)
        )
        lengths = np.stack([tokens.lengths_w[rows], tokens.lengths_l[rows]], 1).ravel()
        own = [s[1:] if len(s) > 1 else s for s in hidden[batch.source].split(lengths.tolist())]
        pooled = [s.mean(0) if pooling == "mean" else s[-1] for s in own]
        w, l = torch.stack(pooled[0::2]), torch.stack(pooled[1::2])
        noise = (1e-9 if dtype == torch.float64 else 1e-5) * w.norm(dim=1, keepdim=True)
        parts.append(torch.where((w - l).norm(dim=1, keepdim=True) > noise, w - l, 0.0))
    u = torch.cat(parts)[torch.from_numpy(np.argsort(order))]
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
    reference, tokens, gpt2, many, layer, pooling, normalise, size, fresh_cache, monkeypatch
):
    monkeypatch.setattr(d, "BLOCK", 2)
    for policy, some in ((reference, tokens), (reference.to("float32"), tokens), (gpt2, many)):
        wanted = in_one_go(policy, some, layer, pooling, normalise, size)
        for _ in range(2):  # computed, then read
            found = dog.directions(
                policy, some, layer=layer, pooling=pooling, normalise=normalise, batch_size=size
            )
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.fixture
def forwards(monkeypatch):
    """Counts the batches that go through the network; the one with number `stop` fails."""
    seen, real = [], d._layer

    def layer(*given):
        if len(seen) == layer.stop:
            raise KeyboardInterrupt
        seen.append(given)
        return real(*given)

    layer.stop = None
    monkeypatch.setattr(d, "_layer", layer), monkeypatch.setattr(d, "BLOCK", 3)
    return layer, seen


def test_what_was_killed_goes_on_where_it_was(gpt2, many, fresh_cache, forwards):
    layer, seen = forwards
    wanted = in_one_go(gpt2, many, -1, "mean", True, 4)  # ten batches: blocks of 3, 3, 3, 1
    layer.stop = 8
    with pytest.raises(KeyboardInterrupt):
        dog.directions(gpt2, many, batch_size=4)
    files = sorted((fresh_cache / "directions").iterdir())
    assert len(seen) == 8 and len(files) == 2 and all(f.suffix == ".safetensors" for f in files)
    layer.stop = None
    assert torch.equal(dog.directions(gpt2, many, batch_size=4), wanted) and len(seen) == 8 + 10 - 6
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert torch.equal(dog.directions(gpt2, many, batch_size=4), wanted) and len(seen) == 12 + 3, (
        "a torn block"
    )


def test_only_the_same_question_is_read_from_disk(gpt2, many, fresh_cache, forwards):
    _, seen = forwards
    other = gpt2.copy()
    other.model.get_input_embeddings().weight.data[3] += 1
    longer = dataclasses.replace(many, chosen=[np.r_[y, 5] for y in many.chosen])
    turned = dataclasses.replace(many, chosen=many.rejected, rejected=many.chosen)
    asks = [
        (gpt2, many, {}),
        (gpt2, many, dict(layer=1)),
        (gpt2, many, dict(pooling="last")),
        (other, many, {}),
    ]
    rest = dataclasses.replace(many, rejected=[np.r_[y, 5] for y in many.rejected])
    asks += [
        (gpt2, longer, {}),
        (gpt2, rest, {}),
        (gpt2, turned, {}),
        (gpt2.to("bfloat16"), many, {}),
        (gpt2, many, dict(batch_size=5)),
    ]
    for policy, some, options in asks:
        before = len(seen)
        u = dog.directions(policy, some, **{"batch_size": 4} | options)
        assert len(seen) - before == -(-37 // options.get("batch_size", 4)), options
        again = dog.directions(policy, some, normalise=False, **{"batch_size": 4, **options})
        assert torch.equal(torch.nn.functional.normalize(again, dim=1), u), (
            "one entry, of any length"
        )
        dog.directions(
            policy, some, **{"batch_size": 4} | options | (dict(layer=2) if not options else {})
        )
        assert len(seen) - before == -(-37 // options.get("batch_size", 4)), (
            "read, under either name of a layer"
        )
    few = dataclasses.replace(
        many, **{name: getattr(many, name)[:12] for name in ("prompts", "chosen", "rejected")}
    )
    for size, batches in (
        (4, 3),
        (12, 1),
        (12, 0),
    ):  # the same pairs in one block, padded otherwise
        before = len(seen)
        dog.directions(gpt2, few, batch_size=size)
        assert len(seen) - before == batches


def test_the_progress_bar_is_for_those_who_watch(gpt2, many, fresh_cache, capsys, monkeypatch):
    dog.directions(gpt2, many)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    dog.directions(gpt2, many, layer=1)
    shown = capsys.readouterr().err
    assert "directions:" in shown and "/37" in shown


# ---------------------------------------------------------------- greedy, step by step and without a wait


def step_by_step(F, k, ridge, ids, quota, block):
    """The greedy loop as one reads it, a look at every number: what the digits of the notebooks were made with."""
    N, width = F.shape
    ids = torch.arange(N) if ids is None else torch.from_numpy(ids)
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
        tied = torch.nonzero(q >= q.max() - tolerance)[:, 0]
        j = int(tied[ids[tied].argmin()])
        rows.append(j)
        f = F[j].double()
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
        ids = draw.permutation(3 * N)[:N] if seed % 2 else None
        block, quota = (
            (draw.integers(0, 5, N), draw.integers(0, N, 5)) if seed % 4 < 2 else (None, None)
        )
        most = N if quota is None else int(np.minimum(quota, np.bincount(block, minlength=5)).sum())
        given = dict(ridge=float(draw.uniform(0.01, 3)), ids=ids, quota=quota, block=block)
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


# ---------------------------------------------------------------- greedy over parts


def pool(n=240, width=24):
    u = unit_rows(n, width, seed=5) * torch.linspace(1, 1.2, n, dtype=torch.float64)[:, None]
    return (
        u,
        np.array(list("abcd"))[np.arange(n) % 4],
        np.random.default_rng(0).permutation(5 * n)[:n],
    )


def parts_of(u, source, ids, rows):
    return [lambda r=r: (u[torch.from_numpy(r)], source[r], ids[r]) for r in rows]


@pytest.mark.parametrize(
    "options", [{}, dict(outside="anchor", residual_rank=3), dict(span=0.5, ridge=0.1)]
)
def test_one_part_is_the_greedy_itself(options):
    u, source, ids = pool()
    wanted = dog.dog_d(u, source, 40, ids=ids, **options)
    found = partitioned_dog_d(parts_of(u, source, ids, [np.arange(240)]), 40, **options)
    assert found.ids.tolist() == ids[wanted.rows].tolist() and set(found.part) == {0}
    assert found.gains == pytest.approx(wanted.gains, abs=1e-10)


@pytest.mark.parametrize("how", ["dealt", "a data set each", "one has but two rows"])
def test_subspaces_of_parts_are_those_of_the_pool(how):
    u, source, ids = pool()
    order = (
        np.argsort(source, kind="stable")
        if how == "a data set each"
        else np.random.default_rng(3).permutation(240)
    )
    rows = np.split(order, [2, 130]) if "two" in how else np.array_split(order, 4)
    weights = (1.5, 0.5)
    F = dog.features(dog.coordinates(u, source), weights=weights)
    found = partitioned_dog_d(
        parts_of(u, source, ids, rows), 30, per_part=30, weights=weights, ridge=0.5
    )
    at = {i: row for row, i in enumerate(ids)}
    picked = [at[i] for i in found.ids]
    assert len(set(picked)) == 30 and all(row in rows[p] for row, p in zip(picked, found.part))
    assert found.value == pytest.approx(dog.log_det(F, picked, ridge=0.5), abs=1e-8)
    one = dog.dog_d(u, source, 30, ids=ids, weights=weights, ridge=0.5).gains.sum()
    chance = [
        dog.log_det(F, np.random.default_rng(s).permutation(240)[:30], ridge=0.5) for s in range(5)
    ]
    assert found.value > one - 0.1 * (one - np.mean(chance)), (
        "most of what greedy gains over chance is kept"
    )
    more = partitioned_dog_d(
        parts_of(u, source, ids, rows), 30, per_part=60, weights=weights, ridge=0.5
    )
    assert (
        len(set(more.part)) > 1
        and len(more.ids) == 30
        and more.value > one - 0.1 * (one - np.mean(chance))
    )


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_the_best_parts_own_pick_wins_where_it_is_better(seed):
    u, source, ids, options = (
        unit_rows(8, 3, seed),
        np.array(list("aabb") * 2),
        np.arange(8),
        dict(ridge=0.05),
    )
    F = dog.features(dog.coordinates(u, source, anchor_rank=3, residual_rank=0))
    found = partitioned_dog_d(
        parts_of(u, source, ids, [ids[:4], ids[4:]]), 3, anchor_rank=3, residual_rank=0, **options
    )
    own = dog.greedy_log_det(F[4:], 3, **options)
    assert found.value == pytest.approx(own.gains.sum(), abs=1e-10)
    assert found.value > dog.greedy_log_det(F, 3, **options).gains.sum() + 0.01
    assert found.part.tolist() == [1, 1, 1] and found.ids.tolist() == (4 + own.rows).tolist()
    assert dog.log_det(F, found.ids, **options) == pytest.approx(found.value, abs=1e-10)


def test_workers_of_a_cluster_give_the_same(tmp_path):
    from dask.distributed import Client, LocalCluster

    u, source, ids = pool()
    rows, files = np.array_split(np.random.default_rng(3).permutation(240), 5), []
    for p, r in enumerate(rows):
        files.append(tmp_path / f"{p}.safetensors")
        block = torch.from_numpy(np.searchsorted(np.unique(source), source[r]))
        save_file(
            {"u": u[torch.from_numpy(r)], "block": block, "ids": torch.from_numpy(ids[r])},
            files[-1],
        )

    def read(file):
        part = load_file(file)
        return part["u"], np.array(list("abcd"))[part["block"].numpy()], part["ids"].numpy()

    given = dict(per_part=20, ridge=0.5)
    wanted = partitioned_dog_d(parts_of(u, source, ids, rows), 30, **given)
    options = dict(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path
    )
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        found = partitioned_dog_d(
            [partial(read, file) for file in files], 30, client=client, **given
        )
        with pytest.raises(ValueError, match="k=241: choose between 1 and all 240"):
            partitioned_dog_d([partial(read, file) for file in files], 241, client=client)
    for name in ("ids", "part", "gains"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize(
    "given, reason",
    [
        (dict(k=0), "k=0: choose between 1 and all 240"),
        (dict(k=30, per_part=14), "per_part=14: 2 parts offer 28 pairs"),
        (dict(k=3, anchor_rank=25), "anchor_rank=25: a subspace of D = 24"),
        (dict(k=3, outside="all"), "outside='all'"),
        (dict(k=3, ridge=0.0), "ridge=0.0: must be above 0"),
        (dict(k=3, twice=True), "ids: 3 different ids for 6 pairs"),
        (dict(k=3, none=True), r"parts=\[\]: give at least one"),
    ],
)
def test_refusals_say_what_to_do(given, reason):
    u, source, ids = pool()
    rows = [] if given.pop("none", False) else [np.arange(120), np.arange(120, 240)]
    parts = (
        [parts_of(u, source, ids, [rows[0]])[0]] * 2
        if given.pop("twice", False)
        else parts_of(u, source, ids, rows)
    )
    with pytest.raises(ValueError, match=reason):
        partitioned_dog_d(parts, **given)


def test_what_parts_lose_is_measured(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tests/benchmarks")
    benchmark = importlib.import_module("selection")
    table = benchmark.lost("clusters", *benchmark.clusters(400, width=32), counts=(2, 4))
    lost = {row[3:7]: row[7] for row in table}
    assert len(table) == capsys.readouterr().out.count("\n") == 2 * 2 * (1 + 2)
    assert all(row[7] < 0.75 * row[8] for row in table), "less than random picks lose"
    assert lost[44, "random", 4, 44] < 0.5 and {key[1] for key in lost} == {"random", "by data set"}


def test_the_world_pool_keeps_its_pairs(world, reference):
    """On the pairs that the notebook selects from: a split by data set costs little, in nats and in pairs."""
    from safealign_utils.world.redundant import world_pool

    table = pairs.label(world_pool(world, 480))
    u, source, ids = (
        dog.directions(reference, pairs.tokenize(table, reference)),
        table.source.to_numpy(),
        np.arange(480),
    )
    one = dog.dog_d(u, source, 53)
    rows = [np.flatnonzero(source == name) for name in np.unique(source)]
    found = partitioned_dog_d(parts_of(u, source, ids, rows), 53)
    assert (
        abs(found.value / one.gains.sum() - 1) < 0.01
        and len(set(found.ids) & set(one.rows)) > 53 / 2
    )
