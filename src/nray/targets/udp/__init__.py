"""UDP payloads, written from the protocols' specifications; see `table`."""
