"""Controls for the selection of pairs: k different pairs, the same again, one of every cluster."""

import warnings

import numpy as np
import pytest
import torch

from safealign_utils.methods import pair_controls as s


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
