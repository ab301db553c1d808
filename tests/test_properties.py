"""What holds for every input: T, masks, relabelling, selection, intervals, keys, loaders. Hypothesis draws the inputs,
the same ones each time (derandomised), and shrinks what fails."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from safealign_utils import intervals, train
from safealign_utils.engine import cache
from safealign_utils.loss import check_levers, ordered, preference_loss
from safealign_utils.methods import pair_controls, safedpo
from safealign_utils.methods.dog import greedy_log_det
from safealign_utils.methods.selective import top_share
from safealign_utils.packing import length_mask, split
from safealign_utils.pairs import SAFE, chosen_rejected, data_hash, label, soft_label, split_pairs
from safealign_utils.real.read_pairs import load_pairs

CHECK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
REAL = st.floats(-20, 20)
TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="<>|[]", exclude_categories=("C",)), min_size=1
)
PAIR = st.tuples(st.booleans(), st.booleans(), st.integers(0, 1), st.sampled_from([0.0, 0.3, 1.0]))


def table_of(pairs):
    """A labelled table of (safe 0, safe 1, chosen, p); its texts name their rows."""
    rows = [
        dict(prompt=f"x{i}", response_0=f"a{i}", response_1=f"b{i}", source="s", category="", split="",
             better_response_id=chosen, safer_response_id=chosen, chosen=chosen, p=p, margin=0.0,
             **dict(zip(SAFE, safe)))
        for i, (*safe, chosen, p) in enumerate(pairs)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def swapped(table):
    """The same pairs with responses 0 and 1 exchanged."""
    names = {"response_0": "response_1", SAFE[0]: SAFE[1], "reward_0": "reward_1"}
    back = table.rename(columns=names | {b: a for a, b in names.items()})
    ids = {c: 1 - table[c] for c in ("chosen", "better_response_id", "safer_response_id")}
    return back.assign(**ids)


def winners(table):
    """(winner, loser, p, margin) of each row."""
    w, l = chosen_rejected(table, table.response_0, table.response_1)
    return list(zip(w, l, table.p, table.margin))


# ---------------------------------------------------------------- T and its margin
@CHECK
@given(st.lists(PAIR, min_size=1, max_size=12), st.floats(0, 50))
def test_t_keeps_swaps_and_drops_by_safety_alone(pairs, delta):
    table = table_of(pairs)
    if not any(a or b for a, b, *_ in pairs):
        with pytest.raises(ValueError, match="drops all"):
            safedpo.transform(table)
        return
    moved, report = safedpo.transform(table)
    u_w, u_l = safedpo.unsafe_labels(moved)
    assert not u_w.any(), "an unsafe response never wins"
    assert (moved.p[u_l] == 1).all(), "who alone is safe wins for certain"
    assert report["keep"] + report["swap"] + report["drop"] == len(table)
    assert len(moved) == len(table) - report["drop"]
    assert moved.prompt.tolist() == [f"x{i}" for i, (a, b, *_) in enumerate(pairs) if a or b]
    equal = moved.index[u_w == u_l]
    before = table.set_index("prompt").loc[moved.prompt[equal]]
    assert moved.p[equal].tolist() == before.p.tolist()
    again, second = safedpo.transform(moved)
    pd.testing.assert_frame_equal(again, moved)
    assert (second["swap"], second["drop"]) == (0, 0)
    margins = safedpo.with_margin(moved, delta).margin
    assert margins.tolist() == [delta * bool(u) for u in u_l]
    other, _ = safedpo.transform(swapped(table))
    assert winners(safedpo.with_margin(other, delta)) == winners(safedpo.with_margin(moved, delta))


@CHECK
@given(REAL, REAL, st.sampled_from([0.0, 1.0]), st.floats(-20, 20), st.floats(0.01, 5))
def test_who_is_called_chosen_changes_no_loss(w, l, p, margin, beta):
    check_levers([p], [margin], beta)
    one = preference_loss(torch.tensor([[w]]), torch.tensor([[l]]), beta=beta, p=p, margin=margin)
    two = preference_loss(
        torch.tensor([[l]]), torch.tensor([[w]]), beta=beta, p=1 - p, margin=-margin
    )
    assert one.loss.item() == pytest.approx(two.loss.item(), rel=1e-5, abs=1e-6)
    assert one.z.item() == pytest.approx(-two.z.item(), rel=1e-5, abs=1e-5)
    assert 0 <= one.loss.item() < math.inf


@CHECK
@given(st.lists(st.tuples(REAL, REAL), min_size=1, max_size=8))
def test_soft_labels_name_the_higher_score(scores):
    first, second = np.array(scores).T
    table = table_of([(True, True, 0, 1.0)] * len(scores))
    soft = soft_label(table, first, second)
    gap = np.where(soft.chosen == 0, first - second, second - first)
    assert (gap >= -1e-9).all() and np.allclose(soft.p, 1 / (1 + np.exp(-gap)))
    other = soft_label(swapped(table), second, first)
    apart = np.abs(first - second) > 1e-8
    assert (other.chosen == 1 - soft.chosen)[apart].all() and np.allclose(other.p, soft.p)


@CHECK
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, None]), st.sampled_from([0, 1, None])), min_size=1)
)
def test_labels_are_those_of_the_column(ids):
    table = table_of([(True, False, 0, 1.0)] * len(ids))
    table["better_response_id"], table["safer_response_id"] = (
        pd.array(c, "Int64") for c in zip(*ids)
    )
    for by, place in (("better", 0), ("safer", 1)):
        known = [(f"x{i}", row[place]) for i, row in enumerate(ids) if row[place] is not None]
        if not known:
            with pytest.raises(ValueError, match="no row has"):
                label(table, by)
            continue
        found = label(table, by)
        assert list(zip(found.prompt, found.chosen)) == known and (found.p == 1).all()
    if any(row != (None, None) for row in ids):
        both = label(table, "safer_or_better")
        wanted = [b if s is None else s for b, s in ids if (b, s) != (None, None)]
        assert both.chosen.tolist() == wanted


# ---------------------------------------------------------------- masks
LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)


@CHECK
@given(LENGTHS)
def test_every_value_lands_at_its_token_and_nothing_behind_the_end(lengths):
    w, l = map(list, zip(*lengths))
    values = torch.arange(1.0, sum(w) + sum(l) + 1, dtype=torch.float64)
    tables, at = split(values, np.array(w), np.array(l)), 0
    masks = [length_mask(w), length_mask(l)]
    for row in range(len(w)):
        for side, n in enumerate((w[row], l[row])):
            assert tables[side][row].tolist() == [
                *values[at : at + n].tolist(),
                *[0.0] * (tables[side].shape[1] - n),
            ]
            assert masks[side][row].tolist() == [t < n for t in range(masks[side].shape[1])]
            at += n
    assert at == len(values)


@CHECK
@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=7), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_the_top_share_is_a_share_and_the_top(rows, keep, other, behind):
    width = max(map(len, rows)) + behind
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
    scores = torch.full(
        mask.shape, 99.0, dtype=torch.float64
    )  # what stands behind an end is no score
    for i, row in enumerate(rows):
        scores[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    kept = top_share(scores, mask, keep)
    assert not (kept & ~mask).any()
    for i, row in enumerate(rows):
        count = math.ceil(round(keep * len(row), 9))
        all_equal = len(set(row)) == 1 and count > 0
        assert int(kept[i].sum()) == (len(row) if all_equal else count)
        inside, outside = scores[i][kept[i]], scores[i][mask[i] & ~kept[i]]
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()
    assert torch.equal(kept, top_share(3 * scores + 1, mask, keep)), "only the order counts"
    less, more = (top_share(scores, mask, share) for share in sorted((keep, other)))
    assert not (less & ~more).any(), "a larger share holds the smaller"


@CHECK
@given(st.lists(REAL, min_size=1, max_size=6))
def test_an_order_counts_a_tie_half(gaps):
    gap = torch.tensor(gaps, dtype=torch.float64)
    found = ordered(gap)
    assert torch.equal(found + ordered(-gap), torch.ones_like(gap))
    assert torch.equal(found == 0.5, gap.abs() <= 1e-9)


# ---------------------------------------------------------------- batches, splits, selection
@CHECK
@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31))
def test_every_row_comes_before_any_comes_again(n, steps, size, seed):
    order = train.batch_order(n, steps, size, seed)
    assert order.shape == (steps, min(size, n))
    for start in range(0, order.size, n):
        epoch = order.ravel()[start : start + n].tolist()
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(n))
    assert np.array_equal(order, train.batch_order(n, steps, size, seed))


@CHECK
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30),
    st.floats(0.05, 0.95),
)
def test_no_prompt_is_trained_on_and_held_out(rows, share):
    table = table_of([(True, True, 0, 1.0)] * len(rows)).assign(
        prompt=[f"prompt {x}" for x, _ in rows]
    )
    table.loc[[same for _, same in rows], "response_1"] = table.response_0
    try:
        train_, test, report = split_pairs(table, heldout=share)
    except ValueError as error:
        assert f"heldout={share:g}" in str(error)
        return
    assert not set(train_.prompt) & set(test.prompt) and len(train_) and len(test)
    assert len(train_) + len(test) + report["equal_responses"] == len(table)
    back = split_pairs(table.iloc[::-1], heldout=share)
    assert set(back[1].response_0) == set(test.response_0), "by the prompt alone"


def chosen_by(u, k, seed):
    """{rule: rows} of every rule of selection by directions."""
    scores = u[:, 0].numpy()
    return {
        "log-det": greedy_log_det(u, k, ridge=1.0).rows,
        "facility": pair_controls.facility_location(u, k),
        "k-centre": pair_controls.k_centre(u, k),
        "random": pair_controls.random_pairs(len(u), k, seed=seed),
        "largest": pair_controls.by_margin(scores, k, order="largest"),
        "smallest": pair_controls.by_margin(scores, k, order="smallest"),
        "half": pair_controls.easiest_half(scores, k, seed=seed),
        "stratified": pair_controls.stratified(scores > 0, k, seed=seed),
    }


@CHECK
@given(st.integers(2, 14), st.integers(1, 14), st.integers(0, 2**20))
def test_a_selection_is_so_many_different_rows(n, k, seed):
    assume(k <= n)
    u = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3)))
    u = torch.nn.functional.normalize(u, dim=1)
    found = chosen_by(u, k, seed)
    for rule, rows in found.items():
        rows = np.asarray(rows).tolist()
        assert len(rows) == k == len(set(rows)) and set(rows) <= set(range(n)), rule
    again = chosen_by(u, k, seed)
    assert all(np.array_equal(found[rule], again[rule]) for rule in found)
    values = u[:, 0].numpy()
    assert values[found["largest"]].min() >= np.sort(values)[-k] - 1e-9
    assert values[found["smallest"]].max() <= np.sort(values)[k - 1] + 1e-9


# ---------------------------------------------------------------- intervals
@CHECK
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=9),
    st.sampled_from([None, (0, None), (0, 1), (-1, 1)]),
)
def test_an_interval_holds_its_mean_and_stays_in_its_range(values, bounds):
    mean, low, high = intervals.over_seeds(values, bounds)
    assert low <= mean <= high and mean == pytest.approx(np.mean(values), abs=1e-12)
    if bounds is not None:
        assert bounds[0] <= low and (bounds[1] is None or high <= bounds[1])
    back = intervals.over_seeds(values[::-1], bounds)
    assert back == pytest.approx((mean, low, high), rel=1e-9, abs=1e-12)
    if bounds is None:
        moved = intervals.over_seeds(np.array(values) * 2 + 3)
        assert moved == pytest.approx([2 * x + 3 for x in (mean, low, high)], abs=1e-9)


@CHECK
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_share_holds_the_share(counts):
    right, n = counts
    low, high = intervals.of_share(right, n)
    assert 0 <= low <= right / n <= high <= 1 and low < high
    other = intervals.of_share(n - right, n)
    assert other == pytest.approx((1 - high, 1 - low), abs=1e-12)


@CHECK
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_an_interval_over_prompts_knows_groups_and_not_their_names(rows):
    prompts, hits = [f"p{x}" for x, _ in rows], [float(hit) for _, hit in rows]
    mean, low, high, n = intervals.over_prompts(hits, prompts, bounds=intervals.SHARE)
    assert mean == pytest.approx(np.mean(hits)) and n == len(hits)
    if low is not None:
        assert 0 <= low <= mean <= high <= 1
    renamed = [f"q{ord(p[1])}" for p in prompts]
    assert intervals.over_prompts(hits, renamed, bounds=intervals.SHARE) == (mean, low, high, n)


# ---------------------------------------------------------------- keys
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXT
    | st.binary(max_size=4)
)
NESTED = st.recursive(
    PLAIN, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=6
)


def shape_of(value):
    """A value with its types: 1, 1.0 and True are not the same question."""
    if isinstance(value, dict):
        return "dict", tuple(sorted((k, shape_of(v)) for k, v in value.items()))
    if isinstance(value, list):
        return "list", tuple(map(shape_of, value))
    return type(value).__name__, repr(value)


@CHECK
@given(NESTED, NESTED)
def test_keys_are_equal_where_the_questions_are(one, two):
    same = shape_of(one) == shape_of(two)
    assert (cache.digest(one) == cache.digest(two)) == same
    copied = json.loads(json.dumps(one)) if shape_of(one) == shape_of(_through_json(one)) else one
    assert cache.digest(copied) == cache.digest(one)
    assert cache.digest([one]) != cache.digest(one) and cache.digest(one, two) != cache.digest(
        [one, two]
    )


def _through_json(value):
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


@CHECK
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=4),
    st.lists(st.integers(-3, 3), min_size=1, max_size=4),
    st.sampled_from(["int32", "int64", "float64"]),
)
def test_arrays_are_told_apart_by_values_type_and_shape(one, two, kind):
    a, b = np.array(one, dtype="int64"), np.array(two, dtype=kind)
    same = one == two and kind == "int64"
    assert (cache.digest(a) == cache.digest(b)) == same
    assert (cache.key("k", x=a) == cache.key("k", x=b)) == same
    assert cache.digest(a[None]) != cache.digest(a)
    assert cache.digest(np.array([one, one]).T) == cache.digest(np.array([one, one]).T.copy())


# ---------------------------------------------------------------- loaders
ROWS = st.lists(
    st.tuples(TEXT, TEXT, TEXT, st.booleans(), st.booleans(), st.integers(0, 1)),
    min_size=1,
    max_size=4,
)


@settings(CHECK, max_examples=15)
@given(ROWS)
def test_a_file_gives_back_the_pairs_that_were_written(tmp_path, rows):
    names = ("prompt", "response_0", "response_1", *SAFE, "better_response_id")
    frame = pd.DataFrame(rows, columns=names)
    frame = frame[frame[list(names[:3])].apply(lambda c: c.str.strip() != "").all(axis=1)]
    assume(len(frame))
    frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True, force_ascii=False)
    loaded = load_pairs(str(tmp_path / "p.jsonl"))
    for name in names:
        assert loaded[name].tolist() == frame[name].tolist(), name
    labelled = label(loaded, "better")
    assert labelled.chosen.tolist() == frame.better_response_id.tolist()
    again = label(load_pairs(f"other={tmp_path / 'p.jsonl'}"), "better")
    assert data_hash(again) == data_hash(labelled) and set(again.source) == {"other"}
