"""The API against its own OpenAPI document, by requests that schemathesis makes up."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi import checks as openapi

from minigpt4.serve.api.service import Limits, Service
from tests.serve.asking import NAME, SCENES, data_url, running

KEY = "secret"
# a body that breaks the schema may be too large as well: both refusals are right
CONFIG = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 413, 422]}}}
CHECKS = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.positive_data_acceptance,
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
    with running(Service(tiny, NAME, Limits()), api_key=KEY) as url:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json", config=SchemathesisConfig.from_dict(CONFIG))
        yield {operation.ok().label: operation.ok() for operation in document.get_all_operations()}


@pytest.mark.slow
def test_all_are_in_the_document(operations):
    assert list(operations) == OPERATIONS


def make_sense(body: dict) -> None:
    """What no schema says: the model's name, what continues, what a picture is. And answers are kept short."""
    body |= {"model": NAME, "n": body.get("n") and min(body["n"], 3), "max_tokens": 10}
    body |= {"add_generation_prompt": None, "continue_final_message": None}
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if "image_url" in part:
                as_text = isinstance(part["image_url"], str)
                part["image_url"] = data_url(SCENES[0]) if as_text else {"url": data_url(SCENES[0])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "mode"),
    [*((label, GenerationMode.POSITIVE) for label in OPERATIONS), (OPERATIONS[0], GenerationMode.NEGATIVE)],
)
def test_what_it_says_is_so(operations, label, mode):
    statuses = set()

    @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[label].as_strategy(generation_mode=mode))
    def check(case):
        if mode is GenerationMode.POSITIVE and label.startswith("POST"):
            make_sense(case.body)
        answer = case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=CHECKS)
        statuses.add(answer.status_code)

    check()
    assert statuses & {200, 404} if mode is GenerationMode.POSITIVE else 400 in statuses
