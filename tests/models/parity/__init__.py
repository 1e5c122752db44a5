"""Equality with the numbers recorded from the original code: what its tests share."""

from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.conversation.conversation import Conversation, Part, Turn
from minigpt4.conversation.prompter import IGNORE, IMAGE_PLACEHOLDER, IMAGE_ROW, Example, Prompter
from minigpt4.datasets.loading import collate, tensors_of
from minigpt4.models.checkpoint import file_name
from minigpt4.models.minigpt4 import MiniGPT4
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


def images_in(prompts: list[str]) -> int:
    """How many places for images the prompts have together."""
    return "".join(prompts).count(IMAGE_PLACEHOLDER)


def learns_pad_piece(file: str, case: str) -> bool:
    """Whether an answer holds, in what is not cut off, the piece that the original takes for padding (quirk 2).

    It hides it from the loss of an instruction's answer, and from the attention of a conversation.
    """
    data = {part: golden(file)[f"{case}.{part}"] for part in ("regress_layout", "regress_atts", "part_targets")}
    kept = data["regress_atts"].bool() | (data["part_targets"] == PAD_PIECE)
    return bool(((data["regress_layout"] == PAD_PIECE) & kept).any())


def verbatim(prompter: Prompter, text: str, pictures: Iterator[Tensor]) -> list[Part]:
    """A recorded text, which has the tags around its pictures already, with the next pictures in their places."""
    return prompter.parse(text, list(islice(pictures, text.count(IMAGE_PLACEHOLDER))))


def conversations_of(flavour: str, case: str, prompter: Prompter) -> list[Conversation]:
    """The samples of a training case, for a prompter that puts no tags around pictures."""
    spec = golden_json(f"3_{flavour}")["cases"][case]
    count = len(spec.get("answer", spec.get("conv_q")))
    shown: list[list[Tensor]] = [[] for _ in range(count)]
    if "length" in spec:
        shape = len(spec["length"]), max(spec["length"])
        groups = pictures(flavour)[: shape[0] * shape[1]].unflatten(0, shape)
        shown = [list(group[:length]) for group, length in zip(groups, spec["length"], strict=True)]
    elif spec["has_image"]:
        shown = [[picture] for picture in pictures(flavour)[:count]]
    if "conv_q" in spec:
        texts = zip(spec["conv_q"], spec["conv_a"], spec["connect_sym"], shown, strict=True)
        return [dialogue_of(prompter, q.split(sym), a.split(sym), own) for q, a, sym, own in texts]
    prompts = spec["prompts_passed_to_prompt_wrap"]  # drawn for the whole batch, where it is one
    asked = spec.get("instruction_input") or ([prompts] * count if isinstance(prompts, str) else [None] * count)
    return [
        Conversation([Turn(own, answer)], kind="caption")
        if text is None
        else Conversation([Turn(verbatim(prompter, text, iter(own)), answer)], kind="instruction")
        for text, answer, own in zip(asked, spec["answer"], shown, strict=True)
    ]


def turns_of(messages: list[list[str | None]]) -> list[Turn]:
    """Recorded messages of two roles; a user's that follows another user's begins a turn of its own."""
    turns: list[Turn] = []
    for role, text in messages:
        if role == messages[0][0]:
            first, *texts = str(text).split("<Img><ImageHere></Img>")
            turns.append(Turn([first, *(part for later in texts for part in (None, later))]))
        else:
            turns[-1].answer = text
    return turns


def dialogue_of(prompter: Prompter, questions: list[str], answers: list[str], shown: list[Tensor]) -> Conversation:
    left = iter(shown)
    pairs = zip(questions, answers, strict=True)
    return Conversation([Turn(verbatim(prompter, question, left), answer) for question, answer in pairs])


def batch_of(prompter: Prompter, conversations: list[Conversation]) -> dict:
    """What a model is trained with."""
    examples = [tensors_of(prompter.example(one)) for one in conversations]
    shown = [picture for one in conversations for picture in one.pictures]
    return collate(examples) | ({"pictures": torch.stack(shown)} if shown else {})


def logits_of(model: MiniGPT4, batch: dict) -> tuple[Tensor, Tensor]:
    """Logits [B, T - 1, V] of all positions, and the labels [B, T - 1] that they predict."""
    images = model.encode_img(batch["pictures"]) if "pictures" in batch else None
    embeds = model.embed(batch["ids"], images)
    logits = model.llm(inputs_embeds=embeds, attention_mask=batch["mask"]).logits
    return logits[:, :-1], batch["labels"][:, 1:]


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


def assert_gradients(model: MiniGPT4, file: str, case: str, how: str = "") -> None:
    """Compares the gradients recorded of a training case, if any, in parts of the largest of each tensor."""
    start, named = f"{case}.grad.", {file_name(name): p for name, p in model.named_parameters()}
    for name, recorded in golden(file).items():
        if name.startswith(start):
            scale = recorded.abs().max()
            gradient = named[name.removeprefix(start)].grad
            assert_recorded(file, f"gradients / largest{how}", gradient / scale, recorded / scale, 1e-4)
