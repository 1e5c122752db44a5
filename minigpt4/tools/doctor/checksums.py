"""Doctor's lines about weight files whose sha256 is published."""

from pathlib import Path

from minigpt4.models.published import cached_file, published_weights
from minigpt4.models.tensor_files import weight_files
from minigpt4.tools.doctor.environment import Line
from minigpt4.tools.fetch.downloading import sha256_of

_LARGE = 3e9  # bytes of a file that takes long to read


def checksum_lines(file: Path, large: bool, cache_root: str) -> list[Line]:
    """Whether files that are published under this name have the sha256 that is published.

    Names such as pytorch_model.bin are everyone's: files of the hub are compared in its cache alone.
    """
    found = []
    for own in weight_files(file) if file.is_dir() else [file]:
        known = [w for w in published_weights().values() if own.name in w.sha256]
        fitting = [w for w in known if (_cached_as(w.hub) in own.absolute().parts if w.hub else file.is_file())]
        for weights in fitting[:1]:
            if own.stat().st_size > _LARGE and not large:
                found.append(Line("off", f"{own.name}: sha256 not compared; with --checksums it is"))
            elif sha256_of(own) == weights.sha256[own.name]:
                found.append(Line("ok", f"{own.name}: has the sha256 that is published"))
            elif weights.hub or own.absolute() == cached_file(weights.urls[0], cache_root).absolute():
                cure = f"Delete it, then: minigpt4 fetch {weights.name} --download"
                found.append(Line("red", f"{own}: has another sha256 than is published: damaged, or changed. {cure}"))
            else:  # it may be the user's own
                text = f"{own}: has another sha256 than is published for {weights.name}: damaged, changed, or another"
                found.append(Line("warn", f"{text} file of that name"))
    return found


def _cached_as(hub_id: str) -> str:
    return "models--" + hub_id.replace("/", "--")
