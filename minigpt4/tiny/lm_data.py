"""What the tiny language models read: chats about scenes whose image slot already holds something they can learn from.

The image slot is filled without any image: with a text about the scene, or with "blends", which are weighted sums of
the embeddings of a digit's colour, value and position, spread over 32 slots among empty ones, under noise. A language
model that reads blends can be aligned later by a linear layer alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import sentencepiece
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minigpt4.conversation.templates import SYSTEM
from minigpt4.tiny import text
from minigpt4.tiny.world import Fact, sample_facts

BOS = 1
SLOTS = 32  # as many as there are queries
RECALLS = 24  # key -> value pairs of a recall drill


@dataclass
class Example:
    """One sequence. `blends` are (position, three word ids, three weights); several may share a position."""

    ids: list[int] = field(default_factory=lambda: [BOS])
    learned: list[bool] = field(default_factory=lambda: [False])
    blends: list[tuple[int, tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # positions that hold image embeddings

    def add(self, ids: Sequence[int], learned: bool | Sequence[bool] = False) -> None:
        self.ids += ids
        self.learned += [learned] * len(ids) if isinstance(learned, bool) else learned


class Writer:
    """Writes examples in the product's tokenization: every piece of text around the image is encoded by itself."""

    # The template is written out, not taken from TEMPLATES: the bundled weights were trained on exactly these pieces.

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self.encode = tokenizer.encode
        self.stop = tokenizer.piece_to_id("###")
        self.space = tokenizer.piece_to_id("▁")
        self.assistant = self.encode("###Assistant:")[-2:]

    def word(self, word: str) -> int:
        """The one piece that carries a word of the world."""
        return int(self.encode(word)[-1])

    def words(self, fact: Fact) -> tuple[int, int, int]:
        return self.word(fact.color), self.word(str(fact.digit)), self.word(fact.position)

    def caption(self, rng: random.Random, facts: Sequence[Fact], blended: bool) -> Example:
        """Stage 1: no prompt, the caption follows the image."""
        example = Example()
        self._fill_slot(example, rng, facts, blended)
        example.add(self.encode(text.caption(facts) + "\n"), True)
        return example

    def chat(self, rng: random.Random, facts: Sequence[Fact], blended: bool, turns: list[tuple[str, str]]) -> Example:
        """A conversation in the template of training (" ###Assistant: ") or of the original's demo ("###Assistant:").

        As at chat time, all turns but the last are one text, and the last answer is encoded by itself.
        """
        marker = " ###Assistant: " if rng.random() < 0.7 else "###Assistant:"
        system = SYSTEM + "###" if rng.random() < 0.05 else "###"
        example = Example()
        example.add(self.encode(f"{system}Human: <Img>"))
        self._fill_slot(example, rng, facts, blended)
        earlier = "</Img> "
        for question, answer in turns[:-1]:
            earlier += f"{question}{marker.rstrip()} {answer}###Human: "
        ids = self.encode(f"{earlier}{turns[-1][0]}{marker}")
        example.add(ids, self._answers(ids))
        example.add(self.encode(f"{turns[-1][1]}###"), True)
        return example

    def recall(self, rng: random.Random, facts: Sequence[Fact], blended: bool) -> Example:
        """A drill that teaches which words belong together, and which are absent.

        Random pairs: two words of one digit, or a word that is not there and "No".
        """
        example = Example()
        example.add(self.encode("###Human: <Img>"))
        self._fill_slot(example, rng, facts, blended)
        example.add(self.encode("</Img>"))
        present = {word for fact in facts for word in self.words(fact)}
        absent = [word for word in map(self.word, text.words_of_the_world()) if word not in present]
        for _ in range(RECALLS):
            is_there = rng.random() < 0.8
            pair = rng.sample(self.words(rng.choice(facts)), 2) if is_there else [rng.choice(absent), self.word("No")]
            example.add(pair, [False, True])
        return example

    def _answers(self, ids: Sequence[int]) -> list[bool]:
        """Marks every finished answer within a conversation, its closing ### included."""
        marks, start = [False] * len(ids), None
        for index, token in enumerate(ids):
            if start is not None and token == self.stop:
                marks[start : index + 1] = [True] * (index + 1 - start)
                start = None
            elif ids[max(index - 1, 0) : index + 1] == self.assistant:
                start = index + 1
        return marks

    def _fill_slot(self, example: Example, rng: random.Random, facts: Sequence[Fact], blended: bool) -> None:
        if not blended:
            example.add(self.encode(text.notes(rng, facts)))
            return
        first = len(example.ids)
        example.slots = list(range(first, first + SLOTS))
        example.add([0] * SLOTS)
        free = rng.sample(example.slots, SLOTS)
        for fact in facts:
            for copy in range(rng.randint(1, 4)):
                low, high = (0.6, 1.4) if copy == 0 else (0.0, 1.4)
                position = free.pop()
                example.blends.append((position, self.words(fact), tuple(rng.uniform(low, high) for _ in range(3))))
                if rng.random() < 0.3:  # a real slot is never quite free of the other digits
                    leak = rng.uniform(0, 0.25)
                    example.blends.append((position, self.words(rng.choice(facts)), (leak, leak, leak)))


def sample_turns(rng: random.Random, facts: Sequence[Fact], most: int) -> list[tuple[str, str]]:
    """One to `most` pairs of question and answer; some questions are typed carelessly."""
    turns = []
    for _ in range(rng.randint(1, most)):
        if rng.random() < 0.15:
            request = rng.choice(text.DETAIL_REQUESTS if rng.random() < 0.8 else text.MORE_REQUESTS)
            turns.append((request, text.description(facts)))
            continue
        asked = text.ask(rng, facts, rng.choice((*text.QUESTION_TYPES, "exists")))  # exists is the hardest to learn
        careless = rng.random() < 0.1
        turns.append((asked.question.lower().rstrip("?.") if careless else asked.question, asked.answer))
    return turns


def sample_examples(writer: Writer, rng: random.Random, count: int, turns: int, drill: bool) -> list[Example]:
    """A batch for a language model: half of the image slots hold text and half of them blends."""
    examples = []
    for index in range(count):
        blended = index % 2 == 0
        if drill:
            examples.append(writer.recall(rng, sample_facts(rng, 1, 5), blended))
            continue
        facts = sample_facts(rng)
        if rng.random() < 0.15:
            examples.append(writer.caption(rng, facts, blended))
        else:
            examples.append(writer.chat(rng, facts, blended, sample_turns(rng, facts, turns)))
    return examples


def collate(examples: Sequence[Example], table: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Embeds examples with the word embeddings `table` [V, D].

    `noise` [batch] is each example's noise on its image slots, in parts of the table's root mean square.
    Returns embeddings [batch, T, D], padded on the right, and labels [batch, T], -100 where nothing is learned.
    """
    ids = pad_sequence([torch.tensor(example.ids) for example in examples], batch_first=True)
    learned = pad_sequence([torch.tensor(example.learned) for example in examples], batch_first=True)
    is_slot = torch.zeros(ids.shape)
    blends = []
    for index, example in enumerate(examples):
        is_slot[index, example.slots] = 1
        blends += [(index * ids.shape[1] + position, *own) for position, *own in example.blends]
    embeddings = table[ids] * (1 - is_slot)[..., None]
    if blends:
        rows, words, weights = map(torch.tensor, zip(*blends, strict=True))
        sums = (table[words] * weights[..., None]).sum(1)
        embeddings = embeddings.flatten(0, 1).index_add(0, rows, sums).view_as(embeddings)
    scale = noise[:, None] * is_slot * table.detach().square().mean().sqrt()
    return embeddings + scale[..., None] * torch.randn_like(embeddings), torch.where(learned, ids, -100)
