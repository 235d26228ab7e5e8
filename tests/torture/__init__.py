"""Scans of real processes that are killed, stopped and cut off at moments drawn from a seed.

One seed is one *trial*: a server and two nodes over mutual TLS scan listeners that they can reach
whatever happens, and the *plan* drawn from the seed says what befalls them when. Whatever it is,
the events in the file must be those of an undisturbed scan: none missing, none twice, no torn
line. `make torture` runs 200 of them; ``python -m tests.torture SEED`` runs one again.

The same seed strikes the same processes at the same share of the scan; how far each process is at
that moment is the machine's to say. A trial that fails therefore keeps its directory.
"""
