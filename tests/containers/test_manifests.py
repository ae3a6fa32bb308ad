"""What the files of docker/ promise, without an engine: nothing is open, nothing has a default password."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
RAY_KINDS = ("RayCluster", "RayJob")


def pins(lock: Path) -> set[tuple[str, str]]:
    """(package, version) of every line of a file of pinned requirements; some have one for each range of Python."""
    return set(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def manifests() -> list[dict[str, Any]]:
    files = sorted(set(KUBERNETES.glob("*.yaml")) - {KUBERNETES / "kustomization.yaml"})
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def pod_templates(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pod template of a manifest, Ray's own kinds included."""
    spec = manifest.get("spec", {})
    groups = [spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", ()), spec]
    yield from (group["template"] for group in groups if "template" in group)


PODS = [template["spec"] for manifest in manifests() for template in pod_templates(manifest)]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]


class TestCompose:
    def test_two_pages_are_published_and_only_on_loopback(self, compose):
        ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
        assert ports.keys() == {"head", "mlflow"}
        for (port,) in ports.values():
            assert port.startswith("127.0.0.1:")

    def test_passwords_come_from_files_that_have_no_default(self, compose):
        for service in compose["services"].values():
            for name, value in service["environment"].items():
                if any(word in name for word in ("PASSWORD", "TOKEN", "SECRET")):
                    assert value.startswith("/run/secrets/"), name
        for name in ("ray_token", "database_password"):
            assert compose["secrets"][name] == {"file": f"${{SECRETS:-./secrets}}/{name}"}
        assert not re.search(r"://\w+:[^@/\s]+@", (DOCKER / "compose.yaml").read_text()), "an address with a password"

    def test_only_mlflow_reaches_the_database(self, compose):
        beside = {name for name, service in compose["services"].items() if "database" in service["networks"]}
        assert beside == {"mlflow", "postgres"}
        assert compose["networks"]["database"] == {"internal": True}

    def test_every_service_is_limited_and_what_serves_is_restarted(self, compose):
        for name, service in compose["services"].items():
            assert {"mem_limit", "cpus", "pids_limit"} <= service.keys(), name
            assert service["restart"] == "unless-stopped", name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["logging"] == {"driver": "local"}, name  # which rotates them

    def test_gpus_are_added_to_services_that_exist(self, compose):
        override = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
        assert override["services"].keys() <= compose["services"].keys()

    def test_whatever_computes_gets_the_gpus(self):
        services = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
        (gpus,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert gpus == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
        # `train` and `evaluate` compute where they are called.
        assert services["study"]["deploy"] == services["worker"]["deploy"]


class TestKubernetes:
    @pytest.mark.parametrize(
        "manifest",
        [m for m in manifests() if m["kind"] not in RAY_KINDS],
        ids=lambda m: f"{m['kind']}-{m['metadata']['name']}",
    )
    def test_a_manifest_fits_the_schema_of_its_kind(self, manifest):
        kubernetes_validate.validate(manifest, "1.30", strict=True)

    def test_pods_of_ray_fit_the_schema_of_pods(self):
        (cluster,) = [manifest for manifest in manifests() if manifest["kind"] == "RayCluster"]
        templates = list(pod_templates(cluster))
        assert len(templates) == 2
        for template in templates:
            kubernetes_validate.validate(
                {"apiVersion": "v1", "kind": "PodTemplate", "template": template}, "1.30", strict=True
            )

    def test_ray_is_told_nothing_that_kuberay_does_not_know(self):
        (cluster,) = [manifest for manifest in manifests() if manifest["kind"] == "RayCluster"]
        group = {"rayStartParams", "template"}
        assert cluster["spec"].keys() <= {
            "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions",
            "headGroupSpec", "workerGroupSpecs",
        }  # fmt: skip
        assert cluster["spec"]["authOptions"] == {"mode": "token"}
        assert cluster["spec"]["headGroupSpec"].keys() <= group | {"serviceType"}
        for worker in cluster["spec"]["workerGroupSpecs"]:
            assert worker.keys() <= group | {"groupName", "replicas", "minReplicas", "maxReplicas"}
            assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
        (job,) = [manifest for manifest in manifests() if manifest["kind"] == "RayJob"]
        assert job["spec"].keys() <= {"clusterSelector", "submissionMode", "entrypoint"}
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
        starts = [
            group["rayStartParams"]
            for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"])
        ]
        assert all(isinstance(value, str) for start in starts for value in start.values()), (
            "KubeRay takes strings alone"
        )

    def test_a_worker_offers_what_its_pod_requests_and_keeps_its_objects_in_memory(self):
        (cluster,) = [manifest for manifest in manifests() if manifest["kind"] == "RayCluster"]
        (group,) = cluster["spec"]["workerGroupSpecs"]
        start, (container,) = group["rayStartParams"], group["template"]["spec"]["containers"]
        assert start["num-cpus"] == container["resources"]["requests"]["cpu"]
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        shared = volumes["shared-memory"]["emptyDir"]["sizeLimit"]
        assert int(start["object-store-memory"]) < int(shared.removesuffix("Gi")) * 2**30

    def test_passwords_are_references(self):
        assert not [manifest for manifest in manifests() if manifest["kind"] == "Secret"]
        for container in CONTAINERS:
            for variable in container.get("env", ()):
                if any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "SECRET")):
                    assert "valueFrom" in variable or variable["name"].endswith("_FILE"), variable["name"]

    def test_no_pod_runs_as_root_or_without_limits(self):
        for pod in PODS:
            assert pod["securityContext"]["runAsNonRoot"] is True
        for container in CONTAINERS:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]

    def test_volumes_and_services_are_there(self):
        claims = {m["metadata"]["name"] for m in manifests() if m["kind"] == "PersistentVolumeClaim"}
        for pod in PODS:
            mounted = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
            assert mounted <= claims
        files = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
        assert {KUBERNETES / file for file in files} | {
            KUBERNETES / "kustomization.yaml",
            KUBERNETES / "study.yaml",
        } == set(KUBERNETES.glob("*.yaml"))


class TestVersions:
    def test_kubernetes_is_told_the_version_of_ray_that_is_locked(self):
        (cluster,) = [manifest for manifest in manifests() if manifest["kind"] == "RayCluster"]
        assert ("ray", cluster["spec"]["rayVersion"]) in pins(ROOT / "requirements.lock")

    def test_the_same_database_everywhere(self, compose):
        images = {container["image"] for container in CONTAINERS}
        assert images == {"energy-orchestrator", compose["services"]["postgres"]["image"]}

    def test_the_lock_of_pytorch_for_cpus_agrees_with_the_other(self):
        own = dict(pins(DOCKER / "torch-cpu.lock") - pins(ROOT / "requirements.lock"))
        assert own.keys() == {"torch", "torchvision"}
        assert own["torch"].endswith("+cpu")


def test_the_dockerfile_passes_its_linter():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
