"""What goes over the wire: the part of OpenAI's chat completions that the API speaks.

Fields and their meaning are those of https://platform.openai.com/docs/api-reference/chat. What this server can't do is
in the schema too, as the one value that asks for nothing, so that a request gets a reason and not a shrug.
"""

from typing import Annotated, Any, Literal

from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from minigpt4.serve.api.messages import AssistantMessage, Messages, NoSound, NoTools, Strict, only

DEFAULT_MAX_TOKENS = 300  # as on the page and in the terminal
MAX_FIELDS = 1_000  # of one object: each unknown one is an error of its own


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # to JSON 5.0 is an integer too
Count = Annotated[int, Field(ge=1), WHOLE]
AnswerCount = Annotated[int, Field(ge=1, le=128), WHOLE]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE]

Stop = Annotated[str, Field(min_length=1, max_length=256)]

NoPenalty = Annotated[None, only(0, 0.0, why="use repetition_penalty (1 is none, 1.1 a little), or leave it out.")]
_NO_LOGPROBS = "answers come without log probabilities. Leave it out."
_NO_ARGUMENTS = "it takes no arguments here. Leave it out."
_ONE_WAY = "an answer is decoded in one way, token by token. Leave it out."
_NO_END = "an answer ends where the model ends it, or by stop and max_tokens. Leave it out."


def _check_size_and_text(body: Any) -> None:
    """Looks at everything in a body, before the fields are: their errors may be as many as its values."""
    inside = [body]  # of at most so many values as `middleware` lets in
    while inside:
        value = inside.pop()
        if isinstance(value, str) and not value.isascii():  # pictures are
            try:
                value.encode()
            except UnicodeEncodeError:  # JSON can write what no text holds
                raise PydanticCustomError("no_text", "half a surrogate pair is not text") from None
        elif isinstance(value, dict | list):
            if isinstance(value, dict) and len(value) > MAX_FIELDS:
                most = f"an object of more than {MAX_FIELDS} fields"
                raise PydanticCustomError("too_many", "it holds {most}. Send fewer", {"most": most})
            inside += value
            inside += value.values() if isinstance(value, dict) else ()


class StreamOptions(Strict):
    IGNORED = ("include_obfuscation",)
    include_usage: bool | None = Field(None, description="one more chunk at the end, with the usage")


class ChatRequest(Strict):
    """A conversation, and how its next answer is to be made.

    What would change the answer, and can't here, is refused with a reason; what changes nothing here is ignored.
    """

    IGNORED = (
        *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store"),
        *("user", "verbosity"),
        # of clients and of other servers; what does not fit into the model's window is refused, never left out
        *("cache_prompt", "cache_salt", "chat_id", "id", "include_reasoning", "keep_alive", "num_ctx", "priority"),
        *("reasoning", "request_id", "session_id", "think", "thinking"),
    )
    model: str
    messages: Messages = Field(description="If the last is the assistant's, the answer continues where it ends.")
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
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="An answer ends before the first of these."
    )
    add_generation_prompt: bool | None = Field(None, description="Not OpenAI's: false if the last is the assistant's.")
    continue_final_message: bool | None = Field(None, description="Not OpenAI's: true if the last is the assistant's.")

    frequency_penalty: NoPenalty = None
    presence_penalty: NoPenalty = None
    logprobs: Annotated[None, only(False, why=_NO_LOGPROBS)] = None
    top_logprobs: Annotated[None, only(0, why=_NO_LOGPROBS)] = None
    logit_bias: Annotated[None, only({}, why="tokens can't be weighted. Leave it out.")] = None
    response_format: Annotated[
        None, only({"type": "text"}, why="answers are plain text. Ask for a format in words.")
    ] = None
    tools: NoTools = None
    tool_choice: NoTools = None
    functions: NoTools = None
    function_call: NoTools = None
    modalities: Annotated[None, only(["text"], why='the model answers in text. Set it to ["text"].')] = None
    audio: NoSound = None
    moderation: Annotated[None, only(why="nothing is moderated here. Leave it out.")] = None
    web_search_options: Annotated[None, only(why="nothing is searched here. Leave it out.")] = None
    # of other servers
    top_k: Annotated[None, only(50, why="one of the 50 likeliest tokens is drawn. Leave it out.")] = None
    min_p: Annotated[None, only(0, 0.0, why="use top_p, or leave it out.")] = None
    best_of: Annotated[None, only(1, why=_ONE_WAY)] = None
    use_beam_search: Annotated[None, only(False, why=_ONE_WAY)] = None
    ignore_eos: Annotated[None, only(False, why=_NO_END)] = None
    min_tokens: Annotated[None, only(0, why=_NO_END)] = None
    stop_token_ids: Annotated[None, only([], why=_NO_END)] = None
    echo: Annotated[None, only(False, why="an answer holds nothing of the question. Leave it out.")] = None
    chat_template_kwargs: Annotated[None, only({}, why=f"the model's prompt is fixed; {_NO_ARGUMENTS}")] = None
    mm_processor_kwargs: Annotated[None, only({}, why=f"pictures are read in one way; {_NO_ARGUMENTS}")] = None
    options: Annotated[
        None, only({}, why="set temperature, top_p, seed, stop and max_tokens beside the messages. Leave it out.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, body: Any) -> Any:
        _check_size_and_text(body)
        return body

    @field_validator("add_generation_prompt", "continue_final_message")
    @classmethod
    def _agrees(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        messages = info.data.get("messages")
        if value is None or not messages:
            return value
        continued = isinstance(messages[-1], AssistantMessage)
        if value is (continued if info.field_name == "add_generation_prompt" else not continued):
            why = "a last message of the assistant is continued, after any other an answer begins. Leave it out."
            raise PydanticCustomError("unsupported", " is not supported: {why}", {"why": why})
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int:
        """The most tokens that an answer may have."""
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given, default=DEFAULT_MAX_TOKENS)


class ModelList(BaseModel):
    """OpenAI's client has no type for it."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok", "failed"]


class PhraseBox(BaseModel):
    """A box of an answer: what is said to be in it, and x1, y1, x2, y2 in pixels of the last picture."""

    phrase: str
    box: tuple[int, int, int, int]


class Message(ChatCompletionMessage):
    """OpenAI's, and the boxes of an answer that has some."""

    boxes: list[PhraseBox] | None = None


class AnswerChoice(Choice):
    message: Message


class Completion(ChatCompletion):
    """What is answered to a request that does not stream."""

    choices: list[AnswerChoice]  # type: ignore[assignment]
