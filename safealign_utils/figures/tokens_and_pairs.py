"""Drawings of notebooks 04 and 05: what token scoring and pair selection choose."""

import numpy as np
import seaborn

from .style import (
    COLOURS,
    DASHED,
    INK,
    MARKERS,
    NAMES,
    SAFE,
    UNSAFE,
    ends,
    log_ticks,
    new_axes,
    note,
    styled,
)

LABELS = NAMES | {"dpo": "DPO, all tokens"}


def _line(ax, rule, x, part, quantity):
    look = dict(color=COLOURS[rule], marker=MARKERS[rule], label=LABELS[rule])
    look |= dict(ms=4, lw=1.2, capsize=2)
    ax.errorbar(x, part[quantity], ends(part, quantity), **look)


@styled
def coloured_tokens(rows, *, title):
    """Text with a colour behind each token: red > 0, blue < 0, one scale a row.

    `rows`: (label, words, values).
    """
    widest = max(sum(len(w) + 1.3 for w in words) for _, words, _ in rows)
    figure, ax = new_axes(width=0.072 * widest + 1.8, height=0.36 * len(rows) + 0.5)
    palette = seaborn.color_palette("vlag", as_cmap=True)
    for i, (label, words, values) in enumerate(rows):
        scale, x = max(float(np.abs(values).max()), 1e-9), 0.0
        for word, value in zip(words, np.asarray(values) / scale, strict=True):
            colour = palette(0.5 + 0.5 * value)
            box = dict(facecolor=colour, edgecolor="none", boxstyle="round,pad=0.18")
            ink = "white" if abs(value) > 0.7 else INK
            ax.text(x, -i, word, family="monospace", fontsize=7.6, va="center", color=ink, bbox=box)
            x += len(word) + 1.3
        ax.text(-1, -i, label, ha="right", va="center", fontsize=8, color="#444444")
    ax.set(xlim=(-0.5, widest), ylim=(-len(rows) + 0.4, 0.6), title=title)
    ax.set_axis_off()
    return figure


@styled
def restoring_force(points, *, start, n):
    """E[r] at the end against the score reference's.

    `points`: reference, keep, own (the score reference's E[r]), and reward with its ends.
    """
    figure, ax = new_axes(width=5.6, height=4.2)
    both = points[["own", "reward"]].to_numpy()
    line = both.min(), both.max()
    ax.plot(line, line, color=INK, lw=0.9, label="as good as its score reference")
    ax.axhline(start, **DASHED)
    ax.annotate("start", (line[0], start), fontsize=8, color="#666666", va="bottom")
    colours = seaborn.color_palette("deep")
    palette = dict(zip(points.reference.unique(), colours, strict=False))
    markers = dict(zip(sorted(points.keep.unique()), "ovsD^P", strict=False))
    for row in points.to_dict("records"):
        look = dict(color=palette[row["reference"]], marker=markers[row["keep"]])
        ax.errorbar(row["own"], row["reward"], ends(row, "reward"), ms=6, lw=1, capsize=2, **look)
    for reference, colour in palette.items():
        at = points[points.reference == reference][["own", "reward"]].mean()
        note(ax, reference, at, (9, -9), fontsize=9, color=colour)
    for keep, marker in markers.items():
        ax.scatter([], [], color="#666666", marker=marker, label=f"share {keep:.0%}")
    ax.set(xlabel="E[r] of the score reference", ylabel=f"E[r] of the trained policy (n = {n})")
    ax.set(title="Where Selective-DPO ends")
    ax.legend(fontsize=8)
    return figure


@styled
def shares(table, *, n):
    """KL to pi* and frontier gap against the share of tokens.

    `table`: rule, keep, and kl_opt, frontier_gap with their ends.
    """
    figure, axes = new_axes(2)
    words = {"kl_opt": "KL(θ‖π*), nats", "frontier_gap": "E[r] below the frontier at its own KL"}
    dpo, masked = table[table.rule == "dpo"].iloc[0], table[table.rule != "dpo"]
    for ax, (q, label) in zip(axes, words.items(), strict=True):
        ax.axhline(dpo[q], color=COLOURS["dpo"], lw=1.2, ls="--", label=LABELS["dpo"])
        ax.axhspan(dpo[f"{q}_low"], dpo[f"{q}_high"], color=COLOURS["dpo"], alpha=0.12, lw=0)
        for i, (rule, part) in enumerate(masked.groupby("rule", sort=False)):
            _line(ax, rule, 100 * part.keep + i - 1.5, part, q)
        ax.set(xlabel="tokens kept, %", ylabel=label, yscale="log")
        log_ticks(ax.yaxis, *ax.get_ylim())
    axes[0].set_title(f"Which tokens? (n = {n})")
    axes[1].legend(fontsize=8)
    return figure


@styled
def noise_grid(table, *, n):
    """KL to pi* minus DPO's, paired by seed, against label noise, a panel per number of pairs.

    `table`: pairs, label_noise, rule, and kl_opt (differences to DPO) with its ends.
    """
    sizes = sorted(table["pairs"].unique())
    figure, axes = new_axes(len(sizes), width=3.8)
    axes = np.atleast_1d(axes)
    for ax, size in zip(axes, sizes, strict=True):
        for i, (rule, part) in enumerate(table[table["pairs"] == size].groupby("rule", sort=False)):
            _line(ax, rule, 100 * part.label_noise + 0.6 * i, part, "kl_opt")
        ax.axhline(0, color=INK, lw=0.9)
        ax.set(xlabel="labels flipped, %", title=f"{size:,} pairs")
    axes[0].set_ylabel(f"KL(θ‖π*) minus DPO's, nats (n = {n})")
    axes[0].legend(fontsize=8)
    return figure


@styled
def spectra(mean, singular):
    """Eigenvalues of the mean moment, and residual singular values per data set {name: array}."""
    figure, (left, right) = new_axes(2)
    left.plot(np.arange(1, len(mean) + 1), np.cumsum(mean) / np.sum(mean), color=SAFE)
    left.set(xlabel="eigenvectors", ylabel="share of the energy", ylim=(0, 1.02))
    left.set(title="Mean moment of the data sets")
    looks = zip(seaborn.color_palette("deep"), ("-", "--", "-.", ":") * 3, strict=False)
    for (label, values), (colour, dash) in zip(singular.items(), looks, strict=False):
        right.plot(np.arange(1, len(values) + 1), values, dash, color=colour, label=label)
    right.set(xlabel="direction", ylabel="singular value / √n")
    right.set(title="Outside the other data sets' span")
    right.legend()
    return figure


@styled
def anchor_residual(energies, rare, picked):
    """Anchor and residual energy [N, 2], a panel a rule: rare [N] bool, picked {rule: rows}."""
    figure, axes = new_axes(len(picked), width=3.3, height=3.2)
    axes, dots = np.atleast_1d(axes), dict(linewidths=0, rasterized=True)
    for ax, (rule, rows) in zip(axes, picked.items(), strict=True):
        ax.scatter(*energies.T, s=3, color="#d9d9d9", label="not picked", **dots)
        for mine, colour, words in ((~rare, SAFE, "shared"), (rare, UNSAFE, "own category")):
            some = rows[mine[rows]]
            ax.scatter(*energies[some].T, s=6, color=colour, label=words, **dots)
        ax.set(xlabel="anchor energy |a|²")
        ax.set(title=f"{LABELS[rule]}: {rare[rows].sum()} of {rare.sum()} own")
    axes[0].set_ylabel("residual energy |b|²")
    axes[0].legend(fontsize=7, markerscale=2)
    return figure


@styled
def unsafe_by_category(table, *, n):
    """P(unsafe) in percent, rules down and categories across, as a heat map."""
    figure, ax = new_axes(width=6.2, height=0.32 * len(table) + 1)
    look = dict(cmap="OrRd", cbar=False, linewidths=0.5, annot_kws={"fontsize": 8})
    seaborn.heatmap(table, annot=True, fmt=".1f", ax=ax, **look)
    ax.set(xlabel="", ylabel="", title=f"P(unsafe) on held-out nouns, % (n = {n})")
    names = [LABELS[t.get_text()] for t in ax.get_yticklabels()]
    ax.set_yticks(ax.get_yticks(), names, rotation=0, fontsize=8)
    return figure


@styled
def budgets(table, *, n, full=None):
    """P(unsafe) against the budget, of all and of the worst category, in percent; two panels.

    `table`: rule, budget, and unsafe, worst with their ends.
    """
    figure, axes = new_axes(2)
    words = {"unsafe": "P(unsafe), %", "worst": "P(unsafe) of the worst category, %"}
    ticks = sorted(table.budget.unique())
    for ax, (q, label) in zip(axes, words.items(), strict=True):
        for i, (rule, part) in enumerate(table.groupby("rule", sort=False)):
            _line(ax, rule, 100 * part.budget * 1.03**i, part, q)
        if full is not None:
            ax.axhline(full[q], color=INK, lw=0.9, ls="--", label="all pairs, equal steps")
        ax.set(xlabel="budget, % of the pairs", ylabel=label, xscale="log")
        ax.set_xticks([100 * b for b in ticks], [f"{100 * b:g}" for b in ticks])
        ax.minorticks_off()
    axes[0].set_title(f"Budget (n = {n})")
    axes[1].legend(fontsize=8)
    return figure


@styled
def accuracy_by_source(table, *, n):
    """Held-out pairs ordered rightly, a panel a data set: rule, source, accuracy, low, high, n."""
    sources = list(dict.fromkeys(table.source))
    figure, axes = new_axes(len(sources), width=2.9, height=0.3 * table.rule.nunique() + 1.2)
    axes = np.atleast_1d(axes)
    for ax, source in zip(axes, sources, strict=True):
        part = table[table.source == source]
        y, colours = range(len(part)), [COLOURS[r] for r in part.rule]
        bar = [part.accuracy - part.low, part.high - part.accuracy]
        ax.errorbar(part.accuracy, y, xerr=bar, fmt="none", ecolor=colours, elinewidth=1.4)
        ax.scatter(part.accuracy, y, c=colours, s=22, zorder=3)
        ax.axvline(0.5, **DASHED)
        ax.set(xlabel="share ordered rightly", title=f"{source} (n = {part.n.iloc[0]:,})")
        names = [LABELS[r] if ax is axes[0] else "" for r in part.rule]
        ax.set(ylim=(len(part) - 0.5, -0.5))
        ax.set_yticks(y, names, fontsize=8)
    figure.suptitle(f"{n} seeds; 95 % bootstrap intervals over pairs", fontsize=8, color="#666666")
    return figure
