"""Keyring: the keys that a gateway knows at this moment.

The file is looked at again while the gateway runs, so that a new key works and a revoked one is
refused within seconds. A file that cannot be used (others may read it, it is being edited, this
node does not have it) leaves the keys as they were, and the log says so once.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from raylm.errors import ConfigError
from raylm.serve.keys import Key, hash_key, read_keys
from raylm.serve.tenant import Tenant

log = logging.getLogger("raylm.serve")
LOOK_S = 1.0
_Stamp = tuple[int, int, int]


class Keyring:
    """Keys by their hashes; without any, everybody is let in."""

    def __init__(self, keys: Sequence[Key] = (), path: Path | None = None) -> None:
        self._keys = tuple(keys)
        self._path = path
        self._stamp: _Stamp | None = None
        self._looked_s = -LOOK_S
        self._trouble = ""

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys and self._path is None

    async def refresh(self) -> None:
        """Look at the file, once in `LOOK_S`; before the request that asks is judged."""
        if self._path is None or time.monotonic() - self._looked_s < LOOK_S:
            return
        self._looked_s = time.monotonic()
        await asyncio.to_thread(self._look, self._path)

    def tenant(self, key: str) -> Tenant | None:
        """Whose key this is, expired or not; None for one that is not known."""
        digest = hash_key(key)
        # Every hash is compared, so that the time taken tells nothing of the keys.
        known = [k.tenant for k in self._keys if hmac.compare_digest(digest, k.digest)]
        return known[0] if known else None

    def _look(self, path: Path) -> None:
        try:
            stamp = _stamp(path)
            if stamp == self._stamp:
                return
            self._keys = read_keys(path)
            self._stamp = stamp
            self._trouble = ""
        except (OSError, ConfigError) as error:
            if str(error) != self._trouble:
                log.warning("the keys stay as they were: %s", error)
            self._trouble = str(error)


def _stamp(path: Path) -> _Stamp:
    # The time of the last change of content or mode, whatever the file says it was written.
    found = path.stat()
    return found.st_ctime_ns, found.st_ino, found.st_size
