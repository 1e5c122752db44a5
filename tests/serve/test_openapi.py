"""The API against its own OpenAPI document, by requests that schemathesis makes up."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi

from minigpt4.serve.service import Limits, Service
from tests.serve.conftest import NAME, running

KEY = "secret"
CHECKS = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
    openapi.missing_required_header,
    openapi.unsupported_method,
    openapi.ignored_auth,
]
OPERATIONS = [
    "POST /v1/chat/completions",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /health",
    "GET /metrics",
]


@pytest.fixture(scope="module")
def operations(tiny):
    with running(Service(*tiny, NAME, Limits()), api_key=KEY) as url:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        yield {operation.ok().label: operation.ok() for operation in document.get_all_operations()}


def test_all_are_in_the_document(operations):
    assert list(operations) == OPERATIONS


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_what_it_says_is_so(operations, label, mode):
    statuses = set()

    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = NAME  # any other is refused before the rest is looked at
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)
        statuses.add(answer.status_code)

    if mode is GenerationMode.NEGATIVE and not label.startswith("POST"):
        pytest.skip("nothing in it can be wrong")
    check()
    assert statuses
