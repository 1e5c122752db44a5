"""Where something is, and what is somewhere: formats refer and identify (RefCOCO's files) and visual_genome."""

import io
import pickle
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, box_text, load_json

_LARGEST_REGION = 16384  # pixels: larger regions of Visual Genome are whole scenes


@registry.register_format("refer")
class ReferDataset(AnnotatedDataset):
    """A folder with `DATASET/refs(SPLITBY).p` and `DATASET/instances.json` (RefCOCO: Yu et al. 2016).

    Of each reference one of its sentences is drawn; the answer is its box.
    """

    def read(self) -> list[Any]:
        # the original's names for the inverse task begin with this
        folder = self.files[0] / str(self.info.dataset).removeprefix("inv")
        boxes = {own["id"]: own["bbox"] for own in load_json(self.key, folder / "instances.json")["annotations"]}
        refs = load_refs(self.key, folder / f"refs({self.info.splitBy}).p")
        last = {ref["ref_id"]: ref for ref in refs}  # of two with one id the later one counts for both
        used = [last[ref["ref_id"]] for ref in refs if ref["split"] == "train"]
        return [ref | {"bbox": boxes.get(ref["ann_id"])} for ref in used]

    def picture(self, row: Any) -> str:
        return f"COCO_train2014_{row['image_id']:012}.jpg"

    def name(self, row: Any) -> Any:
        return row["image_id"]

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        sentences, box = self._of(row, size)
        return Asked(sentences, {box: 1})

    def _of(self, row: Any, size: tuple[int, int]) -> tuple[list[str], str]:
        """The sentences of a reference, and its box."""
        if row["bbox"] is None:
            raise ValueError(f"instances.json has no annotation {row['ann_id']}")
        sentences = [self.text_processor(sentence["raw"]) for sentence in row["sentences"]]
        if not sentences:
            raise ValueError("it has no sentences")
        return sentences, box_text(row["bbox"], size)


@registry.register_format("identify")
class IdentifyDataset(ReferDataset):
    """The same files the other way round: of a box, one of the sentences is the answer."""

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        sentences, box = self._of(row, size)
        counts = dict.fromkeys(sentences, 0.0)
        for sentence in sentences:
            counts[sentence] += 1
        return Asked([box], counts)


@registry.register_format("visual_genome")
class VisualGenomeDataset(AnnotatedDataset):
    """A folder with `region_descriptions.json`, `image_data.json` and the pictures (Krishna et al. 2016).

    Regions of fewer than 16384 pixels; the answer is the box.
    """

    def read(self) -> list[Any]:
        folder = self.files[0]
        images = {_id(own, "image_id"): own["url"] for own in load_json(self.key, folder / "image_data.json")}
        rows = []
        for picture in load_json(self.key, folder / "region_descriptions.json"):
            number = _id(picture, "id") if "image_id" not in picture else picture["image_id"]
            for region in picture["regions"]:
                if region["width"] * region["height"] < _LARGEST_REGION:
                    box = tuple(region[side] for side in ("x", "y", "width", "height"))
                    rows.append((number, images.get(number), region["phrase"], box))
        return rows

    @property
    def pictures(self) -> Path:
        return Path(self.info.images) if self.info.images else self.files[0]

    def picture(self, row: Any) -> str:
        return "/".join(row[1].split("/")[-2:])

    def name(self, row: Any) -> Any:
        return row[0]

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        _, _, phrase, box = row
        return Asked([self.text_processor(phrase)], {box_text(box, size): 1})


def _id(entry: dict[str, Any], name: str) -> Any:
    """Older files call it "id"."""
    return entry[name] if name in entry else entry["id"]


class _Plain(pickle.Unpickler):
    """Reads plain values: a pickle that names a class or a function is refused, so nothing of it can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def load_refs(key: str, file: Path) -> list[dict[str, Any]]:
    """The references of a `refs(*).p`, which Python 2 wrote, without executing anything.

    Raises:
        UserError: it is missing, damaged, or holds more than plain values.
    """
    if not file.is_file():
        found = ", ".join(sorted(own.name for own in file.parent.glob("refs(*).p"))) or "none"
        raise UserError(f"{key}: '{file}' is not a file. Set build_info.dataset and splitBy; there: {found}.")
    try:
        refs = _Plain(io.BytesIO(file.read_bytes()), encoding="utf-8").load()
    except Exception as error:  # whatever a damaged pickle raises
        raise UserError(f"{key}: '{file}' can't be read as references ({error}). Download it again.") from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{key}: '{file}' holds no list of references. Download it again.")
    return refs
