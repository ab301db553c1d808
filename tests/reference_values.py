"""Write tests/reference/<notebook>.json: the metrics of the committed notebooks at profile small (make notebooks)."""

import json
import tempfile
from pathlib import Path

from safealign_utils.runs import runner

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    (HERE / "reference").mkdir(exist_ok=True)
    for path in runner.numbered():
        with tempfile.TemporaryDirectory() as folder:
            record = runner.run(path, out=folder)[1]
        values = {k: v for k, v in record["metrics"].items() if not k.startswith("fresh.")}  # trained here: chaotic
        (HERE / "reference" / f"{path.stem}.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        print(f"{path.stem}: {len(values)} reference values")
