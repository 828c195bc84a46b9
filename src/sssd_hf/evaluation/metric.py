"""The metrics as a module of the `evaluate` library, which needs no network to load."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from sssd_hf.evaluation.details import detailed_metrics, multilabel_details

FROM_PROBABILITIES = ("roc_auc", "average_precision", "log_loss", "brier", "ece")
INPUTS = """
Args:
    predictions: probabilities (images, classes), as lists or arrays. For a multi-label task those
        of each label being present. Or class indices (images,), as other modules in
        `evaluate.combine` want them; then what needs probabilities is NaN.
    references: class indices (images,), or 0 and 1 (images, labels) for a multi-label task.
    details (`bool`, `compute` alone): also return "per_class", "macro", "weighted", "reasons".
Returns:
    a dict of floats; see `sssd_hf.evaluation.metrics.classification_metrics`.
"""


class ClassificationMetrics(evaluate.Metric):
    """All of `classification_metrics` behind `add`, `add_batch`, `compute` and `combine`.

    >>> metric = ClassificationMetrics()
    >>> metric.add_batch(predictions=[[0.9, 0.1], [0.2, 0.8]], references=[0, 1])
    >>> metric.compute()["accuracy"]
    1.0

    `num_labels` is needed only for class indices as predictions, where the last class may be
    absent from them and from the references.
    """

    def __init__(self, num_labels: int | None = None, **kwargs):
        self.num_labels = num_labels
        super().__init__(**kwargs)

    def _info(self):
        index, share = datasets.Value("int64"), datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Classification metrics of binary, multi-class and multi-label tasks.",
            citation="",
            inputs_description=INPUTS,
            features=[
                datasets.Features(predictions=datasets.List(share), references=index),
                datasets.Features(
                    predictions=datasets.List(share), references=datasets.List(index)
                ),
                datasets.Features(predictions=index, references=index),
            ],
        )

    def _compute(self, predictions, references, details: bool = False):
        predictions, references = np.asarray(predictions), np.asarray(references)
        if references.ndim == 2:
            result = multilabel_details(references, predictions)
        elif predictions.ndim == 2:
            result = detailed_metrics(references, predictions)
        else:
            result = self._from_indices(predictions, references)
        overall = result.pop("overall")
        return {**overall, **result} if details else overall

    def _from_indices(self, predictions, references):
        highest = int(max(predictions.max(), references.max()))
        num_labels = max(2, highest + 1, self.num_labels or 0)
        result = detailed_metrics(references, np.eye(num_labels)[predictions])
        parts = {"": result["overall"], "macro/": result["macro"], "weighted/": result["weighted"]}
        parts |= {f"per_class/{name}/": values for name, values in result["per_class"].items()}
        for prefix, values in parts.items():
            for name in set(values) & set(FROM_PROBABILITIES):
                values[name] = float("nan")
                result["reasons"][prefix + name] = "the predictions are class indices"
        return result
