"""Captions in a notebook: what a cell shows, and corrections without a server."""

import base64
import io
import re
import shutil
import time
from pathlib import Path
from typing import Any

import nbformat
import pandas
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient
from PIL import Image

import penstock
from artifacts.errors import UsageError
from flows.commands.tune.training_data import examples_in
from flows.core.console.lines import obeys_control_codes
from penstock.arguments import display_for
from tests.support.pipeline import read_lines

CELLS = (
    """
import sys, penstock, penstock_demo
clips = sorted(penstock_demo.CLIPS.glob("*.mp4"))[:2]
run = penstock.caption(clips, model="demo", out="out", store="store")
rows = list(run)
""",
    "run",
    """
first = (rows[0].media_path, rows[0].start)
print(penstock.correct("out", {first: "A text of mine."}))
print([row.caption for row in penstock.caption(clips, model="demo", out="out", store="store")])
""",
    """
where = "--model demo --out other --store store"
!{sys.executable} -m penstock caption {clips[0]} {where} --prompt "What moves?"
""",
    "penstock.show('out')",
)


def kept_run(folder: Path) -> Path:
    """A folder with captions of two pictures and one that failed."""
    media = folder / "media"
    media.mkdir()
    for name, colour in (("a & b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (64, 48), colour).save(media / name)
    (media / "d.png").write_text("no picture")
    out = folder / "out"
    run = penstock.caption(media, model="demo", out=out, store=folder / "store")
    assert len(list(run)) == 2
    assert repr(run) == repr(penstock.show(out, most=5))
    return out


def test_captions_are_shown_corrected_rejected_and_written(tmp_path: Path) -> None:
    out = kept_run(tmp_path)
    lines = repr(penstock.show(out)).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a & b.png", "c.png", LAST, "d.png"]
    table = penstock.show(out, most=1)._repr_html_()
    (picture,) = pictures(table)
    assert picture.size == (64, 48) and "a &amp; b.png" in table and "c.png" not in table
    with pytest.raises(UsageError, match=r"no caption of \('e.png', 0.0\)"):
        penstock.correct(out, {("c.png", 0.0): "Mine.", ("e.png", 0.0): "Mine."})
    for texts, words in WRONG:
        with pytest.raises(UsageError, match=words) as refused:
            penstock.correct(out, texts)
        assert "\n" not in str(refused.value) and "Give " in str(refused.value)
    with pytest.raises(UsageError, match=r"the text of \('c.png', 0.0\): a caption has at most"):
        penstock.correct(out, {("c.png", 0.0): "a" * 70_000, ("a & b.png", 0.0): None})
    assert penstock.correct(out, {("c.png", 0.0): "Mine.", ("a & b.png", 0.0): None}) == 2
    shown = penstock.show(out)
    states = [each.review for each in shown.captions]
    assert states == ["rejected, not written yet", "corrected, not written yet"]
    assert "c.png, corrected, not written yet: Mine." in repr(shown)
    status, button = penstock.status(out), f"Press Write files in `penstock review {out}`"
    assert f"2 decisions are not in the files yet. {button}" in repr(status)
    assert status["unwritten"] == 2
    with pytest.raises(UsageError, match=re.escape(button)):
        examples_in(str(out / "captions.jsonl"))
    run = penstock.caption(tmp_path / "media", model="demo", out=out, store=tmp_path / "store")
    (row,) = run.table().to_pylist()
    assert [*row][:4] == ["media_path", "start", "end", "caption"] and row["caption"] == "Mine."
    assert row["original"] and row["original"] != "Mine."
    rows = read_lines(out / "captions.jsonl")
    assert [row.get("review", "") for row in rows] == ["rejected", ""]
    assert rows[1]["caption"] == "Mine."
    shown = penstock.show(out)
    assert [each.review for each in shown.captions] == ["rejected", "corrected"]
    status = penstock.status(out)
    assert status["unwritten"] == 0 and "not in the files" not in repr(status)
    assert (status["corrected"], status["rejected"]) == (1, 1)
    counts = status["stages"]
    assert [stage["items"] for stage in counts if stage["name"] == "decode"] == [0]
    assert penstock.correct(out, {}) == 0


WRONG: tuple[tuple[Any, str], ...] = (
    (["Mine."], r"texts is \['Mine.'\] \(list\)"),
    (pandas.DataFrame({"caption": ["Mine."]}), r"texts is .* \(DataFrame\)"),
    (pandas.Series(["Mine."]), r"texts is .* \(Series\)"),
    ({("c.png", 0.0): float("nan")}, r"the text of \('c.png', 0.0\) is nan \(float\)"),
    ({("c.png", 0.0): ""}, r"is '' \(str\).* None as the text rejects"),
    ({("c.png", 0.0): 5}, r"the text of \('c.png', 0.0\) is 5 \(int\)"),
    ({5: "Mine."}, "no caption of 5"),
    ({("c.png",): "Mine."}, r"no caption of \('c.png',\)"),
    ({("c.png", 0.0, "", "b"): "Mine."}, r"no caption of \('c.png', 0.0, '', 'b'\)"),
)
"""What `correct` does not take, and the error."""
LAST = "2 captions, 1 failure"


def pictures(table: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', table)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


@pytest.mark.slow
def test_a_medium_that_is_gone_has_no_thumbnail(tmp_path: Path) -> None:
    out = kept_run(tmp_path)
    shutil.rmtree(tmp_path / "media")
    assert not pictures(penstock.show(out)._repr_html_())
    with pytest.raises(UsageError, match="has no captions"):
        penstock.show(tmp_path / "nothing")


@pytest.mark.slow
def test_an_exact_copy_is_corrected_by_any_of_its_names(tmp_path: Path) -> None:
    out = kept_run(tmp_path)
    shutil.copy(tmp_path / "media/c.png", tmp_path / "media/copy.png")
    penstock.caption(tmp_path / "media", model="demo", out=out, store=tmp_path / "store").table()
    first, copy = ("c.png", 0.0), ("copy.png", 0.0)
    with pytest.raises(UsageError, match=r"'copy.png', 0.0\) is a copy of .* another text"):
        penstock.correct(out, {first: "One.", copy: "Two."})
    assert penstock.correct(out, {first: "Mine."}) == 1
    assert penstock.correct(out, {first: "Ours.", copy: "Ours."}) == 1
    texts = {each.media_path: each.text for each in penstock.show(out).captions}
    assert texts["c.png"] == texts["copy.png"] == "Ours."


@pytest.mark.slow
def test_no_text_of_a_stranger_reaches_the_terminal_as_a_control_code(tmp_path: Path) -> None:
    """ESC, BEL and a direction mark, in a caption, a file name and a failure's reason."""
    media, out = tmp_path / "media", tmp_path / "out"
    media.mkdir()
    odd = "\x1b]0;x\x07\u202e"
    Image.new("RGB", (64, 48), "red").save(media / f"{odd}.png")
    (media / f"{odd}d.png").write_text("no picture")
    where: dict[str, Any] = {"out": out, "store": tmp_path / "store"}
    penstock.caption(media, model="demo", suffix=f" {odd}\nline two", **where).table()
    shown = [repr(penstock.show(out)), repr(penstock.status(out))]
    with pytest.raises(UsageError) as refused:
        penstock.show(tmp_path / odd)
    for text in (*shown, str(refused.value)):
        assert not {*odd} & {"\x1b", "\x07", "\u202e"} & {*text}, text
    assert len(shown[0].splitlines()) == 3 and "line two" in shown[0]


def test_progress_has_three_values() -> None:
    for value in (True, False, "auto"):
        display_for(value)
    with pytest.raises(UsageError, match="progress is 'yes'"):
        display_for("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["JPY_PARENT_PID", "COLAB_RELEASE_TAG"])
def test_a_command_in_a_cell_prints_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-color")
    assert obeys_control_codes()
    monkeypatch.setenv(name, "7")
    assert not obeys_control_codes()


@pytest.mark.slow
def test_cells_show_one_line_that_changes_then_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    made: Any = nbformat.v4
    notebook = made.new_notebook(cells=[made.new_code_cell(cell) for cell in CELLS])
    messages: list[dict[str, Any]] = []

    class Client(NotebookClient):
        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            messages.append({"cell": cell_index, "type": msg["msg_type"], **msg["content"]})
            return super().process_message(msg, cell, cell_index)

    Client(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [each for each in messages if each["cell"] == 0 and "data" in each]
    assert shown[0]["type"] == "display_data"
    assert {each["type"] for each in shown[1:]} == {"update_display_data"}
    texts = [each["data"]["text/plain"] for each in shown]
    assert any(text.startswith("captioning") for text in texts) and "2 captions in " in texts[-1]
    results = [each for each in messages if each["type"] == "execute_result"]
    table = results[0]["data"]["text/html"]
    assert len(pictures(table)) == 2
    corrected, printed = (
        "".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells[2:4]
    )
    assert corrected.startswith("1\n") and "A text of mine." in corrected
    assert "captioning: 1 caption in" in printed and "\x1b" not in printed
    assert "A text of mine." in notebook.cells[4].outputs[-1].data["text/html"]


WAITS = """
import os, threading, penstock, penstock_demo
clips = sorted(penstock_demo.CLIPS.glob("*.mp4"))[:3]
run = penstock.{call}(clips, model="demo", out="out", store="store")
run.{wait}()
"""
LEFT = """
print(run)
run.close()
tasks = os.listdir("/proc/self/task")
children = [open(f"/proc/self/task/{each}/children").read() for each in tasks]
print([t for t in threading.enumerate() if t.name == "penstock"], "".join(children).split())
"""


def answers(client: BlockingKernelClient, code: str, interrupt: KernelManager | None = None) -> Any:
    """Execute a cell, interrupt it when it shows its progress line, and return its messages."""
    messages: list[dict[str, Any]] = []

    def keep(message: dict[str, Any]) -> None:
        messages.append({"type": message["msg_type"], **message["content"]})
        if interrupt is not None and messages[-1]["type"] == "display_data":
            time.sleep(1.0)  # by now the cell waits
            interrupt.interrupt_kernel()

    client.execute_interactive(code, output_hook=keep, timeout=300)
    return messages


@pytest.mark.slow
@pytest.mark.parametrize(("call", "wait"), [("caption", "pandas"), ("embed", "result")])
def test_a_cell_that_is_interrupted_while_it_waits_stops_its_run(
    call: str, wait: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager, client = start_new_kernel(cwd=str(tmp_path))
    try:
        code = WAITS.format(call=call, wait=wait)
        stopped = answers(client, code, manager)
        left = answers(client, LEFT)
        again = answers(client, code)
        begun = answers(client, code.replace(f"run.{wait}()", "run"))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    (error,) = [each for each in stopped if each["type"] == "error"]
    line, reason = error["traceback"]  # two lines, as of every refusal
    assert line == f"line 4: run.{wait}()" and reason.startswith("Interrupted: stopped. ")
    texts = [each["data"]["text/plain"] for each in stopped if "data" in each]
    assert any(text.startswith("stopping;") for text in texts)
    assert texts[-1].startswith("stopped; ")
    (printed,) = [each["text"] for each in left if each["type"] == "stream"]
    assert "out: stopped; " in printed and printed.endswith("[] []\n")
    assert not [each for each in again if each["type"] in ("error", "stream")]
    assert not [each for each in begun if each["type"] == "execute_result"]
