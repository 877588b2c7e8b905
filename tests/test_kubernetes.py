"""The manifests of the folder `deploy`: valid, and everything that they say of the server is so."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry
from medvllm.files import is_trusted, make_own
from medvllm.server.running import DRAIN_S
from tests.support.serving import serving

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
OPTIONS = set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs" / "cli.md").read_text()))
PLAIN = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
RUNTIME, SERVICE = yaml.safe_load_all((DEPLOY / "kserve.yaml").read_text())
VERSIONS = ("1.30", "1.37")  # an old one, and the newest one that the package knows
# Fields of KServe 0.21, as its API reference and its Python client name them. No package has its schema.
RUNTIME_FIELDS = {
    *("affinity", "annotations", "builtInAdapter", "containers", "disabled", "grpcDataEndpoint", "grpcEndpoint"),
    *("hostIPC", "httpDataEndpoint", "imagePullSecrets", "labels", "multiModel", "nodeSelector", "protocolVersions"),
    *("replicas", "resourceClaims", "schedulerName", "storageHelper", "supportedModelFormats", "tolerations"),
    *("volumes", "workerSpec"),
}
PREDICTOR_FIELDS = {"minReplicas", "maxReplicas", "model"}  # the others are those of a pod
MODEL_FIELDS = {"modelFormat", "protocolVersion", "runtime", "runtimeVersion", "storage", "storageUri"}  # likewise


def _of_kind(kind: str) -> dict[str, Any]:
    (found,) = (each for each in PLAIN if each["kind"] == kind)
    return dict(found)


def _pod(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "medvllm"}, "spec": spec}


def _kserve_pod() -> dict[str, Any]:
    """What KServe makes of runtime and service: the pod's fields of both, and the arguments one after the other."""
    predictor = SERVICE["spec"]["predictor"]
    spec = {field: value for field, value in predictor.items() if field not in PREDICTOR_FIELDS}
    own = {field: value for field, value in predictor["model"].items() if field not in MODEL_FIELDS}
    container = RUNTIME["spec"]["containers"][0]
    merged = container | own | {"args": container["args"] + own["args"]}
    return spec | {"containers": [merged], "volumes": RUNTIME["spec"]["volumes"]}


PODS = {"plain": _of_kind("Deployment")["spec"]["template"]["spec"], "kserve": _kserve_pod()}


@pytest.fixture(params=PODS)
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    made: dict[str, Any] = PODS[request.param]
    return made


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_object(version: str) -> None:
    """Strictly: a field that the schema does not have is an error. So are those of the pods that KServe makes."""
    for each in (*PLAIN, _pod(PODS["kserve"])):
        assert kubernetes_validate.validate(each, version, strict=True) == version
    wrong = _of_kind("Service") | {"spec": {"port": 8000}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_kserve_has_every_field() -> None:
    """By its documented names; a runtime and a service that fit each other."""
    assert (RUNTIME["apiVersion"], RUNTIME["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(RUNTIME["spec"]) <= RUNTIME_FIELDS and set(SERVICE["spec"]) == {"predictor"}
    model, (known,) = SERVICE["spec"]["predictor"]["model"], RUNTIME["spec"]["supportedModelFormats"]
    assert set(known) <= {"autoSelect", "name", "priority", "version"} and set(model["modelFormat"]) == {"name"}
    assert model["runtime"] == RUNTIME["metadata"]["name"] and model["modelFormat"]["name"] == known["name"]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"] == ["v2"]
    assert [container["name"] for container in RUNTIME["spec"]["containers"]] == ["kserve-container"]


def test_the_objects_name_each_other() -> None:
    """Selectors, the target of the scaler, the claim, and the port."""
    deployment, service, scaler = (_of_kind(kind) for kind in ("Deployment", "Service", "HorizontalPodAutoscaler"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    budget = _of_kind("PodDisruptionBudget")
    for selector in (deployment["spec"]["selector"], budget["spec"]["selector"]):
        assert selector["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"], target["name"]) == ("apps/v1", "Deployment", "medvllm")
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "medvllm"
    assert "replicas" not in deployment["spec"]  # an apply would set back what the scaler has decided
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in [own["name"] for own in PODS["plain"]["containers"][0]["ports"]]


def test_the_pods_name_their_volumes(pod: dict[str, Any]) -> None:
    """And mount each, the claim that is in the manifest among them; the home is on it."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = [mount for each in pod["containers"] + pod["initContainers"] for mount in each["volumeMounts"]]
    assert {mount["name"] for mount in mounted} == set(volumes)
    claim = volumes["home"]["persistentVolumeClaim"]["claimName"]
    assert claim == _of_kind("PersistentVolumeClaim")["metadata"]["name"]
    paths = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert _environment(pod)["MEDVLLM_HOME"].startswith(f"{paths['home']}/")


def test_a_pod_is_confined(pod: dict[str, Any]) -> None:
    """As the profile "restricted" asks, with a file system that cannot be written, as the user of the image."""
    image = (DEPLOY / "Containerfile").read_text()
    own = pod["securityContext"]
    assert own["runAsNonRoot"] and own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {own['runAsUser']}\n" in image and pod["automountServiceAccountToken"] is False
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_the_options_and_settings_of_a_pod_exist(pod: dict[str, Any]) -> None:
    """And it listens where the probes ask, on an address that others reach."""
    (container,) = pod["containers"]
    command, *options = container["args"]
    assert command == "serve" and {option.partition("=")[0] for option in options} <= OPTIONS
    assert "--host=0.0.0.0" in options
    port = next((option.removeprefix("--port=") for option in options if option.startswith("--port=")), "8000")
    (exposed,) = container["ports"]
    assert exposed["containerPort"] == int(port)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in (exposed["name"], exposed["containerPort"])
    known = {setting.name for setting in settings.SETTINGS} | {"HF_HOME", "POD_NAMESPACE"}
    assert set(_environment(pod)) <= known
    used = {name for option in options for name in re.findall(r"\$\((\w+)\)", option)}
    assert used == {"POD_NAMESPACE"} <= set(_environment(pod))


def test_the_server_answers_the_probes_without_a_key(registry: ModelRegistry) -> None:
    """Each path that a manifest names, when it is asked by the address of the pod."""
    paths = {
        pod["containers"][0][probe]["httpGet"]["path"]
        for pod in PODS.values()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
    with serving(registry) as http:
        for path in paths:
            assert http.get(path, headers={"Host": "10.1.2.3:8000"}).status_code == 200


def test_a_pod_may_end_its_requests(pod: dict[str, Any]) -> None:
    """The time to end is longer than the pause before SIGTERM and the server's own time together."""
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep" and pod["terminationGracePeriodSeconds"] > int(command[1]) + DRAIN_S


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume as the kubelet hands it to a pod with an fsGroup: its group may write, and is inherited."""
    made = tmp_path / "volume"
    made.mkdir()
    made.chmod(0o2775)
    return made


def test_medvllm_trusts_the_folder_that_the_pod_makes(pod: dict[str, Any], volume: Path) -> None:
    """Converted weights are used only where no other user could have written them; the command may run again."""
    (container,) = pod["initContainers"]
    own = {each["name"]: each["value"] for each in container["env"]}
    home = volume / "home"
    assert own["MEDVLLM_HOME"] == "/var/lib/medvllm/home"
    shared = volume / "prepared"
    make_own(shared)
    assert not is_trusted(shared)  # why the folder is made
    for _ in range(2):
        subprocess.run(container["command"], check=True, env=os.environ | {"MEDVLLM_HOME": str(home)})
        assert home.stat().st_mode & 0o7777 == 0o700
    make_own(home / "prepared")
    assert is_trusted(home / "prepared")


def _environment(pod: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in pod["containers"][0]["env"]}


def test_the_page_names_commands_that_exist() -> None:
    """Their options; the versions that it says were checked; and links from the manifests to it."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for line in page.splitlines():
        _, found, command = line.partition("medvllm ")
        if found and re.match(r" +(medvllm|kubectl exec) ", line):
            options = set(re.findall(r"(?<=\s)(--[a-z-]+)", command))
            assert options <= OPTIONS, (line, options - OPTIONS)
    assert f"schemas of Kubernetes {' and '.join(VERSIONS)}" in page
    for manifest in ("kubernetes.yaml", "kserve.yaml"):
        assert f"deploy/{manifest}" in page and "docs/kubernetes.md" in (DEPLOY / manifest).read_text()
