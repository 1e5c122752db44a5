"""How long an answer to a prompt of so many tokens takes, and an image."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from minigpt4.common.errors import UserError, first_line
from minigpt4.config.schema import Config, VisionConfig
from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.decoding import Decoding
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Request, raise_first

_FILLERS = (" a", " the", " 1", "\n", "a")  # texts that are mostly one token each
_TRIES = 20
_WARM_UP = 4  # tokens
IMAGE_WAYS = ("torch", "compiled", "onnx")


@dataclass(frozen=True)
class Times:
    """Medians in ms of answers to a prompt of some tokens, the image's rows among them; the image was seen before.

    Attributes:
        prompt, new: how many tokens.
        response: the whole answer.
        first: until the first token.
        further: of each token after it.
    """

    prompt: int
    new: int
    response: float
    first: float
    further: float

    @property
    def tokens_per_s(self) -> float:
        return 1000 * self.new / self.response


def endless(engine: Engine) -> Engine:
    """An engine around the same model that ends no answer at a stop string; what asks it holds back stop tokens."""
    template = replace(engine.prompter.template, stop=())
    own = Engine(engine.model, replace(engine.prompter, template=template), engine.processor)
    own.compiled = engine.compiled
    return own


def exact_prompt(prompter: Prompter, image: Tensor, length: int) -> list[Part]:
    """A question about an image, whose layout has this length.

    Raises:
        UserError: the template and the image are longer already, or no text has this length.
    """

    def read(words: str) -> list[Part]:
        return prompter.read(Conversation([Turn([image, " ", words] if words else [image])]))

    if (least := len(prompter.layout(read("")))) > length:
        raise UserError(f"--lengths: a prompt of {length} tokens is too short: {least} are the template and the image.")
    for filler in _FILLERS:
        count = length - least
        for _ in range(_TRIES):
            parts = read(filler * count)
            if not (missing := length - len(prompter.layout(parts))):
                return parts
            count += missing
    raise UserError(f"--lengths: no prompt of {length} tokens was found for this tokenizer. Set another length.")


def answer_times(engine: Engine, prompt: int, new: int, repeats: int) -> Times:
    """Measures answers of exactly `new` tokens, with an engine of `endless`, after one that is not counted."""
    image = engine.model.vision.blank(engine.model.device)
    with torch.inference_mode():
        [embedding] = engine.encode_img(image)
    parts = exact_prompt(engine.prompter, embedding, prompt)
    _answer(engine, parts, new if engine.compiled else min(new, _WARM_UP))
    runs = [_answer(engine, parts, new) for _ in range(repeats)]
    response, first = (1000 * statistics.median(own) for own in zip(*runs, strict=True))
    further = 1000 * statistics.median((whole - to_first) / max(new - 1, 1) for whole, to_first in runs)
    return Times(prompt, new, response, first, further)


def _answer(engine: Engine, parts: list[Part], new: int) -> tuple[float, float]:
    """Seconds until the end, and until the first token."""
    seen: list[float] = []
    start = time.perf_counter()
    held_back = Decoding(min_new_tokens=new)  # the LLM's end token
    request = Request(parts, new, held_back, on_token=lambda _: seen.append(time.perf_counter()))
    answers = engine.answer([request])
    end = time.perf_counter()
    raise_first(answers)
    assert answers[0].new_tokens == new, "an answer ended early"
    return end - start, seen[0] - start


def image_times(engine: Engine, config: Config, ways: list[str], repeats: int) -> dict[str, float | str]:
    """{way: ms from pixels to the embeddings that the LLM reads, or why it was not possible}."""
    model, found = engine.model, dict[str, float | str]()
    image = torch.randn(model.vision.blank(model.device).shape, device=model.device)

    def measured(see: Callable[[Tensor], Tensor]) -> float:
        with torch.inference_mode():
            see(image)  # warms up, and compiles
            return 1000 * statistics.median(_seconds(lambda: see(image), model.device) for _ in range(repeats))

    if config.model.vision_kind == "onnx":
        return {"onnx": measured(model.encode_img)}
    for way in ways:
        try:
            if way == "torch":
                found[way] = measured(model.encode_img)
            elif way == "compiled":
                found[way] = measured(torch.compile(model.encode_img))
            else:
                with TemporaryDirectory() as folder:
                    found[way] = measured(_onnx(engine, config, Path(folder) / "tower.onnx"))
        except Exception as error:  # compilers and exporters raise many kinds; the other ways continue
            found[way] = first_line(error)
    return found


def _onnx(engine: Engine, config: Config, file: Path) -> Callable[[Tensor], Tensor]:
    """What encodes by ONNX Runtime: the tower's graph, and the model's projection."""
    from minigpt4.models.onnx_export import export_onnx
    from minigpt4.models.vision import build_vision

    device, vision = engine.model.device, engine.model.vision
    if next(vision.parameters()).dtype != torch.float32 or device.type != "cpu":
        raise UserError("not measured: it takes a tower in fp32 on the CPU. Export it, and set model.vision.name=onnx.")
    export_onnx(vision, None, file)
    own = replace(config, model=replace(config.model, vision=VisionConfig(name="onnx", model=str(file))))
    tower = build_vision(own)
    tower.load(own, {"model.vision.model": file})
    return lambda image: engine.model.projection(tower(image))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    synchronize = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start
