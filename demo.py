"""Chat about images in a web page: python demo.py [--cfg-path eval_configs/minigpt4_tiny_eval.yaml]"""

from minigpt4.common.command_line import add_serving, config_parser, credentials, positive, run
from minigpt4.common.limits import MAX_SESSIONS, MAX_UPLOAD_MB
from minigpt4.serve.loading import DEFAULT_CONFIG, read_config


def main() -> None:
    parser = config_parser("Chat about images in a web page.", default=DEFAULT_CONFIG)
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
    args = parser.parse_args()

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


if __name__ == "__main__":
    run(main)
