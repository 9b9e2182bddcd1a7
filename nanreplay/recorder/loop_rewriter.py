"""Finding the loops of a program that train in Python, and telling a recorder of each iteration.

Where an eager step begins cannot be seen from outside: no function is called for it. `nanreplay run` compiles the program
itself, and puts the body of each loop that calls anything into a `with` statement. Line numbers, variables and what the body
does stay as they are. Which loops train is told from the text, so that their first iteration is seen: by calls of
`tape.gradient`, of optimizers and `assign`, and of functions of the program that make them.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType

_GRADIENTS = frozenset({"gradient", "jacobian", "batch_jacobian", "minimize", "compute_gradients"})
_UPDATES = frozenset({"apply_gradients", "minimize"})
_ASSIGNMENTS = frozenset({"assign", "assign_add", "assign_sub"})
NEXT = "__nanreplay_next__"
"""Stands for `next` within the bodies."""
END = "__nanreplay_end_of_body__"
"""Raised for `return` when a body runs once more."""
Loop = ast.For | ast.While


@dataclass(frozen=True, slots=True)
class LoopBody:
    """The body of a loop."""

    name: str
    """The context manager around it."""
    code: CodeType
    """Runs it once more, in a namespace."""
    targets: tuple[str, ...]
    """Names that the loop assigns: the batch, as a rule."""
    names: tuple[str, ...]
    """Names that it uses."""
    trains: bool
    """Whether its text says that it trains; else that is seen when it does."""


@dataclass
class TrainingNames:
    """Functions of a program that compute gradients, and that apply them, by their names."""

    gradients: set[str] = field(default_factory=set)
    updates: set[str] = field(default_factory=set)

    def learn(self, tree: ast.Module) -> None:
        """Add the functions of a module."""
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        before = -1
        while before != (before := len(self.gradients) + len(self.updates)):
            for function in functions:
                computes, applies = self._does(function.body)
                if computes:
                    self.gradients.add(function.name)
                if applies:
                    self.updates.add(function.name)

    def trains(self, body: Sequence[ast.stmt]) -> bool:
        """Whether statements compute gradients and apply them, other than in a loop that does both itself."""
        return all(self._does(body))

    def _does(self, body: Sequence[ast.stmt]) -> tuple[bool, bool]:
        """(computes gradients, applies them)."""
        calls = list(self._calls(body))
        computes = any(name in _GRADIENTS or name in self.gradients for name, _ in calls)
        applies = any(
            name in _UPDATES
            or name in self.updates
            or (name == "apply" and "opt" in owner.lower())
            or (name in _ASSIGNMENTS and computes)
            for name, owner in calls
        )
        return computes, applies

    def _calls(self, body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
        """(name, text of the owner) of what is called, not in functions that are only defined, nor in loops that train."""
        pending: list[ast.AST] = list(body)
        while pending:
            node = pending.pop()
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                continue
            if isinstance(node, Loop) and self.trains(node.body):
                continue
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute):
                    yield node.func.attr, ast.unparse(node.func.value)
                elif isinstance(node.func, ast.Name):
                    yield node.func.id, ""
            pending.extend(ast.iter_child_nodes(node))


def imported_names(tree: ast.Module) -> set[str]:
    """Modules that a program may import, as it names them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


class LoopRewriter(ast.NodeTransformer):
    """Puts the bodies of loops into `with` statements.

    Args:
        file: Name of the file, for what is compiled.
        names: The functions of the program that train.
        first: Number of the first loop.
    """

    def __init__(self, file: str, names: TrainingNames, first: int = 0) -> None:
        self.bodies: list[LoopBody] = []
        self._file = file
        self._names = names
        self._next_number = first
        self._scopes: list[str] = []
        self._classes: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Note the name of the function."""
        self._scopes.append(node.name)
        self.generic_visit(node)
        self._scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Note the name of the class."""
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()
        return node

    def visit_For(self, node: ast.For) -> ast.AST | list[ast.stmt]:
        """Rewrite a `for` loop."""
        return self._visit_loop(node, _names_in(node.target))

    def visit_While(self, node: ast.While) -> ast.AST | list[ast.stmt]:
        """Rewrite a `while` loop."""
        return self._visit_loop(node, ())

    def _visit_loop(self, node: Loop, targets: tuple[str, ...]) -> ast.AST | list[ast.stmt]:
        body = self._body(node, targets)
        self.generic_visit(node)
        if body is None:
            return node
        self.bodies.append(body)
        manager = ast.Name(body.name, ast.Load())
        watched = ast.With([ast.withitem(manager)], [_Next().visit(each) for each in node.body])
        entered = ast.Expr(ast.Call(ast.Attribute(manager, "entered", ast.Load()), [], []))
        node.body = [_placed(watched, node)]
        return [_placed(entered, node), node]

    def _body(self, node: Loop, targets: tuple[str, ...]) -> LoopBody | None:
        """What runs the body once more; None where it calls nothing, or cannot run by itself."""
        inside = [each for statement in node.body for each in ast.walk(statement)]
        if not any(isinstance(each, ast.Call) for each in inside):
            return None
        if any(
            isinstance(each, (ast.Yield, ast.YieldFrom, ast.Await, ast.Nonlocal)) for each in inside
        ):
            return None
        if any(isinstance(each, ast.Name) and each.id == "super" for each in inside):
            return None
        private = self._classes[-1] if self._classes else None
        again = [_BodyOnly(private).visit(_Next().visit(copy.deepcopy(each))) for each in node.body]
        once = ast.For(
            ast.Name("__nanreplay_once__", ast.Store()),
            ast.Tuple([ast.Constant(0)], ast.Load()),
            again,
            [],
        )
        module = ast.Module([_placed(once, node)], [])
        try:
            code = compile(ast.fix_missing_locations(module), self._file, "exec")
        except SyntaxError:
            return None
        code = code.replace(co_name=self._scopes[-1] if self._scopes else "<module>")
        names = tuple({each.id for each in inside if isinstance(each, ast.Name)})
        name = f"__nanreplay_loop_{self._next_number}__"
        self._next_number += 1
        return LoopBody(name, code, targets, names, self._names.trains(node.body))


def _names_in(target: ast.expr) -> tuple[str, ...]:
    return tuple(node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _placed(node: ast.stmt, loop: Loop) -> ast.stmt:
    """A statement of ours, on the line of the loop."""
    for each in ast.walk(node):
        if isinstance(each, (ast.stmt, ast.expr)) and not hasattr(each, "lineno"):
            ast.copy_location(each, loop)
            each.end_lineno, each.end_col_offset = loop.lineno, loop.col_offset
    return node


class _Next(ast.NodeTransformer):
    """`next` as a function of ours, so that a body that runs once more is given the same."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "next":
            node.func = ast.copy_location(ast.Name(NEXT, ast.Load()), node.func)
        return node


class _BodyOnly(ast.NodeTransformer):
    """A body out of its function: `return` ends it, and private names are written out."""

    def __init__(self, private: str | None) -> None:
        self._class = private
        self._is_nested = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        before, self._is_nested = self._is_nested, True
        self.generic_visit(node)
        self._is_nested = before
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if self._is_nested:
            return node
        value = ast.Expr(node.value or ast.Constant(None))
        end = ast.Raise(ast.Name(END, ast.Load()))
        return [ast.fix_missing_locations(ast.copy_location(each, node)) for each in (value, end)]

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if self._class is not None and node.attr.startswith("__") and not node.attr.endswith("__"):
            node.attr = f"_{self._class.lstrip('_')}{node.attr}"
        return node
