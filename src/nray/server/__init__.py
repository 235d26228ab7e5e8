"""The scheduler (pools, leases, fencing) and the listener."""
