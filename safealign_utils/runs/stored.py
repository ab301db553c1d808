"""What `safealign cache` does: list, check and clear what was trained and computed before."""

import time

from ..engine import cache, live, room, sealed


def show():
    """Print a line a kind of entry: how many, their size, when one was used last."""
    there, kinds = room.entries(cache.root()), {}
    for entry in there:
        kinds.setdefault(entry.kind, []).append(entry)
    for kind, found in sorted(kinds.items()):
        days = (time.time() - max(entry.used for entry in found)) / 86400
        used = f"last used {days:.1f} days ago"
        print(f"{kind:<12}{len(found):>8} entries {_gb(found):>9.3f} GB  {used}")
    print(f"{cache.root()}: {_gb(there):.3f} GB of {room.limit() / 1e9:g} (SAFEALIGN_CACHE_GB)")
    return 0


def check():
    """Read every entry and remove those that are damaged, and what was left half-written: 1 where
    there was one."""
    there, bad = _entries(), 0
    for entry in there:
        try:
            name = entry.path.relative_to(cache.root()).with_suffix("")
            sealed.verified(entry.path, name.as_posix())
        except FileNotFoundError:
            continue  # dropped in the meantime
        except (sealed.Damaged, OSError) as error:
            print(
                f"{entry.path}: damaged ({error}); removed, it is computed again when it is needed"
            )
            entry.path.unlink(missing_ok=True)
            bad += 1
    for folder in {entry.path.parent for entry in room.entries(cache.root())}:
        live.remove_leftovers(folder)
    print(f"{cache.root()}: {len(there)} entries read, {bad} damaged")
    return 1 if bad else 0


def clear():
    """Remove all entries; what is being trained at the moment stays."""
    there = _entries()
    for entry in there:
        entry.path.unlink(missing_ok=True)
    print(f"{cache.root()}: {len(there)} entries removed, {_gb(there):.3f} GB")
    return 0


def _entries():
    return [entry for entry in room.entries(cache.root()) if entry.kind != "partial"]


def _gb(entries):
    return sum(entry.size for entry in entries) / 1e9
