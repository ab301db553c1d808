"""A finished run as the runner leaves it: record, table, figure, executed notebook."""

import nbformat
import pandas as pd

from safealign_utils.figures import style
from safealign_utils.runs.plot import draw
from safealign_utils.study import records

EVIL = "<script>alert(1)</script>"
PROVENANCE = dict(
    code="c0de",
    git="abc1234",
    python="3.11",
    cpu="a CPU; AVX2",
    device="cpu",
    threads=1,
    data_hash="d0",
    reference_hash="r0",
    packages={"torch": "2.13.0"},
)


def finished(folder, name="02_safedpo", verdicts=(), title="02 · SafeDPO", markdown="", **changes):
    """A finished run as the runner leaves it: record, table, figure, executed notebook."""
    folder = folder / name
    folder.mkdir(parents=True)
    table = pd.DataFrame(
        {
            "method": ["dpo", EVIL],
            "unsafe": [0.25, 1 / 3],
            "unsafe_low": [0.2, 1 / 3],
            "unsafe_high": [0.3, 1 / 3],
        }
    )
    table.to_csv(folder / "methods.csv", index=False)
    points = pd.DataFrame(dict(line="dpo", x=[1.0, 2.0], y=[1.0, 2.0], n=1))
    names = style.save(draw(points, x="x", y="y"), folder / "curve")
    cells = [
        nbformat.v4.new_markdown_cell(f"# {title}\n\nWhat it is *about*, $\\pi^*$.\n\n{markdown}"),
        nbformat.v4.new_code_cell("beta = 1", metadata={"tags": ["parameters"]}, execution_count=1),
        nbformat.v4.new_code_cell(
            "# Parameters\nout_dir = '/secret/place'", metadata={"tags": ["injected-parameters"]}
        ),
        nbformat.v4.new_code_cell(
            "print(1)", outputs=[nbformat.v4.new_output("stream", text=f"1 < 2 {EVIL}\n")]
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    whole = dict(
        notebook=name,
        run_id="id01",
        parameters=dict(seed=0, seeds=3, dtype="float64", pairs=1500, beta=0.5, data=EVIL),
        metrics={"dpo.unsafe": 0.25, "dpo.reward": 1.5, "safedpo[delta=1].unsafe": 0.125},
        tables=["methods.csv"],
        timings=dict(total=61.0, peak_memory_bytes=2**30),
        claims=list(verdicts),
        figures=names,
        provenance=PROVENANCE,
    )
    records.write(folder, **whole | changes)
    return folder
