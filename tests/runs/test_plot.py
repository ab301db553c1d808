"""`safealign plot`: what is drawn is what was computed; bad columns and files are refused with the nearest name."""

import re

import numpy as np
import pandas as pd
import pytest

from safealign_utils import intervals
from safealign_utils.figures import style
from safealign_utils.runs import cli
from safealign_utils.runs.plot import draw, read, select
from safealign_utils.study.settings import Refusal

G = np.random.default_rng(0)
DELTAS, SEEDS = (0.0, 2.0, 10.0), (0, 1, 2)


def sweep():
    """A table as a sweep writes it: one row per run and method."""
    rows = []
    for seed in SEEDS:
        for delta in DELTAS:
            for method in ("safedpo", "dpo", "ref", f"safedpo[delta={delta:g}]"):
                unsafe, kl = (
                    float(G.uniform(0, 0.3)),
                    np.nan if method == "ref" else float(G.uniform()),
                )
                rows.append((f"{seed}-{delta}", "02_safedpo", delta, seed, method, unsafe, kl))
    return pd.DataFrame(
        rows, columns=["run_id", "notebook", "delta", "seed", "method", "unsafe", "kl_opt"]
    )


TABLE = sweep()


ASKED = {"x": "delta", "y": "unsafe"}


def refused(table=TABLE, **changes):
    with pytest.raises(Refusal) as caught:
        select(table, **{**ASKED, **changes})
    return str(caught.value)


def lines(rows):
    return list(dict.fromkeys(rows.line))


def of_seeds(table, columns):
    """(mean, low, high) of P(unsafe) over the seeds of each setting."""
    groups = table.groupby(columns, sort=False).unsafe
    return np.array([intervals.over_seeds(values, intervals.SHARE) for _, values in groups]).T


def test_the_values_drawn_are_the_values_computed():
    ax = draw(select(TABLE, **ASKED), **ASKED).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"{name} (n = 3)" for name in ("SafeDPO", "DPO, hard labels", "reference")
    ]
    for line, band, method in zip(ax.lines, ax.collections, ("safedpo", "dpo", "ref"), strict=True):
        mean, low, high = of_seeds(TABLE[TABLE.method == method], ["delta"])
        assert np.array_equal(line.get_xdata(), DELTAS)
        assert np.allclose(line.get_ydata(), mean, rtol=0, atol=1e-15)
        assert line.get_color() == style.COLOURS[method]
        corners = band.get_paths()[0].vertices
        assert all(np.isclose(corners[:, 1], end).any() for end in (*low, *high))
        assert corners.min() >= 0 and corners[:, 1].max() <= 1, "a share stays a share"
    assert ax.get_xscale() == ax.get_yscale() == "linear"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Δ (nats)", "P(unsafe)")


def test_no_two_lines_look_alike():
    """SafeDPO and DPO on soft labels have one look in the kit's figures, which never show both."""
    given, every = dict(y="unsafe", hue="method"), ["safedpo", "dpo_soft", "dpo", "mine", "yours"]
    rows = [(method, x, 0.1 * x) for method in every for x in (1.0, 2.0)]
    table = pd.DataFrame(rows, columns=["method", "delta", "unsafe"]).assign(seed=0)
    drawn = draw(select(table, x="delta", **given), x="delta", **given).axes[0].lines
    looks = [(line.get_color(), line.get_marker()) for line in drawn if len(line.get_xdata())]
    assert len({colour for colour, _ in looks}) == len(every)
    assert looks[0] == (style.COLOURS["safedpo"], style.MARKERS["safedpo"])


def test_points_of_a_sweep_and_methods_without_a_number_are_left_out_unless_named():
    assert lines(select(TABLE, x="delta", y="kl_opt")) == ["safedpo", "dpo"]
    named = select(TABLE, **ASKED, only="safedpo[delta=2], ref")
    assert lines(named) == ["safedpo[delta=2]", "ref"], "in the order asked for"
    words = refused(y="kl_opt", only="ref")
    assert "--only ref" in words and "finite kl_opt" in words


def test_one_seed_has_no_interval_and_says_so():
    ax = draw(select(TABLE, **ASKED, where=[("seed", "1")]), **ASKED).axes[0]
    assert "no interval" in ax.get_title(loc="left")
    assert not any(band.get_paths() for band in ax.collections)
    assert all("n = 1" in text.get_text() for text in ax.get_legend().get_texts())


def test_names_on_the_x_axis():
    asked = dict(x="method", y="unsafe", hue="notebook")
    rows = select(TABLE, **asked, where=[("delta", "2")])
    ax = draw(rows, **asked).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["safedpo", "dpo", "ref"]
    mean, low, high = of_seeds(
        TABLE[(TABLE.delta == 2) & (~TABLE.method.str.contains("="))], ["method"]
    )
    assert np.allclose(ax.lines[0].get_ydata(), mean) and ax.lines[0].get_linestyle() == "None"
    ends = np.array([bar[:, 1] for bar in ax.collections[0].get_segments()])
    assert np.allclose(ends.T, [low, high])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "notebook 02_safedpo (n = 3)"
    ]


def test_a_table_of_means_is_drawn_with_its_own_intervals():
    means = pd.DataFrame({"rule": ["dog"] * 2, "budget": [0.1, 0.3], "worst": [3.0, 2.0], "n": 5})
    means = means.assign(worst_low=means.worst - 1, worst_high=means.worst + 2)
    asked = dict(x="budget", y="worst", hue="rule")
    ax = draw(select(means, **asked), **asked, means=True).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [3, 2]
    corners = ax.collections[0].get_paths()[0].vertices
    for budget, low, high in ((0.1, 2, 5), (0.3, 1, 4)):
        assert {*corners[corners[:, 0] == budget, 1]} == {low, high}
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == "DOG (n = 5)" and "95 % interval" in ax.get_title(loc="left")
    assert "worst_low" in refused(means.drop(columns="worst_low"), **asked)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(y="unsfe"), ["--y unsfe", "did you mean 'unsafe'"]),
        (dict(x="delt"), ["--x delt", "did you mean 'delta'"]),
        (dict(hue="metod"), ["--hue metod", "did you mean 'method'"]),
        (dict(y="zzz"), ["--y zzz", "it has run_id"]),
        (dict(y="run_id"), ["--y run_id", "no numbers"]),
        (dict(only="safedp"), ["--only safedp", "did you mean 'safedpo'"]),
        (dict(where=[("detla", "2")]), ["--where detla", "did you mean 'delta'"]),
        (dict(where=[("delta", "3")]), ["--where delta=3", "0.0, 2.0, 10.0"]),
        (dict(x="notebook"), ["3 rows", "differ in delta", "--where delta=0.0"]),
        (dict(hue="notebook"), ["4 rows", "differ in method", "--where method=safedpo"]),
    ],
)
def test_refusals_name_the_option_and_the_fix(changes, words):
    message = refused(**changes)
    assert all(word in message for word in words), message


def test_command_line_files_are_byte_stable(tmp_path, capsys):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    TABLE.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), read(tmp_path / "t.parquet"))
    asked = ["--x", "delta", "--y", "unsafe"]
    assert cli.main(["plot", str(tmp_path / "t.csv"), *asked]) == 0
    assert (
        cli.main(
            ["plot", str(tmp_path / "t.parquet"), *asked, "--out", str(tmp_path / "deep" / "b.svg")]
        )
        == 0
    )
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["b.svg"], (
        "only what was asked for, nothing left over"
    )
    assert "safedpo: 3 points, n = 3" in capsys.readouterr().out
    one, two = (
        (tmp_path / "unsafe_against_delta.svg").read_bytes(),
        (tmp_path / "deep" / "b.svg").read_bytes(),
    )
    assert one == two and not re.search(rb"matplotlib v|<dc:date>", one)
    assert (tmp_path / "unsafe_against_delta.png").read_bytes()[:4] == b"\x89PNG"


def test_no_figure_is_put_among_committed_tables(tmp_path, capsys):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "manifest.json").write_text("{}")
    asked = ["plot", str(tmp_path / "t.csv"), "--x", "delta", "--y", "unsafe"]
    assert cli.main(asked) == 2
    assert "--out unsafe_against_delta.png" in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["manifest.json", "t.csv"]
    assert cli.main([*asked, "--out", str(tmp_path / "mine" / "a.png")]) == 0


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.csv", b""),
        ("t.csv", b"a\n"),
        ("t.parquet", b"PAR?"),
        ("t.txt", b"a"),
        ("none.csv", None),
    ],
)
def test_unreadable_files_are_refused(tmp_path, capsys, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert cli.main(["plot", str(tmp_path / name), "--x", "delta", "--y", "unsafe"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and name in err and ";" in err


def test_another_kind_of_figure_is_refused(tmp_path, capsys):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    out = str(tmp_path / "x.pdf")
    assert (
        cli.main(["plot", str(tmp_path / "t.csv"), "--x", "delta", "--y", "unsafe", "--out", out])
        == 2
    )
    assert ".png" in capsys.readouterr().err and not (tmp_path / "x.pdf").exists()
