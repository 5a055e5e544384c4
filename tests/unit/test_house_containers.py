"""The compose file, the image and what watches them, checked without a container engine."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from pipeline.commands.flow import Stage
from pipeline.config import Settings
from pipeline.gateways.configured import build_gateways
from pipeline.gateways.notice import NoticeRefused
from pipeline.gateways.simulator.notices import checked_address
from pipeline.gateways.webhook_signature import signed_headers
from pipeline.observability.metrics import Metrics
from tests.house import PACKAGES, TOP, pyproject
from tests.support.cli_runner import command_of

COMPOSE: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ALERTS: dict[str, Any] = yaml.safe_load((TOP / "deploy/prometheus/alerts.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads(
    (TOP / "deploy/grafana/dashboards/paystream.json").read_text()
)
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
]


def test_the_compose_file_follows_the_specification() -> None:
    """Every key and every form is one that docker compose takes."""
    assert compose_findings(COMPOSE) == []


def test_a_misspelt_key_is_noticed() -> None:
    """The specification's schema refuses what compose would refuse."""
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"]["kafka"]["helthcheck"] = {}
    wrong["services"]["payments"]["command"] = 7
    assert len(compose_findings(wrong)) >= 2


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_is_one_that_paystream_has(name: str) -> None:
    """A service does not start with a sub-command or an option that does not exist."""
    parse_command(OURS[name]["command"])


def test_a_command_that_does_not_exist_is_noticed() -> None:
    """The parsing above can fail, by a sub-command and by an option."""
    for wrong in (["run", "paiments"], ["topics", "apply", "--misspelt"], ["nonsense"]):
        with pytest.raises(Exception, match=r"(?i)no such|is not one of"):
            parse_command(wrong)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_setting_is_a_known_one(name: str) -> None:
    """A misspelt variable would be ignored in silence, and its default used."""
    known = {f"PAYSTREAM_{field}".upper() for field in Settings.model_fields}
    named = {key for key in OURS[name]["environment"] if key.startswith("PAYSTREAM_")}
    assert named - known == set()


def test_workers_have_a_node_id_each() -> None:
    """Every stage has its workers, and two of one id would shut each other out for ever."""
    workers = [service for service in OURS.values() if service["command"][0] == "run"]
    assert {worker["command"][1] for worker in workers} == set(Stage)
    ids = [worker["environment"]["PAYSTREAM_NODE_ID"] for worker in workers]
    assert len(set(ids)) == len(ids)


def test_the_endpoint_believes_what_the_simulator_signs() -> None:
    """Address, port and secret of the webhooks are the same at both ends, and its state is kept."""
    sender, receiver = OURS["simulator"], OURS["webhooks"]
    (url,) = [
        word.removeprefix("--notice-url=") for word in sender["command"] if "--notice-url" in word
    ]
    secrets = (filled(sender["environment"]["SIMULATOR_NOTICE_SECRETS"]),)
    checked_address(url, secrets)
    settings = {
        name.removeprefix("PAYSTREAM_").lower(): filled(value)
        for name, value in receiver["environment"].items()
        if "WEBHOOK" in name or "GATEWAYS" in name
    }
    read = Settings(**settings)
    assert url == f"http://webhooks:{read.webhook_port}/webhooks/simulator"
    assert read.gateways["simulator"]["notice_secrets"] == list(secrets)
    told = build_gateways(read.worker_options())["simulator"]
    body = b"{}"
    heard = told.read_notice(signed_headers(secrets, "msg", 100, body), body, 100)
    assert heard == NoticeRefused("unreadable"), "believed, and then looked at"
    assert receiver["volumes"]


def filled(text: str) -> str:
    """With the defaults of its variables, as compose fills them in."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_nothing_is_reachable_from_outside() -> None:
    """The passwords are defaults, so every port is bound to the loopback address."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 7
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_what_a_service_waits_for_can_come_true() -> None:
    """service_healthy needs a health check, service_completed_successfully a one-shot."""
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for {needed}"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert "restart" not in SERVICES[needed], f"{needed} never completes"


def test_what_runs_for_long_has_a_health_check() -> None:
    """A service that is restarted when it dies is also asked whether it is well."""
    for name, service in SERVICES.items():
        assert ("restart" in service) == ("healthcheck" in service), name


def test_mounts_name_what_exists() -> None:
    """A missing file would be mounted as an empty directory, a missing volume refused."""
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (TOP / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_the_image_copies_what_exists_and_what_the_builder_is_sent() -> None:
    """Every COPY finds its source, past .dockerignore, and all five packages are among them."""
    sources = {
        word
        for line in (TOP / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert set(PACKAGES) <= sources
    assert set(pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= sources
    sent = {
        line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for source in sources:
        assert (TOP / source).exists(), source
        assert source in sent, source


def test_prometheus_asks_the_workers_where_they_answer() -> None:
    """Every worker is scraped on the port it is told to serve, and the rules are found."""
    config = yaml.safe_load((TOP / "deploy/prometheus/prometheus.yml").read_text())
    targets = {
        target
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    workers = {
        f"{name}:{service['environment']['PAYSTREAM_METRICS_PORT']}"
        for name, service in OURS.items()
        if service["command"][0] == "run"
    }
    assert targets == workers
    for name in config["rule_files"]:
        assert (TOP / "deploy/prometheus" / name).is_file()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_expression_asks_for_a_metric_and_labels_that_exist(expression: str) -> None:
    """An alert or a panel over a name that nothing reports stays quiet for ever."""
    series = known_series()
    # What the scrape adds, and what a histogram's buckets carry.
    labels = {"job", "instance", "le", "stage"}
    names = re.findall(r"\b(?:paystream_\w+|up)\b", re.sub(r'"[^"]*"', '""', expression))
    assert names
    for name in names:
        assert name in series
        labels |= series[name]
    used = re.findall(r"(\w+)\s*=~?\s*\"", expression)
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        used += [label.strip() for label in group.split(",")]
    assert set(used) - labels == set()


def test_every_metric_is_looked_at() -> None:
    """What the program counts stands in a panel or an alert: else nobody sees it."""
    series = known_series()
    looked_at = {name for text in EXPRESSIONS for name in re.findall(r"\b(?:paystream_\w+)", text)}
    of_metric: dict[str, set[str]] = {}
    for name in series:
        of_metric.setdefault(re.sub(r"_(?:bucket|sum|count)$", "", name), set()).add(name)
    assert {metric for metric, names in of_metric.items() if not names & looked_at} == {"up"}


def test_panels_stand_beside_each_other() -> None:
    """No two panels share a place on the dashboard."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_alert_says_what_it_means_and_how_urgent_it_is() -> None:
    """Whoever is woken reads what happened to the money and where to begin."""
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert len(rule["annotations"]["description"]) > 30, rule["alert"]
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_every_panel_explains_itself_and_reads_the_provisioned_source() -> None:
    """Each panel has a description, and its source is the one that Grafana is given."""
    source = yaml.safe_load(
        (TOP / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"][0]
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["description"]
        assert panel["datasource"]["uid"] == source["uid"]


def compose_findings(content: dict[str, Any]) -> list[str]:
    """What the compose specification's own schema says against a compose file."""
    distribution = importlib.metadata.distribution("check-jsonschema")
    path = Path(
        str(distribution.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json"))
    )
    schema = json.loads(path.read_text())
    validator = validator_for(schema)(schema)
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(content)]


def parse_command(arguments: list[str]) -> None:
    """Parse a command line down to its last sub-command without running it."""
    from pipeline.cli import app

    command: Any = command_of(app)
    context = command.make_context("paystream", list(arguments), resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def known_series() -> dict[str, set[str]]:
    """Name to labels of every series that Prometheus will know."""
    # The supervisor's own collectors stand beside the workers' metrics.
    result: dict[str, set[str]] = {
        "up": set(),
        "paystream_worker_restarts": {"worker"},
        "paystream_consumer_lag": {"group", "topic"},
        "paystream_consumer_stalled_seconds": {"group", "topic"},
    }
    for metric in vars(Metrics()).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        labels = set(metric._labelnames)
        if isinstance(metric, Counter):
            result[f"{metric._name}_total"] = labels
        elif isinstance(metric, Histogram):
            for suffix in ("bucket", "sum", "count"):
                result[f"{metric._name}_{suffix}"] = labels
        else:
            result[metric._name] = labels
    return result
