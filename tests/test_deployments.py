"""prefect.yaml: its entry points exist, and its parameters are the flows' own."""

import importlib
from pathlib import Path

import pytest
import yaml
from prefect import Flow

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = {d["name"]: d for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


def test_the_names_that_people_use():
    assert {"demo", "ffhq"} <= DEPLOYMENTS.keys()


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_entry_point_and_parameters(name):
    deployment = DEPLOYMENTS[name]
    path, function = deployment["entrypoint"].split(":")
    assert (ROOT / path).is_file()
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
    assert isinstance(flow, Flow)
    assert flow.name == "pti"
    assert flow.validate_parameters(deployment["parameters"])
    assert deployment["work_pool"]["name"]


def test_ffhq_has_a_pool_of_its_own_and_a_weekly_schedule_that_ships_inactive():
    (schedule,) = DEPLOYMENTS["ffhq"]["schedules"]
    assert schedule["active"] is False
    assert schedule["cron"].split()[-1] == "0"
    assert DEPLOYMENTS["ffhq"]["work_pool"]["name"] != DEPLOYMENTS["demo"]["work_pool"]["name"]


def test_every_parameter_of_the_flow_is_explained():
    from flows.pti import pti

    properties = pti.parameters.properties
    assert {"dataset", "output", "generator", "preset", "mode", "limit"} <= properties.keys()
    assert all(p.get("description") for p in properties.values()), properties
