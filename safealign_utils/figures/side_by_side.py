"""Drawings of notebook 06: methods and combinations of levers side by side; same rules as `figures.py`."""

import numpy as np

from . import style
from .style import new_axes, styled

COLOURS = style.COLOURS | {
    "safedpo_delta": "#a85a10",
    "cdpo_coin": "#c79ad6",
    "selective": "#c9a227",
    "dog_d_dpo": "#8fb3e0",
    "dog_d_safedpo": "#f3b878",
}
NAMES = style.NAMES | {
    "dpo": "DPO-helpful",
    "safedpo": "SafeDPO, Δ = 0",
    "safedpo_delta": "SafeDPO, with Δ",
    "cdpo": "C-DPO, soft labels",
    "cdpo_coin": "C-DPO, coins",
    "selective": "Selective-DPO",
    "dog_d_dpo": "DOG-D + DPO",
    "dog_d_safedpo": "DOG-D + SafeDPO",
}
SHAPES = {"o": "labels", "s": "scores of r and c", "^": "on-policy", "D": "a lever on top"}
SHAPE = dict.fromkeys(("modpo", "mocan", "cdpo", "cdpo_coin", "sacpo"), "s") | {
    "ppo_lagrangian": "^"
}
SHAPE |= dict.fromkeys(("selective", "dog_d_dpo", "dog_d_safedpo"), "D")
WINNER = {
    "helpful": ("#3b6fb6", "#4c9a6a"),
    "T": ("#e0872b", "#c4504b"),
}  # without and with the margin
WORDS = {"helpful": "helpful labels", "T": "T", "none": "", "delta": ", Δ"}


def _bars(ax, row, n, **look):
    """One point, with its intervals where there are several seeds."""
    ends = lambda q: [[row[q] - row[f"{q}_low"]], [row[f"{q}_high"] - row[q]]]
    bars = dict(xerr=ends("harmless"), yerr=ends("reward")) if n > 1 else {}
    ax.errorbar(
        row["harmless"],
        row["reward"],
        **bars,
        capsize=2,
        lw=0.9,
        linestyle="none",
        zorder=3,
        **look,
    )


def _exact(ax, curves, stars):
    """Exact frontiers {words: [K, 2]} and optima (harmless, E[r], words), in black."""
    for (words, line), dash in zip(curves.items(), ("-", "--")):
        ax.plot(*np.asarray(line).T, color=COLOURS["exact"], lw=1.2, ls=dash, label=words, zorder=1)
    for x, y, words in stars:
        ax.plot(x, y, "*", ms=13, color=COLOURS["exact"], zorder=1.5)
        ax.annotate(
            words, (x, y), xytext=(0, 8), textcoords="offset points", fontsize=9, ha="center"
        )


@styled
def methods(points, *, curves, stars, n):
    """Methods in the plane of harmlessness and helpfulness, with the exact frontiers at the same beta.

    `points`: method, harmless (percent), reward and their _low and _high. The marker says what a method learns from.
    """
    figure, ax = new_axes(width=7.6, height=5)
    _exact(ax, curves, stars)
    for row in points.to_dict("records"):
        m = row["method"]
        _bars(ax, row, n, marker=SHAPE.get(m, "o"), ms=5.5, color=COLOURS[m], label=NAMES[m])
    for marker, words in SHAPES.items():
        ax.plot([], [], marker, ms=5, color="#bbbbbb", label=f"marker: {words}")
    ax.set(xlabel="harmless: 100 (1 − P(unsafe)), held-out nouns", ylabel="helpfulness: E[r]")
    ax.set_title(f"One budget (n = {n})"), ax.margins(y=0.08)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@styled
def cells(points, *, curves, stars, n):
    """The cells of the factorial in the same plane, a panel for all tokens and one for the selected ones.

    `points`: pairs, winner, margin, tokens, harmless, reward and their _low and _high. Colour = winner and margin,
    filled = all pairs, hollow = DOG-D's.
    """
    figure, axes = new_axes(2, width=5.4, height=4)
    for ax, (tokens, part), title in zip(
        axes, points.groupby("tokens", sort=False), ("All tokens", "Selective-DPO")
    ):
        _exact(ax, curves if tokens == "all" else {}, stars)
        for row in part.to_dict("records"):
            colour = WINNER[row["winner"]][row["margin"] == "delta"]
            words = (
                WORDS[row["winner"]]
                + WORDS[row["margin"]]
                + ("" if row["pairs"] == "all" else "; DOG-D's pairs")
            )
            face = colour if row["pairs"] == "all" else "white"
            _bars(ax, row, n, marker="o", ms=6, color=colour, markerfacecolor=face, label=words)
        ax.set(xlabel="harmless, %", title=f"{title} (n = {n})")
    wide, high = (np.array([getattr(ax, f"get_{q}lim")() for ax in axes]) for q in "xy")
    [ax.set(xlim=(wide.min(), wide.max()), ylim=(high.min(), high.max() + 0.1)) for ax in axes]
    axes[0].set_ylabel("helpfulness: E[r]")
    axes[1].legend(
        *axes[0].get_legend_handles_labels(),
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    return figure


@styled
def effects(table, *, quantities, n, exact=None):
    """Effects with intervals, a panel a quantity {column: words}. `table`: effect, and q, q_low, q_high.

    `exact` {(effect, column): value}: what the exact optima give, as stars.
    """
    figure, axes = new_axes(len(quantities), width=4, height=0.3 * len(table) + 1.1)
    y = np.arange(len(table))
    colours = np.where(table.effect.str.contains(" x "), "#8d3fa0", "#3b6fb6")
    for ax, (q, words) in zip(np.atleast_1d(axes), quantities.items()):
        if n > 1:
            ends = [table[q] - table[f"{q}_low"], table[f"{q}_high"] - table[q]]
            ax.errorbar(table[q], y, xerr=ends, fmt="none", ecolor=colours, elinewidth=1.4)
        ax.scatter(table[q], y, c=colours, s=26, zorder=3)
        for i, effect in enumerate(table.effect):
            if exact and (effect, q) in exact:
                ax.plot(exact[effect, q], i, "*", ms=9, color=COLOURS["exact"], zorder=4)
        ax.axvline(0, color="#222222", lw=0.9)
        ax.set(xlabel=words, ylim=(len(table) - 0.5, -0.5))
        ax.set_yticks(y, [""] * len(y))
    np.atleast_1d(axes)[0].set_yticks(y, list(table.effect.str.replace(" x ", " × ")))
    np.atleast_1d(axes)[0].set_title(
        f"Effects (n = {n}; star: exact optima)" if exact else f"Effects (n = {n})"
    )
    return figure
