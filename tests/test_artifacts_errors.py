import pytest

from artifacts.errors import UsageError, redacted
from flows.console.display import failed_line
from flows.serving.refusals import OPENAI, bad_request


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no https://user:pa55@host/a.mp4", "no https://…@host/a.mp4"),
        ("postgresql+asyncpg://me:pa55@db/x", "postgresql+asyncpg://…@db/x"),
        ("bearer hf_AbCdEfGhIjKlMnOpQrStUv", "bearer …"),
        ("http://h/a?token=pa55&x=1", "http://h/a?token=…&x=1"),
        ("http://h/a?X-Amz-Signature=pa55", "http://h/a?X-Amz-Signature=…"),
        ("mail@example.org has a@b.mp4", "mail@example.org has a@b.mp4"),
        ("https://host/a@b.mp4", "https://host/a@b.mp4"),
    ],
)
def test_what_lets_readers_in_elsewhere_is_left_out(text: str, told: str) -> None:
    assert redacted(text) == told
    assert str(UsageError(text, hint=text)) == f"{told}. {told}"


@pytest.mark.parametrize("end", [".", "?", "!"])
def test_a_message_that_ends_a_sentence_gets_no_second_full_stop(end: str) -> None:
    assert str(UsageError(f"no such role{end}", hint="Mend it")) == f"no such role{end} Mend it"
    assert failed_line("a.mp4", f"no{end}", "Mend it") == f"failed: a.mp4: no{end} Mend it"
    told = bad_request(f"no{end}", "Mend it").to_json(OPENAI[0])["error"]
    assert told["message"] == f"no{end} Mend it"
