"""Redis by redis-py over its Unix socket: in memory, with a log that is synced each second, and each time."""

import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from benchmarks.subjects._queues import Store, measure, pack, wait


def store(client: "redis.Redis") -> Store:
    def taken(name: str) -> object:
        return pickle.loads(client.blpop([name])[1])

    return Store(
        lambda value: client.rpush("queue", pack(value)),
        lambda: taken("queue"),
        lambda value: client.rpush("answers", pack(value)),
        lambda: taken("answers"),
        lambda key, value: client.hset("entries", pack(key), pack(value)),
        lambda key: pickle.loads(client.hget("entries", pack(key))),
    )


@contextmanager
def served(*options: str) -> Iterator[str]:
    """Run a server of its own."""
    with tempfile.TemporaryDirectory(prefix="mn-redis-") as folder:
        path = f"{folder}/s"
        command = [
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            path,
            "--dir",
            folder,
            "--save",
            "",
            *options,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            for _ in range(200):
                try:
                    redis.Redis(unix_socket_path=path).ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.02)
            yield path
        finally:
            process.terminate()
            process.wait(10)


def main(count: int, wakes: int) -> None:
    """Measure."""
    result = {}
    modes = {
        "": (),
        "second_": ("--appendonly", "yes", "--appendfsync", "everysec"),
        "disk_": ("--appendonly", "yes", "--appendfsync", "always"),
    }
    for mode, options in modes.items():
        with served(*options) as path:
            waiter = [str(__spec__.name), path]
            found = measure(store(redis.Redis(unix_socket_path=path)), waiter, count, wakes)
            result |= {mode + name: value for name, value in found.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].isdigit():
        wait(store(redis.Redis(unix_socket_path=sys.argv[1])), int(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:]))
