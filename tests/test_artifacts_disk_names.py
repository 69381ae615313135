"""What a disk does with names, and the names that are chosen by it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import names as disk_names
from artifacts.names import ORDINARY, NameRules, Naming, file_name, file_stems, one_name, rules_in
from tests.support.odd_disk import CASELESS, ENCRYPTED, FAT, MAC, UNFORMED, WINDOWS, Kind, forget
from tests.support.odd_disk import odd_disk as mounted

LETTERS = tuple(rf"\{each}" if each in "\\|?*" else each for each in '<>:"\\|?*')
CASE, FORMS = NameRules(folds=("case",)), NameRules(folds=("forms",))
NTFS = NameRules(
    folds=("case",), refused=(*LETTERS, "[\x01-\x1f]"), ends=". ", devices=True
)  # what lowntfs-3g answers with ignore_case and windows_names


def stems(*names: str, rules: NameRules) -> list[str]:
    return file_stems(names, Naming(lambda folder: rules))


@pytest.fixture(autouse=True)
def _probe_anew() -> None:
    forget()


def test_names_that_are_one_on_the_disk_get_numbers() -> None:
    assert stems("Cat.mp4", "cat.mp4", rules=CASE) == ["Cat.mp4", "cat.mp4-2"]
    assert stems("Cat.mp4", "cat.mkv", rules=CASE) == ["Cat.mp4", "cat.mkv"]
    assert stems("A/x.mp4", "a/x.mp4", "a/y.mp4", rules=CASE) == ["A/x.mp4", "a/x.mp4-2", "a/y"]
    assert stems("stra\u00dfe.mp4", "STRASSE.mkv", rules=CASE) == ["stra\u00dfe.mp4", "STRASSE.mkv"]
    assert stems("\u00e9.mp4", "e\u0301.mp4", "E\u0301.mp4", rules=FORMS) == [
        "\u00e9.mp4", "e\u0301.mp4-2", "E\u0301",
    ]  # fmt: skip
    assert stems("A.TXT/b.mp4", "a.mp4", rules=CASE) == ["A.TXT/b", "a-2"]
    heart = NameRules(folds=("joiners",))
    assert stems("\u2764\ufe0f.png", "\u2764.png", rules=heart) == [
        "\u2764\ufe0f.png",
        "\u2764.png-2",
    ]


def test_what_the_disk_refuses_is_replaced() -> None:
    odd = ("a:b.mp4", "a?b.mp4", "a_b.mkv", "AUX.mp4", "com1.short.mp4", "auxiliary.mp4")
    assert stems(*odd, rules=NTFS) == [
        "a_b.mp4", "a_b.mp4-2", "a_b.mkv", "_AUX", "_com1.short", "auxiliary",
    ]  # fmt: skip
    assert stems("day 1. /nul/x .mp4", "c\x07d..mp4", rules=NTFS) == ["day 1_/_nul/x ", "c_d."]
    ascii_only = NameRules(refused=("[\u0080-\u00ff]", "[\u0100-\ud7ff\ue000-\uffff]"))
    assert stems("\u8a9e\u00fc.mp4", "\u732b\u00fc.mp4", rules=ascii_only) == ["__.mp4", "__.mp4-2"]


def test_names_fit_a_disk_of_shorter_ones() -> None:
    short = NameRules(longest=143)
    found = stems("x" * 200 + ".mp4", "x" * 201 + ".mp4", "y" * 139 + ".mp4", rules=short)
    assert len(set(found)) == 3 and all(len(stem) <= 139 for stem in found)
    assert found[2] == "y" * 139


def test_folders_of_media_keep_their_names() -> None:
    """They are there, whatever their names are."""
    path = "/m/" + "\u8a9e" * 100 + "/Aux/a:b.mp4"
    (stem,) = file_stems([path], Naming(lambda folder: NTFS, beside=True))
    assert stem == path.removesuffix("a:b.mp4") + "a_b"


def test_an_ordinary_disk_changes_no_name(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert rules_in(tmp_path) is ORDINARY and sorted(tmp_path.iterdir()) == before
    odd = ["Cat.mp4", "cat.mp4", "\u00e9.mp4", "e\u0301.mp4", "a:b?.mp4", "aux.mp4", "d. /x .mp4"]
    assert stems(*odd, rules=ORDINARY) == [name.removesuffix(".mp4") for name in odd]
    name = "a" * 255
    assert file_name(name, tmp_path) == name and file_name(f"{name}.png", tmp_path).endswith(".png")
    (tmp_path / "Cat.txt").touch()
    assert one_name(tmp_path / "Cat.txt") == str(tmp_path / "Cat.txt")


def test_a_disk_is_probed_once_for_many_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[Path] = []

    def probe(folder: Path) -> NameRules:
        probed.append(folder)
        return ORDINARY

    monkeypatch.setattr(disk_names, "_probe", probe)
    assert rules_in(tmp_path, probe=False) is ORDINARY and probed == []
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        rules_in(tmp_path / str(number))
    assert probed == [tmp_path / "0"]
    monkeypatch.setattr(disk_names, "KEPT_SECONDS", 0.0)
    rules_in(tmp_path)
    assert len(probed) == 2


def test_a_folder_that_takes_no_files_counts_as_ordinary(tmp_path: Path) -> None:
    assert rules_in(tmp_path / "missing") is ORDINARY and not [*tmp_path.iterdir()]
    assert rules_in("/proc/self/task") is ORDINARY


def test_the_files_of_a_killed_process_go_with_the_next(tmp_path: Path) -> None:
    killing = (
        "import os, signal, sys\n"
        "from artifacts import names\n"
        "os.path.lexists = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "names.rules_in(sys.argv[1])\n"
    )
    ended = subprocess.run([sys.executable, "-c", killing, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".penstock-") and len(os.listdir(left)) == 4
    assert rules_in(tmp_path) is ORDINARY and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (CASELESS, CASE),
        (MAC, NameRules(folds=("forms", "case"))),
        (UNFORMED, FORMS),
        (WINDOWS, NTFS),
        (FAT, NameRules(folds=("case",), refused=NTFS.refused, ends=". ")),
        (ENCRYPTED, NameRules(longest=143)),
    ],
    ids=["caseless", "mac", "unformed", "windows", "fat", "encrypted"],
)
def test_a_disk_answers_for_itself(tmp_path: Path, kind: Kind, rules: NameRules) -> None:
    with mounted(tmp_path / "odd", kind) as disk:
        assert rules_in(disk) == rules
        assert not os.listdir(disk)


def test_a_file_is_known_by_each_of_its_names(tmp_path: Path) -> None:
    with mounted(tmp_path / "odd", MAC) as disk:
        (disk / "Caf\u00e9.txt").touch()
        names = ("Caf\u00e9.txt", "cafe\u0301.TXT", "CAF\u00c9.txt")
        unprobed = {one_name(disk / name) for name in names}
        assert len(unprobed) == 1 and one_name(disk / "cafe.txt") not in unprobed
        rules_in(disk)
        assert {one_name(disk / name) for name in names} == unprobed


def test_a_folder_that_ignores_case_is_probed_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `chattr +F` on ext4: the flag is read, and other folders do not count."""
    folded = tmp_path / "folded"
    folded.mkdir()

    def flags(handle: int, request: int, _: bytes) -> bytes:
        assert request == 0x80086601
        is_folded = os.path.samestat(os.fstat(handle), folded.stat())
        return (0x40080000 if is_folded else 0x80000).to_bytes(8, "little")

    monkeypatch.setattr("artifacts.names.fcntl.ioctl", flags)
    monkeypatch.setattr(disk_names, "_probe", lambda at: CASE if at == folded else ORDINARY)
    assert [rules_in(tmp_path), rules_in(folded), rules_in(tmp_path)] == [ORDINARY, CASE, ORDINARY]
