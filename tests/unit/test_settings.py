"""What the environment may say, and what is answered where it says something else."""

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from studio.errors import InvalidInput
from studio.settings import STARTER_BASE, Settings, command_environment, load_settings


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("STUDIO_") or name in ("RAY_AUTH_TOKEN", "SPACE_ID", "PORT", "GRADIO_SERVER_PORT"):
            monkeypatch.delenv(name)
    for name in ("GRADIO_ANALYTICS_ENABLED", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "False")
    monkeypatch.chdir(tmp_path)


def refusal() -> str:
    with pytest.raises(InvalidInput) as caught:
        load_settings()
    return str(caught.value)


def test_without_a_word_the_studio_is_private_and_in_the_folder_var(tmp_path: Path) -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.share) == ("127.0.0.1", 7860, False)
    assert settings.home == tmp_path / "var" and settings.url == f"sqlite:///{tmp_path / 'var' / 'studio.db'}"
    assert (settings.base, settings.quantization) == (STARTER_BASE, "nf4")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_line_about_it(name: str) -> None:
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("home", "/srv/studio", Path("/srv/studio")),
        ("database_url", "sqlite:///x.db", "sqlite:///x.db"),
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "8000", 8000),
        ("hosts", "a.example,b.example", "a.example,b.example"),
        ("requests_per_minute", "0", 0),
        ("share", "true", True),
        ("worker", "0", False),
        ("base", "tiny", "tiny"),
        ("quantization", "fp32", "fp32"),
        ("slots", "3", 3),
        ("slots_mb", "100", 100),
        ("adapters_mb", "200", 200),
        ("kept_mb", "0", 0),
        ("precision", "exact", "exact"),
        ("max_batch", "4", 4),
        ("backend", "stateless", "stateless"),
        ("vllm_url", "http://10.0.0.5:8000", "http://10.0.0.5:8000"),
        ("vllm_key", "x", SecretStr("x")),
        ("vllm_model", "HuggingFaceTB/x", "HuggingFaceTB/x"),
        ("vllm_home", "/studio", "/studio"),
        ("max_upload_bytes", "1000", 1000),
        ("hub_timeout_s", "0.5", 0.5),
        ("jobs_per_device", "3", 3),
        ("sharing", "wait", "wait"),
        ("lease_s", "4", 4.0),
        ("max_losses", "1", 1),
        ("memory_limit_mb", "4096", 4096),
        ("jobs_per_device", "2", 2),
        ("sharing", "wait", "wait"),
        ("webhook_url", "", ""),
        ("webhook_secret", "x", SecretStr("x")),
        ("executor", "local", "local"),
        ("ray_address", "http://10.0.0.5:8265", "http://10.0.0.5:8265"),
        ("ray_token", "x", SecretStr("x")),
        ("ray_jobs", "4", 4),
        ("ray_gpus", "0", 0),
        ("ray_command", "cd /srv && python -m x", "cd /srv && python -m x"),
        ("ray_silence_s", "10", 10.0),
        ("shared_url", "s3://bucket/studio", "s3://bucket/studio"),
        ("quota_bytes", "1000000", 1_000_000),
        ("api_key", "x" * 20, SecretStr("x" * 20)),
        ("log_level", "DEBUG", "DEBUG"),
        ("log_form", "json", "json"),
    ],
)
def test_each_setting_is_read_from_the_variable_of_its_name(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    monkeypatch.setenv(f"STUDIO_{name.upper()}", text)
    assert getattr(load_settings(), name) == value


def test_the_table_above_names_every_setting() -> None:
    marks = test_each_setting_is_read_from_the_variable_of_its_name.pytestmark  # type: ignore[attr-defined]
    assert {row[0] for row in marks[0].args[1]} == set(Settings.model_fields)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("STUDIO_PORT", "http"),
        ("STUDIO_PORT", "70000"),
        ("STUDIO_PORT", "-1"),
        ("STUDIO_QUANTIZATION", "int3"),
        ("STUDIO_SLOTS", "0"),
        ("STUDIO_MAX_BATCH", "many"),
        ("STUDIO_SHARE", "perhaps"),
        ("STUDIO_MAX_UPLOAD_BYTES", "1 GB"),
        ("STUDIO_LEASE_S", "0"),
        ("STUDIO_LOG_LEVEL", "LOUD"),
        ("GRADIO_SERVER_PORT", "http"),
        ("GRADIO_SERVER_PORT", "70000"),
        ("PORT", "x"),
    ],
)
def test_a_bad_value_is_told_with_its_variable_in_one_sentence(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(variable, text)
    message = refusal()
    assert message.startswith(f"The environment variable {variable} is {text!r}: ")
    assert message.endswith("Change or unset it.") and "\n" not in message


def test_a_space_listens_on_all_interfaces_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "owner/name")
    assert load_settings().host == "0.0.0.0"
    monkeypatch.setenv("STUDIO_HOST", "127.0.0.1")
    assert load_settings().host == "127.0.0.1"


def test_the_port_is_ours_then_gradios_then_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8001")
    assert load_settings().port == 8001
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8002")
    assert load_settings().port == 8002
    monkeypatch.setenv("STUDIO_PORT", "8003")
    assert load_settings().port == 8003


def test_a_home_with_a_tilde_is_the_persons_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STUDIO_HOME", "~/studio")
    assert load_settings().home == tmp_path / "studio"


def test_settings_do_not_change_and_unknown_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_NO_SUCH_THING", "1")
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_a_command_finds_the_same_packages_and_speaks_line_by_line() -> None:
    environment = command_environment()
    assert environment["PYTHONUNBUFFERED"] == "1" and str(Path(__file__).parent.parent.parent) in environment["PYTHONPATH"]


@pytest.mark.parametrize(
    "url", ["example.com/a", "ftp://example.com", "https://?a=1", "http://exa mple.org", "http://[::1", "http://x:99999"]
)
def test_a_webhook_has_an_address_which_is_not_repeated_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("STUDIO_WEBHOOK_SECRET", "geheim")
    monkeypatch.setenv("STUDIO_WEBHOOK_URL", url)
    assert "such as https://example.org/hook" in refusal() and url not in refusal() and "geheim" not in refusal()


def test_a_webhook_needs_a_secret_which_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_WEBHOOK_URL", "https://example.org/hook-key")
    assert "STUDIO_WEBHOOK_SECRET" in refusal()
    monkeypatch.setenv("STUDIO_WEBHOOK_SECRET", "geheim")
    settings = load_settings()
    assert (
        settings.webhook_secret.get_secret_value() == "geheim"
        and "geheim" not in f"{settings!r}{settings}"
        and "hook-key" not in repr(settings)
    )


@pytest.mark.parametrize("text", ["geheim", "geheim" * 3, "geheim geheim geheim geheim", "geheim" * 4 + "ü", "geheim" * 4 + "\n"])
def test_a_key_that_can_be_guessed_or_sent_by_nobody_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("STUDIO_API_KEY", text)
    assert "STUDIO_API_KEY should have at least 20 letters" in refusal() and "geheim" not in refusal()


def test_the_key_of_the_environment_is_never_shown_or_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIO_API_KEY", "geheim" * 5)
    settings = load_settings()
    assert settings.api_key.get_secret_value() == "geheim" * 5 and "geheim" not in f"{settings!r}{settings}"
    assert "geheim" not in str(command_environment())


RAY = {"EXECUTOR": "ray", "RAY_ADDRESS": "http://10.0.0.5:8265", "RAY_TOKEN": "geheim", "SHARED_URL": "s3://bucket/studio"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("RAY_ADDRESS", "10.0.0.5:8265", "STUDIO_RAY_ADDRESS should name its dashboard"),
        ("RAY_TOKEN", "", "RAY_AUTH_MODE=token"),
        ("SHARED_URL", "", "STUDIO_SHARED_URL should name a folder"),
        ("SHARED_URL", "ftp://me:geheim@host/x", "without a password"),
    ],
)
def test_a_cluster_has_an_address_a_token_and_a_shared_place(monkeypatch: pytest.MonkeyPatch, name: str, text: str, says: str) -> None:
    for key, value in {**RAY, name: text}.items():
        monkeypatch.setenv(f"STUDIO_{key}", value)
    assert says in refusal() and "geheim" not in refusal()


def test_the_token_of_ray_itself_will_do_and_no_secret_reaches_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {**RAY, "RAY_TOKEN": ""}.items():
        monkeypatch.setenv(f"STUDIO_{key}", value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "geheim")
    settings = load_settings()
    assert settings.ray_token.get_secret_value() == "geheim" and "geheim" not in repr(settings)
    monkeypatch.setenv("STUDIO_WEBHOOK_SECRET", "geheim")
    assert "geheim" not in command_environment().values()


@pytest.mark.parametrize("url", ["", "10.0.0.5:8000", "ftp://me:geheim@host", "http://me:geheim@host"])
def test_a_vllm_server_has_an_address_and_a_key_that_is_never_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("STUDIO_BACKEND", "vllm")
    monkeypatch.setenv("STUDIO_VLLM_URL", url)
    assert "STUDIO_VLLM_URL should be its address" in refusal() and "geheim" not in refusal()
    monkeypatch.setenv("STUDIO_VLLM_URL", "http://host:8000")
    monkeypatch.setenv("STUDIO_VLLM_KEY", "geheim")
    assert "geheim" not in repr(load_settings()) and "geheim" not in command_environment().get("STUDIO_VLLM_KEY", "")
