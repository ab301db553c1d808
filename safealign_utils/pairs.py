"""Preference pairs: one table whose rows and columns are the levers of the loss.

Columns of PKU-SafeRLHF (prompt, response_0, response_1, is_response_k_safe, better_response_id,
safer_response_id), `source` (the data set), `category` (of harm), and three that the loss reads:
`chosen` (0 or 1), `p` (probability that it wins, 1 for a hard label) and `margin`. Which *pairs*:
the rows. Which *winner*: `chosen` and `p`. Which *margin*: `margin`. Missing labels are pandas' NA.
"""

import math
import re

import numpy as np
import pandas as pd

from .engine import cache
from .tokens import TokenPairs as TokenPairs
from .tokens import chosen_rejected as chosen_rejected
from .tokens import tokenize as tokenize

TEXT = ("prompt", "response_0", "response_1")
LABELS = {"better": "better_response_id", "safer": "safer_response_id"}
SAFE = ("is_response_0_safe", "is_response_1_safe")
# Words in the name of a split; test_prefs, train-sft, 30k_test and the like hold one of them.
TRAINED = ("train", "training", "trainset")
CERTAIN = 30.0  # nats; a label is no surer: float64 would call it certain, its reward infinite
HELD_OUT_SHARE = 0.15  # of the prompts, where no split is named
HELD_OUT = (
    "test",
    "testing",
    "tests",
    "testset",
    "val",
    "valid",
    "validation",
    "valset",
    "dev",
    "devset",
    "eval",
    "evaluation",
    "heldout",
    "holdout",
)


def split_pairs(table, *, heldout=0.0, categories=()):
    """(train, test, report): by the column `split`, else 15 % by a hash of the prompt. No prompt is
    in both. A share `heldout` above 0 is held out by that hash, or `categories` are, whatever
    `split` says.

    A split is held out or trained on by the word in its name (HELD_OUT, TRAINED; test_prefs is a
    test split), in any case of letters; rows without one, beside others, are trained on. Raises
    ValueError for any other name. The report counts rows with two equal responses and held-out rows
    whose prompt is also trained on, both left out; and rows that repeat a pair of the same split,
    in either order, which stay.
    """
    same = table.response_0 == table.response_1
    table = table[~same]
    if categories:
        test = table.category.isin(categories)
    elif not heldout and (table["split"] != "").any():
        test = table["split"].map(_held_out_names(table["split"])).astype(bool)
    else:
        share = heldout or HELD_OUT_SHARE
        test = table.prompt.map(lambda x: int(cache.digest(x)[:8], 16) / 16**8 < share)
        test = test.astype(bool)  # also where no row is left
    train, test = table[~test], table[test]
    shared = test.prompt.isin(set(train.prompt))
    if train.empty or shared.all():
        why = f"{len(train)} training and {(~shared).sum()} held-out pairs; both are needed"
        if categories:
            raise ValueError(f"heldout_categories={list(categories)}: {why}; name others")
        given, fix = ("data", "mark rows by `split`, or give heldout=0.3")
        given, fix = (f"heldout={heldout:g}", "give another share") if heldout else (given, fix)
        raise ValueError(f"{given}: {why}; {fix}")
    train, test = train.reset_index(drop=True), test[~shared].reset_index(drop=True)
    pairs = [(x, *sorted((a, b))) for t in (train, test) for x, a, b in zip(*(t[c] for c in TEXT))]
    report = {
        "equal_responses": int(same.sum()),
        "prompts_in_both_splits": int(shared.sum()),
        "repeated_pairs": len(pairs) - len(set(pairs)),
    }
    return train, test, report


def _held_out_names(splits):
    """{name: is it held out} of the names in a column of splits."""
    out, counts = {}, splits.value_counts()
    for name in counts.index:
        words = re.findall("[a-z]+", re.sub("(held|hold)[^a-z]*out", r"\1out", name.lower()))
        held, trained = any(w in HELD_OUT for w in words), any(w in TRAINED for w in words)
        if name and held == trained:
            raise ValueError(
                f"data, column 'split': {name!r} ({counts[name]} rows) says not whether it is "
                "held out; "
                f"name it train, or one of {', '.join(HELD_OUT)}; the column has "
                f"{', '.join(map(repr, counts.index))}"
            )
        out[name] = held
    return out


def some_of_every_source(table, n):
    """At most n rows, in their order: the first of each `source` in turn, so that none is left
    out."""
    turn = table.groupby("source").cumcount().to_numpy()
    return table.iloc[np.sort(np.argsort(turn, kind="stable")[:n])].reset_index(drop=True)


# ---------------------------------------------------------------- labels: the winner lever
def label(table, by="auto"):
    """Hard labels by a column: sets `chosen`, p = 1, margin = 0; rows without that label are left
    out.

    `by` is better (helpfulness), safer, safer_or_better or better_or_safer (for several data sets:
    the second where a row has no first), or auto: better where any row has it. Raises ValueError
    where no row has the label.
    """
    if by not in ("auto", "safer_or_better", "better_or_safer", *LABELS):
        raise ValueError(
            f"label={by!r}: choose auto, better, safer, safer_or_better or better_or_safer"
        )
    by = label_used(table, by)
    first, *second = (LABELS[name] for name in by.split("_or_"))
    labels = table[first].fillna(table[second[0]]) if second else table[first]
    known = labels.notna()
    if not known.any():
        other = "better" if by == "safer" else "safer"
        raise ValueError(f"label={by!r}: no row has a {LABELS.get(by, 'label')}; try label={other}")
    table = table[known]
    return table.assign(chosen=labels[known].astype(int), p=1.0, margin=0.0).reset_index(drop=True)


def label_used(table, by):
    """The label that `by` means in a table: auto is better where any row has it, else safer."""
    if by != "auto":
        return by
    return "better" if table.better_response_id.notna().any() else "safer"


def best_safe(table):
    """{prompt: a response} of a table of pairs: of those that no label calls unsafe the one that
    wins most comparisons, by `better_response_id` or, without it, by `safer_response_id`. A prompt
    whose responses are all unsafe has none."""
    wins, winner = {}, table.better_response_id.fillna(table.safer_response_id)
    for number, row in zip(winner, table.itertuples()):
        for k, response in enumerate((row.response_0, row.response_1)):
            of = wins.setdefault(row.prompt, {})
            safe = getattr(row, SAFE[k])
            of[response] = of.get(response, 0) + (pd.notna(number) and number == k)
            of[response] -= math.inf if pd.notna(safe) and not safe else 0
    best = {prompt: max(of, key=of.get) for prompt, of in wins.items()}
    return {prompt: y for prompt, y in best.items() if wins[prompt][y] >= 0}


def with_safety(table):
    """The rows with both safety labels. Raises ValueError where there are none."""
    known = table.dropna(subset=list(SAFE))
    if known.empty:
        raise ValueError(
            f"data: no row has both {SAFE[0]} and {SAFE[1]}; SafeDPO needs safety labels"
        )
    return known.reset_index(drop=True)


def soft_label(table, score_0, score_1):
    """Soft labels from known scores: p = sigma(score gap), chosen = the higher score. Scores [N],
    in nats.

    Scores within 1e-9 are equal: response 0 is then called chosen. p is not rounded: it may fall
    below 1/2 by less than 1e-9 there, so that the loss, which knows p and 1 - p, does not jump
    whoever is called chosen.
    """
    gap = np.asarray(score_0, dtype=float) - np.asarray(score_1, dtype=float)
    first = np.round(gap, 9) >= 0
    return table.assign(
        chosen=np.where(first, 0, 1), p=1 / (1 + np.exp(np.where(first, -gap, gap))), margin=0.0
    )


# ---------------------------------------------------------------- soft labels from hard ones
def splits(names, folds):
    """(rows to fit, rows to score) of every fold; rows of the same name are in one fold, by the
    order of a hash of the name (texts or tuples of texts [N]). Raises ValueError where there are
    fewer names than folds."""
    distinct = sorted(set(names), key=cache.digest)
    if len(distinct) < folds:
        why = f"there are {len(distinct)} prompts or pairs to part"
        raise ValueError(f"folds={folds}: {why}; give more pairs")
    number = {name: place % folds for place, name in enumerate(distinct)}
    fold = np.array([number[name] for name in names])
    return [(np.nonzero(fold != f)[0], np.nonzero(fold == f)[0]) for f in range(folds)]


def cross_fitted(table, members, *, folds=3, by="pair"):
    """Soft labels from the hard labels of the same table: sets p, chosen, margin = 0; N rows.

    Each of `members` is a function (labelled rows, rows [n]) -> margins float [n] of response 0
    over response 1; those of `real/soft_labels.py` are a reward model, DPO's implicit reward and
    word counts. Each fold is scored by members that were fitted to the other folds, and so are the
    weights of the logistic combination of the margins (scikit-learn, no intercept: swapping the
    responses turns p into 1 - p). So a pair's own label enters its p neither by a member nor by the
    weights; it has a part in members that score *other* pairs, which fit the weights, no more.

    `by` says which rows are never parted: "pair" those of the same prompt and the same two
    responses, as a copied row would tell its own label; "prompt" all rows of a prompt, for data
    whose labels of one prompt are not independent (one person ranked several responses). Raises
    ValueError for soft labels, for another `by`, and where a fold has too few rows.

    Soft preference labels are not new: geometric averages of them (2409.06691), distillation from
    reward models (2405.19316), corrections by a known noise rate (2403.00409). That they are taken
    out of fold from the hard labels alone is this kit's choice; whether a paper does so is not
    stated in the sources at hand.
    """
    if by not in ("pair", "prompt"):
        raise ValueError(f"by={by!r}: choose pair or prompt")
    if not table.p.isin((0.0, 1.0)).all():
        raise ValueError("p: cross-fitting starts from hard labels (p 0 or 1); use pairs.label")
    first = np.where(table.p == 1, table.chosen == 0, table.chosen == 1)
    responses = zip(table.response_0, table.response_1)
    names = list(table.prompt)
    if by == "pair":
        names = [(x, *sorted(both)) for x, both in zip(names, responses)]
    parts, margins = splits(names, folds), np.empty((len(table), len(members)))
    for kept, out in parts:
        seen = table.iloc[kept].reset_index(drop=True)
        asked = table.iloc[out].assign(chosen=0, p=1.0, margin=0.0).reset_index(drop=True)
        margins[out] = np.stack([member(seen, asked) for member in members], axis=1)
    gap = np.empty(len(table))
    for kept, out in parts:
        gap[out] = margins[out] @ _weights(margins[kept], first[kept])
    return soft_label(table, gap.clip(-CERTAIN, CERTAIN), np.zeros(len(table)))


def _weights(margins, first):
    """Weights [K] of a logistic combination of margins [n, K] for bool [n]: response 0 wins."""
    from sklearn.linear_model import LogisticRegression

    turned = np.where(np.arange(len(first)) % 2, 1.0, -1.0)  # scikit-learn wants both classes
    x = margins * (np.where(first, 1.0, -1.0) * turned)[:, None]
    return LogisticRegression(fit_intercept=False, max_iter=1000).fit(x, turned).coef_[0]


def rewards_of_labels(table):
    """The columns reward_0 = log p0 / (1 - p0) and reward_1 = 0 of soft labels, nats, where p0 is
    the probability that response 0 wins: what C-DPO's `relabel` and SafeDPO's `with_finite_target`
    read in place of a reward model's. Only their difference has a meaning. Raises ValueError for a
    label that is certain, as its reward would be infinite.
    """
    certain = int(table.p.isin((0.0, 1.0)).sum())
    if certain:
        raise ValueError(f"p: {certain} labels are certain, their rewards infinite; soften them")
    first = chosen_rejected(table, table.p, 1 - table.p)[0]
    return table.assign(reward_0=np.log(first / (1 - first)), reward_1=0.0)


def data_hash(table):
    """Hash of texts, labels and levers; the same on every machine."""
    columns = [c for c in (*TEXT, *SAFE, *LABELS.values(), "chosen", "p", "margin") if c in table]
    return cache.digest([list(map(_plain, table[c].tolist())) for c in columns])


def _plain(value):
    if pd.isna(value):
        return None
    return round(value, 9) if isinstance(value, float) else value
