"""Application-layer modules, each one file. None is here yet."""
