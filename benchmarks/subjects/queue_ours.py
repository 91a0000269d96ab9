"""This project's Queue and Dict, embedded; MODAL_DURABILITY says what its writes outlive."""

import json
import sys

import modal_nomad as modal
from benchmarks.subjects._queues import Store, measure, wait


def store(queue: modal.Queue, answers: modal.Queue, entries: modal.Dict) -> Store:
    return Store(queue.put, queue.get, answers.put, answers.get, entries.put, entries.get)


def main(count: int, wakes: int) -> None:
    """Measure."""
    with modal.Queue.ephemeral() as queue, modal.Queue.ephemeral() as answers, modal.Dict.ephemeral() as d:
        ids = [x.object_id for x in (queue, answers, d)]
        print(json.dumps(measure(store(queue, answers, d), [str(__spec__.name), *ids], count, wakes)))


if __name__ == "__main__":
    if len(sys.argv) == 5:
        queue, answers = map(modal.Queue.from_id, sys.argv[1:3])
        wait(store(queue, answers, modal.Dict.from_id(sys.argv[3])), int(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:]))
