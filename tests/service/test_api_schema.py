"""The API does what its OpenAPI says: schemathesis asks it all that can be asked.

With what no plan thinks of, too: no answer is an error of the service, and each is as
it is documented.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.served import Served, served
from trainer.service import access, limits
from trainer.service.rates import Rate

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
N_PLAIN, N_SLOW = 8, 150  # requests of each route
STATUSES = {"401", "403", "404", "409", "413", "422", "429"}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    often = Rate(1e6, 1e6)
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (access, "READS"),
            (access, "CHANGES"),
            (access, "FAILURES"),
            (limits, "ADDRESS_RATE"),
        ):
            patch.setattr(module, name, often)
        folder = tmp_path_factory.mktemp("service")
        with served(folder, catalog=str(folder / "catalog")) as found:
            for i in range(3):
                run = found.submitted(name=f"run-{i}")
            found.ended(run, "failed")
            (Path(run.url)).mkdir(parents=True)
            (Path(run.url) / "note.txt").write_text("a note")
            yield found


def ask_everything(there: Served, n: int) -> int:
    """Ask each route `n` times; return how many routes there are."""
    schema = schemathesis.openapi.from_url(f"{there.url}/openapi.json")
    token = there.tokens.make("ada", "admin")
    headers = {"Authorization": f"Bearer {token}"}
    runs = [run.id for run in there.service.runs().runs]
    n_routes = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        n_routes += 1

        @settings(
            max_examples=n,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            if (
                "run_id" in case.path_parameters
                and len(case.path_parameters["run_id"]) % 2
            ):
                case.path_parameters["run_id"] = runs[
                    len(case.path_parameters["run_id"]) % len(runs)
                ]
            if case.operation.path.endswith("/events"):
                case.query = {**(case.query or {}), "follow": False}
            case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

        ask()
    return n_routes


def test_a_few_requests_of_each_route(there: Served) -> None:
    assert ask_everything(there, N_PLAIN) >= 18


@pytest.mark.slow
def test_many_requests_of_each_route(there: Served) -> None:
    assert ask_everything(there, N_SLOW) >= 18


def test_problems_are_documented(there: Served) -> None:
    paths = httpx.get(f"{there.url}/openapi.json").json()["paths"]
    assert paths["/runs"]["post"]["responses"].keys() >= STATUSES - {"404"}
    for path, methods in paths.items():
        for method, operation in methods.items():
            documented = operation["responses"].keys()
            if path in {"/health", "/ready"}:
                continue
            assert documented >= {"401", "403", "422", "429"}, (method, path)
            if "{run_id}" in path:
                assert "404" in documented, (method, path)
