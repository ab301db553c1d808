"""One file per paper; each method sets levers of the one loss."""
