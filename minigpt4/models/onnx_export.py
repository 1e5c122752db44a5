"""The image tower as an ONNX graph: what `minigpt4 export onnx` writes."""

import logging
import shutil
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from torch import Tensor, nn

from minigpt4.common.errors import UserError, writing
from minigpt4.models.vision import VisionPart
from minigpt4.models.vision.onnx import EMBEDDINGS, FEATURES, IMAGE

logger = logging.getLogger(__name__)

OPSET = 18  # the exporter's own; for another it converts the graph
ONE_FILE = 100_000_000  # bytes of weights that lie in the graph's own file: that is read to look at its shapes


class _Graph(nn.Module):
    def __init__(self, vision: VisionPart, projection: nn.Module | None):
        super().__init__()
        self.vision, self.projection = vision, projection

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.vision(image)
        return (features,) if self.projection is None else (features, self.projection(features))


def export_onnx(vision: VisionPart, projection: nn.Module | None, file: Path, opset: int = OPSET) -> None:
    """Writes a graph from `image` [B, 3, H, W] to `features` [B, rows, width], for any B; all in fp32.

    With a projection there is a second output, `embeddings` [B, rows, D], which an LLM reads. Weights of more than
    0.1 GB go to FILE.data, which has to lie beside FILE.

    Args:
        vision: frozen, in fp32, on the CPU.
        opset: version of ONNX's operators; runtimes may know older ones only.

    Raises:
        UserError: onnx or onnxscript is missing, the file can't be written, or the graph depends on the batch.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export onnx needs {error.name}. Install it: pip install 'minigpt4[onnx]'") from None
    graph = _Graph(vision, projection).eval()
    outputs = [FEATURES] if projection is None else [FEATURES, EMBEDDINGS]
    batch = {IMAGE: {0: torch.export.Dim("batch")}}
    example = torch.zeros(2, 3, vision.image_size, vision.image_size)  # 1 would be taken for a constant
    size = sum(p.nbytes for p in graph.parameters())
    with torch.no_grad():
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=[IMAGE],
            output_names=outputs,
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=batch,
            verbose=False,
        )
    written = cast(Any, program)
    written.model.metadata_props["minigpt4.id"] = uuid4().hex  # other weights, another file, even if they lie beside
    if (own := written.model.opset_imports[""]) != opset:
        raise UserError(f"--opset: the graph can't be written for {opset}; {own} is possible. Set --opset {own}.")
    with writing("--out", file):
        written.save(str(file), external_data=size > ONE_FILE)


def quantize_int8(file: Path, out: Path) -> None:
    """Writes a copy whose matrix products are in int8; inputs are quantized as they come (dynamically).

    Raises:
        UserError: onnxruntime is missing, or the file can't be written.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise UserError(f"--int8 needs {error.name}. Install it: pip install 'minigpt4[onnx]'") from None
    with writing("--out", out):
        quantize_dynamic(
            file,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=file.with_name(f"{file.name}.data").is_file(),
        )
        if (data := out.with_name(f"{out.name}.data")).is_file():
            shutil.copymode(out, data)  # it is written as private


def difference(expected: Tensor, got: Tensor) -> str:
    """How far results are off, in words."""
    worst, size = (expected - got).abs().max().item(), expected.abs().max().item()
    relative = ((expected - got).norm() / expected.norm()).item()
    return f"at most {worst:.1e} off, of values up to {size:.3g} (relative {relative:.1e})"


def run_onnx(file: Path, images: Tensor) -> list[Tensor]:
    """All outputs of a graph for images [B, 3, H, W], by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(own) for own in session.run(None, {IMAGE: images.numpy()})]
