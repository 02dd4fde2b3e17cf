"""Proposals that another store has already: a set of images that grew is not segmented again."""

from dataclasses import replace

from data_schemas.manifest import ImageKey, StoreIdentity
from pipeline.errors import ConfigError
from pipeline.stores.files import open_files
from pipeline.stores.proposal_store import ProposalStore


def known_images(uri: str, store: str, identity: StoreIdentity, images: tuple[ImageKey, ...]) -> dict[int, int]:
    """Which images another library has: those of equal name and size, which is all that a store knows of an image.

    Args:
        uri: The other library.
        store: The one that is to be made.
        identity: Of that one; the other must agree in everything but the data set.
        images: Of that one.

    Returns:
        Image id -> id in the other library. Images that were set aside there are not in it.

    Raises:
        ConfigError: Both are the same store.
        PipelineError: There is no such library, it is damaged, or of another SAM or other settings.
    """
    if open_files(uri).uri == open_files(store).uri:
        raise ConfigError(
            "a store cannot be reused for itself",
            where="reuse",
            got=uri,
            fix="name another store (store=DIR, or --work-dir); one that goes on needs no reuse",
        )
    library = ProposalStore.open(uri)
    made_alike = replace(identity, dataset_fingerprint=library.identity.dataset_fingerprint)
    library = ProposalStore.open(uri, expect=made_alike)
    there = {(image.file_name, image.height, image.width): image.image_id for image in library.images()}
    pairs = {image.image_id: there.get((image.file_name, image.height, image.width)) for image in images}
    return {image_id: known for image_id, known in pairs.items() if known is not None}
