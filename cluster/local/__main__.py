"""`python -m cluster.local`: several Ray nodes on this machine, by hand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from cluster.local import network
from cluster.local.lifetime import all_nodes, find_nodes, sweep
from cluster.local.nodes import Nodes
from raylm.deploy.environment import base_env
from raylm.errors import ConfigError, RaylmError


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _do(options)
    except RaylmError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"error[{error.code}]: {error.message}{hint}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start nodes that stay until `down`")
    one, none = _at_least(1), _at_least(0)
    up.add_argument("--nodes", type=one, default=2, help="how many (default 2)")
    up.add_argument("--cpus", type=one, default=1, help="CPUs that each offers (default 1)")
    up.add_argument("--head-cpus", type=none, help="CPUs of node 0 (default as the others)")
    up.add_argument(
        "--loopback", action="store_true", help="share this machine's network, as without root"
    )
    commands.add_parser("status", help="the nodes, and how many processes each has")
    commands.add_parser("address", help="print host:port, for cluster.address")
    run = commands.add_parser("run", help="run a command on a node, connected to the cluster")
    run.add_argument("--node", type=int, default=0)
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    commands.add_parser("add", help="start one more node")
    for name, text in (
        ("kill", "SIGKILL to all of a node's processes"),
        ("freeze", "SIGSTOP: the node hangs"),
        ("thaw", "SIGCONT to a frozen node"),
        ("cut", "take its network away; its processes live on"),
        ("mend", "give the network back"),
    ):
        commands.add_parser(name, help=text).add_argument("node", type=int)
    commands.add_parser("down", help="end all, and remove what was made")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return whole_number


def _do(options: argparse.Namespace) -> int:
    if options.command == "up":
        return _up(options)
    if options.command == "down":
        for nodes in all_nodes():
            if not nodes.is_owned:
                nodes.remove()
        sweep()
        return 0
    nodes = find_nodes()
    index = getattr(options, "node", 0)
    if not 0 <= index < len(nodes.nodes):
        known = f"0 to {len(nodes.nodes) - 1}"
        raise ConfigError(f"there is no node {index}; there are {known}", code="nodes-unknown")
    if options.command == "run":
        words = options.words[1:] if options.words[:1] == ["--"] else options.words
        if not words:
            raise ConfigError("run -- COMMAND is expected", code="nodes-usage")
        command = nodes.inside(index, words)
        os.execvpe(command[0], command, {**base_env(), **nodes.env})
    if options.command == "address":
        print(nodes.address)
    elif options.command == "add":
        nodes.add_node()
        _show(nodes)
    elif options.command == "kill":
        print(f"killed {nodes.kill_node(index)} processes of node {index}")
    elif options.command == "freeze":
        nodes.freeze_node(index)
    elif options.command == "thaw":
        nodes.thaw_node(index)
    elif options.command == "cut":
        nodes.cut_link(index)
    elif options.command == "mend":
        nodes.mend_link(index)
    else:
        _show(nodes)
    return 0


def _up(options: argparse.Namespace) -> int:
    sweep()
    if any(not nodes.is_owned for nodes in all_nodes()):
        raise ConfigError(
            "nodes are up already", code="nodes-up", hint="`python -m cluster.local down` first"
        )
    isolate = not options.loopback and network.may_isolate()
    nodes = Nodes.create(num_cpus=options.cpus, head_cpus=options.head_cpus, isolate=isolate)
    try:
        for _ in range(options.nodes):
            nodes.add_node()
        nodes.release()
    except BaseException:
        nodes.remove()
        raise
    _show(nodes)
    return 0


def _show(nodes: Nodes) -> None:
    for node in nodes.nodes:
        where = node.namespace or "this machine's network"
        print(f"node {node.index}  {node.host}  {len(nodes.pids(node.index))} processes  {where}")
    print(f"address    {nodes.address}\ndashboard  {nodes.dashboard_url}")
    print(f"token      {nodes.env['RAY_AUTH_TOKEN_PATH']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
