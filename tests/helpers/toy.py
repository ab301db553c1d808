"""A toy notebook that the kit's runner accepts: its parameters cell, and how it is written to a file."""

import nbformat

CELL = '''profile: str = "small"
seed: int = 0
seeds: int = 0
beta: float = 0.5
steps: int = 0
pairs: int = 0
batch_size: int = 0
learning_rate: float = 0.0
dtype: str = ""
model: str = "scratch"
revision: str = ""
data: str = ""
label: str = "auto"
device: str = "auto"
betas: list = []
out_dir: str = ""'''


def notebook(path, *cells, tag="parameters"):
    """Write a notebook of code cells, the first with a tag; returns its path."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    if tag:
        book.cells[0].metadata["tags"] = [tag]
    book.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(book, path)
    return path
