"""The Kubernetes Job and KubeRay's RayJob: schemas of Kubernetes, the fields that
KubeRay's resource has, and what no schema tells.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.support import (
    ROOT,
    calls,
    check_command,
    template,
    unnoticed,
    wrong,
)

JOB = template("kubernetes-job.yaml")
RAY_JOB = template("kubernetes-rayjob.yaml")
# The oldest with every field that the Job has (backoffLimitPerIndex is of 1.33).
VERSIONS = ("1.33", "1.37")
# Below these, names are the user's own.
FREE = ("labels", "requests", "limits", "rayStartParams")

# The fields of ray.io/v1 in KubeRay 1.7 (ray-operator/apis/ray/v1); pods are checked by
# Kubernetes' schema.
POD: Any = dict
STRINGS = {"*": str}
GROUP = {
    "template!": POD,
    "rayStartParams!": STRINGS,
    "resources": STRINGS,
    "labels": STRINGS,
}
RAY_JOB_FIELDS: dict[str, Any] = {
    "apiVersion!": {"ray.io/v1"},
    "kind!": {"RayJob"},
    "metadata!": {"name!": str, "namespace": str, "labels": STRINGS},
    "spec!": {
        "entrypoint!": str,
        "entrypointNumCpus": (int, float),
        "entrypointNumGpus": (int, float),
        "entrypointResources": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "metadata": STRINGS,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "submitterPodTemplate": POD,
        "submitterConfig": {"backoffLimit": int},
        "activeDeadlineSeconds": int,
        "preRunningDeadlineSeconds": int,
        "backoffLimit": int,
        "ttlSecondsAfterFinished": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
        "clusterSelector": STRINGS,
        "managedBy": str,
        "deletionStrategy": dict,
        "rayClusterSpec!": {
            "rayVersion!": str,
            "authOptions": {
                "mode": {"disabled", "token"},
                "secretName": str,
                "enableK8sTokenAuth": bool,
            },
            "headGroupSpec!": {
                **GROUP,
                "serviceType": str,
                "headService": dict,
                "enableIngress": bool,
                "ingressOptions": dict,
            },
            "workerGroupSpecs": [
                {
                    **GROUP,
                    "groupName!": str,
                    "replicas": int,
                    "minReplicas!": int,
                    "maxReplicas!": int,
                    "numOfHosts": int,
                    "idleTimeoutSeconds": int,
                    "priority": int,
                    "suspend": bool,
                    "scaleStrategy": dict,
                }
            ],
            "enableInTreeAutoscaling": bool,
            "autoscalerOptions": dict,
            "headServiceAnnotations": STRINGS,
            "gcsFaultToleranceOptions": dict,
            "historyServerOptions": dict,
            "networkPolicy": dict,
            "tlsOptions": {"enabled": bool},
            "upgradeStrategy": dict,
            "managedBy": str,
            "suspend": bool,
        },
    },
}


def check_job(job: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(job, version, strict=True)
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    # Kubernetes wants Never where failures are told apart.
    assert spec["podFailurePolicy"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    check_pod(spec["template"])
    (container,) = pod["containers"]
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert told["WORKERS"] == str(spec["completions"])
    names = [container["name"]]
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in {"Ignore", "FailJob", "FailIndex", "Count"}
        codes = rule.get("onExitCodes")
        assert ("onPodConditions" in rule) != (codes is not None)
        if codes:
            assert codes["containerName"] in names
            assert codes["operator"] in {"In", "NotIn"}
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["maxFailedIndexes"] == 0


def check_pod(pod_template: dict[str, Any]) -> None:
    """No schema says that a pod is safe, or that what it mounts is there."""
    for version in VERSIONS:
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": pod_template}
        kubernetes_validate.validate(whole, version, strict=True)
    pod = pod_template["spec"]
    user = pod["securityContext"]
    assert user["runAsNonRoot"] is True
    assert f"--uid {user['runAsUser']} " in (ROOT / "deploy/Dockerfile").read_text()
    assert user["runAsGroup"] == user["fsGroup"] == user["runAsUser"]
    assert user["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert len(volumes) == len(pod["volumes"])
    mounted = set()
    for container in pod["containers"]:
        check_container(container)
        places = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert "/tmp" in places
        assert len(set(places)) == len(places)
        mounted |= {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == set(volumes)


def check_container(container: dict[str, Any]) -> None:
    safe = container["securityContext"]
    assert safe["allowPrivilegeEscalation"] is False
    assert safe["readOnlyRootFilesystem"] is True
    assert safe["capabilities"]["drop"] == ["ALL"]
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", container["image"])
    limits, requests = (container["resources"][key] for key in ("limits", "requests"))
    assert {"cpu", "memory"} <= set(requests)
    assert "memory" in limits
    for entry in container.get("env", ()):
        assert not re.search("KEY|SECRET|TOKEN|PASSWORD", entry["name"])
    for source in container.get("envFrom", ()):
        assert source["secretRef"]["name"]


def pods(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    yield spec["submitterPodTemplate"]
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def check_ray_job(job: dict[str, Any]) -> None:
    assert wrong(job, RAY_JOB_FIELDS) == []
    for pod in pods(job):
        check_pod(pod)
    cluster = job["spec"]["rayClusterSpec"]
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in pinned
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["authOptions"]["secretName"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    for group in cluster["workerGroupSpecs"]:
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    head = cluster["headGroupSpec"]["rayStartParams"]
    assert head == {"num-cpus": "0"}


def test_the_job_is_right() -> None:
    check_job(JOB)


def test_the_ray_job_is_right() -> None:
    check_ray_job(RAY_JOB)


def test_each_misspelt_key_of_the_job_is_found() -> None:
    assert unnoticed(check_job, JOB, FREE, least=50) == []


def test_each_misspelt_key_of_the_ray_job_is_found() -> None:
    assert unnoticed(check_ray_job, RAY_JOB, FREE, least=100) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.completionMode", "NonIndexed"),
        ("spec.completions", 9),
        ("spec.completions", "8"),
        ("spec.template.spec.restartPolicy", "Always"),
        ("spec.template.spec.securityContext.runAsUser", 0),
        ("spec.template.spec.securityContext.runAsNonRoot", False),
        ("spec.template.spec.containers.0.securityContext.readOnlyRootFilesystem", False),
        ("spec.template.spec.containers.0.image", "actstore:latest"),
        ("spec.template.spec.containers.0.volumeMounts.0.name", "other"),
        ("spec.template.spec.containers.0.env.0", {"name": "AWS_ACCESS_KEY_ID", "value": "AKIA"}),
        ("spec.podFailurePolicy.rules.1.onExitCodes.containerName", "other"),
    ],
)  # fmt: skip
def test_wrong_values_of_the_job_are_found(path: str, value: Any) -> None:
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        check_job(with_value(JOB, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("spec.backoffLimit", "3"),
        ("spec.rayClusterSpec.rayVersion", "2.9.0"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", 1),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.image", "x"),
    ],
)
def test_wrong_values_of_the_ray_job_are_found(path: str, value: Any) -> None:
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        check_ray_job(with_value(RAY_JOB, path, value))


def with_value(whole: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed: Any = copy.deepcopy(whole)
    level = changed
    *steps, last = path.split(".")
    for step in steps:
        level = level[int(step)] if step.isdecimal() else level[step]
    level[int(last) if last.isdecimal() else last] = value
    found: dict[str, Any] = changed
    return found


def test_the_jobs_command_is_a_harvest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    environment = {**told, "JOB_COMPLETION_INDEX": "2"}
    (words,) = calls(container["command"], tmp_path, environment)
    spec, out, named = check_command(words, monkeypatch).what
    assert (named["worker"], named["device"]) == ("3/8", "cuda")
    assert (spec.tokens, out) == (100_000_000, "s3://team/stores/gpt2")


def test_the_ray_jobs_entrypoint_is_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(RAY_JOB["spec"]["entrypoint"])
    assert words[:2] == ["trainer", "sweep"]
    check_command(words, monkeypatch)
    (mount,) = [
        mount
        for mount in next(
            iter(RAY_JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"])
        )["volumeMounts"]
        if mount["name"] == "sweep"
    ]  # fmt: skip
    assert words[2].startswith(mount["mountPath"] + "/")
