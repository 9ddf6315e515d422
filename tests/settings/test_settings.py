from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from agnt5_engine.api_keys import ALL_SCOPES
from agnt5_engine.limits import Limit
from agnt5_engine.settings import COLLECTED, Settings, SettingsError, load_settings
from agnt5_engine.units import parse_duration, parse_size


def test_without_any_setting_the_engine_is_embedded_local_and_as_documented() -> None:
    settings = load_settings()
    assert settings.is_embedded
    assert settings.embedded_dir == settings.data_dir == Path(".agnt5")
    assert settings.trigger_start == "earliest"
    assert (settings.http_host, settings.http_port, settings.http_is_explicit) == ("127.0.0.1", 8080, False)
    assert (settings.partitions, settings.replication, settings.group, settings.standbys) == (8, None, "agnt5", 0)
    assert (settings.session_timeout, settings.checkpoint_interval) == (6.0, 1.0)
    assert (settings.step_concurrency, settings.step_threads) == (1000, 32)
    assert (settings.run_retention, settings.max_payload_bytes) == (7 * 86400, 1_048_576)
    assert settings.create_topics is True


def test_every_topic_of_the_engine_carries_the_prefix() -> None:
    settings = load_settings(topic_prefix="shop.")
    assert settings.journal_topic == "shop.journal"
    assert settings.outcomes_topic == "shop.outcomes"
    assert settings.changelog_topic == "shop.state-changelog"
    assert settings.dead_letters_topic == "shop.dead-letters"
    assert settings.steps_topic("gpu") == "shop.steps.gpu"
    with pytest.raises(ValueError, match="queue 'no spaces'"):
        settings.steps_topic("no spaces")


def test_arguments_come_before_environment_before_dotenv_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("agnt5.toml").write_text('group = "file"\npartitions = 3\nstandbys = 1\nrun_retention = "2d"\n')
    Path(".env").write_text("AGNT5_GROUP=dotenv\nAGNT5_PARTITIONS=4\nAGNT5_STANDBYS=2\n")
    monkeypatch.setenv("AGNT5_GROUP", "environment")
    monkeypatch.setenv("AGNT5_PARTITIONS", "5")
    settings = load_settings(group="argument", partitions=None)
    assert settings.group == "argument"
    assert settings.partitions == 5
    assert settings.standbys == 2
    assert settings.run_retention == 2 * 86400


def test_a_kafka_broker_changes_the_defaults_that_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGNT5_BROKER", "kafka://One:9092,two")
    settings = load_settings()
    assert not settings.is_embedded
    assert settings.bootstrap_servers == "One:9092,two:9092"
    assert settings.trigger_start == "latest"
    assert settings.data_dir == Path(".agnt5")
    assert settings.kafka_options() == {"bootstrap_servers": "One:9092,two:9092", "security_protocol": "PLAINTEXT"}


def test_the_embedded_directory_keeps_its_case_and_is_the_data_directory() -> None:
    settings = load_settings(broker="embedded:///Var/MyDir")
    assert settings.embedded_dir == settings.data_dir == Path("/Var/MyDir")
    assert load_settings(broker="embedded:///Var/MyDir", data_dir="other").data_dir == Path("other")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", "latest"),
        ("earliest", "earliest"),
        ("2026-01-31T09:00:00Z", datetime(2026, 1, 31, 9, tzinfo=UTC)),
        ("2026-01-31T09:00:00", datetime(2026, 1, 31, 9, tzinfo=UTC)),
    ],
)
def test_triggers_start_where_they_are_told(monkeypatch: pytest.MonkeyPatch, text: str, expected: object) -> None:
    monkeypatch.setenv("AGNT5_TRIGGER_START", text)
    assert load_settings().trigger_start == expected


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AGNT5_BROKER", "localhost:9092", "kafka://localhost:9092"),
        ("AGNT5_BROKER", "redis://x", "neither embedded://DIR nor kafka://HOST:PORT"),
        ("AGNT5_BROKER", "kafka://", "names no host"),
        ("AGNT5_BROKER", "kafka://a:99999", "is not HOST:PORT"),
        ("AGNT5_BROKER", "kafka://me:hunter2@a:9092", "takes no password"),
        ("AGNT5_PARTITIONS", "many", "valid integer"),
        ("AGNT5_PARTITIONS", "0", "greater than or equal to 1"),
        ("AGNT5_TOPIC_PREFIX", "a b", "not a name Kafka takes"),
        ("AGNT5_TRIGGER_START", "yesterday", "latest, earliest or a time"),
        ("AGNT5_RUN_RETENTION", "soon", "is not a duration"),
        ("AGNT5_MAX_PAYLOAD_BYTES", "1 parsec", "is not a size"),
        ("AGNT5_HTTP", "nowhere", "is not HOST:PORT"),
        ("AGNT5_CREATE_TOPICS", "perhaps", "valid boolean"),
        ("AGNT5_KAFKA_SSL_CA_FILE", "absent.pem", "no file 'absent.pem'"),
        ("AGNT5_DATA_DIR", "~nobody-of-this-name/tables", "home directory"),
        ("AGNT5_KAFKA_SASL_MECHANISM", "MAGIC", "SCRAM-SHA-256"),
        ("AGNT5_ADVERTISED_URL", "example:80", "http://"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{variable}: ")
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_faults_name_the_place_they_came_from() -> None:
    Path("agnt5.toml").write_text('partitions = "many"\ntopic_prefx = "a."\n')
    Path(".env").write_text("AGNT5_STANDBYS=-1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert "'partitions' in agnt5.toml: " in message
    assert "'topic_prefx' in agnt5.toml: there is no such setting; did you mean 'topic_prefix'?" in message
    assert "AGNT5_STANDBYS in .env: " in message


@pytest.mark.parametrize("field", ["url", "advertised_url", "schema_registry_url"])
@pytest.mark.parametrize("url", ["http://10.0.0.5:99999", "http://[::1", "http://:8080"])
def test_an_address_that_cannot_be_one_is_refused_by_name(field: str, url: str) -> None:
    with pytest.raises(SettingsError, match=f"AGNT5_{field.upper()}: must be an http"):
        load_settings(**{field: url})


def test_an_env_file_that_is_not_utf_8_is_named() -> None:
    Path(".env").write_bytes(b"AGNT5_GROUP=\xfc\n")
    with pytest.raises(SettingsError, match=r"\.env is not UTF-8"):
        load_settings()


def test_a_path_in_the_home_directory_is_one_in_a_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ca.pem").touch()
    Path(".env").write_text("AGNT5_DATA_DIR=~/tables\n")
    Path("agnt5.toml").write_text('kafka_ssl_ca_file = "~/ca.pem"\n')
    settings = load_settings()
    assert (settings.data_dir, settings.kafka_ssl_ca_file) == (tmp_path / "tables", tmp_path / "ca.pem")


def test_a_file_that_is_not_toml_is_named() -> None:
    Path("agnt5.toml").write_text("partitions = = 3\n")
    with pytest.raises(SettingsError, match=r"agnt5\.toml is not valid TOML"):
        load_settings()


def test_an_unknown_variable_is_warned_of_with_a_near_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGNT5_PARTITION", "3")
    monkeypatch.setenv("AGNT5_WEBHOOK_GITHUB_SECRET", "s")
    monkeypatch.setenv("AGNT5_PARTITIONS", "3")
    with capture_logs() as logs:
        load_settings()
    assert logs == [
        {
            "event": "setting.unknown",
            "log_level": "warning",
            "variable": "AGNT5_PARTITION",
            "where": "environment",
            "did_you_mean": "AGNT5_PARTITIONS",
        }
    ]


def test_the_warning_leaves_stdout_to_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()
    monkeypatch.setenv("AGNT5_PARTITION", "3")
    load_settings()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "AGNT5_PARTITIONS" in shown.err
    structlog.reset_defaults()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGNT5_PARTITIONS", "")
    assert load_settings().partitions == 8


@pytest.mark.parametrize("address", ["0.0.0.0:8080", ":8080", "[::]:8080", "10.1.2.3:80", "example.org:80"])
def test_listening_beyond_this_machine_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AGNT5_HTTP", address)
    with pytest.raises(SettingsError, match="AGNT5_API_KEYS"):
        load_settings()
    monkeypatch.setenv("AGNT5_API_KEYS", "key")
    assert load_settings().http_is_explicit


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:9000", "[::1]:8080", "127.9.9.9:80"])
def test_listening_on_loopback_needs_no_key(address: str) -> None:
    assert load_settings(http=address).http == address


def test_other_processors_are_told_an_address_they_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().advertised_url_for(8081) == "http://127.0.0.1:8081"
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    assert load_settings(http="0.0.0.0:80", api_keys="k").advertised_url_for(80) == "http://node-7:80"
    assert load_settings(advertised_url="https://a.example/x/").advertised_url_for(1) == "https://a.example/x"


def test_limits_are_collected_by_queue_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("agnt5.toml").write_text(
        '[queue_limits.gpu-large]\nconcurrency = 2\n[function_limits.charge]\nrate = "30/m"\n'
    )
    monkeypatch.setenv("AGNT5_QUEUE_GPU_LARGE_RATE", "10/s")
    settings = load_settings()
    assert settings.queue_limit("gpu-large") == Limit(2, 10.0)
    assert settings.function_limit("charge") == Limit(None, 0.5)
    assert settings.queue_limit("other") is None
    monkeypatch.setenv("AGNT5_QUEUE_GPU_LARGE_RATE", "fast")
    with pytest.raises(SettingsError, match="AGNT5_QUEUE_<NAME>_CONCURRENCY or _RATE: rate 'fast'"):
        load_settings()


@pytest.mark.parametrize("rate", ["0.0", "-1.5", "nan", "inf"])
def test_a_rate_in_the_file_that_lets_nothing_through_is_refused(rate: str) -> None:
    Path("agnt5.toml").write_text(f"[queue_limits.gpu]\nrate = {rate}\n")
    with pytest.raises(SettingsError, match=r"'queue_limits' in agnt5\.toml: rate .* is not executions in a time"):
        load_settings()


def test_webhook_secrets_are_collected_by_source_and_rotate() -> None:
    Path("agnt5.toml").write_text('[webhook_secrets]\nstripe = "old"\nslack = ["a", "b"]\n')
    settings = load_settings(webhook_secrets={"my-shop": "s1, s2"})
    assert settings.webhook_secrets_of("my-shop") == settings.webhook_secrets_of("My_Shop") == ["s1", "s2"]
    assert settings.webhook_secrets_of("slack") == ["a", "b"]
    assert settings.webhook_secrets_of("github") == []


def test_api_keys_are_held_as_digests_and_checked_with_their_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"deploy").hexdigest()
    monkeypatch.setenv("AGNT5_API_KEYS", f"root,read:eyes, start+answer:sha256:{digest}")
    settings = load_settings()
    assert settings.scopes_of("root") == ALL_SCOPES
    assert settings.scopes_of("eyes") == frozenset({"read"})
    assert settings.scopes_of("deploy") == ALL_SCOPES - {"admin"}
    assert settings.scopes_of("other") is settings.scopes_of("") is settings.scopes_of(digest) is None
    assert "root" not in repr(settings)
    assert b"root" not in repr([key.digest for key in settings.api_keys]).encode()


@pytest.mark.parametrize("keys", ["raed:topsecret", "sha256:topsecret", "top secret", "read:", "a:b:topsecret"])
def test_a_malformed_api_key_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("AGNT5_API_KEYS", keys)
    with pytest.raises(SettingsError, match="AGNT5_API_KEYS: ") as caught:
        load_settings()
    assert "topsecret" not in str(caught.value)
    assert "top secret" not in str(caught.value)


def test_kafka_credentials_reach_the_client_and_nothing_else() -> None:
    settings = load_settings(
        broker="kafka://a:9092",
        kafka_security_protocol="sasl_ssl",
        kafka_sasl_mechanism="scram-sha-512",
        kafka_sasl_username="me",
        kafka_sasl_password="hunter2",
        kafka_ssl_check_hostname=False,
    )
    options = settings.kafka_options()
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "hunter2")
    assert options["ssl_context"].check_hostname is False
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump_json(exclude={"api_keys"}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kafka_security_protocol": "SASL_SSL"}, "needs AGNT5_KAFKA_SASL_MECHANISM"),
        ({"kafka_sasl_mechanism": "PLAIN"}, "make it SASL_SSL"),
    ],
)
def test_half_of_the_kafka_credentials_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(broker="kafka://a:9092", **given)


def write_certificate(folder: Path) -> None:
    """`cert.pem`, which is its own authority, and its key: as it is, and under a password."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    for file, encryption in (("key.pem", NoEncryption()), ("locked.pem", BestAvailableEncryption(b"hunter2"))):
        (folder / file).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def test_a_certificate_that_cannot_be_used_is_refused_at_start_by_name(tmp_path: Path) -> None:
    write_certificate(tmp_path)
    (tmp_path / "none.pem").write_text("this is no certificate")

    def load(ca: str = "cert.pem", cert: str = "cert.pem", key: str = "key.pem", password: str | None = None) -> None:
        load_settings(
            broker="kafka://a:9093",
            kafka_security_protocol="SSL",
            kafka_ssl_ca_file=tmp_path / ca,
            kafka_ssl_cert_file=tmp_path / cert,
            kafka_ssl_key_file=tmp_path / key,
            kafka_ssl_key_password=password,
        )

    load()
    load(key="locked.pem", password="hunter2")
    with pytest.raises(SettingsError, match=r"AGNT5_KAFKA_SSL_CA_FILE=.*none\.pem"):
        load(ca="none.pem")
    with pytest.raises(SettingsError, match=r"AGNT5_KAFKA_SSL_CERT_FILE=.*none\.pem"):
        load(cert="none.pem")
    with pytest.raises(SettingsError, match=r"AGNT5_KAFKA_SSL_KEY_FILE=.*none\.pem"):
        load(key="none.pem")
    for password in (None, "another"):  # and nobody is asked for one at a terminal that a service has not
        with pytest.raises(SettingsError, match="AGNT5_KAFKA_SSL_KEY_PASSWORD"):
            load(key="locked.pem", password=password)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604800), ("1s", 1), ("500ms", 0.5), ("1h30m", 5400), ("2.5", 2.5), (3, 3), (timedelta(minutes=1), 60)],
)
def test_durations_are_read_as_people_write_them(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1s", "1y", "1s2", True, float("nan"), float("inf"), None])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("1MiB", 2**20), ("512 kib", 2**19), ("10MB", 10**7), ("7", 7), (9, 9)])
def test_sizes_are_read_as_people_write_them(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5", "1TiBB", True, None])
def test_what_is_no_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_settings_do_not_change_once_loaded() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().partitions = 9


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    missing = [f"AGNT5_{name.upper()}" for name in Settings.model_fields if name not in COLLECTED]
    assert [name for name in missing if f"`{name}`" not in page] == []
