"""What the command line says to a mistake in the command itself: one sentence on stderr, status 2."""

import pytest

from studio.__main__ import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "Missing option '--dataset'"),
        (["chat"], "Missing argument 'prompt'"),
        (["nope"], "No such command 'nope'"),
        (["train", "--nope"], "No such option: --nope"),
        (["chat", "--max-tokens", "many", "hi"], "Invalid value for '--max-tokens'"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["studio", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert said.err.startswith(sentence) and said.err.count("\n") == 1
    assert said.err.rstrip().endswith("see: python -m studio --help.")


def test_help_is_no_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["studio", "--help"])
    main()
    assert "train" in capsys.readouterr().out
