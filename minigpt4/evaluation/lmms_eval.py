"""Our models in lmms-eval: python -m lmms_eval eval --model minigpt4 --model_args cfg_path=CONFIG_OR_FOLDER --tasks ...

lmms-eval finds this through the entry point `lmms_eval.models`; it is installed by itself (pip install lmms-eval).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.errors import UserError

if TYPE_CHECKING:  # neither is needed to say what there is
    from minigpt4.conversation.conversation import Conversation
    from minigpt4.inference.engine import Engine

try:
    from lmms_eval.api.model import lmms as _Base
except ImportError:  # pragma: no cover
    _Base = object


def manifest() -> Any:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="minigpt4", chat_class_path=f"{__name__}.MiniGPT4")


class MiniGPT4(_Base):
    """A model that answers lmms-eval's requests, in batches.

    Args:
        cfg_path: a config or a checkpoint folder, as `minigpt4 chat` takes it.
        options: overrides, joined by semicolons: run.device=cpu;model.ckpt=FILE
        batch_size: requests at once; auto is 8.
        n_frms: pictures taken of a video; unless given, as the config says.
        engine: answers in place of one that is loaded, for those who call this from Python.

    Raises:
        UserError: the config or a weight file can't be used.
    """

    is_simple = False

    def __init__(
        self,
        cfg_path: str = "minigpt4_tiny_eval",
        options: str = "",
        batch_size: int | str = 8,
        n_frms: int | None = None,
        engine: "Engine | None" = None,
        device: str | None = None,
        **_: Any,
    ):
        super().__init__()
        from minigpt4.common.distributed import pick_device
        from minigpt4.config.loading import load_model_config
        from minigpt4.config.names import check_names
        from minigpt4.inference.loading import load_engine

        config = load_model_config(cfg_path, [*filter(None, options.split(";"))])
        config.run.device = device or config.run.device
        check_names(config)
        self.n_frms = n_frms or config.preprocess.n_frms
        self.batch_size = 8 if str(batch_size).startswith("auto") else int(batch_size)
        self.engine = engine or load_engine(config)
        self.device = pick_device(config.run.device)
        self._join()

    def _join(self) -> None:
        """Where several processes were launched, lmms-eval gives each its share by their ranks."""
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in order.

        Raises:
            UserError: one fails, for example as it is longer than the LLM's window.
        """
        from tqdm import tqdm

        from minigpt4.inference.requests import Request, raise_first

        found: list[str] = []
        starts = range(0, len(requests), self.batch_size)
        for start in tqdm(starts, desc="minigpt4", disable=self.rank != 0):
            batch = []
            for request in requests[start : start + self.batch_size]:
                _, messages_of, settings, doc, task, split = request.args
                conversation = self._conversation(messages_of(self.task_dict[task][split][doc]))
                batch.append(Request(conversation, stops=_stops(settings), **decoding_of(settings)))
            answers = self.engine.answer(batch)
            raise_first(answers)
            found += map(str, answers)
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("minigpt4 generates answers; choose the task's generate_until form.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("minigpt4 answers tasks of one round.")

    def _conversation(self, messages: Sequence[dict[str, Any]]) -> "Conversation":
        """Turns of messages; in each, pictures and words stay in their order."""
        from minigpt4.conversation.conversation import Conversation, Turn, spaced

        turns: list[Turn] = []
        system = None
        for message in messages:
            content = message["content"]
            entries = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = [part for entry in entries for part in self._parts(entry)]
            if message["role"] == "system":
                system = " ".join(part for part in parts if isinstance(part, str))
            elif message["role"] == "assistant":
                turns[-1].answer = " ".join(part for part in parts if isinstance(part, str))
            else:
                turns.append(Turn(spaced(parts)))
        return Conversation(turns, system)

    def _parts(self, entry: dict[str, Any]) -> list[Any]:
        from PIL import Image

        from minigpt4.processors.picture_file import open_image
        from minigpt4.processors.video import open_video

        kind = entry["type"]
        if kind == "text":
            return [entry["text"].strip()]
        source = entry["url"]
        if kind == "image":
            image = source.convert("RGB") if isinstance(source, Image.Image) else open_image(Path(source))
            return [self.engine.processor(image)]
        if kind == "video":
            return [self.engine.processor(image) for image in open_video(Path(source), self.n_frms)]
        raise UserError(f"lmms-eval: a message holds {kind}, which this model does not read. Choose another task.")


def _stops(settings: dict[str, Any]) -> tuple[str, ...]:
    until = settings.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def decoding_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What of a task's generation_kwargs concerns us."""
    from minigpt4.inference.decoding import Decoding

    temperature, beams = settings.get("temperature") or 0.0, settings.get("num_beams") or 1
    sampled = bool(settings.get("do_sample")) and temperature > 0
    options: dict[str, Any] = {}
    if sampled:
        options = {"do_sample": True, "temperature": temperature, "top_p": settings.get("top_p") or 1.0}
    return {"max_new_tokens": settings.get("max_new_tokens") or 128, "decoding": Decoding(num_beams=beams, **options)}
