from __future__ import annotations

import json
from typing import Any

import certifi
import kubernetes_validate
import pytest
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus

from agnt5_engine.settings import PREFIX, Settings
from tests.deploy.manifests import BASE, PRODUCTION, documents, given_but_lost, kustomization, named, objects, own_files

CORE_VERSION = "1.34"


@pytest.mark.parametrize("given", objects(BASE), ids=lambda o: f"{o['kind']}/{o['metadata']['name']}")
def test_every_core_object_fits_its_schema(given: dict[str, Any]) -> None:
    kubernetes_validate.validate(given, CORE_VERSION, strict=True)


@pytest.mark.parametrize("given", objects(PRODUCTION), ids=lambda o: f"{o['kind']}/{o['metadata']['name']}")
def test_every_custom_object_fits_its_schema_and_has_no_unknown_field(given: dict[str, Any]) -> None:
    model = {
        "ServiceMonitor": prometheus.ServiceMonitor,
        "ScaledObject": keda.ScaledObject,
        "TriggerAuthentication": keda.TriggerAuthentication,
    }[given["kind"]]
    kept = json.loads(model.model_validate(given).model_dump_json(by_alias=True, exclude_none=True))
    assert given_but_lost(given, kept) == []


def test_the_check_for_unknown_fields_sees_a_misspelt_one() -> None:
    given = named(PRODUCTION, "ScaledObject") | {
        "spec": {**named(PRODUCTION, "ScaledObject")["spec"], "maxReplicas": 3}
    }
    kept = json.loads(keda.ScaledObject.model_validate(given).model_dump_json(by_alias=True, exclude_none=True))
    assert given_but_lost(given, kept) == [".spec.maxReplicas"]


@pytest.mark.parametrize("folder", [BASE, PRODUCTION], ids=["base", "production"])
def test_a_kustomization_names_every_file_beside_it_and_nothing_else(folder: Any) -> None:
    kustom = kustomization(folder)
    assert kustom["kind"] == "Kustomization"
    assert kustom["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    known = {"apiVersion", "kind", "labels", "resources", "configMapGenerator", "namespace", "images", "patches"}
    assert set(kustom) <= known
    for resource in kustom["resources"]:
        assert (folder / resource).exists()
    patches = {folder / patch["path"] for patch in kustom.get("patches", []) if "path" in patch}
    assert all(path.is_file() for path in patches)
    used = {*own_files(folder), *patches, folder / "kustomization.yaml"}
    assert set(folder.glob("*")) == used


def test_patches_meet_the_objects_they_change() -> None:
    (patch,) = documents(PRODUCTION / "statefulset.yaml")
    target = named(BASE, "StatefulSet")
    assert patch["metadata"]["name"] == target["metadata"]["name"]
    containers = {c["name"] for c in target["spec"]["template"]["spec"]["containers"]}
    assert {c["name"] for c in patch["spec"]["template"]["spec"]["containers"]} <= containers
    (network,) = [p for p in kustomization(PRODUCTION)["patches"] if "target" in p]
    assert network["target"] == {"kind": "NetworkPolicy", "name": "agnt5"}
    egress = named(BASE, "NetworkPolicy")["spec"]["egress"]
    assert egress[2]["ports"][0]["port"] == 9092
    (image,) = kustomization(PRODUCTION)["images"]
    assert image["name"] == pod()["containers"][0]["image"]


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = named(BASE, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def environment() -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in pod()["containers"][0]["env"]}


def test_a_processor_keeps_its_group_identity_its_address_and_its_tables_over_restarts() -> None:
    names = list(environment())
    assert environment()["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert environment()["AGNT5_INSTANCE_ID"]["value"] == "$(POD_NAME)"
    # Kubernetes expands only what was defined before.
    assert names.index("POD_NAME") < names.index("AGNT5_INSTANCE_ID")
    assert names.index("POD_NAMESPACE") < names.index("AGNT5_ADVERTISED_URL")
    headless = named(BASE, "StatefulSet")["spec"]["serviceName"]
    assert f"$(POD_NAME).{headless}.$(POD_NAMESPACE)" in environment()["AGNT5_ADVERTISED_URL"]["value"]
    service = named(BASE, "Service", headless)["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    (claim,) = named(BASE, "StatefulSet")["spec"]["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod()["containers"][0]["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == "/var/lib/agnt5"


def test_a_processor_runs_without_privileges_on_a_read_only_root() -> None:
    whole, own = pod()["securityContext"], pod()["containers"][0]["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] == whole["fsGroup"] == 10001
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False
    assert {"requests", "limits"} <= set(pod()["containers"][0]["resources"])


def test_probes_ask_what_they_mean() -> None:
    container = pod()["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    ports = {port["name"] for port in container["ports"]}
    assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("liveness", "startup", "readiness")} <= ports


def test_selectors_find_the_pods_and_nothing_else() -> None:
    own = {"app.kubernetes.io/name": "agnt5"}
    assert named(BASE, "StatefulSet")["spec"]["template"]["metadata"]["labels"] == own
    assert named(BASE, "StatefulSet")["spec"]["selector"]["matchLabels"] == own
    assert named(BASE, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == own
    assert named(BASE, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == own
    for name in ("agnt5", "agnt5-processors"):
        assert named(BASE, "Service", name)["spec"]["selector"] == own
    monitored = named(PRODUCTION, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    labels = {
        name: {**own, **named(BASE, "Service", name)["metadata"].get("labels", {})}
        for name in ("agnt5", "agnt5-processors")
    }
    assert [name for name, has in labels.items() if monitored.items() <= has.items()] == ["agnt5-processors"]


def test_secrets_come_by_reference_only() -> None:
    (patch,) = documents(PRODUCTION / "statefulset.yaml")
    variables = [*environment().values(), *patch["spec"]["template"]["spec"]["containers"][0]["env"]]
    secret = {"AGNT5_API_KEYS", "AGNT5_KAFKA_SASL_PASSWORD"}
    assert secret <= {variable["name"] for variable in variables}
    for variable in variables:
        if variable["name"] in secret:
            assert "value" not in variable
            assert variable["valueFrom"]["secretKeyRef"]["name"] == "agnt5"
    assert not any(o["kind"] == "Secret" for o in [*objects(BASE), *objects(PRODUCTION)])


def test_every_variable_is_a_setting_and_the_values_are_accepted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, str] = {}
    for folder in (BASE, PRODUCTION):
        for literal in kustomization(folder)["configMapGenerator"][0]["literals"]:
            name, _, value = literal.partition("=")
            given[name] = value
    (patch,) = documents(PRODUCTION / "statefulset.yaml")
    variables = [*environment().values(), *patch["spec"]["template"]["spec"]["containers"][0]["env"]]
    for variable in variables:
        if variable["name"].startswith(PREFIX):
            expanded = str(variable.get("value", "secret"))
            given[variable["name"]] = expanded.replace("$(POD_NAME)", "agnt5-0").replace("$(POD_NAMESPACE)", "agnt5")
    (tmp_path / "ca.crt").write_text(certifi.contents())
    given["AGNT5_KAFKA_SSL_CA_FILE"] = "ca.crt"
    for name, value in given.items():
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.advertised_url == "http://agnt5-0.agnt5-processors.agnt5.svc:8080"
    assert settings.kafka_security_protocol == "SASL_SSL"


def test_kubernetes_puts_no_variables_of_its_own_among_the_settings() -> None:
    # Of a service `agnt5` every pod gets AGNT5_PORT, AGNT5_SERVICE_HOST and more, each an unknown setting.
    assert PREFIX in [f"{given['metadata']['name'].upper()}_" for given in objects(BASE) if given["kind"] == "Service"]
    assert pod()["enableServiceLinks"] is False


def test_scaling_asks_the_lag_of_this_group_and_never_exceeds_the_partitions() -> None:
    literals = dict(
        literal.split("=", 1)
        for folder in (BASE, PRODUCTION)
        for literal in kustomization(folder)["configMapGenerator"][0]["literals"]
    )
    spec = named(PRODUCTION, "ScaledObject")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "agnt5"}
    assert spec["maxReplicaCount"] <= int(literals["AGNT5_PARTITIONS"])
    authentications = {o["metadata"]["name"] for o in objects(PRODUCTION) if o["kind"] == "TriggerAuthentication"}
    for trigger in spec["triggers"]:
        assert trigger["type"] == "kafka"
        assert trigger["metadata"]["consumerGroup"] == literals["AGNT5_GROUP"]
        assert f"kafka://{trigger['metadata']['bootstrapServers']}" == literals["AGNT5_BROKER"]
        assert trigger["authenticationRef"]["name"] in authentications
    assert {trigger["metadata"]["topic"] for trigger in spec["triggers"]} >= {"agnt5.journal"}
