"""A scan in one process: what ``nray scan`` and people's scripts call."""
