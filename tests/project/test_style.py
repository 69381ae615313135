"""The rules of CONTRIBUTING.md that one can read off the source hold, with the exceptions here."""

import ast
import re
from collections.abc import Iterator, Mapping

import pytest

from scripts.pages.api import public_classes
from tests.support.sources import PRODUCT, ROOT, nodes, sources

WRITTEN = (*PRODUCT, "scripts", "benchmarks")
MOST_LINES, MOST_PARAMETERS, MOST_OF_A_CLASS = 60, 7, 250
Function = ast.FunctionDef | ast.AsyncFunctionDef

ATTENTION = "transformers calls it: its attention functions have this signature"
LONG_FUNCTIONS: dict[str, str] = {}
"""Function → why it has more than MOST_LINES lines."""
WIDE_FUNCTIONS = {
    "stages/memory/meta_device.py:_fused": "torch calls it: the signature of its operator",
    "stages/models/graphs/onnx_encoder.py:packed_attention": ATTENTION,
    "stages/models/halves/boundary.py:_attention": ATTENTION,
    "stages/models/in_tree/cogvlm2/model.py:forward": "transformers calls it, as a model's forward",
    "stages/models/stored/kernel.py:_write_weight": "Triton takes each pointer and size by itself",
}
"""Function → why it takes more than MOST_PARAMETERS parameters."""
LARGE_CLASSES = {
    "flows/execution/pipeline_runner.py:PipelineRunner": "runs the stages of a job in order",
    "flows/execution/stage_runner.py:StageRunner": "runs one stage, rung by rung",
}
"""Class of more than MOST_OF_A_CLASS lines → its one role."""


def lines_of(node: Function | ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def parameters_of(function: Function) -> int:
    taken = function.args
    names = [argument.arg for argument in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def check(breaking: set[str], exceptions: Mapping[str, str]) -> None:
    """Fail with what breaks a rule, and with exceptions that are no longer needed."""
    assert sorted(breaking - exceptions.keys()) == []
    assert sorted(exceptions.keys() - breaking) == [], "remove these exceptions: nothing needs them"


def functions(*tops: str) -> Iterator[tuple[str, Function]]:
    found: list[tuple[str, Function]] = [*nodes(ast.FunctionDef, *tops)]
    found += nodes(ast.AsyncFunctionDef, *tops)
    yield from ((f"{path}:{function.name}", function) for path, function in found)


def test_no_function_has_more_lines_than_a_page() -> None:
    check(
        {name for name, function in functions(*WRITTEN) if lines_of(function) > MOST_LINES},
        LONG_FUNCTIONS,
    )


def test_no_function_takes_more_parameters_than_one_remembers() -> None:
    wide = {
        name for name, function in functions(*WRITTEN) if parameters_of(function) > MOST_PARAMETERS
    }
    check(wide, WIDE_FUNCTIONS)


def test_a_large_class_has_a_role_that_is_named() -> None:
    classes = [*nodes(ast.ClassDef, *WRITTEN)]
    assert len(classes) > 500
    large = {f"{path}:{kind.name}" for path, kind in classes if lines_of(kind) > MOST_OF_A_CLASS}
    check(large, LARGE_CLASSES)


def test_a_module_opens_with_a_sentence() -> None:
    silent = [
        source.path
        for source in sources(*WRITTEN)
        if source.tree.body
        and not is_sentence((ast.get_docstring(source.tree) or "").partition("\n\n")[0])
    ]
    assert silent == []


def is_sentence(text: str) -> bool:
    return text.endswith((".", ":")) and (text[0].isupper() or text[0] in "`'\"")


POSITIONAL = {
    "artifacts/options.py:Option": "help and heading stand first in each of 150 declarations",
    "artifacts/remote/endpoints.py:Endpoint": "the parts of an address in their order",
    "artifacts/remote/endpoints.py:EndpointKeys": "one field",
    "artifacts/texts/edits.py:Edits": "made without values",
    "flows/core/console/pace.py:ItemGroup": "first and last",
    "flows/core/machine/launch.py:ForkedOnGpu": "a process, a call and what starts it",
    "flows/core/machine/leases.py:Lease": "an object of a store",
    "flows/execution/run.py:VectorOutputs": "three functions in the order in which they are called",
    "flows/execution/stage_loop.py:StageLoop": "what a run hands down in one order",
    "flows/interfaces/studio/server.py:PageAddress": "a host and a port",
    "penstock/cells.py:Shown": "public since before the rule",
    "penstock/cells.py:ShownCaption": "public since before the rule",
    "stages/ask/run.py:Answer": "text first",
    "stages/ask/servers.py:Reply": "status and body, as in HTTP",
    "stages/decode/schema_bounds.py:SchemaPlace": "a root and a path below it",
    "stages/export/calibrate.py:_InputStats": "one field is given",
    "stages/models/processors/pixel_limit.py:PixelLimits": "image and video",
    "stages/process/device_limit.py:DeviceLimit": "a device and its bytes",
    "stages/process/events.py:StageNotes": "one field",
    "stages/process/memory_limit.py:MemoryLimit": "one field is given",
    "stages/tune/training.py:Trainer": "a half and its processor",
}
"""Dataclass whose fields are given by position → why."""
WITHOUT_SLOTS = {
    "artifacts/options.py:OptionGroup": "options are combined by inheritance",
    "flows/commands/export/options.py:ExportConfig": "options are combined by inheritance",
    "flows/commands/export/options.py:ExportRun": "options are combined by inheritance",
    "flows/commands/label/rows.py:LabelContext": "has cached properties",
    "flows/commands/label/rows.py:LabelRules": "has cached properties",
    "stages/decode/generation.py:SamplingParams": "options are combined by inheritance",
}
"""Dataclass outside of flows/core/options without slots → why."""
CHANGED_INSIDE = {
    "flows/commands/learn/decisions.py:Decisions": "its lists and dicts grow",
    "flows/commands/sift/vector_marks.py:VectorMarks": "its dict grows",
}
"""Dataclass whose fields are not assigned, and that is not frozen → why."""


def dataclasses() -> dict[str, tuple[ast.ClassDef, str]]:
    """Return each dataclass of the product with the arguments of its decorator."""
    classes = {}
    for path, node in nodes(ast.ClassDef, *PRODUCT):
        for decorator in map(ast.unparse, node.decorator_list):
            if decorator.split("(")[0].rpartition(".")[2] == "dataclass":
                classes[f"{path}:{node.name}"] = node, decorator
    return classes


def test_values_are_keyword_only_and_slotted() -> None:
    known = dataclasses()
    assert len(known) > 300
    check({name for name, (_, how) in known.items() if "kw_only=True" not in how}, POSITIONAL)
    loose = {name for name, (_, how) in known.items() if "slots=True" not in how}
    check({name for name in loose if not name.startswith("flows/core/options/")}, WITHOUT_SLOTS)


def test_a_value_whose_fields_nobody_assigns_is_frozen() -> None:
    assigned = {
        node.attr
        for _, node in nodes(ast.Attribute, *PRODUCT)
        if not isinstance(node.ctx, ast.Load)
    }
    still = {
        name
        for name, (node, how) in dataclasses().items()
        if "frozen=True" not in how and not {*fields_of(node)} & assigned
    }
    check(still, CHANGED_INSIDE)


def fields_of(kind: ast.ClassDef) -> dict[str, bool]:
    """Return the fields of a class, and whether each has its docstring beneath it."""
    below = [*kind.body[1:], ast.Pass()]
    return {
        ast.unparse(each.target): isinstance(then, ast.Expr)
        and isinstance(then.value, ast.Constant)
        for each, then in zip(kind.body, below, strict=True)
        if isinstance(each, ast.AnnAssign) and "ClassVar" not in ast.unparse(each.annotation)
    }


UNEXPLAINED = {
    "AdapterScore.score": "the record's own page explains it",
    "Exported.parity": "the record's own page explains it",
    "TuneResult.out": "the folder that was given",
    "Tuned.record": "the record's own page explains it",
}
"""Public field without a docstring → why."""


def test_a_public_field_has_its_docstring() -> None:
    declared = {
        (path.removesuffix(".py").removesuffix("/__init__").replace("/", "."), node.name): node
        for path, node in nodes(ast.ClassDef, *PRODUCT)
    }
    public = {declared[kind.__module__, kind.__qualname__] for kind in public_classes()}
    assert len(public) > 20
    silent = {f"{k.name}.{name}" for k in public for name, has in fields_of(k).items() if not has}
    check(silent, UNEXPLAINED)


def test_each_option_has_its_docstring() -> None:
    silent, options = [], 0
    for path, node in nodes(ast.ClassDef, "flows"):
        if not path.startswith(("flows/core/options/", "flows/commands/")):
            continue
        declared = {
            ast.unparse(statement.target)
            for statement in node.body
            if isinstance(statement, ast.AnnAssign)
            and statement.value
            and "Option(" in ast.unparse(statement)
        }
        options += len(declared)
        silent += [f"{path}:{n}" for n, has in fields_of(node).items() if n in declared and not has]
    assert options > 100 and silent == []


def test_behaviour_is_chosen_without_metaclasses() -> None:
    for path, node in nodes(ast.ClassDef, *PRODUCT):
        assert "metaclass" not in {each.arg for each in node.keywords}, path
        names = {each.name for each in node.body if isinstance(each, Function)}
        assert "__init_subclass__" not in names, path


NO_HINT = {
    "artifacts/records/tensors.py:_pack_mapping": "a fault of the program, which nobody can act on",
    "flows/interfaces/studio/runs.py:plan_of": "the message is another command's, with its hint",
    "stages/frames/cut.py:_encoded": "the caller says what to do",
}
"""Function whose error has no hint → why."""
ERRORS = ("UsageError", "CannotFit", "EnvironmentFault", "MediaError", "PenstockError")


def called(call: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_an_error_says_what_to_do() -> None:
    silent, raised = set(), 0
    for name, function in functions(*PRODUCT):
        for node in ast.walk(function):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and called(call) in ERRORS:
                raised += 1
                if "hint" not in {each.arg for each in call.keywords}:
                    silent.add(name)
    assert raised > 400
    check(silent, NO_HINT)


PRINTING = (
    "penstock/",
    "penstock_demo/",
    "flows/commands/",
    "flows/interfaces/",
    "flows/core/console/",
)
"""Where the command line and the demo's scripts are."""
CONFIGURING = ("basicConfig", "dictConfig", "fileConfig")


def test_only_commands_and_their_console_print() -> None:
    for path, node in nodes(ast.Call, *PRODUCT):
        assert called(node) != "print" or path.startswith(PRINTING), f"{path}:{node.lineno}"
        assert called(node) not in CONFIGURING, f"{path}:{node.lineno}"


IN_PLACE = {
    "artifacts/records/stores/copies.py": "a copy under a temporary name, which is replaced",
    "flows/interfaces/ray/run.py": "/dev/null",
    "flows/interfaces/serve/job_runner.py": "a log",
    "flows/interfaces/studio/runs.py": "a log",
    "penstock_demo/clips.py": "the demo's own data, made before a release",
    "penstock_demo/dual/pictures.py": "the demo's own data, made before a release",
    "penstock_demo/dual/train.py": "the demo's own data, made before a release",
    "penstock_demo/train.py": "the demo's own data, made before a release",
    "stages/models/halves/load.py": "a temporary folder",
}
"""Module that writes a file without `artifacts.disk.files` → what it writes."""


def test_files_are_written_by_the_one_module_that_makes_them_last() -> None:
    writing = set()
    for path, node in nodes(ast.Call, *PRODUCT):
        is_open = called(node) == "open" and isinstance(node.func, ast.Name) and node.args[1:]
        mode = ast.unparse(node.args[1]) if is_open else ""
        if "w" in mode or (
            called(node) in ("write_text", "write_bytes") and isinstance(node.func, ast.Attribute)
        ):
            writing.add(path)
    check(writing, IN_PLACE)


def test_a_test_of_a_room_lies_at_the_path_of_what_it_tests() -> None:
    folders = [path for path in (ROOT / "tests" / "rooms").rglob("*") if path.is_dir()]
    rooms = [path.relative_to(ROOT / "tests" / "rooms") for path in folders]
    assert [
        room for room in rooms if room.name != "__pycache__" and not (ROOT / room).is_dir()
    ] == []
    known = {"attacks", "commands", "families", "pages", "processes", "project", "rooms", "support"}
    files = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    assert {path.parts[0] for path in files} <= known


def test_fakes_are_written_by_hand() -> None:
    files = [
        path for top in ("tests", "scripts", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ]
    mocks = re.compile(r"\b(Magic|Async)?Mock\(")
    assert [path for path in files if mocks.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("source", "lines", "parameters"),
    [("def f(self, a, /, b, *, c): pass", 1, 3), ("async def f(a,\n b=1, **c):\n pass", 3, 2)],
)
def test_lines_and_parameters_are_counted(source: str, lines: int, parameters: int) -> None:
    (function,) = ast.parse(source).body
    assert isinstance(function, Function)
    assert (lines_of(function), parameters_of(function)) == (lines, parameters)


def test_an_exception_that_nothing_needs_fails() -> None:
    check({"a"}, {"a": "why"})
    for found, exceptions in (({"a"}, {}), (set(), {"a": "why"})):
        with pytest.raises(AssertionError):
            check(found, exceptions)
