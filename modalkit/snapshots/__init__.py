"""Memory snapshots: what has to be made new after every start."""
