"""`safealign verify`: an untouched set passes; every hand change is caught, and named, by a run that really runs.

The notebook is a toy of five cells in a temporary folder, with reference values, finished results and committed
tables of its own; each test changes one thing by hand and reads what the command says. Tests that leave the
notebook alone share one fresh run of it.
"""

import csv
import json
import shutil
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace

import nbformat
import pytest
import reference_values
import torch
from helpers import ROOT
from helpers import toy as toy_notebook
from helpers.toy import CELL

from safealign_utils.runs import cli, pool, runner, verify
from safealign_utils.study import claims
from safealign_utils.study.settings import Refusal

RULE = "from safealign_utils.study import claims\njudged = claims.judge('safedpo.unsafe', [0.001, 0.002])"
CHECK = "unsafe = 0.0015\nassert unsafe < 0.005"
WRITE = """from safealign_utils.study import records
rows = ["delta,unsafe,name", "0.0,0.25,a", "5.0,0.123456789012345,b"]
if out_dir:
    open(f"{out_dir}/deltas.csv", "w").write("\\n".join(rows) + "\\n")
    open(f"{out_dir}/curve.svg", "w").write("<svg/>")
    records.write(out_dir, notebook="toy", run_id="", parameters={"profile": profile, "seed": seed, "dtype": "float64"},
                  metrics={"safedpo.unsafe": unsafe, "data.rows": 12}, timings={"total": 1.0, "peak_memory_bytes": 1},
                  claims=[judged], tables=["deltas.csv"], figures=["curve.svg"], provenance={"data_hash": "d0", "reference_hash": "r0",
                  "cpu": "any", "device": "cpu", "threads": 1, "packages": {}})"""


WORDS = "# A toy"


def notebook(path, *cells, words=WORDS, tags=()):
    """The toy with words below its code; cell ids are fixed, so that only what is changed differs."""
    book = nbformat.read(toy_notebook.notebook(path, *cells), as_version=4)
    book.cells[2].metadata["tags"] = list(tags)
    book.cells.append(nbformat.v4.new_markdown_cell(words))
    for n, cell in enumerate(book.cells):
        cell["id"] = f"cell-{n}"
    nbformat.write(book, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Notebook, reference values, finished results and committed tables, as their own commands make them."""
    root = tmp_path_factory.mktemp("made")
    book = notebook(root / "toy.ipynb", CELL, RULE, CHECK, WRITE)
    folder, _, _ = runner.run(book, out=root / "results" / "small", name="toy")
    reference_values.write_reference(folder, root / "expected" / "small" / "toy", book)
    reference_values.write_ledger(root / "expected" / "ledger.json")
    outcome = pool.work(pool.Job(str(book), out=str(root / "fresh" / "small"), name="toy"))
    assert not outcome.error and outcome.ran
    (root / "committed").mkdir()
    (root / "committed" / "sweep.csv").write_text("a,b\n1,2\n")
    (root / "committed" / "README.md").write_text("no measured file\n")
    reference_values.register(
        root / "committed", ["sweep.csv"], command="make it", date="2026-01-01", commit="abc1234"
    )
    return root


@pytest.fixture
def toy(made, tmp_path, monkeypatch, capsys):
    """A copy that a test may change, and `said()`: status and lines of the command on it."""
    shutil.copytree(made, tmp_path / "toy")
    root, really = tmp_path / "toy", verify.rerun
    monkeypatch.setattr(verify, "REFERENCE", root / "expected")
    monkeypatch.setattr(verify, "COMMITTED", root / "committed")

    def shared(paths, profile, out, workers):
        job = pool.Job(str(paths[0]), name="toy")
        yield pool.Outcome(job, str(made / "fresh" / profile / "toy"), ran=True, seconds=1.0)

    def said():
        same = (root / "toy.ipynb").read_bytes() == (made / "toy.ipynb").read_bytes()
        monkeypatch.setattr(verify, "rerun", shared if same else really)
        monkeypatch.setattr(pool, "execute", lambda jobs, **_: map(pool.work, jobs))  # no Dask
        capsys.readouterr()
        book, results = str(root / "toy.ipynb"), str(root / "results")
        status = cli.main(["verify", book, "--workers", "1", "--results", results])
        return status, capsys.readouterr().out.splitlines()

    return SimpleNamespace(
        root=root,
        said=said,
        ledger=root / "expected" / "ledger.json",
        expected=root / "expected" / "small" / "toy",
        finished=root / "results" / "small" / "toy",
        committed=root / "committed",
    )


def change(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, (path.name, old)
    path.write_text(text.replace(old, new))


def caught(toy, *words, others=()):
    """One thing is wrong, is named with these words, and is said again at the end; all else passes."""
    status, lines = toy.said()
    failures = [line for line in lines if line.startswith("[FAIL]")]
    assert status == 1 and len(failures) == 2 * (1 + len(others)), failures
    first = failures[0]
    assert all(word in first for word in words), first
    assert lines[-1 - len(failures) // 2 : -1] == failures[len(failures) // 2 :], (
        "repeated at the end"
    )
    for other, more in zip(failures[1:], others):
        assert all(word in other for word in more), other
    assert f"{1 + len(others)} failed" in lines[-1]


def test_an_untouched_set_passes(toy):
    status, lines = toy.said()
    assert status == 0, lines
    others = [line for line in lines[1:-1] if not line.startswith(("[PASS]", "[verdict]"))]
    assert not others and "0 failed" in lines[-1], (others, lines[-1])
    text = "\n".join(lines)
    for words in (
        "toy: run again from an empty cache; ",
        "toy: cells: 5",
        f"claims.yaml: {len(claims.ledger())} claims",
        "metrics: 2",
        "table deltas.csv: 2 rows, 3 columns",
        "bytes of committed tables and figures: 1",
        "results/small/toy: figures: 1",
    ):
        assert words in text, words
    claim = next(line for line in lines if "claim safedpo.unsafe" in line)
    assert "0.0015" in claim and "tolerance 1e-09" in claim and "n = 2" in claim


def test_a_number_in_the_reference_values(toy):
    change(
        toy.expected / "expected.json", '"safedpo.unsafe": 0.0015', '"safedpo.unsafe": 0.0015001'
    )
    caught(toy, "toy: metrics: safedpo.unsafe", "expected 0.0015001, got 0.0015")


def test_a_verdict_in_the_reference_values(toy):
    path = toy.expected / "expected.json"
    word = json.loads(path.read_text())["claims"][0]["verdict"]
    change(path, f'"verdict": "{word}"', '"verdict": "needs_scale"')
    caught(
        toy,
        "claim safedpo.unsafe",
        "expected needs scale, 0.0015",
        f"got {word.replace('_', ' ')}, 0.0015",
    )


def test_a_hash_of_the_data_in_the_reference_values(toy):
    change(toy.expected / "expected.json", '"data_hash": "d0"', '"data_hash": "d1"')
    caught(toy, "settings: data_hash", "expected d1, got d0")


def test_a_cell_of_a_reference_table(toy):
    change(toy.expected / "deltas.csv", "0.123456789", "0.123456799")
    caught(toy, "table deltas.csv: row 2, column unsafe", "expected 0.123456799", "got 0.123456789")


def test_a_name_in_a_reference_table(toy):
    change(toy.expected / "deltas.csv", ",a", ",c")
    caught(toy, "table deltas.csv: row 1, column name", "expected c, got a")


def test_a_row_taken_from_a_reference_table(toy):
    lines = (toy.expected / "deltas.csv").read_text().splitlines()
    (toy.expected / "deltas.csv").write_text("\n".join(lines[:-1]) + "\n")
    caught(toy, "table deltas.csv", "expected 1 rows", "got 2 rows")


def test_a_number_in_a_finished_record(toy):
    change(toy.finished / "record.json", '"safedpo.unsafe": 0.0015', '"safedpo.unsafe": 0.0014')
    caught(toy, "results/small/toy: metrics: safedpo.unsafe", "expected 0.0015, got 0.0014")


def test_a_verdict_in_a_finished_record(toy):
    word = json.loads((toy.finished / "record.json").read_text())["claims"][0]["verdict"]
    change(toy.finished / "record.json", f'"verdict": "{word}"', '"verdict": "needs_scale"')
    caught(toy, "results/small/toy: claim safedpo.unsafe", "got needs scale")


def test_a_finished_table(toy):
    change(toy.finished / "deltas.csv", "0.25", "0.2500001")
    caught(
        toy,
        "results/small/toy: table deltas.csv: row 1, column unsafe",
        "expected 0.25, got 0.2500001",
    )


def test_a_finished_table_that_is_gone(toy):
    (toy.finished / "deltas.csv").unlink()
    caught(toy, "results/small/toy/deltas.csv: cannot be read: No such file")


def test_a_finished_run_of_another_question_is_skipped_and_said(toy):
    id = json.loads((toy.finished / "record.json").read_text())["run_id"]
    change(toy.finished / "record.json", id, "f" * 16)
    change(toy.finished / "deltas.csv", "0.25", "0.5")
    status, lines = toy.said()
    (skipped,) = [line for line in lines if line.startswith("[SKIP]")]
    assert status == 0 and "another question" in skipped and "f" * 16 in skipped and id in skipped
    assert "0 failed, 1 skipped" in lines[-1]


def test_finished_runs_of_the_other_profile_are_said_not_to_be_compared(toy):
    shutil.copytree(toy.finished, toy.root / "results" / "full" / "toy")
    status, lines = toy.said()
    (skipped,) = [line for line in lines if line.startswith("[SKIP]")]
    assert status == 0 and "results/full: not compared" in skipped and "--profile full" in skipped


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('"curve.svg"', "", ["figures: curve.svg", "expected", "got not listed"]),
        ('"curve.svg"', '"curve.svg", "more.svg"', ["figures: more.svg", "got missing"]),
        ('"deltas.csv"', "", ["tables: deltas.csv", "got not listed"]),
        ('"complete"', '"partial"', ["settings: status", "got partial"]),
    ],
)
def test_the_lists_of_a_finished_record(toy, old, new, words):
    change(toy.finished / "record.json", old, new)
    others = [["table deltas.csv", "got absent"]] if "deltas" in old else []
    caught(toy, "results/small/toy: ", *words, others=others)


def test_a_finished_figure(toy):
    (toy.finished / "curve.svg").write_text("<svg><a/></svg>")
    caught(toy, "results/small/toy: figures: curve.svg")


def test_a_table_too_many_in_a_finished_run(toy):
    (toy.finished / "more.csv").write_text("a\n")
    caught(toy, "results/small/toy: tables: more.csv", "got not listed")


def test_a_finished_record_that_is_gone(toy):
    (toy.finished / "record.json").unlink()
    caught(toy, "results/small/toy/record.json: cannot be read: No such file")


def test_figures_of_another_machine_are_compared_by_name(toy):
    change(toy.finished / "record.json", '"cpu": "any"', '"cpu": "other"')
    (toy.finished / "curve.svg").write_text("<svg><a/></svg>")
    status, lines = toy.said()
    assert status == 0 and any("figures: by name only" in line for line in lines)
    (toy.finished / "curve.svg").unlink()
    caught(toy, "results/small/toy: figures", "missing")


BROKEN = [
    ("expected.json", "[", "Expecting"),
    ("expected.json", "{}", "it lacks 'schema'"),
    ("expected.json", b"\xff", "utf-8"),
    ("deltas.csv", b"a\n\xff\n", "utf-8"),
    ("record.json", "{,}", "Expecting"),
    ("record.json", b"\xff", "utf-8"),
    ("record.json", '{"schema": 1}', "it lacks 'status'"),
    ("record.json", lambda record: record.pop("metrics"), "it lacks 'metrics'"),
    ("record.json", lambda record: record.update(metrics=[1]), "metrics is '[1]', and no dict"),
    ("record.json", lambda record: record["claims"][0].pop("n"), "it lacks 'n'"),
    ("record.json", lambda record: record.update(tables=[3]), "cannot be read"),
    ("ledger.json", "{,}", "Expecting"),
    ("ledger.json", '{"a": {}}', "it lacks 'rule'"),
    ("ledger.json", None, "No such file"),
    ("manifest.json", "{,}", "Expecting"),
    ("manifest.json", '{"sweep.csv": {}}', "it lacks 'sha256'"),
]


@pytest.mark.parametrize("name, content, words", BROKEN)
def test_a_file_that_cannot_be_read_is_named(toy, name, content, words):
    """Whatever is done to a file by hand, the command says which file it is and goes on."""
    folders = {
        "record.json": toy.finished,
        "ledger.json": toy.ledger.parent,
        "manifest.json": toy.committed,
    }
    path = folders.get(name, toy.expected) / name
    if callable(content):
        record = json.loads(path.read_text())
        content(record)
        content = json.dumps(record)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    caught(toy, f"{path}: cannot be read: ", words)


def test_an_emptied_table_and_values_that_are_no_numbers(toy):
    (toy.expected / "deltas.csv").write_bytes(b"")
    caught(toy, "table deltas.csv", "expected 0 rows, 0 columns, got 2 rows, 3 columns")
    shutil.copy(toy.finished / "deltas.csv", toy.expected)
    (toy.finished / "deltas.csv").write_bytes(b"")
    caught(toy, "results/small/toy: table deltas.csv", "got 0 rows, 0 columns")


@pytest.mark.parametrize("value", ['"many"', "null", "true", "[1]", "NaN", "1e999", "9" * 400])
def test_a_value_that_is_no_usual_number(toy, value):
    change(toy.expected / "expected.json", '"safedpo.unsafe": 0.0015', f'"safedpo.unsafe": {value}')
    caught(toy, "toy: metrics: safedpo.unsafe", "got 0.0015")
    change(toy.expected / "expected.json", f'"safedpo.unsafe": {value}', '"safedpo.unsafe": 0.0015')
    change(toy.expected / "expected.json", '"value": 0.0015', f'"value": {value}')
    caught(toy, "toy: claim safedpo.unsafe", "0.0015")


@pytest.fixture
def ledger(monkeypatch, tmp_path):
    """`ledger(old, new)`: the claims ledger with the words `old`, of the claim safedpo.unsafe, changed to `new`."""
    text = claims.LEDGER.read_text()
    entry = next(e for e in text.split("\n- ") if e.startswith("id: safedpo.unsafe\n")).rstrip()

    def become(old, new):
        assert old in entry
        (tmp_path / "claims.yaml").write_text(text.replace(entry, entry.replace(old, new)))
        monkeypatch.setattr(claims, "LEDGER", tmp_path / "claims.yaml")
        claims.ledger.cache_clear()

    yield become
    monkeypatch.undo()
    claims.ledger.cache_clear()


def test_a_line_a_claim_with_its_kind_and_both_p():
    values = {"safedpo.unsafe": [0.001, 0.0012, 0.0011], "safedpo.helpful": [1.0, 2.0, 3.0]}
    judged = [claims.judge(id, v) for id, v in values.items()]
    unknown = dict(id="no.claim", verdict="undecided", value=0.1, low=None, high=None, n=1)
    lines = list(verify.verdict_lines([{"claims": judged}, {"claims": [unknown]}]))
    corrected = claims.adjusted([one["p"] for one in judged])
    assert lines[0].startswith("[verdict] kit: safedpo.unsafe: holds, 0.0011, ")
    assert lines[0].endswith(f"p = {judged[0]['p']:.4f}, adjusted p = {corrected[0]:.4f}")
    assert "safedpo.helpful: undecided" in lines[1]
    assert lines[2] == "[verdict] kit: no.claim: undecided, 0.1000, n = 1"


def test_a_rule_of_the_ledger(toy, ledger):
    ledger("rule: {below: 0.005}", "rule: {below: 0.9}")
    caught(
        toy,
        "claims.yaml: claim safedpo.unsafe; expected below 0.005 (statistical), got below 0.9 (statistical)",
    )


def test_a_scope_of_the_ledger(toy, ledger):
    ledger("scope: statistical", "scope: exact")
    caught(
        toy,
        "claims.yaml: claim safedpo.unsafe",
        "expected below 0.005 (statistical), got below 0.005 (exact)",
    )


def test_words_of_the_ledger(toy, ledger):
    ledger("refuted_by: ", "refuted_by: perhaps ")
    caught(toy, "claims.yaml: claim safedpo.unsafe: text")


def test_a_ledger_that_cannot_be_read(toy, ledger):
    ledger("rule: {below: 0.005}", "rule: {below: 0.005")
    caught(toy, "claims.yaml: cannot be read: ")


def test_a_claim_that_left_the_ledger_or_is_new_to_it(toy, monkeypatch):
    all = claims.ledger()
    monkeypatch.setattr(
        claims, "ledger", lambda: {id: claim for id, claim in all.items() if id != "safedpo.unsafe"}
    )
    caught(toy, "claims.yaml: claim safedpo.unsafe; expected below 0.005 (statistical), got absent")
    more = replace(all["safedpo.unsafe"], id="new", rule={"above": 0.0})
    monkeypatch.setattr(claims, "ledger", lambda: all | {"new": more})
    caught(toy, "claims.yaml: claim new; expected absent, got above 0.0 (statistical)")


def test_a_check_in_a_notebook_cell(toy):
    notebook(toy.root / "toy.ipynb", CELL, RULE, CHECK.replace("< 0.005", "< 0.5"), WRITE)
    caught(toy, "toy: cell 3: not as in the reference values")


def test_a_claim_in_a_notebook_cell(toy):
    notebook(toy.root / "toy.ipynb", CELL, RULE.replace("0.002", "0.003"), CHECK, WRITE)
    caught(
        toy,
        "toy: cell 2: not as in",
        others=[["claim safedpo.unsafe", "expected", "0.0015", "got", "0.002"]],
    )


def test_a_cell_put_in_and_a_cell_taken_out(toy):
    notebook(toy.root / "toy.ipynb", CELL, RULE, "x = 1", CHECK, WRITE)
    caught(toy, "toy: cell 3: new")
    notebook(toy.root / "toy.ipynb", CELL, RULE + "\n" + CHECK, WRITE)
    caught(toy, "toy: cell 2: not as in the reference values; expected 2 cells, got 1")


def test_text_and_tags_of_cells(toy):
    notebook(toy.root / "toy.ipynb", CELL, RULE, CHECK, WRITE, words="# A toy that proves it")
    caught(toy, "toy: cell 5: not as in")
    notebook(toy.root / "toy.ipynb", CELL, RULE, CHECK, WRITE, tags=["raises-exception"])
    caught(toy, "toy: cell 3: not as in")
    before = verify.cells(notebook(toy.root / "toy.ipynb", CELL, RULE, CHECK, WRITE))
    after = verify.cells(
        notebook(toy.root / "toy.ipynb", CELL, RULE, CHECK, WRITE, tags=["injected-parameters"])
    )
    assert [one == two for one, two in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_notebook_that_stops(toy):
    notebook(toy.root / "toy.ipynb", CELL, RULE, "raise ValueError('its lesson is gone')", WRITE)
    caught(toy, "toy: run", "its lesson is gone")


def test_a_byte_of_a_committed_table(toy):
    change(toy.committed / "sweep.csv", "1,2", "1,3")
    caught(toy, "committed: sweep.csv; expected sha256")


def test_committed_tables_that_are_gone_or_not_in_the_manifest(toy):
    (toy.committed / "sweep.csv").unlink()
    (toy.committed / "more.png").write_bytes(b"x")
    caught(
        toy, "committed: sweep.csv", "got absent", others=[["committed: more.png; expected absent"]]
    )


@pytest.mark.parametrize("content", ["{}", None])
def test_a_manifest_that_lists_nothing(toy, content):
    path = toy.committed / "manifest.json"
    path.unlink() if content is None else path.write_text(content)
    caught(toy, "committed/manifest.json: entries", "expected one for each of 1 files, got none")


def test_no_reference_values_are_a_refusal_with_the_fix(toy):
    shutil.rmtree(toy.expected)
    with pytest.raises(Refusal, match="python tests/reference_values.py --profile small toy"):
        verify.check([str(toy.root / "toy.ipynb")])


def test_reference_values_of_a_notebook_that_is_gone(toy, monkeypatch, capsys):
    monkeypatch.setattr(runner, "comparable", lambda: [toy.root / "toy.ipynb"])
    monkeypatch.setattr(verify, "rerun", lambda *_: iter(()))
    (toy.expected.parent / "old").mkdir()
    assert verify.check(results=toy.root / "results") == 1
    failure = "[FAIL] file: old: notebook; expected a notebook, got none"
    assert capsys.readouterr().out.splitlines().count(failure) == 2


def test_nothing_of_the_usual_cache_is_used(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "mine"))
    told = f"import os\nassert os.environ['SAFEALIGN_CACHE'] != {str(tmp_path / 'mine')!r}\n{CHECK}"
    notebook(toy.root / "toy.ipynb", CELL, RULE, told, WRITE)
    caught(toy, "toy: cell 3: not as in")
    assert not (tmp_path / "mine").exists()


def test_two_notebooks_on_two_workers(toy, tmp_path, capsys):
    """Both are run by processes of their own, from a cache of their own, and each is judged by its own values."""
    shutil.copy(toy.root / "toy.ipynb", toy.root / "twin.ipynb")
    shutil.copytree(toy.expected, toy.expected.parent / "twin")
    change(toy.expected.parent / "twin" / "expected.json", '"data.rows": 12', '"data.rows": 13')
    names = [str(toy.root / f"{name}.ipynb") for name in ("toy", "twin")]
    status = verify.check(names, workers=2, results=tmp_path / "none")
    lines = capsys.readouterr().out.splitlines()
    failures = [line for line in lines if line.startswith("[FAIL]")]
    assert (
        status == 1
        and len(failures) == 2
        and "twin: metrics: data.rows; expected 13, got 12" in failures[0]
    )
    assert sum("run again from an empty cache" in line for line in lines) == 2


# ---------------------------------------------------------------- without a kernel


def test_float32_of_another_machine_is_judged_by_verdict_and_interval():
    def judged(one, two):
        (found,) = verify.compare(
            "t", *({"claim": verify._claim(claim, exact=False)} for claim in (one, two))
        )
        return found.passed

    claim = dict(id="x", verdict="holds", value=0.5, low=0.4, high=0.6, n=3)
    word = lambda **changes: judged(claim, claim | changes)
    assert word() and word(value=0.619, low=0.5, high=0.7) and word(value=0.381)
    assert (
        not word(value=0.63)
        and not word(verdict="undecided")
        and not word(n=2)
        and not word(value=None)
    )
    open_one = dict(id="y", verdict="needs_scale", value=None, low=None, high=None, n=0)
    assert judged(open_one, dict(open_one))


def test_digits_of_float32_are_compared_on_the_same_cpu_only(toy):
    fresh = toy.root / "fresh" / "small" / "toy"
    for path in (fresh / "record.json", toy.finished / "record.json"):
        change(path, '"dtype": "float64"', '"dtype": "float32"')

    def said():
        found = list(verify._compare_finished(toy.finished, toy.expected, fresh))
        assert all(finding.passed for finding in found)
        return [finding.what for finding in found]

    words = "metrics and tables are not compared: float32, made on another machine"
    assert "metrics: 2" in said() and words not in said()
    change(toy.finished / "record.json", '"cpu": "any"', '"cpu": "other"')
    assert "metrics: 2" not in said() and words in said()


@pytest.mark.parametrize(
    "one, two, same",
    [
        (0.0, 9e-10, True),
        (0.0, 2e-9, False),
        (1e6, 1e6 + 9e-4, True),
        (1e6, 1e6 + 2e-3, False),
        (None, 0.0, False),
        (None, None, True),
        (float("nan"), float("nan"), True),
    ],
)
def test_the_tolerance_is_absolute_below_one_and_relative_above(one, two, same):
    assert verify.close(one, two) is same


def test_only_the_first_failures_of_a_table_are_named():
    one, two = (
        verify._table([["a"], *[[str(i / 7 + more)] for i in range(20)]]) for more in (0, 1)
    )
    found = list(verify.compare("t", {"table x": one}, {"table x": two}))
    assert (
        len(found) == verify.SHOWN + 1
        and "15 more" in found[-1].what
        and not any(f.passed for f in found)
    )


def test_the_committed_tables_are_as_their_manifest_says():
    folder = ROOT / "notebooks" / "tables"
    assert not [f for f in verify.compare_committed(folder) if not f.passed]
    assert all(
        set(entry) == {"sha256", "date", "commit", "command"}
        for entry in verify.manifest(folder).values()
    )


def test_every_notebook_has_committed_reference_values():
    small = ROOT / "tests" / "reference" / "small"
    assert sorted(f.name for f in small.iterdir()) == [path.stem for path in runner.comparable()], (
        "make notebooks"
    )


def test_the_committed_ledger_is_that_of_the_reference_values():
    wrong = [
        f.what
        for f in verify._named(verify.compare_ledger(verify.REFERENCE / "ledger.json"))
        if not f.passed
    ]
    assert not wrong, "python tests/reference_values.py"


def test_the_committed_reference_values_are_small_and_are_no_records():
    files = [f for f in (ROOT / "tests" / "reference").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 2 * 2**20
    assert not [f for f in files if f.name == "record.json"]
    for folder in {f.parent for f in files} - {verify.REFERENCE}:
        listed = json.loads((folder / "expected.json").read_text())["tables"]
        assert {f.name for f in folder.iterdir()} == {"expected.json", *listed}, folder.name
        for name in listed:
            with open(folder / name, newline="") as file:
                assert len({len(row) for row in csv.reader(file)}) == 1, name


# ---------------------------------------------------------------- wider tolerances, kinds, the machine


def test_a_wider_tolerance_is_stated_kept_and_said(toy, monkeypatch):
    """What the reference values let move farther passes within its bound, is said with its reason, and fails beyond."""
    wider = {
        "toy": {
            "safedpo.unsafe": (0.01, "trained from scratch"),
            "deltas.csv/unsafe": (0.5, "sampled"),
        }
    }
    monkeypatch.setattr(reference_values, "WIDER", wider)
    reference_values.write_reference(toy.finished, toy.expected, toy.root / "toy.ipynb")
    assert (
        json.loads((toy.expected / "expected.json").read_text())["tolerances"]["safedpo.unsafe"][
            "within"
        ]
        == 0.01
    )
    monkeypatch.setattr(reference_values, "WIDER", {})  # what was written counts
    for path in (toy.expected / "expected.json", toy.finished / "record.json"):
        change(path, '"safedpo.unsafe": 0.0015', '"safedpo.unsafe": 0.009')
    change(toy.expected / "deltas.csv", "0.25", "0.5")
    status, lines = toy.said()
    said = [line for line in lines if "(trained from scratch)" in line or "(sampled)" in line]
    assert (
        status == 0
        and len(said) == 4
        and "tolerance 0.01" in said[0]
        and "tolerance 0.5" in said[1]
    ), said
    change(toy.expected / "expected.json", '"safedpo.unsafe": 0.009', '"safedpo.unsafe": 0.012')
    caught(
        toy,
        "number: toy: safedpo.unsafe (trained from scratch)",
        "expected 0.012, got 0.0015",
        "tolerance 0.01",
    )


def test_a_wider_tolerance_is_for_the_metric_of_that_name_alone(toy, monkeypatch):
    """`unsafe` is no part of `safedpo.unsafe`."""
    monkeypatch.setattr(reference_values, "WIDER", {"toy": {"unsafe": (0.5, "of another")}})
    reference_values.write_reference(toy.finished, toy.expected, toy.root / "toy.ipynb")
    change(toy.expected / "expected.json", '"safedpo.unsafe": 0.0015', '"safedpo.unsafe": 0.009')
    caught(toy, "number: toy: metrics", "expected 0.009, got 0.0015")


def another_rule(ledger):
    entries = json.loads(ledger.read_text())
    entries["safedpo.unsafe"]["rule"] = "below 0.5"
    ledger.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    "kind, spoil",
    [
        ("number", lambda toy: change(toy.expected / "deltas.csv", "0.25", "0.5")),
        ("rule", lambda toy: another_rule(toy.ledger)),
        (
            "setting",
            lambda toy: change(
                toy.expected / "expected.json", '"data_hash": "d0"', '"data_hash": "d1"'
            ),
        ),
        ("cell", lambda toy: change(toy.root / "toy.ipynb", "# A toy", "# A tool")),
        ("file", lambda toy: (toy.committed / "sweep.csv").write_text("b")),
        ("file", lambda toy: (toy.expected / "deltas.csv").unlink()),
        ("file", lambda toy: (toy.finished / "curve.svg").unlink()),
    ],
)
def test_a_failure_says_of_which_kind_it_is(toy, kind, spoil):
    spoil(toy)
    status, lines = toy.said()
    failures = [line for line in lines if line.startswith("[FAIL]")]
    assert (
        status == 1 and failures and all(line.startswith(f"[FAIL] {kind}: ") for line in failures)
    ), failures
    assert f"1 failed (1 {kind})" in lines[-1], lines[-1]


def test_it_begins_with_the_machine(toy, monkeypatch):
    monkeypatch.setenv("SAFEALIGN_THREADS", "2")
    first = toy.said()[1][0]
    for word in (
        torch.backends.cpu.get_cpu_capability(),
        "2 threads",
        f"torch {metadata.version('torch')}",
        "numpy",
        "scipy",
    ):
        assert word in first, first


def test_wider_tolerances_name_what_is_recorded_and_why():
    for notebook, wider in reference_values.WIDER.items():
        expected = verify.read(verify.REFERENCE / "small" / notebook)
        for name, (within, why) in wider.items():
            table, _, column = name.rpartition("/")
            assert name in expected["metrics"] or table in expected["tables"], name
            assert verify.TOLERANCE < within and len(why) > 20, name
