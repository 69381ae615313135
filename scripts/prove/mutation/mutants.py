"""Finds the places of a source file where a small fault can be planted, plants one, and chooses the
tests that are worth running against it.

A mutant is named by its file, the function that holds it, the kind of fault and its ordinal among
those of that kind in that function, so that it is found again after other code has moved. Faults
that no user could meet are not planted: annotations, decorators, docstrings, log messages, and the
inside of f-strings, whose positions Python 3.11 does not know, and methods of protocols.
"""

import ast
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = ("artifacts", "flows", "penstock", "penstock_demo", "stages")
WHOLE = ("penstock", "penstock_demo")
"""Packages that are drawn from as one."""
NEGATED = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not", ast.IsNot: "is", ast.In: "not in",
    ast.NotIn: "in", ast.Lt: ">=", ast.GtE: "<", ast.Gt: "<=", ast.LtE: ">",
}  # fmt: skip
SHIFTED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
COMMUTATIVE = ("max", "min")
LOGGERS = ("log", "logger", "_log", "LOG")

Edit = tuple[ast.AST, str]
"""The node that a fault replaces, and the text in its place."""


@dataclass(frozen=True, slots=True, order=True)
class Mutant:
    """One fault in one function."""

    file: str
    function: str
    """Qualified name in its module; a nested function counts to the one around it."""
    kind: str
    ordinal: int
    digest: str
    """Of the function's code, docstrings left out: another one means that the code has changed."""

    @property
    def code(self) -> tuple[str, str, str, int]:
        """What it is wherever its function lies: files are merged, split and moved."""
        return self.function, self.digest, self.kind, self.ordinal

    @property
    def name(self) -> str:
        """How results are filed."""
        return f"{self.file}:{self.function}:{self.kind}:{self.ordinal}"

    def row(self) -> dict[str, object]:
        return asdict(self)


def package_of(file: str) -> str:
    """Return the package that a file is drawn for: two names deep, `artifacts` and `stages` one."""
    parts = Path(file).parts
    return parts[0] if parts[0] in WHOLE or len(parts) == 2 else "/".join(parts[:2])


def sources(root: Path) -> list[str]:
    """Return the product's Python files, relative to `root`."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return sorted(str(path.relative_to(root)) for path in found)


def mutants_of(root: Path, file: str) -> dict[Mutant, Edit]:
    """Return every mutant of a file with the edit that plants it."""
    tree = ast.parse((root / file).read_bytes())
    found: dict[Mutant, Edit] = {}
    for name, owner, nodes in _functions(tree):
        digest = hashlib.sha256(_bare(owner).encode()).hexdigest()[:12]
        counts: dict[str, int] = {}
        for node in nodes:
            for kind, edit in _edits(node):
                ordinal = counts.setdefault(kind, 0)
                counts[kind] += 1
                found[Mutant(file, name, kind, ordinal, digest)] = edit
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A file with a fault in it."""

    data: bytes
    line: int
    text: str
    """The fault, for people."""


def planted(root: Path, mutant: Mutant) -> Planted | None:
    """Return the mutant's file with the fault in it; None where the function has changed since."""
    edit = mutants_of(root, mutant.file).get(mutant)
    if edit is None:
        return None
    node, text = edit
    data = (root / mutant.file).read_bytes()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
    end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
    return Planted(
        data=data[:begin] + text.encode() + data[end:],
        line=node.lineno,  # type: ignore[attr-defined]
        text=f"{ast.unparse(node)} → {text}",
    )


def drawn(
    root: Path,
    number: int,
    least: int,
    seed: int,
    *,
    shared: set[Mutant] | None = None,
    older: set[Mutant] | None = None,
) -> list[Mutant]:
    """Draw `number` mutants: `least` of each package that has so many, the rest from all. Of those
    in `shared` alone, or of those that are not in `older`, in whatever file they lie there."""
    random_ = random.Random(seed)
    wanted = None if shared is None else {each.code for each in shared}
    left_out = {each.code for each in older or ()}
    by_package = {
        name: [
            each
            for each in pool
            if each.code not in left_out and (wanted is None or each.code in wanted)
        ]
        for name, pool in _by_package(root).items()
    }
    chosen: set[Mutant] = set()
    for _, pool in sorted(by_package.items()):
        chosen.update(random_.sample(pool, min(least, len(pool))))
    rest = sorted({each for pool in by_package.values() for each in pool} - chosen)
    chosen.update(random_.sample(rest, max(0, min(number - len(chosen), len(rest)))))
    return sorted(chosen)


def redrawn(root: Path, before: Sequence[Mutant], seed: int) -> list[Mutant]:
    """Return the mutants of `before`; one whose code has changed is drawn anew in its package."""
    alive = _by_package(root)
    there = {each for pool in alive.values() for each in pool}
    kept = [each for each in before if each in there]
    random_ = random.Random(seed)
    for lost in (each for each in before if each not in there):
        pool = [
            each for each in alive.get(package_of(lost.file), sorted(there)) if each not in kept
        ]
        kept.append(random_.choice(pool))
    return sorted(kept)


def located(root: Path, mutants: Sequence[Mutant]) -> dict[Mutant, Mutant]:
    """Return each mutant as it lies below `root`: in its own file, or else in the first that has
    its function with the same code. One that is nowhere is left out."""
    there = all_mutants(root)
    by_code: dict[tuple[str, str, str, int], Mutant] = {}
    for each in sorted(there):
        by_code.setdefault(each.code, each)
    places = {each: each if each in there else by_code.get(each.code) for each in mutants}
    return {each: place for each, place in places.items() if place is not None}


def all_mutants(root: Path) -> set[Mutant]:
    """Return every mutant of the product."""
    return {each for pool in _by_package(root).values() for each in pool}


def _by_package(root: Path) -> dict[str, list[Mutant]]:
    """Return every mutant of the product, in a fixed order in each package."""
    found: dict[str, list[Mutant]] = {}
    for file in sources(root):
        found.setdefault(package_of(file), []).extend(sorted(mutants_of(root, file)))
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST, list[ast.AST]]]:
    """Yield every function, class body and the module: its name, its node, the nodes it owns."""
    pending: list[tuple[str, ast.AST]] = [("<module>", tree)]
    while pending:
        name, owner = pending.pop(0)
        own: list[ast.AST] = []
        is_function = isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef)
        # `...` is such an expression, too.
        if is_function and all(map(_is_docstring, getattr(owner, "body", []))):
            continue
        waiting = _children(owner)
        while waiting:
            node = waiting.pop(0)
            prefix = "" if name == "<module>" else f"{name}."
            if not is_function and isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            ):
                pending.append((f"{prefix}{node.name}", node))
                continue
            own.append(node)
            waiting[:0] = _children(node)
        yield name, owner, own


def _children(node: ast.AST) -> list[ast.AST]:
    """Return what of a node can hold a fault."""
    skipped: set[int] = set()
    for field in ("annotation", "returns", "decorator_list", "type_params"):
        value = getattr(node, field, None)
        skipped.update(id(each) for each in (value if isinstance(value, list) else [value]))
    if isinstance(node, ast.JoinedStr) or _is_docstring(node):
        return []
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return []
    return [child for child in ast.iter_child_nodes(node) if id(child) not in skipped]


def _edits(node: ast.AST) -> Iterator[tuple[str, Edit]]:
    """Yield the faults that can be planted at one node."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = ast.unparse(left), ast.unparse(right)
            yield "comparison", (node, f"({a} {NEGATED[type(op)]} {b})")
            if type(op) in SHIFTED:
                yield "boundary", (node, f"({a} {SHIFTED[type(op)]} {b})")
        case ast.Constant(value=bool(value)):
            yield "constant", (node, str(not value))
        case ast.Constant(value=int(number) | float(number)):
            yield "constant", (node, f"({number!r} + 1)")
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", (node, f"({ast.unparse(operand)})")
        case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call())) if not _logs(node.value):
            yield "call", (node, "pass")
        case ast.Call(func=called, args=[first, second, *_]) if _swappable(called, first, second):
            mine = ast.unparse(node)
            swapped = ast.parse(mine, mode="eval").body
            assert isinstance(swapped, ast.Call)
            swapped.args[0], swapped.args[1] = swapped.args[1], swapped.args[0]
            yield "argument", (node, ast.unparse(swapped))
        case ast.arguments():
            for default in (*node.defaults, *filter(None, node.kw_defaults)):
                if isinstance(default, ast.Constant) and default.value in (None, ""):
                    yield "default", (default, "1" if default.value is None else '"x"')


def _swappable(called: ast.expr, first: ast.expr, second: ast.expr) -> bool:
    starred = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
    same = ast.unparse(called) in COMMUTATIVE or ast.unparse(first) == ast.unparse(second)
    return not starred and not same


def _logs(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Await) else node
    return isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[0] in LOGGERS


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _bare(owner: ast.AST) -> str:
    """Return a function's code as it is compared between commits: without docstrings, the names of
    its own variables and the paths of what it imports; a class or module without its functions."""
    if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
        copied = ast.parse(ast.unparse(owner))
        for node in ast.walk(copied):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [each for each in body if not _is_docstring(each)]  # type: ignore[attr-defined]
        return ast.dump(_OwnNames().visit(copied))
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = [each for each in getattr(owner, "body", []) if not isinstance(each, defined)]
    return "\n".join(ast.dump(each) for each in body if not _is_docstring(each))


class _OwnNames(ast.NodeTransformer):
    """Numbers the variables that a function sets itself, and drops where its imports come from."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        stored = (
            each.id
            for each in ast.walk(node)
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        )
        for name in stored:
            self._numbers.setdefault(name, f"v{len(self._numbers)}")
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._numbers.get(node.id, node.id)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        node.module = ""
        return node


TESTS_PER_MUTANT = 12
SECONDS_PER_MUTANT = 40.0
OF_ONE_TEST = 3
"""Parametrizations of one test function that are run at most."""


def function_of(test: str) -> str:
    """Return the id of a test's function: a test's id without its row."""
    return test.partition("[")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """What a recorded run of the tests has shown."""

    seconds: dict[str, float]
    """How long each test took with the fixtures that were made for it, by its id."""
    callers: dict[str, list[str]]
    """The tests that call a function, by `file:function`."""
    breadth: dict[str, int]
    """How many functions a test calls."""

    def effort(self, test: str) -> float:
        """Return how much a test calls and takes: the less, the better it looks at one function."""
        return self.breadth[test] * (1 + self.seconds[test])

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Return the tests to run, the most likely to fail first: those named for the module, then
        those that call the fewest functions besides."""
        module = Path(mutant.file)
        own = f"tests/rooms/{module.parent}/test_{module.stem}"
        ranked = sorted(
            set(self._callers_of(mutant)),
            key=lambda test: (
                not test.startswith(own),
                self.effort(test),
                test,
            ),
        )
        return self._within_limits(ranked)

    def _callers_of(self, mutant: Mutant) -> Iterable[str]:
        if tests := self.callers.get(f"{mutant.file}:{mutant.function}"):
            return tests
        # A module's or a class's own code runs at import: whoever calls anything of the file.
        prefix = f"{mutant.file}:"
        if mutant.function != "<module>":
            prefix += f"{mutant.function}."
        return [
            test
            for name, tests in self.callers.items()
            if name.startswith(prefix)
            for test in tests
        ]

    def _within_limits(self, ranked: list[str]) -> list[str]:
        chosen: list[str] = []
        left, of_one = SECONDS_PER_MUTANT, Counter[str]()
        for test in ranked:
            function = function_of(test)
            if self.seconds[test] <= left and of_one[function] < OF_ONE_TEST:
                chosen.append(test)
                left -= self.seconds[test]
                of_one[function] += 1
            if len(chosen) == TESTS_PER_MUTANT:
                break
        return chosen


def collected(folder: Path) -> Contexts:
    """Put together what all processes of a recorded run have written."""
    seconds: dict[str, float] = {}
    for path in folder.glob("*.seconds"):
        for test, _, took in map(json.loads, path.read_text().splitlines()):
            seconds[test] = round(seconds.get(test, 0.0) + took, 3)
    callers: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.calls")):
        test = ""
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("\t"):
                test = line[1:]
            elif test in seconds:
                callers.setdefault(line, set()).add(test)
    breadth = Counter(test for tests in callers.values() for test in tests)
    ordered = {name: sorted(tests) for name, tests in callers.items()}
    return Contexts(seconds=seconds, callers=ordered, breadth=dict(breadth))
