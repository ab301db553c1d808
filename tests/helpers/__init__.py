"""What several tests share: small models, toy notebooks, programs for several processes."""

import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def comes_true(condition, seconds):
    """Whether condition() is true within so many seconds; it is asked ten times a second."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(found)
