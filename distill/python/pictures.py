"""Pictures of results in notebooks."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

SHOWN = 512  # pixels


def ids_html(section: NDArray[np.integer], caption: str) -> str:
    """Return a figure of the ids of a section (H, W), each in its colour, at most 512 pixels a side."""
    from matplotlib.image import imsave

    from viz.style import label_colours

    step = -(-max(section.shape) // SHOWN)
    ids, places = np.unique(section[::step, ::step], return_inverse=True)
    image = BytesIO()
    imsave(image, label_colours(ids)[places.reshape(section[::step, ::step].shape)], format="png")
    data = b64encode(image.getvalue()).decode("ascii")
    text = escape(caption)
    shown = f'<img src="data:image/png;base64,{data}" alt="{text}">'
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"
