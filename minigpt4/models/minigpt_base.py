"""What the MiniGPT models share: image embeddings spliced into a frozen LLM's prompt, for training and for chat."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from minigpt4.common.errors import UserError
from minigpt4.config.schema import ModelConfig
from minigpt4.conversation.conversation import get_template
from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER, Prompter, encode_text, prompt_layout
from minigpt4.inference.compiled import CompiledDecoding
from minigpt4.inference.decoding import Decoding, draw_seeds
from minigpt4.inference.generation import Answer, Images, answer_rows, make_rows, raise_first
from minigpt4.inference.kept_cache import KeptCache
from minigpt4.models.llm import embedding_of, stop_ids, window_of
from minigpt4.models.plain_text import check_plain_text
from minigpt4.models.projection import build_projection
from minigpt4.models.training import TrainingModel


class MiniGPTBase(TrainingModel):
    """A frozen LLM that reads image embeddings (MiniGPT-4: Zhu et al. 2023, arXiv:2304.10592, section 3)."""

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int):
        super().__init__()
        self.llm = llm
        self.llama_tokenizer = tokenizer
        self._longest_piece = max(map(len, tokenizer.get_vocab()))
        self.template = get_template(config.conversation, tokenizer)
        special = [stop for stop in self.template.stop if stop in tokenizer.all_special_tokens]
        self.stop_ids = [
            *dict.fromkeys(stop_ids(llm, tokenizer) + cast(list, tokenizer.convert_tokens_to_ids(special)))
        ]
        self.image_size = config.image_size
        self.end_sym = config.end_sym
        self.max_txt_len = config.max_txt_len
        self.prompt_template = config.prompt_template
        self.chat_template = config.chat_template
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template)
        own = Prompter.of(config, tokenizer, self.prompt_list, rows, window_of(llm.config))
        self.turn_template, self.max_context_len = own.turn_template, own.window
        self.projection_kind = config.projection.name
        self.plain_text = config.plain_text
        self.unlearned = set()
        self.compiled = CompiledDecoding(llm) if config.compile else None

    @property
    def device(self) -> torch.device:
        # the LLM may be spread over several; by its name, ZeRO-3 would gather the weight, for which ranks wait
        return next(self.projection.parameters()).device

    @property
    def vocabulary(self) -> int:
        """How many words the LLM chooses from."""
        return embedding_of(self.llm).num_embeddings

    def check_language(self) -> None:
        if self.plain_text:
            check_plain_text(self.llm, self.llama_tokenizer, self.plain_text)

    @contextmanager
    def untrained_projection(self, active: bool = True) -> Iterator[None]:
        """Replaces the trained projection by an untrained one for the duration: a control of evaluation."""
        trained = self.projection
        if active:
            torch.manual_seed(0)  # the same control at each evaluation, and on each rank
            untrained = build_projection(self.projection_kind, self.vision.width, self.llm)
            self.projection = untrained.to(self.device)
        try:
            yield
        finally:
            self.projection = trained

    def encode_text(self, text: str) -> list[int]:
        """Token ids without BOS or EOS.

        Raises:
            UserError: the text holds half a character, which no tokenizer takes.
        """
        return encode_text(self.llama_tokenizer, text)

    def layout(self, prompt: str) -> list[int]:
        """What the LLM reads of a prompt, BOS included: token ids and image rows (see `splice`)."""
        bos = self.llama_tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + prompt_layout(prompt, self.encode_text, self.rows_per_image)

    def length(self, prompt: str, most: float) -> int:
        """How many tokens and rows the LLM reads of a prompt; of one with more than `most`, any number between.

        No token holds more than the longest piece of the vocabulary: a book is too long, and need not be encoded.
        """
        least = len(prompt) // self._longest_piece
        return least if least > most else len(self.layout(prompt))

    @property
    def max_images(self) -> float:
        """How many images fill the window; infinite where the LLM has none."""
        return self.max_context_len / self.rows_per_image

    @torch.inference_mode()
    def multi_select(
        self,
        images: Tensor | None,
        texts: Sequence[str],
        answers: Sequence[Sequence[str]],
        length_norm: Literal["mean", "sum", "original"] = "mean",
    ) -> list[list[int]]:
        """Ranks each prompt's candidate answers, the most likely first.

        Args:
            images: [B, 3, H, W], one for each prompt.
            texts: B prompts.
            answers: B lists of candidates; their lengths may differ.
            length_norm: what is compared: the mean or the sum of the tokens' log-likelihoods, or the original's mean
                over all positions of the padded batch, under which a rank depends on the other rows.
        """
        most = max(map(len, answers))
        losses = torch.full((len(texts), most), float("inf"))
        for candidate in range(most):
            rows = [i for i, own in enumerate(answers) if candidate < len(own)]
            samples: dict[str, Any] = {
                "instruction_input": [texts[i] for i in rows],
                "answer": [answers[i][candidate] for i in rows],
            }
            if images is not None:
                samples["image"] = images[rows]
            losses[rows, candidate] = self._losses(samples, length_norm)
        return [losses[i].argsort()[: len(own)].tolist() for i, own in enumerate(answers)]

    def _losses(self, samples: dict[str, Any], length_norm: str) -> Tensor:
        """Negative log-likelihood of each sample's answer, [B]."""
        examples = self._examples(samples)
        logits, labels, rows = self._label_logits(*self._inputs(examples, self._encode_images(samples)))
        each = F.cross_entropy(logits, labels, reduction="none").cpu()
        losses = torch.zeros(len(examples)).index_add_(0, rows, each)
        learned = torch.tensor([sum(learned for _, learned in example) for example in examples])
        if length_norm == "mean":
            return losses / learned
        if length_norm == "original":  # it pads prompts and answers each to their longest
            prompts = torch.tensor(list(map(len, examples))) - learned
            return losses / (prompts.max() + learned.max())
        return losses

    @torch.inference_mode()
    def generate(
        self,
        images: Images,
        texts: Sequence[str],
        *,
        max_new_tokens: int = 20,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        seed: int | Sequence[int] | None = None,
        streamer: BaseStreamer | Sequence[BaseStreamer] | None = None,
        interrupt: Event | Sequence[Event] | None = None,
        kept: KeptCache | None = None,
        raise_errors: bool = True,
    ) -> list[Answer]:
        """Answers a batch of prompts, each as if it were alone.

        Args:
            images: pictures [N, 3, H, W] or embeddings from `encode_img` [N, rows, D] of all prompts in order of
                appearance, or for each prompt its own (None where it has none); None when no prompt holds
                `<ImageHere>`.
            texts: B prompts (see `Template.prompt`).
            seed: of sampling, for each prompt or one for all; the same seed draws the same answer in any batch and
                beside any thread. None draws it from torch's generator. Sampled beams take a batch's first seed.
            streamer: receives the tokens; in a batch one for each prompt. Not with beams. It gets no tokens, [0], where
                an answer begins, and again where it begins anew because another prompt made the batch fail.
            interrupt: ends an answer at the next token once it is set; in a batch one for each prompt, or one for all.
            kept: of a batch of one, what the LLM has read before and need not read again. Beams leave it alone.
            raise_errors: False leaves a failed prompt's error in its `Answer.error` and answers the others.

        Returns:
            B answers, each cut at its own stop string; none is longer than the LLM's window has room for.

        Raises:
            UserError: an option is out of range, a prompt is too long, or placeholders and images differ in number.
        """
        decoding = Decoding(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_beams=num_beams,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            length_penalty=length_penalty,
        )
        if seed is None:  # greedy decoding leaves torch's generator alone: training goes on after an evaluation
            seed = draw_seeds(len(texts)) if do_sample else 0
        rows = make_rows(self, texts, seed, streamer, interrupt)
        answers = answer_rows(self, rows, images, decoding, kept)
        if raise_errors:
            raise_first(answers)
        return answers

    def cut(self, text: str, stops: Sequence[str] = (), continued: bool = False) -> str:
        """Ends a text where the first stop string begins, the template's or one of `stops`; strips space around it.

        With `continued` it goes on from another text, and the space between them stays.
        """
        found = (text.find(stop) for stop in (*self.template.stop, *stops))
        text = text[: min((at for at in found if at >= 0), default=None)].rstrip()
        return text if continued else text.lstrip()


def read_prompts(path: str, template: str) -> list[str]:
    """Reads training prompts: the lines that hold `<ImageHere>`, each put into the template.

    Raises:
        UserError: the file is missing or no line holds `<ImageHere>`.
    """
    if not path:
        return []
    if not Path(path).is_file():
        raise UserError(f"model.prompt_path: '{path}' does not exist. Set it to a text file with one prompt a line.")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    prompts = [template.format(line) for line in lines if IMAGE_PLACEHOLDER in line]
    if not prompts:
        raise UserError(f"model.prompt_path: no line of '{path}' holds {IMAGE_PLACEHOLDER}.")
    return prompts
