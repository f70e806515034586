"""The chart: what it renders is valid, confined, and does not take the system away while it changes."""

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy import chart as sources
from deploy.helm.tests.rendering import (
    CHART,
    EXAMPLES,
    KUBERNETES,
    VALUES,
    Manifest,
    chart,
    containers,
    of_kind,
    pods,
    problems,
    render,
    selects,
)
from deploy.settings_page import settings_classes
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from stack import nats
from stack.services import TOLLHOUSE

SERVICES = [spec.name for spec in TOLLHOUSE.services]
DATABASES = [spec.name for spec in TOLLHOUSE.services if spec.database]
COMPONENT = "app.kubernetes.io/component"

every_example = pytest.mark.parametrize("example", VALUES)
install_and_upgrade = pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])


def component(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"][COMPONENT])


def named(manifests: list[Manifest], kind: str, part: str) -> Manifest:
    (found,) = [one for one in of_kind(manifests, kind) if component(one) == part]
    return found


@every_example
@install_and_upgrade
def test_every_kubernetes_takes_it(example: str, upgrade: bool) -> None:
    manifests = render(VALUES[example], upgrade=upgrade)
    assert [
        problem for version in KUBERNETES for one in manifests for problem in problems(one, version)
    ] == []


@every_example
def test_helm_lint_finds_nothing(example: str) -> None:
    report = lint(CHART, VALUES[example], strict=True)
    assert [message for message in report["messages"] if message["severity"] >= 2] == []
    assert report["errors"] == []


def test_the_examples_use_what_the_chart_offers() -> None:
    kinds = {one["kind"] for values in VALUES.values() for one in render(values)}
    assert {
        "Cluster",
        "HTTPRoute",
        "Ingress",
        "ScaledObject",
        "ServiceMonitor",
        "HorizontalPodAutoscaler",
    } <= kinds
    assert EXAMPLES.keys() == {"trial", "production", "multi-zone"}


@every_example
@install_and_upgrade
def test_names_are_unique(example: str, upgrade: bool) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in render(VALUES[example], upgrade=upgrade)]
    assert len(names) == len(set(names))


@every_example
@install_and_upgrade
def test_every_service_has_its_own_of_everything(example: str, upgrade: bool) -> None:
    manifests = render(VALUES[example], upgrade=upgrade)
    for kind in ("Deployment", "Service", "ServiceAccount", "NetworkPolicy"):
        assert set(SERVICES) <= {component(one) for one in of_kind(manifests, kind)}, kind
    accounts = [
        spec["serviceAccountName"]
        for _, _, spec in pods(of_kind(manifests, "Deployment", "Job", "StatefulSet"))
    ]
    assert len(accounts) == len(set(accounts))
    assert {component(one).removeprefix("migrate-") for one in of_kind(manifests, "Job")} == {
        *DATABASES,
        "streams",
    }


def secrets_of(spec: Manifest) -> set[str]:
    found = set()
    for volume in spec["volumes"]:
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            if "secret" in source:
                found.add(source["secret"].get("name") or source["secret"]["secretName"])
    return found


@every_example
@install_and_upgrade
def test_no_two_services_share_a_secret(example: str, upgrade: bool) -> None:
    owners: dict[str, set[str]] = {}
    for one in of_kind(render(VALUES[example], upgrade=upgrade), "Deployment", "Job"):
        for secret in secrets_of(one["spec"]["template"]["spec"]):
            owners.setdefault(secret, set()).add(component(one).removeprefix("migrate-"))
    assert {service for shared in owners.values() for service in shared} >= set(SERVICES)
    assert {secret: shared for secret, shared in owners.items() if len(shared) > 1} == {}


@every_example
@install_and_upgrade
def test_every_pod_fits_the_restricted_profile(example: str, upgrade: bool) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, rule by rule, and a bit more."""
    for name, _, spec in pods(render(VALUES[example], upgrade=upgrade)):
        assert not spec.keys() & {
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "hostUsers",
            "shareProcessNamespace",
        }, name
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "sysctls" not in context
        for volume in spec.get("volumes", []):
            assert (volume.keys() - {"name"}) <= {"configMap", "emptyDir", "projected", "secret"}, name
        for one in containers(spec):
            inner = one["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False
            assert inner["capabilities"] == {"drop": ["ALL"]}
            assert inner["readOnlyRootFilesystem"] is True
            assert not inner.keys() & {"privileged", "procMount", "seLinuxOptions", "windowsOptions"}
            assert not any("hostPort" in port for port in one.get("ports", []))
            assert one["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert one["resources"]["limits"]["memory"]
        assert spec["automountServiceAccountToken"] is False
        # Kubernetes' own variables for Services have names of our settings: ITEMS_PORT.
        assert spec["enableServiceLinks"] is False


@every_example
def test_no_account_has_a_token(example: str) -> None:
    for account in of_kind(render(VALUES[example]), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@every_example
@install_and_upgrade
def test_selectors_match_their_pods_and_no_others(example: str, upgrade: bool) -> None:
    manifests = render(VALUES[example], upgrade=upgrade)
    labels = {name: metadata["labels"] for name, metadata, _ in pods(manifests)}
    for one in of_kind(manifests, "Deployment", "StatefulSet"):
        own = f"{one['kind']}/{one['metadata']['name']}"
        assert [name for name in labels if selects(one["spec"]["selector"], labels[name])] == [own]
    for one in of_kind(manifests, "Service"):
        matched = [name for name in labels if selects({"matchLabels": one["spec"]["selector"]}, labels[name])]
        assert len(matched) == 1
        (spec,) = [spec for name, _, spec in pods(manifests) if name in matched]
        ports = {port["name"] for part in spec["containers"] for port in part.get("ports", [])}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
    for one in of_kind(manifests, "PodDisruptionBudget"):
        assert len([name for name in labels if selects(one["spec"]["selector"], labels[name])]) == 1


@every_example
def test_whoever_has_more_than_one_pod_has_a_disruption_budget(example: str) -> None:
    manifests = render(VALUES[example])
    for one in of_kind(manifests, "Deployment"):
        service = component(one)
        scaled = [
            by
            for by in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
            if component(by) == service
        ]
        least = one["spec"].get("replicas")
        assert (least is None) == bool(scaled)
        for by in scaled:
            least = by["spec"].get("minReplicas") or by["spec"]["minReplicaCount"]
        budgets = [
            budget for budget in of_kind(manifests, "PodDisruptionBudget") if component(budget) == service
        ]
        assert len(budgets) == (1 if least > 1 else 0)


@every_example
def test_probes_ask_different_things(example: str) -> None:
    for one in of_kind(render(VALUES[example]), "Deployment"):
        (main,) = one["spec"]["template"]["spec"]["containers"]
        startup, readiness, liveness = (main[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
        assert readiness["httpGet"]["path"] == "/health/ready"
        assert liveness["httpGet"]["path"] == startup["httpGet"]["path"] == "/health"
        # A pod is taken out before it is killed, and may take its time to come up.
        assert (
            liveness["periodSeconds"] * liveness["failureThreshold"]
            > readiness["periodSeconds"] * readiness["failureThreshold"]
        )
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
        # shared.health.CHECK_TIMEOUT is two seconds.
        assert readiness["timeoutSeconds"] > 2


@pytest.mark.parametrize(
    "values", [{}, {"shutdownTimeout": 90, "preStopSeconds": 15}], ids=["default", "longer"]
)
def test_a_pod_has_the_time_its_drain_may_take(values: dict[str, Any]) -> None:
    for one in of_kind(render(values), "Deployment"):
        spec = one["spec"]["template"]["spec"]
        (main,) = spec["containers"]
        drain = int(next(entry["value"] for entry in main["env"] if entry["name"] == "SHUTDOWN_TIMEOUT"))
        assert drain == values.get("shutdownTimeout", 20)
        pause = main["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert spec["terminationGracePeriodSeconds"] >= pause + drain + 5
        assert one["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def hook(manifest: Manifest) -> tuple[str, int] | None:
    annotations = manifest["metadata"].get("annotations") or {}
    kind = annotations.get("helm.sh/hook")
    return (kind, int(annotations.get("helm.sh/hook-weight", 0))) if kind else None


@every_example
def test_an_install_waits_for_no_hook(example: str) -> None:
    """With --wait, hooks after the install would wait for pods, and these for the hooks' work."""
    assert {hook(one) for one in render(VALUES[example])} <= {None, ("test", 0)}
    for one in of_kind(render(VALUES[example]), "Deployment"):
        waiting = [part["args"] for part in one["spec"]["template"]["spec"].get("initContainers", [])]
        assert waiting == ([["await-schema"]] if component(one) in DATABASES else [])


@every_example
def test_an_upgrade_migrates_before_it_changes_anything(example: str) -> None:
    manifests = render(VALUES[example], upgrade=True)
    jobs = {component(one): one for one in of_kind(manifests, "Job")}
    for name in (*(f"migrate-{service}" for service in DATABASES), "streams"):
        kind, weight = hook(jobs[name]) or ("", 0)
        assert kind == "pre-upgrade"
        spec = jobs[name]["spec"]["template"]["spec"]
        # All that the Job needs is there before it, as this version wants it; what is yours (an existing Secret) is there anyway.
        needs = {("ServiceAccount", spec["serviceAccountName"])}
        needs |= {("Secret", secret) for secret in secrets_of(spec)}
        before = {
            (one["kind"], one["metadata"]["name"])
            for one in manifests
            if (hook(one) or ("", weight))[1] < weight
        }
        rendered = {(one["kind"], one["metadata"]["name"]) for one in manifests}
        kept = {("Secret", "shop-tollhouse-nats")}  # of the operator; nothing in it changes
        assert (needs & rendered) - kept <= before
        policies = [one for one in of_kind(manifests, "NetworkPolicy") if component(one) == name]
        assert all((hook(policy) or ("", weight))[1] < weight for policy in policies)


def test_a_job_is_never_changed_in_place() -> None:
    """`helm template` and GitOps render installs only; a Job's pod cannot be changed."""
    names = [
        {one["metadata"]["name"] for one in of_kind(render({"images": {"tag": tag}}), "Job")}
        for tag in ("1", "2")
    ]
    assert len(names[0]) == len(DATABASES) + 1
    assert names[0].isdisjoint(names[1])


def allowed(manifests: list[Manifest], source: str, target: str, port: int) -> bool:
    """Whether the policies let a component's pods reach another's on a port, at both ends."""
    labels = {metadata["labels"][COMPONENT]: metadata["labels"] for _, metadata, _ in pods(manifests)}

    def rules(part: str, way: str) -> list[Manifest]:
        policies = [
            one["spec"]
            for one in of_kind(manifests, "NetworkPolicy")
            if selects(one["spec"]["podSelector"], labels[part])
        ]
        assert policies, f"no policy holds for {part}"
        return [rule for policy in policies for rule in policy.get(way, [])]

    def lets(rule: Manifest, side: str, other: str) -> bool:
        if "ports" in rule and port not in [entry["port"] for entry in rule["ports"]]:
            return False
        return side not in rule or any(
            "podSelector" in peer
            and "namespaceSelector" not in peer
            and selects(peer["podSelector"], labels[other])
            for peer in rule[side]
        )

    return any(lets(rule, "to", target) for rule in rules(source, "egress")) and any(
        lets(rule, "from", source) for rule in rules(target, "ingress")
    )


@install_and_upgrade
def test_pods_reach_what_they_need_and_nothing_else(upgrade: bool) -> None:
    manifests = render({}, upgrade=upgrade)
    jobs = [f"migrate-{service}" for service in DATABASES]
    expected = {(one, "nats", 4222) for one in (*SERVICES, "streams")}
    expected |= {(one, "postgresql", 5432) for one in (*DATABASES, *jobs)}
    expected |= {(spec.name, other, 8000) for spec in TOLLHOUSE.services for other in spec.after}
    expected |= {("test", "gateway", 8000)}
    everybody = [*SERVICES, *jobs, "streams", "nats", "postgresql", "test"]
    found = {
        (source, target, port)
        for source in everybody
        for target in everybody
        for port in (4222, 5432, 8000, 8222, 9000)
        if source != target and allowed(manifests, source, target, port)
    }
    assert found == expected


@every_example
def test_without_a_rule_nothing_passes(example: str) -> None:
    manifests = render(VALUES[example])
    deny = named(manifests, "NetworkPolicy", "deny")["spec"]
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}
    assert not deny.keys() & {"ingress", "egress"}
    for name, metadata, _ in pods(manifests):
        assert selects(deny["podSelector"], metadata["labels"]), name


def test_databases_of_their_own_are_reached_by_their_services_only() -> None:
    manifests = render(VALUES["multi-zone"])
    for service in DATABASES:
        cidr = EXAMPLES["multi-zone"]["services"][service]["database"]["peers"][0]["ipBlock"]["cidr"]
        holders = {component(one) for one in of_kind(manifests, "NetworkPolicy") if cidr in str(one["spec"])}
        assert holders == {service, f"migrate-{service}"}


@every_example
@install_and_upgrade
def test_every_variable_is_a_setting_and_what_is_required_is_there(example: str, upgrade: bool) -> None:
    for one in of_kind(render(VALUES[example], upgrade=upgrade), "Deployment", "Job"):
        name = component(one).removeprefix("migrate-")
        settings = settings_classes()[name]
        for part in containers(one["spec"]["template"]["spec"]):
            given = set()
            for entry in part["env"]:
                variable = entry["name"].removesuffix("_FILE")
                field = variable.lower().removeprefix(f"{name}_")
                assert field in settings.model_fields, f"{name}: {variable}"
                given.add(field)
            required = {field for field, info in settings.model_fields.items() if info.is_required()}
            assert required <= given


@every_example
def test_the_services_accept_their_settings(
    example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the pods get them, with any value for the secrets."""
    for one in of_kind(render(VALUES[example]), "Deployment"):
        name = component(one)
        with monkeypatch.context() as environment:
            for entry in one["spec"]["template"]["spec"]["containers"][0]["env"]:
                value = entry["value"]
                if value.startswith("/run/secrets/tollhouse/"):
                    file = tmp_path / value.rpartition("/")[2]
                    any_key = base64.b64encode(bytes(32)).decode()
                    file.write_text(any_key if value.endswith("-key") else "smtp://mail.example.com")
                    value = str(file)
                environment.setenv(entry["name"], value)
            settings = settings_classes()[name].load()
        assert str(settings.token_issuer) == VALUES[example].get("publicUrl", "http://localhost:8000")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"replicas": 2}, "replicas"),
        ({"services": {"itmes": {}}}, "itmes"),
        ({"services": {"users": {"settings": {"ACCESS_TOKEN_TLL": 600}}}}, "ACCESS_TOKEN_TLL"),
        ({"services": {"users": {"settings": {"KEY_ENCRYPTION_KEY": "x"}}}}, "KEY_ENCRYPTION_KEY"),
        ({"services": {"users": {"secret": {"values": {"database_url": "x"}}}}}, "database_url"),
        ({"settings": {"LOG_LEVLE": "debug"}}, "LOG_LEVLE"),
        ({"services": {"items": {"replicas": "three"}}}, "replicas"),
        ({"services": {"items": {"image": {"digest": "latest"}}}}, "digest"),
        ({"publicUrl": "https://example.com/"}, "publicUrl"),
        ({"ingress": {"enabled": True, "host": "api.example.com"}}, "trustedProxies is missing"),
        ({"nats": {"bundled": False}}, "nats.url is missing"),
        ({"postgresql": {"bundled": False}}, "services.items.secret: give existing, or values.database-url"),
        ({"secrets": {"generate": False}}, "lacks nats-password"),
        ({"services": {"gateway": {"keda": {"enabled": True}}}}, "consumes no events"),
        (
            {"services": {"items": {"keda": {"enabled": True}, "autoscaling": {"enabled": True}}}},
            "enable one of them",
        ),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "needs metrics.enabled"),
    ],
    ids=str,
)
def test_a_mistake_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError, match=sentence):
        render(values)


def test_a_made_up_secret_fits_its_setting_and_is_the_same_everywhere() -> None:
    manifests = render({}, upgrade=True)
    secrets = {one["metadata"]["name"]: one["data"] for one in of_kind(manifests, "Secret")}
    decoded = {
        name: {key: base64.b64decode(value).decode() for key, value in data.items()}
        for name, data in secrets.items()
    }
    for service in DATABASES:
        own = decoded[f"shop-tollhouse-{service}"]
        assert (
            own["database-url"]
            == f"postgresql://{service}:{own['database-password']}@shop-tollhouse-postgresql:5432/{service}"
        )
        assert len(own["database-password"]) == 32
        assert decoded[f"shop-tollhouse-{service}-migrate"] == own
    for name, key in (("users", "key-encryption-key"), ("items", "cursor-key")):
        assert len(base64.b64decode(decoded[f"shop-tollhouse-{name}"][key], validate=True)) == 32
    passwords = [
        data["nats-password"]
        for name, data in decoded.items()
        if "nats-password" in data and "migrate" not in name
    ]
    assert len(set(passwords)) == len(passwords) == len(SERVICES) + 1
    for one in of_kind(manifests, "Secret"):
        if not component(one).startswith("migrate-"):
            assert one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_bundled_nats_takes_its_configuration_and_passwords(tmp_path: Path) -> None:
    manifests = render({})
    config = tmp_path / "nats.conf"
    config.write_text(named(manifests, "ConfigMap", "nats")["data"]["nats.conf"])
    (container,) = named(manifests, "StatefulSet", "nats")["spec"]["template"]["spec"]["containers"]
    secret = {"PASSWORD_OF_" + user.upper(): "1e3 looks like a number" for user in nats.GRANTS}
    environment = {}
    for entry in container["env"]:
        if "value" in entry:
            (source,) = [name for name in secret if f"$({name})" in entry["value"]]
            environment[entry["name"]] = entry["value"].replace(f"$({source})", secret[source])
    assert len(environment) == len(nats.GRANTS)
    binary = nats.command(nats.Server(config, 0, "")).argv[0]
    result = subprocess.run(
        [binary, "-t", "--config", config], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_scaling_by_lag_names_the_consumers_of_the_service() -> None:
    manifests = render(VALUES["production"])
    triggers = named(manifests, "ScaledObject", "notifications")["spec"]["triggers"]
    consumers = sources.facts()["notifications"]["consumers"]
    assert [(one["metadata"]["stream"], one["metadata"]["consumer"]) for one in triggers] == [
        (one["stream"], one["durable"]) for one in consumers
    ]
    granted = " ".join(nats.GRANTS["notifications"].publish)
    assert all(f".{one['stream']}.{one['durable']}" in granted for one in consumers)


def test_a_digest_wins_and_tags_follow_the_version() -> None:
    images = {
        component(one): one["spec"]["template"]["spec"]["containers"][0]["image"]
        for one in of_kind(render(VALUES["multi-zone"]), "Deployment")
    }
    assert (
        images["gateway"]
        == f"ghcr.io/tollhouse/gateway@{EXAMPLES['multi-zone']['services']['gateway']['image']['digest']}"
    )
    assert images["users"] == f"ghcr.io/tollhouse/users:{chart().metadata['appVersion']}"


def test_the_gateway_believes_the_proxy_in_front() -> None:
    for example in ("production", "multi-zone"):
        (main,) = named(render(VALUES[example]), "Deployment", "gateway")["spec"]["template"]["spec"][
            "containers"
        ]
        (value,) = [entry["value"] for entry in main["env"] if entry["name"] == "GATEWAY_TRUSTED_PROXIES"]
        assert yaml.safe_load(value) == EXAMPLES[example]["trustedProxies"]


def test_every_value_is_documented() -> None:
    documented = [path for path, _, _ in sources.documented_values()]

    def undocumented(tree: Any, path: str) -> list[str]:
        if path in documented:
            return []
        if isinstance(tree, dict) and tree:
            return [
                found
                for key, inner in tree.items()
                for found in undocumented(inner, f"{path}.{key}".lstrip("."))
            ]
        return [path]

    assert undocumented(sources.values(), "") == []


def test_the_notes_say_what_to_do_next() -> None:
    notes = chart().render({}, name="shop", namespace="apps")["tollhouse/templates/NOTES.txt"]
    for words in (
        "helm test shop",
        "port-forward service/shop-tollhouse-gateway",
        "came along for a trial",
        "no SMTP server",
    ):
        assert words in notes
    notes = chart().render(VALUES["production"], name="shop", namespace="apps")[
        "tollhouse/templates/NOTES.txt"
    ]
    assert "https://api.example.com/docs" in notes
    assert "WARNING" not in notes


def test_helm_test_asks_the_gateway() -> None:
    values = {"tests": {"networkPolicy": True}}
    tests = of_kind(render(values), "Pod")
    assert {one["metadata"]["annotations"]["helm.sh/hook"] for one in tests} == {"test"}
    assert len(tests) == 2
    for one in tests:
        (script,) = one["spec"]["containers"][0]["args"]
        compile(script, "helm test", "exec")


PREVIOUS = Path(__file__).parent / "previous"


@pytest.mark.parametrize("archive", sorted(PREVIOUS.glob("*.tgz")), ids=lambda path: path.name)
def test_the_previous_version_can_be_upgraded(archive: Path) -> None:
    """What Kubernetes forbids to change stays, and nothing with data in it goes away."""
    before = {(one["kind"], one["metadata"]["name"]): one for one in render({}, of=Chart.load(archive))}
    after = {(one["kind"], one["metadata"]["name"]): one for one in render({}, upgrade=True)}
    for identity, old in before.items():
        kind, _ = identity
        if kind in {"Deployment", "StatefulSet", "Secret", "Service"}:
            new = after[identity]
            assert new["apiVersion"] == old["apiVersion"]
            if kind in {"Deployment", "StatefulSet"}:
                assert new["spec"]["selector"] == old["spec"]["selector"]
            if kind == "StatefulSet":
                assert new["spec"]["volumeClaimTemplates"] == old["spec"]["volumeClaimTemplates"]
                assert new["spec"]["serviceName"] == old["spec"]["serviceName"]
            if kind == "Service":
                assert new["spec"].get("clusterIP") == old["spec"].get("clusterIP")
    assert Chart.load(archive).version != chart().version, "a changed chart gets a new version"
    assert of_kind(list(before.values()), "Deployment")
