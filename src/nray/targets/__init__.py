"""What a user writes (networks, names, ports, exclusions) made into a numbered space.

`plan.plan` is the way in: it reads targets, ports and exclusions (`networks`, `ports`, `files`,
`reserved`; arithmetic in `ranges`) into a `segment.Segment`, which packs to bytes for the wire
and the ledger. `findings` makes packed hits readable again.
"""
