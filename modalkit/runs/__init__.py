"""
Runs: training that goes on where the last attempt stopped.

`run` is the context manager around a training loop, `attempts` the ledger of tries, `preemption`
the signals, `batches` and `seeding` what makes a resumed run equal to an uninterrupted one.
"""
