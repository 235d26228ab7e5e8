"""What a server and a node say to each other, and how it travels.

`messages` are the words, `rules` what a message may hold, `states` who may say what when,
`framing` bytes on a stream, `errors` whose mistake it was, and `channel` moves whole messages
over a trio stream. All but `channel` do no I/O, know no clock and never import trio.
docs/protocol.md tells the same to whoever writes another node.
"""
