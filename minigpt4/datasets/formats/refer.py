"""Where something is, and what is somewhere: formats refer and identify (RefCOCO's files) and visual_genome."""

import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, Size, area_of, box_text
from minigpt4.datasets.formats.values import checked, listed, text_of, value_of, wrong

_LARGEST_REGION = 16384  # pixels: larger regions of Visual Genome are whole scenes


@registry.register_format("refer")
class ReferDataset(AnnotatedDataset):
    """A folder with `DATASET/refs(SPLITBY).p` and `DATASET/instances.json` (RefCOCO: Yu et al. 2016).

    Of each reference of the split one of its sentences is drawn; the answer is its box.
    """

    def read(self) -> list[Any]:
        for key in ("dataset", "splitBy"):
            if not getattr(self.info, key):
                raise UserError(
                    f"{self.key.rpartition('.')[0]}.{key}: not set. '{self.folder}' holds DATASET/refs(SPLITBY).p and "
                    "DATASET/instances.json, such as refcoco/refs(unc).p; set it as they are named."
                )
        # the original's names for the inverse task begin with this
        folder = self.folder / str(self.info.dataset).removeprefix("inv")
        self.file_of_refs = folder / f"refs({self.info.splitBy}).p"
        annotations = {_number(own, "id"): own for own in listed(self.key, folder / "instances.json")}
        refs = load_refs(self.key, self.file_of_refs)
        last = {_number(ref, "ref_id"): ref for ref in refs}  # of two with one id the later one counts for both
        return [
            last[_number(ref, "ref_id")]
            | {"split": ref.get("split"), "annotation": annotations.get(_number(ref, "ann_id"))}
            for ref in refs
        ]

    def used(self, row: Any) -> bool:
        value_of(row, "ref_id", int)
        return text_of(row, "split") == self.split

    def place(self, row: Any, index: int) -> str:
        return f"{self.file_of_refs}: ref_id {row.get('ref_id')}"

    def picture(self, row: Any) -> str:
        return f"COCO_train2014_{value_of(row, 'image_id', int):012}.jpg"

    def name(self, row: Any) -> Any:
        return row["image_id"]

    def asked(self, row: Any, size: Size) -> Asked:
        sentences, box = self._of(row, size)
        return Asked(sentences, {box: 1})

    def _of(self, row: Any, size: Size) -> tuple[list[str], str]:
        """The sentences of a reference, and its box."""
        if row["annotation"] is None:
            raise wrong(f"instances.json has no annotation of ann_id {value_of(row, 'ann_id', int)}")
        sentences = [self.text_processor(text_of(own, "raw")) for own in value_of(row, "sentences", list)]
        if not sentences:
            raise wrong("key 'sentences' is []; expected at least one")
        return sentences, box_text(row["annotation"].get("bbox"), size())


@registry.register_format("identify")
class IdentifyDataset(ReferDataset):
    """The same files the other way round: of a box, one of the sentences is the answer."""

    def asked(self, row: Any, size: Size) -> Asked:
        sentences, box = self._of(row, size)
        return Asked([box], Counter(sentences))


class Region(NamedTuple):
    """A region of Visual Genome as its files have it, which may be damaged."""

    image: int | None
    url: Any
    number: int | None
    phrase: Any
    box: tuple[Any, ...]  # x, y, width, height in pixels


@registry.register_format("visual_genome")
class VisualGenomeDataset(AnnotatedDataset):
    """A folder with `region_descriptions.json`, `image_data.json` and the pictures (Krishna et al. 2016).

    Regions of fewer than 16384 pixels; the answer is the box.
    """

    def read(self) -> list[Any]:
        images = {}
        for own in listed(self.key, self.folder / "image_data.json"):
            images[_number(own, "image_id", "id")] = own.get("url") if isinstance(own, dict) else None
        rows = []
        for picture in listed(self.key, self.folder / "region_descriptions.json"):
            number = _number(picture, "image_id", "id")
            regions = picture.get("regions") if isinstance(picture, dict) else None
            # of a damaged entry there is one sample, to be named
            for region in regions if isinstance(regions, list) else [None]:
                own = region if isinstance(region, dict) else {}
                box = tuple(own.get(side) for side in ("x", "y", "width", "height"))
                region_id = _number(own, "region_id", "id")
                rows.append(Region(number, images.get(number), region_id, own.get("phrase"), box))
        return rows

    def used(self, row: Region) -> bool:
        return area_of(row.box) < _LARGEST_REGION

    def place(self, row: Region, index: int) -> str:
        return f"{self.folder / 'region_descriptions.json'}: region_id {row.number} of image {row.image}"

    @property
    def pictures(self) -> Path:
        return Path(self.info.images) if self.info.images else self.folder

    def picture(self, row: Region) -> str:
        url = checked(row.url, f"the url of image {row.image} in image_data.json", str)
        return "/".join(url.split("/")[-2:])

    def name(self, row: Region) -> Any:
        return row.image

    def asked(self, row: Region, size: Size) -> Asked:
        phrase = checked(row.phrase, "key 'phrase'", str)
        return Asked([self.text_processor(phrase)], {box_text(row.box, size()): 1})


def _number(entry: Any, *names: str) -> int | None:
    """The id below the first of these keys that is there; None of a damaged entry."""
    found = next((entry[name] for name in names if name in entry), None) if isinstance(entry, dict) else None
    return found if isinstance(found, int) else None


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
        raise UserError(f"{key}: '{file}' is not a readable RefCOCO pickle ({error}). Download it again.") from None
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{key}: '{file}' holds no list of references. Download it again.")
    return refs
