"""One file per paper: each method is a few lines that set levers of the one loss."""
