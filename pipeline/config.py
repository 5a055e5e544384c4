"""Settings of the program: environment over file over defaults, checked at start.

Every setting can be given as ``PAYSTREAM_<NAME>`` in the environment or in a TOML file (named by
``PAYSTREAM_CONFIG``, else ``paystream.toml`` in the working directory, if there is one). Options of
a command go before both.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.embedded.processes import ProcessIdentity, is_alive
from pipeline.errors import UserError, why_unread
from pipeline.kafka_access import read_access, use_access
from topics.catalogue import Catalogue, TopicSettings, build_catalogue

# What Kafka takes in the names of topics and group members; short enough to leave room for ours.
NAME = r"^[A-Za-z0-9._-]{0,100}$"

PREFIX = "PAYSTREAM_"
# Other names with our prefix, which are no settings.
NO_SETTINGS = {"PAYSTREAM_CONFIG", "PAYSTREAM_CACHE_DIR"}

# Written by `paystream up` in the state directory while it runs.
RUNNING_FILE = "up.json"


def state_home() -> Path:
    """Where this machine keeps brokers' data, caches and books: never in the working tree."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "paystream"


class _RunningFlow(PydanticBaseSettingsSource):
    """What `paystream up` says of itself, so that commands beside it need no options."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        known = self.current_state.get("state_dir")
        said = _running_flow(Path(known).expanduser() if known else state_home())
        brokers = self.current_state.get("bootstrap_servers")
        if brokers not in (None, said.get("bootstrap_servers")):
            # Another cluster was named: this machine's books and gateway are not its.
            return {}
        return {
            name: said[name]
            for name in (
                "bootstrap_servers",
                "gateway_url",
                "gateways",
                "ledger_url",
                "topic_prefix",
                "partitions",
            )
            if name in said
        }


def _running_flow(state_dir: Path) -> dict[str, Any]:
    """What an `up` that runs there has written of itself; nothing where none runs."""
    try:
        said: dict[str, Any] = json.loads((state_dir / RUNNING_FILE).read_text())
        # With its start: another process may have the pid of an `up` that was killed.
        running = is_alive(ProcessIdentity(int(said["pid"]), said["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return said if running else {}


class Settings(BaseSettings):
    """All of them, with their units in the names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid")

    bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port,...")
    kafka: Annotated[dict[str, Any], NoDecode] = Field(
        default_factory=dict,
        repr=False,
        description="How the brokers are reached: librdkafka's TLS and SASL properties as a table, "
        "as JSON in the environment; see docs/operations.md.",
    )
    node_id: str = Field(
        "",
        pattern=NAME,
        description="Cluster-unique name of this machine; needed once there are several.",
    )
    topic_prefix: str = Field(
        "", pattern=NAME, description="Put before every topic and group name."
    )
    partitions: int = Field(12, ge=1, le=10_000, description="Of every topic of the flow.")
    replication_factor: int = Field(1, ge=1, le=10, description="Copies of every partition.")
    min_insync_replicas: int = Field(
        1, ge=1, le=10, description="Copies that must have a record before it counts as written."
    )
    retention_ms: int = Field(7 * 86_400_000, ge=60_000, description="Of the stream topics.")
    retry_delay_ms: int = Field(5_000, ge=100, description="Delay of the first retry tier.")
    inquiry_delay_ms: int = Field(5_000, ge=100, description="Delay of the first inquiry tier.")
    timer_delay_ms: int = Field(60_000, ge=100, description="Delay of the first timer tier.")
    retry_max: int = Field(5, ge=0, description="Tries of a request that was not sent.")
    inquiry_max: int = Field(83, ge=1, description="Questions about an unknown outcome.")
    gateway_grace_ms: int = Field(
        30_000, ge=0, description="How long a gateway may say not found of a charge it made."
    )
    gateway_key_retention_ms: int = Field(
        86_400_000, ge=60_000, description="How long the gateway remembers an idempotency key."
    )
    send_within_ms: int = Field(60_000, ge=1_000, description="How long a request may be sent.")
    clock_skew_ms: int = Field(
        5_000, ge=0, description="By how much this machine's clock may differ from the brokers'."
    )
    review_ms: int = Field(
        7 * 86_400_000, ge=60_000, description="How long a payment may wait for a person's review."
    )
    risk_rules: str = Field(
        "", description="File of the risk rules (TOML or JSON); empty assesses nothing."
    )
    attempt_caps: str = Field(
        "networks",
        description="Caps on attempts with a card: `networks` as the card networks ask, `off` "
        "counts nothing across payments, else a file (TOML or JSON).",
    )
    schema_registry_url: str = Field("", description="Ids from a registry; else from the lock.")
    ledger_url: str = Field("", description="SQLAlchemy URL; else SQLite in the state directory.")
    gateway_url: str = Field("http://127.0.0.1:8400", description="Base URL of the gateway.")
    gateway_name: str = Field("simulator", description="Name of the gateway in the records.")
    gateways: Annotated[dict[str, Any], NoDecode] = Field(
        default_factory=dict,
        description="Several gateways by name, instead of the one above; see docs/gateways.md.",
    )
    gateway_in_process: bool = Field(
        False, description="Benchmarks only: answer charges in memory instead of over HTTP."
    )
    routes_file: str = Field(
        "",
        description="Routing rules, TOML or JSON, until a control entry replaces them.",
    )
    in_flight_max: int = Field(256, ge=1, le=10_000, description="Open calls of one worker.")
    call_timeout_ms: int = Field(10_000, ge=100, description="Soft deadline of one gateway call.")
    open_requests_max: int = Field(
        20_000, ge=1, description="New orders are held back while more requests wait."
    )
    hot_payments_max: int = Field(20_000, ge=2, description="Payments held in a worker's memory.")
    batch_records_max: int = Field(4_000, ge=1, description="Input records of a transaction.")
    batch_age_ms_max: int = Field(
        100,
        ge=0,
        description="How long a batch grows under load; what is at hand and fills it is not cut.",
    )
    webhook_port: int = Field(
        8420,
        ge=0,
        le=65_535,
        description="Where `run webhooks` hears gateways; 0 takes a free one.",
    )
    webhook_host: str = Field("127.0.0.1", description="Where `run webhooks` listens.")
    reconciliation_rules: str = Field(
        "",
        description="File of what reconciliation allows each gateway (TOML or JSON); see "
        "docs/reconciliation.md.",
    )
    merchant_endpoints: str = Field(
        "",
        description="File of the merchants' webhook endpoints (TOML or JSON); see "
        "docs/notifications.md.",
    )
    callbacks_url: str = Field(
        "",
        description="SQLAlchemy URL of the callbacks; else SQLite in the state directory.",
    )
    callback_retry_ms: int = Field(
        5_000, ge=100, description="Wait before the second try of a callback; later ones grow."
    )
    callback_tries_max: int = Field(
        12, ge=1, le=100, description="Tries of a callback before it is given up."
    )
    callback_start: str = Field(
        "earliest",
        pattern="^(earliest|latest)$",
        description="Which events merchants are told of when `run notifications` begins.",
    )
    callback_allow_http: bool = Field(
        False, description="Whether an endpoint may be http:// as well."
    )
    callback_allow_private: bool = Field(
        False, description="Whether an endpoint may be in a private or loopback range."
    )
    state_dir: Path = Field(default_factory=state_home, description="Caches, data and books.")
    metrics_port: int = Field(9464, ge=0, le=65_535, description="0 takes a free one.")
    metrics_host: str = Field("127.0.0.1", description="Where the metrics are served.")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="What the workers log."
    )
    broker_heap_mb: int = Field(512, ge=256, description="Heap of an embedded broker.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = TomlConfigSettingsSource(settings_cls, config_file())
        return (init_settings, env_settings, file, _RunningFlow(settings_cls))

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        """The ledger's address is made of it, and is told to commands in other directories."""
        return path.expanduser().absolute()

    @field_validator("kafka", mode="before")
    @classmethod
    def _reachable(cls, given: Any) -> Any:
        """The properties as the client takes them, what stands in files of their own read in."""
        return read_access(_table(given, "properties"))

    @field_validator("gateways", mode="before")
    @classmethod
    def _meant(cls, given: Any) -> Any:
        """Checked as a whole at start; JSON where it comes from the environment."""
        from pipeline.gateways.configured import read_gateways

        given = _table(given, "gateways by name")
        read_gateways(given)
        return given

    def topic_settings(self) -> TopicSettings:
        return TopicSettings(
            prefix=self.topic_prefix,
            partitions=self.partitions,
            replication_factor=self.replication_factor,
            min_insync_replicas=self.min_insync_replicas,
            retention_ms=self.retention_ms,
            retry_delay_ms=self.retry_delay_ms,
            inquiry_delay_ms=self.inquiry_delay_ms,
            timer_delay_ms=self.timer_delay_ms,
        )

    def catalogue(self) -> Catalogue:
        return build_catalogue(self.topic_settings())

    def worker_options(self) -> dict[str, Any]:
        """What a worker process is told beyond its identity. UserError for routing rules that
        cannot be used."""
        options = {
            name: getattr(self, name)
            for name in (
                "retry_max",
                "inquiry_max",
                "gateway_grace_ms",
                "gateway_key_retention_ms",
                "send_within_ms",
                "clock_skew_ms",
                "review_ms",
                "schema_registry_url",
                "kafka",
                "gateway_url",
                "gateway_name",
                "gateways",
                "gateway_in_process",
                "in_flight_max",
                "call_timeout_ms",
                "open_requests_max",
                "hot_payments_max",
                "batch_records_max",
                "batch_age_ms_max",
                "webhook_host",
                "webhook_port",
                "merchant_endpoints",
                "callback_retry_ms",
                "callback_tries_max",
                "callback_start",
                "callback_allow_http",
                "callback_allow_private",
                "log_level",
            )
        } | {
            "ledger_url": self.books_url(),
            "callbacks_url": self.callbacks_database(),
            "attempt_caps": self.attempt_caps_text(),
        }
        return options | {"routes": self._routes(options)}

    def _routes(self, options: dict[str, Any]) -> str:
        """The configuration's own routing document as JSON, empty for none."""
        if not self.routes_file:
            return ""
        from pipeline.runtime.policy_options import check_routes, policy_of, read_routes_file

        text = read_routes_file(Path(self.routes_file))
        check_routes(policy_of(options), text, self.routes_file)
        return text

    def gateway_urls(self) -> tuple[str, ...]:
        """Where the gateways are, each with its books (``gateway_url`` may name several)."""
        from pipeline.gateways.configured import read_gateways

        if self.gateways:
            return tuple(entry.url for entry in read_gateways(self.gateways).values())
        return tuple(url.strip() for url in self.gateway_url.split(",") if url.strip())

    def risk_rules_text(self) -> str:
        """The text of the risk rules, "" when none are set; UserError when they are wrong.

        Read once where workers are started, so that all of them have the same rules, and one that
        is restarted does not begin with a file that was changed meanwhile.
        """
        if not self.risk_rules:
            return ""
        from pipeline.domain.risk_rules import read_rules

        try:
            text = Path(self.risk_rules).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"the risk rules {self.risk_rules} cannot be read: {why_unread(error)}. Name "
                "another file in PAYSTREAM_RISK_RULES, or leave it out to assess nothing."
            ) from error
        read_rules(text, self.risk_rules)
        return text

    def attempt_caps_text(self) -> str:
        """The text of the caps on attempts, or the setting's own word; UserError when the file
        cannot be used. Read once, as the risk rules are."""
        from pipeline.domain.cap_rules import NETWORKS, OFF, read_caps

        if self.attempt_caps in (NETWORKS, OFF):
            return self.attempt_caps
        try:
            text = Path(self.attempt_caps).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(
                f"the caps on attempts {self.attempt_caps} cannot be read: {why_unread(error)}. "
                f"Name another file in PAYSTREAM_ATTEMPT_CAPS, or {NETWORKS}, or {OFF}."
            ) from error
        read_caps(text, self.attempt_caps)
        return text

    @property
    def counts(self) -> bool:
        """Whether the flow needs the risk stage: for rules, or for attempts with a card."""
        return bool(self.risk_rules) or self.attempt_caps != "off"

    def books_url(self) -> str:
        """The ledger's database: as configured, else SQLite in the state directory."""
        return self.ledger_url or self._sqlite_url("ledger.sqlite")

    def callbacks_database(self) -> str:
        """The callbacks' database: as configured, else SQLite in the state directory."""
        return self.callbacks_url or self._sqlite_url(f"{self.topic_prefix}callbacks.sqlite")

    def _sqlite_url(self, name: str) -> str:
        from sqlalchemy import URL  # here, since most commands do without it and start sooner

        # A folder's name may hold what has a meaning in a URL: ?, % and #.
        file = str(self.state_dir / name)
        return URL.create("sqlite", database=file).render_as_string(hide_password=False)


def _table(given: Any, of: str) -> dict[str, Any]:
    """A table, or one as JSON, which is how the environment has it."""
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except ValueError:
            raise ValueError("it is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError(f"it is not a table of {of}")
    return given


def load_settings(**given: Any) -> Settings:
    """Settings with the options that were given on the command line; None means not given.

    From here on the clients of this process reach their brokers as the settings say.
    """
    path = config_file()
    if os.environ.get("PAYSTREAM_CONFIG") and not path.is_file():
        raise UserError(f"PAYSTREAM_CONFIG names {path}, which is not a file.")
    for name in sorted(os.environ):
        meant = _misspelt(name)
        if meant:
            raise UserError(f"there is no setting {name}; did you mean {meant}?")
    try:
        settings = Settings(**{n: value for n, value in given.items() if value is not None})
    except ValidationError as error:
        raise UserError(_what_is_wrong(error, path)) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"the configuration file {path} cannot be read: {why_unread(error)}."
        ) from error
    here = _running_flow(settings.state_dir).get("bootstrap_servers") if settings.kafka else None
    if settings.bootstrap_servers == here:
        # This machine's own broker asks for nothing, whatever a production cluster does.
        settings = settings.model_copy(update={"kafka": {}})
    use_access(settings.kafka)
    if settings.kafka:
        from pipeline.kafka_refusal import usable_access  # a client library, which few need here

        usable_access()
    return settings


def config_file() -> Path:
    """The file that settings are read from, whether or not it is there."""
    return Path(os.environ.get("PAYSTREAM_CONFIG") or "paystream.toml")


def _misspelt(variable: str) -> str | None:
    """The setting that this variable of the environment misses by a letter or two."""
    if not variable.startswith(PREFIX) or variable in NO_SETTINGS:
        return None
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    if variable in known:
        return None
    # Others may use the prefix for their own ends; only a near miss is surely meant for us.
    near = difflib.get_close_matches(variable, known, n=1, cutoff=0.93)
    return near[0] if near else None


def _what_is_wrong(error: ValidationError, path: Path) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it."
        return f"there is no setting {name!r}, which {path} sets; {hint}"
    table = name.split(".")[0]
    if table in ("gateways", "kafka"):
        # What was given is not repeated: there may be secrets in it.
        said = first["msg"].removeprefix("Value error, ")
        return (
            f"the setting {table} ({PREFIX}{table.upper()}, or {table} in {path}) is wrong: {said}."
        )
    return (
        f"the setting {name} ({PREFIX}{name.upper()}, or {name} in {path}) is wrong: "
        f"{first['msg']}, not {first['input']!r}."
    )
