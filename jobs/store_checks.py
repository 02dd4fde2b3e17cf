"""Is this the store of these images? What every command asks that reads one."""

from collections.abc import Iterable

from data_schemas.manifest import NOUNS, ImageKey, Kind, StorePart
from pipeline.data.coco import CocoImage
from pipeline.errors import InputError, StoreMismatchError
from pipeline.stores.index import StoreIndex


def image_keys(images: Iterable[CocoImage]) -> tuple[ImageKey, ...]:
    """Images as the plan of a store knows them."""
    return tuple(ImageKey(image.image_id, image.file_name, image.height, image.width) for image in images)


def refuse_other_images(uri: str, kind: Kind, images: Iterable[ImageKey]) -> StorePart:
    """A store of other images may well have the same ids.

    Args:
        uri: The store.
        kind: Which artefact of it.
        images: All must be in the store, with the same name and size; it may hold more. Their proposals must all be
            computed: a training would end where the first one is missing.

    Returns:
        What the manifest says of this artefact.

    Raises:
        InputError: no store, no such artefact in it, or proposals that are not computed yet.
        StoreMismatchError: a store of other images.
        StoreDamagedError: its manifest, its list of images or a record is damaged.
    """
    index, asked = StoreIndex.open(uri, kind), list(images)
    stored = index.images
    other = [image for image in asked if stored.get(image.image_id) != image]
    if other:
        raise StoreMismatchError(
            f"the {NOUNS[kind]} of this store are not of these images",
            where=uri,
            expected=f"image {other[0].image_id}: {other[0].file_name}, {other[0].height} x {other[0].width}",
            got=f"{stored.get(other[0].image_id) or 'no such image'}; {len(other)} of {len(asked)} images differ",
            fix="run precompute-sam on these images, and name its store",
        )
    if kind == "proposals":
        tried = {*index.image_ids, *index.quarantined}
        left = [image for image in asked if image.image_id not in tried]
        if left:
            raise InputError(
                "the library is not finished",
                where=uri,
                expected=f"proposals of {len(asked)} images",
                got=f"{len(left)} are not computed yet, such as image {left[0].image_id}",
                fix="run the same s4m-pipeline precompute-sam CONFIG again: it does only what is missing",
            )
    return index.part
