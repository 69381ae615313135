"""A stage's name stands in its own package, in the pipelines and in the costs; everywhere else what
is to be known of a stage is asked of its declaration."""

import ast
from collections.abc import Iterator
from pathlib import Path

from flows.pipelines import STAGES

ROOT = Path(__file__).resolve().parent.parent
HOMES = ("flows/pipelines.py", "flows/planning/costs/", *(f"stages/{name}/" for name in STAGES))
OTHERS = {
    "artifacts/schema.py": "frames",
    "artifacts/tables.py": "frames",
    "artifacts/trainers/musubi.py": "frames",
    "flows/cli/embed_command.py": "embed",
    "flows/cli/export_command.py": "export",
    "flows/cli/index_command.py": "embed",
    "flows/cli/main.py": "embed export tune",
    "flows/cli/parsing.py": "calibrate",
    "flows/cli/train_plan.py": "frames",
    "flows/cli/tune_command.py": "tune",
    "flows/deployments/embed.py": "embed",
    "flows/deployments/samples.py": "frames",
    "flows/deployments/schema.py": "embed",
    "flows/job/command_config.py": "embed frames",
    "flows/job/config.py": "frames",
    "flows/planning/architecture.py": "embed",
    "flows/planning/plan.py": "frames",
    "flows/planning/plan_view.py": "frames",
    "flows/results/export_read.py": "frames",
    "flows/results/foreign_files.py": "embed",
    "flows/results/report/parity.py": "frames",
    "flows/running/run.py": "embed",
    "flows/running/tune.py": "tune",
    "flows/serving/labelling.py": "frames",
    "flows/upkeep/cache.py": "frames",
    "stages/models/__init__.py": "encode",
    "stages/models/encoding/chunks.py": "frames",
    "stages/models/encoding/run.py": "frames",
}
"""Where the same word is how many frames there are, the kind of records that hold them, the public
function `encode`, the commands `embed` and `export` and their pipelines, an option, or a piece of a
tensor's name."""


def uses() -> Iterator[tuple[str, str]]:
    """File and name, for each that is quoted or is a constant of the pipelines' own making."""
    for top in ("artifacts", "flows", "stages"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if not name.startswith(HOMES):
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                    word = _word(node)
                    if word in STAGES and word not in OTHERS.get(name, "").split():
                        yield name, word


def _word(node: ast.AST) -> str:
    """What is quoted; of a constant in capitals, such as DECODE or decode.STAGE, what it names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute) and node.attr == "STAGE":
        return node.value.id if isinstance(node.value, ast.Name) else ""
    if isinstance(node, ast.Name) and node.id.isupper():
        return node.id.lower()
    return ""


def test_few_places_name_a_stage() -> None:
    found = list(uses())
    assert len(found) <= 10 and len({name for name, _ in found}) <= 4, found


def test_the_names_are_found_where_they_are_at_home() -> None:
    text = (ROOT / "flows/planning/costs/__init__.py").read_text(encoding="utf-8")
    words = {_word(node) for node in ast.walk(ast.parse(text))}
    assert set(STAGES) <= words
    quoted = '"decode", DECODE, decode.STAGE'
    assert [_word(node) for node in ast.parse(quoted, mode="eval").body.elts] == ["decode"] * 3  # type: ignore[attr-defined]
