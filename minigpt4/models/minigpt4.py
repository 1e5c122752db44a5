"""MiniGPT-4: a frozen vision part -> a trained projection -> a frozen LLM. Tensors only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import Problems
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.conversation.prompter import IGNORE
from minigpt4.models.checkpoint import ADAPTERS, load_checkpoints
from minigpt4.models.cpu_linear import compute_in_fp32, pack_4bit, use_onednn
from minigpt4.models.cpu_memory import release_freed_memory
from minigpt4.models.llm import add_lora, embedding_of, load_llm
from minigpt4.models.parts import PartlyFrozen, checkpoint_blocks, trains
from minigpt4.models.preflight import preflight
from minigpt4.models.projection import build_projection
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.models.splice import splice
from minigpt4.models.vision import VisionPart, build_vision


@registry.register_model("mini_gpt4", "minigpt4", "minigpt_v2")
class MiniGPT4(PartlyFrozen):
    """MiniGPT-4 (Zhu et al. 2023, arXiv:2304.10592, section 3). Only the projection trains by default.

    What differs in MiniGPT-v2 (Chen et al. 2023, arXiv:2310.09478) is in its YAML: 448 px, `has_qformer` False, LoRA of
    rank 64 on the LLM, templates wrapped around every instruction.
    """

    def __init__(self, vision: VisionPart, projection: nn.Module, llm: PreTrainedModel):
        super().__init__()
        # in the order in which checkpoints hold the states of the optimizer
        self.llm, self.vision, self.projection = llm, vision, projection

    @classmethod
    def from_config(cls, config: Config, towers: bool = True, problems: Problems | None = None) -> Self:
        """Builds the model and loads its weights. Without `towers` it reads cached features in place of pictures.

        Raises:
            UserError: a file is missing or does not fit; all paths are checked before the first is read. It
                reports the problems that were found elsewhere too.
        """
        c, problems = config.model, Problems() if problems is None else problems
        vision = problems.attempt(build_vision, config, towers)
        files = preflight(config, vision, problems)
        assert vision is not None
        llm = add_lora(load_llm(c, pick_device(config.run.device)), c)
        if c.use_grad_checkpoint:
            checkpoint_blocks(llm)
        model = cls(vision, build_projection(c.projection.name, vision.width, llm), llm)
        sources = {f"vision.{part}": source for part, source in vision.load(config, files).items()}
        sources |= {"llm": c.llama_model, ADAPTERS: "their initial values"}  # with which the LLM is as it was
        load_checkpoints(model, [f for key, f in files.items() if key.startswith("model.ckpt")], sources)
        return model

    @property
    def device(self) -> torch.device:
        # the LLM may be spread over several; by its name, ZeRO-3 would gather the weight, for which ranks wait
        return next(self.projection.parameters()).device

    @property
    def vocabulary(self) -> int:
        """How many words the LLM chooses from."""
        return embedding_of(self.llm).num_embeddings

    def place(self, device: torch.device) -> Self:
        """Moves the model to the device, but for an LLM that is placed already: a mapped or quantized one."""
        for part in self.children():
            if not getattr(part, "is_quantized", False) and not getattr(part, "hf_device_map", None):
                part.to(device)
        if device.type == "cpu":
            use_onednn(self)
        return self

    def prepare_for_inference(self) -> Self:
        """Sets eval mode for good: what makes answers faster, but gradients wrong, is allowed from here on."""
        pack_4bit(self, allowed=True)
        for module in self.modules():
            if isinstance(module, QuantizedLinear):
                module.pack()
                release_freed_memory()
        if self.device.type == "cpu":
            compute_in_fp32(self.vision)
        return self.eval()

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Computes the mean negative log-likelihood of a batch's labels; 0 where there are none.

        Args:
            batch: `ids` [B, T], layouts of `Prompter.example`, `mask` [B, T], `labels` [B, T], and `pictures` of all
                samples in order, as `encode_img` takes them; without any it may be left out.

        Returns:
            The scalars `loss`, and `tokens`, how many labels there are.
        """
        pictures = batch.get("pictures")
        # text alone still needs a gradient, of zeros, and ranks wait for one another in all parts of the model
        images = self.encode_img(self.vision.blank(self.device) if pictures is None else pictures)
        embeds = self.embed(batch["ids"], None if pictures is None else images)
        if pictures is None:
            embeds = embeds + (0 * images.sum()).to(embeds)
        logits, labels, _ = self.label_logits(embeds, batch["mask"], batch["labels"])
        loss = F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1)
        return {"loss": loss, "tokens": torch.tensor(len(labels), device=loss.device)}

    def encode_img(self, image: Tensor) -> Tensor:
        """Maps images [B, 3, H, W], or what the vision part takes instead, to LLM embeddings [B, rows, D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.vision)):
            features = self.vision(image)
        return self.projection(features)

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """Embeds layouts [B, T] to [B, T, D]; images [N, rows, D] fill their slots in order, see `splice`."""
        return splice(ids.to(self.device), images, embedding_of(self.llm))

    def label_logits(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the LLM predicts in the places of a batch's N labels.

        Only the positions before them go through the LLM's head: a large vocabulary's logits of all positions would
        take more memory than everything else.

        Args:
            embeds: [B, T, D].
            mask, labels: [B, T].

        Returns:
            Logits [N, V] in fp32, the labels [N], and whose row each is [N].
        """
        rows, positions = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        with head_reads(self.llm, rows, positions):
            output = self.llm(inputs_embeds=embeds, attention_mask=mask.to(embeds.device), use_cache=False)
        logits = output.logits
        if logits.shape[:2] == labels.shape:  # its head is not a module of its own
            logits = logits[rows, positions].unsqueeze(0)
        return logits[0].float(), labels[rows, positions + 1].to(logits.device), rows

    @contextmanager
    def projecting_with(self, projection: nn.Module) -> Iterator[None]:
        """Uses another projection for the duration."""
        own, self.projection = self.projection, projection
        try:
            yield
        finally:
            self.projection = own


@contextmanager
def head_reads(llm: PreTrainedModel, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """For the duration the LLM's head reads these N places of its input [B, T, D] alone, as [1, N, D].

    Not its argument `logits_to_keep`: some LLMs lack it, and in older versions it names columns, not places.
    """
    head = llm.get_output_embeddings()
    if head is None:
        yield
        return

    def pick(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)].unsqueeze(0),)

    hook = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()
