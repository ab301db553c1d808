"""Intervals: by hand, inside the range, clustered by prompt, and how often they hold the truth."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from scipy import stats

from safealign_utils import evaluate
from safealign_utils.engine.streams import generator
from safealign_utils.intervals import (
    DIFFERENCE,
    FEW,
    POSITIVE,
    SHARE,
    half_width,
    log_odds,
    log_ratio,
    of_share,
    off_scale,
    on_scale,
    over_prompts,
    over_seeds,
    p_above,
    p_of_interval,
    range_of,
    summarise,
)
from safealign_utils.real.answer_metrics import estimate

T2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 97.5 %


# ---------------------------------------------------------------- over seeds


def test_t_by_hand_on_three_scales():
    """0.1, 0.2, 0.3: mean 0.2, sd 0.1; the half width is carried to log(m) and logit(m)."""
    values, half = [0.1, 0.2, 0.3], T2 * 0.1 / math.sqrt(3)
    assert over_seeds(values) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    ratio = math.exp(half / 0.2)
    assert over_seeds(values, POSITIVE) == pytest.approx((0.2, 0.2 / ratio, 0.2 * ratio))
    odds = 0.25 * math.exp(-half / 0.16), 0.25 * math.exp(half / 0.16)
    assert over_seeds(values, SHARE) == pytest.approx((0.2, *(o / (1 + o) for o in odds)))
    percent = over_seeds([10, 20, 30], (0, 100))
    assert percent == pytest.approx(tuple(100 * v for v in over_seeds(values, SHARE)))
    as_share = over_seeds([(v + 1) / 2 for v in values], SHARE)
    assert over_seeds(values, DIFFERENCE) == pytest.approx(tuple(2 * v - 1 for v in as_share))
    assert over_seeds([12, 13, 14], (10, None))[1] > 10


def test_far_from_its_ends_a_scale_changes_nothing():
    values = [0.50, 0.501, 0.499]
    assert over_seeds(values, SHARE) == pytest.approx(over_seeds(values), abs=1e-6)


@pytest.mark.parametrize("bounds", [SHARE, DIFFERENCE, POSITIVE, (0, 100), (-100, 100)])
@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_nothing_leaves_the_range(bounds, n):
    """Also with one extreme seed, at the ends, and where the ends saturate."""
    low, high = bounds[0], 50 if bounds[1] is None else bounds[1]
    for values in ([low] * (n - 1) + [high], [high] * (n - 1) + [low], np.linspace(low, high, n)):
        mean, first, last = over_seeds(values, bounds)
        assert bounds[0] <= first <= mean <= last < math.inf and (
            bounds[1] is None or last <= bounds[1]
        )
        assert mean == pytest.approx(np.mean(values))
    if bounds[1] is not None:
        for spread in (1e-17, 1e-16, 1e-15):
            mean, first, last = over_seeds([0.3, 0.3 + spread] * n, bounds)
            assert first <= mean <= last, "rounding makes no error bar negative"
        near = [high] * (n - 1) + [high - 1e-17 * (high - low)]
        assert over_seeds(near, bounds) == (high, high, high)


def test_one_seed_equal_seeds_and_missing_ones():
    assert over_seeds([0.3], SHARE) == (0.3, None, None)
    assert over_seeds([0.1] * 3, SHARE) == (0.1, 0.1, 0.1), "no variation, and none by rounding"
    assert over_seeds([0.0, 0.0], SHARE) == (0, 0, 0)
    assert np.isnan(over_seeds([0.1, math.nan], SHARE)).all()
    assert over_seeds([-2e-9, 1e-9], POSITIVE)[0] == pytest.approx(-5e-10), (
        "rounding is no reason to refuse"
    )
    with pytest.raises(ValueError, match=r"values: \[0.1, 1.2\] do not all lie in 0 to 1"):
        over_seeds([0.1, 1.2], SHARE)
    with pytest.raises(ValueError, match="0 and above"):
        over_seeds([0.1, -1.2], POSITIVE)
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


def test_what_range_a_name_has():
    for name, bounds in {
        "unsafe": SHARE,
        "safedpo[delta=0.5].unsafe": SHARE,
        "unsafe[steps=200]": SHARE,
        "dpo.accuracy_safer": SHARE,
        "tv_safe": SHARE,
        "from_set_a": SHARE,
        "makes_branching": SHARE,
        "harmless": (0, 100),
        "kl_opt": POSITIVE,
        "dpo[beta=1].frontier_gap": POSITIVE,
        "train_cost_error": POSITIVE,
        "|cdpo.reward - its own|": POSITIVE,
        "effect[pairs x winner].unsafe": DIFFERENCE,
        "difference.refusal": DIFFERENCE,
        "difference.reward": None,
        "unsafe_minus_random": DIFFERENCE,
        "effect[pairs].kl_opt": None,
        "reward": None,
        "cost": None,
        "recovered": None,
        "something_else": None,
        "win_rate_by_cost_model": SHARE,
    }.items():
        assert range_of(name) == bounds, name
    assert range_of("unsafe", percent=True) == (0, 100)
    assert range_of("unsafe", percent=True, difference=True) == (-100, 100)
    assert range_of("harmless", difference=True) == (-100, 100)
    for values, bounds in (
        ([0.1, -0.2], DIFFERENCE),
        ([0.1, 7], (0, 100)),
        ([-3, 7], (-100, 100)),
        ([300], None),
    ):
        assert range_of("unsafe", values) == bounds
    assert range_of("kl_opt", [-0.3]) is None and range_of("kl_opt", [-1e-9, math.nan]) == POSITIVE


def test_summaries_stay_in_range():
    """Leak and harmless as tables had them: -26 to 82 %, and 93.7 to 103.6 %."""
    rows = [
        {"m": "a", "leak": v, "harmless": h, "reward": r}
        for v, h, r in ((0.03, 99.9, -3), (0.1, 96, 1), (0.7, 99.9, 2))
    ]
    table = summarise(rows, ["m"], ["leak", "harmless", "reward"]).iloc[0]
    assert 0 < table.leak_low < table.leak < table.leak_high < 1 and table.harmless_high < 100
    assert table.reward_low < -3, "a reward may have any size"
    falls = summarise(
        [{"m": "a", "unsafe": v} for v in (0.9, 0.99, 0.999)], ["m"], ["unsafe"], difference=True
    ).iloc[0]
    assert (falls.unsafe, falls.unsafe_low, falls.unsafe_high) == pytest.approx(
        over_seeds([0.9, 0.99, 0.999], DIFFERENCE)
    )
    small = summarise(
        [{"m": "a", "unsafe": v} for v in (0.1, 0.2, 0.9)], ["m"], ["unsafe"], percent=True
    ).iloc[0]
    assert small.unsafe_high > 1, "0.4 % may be 2 %"
    one = summarise([{"m": "a", "leak": 0.2}], ["m"], ["leak"]).iloc[0]
    assert one.leak_low == one.leak == one.leak_high


# ---------------------------------------------------------------- over prompts


def test_all_right_is_one_answer_everywhere():
    """20 of 20: Clopper-Pearson's 0.025^(1/20) = 0.8316 from every engine."""
    low = 0.025 ** (1 / 20)
    hits, prompts = np.ones(20), [f"p{i}" for i in range(20)]
    assert evaluate.accuracy([hits], prompts=prompts)[:3] == pytest.approx((1, low, 1))
    assert evaluate.accuracy([hits])[:3] == estimate(hits, prompts, SHARE)[:3]
    assert (1, *of_share(20, 20)) == pytest.approx((1, low, 1))
    assert of_share(0, 20) == pytest.approx((0, 1 - low))
    assert over_prompts(np.ones(20), ["a", "b"] * 10, bounds=SHARE)[1] == pytest.approx(
        0.025**0.5
    ), "two prompts"


def test_no_difference_is_no_share():
    assert over_prompts(np.zeros(30), bounds=DIFFERENCE) == (0, 0, 0, 30)
    assert over_prompts(np.ones(30), bounds=DIFFERENCE) == (1, 1, 1, 30)
    assert over_prompts(np.full(30, 1e-12)) == (1e-12, 1e-12, 1e-12, 30)
    assert over_prompts(np.full(9, 0.1)) == pytest.approx((0.1, 0.1, 0.1, 9), abs=1e-15)
    ties = [np.zeros(30)]
    assert evaluate.accuracy(ties) == (0.5, 0.5, 0.5, 30)
    assert evaluate.accuracy(ties, against=ties) == (0, 0, 0, 30)


def test_few_prompts_by_hand():
    """Three prompts with 1, 2 and 3 rows: the mean 3/6, and what each adds to its error: 0.25, 0.5, -0.75 (mean rows 2)."""
    values, prompts = [1, 1, 1, 0, 1, 0], ["a", "b", "b", "c", "c", "c"]
    mean, low, high, n = over_prompts(values, prompts, bounds=SHARE)
    off = np.array([1 - 4 / 6, 2 - 8 / 6, 1 - 12 / 6]) / 2
    half = T2 * math.sqrt((off**2).sum() / 2) / math.sqrt(3)
    odds = 2 * math.exp(-half / (2 / 9)), 2 * math.exp(half / (2 / 9))
    assert (mean, n) == (pytest.approx(4 / 6), 6) and (low, high) == pytest.approx(
        tuple(o / (1 + o) for o in odds)
    )


def test_many_prompts_are_drawn_whole():
    """Against percentiles of a bootstrap written out, at the level that makes up for n - 1: BCa moves them little."""
    g = np.random.default_rng(0)
    group = np.repeat(np.arange(40), g.integers(1, 5, 40))
    values = (g.random(len(group)) < 0.3 + 0.5 * (group % 2)) * 1.0
    mean, low, high, n = over_prompts(values, group, bounds=SHARE)
    sums, rows = np.bincount(group, values), np.bincount(group)
    drawn = g.integers(40, size=(40_000, 40))
    shares = sums[drawn].sum(axis=1) / rows[drawn].sum(axis=1)
    tail = 0.0203  # of the normal, beyond sqrt(40 / 39) t
    assert (low, high) == pytest.approx(tuple(np.quantile(shares, [tail, 1 - tail])), abs=0.015)
    assert (mean, n) == (pytest.approx(values.mean()), len(values))
    again = over_prompts(values, [f"prompt {i}" for i in group], bounds=SHARE)
    assert again == (mean, low, high, n), "names of prompts do not matter, and the stream is fixed"
    assert over_prompts(values, group, bounds=SHARE, seed=1) != again


def test_a_bootstrap_has_the_width_of_its_level():
    """Of many independent values it agrees with the t-interval of 95 in 100; one of 90 would be 0.84 times as wide."""
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high, n = over_prompts(values, draws=4000)
    half = stats.t.ppf(0.975, 399) * values.std(ddof=1) / 20
    assert (mean, n) == (pytest.approx(values.mean()), 400)
    assert (high - low) / (2 * half) == pytest.approx(1.0, abs=0.05)


def test_pairs_that_share_prompts_are_fewer_answers():
    g = np.random.default_rng(0)
    one = g.normal(0.5, 1, 60)
    width = lambda found: found[2] - found[1]
    alone = evaluate.accuracy([one], prompts=range(60))
    three = evaluate.accuracy([np.repeat(one, 3)], prompts=np.repeat(np.arange(60), 3))
    assert three[:3] == pytest.approx(alone[:3]) and three[3] == 180
    assert width(evaluate.accuracy([np.repeat(one, 3)])) < 0.7 * width(alone)
    seeds = [one, -one]
    both = evaluate.accuracy(seeds, prompts=[list(range(60))] * 2)
    assert both[0] == 0.5 and width(both) == 0, "each prompt once right and once wrong"
    assert (
        evaluate.accuracy(seeds, prompts=range(60))
        == both
        == evaluate.accuracy(seeds, prompts=range(60), same_pairs=True)[:3] + (120,)
    )


def test_one_prompt_none_and_missing_values():
    assert over_prompts([0.2, 0.4], ["a", "a"]) == (pytest.approx(0.3), None, None, 2)
    assert over_prompts([1, 1], ["a", "a"], bounds=SHARE)[1:3] == (pytest.approx(0.025), 1)
    mean, low, high, n = over_prompts([], [], bounds=SHARE)
    assert math.isnan(mean) and (low, high, n) == (None, None, 0)
    for values, prompts, words in (
        ([1.0, math.nan], None, "1 of 2"),
        ([1.0, 2.0], None, "0 to 1"),
        ([1.0], ["a", "b"], "2 of them for 1"),
    ):
        with pytest.raises(ValueError, match=words):
            over_prompts(values, prompts, bounds=SHARE)


def test_wilson_in_the_middle():
    """10 of 202, by the formula."""
    p, n, z = 10 / 202, 202, 1.959963985
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    assert of_share(10, 202) == pytest.approx(((middle - half) / scale, (middle + half) / scale))
    assert np.isnan(of_share(0, 0)).all()


# ---------------------------------------------------------------- how often they hold the truth


def covered(draw, interval, truth, runs=800):
    g = np.random.default_rng(0)
    found = [interval(draw(g)) for _ in range(runs)]
    return np.mean([low <= truth <= high for _, low, high, *_ in found])


@pytest.mark.parametrize("n", [3, 5, 20])
@pytest.mark.parametrize("mean", [0.02, 0.5, 0.98])
def test_shares_over_seeds_cover(n, mean):
    share = covered(
        lambda g: g.beta(100 * mean, 100 * (1 - mean), n), lambda v: over_seeds(v, SHARE), mean
    )
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("n", [3, 5, 20])
def test_divergences_over_seeds_cover(n):
    """Lognormal, sd half the mean, as KLs of seeds are."""
    share = covered(
        lambda g: g.lognormal(0, 0.47, n), lambda v: over_seeds(v, POSITIVE), math.exp(0.47**2 / 2)
    )
    assert 0.925 <= share <= 0.97


@pytest.mark.parametrize("n", [5, 20, 40])
def test_clustered_pairs_cover(n):
    """Six pairs a prompt whose outcomes correlate by 0.4; taken as independent they would be held to 75 %."""

    def draw(g):
        share = g.beta(0.6 * 1.5, 0.4 * 1.5, n)
        return (g.random((n, 6)) < share[:, None]).ravel() * 1.0

    group = np.repeat(np.arange(n), 6)
    of_prompts = lambda v: over_prompts(v, group, bounds=SHARE, draws=500)
    assert 0.925 <= covered(draw, of_prompts, 0.6) <= 0.985
    if n > FEW:
        assert covered(draw, lambda v: over_prompts(v, bounds=SHARE, draws=500), 0.6) < 0.85


def test_no_committed_interval_is_impossible():
    """Every table of means in the project, by the names of its columns; those of the pools are in per cent."""
    tables = sorted((ROOT / "notebooks" / "tables").glob("*.csv"))
    for path in tables:
        table = pd.read_csv(path)
        for q in [c for c in table if {f"{c}_low", f"{c}_high"} <= set(table)]:
            bounds = range_of(q, table[q].dropna())
            ends = table[[f"{q}_low", f"{q}_high"]].stack().dropna()  # one seed has no interval
            if bounds is not None and len(ends):
                assert ends.min() >= bounds[0] - 1e-9, f"{path.name}: {q}"
                assert bounds[1] is None or ends.max() <= bounds[1] + 1e-9, f"{path.name}: {q}"


def test_no_pairs_have_no_accuracy():
    mean, low, high, n = evaluate.accuracy([np.array([])], prompts=[])
    assert math.isnan(mean) and (low, high, n) == (None, None, 0)


# ---------------------------------------------------------------- p-values, and scales for comparisons
@pytest.mark.parametrize("n", [2, 3, 8])
def test_p_is_that_of_scipys_t_test(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    for limit in (-1.0, 0.0, 0.4):
        greater = stats.ttest_1samp(values, limit, alternative="greater").pvalue
        assert p_above(values, limit) == pytest.approx(greater, abs=1e-12)


@pytest.mark.parametrize("bounds", [None, (0, None), (0, 1), (-1, 1), (0, 100)])
def test_p_and_interval_say_the_same(bounds):
    """At the interval's ends the p-values are 2.5 % and 97.5 %, on every scale."""
    g = np.random.default_rng(0)
    for n in (3, 5, 8):
        share = g.beta(2, 5, n)
        scale = {None: 1, (0, None): 1, (0, 1): 1, (-1, 1): 1, (0, 100): 100}[bounds]
        values = scale * share
        _, low, high = over_seeds(values, bounds)
        assert p_above(values, low, bounds) == pytest.approx(0.025, abs=1e-6)
        assert p_above(values, high, bounds) == pytest.approx(0.975, abs=1e-6)
        half = half_width(low, high, bounds)
        again = p_of_interval(values.mean(), half, n, low, bounds)
        assert again == pytest.approx(0.025, abs=1e-6), "from the interval alone, as a table has it"


def test_p_of_one_seed_and_of_equal_ones():
    assert p_above([0.3], 0.1) is None
    assert [p_above([0.3] * 3, at) for at in (0.1, 0.3, 0.5)] == [0.0, 0.5, 1.0]


def test_shares_and_divergences_are_compared_seed_by_seed():
    assert log_odds([0.5, 0.2], [0.2, 0.5]) == pytest.approx([math.log(4), -math.log(4)])
    assert log_ratio([0.1, 0.4], [0.2, 0.1]) == pytest.approx([math.log(0.5), math.log(4)])
    one, other = (pd.Series([0.1, 0.4], index=seeds) for seeds in ([0, 1], [1, 0]))
    assert log_ratio(one, other) == pytest.approx([math.log(0.25), math.log(4)]), "by seed"
    assert log_odds([0.0], [1e-9]) == 0.0, "neither is told from 0"
    assert log_odds([1.0], [0.0])[0] == pytest.approx(2 * math.log(1e6 - 1))
    for one, other in (([0.0], [0.1]), ([0.1], [-0.1]), (pd.Series([1.0], index=[2]), [np.nan])):
        with pytest.raises(ValueError, match="must all be above 0"):
            log_ratio(one, other)
    with pytest.raises(ValueError, match="must all lie in 0 to 1"):
        log_odds([1.5], [0.5])


def test_a_logit_scale_finds_what_points_do_not():
    """One seed has most of the unsafe answers: in points it drowns the others, in logits not."""
    one, other = np.array([0.004, 0.002, 0.006, 0.003]), np.array([0.02, 0.01, 0.2, 0.015])
    assert 1 - p_above(one - other, 0.0, (-1, 1)) > 0.1
    assert 1 - p_above(log_odds(one, other), 0.0) < 0.02


# ---------------------------------------------------------------- the edges, and what is not said
@pytest.mark.parametrize(
    "bounds, width", [(SHARE, 1), (DIFFERENCE, 2), ((0, 100), 100), (POSITIVE, 1), ((3, 7), 4)]
)
def test_how_far_rounding_may_put_a_value_outside(bounds, width):
    """1e-4 of the range's width, on either side; 1e-4 itself where there is no other end."""
    middle = bounds[0] + width / 2
    ends = [(bounds[0], -1), *([] if bounds[1] is None else [(bounds[1], 1)])]
    for end, sign in ends:
        assert over_seeds([middle, end + sign * 0.9e-4 * width], bounds)[1] is not None
        assert over_prompts([middle, end + sign * 0.9e-4 * width], bounds=bounds)[3] == 2
        for find in (over_seeds, lambda v, b: over_prompts(v, bounds=b)):
            with pytest.raises(ValueError, match="values: "):
                find([middle, end + sign * 1.2e-4 * width], bounds)


def test_a_scale_there_and_back():
    for bounds, values in (
        (None, [-3.0, 0.0, 5.0]),
        ((2, None), [2.5, 40.0]),
        ((-1, 3), [-0.9, 1.0, 2.5]),
    ):
        for value in values:
            assert off_scale(on_scale(value, bounds), bounds) == pytest.approx(value, abs=1e-12)
    assert on_scale(2.5, (2, None)) == pytest.approx(math.log(0.5))
    assert on_scale(0.0, (-1, 3)) == pytest.approx(math.log(1 / 3))
    assert half_width(0.2, 0.6, None) == pytest.approx(0.2)
    assert half_width(1.0, 4.0, POSITIVE) == pytest.approx(math.log(4) / 2)
    with np.errstate(all="raise"):  # at the ends nothing is warned of
        assert on_scale(0.0, POSITIVE) == -math.inf
        assert on_scale(np.array([0.0, 1.0]), SHARE).tolist() == [-math.inf, math.inf]


def test_twenty_prompts_are_few_and_one_more_are_not():
    """A t-interval draws nothing, so no seed moves it; a bootstrap does."""
    values = np.random.default_rng(0).normal(size=FEW + 1)
    assert FEW == 20
    assert over_prompts(values[:FEW]) == over_prompts(values[:FEW], seed=1, draws=100)
    assert over_prompts(values, draws=200) != over_prompts(values, draws=200, seed=1)
    half = stats.t.ppf(0.975, 19) * values[:FEW].std(ddof=1) / math.sqrt(FEW)
    assert over_prompts(values[:FEW])[1] == pytest.approx(values[:FEW].mean() - half)


def test_a_bootstrap_is_that_of_scipy_at_the_level_that_makes_up_for_few():
    values = np.random.default_rng(3).lognormal(size=25)
    level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.975, 24) * math.sqrt(25 / 24))
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=10_000,
        confidence_level=level,
        method="BCa",
        rng=generator(0, "resampled prompts"),
    ).confidence_interval
    assert level == pytest.approx(0.9648, abs=1e-3)
    assert over_prompts(values)[1:3] == pytest.approx((found.low, found.high), abs=1e-9)


def test_what_varies_by_less_than_rounding_does_not_vary():
    """1e-12 of the mean, or of 1 where the mean is smaller."""
    for values, varies in (
        ([0.0, 1.8e-12], False),
        ([0.0, 3e-12], True),
        ([1e6 - 4e-7, 1e6 + 4e-7], False),
        ([1e6 - 4e-6, 1e6 + 4e-6], True),
    ):
        mean, low, high, n = over_prompts(values)
        assert n == 2 and (low < mean < high) == varies, values


def test_shares_that_are_all_one_value_but_not_an_end():
    assert over_prompts([0.5, 0.5, 0.5], bounds=SHARE) == (0.5, 0.5, 0.5, 3)
    assert over_prompts([1.0, 1.0], bounds=DIFFERENCE)[1:3] == (1.0, 1.0)
    low = over_prompts([1.0] * 4, ["a", "a", "b", "b"], bounds=SHARE)[1]
    assert low == pytest.approx(0.025**0.5), "each prompt counted once"


def test_a_column_that_does_not_fit_gets_the_next_range_that_holds_it():
    for name, values, bounds in (
        ("harmless", [-3.0], (-100, 100)),
        ("harmless", [101.0], None),
        ("unsafe_minus_random", [3.0, 7.0], (-100, 100)),
        ("unsafe_minus_random", [0.5, 1.0], DIFFERENCE),
        ("unsafe", [100.0], (0, 100)),
        ("unsafe", [-1.0, 1.0], DIFFERENCE),
        ("unsafe", [1.5, 99.0], (0, 100)),
        ("kl_opt", [-3.0], None),
    ):
        assert range_of(name, values) == bounds, (name, values)
    assert range_of("reward", percent=True) is None
    assert range_of("kl_opt", percent=True) == POSITIVE, "nats are no share"
    assert range_of("tv_safe", percent=True) == (0, 100)
    assert range_of("|a.unsafe - b.unsafe|") == POSITIVE
    assert range_of("reward", [1.0], difference=True) is None


def test_the_smallest_share_that_is_told_from_none():
    most = math.log((1 - 1e-6) / 1e-6)
    assert log_odds([0.5], [0.0])[0] == pytest.approx(most)
    assert log_odds([1.0], [0.5])[0] == pytest.approx(most)
    assert log_odds([1.5e-6], [0.5])[0] == pytest.approx(math.log(1.5e-6 / (1 - 1.5e-6)))
