"""Chat about images in a web page: python demo.py [--cfg-path eval_configs/minigpt4_tiny_eval.yaml]"""

from minigpt4.common.cli import config_parser, run


def main() -> None:
    parser = config_parser("Chat about images in a web page.", default="eval_configs/minigpt4_tiny_eval.yaml")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="open a public gradio link")
    args = parser.parse_args()

    from minigpt4.common.config import load_config
    from minigpt4.common.config_names import check_names

    config = load_config(args.cfg_path, args.options)  # wrong configs fail before the slow imports below
    check_names(config)

    from minigpt4.serve.web import serve

    serve(config, host=args.host, port=args.port, share=args.share)


if __name__ == "__main__":
    run(main)
