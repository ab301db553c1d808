"""What several tests share: small models, toy notebooks, programs for several processes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
