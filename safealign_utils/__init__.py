"""SafeAlign Kit: one preference loss with four levers, checked in a world that can be solved
exactly.

Read pairs, tokens, logprobs, loss, train and evaluate first; then the rooms world, methods, real,
study and runs. `CONTRIBUTING.md` has the map.
"""

import warnings

__version__ = "0.1.0"

# tqdm's, where no notebook widgets are installed
warnings.filterwarnings("ignore", message="IProgress not found")
