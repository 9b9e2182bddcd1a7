"""The rules, one function a kind of cause, by families: data, domains, division, precision, selection, matrices, dynamics.

A rule takes a `Case` and returns a `Cause` with a confidence, or None when its evidence is not there. It must cope with
cases where only the compiled step fails: these have facts of the origin, but neither tensors nor a graph.
"""
