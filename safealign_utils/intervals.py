"""Intervals: the one place where they are made, and none leaves the range that its quantity can
have.

    over_seeds     one value a seed       Student's t, on the scale of the range
    over_prompts   rows of prompts        the same t for up to FEW prompts, else a bootstrap
                                          that draws whole prompts
    of_share       independent trials     Wilson; Clopper-Pearson where all or none succeed

and `p_above`, the p-value that belongs to the interval over seeds; `log_ratio` and `log_odds`, the
scales on which divergences and shares are compared.

*The scale of the range.* The mean is the arithmetic one. Its standard error s / sqrt(n) is carried
to log(m) for a quantity that cannot be negative, and to logit(m) for a share (the delta method),
the t-interval is taken there, and its ends are brought back. So mean, standard deviation and n are
all that is needed, a value of 0 does no harm, and where the range is far away the interval is the
plain one. The t-interval of each value's log or logit was measured too: it is centred on the
geometric mean, and holds the arithmetic one ever more rarely the more seeds there are.

*Few prompts.* A bootstrap of n groups is too narrow by about sqrt((n - 1) / n) and the normal's
quantile in place of Student's. Of up to FEW groups the t-interval of the mean, linearised, is
taken; beyond them BCa (scipy) at a level that makes up for both (T. Hesterberg, What Teachers
Should Know about the Bootstrap, 2015). Percentiles alone fall short near a range's end (a share of
.98, clustered, 125 prompts: 89 in 100, BCa 92); see `tests/benchmarks/intervals.py`.

Values that are all equal have no variation: both ends are the value. Only a share where every row
is 0, or every row 1, has Clopper-Pearson's ends instead, each prompt counted once.
"""

import re

import numpy as np
import pandas as pd
from scipy import special, stats

from .engine.streams import generator

LEVEL = 0.95
FEW = 20  # prompts: up to so many the bootstrap is too narrow
RESOLVED = 1e-6  # smallest share that is told from 0
SLACK = 1e-4  # of a range's width: what rounding in float32 may put a value outside it
SHARE, DIFFERENCE, POSITIVE = (0, 1), (-1, 1), (0, None)
SHARES = (
    "unsafe unsafe_if_decoded worst leak benign_refusal accuracy own_found mixed precision recall "
    "chosen_falls refusal over_refusal unsafe_compliance harmless_ratio"
)
RANGES = {
    **dict.fromkeys(SHARES.split(), SHARE),
    "harmless": (0, 100),
    **dict.fromkeys(("frontier_gap", "lambda", "lam"), POSITIVE),
    **dict.fromkeys(("reward", "cost", "train_cost", "recovered"), None),
}
KINDS = (  # of names that are made up of parts
    (r"\|.*\||.*_error|kl_\w+", POSITIVE),
    (r"tv_\w+|from_\w+|win_rate_\w+|accuracy_\w+|pair_accuracy|harmless_\w+", SHARE),
    (r"(signed|absolute|advantage|makes)_(all|branching)", SHARE),  # areas under the ROC curve
)


def range_of(name, values=(), *, difference=False, percent=False):
    """(low, high) that a quantity can have, or None: by its name, as tables and records write it.

    `name`: "unsafe", "dpo[beta=1].unsafe", "unsafe[steps=200]"; "effect[...].unsafe",
    "difference.refusal" and "unsafe_minus_random" are differences, as all are with `difference`.
    With `percent` shares are in hundredths. A column whose `values` do not fit is a difference of
    shares, one in hundredths, or else of any size.
    """
    difference = difference or bool(re.search(r"^(effect|difference)\b|_minus_", name))
    last = name if name.startswith("|") else re.sub(r"\[[^\]]*\]", "", name).rpartition(".")[2]
    last = last.partition("_minus_")[0]
    bounds = RANGES.get(last) or next((b for words, b in KINDS if re.fullmatch(words, last)), None)
    if bounds == SHARE and percent:
        bounds = 0, 100
    if difference and bounds is not None:
        bounds = None if bounds[1] is None else (-bounds[1], bounds[1])
    if bounds is None or _inside(values, bounds):
        return bounds
    wider = () if bounds[1] is None else (DIFFERENCE, (0, 100), (-100, 100))
    return next(
        (b for b in wider if b[0] <= bounds[0] and b[1] >= bounds[1] and _inside(values, b)), None
    )


def over_seeds(values, bounds=None):
    """(mean, low, high) of one value a seed [n]: Student's t on the scale of `bounds`; one seed has
    no ends (None).

    `bounds` is None for a quantity of any size, (a, None) where it cannot be below a, (a, b) where
    it lies between: see `range_of`. Raises ValueError for no value, and for values outside the
    bounds.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("values: none; an interval needs at least one")
    if not _inside(values, bounds):
        raise ValueError(
            f"values: {values.tolist()} do not all lie in {_words(bounds)}; give the bounds they "
            "have"
        )
    mean = float(values.mean())
    if len(values) == 1:
        return mean, None, None
    if not np.isfinite(mean):
        return mean, float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0]), float(values[0])
    error = values.std(ddof=1) / np.sqrt(len(values))
    return mean, *_student(mean, error, len(values), bounds)


def p_above(values, limit, bounds=None):
    """One-sided p-value of "the mean is `limit` or less", of one value a seed [n]; None for one.

    The t-test whose interval `over_seeds` is: on the scale of `bounds`, inside which `limit` lies.
    Small where the mean is above the limit, 1 minus that for "or more". Values without variation
    have 0, 0.5 or 1.
    """
    mean, low, high = over_seeds(values, bounds)
    if low is None:
        return None
    if low == high:
        return 0.5 - 0.5 * float(np.sign(mean - limit))
    return p_of_interval(mean, half_width(low, high, bounds), len(values), limit, bounds)


def p_of_interval(mean, half, n, limit, bounds=None):
    """The same from a mean and the half width of its interval, taken on the scale of `bounds`."""
    error = half / special.stdtrit(n - 1, (1 + LEVEL) / 2)
    off = on_scale(mean, bounds) - on_scale(limit, bounds)
    return float(special.stdtr(n - 1, -off / error))


def half_width(low, high, bounds=None):
    """Half the width of an interval on the scale of `bounds`, where it is symmetric."""
    return float(on_scale(high, bounds) - on_scale(low, bounds)) / 2


def on_scale(value, bounds):
    """x, log(x - a) or logit: what `bounds` make of a number inside them."""
    if bounds is None:
        return value
    start, end = bounds
    with np.errstate(divide="ignore"):
        if end is None:
            return np.log(value - start)
        return np.log(value - start) - np.log(end - value)


def off_scale(value, bounds):
    """The number that `on_scale` makes this of."""
    if bounds is None:
        return value
    start, end = bounds
    return start + (np.exp(value) if end is None else (end - start) * special.expit(value))


def log_ratio(one, other):
    """log(one / other), seed by seed: how divergences, leaks and gaps to a frontier are compared.

    Raises ValueError where a value is not above 0.
    """
    one, other = map(_aligned, (one, other))
    if not (np.min(one) > 0 and np.min(other) > 0):
        raise ValueError(f"values: {list(one)} and {list(other)} must all be above 0")
    return np.asarray(np.log(one / other))


def log_odds(one, other):
    """logit(one) - logit(other), seed by seed: how shares are compared.

    A share below RESOLVED counts as RESOLVED (above 1 - RESOLVED the same): float32 has no more.
    Raises ValueError for a value that is no share.
    """
    shares = [_aligned(values) for values in (one, other)]
    if not all(_inside(values, SHARE) for values in shares):
        raise ValueError(f"values: {[list(s) for s in shares]} must all lie in 0 to 1")
    one, other = (values.clip(RESOLVED, 1 - RESOLVED) for values in shares)
    return np.asarray(np.log(one / (1 - one)) - np.log(other / (1 - other)))


def _aligned(values):
    """Floats; what has an index (seeds) keeps it, so that pairs are pairs."""
    is_series = isinstance(values, pd.Series)
    return values.astype(float) if is_series else np.asarray(values, dtype=float)


def over_prompts(values, prompts=None, *, bounds=None, draws=10_000, seed=0):
    """(mean, low, high, n) over rows [n], where rows of one prompt belong together.

    `values` are hits (bounds SHARE), scores, or differences of two methods row by row (bounds
    DIFFERENCE for shares). `prompts` [n] names the group of each row; without it every row is one.
    Prompts are drawn with all their rows. One prompt has no ends (None), unless it is a share of 0
    or 1; no rows have no mean either (NaN). Raises ValueError for values that are missing or
    outside the bounds.
    """
    values = np.asarray(values, dtype=float)
    group = np.arange(len(values)) if prompts is None else _codes(prompts, len(values))
    if len(values) == 0:
        return float("nan"), None, None, 0
    if not np.isfinite(values).all():
        raise ValueError(
            f"values: {int((~np.isfinite(values)).sum())} of {len(values)} are not finite; leave "
            "them out"
        )
    if not _inside(values, bounds):
        raise ValueError(f"values: {values.min():g} to {values.max():g} is not in {_words(bounds)}")
    total, rows = np.bincount(group, values), np.bincount(group).astype(float)
    mean, n = float(total.sum() / rows.sum()), len(rows)
    if bounds == SHARE and np.ptp(values) == 0 and values[0] in SHARE:
        return mean, *_exact(int(values[0]) * n, n), len(values)
    if n == 1:
        return mean, None, None, len(values)
    off = (total - mean * rows) / rows.mean()  # what each prompt adds to the mean's error
    if np.abs(off).max() <= 1e-12 * max(1.0, abs(mean)):
        return mean, mean, mean, len(values)
    ends = (np.nan, np.nan)
    if n > FEW:
        ends = _bootstrap(total, rows, draws=draws, seed=seed)
    if not np.isfinite(ends).all():  # few, or too little varies for BCa
        ends = _student(mean, off.std(ddof=1) / np.sqrt(n), n, bounds)
    return mean, *_around(mean, *ends), len(values)


def of_share(right, n):
    """(low, high) for `right` successes in n independent trials: Wilson's, Clopper-Pearson's where
    all or none succeeded, NaN for no trial."""
    if n == 0:
        return float("nan"), float("nan")
    if right in (0, n):
        return _exact(right, n)
    ends = stats.binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    return float(ends.low), float(ends.high)


def _exact(right, n):
    ends = stats.binomtest(right, n).proportion_ci(LEVEL, method="exact")
    return float(ends.low), float(ends.high)


def _student(mean, error, n, bounds):
    return from_half_width(mean, float(special.stdtrit(n - 1, (1 + LEVEL) / 2) * error), bounds)


def from_half_width(mean, half, bounds):
    """(low, high) on the scale of `bounds`, from a mean and the half width of its plain
    interval."""
    if bounds is None or half == 0:
        return mean - half, mean + half
    start, end = bounds
    up = mean - start
    down = np.inf if end is None else end - mean
    if min(up, down) <= 0:  # at the range's end, or past it by rounding
        return mean, mean
    if end is None:
        return _around(mean, *(start + up * np.exp(sign * half / up) for sign in (-1, 1)))
    width = end - start
    middle, wide = np.log(up / down), half * width / (up * down)
    return _around(mean, *(start + width * special.expit(middle + sign * wide) for sign in (-1, 1)))


def _around(mean, low, high):
    """The ends, which rounding may put on the wrong side of the mean: an error bar has no negative
    length."""
    return float(min(low, mean)), float(max(high, mean))


def _bootstrap(total, rows, *, draws, seed):
    n = len(rows)
    t = special.stdtrit(n - 1, (1 + LEVEL) / 2)
    level = 1 - 2 * special.ndtr(-t * np.sqrt(n / (n - 1)))
    found = stats.bootstrap(
        (total, rows),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=draws,
        batch=max(1, 1_000_000 // n),
        confidence_level=level,
        method="BCa",
        rng=generator(seed, "resampled prompts"),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _ratio(total, rows, axis):
    return np.round(
        total.sum(axis=axis) / rows.sum(axis=axis), 12
    )  # equal means are equal on every processor


def _codes(prompts, n):
    """Whole numbers that name the groups, whatever the prompts are written as."""
    known, prompts = {}, list(prompts)
    if len(prompts) != n:
        raise ValueError(
            f"prompts: {len(prompts)} of them for {n} values; name the prompt of every row"
        )
    return np.array([known.setdefault(x, len(known)) for x in prompts], dtype=int)


def _inside(values, bounds):
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if bounds is None or len(values) == 0:
        return True
    low, high = bounds
    slack = SLACK * (1 if high is None else high - low)
    return bool(values.min() >= low - slack and (high is None or values.max() <= high + slack))


def _words(bounds):
    low, high = bounds
    return f"{low:g} and above" if high is None else f"{low:g} to {high:g}"


def summarise(rows, by, quantities, *, difference=False, percent=False):
    """Mean and 95 % t-interval over seeds: a table of the `by` columns, then q, q_low, q_high for
    each quantity.

    `rows` is a list of dicts, one per seed and setting. With one seed both ends equal the mean. The
    intervals stay in the range that `range_of` knows a quantity by its name to have; say
    so where the rows hold a `difference` of it, or shares in `percent`.
    """
    rows, out = pd.DataFrame(rows), []
    ranges = {q: range_of(q, rows[q], difference=difference, percent=percent) for q in quantities}
    for key, group in rows.groupby(by, sort=False):
        row = dict(zip(by, key))
        for q in quantities:
            mean, low, high = over_seeds(group[q], ranges[q])
            ends = (mean if end is None else end for end in (low, high))
            row |= dict(zip((q, f"{q}_low", f"{q}_high"), (mean, *ends)))
        out.append(row)
    return pd.DataFrame(out)
