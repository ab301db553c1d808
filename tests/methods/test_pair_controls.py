"""Controls for the selection of pairs: k different pairs, the same again, one of every cluster."""

import warnings

import numpy as np
import pytest
import torch

from safealign_utils.methods import pair_controls as s
from safealign_utils.methods.dog import greedy_log_det


def unit_rows(n, d, seed=0):
    u = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return u / u.norm(dim=1, keepdim=True)


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


def test_facility_location_is_the_naive_greedy(monkeypatch):
    monkeypatch.setattr(s, "WIDTH", 4)
    u, chosen = unit_rows(60, 6), []
    close = (u @ u.T).clamp_min(0)
    for _ in range(15):
        value = [
            -1.0 if i in chosen else float(close[:, [*chosen, i]].amax(1).sum()) for i in range(60)
        ]
        chosen.append(int(np.argmax(value)))
    assert s.facility_location(u, 15).tolist() == chosen


def test_orderings():
    margin = np.array([0.3, -2.0, 0.3 + 1e-12, 5.0, -0.1])
    assert s.by_margin(margin, 3, order="largest").tolist() == [3, 0, 2]
    assert s.by_margin(margin, 4, order="smallest").tolist() == [1, 4, 0, 2]
    assert set(s.easiest_half(margin, 2, seed=0)) < {1, 4, 0}
    assert s.easiest_half(margin, 4, seed=0).tolist() == [1, 4, 0, 2]
    drawn = np.bincount(
        s.stratified(np.repeat([0, 1, 2], [50, 30, 3]), 23, seed=0) // 10, minlength=9
    )
    assert drawn[:5].sum() == 10 and drawn[5:8].sum() == 10 and drawn[8] == 3


@pytest.mark.parametrize(
    "call, reason",
    [
        (
            lambda: s.by_margin(range(9), 3, order="best"),
            "order='best': choose largest or smallest",
        ),
        (lambda: s.easiest_half(range(9), 10, seed=0), "k=10: choose between 1 and all 9"),
        (lambda: s.by_margin([1.0, np.nan], 1, order="largest"), "values: NaN at pair row 1"),
    ],
)
def test_refusals_say_what_to_do(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_fewer_different_directions_than_pairs_asked_for_are_no_warning():
    """scikit-learn would say so; the next nearest rows are taken, and that is what is documented."""
    u = unit_rows(4, 3).repeat(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(s.k_means(u, 8, seed=0))) == 8


# ---------------------------------------------------------------- the rules, one by one
def test_k_centre_is_the_naive_farthest_first():
    u, chosen = unit_rows(40, 3, seed=2), [0]
    for _ in range(9):
        nearest = torch.cdist(u, u[chosen]).amin(1)
        chosen.append(int(nearest.argmax()))
    assert s.k_centre(u, 10).tolist() == chosen
    same = unit_rows(3, 4).repeat(4, 1)
    assert s.k_centre(same, 5).tolist()[3:] == [3, 4], "of equals the first row"


def test_gains_within_rounding_of_the_largest_are_tied():
    """The second cluster covers 1e-8 more of 50: a tie, so the first row wins; 1e-6 more is not."""
    for more, first in ((1e-8, 0), (1e-6, 50)):
        rare = torch.tensor([[0.0, more, 1.0]])
        u = torch.cat([torch.eye(3)[[0] * 50], torch.eye(3)[[1] * 50], rare]).double()
        u[-1, 1] = more
        assert s.facility_location(u, 1).tolist() == [first]


def test_facility_location_reads_directions_of_any_length():
    u = unit_rows(30, 4)
    longer = u * torch.linspace(0.5, 4, 30, dtype=torch.float64)[:, None]
    assert s.facility_location(longer, 8).tolist() == s.facility_location(u, 8).tolist()


def test_log_det_of_the_directions_alone():
    u = unit_rows(30, 4)
    wanted = [greedy_log_det(u, 8, ridge=ridge).rows.tolist() for ridge in (1.0, 0.01)]
    assert [s.plain_log_det(u, 8).tolist(), s.plain_log_det(u, 8, ridge=0.01).tolist()] == wanted
    assert wanted[0] != wanted[1]


def test_a_seed_draws_its_own_pairs():
    for draw in (
        lambda seed: s.random_pairs(50, 10, seed=seed),
        lambda seed: s.easiest_half(np.arange(50.0), 10, seed=seed),
        lambda seed: s.stratified(np.arange(50) % 2, 10, seed=seed),
        lambda seed: s.k_means(unit_rows(50, 5), 10, seed=seed),
    ):
        assert draw(0).tolist() == draw(0).tolist() != draw(1).tolist()


def test_pairs_are_counted_before_anything_is_done():
    u = unit_rows(5, 3)
    calls = [lambda k: s.random_pairs(5, k, seed=0), lambda k: s.k_means(u, k, seed=0)]
    calls += [lambda k: s.facility_location(u, k), lambda k: s.k_centre(u, k)]
    calls += [lambda k: s.by_margin(np.arange(5.0), k, order="smallest")]
    for call in calls:
        assert len(call(5)) == 5 and len(call(1)) == 1
        for k in (0, 6):
            with pytest.raises(ValueError, match=f"k={k}: choose between 1 and all 5"):
                call(k)


def test_numbers_that_differ_by_noise_keep_the_order_of_their_rows():
    for off, order in ((4e-10, [0, 1]), (2e-9, [1, 0])):
        assert s.by_margin(np.array([0.0, off]), 2, order="largest").tolist() == order


def test_the_nearest_pair_may_have_no_direction():
    """A pair of equal states has u = 0: its distance to a centre is that of the centre to 0."""
    u = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert s.k_means(u, 1, seed=0).tolist() == [2], "the centre lies at (1/3, 1/3)"
    near = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.4, 0.84**0.5]], dtype=torch.float64)
    assert s.k_centre(near, 2).tolist() == [0, 2], "1.2 away, squared, and the other 1"


def test_the_easiest_half_is_a_half():
    for n, half in ((10, 5), (11, 6)):
        drawn = [s.easiest_half(np.arange(float(n)), 2, seed=seed) for seed in range(60)]
        assert {int(row) for rows_ in drawn for row in rows_} == set(range(half)), n
