"""AdaLoRA's budget: ranks are taken from where they matter least, while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from towers.adaptation.adalora import Triplets
from training.whole_batch_adamw import WholeBatchAdamW

_START, _END = 0.1, 0.3  # shares of the steps before the budget begins to fall, and after it has
_SMOOTHING = 0.85  # of the importance and of its uncertainty; the paper's beta_1 and beta_2


class RankBudgetAdamW(WholeBatchAdamW):
    """AdamW that sets all but the most important triplets' values to zero after every step.

    A triplet is one column of ``left``, one entry of ``values`` and one row of ``right``. The
    importance of a weight is the smoothed ``|w * gradient|`` times its smoothed deviation, that of
    a triplet its value's plus the means over column and row. What was set to zero goes on getting
    gradients and may come back.

    It is an optimizer because that is where gradients are to be had in `fit`, and because its
    state is saved with the model's weights, so that a killed run goes on exactly.

    Reference: Zhang et al. 2023, "AdaLoRA", equations 7 to 13.

    Args:
        triplets: the weights that share the budget.
        budget: triplets that are left in the end, in all layers and kernels together.
        steps: number of steps in all.
        **kwargs: as in `keras.optimizers.AdamW`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        triplets: Sequence[Triplets],
        budget: int,
        steps: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        # In a function, so that Keras does not take the model's weights for the optimizer's own.
        self._triplets = lambda: triplets
        self.final_budget, self.steps = budget, steps

    def build(self, var_list: list[keras.Variable]) -> None:
        """Makes the state."""
        if self.built:
            return
        super().build(var_list)
        self._importance, self._uncertainty = self.add_optimizer_variables(
            [weight for triplet in self._triplets() for weight in triplet],
            ["importance", "uncertainty"],
        )

    def apply_whole(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """One step; see the class."""
        variables = (
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        gradient_of = {id(v): g for v, g in zip(variables, grads, strict=True)}
        scores = self._observe(gradient_of)
        budget = self.budget(self.iterations)
        super().apply_whole(grads, trainable_variables)
        ranked = ops.sort(ops.concatenate([ops.reshape(score, (-1,)) for score in scores]))
        place = ops.shape(ranked)[0] - ops.cast(budget, "int32")
        threshold = ops.take(ranked, place)
        for triplet, score in zip(self._triplets(), scores, strict=True):
            values = ops.convert_to_tensor(triplet.values)
            triplet.values.assign(ops.where(score >= threshold, values, ops.zeros_like(values)))

    def budget(self, step: Any) -> Any:
        """Number of triplets that may be left after a step (equation 12), a float without rest."""
        first = sum(_count(triplet) for triplet in self._triplets())
        begin, end = _START * self.steps, (1.0 - _END) * self.steps
        step = ops.cast(ops.convert_to_tensor(step), "float32")
        left = 1.0 - ops.clip((step - begin) / max(end - begin, 1.0), 0.0, 1.0)
        return ops.round(self.final_budget + (first - self.final_budget) * left**3)

    def _observe(self, gradient_of: dict[int, Any]) -> list[Any]:
        """Takes a step's gradients in; the scores of triplets, ``[layers, rank]`` each."""
        scores = []
        state = iter(zip(self._importance, self._uncertainty, strict=True))
        for triplet in self._triplets():
            parts = []
            for weight in triplet:
                importance, uncertainty = next(state)
                now = ops.abs(ops.convert_to_tensor(weight) * gradient_of[id(weight)])
                mean = _SMOOTHING * importance + (1 - _SMOOTHING) * now
                deviation = _SMOOTHING * uncertainty + (1 - _SMOOTHING) * ops.abs(now - mean)
                importance.assign(mean)
                uncertainty.assign(deviation)
                parts.append(mean * deviation)
            left, values, right = parts
            scores.append(values + ops.mean(left, axis=1) + ops.mean(right, axis=2))
        return scores


def _count(triplet: Triplets) -> int:
    layers, rank = triplet.values.shape
    return int(layers * rank)
