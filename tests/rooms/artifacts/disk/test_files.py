"""Unfinished files of killed processes are deleted, those of living ones are not."""

from pathlib import Path

from artifacts.disk.files import HALF, OURS, sweep, whole_file
from flows.outputs.folder.run_lock import only_run_in


def test_a_run_deletes_unfinished_files_that_no_process_writes(tmp_path: Path) -> None:
    for name in (f"{HALF}x7f3k_1a", OURS, "mine.txt"):
        (tmp_path / name).write_bytes(b"half")
    with whole_file(tmp_path / "new") as file:
        file.write(b"whole")
        with only_run_in(tmp_path, "captioning into", ""):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {OURS, "mine.txt", "new", ".lock"}


def test_no_link_out_of_an_output_folder_is_followed(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / f"{HALF}x7f3k_1a").write_bytes(b"half")
    with only_run_in(tmp_path / "out", "captioning into", ""):
        (tmp_path / "out" / "texts").symlink_to(elsewhere)
        sweep(tmp_path / "out" / "texts")
    assert [*elsewhere.iterdir()]
