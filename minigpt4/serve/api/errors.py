"""How an error is reported to a client of the API."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from minigpt4.common.errors import UserError, first_line
from minigpt4.serve.errors import ApiError, shortened


def as_api_error(error: Exception) -> ApiError:
    """The error as the client gets it; of what is not the client's doing, only its first line."""
    match error:
        case ApiError():
            return error
        case UserError():
            return ApiError(400, str(error), "messages")
        case RequestValidationError():
            return _invalid(error)
        case HTTPException(status_code=404):
            return ApiError(404, "There is nothing here. The API is below /v1, and /openapi.json describes it.")
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=dict(error.headers or {}))
        case _:
            return ApiError(500, f"The model failed: {type(error).__name__}: {first_line(error)}")


def _invalid(error: RequestValidationError) -> ApiError:
    """A request that does not fit the schema: of several reasons the one that reaches deepest into it."""
    # where one of several types would do, a wrong type says less than what is wrong within the right one
    worst = max(error.errors(), key=lambda own: (len(own["loc"]), not own["type"].endswith("_type")))
    if worst["type"] == "json_invalid":
        return ApiError(400, "The body is not JSON.", code="invalid_json")
    if isinstance(error.body, bytes):
        return ApiError(400, "The body was not sent as JSON. Send it with 'Content-Type: application/json'.")
    where = _place(worst["loc"], error.body)
    if worst["type"] == "missing":
        where = ".".join(filter(None, [where, str(worst["loc"][-1])]))
    own = {"missing": " is required.", "extra_forbidden": " is unknown. Leave it out.", "unsupported": worst["msg"]}
    code = "unsupported_parameter" if worst["type"] == "unsupported" else None
    message = own.get(worst["type"], f": {worst['msg']}.")
    return ApiError(400, f"{where or 'the body'}{message}", where or None, code)


def _place(location: tuple[int | str, ...], body: Any) -> str:
    """A place in the body as the client wrote it; pydantic's also names which of several types it has tried."""
    path = []
    for step in location[1:]:
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
            path.append(shortened(str(step), 80))
    return ".".join(path)
