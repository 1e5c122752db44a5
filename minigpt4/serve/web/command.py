"""`minigpt4 demo`: the page."""

import argparse
import logging

from minigpt4.common.command_line import add_serving, credentials, positive
from minigpt4.common.errors import Problems
from minigpt4.common.limits import MAX_SESSIONS, MAX_UPLOAD_MB
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.finding import TINY
from minigpt4.serve.address import bind

logger = logging.getLogger(__name__)


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

    from minigpt4.common.console_log import setup_logger
    from minigpt4.inference.loading import load_engine
    from minigpt4.inference.sessions import Sessions
    from minigpt4.serve.web.handlers import Handlers
    from minigpt4.serve.web.page import ASSETS, build_page
    from minigpt4.serve.web.server import launch

    setup_logger()
    problems = Problems()
    with problems.collect():
        place = bind(args.host, args.port)  # before the minutes that loading can take
    sessions = Sessions(load_engine(config, problems), args.max_sessions, args.max_image_pixels)
    handlers = Handlers(sessions, args.max_upload_mb, config.preprocess.n_frms)
    examples = sorted((ASSETS / config.model.model_type / "examples").glob("*.jpg"))
    page = build_page(handlers, examples, config.model)
    launch(page, place, args.host, args.share, args.auth, args.max_upload_mb, args.max_sessions, args.allowed_hosts)
    logger.info("The page is at %s (Ctrl-C ends it)", page.share_url or page.local_url)
    page.block_thread()
