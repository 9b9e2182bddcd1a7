"""The rules, one function a kind of cause, by families.

`data`, `domain`, `division`, `variances`, `overflow`, `precision`, `selection`, `matrices` and
`dynamics`. A rule takes a `Case` and returns a `Cause` with a confidence, or None when its evidence
is not there. It must cope with cases where only the compiled step fails: these have facts of the
origin, but neither tensors nor a graph.

Confidences order the causes of one case. A rule that proves its cause by replay gives more than one
that reads it off the operands, and a special cause (a variance of 0) more than the general one that
it implies (a division by 0).
"""
