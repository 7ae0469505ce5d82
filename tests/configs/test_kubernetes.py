"""The manifest for Kubernetes: valid, and in agreement with itself and with the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from streamd.config.loader import load
from streamd.fleet import BOX_VARIABLES
from streamd.workers.fleet.actors import BOXES_LABEL
from tests.conftest import ROOT

DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "configs/kubernetes/streamd.yaml").read_text()))
FLEET: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "configs/kubernetes/fleet.yaml").read_text()))
BY_KIND = {d["kind"]: d for d in DOCUMENTS}
POD = BY_KIND["StatefulSet"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize(
    "document", [d for d in (*DOCUMENTS, *FLEET) if d["kind"] != "RayCluster"], ids=lambda d: d["kind"]
)
def test_each_object_is_valid(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_configuration_loads_in_every_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "streamd.yaml"
    file.write_text(BY_KIND["ConfigMap"]["data"]["streamd.yaml"])
    served: list[str] = []
    replicas = BY_KIND["StatefulSet"]["spec"]["replicas"]
    for i in range(replicas):
        monkeypatch.setattr("socket.gethostname", lambda i=i: f"{BY_KIND['StatefulSet']['metadata']['name']}-{i}")
        config = load(file, {e["name"]: "some-secret" for e in CONTAINER["env"]}).config
        served += [s.id for s in config.streams]
        assert config.share is not None
        assert config.share.count == replicas
    assert sorted(served) == ["gate", "hall", "yard"]
    assert config.drain_s < POD["terminationGracePeriodSeconds"]


def test_ports_paths_and_names_agree() -> None:
    config = yaml.safe_load(BY_KIND["ConfigMap"]["data"]["streamd.yaml"])
    ports = {p["name"]: p["containerPort"] for p in CONTAINER["ports"]}
    assert {p["name"]: p["port"] for p in BY_KIND["Service"]["spec"]["ports"]} == ports
    assert config["metrics"]["listen"].endswith(f":{ports['metrics']}")
    assert config["sinks"][0]["bind"].endswith(f":{ports['messages']}")
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert CONTAINER[probe]["httpGet"] == {"path": path, "port": "metrics"}
    mounts = {m["name"]: m["mountPath"] for m in CONTAINER["volumeMounts"]}
    templates = {t["metadata"]["name"] for t in BY_KIND["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert set(mounts) == {v["name"] for v in POD["volumes"]} | templates
    assert config["events"]["state_dir"] == mounts["state"]
    assert config["model"]["path"].startswith(mounts["models"] + "/")
    assert CONTAINER["args"][1] == f"{mounts['configuration']}/streamd.yaml"
    assert POD["volumes"][0]["configMap"]["name"] == BY_KIND["ConfigMap"]["metadata"]["name"]
    assert (
        POD["volumes"][1]["persistentVolumeClaim"]["claimName"] == BY_KIND["PersistentVolumeClaim"]["metadata"]["name"]
    )
    labels = BY_KIND["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert BY_KIND["Service"]["spec"]["selector"] == labels
    assert BY_KIND["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert BY_KIND["StatefulSet"]["spec"]["serviceName"] == BY_KIND["Service"]["metadata"]["name"]


def test_the_fleet_agrees_with_itself(tmp_path: Path) -> None:
    """The pods of the cluster are valid pods; KubeRay's own schema is too large to be kept here."""
    cluster = next(d for d in FLEET if d["kind"] == "RayCluster")["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    file = tmp_path / "fleet.yaml"
    file.write_text(next(d for d in FLEET if d["kind"] == "ConfigMap")["data"]["fleet.yaml"])
    config = load(file, {"CAM_PASSWORD": "some-secret", **BOX_VARIABLES}, share=False).config
    assert config.fleet is not None
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.28", strict=True)
        spec = group["template"]["spec"]
        assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
        assert "CAM_PASSWORD" in {e["name"] for e in spec["containers"][0]["env"]}  # both read the file
    head, workers = groups
    assert config.fleet.boxes == workers["replicas"]
    assert head["labels"] == {BOXES_LABEL: "0"}
    ports = {p["name"]: p["containerPort"] for p in head["template"]["spec"]["containers"][0]["ports"]}
    assert config.fleet.listen == f"0.0.0.0:{ports['fleet']}"
    pod = workers["template"]["spec"]
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == config.fleet.state_dir
    assert config.drain_s < pod["terminationGracePeriodSeconds"]
    redis = next(d for d in FLEET if d["kind"] == "Service")
    address = f"{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == address
