"""What a scan found, as events: the model, the filters and the sinks that write them.

Import from the modules (`nray.events.model`, `.filters`, `.hub`, …): this file stays empty so
that whoever needs the model alone does not pay for trio.
"""
