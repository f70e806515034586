"""Whatever values the schema takes, the chart renders, and Kubernetes takes the result."""

from typing import Any

from deploy.helm.tests.rendering import of_kind, pods, problems, render, selects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stack.services import TOLLHOUSE

SERVICES = {spec.name: spec for spec in TOLLHOUSE.services}
CONSUMERS = ("items", "notifications")

names = st.from_regex(r"\A[a-z]([a-z0-9-]{0,10}[a-z0-9])?\Z")
texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
labels = st.dictionaries(
    names, st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9_.-]{0,10}[A-Za-z0-9])?\Z"), max_size=2
)
numbers = st.integers(1, 2_000_000)
switches = st.booleans()


def options(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def service(name: str) -> st.SearchStrategy[dict[str, Any]]:
    scaling = st.sampled_from(["none", "cpu", *(["lag"] if name in CONSUMERS else [])])
    return st.builds(
        lambda block, by, least: {
            **block,
            "autoscaling": {"enabled": by == "cpu", "minReplicas": least, "maxReplicas": least + 5},
            "keda": {"enabled": by == "lag", "minReplicas": least},
        },
        options(
            replicas=st.integers(1, 50),
            image=options(tag=st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z"), digest=st.just("sha256:" + "a" * 64)),
            pdb=options(enabled=switches, maxUnavailable=st.integers(1, 5)),
            topologySpread=st.lists(
                st.fixed_dictionaries(
                    {"topologyKey": st.sampled_from(["kubernetes.io/hostname", "topology.kubernetes.io/zone"]),
                     "whenUnsatisfiable": st.sampled_from(["DoNotSchedule", "ScheduleAnyway"])}
                ),
                max_size=1,
            ),
            probes=options(liveness=options(periodSeconds=st.integers(1, 60), failureThreshold=st.integers(1, 10))),
            env=st.lists(st.fixed_dictionaries({"name": st.just("EXTRA"), "value": texts}), max_size=1),
            settings=options(LOG_LEVEL=st.just("debug"), WORKERS=st.integers(1, 8)),
            extraVolumes=st.just([{"name": "more", "emptyDir": {}}]),
            podAnnotations=st.dictionaries(names, texts, max_size=2),
            podLabels=labels,
            serviceAnnotations=st.dictionaries(names, texts, max_size=2),
            nodeSelector=labels,
            priorityClassName=names,
        ),
        scaling,
        st.integers(1, 5),
    )  # fmt: skip


values = options(
    nameOverride=names,
    fullnameOverride=names,
    images=options(registry=names, pullSecrets=st.lists(names, max_size=2, unique=True)),
    shutdownTimeout=st.integers(1, 600),
    preStopSeconds=st.integers(1, 60),
    settings=options(
        TOKEN_AUDIENCE=texts,
        TRUSTED_ISSUERS=st.just([{"issuer": "https://a", "audience": "b", "jwks_url": "https://c"}]),
    ),
    services=options(**{name: service(name) for name in SERVICES}),
    networkPolicy=options(enabled=switches),
    trustedProxies=st.just(["10.0.0.0/8"]),
    metrics=options(enabled=switches, port=st.integers(1024, 65535).filter(lambda port: port != 8000)),
    nats=options(storage=options(size=st.just("1Gi"), className=names)),
    tests=options(networkPolicy=switches),
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(values, switches)
def test_all_that_is_allowed_is_rendered_and_valid(chosen: dict[str, Any], upgrade: bool) -> None:
    manifests = render(chosen, upgrade=upgrade)

    assert [problem for one in manifests for problem in problems(one, "1.32")] == []
    identities = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(identities) == len(set(identities))
    assert all(len(name) <= 63 for _, name in identities)
    for one in of_kind(manifests, "Deployment"):
        assert selects(one["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])
    for name, _, spec in pods(manifests):
        assert spec["securityContext"]["runAsNonRoot"] is True, name


@settings(max_examples=10, deadline=None)
@given(numbers)
def test_a_number_reaches_the_service_as_it_was_written(number: int) -> None:
    """Helm's numbers are floats: 31536000 must not become 3.1536e+07."""
    manifests = render({"services": {"users": {"settings": {"AUDIT_RETENTION": number}}}})
    (users,) = [one for one in of_kind(manifests, "Deployment") if one["metadata"]["name"].endswith("-users")]
    env = {
        entry["name"]: entry["value"] for entry in users["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert env["USERS_AUDIT_RETENTION"] == str(number)
