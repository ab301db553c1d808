"""DOG-DPO's selection and its controls: greedy log det against brute force, directions against plain forwards."""

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

from safealign_utils.methods import dog
from safealign_utils.methods import pair_controls as s
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


def test_ties_go_to_the_lowest_id():
    F = unit_rows(30, 6)
    assert dog.greedy_log_det(F, 1).rows.tolist() == [0], "unit rows all tie at the first pick"
    assert dog.greedy_log_det(F, 1, ids=np.arange(30)[::-1]).rows.tolist() == [29]
    twice = torch.cat([F[5:], F[:5], F[5:]])
    once, ids = dog.greedy_log_det(twice[:30], 12).rows, np.r_[np.arange(100, 130), np.arange(25)]
    assert dog.greedy_log_det(twice, 12).rows.tolist() == once.tolist(), (
        "of two equal rows the first"
    )
    late = dog.greedy_log_det(twice, 12, ids=ids).rows
    assert not set(late) & set(range(25)), "of two equal rows the lower id, which stands later here"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_order_of_the_input_changes_nothing(dtype):
    F = unit_rows(20, 6, dtype=dtype).repeat(3, 1)
    ids = np.random.default_rng(1).permutation(1000)[:60]
    wanted = ids[dog.greedy_log_det(F, 30, ids=ids).rows]
    for seed in range(5):
        p = np.random.default_rng(seed).permutation(60)
        assert ids[p][dog.greedy_log_det(F[p], 30, ids=ids[p]).rows].tolist() == wanted.tolist()


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


# ---------------------------------------------------------------- directions


class LeftPadded(TokenPairs):
    def batch(self, rows, policy):
        return super().batch(rows, policy, padding="left")


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


@pytest.fixture(scope="module")
def gpt2(reference):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
        )
        model = transformers.GPT2LMHeadModel(config).double().eval()
    return Policy(model, reference.tokenizer)


@pytest.fixture(scope="module")
def uneven():
    """Pairs of very unequal length; one response is nothing but its end."""
    draw = np.random.default_rng(0)
    ids = lambda n: draw.integers(3, 40, n)
    lengths = [(3, 9, 2), (12, 4, 4), (1, 1, 6), (5, 2, 1), (7, 7, 3)]
    x, w, l = zip(*[[ids(n) for n in row] for row in lengths])
    return TokenPairs(x, w, l, np.ones(5), np.zeros(5))


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_directions_against_plain_forwards(reference, tokens, gpt2, uneven, layer, pooling):
    sides = ("prompts", "chosen", "rejected", "states_w", "states_l")
    few = dataclasses.replace(tokens, **{name: getattr(tokens, name)[:12] for name in sides})
    left = LeftPadded(**vars(dataclasses.replace(uneven)))
    for policy, some in ((reference, few), (gpt2, uneven), (gpt2, left)):
        wanted, options = (
            plain(policy, some, layer, pooling),
            dict(layer=layer, pooling=pooling, batch_size=4),
        )
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
    ids = np.r_[
        np.flatnonzero(~own), np.flatnonzero(own)
    ].argsort()  # ties go against the own pairs
    assert not own[dog.dog_d(u, source, 20, ids=ids, outside="anchor", residual_rank=6).rows].any()
    assert own[dog.dog_d(u, source, 20, ids=ids).rows].any()


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
    F = dog.features(where, weights=(4.0, 0.25))
    a, b = where.anchor @ where.anchor.T, where.residual @ where.residual.T
    same = torch.from_numpy(source[:, None] == source[None])
    assert F.shape == (40, 4 + 2 * 3) and torch.allclose(
        F @ F.T, 4 * a + 0.25 * b * same, atol=1e-12
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
    u, source, ids = (
        unit_rows(90, 20),
        np.repeat(["p", "q", "r"], [50, 30, 10]),
        np.arange(90)[::-1],
    )
    energy = dog.coordinates(u, source).energies
    front = dog.fronts(energy)
    order = sorted(range(90), key=lambda i: (front[i], -round(energy[i].sum(), 9), ids[i]))
    assert dog.dog(u, source, 20, ids=ids).tolist() == order[:20]
    split = dog.dog(u, source, 20, ids=ids, split="proportional")
    assert [int((source[split] == name).sum()) for name in "pqr"] == [11, 7, 2] and len(
        set(split)
    ) == 20
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
    (lambda: dog.greedy_log_det(U, 3, ids=[1] * 12), "ids: 1 different ids for 12 pairs"),
    (lambda: dog.greedy_log_det(U, 3, ids=[1, 2]), "ids: 2 different ids for 12 pairs"),
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
    (lambda: dog.dog(U, NAMES, 3, ids=[0] * 12, **MANY), "ids: 1 different"),
    (lambda: s.by_margin(range(9), 3, order="best"), "order='best': choose largest or smallest"),
    (lambda: s.easiest_half(range(9), 10, seed=0), "k=10: choose between 1 and all 9"),
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


# ---------------------------------------------------------------- controls


def controls(u, k, groups):
    n, loss = len(u), np.random.default_rng(0).random(len(u))
    return {
        "random": s.random_pairs(n, k, seed=1),
        "k-means": s.k_means(u, k, seed=1),
        "k-centre": s.k_centre(u, k),
        "facility": s.facility_location(u, k),
        "log det": s.plain_log_det(u, k),
        "half": s.easiest_half(loss, k, seed=1),
        "largest": s.by_margin(loss, k, order="largest"),
        "strata": s.stratified(groups, k, seed=1),
    }


@pytest.mark.parametrize("k", [1, 7, 40, 60])
def test_controls_pick_k_different_pairs_and_the_same_again(k):
    u, groups = unit_rows(20, 5).repeat(3, 1), np.repeat(list("xyz"), 20)
    for (name, rows_), again in zip(
        controls(u, k, groups).items(), controls(u, k, groups).values()
    ):
        assert (
            rows_.dtype == np.int64 and len(set(rows_)) == len(rows_) == k and rows_.max() < 60
        ), name
        assert rows_.tolist() == again.tolist(), name


def test_one_pair_of_every_cluster():
    group = np.repeat(range(6), [40, 3, 20, 9, 2, 30])
    u = torch.nn.functional.normalize(torch.eye(8).double()[group] + 0.05 * unit_rows(104, 8))
    for name in ("k-means", "k-centre", "facility", "log det", "strata"):
        assert sorted(group[controls(u, 6, group)[name]]) == list(range(6)), name


def test_facility_location_is_the_naive_greedy():
    u, chosen = unit_rows(60, 6), []
    close = (u @ u.T).clamp_min(0)
    for _ in range(15):
        value = [
            -1.0 if i in chosen else float(close[:, [*chosen, i]].amax(1).sum()) for i in range(60)
        ]
        chosen.append(int(np.argmax(value)))
    assert s.facility_location(u, 15, width=4).tolist() == chosen


def test_orderings():
    margin = np.array([0.3, -2.0, 0.3 + 1e-12, 5.0, -0.1])
    assert s.by_margin(margin, 3, order="largest").tolist() == [3, 0, 2]
    assert s.by_margin(margin, 4, order="smallest", ids=np.arange(5)[::-1]).tolist() == [1, 4, 2, 0]
    assert set(s.easiest_half(margin, 2, seed=0)) < {1, 4, 0}
    assert s.easiest_half(margin, 4, seed=0).tolist() == [1, 4, 0, 2]
    drawn = np.bincount(
        s.stratified(np.repeat([0, 1, 2], [50, 30, 3]), 23, seed=0) // 10, minlength=9
    )
    assert drawn[:5].sum() == 10 and drawn[5:8].sum() == 10 and drawn[8] == 3


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
        lambda: dog.moments(u, source),
        lambda: dog.greedy_log_det(u, 2),
        lambda: dog.dog(u, source, 2),
        lambda: dog.dog_d(u, source, 2),
        lambda: s.k_means(u, 2, seed=0),
        lambda: s.facility_location(u, 2),
        lambda: s.k_centre(u, 2),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match="not finite at pair rows 3, 7 .2 in all.; drop those pairs"
        ):
            call()
    with pytest.raises(ValueError, match="energies: row 1"):
        dog.fronts(np.array([[1.0, 2.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="values: NaN at pair row 1"):
        s.by_margin(np.array([1.0, np.nan]), 1, order="largest")
