"""Connection and reconnection, work credit, the supervisor of workers, name resolution."""
