"""`minigpt4 demo`: the page."""

import argparse

from minigpt4.common.command_line import add_serving, credentials, positive
from minigpt4.common.limits import MAX_SESSIONS, MAX_UPLOAD_MB
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.finding import TINY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, TINY)
    add_serving(parser, port=7860)
    parser.add_argument(
        "--max-sessions",
        type=positive,
        default=MAX_SESSIONS,
        help="visitors whose chat stays in the model's memory; others wait longer, up to four times as many (default: "
        "%(default)s)",
    )
    parser.add_argument("--share", action="store_true", help="open a public gradio link")
    parser.add_argument(
        "--auth",
        type=credentials,
        action="append",
        metavar="USER:PASSWORD",
        help="let only this user in; can be given several times",
    )
    parser.add_argument(
        "--max-upload-mb",
        type=positive,
        default=MAX_UPLOAD_MB,
        help="larger files, and larger requests at all, are refused (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> None:
    """Loads the model and serves the page until Ctrl-C."""
    config = read_config(args)  # wrong configs fail before the slow imports below

    from minigpt4.serve.web.server import serve

    serve(
        config,
        host=args.host,
        port=args.port,
        share=args.share,
        auth=args.auth,
        max_sessions=args.max_sessions,
        max_image_pixels=args.max_image_pixels,
        max_upload_mb=args.max_upload_mb,
        allowed_hosts=args.allowed_hosts,
    )
