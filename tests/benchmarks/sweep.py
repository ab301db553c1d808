"""Run a grid file of `notebooks/sweeps/` one run after another, and gather one table of all of them.

    python tests/benchmarks/sweep.py notebooks/sweeps/token_noise.yaml

Finished runs are taken from `results/sweeps/<name>/`. The table goes to `tests/benchmarks/results/<name>.csv`.
"""

import itertools
import sys
from pathlib import Path

import pandas as pd
import yaml

from safealign_utils.runs import runner

ROOT = Path(__file__).parents[2]


def main(file):
    grid, parts = yaml.safe_load(Path(file).read_text(encoding="utf-8")), []
    for point in itertools.product(*grid["cross"].values()):
        chosen = dict(zip(grid["cross"], point))
        given = {**grid["fixed"], **chosen}
        texts = [(k, ",".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in given.items()]
        folder, record, ran = runner.run(grid["notebook"], texts, out=ROOT / "results" / "sweeps" / Path(file).stem)
        print(f"{chosen}: {'ran' if ran else 'found'}, {record['timings']['total']:.0f} s", flush=True)
        wanted = (*grid["cross"], "pairs", "world_size", "pool")
        setting = {k: v for k, v in record["parameters"].items() if k in wanted}
        parts.append(pd.read_csv(folder / f"{grid['table']}.csv").assign(**setting))
    out = ROOT / "tests" / "benchmarks" / "results" / f"{Path(file).stem}.csv"
    pd.concat(parts, ignore_index=True).round(5).to_csv(out, index=False)
    print(out.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1])
