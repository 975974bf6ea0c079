"""What is logged, and what must not be."""

import json
import logging
from collections.abc import Iterator

import pytest

from studio import logs
from studio.settings import SECRETS, Settings

KEY = "sk-very-long-and-secret-key"


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, which it adds for each test
    for name in (*SECRETS, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Settings(api_key=KEY, **values)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_is_blotted_out_of_messages_and_tracebacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ABCDEFGH")
    given = settings(
        monkeypatch,
        log_form=form,
        database_url="postgresql://me:pass%40word@db/studio",
        webhook_url="https://hook/x?t=1",
        webhook_secret="w" * 9,
    )
    monkeypatch.setenv("HF_TOKEN", "hf_ABCDEFGH")
    logs.set_up(given)
    try:
        raise ValueError(f"refused: {KEY}")
    except ValueError:
        logging.getLogger("studio.test").exception("with %s, hf_ABCDEFGH, pass%%40word and https://hook/x?t=1", KEY)
    text = capsys.readouterr().err
    assert text.count(logs.BLOT) >= 5 and "refused: [secret]" in text
    for secret in (KEY, "hf_ABCDEFGH", "pass%40word", "https://hook/x"):
        assert secret not in text


def test_json_is_one_object_a_line_with_what_programs_look_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logs.set_up(settings(monkeypatch, log_form="json"))
    logging.getLogger("studio.test").warning("two\nlines of %s", "text")
    logging.getLogger("alembic").info("noise")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found.pop("at") and found == {"level": "WARNING", "logger": "studio.test", "message": "two\nlines of text"}


def test_short_words_are_left_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logs.set_up(settings(monkeypatch, vllm_key="a"))
    logging.getLogger("studio.test").warning("a plain sentence")
    assert capsys.readouterr().err == "WARNING studio.test: a plain sentence\n"
