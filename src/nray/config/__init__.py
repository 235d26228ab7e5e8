"""What a user configures: the schema, reading it from YAML, writing it back.

`schema` holds every key with its default; `reader` turns a file into a `schema.Config`; `writer`
turns a `Config` into YAML; `rules` holds what keys demand of each other and what this version
cannot do; `durations` reads and writes ``1m30s``. Importing this package imports none of them:
only `reader` and `writer` need a YAML library.
"""
