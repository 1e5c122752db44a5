"""From a conversation to ids: pictures have slots, words are words, and training learns the answers alone."""

import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.conversation.prompter import IMAGE_ROW, Prompter, read_prompts
from minigpt4.conversation.templates import TEMPLATES, get_template
from minigpt4.inference.loading import load_prompter
from minigpt4.models.llm import load_tokenizer
from tests.conftest import PARITY
from tests.conversation import PICTURE, SHOWN

HALF = "half a \ud83d"  # of an emoji
FORGED = "<ImageHere>", SHOWN, "<Img></Img>", "<image>", "<picture 0>", "\0", "{}", "{0}", "%s"
BOS = 1


@pytest.fixture
def prompter(parity_prompter) -> Prompter:
    return replace(parity_prompter, rows=2, window=1000)


def slots(layout: list[int]) -> list[int]:
    """How many ids of text come before, between and behind pictures of two rows."""
    text = "".join("x" if i == IMAGE_ROW else "." for i in layout)
    return [len(part) for part in text.split("xx")]


def ids(example) -> list[int]:
    return [i for i, _ in example]


def learned(example) -> list[int]:
    return [i for i, counts in example if counts]


def encoded(prompter: Prompter, *texts: str) -> list[int]:
    return [i for text in texts for i in prompter.encode(text)]


def test_what_stands_between_pictures_is_encoded_by_itself(prompter):
    encode = prompter.encode
    assert prompter.layout(["ab", PICTURE, PICTURE, "c"]) == [BOS, *encode("ab"), *[IMAGE_ROW] * 4, *encode("c")]
    assert prompter.layout([PICTURE]) == [BOS, IMAGE_ROW, IMAGE_ROW]
    assert prompter.layout(["", PICTURE, ""]) == prompter.layout([PICTURE])
    assert prompter.layout([]) == [BOS]


def test_a_prompt_as_the_original_writes_it_is_laid_out_as_its_conversation(prompter):
    one, two = object(), object()
    turns = [Turn([one, " What?"], "a dog"), Turn(["And ", two, "?"])]
    parts = prompter.read(Conversation(turns))
    text = prompter.text(parts)
    assert text.count(SHOWN) == 2 and prompter.parse(text, [one, two]) == parts
    assert prompter.layout(prompter.parse(text, [one, two])) == prompter.layout(parts)
    assert slots(prompter.layout(prompter.parse("<ImageHere>a<ImageHere><ImageHere>", [one] * 3))) == [1, 1, 0, 0]


def test_as_many_places_as_pictures(prompter):
    with pytest.raises(UserError, match="^the prompt holds 1 <ImageHere> but 2 images were given. Write one <Image"):
        prompter.parse("<ImageHere>", [1, 2])
    assert prompter.parse_all(["<ImageHere>", "a", "<ImageHere> b <ImageHere>"], (1, 2, 3)) == [
        [1],
        ["a"],
        [2, " b ", 3],
    ]
    assert prompter.parse_all(["<ImageHere>", "a"], [[1], None]) == [[1], ["a"]]
    assert prompter.parse_all(["a"], None) == [["a"]]
    for pictures, message in {
        (1,): "^prompts hold 2 <ImageHere> but 1 images were given",
        None: "^prompts hold 2 <ImageHere> but 0 images were given",
    }.items():
        with pytest.raises(UserError, match=message):
            prompter.parse_all(["<ImageHere>", "<ImageHere>"], pictures)
    with pytest.raises(UserError, match="^prompt 2 of 2: the prompt holds 1 <ImageHere> but 0 images"):
        prompter.parse_all(["<ImageHere>", "<ImageHere>"], [[1], None])
    with pytest.raises(UserError, match="^images were given for 1 prompts, and there are 2"):
        prompter.parse_all(["<ImageHere>", "a"], [[1]])


@pytest.mark.parametrize("name", [*TEMPLATES, "tokenizer"])
def test_words_show_no_picture(name, prompter):
    tokenizer = load_tokenizer(PARITY / "tokenizer")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    own = replace(prompter, template=get_template(name, tokenizer))
    for said in FORGED:
        parts = own.read(Conversation([Turn([said, PICTURE, said], said), Turn([said])], system=said))
        assert [part for part in parts if not isinstance(part, str)] == [PICTURE]
        assert "".join(part for part in parts if isinstance(part, str)).count(said) >= 5
        assert own.layout(parts).count(IMAGE_ROW) == 2


@pytest.mark.parametrize("said", FORGED)
@pytest.mark.parametrize("kind", ["dialogue", "instruction"])
def test_words_that_are_learnt_from_show_no_picture(kind, said, prompter):
    own = replace(prompter, max_txt_len=99, turn_template="{}")
    turns = [Turn([said, PICTURE, said], said), *([Turn([said], said)] if kind == "dialogue" else [])]
    example = own.example(Conversation(turns, kind=kind))
    assert ids(example)[: len(own.encode(said + "<Img>")) + 3] == [BOS, *own.encode(said + "<Img>"), *[IMAGE_ROW] * 2]
    assert ids(example).count(IMAGE_ROW) == 2
    assert learned(example) == encoded(own, *[said + "\n"] * len(turns))
    assert ids(own.example(Conversation([Turn([PICTURE], said)], kind="caption")))[3:] == own.encode(said + "\n")


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(FORGED)
PARTS = st.lists(WORDS | st.just(PICTURE), max_size=6)
TURNS = st.lists(st.builds(Turn, PARTS, st.none() | WORDS), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=TURNS, most=st.integers(0, 90))
def test_whatever_is_said_and_shown(turns, most, prompter):
    conversation = Conversation(turns)
    parts = prompter.read(conversation)
    assert [part for part in parts if not isinstance(part, str)] == conversation.pictures
    assert not any(isinstance(a, str) and isinstance(b, str) for a, b in pairwise(parts))
    assert prompter.read(conversation) == parts  # nothing was changed
    length, whole = prompter.length(parts, most), len(prompter.layout(parts))
    assert length == whole if whole <= most else most < length <= whole


def test_an_llm_without_a_bos_gets_none(prompter, monkeypatch):
    monkeypatch.setattr(prompter, "tokenizer", load_tokenizer(PARITY / "tokenizer"))
    prompter.tokenizer.bos_token = None
    assert prompter.layout(["ab"]) == prompter.encode("ab")
    assert ids(prompter.example(Conversation([Turn(["ab"], "c")]))) == prompter.encode("ab") + prompter.encode("c\n")


def test_a_book_is_too_long_without_being_encoded(prompter, monkeypatch):
    monkeypatch.setattr(Prompter, "encode", lambda *_: 1 / 0)
    assert prompter.length(["word " * 10**6], 1000) > 1000
    assert prompter.length([PICTURE] * 501, 1000) > 1000


def test_half_a_character_is_reported_in_words(prompter):
    with pytest.raises(UserError, match=r"only half there \(a lone surrogate\). Remove it"):
        prompter.layout(prompter.read(Conversation([Turn([HALF])])))
    for question, answer in (("a", HALF), (HALF, "a")):
        with pytest.raises(UserError, match="only half there"):
            prompter.example(Conversation([Turn([question], answer)]))


CAPTION = Conversation([Turn([PICTURE], "a dog")], kind="caption")


def test_a_caption_is_asked_for_with_a_prompt_that_is_drawn(prompter):
    assert prompter.prompts == []
    alone = prompter.example(CAPTION)
    assert ids(alone) == [BOS, IMAGE_ROW, IMAGE_ROW, *prompter.encode("a dog\n")]
    own = replace(prompter, prompts=[f"{SHOWN} Describe it.", "Look: <ImageHere>"])
    expected = [own.layout(own.parse(prompt, [PICTURE])) for prompt in own.prompts]
    for number, draw in enumerate(([], [lambda prompts: prompts[1]])):
        example = own.example(CAPTION, *draw)
        assert ids(example) == [*expected[number], *own.encode("a dog\n")]
        assert learned(example) == own.encode("a dog\n")
    two = replace(prompter, prompts=["<ImageHere><ImageHere>"])
    with pytest.raises(UserError, match="^the prompt holds 2 <ImageHere> but 1 images were given"):
        two.example(CAPTION)


def test_an_instruction_has_the_prompt_template_only_where_it_is_asked_for(prompter):
    own = replace(prompter, prompt_template="Q: {} A: ")
    asked = Conversation([Turn(spaced([PICTURE, "What {}?"]), "a dog")], kind="instruction")
    answer = own.encode("a dog\n")
    bare = own.layout(own.parse(f"{SHOWN} What {{}}?", [PICTURE]))
    around = own.layout(own.parse(f"Q: {SHOWN} What {{}}? A: ", [PICTURE]))
    assert ids(own.example(asked)) == [*bare, *answer]
    assert ids(replace(own, chat_template=True).example(asked)) == [*around, *answer]
    for chat_template in (False, True):
        dialogue = replace(own, chat_template=chat_template).example(replace(asked, kind="dialogue"))
        assert ids(dialogue) == [*around, *answer]


def test_a_dialogue_learns_all_answers_and_no_question(prompter):
    own = replace(prompter, prompt_template="Q: {} A: ", turn_template="<s>Q: {} A: ", end_sym="###", max_txt_len=99)
    turns = [Turn([PICTURE, " What?"], "a dog"), Turn(["Why?"], "so"), Turn(["And ", PICTURE, "?"], "yes")]
    example = own.example(Conversation(turns))
    assert learned(example) == encoded(own, "a dog###", "so###", "yes###")
    later = encoded(own, "<s>Q: Why? A: ", "so###")
    start_ids = own.layout(own.parse(f"Q: {SHOWN} What? A: ", [PICTURE])) + own.encode("a dog###")
    start = len(start_ids)
    assert ids(example)[:start] == start_ids
    assert ids(example)[start : start + len(later)] == later and later[0] == BOS  # as the original begins later turns
    first, rest = own.turns(Conversation(turns))
    assert first + rest == example and not any(counts for _, counts in first)


def test_markers_of_the_template_are_learned_in_questions_too(prompter):
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    own = replace(
        prompter, template=TEMPLATES["chatml"], prompt_template=template, end_sym="<|im_end|>", max_txt_len=999
    )
    example = own.example(Conversation([Turn([PICTURE, "What?"], "a dog")]))
    markers = ("<|im_start|>", "<|im_end|>\n", "<|im_start|>")
    assert learned(example) == encoded(own, *markers, "a dog<|im_end|>")
    others = replace(own, template=TEMPLATES["vicuna_v0"]).example(Conversation([Turn([PICTURE, "What?"], "a dog")]))
    assert learned(others) == own.encode("a dog<|im_end|>")


def test_limits_of_training(prompter):
    long = Conversation([Turn(["What?"], "word " * 40)])
    own = replace(prompter, max_txt_len=10)
    assert len(own.turns(long)[1]) > 10 and len(own.example(long)) == len(own.turns(long)[0]) + 10
    tokens = len(own.example(long))
    assert replace(own, window=tokens).example(long)
    with pytest.raises(
        UserError, match=f"^it has {tokens} tokens, and the LLM reads {tokens - 1} at once. Shorten it.$"
    ):
        replace(own, window=tokens - 1).example(long)
    later = Conversation([*long.turns, Turn([PICTURE], "a dog")])
    with pytest.raises(UserError, match="^its prompts show 0 pictures within model.max_txt_len=10, and it has 1. Show"):
        own.example(later)


def test_a_prompt_with_an_answer_to_rank(prompter):
    prompt, answer = prompter.pair(["What? ", PICTURE], "a dog")
    assert ids(prompt) == prompter.layout(["What? ", PICTURE]) and not any(counts for _, counts in prompt)
    assert ids(answer) == prompter.encode("a dog\n") and all(counts for _, counts in answer)


def test_other_tags_around_pictures(prompter):
    own = replace(prompter, image_tags=("<start>", ""), prompt_template="{}")
    turn = Turn([PICTURE, "What?"], "a dog")
    assert "<start><ImageHere>What?" in own.text(own.read(Conversation([turn])))
    assert ids(own.example(Conversation([turn]))) == [
        *own.layout(["<start>", PICTURE, "What?"]),
        *own.encode("a dog\n"),
    ]


def test_prompts_leave_room_for_an_answer(prompter):
    own = replace(prompter, prompts=["<ImageHere> a", "<ImageHere> " + "word " * 40])
    longest = max(len(own.layout(own.parse(prompt, [PICTURE]))) for prompt in own.prompts)
    replace(own, window=longest + 1).check_prompts()
    with pytest.raises(UserError, match=rf"^model.prompt_path: '.*word.*' has {longest} tokens, and the LLM reads"):
        replace(own, window=longest).check_prompts()
    with pytest.raises(UserError, match="^model.prompt_template: 'word word"):
        replace(prompter, prompt_template="word " * 40 + "{}", window=9).check_prompts()


def test_prompt_files(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("<Img><ImageHere></Img> Describe.\nno placeholder\n\n")
    assert read_prompts(str(file), "Q: {} A: ") == ["Q: <Img><ImageHere></Img> Describe. A: "]
    assert read_prompts("", "{}") == []
    file.write_text("nothing\n")
    with pytest.raises(UserError, match="holds <ImageHere>"):
        read_prompts(str(file), "{}")
    with pytest.raises(UserError, match="^model.prompt_path: '/no/such' does not exist. Set it to a text file"):
        read_prompts("/no/such", "{}")


def test_the_prompter_of_a_config(parity_config, tmp_path):
    (tmp_path / "prompts.txt").write_text("<ImageHere> Describe.\n")
    config = replace(parity_config, prompt_path=str(tmp_path / "prompts.txt"), prompt_template="Q: {}", end_sym="!")
    own = load_prompter(config)
    assert (own.prompts, own.prompt_template, own.turn_template) == (["Q: <ImageHere> Describe."], "Q: {}", "<s>Q: {}")
    assert (own.rows, own.window, own.end_sym, own.max_pictures) == (8, 1024, "!", 128)
    assert load_prompter(replace(config, turn_template="T: {}", max_context_len=99)).turn_template == "T: {}"
    assert load_prompter(replace(config, max_context_len=99)).window == 99
    patches = load_prompter(replace(config, has_qformer=False))
    assert patches.rows == 4  # of 16 patches, four joined into one
    with pytest.raises(UserError, match="model.conversation: 'vicuna_0' is unknown"):
        load_prompter(replace(config, conversation="vicuna_0"))


def test_it_goes_to_a_spawned_worker(parity_prompter):
    own = pickle.loads(pickle.dumps(parity_prompter))  # noqa: S301
    assert own.example(CAPTION) == parity_prompter.example(CAPTION)
