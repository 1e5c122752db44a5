"""What docs/security.md promises of the source: nothing unpickles, and nothing makes code of text."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("minigpt4/**/*.py")]
PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUN_TEXT = {"eval", "exec", "compile", "__import__"}
# webdataset's own pipelines decode .pyd, .pickle and .pth by unpickling
UNPICKLE = {"read_pickle", "unsafe_load", "full_load", "WebDataset", "DataPipeline", "autodecode"}


def unsafe(source: str) -> list[str]:
    """Each place that may run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        found += [n for n in names if n.split(".")[0] in PICKLES and n != "pickle.UnpicklingError"]
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                name in RUN_TEXT
                or name.rpartition(".")[2] in UNPICKLE
                or name == "yaml.load"
                or (name == "torch.load" and given.get("weights_only") != "True")
                or given.get("weights_only") == "False"
                or given.get("trust_remote_code") == "True"
                or "allow_pickle" in given
            ):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "eval(text)",
        "wds.WebDataset(f)",
        "AutoConfig.from_pretrained(f, trust_remote_code=True)",
        "yaml.load(f)",
    ],
)
def test_what_is_looked_for_is_found(source):
    assert unsafe(source)


@pytest.mark.parametrize("source", ["torch.load(f, weights_only=True)", "model.eval()", "OmegaConf.load(f)"])
def test_what_is_safe_is_not(source):
    assert not unsafe(source)


@pytest.mark.slow
def test_nothing_in_the_source_unpickles_or_runs_text():
    assert len(SOURCES) > 100
    found = {str(file.relative_to(ROOT)): unsafe(file.read_text("utf-8")) for file in SOURCES}
    # the server's own calls, to a process that gives nothing back but JSON and pixels
    assert {name: places for name, places in found.items() if places} == {
        "minigpt4/datasets/formats/refer.py": ["pickle"],  # by an unpickler that refuses every class and function
        "minigpt4/serve/picture_decoding.py": ["pickle"],
        "minigpt4/tiny/data_v2.py": ["pickle"],  # which writes plain values
    }
