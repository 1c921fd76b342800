"""Export of a model: its folder, its card, and the model in other programs' forms."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from kdnet_jax.config import reading
from kdnet_jax.core import checksums, files, provenance, typed
from kdnet_jax.data import splits
from kdnet_jax.data.scans import familiarity
from kdnet_jax.errors import UserError
from kdnet_jax.evaluation import score_files
from kdnet_jax.interop import conversion, foreign, foreign_model, writing
from kdnet_jax.interop.export import artifact, container, hub, model_card, onnx_file, scores
from kdnet_jax.models import adapted, networks, unet
from kdnet_jax.prediction import inference
from kdnet_jax.runs import model as model_lib
from kdnet_jax.runs import model_folder, teachers, trained

CARD, ARTIFACT, ONNX, PYTORCH = "MODEL_CARD.md", "model.jaxexport", "model.onnx", "pytorch"
JAX_FORMAT, ONNX_FORMAT, PYTORCH_FORMAT = "jax", "onnx", "pytorch"
HUB_FORMAT, DOCKER_FORMAT = "huggingface", "docker"
FORMATS = (JAX_FORMAT, ONNX_FORMAT, PYTORCH_FORMAT, HUB_FORMAT, DOCKER_FORMAT)
# Of what was exported and the network itself; float32 sums in another order differ by less.
_TOLERANCE = 1e-4
_FILES = {
    model_folder.FILE: "what the model is, how it is used, where it comes from",
    model_folder.PARAMS: "its parameters, an Orbax checkpoint",
    familiarity.FILE: "what the intensities of its training cases look like",
    ARTIFACT: "the network for JAX alone (`jax.export`), on cpu, cuda and tpu",
    ONNX: "the network for ONNX Runtime",
    PYTORCH: "its weights for the class of nnU-Net or MONAI",
    container.DOCKERFILE: "an image that segments with it on a CPU",
    container.FOLDER: "what the image needs: this program, and the versions of the others",
}


@dataclasses.dataclass(frozen=True)
class Package:
    """What is handed over.

    Attributes:
        name: of the model.
        run: the network, its parameters and how it is used.
        known: cases that it, or its teacher, was trained or chosen on.
        about: what else `model.json` says.
        training_data: what its training cases look like, where it is known.
    """

    name: str
    run: trained.Run
    known: model_lib.KnownCases
    about: typed.Json
    training_data: typed.JsonView | None = None


def gather(
    path: pathlib.Path, folds: Sequence[str], licence: str, formats: Sequence[str]
) -> Package:
    """Reads what is to be handed over, and checks that all `formats` are possible.

    Args:
        path: a run, a model folder, or what nnU-Net or MONAI trained.
        folds: of nnU-Net's or MONAI's.
        licence: of the parameters; empty: as the model itself says.
        formats: of `FORMATS`.

    Raises:
        UserError: it is none of these, or a format is impossible.
    """
    if not model_folder.is_model(path) and foreign.is_foreign(path):
        package = _foreign(path, folds)
    elif folds:
        raise UserError(f"--folds is {','.join(folds)}, but {path} has no folds to choose.")
    else:
        package = _again(path) if model_folder.is_model(path) else _run(path)
    if licence:
        package.about["licence"] = licence
    if PYTORCH_FORMAT in formats:
        network = package.run.model.network
        writing.check(network.network if isinstance(network, adapted.AdaptedConfig) else network)
    if ONNX_FORMAT in formats:
        onnx_file.check(package.run.model.network)
    if DOCKER_FORMAT in formats:
        container.pinned()
    return package


def _foreign(path: pathlib.Path, folds: Sequence[str]) -> Package:
    found = conversion.convert(path, folds)
    run = trained.Run(path, found.model, found.params, 0, checksums.content_hash(found.params))
    # The name alone: where a folder lay says nothing to others.
    source = found.about["source"] | {"path": path.name}
    return Package(path.stem, run, found.known, found.about | {"source": source})


def _again(path: pathlib.Path) -> Package:
    """A model folder in another form."""
    run, about = trained.load_run(path), model_folder.read(path)
    try:
        model_card.render(path.name, run.model, about.document, {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path / model_folder.FILE} is damaged ({error!r}): no model card can be made of it. "
            "Restore it from a copy."
        ) from error
    own = ("licence", "training", "test", "teacher", "provenance", "source", "made_by", "details")
    kept = {key: about.document[key] for key in own if key in about.document}
    return Package(path.name, run, about.known, kept, familiarity.read(path))


def _run(path: pathlib.Path) -> Package:
    run = trained.load_run(path)
    if run.undecided:
        raise UserError(
            f"{path} has no thresholds for its best parameters yet (inference.thresholds). Finish "
            "the run first: start its python -m kdnet_jax.main again."
        )
    experiment = reading.read_run(path)
    data_dir = experiment.data.data_dir
    split = splits.load_split(path / "split.json")
    summary = score_files.read_summary(path)
    about: typed.Json = {
        "licence": "" if data_dir else "Apache-2.0",
        "training": {
            "cases": len(split.train),
            "unlabelled_cases": len(split.unlabelled) if experiment.uses_unlabelled else 0,
            "validation_cases": len(split.validation),
            "test_cases": len(split.test),
            "split_hash": split.hash,
            "steps": experiment.train.steps,
            "synthetic": not data_dir,
            # The name alone: where a folder lay says nothing to others.
            "source": pathlib.Path(data_dir).name,
            "modality_dropout": experiment.modality_dropout,
        },
        "provenance": _shareable((summary or {}).get("provenance", {}))
        | {"exported_by": _shareable(provenance.collect())},
    }
    if summary:
        if summary["params_hash"] != run.params_hash:
            raise UserError(
                f"{path / score_files.FOLDER} scores other parameters than the run's best. Finish "
                "the run first: start its python -m kdnet_jax.main again."
            )
        about["test"] = scores.collect(
            score_files.read_scores(path),
            summary,
            _teacher(path),
            score_files.read_calibration(path),
        )
        if summary["teacher"]:
            about["teacher"] = {"hash": summary["teacher"]["hash"]}
    return Package(path.name, run, teachers.known_cases(path), about, familiarity.read(path))


def _shareable(about: typed.JsonView) -> typed.Json:
    """Leaves out the command, which names the user's folders."""
    return {key: value for key, value in about.items() if key != "command"}


def _teacher(path: pathlib.Path) -> typed.JsonView | None:
    for folder in (path / "teacher_evaluation", path / teachers.OWN):
        if folder.is_dir() and (summary := score_files.read_summary(folder)):
            return summary
    return None


def write(package: Package, output: pathlib.Path, formats: Sequence[str]) -> list[str]:
    """Writes the folder atomically.

    Args:
        package: what is handed over.
        output: the folder, a new one.
        formats: of `FORMATS`.

    Returns:
        A sentence on each thing that was written.

    Raises:
        UserError: it cannot be written.
    """
    run = package.run
    said = []
    with files.new_folder(output) as beside:
        model_folder.fill(
            beside,
            run.model,
            run.params,
            step=run.step,
            known=package.known,
            about=package.about,
            training_data=package.training_data,
        )
        known = len(package.known.ids)
        names = f"; it names the {known} cases that the model knows (known_cases)" if known else ""
        others = "" if package.known.complete else "; not all that it was trained on are known"
        said.append(f"{model_folder.FILE}, {model_folder.PARAMS}: the model{names}{others}")
        if JAX_FORMAT in formats:
            said.append(_write_artifact(run, beside / ARTIFACT))
        if ONNX_FORMAT in formats:
            said.append(_write_onnx(run, beside / ONNX))
        if PYTORCH_FORMAT in formats:
            (beside / PYTORCH).mkdir()
            said += [f"{PYTORCH}/{line}" for line in _write_pytorch(package, beside / PYTORCH)]
        if DOCKER_FORMAT in formats:
            container.write(beside)
            said.append(f"{container.DOCKERFILE}: an image: docker build --tag=NAME {output}")
        document = model_folder.read(beside).document
        there = {name: what for name, what in _FILES.items() if (beside / name).exists()}
        told = (package.name, run.model, document, there)
        if HUB_FORMAT in formats:
            files.write_text(beside / hub.README, hub.readme(*told))
            said.append(f"{hub.README}: the model card, with the Hub's metadata")
            if known:
                said.append(
                    f"{model_folder.FILE}: before you upload it, see that the ids of its {known} "
                    "known cases (known_cases) do not tell who the patients are"
                )
        else:
            files.write_text(beside / CARD, model_card.render(*told))
            said.append(f"{CARD}: what to tell those who use it")
    return [f"{output}/{line}" for line in said]


def _write_artifact(run: trained.Run, path: pathlib.Path) -> str:
    model = run.model
    channels = len(model.modalities)
    artifact.write(path, model.network, run.params, head=model.head, modalities=channels)
    compared = _compared(run, ARTIFACT, lambda x: artifact.run(path, jnp.asarray(x)))
    return f"{ARTIFACT}: for JAX alone, {compared}"


def _write_onnx(run: trained.Run, path: pathlib.Path) -> str:
    model = run.model
    assert isinstance(model.network, unet.UNetConfig), "onnx_file.check refuses others"
    onnx_file.write(
        path, model.network, run.params, modalities=model.modalities, outputs=model.outputs
    )
    compared = _compared(run, ONNX, lambda x: onnx_file.run(path, x))
    return f"{ONNX}: for ONNX Runtime, {compared}"


def _compared(
    run: trained.Run,
    name: str,
    exported: Callable[[Float[np.ndarray, "b d h w m"]], ArrayLike],
) -> str:
    """Says what an exported network gives, and by how much it differs from the network here."""
    model = run.model
    edges = [2 * unit for unit in model.network.divisor]
    # Two windows, so that the norms have more than one voxel where the network is coarsest.
    shape = (2, *edges, len(model.modalities))
    windows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    network = networks.portable(model.network)
    predict = inference.make_predict(networks.function(network), model.head, mirror=False)
    expected = np.asarray(predict(run.params, jnp.asarray(windows)))
    difference = np.abs(np.asarray(exported(windows)) - expected).max()
    if not difference < _TOLERANCE:
        raise UserError(
            f"{name} was not written: its probabilities differ from the network's by "
            f"{difference:.1e}, more than {_TOLERANCE:.0e}. Leave its form out of --formats."
        )
    return (
        f"{', '.join(model.modalities)} to {', '.join(model.outputs)}; differs from the network by "
        f"{difference:.1e} at most; it gives probabilities, the decision ({model.decision}) is in "
        f"{model_folder.FILE}"
    )


def _write_pytorch(package: Package, folder: pathlib.Path) -> list[str]:
    run, network = package.run, package.run.model.network
    assert isinstance(network, adapted.AdaptedConfig), "writing.check refuses others"
    members = [run.params["params"][f"member_{i}"] for i in range(network.members)]
    given = foreign_model.ForeignModel(
        source=package.name,
        network=network.network,
        members=tuple({"params": member} for member in members),
        task=run.model.task,
        modalities=run.model.modalities,
        head=run.model.head.kind,
        order=network.order,
        axes=network.axes,
        spacing=conversion.spacing_from_spl(run.model.spacing, network.axes),
        window=adapted.from_spl(run.model.window, network.axes),
        overlap=run.model.overlap,
        mirror=run.model.mirror,
        known=package.known,
        about={
            "made_by": "kdnet_jax",
            "parameters_sha256": run.params_hash,
            "licence": package.about.get("licence", ""),
        },
    )
    said = writing.write(folder, given)
    if run.model.thresholds:
        said.append(
            f"no thresholds: these tools have their own decision, not that of {model_folder.FILE} "
            f"({run.model.decision})"
        )
    return said
