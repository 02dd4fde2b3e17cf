"""What can be said of docker/ without Docker: it parses, it fits the project, and it is not open to the world."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


def constraint(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{name}=="))


@pytest.fixture(scope="module")
def dockerfile():
    joined = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text())
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_dockerfile_has_known_instructions_and_copies_what_is_there(dockerfile):
    assert {word for word, _ in dockerfile} <= {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "ARG", "CMD"}
    sources = [
        p for word, rest in dockerfile if word == "COPY" and "--from" not in rest for p in shlex.split(rest)[:-1]
    ]
    assert set(sources) >= {"pyproject.toml", "constraints.txt", "pipeline", "jobs", "data_schemas", "configs"}
    assert [p for p in sources if not (ROOT / p).exists() and p != "README.md"] == []


def test_dockerfile_compiles_the_operators_and_ends_as_an_ordinary_user(dockerfile):
    runs = " ".join(rest for word, rest in dockerfile if word == "RUN")
    assert "FORCE_CUDA=1" in runs
    assert "--no-build-isolation" in runs
    assert "import mmcv._ext" in runs
    last_stage = max(i for i, (word, _) in enumerate(dockerfile) if word == "FROM")
    users = [rest for word, rest in dockerfile[last_stage:] if word == "USER"]
    assert users[-1] not in ("root", "0")


def test_cuda_of_the_image_is_that_of_torch(dockerfile):
    wanted = constraint("cuda-toolkit").rsplit(".", 1)[0]
    tags = [rest.split()[0].split(":")[1] for word, rest in dockerfile if word == "FROM"]
    assert len(tags) == 2
    assert all(tag.startswith(f"{wanted}.") for tag in tags)


def test_compose_uses_one_image_and_keeps_the_dashboard_to_this_machine():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"head", "worker", "job"}
    assert {service["image"] for service in services.values()} == {"s4m-pipeline"}
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert any(volume.endswith("/app/data:ro") for volume in service["volumes"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_rayjob_fits_the_project_and_asks_for_a_token():
    job = yaml.safe_load((DOCKER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == constraint("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert [container["image"] for container in pod["containers"]] == ["s4m-pipeline"]
        assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]


def test_entrypoints_are_commands_that_exist():
    texts = [(DOCKER / name).read_text() for name in ("compose.yaml", "rayjob.yaml")]
    found = [match for text in texts for match in re.findall(r"s4m-pipeline ([a-z-]+) (configs/\S+\.py)", text)]
    assert len(found) == 2
    for verb, config in found:
        assert (ROOT / "jobs" / f"{verb.replace('-', '_')}.py").is_file()
        assert (ROOT / config).is_file()
