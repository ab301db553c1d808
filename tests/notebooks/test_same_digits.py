"""The same digits in another process, on another instruction set, with other thread counts.

Each run starts from an empty cache and must find nothing there. The committed values were made by
`make notebooks`, and hold ten digits. The longer forms run where SAFEALIGN_THOROUGH is set.
"""

import json
import os
import subprocess
import sys

import one_ulp
import pytest
from helpers import ROOT

from safealign_utils.runs.verify import close

EXPECTED = ROOT / "tests" / "reference" / "small" / "01_dpo_basics" / "expected.json"
REFERENCE = json.loads(EXPECTED.read_text())["metrics"] if EXPECTED.is_file() else {}
SHORT = ("pairs=100", "steps=5", "betas=0.5", "pair_shares=1")
COMPATIBLE = {"MKL_CBWR": "COMPATIBLE"}
THOROUGH = pytest.mark.skipif(
    not os.environ.get("SAFEALIGN_THOROUGH"),
    reason="SAFEALIGN_THOROUGH is not set: the short form runs",
)


def metrics(tmp_path, name, *given, **environment):
    """Metrics of notebook 01 in a process of its own, from an empty cache."""
    cache = tmp_path / f"cache-{name}"
    assert not cache.exists()
    words = [
        sys.executable,
        "-m",
        "safealign_utils.runs.cli",
        "run",
        "01_dpo_basics",
        "--out",
        str(tmp_path / name),
    ]
    words += [w for g in given for w in ("-p", g)]
    done = subprocess.run(
        words,
        env={**os.environ, "SAFEALIGN_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / name).glob("*/record.json")
    return json.loads(record.read_text())


def compare(values):
    assert values.keys() == REFERENCE.keys()
    wrong = {k: (values[k], REFERENCE[k]) for k in REFERENCE if not close(REFERENCE[k], values[k])}
    assert not wrong, f"value and reference: {wrong}"


@THOROUGH
def test_another_instruction_set_gives_the_committed_values(tmp_path):
    record = metrics(tmp_path, "avx2", ATEN_CPU_CAPABILITY="avx2", **COMPATIBLE)
    assert record["provenance"]["cpu"].split("; ")[1] in ("AVX2", "DEFAULT")
    compare(record["metrics"])


@THOROUGH
def test_the_plainest_instruction_set_gives_the_committed_values(tmp_path):
    compare(metrics(tmp_path, "default", ATEN_CPU_CAPABILITY="default", **COMPATIBLE)["metrics"])


@THOROUGH
@pytest.mark.parametrize("threads", ["1", "2"])
def test_thread_counts_give_the_committed_values(tmp_path, threads):
    record = metrics(tmp_path, "threads", SAFEALIGN_THREADS=threads, OMP_WAIT_POLICY="passive")
    assert record["provenance"]["threads"] == int(threads)
    compare(record["metrics"])


def test_one_unit_in_the_last_place_of_every_weight_moves_no_compared_value(tmp_path):
    """The noise of a processor that nobody has here. All notebooks, three seeds: python tests/one_ulp.py."""
    short = dict(pairs=100, steps=5, betas=[0.5], pair_shares=[1.0], step_factors=[1.0])
    given, noises = ({}, (0, 1, 2)) if os.environ.get("SAFEALIGN_THOROUGH") else (short, (0,))
    rows = one_ulp.one("01_dpo_basics", noises, **given)
    assert len(rows) > 8 * len(noises)
    assert not [one_ulp.said(row) for row in rows if not row[-1]]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """The record of a short run on one thread."""
    return metrics(tmp_path_factory.mktemp("short"), "one", *SHORT, SAFEALIGN_THREADS="1")


def test_two_processes_agree_to_the_last_bit(tmp_path, short_run):
    again = metrics(tmp_path, "two", *SHORT, SAFEALIGN_THREADS="1")
    assert short_run["metrics"] == again["metrics"] and short_run["run_id"] == again["run_id"]
    assert short_run["claims"] == again["claims"]


def test_two_threads_short(tmp_path, short_run):
    two = metrics(tmp_path, "two", *SHORT, SAFEALIGN_THREADS="2", OMP_WAIT_POLICY="passive")
    one, two = short_run["metrics"], two["metrics"]
    assert max(abs(one[k] - two[k]) for k in one) <= 1e-9


def test_another_instruction_set_short(tmp_path, short_run):
    """To the ten digits of the reference values; the pages themselves are run on it by `make test`."""
    other = metrics(tmp_path, "avx2", *SHORT, ATEN_CPU_CAPABILITY="avx2", **COMPATIBLE)
    assert other["provenance"]["cpu"].split("; ")[1] in ("AVX2", "DEFAULT")
    one, two = short_run["metrics"], other["metrics"]
    assert one.keys() == two.keys()
    assert not {k: (one[k], two[k]) for k in one if not close(one[k], two[k])}
