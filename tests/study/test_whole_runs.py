"""A record is complete when its files are there, and a run is seen when its record is: under its own id."""

import json

import numpy as np
import pytest
from helpers.toy import CELL, notebook

from safealign_utils import intervals
from safealign_utils.runs import runner
from safealign_utils.study import records
from safealign_utils.study.study import Notebook

PARTS = dict(
    notebook="toy",
    run_id="",
    parameters={},
    metrics={},
    timings={"total": 1.0},
    claims=[],
    tables=["t.csv"],
    figures=["f.png", "f.svg"],
    provenance={},
)


@pytest.fixture
def complete(tmp_path):
    for name in (*PARTS["tables"], *PARTS["figures"]):
        (tmp_path / name).write_text("x")
    records.write(tmp_path, **PARTS)
    return tmp_path


@pytest.mark.parametrize("missing", ["t.csv", "f.png", "f.svg"])
def test_a_record_whose_table_or_figure_is_missing_is_not_complete(complete, missing):
    assert records.read(complete)["figures"] == ["f.png", "f.svg"]
    (complete / missing).unlink()
    assert records.read(complete) is None


@pytest.mark.parametrize("part, value", [("schema", 2), ("status", "started"), ("tables", None)])
def test_a_record_of_another_form_is_not_complete(complete, part, value):
    record = json.loads((complete / "record.json").read_text()) | {part: value}
    (complete / "record.json").write_text(json.dumps(record))
    assert records.read(complete) is None


def test_a_run_is_seen_with_its_id_and_not_before(tmp_path, monkeypatch):
    """The id, which the notebook cannot know, is in the record before the folder is in its place."""
    toy, seen = notebook(tmp_path / "toy.ipynb", CELL), []

    def execute(path, settings, partial, final):
        records.write(partial, **PARTS | dict(tables=[], figures=[]))

    complete, replace = runner._complete, runner._replace

    def named(partial, id):
        seen.append(("named", (tmp_path / "out" / id).exists()))
        return complete(partial, id)

    def put(partial, final):
        record = json.loads((partial / "record.json").read_text())
        seen.append((record["run_id"] == final.name, final.exists()))
        replace(partial, final)

    monkeypatch.setattr(runner, "_execute", execute)
    monkeypatch.setattr(runner, "_complete", named)
    monkeypatch.setattr(runner, "_replace", put)
    folder, record, ran = runner.run(str(toy), out=str(tmp_path / "out"))
    assert seen == [("named", False), (True, False)] and ran
    assert record["run_id"] == folder.name == records.read(folder)["run_id"]
    assert runner.run(str(toy), out=str(tmp_path / "out"))[2] is False, "it is found again"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]


def test_a_metric_is_the_mean_over_seeds():
    book = Notebook.__new__(Notebook)
    book.metrics = {}
    book.metric("dpo", [{"unsafe": 0.1}, {"unsafe": 0.2}, {"unsafe": 0.6}])
    rows = [dict(seed=s, method="ipo", beta=1.0, unsafe=v) for s, v in enumerate((0.5, 0.0, 0.1))]
    book.metrics_of(rows, lambda row: row["method"])
    assert book.metrics == pytest.approx({"dpo.unsafe": 0.3, "ipo.unsafe": 0.2})
    table = intervals.summarise(
        [dict(row, kl_ref=v) for v, row in enumerate(rows)], ["method"], ["unsafe", "kl_ref"]
    )
    assert table.unsafe.tolist() == pytest.approx([0.2]) and table.kl_ref.tolist() == [1.0]
    assert np.all(table.unsafe_low < 0.2) and np.all(table.unsafe_high > 0.2)
