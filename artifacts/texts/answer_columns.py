"""The columns of answers in tables and conditions."""

from collections.abc import Collection

from artifacts.disk.json_shapes import Json
from artifacts.texts.questions import QuestionAnswer, Questions

VALUE = {"yes-no": "number", "score": "number", "labels": "text", "tags": "text"}
"""Type of a question → type of its column in a condition."""


def columns_of(
    questions: Questions,
    tags: str = "texts",
    bounded: Collection[str] = (),
    calibrated: Collection[str] = (),
    before: str = "",
) -> dict[str, str]:
    """Return the columns of answers and their types: for each question its value, and `_p` and
    `_mass` behind its name; `_raw` for those that are `calibrated`, and `_bounded` for those with
    bounds. `tags`: the type of a column of tags; `before`: what stands before each name."""
    columns: dict[str, str] = {}
    for question in questions:
        name = f"{before}{question.name}"
        columns[name] = tags if question.type == "tags" else VALUE[question.type]
        if question.type in ("labels", "score"):
            columns[f"{name}_p"] = "number"
        if question.name in calibrated and question.type != "tags":
            columns[f"{name}_raw"] = "number"
        columns[f"{name}_mass"] = "number"
        if question.name in bounded:
            columns[f"{name}_bounded"] = "truth"
    return columns


def values_of_answer(name: str, answer: QuestionAnswer) -> dict[str, Json]:
    """Return the values of an answer in these columns. That of yes or no is the probability of
    yes."""
    common: dict[str, Json] = {f"{name}_mass": answer.mass}
    common |= {f"{name}_bounded": True} if answer.bounded else {}
    common |= {} if answer.raw is None else {f"{name}_raw": answer.raw}
    if answer.type == "tags":
        return {name: [*(answer.tags or ())], **common}
    if answer.type == "yes-no":
        return {name: answer.p, **common}
    shown: Json = answer.answer if answer.type == "labels" else answer.score
    return {name: shown, f"{name}_p": answer.p, **common}
