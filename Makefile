# Everything below runs in .venv, made on the first call; PYTHON is the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
# the file of it that is written last
TINY_DATA := dataset/tiny/v2/test/vizwiz.json
NPROC ?= 1

.PHONY: install demo test lint train eval data clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

demo: install
	$(BIN)/python demo.py $(ARGS)

# make test COVERAGE=1 measures coverage too, which takes half as long again
test: lint
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --maxfail 12 \
		$(if $(COVERAGE),--cov=minigpt4 --cov-report=term:skip-covered)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

data: $(TINY_DATA)

$(TINY_DATA): | install
	$(BIN)/minigpt4 tiny data --out dataset/tiny

# a second call trains nothing: it goes on where the first ended. `make clean` or rm -r output begins anew
train: install data
	$(BIN)/torchrun --nproc-per-node $(NPROC) train.py --cfg-path train_configs/minigpt4_tiny_stage1_pretrain.yaml --options run.resume=auto
	$(BIN)/torchrun --nproc-per-node $(NPROC) train.py --cfg-path train_configs/minigpt4_tiny_stage2_finetune.yaml --options run.resume=auto

# the shipped projection, or your own: make eval CKPT=output/minigpt4_tiny_stage2_finetune/checkpoint_best
eval: install data
	$(BIN)/python evaluate.py --cfg-path eval_configs/minigpt4_tiny_benchmark.yaml \
		$(if $(CKPT),--options model.ckpt=$(CKPT) run.output_dir=$(CKPT)/evaluation)

clean:
	rm -rf .venv build *.egg-info output dataset/tiny
