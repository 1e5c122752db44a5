"""Makes the bundled tiny model from nothing: two chains of stages, one process and one thread each."""

import logging
import multiprocessing
from pathlib import Path

import torch

from minigpt4.tiny.pretrain_llm import pretrain_helper, pretrain_llm
from minigpt4.tiny.pretrain_qformer import QFORMER_FILE, pretrain_qformer
from minigpt4.tiny.pretrain_vision import VIT_FILE, pretrain_vit
from minigpt4.tiny.tokenizer import train_tokenizer

CHAINS = (  # of (stage, the file that it writes last)
    [(pretrain_llm, "llm/model.safetensors")],
    [(pretrain_helper, "helper_lm/model.safetensors"), (pretrain_vit, VIT_FILE), (pretrain_qformer, QFORMER_FILE)],
)
READABLE = 0o644


def pretrain(out: Path, seed: int, scale: float) -> None:
    """Writes tokenizer, language model, vision tower and Q-Former into `out`. A finished stage is not run again."""
    if not (out / "llm" / "tokenizer.model").exists():
        train_tokenizer(out / "llm", seed)  # both chains read it
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=run_chain, args=(index, out, seed, scale)) for index in range(len(CHAINS))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"A pretraining chain failed; its traceback is above. Finished stages are kept in {out}.")
    for path in out.rglob("*.safetensors"):  # safetensors writes them for their owner alone
        path.chmod(READABLE)


def run_chain(index: int, out: Path, seed: int, scale: float) -> None:
    """Runs the stages of `CHAINS[index]` one after the other, in this process and on one thread."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # one core per chain; and sums in one order, so that a seed gives the same weights
    for stage, file in CHAINS[index]:
        if not (out / file).exists():
            stage(out, seed, scale, out / "pretrain_log.jsonl")
