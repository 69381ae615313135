"""Who may ask a server, by files of tokens as people write them, and what its log says of them."""

import os
import signal
import time
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from artifacts.errors import UsageError
from flows.interfaces.serve.tokens import read_tokens, sender_of, session_of
from tests.support.pipeline import PENSTOCK
from tests.support.serving import Serving, serving

FIRST, SECOND = "first-secret-0123456789", "second-secret-987654321"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (f"{FIRST}\n", {"": FIRST}),
        (f"anna {FIRST}\n\nb.c@d\t{SECOND}\n", {"anna": FIRST, "b.c@d": SECOND}),
    ],
)
def test_a_file_holds_one_secret_or_names_with_secrets(
    text: str, tokens: dict[str, str], tmp_path: Path
) -> None:
    (path := tmp_path / "tokens").write_text(text)
    assert read_tokens(str(path)) == tokens


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        f"anna short\nben {FIRST}",
        f"anna {FIRST}\n{SECOND}",
        f"anna {FIRST}\nanna {SECOND}",
        f"anna {FIRST}\nben {FIRST}",
        f"anna {FIRST} more",
        f"a/b {FIRST}",
        f"{FIRST}\n{SECOND}",
        f"anna {FIRST}é",
    ],
)
def test_another_file_is_refused_without_its_secrets(text: str, tmp_path: Path) -> None:
    (path := tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError) as refused:
        read_tokens(str(path))
    assert "secret-" not in str(refused.value) and "\n" not in refused.value.message


def test_a_sender_is_known_by_a_token_or_a_cookie() -> None:
    tokens = {"anna": FIRST, "ben": SECOND}
    assert sender_of(tokens, {"authorization": f"bearer {SECOND}"}) == "ben"
    cookie = f"other=1; penstock_session={session_of(FIRST)}"
    assert sender_of(tokens, {"cookie": cookie}) == "anna"
    for header in (f"Bearer {FIRST}x", "Bearer ", f"Basic {FIRST}", "Bearer é"):
        assert sender_of(tokens, {"authorization": header}) is None


def status_of(server: Serving, token: str, path: str = "/v1/models?x=secret") -> int:
    return server.ask("GET", path, headers={"Authorization": f"Bearer {token}"}).status


def until(server: Serving, token: str, status: int) -> None:
    ends = time.monotonic() + 30
    while status_of(server, token) != status:
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_tokens_change_while_a_server_runs_and_each_request_is_logged(tmp_path: Path) -> None:
    (tokens := tmp_path / "tokens").write_text(f"anna {FIRST}\n")
    options = ["--token-file", str(tokens), "--access-log", str(tmp_path / "access.log")]
    command = [*PENSTOCK, "serve", "--model", "demo", *options]
    with serving(tmp_path, command=command) as server:
        assert (status_of(server, FIRST), status_of(server, SECOND)) == (200, 401)
        tokens.write_text(f"anna {SECOND}\nben {FIRST}\n")
        os.kill(server.process.pid, signal.SIGHUP)
        until(server, SECOND, 200)
        tokens.write_text("short")
        os.kill(server.process.pid, signal.SIGHUP)
        assert status_of(server, FIRST, "/v1/a%0ab%20c") == 404
        with OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=FIRST) as client:
            given = client.embeddings.create(model="demo", input=["a red ring", "a dog"])
            floats = client.embeddings.create(model="demo", input="a dog", encoding_format="float")
            count = [
                client.embeddings.create(model="demo", input=texts).usage.total_tokens
                for texts in (["a red ring"], ["a dog"], ["a red ring", "a dog"])
            ]
            with pytest.raises(BadRequestError) as long:
                client.embeddings.create(model="demo", input=["a dog", "a dog " * 300])
        assert given.data[1].embedding == pytest.approx(floats.data[0].embedding, abs=1e-6)
        assert sum(x * x for x in given.data[0].embedding) == pytest.approx(1.0, abs=1e-3)
        assert count[1] > 0 and count[0] + count[1] == count[2]
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
        assert "text 1 of input" in long.value.message
        assert (given.model, [row.index for row in given.data]) == ("demo", [0, 1])
        assert server.is_up() and status_of(server, SECOND) == 200
        assert "tokens stay as they were" in server.log.read_text()
    lines = [line.split() for line in (tmp_path / "access.log").read_text().splitlines()]
    assert {len(line) for line in lines} == {7}
    ours = [line for line in lines if line[3] == "/v1/models"]
    assert [line[1:3] + line[4:5] for line in ours[:2]] == [
        ["anna", "GET", "200"],
        ["-", "GET", "401"],
    ]
    assert ours[-1][1] == "anna" and int(ours[0][5]) > 50 and float(ours[0][6]) > 0
    assert ["ben", "GET", "/v1/a%0ab%20c", "404"] in [line[1:5] for line in lines]
    assert ["ben", "POST", "/v1/embeddings", "200"] in [line[1:5] for line in lines]
    assert "secret" not in (tmp_path / "access.log").read_text()
