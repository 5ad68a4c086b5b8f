"""prefect.yaml and deployments/: entry points exist, the form of parameters is usable, nothing secret is in a file."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect import Flow
from prefect.context import FlowRunContext
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
from prefect.utilities.callables import parameter_schema
from prefect.utilities.names import generate_slug
from test_credentials import WITH_SECRETS, WITHOUT

from flows.addresses import NO_SECRET
from flows.run_names import made_up, named
from pti_core.addresses import refusal

ROOT = Path(__file__).parents[1]
ALL = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
DEPLOYMENTS = {f"{d['entrypoint'].partition(':')[2].replace('_', '-')}/{d['name']}": d for d in ALL}
INVERSIONS = sorted(name for name in DEPLOYMENTS if name.startswith("pti/"))
COMPOSE = ROOT / "deployments/compose.yaml"
SERVER_WORKER = ("server", "worker")


def flow_of(deployment):
    path, function = deployment["entrypoint"].split(":")
    assert (ROOT / path).is_file()
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)


def test_the_names_that_people_use():
    assert {"pti/demo", "pti/ffhq", "edit/demo", "alpha-study/demo", "train-encoder/demo"} <= DEPLOYMENTS.keys()
    assert len(DEPLOYMENTS) == len(ALL)


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_entry_point_and_parameters(name):
    deployment = DEPLOYMENTS[name]
    flow = flow_of(deployment)
    assert isinstance(flow, Flow)
    assert flow.name == name.split("/")[0]
    assert flow.validate_parameters(deployment["parameters"])
    assert deployment["work_pool"]["name"]
    assert deployment["description"]
    assert deployment["concurrency_limit"]["limit"] == 1


@pytest.mark.parametrize("name", INVERSIONS)
def test_a_weekly_schedule_that_ships_inactive_and_extends(name):
    deployment = DEPLOYMENTS[name]
    (schedule,) = deployment["schedules"]
    assert schedule["active"] is False
    assert schedule["cron"].split()[-1] == "0"
    assert flow_of(deployment).validate_parameters(deployment["parameters"] | schedule["parameters"])
    assert schedule["parameters"] == {"existing": "extend", "retry_rejects": True}


def test_the_automations_are_as_prefect_wants_them_and_wait_for_three_heartbeats():
    file = yaml.safe_load((ROOT / "deployments/automations.yaml").read_text())
    dead, again = (AutomationCore.model_validate(one) for one in file["automations"])
    assert dead.trigger.within.total_seconds() > 3 * PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()
    assert [action.state.value for action in dead.actions + again.actions] == ["CRASHED", "SCHEDULED"]
    assert (dead.enabled, again.enabled) == (True, False)
    tags = {label.rpartition(".")[2] for label in again.trigger.match_related["prefect.resource.id"]}
    assert tags <= {d["tags"][0] for d in ALL}


def test_what_needs_a_gpu_has_a_pool_of_its_own():
    pools = {name: d["work_pool"]["name"] for name, d in DEPLOYMENTS.items()}
    assert [name for name, pool in pools.items() if pool == pools["pti/ffhq"]] == ["pti/ffhq"]


def test_the_kubernetes_commands_name_what_the_values_files_name():
    """Secrets and their keys, the server's service, the pool; and each thing comes after what it needs."""
    text = (ROOT / "deployments/README.md").read_text().partition("## Kubernetes")[2].partition("\n## ")[0]
    server, worker = (yaml.safe_load((ROOT / f"deployments/kubernetes/{n}.yaml").read_text()) for n in SERVER_WORKER)
    config = worker["worker"]["selfHostedServerApiConfig"]
    service, port = re.fullmatch(r"http://([\w-]+):(\d+)/api", config["apiUrl"]).groups()
    secret = server["server"]["basicAuth"]["existingSecret"]
    assert config["basicAuth"]["existingSecret"] == secret
    in_order = [
        "docker push IMAGE",
        f"secret generic {secret} --from-literal=auth-string=",
        f"secret generic {server['secret']['name']} ",
        "--from-literal=connection-string=postgresql+asyncpg://",
        f"helm install {service} ",
        f"port-forward svc/{service} {port}:{port}",
        f"PREFECT_API_URL={server['server']['uiConfig']['prefectUiApiUrl']}",
        f"work-pool create {worker['worker']['config']['workPool']} ",
        "helm install prefect-worker ",
        f"deploy -n ffhq --pool {worker['worker']['config']['workPool']}",
    ]
    assert "--arg image IMAGE" in text
    assert "--job-variable image" not in text  # Prefect would look for the code in /opt/prefect
    places = [text.index(part) for part in in_order]
    assert places == sorted(places)


def test_the_commands_for_one_machine_wait_until_the_server_answers():
    """They are pasted at once: before that `work-pool create` fails, and `deploy` finds no pool."""
    text = (ROOT / "deployments/README.md").read_text().partition("## One machine")[2].partition("\n## ")[0]
    in_order = ["prefect server start", "until curl -fs $PREFECT_API_URL/health;", "work-pool create", "deploy --all"]
    places = [text.find(part) for part in in_order]
    assert places == sorted(places)
    assert -1 not in places


def form_of(name):
    """The schema that Prefect makes the form of, in its order."""
    properties = parameter_schema(flow_of(DEPLOYMENTS[name])).properties
    return dict(sorted(properties.items(), key=lambda item: item[1]["position"]))


@pytest.fixture(scope="module")
def form():
    return form_of("pti/demo")


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_every_parameter_is_explained_in_the_form(name):
    """Prefect shows what the flow's docstring says of its arguments; a Field's description does not reach the form."""
    assert [name for name, p in form_of(name).items() if not p.get("description")] == []


def test_the_form_begins_with_what_everyone_gives(form):
    assert list(form)[:4] == ["dataset", "output", "generator", "preset"]
    assert list(form)[-1] == "settings"


@pytest.mark.parametrize("name", ["preset", "mode", "existing", "runner"])
def test_choices_are_choices(form, name):
    assert form[name]["default"] in form[name]["enum"]


@pytest.mark.parametrize("name", ["limit", "shard_size", "shards_per_task", "workers"])
def test_counts_have_limits(form, name):
    kinds = form[name].get("anyOf", [form[name]])
    assert {"type": "integer", "minimum": 1}.items() <= kinds[0].items()


def test_only_names_that_prefect_makes_up_give_way_to_what_a_run_does():
    assert all(made_up(generate_slug(2)) for _ in range(1000))
    assert not any(map(made_up, ["march-batch", "pti-demo-photos", "edit-photos", "photos", "big-otter-2", ""]))


def test_a_run_keeps_the_name_that_it_was_given():
    name = named("pti-{preset}", "dataset")
    for before, then in (("march-batch", "march-batch"), ("tasteful-mongoose", "pti-fast-photos")):
        given = {"preset": "fast", "dataset": "photos/"}
        with FlowRunContext.model_construct(flow_run=SimpleNamespace(id=uuid4(), name=before), parameters=given):
            assert name() == then


def test_addresses_with_secrets_are_refused_by_the_form_and_no_others():
    """Before a server has stored them; the few that it lets through are refused where the run begins."""
    fields = [("pti/demo", "dataset"), ("pti/demo", "output"), ("pti/ffhq", "generator"), ("edit/demo", "root")]
    assert [form_of(name)[field]["pattern"] for name, field in fields] == [NO_SECRET] * 4
    more = ["HTTPS://u@h/x", "https://h/x?sv=1&SIGNATURE=ab", "https://h/x?key=abc", "s3://b/x\n?sig=1"]
    plain = ["http://[::1]:8080/a@2x.png", "hdfs://[fe80::1]:8020/x@1", "file:///data/a;token=1/", "az://c:1@x"]
    plain += ["zip://a?token=1::/x.zip", "oci://b:x@ns/", "gs://b/http://x@y", "tcp://host:8786", "ray://host:10001"]
    assert [address for address in [*WITHOUT, *plain] if not re.search(NO_SECRET, address)] == []
    assert [address for address in [*WITH_SECRETS, *more] if re.search(NO_SECRET, address)] == []
    assert [address for address in plain if refusal("dataset", address)] == []


def test_what_compose_asks_for_is_in_the_example_and_nothing_secret_is_in_a_file():
    text = COMPOSE.read_text()
    wanted = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^  (AWS_\w+):", text, re.MULTILINE))
    example = dict(re.findall(r"^#?(\w+)=(.*)$", (ROOT / "deployments/env.example").read_text(), re.MULTILINE))
    assert wanted == example.keys()
    assert [name for name, value in example.items() if value and not value.startswith("http://localhost")] == []


def test_compose_runs_what_is_there():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    build = services["server"]["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).is_file()
    pools = {
        command[command.index("--pool") + 1] for s in services.values() if "--pool" in (command := s.get("command", []))
    }
    in_image = re.search(r'"--pool", "([\w-]+)"', (ROOT / "deployments/Dockerfile").read_text())
    assert pools | {in_image[1]} == {d["work_pool"]["name"] for d in DEPLOYMENTS.values()}


@pytest.mark.parametrize("known", [True, False])
def test_compose_leaves_schedules_of_known_deployments_as_they_are(known, tmp_path):
    """Prefect leaves a schedule of the same slug on or off where the file does not say."""
    prefect, kept = tmp_path / "prefect", tmp_path / "kept.yaml"
    inspect, deploy = f'[ "$2" = inspect ] && exit {0 if known else 1}', f'[ "$2" = deploy ] && cp "$5" {kept}'
    prefect.write_text(f"#!/bin/sh\n{inspect}\n{deploy}\n:")
    prefect.chmod(0o755)
    (shell, options, script) = yaml.safe_load(COMPOSE.read_text())["services"]["deploy"]["command"]
    script = script.replace("$$", "$").replace("/tmp/known.yaml", str(tmp_path / "known.yaml"))
    subprocess.run([shell, options, script], cwd=ROOT, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    deployed = yaml.safe_load(kept.read_text())["deployments"]
    without = [{k: v for k, v in s.items() if k != "active"} for d in ALL for s in d.get("schedules", ())]
    schedules = [s for d in deployed for s in d.get("schedules", ())]
    assert schedules == (without if known else [s for d in ALL for s in d.get("schedules", ())])
    assert [d["parameters"] for d in deployed] == [d["parameters"] for d in ALL]


def test_the_images_requirements_are_those_of_the_project():
    command = [sys.executable, "deployments/requirements.py", "dask", "ray"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*project["dependencies"], *extras["dask"], *extras["ray"]} < set(printed)


def test_the_image_gets_every_package():
    ignore = (ROOT / "deployments/Dockerfile.dockerignore").read_text().split("\n")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {f"!{name.rstrip('*')}" for name in setuptools["packages"]["find"]["include"]} <= set(ignore)


def test_the_licences_of_all_that_is_shipped_are_there_and_in_the_image():
    """setuptools only warns of a pattern that finds no file."""
    ignore = (ROOT / "deployments/Dockerfile.dockerignore").read_text().split("\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {path for pattern in project["license-files"] for path in ROOT.glob(pattern)}
    names = {str(path.relative_to(ROOT)) for path in found}
    assert {"LICENSE", "LICENSES/BSD-3-Clause-torchvision.txt", "LICENSES/CC-BY-NC-SA-4.0.txt"} <= names
    assert set(project["license"].split(" AND ")) == {"Apache-2.0", "BSD-3-Clause", "CC-BY-NC-SA-4.0"}
    assert {f"!{name.split('/')[0]}" for name in names} <= set(ignore)
