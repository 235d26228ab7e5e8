"""What survives a crash.

`ledger` says what a ledger promises, `entries` what is written into one. `sqlite` keeps it in a
file, `memory` in the process; `book` holds what both check and count. docs/ledger.md is the page.
"""
