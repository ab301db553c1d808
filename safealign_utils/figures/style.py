"""The one style of all figures: colours, names, intervals, and how a figure is made and saved.

Every drawing takes tables and returns a Figure. A quantity q has the ends of its 95 % interval over
seeds in q_low and q_high; with one seed there is none, and the label says n = 1. PNG and SVG are
byte-stable: no date, no version, a fixed hash salt.
"""

import contextlib
import functools
import io

import matplotlib
import numpy as np
import seaborn
from matplotlib.figure import Figure

METHODS = {  # what is compared, the same look everywhere: (colour, marker, name)
    "ref": ("#7f7f7f", "X", "reference"),
    "exact": ("#222222", "*", "exact optimum"),
    "behaviour": ("#4c9a6a", "o", "behaviour"),
    "chosen": ("#4c9a6a", "o", "chosen"),
    "rejected": ("#c4504b", "s", "rejected"),
    "ml_on_optimum": ("#4c9a6a", "P", "maximum likelihood on samples of the optimum"),
    "bag_of_words": ("#8d6bb0", "X", "bag of words"),
    "dpo": ("#3b6fb6", "o", "DPO, hard labels"),
    "dpo_soft": ("#e0872b", "s", "DPO, soft labels"),
    "dpo_cross_fitted": ("#8fb3e0", "d", "DPO, cross-fitted labels"),
    "dpo_certain": ("#1f3f6b", "v", "DPO, certain labels"),
    "ipo": ("#2f9c95", "^", "IPO"),
    "dpo_harmless": ("#c4504b", "v", "DPO-harmless"),
    "dpo_safebetter": ("#4c9a6a", "^", "DPO-safebetter"),
    "safedpo": ("#e0872b", "s", "SafeDPO"),
    "safedpo_cross_fitted": ("#f3b878", "d", "SafeDPO, cross-fitted labels"),
    "safedpo_delta": ("#a85a10", "D", "SafeDPO, with Δ"),
    "cdpo": ("#8d3fa0", "P", "C-DPO"),
    "cdpo_coin": ("#c79ad6", "p", "C-DPO, coins"),
    "sacpo": ("#2f9c95", "<", "SACPO"),
    "psacpo": ("#7cc5c0", ">", "P-SACPO"),
    "mocan": ("#d76fb0", "d", "MoCAN"),
    "mocan_soft": ("#9c2f73", "h", "MoCAN, soft labels"),
    "pecan": ("#eeb0d6", "H", "PeCAN"),
    "modpo": ("#6f8a2c", "8", "MODPO"),
    "bfpo": ("#a0a83a", "p", "BFPO"),
    "bso": ("#b58b6b", "X", "BSO, C = 30"),
    "bso[margin=5]": ("#6e4a2f", "H", "BSO, C = 5"),
    "ppo_lagrangian": ("#111111", "v", "PPO-Lagrangian"),
    "fixed_lambda": ("#9fb4d6", "^", "fixed λ"),
    # tokens
    "selective": ("#c9a227", "s", "Selective-DPO"),
    "signed": ("#e0872b", "s", "Selective-DPO"),
    "beta": ("#4c9a6a", "^", "DPO, β times the share"),
    "oracle": ("#8d3fa0", "D", "oracle: |advantage|"),
    "inverted": ("#c4504b", "v", "inverted score"),
    "absolute": ("#2f9c95", "P", "|score|"),
    "frozen": ("#d76fb0", "X", "frozen score"),
    # pairs
    "dog": ("#c4504b", "v", "DOG"),
    "dog_d": ("#e0872b", "s", "DOG-D"),
    "dog_d_dpo": ("#8fb3e0", "d", "DOG-D + DPO"),
    "dog_d_safedpo": ("#f3b878", "D", "DOG-D + SafeDPO"),
    "literal": ("#b58b6b", "p", "DOG-D, literal reading"),
    "random": ("#8a8a8a", "o", "random"),
    "random_copies": ("#c9c9c9", "X", "random, copies kept"),
    "log_det": ("#8d3fa0", "D", "log-det"),
    "sharp_log_det": ("#5a2a82", "P", "log-det, a tenth of the ridge"),
    "safety_log_det": ("#d76fb0", "^", "log-det, mixed pairs first"),
    "stratified": ("#222222", "h", "stratified oracle"),
    "k_means": ("#2f9c95", "<", "k-means"),
    "facility": ("#6f8a2c", ">", "facility location"),
    "k_centre": ("#7cc5c0", "8", "k-centre"),
    "largest_margin": ("#3b6fb6", "^", "largest margin"),
    "smallest_margin": ("#9fb4d6", "v", "smallest margin"),
    "easiest_half": ("#a0a83a", "p", "easiest half"),
    "full_data": ("#3b6fb6", "o", "all pairs"),
    "all_epochs": ("#1f3f6b", "d", "all pairs, as many epochs"),
}
COLOURS = {method: colour for method, (colour, _, _) in METHODS.items()}
MARKERS = {method: marker for method, (_, marker, _) in METHODS.items()}
NAMES = {method: name for method, (*_, name) in METHODS.items()}
VERDICTS = {  # verdict: (its words, a sign that needs no colour, colour)
    "holds": ("holds", "✓", "#1a6b35"),
    "does_not_hold": ("does not hold", "✕", "#b3352b"),
    "undecided": ("undecided", "?", "#946b00"),
    "needs_scale": ("needs scale", "↗", "#2f5597"),
    "not_measured": ("not measured", "–", "#69717a"),
}
SAFE, UNSAFE, INK = "#3b6fb6", "#c4504b", "#222222"
DASHED = dict(color="#999999", lw=0.8, ls="--")
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
    """(figure, its axes: one, or an array where there are several); sizes in inches an axes."""
    figure = Drawing(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns)
    for ax in np.atleast_1d(axes).flat:
        seaborn.despine(ax=ax)
    return figure, axes


def ends(rows, quantity):
    """Lengths of the error bars of a quantity, [2, N]: down to q_low, up to q_high."""
    value = rows[quantity]
    return np.reshape([value - rows[f"{quantity}_low"], rows[f"{quantity}_high"] - value], (2, -1))


def points_with_ends(ax, rows, x, y, n, **look):
    """Points in a plane of two quantities, with both intervals where there are several seeds."""
    bars = dict(xerr=ends(rows, x), yerr=ends(rows, y)) if n > 1 else {}
    ax.errorbar(rows[x], rows[y], **bars, capsize=2, linestyle="none", **look)


def band(ax, rows, x, y, n, *, shade, **look):
    """A line over x with the interval of y as a band where there are several seeds."""
    ax.plot(rows[x], rows[y], **{"marker": "o", "ms": 4, **look})
    if n > 1:
        low, high = rows[f"{y}_low"], rows[f"{y}_high"]
        ax.fill_between(rows[x], low, high, color=look["color"], alpha=shade, lw=0)


def stars(ax, optima, **look):
    """Exact optima (x, y, words), each named above its star."""
    for x, y, words in optima:
        ax.plot(x, y, "*", color=COLOURS["exact"], **look)
        note(ax, words, (x, y), (0, 8), fontsize=9, ha="center")


def note(ax, words, at, shift, **look):
    """Words beside a point, `shift` in typographic points."""
    ax.annotate(words, at, xytext=shift, textcoords="offset points", **look)


def log_ticks(axis, low, high):
    """Labelled ticks at 1, 2 and 5 of each decade; at every digit where less than 5 is spanned."""
    marks = [m * 10.0**k for k in range(-6, 7) for m in (1, 2, 5)]
    if high / low < 5:
        marks = [m * 10.0**k for k in range(-6, 7) for m in range(1, 10)]
    axis.set_ticks([y for y in marks if low <= y <= high])
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def plain(text):
    """A text that matplotlib draws as it stands: a $ of somebody's name begins no formula."""
    return str(text).replace("$", r"\$")


def legend_beside(ax, *handles):
    """The legend to the right of the axes."""
    ax.legend(*handles, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def save(figure, stem):
    """Write stem.png and stem.svg without date or version; returns both file names."""
    with _style():
        figure.savefig(f"{stem}.png", metadata={"Software": None}, dpi=150)
        figure.savefig(f"{stem}.svg", metadata={"Date": None, "Creator": None})
    return [f"{stem.name}.png", f"{stem.name}.svg"]
