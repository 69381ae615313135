"""What crosses a process or a room of `flows` is typed: mappings of names to anything stand only
where a document is what is handed on, and each of those places is listed here with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.machine.launch import ENTRIES
from scripts.wide_parameters import wide_parameters
from tests.test_project_layers import ROOT

LOOSE = {"dict[str, Any]", "Mapping[str, Any]", "Mapping[str, object]", "dict[str, object]"}


def modules(*patterns: str) -> list[Path]:
    """The files of the product that fit these patterns, once each."""
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


JOBS = modules(
    "stages/*/job.py", "stages/*/jobs.py", "stages/*/*_job.py", "stages/*/*/job.py",
    "stages/process/events.py",
    "stages/process/live.py", "stages/process/stage_process.py", "flows/machine/launch.py",
    "flows/running/stage_calls.py", "flows/serving/startup.py",
    "flows/serving/half*.py", "flows/serving/half_worker.py", "flows/serving/batching.py",
    "flows/serving/decoders.py", "flows/serving/frame_source.py",
)  # fmt: skip
"""Files of jobs, items, events, halves and live requests."""


def loose(annotation: ast.expr | None) -> bool:
    """Whether an annotation holds a mapping of names to anything."""
    return annotation is not None and any(
        ast.unparse(node) in LOOSE for node in ast.walk(annotation)
    )


def named(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every class and function of a module with its name in it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from named(node, f"{prefix}{node.name}.")


def signature(node: ast.AST) -> list[ast.expr | None]:
    """The annotations of a function's parameters and of what it returns."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [node.returns, *(each.annotation for each in every)]


def fields(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """The annotated names in a class's body."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    return [
        (each.target.id, each.annotation)
        for each in body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]


def in_jobs() -> set[str]:
    """Fields and signatures of the files of jobs that are loose."""
    found = set()
    for path in JOBS:
        place = path.relative_to(ROOT).as_posix()
        for name, node in named(ast.parse(path.read_text())):
            found |= {f"{place}:{name}.{field}" for field, of in fields(node) if loose(of)}
            if any(map(loose, signature(node))):
                found.add(f"{place}:{name}")
    return found


def across_rooms() -> set[str]:
    """Functions and public methods of `flows` with loose signatures that another room imports."""
    files = modules("flows/*/**/*.py")
    room = {path: path.relative_to(ROOT).parts[1] for path in files}
    taken: dict[str, set[str]] = {}
    for path in [*files, *modules("flows/*.py", "penstock/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flows."):
                for alias in node.names:
                    taken.setdefault(f"{node.module}:{alias.name}", set()).add(room.get(path, ""))
    found = set()
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name, node in named(ast.parse(path.read_text())):
            outer, _, method = name.partition(".")
            others = taken.get(f"{module}:{outer}", set()) - {room[path]}
            held = any(loose(of) for field, of in fields(node) if not field.startswith("_"))
            if others and not method.startswith("_") and (held or any(map(loose, signature(node)))):
                found.add(f"{path.stem}:{name}")
    return found


JOB_REASONS = {
    "JSON that is stored with what the job makes and compared whole": {
        "stages/export/jobs.py:CheckpointJob.recipe",
        "stages/tune/job.py:TuneJob.recipe",
    },
    "JSON, where it is made a job or was one": {
        "stages/process/job.py:_read",
        "stages/process/job.py:parse_job",
        "stages/process/job.py:job_fields",
        "stages/process/job.py:job_descriptor",
        "stages/process/job.py:read_job",
        "stages/process/job.py:value_in",
    },
    "facts of any stage for run.json": {"stages/process/events.py:StageNotes.values"},
    "key of a request → its answer, of any stage": {
        "flows/serving/half_spec.py:HalfWorkerSpec.answers",
        "flows/serving/half_spec.py:PublishedAnswers.answers",
        "flows/serving/startup.py:plan_half",
        "flows/serving/startup.py:read_and_drop",
        "flows/serving/startup.py:read_and_drop.answers",
        "flows/serving/half_worker.py:RequestQueue.answer",
    },
}
"""Reason → what of jobs is loose for it."""
ROOM_REASONS = {
    "what `--json` prints and files of results hold": {
        "query:Hit.to_json", "build:IndexWritten.row", "build:IndexWritten.to_json",
        "cache:Holding", "cache:Holding.to_json", "export_result:ExportFound",
        "export_result:Exported",
        "export_result:Exported.row", "export_result:Exported.to_json",
        "rebuild:RebuildResult.to_json",
        "run_result:RunResult.row", "run_result:RunResult.to_json", "rungs:Rung.to_json",
        "table_rows:table_rows", "tuned:AdapterScore", "tuned:AdapterScore.row",
        "tuned:AdapterScore.to_json", "tuned:Tuned", "tuned:Tuned.row", "tuned:Tuned.to_json",
        "vectors:VectorsWritten.row", "vectors:VectorsWritten.to_json", "writing:LabelsWritten",
        "writing:LabelsWritten.row", "writing:LabelsWritten.to_json",
        "writing:Sifted.row", "writing:Sifted.to_json",
    },
    "`run.json`, or parts of it": {
        "job_summary:computed_by", "job_summary:halves", "job_summary:summary",
        "choose:memory_json",
        "facts:facts", "media:media_with_lines", "media:failed_media",
        "media:path_of", "media:shown_medium", "plan:Plan.memory", "plan:figures",
        "recorded_command:is_own_command", "recorded_command:signed_command",
        "run_read:load_record", "run_read:load_record.prepared", "run_record:RunRecord.imported",
        "run_record:RunRecord.memory",
        "run_record:RunRecord.rung", "run_record:RunRecord.stage", "rungs:Rung.from_json",
        "start:plan_start", "status:advice", "status:output_paths", "status:stages_of",
        "status:description_lines", "run_status:run_status",
    },
    "what is stored of a record, as JSON": {
        "cache:sampling_text", "captions:caption_of", "ledger:Ledger.failure",
        "ledger:Ledger.refusal", "namespace_notes:settings_of", "summaries:Summaries.find",
        "text_scores:TextScores.find",
    },
    "a recipe, as JSON that is compared whole": {
        "export_result:note_parity", "export_result:placed_before",
        "export_result:awaits_acceptance",
        "tuned:refuse_other_recipe",
    },
    "a round's record, as JSON": {
        "learn:RecordedRun", "recorded:recorded_command", "recorded:recorded_run",
        "result:Learned.row", "result:Learned.to_json", "rounds:corrections_of", "rounds:exact",
        "rounds:loss_of", "rounds:summary_json",
    },
    "an action of a journal, and what the page of a review is sent": {
        "captions:ReviewedCaptions.add", "captions:ReviewedCaptions.apply",
        "captions:ReviewedCaptions.steps", "captions:edit_json",
    },
    "a file of measurements, as JSON": {
        "cpu:machine_identity",
    },
}  # fmt: skip
"""Reason → what is loose for it of what one room of `flows` takes from another: file and name."""


def test_jobs_items_events_and_live_requests_are_typed() -> None:
    assert in_jobs() == set().union(*JOB_REASONS.values())


def test_what_rooms_of_flows_take_from_each_other_is_typed_or_a_document() -> None:
    assert across_rooms() - set().union(*ROOM_REASONS.values()) == set()


def uses(function: ast.FunctionDef) -> list[str]:
    """What a function does with its first parameter: the names of what it is passed to, and the
    text of every other use."""
    name = function.args.args[0].arg
    passed = {
        id(given): ast.unparse(node.func)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        for given in node.args
    }
    return [
        passed.get(id(node), f"{ast.unparse(function)[:80]}: {name}")
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id == name
    ]


@pytest.mark.parametrize("stage", ENTRIES)
def test_the_json_of_a_job_is_made_a_job_where_it_arrives(stage: str) -> None:
    module, _, entry = ENTRIES[stage].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    (function,) = (n for _, n in named(tree) if getattr(n, "name", "") == entry)
    assert isinstance(function, ast.FunctionDef)
    assert uses(function) == ["parse_job"]


def test_a_field_read_from_json_would_be_seen() -> None:
    read = ast.parse("def run(job):\n    open(job['path'])\n    parse_job(Job, job)").body[0]
    assert isinstance(read, ast.FunctionDef)
    assert uses(read) != ["parse_job"] and "parse_job" in uses(read)


def test_few_parameters_take_a_whole_command() -> None:
    assert len(wide_parameters()) <= 20, "take the groups of options that are read"


def test_a_loose_parameter_would_be_seen() -> None:
    found = dict(
        named(ast.parse("class A:\n    x: list[dict[str, Any]]\n    def f(self, y: int): ..."))
    )
    assert any(loose(of) for _, of in fields(found["A"]))
    assert not any(map(loose, signature(found["A.f"])))
