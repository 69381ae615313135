"""What the page of the server prints runs as printed: curl, OpenAI's client, and their answers."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.core.machine.versions import cpu_has_bfloat16
from tests.support.commands import completed
from tests.support.pipeline import ROOT
from tests.support.serving import serving

PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
PORT = "8000"
ALL = "\u2026"
"""Stands for any text."""
COMMANDS = f"""
python() {{ {sys.executable} "$@"; }}
penstock() {{ {sys.executable} -m flows.interfaces.cli.main "$@"; }}
"""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


class Shell:
    """Somebody who types what stands there, in an empty folder, with another port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"PYTHONPATH": str(ROOT), "PENSTOCK_STORE": str(folder / "store")}
        self.env = {**os.environ, **own}
        self.before = COMMANDS
        """Lines that set variables."""
        self.port = 0

    def typed(self, text: str) -> str:
        return text.replace(f":{PORT}", f":{self.port}")

    def run(self, text: str) -> str:
        command = ["sh", "-euc", self.before + self.typed(text)]
        done = completed(command, cwd=self.folder, env=self.env, timeout=240)
        assert done.returncode == 0, text + done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def serving(self, command: str) -> Iterator[None]:
        text = f'cd {self.folder}\n{self.before}exec_ {command} "$@"'
        text = text.replace("exec_ penstock", f"exec {sys.executable} -m flows.interfaces.cli.main")
        with serving(self.folder, command=["sh", "-euc", text, "sh"], env=self.env) as server:
            self.port = server.port
            yield


VARIES = {"seconds", "id", "at"} | (set() if cpu_has_bfloat16() else {"precision", "key"})
"""Fields that differ from what the page prints: ids are of paths, the page is of a CPU with bf16,
and CPUs round differently, so that another frame of a shot may be the nearest."""


def is_like(found: Any, printed: Any) -> bool:
    """Whether an answer is what was printed, but for times, and digits of scores."""
    if isinstance(printed, dict):
        assert set(found) == set(printed), set(found) ^ set(printed)
        return all(name in VARIES or is_like(found[name], printed[name]) for name in printed)
    if isinstance(printed, list):
        return len(found) == len(printed) and all(map(is_like, found, printed))
    if isinstance(printed, str) and ALL in printed:
        start, _, end = printed.partition(ALL)
        return bool(found.startswith(start) and found.endswith(end))
    if isinstance(printed, float) and not isinstance(found, bool):
        return bool(abs(found - printed) < 0.05)
    return bool(found == printed)


@pytest.mark.slow
def test_what_the_page_prints_runs_and_answers_as_printed(tmp_path: Path) -> None:
    setting_up, label, asking, jobs, questions = blocks("sh")
    *before, serve = setting_up.splitlines()
    shell = Shell(tmp_path)
    shell.run("\n".join(before))
    shell.before += "\n".join(line for line in before if line.startswith("CLIPS=")) + "\n"
    with shell.serving(serve):
        shell.before += label.splitlines()[0] + "\n"
        values = [json.loads(shell.run(label))]
        answers = {line: shell.run(line) for line in asking.splitlines()}
        record = [json.loads(answer) for answer in answers.values() if answer.startswith("{")]
        values += [next(each for each in record if "hits" in each)]
        values += [next(each for each in record if "captions" in each)]
        for found, printed in zip(values, blocks("json"), strict=True):
            assert is_like(found, json.loads(printed)), json.dumps(found)
        (row,) = json.loads(shell.run(questions))["rows"]
        assert row["answers"].keys() == {"ring", "quality"}
        job = json.loads(shell.run("\n".join(jobs.splitlines()[1:3])))
        assert (job["source"], job["options"]) == ("upload.mp4", {"chunk": 2.0})
        (streamed,) = [answer for line, answer in answers.items() if "stream=1" in line]
        assert streamed.count("data: ") > 1 and '"done": true' in streamed.splitlines()[-2]
        assert (tmp_path / "thumbnail.jpg").read_bytes().startswith(b"\xff\xd8\xff")
        assert not any("error" in each for each in record)


@pytest.mark.slow
def test_the_client_of_openai_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    shell = Shell(tmp_path)
    (script,) = blocks("python")
    with shell.serving("penstock serve --caption-model demo"):
        (tmp_path / "ask.py").write_text(shell.typed(script))
        text = shell.run(f"python ask.py {ROOT}/penstock_demo/samples/clip-01.mp4")
    truth = (ROOT / "penstock_demo/samples/truth.jsonl").read_text().splitlines()[0]
    assert text.strip() == json.loads(truth)["caption"]
