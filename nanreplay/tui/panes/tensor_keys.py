"""Keys of the tensor pane."""

from __future__ import annotations

from textual.binding import Binding

TENSOR_BINDINGS = (
    Binding(
        "n", "failing(1)", "Next bad", id="tensor.next", tooltip="The next element that failed"
    ),
    Binding(
        "N",
        "failing(-1)",
        "Bad before",
        show=False,
        id="tensor.before",
        tooltip="The element before that failed",
    ),
    Binding(
        "x",
        "slice(1)",
        "Slice",
        id="tensor.slice",
        tooltip="The next slice along the axes before the last two",
    ),
    Binding(
        "X",
        "slice(-1)",
        "Slice before",
        show=False,
        id="tensor.slice_before",
        tooltip="The slice before",
    ),
    Binding(
        "w",
        "follow",
        "Over steps",
        id="tensor.follow",
        tooltip="The tensor over the steps of the window; again for the facts",
    ),
    Binding(
        "c",
        "compare",
        "Compare",
        id="tensor.compare",
        tooltip="The tensor beside itself in the step before; again for the facts",
    ),
    Binding(
        "z",
        "picture",
        "Picture",
        id="tensor.picture",
        tooltip="The tensor as a picture; again for the table",
    ),
    Binding("i", "index", "Index", id="tensor.index", tooltip="Go to an element by its index"),
    Binding(
        "v",
        "output",
        "Output",
        show=False,
        id="tensor.output",
        tooltip="The next output of the same op",
    ),
    Binding(
        "d",
        "elsewhere('dataflow')",
        "Dataflow",
        id="tensor.dataflow",
        tooltip="Where it came from and went",
    ),
    Binding(
        "b",
        "elsewhere('bisect')",
        "In the tree",
        id="tensor.tree",
        tooltip="The op among the others of its step",
    ),
    Binding(
        "escape",
        "no_index",
        "Close",
        show=False,
        id="tensor.no_index",
        tooltip="Close the line for an index",
    ),
)
