"""`minigpt4 export onnx`: the image tower for ONNX Runtime, and for compilers that read its files."""

import argparse
import logging
import sys
from pathlib import Path

from minigpt4.common.errors import UserError
from minigpt4.common.files import whole_files
from minigpt4.config.arguments import add_model_arguments, read_config

_OPSETS = range(17, 26)  # PyTorch exports 18, and its converter makes the others of that
_EQUAL = 1e-3  # relative; what is further off is not the same tower


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    formats = parser.add_subparsers(dest="format", required=True)
    onnx = formats.add_parser("onnx", help="pictures -> features, one ONNX file")
    add_model_arguments(onnx, "minigpt4_tiny_eval")
    onnx.add_argument("--out", type=Path, required=True, help="file to write, such as tower.onnx")
    onnx.add_argument(
        "--with-projection", action="store_true", help="a second output: the embeddings that the LLM reads"
    )
    onnx.add_argument(
        "--opset",
        type=int,
        default=18,
        choices=_OPSETS,
        metavar="N",
        help=f"version of ONNX's operators, {_OPSETS[0]} to {_OPSETS[-1]} (default: %(default)s)",
    )
    onnx.add_argument("--int8", action="store_true", help="also write NAME.int8.onnx, smaller and less exact")


def main(args: argparse.Namespace) -> None:
    """Exports, and compares what the file computes with what the model does.

    Raises:
        UserError: the config or a weight file can't be used, a package is missing, or the results differ.
    """
    config = read_config(args)
    if config.model.vision_kind == "onnx":
        raise UserError("model.vision.name: onnx is what is to be written. Name the tower that it is made of.")

    import torch

    logging.getLogger().setLevel(logging.WARNING)  # exporters report every node
    from minigpt4.models.image_side import load_projection, load_vision
    from minigpt4.models.onnx_export import difference, export_onnx, quantize_int8, run_onnx

    config.model.vit_precision, config.run.device = "fp32", "cpu"
    vision = load_vision(config).requires_grad_(False)
    projection = load_projection(config, vision.width) if args.with_projection else None
    images = torch.randn(1, 3, vision.image_size, vision.image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = vision(images)
        expected = [features] if projection is None else [features, projection(features)]
    with whole_files("--out", args.out) as part:
        export_onnx(vision, projection, part, args.opset)
        del vision, projection
        for own, got in zip(expected, run_onnx(part, images), strict=True):
            sys.stderr.write(f"{args.out}: {difference(own, got)}\n")
            if not torch.isfinite(got).all() or (own - got).norm() > _EQUAL * own.norm():
                raise UserError(
                    f"--out: the graph for '{args.out}' computes something else than the model, so that it was not "
                    "kept. Try another --opset, and report it as a fault of this program."
                )
        if args.int8:
            out = part.with_suffix(f".int8{part.suffix}")
            quantize_int8(part, out)
            sys.stderr.write(f"{args.out.with_name(out.name)}: {difference(expected[0], run_onnx(out, images)[0])}\n")
    sys.stderr.write(f"use it: --options model.vision.name=onnx model.vision.model={args.out}\n")
