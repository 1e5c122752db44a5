"""Equality with the numbers recorded from the original code: what its tests share."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.conversation.prompter import IMAGE_PLACEHOLDER, IMAGE_ROW, Example
from minigpt4.models.minigpt_base import MiniGPTBase
from minigpt4.models.splice import IGNORE
from tests.conftest import assert_recorded, golden, golden_json

FLAVOURS = ["vicuna0", "llama2", "v2"]
PAD_PIECE = golden_json("tokenizer_cases")["pad"]  # "$$", which the original takes for padding (quirk 2)


def image(tensor: Tensor) -> Tensor:
    """A recorded picture, which is stored in eight bits."""
    return tensor.float() / 32


def pictures(flavour: str) -> Tensor:
    return image(golden("3_images")["images_alt_int8" if flavour == "v2" else "images_int8"])


def layout_of(recorded: Tensor) -> Tensor:
    """A recorded layout in our terms: it counts the rows of an image, ours are all alike."""
    return recorded.long().clamp(min=IMAGE_ROW)


def ids_of(example: Example) -> list[int]:
    return [i for i, _ in example]


def images_in(prompts: str | list[str]) -> int:
    """How many places for images the prompts have together."""
    return "".join(prompts).count(IMAGE_PLACEHOLDER)


def learns_pad_piece(file: str, case: str) -> bool:
    """Whether an answer holds, in what is not cut off, the piece that the original takes for padding (quirk 2).

    It hides it from the loss of an instruction's answer, and from the attention of a conversation.
    """
    data = {part: golden(file)[f"{case}.{part}"] for part in ("regress_layout", "regress_atts", "part_targets")}
    kept = data["regress_atts"].bool() | (data["part_targets"] == PAD_PIECE)
    return bool(((data["regress_layout"] == PAD_PIECE) & kept).any())


def samples_of(flavour: str, case: str) -> dict:
    spec = golden_json(f"3_{flavour}")["cases"][case]
    samples = {k: spec[k] for k in ("answer", "conv_q", "conv_a", "connect_sym", "length") if k in spec}
    prompts = spec["prompts_passed_to_prompt_wrap"]
    if "instruction_input" in spec:
        samples["instruction_input"] = spec["instruction_input"]
    elif isinstance(prompts, str):  # drawn for the whole batch
        samples["instruction_input"] = [prompts] * len(spec["answer"])
    if spec["has_image"]:
        count = len(spec.get("answer", spec.get("conv_q")))
        samples["image"] = pictures(flavour)[:count]
        if "length" in spec:
            shape = len(spec["length"]), max(spec["length"])
            samples["image"] = pictures(flavour)[: shape[0] * shape[1]].unflatten(0, shape)
    return samples


def logits_of(model: MiniGPTBase, examples: list[Example], images: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [B, T - 1, V] of all positions, and the labels [B, T - 1] that they predict."""
    embeds, mask, labels = model._inputs(examples, images)
    return model.llama_model(inputs_embeds=embeds, attention_mask=mask).logits[:, :-1], labels[:, 1:]


def assert_losses(file: str, case: str, logits: Tensor, labels: Tensor, how: str = "") -> Tensor:
    """Compares all losses recorded of a training case; returns the batch's.

    Args:
        file: the golden file.
        case: the case in it.
        logits: [B, T - 1, V].
        labels: [B, T - 1].
        how: what was done as the original does it.
    """
    data, spec = golden(file), golden_json(file)["cases"][case]
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    learned = labels != IGNORE
    targets = data[f"{case}.targets"].long()[:, 1:]
    assert labels[learned].tolist() == targets[targets != IGNORE].tolist()
    recorded = data[f"{case}.target_logprobs"][targets != IGNORE]
    assert_recorded(file, f"log-likelihoods{how}", -losses[learned], recorded, 1e-4)
    loss = losses.sum() / learned.sum()
    assert_recorded(file, f"loss{how}", loss, torch.tensor(spec["loss"]), 2e-5)
    if f"{case}.loss_reduction_none" in data:  # the mean over all positions of the original's padded batch
        recorded = data[f"{case}.loss_reduction_none"]
        assert_recorded(file, f"loss of each sample{how}", losses.sum(1) / targets.shape[1], recorded, 2e-5)
    return loss


def assert_gradients(model: MiniGPTBase, file: str, case: str, how: str = "") -> None:
    """Compares the gradients recorded of a training case, if any, in parts of the largest of each tensor."""
    start = f"{case}.grad."
    for name, recorded in golden(file).items():
        if name.startswith(start):
            ours = re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", name.removeprefix(start))
            scale = recorded.abs().max()
            gradient = model.get_parameter(ours).grad
            assert_recorded(file, f"gradients / largest{how}", gradient / scale, recorded / scale, 1e-4)
