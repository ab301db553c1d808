"""SafeAlign Kit: one preference loss with four levers, checked in a world that can be solved
exactly."""

import warnings

__version__ = "0.1.0"

warnings.filterwarnings(
    "ignore", message="IProgress not found"
)  # tqdm's, where no notebook widgets are installed
