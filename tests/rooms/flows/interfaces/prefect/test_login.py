"""The login of this machine's Prefect server: made once, read by its user alone, and told to no
server elsewhere, nor by a server that a command starts for itself."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from artifacts.errors import EnvironmentFault
from flows.core.machine import server_health
from flows.core.machine.server_health import is_local
from flows.interfaces.prefect import server
from flows.interfaces.prefect.server import (
    client_settings,
    login_file,
    login_for,
    new_login,
    note_server,
    own_login,
    stored_login,
)
from tests.support.commands import completed
from tests.support.pipeline import ROOT

SECRET = "penstock:not-to-be-told-4711"
ELSEWHERE = "https://penstock.example.org/api"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PREFECT_HOME that is not there yet, and nothing set of the user's."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path / "prefect"


API = "PREFECT_API_URL"


def message_of(who: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """What scripts/run/server, as this process, or scripts/run/worker takes."""
    words = [who, str(os.getpid())] if who == "server" else [who]
    environment = {**os.environ, "PREFECT_SERVER_API_PORT": "4242", **variables}
    return completed([sys.executable, "-m", "scripts.run.login", *words], env=environment)


def test_the_login_is_made_once_and_its_user_alone_can_read_it(home: Path) -> None:
    assert stored_login() is None
    made = own_login()
    assert re.fullmatch(r"penstock:[\w-]{32}", made)
    assert made == own_login() == stored_login()
    assert login_file().stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["penstock-auth"]
    assert new_login() != new_login()
    login_file().chmod(0o644)
    own_login()
    assert login_file().stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_starts_at_the_same_time_end_with_the_same_login(home: Path) -> None:
    code = "from flows.interfaces.prefect.server import own_login; input(); print(own_login())"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    starts = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(6)]
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    assert {start.communicate()[0].strip() for start in starts} == {stored_login()}
    assert [path.name for path in home.iterdir()] == ["penstock-auth"]


def test_a_file_that_holds_no_login_fails(home: Path) -> None:
    home.mkdir()
    for content in (b"", b"\n", b"a\nb\n", b"\xff:\xfe", b"a:\0"):
        login_file().write_bytes(content)
        with pytest.raises(EnvironmentFault, match=r"penstock-auth contains no login\. Delete it"):
            own_login()


def test_an_unusable_home_fails_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file")
    done = message_of("server")
    assert (done.returncode, done.stdout) == (5, "")
    assert len(done.stderr.splitlines()) == 1 and "PREFECT_HOME" in done.stderr
    home.unlink()
    home.mkdir()
    login_file().symlink_to(home / "nowhere")
    assert message_of("server").returncode == 5


LOCAL = ("127.0.0.1:4200/api", "LOCALHOST/api", "[::1]:4200/api", "127.9.9.9:4200/api")
FOREIGN = (
    *("127.0.0.1.example.org/api", "localhost.example.org/api", "localhost@example.org/api"),
    *("127.0.0.1:4200@example.org/api", "192.168.1.5:4200/api", "0x7f.1/api", "[::1"),
)


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which this process listens, as a server would."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "local"),
    [
        *((f"http://{url}", True) for url in LOCAL),
        *((f"http://{url}", False) for url in FOREIGN),
        *((url, False) for url in (ELSEWHERE, "127.0.0.1:4200/api", "")),
    ],
)
def test_no_server_elsewhere_is_told_it(home: Path, url: str, local: bool) -> None:
    own_login()
    assert is_local(url) is local
    assert login_for(url) is None  # nor one of this machine that `make server` did not start


def test_who_listens_here_is_told_nothing_unless_make_server_noted(home: Path, port: int) -> None:
    url, made = f"http://127.0.0.1:{port}/api", own_login()
    (record,) = [home / f"penstock-server-{port}.json"]
    assert login_for(url) is None, "the login goes to a server that nobody wrote down"
    note_server(url, os.getpid())
    assert login_for(url) == made
    for other in (f"localhost:{port}", f"127.0.0.2:{port}", f"[::1]:{port}", "127.0.0.1:4200"):
        assert login_for(f"http://{other}/api") is None
    kept = json.loads(record.read_text())
    with subprocess.Popen(["true"]) as ended:
        pass
    for change in ({"pid": ended.pid}, {"start": "1"}, {"address": "127.0.0.1:1"}, {"pid": "x"}):
        record.write_text(json.dumps({**kept, **change}))
        assert login_for(url) is None, change
    for content in ("", "[]", "{}", "\xff"):
        record.write_text(content)
        assert login_for(url) is None


LISTENS = """
import os, socket, sys
os.setuid(54321)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("listens", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process needs root")
def test_another_user_who_has_the_port_is_told_nothing(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, made = f"http://127.0.0.1:{port}/api", own_login()
    note_server(url, os.getpid())
    command = [sys.executable, "-c", LISTENS, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"listens\n"
        assert login_for(url) is None
        other.communicate()
    with socket.create_server(("127.0.0.1", port)):
        assert login_for(url) == made


def test_a_second_start_leaves_the_record_of_a_server_that_runs(home: Path, port: int) -> None:
    url, made = f"http://127.0.0.1:{port}/api", own_login()
    note_server(url, os.getpid())
    with subprocess.Popen(["sleep", "60"]) as second:
        note_server(url, second.pid)
        second.kill()
    assert login_for(url) == made


@pytest.mark.slow
def test_server_and_worker_of_one_machine_agree(home: Path, port: int) -> None:
    here = {"PREFECT_SERVER_API_PORT": str(port), API: f"http://127.0.0.1:{port}/api"}
    assert message_of("worker", **here).stdout == "\n"
    server, worker = message_of("server", **here), message_of("worker", **here)
    assert server.stdout == worker.stdout == f"{stored_login()}\n"
    page = f"the page is http://127.0.0.1:{port}; it asks for the string in {login_file()}"
    told_lines = server.stderr.splitlines()
    assert told_lines[0] == f"penstock: {page}"
    exports = "; ".join(line.strip() for line in told_lines[2:])
    shown = f'{exports}; echo "$PREFECT_API_URL $PREFECT_API_AUTH_STRING"'
    assert completed(["sh", "-c", shown]).stdout == f"{here[API]} {stored_login()}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"])
def test_what_the_user_has_set_is_kept(home: Path, name: str, port: int) -> None:
    here = {"PREFECT_SERVER_API_PORT": str(port), API: f"http://127.0.0.1:{port}/api"}
    both = [message_of(who, **{name: SECRET}, **here).stdout for who in ("server", "worker")]
    assert both == [f"{SECRET}\n"] * 2
    (home / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\n{name} = "{SECRET}"\n')
    assert [message_of(who, **here).stdout for who in ("server", "worker")] == [f"{SECRET}\n"] * 2
    assert message_of("server", **here).stderr.endswith(f"that {name} holds\n")
    assert not login_file().exists()


@pytest.mark.slow
def test_a_worker_of_a_server_elsewhere_gets_nothing_of_this_machine_s(home: Path) -> None:
    own_login()
    assert message_of("worker", PREFECT_API_URL=ELSEWHERE).stdout == "\n"
    given = {"PREFECT_SERVER_API_AUTH_STRING": SECRET}
    assert message_of("worker", PREFECT_API_URL=ELSEWHERE, **given).stdout == "\n"
    given = {"PREFECT_API_AUTH_STRING": SECRET}
    assert message_of("worker", PREFECT_API_URL=ELSEWHERE, **given).stdout == f"{SECRET}\n"


def test_a_command_gives_its_login_to_the_server_of_this_machine_alone(
    home: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.interfaces.prefect.server.answers", lambda url: True)
    made, here = own_login(), {PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}
    with temporary_settings(here):
        assert client_settings() == {}
        note_server(here[PREFECT_API_URL], os.getpid())
        assert client_settings() == {PREFECT_API_AUTH_STRING: made}
    for none in ({PREFECT_API_URL: ""}, {PREFECT_API_URL: " "}):
        with temporary_settings(none):
            assert client_settings() == {**here, PREFECT_API_AUTH_STRING: made}
    for settings in ({PREFECT_API_URL: ELSEWHERE}, {**here, PREFECT_API_AUTH_STRING: "me:mine"}):
        with temporary_settings(settings):
            assert client_settings() == {}
    login_file().unlink()
    with temporary_settings(here):
        assert client_settings() == {}


def test_a_server_that_takes_connections_and_answers_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_health, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(server, "answers", lambda url: False)
    monkeypatch.setattr(server, "fault_of_api", lambda url: "")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(EnvironmentFault, match=f"no answer from the Prefect server at {url}"),
        ):
            client_settings()
    with temporary_settings({PREFECT_API_URL: url}):
        client_settings()  # a refused connection is for Prefect to say, at once
