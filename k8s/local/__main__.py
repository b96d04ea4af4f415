"""`python -m k8s.local`: a real Kubernetes on this machine, without Docker."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k8s.local import images, importing, requirements
from k8s.local.down import down, remains
from k8s.local.kubectl import kubectl, program
from k8s.local.layout import KUBECONFIG, cache
from k8s.local.requirements import NotHere
from k8s.local.stages import say
from k8s.local.up import dead, is_up, up
from raylm.errors import HostError, RaylmError

_LEFT_STATUS = 1


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    if arguments[:1] == ["kubectl"]:  # its words are its own
        path = str(program())
        os.execv(path, [path, f"--kubeconfig={KUBECONFIG}", *arguments[1:]])
    options = _parser().parse_args(arguments)
    try:
        requirements.check()
        return _do(options)
    except NotHere as error:
        _explain(error)
        skips = options.command in ("up", "down")
        if skips:
            say(f"SKIPPED: cluster-{options.command}: {error.message}")
        return 0 if skips else error.exit_code
    except RaylmError as error:
        _explain(error)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m k8s.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="make the cluster; once up, it stays as it is")
    commands.add_parser("down", help="remove it, and all that it left")
    commands.add_parser("status", help="whether it is up; exit code 1 if not")
    more = commands.add_parser("import", help="give image archives to all nodes")
    more.add_argument("files", nargs="+", type=Path, metavar="FILE", help="OCI or Docker archive")
    commands.add_parser("base-image", help="make a Debian image; prints the archive's path")
    commands.add_parser("kubectl", help="kubectl as the cluster's administrator, with its words")
    return parser


def _do(options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            with _alone():
                up()
        case "down":
            with _alone():
                down()
            say("nothing is left of the cluster")
        case "status":
            return _status()
        case "import":
            print("\n".join(importing.import_archives(options.files)))
        case "base-image":
            print(images.ensure(images.base()))
    return 0


def _status() -> int:
    if is_up():
        print(kubectl("get", "nodes,pods", "--all-namespaces", "-o", "wide"), end="")
        return 0
    left = remains()
    say("the cluster is not whole" if left else "there is no cluster")
    for line in [f"ended: {name}" for name in dead()] or left:
        say(f"  {line}")
    return _LEFT_STATUS


@contextmanager
def _alone() -> Iterator[None]:
    """One `up` or `down` at a time."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError("another `up` or `down` is at work", code="k8s-busy") from error
        yield


def _explain(error: RaylmError) -> None:
    say(f"error[{error.code}]: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
