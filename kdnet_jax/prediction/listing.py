"""What a network segments, for other programs: `predict --list`."""

from kdnet_jax.core import colours, typed
from kdnet_jax.data.sources import labels
from kdnet_jax.prediction import ensembles


def of_ensemble(ensemble: ensembles.Ensemble, convention: str) -> typed.Json:
    """Returns the inputs, classes and regions of networks that segment together, as JSON.

    Args:
        ensemble: the networks.
        convention: label values of its masks.

    Returns:
        `classes`: those of the masks, with value, name and colour, without the background;
        `regions`: what volumes and scores are of, each with the values of its classes.
    """
    task = ensemble.head.task
    names = labels.value_names(convention, task)
    value_of = {name: value for value, name in names.items()}
    return {
        "task": task.name,
        "title": task.title or task.name,
        "input": list(ensemble.modalities),
        "file_ending": task.file_ending,
        "labels": convention,
        "classes": [
            {"value": value, "name": name, "colour": colours.at(place)}
            for place, (value, name) in enumerate(names.items())
        ],
        "regions": [
            {
                "name": region.name,
                "description": region.description,
                "values": [value_of[task.classes[member]] for member in region.members],
            }
            for region in task.regions
        ],
        "networks": [
            {
                "folder": str(run.folder),
                "role": run.model.role,
                "step": run.step,
                "parameters_sha256": run.params_hash,
                "decision": run.model.decision,
            }
            for run in ensemble.members
        ],
    }
