"""A whole folder of an object store, such as a model, brought to this machine once.

It lies beside the cache of parts (``LAYERFLOW_CACHE``, with ``-folders`` after its name), under a
name made of what the store says of its files: a folder that has changed there is brought again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from pathlib import Path, PurePosixPath

from layerflow.corpus.remote.cache import shared_cache
from layerflow.corpus.store import Store, in_object_store
from layerflow.files import new_folder


def brought(where: str | Path) -> Path:
    """A local folder as it is; of one in an object store, the copy on this machine.

    Processes of a machine bring it once. Raises ValueError where nothing lies there, or a name
    leads out of the folder, and OSError when it cannot be read or the disk is full.
    """
    if not in_object_store(where):
        return Path(where)
    store = Store(str(where))
    stamps = store.stamps()
    if not stamps:
        raise ValueError(f"{store} is empty, or not there")
    for name in stamps:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"{store}: {name!r} leads out of the folder")
    text = json.dumps([str(store), sorted(stamps.items())])
    own = hashlib.sha256(text.encode()).hexdigest()[:20]
    cache = shared_cache().folder
    target = cache.with_name(f"{cache.name}-folders") / own
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{own}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if not target.is_dir():
            with new_folder(target) as folder:
                for name in stamps:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    store.get_file(name, folder / name)
    return target
