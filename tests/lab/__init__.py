"""A laboratory of network namespaces for black-box tests of the ``nray`` command.

No packet leaves it: there is no route out, and the only addresses in it are 127.0.0.0/8, ::1,
198.18.0.0/15 (RFC 2544, for benchmarks) and 2001:db8::/32 (RFC 3849, for documentation).

- `namespaces`: a namespace, what runs in it, and its end;
- `truth`: what each (protocol, address, port) is to answer, and how nray must report
  it, drawn from a seed;
- `network`: scanner and target, joined by a veth pair, the target made to keep to a truth;
- `listener`, `capture`, `measure`: programs of their own, each started as a process;
- `nray`, `cluster`: the command under test, alone and as server with nodes;
- `certs`: an authority and leaves, made without nray's own code;
- `judge`: pure functions that say whether what was captured keeps a promise.
"""
