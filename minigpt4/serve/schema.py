"""What goes over the wire: the part of OpenAI's chat completions that the API speaks.

Fields and their meaning are those of https://platform.openai.com/docs/api-reference/chat. What this server can't do is
in the schema too, as the one value that asks for nothing, so that a request gets a reason and not a shrug.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

DEFAULT_MAX_TOKENS = 300  # as on the page and in the terminal


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _only(*nothing: Any, why: str) -> BeforeValidator:
    """Takes what asks for nothing, and refuses the rest with a reason."""

    def check(value: Any) -> None:
        if value is not None and not any(value == own and type(value) is type(own) for own in nothing):
            raise PydanticCustomError("unsupported", " is not supported: {why}", {"why": why})

    return BeforeValidator(check)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # to JSON 5.0 is an integer too
Count = Annotated[int, Field(ge=1), WHOLE]
AnswerCount = Annotated[int, Field(ge=1, le=128), WHOLE]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE]

_NO_TOOLS = "the model calls no tools. Leave it out."
_NO_PENALTY = "use repetition_penalty (1 is none, 1.1 a little), or leave it out."

NoLogprobs = Annotated[Literal[False] | None, _only(False, why="answers come without log probabilities. Leave it out.")]
NoTools = Annotated[
    Annotated[list[Any], Field(max_length=0)] | Literal["none", "auto"] | None, _only([], "none", "auto", why=_NO_TOOLS)
]
NoPenalty = Annotated[Literal[0] | None, _only(0, 0.0, why=_NO_PENALTY)]


class PlainText(_Strict):
    type: Literal["text"]


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str = Field(description="`data:image/png;base64,...` or the base64 alone; http(s) where the server allows it")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="without effect")


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


TextParts = Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
Parts = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1, fail_fast=True)
]


class SystemMessage(_Strict):
    role: Literal["system", "developer"]
    content: str | TextParts
    name: str | None = Field(None, description="without effect")


class UserMessage(_Strict):
    role: Literal["user"]
    content: str | Parts
    name: str | None = Field(None, description="without effect")


class AssistantMessage(_Strict):
    """An earlier answer, as the API gave it."""

    role: Literal["assistant"]
    content: str | TextParts | None
    name: str | None = Field(None, description="without effect")
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: NoTools = None
    function_call: NoTools = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(_Strict):
    include_usage: bool | None = Field(None, description="one more chunk at the end, with the usage")
    include_obfuscation: bool | None = Field(None, description="without effect")


class ChatRequest(_Strict):
    """A conversation, and how its next answer is to be made."""

    model: str
    messages: list[Message] = Field(
        min_length=1, fail_fast=True, description="The last is the user's. A system message, if any, is the first."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: AnswerCount | None = Field(None, description="Answers. Without a temperature they are all the same.")
    max_tokens: Count | None = Field(None, description=f"Most tokens of an answer ({DEFAULT_MAX_TOKENS} if not set).")
    max_completion_tokens: Count | None = Field(None, description="The same; of both the smaller counts.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="1 if not set. Below 0.01 the likeliest token is taken; else one of the 50 likeliest is drawn.",
    )
    top_p: float | None = Field(None, ge=0, le=1, description="1 if not set. 0 takes the likeliest token.")
    repetition_penalty: float | None = Field(
        None, ge=0.1, le=10, description="Not OpenAI's: above 1 avoids what was said before. 1 if not set."
    )
    seed: Seed | None = Field(None, description="The same seed draws the same answer, whatever else is asked.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="An answer ends before the first of these."
    )

    frequency_penalty: NoPenalty = None
    presence_penalty: NoPenalty = None
    logprobs: NoLogprobs = None
    top_logprobs: Annotated[
        Literal[0] | None, _only(0, why="answers come without log probabilities. Leave it out.")
    ] = None
    logit_bias: Annotated[
        Annotated[dict[str, Any], Field(max_length=0)] | None, _only({}, why="tokens can't be weighted. Leave it out.")
    ] = None
    response_format: Annotated[
        PlainText | None, _only({"type": "text"}, why="answers are plain text. Ask for a format in words.")
    ] = None
    tools: NoTools = None
    tool_choice: NoTools = None
    functions: NoTools = None
    function_call: NoTools = None
    modalities: Annotated[
        Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None,
        _only(["text"], why='the model answers in text. Set it to ["text"].'),
    ] = None
    audio: Annotated[None, _only(why="the model answers in text. Leave it out.")] = None

    user: str | None = Field(None, description="without effect")
    metadata: dict[str, str] | None = Field(None, description="without effect")
    store: bool | None = Field(None, description="without effect: nothing is stored")
    service_tier: str | None = Field(None, description="without effect")
    prompt_cache_key: str | None = Field(None, description="without effect")
    safety_identifier: str | None = Field(None, description="without effect")
    parallel_tool_calls: bool | None = Field(None, description="without effect")

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: Any) -> Any:
        inside = [body]
        try:
            while inside:
                match inside.pop():
                    case str(text) if not text.isascii():  # pictures are, and not looked at
                        text.encode()
                    case dict(members):
                        inside += [*members, *members.values()]
                    case list(members):
                        inside += members
        except UnicodeEncodeError:  # JSON can write what no text holds
            raise PydanticCustomError("no_text", "half a surrogate pair is no text") from None
        return body

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int:
        """The most tokens that an answer may have."""
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given, default=DEFAULT_MAX_TOKENS)


class Usage(BaseModel):
    """Tokens; an image counts as its rows, and a prompt once however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, answers: Sequence[int]) -> "Usage":
        """From the tokens of a prompt and of each of its answers."""
        return cls(prompt_tokens=prompt, completion_tokens=sum(answers), total_tokens=prompt + sum(answers))


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["minigpt4"] = "minigpt4"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """How OpenAI tells an error."""

    error: ErrorBody


class Health(BaseModel):
    status: Literal["ok", "failed"]
