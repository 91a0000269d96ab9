"""``python -m benchmarks [--quick]``: measure everything, print one table."""

from __future__ import annotations

import argparse
import sys

from benchmarks import containers, peers, queues, subject, table, volumes, web
from benchmarks.home import private_home
from benchmarks.imports import import_times

_PEERS = {"pool": "pool", "ray": "ray_actor_task", "dask": "dask_cluster"}
_RAY_GENERATOR = "ray_generator"
_RAY_CLASSES = "ray_classes"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and inputs: a minute or two")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    options = parser.parse_args()
    quick = options.quick
    calls, rounds, inputs, many = (300, 3, 20_000, 200_000) if quick else (1000, 5, 100_000, 1_000_000)
    peer_inputs = inputs // 20
    sets, peer_sets = (20, 5) if quick else (100, 20)
    limit = 60 if quick else 600
    tree = (32, 500) if quick else (512, 5000)

    measured: dict[str, subject.Results] = {}
    if not options.no_peers:
        _say("the peers' environment")
        trouble = peers.prepare()
        if trouble:
            _say(f"no peers: {trouble}")
        else:
            for name, program in _PEERS.items():
                _say(program)
                measured[name] = subject.run(
                    program, calls, peer_inputs, rounds, python=peers.PYTHON, limit=limit
                )
            _say(_RAY_GENERATOR)
            measured["ray_items"] = subject.run(
                _RAY_GENERATOR, peer_inputs, rounds, python=peers.PYTHON, limit=limit
            )
            _say(_RAY_CLASSES)
            measured["ray_classes"] = subject.run(
                _RAY_CLASSES, peer_inputs, peer_sets, rounds, python=peers.PYTHON, limit=2 * limit
            )
            _say("redis")
            measured["redis"] = queues.theirs(peers.PYTHON, calls * 3, 50)
        _say("rsync, rclone")
        measured["copies"] = volumes.theirs(*tree)
    held = {}
    for durability in ("power", "process"):
        with private_home(MODAL_DURABILITY=durability):
            _say(f"ours: queues and dicts, durability {durability}")
            held[durability] = subject.run("queue_ours", calls * 3, 50)
    with private_home():
        _say("ours: first answers and deploys")
        cold = subject.run("cold", rounds)
        _say("ours: warm")
        ours = subject.run("ours", calls, inputs, rounds)
        _say("ours: spawn_map, generators, call graphs")
        ours |= subject.run("calls", inputs, rounds)
        _say("ours: concurrent inputs, batches, parameter sets")
        ours |= subject.run("classes", inputs, sets, rounds)
        _say("ours: volumes")
        files = subject.run("volume_ours", *tree)
        _say("ours: memory")
        memory = subject.run("memory", many)
    _say("the GPU plugin")
    plugin = subject.run("gpu_plugin", 5 * rounds)
    _say("ours: web endpoints, beside nginx")
    served = web.measure(2.0 if quick else 10.0, 1 if quick else rounds)
    _say("ours: images and containers, beside docker")
    contained = containers.measure(rounds)
    _say("imports")
    imports = import_times(10 if quick else 30)
    sizes = table.Sizes(inputs, peer_inputs, sets, peer_sets)
    print(table.render(table.rows(ours, measured, sizes)))
    print()
    print(table.render(table.own_rows(ours, cold, imports, memory, plugin)))
    print()
    print(queues.render(held, measured.get("redis", {})))
    print()
    print(volumes.render(files, measured.get("copies", {})))
    print()
    print(web.render(served))
    print()
    print(containers.render(contained))
    return 0 if ours and cold and memory and held["power"] and files else 1


def _say(words: str) -> None:
    print(f"- {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
