"""Labels as people give them: in line, as lines, YAML and JSON."""

import json
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from flows.media.labels import label_set


def test_labels_in_line_stand_in_the_template() -> None:
    found = label_set("a red car, dog")
    assert found.names == ["a red car", "dog"]
    assert found.texts == [["a photo of a red car"], ["a photo of dog"]]


def test_a_file_has_a_label_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("# animals\ncat\n\n dog \n")
    forms = tmp_path / "forms.txt"
    forms.write_text("a {}\na drawing of a {}\n")
    found = label_set(str(path), str(forms))
    assert found.texts == [["a cat", "a drawing of a cat"], ["a dog", "a drawing of a dog"]]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_file_may_say_more_of_a_label(tmp_path: Path, form: str) -> None:
    told = {
        "animal": None,
        "cat": {"prompts": ["a cat", "a kitten"], "parent": "animal", "threshold": 0.3},
        "indoors": {"group": "place"},
        "outdoors": {"group": "place", "prompts": "in the open"},
    }
    path = tmp_path / f"labels.{form}"
    path.write_text(json.dumps(told))  # which is YAML, too
    animal, cat, indoors, outdoors = label_set(str(path)).labels
    assert cat.prompts == ("a cat", "a kitten") and cat.parent == "animal" and cat.threshold == 0.3
    assert (indoors.group, outdoors.prompts) == ("place", ("in the open",))
    assert animal.prompts == ("a photo of animal",)


def test_the_digest_is_of_all_that_decides(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    digests = set()
    for text in ("a:\nb:", "a:\nb: {threshold: 0.1}", "a:\nb: {group: g}", "a:\nb: {parent: a}"):
        path.write_text(text)
        digests.add(label_set(str(path)).digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("labels.txt", "cat\ndog\ncat\n", "'cat' is listed twice"),
        ("labels.txt", "\n# none\n", "no labels in"),
        ("labels.yaml", "cat: {colour: red}", "unknown settings: colour"),
        ("labels.yaml", "cat: {parent: animal}", "ancestor 'animal', which is no label"),
        ("labels.yaml", "a: {parent: b}\nb: {parent: a}", "its own ancestor"),
        ("labels.yaml", "cat: {threshold: 7}", "invalid threshold 7"),
        ("labels.yaml", "cat: {threshold: high}", "invalid threshold 'high'"),
        ("labels.yaml", "cat: {prompts: ['']}", "empty prompt"),
        ("labels.yaml", "cat: [", "cannot be parsed"),
        ("labels.yaml", "!!python/object/apply:os.getcwd []", "cannot be parsed"),
        ("labels.json", "7", "neither a list of labels"),
        ("labels.json", "{", "cannot be parsed"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        label_set(str(path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_label_and_no_template_is_refused(tmp_path: Path) -> None:
    for told in ("labels.txt", "", "a,,b", "/no/such/labels.yaml"):
        with pytest.raises(UsageError):
            label_set(told)
    (tmp_path / "forms.txt").write_text("a photo\n")
    with pytest.raises(UsageError, match="has no"):
        label_set("cat", str(tmp_path / "forms.txt"))
