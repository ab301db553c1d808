"""`safealign plot`: what is drawn is what was computed; bad columns and files are refused with the nearest name."""

import re

import numpy as np
import pandas as pd
import pytest

from safealign_utils import intervals
from safealign_utils.figures import style
from safealign_utils.runs import cli
from safealign_utils.runs.plot import draw, read, summarise
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


def refused(**changes):
    with pytest.raises(Refusal) as caught:
        summarise(changes.pop("table", TABLE), **{"x": "delta", "y": "unsafe", **changes})
    return str(caught.value)


def test_the_values_drawn_are_the_values_computed():
    points = summarise(TABLE, x="delta", y="unsafe")
    ax = draw(points, xlabel="delta", ylabel="unsafe").axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"{name} (n = 3)" for name in ("SafeDPO", "DPO, hard labels", "reference")
    ]
    for line, band, method in zip(ax.lines, ax.collections, ("safedpo", "dpo", "ref"), strict=True):
        values = [TABLE[(TABLE.method == method) & (TABLE.delta == d)].unsafe for d in DELTAS]
        mean, low, high = np.array([intervals.over_seeds(v, intervals.SHARE) for v in values]).T
        assert np.array_equal(line.get_xdata(), DELTAS) and np.allclose(
            line.get_ydata(), mean, rtol=0, atol=1e-15
        )
        assert line.get_color() == style.COLOURS[method]
        corners = band.get_paths()[0].vertices
        assert all(np.isclose(corners[:, 1], end).any() for end in (*low, *high))
    assert ax.get_xscale() == ax.get_yscale() == "linear"
    assert points.low.min() >= 0 and points.high.max() <= 1, "a share stays a share"


def test_points_of_a_sweep_and_methods_without_a_number_are_left_out_unless_named():
    assert list(summarise(TABLE, x="delta", y="kl_opt").line.unique()) == ["safedpo", "dpo"]
    named = summarise(TABLE, x="delta", y="unsafe", only="safedpo[delta=2], ref")
    assert list(named.line.unique()) == ["safedpo[delta=2]", "ref"], "in the order asked for"
    words = refused(y="kl_opt", only="ref")
    assert "ref" in words and "finite" in words


def test_one_seed_has_no_interval_and_says_so():
    points = summarise(TABLE, x="delta", y="unsafe", where=[("seed", "1")])
    assert points.low.isna().all() and set(points.n) == {1}
    ax = draw(points, xlabel="x", ylabel="y").axes[0]
    assert "no interval" in ax.get_title(loc="left")
    assert all("n = 1" in text.get_text() for text in ax.get_legend().get_texts())


def test_names_on_the_x_axis():
    points = summarise(TABLE, x="method", y="unsafe", hue="notebook", where=[("delta", "2")])
    assert list(points.x) == ["safedpo", "dpo", "ref"]
    ax = draw(points, xlabel="method", ylabel="unsafe", hue="notebook").axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["safedpo", "dpo", "ref"]
    (bars,) = ax.containers
    assert np.allclose(bars.lines[0].get_ydata(), points["mean"])
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    assert np.allclose(ends, points[["low", "high"]])


def test_a_table_of_means_is_drawn_with_its_own_intervals():
    means = pd.DataFrame({"rule": ["dog"] * 2, "budget": [0.1, 0.3], "worst": [3.0, 2.0], "n": 5})
    means = means.assign(worst_low=means.worst - 1, worst_high=means.worst + 2)
    points = summarise(means, x="budget", y="worst", hue="rule")
    assert points[["mean", "low", "high", "n"]].values.tolist() == [[3, 2, 5, 5], [2, 1, 4, 5]]
    assert "worst_low" in refused(
        table=means.drop(columns="worst_low"), x="budget", y="worst", hue="rule"
    )


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
