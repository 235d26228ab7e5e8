"""Every statement of SQL that the ledger in SQLite uses.

They stand in one place so that docs/ledger.md can say, name by name, what another database would
need instead; a test compares the two.
"""

from __future__ import annotations

from typing import Final

#: Marks a file of SQLite as a ledger (``file`` shows it): "nray" in ASCII.
APPLICATION_ID: Final = 0x6E726179
#: Raised whenever an older program would misread what is in the file. 2: `pool.refused`; 3:
#: `pool.discovery`, `error.discovery`.
FORMAT: Final = 3

# Positions reach 2^63 - 1, the largest integer: intervals therefore name their last position,
# not the end after it. A row of the journal holds the rows of one commit, or some hundred of
# them, numbered up to `last`: one insert for many reports. `hits` counts those of all rows so
# far; from row `mark` on there may be hits of slices that are not done.
SCHEMA: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
    """CREATE TABLE scan (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        scan TEXT NOT NULL, settings BLOB NOT NULL, generation INTEGER NOT NULL,
        segments_ended INTEGER NOT NULL, finished INTEGER NOT NULL)""",
    "CREATE TABLE segment (number INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    """CREATE TABLE done (
        pool INTEGER, segment INTEGER, start INTEGER, last INTEGER NOT NULL,
        PRIMARY KEY (pool, segment, start)) WITHOUT ROWID""",
    """CREATE TABLE pool (
        pool INTEGER, discovery INTEGER, open INTEGER NOT NULL, closed INTEGER NOT NULL,
        filtered INTEGER NOT NULL, open_filtered INTEGER NOT NULL, error INTEGER NOT NULL,
        excluded INTEGER NOT NULL, skipped INTEGER NOT NULL, addresses INTEGER NOT NULL,
        refused INTEGER NOT NULL, hits INTEGER NOT NULL,
        PRIMARY KEY (pool, discovery)) WITHOUT ROWID""",
    """CREATE TABLE error (
        pool INTEGER, discovery INTEGER, reason TEXT, count INTEGER NOT NULL,
        PRIMARY KEY (pool, discovery, reason)) WITHOUT ROWID""",
    "CREATE TABLE node (node INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    """CREATE TABLE journal (
        last INTEGER PRIMARY KEY, hits INTEGER NOT NULL, mark INTEGER NOT NULL,
        body BLOB NOT NULL)""",
    """CREATE TABLE cursor (
        sink TEXT PRIMARY KEY, seq INTEGER NOT NULL, position INTEGER NOT NULL) WITHOUT ROWID""",
)

# ── transactions ────────────────────────────────────────────────────────────────────────────

BEGIN: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
SNAPSHOT: Final = "BEGIN"

# ── writing ─────────────────────────────────────────────────────────────────────────────────

PUT_SCAN: Final = "INSERT INTO scan VALUES (1, ?, ?, 0, ?, 0)"
NEXT_GENERATION: Final = "UPDATE scan SET generation = generation + 1"
PUT_STATE: Final = "UPDATE scan SET segments_ended = ?, finished = ?"
PUT_SEGMENT: Final = "INSERT INTO segment VALUES (?, ?)"
PUT_NODE: Final = "INSERT OR REPLACE INTO node VALUES (?, ?)"
PUT_ROWS: Final = "INSERT INTO journal VALUES (?, ?, ?, ?)"
PUT_SUMS: Final = "INSERT OR REPLACE INTO pool VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
PUT_ERROR: Final = "INSERT OR REPLACE INTO error VALUES (?, ?, ?, ?)"
PUT_CURSOR: Final = "INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)"

# All intervals of a place at once: each statement that is run lets other threads have the
# interpreter, and a busy one keeps it for milliseconds. The lists are JSON, of integers alone.
DROP_DONE: Final = """
    DELETE FROM done WHERE pool = ? AND segment = ?
    AND start IN (SELECT value FROM json_each(?))"""
PUT_DONE: Final = """
    INSERT OR REPLACE INTO done
    SELECT ?, ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"""

# ── reading ─────────────────────────────────────────────────────────────────────────────────

GET_SCAN: Final = "SELECT scan, settings, generation, segments_ended, finished FROM scan"
GET_SEGMENTS: Final = "SELECT number, body FROM segment ORDER BY number"
GET_SEGMENT_NUMBERS: Final = "SELECT number FROM segment"
GET_DONE: Final = "SELECT start, last FROM done WHERE pool = ? AND segment = ? ORDER BY start"
GET_POOLS: Final = "SELECT DISTINCT pool FROM pool ORDER BY pool"
GET_SUMS: Final = "SELECT * FROM pool WHERE pool = ? AND discovery = ?"
GET_ALL_SUMS: Final = "SELECT * FROM pool"
GET_ERRORS: Final = """
    SELECT reason, count FROM error WHERE pool = ? AND discovery = ? ORDER BY reason"""
GET_ALL_ERRORS: Final = "SELECT pool, discovery, reason, count FROM error"
GET_NODES: Final = "SELECT body FROM node ORDER BY node"
GET_NODE_NUMBERS: Final = "SELECT node FROM node"
GET_LAST: Final = "SELECT last, hits, mark FROM journal ORDER BY last DESC LIMIT 1"
GET_ROWS: Final = "SELECT last, body FROM journal WHERE last > ? ORDER BY last"
GET_ROWS_AT: Final = "SELECT last, hits, body FROM journal WHERE last >= ? ORDER BY last LIMIT 1"
GET_CURSOR: Final = "SELECT seq, position FROM cursor WHERE sink = ?"
