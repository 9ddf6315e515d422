"""The settings and their checks.

A field is named as its variable, lower-cased and without the prefix: AGNT5_TOPIC_PREFIX is `topic_prefix`, in the file
too. Durations are held in seconds, sizes in bytes.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from agnt5_engine.api_keys import ApiKey, Scope, granted, parse_api_key
from agnt5_engine.limits import Limit, limit_name, parse_limit
from agnt5_engine.records.sealing import AesGcm, parse_keys
from agnt5_engine.settings.addresses import DEFAULT_HTTP, has_host, host_port, is_loopback, redacted, server
from agnt5_engine.settings.sources import PREFIX, dotenv, from_variables, toml
from agnt5_engine.units import Bytes, Seconds

DEFAULT_DIR = ".agnt5"

_TOPIC = re.compile(r"[a-zA-Z0-9._-]+")
_LONGEST_TOPIC = 249  # Kafka's limit


class Settings(BaseSettings):
    """The engine's settings. Raises pydantic's ValidationError; `load_settings` turns that into a SettingsError."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=False)

    # -- the log
    broker: str = f"embedded://{DEFAULT_DIR}"
    """`embedded://DIR`, or `kafka://HOST:PORT[,HOST:PORT...]`."""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_ca_file: Path | None = None
    kafka_ssl_cert_file: Path | None = None
    kafka_ssl_key_file: Path | None = None
    kafka_ssl_key_password: SecretStr | None = None
    kafka_ssl_check_hostname: bool = True
    partitions: int = Field(default=8, ge=1, le=4096)
    """Partitions of the journal: fixed once the topics exist."""
    replication: int | None = Field(default=None, ge=1, le=32)
    """Replicas of each engine topic. None: 3 on Kafka, or as many as there are brokers when there are fewer."""
    topic_prefix: str = "agnt5."
    create_topics: bool = True
    trigger_start: Literal["latest", "earliest"] | datetime = Field(default=cast(Any, None))
    """Where a trigger that was never read before starts: None becomes `earliest` (embedded) or `latest` (Kafka)."""
    schema_registry_url: str | None = Field(default=None, repr=False)  # may carry a password

    # -- the group
    group: str = "agnt5"
    instance_id: str | None = None
    """Static member ID. None: host name and the first free slot of the data directory."""
    session_timeout: Seconds = Field(default=6.0, ge=1, le=1800)
    standbys: int = Field(default=0, ge=0, le=16)
    code_version: str | None = Field(default=None, min_length=1, max_length=100)
    """None: a hash of the workflow modules."""

    # -- runs and steps
    checkpoint_interval: Seconds = Field(default=1.0, ge=0.05, le=60)
    step_concurrency: int = Field(default=1000, ge=1)
    """Async steps that run at once in one process."""
    step_threads: int = Field(default=32, ge=1, le=1024)
    """Threads for plain `def` steps in one process."""
    heartbeat_timeout: Seconds = Field(default=30.0, ge=1)
    """How long a step in a worker pool may be silent before it is given to another worker."""
    queue_limits: Annotated[dict[str, Limit], NoDecode] = Field(default_factory=dict)
    """Queue -> limit in one process, collected from AGNT5_QUEUE_<NAME>_CONCURRENCY (`4`) and _RATE (`10/s`)."""
    function_limits: Annotated[dict[str, Limit], NoDecode] = Field(default_factory=dict)
    """Function -> limit in one process, collected from AGNT5_FUNCTION_<NAME>_CONCURRENCY and _RATE."""
    run_retention: Seconds = Field(default=7 * 86400.0, ge=1)
    max_payload_bytes: Bytes = Field(default=2**20, ge=1024, le=64 * 2**20)

    # -- this process
    data_dir: Path = Field(default=cast(Any, None))
    """Local tables and slots. None becomes the embedded log's directory, else `.agnt5`."""
    http: str = DEFAULT_HTTP
    advertised_url: str | None = None
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = ()
    """`KEY`, `sha256:HEX`, or with scopes `read:KEY`, `start+answer:sha256:HEX`; several by comma."""
    payload_keys: SecretStr | None = None
    """`ID:BASE64[,ID:BASE64...]`: AES keys that seal what the engine keeps; the first seals, all of them open."""
    webhook_secrets: Annotated[dict[str, list[SecretStr]], NoDecode] = Field(default_factory=dict)
    """Source -> secrets, collected from AGNT5_WEBHOOK_<SOURCE>_SECRET (several by comma, for rotation)."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """`auto`: console on a terminal, else JSON."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # -- for commands that talk to a processor
    url: str | None = None
    api_key: SecretStr | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then `.env`, then the file."""
        return (
            init_settings,
            InitSettingsSource(settings_cls, from_variables(os.environ, settings_cls.model_fields)),
            InitSettingsSource(settings_cls, from_variables(dotenv(), settings_cls.model_fields)),
            InitSettingsSource(settings_cls, toml()),
        )

    # -- fields

    @field_validator("broker")
    @classmethod
    def _check_broker(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if separator and scheme == "embedded" and rest:
            return value
        if not separator or scheme not in ("embedded", "kafka"):
            hint = f"kafka://{value}" if re.fullmatch(r"[\w.-]+:\d+", value) else "kafka://HOST:9092"
            raise ValueError(f"{redacted(value)!r} is neither embedded://DIR nor kafka://HOST:PORT; write {hint}")
        if "@" in rest:
            raise ValueError("a broker URL takes no password; use AGNT5_KAFKA_SASL_USERNAME and _SASL_PASSWORD")
        servers = [server(part) for part in rest.rstrip("/").split(",")] if rest else []
        if not servers:
            raise ValueError(f"{value!r} names no {'directory' if scheme == 'embedded' else 'host'}")
        return "kafka://" + ",".join(servers)

    @field_validator("topic_prefix", "group", "instance_id")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and (not _TOPIC.fullmatch(value) or len(value) > 150):
            raise ValueError(f"{value!r} is not a name Kafka takes; use up to 150 letters, digits, '.', '_' and '-'")
        return value

    @field_validator("trigger_start", mode="before")
    @classmethod
    def _check_trigger_start(cls, value: Any) -> Any:
        if value is None or value in ("latest", "earliest") or isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"{value!r} is not latest, earliest or a time such as 2026-01-31T09:00:00Z") from None

    @field_validator("trigger_start")
    @classmethod
    def _aware(cls, value: Any) -> Any:
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value

    @field_validator("kafka_security_protocol", "kafka_sasl_mechanism", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("data_dir", "kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        try:
            return value.expanduser() if value is not None else None  # no shell has done so in .env or the file
        except RuntimeError as error:
            raise ValueError(f"{str(value)!r}: {error}") from None

    @field_validator("kafka_ssl_ca_file", "kafka_ssl_cert_file", "kafka_ssl_key_file")
    @classmethod
    def _file_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {str(value)!r}")
        return value

    @field_validator("http")
    @classmethod
    def _check_http(cls, value: str) -> str:
        host, port = host_port(value)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @field_validator("advertised_url", "url", "schema_registry_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value) or not has_host(value):
            raise ValueError("must be an http:// or https:// address without query, as in http://10.0.0.5:8080")
        return value.rstrip("/")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _parse_api_keys(cls, value: Any) -> tuple[ApiKey, ...]:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, (list, tuple)):
            raise ValueError("must be keys separated by commas")
        return tuple(key if isinstance(key, ApiKey) else parse_api_key(str(key)) for key in value)

    @field_validator("payload_keys")
    @classmethod
    def _check_payload_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            AesGcm(parse_keys(value.get_secret_value()))
        return value

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _parse_webhook_secrets(cls, value: Any) -> dict[str, list[SecretStr]]:
        if not isinstance(value, Mapping):
            raise ValueError("give each source its own variable: AGNT5_WEBHOOK_STRIPE_SECRET, or a table in the file")
        return {_source(name): _secrets(secrets) for name, secrets in value.items()}

    @field_validator("queue_limits", "function_limits", mode="before")
    @classmethod
    def _parse_limits(cls, value: Any) -> dict[str, Limit]:
        if not isinstance(value, Mapping):
            raise ValueError("give a table for each name, with concurrency and rate")
        tables: dict[str, dict[str, Any]] = {}
        for name, table in value.items():  # the file's `gpu-large` and a variable's GPU_LARGE are one
            if isinstance(table, Limit):
                table = {field: part for field, part in table._asdict().items() if part is not None}
            if not isinstance(table, Mapping):
                raise ValueError(f"{name!r} is not a table with concurrency and rate")
            tables.setdefault(limit_name(name), {}).update(table)
        return {name: parse_limit(table) for name, table in tables.items()}

    # -- fields together

    @model_validator(mode="after")
    def _settle(self) -> Settings:
        # `frozen` is for readers: what depends on the transport is filled in once, here.
        if self.trigger_start is None:
            object.__setattr__(self, "trigger_start", "earliest" if self.is_embedded else "latest")
        if self.data_dir is None:
            object.__setattr__(self, "data_dir", self.embedded_dir if self.is_embedded else Path(DEFAULT_DIR))
        sasl = self.kafka_security_protocol.startswith("SASL")
        if sasl and not (self.kafka_sasl_mechanism and self.kafka_sasl_username and self.kafka_sasl_password):
            raise ValueError(
                f"AGNT5_KAFKA_SECURITY_PROTOCOL={self.kafka_security_protocol} needs AGNT5_KAFKA_SASL_MECHANISM, "
                "AGNT5_KAFKA_SASL_USERNAME and AGNT5_KAFKA_SASL_PASSWORD"
            )
        if self.kafka_sasl_mechanism and not sasl:
            raise ValueError(
                "AGNT5_KAFKA_SASL_MECHANISM is set, but AGNT5_KAFKA_SECURITY_PROTOCOL is "
                f"{self.kafka_security_protocol}; make it SASL_SSL or SASL_PLAINTEXT"
            )
        if bool(self.kafka_ssl_cert_file) != bool(self.kafka_ssl_key_file):
            raise ValueError("AGNT5_KAFKA_SSL_CERT_FILE and AGNT5_KAFKA_SSL_KEY_FILE are given together")
        if self.kafka_security_protocol.endswith("SSL"):
            self._ssl_context()
        if not self.api_keys and not is_loopback(self.http_host):
            raise ValueError(
                f"AGNT5_HTTP={self.http} listens beyond this machine, where anyone could start runs; set "
                f"AGNT5_API_KEYS, or listen on 127.0.0.1:{self.http_port}"
            )
        return self

    # -- what follows from them

    @property
    def is_embedded(self) -> bool:
        return self.broker.startswith("embedded://")

    @property
    def embedded_dir(self) -> Path:
        """The directory of the embedded log. Raises ValueError on Kafka."""
        if not self.is_embedded:
            raise ValueError("this engine runs on Kafka; there is no embedded directory")
        return Path(self.broker.removeprefix("embedded://")).expanduser()

    @property
    def bootstrap_servers(self) -> str:
        """`host:port[,host:port]`. Raises ValueError on the embedded log."""
        if self.is_embedded:
            raise ValueError("this engine runs on the embedded log; there are no Kafka brokers")
        return self.broker.removeprefix("kafka://")

    @property
    def journal_topic(self) -> str:
        return f"{self.topic_prefix}journal"

    @property
    def outcomes_topic(self) -> str:
        return f"{self.topic_prefix}outcomes"

    @property
    def changelog_topic(self) -> str:
        return f"{self.topic_prefix}state-changelog"

    @property
    def dead_letters_topic(self) -> str:
        return f"{self.topic_prefix}dead-letters"

    def steps_topic(self, queue: str) -> str:
        """The topic of one queue's step commands. Raises ValueError for a name that Kafka would refuse."""
        name = f"{self.topic_prefix}steps.{queue}"
        if not _TOPIC.fullmatch(queue) or len(name) > _LONGEST_TOPIC:
            raise ValueError(f"queue {queue!r}: use letters, digits, '.', '_' and '-', in all under 200 characters")
        return name

    @property
    def http_host(self) -> str:
        return host_port(self.http)[0]

    @property
    def http_port(self) -> int:
        return host_port(self.http)[1]

    @property
    def http_is_explicit(self) -> bool:
        """Whether someone chose the address: then a port that is taken is an error, else the next free one is used."""
        return "http" in self.model_fields_set

    def advertised_url_for(self, port: int) -> str:
        """Where other processors and clients reach this one, now that it listens on `port`."""
        if self.advertised_url:
            return self.advertised_url
        host = self.http_host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def scopes_of(self, presented: str) -> frozenset[Scope] | None:
        """What the bearer of this API key may do; None for a key that is not ours. Constant-time."""
        return granted(self.api_keys, presented)

    def webhook_secrets_of(self, source: str) -> list[str]:
        """The secrets of a webhook source, newest first; empty when none is set."""
        return [secret.get_secret_value() for secret in self.webhook_secrets.get(_source(source), [])]

    def queue_limit(self, queue: str) -> Limit | None:
        """How much of this queue one process does; None: as much as it can."""
        return self.queue_limits.get(limit_name(queue))

    def function_limit(self, function: str) -> Limit | None:
        """How much of this function one process does; None: as much as it can."""
        return self.function_limits.get(limit_name(function))

    @property
    def run_retention_ms(self) -> int:
        return round(self.run_retention * 1000)

    def kafka_options(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes: servers, security protocol, credentials, TLS context."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_sasl_mechanism and self.kafka_sasl_password:
            options["sasl_mechanism"] = self.kafka_sasl_mechanism
            options["sasl_plain_username"] = self.kafka_sasl_username
            options["sasl_plain_password"] = self.kafka_sasl_password.get_secret_value()
        if self.kafka_security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        """Raises ValueError that names the file which cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.kafka_ssl_ca_file)
        except OSError as error:
            raise ValueError(f"AGNT5_KAFKA_SSL_CA_FILE={self.kafka_ssl_ca_file}: {error}") from None
        context.check_hostname = self.kafka_ssl_check_hostname
        if self.kafka_ssl_cert_file and self.kafka_ssl_key_file:
            # Without any password OpenSSL would ask the terminal for one.
            password = self.kafka_ssl_key_password.get_secret_value() if self.kafka_ssl_key_password else ""
            try:
                context.load_cert_chain(self.kafka_ssl_cert_file, self.kafka_ssl_key_file, password)
            except OSError as error:
                raise ValueError(
                    f"AGNT5_KAFKA_SSL_CERT_FILE={self.kafka_ssl_cert_file} with AGNT5_KAFKA_SSL_KEY_FILE="
                    f"{self.kafka_ssl_key_file} and its AGNT5_KAFKA_SSL_KEY_PASSWORD: {error}"
                ) from None
        return context


def _source(name: str) -> str:
    """A webhook source as its variable can name it: `my-shop` is AGNT5_WEBHOOK_MY_SHOP_SECRET."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


def _secrets(value: Any) -> list[SecretStr]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, (str, SecretStr)) for part in parts):
        raise ValueError("a webhook secret is text, or a list of texts")
    secrets = [part if isinstance(part, SecretStr) else SecretStr(part.strip()) for part in parts]
    secrets = [secret for secret in secrets if secret.get_secret_value()]
    if not secrets:
        raise ValueError("a webhook secret is empty")
    return secrets
