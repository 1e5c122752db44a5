"""What the MiniGPT models share: image embeddings spliced into a frozen LLM's prompt, for training and for chat."""

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from minigpt4.common.config import ModelConfig
from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import get_template
from minigpt4.models.base_model import BaseModel
from minigpt4.models.splice import IMAGE_PLACEHOLDER, pad, prompt_layout, splice, training_batch


class MiniGPTBase(BaseModel):
    """A frozen LLM that reads image embeddings (MiniGPT-4: Zhu et al. 2023, arXiv:2304.10592, section 3)."""

    llama_proj: nn.Linear

    def __init__(self, config: ModelConfig, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.llama_model = llm
        self.llama_tokenizer = tokenizer
        self.template = get_template(config.conversation)
        self.end_sym = config.end_sym
        self.max_txt_len = config.max_txt_len
        self.prompt_template = config.prompt_template
        self.chat_template = config.chat_template
        self.prompt_list = read_prompts(config.prompt_path, config.prompt_template)

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
        words = embedding_of(self.llama_model).weight.detach().float()
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

    def forward(self, samples: dict[str, Any]) -> dict[str, Tensor]:
        """Computes the mean negative log-likelihood of the answers' tokens over the batch.

        Args:
            samples: `image` [B, 3, H, W]; `answer`, B strings; `instruction_input`, B prompts with `<ImageHere>`
                (optional; without it one of the configured prompts is drawn, and without those the image alone
                is the prompt, as in stage 1).
        """
        images = self.encode_img(samples["image"])
        prompts = [prompt_layout(p, self.encode_text, self.rows_per_image) for p in self._prompts(samples)]
        answers = [self.encode_text(a + self.end_sym)[: self.max_txt_len] for a in samples["answer"]]
        ids, mask, labels = (
            t.to(images.device) for t in training_batch(prompts, answers, self.llama_tokenizer.bos_token_id)
        )
        embeds = splice(ids, images, embedding_of(self.llama_model))
        output = self.llama_model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)
        return {"loss": output.loss}

    def _prompts(self, samples: dict[str, Any]) -> list[str]:
        """The prompts of a batch: a sample's own instruction beats the configured list (as in the original)."""
        if "instruction_input" in samples:
            wrap = self.prompt_template.format if self.chat_template else str
            # a sample of a mixed file may come without one
            return [wrap(text) if text else self._draw_prompt() for text in samples["instruction_input"]]
        return [self._draw_prompt() for _ in samples["answer"]]

    def _draw_prompt(self) -> str:
        if not self.prompt_list:
            return IMAGE_PLACEHOLDER
        return random.choice(self.prompt_list) if self.training else self.prompt_list[0]  # validation repeats

    @torch.inference_mode()
    def generate(
        self,
        images: Tensor | None,
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
        streamer: BaseStreamer | None = None,
    ) -> list[str]:
        """Answers a batch of prompts.

        Args:
            images: pictures [N, 3, H, W] or embeddings from `encode_img` [N, rows, D] of all prompts in order of
                appearance; None when no prompt holds `<ImageHere>`.
            texts: B prompts (see `Template.prompt`).
            streamer: receives the tokens of a batch of one; not with beams.

        Returns:
            B answers, each cut at its own stop string.
        """
        if images is not None and images.dim() == 4:
            images = self.encode_img(images)
        bos = self.llama_tokenizer.bos_token_id
        start = [] if bos is None else [bos]
        layouts = [start + prompt_layout(text, self.encode_text, self.rows_per_image) for text in texts]
        ids, mask = (t.to(self.device) for t in pad(layouts, value=0, side="left"))
        sampling = {"temperature": temperature, "top_p": top_p} if do_sample else {}
        eos = self.llama_tokenizer.eos_token_id
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_beams=num_beams,
            do_sample=do_sample,
            length_penalty=length_penalty,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=self.llama_tokenizer.pad_token_id if self.llama_tokenizer.pad_token_id is not None else eos,
            stop_strings=list(self.template.stop),
            **sampling,
        )
        tokens = cast(Any, self.llama_model).generate(
            inputs_embeds=splice(ids, images, embedding_of(self.llama_model)),
            attention_mask=mask,
            generation_config=config,
            # generate's own option skips as many new tokens as the prompt has embeddings
            logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(repetition_penalty)]),
            tokenizer=self.llama_tokenizer,
            streamer=streamer,
        )
        return [self.cut(text) for text in self.llama_tokenizer.batch_decode(tokens, skip_special_tokens=True)]

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
