"""The one style of all figures: colours, names and how a figure is made and saved."""

import contextlib
import functools
import io

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure

COLOURS = {
    "ref": "#7f7f7f",
    "exact": "#222222",
    "dpo": "#3b6fb6",
    "dpo_soft": "#e0872b",
    "ml_on_optimum": "#4c9a6a",
    "chosen": "#4c9a6a",
    "rejected": "#c4504b",
    "bag_of_words": "#8d6bb0",
    "behaviour": "#4c9a6a",
    "dpo_harmless": "#c4504b",
    "dpo_safebetter": "#4c9a6a",
    "safedpo": "#e0872b",
    "cdpo": "#8d3fa0",
    "sacpo": "#2f9c95",
    "psacpo": "#7cc5c0",
    "mocan": "#d76fb0",
    "pecan": "#eeb0d6",
    "modpo": "#6f8a2c",
    "bfpo": "#a0a83a",
    "bso": "#b58b6b",
    "bso[margin=5]": "#6e4a2f",
    "ppo_lagrangian": "#111111",
    "fixed_lambda": "#9fb4d6",
    "mocan_soft": "#9c2f73",
    "selective": "#c9a227",
    "dog_d": "#6e4a2f",
}
NAMES = {
    "ref": "reference",
    "exact": "exact optimum",
    "dpo": "DPO, hard labels",
    "dpo_soft": "DPO, soft labels",
    "ml_on_optimum": "maximum likelihood on samples of the optimum",
    "bag_of_words": "bag of words",
    "dpo_harmless": "DPO-harmless",
    "dpo_safebetter": "DPO-safebetter",
    "safedpo": "SafeDPO",
    "cdpo": "C-DPO",
    "mocan_soft": "MoCAN, soft labels",
    "sacpo": "SACPO",
    "psacpo": "P-SACPO",
    "mocan": "MoCAN",
    "pecan": "PeCAN",
    "modpo": "MODPO",
    "bfpo": "BFPO",
    "bso": "BSO, C = 30",
    "bso[margin=5]": "BSO, C = 5",
    "ppo_lagrangian": "PPO-Lagrangian",
    "fixed_lambda": "fixed λ",
    "selective": "Selective-DPO",
    "dog_d": "DOG-D",
}
STYLE = {
    "svg.hashsalt": "safealign",
    "svg.fonttype": "path",
    "figure.dpi": 110,
    "savefig.bbox": "tight",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


class Drawing(Figure):
    """A matplotlib Figure that a notebook shows without pyplot, as the same bytes on every run."""

    def _repr_png_(self):
        out = io.BytesIO()
        with _style():
            self.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()


@contextlib.contextmanager
def _style():
    """The kit's style on matplotlib's own defaults, whatever the process has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {**seaborn.axes_style("whitegrid"), "grid.color": "#e8e8e8", **STYLE}
        )
        yield


def styled(draw):
    """Draw within the kit's style."""

    @functools.wraps(draw)
    def inside(*args, **options):
        with _style():
            return draw(*args, **options)

    return inside


def new_axes(columns=1, rows=1, width=4.8, height=3.4):
    figure = Drawing(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns)
    for ax in np.atleast_1d(axes).flat:
        seaborn.despine(ax=ax)
    return figure, axes


def save(figure, stem):
    """Write stem.png and stem.svg without date or version; returns both file names."""
    with _style():
        figure.savefig(f"{stem}.png", metadata={"Software": None}, dpi=150)
        figure.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})
    return [f"{stem.name}.png", f"{stem.name}.svg"]
