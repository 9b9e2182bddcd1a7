"""Finding the loops of a program that train in Python, and putting their bodies under watch.

Where an eager step begins cannot be seen from outside: no function is called for it. `nanreplay
run` compiles the program itself (`loops`), and puts the body of each loop that calls anything into
a `with` statement. Line numbers, variables and what the body does stay as they are:

    for batch in data:                 __nanreplay_loop_0__.entered()
        train(batch)          becomes  for batch in data:
                                           with __nanreplay_loop_0__:
                                               train(batch)

Which loops train is told from the text, so that their first iteration is seen: by calls of
`tape.gradient`, of optimizers and `assign`, and of functions of the program that make them.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
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
        """Add the functions of a module.

        A function that calls one that trains, trains: the functions are gone through again until
        none is added. With `def b(): a()` before `def a(): tape.gradient(...)`, the first pass adds
        `a`, the second `b`, and the third nothing.
        """
        functions = []
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                functions.append(node)
        count_before = -1
        count = len(self.gradients) + len(self.updates)
        while count != count_before:
            for function in functions:
                computes, applies = self._does(function.body)
                if computes:
                    self.gradients.add(function.name)
                if applies:
                    self.updates.add(function.name)
            count_before = count
            count = len(self.gradients) + len(self.updates)

    def trains(self, body: Sequence[ast.stmt]) -> bool:
        """Whether statements compute and apply gradients, other than in a loop that does both."""
        return all(self._does(body))

    def _does(self, body: Sequence[ast.stmt]) -> tuple[bool, bool]:
        """(computes gradients, applies them)."""
        calls = list(self._calls(body))
        computes = any(name in _GRADIENTS or name in self.gradients for name, _ in calls)
        applies = any(self._applies(name, owner, computes) for name, owner in calls)
        return computes, applies

    def _applies(self, name: str, owner: str, computes: bool) -> bool:
        """Whether a call applies gradients, in statements that compute some or do not.

        Many things have an `apply`, and many programs `assign`.
        """
        if name in _UPDATES or name in self.updates:
            return True
        if name == "apply":
            return "opt" in owner.lower()
        return name in _ASSIGNMENTS and computes

    def _calls(self, body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
        """(name, text of the owner) of what is called.

        Left out is what is in functions that are only defined, and in loops that train themselves.
        """
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
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # What is imported from a package may be a module of it.
            names.add(node.module)
            for alias in node.names:
                names.add(f"{node.module}.{alias.name}")
    return names


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
        """Names of the functions around the node that is visited, outermost first."""
        self._classes: list[str] = []
        """Names of the classes around it."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Note the name of the function."""
        self._scopes.append(node.name)
        self.generic_visit(node)
        self._scopes.pop()
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Note what `next` gives, in whichever function a body calls."""
        return _NextCalls().visit_Call(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Note the name of the class."""
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()
        return node

    def visit_For(self, node: ast.For) -> ast.AST | list[ast.stmt]:
        """Rewrite a `for` loop."""
        names = tuple(part.id for part in ast.walk(node.target) if isinstance(part, ast.Name))
        return self._visit_loop(node, names)

    def visit_While(self, node: ast.While) -> ast.AST | list[ast.stmt]:
        """Rewrite a `while` loop."""
        return self._visit_loop(node, ())

    def _visit_loop(self, node: Loop, targets: tuple[str, ...]) -> ast.AST | list[ast.stmt]:
        body = self._body(node, targets)  # before the loops within it are rewritten
        self.generic_visit(node)
        if body is None:
            return node
        self.bodies.append(body)
        manager = ast.Name(body.name, ast.Load())
        statements = [_NextCalls().visit(statement) for statement in node.body]
        watched = ast.With([ast.withitem(manager)], statements)
        entered = ast.Expr(ast.Call(ast.Attribute(manager, "entered", ast.Load()), [], []))
        node.body = [_placed(watched, node)]
        return [_placed(entered, node), node]

    def _body(self, node: Loop, targets: tuple[str, ...]) -> LoopBody | None:
        """What runs the body once more; None where it calls nothing, or cannot run by itself."""
        parts = list(chain.from_iterable(map(ast.walk, node.body)))
        if not any(isinstance(part, ast.Call) for part in parts) or not _can_run_alone(parts):
            return None
        try:
            code = self._code_of_body(node)
        except SyntaxError:
            return None
        code = code.replace(co_name=self._scopes[-1] if self._scopes else "<module>")
        names = tuple({part.id for part in parts if isinstance(part, ast.Name)})
        name = f"__nanreplay_loop_{self._next_number}__"
        self._next_number += 1
        return LoopBody(name, code, targets, names, self._names.trains(node.body))

    def _code_of_body(self, node: Loop) -> CodeType:
        """The body in a loop of one iteration, so that `break` and `continue` end it.

        Raises:
            SyntaxError: It cannot stand outside of its function.
        """
        class_name = self._classes[-1] if self._classes else None
        statements = []
        for statement in node.body:
            own = _NextCalls().visit(copy.deepcopy(statement))
            statements.append(_BodyOnly(class_name).visit(own))
        target = ast.Name("__nanreplay_once__", ast.Store())
        once = ast.For(target, ast.Tuple([ast.Constant(0)], ast.Load()), statements, [])
        module = ast.fix_missing_locations(ast.Module([_placed(once, node)], []))
        code: CodeType = compile(module, self._file, "exec")
        return code


def _can_run_alone(parts: Sequence[ast.AST]) -> bool:
    """Whether statements mean the same outside of their function, given all their parts."""
    for part in parts:
        if isinstance(part, (ast.Yield, ast.YieldFrom, ast.Await, ast.Nonlocal)):
            return False
        if isinstance(part, ast.Name) and part.id == "super":
            return False
    return True


def _placed(node: ast.stmt, loop: Loop) -> ast.stmt:
    """A statement of ours, on the line of the loop."""
    for part in ast.walk(node):
        if isinstance(part, (ast.stmt, ast.expr)) and not hasattr(part, "lineno"):
            ast.copy_location(part, loop)
            part.end_lineno, part.end_col_offset = loop.lineno, loop.col_offset
    return node


class _NextCalls(ast.NodeTransformer):
    """`next` as a function of ours, so that a body that runs once more is given the same."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "next":
            node.func = ast.copy_location(ast.Name(NEXT, ast.Load()), node.func)
        return node


class _BodyOnly(ast.NodeTransformer):
    """A body out of its function: `return` ends it, and private names are written out."""

    def __init__(self, class_name: str | None) -> None:
        self._class_name = class_name
        self._is_nested = False
        """Whether the node that is visited is in a function of the body's own."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        was_nested, self._is_nested = self._is_nested, True
        self.generic_visit(node)
        self._is_nested = was_nested
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if self._is_nested:
            return node
        value = ast.Expr(node.value or ast.Constant(None))
        end = ast.Raise(ast.Name(END, ast.Load()))
        statements: list[ast.stmt] = [value, end]
        for statement in statements:
            ast.fix_missing_locations(ast.copy_location(statement, node))
        return statements

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        # Python does this itself within a class: `self.__x` in class A is `self._A__x`.
        self.generic_visit(node)
        is_private = node.attr.startswith("__") and not node.attr.endswith("__")
        if self._class_name is not None and is_private:
            node.attr = f"_{self._class_name.lstrip('_')}{node.attr}"
        return node
