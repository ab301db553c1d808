"""The drawing on top of the report."""

from .style import VERDICTS, new_axes, styled


@styled
def verdicts(counts):
    """Verdicts by notebook. `counts`: a row a notebook, its title as index; a column a verdict."""
    figure, ax = new_axes(width=4.6, height=0.56 * len(counts))
    start = 0 * counts.sum(axis=1)
    for verdict, (words, _, colour) in VERDICTS.items():
        part = counts[verdict]
        bars = ax.barh(range(len(counts)), part, 0.46, start, color=colour, label=words)
        ax.bar_label(bars, [n or "" for n in part], label_type="center", color="white", fontsize=9)
        start = start + part
    for y, title in enumerate(counts.index):
        ax.text(0, y - 0.34, title, fontsize=9.5, parse_math=False)
    ax.set(ylim=(len(counts) - 0.6, -0.8))
    ax.set_axis_off()
    return figure
