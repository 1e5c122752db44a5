"""What the MiniGPT models share: image embeddings spliced into a frozen LLM's prompt, for training and for chat."""

import random
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from minigpt4.common.config import ModelConfig
from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import get_template
from minigpt4.models.base_model import BaseModel
from minigpt4.models.decoding import Decoding
from minigpt4.models.generation import Answer, Images, answer_rows, make_rows, raise_first
from minigpt4.models.kept_cache import KeptCache
from minigpt4.models.llm import stop_ids, window_of
from minigpt4.models.splice import IGNORE, IMAGE_PLACEHOLDER, Example, prompt_layout, splice, training_batch


class MiniGPTBase(BaseModel):
    """A frozen LLM that reads image embeddings (MiniGPT-4: Zhu et al. 2023, arXiv:2304.10592, section 3)."""

    llama_proj: nn.Linear

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.llama_model = llm
        self.llama_tokenizer = tokenizer
        self.template = get_template(config.conversation, tokenizer)
        self.stop_ids = stop_ids(llm, tokenizer)
        self.end_sym = config.end_sym
        self.max_txt_len = config.max_txt_len
        self.max_context_len = config.max_context_len or window_of(llm)
        self.prompt_template = config.prompt_template
        # the original begins each later turn of a training conversation with a BOS
        self.turn_template = config.turn_template or (tokenizer.bos_token or "") + config.prompt_template
        self.chat_template = config.chat_template
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template)

    @property
    def device(self) -> torch.device:
        return self.llama_proj.weight.device  # the LLM may be spread over several

    @abstractmethod
    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to LLM embeddings [B, rows, D]."""

    @property
    @abstractmethod
    def rows_per_image(self) -> int:
        """Embeddings that stand for one image."""

    def new_projection(self, width: int) -> nn.Linear:
        """An untrained projection from the image tower's width to the LLM's.

        Its outputs are as large as word embeddings from the first step on; nn.Linear's own scale suits no LLM in
        particular.
        """
        embedding = embedding_of(self.llama_model)
        some = range(0, embedding.num_embeddings, max(1, embedding.num_embeddings // 4096))
        with torch.no_grad():  # what the layers see: Gemma scales its embeddings
            words = embedding(torch.tensor(some, device=embedding.weight.device)).float()
        projection = nn.Linear(width, words.shape[1])
        nn.init.normal_(projection.weight, std=float(words.square().mean().sqrt()) / width**0.5)
        nn.init.zeros_(projection.bias)
        return projection

    @contextmanager
    def untrained_projection(self, active: bool = True) -> Iterator[None]:
        """Replaces the trained projection by an untrained one for the duration: a control of evaluation."""
        trained = self.llama_proj
        if active:
            torch.manual_seed(0)  # the same control at each evaluation, and on each rank
            self.llama_proj = self.new_projection(trained.in_features).to(self.device)
        try:
            yield
        finally:
            self.llama_proj = trained

    def encode_text(self, text: str) -> list[int]:
        """Token ids without BOS or EOS."""
        return self.llama_tokenizer.encode(text, add_special_tokens=False)

    def layout(self, prompt: str) -> list[int]:
        """What the LLM reads of a prompt, BOS included: token ids and image rows (see `splice`)."""
        bos = self.llama_tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + prompt_layout(prompt, self.encode_text, self.rows_per_image)

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Computes the mean negative log-likelihood of the answers' tokens over the batch.

        Args:
            samples: `image` [B, 3, H, W], or [B, n, 3, H, W] with `length` (B numbers: how many of the n images a
                sample has); none for text alone. And either `answer` (B strings) with `instruction_input` (B prompts
                with `<ImageHere>`; without it one of the configured prompts is drawn, and without those the image
                alone is the prompt, as in stage 1), or a conversation: `conv_q` and `conv_a`, B strings of turns
                joined by `connect_sym`.
        """
        logits, labels = self._logits(self._examples(samples), self._encode_images(samples))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)}

    def _logits(self, examples: list[Example], images: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits [B, T - 1, V] in fp32 and the labels [B, T - 1] that they predict."""
        batch = training_batch(examples, self.llama_tokenizer.bos_token_id)
        ids, mask, labels = (tensor.to(self.device) for tensor in batch)
        if (excess := ids.shape[1] - self.max_context_len) > 0:
            raise UserError(
                f"a training sample is {excess} tokens longer than the {self.max_context_len} that the LLM reads at "
                "once. Shorten its prompt, or lower model.max_txt_len."
            )
        embeds = splice(ids, images, embedding_of(self.llama_model))
        logits = self.llama_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        return logits[:, :-1].float(), labels[:, 1:]

    def _encode_images(self, samples: dict[str, Any]) -> Tensor | None:
        """Embeddings [N, rows, D] of all images of a batch, in order of appearance; None without images."""
        images = samples.get("image")
        if images is None:
            return None
        if images.dim() == 5:
            lengths = torch.as_tensor(samples.get("length", [images.shape[1]] * len(images)), device=images.device)
            images = images[torch.arange(images.shape[1], device=images.device) < lengths[:, None]]
        return self.encode_img(images)

    def _examples(self, samples: dict[str, Any]) -> list[Example]:
        """Training layouts of a batch: each a prompt and its answer, or the turns of a conversation."""
        if "conv_q" in samples:
            turns = zip(samples["conv_q"], samples["conv_a"], samples["connect_sym"], strict=True)
            return [self._conversation(q.split(sym), a.split(sym)) for q, a, sym in turns]
        pairs = zip(self._prompts(samples), samples["answer"], strict=True)
        return [self._prompt(prompt) + self._answer(answer)[: self.max_txt_len] for prompt, answer in pairs]

    def _conversation(self, questions: list[str], answers: list[str]) -> Example:
        """The first question is the prompt; max_txt_len limits all that follows it together."""
        rest = self._answer(answers[0])
        for question, answer in zip(questions[1:], answers[1:], strict=True):
            rest += self._prompt(self.turn_template.format(question)) + self._answer(answer)
        return self._prompt(self.prompt_template.format(questions[0])) + rest[: self.max_txt_len]

    def _prompt(self, text: str) -> Example:
        """A prompt's layout; the loss counts nothing of it but the template's own markers, where it says so."""
        markers = self.template.learned
        pieces = re.split("(" + "|".join(map(re.escape, markers)) + ")", text) if markers else [text]
        layouts = [(prompt_layout(piece, self.encode_text, self.rows_per_image), piece in markers) for piece in pieces]
        return [(i, learned) for layout, learned in layouts for i in layout]

    def _answer(self, text: str) -> Example:
        return [(i, True) for i in self.encode_text(text + self.end_sym)]

    def _prompts(self, samples: dict[str, Any]) -> list[str]:
        """The prompts of a batch: a sample's own instruction beats the configured list (as in the original)."""
        if "instruction_input" in samples:
            wrap = self.prompt_template.format if self.chat_template else str
            # a sample of a mixed file may come without one
            return [wrap(text) if text else self._draw_prompt() for text in samples["instruction_input"]]
        return [self._draw_prompt() for _ in samples["answer"]]

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
        logits, labels = self._logits(examples, self._encode_images(samples))
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none").sum(1).cpu()
        learned = torch.tensor([sum(learned for _, learned in example) for example in examples])
        if length_norm == "mean":
            return losses / learned
        if length_norm == "original":  # it pads prompts and answers each to their longest
            prompts = torch.tensor(list(map(len, examples))) - learned
            return losses / (prompts.max() + learned.max())
        return losses

    def _draw_prompt(self) -> str:
        if not self.prompt_list:
            return IMAGE_PLACEHOLDER
        return random.choice(self.prompt_list) if self.training else self.prompt_list[0]  # validation repeats

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
            streamer: receives the tokens; in a batch one for each prompt. Not with beams.
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
            seed = torch.randint(2**62, (len(texts),)).tolist() if do_sample else 0
        rows = make_rows(self, texts, seed, streamer, interrupt)
        answers = answer_rows(self, rows, images, decoding, kept)
        if raise_errors:
            raise_first(answers)
        return answers

    def cut(self, text: str) -> str:
        """Ends a text where the first stop string begins, and strips the space around it."""
        return text[: min((at for stop in self.template.stop if (at := text.find(stop)) >= 0), default=None)].strip()


def embedding_of(llm: PreTrainedModel) -> nn.Embedding:
    """The LLM's input embedding, ids [B, T] -> [B, T, D]."""
    return cast(nn.Embedding, llm.get_input_embeddings())


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
