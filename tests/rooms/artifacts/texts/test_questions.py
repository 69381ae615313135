"""Questions as files give them, their probes, and answers from log probabilities."""

import json
import math

import pytest

from artifacts.errors import UsageError
from artifacts.texts.questions import (
    QuestionProbe,
    answer_of,
    canonical,
    read_questions,
    stated_scores,
)

FILE = """
[watermark]
text = "Is there a watermark?"

[shot]
text = "How is this framed?"
labels = ["close-up", "wide shot"]

[quality]
text = "How sharp is it?"
score = 3

[things]
text = "Is there {} in it?"
tags = ["a car", "a dog"]
threshold = 0.6
"""


def test_the_fields_of_a_question_decide_its_type_and_its_probes() -> None:
    questions = read_questions(FILE, "q.toml")
    assert [one.type for one in questions] == ["yes-no", "labels", "score", "tags"]
    assert [[probe.labels for probe in one.probes] for one in questions] == [
        [("Yes", "No")],
        [("close-up", "wide shot")],
        [("1", "2", "3")],
        [("Yes", "No"), ("Yes", "No")],
    ]
    prompts = [probe.prompt.partition("\n") for one in questions for probe in one.probes]
    assert [text for text, _, _ in prompts] == [
        "Is there a watermark?",
        "How is this framed?",
        "How sharp is it?",
        "Is there a car in it?",
        "Is there a dog in it?",
    ]
    assert prompts[1][2] == "Answer with one of these only: close-up, wide shot."
    assert read_questions(canonical(questions), "json") == questions


def test_an_empty_instruction_leaves_the_text_as_it_is() -> None:
    table = {"a": {"text": "Go on.", "labels": ["x, y", "z"], "instruction": ""}}
    (question,) = read_questions(json.dumps(table), "q.json")
    assert question.probes == (QuestionProbe(prompt="Go on.", labels=("x, y", "z")),)
    assert QuestionProbe.of(question.probes[0].text) == question.probes[0]
    assert question.probes[0].text != QuestionProbe(prompt="Go on.", labels=("x", "y, z")).text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("[a", "neither TOML nor JSON"),
        ('{"a": ', "neither TOML nor JSON"),
        ('[a]\ntext = " "', "a: it has no text"),
        ('[A]\ntext = "x"', "invalid name"),
        ('[a]\ntext = "x"\nlabel = ["y"]', "unknown field label"),
        ('[a]\ntext = "x"\nscore = 3\nlabels = ["y", "z"]', "labels and score exclude each other"),
        ('[a]\ntext = "x"\nscore = true', "invalid score True"),
        ('[a]\ntext = "x"\nscore = 11', "invalid score 11"),
        ('[a]\ntext = "x"\nlabels = ["y"]', "1 labels"),
        ('[a]\ntext = "x"\nlabels = ["y", "y "]', "'y' is twice among labels"),
        ('[a]\ntext = "x"\nlabels = ["y", 3]', "no list of texts"),
        ('[a]\ntext = "x\\u0000"', "control character"),
        ('[a]\ntext = "x"\nlabels = ["y\\u001e", "z"]', "control character"),
        ("a = 3", "a: it is no table"),
        ("a = 2026-01-01", "a: it is no table"),
        ("[a]\ntext = 2026-01-01", "a: it has no text"),
        ('[a]\ntext = "x?"\nlabels = [2026-01-01, "y"]', "no list of texts"),
        ('[a]\ntext = "x?"\nscore = 2026-01-01', "invalid score"),
        ('[a]\ntext = "x {}"\ntags = ["y"]\nthreshold = 07:30:00', "threshold is no number"),
        ('{"a": "x?", "a": "y?"}', "'a' is there twice"),
        ('[a]\ntext = "Is there {}?"', "there are no tags"),
        ('[a]\ntext = "x"\ntags = ["y"]', "no {}"),
        ('[a]\ntext = "x {}"\ntags = ["y"]\nthreshold = 2', "invalid threshold 2"),
        ('[a]\ntext = "x"\nthreshold = 0.5', "invalid threshold 0.5"),
        ('[a]\ntext = "x"\ninstruction = 3', "instruction is no text"),
        (json.dumps({"a": {"text": "x", "labels": [str(n) for n in range(5000)]}}), "5,000 labels"),
        (json.dumps({"a": {"text": "{}", "tags": [str(n) for n in range(5000)]}}), "5,000 tags"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=r"q\.toml") as refused:
        read_questions(text, "q.toml")
    assert message in refused.value.message and refused.value.hint


OF_ANY_SCRIPT = (
    r"\right or C:\bus?",
    "Un chien\u00a0?",
    "\U0001f468\u200d\U0001f469?",
    "\u4f60\u3000\u597d",
    "a\tb",
)


@pytest.mark.parametrize("text", OF_ANY_SCRIPT)
def test_texts_of_any_script_are_taken_as_they_are(text: str) -> None:
    (question,) = read_questions(json.dumps({"a": text}), "q.json")
    assert question.type == "yes-no" and question.probes[0].prompt.startswith(text)


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_answers_are_normalized_and_their_mass_is_kept() -> None:
    yes_no, labels, score, tags = read_questions(FILE, "q.toml")
    assert answer_of(yes_no, [logs(0.06, 0.02)]).to_json() == {
        "type": "yes-no",
        "answer": "Yes",
        "p": 0.75,
        "mass": 0.08,
    }
    assert answer_of(labels, [logs(0.1, 0.4)]).to_json() == {
        "type": "labels",
        "answer": "wide shot",
        "p": 0.8,
        "margin": 0.6,
        "probabilities": {"close-up": 0.2, "wide shot": 0.8},
        "mass": 0.5,
    }
    rated = answer_of(score, [logs(0.25, 0.25, 0.5)])
    assert (rated.answer, rated.score, rated.mass) == ("3", 2.25, 1.0)
    assert rated.deviation == pytest.approx(math.sqrt(0.25 * 1.5625 + 0.25 * 0.0625 + 0.5 * 0.5625))
    tagged = answer_of(tags, [logs(0.55, 0.45), logs(0.07, 0.03)])
    assert tagged.tags == ("a dog",) and tagged.probabilities == {"a car": 0.55, "a dog": 0.7}
    assert tagged.mass == 0.1


def test_an_answer_about_several_chunks_is_that_of_their_mean_probabilities() -> None:
    labels = read_questions(FILE, "q.toml")[1]
    whole = answer_of(labels, [logs(0.9, 0.1)], [logs(0.002, 0.008)])
    assert whole.probabilities == {"close-up": 0.55, "wide shot": 0.45}
    assert whole.answer == "close-up" and whole.mass == 0.01


def test_probabilities_below_what_a_float_holds_give_an_answer() -> None:
    answer = answer_of(read_questions(FILE, "q.toml")[0], [[-900.0, -901.0]])
    assert answer.p == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-6) and answer.mass == 0.0


def test_bounds_that_are_all_the_same_are_no_log_probabilities() -> None:
    tie = logs(0.5, 0.5)
    assert stated_scores({"scores": tie}) == tie
    assert stated_scores({"scores": tie, "bounded": False}) == tie
    assert stated_scores({"scores": tie, "bounded": True}) == ()
    assert stated_scores({"scores": logs(0.5, 0.1), "bounded": True}) == logs(0.5, 0.1)


def test_a_tag_without_log_probabilities_is_no_tag_and_has_no_probability() -> None:
    tags = read_questions(FILE, "q.toml")[3]
    answer = answer_of(tags, [(), logs(0.07, 0.03)], is_bounded=True)
    assert (answer.tags, answer.probabilities) == (("a dog",), {"a dog": 0.7})
    assert answer.mass == 0.1 and answer.bounded
    several = answer_of(tags, [(), logs(0.07, 0.03)], [logs(0.6, 0.4), ()])
    assert several.probabilities == {"a car": 0.6, "a dog": 0.7}
