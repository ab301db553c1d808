"""Arrays on disk as one safetensors file with the digest of all that is in it.

The digest covers the file's own name (what it is an entry or a state of), its description, and of
every array the name, type, shape and bytes. A file that is cut, flipped, of another make or under
another name is `Damaged`; nothing of it is used. Reading runs no code: there is no pickle in it.
"""

import hashlib
import json

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


class Damaged(ValueError):
    """A file that is not as it was written."""


def write(path, name, arrays, info):
    """Write named arrays and a description (plain values) as the file that is known as `name`."""
    text = json.dumps(info)
    items = ((key, arrays[key]) for key in sorted(arrays))
    save_file(arrays, path, {"info": text, "digest": _digest(name, text, items)})


def read(path, name):
    """(arrays, description) of a file that is known as `name`. Raises Damaged, OSError, or
    MemoryError where there is no room for it."""
    arrays = {}
    _, info = verified(path, name, arrays)
    return arrays, info


def verified(path, name, arrays=None):
    """(open file, description), after all in it was found as it was written.

    The arrays are put into `arrays`; without it they are read one after another and dropped.
    """
    try:
        file = safe_open(path, framework="numpy")
        said = file.metadata()
        found = _digest(name, said["info"], _each(file, arrays))
        if found == said["digest"]:
            return file, json.loads(said["info"])
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a parser makes of bytes that are not what was written
        raise Damaged(f"{type(error).__name__}: {error}"[:200]) from None
    raise Damaged("its content is not what its digest says")


def _each(file, arrays):
    for key in sorted(file.keys()):
        array = file.get_tensor(key)
        if arrays is not None:
            arrays[key] = array
        yield key, array


def _digest(name, text, items):
    h = hashlib.sha256(json.dumps([name, text]).encode())
    for key, array in items:
        h.update(json.dumps([key, str(array.dtype), array.shape]).encode())
        h.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return h.hexdigest()
