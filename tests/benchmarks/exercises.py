"""Write what the checks of the exercises say into notebooks/tables/exercises.txt.

python tests/benchmarks/exercises.py          (then tests/reference_values.py --table exercises.txt ...)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import ROOT, exercise_answers  # noqa: E402

if __name__ == "__main__":
    text = exercise_answers.table()
    (ROOT / "notebooks" / "tables" / "exercises.txt").write_text(text, encoding="utf-8")
    print(text, end="")
