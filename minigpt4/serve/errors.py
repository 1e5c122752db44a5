"""Errors as OpenAI reports them: `{"error": {"message", "type", "param", "code"}}`."""

from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """How OpenAI reports an error."""

    error: ErrorBody


class ApiError(HTTPException):
    """An answer that is an error. `param` names what of the request is at fault, `code` is for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: dict | None = None
    ):
        kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
        # what is wrong with them may have megabytes
        message, param = shortened(message, 500), param and shortened(param, 100)
        super().__init__(status, message, headers)
        self.body = ErrorAnswer(error=ErrorBody(message=message, type=kind, param=param, code=code))

    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers)


def shortened(text: str, length: int) -> str:
    """At most so many characters of a text, and a sign that there were more."""
    return text if len(text) <= length else f"{text[:length]}…"
