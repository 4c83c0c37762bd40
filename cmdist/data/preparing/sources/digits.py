"""scikit-learn's digits: the data set of the demo."""

import numpy as np

from cmdist.data.preparing.sources.base import Source


def digits() -> Source:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 grey, ten classes."""
    from sklearn.datasets import load_digits  # here, since it takes seconds to import and only preparation needs it

    data = load_digits()
    images = np.round(data.images[..., None] * (255 / 16)).astype(np.uint8)  # (n, 8, 8, 1), 0..16 -> 0..255
    return Source(
        name="digits",
        image_size=8,
        channels=1,
        transform="round(v * 255 / 16)",
        count=len(images),
        image=images.__getitem__,
        labels=data.target.astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )
