"""What the dispatcher keeps for a client that may ask again: no more than that."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

from conftest import Live, until

import modal_nomad as modal


def test_answers_are_kept_no_longer_than_they_may_be_asked_for(live: Live) -> None:
    assert live.status()["pid"]
    database = sqlite3.connect(f"file:{live.home}/store.db?mode=ro", uri=True)

    def kept(client: str) -> int:
        query = "SELECT count(*) FROM object_answers WHERE client = ?"
        return int(database.execute(query, (client,)).fetchone()[0])

    script = live.write(
        "moves.py",
        """
        import threading
        import modal_nomad as modal
        q = modal.Queue.from_name("moves")
        threading.Thread(target=q.get, kwargs={"partition": "empty"}, daemon=True).start()
        for number in range(20):
            q.put(bytes(1000))
            q.get()
        print(modal.Client.from_env()._id)
        """,
    )
    with contextlib.closing(database), modal.Queue.ephemeral() as q:
        me = modal.Client.from_env()._id
        waiting = threading.Thread(target=q.get, kwargs={"partition": "empty"})
        waiting.start()
        for number in range(20):
            q.put(number)
            assert q.get() == number
        # One that waits for long does not keep the answers to all that came after it.
        assert kept(me) <= 2
        q.put(0, partition="empty")
        waiting.join()
        modal.Queue.from_name("moves", create_if_missing=True).hydrate()
        other = live.python(script).strip()
        until(lambda: kept(other) == 0, what="the end of a client's answers")
        modal.Queue.objects.delete("moves")
