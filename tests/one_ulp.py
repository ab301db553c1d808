"""How far every compared value moves when each weight of the reference policies moves by one unit in the last place.

Another processor rounds otherwise; nobody has them all. Noise of that size, with a random sign for each float64 weight,
stands for it: what survives it survives another processor. Each notebook runs at the small profile from an empty cache,
once with the weights as they are and once for each seed of noise; what `safealign verify` compares must stay within
the tolerance that the reference values state.

python tests/one_ulp.py                       all notebooks, noise seeds 0, 1, 2: writes the table of movements
python tests/one_ulp.py 01_dpo_basics --noise 0 --out none
"""

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from reference_values import WIDER

from safealign_utils.runs import runner, verify
from safealign_utils.study.records import COMMITTED

COLUMNS = ("notebook", "noise", "quantity", "values", "largest", "where", "tolerance", "within")


def nudged(policy, seed):
    """The policy in float64, every weight one unit in the last place up or down."""
    import torch

    moved, signs = policy.to("float64"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in moved.model.parameters():
            up = torch.rand(weight.shape, generator=signs) < 0.5
            infinity = torch.tensor(float("inf"), dtype=weight.dtype)
            weight.copy_(torch.nextafter(weight, torch.where(up, infinity, -infinity)))
    return replace(moved)


def run(notebook, folder, noise, given):
    """Run a notebook's code cells in this process at the small profile and the parameters `given`, into a folder.

    `noise` None leaves the weights as they are.
    """
    import matplotlib

    matplotlib.use("Agg")
    from IPython.core.interactiveshell import InteractiveShell

    from safealign_utils import references

    shipped = references.reference_policy
    if noise is not None:
        references.reference_policy = lambda world, *, seed: (
            nudged(shipped(world, seed=seed)[0], noise),
            "nudged",
        )
    shell = InteractiveShell.instance()
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()):
                result = shell.run_cell("".join(cell["source"]))
            result.raise_error()
            if "parameters" in cell["metadata"].get("tags", ()):
                shell.user_ns |= {**given, "out_dir": str(folder)}


def movements(one, other, wider):
    """Rows (quantity, values, largest, where, tolerance, within) for each group of compared values of two runs."""
    groups = [verify.values(folder, wider=wider) for folder in (one, other)]
    for group, (_, before, tolerance, _) in groups[0].items():
        after = groups[1].get(group, verify.ABSENT).places
        before = {place: v for place, v in before.items() if place != "reference_hash"}
        moved = {place: _moved(v, after.get(place, "absent")) for place, v in before.items()}
        worst = max(moved, key=moved.get, default="")
        largest = moved.get(worst, 0.0)
        where = worst if largest else ""
        yield group, len(before), largest, where, tolerance, largest <= tolerance


def _moved(one, other):
    """How far two values lie apart as `verify.close` counts it; infinite where no number can say."""
    if verify.close(one, other, 0.0):
        return 0.0
    if all(isinstance(v, (int, float)) for v in (one, other)):
        return abs(one - other) / max(1.0, abs(one))
    return float("inf")


def one(notebook, noises, **given):
    """Rows of the table for one notebook; each run is a process of its own, with an empty cache."""
    path, rows = runner.find(notebook), []
    kept = Path(__file__).parent / "reference" / "small" / path.stem
    wider = {**verify.read(kept)["wider"], **WIDER.get(path.stem, {})}
    with tempfile.TemporaryDirectory() as temporary:
        for noise in (None, *noises):
            folder = Path(temporary) / str(noise)
            _in_a_process(folder / "cache", path, folder / "run", noise, given)
            if noise is not None:
                found = movements(Path(temporary) / "None" / "run", folder / "run", wider)
                rows += [(path.stem, noise, *row) for row in found]
    return rows


def _in_a_process(cache, notebook, folder, noise, given):
    before = os.environ.get("SAFEALIGN_CACHE")
    os.environ["SAFEALIGN_CACHE"] = str(cache)
    try:
        process = multiprocessing.get_context("spawn").Process(
            target=run, args=(notebook, folder, noise, given)
        )
        process.start()
        process.join()
    finally:
        os.environ.pop("SAFEALIGN_CACHE")
        os.environ.update({"SAFEALIGN_CACHE": before} if before is not None else {})
    if process.exitcode:
        raise RuntimeError(f"{Path(notebook).stem}, noise {noise}: the notebook stopped")


def said(row):
    name, noise, quantity, count, largest, where, tolerance, within = row
    mark = "ok  " if within else "FAIL"
    return f"{mark} {name}, noise {noise}: {quantity}: {count} values, largest {largest:.1e} {where} ({tolerance:g})"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", help="default: all")
    parser.add_argument("--noise", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", default=str(COMMITTED / "one_ulp.csv"), help="the table; none: only printed"
    )
    args = parser.parse_args()
    rows = []
    for name in args.notebooks or [path.stem for path in runner.comparable()]:
        rows += one(name, args.noise)
        for row in rows:
            if row[0] == Path(str(name)).stem and (row[4] or not row[-1]):
                print(said(row), flush=True)
    if args.out != "none":
        with open(args.out, "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for *start, largest, where, tolerance, within in rows:
                table.writerow([*start, f"{largest:.1e}", where, f"{tolerance:g}", within])
    return int(not all(row[-1] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
