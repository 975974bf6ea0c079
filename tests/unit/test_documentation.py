"""Documentation that names things is held to the things."""

import re
from pathlib import Path

import pytest

from studio.api.asked import INERT, AskedChat, AskedText
from studio.settings import Settings

ROOT = Path(__file__).parent.parent.parent


def test_the_readme_names_every_setting_and_no_other() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Settings") :]
    named = set(re.findall(r"`STUDIO_([A-Z_]+)`", table))
    assert named == {field.upper() for field in Settings.model_fields}


def test_every_path_in_the_architecture_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:studio|storage|tests)/[\w/.]+)`", text)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("file", "least"), [("requirements.txt", 10), ("requirements-postgres.txt", 1)])
def test_every_requirement_has_bounds_and_a_reason(file: str, least: int) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) >= least
    for line in lines:
        assert re.match(r"[\w-]+(?:\[\w+\])?(==[\w.]+|>=[\w.]+,<[\w.]+) +# \w", line), line


def test_the_api_names_every_field_that_it_reads_or_refuses() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    fields = text[text.index("## Fields") : text.index("## Replies")]
    read, refused = fields.split("### Refused")
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in read.splitlines() if line.startswith("| `"))))
    assert named == {*AskedChat.model_fields, *AskedText.model_fields}
    assert set(re.findall(r"`(\w+)`", refused)) == set(INERT)


def test_commands_that_the_readme_shows_exist() -> None:
    from typer.main import get_command

    from studio.__main__ import app

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^python -m studio (\w+)(?: (\w+))?", text, re.M)
    group = get_command(app)
    assert len(shown) >= 7
    for first, second in shown:
        command = group.commands[first]
        assert not hasattr(command, "commands") or second in command.commands


def test_what_deploys_it_names_settings_and_files_that_exist() -> None:
    import yaml

    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "deploy").iterdir()}
    named = {name for text in texts.values() for name in re.findall(r"STUDIO_([A-Z_]+)", text)}
    assert {"HOME", "HOST", "DATABASE_URL"} <= named <= {field.upper() for field in Settings.model_fields}
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", texts["Dockerfile"], re.M) for name in line.split()]
    assert len(copied) >= 6 and [name for name in copied if not (ROOT / name).exists()] == []
    services = yaml.safe_load(texts["compose.yaml"])["services"]
    assert services["studio"]["ports"] == ["127.0.0.1:${STUDIO_PORT:-7860}:7860"] and "ports" not in services["database"]
    assert "USER studio" in texts["Dockerfile"] and "User=adapter-studio" in texts["studio.service"]
