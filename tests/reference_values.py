"""Write tests/reference/01_dpo_basics.json: the metrics of notebook 01 at profile small (make notebooks)."""

import json
import tempfile
from pathlib import Path

from safealign_utils.runs import runner

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    (HERE / "reference").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        values = runner.run("01_dpo_basics", out=folder)[1]["metrics"]
    (HERE / "reference" / "01_dpo_basics.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    print(f"{len(values)} reference values")
