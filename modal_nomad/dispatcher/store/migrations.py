"""The schema, as steps. A step that was released is never edited: a new one follows it.

Step n takes a store from schema n-1 to n; SQLite's ``user_version`` says where a file stands.
"""

from __future__ import annotations

APPLICATION_ID = 0x6D6E6D64
"""Marks a file as ours, so that another program's database is never migrated."""

_INITIAL = """
CREATE TABLE apps (
    app_id TEXT PRIMARY KEY,
    name TEXT,
    description TEXT NOT NULL,
    environment TEXT NOT NULL,
    state TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at REAL NOT NULL,
    stopped_at REAL
) WITHOUT ROWID;
CREATE INDEX apps_by_name ON apps (environment, name);
CREATE UNIQUE INDEX apps_deployed ON apps (environment, name) WHERE state = 'deployed';

CREATE TABLE app_versions (
    app_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    deployed_at REAL NOT NULL,
    client TEXT NOT NULL,
    deployed_by TEXT NOT NULL,
    tag TEXT NOT NULL,
    PRIMARY KEY (app_id, version)
) WITHOUT ROWID;

CREATE TABLE functions (
    function_id TEXT PRIMARY KEY,
    app_id TEXT NOT NULL,
    name TEXT NOT NULL,
    environment TEXT NOT NULL,
    version INTEGER NOT NULL,
    spec TEXT NOT NULL,
    job TEXT NOT NULL
);
CREATE UNIQUE INDEX functions_by_app ON functions (app_id, name);

-- Outlives the functions themselves: one removed and brought back keeps its id.
CREATE TABLE function_ids (
    environment TEXT NOT NULL,
    app_name TEXT NOT NULL,
    name TEXT NOT NULL,
    function_id TEXT NOT NULL,
    PRIMARY KEY (environment, app_name, name)
) WITHOUT ROWID;

CREATE TABLE calls (
    key INTEGER PRIMARY KEY,
    call_id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    created_at REAL NOT NULL,
    num_inputs INTEGER,
    expires_at REAL
);
CREATE INDEX calls_by_expiry ON calls (expires_at) WHERE expires_at IS NOT NULL;

-- Holds unanswered inputs only: answering one moves it to outputs.
CREATE TABLE inputs (
    call INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    payload BLOB NOT NULL,
    flags INTEGER NOT NULL,
    losses INTEGER NOT NULL,
    PRIMARY KEY (call, idx)
) WITHOUT ROWID;

CREATE TABLE outputs (
    call INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    status INTEGER NOT NULL,
    payload BLOB NOT NULL,
    flags INTEGER NOT NULL,
    PRIMARY KEY (call, idx)
) WITHOUT ROWID;

CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY,
    secret_hash TEXT NOT NULL,
    environments TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at REAL NOT NULL
) WITHOUT ROWID;
"""

_AUTOSCALER = "ALTER TABLE functions ADD COLUMN autoscaler TEXT NOT NULL DEFAULT '{}'"

_CLASSES = """
ALTER TABLE calls ADD COLUMN method TEXT NOT NULL DEFAULT '';

-- Functions made from others at run time: a class with parameters, or with other options. A row without
-- a job follows its parent.
CREATE TABLE variants (
    key INTEGER PRIMARY KEY,
    function_id TEXT NOT NULL UNIQUE,
    parent_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    params BLOB,
    spec TEXT,
    job TEXT,
    autoscaler TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX variants_by_parent ON variants (parent_id);
"""

_ITEMS = """
-- What generators of durable calls yielded, numbered from 0.
CREATE TABLE items (
    call INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    number INTEGER NOT NULL,
    payload BLOB NOT NULL,
    flags INTEGER NOT NULL,
    PRIMARY KEY (call, idx, number)
) WITHOUT ROWID;
"""

_BLOB_NAMES = """
-- Which blobs are in use is asked often, of few rows among many.
CREATE INDEX inputs_by_blob ON inputs (payload) WHERE flags & 1;
CREATE INDEX outputs_by_blob ON outputs (payload) WHERE flags & 1;
CREATE INDEX items_by_blob ON items (payload) WHERE flags & 1;
"""

_GRAPH = """
ALTER TABLE outputs ADD COLUMN task_id TEXT NOT NULL DEFAULT '';

-- Calls that inputs of durable calls made, at any depth.
CREATE TABLE graph_calls (
    key INTEGER PRIMARY KEY,
    call_id TEXT NOT NULL UNIQUE,
    parent_call TEXT NOT NULL,
    parent TEXT NOT NULL,
    name TEXT NOT NULL,
    module TEXT NOT NULL
);
CREATE INDEX graph_calls_by_parent ON graph_calls (parent_call);

-- Their inputs, where these are in no other table.
CREATE TABLE graph_inputs (
    call_id TEXT NOT NULL,
    idx INTEGER NOT NULL,
    status INTEGER,
    task_id TEXT NOT NULL,
    PRIMARY KEY (call_id, idx)
) WITHOUT ROWID;
"""

_OBJECTS = """
-- Dicts, Queues, Secrets, Volumes: whatever has a name in an environment, or lives with a client.
CREATE TABLE objects (
    object_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT,
    environment TEXT NOT NULL,
    created_at REAL NOT NULL,
    created_by TEXT NOT NULL,
    owner TEXT NOT NULL,
    detail TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX objects_by_name ON objects (kind, environment, name) WHERE name IS NOT NULL;

CREATE TABLE environments (
    name TEXT PRIMARY KEY,
    created_at REAL NOT NULL,
    web_suffix TEXT NOT NULL
) WITHOUT ROWID;

-- What requests were answered, until their clients have it: they send again what was not answered.
CREATE TABLE object_answers (
    client TEXT NOT NULL,
    number INTEGER NOT NULL,
    at REAL NOT NULL,
    value TEXT NOT NULL,
    payload BLOB,
    flags INTEGER NOT NULL,
    PRIMARY KEY (client, number)
) WITHOUT ROWID;
CREATE INDEX object_answers_by_blob ON object_answers (payload) WHERE flags & 1;

CREATE TABLE dict_entries (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    object_id TEXT NOT NULL,
    key BLOB NOT NULL,
    payload BLOB NOT NULL,
    flags INTEGER NOT NULL,
    expires_at REAL NOT NULL
);
CREATE UNIQUE INDEX dict_entries_by_key ON dict_entries (object_id, key);
CREATE INDEX dict_entries_by_position ON dict_entries (object_id, position);
CREATE INDEX dict_entries_by_expiry ON dict_entries (expires_at);
CREATE INDEX dict_entries_by_blob ON dict_entries (payload) WHERE flags & 1;

-- Whoever puts an item numbers it; the highest number is the newest item.
CREATE TABLE queue_items (
    number INTEGER PRIMARY KEY,
    object_id TEXT NOT NULL,
    part TEXT NOT NULL,
    payload BLOB NOT NULL,
    expires_at REAL NOT NULL
);
CREATE INDEX queue_items_by_queue ON queue_items (object_id, number);
"""

_VOLUMES = """
-- Volumes: how far each is, what stands at each path, and which commits were carried out lately.
CREATE TABLE volumes (
    object_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    floor INTEGER NOT NULL
);

-- A removed path keeps a row of kind 0 for a while: whoever is behind has to learn of it.
CREATE TABLE volume_files (
    object_id TEXT NOT NULL,
    path BLOB NOT NULL,
    parent BLOB NOT NULL,
    version INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    chunks BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE UNIQUE INDEX volume_files_by_path ON volume_files (object_id, path);
CREATE INDEX volume_files_by_parent ON volume_files (object_id, parent, path);
CREATE INDEX volume_files_by_version ON volume_files (object_id, version, path);
CREATE INDEX volume_files_removed ON volume_files (object_id, mtime) WHERE kind = 0;

CREATE TABLE volume_commits (
    object_id TEXT NOT NULL,
    commit_id TEXT NOT NULL,
    at INTEGER NOT NULL,
    before INTEGER NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (object_id, commit_id)
);
"""

_ATTEMPTS = "ALTER TABLE inputs ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0"

_SCHEDULES = """
CREATE TABLE schedules (
    function_id TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    anchor REAL NOT NULL,
    next_at REAL NOT NULL,
    last_call TEXT NOT NULL
);
"""

_IMAGES = """
-- Images that were built: what each content key came to.
CREATE TABLE images (
    key_of_image TEXT PRIMARY KEY,
    reference TEXT NOT NULL,
    built_at REAL NOT NULL
);
"""

_STAGES = """
-- Large commits of Volumes, on their way: what they write, and the commit that a stage has become.
CREATE TABLE volume_stages (
    stage_id TEXT PRIMARY KEY,
    object_id TEXT NOT NULL,
    commit_id TEXT NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE volume_staged (
    object_id TEXT NOT NULL,
    stage_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    path BLOB NOT NULL,
    kind INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    chunks BLOB NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (object_id, stage_id, number)
) WITHOUT ROWID;
"""

_PINS = """
-- Versions of Volumes that somebody reads, and the rows of them that later commits replaced.
CREATE TABLE volume_pins (
    object_id TEXT NOT NULL,
    pin_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (object_id, pin_id)
) WITHOUT ROWID;
CREATE INDEX volume_pins_by_version ON volume_pins (object_id, version);

CREATE TABLE volume_past (
    object_id TEXT NOT NULL,
    path BLOB NOT NULL,
    parent BLOB NOT NULL,
    version INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    chunks BLOB NOT NULL,
    data BLOB NOT NULL,
    until INTEGER NOT NULL
);
CREATE UNIQUE INDEX volume_past_by_end ON volume_past (object_id, until, path);
CREATE INDEX volume_past_by_parent ON volume_past (object_id, parent, path);
"""

_IMAGE_NAMES = """
-- Images that were published under names.
CREATE TABLE image_names (
    environment TEXT NOT NULL,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    spec TEXT NOT NULL,
    published_at REAL NOT NULL,
    PRIMARY KEY (environment, name, tag)
);
"""

_LEASES = """
-- What Vault gave to containers, and nobody has revoked yet.
CREATE TABLE secret_leases (
    lease_id TEXT PRIMARY KEY,
    container_id TEXT NOT NULL,
    path TEXT NOT NULL
);
"""

_CALL_ENVIRONMENTS = """
-- Its Function may be gone when somebody asks for its results.
ALTER TABLE calls ADD COLUMN environment TEXT NOT NULL DEFAULT '';
"""

_BLOB_HOLDERS = """
-- Who may read a blob: whose token sent it, or was shown it. Only tokens of some environments are noted,
-- for the others may read all.
CREATE TABLE blob_holders (
    sha TEXT NOT NULL,
    holder TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (sha, holder)
) WITHOUT ROWID;
"""

STEPS: tuple[str, ...] = (
    _INITIAL,
    _AUTOSCALER,
    _CLASSES,
    _ITEMS,
    _BLOB_NAMES,
    _GRAPH,
    _OBJECTS,
    _VOLUMES,
    _ATTEMPTS,
    _SCHEDULES,
    _IMAGES,
    _STAGES,
    _PINS,
    _IMAGE_NAMES,
    _LEASES,
    _CALL_ENVIRONMENTS,
    _BLOB_HOLDERS,
)
VERSION = len(STEPS)
