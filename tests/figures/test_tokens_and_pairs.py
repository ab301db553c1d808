"""Drawings of notebooks 04 and 05: they draw what they are given, and the same bytes each time."""

import numpy as np
import pandas as pd
import pytest

from safealign_utils.figures import tokens_and_pairs as f
from safealign_utils.study import settings as parameters


def ends(table, *quantities):
    return table.assign(
        **{
            f"{q}{end}": table[q] + d
            for q in quantities
            for end, d in (("_low", -0.1), ("_high", 0.1))
        }
    )


POINTS = np.random.default_rng(0).random((9, 2))
SHARES = ends(
    pd.DataFrame(
        {
            "rule": ["dpo", *["signed"] * 2, *["random"] * 2],
            "keep": [1, 0.1, 0.4, 0.1, 0.4],
            "kl_opt": 1.0,
            "frontier_gap": 0.5,
        }
    ),
    "kl_opt",
    "frontier_gap",
)
DRAWINGS = {
    "tokens": lambda: f.coloured_tokens(
        [("chosen", ["a", "bb"], [1.0, -2.0]), ("rejected", ["c"], [0.0])], title="t"
    ),
    "force": lambda: f.restoring_force(
        ends(
            pd.DataFrame(
                {"reference": ["a", "b"], "keep": [0.1, 0.4], "own": [0, 1.0], "reward": [0.5, 1.0]}
            ),
            "reward",
        ),
        start=0.2,
        n=3,
    ),
    "shares": lambda: f.shares(SHARES, n=3),
    "noise": lambda: f.noise_grid(
        SHARES[1:].assign(pairs=[500, 500, 6000, 6000], label_noise=[0, 0.3, 0, 0.3]), n=3
    ),
    "spectra": lambda: f.spectra(np.arange(5, 0, -1.0), {"one": np.ones(5), "two": np.zeros(5)}),
    "plane": lambda: f.anchor_residual(
        POINTS, np.arange(9) > 6, {"random": np.arange(3), "dog": np.array([8])}
    ),
    "categories": lambda: f.unsafe_by_category(
        pd.DataFrame({"kitchen": [1.0, 2.0]}, index=pd.Index(["dog", "ref"], name="rule")), n=5
    ),
    "budgets": lambda: f.budgets(
        ends(
            pd.DataFrame(
                {
                    "rule": ["dog", "dog"],
                    "budget": [0.1, 1.0],
                    "unsafe": [1.0, 2],
                    "worst": [3.0, 4],
                }
            ),
            "unsafe",
            "worst",
        ),
        n=5,
        full={"unsafe": 1.0, "worst": 2.0},
    ),
    "sources": lambda: f.accuracy_by_source(
        pd.DataFrame(
            {
                "rule": ["dog", "random"] * 2,
                "source": ["a", "a", "b", "b"],
                "accuracy": 0.5,
                "low": 0.4,
                "high": 0.6,
                "n": 9,
            }
        ),
        n=3,
    ),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_drawing_is_the_same_bytes_each_time(draw):
    assert draw()._repr_png_() == draw()._repr_png_()


def test_what_is_drawn_is_what_was_given():
    heights = [line.get_ydata() for line in f.shares(SHARES, n=3).axes[0].lines]
    assert sum(len(y) == 2 and np.allclose(y, 1.0) for y in heights) >= 3, (
        "DPO's level and two rules"
    )
    titles = [ax.get_title(loc="left") for ax in DRAWINGS["plane"]().axes]
    assert titles == ["random: 0 of 2 own", "DOG: 1 of 2 own"]


def test_every_rule_has_a_colour_and_a_name():
    drawn = [r for r in parameters.SELECTIONS if r != "ablation"]
    assert len({f.LABELS[r] for r in drawn}) == len(drawn) and set(drawn) <= set(f.COLOURS)
