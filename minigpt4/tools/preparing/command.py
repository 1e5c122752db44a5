"""`minigpt4 prepare-data`: from published files to data that training reads."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.command_line import positive, say
from minigpt4.common.errors import UserError

if TYPE_CHECKING:  # slow to import
    from minigpt4.tools.preparing.checks import Checked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    commands = parser.add_subparsers(dest="what", required=True)
    _add_stage_1(commands)
    align = commands.add_parser("align", help="stage 2: unpack cc_sbu_align, and check it")
    align.add_argument("archive", type=Path, help="cc_sbu_align.zip, or the folder that was unpacked: it is checked")
    align.add_argument("--out", type=Path, help="folder to unpack to (default: the archive's name)")
    align.add_argument("--max-gb", type=positive, default=20, help="most that it may unpack to (default: %(default)s)")
    align.add_argument("--page", type=Path, help="HTML file to write: 20 samples to look at")
    llava = commands.add_parser("llava", help="LLaVA's conversations to records")
    llava.add_argument("file", help="such as llava_instruct_150k.json")
    vqav2 = commands.add_parser("vqav2", help="questions and answers of VQAv2 or OK-VQA to records")
    vqav2.add_argument("questions", type=Path, help="such as v2_OpenEnded_mscoco_train2014_questions.json")
    vqav2.add_argument("annotations", type=Path, help="such as v2_mscoco_train2014_annotations.json")
    vqav2.add_argument(
        "--prompt",
        default="{question}",
        help="what is asked; MiniGPT-v2's begins with [vqa] (default: %(default)s)",
    )
    coco = commands.add_parser("coco", help="captions of COCO to records")
    coco.add_argument("captions", type=Path, help="such as captions_train2017.json or coco_karpathy_train.json")
    for command in (llava, vqav2, coco):
        command.add_argument("--out", type=Path, required=True, help="JSON file to write; of lines, if it is .jsonl")


def _add_stage_1(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    captions = commands.add_parser("captions", help="stage 1: BLIP's captions to what img2dataset downloads")
    captions.add_argument("files", type=Path, nargs="+", metavar="FILE", help="ccs_synthetic_filtered_large.json")
    captions.add_argument("--out", type=Path, required=True, help="folder of Parquet files to write")
    captions.add_argument("--shards", type=Path, help="folder that the pictures are to go to (default: OUT_shards)")
    captions.add_argument("--image-size", type=positive, default=256, help="of the pictures (default: %(default)s)")
    captions.add_argument(
        "--processes", type=positive, default=os.cpu_count(), help="that download (default: %(default)s)"
    )
    captions.add_argument(
        "--distributor",
        choices=["multiprocessing", "pyspark"],
        default="multiprocessing",
        help="processes of this machine, or a Spark cluster (default: %(default)s)",
    )
    check = commands.add_parser("check", help="stage 1: count what is in shards, and why addresses failed")
    check.add_argument("shards", help="as in build_info.storage: a folder, data/{00000..00099}.tar, a URL")
    check.add_argument("--samples", type=positive, metavar="N", help="read the first N of each shard (default: all)")
    check.add_argument("--page", type=Path, help="HTML file to write: 20 samples to look at")
    for key in ("image_keys", "caption_keys"):
        option = f"--{key.replace('_', '-')}"
        check.add_argument(option, nargs="+", metavar="KEY", help=f"build_info.{key}, where it is not the default")


def main(args: argparse.Namespace) -> None:
    """Runs the chosen subcommand; `check` and `align` exit with 1 if there are problems."""
    _COMMANDS[args.what](args)


def _captions(args: argparse.Namespace) -> None:
    from minigpt4.tools.preparing.captions import download_command, write_captions

    shards = args.shards or args.out.with_name(f"{args.out.name}_shards")
    written, skipped = write_captions(args.files, args.out)
    left_out = f", {skipped} without address or caption left out" if skipped else ""
    sys.stderr.write(f"{written} rows are in '{args.out}'{left_out}. Download them (pip install img2dataset):\n")
    say(download_command(args.out, shards, args.image_size, args.processes, args.distributor) + "\n")
    sys.stderr.write(f"then: minigpt4 prepare-data check {shlex.quote(str(shards))}\n")


def _check(args: argparse.Namespace) -> None:
    from minigpt4.config.schema import BuildInfo
    from minigpt4.tools.preparing.checks import check_shards

    keys = {key: value for key in ("image_keys", "caption_keys") if (value := getattr(args, key))}
    _report(check_shards(args.shards, BuildInfo(**keys), args.samples), args.page)


def _align(args: argparse.Namespace) -> None:
    from minigpt4.common.locks import new_folder
    from minigpt4.tools.preparing.archives import unpack
    from minigpt4.tools.preparing.checks import check_align

    folder = args.archive
    if folder.is_dir():
        if args.out:
            raise UserError(f"--out: '{folder}' is a folder already; it is only checked. Leave --out out.")
    else:
        folder = args.out or args.archive.parent / args.archive.name.partition(".")[0]
        with new_folder("--out", folder) as part:
            files = unpack(args.archive, "filter_cap.json", part, args.max_gb * 10**9)
        sys.stderr.write(f"{files} files are in '{folder}'\n")
    _report(check_align(folder), args.page)


def _report(found: "Checked", page: Path | None) -> None:
    from minigpt4.tools.validate_data import write_page

    say(found.text())
    if page:
        write_page(page, found)
    if found.problems:
        sys.exit(1)


def _records(args: argparse.Namespace) -> None:
    from minigpt4.tools.preparing import records

    skipped = records.LeftOut(list)
    if args.what == "llava":
        found = records.llava(args.file, skipped)
    elif args.what == "vqav2":
        found = records.vqav2(args.questions, args.annotations, args.prompt)
    else:
        found = records.coco(args.captions, skipped)
    written = records.write_records(found, args.out)
    say(f"{written} records are in '{args.out}'\n")
    for cause, found_so in sorted(skipped.items(), key=lambda item: -len(item[1])):
        say(f"{len(found_so):8} x left out: {cause}, such as record {found_so[0]}\n")
    say(f"then: minigpt4 validate-data {shlex.quote(str(args.out))} --images FOLDER\n")


_COMMANDS = {"captions": _captions, "check": _check, "align": _align}
_COMMANDS |= dict.fromkeys(("llava", "vqav2", "coco"), _records)
