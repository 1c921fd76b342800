"""`--formats=huggingface`, read, uploaded and fetched by the Hub's own client."""

import base64
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("huggingface_hub")

import huggingface_hub

import kdnet_jax
from kdnet_jax.interop.export import hub
from tests.helpers import card_documents, commands

_COMMIT = "c" * 40
_ROWS = [card_documents.score("a", region, 0.5) for region in ("ET", "TC", "WT")]


class _Hub(http.server.BaseHTTPRequestHandler):
    """The Hub as far as an upload and a download need it; every file is a plain one."""

    files: dict[str, bytes]

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        action = self.path.partition("/o/m/")[2].partition("/")[0]
        if self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif action == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            asked = json.loads(body)["files"]
            self._answer({"files": [{"path": each["path"]} | modes for each in asked]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            address = f"http://{self.headers['Host']}/o/m/commit/{_COMMIT}"
            self._answer({"commitUrl": address, "commitOid": _COMMIT})

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if found := re.fullmatch(rf"/o/m/resolve/{_COMMIT}/(.*)", path):
            self._answer(self.files[found[1]])
        elif "/tree/" in path:
            rows = [{"type": "file", "path": name, **_blob(x)} for name, x in self.files.items()]
            self._answer(rows)
        else:
            self._answer({"id": "o/m", "sha": _COMMIT, "siblings": []})

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, found: Any) -> None:
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_blob(content)["oid"]}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content: bytes) -> dict[str, Any]:
    """Returns size and name of a file, as git has it."""
    return {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of a hub on this machine, and the files that it has been given."""
    handler = type("Handler", (_Hub,), {"files": {}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", handler.files
        served.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def exported(
    smoke_student: commands.Finished, tmp_path_factory: pytest.TempPathFactory
) -> commands.Finished:
    folder = tmp_path_factory.mktemp("hub") / "student"
    words = [f"--checkpoint={smoke_student.folder}", f"--output={folder}", "--licence=CC BY 4.0"]
    done = commands.run("export", *words, "--formats=huggingface")
    return commands.Finished(done.returncode, done.stdout, done.stderr, folder)


def _loaded(document: dict[str, Any], tmp_path: pathlib.Path, name: str = "it") -> Any:
    path = tmp_path / "README.md"
    path.write_text(hub.readme(name, card_documents.MODEL, document, {}), "utf-8")
    return huggingface_hub.ModelCard.load(path)


def test_the_hub_understands_the_card(exported: commands.Finished) -> None:
    assert exported.code == 0, exported.err
    names = {"model.json", "params", "README.md", "training_data.json"}
    assert {path.name for path in exported.folder.iterdir()} == names
    card = huggingface_hub.ModelCard.load(exported.folder / "README.md")
    about = json.loads((exported.folder / "model.json").read_text("utf-8"))
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "kdnet_jax")
    assert card.data.pipeline_tag == "image-segmentation"
    assert {"mri", "knowledge-distillation", "t1ce"} < set(card.data.tags)
    found = {each.metric_name: each.metric_value for each in card.data.eval_results}
    regions = about["test"]["regions"].items()
    assert found == {f"Dice, {key}": round(row["dice"]["mean"], 4) for key, row in regions}
    assert {each.dataset_name for each in card.data.eval_results} == {about["training"]["source"]}
    # Written by the client and read again it is the same.
    again = huggingface_hub.ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.text.lstrip() == card.text.lstrip()
    assert card.text.lstrip().startswith("# student\n\n**This is no medical device.**")


def test_it_is_said_that_ids_may_tell_of_patients(exported: commands.Finished) -> None:
    about = json.loads((exported.folder / "model.json").read_text("utf-8"))
    assert f"its {len(about['known_cases'])} known cases" in exported.out
    for case in about["known_cases"]:
        assert case not in (exported.folder / "README.md").read_text("utf-8")


def test_what_is_uploaded_and_fetched_segments_as_before(
    exported: commands.Finished,
    server: tuple[str, dict[str, bytes]],
    tiny_cohort: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    address, files = server
    api = huggingface_hub.HfApi(endpoint=address, token="hf_none")
    api.upload_folder(repo_id="o/m", folder_path=exported.folder)
    assert "README.md" in files
    cache = tmp_path / "cache"
    folder = huggingface_hub.snapshot_download(
        "o/m", endpoint=address, token=False, cache_dir=cache
    )
    assert (pathlib.Path(folder) / "model.json").is_symlink()
    scan = nib.load(min(tiny_cohort.glob("*/*_t1ce.nii.gz")))
    ours, theirs = (kdnet_jax.load(each).segment(scan) for each in (folder, exported.folder))
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    for name in ours.outputs:
        np.testing.assert_array_equal(ours.probability(name), theirs.probability(name))


def test_it_is_exported_again(exported: commands.Finished, tmp_path: pathlib.Path) -> None:
    words = [f"--checkpoint={exported.folder}", f"--output={tmp_path / 'again/student'}"]
    done = commands.run("export", *words, "--formats=huggingface")
    assert done.returncode == 0, done.stderr
    first, again = (
        huggingface_hub.ModelCard.load(folder / "README.md")
        for folder in (exported.folder, tmp_path / "again/student")
    )
    assert first.data.to_dict() == again.data.to_dict()
    assert first.text == again.text


@pytest.mark.parametrize(
    ("licence", "found", "name"),
    [
        ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", None),
        ("Apache 2.0", "apache-2.0", None),
        ("", "unknown", None),
        ("Our hospital's; ask: #1\n--- <b>", "other", "our-hospital-s-ask-1-b"),
        ("許可", "other", "unnamed"),
        ("no", "other", "no"),
    ],
)
def test_licences_are_the_hubs_or_another(
    tmp_path: pathlib.Path, licence: str, found: str, name: str | None
) -> None:
    data = _loaded(card_documents.document(licence=licence), tmp_path).data
    assert (data.license, data.license_name) == (found, name)


@pytest.mark.parametrize(
    "name", ["a: b # c", "--- x", "'\"", "null", "été 🧠\x85\u2028 {{x}}", "1"]
)
def test_names_stay_what_they_are(tmp_path: pathlib.Path, name: str) -> None:
    document = card_documents.with_scores(*_ROWS)
    document["training"]["source"] = name
    data = _loaded(document, tmp_path, name).data
    assert data.model_name == name
    assert [each.dataset_name for each in data.eval_results] == [name] * 3


def test_no_result_is_claimed_without_scores(tmp_path: pathlib.Path) -> None:
    document = card_documents.document(made_by="nnU-Net", licence="")
    del document["training"]
    data = _loaded(document, tmp_path).data
    assert (data.eval_results, data.license) == (None, "unknown")


def test_synthetic_results_are_marked(tmp_path: pathlib.Path) -> None:
    document = card_documents.with_scores(*_ROWS)
    document["training"] |= {"synthetic": True, "source": ""}
    (first, *_) = _loaded(document, tmp_path).data.eval_results
    assert (first.dataset_name, first.dataset_type) == ("synthetic", "synthetic")
