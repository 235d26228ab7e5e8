"""A scan in a bottle: the real server, nodes, books and sinks on a clock, a network and a disk
that are made up, with faults drawn from a seed.

One seed is one scan. Everything in it (targets, nodes, speeds, faults and their moments) is
drawn from that number and told by ``python -m tests.simulator SEED --tell``; the same seed takes
the same steps in the same order, in any process.

What runs is the code that ships: `nray.server.Server` over `open_books` and a memory ledger that
commits as slowly as a disk, `nray.node.Node` with its supervisor, `open_hub` with a
`JsonFileSink`. What is made up: lines (`lines`), the disk (`disk`), worker processes (`workers`),
names, and time. `replaced` is the whole list of what is put in their place.

`judge` holds the laws. They are asked at every commit, acknowledgement, lease and write, and all
of them again at the end; a scan that does not end in time is a breach as well. `plants` breaks
the program on purpose, so that the tests can show that the judge would see it.
"""
