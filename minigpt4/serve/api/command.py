"""`minigpt4 serve`: the HTTP API."""

import argparse
import logging
import os
from importlib.util import find_spec

from minigpt4.common.command_line import add_serving, host_name, positive
from minigpt4.common.errors import Problems, UserError
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.finding import TINY
from minigpt4.serve.address import bind, in_url, known_hosts

logger = logging.getLogger(__name__)

_LOCAL = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, TINY)
    add_serving(parser, port=8000)
    parser.add_argument("--model-name", help="the model's name in requests (default: arch-model_type of the config)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("MINIGPT4_API_KEY", ""),
        help="refuse requests without it; others on this machine can read it here, not in $MINIGPT4_API_KEY",
    )
    parser.add_argument("--max-batch", type=positive, default=8, help="most answers at once (default: %(default)s)")
    parser.add_argument(
        "--queue", type=positive, default=64, help="most answers that wait; then it says 429 (default: %(default)s)"
    )
    parser.add_argument("--max-body-mb", type=float, default=20.0, help="of one request (default: %(default)s)")
    parser.add_argument(
        "--allow-remote-images",
        type=host_name,
        nargs="+",
        default=[],
        metavar="HOST",
        help="fetch pictures of http(s) URLs of these hosts, e.g. upload.wikimedia.org; '*.example.com' is every host "
        "below example.com, '*' any (a risk: strangers choose what this machine asks for)",
    )


def main(args: argparse.Namespace) -> None:
    """Loads the model and serves until Ctrl-C."""
    config = read_config(args)  # wrong configs fail before the slow imports below
    for package in ("openai", "prometheus_client", "uvicorn"):
        if find_spec(package) is None:
            raise UserError(f"serving needs {package}. Install it: pip install 'minigpt4[serve]'")

    from minigpt4.common.console_log import setup_logger
    from minigpt4.inference.loading import load_engine
    from minigpt4.serve.api.routes import build_app
    from minigpt4.serve.api.service import Limits, Service
    from minigpt4.serve.http import Server

    setup_logger()
    problems = Problems()
    with problems.collect():
        limits = Limits(
            max_batch=args.max_batch,
            queue=args.queue,
            max_image_pixels=args.max_image_pixels,
            max_body_mb=args.max_body_mb,
            remote_images=tuple(args.allow_remote_images),
        )
    with problems.collect():
        place = bind(args.host, args.port)
    engine = load_engine(config, problems)
    name = args.model_name or f"{config.model.arch}-{config.model.model_type}"
    service = Service(engine, name, limits)
    app = build_app(service, args.api_key, known_hosts(place, args.host, args.allowed_hosts))
    if args.host not in _LOCAL and not args.api_key:
        logger.warning("--host %s: everyone who reaches this machine can ask. Set MINIGPT4_API_KEY.", args.host)
    host, port = place.getsockname()[:2]
    place.listen()  # a client that reads the next line may ask before the server accepts
    logger.info("%s answers at http://%s:%s/v1 (Ctrl-C ends it)", name, in_url(host), port)
    Server(app, place).run()
