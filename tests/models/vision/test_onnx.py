"""The ONNX tower computes what the tower that it was exported from does, in all flavours; refusals name the cure."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config, save_config
from minigpt4.config.schema import Config, VisionConfig
from minigpt4.models import onnx_export
from minigpt4.models.image_side import load_projection, load_vision
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.onnx_export import export_onnx, quantize_int8
from minigpt4.models.preflight import llm_outline, memory_of_devices, preflight
from minigpt4.models.vision import build_vision

pytestmark = pytest.mark.slow
TINY = "minigpt4_tiny_eval"


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> Path:
    """The tiny model's, with its projection."""
    config = load_config(TINY, ["run.device=cpu"])
    vision = load_vision(config).requires_grad_(False)
    file = tmp_path_factory.mktemp("onnx") / "tower.onnx"
    export_onnx(vision, load_projection(config, vision.width), file)
    return file


def options(file: Path, *more: str) -> list[str]:
    return ["model.vision.name=onnx", f"model.vision.model={file}", "run.device=cpu", *more]


def pixels(side: int, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


@torch.inference_mode()
def test_features_and_embeddings_are_those_of_the_model_for_any_batch(tower):
    import onnxruntime

    plain = MiniGPT4.from_config(load_config(TINY, ["run.device=cpu"])).prepare_for_inference()
    ours = MiniGPT4.from_config(load_config(TINY, options(tower))).prepare_for_inference()
    session = onnxruntime.InferenceSession(tower, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = pixels(112, batch)
        torch.testing.assert_close(ours.vision(images), plain.vision(images), atol=1e-4, rtol=0)
        expected = plain.encode_img(images)
        torch.testing.assert_close(ours.encode_img(images), expected, atol=1e-4, rtol=0)
        features, embeddings = session.run(None, {"image": images.numpy()})
        assert features.shape == (batch, 32, 128)
        torch.testing.assert_close(torch.from_numpy(embeddings), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("flavour", ["vicuna0", "llama2", "v2"])
def test_all_flavours(flavour, parity_engines, tmp_path):
    model = parity_engines[flavour].model
    export_onnx(model.vision, model.projection, tmp_path / "x.onnx")
    config = Config(model=replace(load_config(TINY, []).model, image_size=model.vision.image_size))
    config.model.vision = VisionConfig(name="onnx", model=str(tmp_path / "x.onnx"))
    vision = build_vision(config)
    vision.load(config, {"model.vision.model": tmp_path / "x.onnx"})
    assert (vision.rows, vision.width) == (model.vision.rows, model.vision.width)
    images = pixels(vision.image_size, 3)
    torch.testing.assert_close(vision(images), model.vision(images), atol=1e-4, rtol=0)


def test_int8_is_smaller_and_near(tower, tmp_path):
    quantize_int8(tower, tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").stat().st_size < 0.5 * tower.stat().st_size
    with torch.inference_mode():
        exact, small = (
            MiniGPT4.from_config(load_config(TINY, options(file))).vision(pixels(112, 2))
            for file in (tower, tmp_path / "small.onnx")
        )
    assert 0 < (exact - small).norm() < 0.1 * exact.norm()


def test_answers_and_a_saved_config(tower, tmp_path, minigpt4, monkeypatch):
    from PIL import Image

    pictures = []
    for i in range(2):
        Image.effect_noise((112, 112), 60 + i).convert("RGB").save(tmp_path / f"{i}.png")
        pictures.append(tmp_path / f"{i}.png")
    ask = ("predict", "--image", *pictures, "--text", "Describe the image.")
    plain = minigpt4(*ask)
    monkeypatch.chdir(tower.parent)
    assert minigpt4(*ask, "--options", *options(Path(tower.name)))[:2] == plain[:2] and plain[0] == 0
    (tmp_path / "own.jsonl").write_text('{"image": "0.png", "question": "What is it?", "answer": "a cat"}\n')
    own = [f"evaluation_datasets.mine.eval_file_path={tmp_path}/own.jsonl"]
    own += [f"evaluation_datasets.mine.img_path={tmp_path}", f"run.output_dir={tmp_path}/out"]
    more = ("--benchmarks", "mine", "--options", *own, *options(tower))
    assert minigpt4("evaluate", "--cfg-path", TINY, *more)[0] == 0
    save_config(load_config(TINY, options(Path(tower.name))), tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml"), []).model.vision.model == str(tower)  # found from any folder


def test_the_command(tmp_path, minigpt4):
    code, _, err = minigpt4("export", "onnx", "--out", tmp_path / "new" / "tower.onnx", "--int8")
    assert code == 0 and err.count("tower.onnx: at most") == 1 and err.count("tower.int8.onnx: at most") == 1
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"tower.onnx", "tower.int8.onnx"}
    no_ckpt = ("export", "onnx", "--out", tmp_path / "x.onnx", "--with-projection", "--options", "model.ckpt=null")
    code, _, err = minigpt4(*no_ckpt)
    assert code == 2 and "model.ckpt: holds no llama_proj" in err and not (tmp_path / "x.onnx").exists()


def test_an_opset_that_cannot_be_written_is_refused_at_once(minigpt4):
    code, _, err = minigpt4("export", "onnx", "--out", "x.onnx", "--opset", "5")
    assert code == 2 and "argument --opset: invalid choice: 5 (choose from 17" in err.replace("'", "")


def test_embeddings_that_are_off_are_refused_and_the_old_file_stays(tmp_path, minigpt4, monkeypatch):
    file, own = tmp_path / "tower.onnx", onnx_export.run_onnx
    file.write_text("old")
    monkeypatch.setattr(onnx_export, "run_onnx", lambda *more: [own(*more)[0], own(*more)[1] * 1.01])
    code, _, err = minigpt4("export", "onnx", "--out", file, "--with-projection")
    assert code == 2 and "computes something else than the model" in err
    assert [one.name for one in tmp_path.iterdir()] == ["tower.onnx"] and file.read_text() == "old"


def test_what_does_not_fit_is_refused_with_its_cure(tower, tmp_path):
    def refusal(*more: str, file: Path = tower) -> str:
        with pytest.raises(UserError) as error:
            MiniGPT4.from_config(load_config(TINY, options(file, *more)))
        return str(error.value)

    assert "reads pictures of 112 pixels. Set model.image_size=112" in refusal("model.image_size=224")
    assert "is not a file" in refusal(file=tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\xff" + bytes(100))
    assert "is not an ONNX file" in refusal(file=tmp_path / "bad.onnx")
    assert "CPUExecutionProvider" in refusal("model.vision.provider=X")
    assert "or onnxruntime-cann" in refusal("model.vision.provider=CANNExecutionProvider")
    with pytest.raises(UserError, match="stays frozen"):
        load_config(TINY, options(tower, "model.freeze_vit=False"))


def test_another_graph_is_refused(tmp_path):
    linear = torch.nn.Linear(2, 2).eval()
    torch.onnx.export(linear, (torch.ones(1, 2),), tmp_path / "x.onnx", dynamo=True, verbose=False)
    with pytest.raises(UserError, match="has no 'features'"):
        MiniGPT4.from_config(load_config(TINY, options(tmp_path / "x.onnx")))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_a_package_the_cure_is_named(package, tower, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}\. Install it: pip install 'minigpt4\[onnx\]'"):
        MiniGPT4.from_config(load_config(TINY, options(tower)))


@torch.inference_mode()
def test_a_tower_of_hugging_face_with_weights_beside_the_graph(tmp_path, monkeypatch):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14)).save_pretrained(tmp_path / "clip")
    more = ["model.vision.name=huggingface", f"model.vision.model={tmp_path / 'clip'}", "model.image_size=28"]
    config = load_config(TINY, [*more, "model.ckpt=null", "model.vit_precision=fp32", "run.device=cpu"])
    vision = load_vision(config)
    monkeypatch.setattr("minigpt4.models.onnx_export.ONE_FILE", 0)
    export_onnx(vision, None, tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx.data").is_file()
    config = load_config(TINY, options(tmp_path / "x.onnx", "model.image_size=28", "model.ckpt=null"))
    ours = build_vision(config)
    ours.load(config, {"model.vision.model": tmp_path / "x.onnx"})
    torch.testing.assert_close(ours(pixels(28, 3)), vision(pixels(28, 3)), atol=1e-4, rtol=0)


def test_weights_beside_the_graph_are_looked_at_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt4.models.onnx_export.ONE_FILE", 0)
    config = load_config(TINY, ["run.device=cpu"])
    plain, file = load_vision(config).requires_grad_(False), tmp_path / "tower.onnx"
    export_onnx(plain, None, file)
    data, config = tmp_path / "tower.onnx.data", load_config(TINY, options(file))
    whole = data.read_bytes()
    vision = build_vision(config)
    assert preflight(config, vision)["model.vision.model"] == file
    (parts,) = memory_of_devices(
        config.model, vision, llm_outline(Path(config.model.llama_model)), torch.device("cpu")
    ).values()
    weights = sum(p.nbytes for p in plain.parameters())
    assert 0.9 * weights < parts["vision"] < 1.3 * weights
    for content, message in ((whole[:-1000], "is truncated: it has"), (None, "does not exist")):
        data.unlink()
        if content:
            data.write_bytes(content)
        with pytest.raises(UserError, match=f"model.vision.model: '{data}', which holds weights of .*{message}"):
            preflight(config, build_vision(config))
