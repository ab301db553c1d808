"""Figures: returned, saved as the same bytes each time, without date or version, whatever the process's style."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from safealign_utils import figures


def log(n=30):
    t = np.arange(1.0, n + 1)
    return pd.DataFrame({"step": t, "loss": np.exp(-t / n), "chosen": -t / n, "rejected": -2 * t / n})


def points(n):
    rows = [("dpo", b, 0.5 + b, 0.2 + b) for b in (0.5, 1.0)] + [("dpo_soft", 0.5, 1.4, 0.6)]
    table = pd.DataFrame(rows, columns=["method", "beta", "reward", "kl_ref"])
    wide = 0.1 if n > 1 else 0.0
    return table.assign(
        **{f"{q}_{e}": table[q] + s * wide for q in ("reward", "kl_ref") for e, s in (("low", -1), ("high", 1))}
    )


def distances():
    rows = [(m, n, 1 / n) for m in ("dpo", "dpo_soft") for n in (100, 1000)]
    table = pd.DataFrame(rows, columns=["method", "pairs", "kl_opt"])
    return table.assign(kl_opt_low=table.kl_opt / 2, kl_opt_high=table.kl_opt * 2)


G = np.random.default_rng(0)
DRAW = {
    "training": lambda: figures.training({"dpo": log(), "dpo_soft": log()}),
    "implicit": lambda: figures.implicit_reward(G.normal(size=9), G.normal(size=9), unsafe=np.arange(9) % 2 == 0),
    "frontier": lambda: figures.frontier(np.array([[1, 0.5, 0.1], [0.5, 0.9, 0.4]]), points(3), n=3),
    "frontier_one_seed": lambda: figures.frontier(np.array([[1, 0.5, 0.1], [0.5, 0.9, 0.4]]), points(1), n=1),
    "distance": lambda: figures.distance(distances(), x="pairs", xlabel="training pairs", n=3),
    "accuracies": lambda: figures.accuracies(
        pd.DataFrame([("dpo", 0.6, 0.5, 0.7, 10)], columns=["method", "accuracy", "low", "high", "n"])
    ),
    "world": lambda: figures.world_map(*np.ones((3, 2, 4)), ["a", "b"]),
    "cost": lambda: figures.cost_frontier(np.ones((3, 4)), {"here": (0.0, 1.0, "#222222")}),
}


@pytest.mark.parametrize("name", DRAW)
def test_figures_return_and_save(name, tmp_path):
    figure = DRAW[name]()
    assert isinstance(figure, matplotlib.figure.Figure) and figure._repr_png_()[:4] == b"\x89PNG"
    assert figures.save(figure, tmp_path / name) == [f"{name}.png", f"{name}.svg"]
    text = (tmp_path / f"{name}.svg").read_text()
    assert "dc:date" not in text and "Matplotlib v" not in text
    assert b"Software" not in (tmp_path / f"{name}.png").read_bytes()


def test_bytes_do_not_depend_on_the_process(tmp_path):
    first = DRAW["frontier"]()
    one = figures.save(first, tmp_path / "one")
    with matplotlib.rc_context({"font.size": 20, "axes.grid.axis": "x", "lines.linewidth": 9, "svg.hashsalt": "other"}):
        matplotlib.rcParams["axes.titlesize"] = 30
        two = figures.save(DRAW["frontier"](), tmp_path / "two")
    for a, b in zip(one, two):
        assert (tmp_path / a).read_bytes() == (tmp_path / b).read_bytes()


def test_every_method_has_one_colour():
    methods = [c for name, c in figures.COLOURS.items() if name in ("ref", "exact", "dpo", "dpo_soft", "bag_of_words")]
    assert len(set(methods)) == len(methods)
