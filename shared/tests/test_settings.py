"""Settings: where they are read from, and what is said when they are wrong."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr

from shared.settings import DatabaseSettings, Port, Settings, TrustedIssuer
from users.settings import UsersSettings


class ProbeSettings(DatabaseSettings):
    service: ClassVar[str] = "probe"

    port: Port = Field(9000)
    greeting: str = "hello"
    api_key: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def _minimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_DATABASE_URL", "postgresql://probe@db/probe")


def test_setting_is_read_under_the_name_of_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_PORT", "9001")
    monkeypatch.setenv("probe_greeting", "good day")

    settings = ProbeSettings.load()

    assert settings.port == 9001
    assert settings.greeting == "good day"


def test_shared_setting_is_read_under_its_plain_name_and_its_own_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://everybody:4222")
    assert ProbeSettings.load().nats_url == "nats://everybody:4222"

    monkeypatch.setenv("PROBE_NATS_URL", "nats://probe:4222")
    assert ProbeSettings.load().nats_url == "nats://probe:4222"


def test_own_setting_is_never_read_under_its_plain_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING", "from another program")
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody@else/db")

    settings = ProbeSettings.load()

    assert settings.greeting == "hello"
    assert settings.database_url.get_secret_value() == "postgresql://probe@db/probe"


@pytest.mark.parametrize("variable", ["PROBE_NATS_PASSWORD_FILE", "NATS_PASSWORD_FILE"])
def test_secret_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret with spaces\n", encoding="utf-8")
    monkeypatch.setenv(variable, str(secret))

    assert ProbeSettings.load().nats_password.get_secret_value() == "s3cret with spaces"


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_PORT", "")

    assert ProbeSettings.load().port == 9000


def test_trusted_issuers_are_a_json_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TRUSTED_ISSUERS",
        '[{"issuer": "https://login.test", "audience": "api", "jwks_url": "https://login.test/keys"}]',
    )

    (issuer,) = ProbeSettings.load().trusted_issuers

    assert issuer.issuer == "https://login.test"
    assert issuer.token_types == ("at+jwt",)


DOCUMENT = (Path(__file__).parents[2] / "docs" / "external-issuers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", re.findall(r"TRUSTED_ISSUERS='(.*?)'", DOCUMENT, re.DOTALL))
def test_documented_issuers_are_good_as_they_stand(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TRUSTED_ISSUERS", value)

    (issuer,) = ProbeSettings.load().trusted_issuers

    assert issuer.audience == "tollhouse"


def test_every_key_of_a_trusted_issuer_is_documented() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert keys == set(TrustedIssuer.model_fields)


A_SECRET_ISSUER = '{"issuer": "https://secret", "audience": "a", "jwks_url": "https://secret/keys"}'
OUR_OWN_ISSUER = '{"issuer": "http://127.0.0.1:8000", "audience": "a", "jwks_url": "https://secret/keys"}'


def _refusal(capsys: pytest.CaptureFixture[str], settings: type[Settings] = ProbeSettings) -> str:
    with pytest.raises(SystemExit) as ended:
        settings.load()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_missing_setting_is_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PROBE_DATABASE_URL")

    assert _refusal(capsys) == (
        "probe: PROBE_DATABASE_URL is not set (or give a file by PROBE_DATABASE_URL_FILE).\n"
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PROBE_PORT", "70000"),
        ("PROBE_PORT", "http-secret"),
        ("PROBE_WORKERS", "0"),
        ("LOG_LEVEL", "loud-secret"),
        ("PROBE_JWKS_URL", "not a url secret"),
        ("PROBE_DATABASE_POOL_SIZE", "many-secret"),
        ("TRUSTED_ISSUERS", '[{"issuer": "secret"}]'),
        ("TRUSTED_ISSUERS", "not json secret"),
        ("PROBE_TRUSTED_ISSUERS", '{"issuer": "secret"}'),
        ("TRUSTED_ISSUERS", f"[{A_SECRET_ISSUER}, {A_SECRET_ISSUER}]"),
        ("TRUSTED_ISSUERS", f"[{OUR_OWN_ISSUER}]"),
    ],
)
def test_bad_value_is_named_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    refusal = _refusal(capsys)

    assert f"PROBE_{variable.removeprefix('PROBE_')}" in refusal
    assert "Traceback" not in refusal
    assert "secret" not in refusal
    assert "70000" not in refusal


@pytest.mark.parametrize("value", ["c2hvcnQtc2VjcmV0", "not base64 secret", "A" * 44])
def test_bad_encryption_key_is_named_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("USERS_DATABASE_URL", "postgresql://users@db/users")
    monkeypatch.setenv("USERS_KEY_ENCRYPTION_KEY", value)

    refusal = _refusal(capsys, UsersSettings)

    assert refusal.startswith("users: USERS_KEY_ENCRYPTION_KEY")
    assert refusal.count("\n") == 1
    assert value not in refusal


def test_file_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("NATS_PASSWORD_FILE", str(tmp_path / "missing"))

    refusal = _refusal(capsys)

    assert refusal.startswith("NATS_PASSWORD_FILE names ")
    assert refusal.count("\n") == 1


def test_file_that_is_no_text_is_refused_without_its_content(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"\xffsecret")
    monkeypatch.setenv("NATS_PASSWORD_FILE", str(tmp_path / "secret"))

    assert "not UTF-8 text" in _refusal(capsys)


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_API_KEY", "hidden-value")
    monkeypatch.setenv("PROBE_DATABASE_URL", "postgresql://probe:hidden-value@db/probe")

    assert "hidden-value" not in repr(ProbeSettings.load())
