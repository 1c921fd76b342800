import sys, time, pathlib, tempfile, collections

sys.path.insert(0, "/work/main")
from tests.bad_input import forks, scans, sound

d = pathlib.Path(tempfile.mkdtemp(dir="/work/tmp/badinput"))
base = sound.write_all(d / "sound")
ROOT = forks.ROOT
lines = []
meta = []


def words(base, folder, f):
    cohort = folder / "cohort"
    C = "--config=%s/configs/baseline.py:smoke" % ROOT
    yield (
        "predict",
        (
            "--checkpoint=%s" % (base / "baseline"),
            "--input=%s" % (folder / ("scan" + f.suffix)),
            "--output=%s" % (folder / "mask.nii.gz"),
        ),
    )
    yield "check_data", ("--data_dir=%s" % cohort,)
    yield "build_data", ("--data_dir=%s" % cohort, "--spacing=8")
    yield (
        "main",
        (
            C,
            "--config.data.data_dir=%s" % cohort,
            "--workdir=%s" % (folder / "run"),
            "--config.data.spacing=8.0",
        ),
    )
    yield (
        "preview_augmentation",
        (
            C,
            "--config.data.data_dir=%s" % cohort,
            "--output=%s" % (folder / "sheet.png"),
            "--config.data.spacing=8.0",
        ),
    )
    yield (
        "evaluate",
        (
            "--checkpoint=%s" % (base / "teacher"),
            "--references=%s" % cohort,
            "--output=%s" % (folder / "scores"),
            "--workers=1",
        ),
    )


t = time.time()
sel = sys.argv[1:]
for i, f in enumerate((*scans.BAD_ON_BOTH_SIDES, *scans.BAD_SCANS)):
    folder = d / f"{i:03d}"
    folder.mkdir()
    f.build(folder / ("scan" + f.suffix))
    sound.copy(base / "cohort", folder / "cohort")
    c = folder / "cohort" / sound.CASE
    (c / f"{sound.CASE}_t1ce.nii.gz").unlink()
    f.build(c / f"{sound.CASE}_t1ce{f.suffix}")
    for cmd, w in words(base, folder, f):
        if sel and cmd not in sel:
            continue
        cwd = folder / ("cwd_" + cmd)
        cwd.mkdir()
        lines.append(forks.Line(cmd, w, cwd))
        meta.append((f.name, cmd))
print("built", time.time() - t)
t = time.time()
said = d / "said"
said.mkdir()
res = forks.run(lines, said)
print("ran", len(lines), time.time() - t)
for (n, c), e in zip(meta, res):
    want = 1 if c == "check_data" else 2
    err = [l for l in e.err.splitlines() if not l.startswith("W1123") and not l.startswith("I1123")]
    bad = e.code != want or "Traceback" in e.err or e.peak_mib > 1200
    print(
        ("BAD " if bad else "ok  "),
        c,
        "|",
        n,
        "|",
        e.code,
        int(e.peak_mib),
        "|",
        " // ".join(err[-3:])[-420:] if c != "check_data" or bad else "",
    )
