"""
Checkpoints: what is saved, how it lies on the Volume, and when.

    objects -> state -> tree (skeleton + bulk) -> store (pack, manifest) -> Volume

`state` knows live objects, `tree` and `bulk` turn their state into JSON and bytes without pickle,
`store` publishes and finds checkpoints, `checkpointer` decides when.
"""
