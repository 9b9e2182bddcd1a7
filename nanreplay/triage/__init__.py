"""Many captures at once: each is bisected, and those that failed alike become one group.

`triage_engine.triage` does it; workers are processes of this machine (`local_workers`) or a Dask
cluster (`dask_workers`). The process that asks never loads TensorFlow.
"""
