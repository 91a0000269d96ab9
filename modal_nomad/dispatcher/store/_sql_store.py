"""The whole of a store in SQL, but for the database that runs it."""

from __future__ import annotations

from modal_nomad.dispatcher.store._sql_apps import SqlApps
from modal_nomad.dispatcher.store._sql_blob_holders import SqlBlobHolders
from modal_nomad.dispatcher.store._sql_calls import SqlCalls
from modal_nomad.dispatcher.store._sql_images import SqlImages
from modal_nomad.dispatcher.store._sql_leases import SqlLeases
from modal_nomad.dispatcher.store._sql_objects import SqlObjects
from modal_nomad.dispatcher.store._sql_schedules import SqlSchedules
from modal_nomad.dispatcher.store._sql_volumes import SqlVolumes
from modal_nomad.dispatcher.store.base import Store


class SqlStore(
    SqlApps,
    SqlCalls,
    SqlObjects,
    SqlVolumes,
    SqlSchedules,
    SqlImages,
    SqlLeases,
    SqlBlobHolders,
    Store,
):
    """What SQLite's and PostgreSQL's stores have in common."""
