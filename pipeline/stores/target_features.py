"""Are these the targets of the features that a training asks for?"""

from pathlib import Path

from data_schemas.manifest import StoreIdentity
from data_schemas.similarity import features_of
from pipeline.errors import StoreMismatchError


def refuse_other_features(identity: StoreIdentity, features: str, *, where: str | Path) -> None:
    """Check that the rows of a similarity store compare what they are expected to.

    Args:
        identity: Of the store.
        features: decoder | encoder, as the training's config says.
        where: The store.

    Raises:
        StoreMismatchError: they compare the other ones.
    """
    stored = features_of(identity.settings)
    if stored != features:
        raise StoreMismatchError(
            "the similarity targets were made from other features of SAM",
            where=where,
            expected=f"{features} (features of LoadSimilarityTargets)",
            got=f"{stored} (similarity.features when they were made)",
            fix=f"set features={stored!r} there, or run precompute-sam with --cfg-options "
            f"similarity.features={features} and another --work-dir, and name that store",
        )
