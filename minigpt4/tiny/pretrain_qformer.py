"""Pretrains the tiny Q-Former: its 32 outputs must let a frozen helper language model caption the picture."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from minigpt4.config.schema import QformerConfig
from minigpt4.models.checkpoint import file_name
from minigpt4.models.vision.eva_qformer import build_qformer
from minigpt4.tiny.fit import Stage, fit, seed_all
from minigpt4.tiny.lm_data import BOS, SLOTS
from minigpt4.tiny.pretrain_llm import labelled_logits, part_right
from minigpt4.tiny.pretrain_vision import SIZES as VIT_SIZES
from minigpt4.tiny.pretrain_vision import load_vit, pixels
from minigpt4.tiny.text import caption
from minigpt4.tiny.tokenizer import load_tokenizer
from minigpt4.tiny.world import COLORS, POSITIONS, Scene, sample_scene

FROZEN_HELPER = Stage("qformer", steps=2400, lr=1.5e-3, batch=48)
JOINT_HELPER = Stage("qformer_joint", steps=800, lr=1e-3, batch=48)
POSITION_LOSS = {FROZEN_HELPER.name: 1.0, JOINT_HELPER.name: 0.5}  # weight beside the captions' loss
SIZES = QformerConfig(
    hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, cross_attention_frequency=2
)
QFORMER_FILE = "blip2_qformer.safetensors"
CACHED_SCENES = 20_000
VALIDATION_SCENES = 400
QUERIES_PER_POSITION = SLOTS // len(POSITIONS)
NOTHING = 1  # one more class for a position without a digit


class Describer(nn.Module):
    """A LayerNorm, the Q-Former and its queries, which are kept, and two heads that are thrown away."""

    def __init__(self, language_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VIT_SIZES.embed_dim)
        self.qformer, self.queries = build_qformer(SIZES, SLOTS, VIT_SIZES.embed_dim)
        self.to_language = nn.Linear(SIZES.hidden_size, language_width)
        self.to_facts = nn.Linear(SIZES.hidden_size, 10 + NOTHING + len(COLORS) + NOTHING)
        for module in self.qformer.modules():
            if isinstance(module, nn.Linear):  # BERT's 0.02 suits a width of 768
                nn.init.normal_(module.weight, std=0.5 * module.in_features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Maps vision tokens [B, 65, D] to query outputs [B, 32, D]."""
        queries = self.queries.expand(len(features), -1, -1)
        output = self.qformer(query_embeds=queries, encoder_hidden_states=self.norm(features))
        return output.last_hidden_state

    def position_logits(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Each position's own six queries name what is there: digits [B, 5, 11], colours [B, 5, 7]."""
        own = outputs[:, : QUERIES_PER_POSITION * len(POSITIONS)]
        means = own.unflatten(1, (len(POSITIONS), QUERIES_PER_POSITION)).mean(2)
        digits, colors = self.to_facts(means).split([10 + NOTHING, len(COLORS) + NOTHING], dim=-1)
        return digits, colors


def position_targets(scenes: Sequence[Scene]) -> Tensor:
    """Digit and colour at each position, [B, 5, 2]; the last class where there is none."""
    names = list(COLORS)
    targets = torch.tensor([10, len(names)]).repeat(len(scenes), len(POSITIONS), 1)
    for index, scene in enumerate(scenes):
        for fact in scene.facts:
            targets[index, list(POSITIONS).index(fact.position)] = torch.tensor([fact.digit, names.index(fact.color)])
    return targets


class Captions:
    """Scenes with their cached vision tokens, and the captions' loss through the helper."""

    def __init__(self, out: Path, rng: random.Random, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self.vit, self.rng, self.tokenizer = load_vit(out), rng, tokenizer

    @torch.no_grad()
    def cache(self, count: int, split: str) -> tuple[list[Scene], Tensor]:
        """Scenes and their tokens [count, 65, D] in half precision; half of the training scenes are warped."""
        scenes = [sample_scene(self.rng, split, warped=split == "train" and i % 2 == 0) for i in range(count)]
        chunks = [scenes[start : start + 100] for start in range(0, count, 100)]
        return scenes, torch.cat([self.vit(pixels(chunk)).half() for chunk in chunks])

    def logits(self, helper: LlamaForCausalLM, slots: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, targets and row numbers of the caption tokens that follow [BOS] and `slots` [B, 32, W]."""
        rows = [torch.tensor(self.tokenizer.encode(caption(scene.facts) + "\n")) for scene in scenes]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        embed = helper.model.embed_tokens
        start = embed(torch.full((len(scenes), 1), BOS))
        embeddings = torch.cat([start, slots, embed(ids.clamp(min=0))], dim=1)
        labels = torch.cat([torch.full((len(scenes), 1 + SLOTS), -100), ids], dim=1)
        return labelled_logits(helper, embeddings, labels)


def pretrain_qformer(out: Path, seed: int, scale: float, log: Path) -> None:
    """Writes `out/blip2_qformer.safetensors` in BLIP-2's names, in fp16."""
    rng = seed_all(seed, FROZEN_HELPER.name)
    captions = Captions(out, rng, load_tokenizer(out / "llm"))
    helper = LlamaForCausalLM.from_pretrained(out / "helper_lm", dtype=torch.float32)
    width = helper.config.hidden_size
    model = Describer(width).eval()  # eval: without dropout
    words = helper.model.embed_tokens.weight.detach()
    nn.init.normal_(model.to_language.weight, std=float(words.square().mean().sqrt()) * SIZES.hidden_size**-0.5)
    scenes, features = captions.cache(max(64, round(CACHED_SCENES * scale)), "train")
    held_out = captions.cache(max(64, round(VALIDATION_SCENES * min(1.0, scale))), "val")
    targets = position_targets(scenes)

    def loss_at(stage: Stage) -> Tensor:
        picked = rng.sample(range(len(scenes)), stage.batch)
        outputs = model(features[picked].float())
        logits, tokens, _ = captions.logits(helper, model.to_language(outputs), [scenes[i] for i in picked])
        digits, colors = model.position_logits(outputs)
        digit_loss = F.cross_entropy(digits.flatten(0, 1), targets[picked, :, 0].flatten())
        color_loss = F.cross_entropy(colors.flatten(0, 1), targets[picked, :, 1].flatten())
        return F.cross_entropy(logits, tokens) + POSITION_LOSS[stage.name] * (digit_loss + color_loss)

    check = partial(validate_qformer, model, helper, captions, held_out)
    helper.requires_grad_(False)
    frozen, joint = FROZEN_HELPER.scaled(scale), JOINT_HELPER.scaled(scale)
    fit(frozen, [(model, 1.0)], lambda _: loss_at(frozen), log, check)
    helper.requires_grad_(True)
    fit(joint, [(model, 1.0), (helper, 0.5)], lambda _: loss_at(joint), log, check)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("to_")}
    save_file({file_name(f"vision.{n}"): value.half().contiguous() for n, value in kept.items()}, out / QFORMER_FILE)


@torch.no_grad()
def validate_qformer(
    model: Describer, helper: LlamaForCausalLM, captions: Captions, held_out: tuple[list[Scene], Tensor]
) -> dict[str, float]:
    """On unseen handwriting: captions that are right in every token, and digits and colours named by position."""
    scenes, features = held_out
    outputs = model(features.float())
    logits, tokens, rows = captions.logits(helper, model.to_language(outputs), scenes)
    targets = position_targets(scenes)
    there = targets[..., 0] != 10
    digits, colors = (part.argmax(-1) for part in model.position_logits(outputs))
    return {
        "caption": part_right(logits.argmax(-1) != tokens, rows),
        "digit": round(float((digits == targets[..., 0])[there].float().mean()), 4),
        "color": round(float((colors == targets[..., 1])[there].float().mean()), 4),
    }
