"""The messages of a request, as OpenAI writes them: who says what, and pictures in between."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, model_validator
from pydantic_core import PydanticCustomError, core_schema

MAX_PARTS = 1_000  # of one message


def _describe_ignored(schema: dict[str, Any], model: type["Strict"]) -> None:
    schema["properties"] |= {name: {"description": "without effect"} for name in model.IGNORED}


class Strict(BaseModel):
    """An object of a request: a field that is unknown is refused, those in `IGNORED` may hold anything."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra=_describe_ignored,  # type: ignore[typeddict-item]
    )
    IGNORED: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, given: Any) -> Any:
        if isinstance(given, dict) and not given.keys().isdisjoint(cls.IGNORED):
            return {name: value for name, value in given.items() if name not in cls.IGNORED}
        return given


def only(*nothing: Any, why: str) -> GetPydanticSchema:
    """Annotates a field for something that this server can't do: only what asks for nothing of it is taken.

    Args:
        nothing: the values that ask for nothing, besides null.
        why: the reason for refusing any other, and what to do.
    """

    def check(value: Any) -> None:
        if value is not None and not any(value == own and type(value) is type(own) for own in nothing):
            raise PydanticCustomError("unsupported", " is not supported: {why}", {"why": why})

    validator = core_schema.no_info_plain_validator_function(check)
    return GetPydanticSchema(lambda *_: validator, lambda *_: {"enum": [None, *nothing]})


NoTools = Annotated[None, only([], "none", "auto", why="the model calls no tools. Leave it out.")]
NoSound = Annotated[None, only(why="the model answers in text. Leave it out.")]

_MARKS = ("cache_control", "id", "prompt_cache_breakpoint")  # of parts, for caches and clients
_NOTES = (*_MARKS, "name", "opts", "timestamp")  # of messages


class TextPart(Strict):
    """Words; the names with a direction are those of OpenAI's Responses API."""

    IGNORED = (*_MARKS, "annotations", "logprobs")
    type: Literal["text", "input_text", "output_text"]
    text: str


class ImageUrl(Strict):
    IGNORED = ("detail",)
    url: str = Field(description="`data:image/png;base64,...` or the base64 alone; http(s) where the server allows it")


class ImagePart(Strict):
    IGNORED = (*_MARKS, "detail")
    type: Literal["image_url", "input_image"]
    image_url: ImageUrl | str
    file_id: Annotated[None, only(why="no files are kept here. Send the picture itself as image_url.")] = None

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


# a list fails at its first error: a stranger's may have millions
TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
Parts = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
    Field(min_length=1, max_length=MAX_PARTS, fail_fast=True),
]


class SystemMessage(Strict):
    IGNORED = _NOTES
    role: Literal["system", "developer"]
    content: str | TextParts


class UserMessage(Strict):
    IGNORED = _NOTES
    role: Literal["user"]
    content: str | Parts


class AssistantMessage(Strict):
    """An earlier answer, as the API gave it; at the end the beginning of the answer that is asked for."""

    IGNORED = (*_NOTES, "annotations", "reasoning", "reasoning_content")
    role: Literal["assistant"]
    content: str | TextParts | None
    refusal: None = None
    audio: NoSound = None
    tool_calls: NoTools = None
    function_call: NoTools = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
