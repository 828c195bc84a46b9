"""Reporting checklists, filled in where the files of a run tell: CLAIM and TRIPOD+AI.

CLAIM: Mongan, Moy and Kahn 2020 (42 items), numbered as in the update by Tejani et al. 2024 (44
items). TRIPOD+AI: Collins et al. 2024. The wording is ours and short; the originals decide.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "not known"


@dataclass(frozen=True)
class Item:
    """An item by its number; `earlier`: in CLAIM 2020. `topic`: key of what fills it in."""

    number: str
    section: str
    text: str
    topic: str = ""
    earlier: str = ""


def _items(lines: str) -> list[Item]:
    """One item a line: section | number | earlier number | text | topic."""
    rows = [[cell.strip() for cell in line.split("|")] for line in lines.strip().splitlines()]
    return [Item(number, section, text, topic, earlier)
            for section, number, earlier, text, topic in rows]  # fmt: skip


CLAIM = _items("""
Title and abstract | 1 | 1 | Says that AI is studied, and of which kind | title
Title and abstract | 2 | 2 | Abstract with design, methods, results and conclusion | summary
Introduction | 3 | 3 | Background, and the intended clinical use | use
Introduction | 4 | 4 | Aims and hypotheses | aims
Study design | 5 | 5 | Prospective or retrospective | design
Study design | 6 | 6 | What the study is to achieve | goal
Data | 7 | 7 | Where the data come from | data
Data | 8 | 8 | Who and what was included or excluded | eligibility
Data | 9 | 9 | Preparation of the images | preparation
Data | 10 | 10 | Choice of parts of the data | subset
Data | 11 | 12 | How the data were de-identified | deidentification
Data | 12 | 13 | What was done about missing data | missing
Data | 13 | – | How the images were acquired | acquisition
Reference standard | 14 | 14 | How the labels were obtained | reference
Reference standard | 15 | 15 | Why this reference standard | reference_reason
Reference standard | 16 | 16 | Who labelled, and with what training | annotators
Reference standard | 17 | 17 | How the test images were labelled | annotation
Reference standard | 18 | 18 | Agreement among and within readers | agreement
Partitions | 19 | 20 | How images were assigned to the partitions | partition
Partitions | 20 | 21 | Level at which partitions share nothing | disjoint
Testing data | 21 | 19 | Size of the test, and why | size
Model | 22 | 22 | Architecture, inputs and outputs | model
Model | 23 | 23 | Software and versions | software
Model | 24 | 24 | Initial weights | initial
Training | 25 | 25 | Augmentation, hyperparameters, how it was trained | training
Training | 26 | 26 | How the final model was chosen | selection
Training | 27 | 27 | Ensembling | ensemble
Evaluation | 28 | 28 | Performance metrics | metrics
Evaluation | 29 | 29 | Uncertainty and tests | uncertainty
Evaluation | 30 | 30 | Robustness and sensitivity analyses | robustness
Evaluation | 31 | 31 | Explanations, and how they were checked | explanations
Evaluation | 32 | – | Evaluation on internal data | internal
Evaluation | 33 | 32 | Test on external data | external
Evaluation | 34 | 40 | Registration of the trial | registration
Results: data | 35 | 33 | Numbers included and excluded | flow
Results: data | 36 | 34 | Patients' characteristics in each partition | characteristics
Results: performance | 37 | 35 | Performance, with uncertainty, on all partitions | performance
Results: performance | 38 | 36 | Diagnostic accuracy, and how precise it is | accuracy
Results: performance | 39 | 37 | What was wrongly classified, and why | errors
Discussion | 40 | 38 | Limitations | limitations
Discussion | 41 | 39 | What follows for practice | implications
Other | 42 | 41 | Where the full protocol is | protocol
Other | 43 | – | Access to software, model and data | access
Other | 44 | 42 | Funding, and the funders' role | funding
""")

TRIPOD_AI = _items("""
Title and abstract | 1 | | Names prediction model, population and outcome | title
Title and abstract | 2 | | Abstract by its own checklist | summary
Introduction | 3a | | Clinical context, reasons, existing models | context
Introduction | 3b | | Population, place in care, users | use
Introduction | 3c | | Known health inequalities | inequalities
Introduction | 4 | | Aims: development, evaluation or both | goal
Methods: data | 5a | | Sources of the data, and how representative | data
Methods: data | 5b | | Dates of the data | dates
Methods: participants | 6a | | Setting, number and place of centres | setting
Methods: participants | 6b | | Who was eligible | eligibility
Methods: participants | 6c | | Treatments | treatments
Methods: preparation | 7 | | Preparation and quality checks, alike across groups | preparation
Methods: outcome | 8a | | Outcome, when and how it was assessed | reference
Methods: outcome | 8b | | Assessors, where assessment is a judgement | annotators
Methods: outcome | 8c | | Blinding of the assessment | blinding
Methods: predictors | 9a | | Choice of predictors | predictors
Methods: predictors | 9b | | Predictors, how and when measured | acquisition
Methods: predictors | 9c | | Assessors of predictors | predictor_assessors
Methods: sample | 10 | | Sample size, and why | size
Methods: sample | 11 | | Missing data | missing
Methods: analysis | 12a | | Use of the data for development and evaluation | partition
Methods: analysis | 12b | | Treatment of predictors | preparation
Methods: analysis | 12c | | Type of model, building, tuning, internal validation | training
Methods: analysis | 12d | | Differences among clusters, such as hospitals | clusters
Methods: analysis | 12e | | Measures and plots of performance | metrics
Methods: analysis | 12f | | Updating, such as recalibration | updating
Methods: analysis | 12g | | How predictions were computed | prediction
Methods: analysis | 13 | | Class imbalance | imbalance
Methods: analysis | 14 | | Fairness | fairness
Methods: analysis | 15 | | What the model gives out, thresholds | output
Methods: analysis | 16 | | Differences of training and test data | shift
Methods: analysis | 17 | | Ethics approval and consent | ethics
Open science | 18a | | Funding | funding
Open science | 18b | | Conflicts of interest | conflicts
Open science | 18c | | Protocol | protocol
Open science | 18d | | Registration | registration
Open science | 18e | | Access to the data | data_access
Open science | 18f | | Access to the code | access
Patients | 19 | | Involvement of patients and the public | involvement
Results: participants | 20a | | Flow, with and without the outcome | flow
Results: participants | 20b | | Characteristics, overall and by source | characteristics
Results: participants | 20c | | Training and test compared | shift
Results: development | 21 | | Numbers and events in each analysis | events
Results: model | 22 | | The full model, to use it and to test it | model_access
Results: performance | 23a | | Performance with intervals, also of subgroups | performance
Results: performance | 23b | | Performance by cluster | clusters
Results: updating | 24 | | What updating gave | updating
Discussion | 25 | | Interpretation, with fairness, beside other studies | interpretation
Discussion | 26 | | Limitations | limitations
Discussion | 27a | | Poor or missing input in use | poor_input
Discussion | 27b | | What users must do and know | users
Discussion | 27c | | Next steps | next
""")


def fill_in(items: list[Item], answers: dict[str, str]) -> list[tuple[Item, str]]:
    """Each item with what is known of it, or "not known"."""
    return [(item, answers.get(item.topic) or UNKNOWN) for item in items]


def answers_of(run) -> dict[str, str]:
    """Topic -> what the files of a run (`report.Run`) tell, in a sentence; topics that they tell
    nothing of are missing. What only the people behind a study know is never guessed."""
    results, recipe, training = run.results, run.recipe or {}, run.training or {}
    point, calibration = results.get("operating_point"), results.get("calibration")
    subgroups = ", ".join(results.get("subgroups") or {})
    answers = {
        "title": "This report: deep learning (a vision transformer) on images.",
        "summary": "The summary of this report.",
        "goal": f"Development of a classifier and its evaluation; {_held_out(results)}.",
        "size": f"{results['num_test_images']} test images"
        + (f" of {results['num_test_groups']} groups" if results.get("num_test_groups") else "")
        + "; why so many: not known.",
        "metrics": "Accuracy, sensitivity, specificity, ROC AUC, average precision, Brier score, "
        "log loss, ECE and others; ROC, precision-recall and reliability curves.",
        "uncertainty": results.get("interval_method"),
        "internal": f"Split “{results.get('test_split', 'test')}”; {_held_out(results)}.",
        "performance": "Section Results; of the test split, with intervals.",
        "accuracy": "Section Results.",
        "output": "Probabilities of the classes "
        + ", ".join(results.get("labels") or [])
        + (f"; threshold {point['threshold']:.3f} by “{point['rule']}” on {point['fitted_on']}."
           if point else "; the most probable class is decided for."),
        "prediction": "Softmax of the model's logits"
        + (f", temperature {calibration['used']['temperature']:.3f}." if calibration else "."),
        "software": ", ".join(
            f"{name} {version}"
            for name, version in (results.get("versions") or {}).items()
            if name != "finished"
        ),
        "access": "Code: the package sssd_hf (Apache-2.0); the command is in section Versions and "
        "command. Model and data: not known.",
    }  # fmt: skip
    if recipe:
        answers["data"] = f"{recipe.get('data_dir') or recipe.get('dataset_name')}; what it is and "
        answers["data"] += "whose: not known."
        subset = recipe.get("max_train_samples")
        answers["subset"] = (
            f"{subset} training images at most." if subset else "All images were used."
        )
        start = recipe.get("model_name_or_path")
        answers["initial"] = f"The checkpoint {start}." if start else "Random."
        answers["training"] = "; ".join(run.training_facts()) + "."
        weights, balanced = recipe.get("class_weights"), recipe.get("balanced_sampling")
        answers["imbalance"] = (
            f"class_weights {weights or 'none'}; balanced_sampling {bool(balanced)}."
        )
    if run.split_counts:
        counts = run.counts_sentence()
        answers["partition"] = f"{run.split_rule()} {counts}"
        answers["flow"] = f"{counts} Excluded: not known."
        answers["events"] = f"{counts} Evaluated by class: " + ", ".join(
            f"{name} {row['support']}" for name, row in (results.get("per_class") or {}).items()
        )
    if results.get("group_column_name"):
        answers["disjoint"] = f"{run.together_sentence()} {run.leakage_sentence()}"
    if training.get("chosen_by"):
        answers["selection"] = run.selection_sentence()
    if run.config:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size",
                 "patch_size", "num_channels")  # fmt: skip
        told = ", ".join(f"{name} {run.config[name]}" for name in names if name in run.config)
        answers["model"] = f"{' '.join(run.config.get('architectures') or [])}: {told}."
        prepared = (run.config.get("preparation") or {}).items()
        answers["preparation"] = "; ".join(
            [f"{name.replace('_', ' ')} {value}" for name, value in prepared]
            + ["resized to the model's input (bilinear), rescaled and normalised."]
        )
        answers["ensemble"] = "No ensemble: one model."
        answers["model_access"] = "config.json and weights of the model's folder."
    if run.model_dir and (run.model_dir / "ensemble.json").is_file():
        answers["ensemble"] = "The mean of several models; ensemble.json of the model names them."
    if subgroups:
        answers["robustness"] = answers["fairness"] = f"Metrics by {subgroups}: section Subgroups."
        answers["clusters"] = f"Metrics by {subgroups}; which of them is a centre is not known."
        answers["characteristics"] = f"Of the test split, by {subgroups}; others not known."
    if calibration:
        answers["updating"] = (
            f"Temperature scaling on {calibration['used']['fitted_on']}: section Calibration."
        )
    if run.has_figure("errors.png"):
        answers["errors"] = "The most confident errors are shown: section Explanations."
    if run.has_figure("examples.png") or run.has_figure("errors.png"):
        answers["explanations"] = "Overlays: section Explanations."
        if run.overlays_sentence():
            answers["explanations"] += f" {run.overlays_sentence()}"
        if run.explanations:
            answers["explanations"] += " Their check is there too."
    if run.audit:
        answers["shift"] = "Images by class and split: section Data audit."
        answers["limitations"] = "In part: the audit's findings, and what this report lacks."
    if run.num_bad_files is not None:
        answers["missing"] = f"{run.num_bad_files} files could not be read and were left out."
    return {topic: text for topic, text in answers.items() if text}


def _held_out(results) -> str:
    """Whether the model's training left the test images alone, as far as its splits tell."""
    if results.get("other_data"):
        return "the test images were said to be of other data than the training's (not checked)"
    seen = results.get("num_test_images_seen")
    if seen is None:
        return "whether the test images were held out is not known"
    if seen:
        return f"{seen} of {results['num_test_images']} test images were used in training"
    if pretrained := results.get("num_test_images_pretrained_on"):
        return (
            f"{pretrained} of {results['num_test_images']} test images were used in the training "
            "that this one started from"
        )
    if results.get("num_test_images_pretrained_on") is None:
        return (
            "the test images were held out of this training; whether the checkpoint it started "
            "from had seen them is not known"
        )
    return "the test images were held out"
