"""The plan and the picture of `benchmarks.growth`."""

from benchmarks import growth_plot, growth_points


def test_a_size_shared_by_axes_is_measured_once() -> None:
    planned = growth_points.points({"edge": 64, "batch": 2}, {"edge": (32, 64), "batch": (1, 2)})
    assert planned == [
        ({"edge": 32, "batch": 2}, ["edge"]),
        ({"edge": 64, "batch": 2}, ["edge", "batch"]),
        ({"edge": 64, "batch": 1}, ["batch"]),
    ]


def test_the_plot_is_written_whole(tmp_path) -> None:
    point = {"edge": 16, "ours_seconds": 0.1, "ours_gib": 0.2}
    found = {
        "edge": [point | {"peer_seconds": 0.2, "peer_gib": 0.4}, point | {"edge": 32}],
        "cases": [{"cases": 4, "ours_seconds": 0.1, "ours_gib": 0.1}],
    }
    growth_plot.draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_what_does_not_grow_looks_flat() -> None:
    low, high = growth_plot._limits([{"ours_seconds": 1.0}, {"ours_seconds": 1.01}], "seconds")
    assert high / low >= 10
    assert low < 1 < high
