"""Every entry point shows the model the same: so many pictures and no more, and of a video the same frames."""

import json
from functools import partial

import gradio as gr
import openai
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.config.finding import TINY
from minigpt4.config.loading import load_config
from minigpt4.config.schema import BuildInfo
from minigpt4.datasets.formats.instruction import InstructionDataset
from minigpt4.inference.chat import Chat
from minigpt4.inference.engine import Engine
from minigpt4.inference.options import AnswerOptions
from minigpt4.inference.pictures import Video
from minigpt4.inference.sessions import Sessions
from minigpt4.processors.video import open_video
from minigpt4.serve import predict as predict_module
from minigpt4.serve.questions import Question
from minigpt4.serve.terminal import Terminal
from minigpt4.serve.web.handlers import Handlers
from tests.picture_files import bomb, write_video
from tests.serve.asking import NAME, user
from tests.serve.visiting import OPTIONS, ask

MANY = 300


@pytest.fixture
def broken(tmp_path):
    """A picture that can't be decoded: whoever tries complains of something else than the number."""
    (tmp_path / "broken.png").write_bytes(bomb(10, 10).getvalue())
    return tmp_path / "broken.png"


def refused(engine: Engine) -> str:
    return f"would have {MANY} pictures; the model reads {int(engine.prompter.max_pictures)} at most. Show fewer"


def test_the_page_counts_the_pictures_of_a_question_first(tiny, broken):
    handlers = Handlers(Sessions(tiny))
    with pytest.raises(gr.Error, match=refused(tiny)):
        list(handlers.ask({"text": "one", "files": [broken] * MANY}, *OPTIONS, None))


def test_chat_and_terminal_count_first(tiny, broken, capsys):
    chat = Chat(tiny)
    images = [Image.new("RGB", (1, 1))] * MANY
    for show in (partial(chat.upload_img, *images), lambda: chat.stream([*images, "What?"])):
        with pytest.raises(UserError, match=refused(tiny)):
            show()
    assert not chat.pictures
    terminal, lines = Terminal(chat, AnswerOptions(), interactive=False), iter([":img" + f" {broken}" * MANY])
    assert terminal.run(lambda: next(lines, None) or (_ for _ in ()).throw(EOFError)) == 1
    assert refused(tiny) in capsys.readouterr().err


def test_predict_counts_first(tiny, broken):
    assert refused(tiny) in predict_module.prepare(tiny, Question("a", "What?", [str(broken)] * MANY))[0]


def test_the_api_counts_first(client, broken):
    with pytest.raises(openai.BadRequestError, match="reads and answers 2048 at once"):
        client.chat.completions.create(model=NAME, messages=[user(*[broken] * MANY, "What?")])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 25 frames, each of another brightness."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", [(9 * n,) * 3 for n in range(25)])


@pytest.mark.slow
@pytest.mark.parametrize("n_frms", [1, 3, 8, 40])
def test_a_video_gives_the_same_frames_to_training_and_to_every_door(n_frms, clip, tiny, tmp_path):
    processor = tiny.processor
    (tmp_path / "own.json").write_text(json.dumps([{"video": str(clip), "instruction": "x", "output": "y"}]))
    common = {"key": "k", "storage": str(tmp_path / "own.json"), "text_processor": str}
    data = InstructionDataset(**common, info=BuildInfo(n_frms=n_frms), vis_processor=processor, reduced=True)
    trained = torch.stack(data[0]["conversation"].pictures)
    assert len(trained) == min(n_frms, 25)

    asked, _ = predict_module.prepare(tiny, Question("a", "What?", video=str(clip)), n_frms)
    assert torch.stack(asked.pictures).equal(trained)

    chat = Chat(tiny)
    terminal, lines = Terminal(chat, AnswerOptions(), False, n_frms), iter([f":video {clip}"])
    terminal.run(lambda: next(lines, None) or (_ for _ in ()).throw(EOFError))
    *_, page = Handlers(Sessions(tiny), n_frms=n_frms).ask({"text": "x", "files": [clip]}, *OPTIONS, None)
    for pictures in (chat.pictures, page[-1].chat.turns[0].pictures):
        assert all(processor(picture.image).equal(frame) for picture, frame in zip(pictures, trained, strict=True))


def test_frames_are_the_first_of_equal_parts(clip):
    shades = [frame.getpixel((9, 9))[0] / 9 for frame in open_video(clip, 8)]
    assert shades == pytest.approx([0, 3, 6, 9, 12, 15, 18, 21], abs=1)
    with pytest.raises(UserError, match="frames: 0 is out of range"):
        Video(clip, 0).pictures()


@pytest.mark.slow
def test_the_number_of_frames_is_the_configs(tmp_path):
    def frames(*options: str, block: str = "") -> tuple[int, int]:
        file = tmp_path / "train.yaml"
        file.write_text(f"datasets:\n  instruction:\n    build_info: {{storage: x.json{block}}}\n")
        config = load_config(file, list(options))
        return config.preprocess.n_frms, config.datasets["instruction"].build_info.n_frms

    assert load_config(TINY).preprocess.n_frms == 8
    assert frames() == (8, 8)
    assert frames("preprocess.n_frms=5") == (5, 5)
    assert frames("preprocess.n_frms=5", block=", n_frms: 3") == (5, 3)
    for key in ("preprocess", "datasets.instruction.build_info"):
        with pytest.raises(UserError, match=r"n_frms: 0 is out of range"):
            frames(f"{key}.n_frms=0")


@pytest.mark.slow
def test_pictures_that_are_too_tall_are_refused_by_every_door(url, client, tiny, tmp_path, echo):
    Image.new("L", (1, 70_000)).save(tmp_path / "tall.png")
    words = "longer side has 70000 pixels; 65535 are the most"
    with pytest.raises(AppError, match=f"tall.png: the picture's {words}"):
        ask(Client(url, verbose=False), "one", tmp_path / "tall.png")
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(model=NAME, messages=[user(tmp_path / "tall.png", "What?")])
    assert words in predict_module.prepare(tiny, Question("a", "What?", [str(tmp_path / "tall.png")]))[0]
