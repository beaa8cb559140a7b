"""The in-batch softmax in which a positive must win by a margin."""

from __future__ import annotations

from typing import Any

import keras

from towers.losses.in_batch_softmax import InBatchSoftmax


@keras.saving.register_keras_serializable(package="towers")
class AdditiveMarginSoftmax(InBatchSoftmax):
    """`InBatchSoftmax` in which the positives' cosines count for `margin` less than they are.

    With cosines `c`, temperature `t`, `s[i, j] = (c[i, j] - margin) / t` and the negatives `N(i)`,
    the term of positive `j` becomes

        -log(e^s[i, j] / (e^s[i, j] + sum_{n in N(i)} e^(c[i, n] / t)))

    so a pair that already wins still learns until it wins by the margin. `margin=0` is
    `InBatchSoftmax`.

    When to use it:
        With mined hard negatives, which stand so close to the positive that the plain softmax is
        content with a win by a hair. A triplet loss has the same aim, but learns from one negative
        a query and only from those inside the margin: in a batch of few pairs most of its terms
        are 0. Here every candidate takes part, the nearest ones most, and masks, several positives
        and temperature are those of the other losses.

    References:
        - Wang et al. 2018, Additive Margin Softmax for Face Verification,
          https://arxiv.org/abs/1801.05599
        - Yang et al. 2019, Improving Multilingual Sentence Embedding using Bi-directional Dual
          Encoder with Additive Margin Softmax, https://arxiv.org/abs/1902.08564 (in-batch, both
          directions)

    Args:
        margin: 0 or more; in units of the cosine.
        symmetric: as of `InBatchSoftmax`; the margin holds in both directions.
        multi_positive: as of `InBatchSoftmax`.

    Raises:
        ValueError: the margin is below 0.
    """

    def __init__(
        self, margin: float = 0.1, *, symmetric: bool = False, multi_positive: bool = True
    ) -> None:
        super().__init__(symmetric=symmetric, multi_positive=multi_positive)
        if margin < 0:
            raise ValueError(f"margin must be 0 or more; got {margin}")
        self.margin = margin

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"margin": self.margin, **super().get_config()}
