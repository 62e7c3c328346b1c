"""Promise: Ray and Kubernetes accept cluster.yaml and rayjob.yaml, which are closed to the outside and cost
nothing while nothing trains.

Nobody would notice a failure, because nobody here has a cloud. These tests check what a file alone can show:
Ray's own schema, validation and autoscaler, Kubernetes' own schemas, KubeRay's fields. They do **not** check
whether AWS starts such an instance, image, network or role; whether a set-up command works there (bash only
parses it here); whether KubeRay's operator treats the file as it should (its defaults, its rules between
fields); or anything about CUDA. docs/cluster.md lists what was tried by hand.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.paths import ROOT

KUBERNETES = "1.34"
"""kubernetes-validate has the schemas of this version."""

NEEDS = {"CPU": 1, "GPU": 1}
"""A host asks for these with `resources.gpus_per_host=1`."""


def read(name: str) -> list[Any]:
    return list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict[str, Any]:
    (document,) = read("cluster.yaml")
    return document


@pytest.fixture
def job() -> dict[str, Any]:
    return next(document for document in read("rayjob.yaml") if document["kind"] == "RayJob")


def workers_of(cluster: Mapping[str, Any]) -> dict[str, Any]:
    types = cluster["available_node_types"]
    return {name: types[name] for name in types if name != cluster["head_node_type"]}


def groups_of(job: Mapping[str, Any]) -> dict[str, Any]:
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return {group["groupName"]: group for group in groups}


def pods_of(job: Mapping[str, Any]) -> dict[str, Any]:
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    groups = {"head": head, **groups_of(job)}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from texts_in(key)
            yield from texts_in(below)
    elif isinstance(value, list):
        for below in value:
            yield from texts_in(below)


def commands_of(cluster: Mapping[str, Any]) -> dict[str, list[str]]:
    return {key: value for key, value in cluster.items() if key.endswith("_commands")}


def starts_of(cluster: Mapping[str, Any]) -> list[str]:
    lists = [value for key, value in commands_of(cluster).items() if "start_ray" in key]
    return [command for commands in lists for command in commands]


# --- cluster.yaml: validity -----------------------------------------------------------------------


def validate_cluster(cluster: dict[str, Any]) -> dict[str, Any]:
    """Do what `ray up` does before it talks to AWS; returns the configuration with Ray's defaults."""
    schema = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text(encoding="utf-8")))
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_cluster(cluster):
    prepared = validate_cluster(cluster)
    installs = cluster["setup_commands"] + cluster["worker_setup_commands"]
    assert prepared["worker_setup_commands"] == installs


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        ((), "idle_timeout_minutes", "idle_timeout_minute"),
        (("auth",), "ssh_proxy_command", "ssh_proxycommand"),
        (("available_node_types", "gpu1-spot"), "min_workers", "min_worker"),
    ],
)
def test_a_misspelt_key_is_refused(cluster, place, right, wrong):
    section = cluster
    for key in place:
        section = section[key]
    section[wrong] = section.pop(right)
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        validate_cluster(cluster)


def test_a_head_of_an_unknown_node_type_is_refused(cluster):
    cluster["head_node_type"] = "heads"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_cluster(cluster)


def test_bash_can_parse_every_command(cluster):
    for name, commands in commands_of(cluster).items():
        for command in commands:
            # Ray also puts variables in front of a command, and brackets around it.
            script = f"true && (export RAY_HEAD_IP=10.0.0.1; {command})"
            checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
            assert checked.returncode == 0, f"{name}: {checked.stderr}"


# --- cluster.yaml: cost -----------------------------------------------------------------------------


def test_no_worker_is_paid_for_before_there_is_work_or_long_after_it_ends(cluster):
    assert all(worker["min_workers"] == 0 for worker in workers_of(cluster).values())
    assert 0 < cluster["idle_timeout_minutes"] <= 10
    assert cluster["provider"]["cache_stopped_nodes"] is False
    assert cluster["max_workers"] <= 16
    assert all(worker["max_workers"] > 0 for worker in workers_of(cluster).values())


def test_the_head_has_no_gpu_and_trains_nothing(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert not re.match(r"[gp]\d", head["node_config"]["InstanceType"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["max_workers"] == 0


def test_every_instance_size_comes_as_spot_and_on_demand_and_spot_has_priority(cluster):
    sizes: dict[str, dict[str, int]] = {}
    for worker in workers_of(cluster).values():
        config = worker["node_config"]
        market = config.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        sizes.setdefault(config["InstanceType"], {})[market] = worker["priority"]
    assert len(sizes) == 2
    for markets in sizes.values():
        assert markets.keys() == {"spot", "on-demand"}
        assert markets["spot"] > markets["on-demand"]


def nodes_for(
    cluster: dict[str, Any], *demands: Mapping[str, float], down: tuple[str, ...] = ()
) -> tuple[dict[str, int], int]:
    """The nodes that Ray's autoscaler starts for these demands, and the number of infeasible demands.

    Args:
        down: types that have just failed to start.
    """
    prepared = validate_cluster(cluster)
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=worker["min_workers"],
            max_worker_nodes=worker["max_workers"],
            priority=worker["priority"],
            resources=worker["resources"],
            labels={},
            launch_config_hash="",
        )
        for name, worker in workers_of(prepared).items()
    }
    requests = [ResourceRequestUtil.make(dict(demand)) for demand in demands]
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=prepared["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count(requests),
            recoverable_resource_availabilities=dict.fromkeys(down, 0.0),
        )
    )
    launched = {launch.instance_type: launch.count for launch in reply.to_launch}
    return launched, len(reply.infeasible_resource_requests)


def test_a_host_gets_a_spot_node_with_one_gpu(cluster):
    assert nodes_for(cluster, NEEDS) == ({"gpu1-spot": 1}, 0)
    assert nodes_for(cluster, NEEDS, NEEDS, NEEDS) == ({"gpu1-spot": 3}, 0)


def test_a_host_gets_an_on_demand_node_if_spot_is_full_or_down(cluster):
    assert nodes_for(cluster, NEEDS, down=("gpu1-spot",)) == ({"gpu1-on-demand": 1}, 0)
    cluster["available_node_types"]["gpu1-spot"]["max_workers"] = 0
    assert nodes_for(cluster, NEEDS) == ({"gpu1-on-demand": 1}, 0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_group_on_one_node_gets_a_node_with_eight_gpus(cluster, devices):
    assert nodes_for(cluster, {"CPU": 1, "GPU": devices}) == ({"gpu8-spot": 1}, 0)


def test_eight_hosts_at_once_get_one_node_with_eight_gpus(cluster):
    """This is not ideal, but documented (docs/cluster.md, "What it costs")."""
    assert nodes_for(cluster, *[NEEDS] * 8) == ({"gpu8-spot": 1}, 0)


def test_a_demand_that_no_node_can_meet_is_infeasible(cluster):
    assert nodes_for(cluster, {"GPU": 16}) == ({}, 1)


# --- cluster.yaml: security ----------------------------------------------------------------------------


def test_no_node_can_be_reached_from_outside(cluster):
    assert cluster["provider"]["use_internal_ips"] is True
    assert cluster["auth"]["ssh_proxy_use_node_id"] is True
    assert cluster["auth"]["ssh_proxy_command"].startswith("aws ssm start-session --target %h ")
    for node_type in cluster["available_node_types"].values():
        # Without these, Ray creates its own, with port 22 open to everyone and AmazonEC2FullAccess.
        config = node_type["node_config"]
        assert config["SecurityGroupIds"] and config["SubnetIds"]
        assert config["KeyName"] and config["IamInstanceProfile"]["Name"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert "NetworkInterfaces" not in config  # they could ask for a public address


def test_head_and_workers_have_separate_roles(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]["node_config"]
    roles = {w["node_config"]["IamInstanceProfile"]["Name"] for w in workers_of(cluster).values()}
    assert roles == {"raymrc-worker"}
    assert head["IamInstanceProfile"]["Name"] == "raymrc-head"


def test_every_disk_is_encrypted_and_deleted_with_its_node(cluster):
    for node_type in cluster["available_node_types"].values():
        disks = node_type["node_config"]["BlockDeviceMappings"]
        assert [disk["DeviceName"] for disk in disks] == ["/dev/sda1"]
        assert all(disk["Ebs"]["Encrypted"] is True for disk in disks)
        assert all(disk["Ebs"]["DeleteOnTermination"] is True for disk in disks)


def test_dashboard_and_mlflow_listen_only_on_loopback_of_the_head(cluster):
    starts = cluster["head_start_ray_commands"]
    (ray_start,) = [command for command in starts if "ray start" in command]
    (mlflow,) = [command for command in starts if "mlflow server" in command]
    assert "--dashboard-host=127.0.0.1" in ray_start
    assert "--host 127.0.0.1" in mlflow
    assert not [text for text in texts_in(cluster) if "0.0.0.0" in text]


def test_every_command_that_starts_something_requires_a_token(cluster):
    """RAY_AUTH_MODE is read when Ray is first imported, and its default differs between processes."""
    starts = starts_of(cluster)
    assert len(starts) >= 4
    assert all(re.match(r"export RAY_AUTH_MODE=token[; ]", command) for command in starts)
    assert "RAY_AUTH_MODE=token" in " ".join(cluster["setup_commands"])  # for jobs and people
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/raymrc-token"


def test_the_autoscaler_drains_nodes(cluster):
    (ray_start,) = [c for c in cluster["head_start_ray_commands"] if "ray start" in c]
    assert "RAY_enable_autoscaler_v2=1" in ray_start
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in ray_start


def test_a_spot_notice_drains_the_node_within_two_minutes(cluster):
    script = " ".join(cluster["worker_start_ray_commands"])
    assert "ray start --block " in script  # only such a process drains on SIGTERM
    assert "spot/instance-action" in script
    seconds = int(re.search(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", script)[1])
    assert 60 <= seconds <= 110


def test_a_node_whose_head_is_gone_shuts_down(cluster):
    """The autoscaler runs on the head, so nothing else would end the node."""
    assert "sudo shutdown -h now" in cluster["worker_start_ray_commands"][-1]
    for worker in workers_of(cluster).values():
        assert worker["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|hf_[A-Za-z0-9]{20}|\b[0-9a-f]{32,}\b|RAY_AUTH_TOKEN=|"
    r"(?i:password|secret_access_key)"
)


@pytest.mark.parametrize("name", ["cluster.yaml", "rayjob.yaml"])
def test_no_file_contains_a_secret(name):
    assert not [
        text for document in read(name) for text in texts_in(document) if SECRET.search(text)
    ]


def test_the_search_finds_made_up_secrets():
    for secret in ("AKIA" + "A" * 16, "hf_" + "a" * 34, "0f" * 32, "RAY_AUTH_TOKEN=x"):
        assert SECRET.search(f"export X={secret}")


# --- cluster.yaml: installation -------------------------------------------------------------------------


def test_set_up_installs_the_pinned_versions(cluster):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name in ("head_setup_commands", "worker_setup_commands"):
        installs = [c for c in cluster[name] if "raymrc-*.whl" in c]
        assert len(installs) == 1
        assert "--constraint ~/raymrc/constraints.txt" in installs[0]
    assert cluster["file_mounts"]["/home/ubuntu/raymrc/constraints.txt"] == "constraints.txt"
    head, worker = cluster["head_setup_commands"], cluster["worker_setup_commands"]
    # The head's torch comes first; otherwise the package's dependency brings the build with CUDA.
    assert "download.pytorch.org/whl/cpu" in head[0] and "^torch==" in head[0]
    assert re.search(r"^torch==", pins, flags=re.MULTILINE)
    assert not [command for command in worker if "whl/cpu" in command]


def test_only_the_wheel_the_pins_and_the_token_are_copied_to_the_nodes(cluster):
    copied = {"dist", "constraints.txt", "~/.ray/raymrc-token"}
    assert set(cluster["file_mounts"].values()) == copied


def test_all_processes_of_a_node_share_the_weights_on_its_disk(cluster):
    assert "HF_HOME=/home/ubuntu/hf" in " ".join(cluster["setup_commands"])


# --- docs/cluster.md ----------------------------------------------------------------------------------


def test_only_describe_and_ssm_channel_actions_are_allowed_on_all_resources():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```json\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    statements = [s for block in blocks for s in json.loads(block)["Statement"]]
    assert len(blocks) == 2
    for statement in statements:
        actions = list(texts_in([statement["Action"]]))
        assert not [action for action in actions if "*" in action]
        if statement["Resource"] == "*":
            channels = r"ec2:Describe|ssm:UpdateInstanceInformation|ssmmessages:"
            assert all(re.match(channels, action) for action in actions)


def test_the_policy_names_the_types_image_and_network_of_the_cluster(cluster):
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    for worker in workers_of(cluster).values():
        config = worker["node_config"]
        named = [config["InstanceType"], config["ImageId"], *config["SubnetIds"]]
        for name in (*named, *config["SecurityGroupIds"], config["IamInstanceProfile"]["Name"]):
            assert name in text


# --- rayjob.yaml -------------------------------------------------------------------------------------------


def validate_job(job: Mapping[str, Any]) -> None:
    """Check KubeRay's fields with a trimmed copy of its schema, and pods with Kubernetes' schema."""
    (schema,) = read("tests/house/rayjob-schema.yaml")
    jsonschema.Draft202012Validator(schema).validate(job)
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    # The operator builds the autoscaler's container from these.
    options = cluster["autoscalerOptions"]
    container = {
        "name": "autoscaler",
        "image": "any",
        **{key: options[key] for key in ("env", "resources", "securityContext")},
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
    kubernetes_validate.validate(
        pod | {"spec": {"containers": [container]}}, KUBERNETES, strict=True
    )


def test_kuberay_and_kubernetes_accept_the_job(job):
    validate_job(job)


def test_kubernetes_accepts_every_other_document_of_the_file():
    others = [document for document in read("rayjob.yaml") if document["kind"] != "RayJob"]
    assert [other["kind"] for other in others] == ["NetworkPolicy"]
    for other in others:
        kubernetes_validate.validate(other, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        (("spec",), "shutdownAfterJobFinishes", "shutdownAfterJobFinish"),
        (("spec", "rayClusterSpec"), "enableInTreeAutoscaling", "enableInTreeAutoscaler"),
        (("spec", "rayClusterSpec", "authOptions"), "secretName", "secret"),
    ],
)
def test_a_misspelt_field_of_kuberay_is_refused(job, place, right, wrong):
    section = job
    for key in place:
        section = section[key]
    section[wrong] = section.pop(right)
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        validate_job(job)


def test_a_misspelt_field_of_a_pod_is_refused(job):
    pod = pods_of(job)["gpu8-on-demand"]
    pod["nodeSelectors"] = pod.pop("nodeSelector")
    with pytest.raises(kubernetes_validate.utils.ValidationError, match="nodeSelectors"):
        validate_job(job)


def test_pods_start_when_there_is_work_and_end_with_the_job(job):
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert 0 < cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in groups_of(job).values():
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]


def test_the_worker_groups_match_the_node_types_of_the_cluster(cluster, job):
    groups, types = groups_of(job), workers_of(cluster)
    assert groups.keys() == types.keys()
    for name, group in groups.items():
        pod, node = group["template"]["spec"], types[name]
        (container,) = pod["containers"]
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert gpus == container["resources"]["requests"]["nvidia.com/gpu"]
        assert int(gpus) == node["resources"]["GPU"]
        assert group["priority"] == node["priority"]
        assert group["maxReplicas"] == node["max_workers"]
        market = "spot" if name.endswith("-spot") else "on-demand"
        assert pod["nodeSelector"] == {
            "karpenter.sh/capacity-type": market,
            "node.kubernetes.io/instance-type": node["node_config"]["InstanceType"],
        }
        assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert not [text for text in texts_in(head) if "nvidia" in text]


def test_no_pod_runs_as_root_or_may_become_root(job):
    for pod in pods_of(job).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_pods_are_closed_to_clients_without_a_token_and_to_other_pods(job):
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raymrc-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = next(
        document for document in read("rayjob.yaml") if document["kind"] == "NetworkPolicy"
    )
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert policy["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert chosen.items() <= group["template"]["metadata"]["labels"].items()


def test_only_the_head_writes_weights_and_sees_notes(job):
    for name, pod in pods_of(job).items():
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert mounts["weights"].get("readOnly", False) is (name != "head")
        assert ("notes" in mounts) is (name == "head")


def test_a_pods_grace_period_is_longer_than_its_drain(job):
    for name in groups_of(job):
        pod = pods_of(job)[name]
        env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain + 10 <= pod["terminationGracePeriodSeconds"] <= 120


def test_the_job_uses_this_repositorys_versions(job):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pins
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    images = {c["image"] for pod in pods_of(job).values() for c in pod["containers"]}
    assert images == {f"REGISTRY/raymrc:{project['version']}"}
