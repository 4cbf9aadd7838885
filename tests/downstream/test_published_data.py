"""Every file of GUE and of the few-shot sets that is there is read, and has in it what is known of it."""

import pytest

from cmgems.downstream.data import read_split, read_task
from cmgems.downstream.integrity import check_integrity
from cmgems.downstream.rows import read_file
from cmgems.downstream.tasks import load_suite
from cmgems.errors import UserError

GUE = {task.name: task for task in load_suite("gue").tasks}
FEW_SHOT = {task.name: task for task in load_suite("fewshot").tasks}
WHOLE = ["mouse/0", "mouse/2", "mouse/3", "tf/0", "tf/1", "tf/2", "tf/3"]
WHOLE += ["prom/prom_core_tata", "prom/prom_core_notata", "prom/prom_core_all"]


def test_every_gue_file(shared_data):
    paths = sorted((shared_data / "gue").rglob("*.csv"))
    assert paths
    for path in paths:
        task = GUE[str(path.parent.relative_to(shared_data / "gue"))]
        split = read_split(read_file(path), str(path), "line", len(task.classes))
        with path.open() as file:
            assert len(split) == sum(1 for _ in file) - 1
        assert max(map(len, split.sequences)) == task.length
        assert min(split.class_counts(len(task.classes))) > 0


def test_every_few_shot_file(shared_data):
    paths = sorted((shared_data / "fewshot").rglob("*.tsv"))
    assert paths
    for path in paths:
        family, setting = path.relative_to(shared_data / "fewshot").parts[:2]
        task = FEW_SHOT.get(f"{family}/{setting}", FEW_SHOT[f"{family}/10"])
        split = read_split(read_file(path), str(path), "line", len(task.classes))
        longest = max(map(len, split.sequences))
        assert longest <= task.length if family == "silencer" else longest == task.length
        if path.name.startswith("train"):
            assert split.class_counts(len(task.classes)) == [task.shots] * len(task.classes)


def test_a_tsv_row_is_the_sequence_its_k_mers_were_made_of(shared_data):
    path = shared_data / "fewshot" / "Prom-core" / "10" / "train.tsv"
    written = path.read_text().splitlines()[1].split('"')[1]
    split = read_split(read_file(path), str(path), "line", 2)
    assert " ".join(split.sequences[0][i : i + 6] for i in range(65)) == written


def test_splice_40_has_three_classes(shared_data):
    data = read_task(FEW_SHOT["Splice-40/10"], shared_data / "fewshot")
    assert data.train.class_counts(3) == [100, 100, 100]
    assert data.test.class_counts(3) == [1048, 986, 966]
    assert data.dev is None


def test_the_classes_of_splice_sites_are_those_that_the_sequences_show(shared_data):
    path = shared_data / "gue" / "splice" / "reconstructed" / "test.csv"
    split = read_split(read_file(path), str(path), "line", 3)
    of = {
        name: [s for s, label in zip(split.sequences, split.labels, strict=True) if label == number]
        for number, name in enumerate(GUE["splice/reconstructed"].classes)
    }
    assert sum(s[198:200] == "AG" for s in of["acceptor"]) > 0.99 * len(of["acceptor"])
    assert sum(s[200:202] == "GT" for s in of["donor"]) > 0.98 * len(of["donor"])


def test_tasks_without_a_train_split_need_resplit(shared_data):
    with pytest.raises(UserError, match=r"gue/EMP/H3: task EMP/H3 has no train split here .*--resplit"):
        read_task(GUE["EMP/H3"], shared_data / "gue")
    data = read_task(GUE["EMP/H3"], shared_data / "gue", resplit=True)
    assert data.resplit
    assert (data.train.class_counts(2), data.dev.class_counts(2)) == ([588, 610], [147, 152])
    assert len(data.test) == 1497


@pytest.mark.parametrize(
    ("name", "first", "second", "sequences"),
    [
        ("tf/2", "train", "dev", 19),
        ("prom/prom_core_all", "train", "test", 42),
        ("prom/prom_core_tata", "train", "test", 16),
        ("mouse/2", "train", "test", 0),
    ],
)
def test_known_overlaps(shared_data, name, first, second, sequences):
    overlaps = check_integrity(read_task(GUE[name], shared_data / "gue")).overlaps
    assert [o.sequences for o in overlaps if (o.first, o.second) == (first, second)] == [sequences]


@pytest.mark.parametrize(
    ("name", "rows"), [("Prom-core/10", 0), ("Prom-core/1000", 1), ("Splice-40/100", 3), ("silencer/50", 1)]
)
def test_few_shot_test_rows_that_are_trained_on(shared_data, name, rows):
    overlaps = check_integrity(read_task(FEW_SHOT[name], shared_data / "fewshot")).overlaps
    assert [o.rows for o in overlaps if (o.first, o.second) == ("train", "test")] == [rows]


def test_the_only_ambiguous_nucleotides_are_written_as_n(shared_data):
    data = read_task(GUE["prom/prom_300_all"], shared_data / "gue", resplit=True)
    assert sum("N" in sequence for split in data.splits.values() for sequence in split.sequences) == 1
    assert sum(sum(split.ambiguous) for split in data.splits.values()) == 0


def test_whole_tasks_are_read_without_resplit(shared_data):
    for name in WHOLE:
        assert set(read_task(GUE[name], shared_data / "gue").splits) == {"train", "dev", "test"}
